"""Loose files: a value each, written once under a name that was free."""
from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Callable

from chest.errors import ChestError, DumpError, raise_of_a_signal
from chest.index.filenames import Names, digest, inside
from chest.log import log
from chest.serialize.arrays import keeps_inodes, preallocates
from chest.storage import system
from chest.storage.base import Written
from chest.storage.packs import Packs
from chest.storage.tree import Tree

if TYPE_CHECKING:
    from chest.serialize.codec import Codec, Stamp

__all__ = ["Loose", "NewFile", "version_of"]


PREALLOCATED = 1 << 20  # bytes of a file from which on its room is reserved before it is written

_new = tuple.__new__  # makes a Written without a call of Python
# What making a file says of a name that the file system does not take, exFAT ENOENT of one with a colon; and of one
# whose folder is a file or a link.
_NO_NAME = {errno.ENOENT, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ENOTDIR, errno.ELOOP}


def version_of(status: os.stat_result) -> int:
    """What tells a file from all that had its name before or will have it after; where files do not keep their inode
    numbers, size and time have to do."""
    return hash((status.st_ino if keeps_inodes(status.st_dev) else 0, status.st_size, status.st_mtime_ns))


class Loose:
    """The loose files of a directory, as one handle names them, and what it knows of the file system."""

    def __init__(self, tree: Tree, packs: Packs, names: Names, durable: bool):
        self.tree = tree
        self.packs = packs
        self.names = names
        self.durable = durable
        self.last = 0  # the time that the newest file was marked with, in ns

    @cached_property
    def device(self) -> int:
        """The number of the file system, which tells what there is to know of it."""
        return os.stat(self.tree.root).st_dev

    def wanted(self, key: object) -> str:
        """The name reserved for ``key``, or its plain one.  Where neither inode nor time tells two files apart, one
        that never comes again.

        Else: 1. a handle loads x; 2. others write x~1, remove x, and write x again, of the same size and within the
        second that its time is kept to; 3. the handle takes what it has in memory for the newest.
        """
        reserved = self.names.reserved.get(key)  # another thread may release it
        name = reserved or self.names.plain(key)
        if not (reserved or keeps_inodes(self.device)):
            with suppress(FileNotFoundError):  # then nobody can have loaded anything yet
                if os.lstat(self.tree.prefix + ".keys").st_mtime_ns % 1_000_000 == 0:
                    return f"{name}~{int.from_bytes(os.urandom(4), 'big')}"
        return name

    def place(self, key: object, make: Callable[[str], object]) -> str:
        """Call ``make`` with the wanted name of ``key``, then with ``~1``, ``~2`` … behind it, until it succeeds.

        It raises `FileExistsError` where something stands.  Returns the name: an md5 where the disk does not take the
        wanted one, or its folder is something else there.
        """
        def usable(name: str) -> bool:
            try:
                make(name)
            except FileExistsError as error:
                raise_of_a_signal(error)
                log("warning", "%s is there already, and no index names it: it is left alone", self.tree.path(name))
                return False
            return True

        try:
            return self.names.next_free(key, usable, self.wanted(key))
        except OSError as error:
            ours = str(error.filename).startswith(self.tree.prefix) and os.path.isdir(self.tree.root)
            if error.errno not in _NO_NAME or not ours:
                raise
            return self.names.next_free(key, usable, digest(key))

    def reserve(self, key: object) -> str:
        return self.names.reserve(key, lambda: self.names.next_free(key, self.is_free))

    def is_free(self, name: str) -> bool:
        """Does nothing stand there?"""
        with system.tolerated():
            self.tree.status(name)
            return False
        return True  # or somebody will be told why not when it is made

    def open(self, name: str, opened: list[int]) -> os.stat_result:
        """Open a file for reading, into ``opened``.  `OSError` for what is no regular file, or is behind a link,
        `ChestError` for a name that leads out of the directory."""
        if not (name.isalnum() or name.isidentifier() or inside(name)):  # most names are, and need no closer look
            raise ChestError(f"the index of {self.tree.root} names a file {name!r}, which is none of a chest's own: do "
                             f"not trust this chest")
        return self.tree.open(name, system.READ, opened)

    def look(self, name: str) -> os.stat_result:
        """As `open` says it is."""
        with system.Opened() as opened:
            return self.open(name, opened)

    def link(self, key: object, source: Loose, name: str) -> Written:
        """A second name, for ``key``, of the file ``name`` of another directory.  `OSError` where that cannot be."""
        linked = ""

        def make(new: str) -> None:
            nonlocal linked
            with self.tree.entry(new, make=True) as (path, ours), source.tree.entry(name) as (old, theirs):
                if self.is_free(new):  # else it may be somebody's own link of that file
                    self.packs.note(inode, new)  # first, as a kill comes behind the link
                linked = new  # and Ctrl-C when the system is through
                if system.WALKS:
                    os.link(old, path, src_dir_fd=theirs, dst_dir_fd=ours, follow_symlinks=False)
                else:
                    os.link(old, path)

        if not hasattr(os, "link"):
            raise OSError(errno.ENOSYS, "the system has no hard links", source.tree.path(name))
        inode = source.look(name).st_ino
        try:
            self.place(key, make)
            with system.Opened() as opened:
                status = self.tree.open(linked, system.READ, opened)
                if self.durable:
                    system.sync_file(opened[0])
                    self.tree.sync_folders([linked])
        except BaseException:
            if linked:
                self.tree.unlink(linked, inode)
            raise
        return Written(linked, status.st_size, version_of(status))


