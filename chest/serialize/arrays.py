"""Loading values with their arrays as maps or in memory of their own; plain arrays without the pickler.

A value that is one plain array is written as a call of `numpy.ndarray` with shape, dtype and memory, names of every
numpy.  Its opcodes are the same for arrays that look alike, and what they say is remembered.  The array is made over
its memory itself, so that a view of it keeps it alive, and not only that memory.
"""
from __future__ import annotations

import io
import math
import mmap
import os
import pickle
import re
import sys
import weakref
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any, Callable
from zlib import crc32

from chest.errors import DamagedError, raise_of_a_signal

from . import aligned, compare
from .aligned import CHECKED, LEAST, MARK, READONLY, Array, Encoded, Map, Template

_HEAD = MARK + b"cnumpy\nndarray\n(("  # GLOBAL, MARK for the arguments, MARK for the shape
_DTYPE = b"tcnumpy\ndtype\n\x8c"  # TUPLE, GLOBAL, SHORT_BINUNICODE
_MADE = b"\x85R"  # TUPLE1, REDUCE
_TAIL = b"K\0N\x8c\x01%ctR."  # offset 0, no strides, the order; TUPLE, REDUCE, STOP
_PLAIN = (re.escape(_HEAD) + b"((?:\x8a\x08.{8}){1,32})" + re.escape(_DTYPE)
          + rb".([<>|=][biufcSUMm]\d+(?:\[\d*[A-Za-z]+\])?)" + re.escape(_MADE) + b"\x97"
          + re.escape(_TAIL).replace(b"%c", b"([CF])"))
_LONGEST = 512  # bytes of the opcodes of a plain array
_STREAM = 4 * 1024 * 1024  # bytes of opcodes from which on they are not held in memory

MAPPED_FROM = 256 * 1024  # bytes, with mmap_mode='auto': smaller ones are copied and compared in less time
_ALWAYS = 16  # maps that may be had whatever the system allows
_MOST_MAPS = 16384  # a quarter of what Linux allows a process
# A map made without this keyword (before Python 3.13) keeps a descriptor of its own open for as long as it lives.
_WITHOUT_DESCRIPTOR: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) and os.name == "posix" else {}

_maps: set[weakref.ref[Map]] = set()


def dump_plain(value: Any, encoded: Encoded) -> bool:
    """Dump a plain array of 64 KiB or more; false for any other value of a class by that name, which is not dumped."""
    if type(value).__module__ != "numpy" or value.nbytes < LEAST:
        return False
    dtype, flags = value.dtype, value.flags
    order = "C" if flags.c_contiguous else "F" if flags.f_contiguous else ""
    if dtype.kind not in "biufcSUMm" or dtype.metadata or not order:
        return False
    readonly = not flags.writeable and not aligned.in_read_only_map(value)
    memory = value.view("i8") if dtype.kind in "Mm" else value  # numpy shows the bytes of dates to nobody
    encoded.put_plain(pickle.PickleBuffer(memory).raw(), readonly,
                      _template(dtype.str, value.shape, order, value.nbytes, readonly))
    return True


@lru_cache(256)
def _template(dtype: str, shape: tuple[int, ...], order: str, size: int, readonly: bool) -> Template:
    """What stands around the ``size`` bytes of a plain array."""
    axes = b"".join([b"\x8a\x08" + axis.to_bytes(8, "little") for axis in shape])  # LONG1
    text = dtype.encode()
    head = _HEAD + axes + _DTYPE + bytes((len(text),)) + text + _MADE
    gap, tail = aligned.make_gap(len(head), size, readonly), _TAIL.replace(b"%c", order.encode())
    begin = len(head) + len(gap)
    return head + gap, begin, len(gap), tail, begin + size + len(tail), crc32(head + gap + tail)


@lru_cache(256)
def _describe(opcodes: bytes, size: int) -> tuple[Any, tuple[int, ...], str] | None:
    """dtype, shape and order of a plain array of ``size`` bytes, as its opcodes say; `None` for any other value."""
    found = re.fullmatch(_PLAIN, opcodes, re.DOTALL)
    if found is None:
        return None
    import numpy

    axes, text, order = found.groups()
    shape = tuple([int.from_bytes(axes[at + 2 : at + 10], "little") for at in range(0, len(axes), 10)])
    dtype = numpy.dtype(text.decode())
    return (dtype, shape, order.decode()) if math.prod(shape) * dtype.itemsize == size else None


def load(
    descriptor: int, status: os.stat_result, mode: str | None, trusted: bool, owner: int
) -> tuple[object, Map | None]:
    """The value in an open file of 64 KiB or more, and the map that its arrays are parts of, if they are."""
    layout = aligned.read_layout(descriptor, status.st_size, owner)
    if layout is None or (trusted and not layout.arrays and layout.stop > _STREAM):
        if layout is not None:  # else it is a pickle of another program, or of chest 0.2.3
            layout.verify(descriptor)
        with open(descriptor, "rb", closefd=False) as file:
            file.seek(0)
            return (_Renaming(file).load() if trusted else loads(file.read(), trusted)), None
    arrays = layout.arrays
    under = _map_file(descriptor, status, mode) if mode is not None and arrays else None
    opcodes = layout.without_arrays(descriptor if under is None else under)
    described = _describe(opcodes, arrays[0][1]) if len(arrays) == 1 and len(opcodes) < _LONGEST else None
    if described is None:
        return loads(opcodes, trusted, lambda: _buffers(descriptor, arrays, under)), under
    numpy: Any = sys.modules["numpy"]
    dtype, shape, order = described
    if under is None:
        value = numpy.empty(shape, dtype, order)
        _copy(descriptor, arrays[0], pickle.PickleBuffer(value.view("i8") if dtype.kind in "Mm" else value).raw())
    else:
        value = numpy.ndarray(shape, dtype, under, arrays[0][0], None, order)
    if not trusted:
        from .restricted_arrays import judge

        judge(value)
    if arrays[0][3] & READONLY:
        value.flags.writeable = False
    if under is not None:
        under.look = dtype, value.shape, value.strides, value.flags.writeable
    return value, under


