"""Packs: files of many small values.  `.packs/<n>` is nothing but their bytes one after another.

One handle makes a pack, alone appends to it, and holds a lock on it while it does: who gets the lock knows that the
writer is gone.  The checksum of each record stands in its ref, so that no other bytes pass for it, and what no ref
names does not exist: a torn append is just never named.
"""
from __future__ import annotations

import errno
import os
import threading
from collections.abc import Collection, Iterable
from contextlib import suppress
from zlib import crc32

from chest.errors import DamagedError
from chest.log import log
from chest.storage import system
from chest.storage.base import CRC, LENGTH, OFFSET, PACK
from chest.storage.descriptors import Descriptor, descriptors
from chest.storage.tree import Tree

__all__ = ["FOLDER", "NoPack", "Owned", "Packs", "idle"]

FOLDER = ".packs"
ROTATE = 1 << 20  # bytes: a pack of this size is given up for a new one at a plain commit, so that it can be compacted
_BLOCK = 4096  # bytes that the smallest pack takes on a disk
_SLACK = 1 << 16  # bytes of garbage that are not worth a compaction
_LONGEST = 1 << 40  # bytes of a pack
_AT_ONCE = 1 << 20  # bytes read by one call, of records that lie
_GAP = 1 << 12  # at most so many bytes apart
_OFFSETS = (1 << (PACK - OFFSET)) - 1


class NoPack(Exception):
    """No pack can be made here: values have to go to loose files.  The cause says why."""


class Owned:
    """A new file in `.packs` that this handle alone writes, and holds a lock on: a pack, or a journal.

    Where the file system has no locks it is made all the same; nobody will take its writer for dead then.
    """

    def __init__(self, tree: Tree, ending: str = ""):
        opened = system.Opened()
        try:
            while True:
                self.number = int.from_bytes(os.urandom(5), "big")
                self.name = f"{FOLDER}/{self.number:010x}{ending}"
                try:
                    tree.open(self.name, system.APPEND, opened, make=True)
                except FileExistsError:
                    continue
                locked: bool | None
                try:
                    locked = system.try_lock(opened[-1])
                except OSError as error:  # there are no locks
                    system.raise_of_a_signal(error)
                    locked = None
                status = os.fstat(opened[-1])
                if locked is None or (locked and (status.st_nlink or not system.HOLDS_OPEN)):
                    break
                # 1. we made the file; 2. a reclaimer found it without a lock, and has the lock, or removed it already.
                os.close(opened.pop())
            self.descriptor = Descriptor(opened[-1], status)
            opened.clear()
        finally:
            opened.close()

    def size(self) -> int:
        """Where it ends; -1 if the program closed our descriptor, or somebody removed the file."""
        status = self.descriptor.status()
        return status.st_size if status is not None and status.st_nlink else -1

    def unlock(self) -> None:
        if self.descriptor.status() is not None:
            system.unlock(self.descriptor.fd)


class _Reader:
    """A pack that is open."""

    def __init__(self, descriptor: Descriptor, mutex: threading.RLock, kept: bool = False):
        self.descriptor = descriptor
        self.used = True
        self.kept = kept  # its descriptor has the lock of a pack with records that no commit names
        self._mutex = mutex  # held while anything is written; who reads needs none, as the checksum tells

    def close_idle(self) -> bool:
        if not self._mutex.acquire(blocking=False):
            return False
        try:
            if not self.kept:
                self.descriptor.close()
            return not self.kept
        finally:
            self._mutex.release()


