"""What differs between operating systems: locking a directory, replacing a file, making both last."""
from __future__ import annotations

import os
import sys
import time

__all__ = ["HOLDS_OPEN", "abandon_locks", "lock", "replace", "sync_directory", "unlock"]

if sys.platform == "win32":
    import msvcrt

    HOLDS_OPEN = False  # a file that is open cannot be replaced; but NTFS does not give a file's number again for long

    def lock(directory: str, held: list[int]) -> None:
        """Wait for the directory's lock; the descriptor that holds it is put into ``held`` before it does.

        Windows cannot lock a directory: a file stands in for it, which the system removes with its last descriptor.
        """
        held.append(os.open(os.path.join(directory, ".lock"), os.O_RDWR | os.O_CREAT | os.O_TEMPORARY))
        try:
            while True:
                try:
                    return msvcrt.locking(held[-1], msvcrt.LK_NBLCK, 1)
                except OSError:
                    time.sleep(0.005)
        except BaseException:
            os.close(held.pop())
            raise

    def unlock(held: list[int]) -> None:
        while held:
            msvcrt.locking(held[-1], msvcrt.LK_UNLCK, 1)
            os.close(held.pop())

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

    def lock(directory: str, held: list[int]) -> None:
        """Wait for the directory's lock; the descriptor that holds it is put into ``held`` before it does.

        A directory that was dropped and made anew while we waited is another one: then its lock is what we need.
        """
        while True:
            held.append(os.open(directory, os.O_RDONLY | os.O_CLOEXEC))
            _locks.add(held[-1])
            try:
                _wait_for(held[-1])
                if os.path.samestat(os.fstat(held[-1]), os.stat(directory)):
                    return
            except BaseException:
                unlock(held)
                raise
            unlock(held)

    def _wait_for(descriptor: int) -> None:
        """Take the lock.  A commit is over in less time than it takes to sleep and be woken: so we look a few times."""
        for _ in range(60):
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.sched_yield()
        fcntl.flock(descriptor, fcntl.LOCK_EX)

    def unlock(held: list[int]) -> None:
        """Let go explicitly: closing would not do while a process that was forked just now still has the descriptor."""
        while held:
            fcntl.flock(held[-1], fcntl.LOCK_UN)
            _locks.discard(held[-1])
            os.close(held.pop())

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
