"""The default `dump` and `load`, and what tells whether a value still is what its file holds.

The format is in `aligned`, the memory maps are in `maps`. `same` needs no second copy of an array: it pickles the
value into a file-like object that compares with the file and stops at the first difference; of an array that is a map
of this very file it looks only at the pages that were written.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from . import maps
from .aligned import LEAST, MARK, File, Note, Writer, fill, load_aligned, read_layout
from .changeable import can_change

__all__ = ["MARK", "can_change", "dump", "load", "marked", "same"]

_BLOCK = 1024 * 1024  # bytes read at a time to be compared
_LONGEST_STREAM = 32 * 1024 * 1024  # bytes of opcodes held in memory to compare two values


def marked(head: bytes) -> bool:
    """Whether a file that begins with `head` (at least `len(MARK)` bytes of it) was written by `dump`.

    >>> marked(MARK + b"N."), marked(pickle.dumps(None))
    (True, False)
    """
    return head.startswith(MARK)


def dump(value: object, file: File) -> None:
    """Write `value` to `file`, a binary file at its start, as a pickle whose arrays can be mapped.

    `file` needs nothing but `write`. Errors are those of `pickle.dump` and of the file: `TypeError` or
    `pickle.PicklingError` for what cannot be pickled, `OSError` for a full disk. Costs one write of each array's bytes
    and no copy of them, as long as the array is contiguous; of others, and of instances of subclasses, numpy makes its
    own copy, one array at a time.

    >>> file = io.BytesIO()
    >>> dump({"x": 1}, file)
    >>> pickle.loads(file.getvalue())
    {'x': 1}
    """
    Writer(file).dump(value)


def load(file: File, mmap_mode: str | None = None, *, status: os.stat_result | None = None) -> Any:
    """The value in `file`, a binary file at its start that holds any pickle.

    Arrays come back in fresh memory, filled straight from the file, and can be written unless they could not before.
    With `mmap_mode` `'c'` or `'r'` the arrays of a file that `dump` wrote are views of a map of the file, copy-on-write
    or read-only, which costs microseconds whatever their size; nothing written to them reaches the file. Arrays under
    64 KiB, those of a `file` that is not an ordinary one of the system opened for reading, and all when no further map
    can be had (see `chest.maps.map_file`), are read into memory all the same. Who has asked the system about the file
    anyway passes on its answer as `status`.

    A file that is torn or holds something else raises `EOFError`, `pickle.UnpicklingError` or whatever error its bytes
    lead the unpickler to; `ValueError` says that `mmap_mode` is none of the three.

    >>> file = io.BytesIO()
    >>> dump([1, "two"], file)
    >>> load(io.BytesIO(file.getvalue()))
    [1, 'two']
    """
    if mmap_mode not in (None, "c", "r"):
        raise ValueError(f"mmap_mode must be None, 'c' or 'r', not {mmap_mode!r}")
    layout = read_layout(file, status)
    if layout is not None:
        under = maps.map_file(file.fileno(), mmap_mode, layout.identity) if mmap_mode else None
        value = load_aligned(file, layout, under)
        if under is not None:
            under.look, under.begin = _look(value), layout.notes[0].begin()
        return value
    with _buffered(file) as buffered:
        return pickle.load(buffered)


@contextmanager
def _buffered(file: File) -> Iterator[File]:
    """The file, with a buffer if it has none: the opcodes of a pickle are read one by one."""
    if type(file) is not io.FileIO:
        yield file
        return
    buffered = io.BufferedReader(file)
    try:
        yield buffered
    finally:
        buffered.detach()


def same(value: object, file: File) -> bool:
    """Whether `load` of `file` (a binary file at its start, with `seek` and `readinto`) gives what `value` is now.

    True means that writing the value again would change nothing that a later load could show. False may also mean that
    nobody can tell, as for a value whose pickle is another each time. Errors are those of `pickle.dump` for a value
    that can no longer be pickled. Costs the comparison of each array with the file, up to the first difference; next to
    nothing for arrays that are maps of this file and were not written, on Linux.

    >>> file = io.BytesIO()
    >>> dump({"x": [1]}, file)
    >>> same({"x": [1]}, io.BytesIO(file.getvalue())), same({"x": [2]}, io.BytesIO(file.getvalue()))
    (True, False)
    """
    if _is_unwritten_map(value, file) or _is_short_and_same(value, file):
        return True
    with _buffered(file) as buffered:
        comparer = _Comparer(buffered)
        try:
            comparer.dump(value)
            return True
        except _Differs:
            return not comparer.array_differs and _same_as_loaded(value, buffered)


def _look(value: Any) -> maps.Look | None:
    """All of a plain array but its bytes. None for other values, and for fields, whose names can be set in place."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or type(value) is not numpy.ndarray or value.dtype.names:
        return None
    return value.dtype, (value.shape, value.strides, value.flags.writeable)


def _is_unwritten_map(value: Any, file: File) -> bool:
    """Whether `value` is nothing but the array mapped from this file, as it was loaded: the short way to "the same"."""
    look = _look(value)
    place = maps.place(value) if look else None
    before = place and place.under.look
    if not look or not place or not before or type(file) not in (io.FileIO, io.BufferedReader):
        return False
    as_loaded = look[0] is before[0] and look[1] == before[1] and place.begin == place.under.begin
    return as_loaded and place.under.identity == maps.identity(file.fileno()) and not maps.touched(place)