class Packs:
    """The packs of a directory, as one handle reads and writes them.

    Cost: a read is one `pread`; an append one `fstat` and one `write`, for all its records together.
    """

    def __init__(self, tree: Tree, durable: bool):
        self._tree = tree
        self._durable = durable
        self._mutex = threading.RLock()
        self._open: dict[int, _Reader] = {}
        self._own: Owned | None = None

    # Out.

    def append(self, records: list[bytes]) -> int:
        """Write records one after another.  Returns the ref of the first byte, without length and checksum."""
        data = records[0] if len(records) == 1 else b"".join(records)
        with self._mutex:
            own, start = self._writable(len(data))
            fd = own.descriptor.fd
            try:
                system.write_all(fd, (data,))
            except BaseException:  # nothing refers to what was written: the disk may have its space back
                with suppress(OSError):
                    os.ftruncate(fd, start)
                raise
            if self._durable:
                self._own = None  # a failed fsync leaves nobody knowing what the disk holds: nothing is appended again
                system.sync_file(fd)
                self._own = own
            return own.number << PACK | start << OFFSET

    def _writable(self, size: int) -> tuple[Owned, int]:
        """This handle's own pack, and where it ends.  `NoPack` if none can be made."""
        own = self._own
        if own is not None:
            start = own.size()
            if 0 <= start <= _LONGEST - size:
                self._open[own.number].kept = True
                return own, start
        self._own = None
        try:
            own = Owned(self._tree)
        except OSError as error:
            system.raise_of_a_signal(error)
            raise NoPack from error
        self._take_in(own.number, _Reader(own.descriptor, self._mutex, kept=True))
        if self._durable:
            self._tree.sync_folders([own.name])
        self._own = own
        return own, 0

    def _take_in(self, number: int, reader: _Reader) -> _Reader:
        with self._mutex:
            old = self._open.get(number)
            if old is not None and old.kept:  # the program closed its descriptor, and so freed its lock
                reader.kept = system.lock_file(reader.descriptor.fd)
            if old is not None:
                self._forget(number)
            self._open[number] = reader
        descriptors.add(reader)
        return reader

    def _forget(self, number: int) -> None:
        """Close a pack, if it is open."""
        reader = self._open.get(number)
        if reader is not None:
            descriptors.discard(reader)
            reader.descriptor.close()
            self._open.pop(number, None)

    # Back.

    def read(self, ref: int) -> bytes:
        """The bytes of a record, with the right checksum.  `FileNotFoundError` if its pack is gone, `DamagedError`."""
        reader = self._open.get(ref >> PACK)
        if reader is not None:
            reader.used = True
            try:
                data = system.pread(reader.descriptor.fd, ref >> LENGTH & CRC, ref >> OFFSET & _OFFSETS)
            except OSError as error:  # the number is another file's, or none's: see below
                system.raise_of_a_signal(error)
                data = b""
            if crc32(data) == ref & CRC and len(data) == ref >> LENGTH & CRC:  # as `_right`, without its call
                return data
        return self._read_anew(ref)

    def _read_anew(self, ref: int) -> bytes:
        """Open the pack, perhaps again: the program may have closed our descriptor and opened other files under it."""
        number, length, offset = ref >> PACK, ref >> LENGTH & CRC, ref >> OFFSET & _OFFSETS
        opened = system.Opened()
        try:
            status = self._tree.open(self.name(ref), system.READ, opened)
            if offset + length > status.st_size:
                raise DamagedError(f"{self._tree.path(self.name(ref))} has {status.st_size} bytes, and a record at "
                                   f"{offset} to {offset + length}")
            data = system.pread(opened[0], length, offset)
            if not _right(data, ref):
                raise DamagedError(f"{self._tree.path(self.name(ref))}: the checksum of the record at {offset} is not "
                                   f"that of what was written")
            own = self._own
            if own is None or own.number != number or own.size() < 0:  # else its lock would go with its descriptor
                self._take_in(number, _Reader(Descriptor(opened[0], status), self._mutex))
                opened.clear()
            return data
        finally:
            opened.close()

    def read_many(self, refs: Iterable[int]) -> dict[int, bytes | Exception]:
        """The bytes of each record, or what went wrong with it.  Neighbours are read by one call."""
        found: dict[int, bytes | Exception] = {}
        ordered = sorted(set(refs))
        first = 0
        while first < len(ordered):
            start = end = ordered[first] >> OFFSET  # with the number of the pack in front
            last = first
            while last < len(ordered):
                at = ordered[last] >> OFFSET
                stop = at + (ordered[last] >> LENGTH & CRC)
                if at > end + _GAP or (stop > start + _AT_ONCE and last > first):
                    break
                end = max(end, stop)
                last += 1
            self._read_run(ordered[first:last], start, end - start, found)
            first = last
        return found

    def _read_run(self, refs: list[int], start: int, size: int, found: dict[int, bytes | Exception]) -> None:
        data = b""
        for ref in refs:
            reader = self._open.get(ref >> PACK)  # by the second record it is open
            if reader is not None and not data and len(refs) > 1:
                reader.used = True
                try:
                    data = system.pread(reader.descriptor.fd, size, start & _OFFSETS)
                except OSError as error:  # as in `read`
                    system.raise_of_a_signal(error)
            at = (ref >> OFFSET) - start
            part = data[at : at + (ref >> LENGTH & CRC)]
            if _right(part, ref):
                found[ref] = part
                continue
            try:
                found[ref] = self.read(ref)
            except (OSError, DamagedError) as error:
                found[ref] = error

    def name(self, ref: int) -> str:
        return f"{FOLDER}/{ref >> PACK:010x}"

    # Garbage.

    def committed(self, plain: bool) -> None:
        """An index names all records that there are, or nobody ever will."""
        with self._mutex:
            own = self._own
            for number, reader in list(self._open.items()):
                if reader.kept:
                    reader.kept = False
                    if own is None or number != own.number:  # given up: let go of its lock
                        self._forget(number)
            if plain and own is not None and own.size() >= ROTATE:
                own.unlock()
                self._own = None

    def compact(self, refs: Iterable[object]) -> dict[int, int]:
        """Copy what lives in wasteful packs without a writer to the end of this handle's own.  Old and new refs."""
        others = self._others(self._tree.listed(FOLDER))
        sizes = {number: self._tree.size(self.name(number << PACK)) for number in others}
        if not sizes:
            return {}
        live: dict[int, list[int]] = {number: [] for number in sizes}
        for ref in refs:
            if type(ref) is int and ref >> PACK in live:
                live[ref >> PACK].append(ref)
        waste = {}
        for number, records in live.items():
            lives, held = sum([ref >> LENGTH & CRC for ref in records]), max(sizes[number], _BLOCK)
            if records and held > 2 * lives and idle(self._tree, self.name(number << PACK)):
                waste[number] = held - lives
        if sum(waste.values()) < _SLACK:
            return {}
        moved: dict[int, int] = {}
        try:
            for number in waste:
                self._copy(sorted(live[number]), moved)
        except (OSError, NoPack) as error:  # a full disk: what was copied is right, and the rest stays where it is
            if isinstance(error, OSError):
                system.raise_of_a_signal(error)
            log("warning", "cannot compact the packs of %s: %s", self._tree.root, error)
        return moved

    def _copy(self, refs: list[int], moved: dict[int, int]) -> None:
        while refs:
            size = count = 0
            while count < len(refs) and (size < _AT_ONCE or not count):
                size += refs[count] >> LENGTH & CRC
                count += 1
            some, refs = refs[:count], refs[count:]
            good = {ref: data for ref, data in self.read_many(some).items() if isinstance(data, bytes)}
            if good:
                place = self.append(list(good.values()))
                for ref, data in good.items():
                    moved[ref] = place | ref & (1 << OFFSET) - 1
                    place += len(data) << OFFSET

    def _others(self, names: Iterable[str]) -> set[int]:
        """The numbers of the packs among files of `.packs` that are not in this handle's own hands."""
        with self._mutex:
            own = {number for number, reader in self._open.items() if reader.kept}
            if self._own is not None:
                own.add(self._own.number)
        return {number for number in map(number_of, names) if number is not None and number not in own}

    def reclaim(self, refs: Collection[object], names: Iterable[str]) -> None:
        """Remove packs that no ref names and no writer holds; this handle's own too, if nothing in it is to come.

        ``names``: of all files in `.packs`.
        """
        named = {ref >> PACK for ref in refs if type(ref) is int}
        with self._mutex:
            own = self._own
            if own is not None and own.number not in named and not self._open[own.number].kept:
                self._own = None
        for number in self._others(names) - named:
            self._forget(number)
            idle(self._tree, self.name(number << PACK), remove=True)

    def erase_own(self) -> None:
        """Remove this handle's own pack: the chest is dropped."""
        with self._mutex:
            own, self._own = self._own, None
        self.close()
        if own is not None:
            self._tree.unlink(own.name)

    def close(self) -> None:
        """Close all packs.  A pack that is wanted again is opened again; the next append makes a new one."""
        with self._mutex:
            self._own = None
            while self._open:
                self._forget(next(iter(self._open)))

    def after_fork(self) -> None:
        """In a fork's child: close the copies of the parent's descriptors, which keeps its locks, and begin anew."""
        self._mutex = threading.RLock()
        self.close()


