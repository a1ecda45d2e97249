"""The format of a value file: a pickle whose arrays are written, read and mapped at the speed of memory.

A file is an ordinary pickle of protocol 5 with its arrays in line; `pickle.load(open(name, 'rb'))` reads it anywhere.
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
import mmap
import os
import pickle
import struct
import sys
import threading
from binascii import crc32
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import IO, Any, Callable, NamedTuple

from . import maps, plain

MARK = b"\x80\x05C\x05chest0"
"""The opcodes at the start of each file: PROTO 5, then a short bytes object "chest" pushed and popped."""

ALIGNMENT = 64
LEAST = 64 * 1024  # bytes; from this size on the C pickler writes a buffer by itself
_MOST_GATHERED = 64  # pieces written at once, each at most a frame of 64 KiB or a part of the value itself
_TAIL = 512  # bytes read at the end of a file: the note, and the last opcodes, of few arrays
_READ_AT_ONCE = 1024 * 1024  # bytes of opcodes read in one piece
_SHORT = 400  # bytes of opcodes that are remembered: so few Python keeps in a place of its own
_MOST_REMEMBERED = 1000  # files; then all are forgotten
_HUGE = 4 * 1024 * 1024  # bytes from which huge pages are worth while
_READS_IN_PLACE = hasattr(os, "preadv")
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

    @lru_cache(maxsize=64)  # noqa: B019 - notes are small, and those of files with arrays of one size are alike
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


Version = tuple[int, ...]


class Layout:
    """What the end of a file says about it, and which file it is.

    `tail` has the last bytes of the pickle, those that came with the note in one read.  Of a file that will not change
    any more, `version` is what no other file had or will have; and `opcodes` is the whole of its pickle, with
    NEXT_BUFFER for each array, its padding and its header, if it was loaded before.
    """

    __slots__ = ("identity", "notes", "opcodes", "stop", "tail", "version")

    def __init__(self, notes: tuple[Note, ...], stop: int, identity: maps.Identity, version: Version, tail: bytes):
        self.notes = notes
        self.stop = stop
        self.identity = identity
        self.version = version
        self.tail = tail
        self.opcodes: bytes | None = None

    def between(self, descriptor: int, begin: int, end: int) -> bytes:
        """The bytes from `begin` to `end`, which are opcodes."""
        missing = self.stop - len(self.tail) - begin
        return os.pread(descriptor, end - begin, begin) if missing > 0 else self.tail[-missing : end - begin - missing]

    def remember(self, opcodes: bytes) -> None:
        """Keep what the file says, if it is short, for the next time that it is loaded."""
        if self.version and len(opcodes) <= _SHORT:
            self.opcodes = opcodes
            self.tail = b""  # larger: it would stand among the arrays in the C library's memory, and keep their room
            if len(_remembered) >= _MOST_REMEMBERED:
                _remembered.clear()
            _remembered[self.version] = self


_remembered: dict[Version, Layout] = {}


def read_layout(file: File, status: os.stat_result | None = None) -> Layout | None:
    """The layout of an ordinary file of the system, opened for reading, that holds large arrays; None for any other.

    With `status`, what the system says of the file, it is taken to be at its start, and never to change again, as the
    files of a chest: when they are finished they are given a time that no other change would give them.

    Also None where the system cannot read at a position into given memory, and for a file whose note is torn: such
    files are read the ordinary way, in which a torn pickle raises an error.
    """
    ordinary = type(file) is io.FileIO or (type(file) is io.BufferedReader and type(file.raw) is io.FileIO)
    if not ordinary or not _READS_IN_PLACE or (status is None and file.tell()):
        return None
    descriptor = file.fileno()
    version: Version = ()
    if status is None:
        status = os.fstat(descriptor)
    else:
        version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        before = _remembered.get(version)
        if before is not None:
            return before
    if status.st_size < LEAST:
        return None
    end = os.pread(descriptor, _TAIL, status.st_size - _TAIL)
    magic, stop, count, checksum = _LAST.unpack_from(end, _TAIL - _LAST.size) if len(end) == _TAIL else (b"", 0, 0, 0)
    if magic != _MAGIC or stop + count * _NOTE.size + _LAST.size != status.st_size:
        return None
    known = max(_TAIL - (status.st_size - stop), 0)
    body = end[known : -_LAST.size] if known else os.pread(descriptor, count * _NOTE.size, stop)
    notes = _notes(body, stop, checksum)
    return Layout(notes, stop, (status.st_dev, status.st_ino), version, end[:known]) if notes else None


@lru_cache(maxsize=64)  # those of files with arrays of one size are alike
def _notes(body: bytes, stop: int, checksum: int) -> tuple[Note, ...]:
    """The notes in `body`; none if it is torn."""
    return tuple(Note(*fields) for fields in _NOTE.iter_unpack(body)) if _checksum(body, stop) == checksum else ()


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
        self.gathered: list[memoryview] = []

    def dump(self, value: object) -> None:
        """Write the value and the note. The memo dies with the pickler, and with it its hold on parts of the value."""
        pickle.Pickler(self, 5, buffer_callback=self.announce).dump(value)
        if self.notes:
            self.put(_trailer(self.notes, self.at))
        self.flush()

    def announce(self, buffer: pickle.PickleBuffer) -> bool:
        """Called by the pickler for a buffer that it is about to write; true means "in line"."""
        view = buffer.raw()
        self.announced = view if view.nbytes >= LEAST and _is_array(view.obj) else None
        return True

    def write(self, data: bytes | memoryview | pickle.PickleBuffer) -> None:
        """Called by the pickler with opcodes, or with one large payload."""
        if isinstance(data, pickle.PickleBuffer):
            return self.put_buffer(data.raw())
        if isinstance(data, memoryview):  # of a text that the pickler encoded: valid during this call only
            self.put(data)
            return self.flush()
        if not self.at and isinstance(self.file, io.RawIOBase):
            self.put(MARK)
            data = memoryview(data)[2:]  # not copied, as it may be a whole frame
        elif not self.at:
            data = MARK + data[2:]  # a user's file is given bytes, as pickle promises
        view, self.announced = self.announced, None
        header = b"" if view is None else _header(view.nbytes, view.readonly)
        if view is not None and data[-len(header) :] == header:
            self.put_aligned(data[: -len(header)], view)
        else:
            self.put(data)

    def put_aligned(self, head: bytes | memoryview, view: memoryview) -> None:
        """Write the opcodes `head`, then padding and the header of the array that `view` shows."""
        note = Note(self.at + len(head), view.nbytes, view.readonly)
        self.notes.append(note)
        self.put(head)
        self.put(note.gap())

    def put_buffer(self, view: memoryview) -> None:
        """Write the bytes of a large buffer."""
        self.put(view)

    def put(self, data: bytes | memoryview) -> None:
        """Write bytes; to a raw file a few pieces at a time, in one system call."""
        self.at += memoryview(data).nbytes
        if not isinstance(self.file, io.RawIOBase):
            self.file.write(data)
            return
        self.gathered.append(memoryview(data))
        if len(self.gathered) >= _MOST_GATHERED:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered. A raw file may take less than it is given."""
        pieces = self.gathered
        while pieces:
            taken = _write_some(self.file, pieces)
            while pieces and taken >= pieces[0].nbytes:
                taken -= pieces.pop(0).nbytes
            if taken:
                pieces[0] = pieces[0][taken:]


