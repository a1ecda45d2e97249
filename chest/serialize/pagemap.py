"""Maps of files, and which pages of them were written, as Linux tells.

`/proc/self/pagemap` has eight bytes for each page of this process.  A page of a private map that still shows the file
has the bits "present" and "file" set, one that was never brought in has none; a page that was written belongs to this
process and has the bit "file" no more, also after a fork, in parent and child.  See the kernel's
`Documentation/admin-guide/mm/pagemap.rst`.
"""
from __future__ import annotations

import mmap
import os
import re
import sys
from functools import cache
from typing import Any

from chest.errors import raised_by_signal

_PAGE = mmap.PAGESIZE
_ENTRY = 8  # bytes of one entry
_AT_ONCE = 1 << 16  # entries
# Bits 7, 6, 5 of an entry's highest byte are "present", "swapped" and "file".
_WRITTEN = bytes(bits >> 5 not in (0b000, 0b101) for bits in range(256))
_HIGHEST = _ENTRY - 1 if sys.byteorder == "little" else 0


class Map(mmap.mmap):
    """A map of one whole file."""

    file: tuple[int, int]
    """Device and inode, which no other file can have as long as the map lives."""
    writable: bool
    look: tuple[object, tuple[int, ...], tuple[int, ...], bool] | None = None
    """For a file whose value is one array: its dtype, shape, strides and flag, as it was loaded."""


def map_under(memory: Any) -> Map | None:
    """The map at the end of the chain from each view to the object that it is a view of."""
    while memory is not None and not isinstance(memory, Map):
        memory = memory.obj if isinstance(memory, memoryview) else getattr(memory, "base", None)
    return memory


def in_read_only_map(memory: Any) -> bool:
    """Is this a part of a map of mode `'r'`?  Then it is no more read-only than it was before it was saved."""
    under = map_under(memory)
    return under is not None and not under.writable


def address(memory: Any) -> int:
    """Where a piece of memory that is not empty begins; only with numpy."""
    begin: int = sys.modules["numpy"].frombuffer(memory, "u1").__array_interface__["data"][0]
    return begin


def written(begin: int, size: int) -> list[tuple[int, int]] | None:
    """The runs of written pages in ``size`` bytes of memory from the address ``begin`` on.

    As (from, to) in bytes, counted from ``begin``; `None` if nobody tells.  The page map is opened anew each time, as
    a descriptor that a fork's child inherits shows the parent's memory.  Costs about 10 µs and 20 ns a page.
    """
    first, last = begin // _PAGE, -(-(begin + size) // _PAGE)
    runs: list[tuple[int, int]] = []
    try:
        with open("/proc/self/pagemap", "rb", 0) as file:
            for page in range(first, last, _AT_ONCE):
                count = _AT_ONCE if page + _AT_ONCE < last else last - page
                entries = os.pread(file.fileno(), count * _ENTRY, page * _ENTRY)
                if len(entries) != count * _ENTRY:
                    return None
                flags = entries[_HIGHEST::_ENTRY].translate(_WRITTEN)
                if 1 in flags:
                    for run in re.finditer(b"\1+", flags):
                        start, stop = ((page + at) * _PAGE - begin for at in run.span())
                        runs.append((max(start, 0), min(stop, size)))
    except OSError as error:
        if raised_by_signal(error):
            raise
        return None
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
    except OSError:  # there can be no more maps, or none at all
        return False
