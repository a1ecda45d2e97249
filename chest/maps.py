"""Memory maps of files that are never changed: making them, finding the one that an array is a part of, comparing."""

from __future__ import annotations

import mmap
import os
import sys
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, cast

from . import pages

_ACCESS = {"c": mmap.ACCESS_COPY, "r": mmap.ACCESS_READ}
# A map made without this keyword (before Python 3.13) keeps a descriptor of its own open for as long as it lives.
_WITHOUT_DESCRIPTOR: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) and os.name == "posix" else {}

_ALWAYS = 16  # maps that may be had whatever the system allows
_WINDOW = 16 * 1024 * 1024  # bytes of a file mapped at a time to be compared

Identity = tuple[int, int]
Look = tuple[object, tuple[Any, ...]]  # an array's dtype, and what else it is but its bytes


class Map(mmap.mmap):
    """A map of one whole file that remembers which file it shows, and whether it may be written."""

    identity: Identity
    writable: bool
    look: Look | None = None
    """For a file whose value is one array: all of it but its bytes, as it was when it was loaded."""
    begin: int = 0
    """Where in the file the bytes of that array begin."""

    def part(self, start: int, size: int) -> Any:
        """`size` bytes from `start` on, as an object of exactly these: a slice would lead back to the whole map."""
        numpy: Any = sys.modules.get("numpy")
        return memoryview(self)[start : start + size] if numpy is None else numpy.frombuffer(self, "u1", size, start)


_living: weakref.WeakSet[Map] = weakref.WeakSet()


def _room_for_another() -> bool:
    """Whether one more map leaves descriptors for everything else: maps take a quarter of those allowed."""
    if _WITHOUT_DESCRIPTOR or len(_living) < _ALWAYS or not hasattr(os, "sysconf"):
        return True
    allowed = os.sysconf("SC_OPEN_MAX")
    return allowed < 0 or len(_living) < allowed // 4


def identity(descriptor: int) -> Identity:
    """The device and inode of an open file, which no other file can have while this one is open or mapped."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def map_file(descriptor: int, mode: str, shows: Identity) -> Map | None:
    """Map the whole of an open file, copy-on-write (`'c'`) or read-only (`'r'`); None where a map cannot be had.

    `shows` is which file that is.

    That is so when a quarter of the descriptors this process may open is taken by maps (before Python 3.13, where each
    map keeps one), and when the system refuses: too many maps, no room in the address space, a file system without
    maps. The map outlives the descriptor and the file's name.
    """
    if not _room_for_another():
        return None
    try:
        made = Map(descriptor, 0, access=_ACCESS[mode], **_WITHOUT_DESCRIPTOR)
    except (OSError, ValueError):
        return None
    made.identity = shows
    made.writable = mode == "c"
    _living.add(made)
    return made


class Place(NamedTuple):
    """Where a piece of memory lies in a map: `begin` counts from the beginning of the file, all in bytes."""

    under: Map
    begin: int
    size: int
    address: int

    def of_file(self) -> tuple[Identity, int]:
        """Equal for two pieces of memory that began as the same bytes of the same file."""
        return self.under.identity, self.begin


def place(memory: Any) -> Place | None:
    """The place of a contiguous array, or of a view of bytes, in the map that it is a part of; None for any other."""
    under = _map_under(memory)
    if under is None or "numpy" not in sys.modules or not memory.nbytes:
        return None
    address = pages.address(memory)
    begin = address - pages.address(under)
    return Place(under, begin, memory.nbytes, address) if 0 <= begin <= len(under) - memory.nbytes else None


def _map_under(link: Any) -> Map | None:
    """The map at the end of the chain from each view to the object that it is a view of."""
    while link is not None and not isinstance(link, Map):
        link = link.obj if isinstance(link, memoryview) else getattr(link, "base", None)
    return link


def equal(one: memoryview, other: memoryview) -> bool:
    """Whether two pieces of memory of the same size are equal, with neither copied: Python compares views by item."""
    if "numpy" not in sys.modules or not one.nbytes:
        return bytes(one) == bytes(other)
    return _memcmp()(pages.address(one), pages.address(other), one.nbytes) == 0


def equals_file(view: memoryview, descriptor: int, begin: int) -> bool:
    """Whether a file holds these bytes from `begin` on. `OSError` if it cannot be mapped.

    A map saves the copy that reading makes. It shows a part of the file at a time, as its pages count as memory of this
    process while they are mapped.
    """
    for start in range(0, view.nbytes, _WINDOW):
        part = view[start : start + _WINDOW]
        before = (begin + start) % mmap.ALLOCATIONGRANULARITY
        offset = begin + start - before
        shown = mmap.mmap(descriptor, before + part.nbytes, access=mmap.ACCESS_READ, offset=offset)
        if not equal(part, memoryview(shown)[before:]):
            return False
    return True


@cache
def _memcmp() -> Callable[[int, int, int], int]:
    """The C library's, through ctypes, which numpy has imported already. It runs without the interpreter's lock."""
    import ctypes

    function = ctypes.CDLL(None).memcmp
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    return cast("Callable[[int, int, int], int]", function)


def touched(place: Place) -> list[tuple[int, int]]:
    """The parts of a piece of a map that may differ from the file: (from, to) in bytes, counted from its beginning.

    Nothing for a read-only map; the pages that were written, where the system tells; everything where it does not.
    """
    if not place.under.writable:
        return []
    written = pages.written(place.address, place.size)
    return [(0, place.size)] if written is None else written
