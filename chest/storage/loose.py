"""Loose files: a value each, written once under a name that was free, read, compared, linked, removed.

The journal `.packs/<n>.new` of a handle lists the files that it made and no commit names yet, so that they can be
removed when it is killed.
"""
from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Collection, Hashable, Iterable
from typing import TYPE_CHECKING, Generic, TypeVar

from chest.errors import ChestError
from chest.index.filenames import Names, digest, inside
from chest.log import log
from chest.serialize.arrays import keeps_inodes
from chest.storage import system
from chest.storage.packs import FOLDER, Owned, idle, taken
from chest.storage.system import Buffer
from chest.storage.tree import Tree

if TYPE_CHECKING:
    from chest.serialize.codec import Codec

__all__ = ["Journal", "Loose", "NewFile", "check_inside", "version_of"]

K = TypeVar("K", bound=Hashable)

ENDING = ".new"
AT_ONCE = 100  # journals of dead handles that one commit looks at


def version_of(status: os.stat_result) -> int:
    """What tells a file from all that had its name before or will have it after.

    Where files do not keep their inode numbers, size and time have to do.
    """
    return hash((status.st_ino if keeps_inodes(status.st_dev) else 0, status.st_size, status.st_mtime_ns))


def check_inside(name: str, root: str) -> None:
    """`ChestError` unless ``name``, which an index gave, stays inside the directory ``root``."""
    if not inside(name):
        raise ChestError(f"the index of {root} names a file {name!r}, which is none of a chest's own: do not trust "
                         f"this chest")


class Journal:
    """Which files a handle has made that no commit names.  It is locked, as a pack is, while the handle lives.

    Where it cannot be had (a folder that is read-only, a full disk) values are written all the same, and stay if the
    handle is killed.
    """

    def __init__(self, tree: Tree):
        self._tree = tree
        self._mutex = threading.RLock()
        self._owned: Owned | None = None

    def note(self, inode: int, name: str) -> None:
        """``name`` was just made.  Cost: an ``fstat`` and a ``write``."""
        with self._mutex:
            try:
                owned = self._owned
                if owned is None or owned.descriptor.status() is None:
                    self._owned = owned = Owned(self._tree, ENDING)
                os.write(owned.descriptor.fd, f"{inode} {name}\0".encode("utf-8", "surrogateescape"))
            except OSError as error:
                system.raise_of_a_signal(error)
                log("debug", "no journal of %s: %s", self._tree.root, error)

    def empty(self, remove: bool) -> None:
        """A commit names all files; ``remove`` the journal as well."""
        with self._mutex:
            if self._owned is None:
                return
            if remove:
                self._remove(self._owned)
                self._owned = None
            elif self._owned.size() > 0:
                try:
                    os.ftruncate(self._owned.descriptor.fd, 0)
                except OSError as error:  # a reclaimer removes nothing that an index names
                    system.raise_of_a_signal(error)

    def _remove(self, owned: Owned) -> None:
        if not system.HOLDS_OPEN:
            owned.descriptor.close()
        try:
            self._tree.unlink(owned.name)
        except OSError as error:  # the next plain commit of anybody does it
            log("debug", "%s stays: %s", self._tree.path(owned.name), error)
        owned.descriptor.close()

    def erase_own(self) -> None:
        """Remove the files that it lists, and the journal: the chest is dropped."""
        owned = self._owned
        for inode, name in self._entries(owned.name) if owned is not None and owned.size() > 0 else ():
            self._unlink(name, inode)
        self.empty(remove=True)

    def _unlink(self, name: str, inode: int) -> None:
        try:
            self._tree.unlink(name, inode)
        except OSError as error:
            log("warning", "%s, which no index names, stays: %s", self._tree.path(name), error)

    def close(self) -> None:
        """Let go of the journal: what it lists now is nobody's."""
        with self._mutex:
            owned = self._owned
            if owned is not None:
                if owned.size() == 0:
                    self._remove(owned)
                owned.descriptor.close()
                self._owned = None

    def after_fork(self) -> None:
        """In a fork's child: close the copy of the parent's descriptor, and begin anew."""
        self._mutex = threading.RLock()
        owned, self._owned = self._owned, None
        if owned is not None:
            owned.descriptor.close()

    def reclaim(self, refs: Collection[object], names: Iterable[str]) -> None:
        """Remove the files that dead handles made, unless ``refs`` name them or a living handle has just made them.

        ``names``: of all files in `.packs`.
        An inode comes again: 1. a handle made x and died; 2. x was committed and removed by others; 3. a living one
        makes x anew and gets the same inode.  Its journal says so.

        The journals of the dead stay locked meanwhile, as one may be so new that its writer is about to lock it: that
        makes another one then.
        """
        mine = self._owned.name if self._owned is not None else ""
        journals = [f"{FOLDER}/{name}" for name in names if name.endswith(ENDING)]
        locks = system.Opened()
        try:
            dead = [name for name in journals
                    if len(locks) < AT_ONCE and name != mine and taken(self._tree, name, locks)]
            if not dead:
                return
            spared = {entry for name in journals if name not in dead for entry in self._entries(name)}
            named = {ref for ref in refs if type(ref) is str}
            for journal in reversed(dead):
                for inode, name in self._entries(journal):
                    if name not in named and (inode, name) not in spared and inside(name):
                        self._unlink(name, inode)
                os.close(locks.pop())
                idle(self._tree, journal, remove=True)
        finally:
            locks.close()

    def _entries(self, journal: str) -> list[tuple[int, str]]:
        """Inodes and names that a journal lists.  A line that a full disk tore lists nothing."""
        opened = system.Opened()
        try:
            status = self._tree.open(journal, system.READ, opened)
            data = system.pread(opened[0], status.st_size, 0)
        except OSError:
            return []
        finally:
            opened.close()
        entries = []
        for line in data.split(b"\0")[:-1]:
            inode, _, name = line.partition(b" ")
            if inode.isdigit():
                entries.append((int(inode), name.decode("utf-8", "surrogateescape")))
        return entries


