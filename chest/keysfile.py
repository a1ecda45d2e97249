"""The file ``.keys``: reading it, appending to it, replacing it.

It starts with a list of ``(key, name)`` pairs, as ``dump`` writes it.  With the default ``dump`` that is a pickle, and
behind it may stand records, each a commit: what changed, with its length and checksum.  A record that is torn, because
its writer died, was never committed: readers stop before it, and the next commit replaces the file.
"""
from __future__ import annotations

import io
import os
import pickle
import re
import struct
import zlib
from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple, Optional

from chest import system
from chest._version import __version__
from chest.codec import Codec
from chest.errors import ChestError, LoadError
from chest.locks import gate
from chest.log import log
from chest.names import Name, inside

__all__ = ["KEYS", "KeysFile", "Pairs", "header"]

Pairs = list[tuple[Any, Optional[Name]]]  # a name of None says that the key was deleted

KEYS = ".keys"
FORMAT = 1
SPARE = 1 << 15  # bytes of records that a list may have behind it however short it is: they are read in 3 ms
_MARK = b"\x80\x05C"  # PROTO 5, SHORT_BINBYTES: a pickle that begins by pushing, and popping, what we say of it
_RECORD = struct.Struct("<4sQI")  # magic, length and CRC-32 of the pickle that follows
_MAGIC = b"+chs"
_PLAIN = re.compile(r"[A-Za-z0-9_~]+\Z").match  # what most names are: certainly good ones


class Signature(NamedTuple):
    """What one ``stat`` tells of a version of the file.  While the file is held open its inode cannot come back."""

    device: int
    inode: int
    size: int
    time: int


def header() -> bytes:
    """The opcodes at the start of the list that say who wrote it; they leave nothing on the pickle's stack."""
    text = f"chest-keys {FORMAT} {__version__}".encode()
    return _MARK + bytes([len(text)]) + text + pickle.POP


def written_by(head: bytes) -> tuple[int, str] | None:
    """The format and version of chest that wrote a list beginning with ``head``; `None` for anyone else's."""
    text = head[4 : 4 + head[3]] if len(head) > 3 and head.startswith(_MARK) else b""
    words = text.decode("ascii", "replace").split()
    if len(words) == 3 and words[0] == "chest-keys" and words[1].isdigit():
        return int(words[1]), words[2]
    return None


def signature(found: os.stat_result) -> Signature:
    fields = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
    return tuple.__new__(Signature, fields)  # faster than a call of the class


def record(changes: Pairs) -> bytes:
    """One commit's changes as they are appended."""
    body = pickle.dumps(changes, 5)
    return _RECORD.pack(_MAGIC, len(body), zlib.crc32(body)) + body


def records(data: bytes) -> tuple[Pairs, int]:
    """The changes in ``data``, and where its last whole record ends."""
    changes: Pairs = []
    start = 0
    while len(data) >= start + _RECORD.size:
        magic, length, checksum = _RECORD.unpack_from(data, start)
        body = data[start + _RECORD.size : start + _RECORD.size + length]
        if magic != _MAGIC or len(body) < length or zlib.crc32(body) != checksum:
            break
        changes += pickle.loads(body)
        start += _RECORD.size + length
    return changes, start


