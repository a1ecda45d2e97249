"""Whether anybody but the chest can reach a value: what nobody can reach cannot be changed.

A value that was found as its file has it when nobody else held it, or anything in it, stays so until it is handed out
again.  That needs the reference counts of CPython; elsewhere, and in a Python without its global lock, nothing counts
as alone, and values are compared with their files each time.
"""
from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from chest.changeable import FIXED, can_change

__all__ = ["alone"]

_DEEPEST = 3  # levels of containers that are looked through
_LONGEST = 1000  # items of one that are looked at
_COUNTS = sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()


def alone(values: Mapping[Any, Any], key: Any) -> bool:
    """Is ``values[key]``, with all that can be changed in it, referred to from there alone?

    `False` also where that cannot be told: for instances of any class but lists, dicts, sets, tuples and numpy arrays.
    Cost: 1 µs, and 0.1 µs for each item of a container.

    >>> array = [1, 2]
    >>> alone({"x": array}, "x"), alone({"x": [1, 2]}, "x"), alone({"x": [array]}, "x")
    (False, True, False)
    """
    try:
        return _COUNTS and _owned([values[key]], 1, _DEEPEST)
    except KeyError:  # a finaliser of the user's took it away just now
        return False


def _owned(items: Iterable[Any], more: int, deepest: int) -> bool:
    """Is each of ``items`` referred to by ``items`` and by ``more`` others only?"""
    for item in items:
        kind = type(item)
        if kind in FIXED:
            continue
        if sys.getrefcount(item) > _IN_A_LOOP + more or (kind.__weakrefoffset__ and weakref.getweakrefcount(item)):
            owned = False
        elif kind in (list, tuple, set, frozenset):
            owned = _own_parts(item, len(item), deepest)
        elif kind is dict:
            owned = _own_parts(item, len(item), deepest) and _own_parts(item.values(), len(item), deepest)
        else:
            numpy: Any = sys.modules.get("numpy")
            owned = numpy is not None and kind is numpy.ndarray and not item.dtype.hasobject and _owns_memory(item)
        if not owned and can_change(item):
            return False
    return True


def _own_parts(parts: Iterable[Any], count: int, deepest: int) -> bool:
    if FIXED.issuperset(map(type, parts)):
        return True
    return count <= _LONGEST and deepest > 0 and _owned(parts, 0, deepest - 1)


def _owns_memory(array: Any) -> bool:
    """Is the memory of ``array`` its own, or at the end of a chain of objects that refer to each other only?"""
    one = array
    while type(one) is type(array) or type(one) is memoryview:
        base = "base" if type(one) is type(array) else "obj"
        if getattr(one, base) is not None and sys.getrefcount(getattr(one, base)) > _OF_AN_ATTRIBUTE:
            return False
        one = getattr(one, base)
    return one is None or type(one) is bytearray


# What the count is for an object with one holder, when it is asked for in these ways: that depends on the interpreter.


def _in_a_loop(items: list[object]) -> int:
    for item in items:
        return sys.getrefcount(item)
    return 0


def _of_an_attribute(holder: Any) -> int:
    holder.base = object()
    return sys.getrefcount(getattr(holder, "base"))  # noqa: B009


_IN_A_LOOP = _in_a_loop([object()])
_OF_AN_ATTRIBUTE = _of_an_attribute(type("Holder", (), {})())
