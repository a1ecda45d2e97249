"""How many bytes of memory a value holds: :func:`nbytes`.

A short dict, list or tuple of plain things, also nested, is added up in one loop. Anything else is walked generation
by generation: the value, its parts, their parts. An object that is met again counts no more, so cycles end.

A *plan* tells for the objects of one type what one takes by itself and what its parts are. It runs no property and no
method of the user's, and imports nothing: the libraries' types are listed by name. Classes are read by the descriptors
of ``type``, for a metaclass may define anything.

Of a long container a plan names a sample. The places are fixed by the length alone: one in each of equal stretches,
following the golden ratio, so that a period in the data does not mislead, and a value always has one size.
"""

from __future__ import annotations

import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from itertools import islice
from mmap import mmap
from operator import index
from typing import Any, NamedTuple, Protocol, TypeVar, cast

__all__ = ["nbytes"]

_Sizer = TypeVar("_Sizer", bound=Callable[[Any], int])
#: The bytes of an object by itself, its parts, and how many parts each of these stands for.
_Holding = tuple[int, Sequence[object], float]
_Plan = Callable[[Any], _Holding]

#: A longer container is judged by this many of its items.
_SAMPLES = 100
#: Of one generation, at most this many objects are opened: the rest is judged by them.
_WIDTH = 1000
#: Generations looked at; what is nested more deeply cannot be pickled either.
_DEPTH = 5000
#: Plans remembered. Then all are forgotten: types that are made on the fly are not kept alive for ever.
_TYPES = 1000
_GOLDEN = 0.6180339887498949
#: The packages whose objects stand for data elsewhere: what they hold is looked at, their `nbytes` is not asked.
_LAZY = frozenset(("dask", "dask_expr", "h5py", "xarray", "zarr"))
#: What an odd value gives rise to. Not any Exception: a handler of a signal may raise its own, which must come out.
_ODD = (ArithmeticError, AttributeError, BufferError, LookupError, RuntimeError, TypeError, ValueError)

#: What `type` itself says of a class, whatever its metaclass says.
_mro: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
_names: Callable[[type], dict[str, object]] = type.__dict__["__dict__"].__get__
_module: Callable[[type], object] = type.__dict__["__module__"].__get__
_qualname: Callable[[type], str] = type.__dict__["__qualname__"].__get__


class _Piece(NamedTuple):
    """A part that is no object of its own: a sample of items, or the memory of an owner that does not tell its size."""

    owner: object  # by which it is known when it is met again
    size: int
    parts: Sequence[object]
    scale: float


class _NBytes(Protocol):
    """The type of :func:`nbytes`, a function with a method."""

    def __call__(self, value: object, /) -> int: ...

    def register(self, kind: type | str, /) -> Callable[[_Sizer], _Sizer]:
        """Return a decorator that makes a function the measure of a type, given or named ``"module.Class"``."""


