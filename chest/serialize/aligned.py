"""The format of a value file (docs/format.rst): a pickle whose arrays can be mapped, and a note behind its STOP.

A reader hands the unpickler the same opcodes with each array replaced by NEXT_BUFFER (PEP 574), and the array itself as
memory of its own or as a part of a map of the file.  Where the arrays are is learnt without parsing: a buffer for which
`buffer_callback` returns true stays in line, and what is pickled into then sees its bytes as a write of their own,
which follows the write of their header.
"""
from __future__ import annotations

import copyreg
import mmap
import os
import pickle
import struct
import sys
import threading
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Optional, Union
from zlib import crc32

from chest.errors import DamagedError, raise_of_a_value

MARK = b"\x80\x05C\x05chest0"
"""The opcodes at the start of each loose file: PROTO 5, then a short bytes object "chest" pushed and popped."""
LEAST = 64 * 1024  # bytes; from this size on the C pickler writes a buffer by itself, and a value has no hash

_MARK_END = len(MARK)
_ALIGNMENT = 64
_GATHERED = 8 * 1024 * 1024  # bytes of opcodes held before they are passed on
_BLOCK = 1024 * 1024  # bytes copied or read at a time
AT_ONCE = 1 << 30  # bytes that any system reads or writes at once: they take less than 2 GiB, or no more
_TAIL = 512  # bytes read at the end of a file: the note of few arrays
_MAGIC = b"\xffchest2\n"
_NEXT_BUFFER = b"\x97"
READONLY, CHECKED = 1, 2  # flags of an array

_ARRAY = struct.Struct("<QQHHI")
_END = struct.Struct("<8sQIIII")  # magic, where the pickle ends, number of arrays, CRC-32 of opcodes, key, note
_OPEN = struct.Struct("<8sQIII")  # the same without the last
SHORT = _END.size  # bytes of the note of a value without arrays


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


Buffer = Union[bytes, memoryview]
Source = Union[int, bytes, Map]  # a file: its descriptor, all that is in it, or a map of it
Overflow = Optional[Callable[[list[Buffer]], None]]
Array = tuple[int, int, int, int, int]
"""An array in a file: offset and size of its bytes, size of the padding and header before it, flags, CRC-32."""
Template = tuple[bytes, int, int, bytes, int, int]
"""What stands around an array: the opcodes before its bytes, their size, that of the padding and header at their end,
the opcodes behind, where these end, the CRC-32 of all opcodes."""


def _header(size: int, readonly: bool) -> bytes:
    """What the pickler writes before the bytes of a buffer: BINBYTES, BINBYTES8 or BYTEARRAY8."""
    if readonly and size < 1 << 32:
        return b"B" + size.to_bytes(4, "little")
    return (b"\x8e" if readonly else b"\x96") + size.to_bytes(8, "little")


def make_gap(at: int, size: int, readonly: bool) -> bytes:
    """Padding and header of an array of ``size`` bytes, to stand at ``at``."""
    header = _header(size, readonly)
    fill = -(at + len(header)) % _ALIGNMENT
    if 0 < fill < 3:  # bytes that no opcodes fill
        fill += _ALIGNMENT
    return (b"C" + bytes((fill - 3,)) + bytes(fill - 3) + b"0" if fill else b"") + header


def make_note(stop: int, crc: int, owner: int, arrays: bytes = b"", count: int = 0) -> bytes:
    """What stands behind STOP; ``owner`` is the checksum of the key, 0 if it is not known."""
    note = arrays + _OPEN.pack(_MAGIC, stop, count, crc, owner)
    return note + crc32(note).to_bytes(4, "little")


def without_mark(pieces: Sequence[Buffer]) -> bytes:
    """A value as a record has it: its pickle alone.  Copied once, if at all."""
    first = memoryview(pieces[0])
    return b"".join((first[:2], first[_MARK_END:], *pieces[1:]) if first[:_MARK_END] == MARK else pieces)


def stamp_of(content: bytes) -> int | None:
    """The hash of what a value serialises to, the same in a file and in a record; `None` from 64 KiB on."""
    return hash(without_mark((content,))) if len(content) < LEAST else None


def _reduce(array: Any) -> Any:
    """How an array is pickled: as numpy says, but for dates, whose bytes it shows to nobody, and would copy."""
    if array.nbytes < LEAST or array.dtype.kind not in "Mm" or not (flags := array.flags).forc:
        return array.__reduce_ex__(5)
    order = "C" if flags.c_contiguous else "F"
    return type(array), (array.shape, array.dtype, pickle.PickleBuffer(array.view("i8")), 0, None, order)


