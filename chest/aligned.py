"""The format of a value file: a pickle whose arrays are written, read and mapped at the speed of memory.

A file is an ordinary pickle of protocol 5 with its arrays in line, which `pickle.load(open(name, 'rb'))` reads anywhere.
Two things are added where no unpickler looks. Before an array's bytes stand opcodes that cancel out (a short bytes
object is pushed and popped), as many as bring these bytes to a multiple of 64 in the file. After the final STOP stands
a note that says where the bytes of each array are. With it a reader need not read an array to load the value: it hands
the unpickler the same opcodes with each array replaced by NEXT_BUFFER, and the array itself as memory filled straight
from the file, or as a piece of a map of the file. The opcodes are described in PEP 574.

The positions are learnt without parsing: a `buffer_callback` that returns true leaves a buffer in line, and the file
that is pickled into then sees the buffer's bytes as a write of their own, which follows the write of their header.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
from binascii import crc32
from collections.abc import Iterator
from typing import IO, Any, Callable, NamedTuple

from . import maps

MARK = b"\x80\x05C\x05chest0"
"""The opcodes at the start of each file: PROTO 5, then a short bytes object "chest" pushed and popped."""

ALIGNMENT = 64
LEAST = 64 * 1024  # bytes; from this size on the C pickler writes a buffer by itself
_NEXT_BUFFER = b"\x97"
_MAGIC = b"\xffchest\r\n"

_NOTE = struct.Struct("<QQ?")  # where the padding begins, the array's size in bytes, was it read-only
_LAST = struct.Struct("<8sQII")  # magic, where the pickle ends, number of notes, checksum

File = IO[bytes]


class Note(NamedTuple):
    """Where an array stands in its file."""

    start: int
    size: int
    readonly: bool

    def gap(self) -> bytes:
        """The padding and the opcode and length that stand between `start` and the array's own bytes."""
        header = _header(self.size, self.readonly)
        fill = -(self.start + len(header)) % ALIGNMENT
        if 0 < fill < 3:
            fill += ALIGNMENT
        padding = b"C" + bytes((fill - 3,)) + bytes(fill - 3) + b"0" if fill else b""
        return padding + header

    def begin(self) -> int:
        """The offset of the array's first byte."""
        return self.start + len(self.gap())


def _header(size: int, readonly: bool) -> bytes:
    """What the pickler writes before the bytes of a buffer: BYTEARRAY8, or BINBYTES, or BINBYTES8."""
    if not readonly:
        return b"\x96" + struct.pack("<Q", size)
    return b"B" + struct.pack("<I", size) if size < 1 << 32 else b"\x8e" + struct.pack("<Q", size)


def _trailer(notes: list[Note], stop: int) -> bytes:
    body = b"".join(_NOTE.pack(*note) for note in notes)
    return body + _LAST.pack(_MAGIC, stop, len(notes), _checksum(body, stop))


def _checksum(body: bytes, stop: int) -> int:
    return crc32(struct.pack("<Q", stop), crc32(body))


def read_notes(file: File) -> list[Note]:
    """The notes at the end of a file; an empty list for a file without (or with half of one, or not of the system)."""
    if type(file) is not io.BufferedReader or type(file.raw) is not io.FileIO or file.tell():
        return []
    size = os.fstat(file.fileno()).st_size
    if size < LEAST:
        return []
    try:
        file.seek(size - _LAST.size)
        magic, stop, count, checksum = _LAST.unpack(file.read(_LAST.size))
        if magic != _MAGIC or stop + count * _NOTE.size + _LAST.size != size:
            return []
        file.seek(stop)
        body = file.read(count * _NOTE.size)
        return [Note(*fields) for fields in _NOTE.iter_unpack(body)] if _checksum(body, stop) == checksum else []
    finally:
        file.seek(0)


def _is_array(exporter: object) -> bool:
    """Whether a buffer is an array's. Others may be rebuilt by code that counts on the types of an ordinary load."""
    numpy: Any = sys.modules.get("numpy")
    return numpy is not None and isinstance(exporter, numpy.ndarray)


