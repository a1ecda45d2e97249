"""What differs between operating systems: locking a directory, replacing a file, making both last."""
from __future__ import annotations

import os
import sys
import time

__all__ = ["HOLDS_OPEN", "abandon_locks", "lock", "replace", "sync_directory", "unlock"]

if sys.platform == "win32":
    import msvcrt

    HOLDS_OPEN = False  # a file that is open cannot be replaced; but NTFS does not give a file's number again for long

    def lock(directory: str) -> int:
        """Wait for the directory's lock and return the descriptor that holds it.

        Windows cannot lock a directory: a file stands in for it, which the system removes with its last descriptor.
        """
        fd = os.open(os.path.join(directory, ".lock"), os.O_RDWR | os.O_CREAT | os.O_TEMPORARY)
        while True:
            try:
                msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
                return fd
            except OSError:
                time.sleep(0.005)

    def unlock(fd: int) -> None:
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)
        os.close(fd)

    def replace(source: str, target: str, patience: float = 10.0) -> None:
        """Rename ``source`` over ``target``, for up to ``patience`` seconds while a reader has ``target`` open."""
        deadline = time.monotonic() + patience
        while True:
            try:
                return os.replace(source, target)
            except PermissionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)

    def abandon_locks() -> None:
        """Nothing forks here."""

    def sync_directory(directory: str) -> None:
        """Windows writes a directory's entries with the file's own flush."""

else:
    import fcntl

    HOLDS_OPEN = True  # while an inode is held open its number cannot come back

    replace = os.replace

    _locks: set[int] = set()  # descriptors that hold a lock, or wait for one

    def lock(directory: str) -> int:
        """Wait for the directory's lock and return the descriptor that holds it.

        A directory that was dropped and made anew while we waited is another one: then its lock is what we need.
        """
        while True:
            fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
            _locks.add(fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if os.path.samestat(os.fstat(fd), os.stat(directory)):
                    return fd
            except BaseException:
                _close(fd)
                raise
            _close(fd)

    def unlock(fd: int) -> None:
        """Let go explicitly: closing would not do while a process that was forked just now still has the descriptor."""
        fcntl.flock(fd, fcntl.LOCK_UN)
        _close(fd)

    def _close(fd: int) -> None:
        _locks.discard(fd)
        os.close(fd)

    def abandon_locks() -> None:
        """In a fork's child: close the parent's descriptors, lest the parent's death leave its locks to us.

        That leaves them locked there.
        """
        while _locks:
            os.close(_locks.pop())

    def sync_directory(directory: str) -> None:
        """Make the names in ``directory`` survive a loss of power."""
        fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
