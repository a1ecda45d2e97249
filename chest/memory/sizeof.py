"""How many bytes of memory a value holds: :func:`nbytes`.

A short dict, list or tuple of plain things, also nested, is added up in one loop.  Anything else is walked generation
by generation: the value, its parts, their parts.  An object that is met again counts no more, so cycles end.  What the
parts are, the garbage collector says, which runs no property and no method of the user's.

Of a long container a sample is looked at.  The places are fixed by the length alone: one in each of equal stretches,
following the golden ratio, so that a period in the data does not mislead, and a value always has one size.
"""
from __future__ import annotations

import gc
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from itertools import chain, islice
from mmap import mmap
from operator import attrgetter, index
from typing import Any, Protocol, TypeVar, cast

from chest.errors import raise_of_a_signal

__all__ = ["nbytes"]

_Sizer = TypeVar("_Sizer", bound=Callable[[Any], int])
# Parts of an object, and how many each of them stands for.
_Parts = tuple[Sequence[object], float]
# How objects of a type are measured: the bytes that one takes by itself, and its parts.
_Plan = Callable[[Any], tuple[int, list[_Parts]]]

_SAMPLES = 100  # a longer container is judged by this many of its items
_CPYTHON = sys.implementation.name == "cpython"  # PyPy's collector does not tell the items of every container
_WIDTH = 1000  # of one generation at most so many objects are opened: the rest is judged by them
_DEPTH = 5000  # generations looked at; what is nested more deeply cannot be pickled either
_TYPES = 1000  # plans remembered
# Packages whose ``nbytes`` is not asked: it tells of data elsewhere, or (pandas) leaves out what strings hold, or
# (a memoryview's) is that of a part.
_LAZY = frozenset(("builtins", "dask", "dask_expr", "h5py", "pandas", "xarray", "zarr"))

# Types whose objects have no parts worth a look: data without references, and code and frames, which are shared.
_PLAIN: frozenset[type] = frozenset(
    (bool, int, float, complex, str, bytes, bytearray, range, type(None), type)
    + (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.CodeType)
    + (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType, types.FrameType, types.TracebackType)
    + (type(lru_cache(len)),))
_NESTED: frozenset[type] = frozenset((dict, list, tuple))
# Types that have a length, and how many bytes an item takes, about, where the interpreter cannot tell.
_CONTAINERS: dict[Any, int] = {list: 8, tuple: 8, deque: 8, set: 32, frozenset: 32, dict: 32}
_LENGTHS: dict[Any, int] = {str: 1, bytes: 1, bytearray: 1, **_CONTAINERS}

# What `type` itself says of a class, whatever its metaclass says.
_mro: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
_names: Callable[[type], dict[str, object]] = type.__dict__["__dict__"].__get__
_module: Callable[[type], object] = type.__dict__["__module__"].__get__
_qualname: Callable[[type], str] = type.__dict__["__qualname__"].__get__


class _NBytes(Protocol):
    """The type of :func:`nbytes`, a function with a method."""

    def __call__(self, value: object, /) -> int: ...
    def register(self, kind: type | str, /) -> Callable[[_Sizer], _Sizer]: ...


def _nbytes(value: object, /) -> int:
    """Return how many bytes of memory a value holds, as an int that is never negative.

    An array counts its data alone: exactly ``array.nbytes`` if it owns them or they are mapped from a file, and all
    the memory that it keeps alive if it is a view.  An object with an integer ``nbytes`` counts exactly that; one of
    h5py, zarr, dask or xarray counts what it holds in memory.  Containers and instances count themselves and all that
    they hold, each object once; tables and trees of known libraries their buffers; classes, modules and functions
    count as small constants.

    The value is not changed, and none of its code runs but ``nbytes``.  No value makes it raise: one that cannot be
    looked into counts what :func:`sys.getsizeof` says of it.  Cost: 2 to 3 µs for a small dict, 0.5 µs for an array,
    and about 0.5 µs for each part of anything else; of a container with more than 100 items, 100 are looked at.

    >>> shared = bytes(1000)
    >>> 1000 < nbytes([shared, shared]) < 2000 < nbytes([bytes(1000), bytes(1000)])
    True

    ``nbytes.register`` teaches it a type, as :func:`functools.singledispatch` does: the function is asked for the
    instances of the type and of its subclasses, unless a nearer one is registered.  A string names a type by module
    and qualified name, so that its library need not be imported.  A function that raises, or returns no size, is
    passed over.

    >>> class Picture:
    ...     width, height = 640, 480
    >>> @nbytes.register(Picture)
    ... def _(picture):
    ...     return picture.width * picture.height * 4
    >>> nbytes(Picture())
    1228800
    """
    try:
        if type(value) in _plain:
            return _sizeof(value)
        parts: list[Any] = [value]
        for part in parts:  # it grows meanwhile
            kind = type(part)
            if kind not in _plain:
                if kind not in _nested:
                    if part is parts[0] and _plan(kind) is _array and not part.dtype.hasobject and (
                            part.base is None or (isinstance(part.base, mmap) and part.flags.forc)):
                        return int(part.nbytes)
                    break
                if len(part) > _SAMPLES or len(parts) > _WIDTH:  # long, or a cycle
                    break
                parts += part
                if kind is dict:
                    parts += part.values()
        else:
            if len({*map(id, parts)}) < len(parts):
                parts = [*dict(zip(map(id, parts), parts)).values()]
            return sum(map(_sizeof, parts))
    except Exception as error:  # a dict that another thread changes, or a type that cannot be hashed
        raise_of_a_signal(error)
    return _walk(value)


