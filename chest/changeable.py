"""Which values can be changed in place at all: the others need never be compared with their files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from . import maps

__all__ = ["FIXED", "can_change", "which_can_change"]

FIXED = frozenset((type(None), bool, int, float, complex, str, bytes, range, type(Ellipsis), type(NotImplemented)))
_CHANGEABLE = frozenset((list, dict, set, bytearray))
_SURE = FIXED | _CHANGEABLE
_DEEPEST = 4  # levels of tuples and frozensets that are looked through
_LONGEST = 64  # items of one that are looked at


def can_change(value: object) -> bool:
    """Whether `value` might be changed in place. True also when it is not known.

    False for numbers, strings, bytes, `None`, numpy's scalars, arrays that are read-only down to the memory that they
    are views of, and small tuples and frozensets of such. Exact types only: a subclass may have attributes.

    >>> can_change(1.5), can_change(("a", b"b", None)), can_change(([],)), can_change([])
    (False, False, True, True)
    """
    kind = type(value)
    return kind in _CHANGEABLE or (kind not in FIXED and _can_change(value, _DEEPEST))


def which_can_change(values: Sequence[object]) -> list[bool]:
    """`can_change` of each, faster."""
    if _SURE.issuperset(map(type, values)):
        return list(map(_CHANGEABLE.__contains__, map(type, values)))
    return list(map(can_change, values))


def _can_change(value: Any, deepest: int) -> bool:
    kind = type(value)
    if kind in FIXED:
        return False
    if kind is tuple or kind is frozenset:
        return not deepest or len(value) > _LONGEST or any(_can_change(item, deepest - 1) for item in value)
    numpy: Any = sys.modules.get("numpy")
    if numpy is None:
        return True
    if kind is numpy.ndarray:
        return value.flags.writeable or value.dtype.hasobject or _can_be_written(value.base)
    scalars = (numpy.number, numpy.bool_, numpy.datetime64, numpy.character)
    return kind.__module__ != "numpy" or not issubclass(kind, scalars)


def _can_be_written(memory: Any) -> bool:
    """Whether an array, or the memory that it is a view of, at any remove, can be written."""
    while memory is not None:
        if isinstance(memory, memoryview) and (memory.readonly or isinstance(memory.obj, maps.Map)):
            memory = memory.obj
        elif isinstance(memory, (bytes, maps.Map)):
            return False  # A map is only ever written through the arrays that are parts of it.
        elif not hasattr(memory, "flags") or memory.flags.writeable:
            return True
        else:
            memory = memory.base
    return False
