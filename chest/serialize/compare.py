"""Is a value in memory as its bytes are?  And which values can never be changed in place.

Which pages of a map were written Linux tells: `/proc/self/pagemap` has eight bytes for each page of this process.  A
page of a private map that still shows the file has the bits "present" and "file" set, one that was never brought in has
none; a page that was written belongs to this process and has the bit "file" no more, also after a fork, in parent and
child.  See the kernel's `Documentation/admin-guide/mm/pagemap.rst`.
"""
from __future__ import annotations

import mmap
import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any, Callable, Union

from chest.errors import of_the_process, raise_of_a_signal

from . import frames
from .aligned import LEAST, Buffer, Encoded, Map, Overflow, fill, map_under

Stamp = Union[int, bytes, Map, None]
"""What tells whether a value is as its bytes are: the hash of fewer than 64 KiB, in a store a digest of more, the map
of an array, or nothing."""

Place = tuple[tuple[int, int], int]  # a file's device and inode, and an offset in it
Encode = Callable[[object, Overflow], Encoded]

_BLOCK = 1024 * 1024  # bytes compared at a time

_PAGE = mmap.PAGESIZE
_ENTRY = 8  # bytes of one entry
# Bits 7, 6, 5 of an entry's highest byte are "present", "swapped" and "file".
_WRITTEN = bytes(bits >> 5 not in (0b000, 0b101) for bits in range(256))
_RUN = re.compile(b"\1+")
_HIGHEST = _ENTRY - 1 if sys.byteorder == "little" else 0

_FIXED = frozenset((type(None), bool, int, float, complex, str, bytes, range, type(Ellipsis), type(NotImplemented)))
_MOST_ITEMS = 64  # of a tuple or frozenset that are looked at


def can_change(value: Any, deepest: int = 4) -> bool:
    """Might ``value`` be changed in place?  True also when nobody knows.

    Exact types only, as a subclass may have attributes; the flag of an array counts only for a read-only map.

    >>> can_change(1.5), can_change(("a", b"b", None)), can_change(([],)), can_change([])
    (False, False, True, True)
    """
    kind = type(value)
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
    runs = written(value.__array_interface__["data"][0], value.nbytes)
    return None if runs is None else not runs


def _address(memory: Any) -> int:
    """Where a piece of memory that is not empty begins; only with numpy."""
    begin: int = sys.modules["numpy"].frombuffer(memory, "u1").__array_interface__["data"][0]
    return begin


def written(begin: int, size: int) -> list[tuple[int, int]] | None:
    """The runs of written pages in ``size`` bytes of memory from the address ``begin`` on.

    As (from, to) in bytes, counted from ``begin``; `None` if nobody tells.  The page map is opened anew each time, as
    a descriptor that a fork's child inherits shows the parent's memory.  Costs about 10 µs and 20 ns a page.
    """
    first, last = begin // _PAGE, -(-(begin + size) // _PAGE)
    try:
        with open("/proc/self/pagemap", "rb", 0) as file:
            entries = os.pread(file.fileno(), (last - first) * _ENTRY, first * _ENTRY)
    except OSError as error:
        raise_of_a_signal(error)
        return None
    if len(entries) != (last - first) * _ENTRY:
        return None
    runs = []
    for run in _RUN.finditer(entries[_HIGHEST::_ENTRY].translate(_WRITTEN)):
        start, stop = ((first + at) * _PAGE - begin for at in run.span())
        runs.append((max(start, 0), min(stop, size)))
    return runs


@cache
def tells() -> bool:
    """Does this system show that a page was written?  Sandboxes hide it, or give zeros, which look like "clean"."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    try:
        with mmap.mmap(-1, _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as probe:
            probe[0] = 1
            return written(ctypes.addressof(ctypes.c_char.from_buffer(probe)), _PAGE) == [(0, _PAGE)]
    except OSError as error:  # there can be no more maps, or none at all
        raise_of_a_signal(error)
        return False


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
        suspected = written(_address(view), view.nbytes)
    for start, end in [(0, view.nbytes)] if suspected is None else suspected:
        for at in range(start, end, _BLOCK):
            yield at, view[at : min(at + _BLOCK, end)]


def _place(view: memoryview) -> Place | None:
    """Of a part of a map: what it is a map of."""
    under = map_under(view) if view.nbytes else None
    return None if under is None else (under.file, _address(view) - _address(memoryview(under)))


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
    """Does ``value`` pickle as another does that is loaded from its bytes now?  False also for what cannot be loaded,
    whatever its own code raises.

    What was loaded need not pickle as it did before: attribute names are interned, an array that numpy had to copy is
    contiguous now.  Two values loaded from the same bytes do pickle alike; with pandas, what it
    caches is left out.
    """
    try:
        other = load()
    except Exception as error:
        if of_the_process(error):
            raise
        return False
    way = _encode_frames if "pandas" in sys.modules else encode  # which may be within something else
    expected = [memoryview(piece) for piece in reversed(way(other, None).pieces)]

    def equal(view: memoryview) -> bool:
        there = expected.pop() if expected else memoryview(b"")
        # Nobody wrote to what was just loaded: of two maps of one file only what was written of `view` differs.
        return view.nbytes == there.nbytes and all(
            bytearray(part) == there[at : at + part.nbytes] for at, part in _blocks(view, _place(there)))

    return _each(value, way, equal) and not expected


def _encode_frames(value: object, overflow: Overflow) -> Encoded:
    encoded = Encoded(overflow, noted=False)
    encoded.dump(value, frames.Pickler)
    return encoded
