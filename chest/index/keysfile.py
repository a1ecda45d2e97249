"""The file ``.keys`` of a local directory: reading it, appending to it, replacing it.

It begins with a list of ``(key, ref)`` pairs, as ``dump`` writes it.  With chest's own dump commits may be appended to
that as records (`chest.index.format`); else each commit replaces the file.
"""
from __future__ import annotations

import errno
import os
from contextlib import AbstractContextManager, suppress
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

    What was read is held open, so that its inode stays its own and no other version looks like it.  ``system`` and
    ``descriptors`` are those of `chest.storage`.  Cost: `changed` is one ``stat``; `read` is O(what was appended
    since), or O(keys) after a replacement; `append` is O(changes) and 5 system calls; `replace` is O(keys).
    """

    def __init__(self, directory: str, codec: Codec, lock: AbstractContextManager[Any], system: ModuleType,
                 descriptors: Descriptors):
        self._held: list[int] = []  # the descriptor that is held open; who closes it takes it out
        self.path = os.path.join(directory, KEYS)
        self.lock = lock
        self.used = False  # for the descriptors: since they last looked
        self._directory, self._codec, self._system, self._descriptors = directory, codec, system, descriptors
        self._parser = Parser(self.path, codec)
        self._signature: Signature | None = None  # of what was read or written last
        self._list_end = self._end = 0  # bytes of the list with its footer, and with its whole records
        self._broken = False  # a commit failed half-way: only a replacement will do
        self._named = False  # is the name of what was read on the disk?

    def changed(self) -> bool:
        """Has anybody committed since we read?"""
        try:
            return _signature(os.lstat(self.path)) != self._signature
        except FileNotFoundError:
            return self._signature is not None and not self._is_elsewhere()

    def _is_elsewhere(self) -> bool:
        """Is what we read still there, and the directory with it elsewhere: renamed, or on a disk that was taken off?

        Nothing was committed then.  An index that was dropped has no name any more.
        """
        with self._system.tolerated(), suppress(IndexError):
            found = os.fstat(self._held[0])
            return found.st_nlink > 0 and _signature(found) == self._signature and not os.path.isdir(self._directory)
        return False

    def plain(self) -> bool:
        """Is the file one list and nothing behind it?"""
        return self._signature is not None and (not self._list_end or self._signature[2] == self._list_end)

    def read(self) -> tuple[bool, Pairs | Refs]:
        """``(True, all)``, or ``(False, changes)`` where records were appended to what was read before.

        `DamagedError` where checksums prove it, `LoadError` for all else that is no index.
        """
        opened = self._system.Opened()
        try:
            with self._parser.explaining():
                try:
                    found = self._system.open_regular(self.path, self._system.READ, opened)
                except FileNotFoundError:
                    self.close()
                    return True, []
                known, start = self._signature, 0
                if known and self._list_end and found.st_size >= self._end and _signature(found)[:2] == known[:2]:
                    with suppress(IndexError, OSError):  # is it certain, and not another file that got the inode?
                        start = self._end if os.path.samestat(os.fstat(self._held[0]), found) else 0
                data = b""
                while more := self._system.pread(opened[0], found.st_size - start - len(data), start + len(data)):
                    data += more  # one call takes 2 GB at most
                changes: Pairs | Refs
                if start:
                    changes, length = self._parser.changes(data)
                    self._end += length
                else:
                    self._list_end, self._named = 0, False
                    changes, self._list_end, self._end = self._parser.whole(
                        data, lambda: self._codec.load_from(self.path))
            self._keep(opened, found)
            return not start, changes
        finally:
            opened.close()

    # Committing: within the lock, with everything read.

    def append(self, changes: Pairs) -> bool:
        """Commit ``changes`` behind the list; `False`, and nothing committed, where only a replacement will do.

        `DumpError`, and nothing done, if a key cannot be pickled.  With ``durable`` the trailer follows when all else
        is on the disk.  What a failed ``fsync`` was for may be lost, and the next ``fsync`` does not say so again: then
        all has to be written anew.
        """
        before = self._signature
        if self._broken or not (self._codec.native and self._list_end and before and before[2] == self._end):
            return False
        parts = record(changes)
        if self._end + len(parts[0]) > 2 * self._list_end + SPARE:
            return False
        opened = self._system.Opened()
        try:
            found = self._system.open_regular(self.path, self._system.READ | os.O_RDWR | os.O_APPEND, opened)
            # A file that somebody linked is another chest's as well; one that is not what was read is not ours.
            if found.st_nlink > 1 or _signature(found) != before:
                return False
            self._broken = True  # until all of this is done
            try:
                for part in parts if self._codec.durable else (b"".join(parts),):
                    if os.write(opened[0], part) != len(part):
                        break
                    if self._codec.durable:
                        self._system.sync_file(opened[0])
                        if not self._named:  # whoever replaced the file may have been killed behind the rename
                            self._system.sync_directory(self._directory)
                            self._named = True
                else:
                    self._broken = False
            except OSError as error:  # if it was no passing fault, the replacement tells of it
                self._system.raise_of_a_signal(error)
            if self._broken:
                with suppress(OSError):
                    os.ftruncate(opened[0], self._end)  # so that nobody builds on what may not be on the disk
                return False
            self._signature = _signature(os.fstat(opened[0]))
            self._end += sum(map(len, parts))
            return True
        finally:
            opened.close()

    def replace(self, pairs: Pairs) -> None:
        """Commit ``pairs`` as the whole list.  `DumpError`, and nothing done, if a key cannot be pickled."""
        spare = self.path + "~"  # of a commit that was killed, maybe; nobody else writes it while we have the lock
        durable = self._codec.durable
        opened = self._system.Opened()

        def dumped_and_loaded(pairs: Pairs) -> Any:
            self._codec.dump_to(pairs, spare)
            return self._codec.load_from(spare)

        _unlink(spare)
        try:
            native = self._codec.native or not self._parser.keeps(pairs, dumped_and_loaded)
            if native:
                data = whole_list(pairs)
                _unlink(spare)
                self._system.open_regular(spare, self._system.APPEND, opened)
                self._system.write_all(opened[0], [data])
            else:
                self._system.open_regular(spare, self._system.READ | os.O_RDWR, opened)
            if durable:
                self._system.sync_file(opened[0])
            found = os.fstat(opened[0])
            if not self._system.HOLDS_OPEN:  # nor lets it be replaced
                opened.close()
            self._broken = True  # until all of this is done
            try:
                self._system.replace(spare, self.path)
            except OSError as error:
                if error.errno not in _IN_USE or not self._system.HOLDS_OPEN:
                    raise
                # Some network file systems replace no file that is open: our handles' are all closed, and opened again.
                opened.close()
                self._descriptors.close_all()
                self._system.replace(spare, self.path)
            self._list_end = self._end = found.st_size if native else 0
            self._keep(opened, found)
            if durable:
                self._system.sync_directory(self._directory)
            self._named, self._broken = durable, False
        finally:
            opened.close()
            _unlink(spare)

    def erase(self) -> None:
        """Remove the file, so that nothing that it names is a value any more."""
        _unlink(self.path)

    # The descriptor that is held open.

    def _keep(self, opened: Any, found: os.stat_result) -> None:
        """Hold open what was read or written, and nothing else."""
        self.close_idle()
        self._signature = _signature(found)
        if self._system.HOLDS_OPEN and opened:  # else it had to be closed for the commit
            self._held.append(opened.pop())
            self._descriptors.add(self)

    def close_idle(self) -> bool:
        """Close the descriptor.  By any thread, as nobody reads or writes by it.

        A program may close descriptors that are not its own, and open other files under their numbers: these stay.
        """
        opened = self._system.Opened()
        try:
            opened.append(self._held.pop())
            found = os.fstat(opened[0])
            if (found.st_dev, found.st_ino) != (self._signature or ())[:2]:
                opened.clear()
        except IndexError:
            return False
        except OSError as error:
            if error.errno == errno.EBADF:  # else the system fails to say what it is: then it is ours still
                opened.clear()
        opened.close()
        return True

    def close(self) -> None:
        """Forget what was read: all is read the next time."""
        self.close_idle()
        self._descriptors.discard(self)
        self._signature = None
        self._list_end = self._end = 0

    def __del__(self) -> None:
        self.close()


def _signature(found: os.stat_result) -> Signature:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _unlink(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)
