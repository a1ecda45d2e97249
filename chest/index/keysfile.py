"""The file ``.keys`` of a local directory: reading it, appending to it, replacing it.

It begins with a list of ``(key, ref)`` pairs, as ``dump`` writes it.  With chest's own dump commits may be appended to
that as records (`chest.index.format`); else each commit replaces the file.
"""
from __future__ import annotations

import errno
import os
from contextlib import AbstractContextManager, suppress
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

from chest.index.format import Pairs, Parser, Refs, record, whole_list

if TYPE_CHECKING:
    from chest.serialize.codec import Codec
    from chest.storage.descriptors import Descriptors

__all__ = ["KEYS", "KeysFile"]

KEYS = ".keys"
SPARE = 1 << 15  # bytes of records that a list may have behind it however short it is: they are read in 3 ms

_IN_USE = {errno.EACCES, errno.EPERM, errno.EBUSY, errno.ETXTBSY}

Signature = tuple[int, int, int, int]  # device, inode, size in bytes, time of the last change in ns


class KeysFile:
    """``.keys`` as one handle last read or wrote it.  Implements `chest.index.index.Keys`; of one thread at a time.

    ``system`` and ``descriptors`` are those of `chest.storage`.  Cost: `changed` is one ``stat``; `read` is O(what was
    appended since), or O(keys) after a replacement; `append` is O(changes) and 5 system calls; `replace` is O(keys).
    """

    def __init__(self, directory: str, codec: Codec, lock: AbstractContextManager[Any], system: ModuleType,
                 descriptors: Descriptors):
        self._open: list[int] = []  # what was read, held open so that its inode stays its own; who uses it takes it out
        self.path = os.path.join(directory, KEYS)
        self.lock = lock
        self.used = self._listed = False  # for the descriptors: since they last looked; do they know of ours?
        self._directory, self._codec, self._system, self._descriptors = directory, codec, system, descriptors
        self._parser = Parser(self.path, codec)
        self._signature: Signature | None = None  # of what was read or written last
        self._list_end = self._end = 0  # bytes of the list with its footer, and with its whole records
        self._compact: bool | None = None  # must the next commit replace the file?  None: nothing was read yet
        self._synced = False  # is what was read on the disk, and its name too?

    def changed(self) -> bool:
        """Has anybody committed since we read?"""
        try:
            return _signature(os.lstat(self.path)) != self._signature
        except FileNotFoundError:
            return self._signature is not None

    def plain(self) -> bool:
        """Is the file one list and nothing behind it?"""
        return self._signature is not None and (not self._list_end or self._signature[2] == self._list_end)

    # Reading.

    def read(self) -> tuple[bool, Pairs | Refs]:
        """``(True, all)``, or ``(False, changes)`` where records were appended to what was read before.

        `DamagedError` where checksums prove it, `LoadError` for all else that is no index.
        """
        opened = self._system.Opened()
        try:
            with self._parser.explaining():
                try:
                    found, start = self._newest(opened)
                except FileNotFoundError:
                    self.close()
                    return True, []
                data = self._bytes(opened[0], start, found.st_size)
                changes = self._more(data) if start else self._whole(data)
            self._keep(opened, found)
            return not start, changes
        finally:
            opened.close()

    def _newest(self, opened: Any) -> tuple[os.stat_result, int]:
        """Open the file as it is now.  Returns what it is, and how many of its bytes were read before."""
        found = self._take(opened)
        if found is not None:
            with suppress(OSError):
                if self._list_end and found.st_size >= self._end and os.path.samestat(found, os.lstat(self.path)):
                    return found, self._end
            opened.close()
        return self._system.open_regular(self.path, self._system.READ, opened), 0

    def _bytes(self, fd: int, start: int, end: int) -> bytes:
        data: bytes = self._system.pread(fd, end - start, start)
        while len(data) < end - start and (more := self._system.pread(fd, end - start - len(data), start + len(data))):
            data += more  # one call takes 2 GB at most
        return data

    def _whole(self, data: bytes) -> Refs:
        self._list_end = self._end = 0
        self._synced = False
        refs, self._list_end, self._end = self._parser.whole(data, partial(self._codec.load_from, self.path))
        if self._compact is None:  # what stands behind the list was left by a process that died, for all we know
            self._compact = 0 < self._list_end < len(data)
        return refs

    def _more(self, data: bytes) -> Pairs:
        changes, length = self._parser.changes(data)
        self._end += length
        return changes

    # Committing: within the lock, with everything read.

    def append(self, changes: Pairs) -> bool:
        """Commit ``changes`` behind the list; `False`, and nothing committed, where only a replacement will do.

        `DumpError`, and nothing done, if a key cannot be pickled.
        """
        before = self._signature
        if self._compact or not (self._codec.native and self._list_end and before and before[2] == self._end):
            return False
        data = record(changes)
        if self._end + len(data[0]) > 2 * self._list_end + SPARE:
            return False
        opened = self._system.Opened()
        try:
            found = self._system.open_regular(self.path, self._system.READ | os.O_RDWR | os.O_APPEND, opened)
            # A file that somebody linked is another chest's as well; one that is not what was read is not ours.
            if found.st_nlink > 1 or _signature(found) != before:
                return False
            try:
                self._compact = not self._appended(opened[0], *data)
            except OSError:  # if it was no passing fault, the replacement tells of it
                self._compact = True
            if self._compact:
                with suppress(OSError):
                    os.ftruncate(opened[0], self._end)  # so that nobody builds on what may not be on the disk
                return False
            self._signature = _signature(os.fstat(opened[0]))
            self._end += sum(map(len, data))
            return True
        finally:
            opened.close()

    def _appended(self, fd: int, data: bytes, trailer: bytes) -> bool:
        """Append a record; `False` if the system took a part of it only.

        With ``durable`` the trailer follows when all else is on the disk.  What a failed ``fsync`` was for may be lost,
        and the next ``fsync`` does not say so again: then all has to be written anew.
        """
        if not self._codec.durable:
            return os.write(fd, data + trailer) == len(data) + len(trailer)
        if not self._synced:  # its writer may have been killed in between
            self._system.sync_file(fd)
            self._system.sync_directory(self._directory)
            self._synced = True
        for part in (data, trailer):
            if os.write(fd, part) != len(part):
                return False
            self._system.sync_file(fd)
        return True

    def replace(self, pairs: Pairs) -> None:
        """Commit ``pairs`` as the whole list.  `DumpError`, and nothing done, if a key cannot be pickled."""
        spare = self.path + "~"  # of a commit that was killed, maybe; nobody else writes it while we have the lock
        opened = self._system.Opened()
        _unlink(spare)
        try:
            native = self._codec.native or not self._parser.keeps(pairs, self._dumped_and_loaded)
            if native:
                data = whole_list(pairs)
                _unlink(spare)
                self._system.open_regular(spare, self._system.APPEND, opened)
                self._system.write_all(opened[0], [data])
            else:
                self._system.open_regular(spare, self._system.READ | os.O_RDWR, opened)
            if self._codec.durable:
                self._system.sync_file(opened[0])
            found = os.fstat(opened[0])
            if not self._system.HOLDS_OPEN:  # nor lets it be replaced
                opened.close()
            self._compact = True  # until all of this is done
            try:
                self._system.replace(spare, self.path)
            except OSError as error:
                if error.errno not in _IN_USE or not self._system.HOLDS_OPEN:
                    raise
                # Some network file systems replace no file that is open: our handles' are all closed, and opened again.
                opened.close()
                self._descriptors.close_all()
                self._system.replace(spare, self.path)
            self.close_idle()
            self._list_end = self._end = found.st_size if native else 0
            self._keep(opened, found)
            if self._codec.durable:
                self._system.sync_directory(self._directory)
            self._synced, self._compact = self._codec.durable, False
        finally:
            opened.close()
            _unlink(spare)

    def _dumped_and_loaded(self, pairs: Pairs) -> Any:
        self._codec.dump_to(pairs, self.path + "~")
        return self._codec.load_from(self.path + "~")

    def erase(self) -> None:
        """Remove the file, so that nothing that it names is a value any more."""
        _unlink(self.path)

    # The descriptor that is held open.

    def _take(self, opened: Any) -> os.stat_result | None:
        """Put the descriptor that is held open into ``opened``, so that no other thread closes it; says what it is.

        `None` if there is none that is ours: a program may close descriptors that are not its own, and the number is
        another file's then.
        """
        try:
            opened.append(self._open.pop())
            found = os.fstat(opened[0])
            if self._signature is not None and self._signature[:2] == (found.st_dev, found.st_ino):
                return found
        except IndexError:
            pass
        except OSError as error:
            if error.errno != errno.EBADF:  # the system fails to say what it is: then it is ours still
                opened.close()
        opened.clear()
        return None

    def _keep(self, opened: Any, found: os.stat_result) -> None:
        """Hold open what was read or written."""
        self._signature = _signature(found)
        self.used = True
        if not self._system.HOLDS_OPEN:
            opened.close()
        while opened:
            self._open.append(opened.pop())
        if self._open and not self._listed:
            self._listed = True
            self._descriptors.add(self)

    def close_idle(self) -> bool:
        """Close the descriptor, if nobody uses it just now: it is opened again when it is needed.  By any thread."""
        opened = self._system.Opened()
        had = self._take(opened) is not None
        self._listed = self._listed and not had
        opened.close()
        return had

    def close(self) -> None:
        """Forget what was read: all is read the next time."""
        self.close_idle()
        self._descriptors.discard(self)
        self._listed = False
        self._signature = None
        self._list_end = self._end = 0

    def __del__(self) -> None:
        self.close()


def _signature(found: os.stat_result) -> Signature:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _unlink(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)