def _walk(value: object) -> int:
    """Return the bytes of a value and of all that is reached from it.

    A part of a sample counts as often as it stands for others; met a second time, it is taken to be shared by all.
    """
    total = 0.0
    seen: dict[int, object] = {}  # holds the objects, so that no identity is used again
    found: dict[int, tuple[object, float]] = {id(value): (value, 1)}
    for _ in range(_DEPTH):
        compound = []
        for key, (part, scale) in found.items():
            seen[key] = part
            try:
                if type(part) in _plain:
                    total += _sizeof(part) * scale
                    continue
            except TypeError:  # a type that cannot be hashed
                pass
            compound.append((part, scale))
        found = {}
        compound, share = _sample(compound, len(compound), compound.__getitem__, _WIDTH)
        for part, scale in compound:
            kind = type(part)
            try:
                size, held = _plan(kind)(part)
            except Exception as error:
                raise_of_a_signal(error)
                size, held = _own_size(kind)(part), []
            total += size * scale * share
            for parts, each in held:
                for part in parts:
                    key = id(part)
                    if key not in seen:
                        found[key] = part, 1 if key in found else each * scale * share
        if not found:
            break
    return int(min(total, sys.maxsize))


def _register(kind: type | str, /) -> Callable[[_Sizer], _Sizer]:
    """Return a decorator that makes a function the measure of a type, given or named ``"module.Class"``."""
    if not isinstance(kind, (type, str)):
        raise TypeError(f"nbytes.register takes a type or the name of one, not {kind!r}")

    def add(function: _Sizer) -> _Sizer:
        global _plain, _nested
        _registered[kind] = function
        _plans.cache_clear()
        _plain, _nested = (frozenset(one for one in kinds if _measure(one) is None) for kinds in (_PLAIN, _NESTED))
        return function

    return add


def _measure(kind: type) -> Callable[[Any], Any] | None:
    """Return what is registered for a type or for the nearest of its bases."""
    for base in _mro(kind):
        found = _registered.get(base) or _registered.get(f"{_module(base)}.{_qualname(base)}")
        if found is not None:
            return found
    return None


def _asked(function: Callable[[Any], Any], value: object) -> int:
    """Return the size that a function tells, which may be the user's; -1 if it tells none."""
    try:
        return max(-1, min(index(function(value)), sys.maxsize))
    except Exception as error:  # no size, such as a method of that name
        raise_of_a_signal(error)
        return -1


def _own_size(kind: type) -> Callable[[object], int]:
    """Return what tells the bytes that an object takes by itself.  A ``__sizeof__`` in Python is not asked."""
    sizer = next((names["__sizeof__"] for names in map(_names, _mro(kind)) if "__sizeof__" in names), None)
    return _sizeof if type(sizer) in (types.MethodDescriptorType, type(None)) else _basic


def _choose(kind: type) -> _Plan:
    """Return how objects of a type are measured.

    An ``nbytes`` is believed if it stands in a class or in the instance itself: what answers to any name is not asked.
    """
    bases, own, measure = _mro(kind), _own_size(kind), _measure(kind)
    if measure is _array and _module(kind) == "numpy":
        return _array
    if measure is None and (type in bases or types.ModuleType in bases):
        measure = own
    if measure is not None and measure is not _array:
        return lambda value: (told if (told := _asked(measure, value)) >= 0 else own(value), [])
    teller = next((base for base in bases if "nbytes" in _names(base)), None)
    is_believed = measure is None and teller is not None and str(_module(teller)).partition(".")[0] not in _LAZY
    container: Any = next((base for base in bases if base in _CONTAINERS), None)
    dicts: list[Any] = [names["__dict__"] for names in map(_names, bases)
                        if type(names.get("__dict__")) in (types.GetSetDescriptorType, types.MemberDescriptorType)]

    def plan(value: Any) -> tuple[int, list[_Parts]]:
        told = _asked(attrgetter("nbytes"), value) if is_believed else -1
        state: dict[str, Any] = dicts[0].__get__(value, kind) if dicts else {}
        if told < 0 and type(inner := dict.get(state, "nbytes")) is int:
            told = min(inner, sys.maxsize)
        if told >= 0:
            return told, []
        size, held = _array(value) if measure is _array else (own(value), [])
        attributes = list(dict.values(state))  # without their names, which the class has as well
        size += _sizeof(state) if dicts else 0
        # By the methods of the builtin type that it descends from.
        if container is dict:  # the collector does not tell of keys that are text
            pairs, scale = _sample(dict.items(value), dict.__len__(value))
            held = [([*chain(*pairs)], scale)]
        elif container is not None and ((count := container.__len__(value)) > _SAMPLES or not _CPYTHON):
            by_place = partial(container.__getitem__, value) if container in (list, tuple) else None
            held = [_sample(container.__iter__(value), count, by_place)]
        else:
            parts = {id(part): part for part in [*attributes, *gc.get_referents(value)]}
            attributes = [part for part in parts.values() if part is not kind and part is not state]
        return size, [*held, _sample(attributes, len(attributes))]

    return plan