class NewFile:
    """The loose file of one value after another, while it is written.

    Cost of a file: ``open``, ``fstat``, the journal's ``fstat`` and ``write``, ``writev``, ``utime``, ``fstat``,
    ``close``; for a large one on ext4 ``fallocate``, as well.
    """

    def __init__(self, loose: Loose):
        self._loose = loose
        self.key: object
        self.opened = system.Opened()  # the file, once it is made
        self.inode = 0  # of the file that was made for this key
        self._name = ""

    def write(self, pieces: list[system.Buffer], size: int = 0) -> None:
        """Write pieces of a value, which are good during this call only; ``size`` if these bytes are all of it."""
        if not self.opened:
            loose, key = self._loose, self.key
            name = loose.wanted(key)
            if "/" not in name and loose.names.is_free(key, name):
                self._name = name
                try:
                    # In one call of C, as `system.open_into`.
                    self.opened.extend(map(os.open, (loose.tree.prefix + name,), (system.CREATE,), (0o666,)))
                except OSError as error:  # it is taken; or what is wrong is wrong below too
                    raise_of_a_signal(error)
            if not self.opened:
                loose.place(key, self._make)
            self.inode = os.fstat(self.opened[0]).st_ino
            loose.packs.note(self.inode, self._name)
            if size >= PREALLOCATED and preallocates(loose.device):
                try:
                    os.posix_fallocate(self.opened[0], 0, size)
                except OSError as error:  # such as a full disk: the write says so too
                    raise_of_a_signal(error)
        system.write_all(self.opened[0], pieces)

    def _make(self, name: str) -> None:
        self._name = name
        self._loose.tree.open(name, system.CREATE, self.opened, make=True)

    def dump(self, value: object, codec: Codec) -> Written:
        """Make the file with the user's own dump and open."""
        loose = self._loose

        def make(name: str) -> None:
            self._name = name
            with loose.tree.entry(name, make=True):
                pass
            try:
                codec.dump_to(value, loose.tree.path(name), made)
            except FileExistsError as error:  # of what stood there, though that may be gone by now
                if self.inode:
                    raise DumpError(f"dump= says that a file is there already: {error}") from error
                raise

        def made(inode: int) -> None:
            self.inode = inode
            loose.packs.note(inode, self._name)

        loose.place(self.key, make)
        self.inode = loose.tree.open(self._name, system.READ, self.opened).st_ino
        loose.packs.note(self.inode, self._name)  # again, as the user's open may have put another file there
        return self.finish(None)

    def finish(self, stamp: Stamp) -> Written:
        """All is written: close the file."""
        loose, fd = self._loose, self.opened[0]
        # Marked with a time of its own, so that no two files that had one inode and size look the same; an odd one, so
        # that a file system that keeps tenths of microseconds, or less, cannot give it back unchanged.
        when = time.time_ns() | 1
        if when <= loose.last:
            when = loose.last + 2
        loose.last = when
        try:
            os.utime(fd if system.UTIME_BY_DESCRIPTOR else loose.tree.path(self._name), ns=(when, when))
        except OSError as error:  # as on mounts where all files are one fixed user's: the system's own time has to do
            raise_of_a_signal(error)
        status = os.fstat(fd)  # the file system may keep times less exactly
        if loose.durable:
            system.sync_file(fd)
        os.close(self.opened.pop())
        return _new(Written, (self._name, status.st_size, version_of(status), stamp, None))

    def cancel(self) -> None:
        """Remove what was made for this key: a half-written file must not stay, whatever stopped us."""
        with system.tolerated():
            if self.opened:
                self.inode = os.fstat(self.opened[0]).st_ino
                self.opened.close()
        if self.inode and not self._loose.tree.discard(self._name, self.inode):
            self._loose.packs.left = True
        self.opened, self.inode = system.Opened(), 0
