"""Who can have changed a value in place: nobody, if nobody but the chest refers to it.

A value that was found to be as its bytes on disk are, and that the chest alone refers to, stays so until it is handed
out again.  That is told by CPython's reference counts.  At import the very functions that ask later are tried on an
object with one owner.  Where they do not give what they should (a tracer or debugger that holds frames, another
implementation, a build without the global lock), nothing counts as owned: then every value that was handed out is
compared at each commit.
"""
from __future__ import annotations

import gc
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection
from mmap import mmap
from types import FunctionType, ModuleType
from typing import Any
from weakref import getweakrefcount

from chest.serialize.compare import can_change

__all__ = ["CONTAINERS", "COUNTED", "closed", "counts_below", "held_parts", "lent", "owned", "owner",
           "referenced", "references"]

_LONGEST = 2000  # items, keys and values of one that are looked at
_IN_A_LIST = _OF_AN_ATTRIBUTE = 2  # the counts of an object with one owner: that one, and who asks
_TYPES = 1000  # classes remembered
_FIXED = frozenset((type(None), bool, int, float, complex, str, bytes))
_SHARED: frozenset[type] = _FIXED | {type, ModuleType, FunctionType}  # of no value alone
_NOT_WEAK: frozenset[type] = frozenset((list, dict, tuple))  # to which there are no weak references
CONTAINERS: frozenset[type] = frozenset((list, dict, tuple, set, frozenset, deque, OrderedDict, defaultdict))


references: Callable[[object], int] = getattr(sys, "getrefcount", lambda value: 0)  # by `map`, lest a frame has one too


def _count_of_attribute(holder: Any, name: str) -> int:
    return references(getattr(holder, name))


def _counted() -> bool:
    """Do the counts tell who refers to an object?"""
    if sys.implementation.name != "cpython" or not getattr(sys, "_is_gil_enabled", lambda: True)():
        return False
    holder = type("Holder", (), {})()
    holder.base = object()
    counts = list(map(references, [object()])), _count_of_attribute(holder, "base")
    return counts == ([_IN_A_LIST], _OF_AN_ATTRIBUTE)


COUNTED = _counted()


class _Attributes(dict[type, str]):
    """By class, the name under which arrays and buffers have what they are views of; no name for anything else."""

    def __missing__(self, kind: type) -> str:
        names = [(base.__module__.partition(".")[0], base.__name__) for base in kind.__mro__]
        is_view = ("numpy", "ndarray") in names or ("numpy", "DummyArray") in names  # the latter is of `as_strided`
        if len(self) > _TYPES:
            self.clear()
        self[kind] = "obj" if kind is memoryview else "base" if is_view else ""
        return self[kind]


_attributes = _Attributes()  # a look into it is no call


def lent(memory: Any) -> Any:
    """The shared memory, or the map that the program made, that this is a view of.  Who has that may close it once no
    array of the program's is left: so only the program keeps such an array.  `ValueError` if it is closed.
    """
    while name := _attributes[type(memory)]:
        memory = getattr(memory, name)
    return memory if isinstance(memory, mmap) and not type(memory).__module__.startswith("chest.") else None


def closed(memory: Any) -> bool:
    """Is it a view of what the program closed?  It must not be looked at then."""
    try:
        return getattr(lent(memory), "closed", False)
    except ValueError:
        return True


def shared(memory: Any, most: int = _OF_AN_ATTRIBUTE, other: bool = False) -> bool:
    """Has anything that an array is a view of, at whatever depth, a higher count of references than ``most``?

    ``other`` is the answer for a view of what is no array and no plain buffer, as of a file that is mapped.
    """
    while name := _attributes[type(memory)]:
        below = type(getattr(memory, name))
        if below is type(None) or below.__module__.startswith("chest."):
            return False
        if _attributes[below] != "base" and lent(memory):
            return other
        if _count_of_attribute(memory, name) > most:
            return True
        memory = getattr(memory, name)
    return other and type(memory) is not bytearray


def owner(value: Any) -> Any:
    """What lives as long as the memory of ``value``: itself, or the plain array that it is a plain view of.

    `None` for a view of anything else, such as one by a class of its own, or of a buffer: that may outlive the view.
    """
    kind = type(value)
    base = value.base if _attributes[kind] == "base" else None
    if base is None or type(base).__module__.startswith("chest."):
        return value
    if _attributes[type(base)] != "base" and lent(value):
        return value
    is_plain = type(base) is kind and kind.__name__ == "ndarray" and base.flags.forc and not value.dtype.hasobject
    if not COUNTED:  # then there is no other way to find it again
        return base if is_plain else value
    return base if is_plain and not shared(base, 0) else None


def referenced(items: Collection[Any], more: int = 0, cycles: int = 0) -> list[bool]:
    """For each of ``items``: does anybody refer to it, or to the memory that it is a view of, but this list and
    ``more`` others; and, for the first so many as ``cycles``, but itself?  True where nobody can tell.

    Cost: 0.1 us each, 0.5 us for an array; for ``cycles`` 0.1 us for each part of what is referred to.
    """
    if not COUNTED:
        return [True] * len(items)
    most = _IN_A_LIST + more
    return [(count > most and not (place < cycles and count <= most + _within(item)))
            or (type(item) not in CONTAINERS and shared(item))
            for place, (item, count) in enumerate(zip(items, list(map(references, items))))]


