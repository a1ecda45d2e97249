"""What one object holds: the bytes that it takes by itself, and its parts.

A *plan* is the function that tells both for the objects of one type; :mod:`chest.sizes` finds the plan of a type and
adds up. No plan looks deeper than one step, runs a property or a method of the user's, or imports a library: the
libraries' types are listed by name, in :data:`BY_NAME`.

Of long containers a plan names a sample, an idea of ``dask.sizeof``. Here the positions are fixed by the length alone:
one in each of equal stretches, at places that follow the golden ratio, so that a period in the data does not mislead,
no generator's state is touched, and a value always has one size.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from operator import index
from sys import getsizeof
from types import BuiltinFunctionType, FunctionType, GetSetDescriptorType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, NamedTuple, cast

__all__ = [
    "BY_NAME",
    "PLAIN",
    "Borrowed",
    "Group",
    "Holding",
    "Plan",
    "array",
    "bare",
    "join",
    "places",
    "structural",
    "whole",
]

#: Some parts of an object, and how many parts each of them stands for.
Group = tuple[Sequence[object], float]
#: The bytes of an object by itself, and its parts.
Holding = tuple[int, tuple[Group, ...]]
Plan = Callable[[Any], Holding]

#: Types whose objects have no parts worth a look: data without references, and code, which is shared.
PLAIN: frozenset[type] = frozenset(
    (bool, int, float, complex, str, bytes, bytearray, range, type(None))
    + (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)
)

#: What reads an attribute that C keeps, or a slot, without running any code of the value's.
_DESCRIPTORS = (GetSetDescriptorType, MemberDescriptorType)
#: A longer container is judged by this many of its items.
_SAMPLES = 100
#: The fractional part of the golden ratio: its multiples spread evenly over the unit interval, however many there are.
_GOLDEN = 0.6180339887498949


class Borrowed(NamedTuple):
    """Memory that a view borrows from an object that does not know its size: a part that counts once for each owner."""

    owner: object
    size: int


def bare(value: object) -> Holding:
    """Plan of what has no parts, or none that can be reached."""
    try:
        return getsizeof(value), ()
    except Exception:
        return object.__sizeof__(value), ()


def whole(number: object) -> int:
    """Return a number of bytes as an int; raise TypeError or ValueError if it is none."""
    size = index(cast(Any, number))
    if size < 0:
        raise ValueError(f"a size of {size} bytes")
    return size


# What a type is built of: items and attributes


def structural(kind: type) -> Plan:
    """Return the plan that follows from what a type is built of.

    An ``nbytes`` is believed if it stands in a class or in the instance itself: what answers to any name is not asked.
    """
    if issubclass(kind, (type, ModuleType)):
        return bare
    plan = _items(kind)
    if any("nbytes" in vars(base) for base in kind.__mro__):
        return _claiming(plan)
    return plan


def _items(kind: type) -> Plan:
    items = next((_CONTAINERS[base] for base in kind.__mro__ if base in _CONTAINERS), None)
    return join(items, kind) if items else _attributes(kind) or bare


def join(items: Plan, kind: type) -> Plan:
    """Return the plan of a container or an array whose type may add attributes to it."""
    attributes = _attributes(kind)
    if attributes is None:
        return items

    def joined(value: Any) -> Holding:
        size, groups = items(value)
        return size, groups + attributes(value)[1]

    return joined


def _claiming(otherwise: Plan) -> Plan:
    """Return the plan of objects that tell their size."""

    def claiming(value: Any) -> Holding:
        try:
            return whole(value.nbytes), ()
        except Exception:  # No size, such as a method of that name.
            return otherwise(value)

    return claiming


def _attributes(kind: type) -> Plan | None:
    """Return a plan that reads the instance's dict and slots by their descriptors, or None if it has neither."""
    namespaces = [vars(base) for base in kind.__mro__]
    items = [item for names in namespaces for item in names.items()]
    slots = [item for name, item in items if isinstance(item, MemberDescriptorType) and name != "__dict__"]
    dicts = [item for name, item in items if isinstance(item, _DESCRIPTORS) and name == "__dict__"]
    if not slots and not dicts:
        return None

    def attributes(value: Any) -> Holding:
        parts = list(_filled(slots, value, kind))
        size = getsizeof(value)
        if dicts:
            state = dicts[0].__get__(value, kind)
            if type(state.get("nbytes")) is int and state["nbytes"] >= 0:
                return state["nbytes"], ()
            size += getsizeof(state)
            parts += state.values()
        return size, (_sampled(parts, len(parts)),)

    return attributes


def _filled(slots: Iterable[MemberDescriptorType], value: object, kind: type) -> Iterator[object]:
    for slot in slots:
        try:
            yield slot.__get__(value, kind)
        except AttributeError:  # An empty slot.
            pass


# Plans of the standard library's containers


def _list(value: list[object]) -> Holding:
    count = list.__len__(value)
    if count <= _SAMPLES:
        return getsizeof(value), ((list.__getitem__(value, slice(None)), 1),)
    return getsizeof(value), (_picked(count, lambda place: list.__getitem__(value, place)),)


def _tuple(value: tuple[object, ...]) -> Holding:
    count = tuple.__len__(value)
    if count <= _SAMPLES:
        return getsizeof(value), ((tuple.__getitem__(value, slice(None)), 1),)
    return getsizeof(value), (_picked(count, lambda place: tuple.__getitem__(value, place)),)


def _dict(value: dict[object, object]) -> Holding:
    count = dict.__len__(value)
    if count <= _SAMPLES:
        return getsizeof(value), (([*dict.keys(value), *dict.values(value)], 1),)
    pairs, scale = _sampled(dict.items(value), count)
    return getsizeof(value), (([part for pair in cast("list[tuple[object, object]]", pairs) for part in pair], scale),)