def _nbytes(value: object, /) -> int:
    """Return how many bytes of memory a value holds, as an int that is never negative.

    An array counts its data alone: exactly ``array.nbytes`` if it owns them or they are mapped from a file, and all
    the memory that it keeps alive if it is a view. An object with an integer ``nbytes`` counts exactly that; one of
    h5py, zarr, dask or xarray counts what it holds in memory. Lists, tuples, sets, dicts and their like, and instances
    with attributes or slots, count themselves and all that they hold, each object once. Frames, series, sparse
    matrices, tables and trees of known libraries count their buffers. Classes, modules and functions count as small
    constants.

    The value is not changed: no iterator is advanced, and none of its code runs but ``nbytes``. No value makes it
    raise: one that cannot be looked into counts what :func:`sys.getsizeof` says of it.

    Cost: 2 to 3 µs for a small dict, 0.5 µs for an array, and about 0.3 µs for each part of anything else; of a
    container with more than 100 items, 100 are looked at, spread evenly.

    >>> nbytes([bytes(1000), bytes(1000)]) > 2000
    True
    >>> shared = bytes(1000)
    >>> nbytes([shared, shared]) < 2000
    True

    ``nbytes.register`` teaches it a type, as :func:`functools.singledispatch` does: the function is asked for the
    instances of the type and of its subclasses, unless a nearer one is registered. A string names a type by
    module and qualified name, so that its library need not be imported. A function that raises, or returns no
    size, is passed over.

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
        room, whole = _room, 1
        for part in parts:  # It grows meanwhile.
            kind = type(part)
            if kind not in _plain:
                if kind is not dict and kind is not list and kind is not tuple:
                    array: Any = value
                    if part is value and _plans.get(kind) is _array and array.base is None:
                        if not array.dtype.hasobject:
                            return int(array.nbytes)
                    break
                count = len(part)
                room -= count
                whole += count
                if count > _SAMPLES or room < 0:  # Long, or a cycle.
                    break
                parts += part
                if kind is dict:
                    parts += part.values()
                    whole += count
        else:
            if len({*map(id, parts)}) < whole:
                parts = [*dict(zip(map(id, parts), parts)).values()]
            return sum(map(_sizeof, parts))
    except _ODD:  # A dict that another thread changes, or a type that cannot be hashed.
        pass
    return _walk(value)


def _register(kind: type | str, /) -> Callable[[_Sizer], _Sizer]:
    if not isinstance(kind, (type, str)):
        raise TypeError(f"nbytes.register takes a type or the name of one, not {kind!r}")

    def add(function: _Sizer) -> _Sizer:
        global _plain, _plans, _room
        _registered[kind] = _asking(function, _bare)
        # A new table, not an emptied one: a thread that is choosing a plan just now puts it into the old table.
        _plans = dict[type, _Plan]()
        _plain = frozenset(plain for plain in _PLAIN if _lookup(plain) is None)
        _room = -1 if any(map(_lookup, (list, tuple, dict))) else _WIDTH
        return function

    return add


def _walk(value: object) -> int:
    """Return the bytes of a value and of all that is reached from it.

    A part of a sample counts as often as it stands for others; met a second time, it is taken to be shared by all.
    """
    size, parts, scale = _holding(value)
    if not parts:
        return size
    total: float = size
    seen: dict[int, object] = {id(value): value}  # Holds the objects, so that no identity is used again.
    opened = [(parts, scale)]
    for _ in range(_DEPTH):
        found: dict[int, tuple[object, float]] = {}
        for parts, scale in opened:
            for part in parts:
                key = id(part.owner if type(part) is _Piece else part)
                if key not in seen:
                    found[key] = part, 1 if key in found else scale
        if not found:
            break
        compound = []
        for key, (part, scale) in found.items():
            seen[key] = part
            try:
                if type(part) in _plain:
                    total += _sizeof(part) * scale
                    continue
            except _ODD:  # A type that cannot be hashed.
                pass
            compound.append((part, scale))
        compound, share = _picked(len(compound), compound.__getitem__, _WIDTH)
        opened = []
        for part, scale in compound:
            size, parts, each = _holding(part)
            total += size * scale * share
            opened.append((parts, each * scale * share))
    return int(min(total, sys.maxsize))


def _holding(value: object) -> _Holding:
    """Return what the plan of the value's type says, or the bare size of a value that cannot be looked into."""
    kind = type(value)
    try:
        return (_plans.get(kind) or _choose(kind))(value)
    except _ODD:
        return _bare(value)


# How the plan of a type is chosen


def _choose(kind: type) -> _Plan:
    plans = _plans
    if len(plans) >= _TYPES:
        plans.clear()
    plan = _lookup(kind) or _structural(kind)
    plans[kind] = plan = _with_attributes(kind, plan) if plan is _array else plan
    return plan


def _lookup(kind: type) -> _Plan | None:
    """Return the plan registered for a type or for the nearest of its bases."""
    for base in _mro(kind):
        plan = _registered.get(base) or _registered.get(f"{_module(base)}.{_qualname(base)}")
        if plan is not None:
            return plan
    return None


def _structural(kind: type) -> _Plan:
    """Return the plan that follows from what a type is built of.

    An ``nbytes`` is believed if it stands in a class or in the instance itself: what answers to any name is not asked.
    """
    bases = _mro(kind)
    if type in bases or types.ModuleType in bases:
        return _bare
    own = _sizer(kind)
    container = next((base for base in bases if base in _CONTAINERS), None)
    plan = (lambda value: (own(value), *_items(container, value))) if container else lambda value: (own(value), (), 1)
    plan = _with_attributes(kind, plan)
    return _asking(lambda value: value.nbytes, plan) if _tells(kind) else plan


def _tells(kind: type) -> bool:
    """Has the type an ``nbytes`` that is believed?"""
    base = next((base for base in _mro(kind) if "nbytes" in _names(base)), None)
    return base is not None and str(_module(base)).partition(".")[0] not in _LAZY


def _asking(function: Callable[[Any], object], otherwise: _Plan) -> _Plan:
    """Return the plan of objects whose size a function tells, which may be the user's."""

    def asking(value: Any) -> _Holding:
        try:
            size = index(cast(Any, function(value)))
        except Exception:  # No size, such as a method of that name.
            size = -1
        return (min(size, sys.maxsize), (), 1) if size >= 0 else otherwise(value)

    return asking