def _within(value: Any) -> int:
    """How many references to ``value`` are in itself, as in a tree whose nodes know their parent.

    Among up to 2,000 parts: 0 may be said of a larger one.  Cost: 0.1 us for each part.
    """
    seen, parts, found = {id(value)}, [value], 0
    while parts and len(seen) <= _LONGEST:
        parts = gc.get_referents(*parts)
        if len(parts) > 2 * _LONGEST:
            break
        found += sum([part is value for part in parts])
        parts = [part for part in {id(part): part for part in parts if type(part) not in _SHARED}.values()
                 if id(part) not in seen and gc.is_tracked(part)]
        seen.update(map(id, parts))
    return found


def owned(values: Collection[Any], more: int) -> list[bool]:
    """For each value: is it, with all in it that can be changed, surely referred to by this list and ``more`` others
    only?  Cost: that of `referenced` and `held_parts`.
    """
    array = getattr(sys.modules.get("numpy"), "ndarray", None)
    found = []
    for value, is_held, parts in zip(values, referenced(values, more), held_parts(values, _NOT_WEAK)):
        if is_held or getweakrefcount(value):
            is_owned = False
        elif type(value) in CONTAINERS:
            is_owned = parts == []
        else:
            is_owned = type(value) is array and not value.dtype.hasobject and not shared(value, other=True)
        found.append(is_owned or not can_change(value))
    return found


def counts_below(values: Collection[Any]) -> list[int]:
    """For each value: how many of its parts are held, and how many references there are to what it is a view of.

    Nothing where references are not counted.
    """
    if not COUNTED:
        return []
    counts = [len(parts or ()) for parts in held_parts(values)]
    for place, memory in enumerate(values):
        while name := _attributes[type(memory)]:
            kind = type(getattr(memory, name))
            if kind is type(None) or kind.__module__.startswith("chest."):  # as in `shared`; all refer to `None`
                break
            counts[place] += _count_of_attribute(memory, name)
            memory = getattr(memory, name)
    return counts


def held_parts(values: Collection[Any], kinds: frozenset[type] = CONTAINERS) -> list[list[Any] | None]:
    """For each value: the containers, arrays and bytearrays in it that something outside refers to, and may change.

    `None` where none is found, and there may be some: in a value of more than 2,000 parts, with instances of any other
    class in it, or with parts to which there are weak references, but for values of ``kinds`` of containers only.
    Cost: 0.3 us for each value, and 0.1 us for each part; 10 times as much from the first one on that may be held.
    """
    if not COUNTED or _are_free([value for value in values if type(value) in CONTAINERS], kinds):
        return [[]] * len(values)
    return [_held_parts(value) if type(value) in CONTAINERS else None for value in values]


def _are_free(containers: list[Any], kinds: frozenset[type]) -> bool:
    """Is there surely no such part, nor a container of any other kind than these, in any of ``containers``?"""
    most = _LONGEST * len(containers)
    while containers:
        if sum(map(len, containers)) > most:
            return False
        containers = [part for part in gc.get_referents(*containers) if type(part) not in _FIXED]
        if not kinds.issuperset(map(type, containers)) or max(map(references, containers), default=0) > _IN_A_LIST + 1:
            return False
    return True


def _held_parts(value: Any) -> list[Any] | None:
    if len(value) > _LONGEST:
        return None
    parts = [part for part in gc.get_referents(value) if type(part) not in _FIXED]
    array = getattr(sys.modules.get("numpy"), "ndarray", None)
    met: list[Any] = []
    bases: list[int] = []
    seen = {id(value)}
    is_sure = True
    while parts:
        below = []
        for part in parts:
            kind = type(part)
            is_sure = is_sure and not getweakrefcount(part)
            if part is value:  # it is known whether that is held
                continue
            if kind in CONTAINERS:
                met.append(part)
                if id(part) not in seen:
                    seen.add(id(part))
                    below.append(part)
            elif kind is bytearray or (kind is array and not part.dtype.hasobject):
                met.append(part)
                if type(getattr(part, "base", None)) is array:
                    bases.append(id(part.base))
                is_sure = is_sure and not shared(part, other=True)
            elif kind is array or (kind is not type and gc.is_tracked(part)):
                return None  # as this may refer to others of the parts
            else:
                is_sure = is_sure and not can_change(part)
        if len(met) + sum(map(len, below)) > _LONGEST:
            return None
        parts = [part for part in gc.get_referents(*below) if type(part) not in _FIXED]
    part, below = None, []  # they would count
    views = Counter(bases) if bases else {}
    counts = list(map(references, met))
    times = Counter(map(id, met)) if max(counts, default=0) > _IN_A_LIST + 1 else {}
    # Each time that a part was met one reference is of ``met``, and one of a container; a base has those of its views.
    held = [part for part, count in zip(met, counts) if (
        count > _IN_A_LIST - 1 + 2 * times.get(id(part), 1)
        or (type(part) is array and id(part.base) in views
            and _count_of_attribute(part, "base") > _OF_AN_ATTRIBUTE - 1 + views[id(part.base)])
    ) and can_change(part)]
    return held if held or is_sure else None
