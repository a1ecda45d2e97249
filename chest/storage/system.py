"""What differs between operating systems and file systems: flags, locks, replacing, syncing, reading at a place.

Written for Windows and macOS, tested there by emulation only.
"""
from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from chest.errors import raised_by_signal
from chest.log import log
from chest.serialize.aligned import AT_ONCE, Buffer, pread
from chest.storage.descriptors import make_room

__all__ = ["APPEND", "CREATE", "FOLDER", "HOLDS_OPEN", "READ", "ROOT", "UTIME_BY_DESCRIPTOR", "WALKS", "Buffer",
           "Opened", "open_into", "open_lock", "open_regular", "pread", "replace", "sync_directory", "sync_file",
           "tolerated", "try_lock", "unlock", "write_all"]

_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_COMMON = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOINHERIT", 0)
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW | _COMMON  # whatever stands there, a dead link too, refuses
READ = os.O_RDONLY | _NOFOLLOW | getattr(os, "O_NONBLOCK", 0) | _COMMON  # a named pipe cannot make us wait
APPEND = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | _NOFOLLOW | _COMMON
ROOT = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _COMMON  # a chest's path itself may be a link,
FOLDER = ROOT | _NOFOLLOW  # and a folder in it may not
WALKS = hasattr(os, "link") and {os.open, os.mkdir, os.stat, os.unlink, os.rmdir, os.link} <= os.supports_dir_fd
HOLDS_OPEN = sys.platform != "win32"  # a file that is open can be replaced and removed, and its inode stays its own
_WRITEV = hasattr(os, "writev")
_PIECES = 1024  # that one writev takes
UTIME_BY_DESCRIPTOR = os.utime in os.supports_fd
# What a sync says that the file system does not know; of a folder some say that it is one, or not open to be written.
_UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EBADF, errno.EISDIR}


if sys.platform == "win32":
    import msvcrt

    _FAR = 1 << 40  # a locked byte cannot be read by others: so it is one that no file has

    def open_lock(directory: str, opened: list[int]) -> None:
        """Windows cannot lock a directory: a file stands in for it, which goes with its last descriptor."""
        open_into(opened, os.path.join(directory, ".lock"), os.O_RDWR | os.O_CREAT | getattr(os, "O_TEMPORARY", 0))

    def _locking(fd: int, how: int) -> None:
        os.lseek(fd, _FAR, os.SEEK_SET)  # what is locked is only appended to, and read by `pread`
        msvcrt.locking(fd, how, 1)

    def try_lock(fd: int) -> bool:
        with suppress(OSError):
            _locking(fd, msvcrt.LK_NBLCK)
            return True
        return False

    def unlock(fd: int) -> None:
        _locking(fd, msvcrt.LK_UNLCK)

    def replace(source: str, target: str) -> None:
        """Rename ``source`` over ``target``; while a reader has ``target`` open, try again for up to 10 seconds."""
        deadline = time.monotonic() + 10.0
        while True:
            try:
                return os.replace(source, target)
            except PermissionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)

    def sync_directory(directory: str | int) -> None:
        """Windows writes a directory's entries with the file's own flush."""

    sync_file = os.fsync

else:
    import fcntl

    replace = os.replace
    _FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None)

    def open_lock(directory: str, opened: list[int]) -> None:
        """A descriptor to lock: the directory itself, so that no file of the lock is left behind."""
        open_into(opened, directory, os.O_RDONLY | _COMMON)

    def try_lock(fd: int) -> bool:
        """Take the lock of an open file, or say `False` if another open file description has it.

        The kernel frees it when its last descriptor is closed.  `OSError` where the file system has no locks.
        """
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def unlock(fd: int) -> None:
        """Let go explicitly: closing would not do while a process that was forked just now has the descriptor too."""
        fcntl.flock(fd, fcntl.LOCK_UN)

    def sync_file(fd: int) -> None:
        """Make the content of a file survive a loss of power.  On macOS ``fsync`` alone stops at the disk's cache."""
        if _FULL_SYNC is not None:
            try:
                fcntl.fcntl(fd, _FULL_SYNC)
                return
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
        os.fsync(fd)

    def sync_directory(directory: str | int) -> None:
        """Make the names in a directory survive a loss of power.

        Some network and shared file systems refuse that (`EINVAL`): then everything of this machine is written.
        """
        with Opened() as opened:
            if isinstance(directory, str):
                open_into(opened, directory, ROOT)
                directory = opened[0]
            try:
                os.fsync(directory)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                os.sync()


