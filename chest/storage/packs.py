"""What a handle appends to alone, its pack and its journal, both in ``.packs``; and the packs that others made.

A pack, `.packs/<n>`, is nothing but the bytes of many small values, one after another.  The checksum of each record
stands in its ref, so that no other bytes pass for it, and what no ref names does not exist: a torn append is just never
named.  A journal, `.packs/<n>.new`, lists the loose files that its handle made and no commit names yet, and those that
its commit supersedes, so that they can be removed when it is killed.

The handle holds a lock on both while it needs them: who gets the lock knows that the writer is gone.
"""
from __future__ import annotations

import os
import re
import threading
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any
from zlib import crc32

from chest.errors import DamagedError, raise_of_a_signal
from chest.index.filenames import inside
from chest.log import log
from chest.storage import system
from chest.storage.base import CRC, LENGTH, OFFSET, PACK, PACKS, Ref, batches, by_pack, offset_of, pack_of, record_size
from chest.storage.descriptors import Descriptor
from chest.storage.tree import Tree

__all__ = ["NoPack", "Packs", "idle"]

JOURNAL = ".new"  # the ending of a journal's name
_OURS = re.compile(r"[0-9a-f]{10}(\.new)?")  # the name of a pack, or of a journal
_ENTRY = re.compile(rb"(\d{1,29}) ([^\0]+)\0")  # of a journal: an inode, and a name
ROTATE = 1 << 20  # bytes: a pack of this size is given up for a new one at a plain commit, so that it can be compacted
_BLOCK = 4096  # bytes that the smallest pack takes on a disk
_SLACK = 1 << 16  # bytes of garbage that are not worth a compaction
_LONGEST = 1 << 39  # bytes of a pack that is appended to
AHEAD = 1 << 14  # bytes read behind a record where several are asked for
_AT_ONCE = 1 << 20  # bytes that a compaction copies at once
_DEAD = 100  # files of dead handles that one commit removes


class NoPack(OSError):
    """No pack can be made here: values have to go to loose files."""


class _File(Descriptor):
    """A file in `.packs` that is open.  ``unnamed``: it has records, or a list of files, that no commit names, and so
    stays open and locked."""

    __slots__ = ("name", "number", "unnamed")

    def __init__(self, fd: int, status: os.stat_result, name: str, number: int, unnamed: bool):
        super().__init__(fd, status)
        self.name, self.number, self.unnamed = name, number, unnamed

    def end(self) -> int:
        """Where it ends; -1 if the program closed our descriptor, or somebody removed the file."""
        status = self.status()
        return status.st_size if status is not None and status.st_nlink else -1


