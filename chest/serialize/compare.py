"""Is a value in memory as its bytes are?  And which values can never be changed in place."""
from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator
from typing import Any, Callable, Union

from chest.errors import raised_by_signal

from . import pagemap
from .aligned import LEAST, Buffer, Encoded, Overflow, fill
from .pagemap import Map

Stamp = Union[int, bytes, Map, None]
"""What tells whether a value is as its bytes are: the hash of fewer than 64 KiB, in a store a digest of more, the map
of an array, or nothing."""

Place = tuple[tuple[int, int], int]  # a file's device and inode, and an offset in it
Encode = Callable[[object, Overflow], Encoded]

_BLOCK = 1024 * 1024  # bytes compared at a time

_FIXED = frozenset((type(None), bool, int, float, complex, str, bytes, range, type(Ellipsis), type(NotImplemented)))
_CHANGEABLE = frozenset((list, dict, set, bytearray))
_MOST_ITEMS = 64  # of a tuple or frozenset that are looked at


def can_change(value: Any, deepest: int = 4) -> bool:
    """Might ``value`` be changed in place?  True also when nobody knows.

    Exact types only, as a subclass may have attributes; the flag of an array counts only for a read-only map.

    >>> can_change(1.5), can_change(("a", b"b", None)), can_change(([],)), can_change([])
    (False, False, True, True)
    """
    kind = type(value)
    if kind in _CHANGEABLE:
        return True
    if kind in _FIXED:
        return False
    if kind is tuple or kind is frozenset:
        return not deepest or len(value) > _MOST_ITEMS or any(can_change(item, deepest - 1) for item in value)
    if kind.__module__ != "numpy":
        return True
    if kind.__name__ == "ndarray":
        return not (type(value.base) is Map and not value.base.writable and map_unchanged(value, value.base))
    numpy: Any = sys.modules["numpy"]
    return not issubclass(kind, (numpy.number, numpy.bool_, numpy.datetime64, numpy.character))


def map_unchanged(value: Any, under: Map) -> bool | None:
    """Is an array that was loaded as the whole map ``under`` as it was loaded?  `None` if nobody can tell."""
    look = under.look
    if look is None or type(value) is not sys.modules["numpy"].ndarray or value.base is not under:
        return None
    if value.dtype is not look[0] or (value.shape, value.strides, value.flags.writeable) != look[1:]:
        return False
    if not under.writable:
        return True
    written = pagemap.written(value.__array_interface__["data"][0], value.nbytes)
    return None if written is None else not written


class _Differs(Exception):
    """Ends a comparison as soon as its outcome is known."""


def _each(value: object, encode: Encode, equal: Callable[[memoryview], bool]) -> bool:
    """Is each piece of what ``value`` serialises to ``equal``?  Looked at while it is pickled."""

    def compare(pieces: list[Buffer]) -> None:
        for piece in pieces:
            if not equal(memoryview(piece)):
                raise _Differs

    try:
        compare(encode(value, compare).pieces)
    except _Differs:
        return False
    return True


def _blocks(view: memoryview, shows: Place | None) -> Iterator[tuple[int, memoryview]]:
    """The parts of ``view``, and where they begin, that may differ from what a file holds at a place."""
    suspected = None
    if shows is not None and view.nbytes >= LEAST and _place(view) == shows:
        suspected = pagemap.written(pagemap.address(view), view.nbytes)
    for start, end in [(0, view.nbytes)] if suspected is None else suspected:
        for at in range(start, end, _BLOCK):
            yield at, view[at : min(at + _BLOCK, end)]


def _place(view: memoryview) -> Place | None:
    """Of a part of a map: what it is a map of."""
    under = pagemap.map_under(view) if view.nbytes else None
    return None if under is None else (under.file, pagemap.address(view) - pagemap.address(memoryview(under)))


def same_as_file(value: object, descriptor: int, status: os.stat_result, stop: int, encode: Encode) -> bool:
    """Does ``value`` serialise to the first ``stop`` bytes of an open file?

    Of arrays that are parts of a map of this very file only the pages that were written are compared.
    """
    at, size = 0, min(_BLOCK, stop)
    block = bytearray(size)

    def equal(view: memoryview) -> bool:
        nonlocal at
        begin, at = at, at + view.nbytes
        if at > stop:
            return False
        for first, part in _blocks(view, ((status.st_dev, status.st_ino), begin)):
            shown = block if part.nbytes == size else bytearray(part.nbytes)
            fill(descriptor, memoryview(shown), begin + first)
            if shown != part:  # a bytearray on the left compares as memcmp does, two memoryviews item by item
                return False
        return True

    return _each(value, encode, equal) and at == stop


def same_as_loaded(value: object, load: Callable[[], object], encode: Encode) -> bool:
    """Does ``value`` pickle as another does that is loaded from its bytes now?  False also for what cannot be loaded.

    What was loaded need not pickle as it did before: attribute names are interned, an array that numpy had to copy is
    contiguous now.  Two values loaded from the same bytes do pickle alike, but for pandas' caches, which are left out.
    """
    try:
        other = load()
    except Exception as error:
        if isinstance(error, (MemoryError, OSError)) or raised_by_signal(error):
            raise
        return False
    for way in (encode, _encode_bare) if "pandas" in sys.modules else (encode,):
        expected = [memoryview(piece) for piece in reversed(way(other, None).pieces)]

        def equal(view: memoryview, expected: list[memoryview] = expected) -> bool:
            there = expected.pop() if expected else memoryview(b"")
            # Nobody wrote to what was just loaded: of two maps of one file only what was written of `view` differs.
            return view.nbytes == there.nbytes and all(
                bytearray(part) == there[at : at + part.nbytes] for at, part in _blocks(view, _place(there)))

        if _each(value, way, equal) and not expected:
            return True
    return False


def _encode_bare(value: object, overflow: Overflow) -> Encoded:
    encoded = Encoded(overflow)
    encoded.dump(value, _BarePickler)
    return encoded


class _BarePickler(pickle.Pickler):
    """Leaves out what pandas' objects cache; the pickles are to be compared, never loaded."""

    def reducer_override(self, value: Any) -> Any:
        """Called for each object that is no plain one."""
        if not type(value).__module__.startswith("pandas."):
            return NotImplemented
        reduced = value.__reduce_ex__(5)
        return reduced if isinstance(reduced, str) else (*reduced[:2], *map(_without_cache, reduced[2:3]), *reduced[3:])


def _without_cache(state: object) -> object:
    if isinstance(state, dict):
        return {name: part for name, part in state.items() if name != "_cache"}
    if type(state) is not tuple:
        return state
    # An array of dates that caches nothing yet has an empty dict, or none.
    return tuple([part for part in map(_without_cache, state) if type(part) is not dict or part])