class NewFile(Generic[K]):
    """The file of one value after another, while it is written.  ``overflow`` takes pieces while a value is encoded."""

    def __init__(self, loose: Loose[K], small: int):
        self._loose = loose
        self._small = small
        self._size = 0  # bytes of `held`
        self.held: list[Buffer] = []  # the first pieces of a value that may turn out to be small
        self.key: K
        self.name = ""  # of the file, once it is made
        self.fds = system.Opened()
        self.inode = self.device = 0

    def overflow(self, pieces: list[Buffer]) -> None:
        """Write pieces, which are good during this call only."""
        size = sum([memoryview(piece).nbytes for piece in pieces])
        if not self.name and self._size + size < self._small:
            self.held += [bytes(piece) for piece in pieces]
            self._size += size
            return
        if not self.name:
            self._loose.create(self)
        system.write_all(self.fds[0], self.take(pieces))

    def take(self, pieces: list[Buffer]) -> list[Buffer]:
        """``pieces`` behind those that were held back."""
        if self.held:
            pieces, self.held, self._size = self.held + pieces, [], 0
        return pieces

    def cancel(self) -> None:
        """Remove what was written so far: a half-written file must not stay, whatever stopped us."""
        self.fds.close()
        if self.name:
            try:
                self._loose.tree.unlink(self.name)
            except OSError as error:
                log("warning", "%s, which is half written, stays: %s", self._loose.tree.path(self.name), error)
        self.name, self.held, self._size = "", [], 0


