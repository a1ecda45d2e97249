"""A value to bytes and back: the user's ``dump``, ``load``, ``open`` and ``mode``, or chest's own."""
from __future__ import annotations

import builtins
import errno
import io
import os
import pickle
import stat
import sys
from contextlib import suppress
from functools import partial
from typing import IO, TYPE_CHECKING, Any, Callable, cast
from zlib import crc32

from chest.errors import raise_of_a_value

from . import aligned, arrays, compare, frames
from .aligned import LEAST, Encoded, Map, Overflow, stamp_of, without_mark
from .compare import Stamp

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["Codec", "Stamp", "dump", "dumping", "load"]

_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # nor does opening a named pipe hang
_LONGEST = 32 * 1024 * 1024  # bytes of opcodes of a value that is loaded again to compare it


def dumping() -> bool:
    """Is this thread inside of a dump of a value?  A chest in that value is then pickled as a reference.

    Told by the stack: a flag would stay set where Ctrl-C comes between two lines.  Cost: O(frames).
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code in _DUMPS:
            return True
        frame = frame.f_back
    return False


def dump(value: object, file: IO[bytes]) -> None:
    """Write ``value`` to ``file``, a binary file at its start, as a pickle whose arrays can be mapped.

    ``file`` needs nothing but ``write``.  Errors are those of `pickle.dump` and of the file.
    """

    def write(pieces: list[aligned.Buffer]) -> None:
        for piece in pieces:
            file.write(piece)

    encoded = Codec().encode(value, write)
    write([*encoded.pieces, encoded.note()])


def load(file: IO[bytes]) -> Any:
    """The value in ``file``, a binary file at its start that `dump` or any `pickle.dump` wrote.

    `DamagedError` for one that `dump` wrote and that is not as it was.  Arrays come back in memory of their own.
    """
    return Codec().decode_file(file.read())[0]


_DUMP, _LOAD = dump, load


class Codec:
    """How values become bytes and come back.  Its settings are never changed; `ValueError` for those there are not.

    ``native`` says that they are chest's own, so that arrays can be mapped and the index can be appended to; ``local``
    that files are opened with the built-in ``open``.  ``trusted=False`` is for chest's own load alone.
    """

    def __init__(
        self,
        dump: Callable[[Any, Any], object] = dump,
        load: Callable[[Any], Any] = load,
        open: Callable[..., Any] = builtins.open,
        mode: str = "b",
        mmap_mode: str | None = "auto",
        trusted: bool = True,
        durable: bool = False,
    ) -> None:
        if mode not in ("b", "t"):
            raise ValueError(f"mode is 'b' for binary or 't' for text files, not {mode!r}")
        if mmap_mode not in ("auto", "c", "r", None):
            raise ValueError(f"mmap_mode is 'auto', 'c' (copy on write), 'r' (read only) or None, not {mmap_mode!r}")
        self.dump, self.load, self.open, self.mode = dump, load, open, mode
        self.mmap_mode, self.trusted, self.durable = mmap_mode, trusted, durable
        self.local = open is builtins.open
        self._own_dump, self._own_load = (dump is _DUMP and mode == "b"), (load is _LOAD and mode == "b")
        self.native = self.local and self._own_dump and self._own_load
        # The value of a record, whose checksum was verified before.  What loading raises comes out as itself.
        self.decode: Callable[[bytes], Any] = arrays.loads if self._own_load and trusted else self._decode

    def same_format(self, other: Codec) -> bool:
        """Do bytes of ``other`` mean the same here?"""
        return (self.dump, self.load, self.open, self.mode) == (other.dump, other.load, other.open, other.mode)

    def encode(self, value: object, overflow: Overflow = None, compared: bool = False) -> Encoded:
        """What a record or, with the note behind it, a file of ``value`` holds.  Raises whatever dumping raises.

        ``overflow`` is called with the pieces whenever more than 8 MB of opcodes were gathered, and gathering begins
        anew.  Arrays of a ``durable`` chest have checksums, and are copied; what is only ``compared`` has none at all.
        """
        if not self._own_dump:
            raw = _Kept()
            file = self._writer(raw)
            self.dump(value, file)
            file.close()
            return Encoded.of(raw.content)
        encoded = Encoded(overflow, self.durable and not compared, not compared)
        if type(value).__name__ != "ndarray" or not arrays.dump_plain(value, encoded):
            encoded.dump(value, frames.Pickler if frames.is_of_pandas(value) else pickle.Pickler)
        return encoded

    def dump_short(self, value: object) -> bytes:
        """The pickle of ``value`` for a record; no bytes if it has an array of 64 KiB, or the dump is the user's."""
        if not self._own_dump:
            return b""
        try:
            if frames.is_of_pandas(value):
                file = io.BytesIO()
                frames.Pickler(file, 5, buffer_callback=_in_line).dump(value)
                return file.getvalue()
            return pickle.dumps(value, 5, buffer_callback=_in_line)
        except _Large:
            return b""
        except OSError as error:
            raise_of_a_value(error)
            raise

    def _writer(self, raw: Any) -> io.TextIOWrapper | io.BufferedWriter:
        file = _EncodingFile(raw)
        return io.TextIOWrapper(file, encoding="utf-8", newline="") if self.mode == "t" else file

    def _decode(self, data: bytes) -> Any:
        if self._own_load:
            return arrays.loads(data, self.trusted)
        return self.load(io.StringIO(data.decode("utf-8"), "") if self.mode == "t" else io.BytesIO(data))

    def decode_file(self, data: bytes, owner: int = 0) -> tuple[Any, Stamp]:
        """The value of a loose file that was read whole, and its stamp.  `DamagedError` if it is not as it was, or that
        of a key with another checksum than ``owner``."""
        if not self._own_load:
            return self.decode(data), stamp_of(data)
        stop = max(len(data) - aligned.SHORT, 0)
        content = data[:stop]
        if not data.endswith(aligned.make_note(stop, crc32(content), owner)):  # else it is good, and without arrays
            layout = aligned.read_layout(data, len(data), owner)
            if layout is not None:
                layout.verify(data)
            content = data if layout is None else data[: layout.stop]
        return arrays.loads(content, self.trusted), stamp_of(content)

    def load_file(self, descriptor: int, status: os.stat_result, owner: int = 0) -> tuple[Any, Stamp]:
        """The value in an open loose file of the system, and its stamp; only for a ``native`` codec.

        `DamagedError` for bytes that are proven not to be what was written; what else loading raises comes out.
        """
        if status.st_size < LEAST:
            return self.decode_file(aligned.pread(descriptor, LEAST, 0), owner)
        return arrays.load(descriptor, status, self.mmap_mode, self.trusted, owner)

    def dump_to(self, value: object, path: str, made: Callable[[int], object] = int) -> None:
        """Make a new file of ``value`` with the user's settings; nothing is left of it if that fails.

        ``made`` is called with its inode as long as it is empty.  `FileExistsError` if anything stands at ``path``.
        """
        created: list[io.FileIO] = []
        try:
            created.extend(map(io.FileIO, (path,), ("x",)))  # one call of C: Ctrl-C comes before or after it
            made(os.fstat(created[0].fileno()).st_ino)
            if self.local:
                file: Any = self._writer(created[0])
            else:
                created[0].close()
                file = self.open(path, mode="w" + self.mode)
                if self.mode == "b" and isinstance(file, io.IOBase):
                    file = _EncodingFile(cast(Any, file))
            with file as opened:
                self.dump(value, opened)
        except BaseException:
            if created:
                with suppress(OSError):
                    created[0].close()
                with suppress(OSError):
                    os.unlink(path)
            raise

    def load_from(self, path: str) -> Any:
        """The value in a file that `dump_to` made."""
        with self._reader(path) as file:
            return self.decode_file(file.read())[0] if self._own_load else self.load(file)

    def _reader(self, path: str) -> Any:
        if not self.local:
            return self.open(path, mode="r" + self.mode)
        encoding, newline = ("utf-8", "") if self.mode == "t" else (None, None)  # as `_writer` has it
        return builtins.open(path, "r" + self.mode, encoding=encoding, newline=newline, opener=_open_regular)

    def unchanged(self, value: object, stamp: Stamp) -> bool | None:
        """Is ``value`` as it was when it was given this stamp?  `None`: it takes its bytes to tell.

        False for a value that serialises to other bytes: `same` may find that these mean the same.
        """
        if type(stamp) is int and self._own_dump:
            return hash(self.dump_short(value)) == stamp
        if type(stamp) is Map:
            return compare.map_unchanged(value, stamp)
        return None if stamp is None else self.encode(value).whole_stamp() == stamp

    def same(self, value: object, data: bytes) -> bool:
        """Is ``value`` as the bytes of its record, or of its file read whole, have it?

        False also if nobody can tell, as for a value whose pickle is another each time.
        """
        encoded = self.encode(value)
        return (data in (without_mark(encoded.pieces), b"".join((*encoded.pieces, encoded.note())))
                or compare.same_as_loaded(value, lambda: self.decode(data), self.encode))

    def same_file(self, value: object, descriptor: int, status: os.stat_result) -> bool:
        """The same for an open loose file of a ``native`` codec.  False for what differs and is large.

        Of arrays that are maps of this file only the pages that were written are compared with it.
        """
        layout = aligned.read_layout(descriptor, status.st_size)
        stop, found = (status.st_size, []) if layout is None else (layout.stop, layout.arrays)
        encode = partial(self.encode, compared=True)
        return compare.same_as_file(value, descriptor, status, stop, encode) or (
            stop - sum([array[1] for array in found]) <= _LONGEST
            and compare.same_as_loaded(value, lambda: self.load_file(descriptor, status)[0], encode))

    def same_from(self, value: object, path: str) -> bool:
        """The same for a file that `dump_to` made."""
        with self._reader(path) as file:
            content = file.read()
        return self.same(value, content.encode("utf-8") if isinstance(content, str) else content)


class _Large(Exception):
    """A value has an array that is not to be copied."""


def _in_line(buffer: pickle.PickleBuffer) -> bool:
    if buffer.raw().nbytes >= LEAST:
        raise _Large
    return True


def _open_regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | _NO_LINK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a regular file", path)


class _Kept(io.BytesIO):
    """A file in memory whose ``content`` is there when it is closed, as the user's dump may do."""

    def close(self) -> None:  # may be called again
        if not self.closed:
            self.content = self.getvalue()
        super().close()


class _EncodingFile(io.BufferedWriter):
    """A binary file that takes text as well, so that ``dump=json.dump`` works without ``mode='t'``."""

    def fileno(self) -> int:
        """Not that of the file below a compressor: `numpy.save` would write there, and pass the compressor by."""
        if not isinstance(self.raw, (io.FileIO, io.BufferedWriter)):
            raise io.UnsupportedOperation("a file that is not the system's has no fileno")
        return super().fileno()

    def write(self, data: Any) -> int:
        return super().write(data.encode("utf-8") if isinstance(data, str) else data)


_DUMPS = frozenset(method.__code__ for method in (
    Codec.encode, Codec.dump_short, Codec.dump_to, Codec.unchanged, compare.same_as_loaded))
