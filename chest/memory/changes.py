"""Who can have changed a value in place: nobody, if nobody but the chest refers to it.

A value that was found to be as its bytes on disk are, and that the chest alone refers to, stays so until it is handed
out again.  That is told by CPython's reference counts.  What they are for an object with one owner depends on the
interpreter, so they are calibrated at import, in the very loops that ask later.  Where the calibration does not give
what that interpreter is known to give (a tracer or debugger that holds frames, another implementation, a build without
the global lock), nothing counts as owned: then every value that was handed out is compared at each commit.
"""
from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

from chest.serialize.compare import can_change

__all__ = ["COUNTED", "base_of", "owned", "referenced"]

_DEEPEST = 3  # levels of containers that are looked through
_LONGEST = 1000  # items of one that are looked at
_FIXED = frozenset((type(None), bool, int, float, complex, str, bytes))


def _in_a_loop(items: Sequence[object]) -> int:
    for item in items:
        return sys.getrefcount(item)
    return 0


def _of_an_attribute(holder: Any) -> int:
    holder.base = object()
    return sys.getrefcount(getattr(holder, "base"))  # noqa: B009


def _calibrated() -> tuple[int, int] | None:
    """The counts of an object in a list that a loop is at, and of an attribute; None where they tell nothing."""
    if sys.implementation.name != "cpython" or not getattr(sys, "_is_gil_enabled", lambda: True)():
        return None
    found = _in_a_loop([object()]), _of_an_attribute(type("Holder", (), {})())
    known = ((3, 2),) if sys.version_info < (3, 14) else ((3, 2), (2, 1), (2, 2), (3, 1))
    return found if found in known else None


_COUNTS = _calibrated()
_IN_A_LOOP, _OF_AN_ATTRIBUTE = _COUNTS or (-1, -1)
COUNTED = _COUNTS is not None


def referenced(items: Sequence[Any], more: int = 0) -> list[bool]:
    """For each of ``items``: does anybody refer to it, or to the array that it is a view of, but this list and ``more``
    others?  True where nobody can tell.

    Cost: 0.1 us each.
    """
    if not COUNTED:
        return [True] * len(items)
    most = _IN_A_LOOP + more
    numpy: Any = sys.modules.get("numpy")
    plain = None if numpy is None else numpy.ndarray
    found = []
    for item in items:
        found.append(sys.getrefcount(item) > most or (
            type(item) is plain and type(item.base) is plain and sys.getrefcount(item.base) > _OF_AN_ATTRIBUTE))
    return found


def base_of(value: Any) -> Any:
    """The array whose memory a plain array is a view of, if another view can be made of it; `None` for all else."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or type(value) is not numpy.ndarray or type(value.base) is not numpy.ndarray:
        return None
    return value.base if value.base.flags.forc and not value.dtype.hasobject else None


def owned(items: Iterable[Any], more: int, deepest: int = _DEEPEST) -> bool:
    """Is each of ``items``, with all in it that can be changed, referred to by ``items`` and ``more`` others only?

    False also where that cannot be told: for instances of any class but lists, dicts, sets, tuples and numpy arrays.
    Cost: 1 us, and 0.1 us for each item of a container.
    """
    if not COUNTED:
        return False
    for item in items:
        kind = type(item)
        if kind in _FIXED:
            continue
        if sys.getrefcount(item) > _IN_A_LOOP + more or (kind.__weakrefoffset__ and weakref.getweakrefcount(item)):
            alone = False
        elif kind in (list, tuple, set, frozenset):
            alone = _own_parts(item, len(item), deepest)
        elif kind is dict:
            alone = _own_parts(item, len(item), deepest) and _own_parts(item.values(), len(item), deepest)
        else:
            numpy: Any = sys.modules.get("numpy")
            alone = numpy is not None and kind is numpy.ndarray and not item.dtype.hasobject and _owns_memory(item)
        if not alone and can_change(item):
            return False
    return True


def _own_parts(parts: Iterable[Any], count: int, deepest: int) -> bool:
    if _FIXED.issuperset(map(type, parts)):
        return True
    return count <= _LONGEST and deepest > 0 and owned(parts, 0, deepest - 1)


def _owns_memory(array: Any) -> bool:
    """Is the memory of ``array`` its own, or at the end of a chain of objects that refer to each other only?"""
    one = array
    while type(one) is type(array) or type(one) is memoryview:
        base = "base" if type(one) is type(array) else "obj"
        if getattr(one, base) is not None and sys.getrefcount(getattr(one, base)) > _OF_AN_ATTRIBUTE:
            return False
        one = getattr(one, base)
    return one is None or type(one) is bytearray or type(one).__module__.startswith("chest.")