def _array(value: Any) -> tuple[int, list[_Parts]]:
    """The plan of a numpy array: its data if they are its own, else what it keeps alive."""
    if value.base is None:
        if not value.dtype.hasobject:
            return value.nbytes, []
        return value.nbytes, [_sample(map(value.item, range(value.size)), value.size, value.item)]
    owner, views = value, (memoryview, sys.modules["numpy"].ndarray)
    for _ in range(100):  # no real chain is so long; an odd array may name itself as its base
        below = (owner.obj if type(owner) is memoryview else owner.base) if issubclass(type(owner), views) else None
        if below is None:
            break
        owner = below
    steps = [abs(stride) * (length - 1) for length, stride in zip(value.shape, value.strides)]
    extent = sum(steps) + value.itemsize if value.size else 0
    if not issubclass(type(owner), mmap) and _plan(type(owner))(owner)[0] >= extent:
        return 0, [([owner], 1)]
    return extent, []  # of a map, or of an owner that does not tell its size


def _as_pickled(value: Any) -> int:
    """Return the size of a tree that is kept in C: that of the arrays which stand for it in a pickle."""
    state = value.__getstate__()
    state = state.values() if type(state) is dict else state
    return _sizeof(value) + sum(getattr(part, "nbytes", 0) for part in state)


def _estimate(value: object) -> int:
    """Return about what an object takes by itself, where the interpreter cannot tell."""
    bases = _mro(type(value))
    known = [kind for kind in _LENGTHS if any(base is kind for base in bases)]
    return 56 + (_LENGTHS[known[0]] * int(known[0].__len__(value)) if known else 0)


@lru_cache(64)
def _places(count: int, samples: int) -> list[int]:
    """Return increasing places below a count, one in each of as many equal stretches as there are samples."""
    edges = [stretch * count // samples for stretch in range(samples + 1)]
    return [low + int(n * 0.6180339887498949 % 1 * (high - low)) for n, (low, high) in enumerate(zip(edges, edges[1:]))]


def _sample(items: Iterable[Any], count: int, by_place: Callable[[int], Any] | None = None,
            samples: int = _SAMPLES) -> tuple[list[Any], float]:
    """Return some of so many items, or all if they are few, and how many each of them stands for."""
    if count <= samples:
        return list(items), 1
    if by_place is not None:
        return [by_place(place) for place in _places(count, samples)], count / samples
    walker, after = iter(items), 0
    sample: list[Any] = []
    for place in _places(count, samples):
        sample += islice(walker, place - after, place - after + 1)
        after = place + 1
    return sample, count / samples


# What measures a type, given or named, so that its library need not be there.
_registered: dict[type | str, Callable[[Any], Any]] = {
    "numpy.ndarray": _array,
    "polars.dataframe.frame.DataFrame": lambda value: value.estimated_size(),
    "polars.series.series.Series": lambda value: value.estimated_size(),
    "polars.lazyframe.frame.LazyFrame": lambda value: len(value.__getstate__()),  # it may hold a whole frame
    "pyarrow.lib.Buffer": lambda value: value.size,
    "_io.StringIO": lambda value: 4 * len(value.getvalue()),
    **dict.fromkeys(  # in full: a slice keeps all of them alive
        [f"pyarrow.lib.{name}" for name in ("Array", "ChunkedArray", "RecordBatch", "Table")],
        lambda value: value.get_total_buffer_size()),
    **dict.fromkeys(["scipy.spatial._ckdtree.cKDTree", "sklearn.neighbors._ball_tree.BallTree",
                     "sklearn.neighbors._ball_tree.BallTree32", "sklearn.neighbors._kd_tree.KDTree",
                     "sklearn.neighbors._kd_tree.KDTree32", "sklearn.tree._tree.Tree"], _as_pickled),
}
_plans = lru_cache(_TYPES)(_choose)
_plan: Callable[[type], _Plan] = _plans
# What nobody registered of these types.
_plain, _nested = _PLAIN, _NESTED

_sizeof: Callable[[object], int] = sys.getsizeof
_basic: Callable[[object], int] = getattr(object, "__sizeof__", _estimate)
try:
    _sizeof(0)
except TypeError:  # PyPy
    _sizeof = _basic = _estimate

_nbytes.__name__ = _nbytes.__qualname__ = "nbytes"
cast(Any, _nbytes).register = _register
nbytes = cast(_NBytes, _nbytes)