def _write_some(file: File, pieces: list[memoryview]) -> int:
    """Write as much as a raw file takes at once; the number of bytes."""
    if type(file) is io.FileIO and hasattr(os, "writev"):
        return os.writev(file.fileno(), pieces)
    taken: int | None = file.write(pieces[0])
    if taken is None:
        raise BlockingIOError("the file takes no more bytes now")
    return taken


def load_aligned(file: File, layout: Layout, under: maps.Map | None) -> Any:
    """The value in a file of this layout, its arrays parts of the map `under`, or read into memory of their own."""
    descriptor = file.fileno()
    gaps = [note.gap() for note in layout.notes]
    arrays = _arrays(descriptor, layout.notes, gaps, under)
    size = sum([note.size for note in layout.notes])
    opcodes = layout.opcodes
    if opcodes is None and layout.stop - size <= _READ_AT_ONCE:
        opcodes = _opcodes(descriptor, layout, gaps)
    if opcodes is None:
        value = pickle.Unpickler(_Reader(file, layout.notes), buffers=arrays).load()
    else:
        value = plain.loads(opcodes, arrays, size) if len(gaps) == 1 else pickle.loads(opcodes, buffers=arrays)
    if next(arrays, None) is not None:
        raise _misfit()
    if opcodes is not None and layout.opcodes is None:
        layout.remember(opcodes)
    return value