def _is_short_and_same(value: Any, file: File) -> bool:
    """Whether `value` is an array too short to be aligned, and the file what is written of it: told without detours."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or type(value) is not numpy.ndarray or type(file) is not io.FileIO:
        return False
    if value.nbytes >= LEAST or value.dtype.hasobject:
        return False
    content = file.read(2 * LEAST)
    file.seek(0)
    return content[: len(MARK)] == MARK and content[len(MARK) :] == pickle.dumps(value, 5)[2:]


class _Differs(Exception):
    """Ends a comparison as soon as its outcome is known."""


class _Comparer(Writer):
    """Takes what `dump` would write, and compares it with what the file holds."""

    def __init__(self, file: File) -> None:
        super().__init__(file)
        self.layout = read_layout(file)
        self.coming = iter(self.layout.notes if self.layout else ())
        self.compared_in_place = False
        self.array_differs = False

    def put_aligned(self, head: bytes | memoryview, view: memoryview) -> None:
        if self.layout is None:
            return super().put_aligned(head, view)
        self.put(head)
        note = next(self.coming, None)
        if note is None or (note.start, note.size) != (self.at, view.nbytes):
            raise _Differs
        begin = note.begin()
        self.array_differs = not all(self.holds(view[a:b], begin + a) for a, b in self.suspected(note, begin, view))
        if self.array_differs:
            raise _Differs
        self.notes.append(note)
        self.at = self.file.seek(begin + note.size)
        self.compared_in_place = True

    def suspected(self, note: Note, begin: int, view: memoryview) -> list[tuple[int, int]]:
        """The parts of an array that may differ from the noted one: what was written of a map of it, else all."""
        place = maps.place(view)
        in_file = self.layout and (self.layout.identity, begin)
        of_this = place if place and place.of_file() == in_file else None
        if view.readonly != (note.readonly or bool(of_this and not of_this.under.writable)):
            raise _Differs
        return maps.touched(of_this) if of_this else [(0, view.nbytes)]

    def holds(self, view: memoryview, begin: int) -> bool:
        """Whether the file holds these bytes at this place."""
        try:
            return maps.equals_file(view, self.file.fileno(), begin)
        except OSError:
            self.file.seek(begin)
            return self.continues_with(view)

    def put_buffer(self, view: memoryview) -> None:
        self.at += 0 if self.compared_in_place else view.nbytes
        self.array_differs = not self.compared_in_place and not self.continues_with(view)
        self.compared_in_place = False
        if self.array_differs:
            raise _Differs

    def put(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        self.at += view.nbytes
        if not self.continues_with(view):
            raise _Differs

    def continues_with(self, view: memoryview) -> bool:
        """Whether these bytes come next in the file."""
        block = bytearray(min(view.nbytes, _BLOCK))
        for start in range(0, view.nbytes, _BLOCK):
            expected = view[start : start + _BLOCK]
            del block[expected.nbytes :]
            # A bytearray on the left compares with any buffer as memcmp does; two memoryviews compare item by item.
            if not fill(self.file, memoryview(block)) or block != expected:
                return False
        return True


class _Stream:
    """Collects the opcodes of a value, without its arrays, as long as they are not too many to hold twice."""

    def __init__(self) -> None:
        self.opcodes = bytearray()

    def write(self, data: bytes) -> None:
        """Called by the pickler."""
        self.opcodes += data
        if len(self.opcodes) > _LONGEST_STREAM:
            raise _Differs


def _parts(value: object) -> tuple[bytearray, list[memoryview]]:
    """The pickle of a value and, apart from it and not copied, the memory of its arrays."""
    stream = _Stream()
    buffers: list[memoryview] = []

    def keep(buffer: pickle.PickleBuffer) -> None:
        buffers.append(buffer.raw())

    pickle.Pickler(stream, 5, buffer_callback=keep).dump(value)
    return stream.opcodes, buffers


def _same_as_loaded(value: object, file: File) -> bool:
    """Whether a value pickles as another does that is loaded from the file now.

    What was loaded need not pickle as it did before: attribute names are interned, an array that numpy had to copy is
    contiguous now, and a file may come from another version. Two values loaded from one file do pickle alike.
    """
    try:
        opcodes, buffers = _parts(value)
    except _Differs:
        return False
    read_only = any(place and not place.under.writable for place in map(maps.place, buffers))
    file.seek(0)
    try:
        other_opcodes, other_buffers = _parts(load(file, "r" if read_only else "c"))
    except Exception:  # Whatever cannot be loaded is not what the value is.
        return False
    return opcodes == other_opcodes and all(map(_equal, buffers, other_buffers))


def _equal(one: memoryview, other: memoryview) -> bool:
    """Whether two pieces of memory are equal. Of two maps of one place in a file only written pages are compared."""
    if one.nbytes != other.nbytes:
        return False
    place, other_place = maps.place(one), maps.place(other)
    alike = place and other_place and place.of_file() == other_place.of_file()
    parts = maps.touched(place) if place and alike else [(0, one.nbytes)]
    return all(maps.equal(one[start:stop], other[start:stop]) for start, stop in parts)