def _with_attributes(kind: type, otherwise: _Plan) -> _Plan:
    """Return a plan that adds the instance's dict and slots, read by their descriptors, where a type has any."""
    members = [item for base in _mro(kind) for item in _names(base).items() if type(item[1]) in _DESCRIPTORS]
    slots: list[Any] = [item for name, item in members if type(item) is _DESCRIPTORS[0] and name != "__dict__"]
    dicts: list[Any] = [item for name, item in members if name == "__dict__"]
    if not slots and not dicts:
        return otherwise

    def attributes(value: Any) -> _Holding:
        size, items, scale = otherwise(value)
        parts = [*items] if scale == 1 else [_Piece(items, 0, items, scale)]
        for slot in slots:
            try:
                parts.append(slot.__get__(value, kind))
            except AttributeError:  # An empty slot.
                pass
        if dicts:
            state = dicts[0].__get__(value, kind)
            told = dict.get(state, "nbytes")
            if type(told) is int and told >= 0:
                return min(told, sys.maxsize), (), 1
            named, scale = _sampled(dict.values(state), dict.__len__(state))
            parts += named if scale == 1 else [_Piece(state, 0, named, scale)]
            size += _sizeof(state)
        return size, parts, 1

    return attributes


# Plans


def _bare(value: object) -> _Holding:
    """Plan of what has no parts, or none that can be reached."""
    return _sizer(type(value))(value), (), 1


def _sizer(kind: type) -> Callable[[object], int]:
    """Return what tells the bytes that an object takes by itself. A ``__sizeof__`` in Python is not asked."""
    sizer = next((names["__sizeof__"] for names in map(_names, _mro(kind)) if "__sizeof__" in names), None)
    return _sizeof if type(sizer) in (types.MethodDescriptorType, type(None)) else _basic


def _items(kind: Any, value: Any) -> tuple[Sequence[object], float]:
    """Return the items of a container, read by the methods of the builtin type that it descends from."""
    count = kind.__len__(value)
    if kind is dict:
        pairs, scale = _sampled(dict.items(value), count)
        return [part for pair in pairs for part in pair], scale
    if kind is list or kind is tuple:
        return _picked(count, partial(kind.__getitem__, value))
    return _sampled(kind.__iter__(value), count)


def _array(value: Any) -> _Holding:
    """Plan of a numpy array: its data if they are its own, else what it keeps alive."""
    if value.base is None:
        if value.dtype.hasobject:  # Objects, and numpy's own strings of any length.
            return (value.nbytes, *_picked(value.size, value.item))
        return value.nbytes, (), 1
    owner = _owner(value)
    if _tells(type(owner)):
        return 0, [owner], 1
    extent = value.itemsize
    for length, stride in zip(value.shape, value.strides):
        if stride or not length:  # Along an axis of stride zero, one place is seen again and again.
            extent *= length
    return (extent, (), 1) if issubclass(type(owner), mmap) else (0, [_borrowed(owner, extent)], 1)


def _memoryview(value: memoryview) -> _Holding:
    owner = _owner(value)
    if owner is value or issubclass(type(owner), mmap):
        return _sizeof(value) + value.nbytes, (), 1
    return _sizeof(value), [_borrowed(owner, value.nbytes)], 1


def _owner(view: Any) -> object:
    """Return the object at the end of a chain of views."""
    views = (memoryview, getattr(sys.modules.get("numpy"), "ndarray", memoryview))
    for _ in range(100):  # No real chain is so long; an odd array may name itself as its base.
        below = (view.obj if type(view) is memoryview else view.base) if issubclass(type(view), views) else None
        if below is None:
            break
        view = below
    return view


def _borrowed(owner: Any, extent: int) -> _Piece:
    """Describe the memory of a view's owner: its whole buffer, or as much as is seen of an owner that shows none."""
    try:
        with memoryview(owner) as buffer:
            extent = buffer.nbytes
    except _ODD:
        pass
    return _Piece(owner, extent, (), 1)


def _of_pandas(value: Any) -> _Holding:
    """Plan of a frame or series: the arrays of its blocks, its axes. Of an index or column: what is kept in C as well.

    Their own ``nbytes`` leaves out what strings and other objects hold; ``memory_usage(deep=True)`` asks every row.
    """
    attributes = vars(value)
    manager = attributes.get("_mgr")
    if manager is None:
        hidden = [getattr(value, "_ndarray", None), getattr(value, "_dtype", None)]
    else:
        hidden = [*manager.axes, *(block.values for block in manager.blocks)]
    parts = [*attributes.values(), *hidden]
    return (_basic(value), *_sampled(parts, len(parts)))