class Loose(Generic[K]):
    """The loose files of a directory, as one handle makes and opens them.

    Cost of a file: ``open``, ``fstat``, the journal's ``fstat`` and ``write``, ``writev``, ``utime``, ``close``.
    """

    def __init__(self, tree: Tree, names: Names[K], durable: bool):
        self.tree = tree
        self.names = names
        self.journal = Journal(tree)
        self._durable = durable
        self._exact = False  # the file system keeps times to the nanosecond: no need to ask what it made of one
        self._last = 0
        self._renumbers: bool | None = None  # may files get other inode numbers while they are there?

    def _plain(self, key: K) -> str:
        """The plain name of ``key``.  Where neither inode nor time tells two files apart, one that never comes again.

        Else: 1. a handle loads x; 2. others write x~1, remove x, and write x again, of the same size and within the
        second that its time is kept to; 3. the handle takes what it has in memory for the newest.
        """
        plain = self.names.plain(key)
        if self._renumbers is None:
            self._renumbers = not keeps_inodes(os.stat(self.tree.root).st_dev)
        if self._renumbers:
            try:
                coarse = os.lstat(self.tree.prefix + ".keys").st_mtime_ns % 1_000_000 == 0
            except FileNotFoundError:  # nobody can have loaded anything yet
                coarse = False
            if coarse:
                return f"{plain}~{int.from_bytes(os.urandom(4), 'big')}"
        return plain

    def create(self, new: NewFile[K]) -> None:
        """Make a file for ``new.key``, under its reserved name if it has one, else under the next free one."""
        names = self.names
        plain = self._plain(new.key)
        name = names.reserved.get(new.key) or plain
        if "/" not in name and (name not in names.taken or new.key in names.reserved):
            try:
                new.fds.append(os.open(self.tree.prefix + name, system.CREATE, 0o666))
                new.name = name
            except OSError as error:  # it is taken; or what is wrong is wrong below too
                system.raise_of_a_signal(error)
        if not new.name:
            self._create_anyhow(new, plain)
        status = os.fstat(new.fds[0])
        new.inode, new.device = status.st_ino, status.st_dev
        self.journal.note(new.inode, new.name)

    def _create_anyhow(self, new: NewFile[K], plain: str) -> None:
        def usable(path: str, last: bool) -> bool:
            return self._made(path, new) if last else self._is_folder(path)

        reserved = self.names.reserved.get(new.key, "")
        for attempt in range(100):
            try:
                if "/" in reserved and self._is_folder(reserved.rpartition("/")[0]) and self._made(reserved, new):
                    return
                new.name = self.names.next_free(new.key, usable, plain if attempt < 10 else digest(new.key))
                return
            except OSError as error:
                # Another process removed the folder, empty just then: make it again.  exFAT says so of a name with a
                # colon, and other systems that they take no such name: then the md5 has to do.
                if error.errno not in _NO_NAME or not os.path.isdir(self.tree.root):
                    raise
                reserved = ""
        raise FileNotFoundError(errno.ENOENT, "its folder is removed as often as it is made", self.tree.root)

    def _made(self, name: str, new: NewFile[K]) -> bool:
        try:
            self.tree.open(name, system.CREATE, new.fds, make=True)
        except OSError as error:
            if new.fds or error.errno not in _TAKEN:
                raise
            log("warning", "%s is there already, and no index names it: it is left alone", self.tree.path(name))
            return False
        finally:
            if new.fds:  # it is made, and is to go if anything goes wrong
                new.name = name
        return True

    def _is_folder(self, name: str) -> bool:
        """Is there a folder of this name now?  A link to one does not count."""
        try:
            with self.tree.entry(name + "/x", make=True):
                return True
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            return False

    def finish(self, new: NewFile[K], size: int) -> int:
        """All ``size`` bytes are written: close the file.  Returns its version."""
        fd = new.fds[0]
        # Marked with a time of its own, so that no two files that had one inode and size look the same; an odd one, so
        # that a file system that keeps tenths of microseconds, or less, cannot give it back unchanged.
        self._last = when = max(time.time_ns(), self._last + 1) | 1
        try:
            os.utime(fd if system.UTIME_BY_DESCRIPTOR else self.tree.path(new.name), ns=(when, when))
            exact = self._exact
        except OSError as error:  # as on mounts where all files are one fixed user's: the system's own time has to do
            system.raise_of_a_signal(error)
            exact = False
        if not exact:
            status = os.fstat(fd)
            self._exact = status.st_mtime_ns == when
            when = status.st_mtime_ns
        if self._durable:
            system.sync_file(fd)
        os.close(new.fds.pop())
        return hash((new.inode if keeps_inodes(new.device) else 0, size, when))  # as `version_of`

    def dump(self, new: NewFile[K], value: object, codec: Codec) -> tuple[int, int]:
        """Make the file with the user's own dump and open.  Returns its size and version."""
        def usable(path: str, last: bool) -> bool:
            return not self._stands(path) if last else self._is_folder(path)

        name, plain = self.names.reserved.get(new.key, ""), self._plain(new.key)
        while not new.name:
            try:
                if not name or self._stands(name) or ("/" in name and not self._is_folder(name.rpartition("/")[0])):
                    name = self.names.next_free(new.key, usable, plain)
                codec.dump_to(value, self.tree.path(name))  # which leaves nothing of it when it fails
                new.name = name
            except FileExistsError:
                if not self._stands(name):  # a file of the user's own dump
                    raise
            except OSError as error:  # as in `_create_anyhow`
                refused = error.errno in _NO_NAME and str(error.filename).startswith(self.tree.prefix)
                if not refused or plain == digest(new.key):
                    raise
                plain = digest(new.key)
            name = new.name
        status = self.tree.open(new.name, system.READ, new.fds)
        new.inode, new.device = status.st_ino, status.st_dev
        self.journal.note(new.inode, new.name)
        return status.st_size, self.finish(new, status.st_size)

    def _stands(self, name: str) -> bool:
        try:
            self.tree.status(name)
        except OSError as error:
            return error.errno in _TAKEN
        return True

    def open(self, name: str, opened: list[int]) -> os.stat_result:
        """Open a file for reading, into ``opened``.  `OSError` for what is no regular file, or is behind a link."""
        if not (name.isidentifier() or name.isalnum()):  # most names are, and need no closer look
            check_inside(name, self.tree.root)
        return self.tree.open(name, system.READ, opened)

    def link(self, key: K, source: Tree, name: str) -> tuple[str, os.stat_result]:
        """A second name, for ``key``, of the file ``name`` of another directory.  `OSError` where that cannot be."""
        check_inside(name, source.root)
        if not hasattr(os, "link"):
            raise OSError(errno.ENOSYS, "the system has no hard links", source.path(name))

        def usable(path: str, last: bool) -> bool:
            if not last:
                return self._is_folder(path)
            try:
                with source.entry(name) as (old, theirs), self.tree.entry(path) as (new, ours):
                    if system.WALKS:
                        os.link(old, new, src_dir_fd=theirs, dst_dir_fd=ours, follow_symlinks=False)
                    else:
                        os.link(old, new)
            except FileExistsError:
                return False
            return True

        linked = self.names.next_free(key, usable, self._plain(key))
        status = self.tree.status(linked)
        self.journal.note(status.st_ino, linked)
        if not stat.S_ISREG(status.st_mode):
            self.tree.unlink(linked)
            raise OSError(errno.EINVAL, "this is no regular file", source.path(name))
        return linked, status

    def reserve(self, key: K) -> str:
        """The name that the next file of ``key`` will have, as far as anyone can tell now; kept for the key."""
        def usable(path: str, last: bool) -> bool:
            try:
                mode = self.tree.status(path).st_mode
            except OSError:
                return True  # nothing is there, or somebody will be told why not when it is made
            return not last and stat.S_ISDIR(mode)

        if key not in self.names.reserved:
            self.names.reserve(key, self.names.next_free(key, usable))
        return self.names.reserved[key]


# What making a file or a folder says where something that is none of ours stands in the way.
_TAKEN = {errno.EEXIST, errno.ELOOP, errno.ENOTDIR, errno.EISDIR}
# What it says of a name that the file system does not take.
_NO_NAME = {errno.ENOENT, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ}