class Encoded:
    """What a value serialises to; the pickler writes into it.

    ``pieces`` are bytes and the memory of arrays itself, as far as they were not passed on to ``overflow``; ``nbytes``
    is the size of all, without the note.  With ``checked`` arrays have checksums; what is not ``noted`` has no note.
    """

    def __init__(self, overflow: Overflow = None, checked: bool = False, noted: bool = True) -> None:
        self.pieces: list[Buffer] = []
        self.nbytes = self._crc = self._gathered = self._count = 0
        self._arrays = b""  # as the note has them
        self._overflow, self._checked, self._noted = overflow, checked, noted
        self._passing_on = False  # an error of the system comes from there, any other from the value's own code
        self._announced: memoryview | None = None  # an array whose header comes next
        self._payload: tuple[memoryview, int, bool] | None = None  # one whose bytes come next, with its gap and flag

    @classmethod
    def of(cls, data: bytes, noted: bool = False) -> Encoded:
        """These bytes without a note; or, ``noted``, what a loose file has for this pickle."""
        encoded = cls(noted=noted)
        encoded.pieces = [MARK, memoryview(data)[2:]] if noted else [data]
        encoded.nbytes = sum(map(len, encoded.pieces))
        encoded._crc = crc32(encoded.pieces[-1], crc32(MARK)) if noted else 0
        return encoded

    @property
    def stamp(self) -> int | None:
        """The hash of all bytes, of fewer than 64 KiB."""
        return hash(without_mark(self.pieces)) if self.nbytes < LEAST else None

    def whole_stamp(self) -> int | bytes:
        """The same, and of more bytes a digest; where nothing was passed on."""
        if self.stamp is not None:
            return self.stamp
        import hashlib

        found = hashlib.blake2b(digest_size=16)
        for piece in self.pieces:
            found.update(piece)
        return found.digest()

    def note(self, owner: int = 0) -> bytes:
        """What a file has behind the pieces, and a record has not; ``owner`` is the checksum of its key."""
        return make_note(self.nbytes, self._crc, owner, self._arrays, self._count) if self._noted else b""

    def dump(self, value: object, pickler: type[pickle.Pickler] = pickle.Pickler) -> None:
        """Pickle a value into this, once."""
        made: Any = pickler(self, 5, buffer_callback=self._announce)
        if "numpy" in sys.modules:
            made.dispatch_table = {**copyreg.dispatch_table, sys.modules["numpy"].ndarray: _reduce}
        try:
            made.dump(value)
        except OSError as error:
            if not self._passing_on:
                raise_of_a_value(error)
            raise
        self._announced = None

    def _announce(self, buffer: pickle.PickleBuffer) -> bool:
        """Called by the pickler for a buffer that it is about to write; true means "in line".

        Only an array may be replaced by other memory: who made another buffer may count on the type that a load gives.
        """
        view = buffer.raw()
        if view.nbytes >= LEAST:
            kinds: Any = [getattr(sys.modules.get("numpy"), "ndarray", ()),
                          getattr(sys.modules.get("pyarrow"), "Buffer", ())]
            self._announced = view if isinstance(view.obj, tuple(kinds)) else None
        return True

    def write(self, data: bytes | bytearray | memoryview | pickle.PickleBuffer) -> None:
        """Called by the pickler with opcodes, or with one large payload."""
        if self._payload is not None:
            payload, self._payload = self._payload, None
            return self.put_array(*payload)
        piece: Buffer
        if type(data) is bytes:
            piece = data if self.nbytes else MARK + data[2:]
            view, self._announced = self._announced, None
            if view is not None and piece.endswith(header := _header(view.nbytes, view.readonly)):
                readonly = view.readonly and not in_read_only_map(view)
                piece = piece[: -len(header)]
                gap = make_gap(self.nbytes + len(piece), view.nbytes, readonly)
                piece, self._payload = piece + gap, (view, len(gap), readonly)
        else:  # it may be there during this call only, so it is passed on at once; or copied, as its checksum is of now
            whole = data.raw() if isinstance(data, pickle.PickleBuffer) else memoryview(data)
            piece = whole if self._overflow is not None and whole.readonly else bytes(whole)
        self.nbytes += len(piece)
        if self._noted:
            self._crc = crc32(piece, self._crc)
        self._add(piece)

    def _add(self, piece: Buffer) -> None:
        self.pieces.append(piece)
        self._gathered += len(piece)
        if self._overflow is not None and (self._gathered > _GATHERED or type(piece) is memoryview):
            pieces, self.pieces, self._gathered = self.pieces, [], 0
            self._passing_on = True
            self._overflow(pieces)
            self._passing_on = False

    def put_plain(self, view: memoryview, readonly: bool, template: Template) -> None:
        """Dump a value that is one array, with the opcodes of the template."""
        head, self.nbytes, gap, tail, stop, self._crc = template
        self.pieces = [head]
        self.put_array(view, gap, readonly)
        self.pieces.append(tail)
        self.nbytes = stop

    def put_array(self, view: memoryview, gap: int, readonly: bool) -> None:
        """Add an array behind its header."""
        begin, crc, flags = self.nbytes, 0, READONLY if readonly else 0
        self.nbytes += view.nbytes
        if self._checked:  # copied, so that the checksum is of what is written, whoever changes the array meanwhile
            flags |= CHECKED
            for at in range(0, view.nbytes, _BLOCK):
                block = bytes(view[at : at + _BLOCK])
                crc = crc32(block, crc)
                self._add(block)
        else:
            self.pieces.append(view)
        self._arrays += _ARRAY.pack(begin, view.nbytes, gap, flags, crc)
        self._count += 1