def _as_pickled(value: Any) -> int:
    """Return the size of a tree that is kept in C: that of the arrays which stand for it in a pickle."""
    state = value.__getstate__()
    state = state.values() if type(state) is dict else state
    return _sizeof(value) + sum(getattr(part, "nbytes", 0) for part in state)


def _estimate(value: object) -> int:
    """Return about what an object takes by itself, where the interpreter cannot tell."""
    bases = _mro(type(value))
    return 56 + next((each * kind.__len__(value) for kind, each in _LENGTHS.items() if kind in bases), 0)


# Sampling


@lru_cache(64)
def _places(count: int, samples: int) -> list[int]:
    """Return increasing places below a count, one in each of as many equal stretches as there are samples."""
    edges = [stretch * count // samples for stretch in range(samples + 1)]
    return [low + int(n * _GOLDEN % 1 * (high - low)) for n, (low, high) in enumerate(zip(edges, edges[1:]))]


def _picked(count: int, item: Callable[[int], Any], samples: int = _SAMPLES) -> tuple[list[Any], float]:
    """Sample what is reached by its place."""
    if count <= samples:
        return [*map(item, range(count))], 1
    return [*map(item, _places(count, samples))], count / samples


def _sampled(items: Iterable[Any], count: int) -> tuple[list[Any], float]:
    """Sample what is reached in order only."""
    if count <= _SAMPLES:
        return [*items], 1
    walker = iter(items)
    sample: list[Any] = []
    after = 0
    for place in _places(count, _SAMPLES):
        sample += islice(walker, place - after, place - after + 1)
        after = place + 1
    return sample, count / _SAMPLES


# Tables

_DESCRIPTORS = (types.MemberDescriptorType, types.GetSetDescriptorType)
#: Types whose objects have no parts worth a look: data without references, and code and frames, which are shared.
_PLAIN: frozenset[type] = frozenset(
    (bool, int, float, complex, str, bytes, bytearray, range, type(None), type)
    + (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.CodeType)
    + (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType, types.FrameType, types.TracebackType)
)
#: Types that have a length, and how many bytes an item takes, about, where the interpreter cannot tell.
_CONTAINERS: dict[Any, int] = {list: 8, tuple: 8, deque: 8, set: 32, frozenset: 32, dict: 32}
_LENGTHS: dict[Any, int] = {str: 1, bytes: 1, bytearray: 1, **_CONTAINERS}
_arrow = _asking(lambda value: value.get_total_buffer_size(), _bare)  # in full: a slice keeps all of them alive
_polars = _asking(lambda value: value.estimated_size(), _bare)
_tree = _asking(_as_pickled, _bare)
#: Plans by type, or by a type's name, so that its library need not be there; pandas renamed some.
_registered: dict[type | str, _Plan] = {
    _Piece: lambda piece: piece[1:],
    "builtins.memoryview": _memoryview,
    "numpy.memmap": lambda value: _array(value),  # without attributes: they only say where it comes from
    "numpy.ndarray": _array,
    "pandas.core.generic.NDFrame": _of_pandas,
    "pandas.core.indexes.base.Index": _of_pandas,
    "pandas.Index": _of_pandas,
    "pandas.core.arrays.base.ExtensionArray": _of_pandas,
    "pandas.api.extensions.ExtensionArray": _of_pandas,
    "polars.dataframe.frame.DataFrame": _polars,
    "polars.series.series.Series": _polars,
    **{f"pyarrow.lib.{name}": _arrow for name in ("Array", "ChunkedArray", "RecordBatch", "Table")},
    "scipy.spatial._ckdtree.cKDTree": _tree,
    "sklearn.neighbors._ball_tree.BallTree": _tree,
    "sklearn.neighbors._kd_tree.KDTree": _tree,
    "sklearn.tree._tree.Tree": _tree,
}
_plans = dict[type, _Plan]()
#: What nobody registered of the plain types, and how many parts the quick loop looks at.
_plain = _PLAIN
_room = _WIDTH

_sizeof: Callable[[object], int] = sys.getsizeof
_basic: Callable[[object], int] = getattr(object, "__sizeof__", _estimate)
try:
    _sizeof(0)
except TypeError:  # PyPy
    _sizeof = _basic = _estimate

_nbytes.__name__ = _nbytes.__qualname__ = "nbytes"
cast(Any, _nbytes).register = _register
nbytes = cast(_NBytes, _nbytes)