class Packs:
    """The packs of a directory, and the journal, as one handle reads and writes them.

    Cost: a read is one `pread`; an append one `fstat` and one `write`, for all its records together.
    """

    def __init__(self, tree: Tree, durable: bool):
        self._tree = tree
        self._durable = durable
        self._mutex = threading.RLock()  # held while anything is written; who reads needs none, as the checksum tells
        self._open: dict[int, _File] = {}
        self._own: _File | None = None  # in `_open` as well
        self._journal: _File | None = None
        self.left = False  # may there be a file that the journal lists and nothing names?

    # Out.

    def append(self, records: list[bytes]) -> list[int]:
        """Write records one after another.  Returns their refs.

        `NoPack` if no pack can be made, another `OSError` if it cannot be written.
        """
        with self._mutex:
            try:
                own, start = self._writable()
            except OSError as error:
                raise_of_a_signal(error)
                raise NoPack(error.errno, error.strerror, error.filename) from error
            try:
                system.write_all(own.fd, (b"".join(records),))
            except BaseException:  # nothing refers to what was written: the disk may have its space back
                with system.tolerated():
                    os.ftruncate(own.fd, start)
                raise
            if self._durable:
                self._own = None  # a failed fsync leaves nobody knowing what the disk holds: nothing is appended again
                if not start:
                    self._tree.sync_folders([own.name])
                system.sync_file(own.fd)
                self._own = own
            place, refs = own.number << PACK | start << OFFSET, []
            for data in records:
                refs.append(place | len(data) << LENGTH | crc32(data))
                place += len(data) << OFFSET
            return refs

    def note(self, inode: int, name: str) -> None:
        """A loose file was just made, or is to go: the journal says so.  Cost: an ``fstat`` and a ``write``.

        Where it cannot be had (a folder that is read-only, a full disk) the file stays if the handle is killed.
        """
        with self._mutex:
            try:
                journal, _ = self._writable(JOURNAL)
                os.write(journal.fd, bytes(f"{inode} {name}\0", "utf-8", "surrogateescape"))
            except OSError as error:
                raise_of_a_signal(error)
                log("debug", "no journal of %s: %s", self._tree.root, error)

    def _writable(self, ending: str = "") -> tuple[_File, int]:
        """The pack, or the journal, which stays open and locked from now on, and where it ends; a new one where that is
        closed, removed, or too long."""
        file = self._journal if ending else self._own
        if file is not None:
            if not file.unnamed:
                file.needed()
                file.unnamed = True
            status = file.status()
            if status is not None and status.st_nlink and status.st_size < _LONGEST:
                return file, status.st_size
        while True:
            number = int.from_bytes(os.urandom(5), "big")
            name = pack_of(number << PACK) + ending
            with system.Opened() as opened:
                self._tree.open(name, system.APPEND, opened, make=True)
                locked = system.try_lock(opened[0])
                status = os.fstat(opened[0])
                if not locked or (system.HOLDS_OPEN and not status.st_nlink):
                    continue  # 1. we made the file; 2. a reclaimer found it without a lock: it locked or removed it
                file = _File(opened[0], status, name, number, True)
                if not ending:
                    self._own = self._open[number] = file
                else:
                    self._close_journal()
                    self._journal = file
                opened.clear()
                return file, 0

    # Back.

    def read(self, ref: int) -> bytes:
        """The bytes of a record, with the right checksum.  `FileNotFoundError` if its pack is gone, `DamagedError`."""
        try:
            file = self._open[ref >> PACK]
            data = system.pread(file.fd, ref >> LENGTH & CRC, offset_of(ref))
            if crc32(data) == ref & CRC and len(data) == ref >> LENGTH & CRC:
                return data
        except OSError as error:  # the number is another file's, or none's: see below
            raise_of_a_signal(error)
        except (KeyError, OverflowError):  # it is not open; no address is that far, where addresses have 32 bits
            pass
        return self._read_anew(ref)

    def _read_anew(self, ref: int) -> bytes:
        """Open the pack, perhaps again: the program may have closed our descriptor and opened other files under it."""
        number, length, offset = ref >> PACK, record_size(ref), offset_of(ref)
        name = pack_of(ref)
        with system.Opened() as opened:
            status = self._tree.open(name, system.READ, opened)
            data = system.pread(opened[0], length, offset) if offset + length <= status.st_size else b""
            if crc32(data) != ref & CRC or len(data) != length:
                raise DamagedError(f"{self._tree.path(name)} of {status.st_size} bytes has not at {offset} to "
                                   f"{offset + length} the record that was written")
            with self._mutex:
                old = self._open.get(number)
                if old is None or old.end() < 0:  # else its lock would go with its descriptor
                    locked = old is not None and old.unnamed and system.try_lock(opened[0])
                    self._forget(number)
                    file = self._open[number] = _File(opened[0], status, name, number, locked)
                    opened.clear()
                    if not locked:
                        file.idle()
            return data

    def read_many(self, refs: Iterable[int], most: int = AHEAD) -> dict[int, bytes]:
        """The bytes of those records that are there, right, and of up to ``most``.  Neighbours are read together."""
        found: dict[int, bytes] = {}
        data, start = b"", 0  # what follows a record, and where, with the number of the pack in front
        for ref in sorted(refs):
            at, length = ref >> OFFSET, ref >> LENGTH & CRC
            if length > most:
                continue
            part = data[at - start : at - start + length]
            if crc32(part) == ref & CRC and len(part) == length:
                found[ref] = part
                continue
            data, start = b"", at + length
            with suppress(DamagedError), system.tolerated():
                found[ref] = self.read(ref)
                file = self._open.get(ref >> PACK)
                if file is not None:
                    data = system.pread(file.fd, AHEAD, offset_of(start << OFFSET))
        return found

    # Garbage.

    def committed(self, plain: bool = False, pending: bool = False) -> None:
        """An index names all that this handle wrote, or nobody ever will.  If some of it is ``pending``, nothing that
        protects other threads' records from a reclaimer is given up."""
        with self._mutex, system.tolerated():
            for number, file in [] if pending else list(self._open.items()):
                if file is self._own and not (plain and file.end() >= ROTATE):
                    file.unnamed = False
                    file.idle()
                elif file.unnamed or file is self._own:
                    self._forget(number)  # it is given up: let go of its lock
            journal = self._journal
            if journal is not None and not pending:
                journal.unnamed = False
                if self.left or journal.status() is None:
                    self._close_journal()  # anybody's next plain commit looks at what it lists
                else:
                    # What is done with is not listed: 1. another handle makes a file of such a name, and gets the very
                    # inode; 2. a third one's clean-up takes it for ours; 3. the maker's journal says whose it is.
                    os.ftruncate(journal.fd, 0)
                    journal.idle()

    def compact(self, refs: Mapping[Any, Ref | None]) -> dict[int, int]:
        """Copy what lives in packs without a living writer that hold more than twice as much to the end of this
        handle's own.  Old and new refs.  Cost: O(keys)."""
        moved: dict[int, int] = {}
        waste, moving = 0, []
        there = {name for name in self._files() if not name.endswith(JOURNAL)}
        for number, records in by_pack(refs.values() if there else ()).items():
            name, lives = pack_of(number << PACK), sum(map(record_size, records))
            held = max(self._tree.size(name), _BLOCK)
            if name in there and held > 2 * lives and idle(self._tree, name):
                waste += held - lives
                moving += records
        if waste < _SLACK:
            return moved
        # A full disk: what was copied is right, and the rest stays where it is.
        with system.tolerated("warning", "cannot compact the packs of %s: %s", self._tree.root):
            for some in batches(moving, _AT_ONCE, record_size):
                good = self.read_many(some, _LONGEST)
                if good:
                    moved.update(zip(good, self.append(list(good.values()))))
        return moved

    def reclaim(self, refs: Collection[object]) -> None:
        """Remove packs that no ref names and no writer holds, and loose files that journals list, unless a ref names
        them or a living handle has just made them; this handle's own too, if nothing that they hold is to come.

        An inode comes again: 1. a handle made x and died; 2. x was committed and removed by others; 3. a living one
        makes x anew and gets the same inode.  Its journal says so, and is read behind the look at what is there.
        """
        files = self._files()
        if not files:
            return
        loose = {ref for ref in refs if type(ref) is str}
        named = {pack_of(number << PACK) for number in {ref >> PACK for ref in refs if type(ref) is int}}
        with self._mutex:
            for number, file in list(self._open.items()):
                if not file.unnamed and file.name not in named:
                    self._forget(number)
            own = ""
            if self._journal is not None and not self._journal.unnamed:
                own = self._journal.name
                self._close_journal()
        with system.Opened() as locks:
            # They stay locked, as one may be so new that its writer is about to lock it: that makes another one then.
            dead = [name for name in files
                    if name == own or (name not in named and len(locks) < _DEAD and taken(self._tree, name, locks))]
            listed = {name: self._listed(name) for name in dead}
            there = {entry for entry in sorted(set().union(*listed.values()))
                     if entry[0] not in loose and self._is_there(*entry)}
            living = {entry for name in self._files() if name not in dead for entry in self._listed(name)}
            if not system.HOLDS_OPEN:
                locks.close()
            for name, entries in listed.items():
                # A journal that lists what cannot be removed now, as it is in use, is left to the next commit.
                stay = [entry for entry in sorted(entries & there - living) if not self._tree.discard(*entry)]
                if not stay:
                    self._tree.discard(name)
        self._tree.prune(PACKS + "/")

    def _files(self) -> list[str]:
        """The packs and journals that there are."""
        return [f"{PACKS}/{name}" for name in self._tree.listed(PACKS) if _OURS.fullmatch(name)]

    def _listed(self, name: str) -> set[tuple[str, int]]:
        """What a journal lists, names and inodes; nothing for a pack.  What a full disk tore is none."""
        if name.endswith(JOURNAL):
            with system.tolerated(), system.Opened() as opened:
                status = self._tree.open(name, system.READ, opened)
                found = _ENTRY.findall(system.pread(opened[0], status.st_size, 0))
                return {(text.decode("utf-8", "surrogateescape"), int(inode)) for inode, text in found}
        return set()

    def _is_there(self, name: str, inode: int) -> bool:
        """Is this the file that a journal lists?  If the system does not say, its removal tells why."""
        with system.tolerated():
            with suppress(FileNotFoundError, NotADirectoryError):
                return inside(name) and self._tree.status(name).st_ino == inode
            return False
        return True

    def _forget(self, number: int) -> None:
        """Close a pack, if it is open."""
        file = self._open.get(number)
        if file is not None:
            file.close()
            self._open.pop(number, None)

    def _close_journal(self) -> None:
        """Anybody's next plain commit looks at what the journal lists."""
        self.left = False
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def close(self) -> list[str]:
        """Let go of all: a pack that is wanted again is opened again, and what the journal lists now is nobody's.

        Returns the pack that was appended to, if there is one.
        """
        with self._mutex:
            own, self._own = self._own, None
            for number in list(self._open):
                self._forget(number)
            self._close_journal()
        return [own.name] if own is not None else []

    def after_fork(self) -> None:
        """In a fork's child: close the copies of the parent's descriptors, which keeps its locks, and begin anew."""
        self._mutex = threading.RLock()
        self.close()


def idle(tree: Tree, name: str) -> bool:
    """Is the writer of this file in `.packs` gone?"""
    with system.Opened() as opened:
        return taken(tree, name, opened)


def taken(tree: Tree, name: str, opened: list[int]) -> bool:
    """Take the lock of a file in `.packs`, if its writer is gone: its descriptor is put into ``opened``."""
    before = len(opened)
    with system.tolerated("debug", "%s cannot be looked at: %s", tree.path(name)):
        tree.open(name, system.READ, opened)
        if system.try_lock(opened[-1]):
            return True
    while len(opened) > before:
        os.close(opened.pop())
    return False