def _set(value: set[object]) -> Holding:
    return getsizeof(value), (_sampled(set.__iter__(value), set.__len__(value)),)


def _frozenset(value: frozenset[object]) -> Holding:
    return getsizeof(value), (_sampled(frozenset.__iter__(value), frozenset.__len__(value)),)


def _deque(value: deque[object]) -> Holding:
    return getsizeof(value), (_sampled(deque.__iter__(value), deque.__len__(value)),)


_CONTAINERS: dict[type, Plan] = {
    list: _list,
    tuple: _tuple,
    dict: _dict,
    set: _set,
    frozenset: _frozenset,
    deque: _deque,
}


# Plans of arrays, frames and tables


def array(value: Any) -> Holding:
    """Plan of a numpy array: its data if they are its own, else what it keeps alive."""
    if value.base is not None:
        return _view(value)
    if value.dtype.hasobject:  # Objects, and numpy's own strings of any length.
        return value.nbytes, (_picked(value.size, value.item),)
    return value.nbytes, ()


def _mapped(value: Any) -> Holding:
    """Plan of numpy's memory maps: arrays whose attributes only say where they come from."""
    return array(value)


def _memoryview(value: memoryview) -> Holding:
    owner = _owner(value)
    if isinstance(owner, mmap.mmap):
        return getsizeof(value) + value.nbytes, ()
    return getsizeof(value), (([_borrowed(owner, value.nbytes)], 1),)


def _view(value: Any) -> Holding:
    """Plan of an array whose data belong to a file, to an object that knows its size (most often an array) or not."""
    owner = _owner(value)
    if isinstance(owner, mmap.mmap):
        return _extent(value), ()
    if hasattr(owner, "nbytes"):
        return 0, (([owner], 1),)
    return 0, (([_borrowed(owner, _extent(value))], 1),)


def _owner(view: Any) -> object:
    """Return the object at the end of a chain of views."""
    for _ in range(100):  # No real chain is so long; an odd object may name itself as its base.
        below = view.obj if type(view) is memoryview else getattr(view, "base", None)
        if below is None:
            break
        view = below
    return view


def _extent(view: Any) -> int:
    """Return the bytes that an array covers: along an axis of stride zero, one place is seen again and again."""
    size: int = view.itemsize
    for length, stride in zip(view.shape, view.strides):
        if stride or not length:
            size *= length
    return size


def _borrowed(owner: Any, extent: int) -> Borrowed:
    """Describe the memory of a view's owner: its whole buffer, or as much as is seen of an owner that shows none."""
    try:
        with memoryview(owner) as buffer:
            return Borrowed(owner, buffer.nbytes)
    except (TypeError, ValueError, BufferError):
        return Borrowed(owner, extent)


def _frame(value: Any) -> Holding:
    """Plan of a frame or series: the arrays of its blocks, its axes, its attributes.

    Its own ``memory_usage(deep=True)`` would ask every row.
    """
    attributes = vars(value)
    manager = attributes["_mgr"]
    parts = [*attributes.values(), *manager.axes, *(block.values for block in manager.blocks)]
    return object.__sizeof__(value), (_sampled(parts, len(parts)),)


def _column(value: Any) -> Holding:
    """Plan of an index or an extension array: its attributes, of which some are kept in C.

    Its own ``nbytes`` leaves out what strings and other objects hold.
    """
    parts = [*vars(value).values(), getattr(value, "_ndarray", None), getattr(value, "_dtype", None)]
    return object.__sizeof__(value), (_sampled(parts, len(parts)),)


def _arrow(value: Any) -> Holding:
    """Plan of what Arrow keeps in buffers: these in full, for a slice keeps all of them alive."""
    return whole(value.get_total_buffer_size()), ()


#: The plans of types that are known by name, so that their libraries need not be there; pandas renamed some.
BY_NAME: dict[str, Plan] = {
    "builtins.memoryview": _memoryview,
    "numpy.memmap": _mapped,
    "numpy.ndarray": array,
    "pandas.core.generic.NDFrame": _frame,
    "pandas.core.indexes.base.Index": _column,
    "pandas.Index": _column,
    "pandas.core.arrays.base.ExtensionArray": _column,
    "pandas.api.extensions.ExtensionArray": _column,
    "pyarrow.lib.Table": _arrow,
    "pyarrow.lib.RecordBatch": _arrow,
    "pyarrow.lib.ChunkedArray": _arrow,
    "pyarrow.lib.Array": _arrow,
}


# Sampling


def places(count: int, samples: int) -> list[int]:
    """Return increasing positions below a count, one in each of as many equal stretches as there are samples."""
    edges = [stretch * count // samples for stretch in range(samples + 1)]
    return [
        low + int(stretch * _GOLDEN % 1 * (high - low)) for stretch, (low, high) in enumerate(zip(edges, edges[1:]))
    ]


def _picked(count: int, item: Callable[[int], object]) -> Group:
    """Sample what is reached by position."""
    if count <= _SAMPLES:
        return [item(place) for place in range(count)], 1
    return [item(place) for place in places(count, _SAMPLES)], count / _SAMPLES


def _sampled(items: Iterable[object], count: int) -> Group:
    """Sample what is reached in order only."""
    if count <= _SAMPLES:
        return list(items), 1
    walker = iter(items)
    sample: list[object] = []
    after = 0
    for place in places(count, _SAMPLES):
        sample += islice(walker, place - after, place - after + 1)
        after = place + 1
    return sample, count / _SAMPLES