def _right(data: bytes, ref: int) -> bool:
    return crc32(data) == ref & CRC and len(data) == ref >> LENGTH & CRC


def number_of(name: str) -> int | None:
    """The number of the pack of this name, `None` if it is no pack's."""
    try:
        number = int(name, 16)
    except ValueError:
        return None
    return number if name == f"{number:010x}" else None


def idle(tree: Tree, name: str, remove: bool = False) -> bool:
    """Is the writer of this file in `.packs` gone?  Remove the file then, if so told."""
    opened = system.Opened()
    try:
        if not taken(tree, name, opened):
            return False
        if remove:
            if not system.HOLDS_OPEN:
                os.close(opened.pop())
            tree.unlink(name)
        return True
    except OSError as error:
        _stays(tree, name, error)
        return False
    finally:
        opened.close()


def taken(tree: Tree, name: str, opened: list[int]) -> bool:
    """Take the lock of a file in `.packs`, if its writer is gone: its descriptor is put into ``opened``."""
    try:
        tree.open(name, system.READ, opened)
        if system.lock_file(opened[-1]):
            return True
        os.close(opened.pop())
    except OSError as error:
        _stays(tree, name, error)
    return False


def _stays(tree: Tree, name: str, error: OSError) -> None:
    system.raise_of_a_signal(error)
    if error.errno not in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS):
        log("warning", "%s cannot be reclaimed: %s", tree.path(name), error)