_seeking = threading.Lock()


def _seek_and_read(descriptor: int, size: int, at: int) -> bytes:
    """Where the system cannot read at a place."""
    with _seeking:
        os.lseek(descriptor, at, os.SEEK_SET)
        return os.read(descriptor, size)


pread: Callable[[int, int, int], bytes] = getattr(os, "pread", _seek_and_read)
_preadv: Any = getattr(os, "preadv", None)


def fill(descriptor: int, view: memoryview, at: int) -> None:
    """Read the whole of ``view`` (bytes) from the file at ``at``; `DamagedError` if the file ends before."""
    while view.nbytes:
        if _preadv is not None:
            got = _preadv(descriptor, [view], at)
        else:
            data = pread(descriptor, view.nbytes, at)
            got = len(data)
            view[:got] = data
        if not got:
            raise DamagedError("the file is cut off")
        view, at = view[got:], at + got


class Layout(NamedTuple):
    """What the note of a file says: the pickle ends at ``stop``, and its checksum is ``crc``."""

    arrays: list[Array]
    stop: int
    crc: int

    def without_arrays(self, source: Source) -> bytes:
        """The checked pickle, with NEXT_BUFFER for each array, its padding and its header."""
        crc, at, pieces = 0, 0, []
        for begin, size, gap, _, _ in [*self.arrays, (self.stop, 0, 0, 0, 0)]:
            data = _read(source, at, begin)
            crc, at = crc32(data, crc), begin + size
            pieces.append(data[:-gap] if gap else data)
        if crc != self.crc:
            raise DamagedError("the checksum of the pickle differs")
        return _NEXT_BUFFER.join(pieces)

    def verify(self, source: Source) -> None:
        """Compare the opcodes, and the arrays that have checksums, with these."""
        self.without_arrays(source)
        for begin, size, _, flags, expected in self.arrays:
            crc = 0
            for at in range(begin, begin + size, _BLOCK) if flags & CHECKED else ():
                crc = crc32(_read(source, at, min(at + _BLOCK, begin + size)), crc)
            if crc != expected:
                raise DamagedError("the checksum of an array differs")


def _read(source: Source, begin: int, end: int) -> bytes:
    """The bytes that are there; whoever reads them compares a checksum, and so learns of those that are not."""
    if end - begin > AT_ONCE:
        return _read(source, begin, begin + AT_ONCE) + _read(source, begin + AT_ONCE, end)
    return pread(source, end - begin, begin) if type(source) is int else source[begin:end]  # type: ignore[index]


def read_layout(source: Source, size: int, owner: int = 0) -> Layout | None:
    """The layout of a file of ``size`` bytes; `None` for a pickle that another program wrote, or chest 0.2.3.

    `DamagedError` for a file that chest wrote and that does not end with a note that fits, or is that of a key with
    another checksum than ``owner``, if both are known.
    """
    tail = _read(source, size - _TAIL if size > _TAIL else 0, size)
    if tail[-SHORT : 8 - SHORT] != _MAGIC:
        head = _read(source, 0, min(len(MARK), size))
        # A part of the mark; or zeros at the end of zeros or of a pickle, which ends with none.  Of what else begins
        # otherwise, as a file of `numpy.save` does, nothing is known.
        if MARK.startswith(head) or (tail[-1:] == b"\0" and (head[:1] == MARK[:1] or not head.strip(b"\0"))):
            raise DamagedError("the file is cut off")
        return None
    _, stop, count, crc, found, expected = _END.unpack(tail[-SHORT:])
    length = count * _ARRAY.size + SHORT
    if stop + length != size:
        raise DamagedError("the file is not as long as it was")
    note = tail[-length:] if length <= _TAIL else _read(source, stop, size)
    if crc32(note[:-4]) != expected:
        raise DamagedError("the checksum of the note differs")
    if owner and found not in (0, owner):  # the name was this key's, as an older index says, and was taken since
        raise DamagedError("the file is another key's")
    arrays, at = list(_ARRAY.iter_unpack(note[:-SHORT])), 0
    for begin, nbytes, gap, _, _ in arrays:
        if not at < begin - gap < begin <= begin + nbytes < stop:
            raise DamagedError("the note does not fit the file")
        at = begin + nbytes
    return Layout(arrays, stop, crc)