def _misfit() -> pickle.UnpicklingError:
    return pickle.UnpicklingError("the note at the end of the file does not fit the pickle before it")


def _opcodes(descriptor: int, layout: Layout, gaps: list[bytes]) -> bytes:
    """The whole pickle, with NEXT_BUFFER for each array, its padding and its header."""
    pieces, at = [], 0
    for note, gap in zip(layout.notes, gaps):
        begin = note.start + len(gap)
        piece = layout.between(descriptor, at, begin)
        if not piece.endswith(gap):
            raise _misfit()
        pieces.append(piece[: -len(gap)])
        at = begin + note.size
    pieces.append(layout.between(descriptor, at, layout.stop))
    return _NEXT_BUFFER.join(pieces)


class _Reader:
    """The same pickle as a file, for a value that is large without its arrays too.

    The unpickler asks for no more than it needs, so it is never past the place where an array's padding begins.
    """

    def __init__(self, file: File, notes: Sequence[Note]) -> None:
        self.file = file
        self.at = 0
        self.waiting = list(reversed(notes))

    def read(self, size: int) -> bytes:
        """Opcodes: one alone, or a frame of them."""
        if self.waiting and self.at == self.waiting[-1].start:
            return self.pass_array(self.waiting.pop())
        data = self.file.read(size)
        self.at += len(data)
        return data

    def readline(self) -> bytes:
        """The argument of an opcode of the oldest protocols."""
        line = self.file.readline()
        self.at += len(line)
        return line

    def readinto(self, view: memoryview) -> int:
        """A large bytes object, straight into its place."""
        self.at += view.nbytes
        return view.nbytes if fill(self.file, view) else 0

    def pass_array(self, note: Note) -> bytes:
        """Put one opcode in the place of an array, its padding and its header."""
        gap = note.gap()
        if self.file.read(len(gap)) != gap:
            raise _misfit()
        self.at = self.file.seek(note.size, os.SEEK_CUR)
        return _NEXT_BUFFER


def fill(file: File, view: memoryview) -> bool:
    """Read into the whole of `view`; false if the file ends before."""
    readinto: Callable[[memoryview], int] = file.readinto  # type: ignore[attr-defined]
    while view.nbytes:
        got = readinto(view)
        if not got:
            return False
        view = view[got:]
    return True


def _arrays(descriptor: int, notes: Sequence[Note], gaps: list[bytes], under: maps.Map | None) -> Iterator[memoryview]:
    """The arrays' bytes, each when the unpickler has come to it: by then it has imported numpy."""
    for note, gap in zip(notes, gaps):
        begin = note.start + len(gap)
        memory = _copied(descriptor, begin, note.size) if under is None else under.part(begin, note.size)
        yield _sealed(memory) if note.readonly else memoryview(memory)


_thread = threading.local()


def lend_a_hand() -> None:
    """Called in a thread that loads for another one, and then ends.

    The C library keeps what was freed for the thread that asked for it: arrays that such a thread made would, once they
    are gone, stay a part of the process for nobody. So their memory is asked of the system, and goes back to it.
    """
    _thread.lends_a_hand = True


def _memory(size: int) -> Any:
    """Memory to be filled. numpy gives it untouched; a `bytearray` is filled with 0 first."""
    if getattr(_thread, "lends_a_hand", False):
        memory = mmap.mmap(-1, size, access=mmap.ACCESS_COPY)  # private: a fork's child has its own
        if size >= _HUGE:  # as numpy asks for its own: such pages are found by the megabyte
            with suppress(AttributeError, OSError):  # not on every system
                memory.madvise(mmap.MADV_HUGEPAGE)
        return memory
    numpy: Any = sys.modules.get("numpy")
    return bytearray(size) if numpy is None else numpy.empty(size, "u1")


def _copied(descriptor: int, at: int, size: int) -> Any:
    """Bytes of the file in memory of their own."""
    memory = _memory(size)
    rest = memoryview(memory)
    while rest.nbytes:
        got = os.preadv(descriptor, [rest], at)
        if not got:
            raise EOFError("the file ends within an array")
        rest, at = rest[got:], at + got
    return memory


def _sealed(memory: Any) -> memoryview:
    """A view of memory that nobody can write from now on, as far as the memory's own type can say so."""
    if hasattr(memory, "flags"):
        memory.flags.writeable = False
    return memoryview(memory).toreadonly()