def _copy(descriptor: int, array: Array, view: memoryview) -> None:
    begin, _, _, flags, crc = array
    aligned.fill(descriptor, view, begin)
    if flags & CHECKED and crc32(view) != crc:
        raise DamagedError("the checksum of an array differs")


def _buffers(descriptor: int, arrays: list[Array], under: Map | None) -> Iterator[memoryview]:
    """The arrays' bytes, each when the unpickler has come to it: by then it has imported numpy."""
    for array in arrays:
        begin, size, _, flags, _ = array
        if under is not None:
            view = memoryview(under)[begin : begin + size]
        else:
            numpy: Any = sys.modules.get("numpy")  # it gives memory untouched, a bytearray is filled with zeros first
            view = memoryview(bytearray(size) if numpy is None else numpy.empty(size, "u1"))
            _copy(descriptor, array, view)
        yield view.toreadonly() if flags & READONLY else view


class _Renaming(pickle.Unpickler):
    """Finds what numpy 1 calls `numpy.core` and numpy 2 `numpy._core` under the name that there is."""

    def find_class(self, module: str, name: str) -> Any:
        if re.match(r"numpy\._?core\b", module):
            import numpy

            module = re.sub("_?core", "core" if numpy.__version__.startswith("1.") else "_core", module, count=1)
        return super().find_class(module, name)


def loads(
    data: bytes | memoryview, trusted: bool = True, buffers: Callable[[], Iterator[memoryview]] | None = None
) -> object:
    """What `pickle.loads` makes of ``data``, of either numpy's; or, not ``trusted``, without running code of it."""
    if not trusted:
        from . import restricted

        return restricted.loads(data, buffers and buffers())
    try:
        return pickle.loads(data, buffers=buffers and buffers())
    except (ImportError, AttributeError, DeprecationWarning):
        if not re.search(rb"numpy\._?core", data):
            raise
    return _Renaming(io.BytesIO(data), buffers=buffers and buffers()).load()


def _map_file(descriptor: int, status: os.stat_result, mode: str) -> Map | None:
    """A map of the whole of an open file, copy-on-write or read-only; `None` where that cannot be or does not pay."""
    if mode == "auto" and (status.st_size < MAPPED_FROM or not compare.tells() or not is_local(status.st_dev)):
        return None
    if len(_maps) >= _ALWAYS:  # does one more leave descriptors for everything else?
        allowed = -1 if _WITHOUT_DESCRIPTOR or not hasattr(os, "sysconf") else os.sysconf("SC_OPEN_MAX")
        if len(_maps) >= (_MOST_MAPS if allowed < 0 else min(_MOST_MAPS, allowed // 4)):
            return None
    access = mmap.ACCESS_READ if mode == "r" else mmap.ACCESS_COPY
    try:
        made = Map(descriptor, status.st_size, access=access, **_WITHOUT_DESCRIPTOR)
    except (OSError, ValueError) as error:  # too many maps, no room in the address space, a file system without maps
        raise_of_a_signal(error)
        return None
    made.file = status.st_dev, status.st_ino
    made.writable = mode != "r"
    _maps.add(weakref.ref(made, _maps.discard))
    return made


# Where another host may cut a file off that is mapped here: touching it would end the process with SIGBUS.
_REMOTE = frozenset("""9p afs afs3 beegfs ceph cifs coda davfs drvfs fhgfs gfs gfs2 glusterfs gpfs kafs lustre mmfs
    ncpfs nfs nfs4 ocfs2 orangefs panfs prl_fs pvfs2 smb2 smb3 smbfs vboxsf virtiofs vmhgfs wekafs""".split())


def _mounted(device: int) -> set[str] | None:
    """The types of the mounts of this device, as ``/proc`` tells them; `None` if nobody tells."""
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            mounts = [line.partition(" - ") for line in file]
        return {more.split()[0] for mount, _, more in mounts if mount.split()[2] == number}
    except (OSError, IndexError):
        return None


@cache
def is_local(device: int) -> bool:
    """Are files of this device changed by this machine alone, as far as the type of its mount says?  Else false.

    One that is not in the list of mounts is local: Btrfs and overlays have other numbers, network file systems do not.
    """
    kinds = _mounted(device)
    return kinds is not None and not any(kind in _REMOTE or kind.startswith("fuse") for kind in kinds)


@cache
def preallocates(device: int) -> bool:
    """Is a large file of this device written faster, by a sixth, where its room was reserved before?

    So it is on ext4.  Elsewhere it makes no difference (tmpfs), or costs something (Btrfs then compresses nothing), or
    the system cannot, and the C library writes a byte to each block instead.
    """
    return hasattr(os, "posix_fallocate") and _mounted(device) == {"ext4"}


@cache
def keeps_inodes(device: int) -> bool:
    """Has a file of this device the same inode number as long as it is there?

    On a FUSE mount it may get another one whenever the system is short of memory.  True if nobody tells.
    """
    return not any(kind.startswith("fuse") for kind in _mounted(device) or ())
