"""Memory maps of files that are never changed, and what the kernel knows about them.

A copy-on-write map tells more than a copy does: which of its pages were written. On Linux `/proc/self/pagemap` has
eight bytes for each page of this process; a page of a private map that still shows the file has its bit "file" set, a
page that was written belongs to this process alone and has it not. So an array of 800 MB that nobody touched is known
to be unchanged without reading it. The bits are described in the kernel's `Documentation/admin-guide/mm/pagemap.rst`.
"""

from __future__ import annotations

import mmap
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple, cast

_ACCESS = {"c": mmap.ACCESS_COPY, "r": mmap.ACCESS_READ}
# A map made without this keyword (before Python 3.13) keeps a descriptor of its own open for as long as it lives.
_WITHOUT_DESCRIPTOR: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) and os.name == "posix" else {}

_PAGE = mmap.PAGESIZE
_WINDOW = 16 * 1024 * 1024  # bytes of a file mapped at a time to be compared
_ENTRY = 8  # bytes of one entry of the page map
_ENTRIES_AT_ONCE = 1 << 16
# The highest byte of an entry holds the bits "present" (7), "swapped" (6) and "file" (5). A page is as the file has it
# if it was never brought in (none of the three) or shows the file ("present" and "file"). Any other is looked at.
_SHOWS_THE_FILE = (0b000, 0b101)
_TOUCHED = bytes(bits >> 5 not in _SHOWS_THE_FILE for bits in range(256))
_HIGHEST = _ENTRY - 1 if sys.byteorder == "little" else 0

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
    if _WITHOUT_DESCRIPTOR or not hasattr(os, "sysconf"):
        return True
    allowed = os.sysconf("SC_OPEN_MAX")
    return allowed < 0 or len(_living) < allowed // 4


def identity(descriptor: int) -> Identity:
    """The device and inode of an open file, which no other file can have while this one is open or mapped."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def map_file(descriptor: int, mode: str) -> Map | None:
    """Map the whole of an open file, copy-on-write (`'c'`) or read-only (`'r'`); None where a map cannot be had.

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
    made.identity = identity(descriptor)
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
    address = _address(memory)
    begin = address - _address(under)
    return Place(under, begin, memory.nbytes, address) if 0 <= begin <= len(under) - memory.nbytes else None


def _map_under(link: Any) -> Map | None:
    """The map at the end of the chain from each view to the object that it is a view of."""
    while link is not None and not isinstance(link, Map):
        link = link.obj if isinstance(link, memoryview) else getattr(link, "base", None)
    return link


def _address(memory: Any) -> int:
    if not hasattr(memory, "__array_interface__"):
        memory = sys.modules["numpy"].frombuffer(memory, "u1", 1)
    address: int = memory.__array_interface__["data"][0]
    return address


def equal(one: memoryview, other: memoryview) -> bool:
    """Whether two pieces of memory of the same size are equal, with neither copied: Python compares views by item."""
    if "numpy" not in sys.modules or not one.nbytes:
        return bytes(one) == bytes(other)
    return _memcmp()(_address(one), _address(other), one.nbytes) == 0


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
    Costs one read of 8 bytes for each page.
    """
    if not place.under.writable:
        return []
    try:
        if _page_map_tells():
            return list(_written(place.address, place.size))
    except OSError:
        pass
    return [(0, place.size)]


def _written(address: int, size: int) -> Iterator[tuple[int, int]]:
    """The runs of written pages of a piece of memory, as (from, to) relative to its beginning."""
    first, end = address // _PAGE, (address + size - 1) // _PAGE + 1
    for page in range(first, end, _ENTRIES_AT_ONCE):
        flags = _flags(page, min(_ENTRIES_AT_ONCE, end - page))
        start = flags.find(1)
        while start >= 0:
            stop = flags.find(0, start)
            stop = stop if stop >= 0 else len(flags)
            yield max((page + start) * _PAGE - address, 0), min((page + stop) * _PAGE - address, size)
            start = flags.find(1, stop)


def _flags(page: int, count: int) -> bytes:
    """For each of `count` pages 1 if it was written (or nobody can say), else 0.

    The page map is opened anew each time: a descriptor that a fork's child inherits shows the parent's memory.
    """
    descriptor = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        entries = os.pread(descriptor, count * _ENTRY, page * _ENTRY)
    finally:
        os.close(descriptor)
    if len(entries) != count * _ENTRY:
        raise OSError("the page map ended early")
    return entries[_HIGHEST::_ENTRY].translate(_TOUCHED)


@cache
def _page_map_tells() -> bool:
    """Whether this system's page map shows a write. Sandboxes may hide it, or give zeros, which look like "clean"."""
    if not sys.platform.startswith("linux"):
        return False
    with mmap.mmap(-1, _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as probe:
        probe[0] = 1
        try:
            return list(_written(_address(probe), _PAGE)) == [(0, _PAGE)]
        except OSError:
            return False