if sys.platform == "emscripten":  # a browser: this process is alone there, and ``flock`` locks nobody out
    _held: dict[tuple[int, int] | None, int] = {}  # files, and the descriptors that have their locks until they close

    def _file(fd: int) -> tuple[int, int] | None:
        with suppress(OSError):
            status = os.fstat(fd)
            return status.st_dev, status.st_ino
        return None

    def try_lock(fd: int) -> bool:
        file = _file(fd)
        holder = _held.get(file, fd)
        if holder != fd and _file(holder) == file:
            return False
        _held[file] = fd
        return True

    def unlock(fd: int) -> None:
        _held.pop(_file(fd), None)


class tolerated:
    """``with tolerated(level, message, path):`` what the system refuses there is passed over, and told in the log."""

    def __init__(self, *told: str):
        self._told = told

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, OSError) or raised_by_signal(error):
            return False
        if self._told:
            level, message, path = self._told
            log(level, message, path, error)
        return True


class _Closed(list[int]):
    __slots__ = ()

    def close(self, *exception: object) -> None:
        try:
            while self:
                os.close(self.pop())
        finally:
            if not self:
                self.__class__ = _Closed  # without the finaliser

    def __enter__(self) -> _Closed:
        return self

    __exit__ = close


class Opened(_Closed):
    """Descriptors that `close`, or the end of a ``with``, closes again.

    Only where Ctrl-C comes just then does the finaliser do it: what a signal's handler raises there is lost.
    """

    __slots__ = ()
    __del__ = _Closed.close


def open_into(opened: list[int], path: str, flags: int, folder: int | None = None) -> None:
    """Open a file and put its descriptor into ``opened``: in one call of C, as Ctrl-C comes when the system is through
    with the first of several.  Where no descriptor is left, what is open for speed only is closed for it."""
    while True:
        try:
            return opened.extend(map(partial(os.open, dir_fd=folder), (path,), (flags,), (0o666,)))
        except OSError as error:
            if not make_room(error):
                raise


def open_regular(path: str, flags: int, opened: list[int], folder: int | None = None) -> os.stat_result:
    """Open a file and say what it is; its descriptor is put into ``opened``, also where the system then fails to say.

    `OSError` if it is a link, or anything but a regular file.
    """
    if not _NOFOLLOW and os.path.islink(path):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    open_into(opened, path, flags, folder)
    status = os.fstat(opened[-1])
    if not stat.S_ISREG(status.st_mode):
        os.close(opened.pop())
        raise OSError(errno.EINVAL, "this is no regular file", path)
    return status


def write_all(fd: int, pieces: Sequence[Buffer]) -> None:
    """Write all of ``pieces``: one ``writev`` for up to 1,024; what that leaves one by one, until an error says why."""
    while pieces:
        group, pieces = pieces[:_PIECES], pieces[_PIECES:]
        done = os.writev(fd, group) if _WRITEV else 0
        if done == sum(map(len, group)):
            continue
        for piece in group:
            rest = memoryview(piece)[done:]
            done = max(done - len(piece), 0)
            while rest:
                written = os.write(fd, rest[:AT_ONCE])
                if not written:
                    raise OSError(errno.EIO, "the system writes no more, and does not say why")
                rest = rest[written:]