class KeysFile:
    """``.keys`` in one directory, as one handle last read or wrote it.

    Cost: `current` is one ``stat``; `read` is O(what was appended since), or O(keys) after a replacement; `append` is
    O(changes); `replace` is O(keys).
    """

    _fd: int | None = None  # for `__del__`, should `__init__` not come that far
    _writable = False  # may the file that is held open be appended to?

    def __init__(self, directory: str, codec: Codec, durable: bool):
        self.path = os.path.join(directory, KEYS)
        self.gate = gate(directory)
        self._directory = directory
        self._codec = codec
        self._durable = durable
        self.signature: Signature | None = None
        self._told: tuple[Any, ...] = ()  # of the file held open, when it was last found to be the newest
        self._list_end = self._end = 0  # bytes of the list, and of the list with its whole records
        self._compact: bool | None = None  # does this handle's first commit have to make the file plain?

    def current(self) -> Signature | None:
        """The signature of the file as it is now.  One ``stat``; another than ``signature``: somebody committed."""
        try:
            return signature(os.stat(self.path))
        except FileNotFoundError:
            return None

    def newest(self) -> bool:
        """Is what was read last the newest commit?  One ``fstat``.

        That tells of a replacement too, which takes the file's name away.  It does not tell that all of the directory
        went elsewhere, so that it will not do before a file is opened by its path.
        """
        fd = self._fd
        try:
            found = os.fstat(-1 if fd is None else fd)
        except OSError:  # also where another thread closes it just now
            return self.current() == self.signature
        told = (fd, found.st_nlink, found.st_size, found.st_ctime_ns)
        if told != self._told:
            if self.current() != self.signature:
                return False
            self._told = told
        return True

    def read(self) -> tuple[bool, Pairs]:
        """``(True, all pairs)``, or ``(False, changes)`` where records were appended to what was read before."""
        more = self._read_more()
        if more is not None:
            return False, more
        try:
            fd = self._opened()
        except FileNotFoundError:
            self.close()
            return True, []
        try:
            found = signature(os.fstat(fd))
            grown = self._grown(found)
            start = self._end if grown else 0
            with open(fd, "rb", closefd=False) as file:
                file.seek(start)
                data = file.read(found.size - start)
            changes = self._more(data) if grown else self._whole(data)
        except BaseException:
            os.close(fd)
            raise
        self._hold(fd, found)
        return not grown, changes

    def _opened(self) -> int:
        """A descriptor of the file: to be appended to as well, where we may."""
        self._writable = True
        try:
            return self._open(os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:
            raise
        except OSError:  # it, or all of its disk, is read-only
            self._writable = False
            return self._open(os.O_RDONLY)

    def _open(self, flags: int) -> int:
        return os.open(self.path, flags | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))

    def _grown(self, found: Signature) -> bool:
        """Is this the file that was read before, with perhaps more behind it?"""
        before = self.signature
        return before is not None and before[:2] == found[:2] and self._list_end > 0 and found.size >= self._end

    def _read_more(self) -> Pairs | None:
        """What was appended to the file that we hold open; `None` if that is no longer the file of this name."""
        found = self.current()
        if self._fd is None or found is None or not self._grown(found):
            return None
        changes = self._more(os.pread(self._fd, found.size - self._end, self._end))
        self.signature = found
        return changes

    def _hold(self, fd: int, found: Signature) -> None:
        """Keep the version that was read open, so that its inode, and so its signature, is not used again."""
        self._told = ()
        before, self._fd, self.signature = self._fd, fd, found  # at once: Ctrl-C leaves no number of a closed file
        if before is not None:
            os.close(before)
        if not system.HOLDS_OPEN:
            self._fd = None
            os.close(fd)

    def _whole(self, data: bytes) -> Pairs:
        writer = written_by(data[:260])
        if writer is None:
            self._list_end = self._end = 0
            return self._checked(self._foreign())
        if writer[0] > FORMAT:
            raise ChestError(f"{self.path} was written by chest {writer[1]}, which is newer than this one "
                             f"({__version__}); upgrade chest to open it")
        stream = io.BytesIO(data)
        try:
            names = dict(self._checked(pickle.load(stream)))
        except ChestError:
            raise
        except Exception as error:
            raise self._damaged(error) from error
        self._list_end = self._end = stream.tell()
        apply(names, self._more(data[self._end :]))
        if self._compact is None:  # what stands behind the list was left by a process that died, for all we know
            self._compact = len(data) > self._list_end
        return list(names.items())

    def _more(self, data: bytes) -> Pairs:
        try:
            changes, end = records(data)
        except Exception as error:
            raise self._damaged(error) from error
        self._end += end
        if end < len(data):
            log("debug", "%s ends in a torn record, which was never committed", self.path)
        return self._checked(changes)

    def _foreign(self) -> Any:
        """The list as the user's ``load`` gives it, or else as a pickle: 0.2.3's, or of a chest with other settings."""
        try:
            with self._codec.reader(self.path) as file:
                return self._codec.load(file)
        except Exception as error:
            for opener in (self._codec.open, open):
                try:
                    with opener(self.path, mode="rb") as file:
                        return pickle.load(file)
                except Exception:
                    continue
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> LoadError:
        return LoadError(
            f"the index {self.path} cannot be read ({type(error).__name__}: {error}); nothing was changed. Open the "
            f"chest with the dump, load, open and mode that it was written with, or put the file back from a copy")

    def _checked(self, pairs: Any) -> Pairs:
        """``pairs`` with lists standing as keys read as tuples; an error for what cannot be an index of ours."""
        try:
            pairs = list(pairs)
            keys = [hashable(key) if isinstance(key, (list, tuple)) else key for key, _ in pairs]
            names = [name if name is None or type(name) in (str, int) else str(name) for _, name in pairs]
            dict.fromkeys(keys)  # can they all be keys?
        except (TypeError, ValueError) as error:
            raise self._damaged(error) from error
        if os.sep != "/":
            names = [name.replace(os.sep, "/") if isinstance(name, str) else name for name in names]
        for key, name in zip(keys, names):
            if not (name is None or (0 < name < 1 << 63 if isinstance(name, int) else _PLAIN(name) or inside(name))):
                raise ChestError(f"the index {self.path} gives the key {key!r} the file {name!r}, which is outside of "
                                 f"the chest; nothing was read or changed. Do not trust this chest")
        return list(zip(keys, names))

    def append(self, changes: Pairs) -> bool:
        """Commit ``changes`` behind the list; `False`, and nothing written, where only a replacement will do.

        Called within the gate, with everything read.
        """
        found = self.signature
        if self._compact or not (self._codec.native and self._list_end and found and found.size == self._end):
            return False
        data = record(changes)
        if self._end + len(data) > 2 * self._list_end + SPARE:
            return False
        fd = self._fd if self._fd is not None and self._writable else self._open(os.O_WRONLY | os.O_APPEND)
        try:
            if os.write(fd, data) != len(data):
                return False  # a full disk: what was written is a torn record, and the replacement tells of the error
            if self._durable:
                os.fsync(fd)
            self.signature = signature(os.fstat(fd))
        finally:
            if fd != self._fd:
                os.close(fd)
        self._end += len(data)
        return True

    def replace(self, pairs: Pairs) -> None:
        """Commit ``pairs`` as the whole list.  Called within the gate."""
        spare = self.path + "~"  # of a commit that was killed, maybe; nobody else writes it while we have the gate
        try:
            os.unlink(spare)
        except FileNotFoundError:
            pass
        try:
            native = self._codec.native or not self._written(pairs, spare)
            if native:
                with open(spare, "wb") as file:
                    file.write(header() + pickle.dumps(pairs, 5)[2:])
            if self._durable:
                sync_file(spare)
            system.replace(spare, self.path)
        except BaseException:
            if os.path.lexists(spare):
                os.unlink(spare)
            raise
        if self._durable:
            system.sync_directory(self._directory)
        fd = self._opened()
        self._hold(fd, self.current())  # type: ignore[arg-type]
        self._list_end = self._end = self.signature.size if native and self.signature else 0
        self._compact = False

    def _written(self, pairs: Pairs, spare: str) -> bool:
        """Does the user's ``dump`` write, and ``load`` give back, these pairs: the same keys of the same types?"""
        try:
            with self._codec.create(spare) as file:
                self._codec.dump(pairs, file)
            with self._codec.reader(spare) as file:
                back = self._checked(self._codec.load(file))
        except OSError:
            raise
        except Exception:
            return False
        return alike(back, pairs)

    def plain(self) -> bool:
        """Is the file one list and nothing behind it?"""
        return self.signature is not None and (not self._list_end or self.signature.size == self._list_end)

    def erase(self) -> None:
        """Remove the file, so that nothing that it names is a value any more."""
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass

    def close(self) -> None:
        """Let go of the file.  The next look reads it anew."""
        before, self._fd, self.signature = self._fd, None, None
        if before is not None:
            os.close(before)
        self._list_end = self._end = 0

    def __del__(self) -> None:
        self.close()


def apply(names: Any, changes: Iterable[tuple[Any, Name | None]]) -> None:
    """Lay ``changes`` over ``names``, in order."""
    for key, name in changes:
        if name is None:
            names.pop(key, None)
        else:
            names[key] = name


def hashable(key: Any) -> Hashable:
    """``key`` with its lists read as tuples: json knows no others."""
    return tuple(map(hashable, key)) if isinstance(key, (list, tuple)) else key


def alike(a: Any, b: Any) -> bool:
    """Equal, and of equal types all the way down: ``1`` is not ``True``, nor ``'1'``."""
    if isinstance(a, (tuple, list)) and type(a) is type(b):
        return len(a) == len(b) and all(map(alike, a, b))
    return type(a) is type(b) and bool(a == b)


def sync_file(path: str) -> None:
    """Make the content of ``path`` survive a loss of power."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
