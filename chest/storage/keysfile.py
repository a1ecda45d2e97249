"""The file ``.keys`` of a local directory: reading it, appending to it, replacing it.

It begins with a list of ``(key, ref)`` pairs, as ``dump`` writes it.  With chest's own dump commits may be appended to
that as records (`chest.index.format`); else each commit replaces the file.
"""
from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from chest.errors import of_the_process
from chest.index.format import KEYS, Pairs, Refs, alike, explained, parse, parse_records, read_anew, record, whole_list
from chest.storage import system
from chest.storage.descriptors import Descriptor, close_idle
from chest.storage.locks import directory_lock

if TYPE_CHECKING:
    from chest.serialize.codec import Codec

__all__ = ["KeysFile"]

_LAST = 64  # bytes in which a checksum of the list, or the newest record, stands
SPARE = 1 << 15  # bytes of records that a list may have behind it however short it is: they are read in 3 ms

_IN_USE = {errno.EACCES, errno.EPERM, errno.EBUSY, errno.ETXTBSY}

Signature = tuple[int, int, int, int]  # device, inode, size in bytes, time of the last change in ns
_UNREAD: Signature = (0, 0, 0, 0)  # of what was read once, and closed


class KeysFile:
    """``.keys`` as one handle last read or wrote it.  Implements `chest.index.index.Keys`; of one thread at a time.

    What was read is held open, so that its inode stays its own and no other version looks like it.  Cost: `changed` is
    one ``stat``; `read` is O(what was appended since), or O(keys) after a replacement; `append` is O(changes) and 5
    system calls; `replace` is O(keys).
    """

    def __init__(self, directory: str, codec: Codec):
        self._held: Descriptor | None = None
        self.path = os.path.join(directory, KEYS)
        self.lock = directory_lock(directory)
        self._directory, self._codec = directory, codec
        self._signature: Signature | None = None  # of what was read or written last
        self._list_end = self._end = 0  # bytes of the list with its footer, and with its whole records
        self._last = b""  # the last of these bytes: where a backup was copied over the file, others stand there
        self._broken = False  # a commit failed half-way: only a replacement will do
        self._named = False  # is the name of what was read on the disk?

    def changed(self) -> bool:
        """Has anybody committed since we read?

        Nobody has where what we read is still there, and the directory with it elsewhere: renamed, or on a disk that
        was taken off.  An index that was dropped has no name any more.
        """
        try:
            return _signature(os.lstat(self.path)) != self._signature
        except FileNotFoundError:
            held = self._held_status()
            return self._signature is not None and (
                not held or not held.st_nlink or _signature(held) != self._signature or os.path.isdir(self._directory))

    def _held_status(self) -> os.stat_result | None:
        """What the system says of what we read, if that is still held open.  Any thread asks."""
        held = self._held
        with system.tolerated():
            return held.status() if held is not None else None
        return None

    def plain(self) -> bool:
        """Is the file one list and nothing behind it?"""
        return self._signature is not None and (not self._list_end or self._signature[2] == self._list_end)

    def read(self) -> tuple[bool, Pairs | Refs]:
        """``(True, all)``, or ``(False, changes)`` where records were appended to what was read before.

        `DamagedError` where checksums prove it, `LoadError` for all else that is no index.
        """
        with system.Opened() as opened, explained(self.path):
            try:
                found = system.open_regular(self.path, system.READ, opened)
            except FileNotFoundError:
                self.close()
                self._signature = None
                return True, []
            known = self._signature
            if not (known and self._list_end and found.st_size >= self._end and _signature(found)[:2] == known[:2]
                    and self._held_status()):  # another file may have got the inode
                self.close()
            start, data = self._end - len(self._last), b""
            while more := system.pread(opened[0], found.st_size - start - len(data), start + len(data)):
                data += more  # one call takes 2 GB at most
            if not data.startswith(self._last):
                self.close()
                return self.read()
            whole = not self._end
            changes: Pairs | Refs
            if whole:
                self._named = False
                changes, self._list_end, self._end = parse(
                    data, self.path, self._codec, lambda: self._codec.load_from(self.path))
            else:
                changes, length = parse_records(data[len(self._last) :], self.path, self._codec)
                self._end += length
            self._last = data[: self._end - start][-_LAST:]
            self._keep(opened, found)
            return whole, changes

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
        with system.Opened() as opened:
            found = system.open_regular(self.path, system.READ | os.O_RDWR | os.O_APPEND, opened)
            # A file that somebody linked is another chest's as well; one that is not what was read is not ours.
            if found.st_nlink > 1 or _signature(found) != before:
                return False
            self._broken = True  # until all of this is done
            with system.tolerated():  # if it is no passing fault, the replacement tells of it
                for part in parts if self._codec.durable else (b"".join(parts),):
                    system.write_all(opened[0], [part])
                    if self._codec.durable:
                        system.sync_file(opened[0])
                        if not self._named:  # whoever replaced the file may have been killed behind the rename
                            system.sync_directory(self._directory)
                            self._named = True
                self._signature = _signature(os.fstat(opened[0]))
                self._broken = False
            if self._broken:
                with system.tolerated():
                    os.ftruncate(opened[0], self._end)  # so that nobody builds on what may not be on the disk
                return False
            self._end += sum(map(len, parts))
            self._last = (self._last + b"".join(parts))[-_LAST:]
            return True

    def replace(self, pairs: Pairs) -> None:
        """Commit ``pairs`` as the whole list.  `DumpError`, and nothing done, if a key cannot be pickled."""
        spare = self.path + "~"  # of a commit that was killed, maybe; nobody else writes it while we have the lock
        durable = self._codec.durable
        opened = system.Opened()
        _unlink(spare)
        try:
            native = self._codec.native or not self._is_dumped(pairs, spare)
            if native:
                data = whole_list(pairs)
                _unlink(spare)
                system.open_regular(spare, system.APPEND, opened)
                system.write_all(opened[0], [data])
            else:
                system.open_regular(spare, system.READ | os.O_RDWR, opened)
            if durable:
                system.sync_file(opened[0])
            found = os.fstat(opened[0])
            if not system.HOLDS_OPEN:  # nor lets it be replaced
                opened.close()
            self._broken = True  # until all of this is done
            try:
                system.replace(spare, self.path)
            except OSError as error:
                if error.errno not in _IN_USE or not system.HOLDS_OPEN:
                    raise
                # Some network file systems replace no file that is open: our handles' are all closed, and opened again.
                opened.close()
                close_idle()
                system.replace(spare, self.path)
            self._list_end = self._end = found.st_size if native else 0
            self._last = data[-_LAST:] if native else b""
            self._keep(opened, found)
            if durable:
                system.sync_directory(self._directory)
            self._named, self._broken = durable, False
        finally:
            opened.close()
            with system.tolerated():  # as the commit may be done; most often it is not there
                os.unlink(spare)

    def _is_dumped(self, pairs: Pairs, path: str) -> bool:
        """Do the user's settings write to ``path``, and give back, these pairs: the same keys of the same types?"""
        try:
            self._codec.dump_to(pairs, path)
            return alike(read_anew(self._codec.load_from(path)), pairs)
        except Exception as error:
            if isinstance(error, OSError) or of_the_process(error):
                raise
            return False

    def erase(self) -> None:
        """Remove the file, so that nothing that it names is a value any more."""
        _unlink(self.path)
        self._signature = None

    # The descriptor that is held open.

    def _keep(self, opened: list[int], found: os.stat_result) -> None:
        """Hold open what was read or written, and nothing else."""
        self._let_go()
        self._signature = _signature(found)
        if system.HOLDS_OPEN and opened:  # else it had to be closed for the commit
            self._held = Descriptor(opened[0], found)
            opened.clear()
            self._held.idle()

    def _let_go(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None

    def close(self) -> None:
        """Forget what was read: all is read the next time, also where nothing is there any more."""
        self._let_go()
        self._signature = self._signature and _UNREAD
        self._list_end, self._end, self._last = 0, 0, b""

    def __del__(self) -> None:
        self._let_go()


def _signature(found: os.stat_result) -> Signature:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _unlink(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)