class Writer:
    """The file that a value is pickled into: marks, aligns and notes, and hands everything on to the real file."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.at = 0
        self.notes: list[Note] = []
        self.announced: memoryview | None = None
        self.may_take_less = isinstance(file, io.RawIOBase)

    def dump(self, value: object) -> None:
        """Write the value and the note. The memo dies with the pickler, and with it its hold on parts of the value."""
        pickle.Pickler(self, 5, buffer_callback=self.announce).dump(value)
        if self.notes:
            self.put(_trailer(self.notes, self.at))

    def announce(self, buffer: pickle.PickleBuffer) -> bool:
        """Called by the pickler for a buffer that it is about to write; true means "in line"."""
        view = buffer.raw()
        self.announced = view if view.nbytes >= LEAST and _is_array(view.obj) else None
        return True

    def write(self, data: bytes | pickle.PickleBuffer) -> None:
        """Called by the pickler with opcodes, or with one large payload."""
        if isinstance(data, pickle.PickleBuffer):
            return self.put_buffer(data.raw())
        if not self.at:
            data = MARK + data[2:]
        view, self.announced = self.announced, None
        header = b"" if view is None else _header(view.nbytes, view.readonly)
        if view is not None and data.endswith(header):
            self.put_aligned(data[: -len(header)], view)
        else:
            self.put(data)

    def put_aligned(self, head: bytes, view: memoryview) -> None:
        """Write the opcodes `head`, then padding and the header of the array that `view` shows."""
        note = Note(self.at + len(head), view.nbytes, view.readonly)
        self.notes.append(note)
        self.put(head + note.gap())

    def put_buffer(self, view: memoryview) -> None:
        """Write the bytes of a large buffer."""
        self.put(view)

    def put(self, data: bytes | memoryview) -> None:
        """Write bytes. A raw file may take less than it is given; others take everything."""
        self.at += memoryview(data).nbytes
        if not self.may_take_less:
            self.file.write(data)
            return
        rest = memoryview(data)
        while rest.nbytes:
            written = self.file.write(rest)
            if written is None:
                raise BlockingIOError("the file takes no more bytes now")
            rest = rest[written:]


def fill(file: File, view: memoryview) -> bool:
    """Read into the whole of `view`; false if the file ends before."""
    readinto: Callable[[memoryview], int] = file.readinto  # type: ignore[attr-defined]
    while view.nbytes:
        got = readinto(view)
        if not got:
            return False
        view = view[got:]
    return True


class Reader:
    """The file that a value is unpickled from: shows NEXT_BUFFER for each noted array, and yields the arrays.

    The unpickler asks for no more than it needs, so it is never past the place where an array's padding begins.
    """

    def __init__(self, file: File, notes: list[Note], under: maps.Map | None) -> None:
        self.file = file
        self.at = 0
        self.waiting = notes[::-1]
        self.under = under

    def load(self) -> Any:
        """The value."""
        value = pickle.Unpickler(self, buffers=self).load()
        if self.waiting:
            raise pickle.UnpicklingError("the note speaks of more arrays than the pickle")
        return value

    def read(self, size: int) -> bytes:
        """Opcodes: one alone, or a frame of them."""
        if self.waiting and self.at == self.waiting[-1].start:
            return self.pass_gap(self.waiting[-1].gap())
        return self.passed(self.file.read(size))

    def readline(self) -> bytes:
        """The argument of an opcode of the oldest protocols."""
        return self.passed(self.file.readline())

    def readinto(self, view: memoryview) -> int:
        """A large bytes object, straight into its place."""
        self.at += view.nbytes
        return view.nbytes if fill(self.file, view) else 0

    def passed(self, data: bytes) -> bytes:
        """Count bytes that went by."""
        self.at += len(data)
        return data

    def pass_gap(self, gap: bytes) -> bytes:
        """Put one opcode in the place of an array's padding and header."""
        if self.file.read(len(gap)) != gap:
            raise pickle.UnpicklingError("the note does not fit the pickle")
        self.at += len(gap)
        return _NEXT_BUFFER

    def __iter__(self) -> Iterator[memoryview]:
        """The arrays' bytes, each when the unpickler has come to it: only then is it sure that numpy is there."""
        while self.waiting:
            note = self.waiting.pop()
            self.at += note.size
            yield self.copied(note) if self.under is None else self.mapped(note, self.under)

    def copied(self, note: Note) -> memoryview:
        """An array's bytes in memory of their own. numpy gives it untouched; a `bytearray` is filled with 0 first."""
        numpy: Any = sys.modules.get("numpy")
        memory = bytearray(note.size) if numpy is None else numpy.empty(note.size, "u1")
        if not fill(self.file, memoryview(memory)):
            raise EOFError("the file ends within an array")
        return _sealed(memory) if note.readonly else memoryview(memory)

    def mapped(self, note: Note, under: maps.Map) -> memoryview:
        """An array's bytes as a part of the map."""
        self.file.seek(note.size, os.SEEK_CUR)
        memory = under.part(note.begin(), note.size)
        return _sealed(memory) if note.readonly else memoryview(memory)


def _sealed(memory: Any) -> memoryview:
    """A view of memory that nobody can write from now on, as far as the memory's own type can say so."""
    if hasattr(memory, "flags"):
        memory.flags.writeable = False
    return memoryview(memory).toreadonly()
