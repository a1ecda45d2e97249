"""The lock of a directory: one process at a time commits, and within a process one thread.

Between processes the lock is on the directory itself, so that no file of it is left behind, and the kernel frees it
when its holder dies.  Within a process all handles on one directory share one re-entrant `DirectoryLock`, because two
descriptors of one process would block each other.
"""
from __future__ import annotations

import errno
import os
import threading
import time
import weakref
from contextlib import suppress

from chest.errors import raise_of_a_signal
from chest.log import log
from chest.storage import descriptors, system
from chest.storage.descriptors import Descriptor

__all__ = ["DirectoryLock", "after_fork", "check_file_system", "directory_lock"]

WARN = 5.0  # seconds of waiting after which the log says for what
_QUICK = 60  # looks before the first sleep: a commit is over in less time than it takes to sleep and be woken


class DirectoryLock:
    """``with lock:`` this thread alone, of all processes, commits to the directory.  Re-entrant.

    `FileNotFoundError` if the directory is gone, `OSError` where its file system has no locks.  Ctrl-C ends the wait.
    Cost: 4 system calls.
    """

    def __init__(self, directory: str):
        self.directory = directory
        self._mutex = threading.RLock()
        self._depth = 0
        self._held: Descriptor | None = None  # the descriptor that has the lock

    def __enter__(self) -> None:
        taken: list[bool] = []
        depth = None
        try:
            taken.extend(map(self._mutex.acquire, (True,)))  # in one call of C, as Ctrl-C comes when that is through
            depth = self._depth
            if not depth:
                self._let_go()  # nothing is held, unless Ctrl-C came just as it was taken
                self._lock()
            self._depth = depth + 1
        except BaseException:  # Ctrl-C while we waited, or a directory that is gone
            if depth is not None:
                self._depth = depth
                if not depth:
                    self._let_go()
            if taken:
                self._mutex.release()
            raise

    def __exit__(self, *exception: object) -> None:
        if not self._depth:
            return  # a fork's child comes out of a block that its parent went into
        try:
            self._depth -= 1
            if not self._depth:
                self._let_go()
        finally:
            self._mutex.release()

    def mend(self) -> None:
        """Outside of all blocks: let go of what this thread still holds, as Ctrl-C came on the way out of one."""
        if self._mutex.acquire(blocking=False):
            self._depth = 0
            self._let_go()
            with suppress(RuntimeError):  # now it is not ours any more
                while True:
                    self._mutex.release()

    def abandon(self) -> None:
        """In a fork's child: close the copy of the parent's descriptor, lest its death leave its lock to us."""
        self._mutex = threading.RLock()
        self._depth = 0
        self._let_go(unlock=False)

    def _let_go(self, unlock: bool = True) -> None:
        held = self._held
        if held is not None:
            try:
                with system.tolerated():  # as it was not locked yet, or cannot be
                    if unlock and held.status() is not None:
                        system.unlock(held.fd)
            finally:  # also if Ctrl-C comes: else all wait until this process uses the chest again
                held.close()
                self._held = None

    def _lock(self) -> None:
        """Wait for the other processes; if the directory was dropped and made anew meanwhile, lock the new one."""
        start, told, looks = time.monotonic(), False, 0
        while True:
            with system.Opened() as opened:
                system.open_lock(self.directory, opened)
                mine = os.fstat(opened[0])
                held = self._held = Descriptor(opened[0], mine)
                opened.clear()
            while True:
                try:
                    if system.try_lock(held.fd):
                        break
                except OSError as error:
                    raise_of_a_signal(error)
                    raise _no_locks(error, self.directory) from error
                looks += 1
                if looks < _QUICK and hasattr(os, "sched_yield"):
                    os.sched_yield()
                    continue
                waited = time.monotonic() - start
                if waited > WARN and not told:
                    told = True
                    log("warning", "the lock of %s has been held for more than %g seconds", self.directory, WARN)
                time.sleep(min(0.0005 + waited / 50, 0.01))
            if not system.HOLDS_OPEN or os.path.samestat(mine, os.stat(self.directory)):
                return
            self._let_go()


def _no_locks(error: OSError, directory: str) -> OSError:
    return OSError(error.errno, f"cannot lock the directory ({error.strerror}): without locks, processes that share a "
                                f"chest would undo each other's commits; choose another path, or only read (flag='r')",
                   directory)


def check_file_system(directory: str, writes: bool) -> None:
    """`OSError` if the file system of ``directory`` lacks what a chest cannot do without: it says what, and why.

    If it is not there yet, that of the folder that is to hold it.  What else goes wrong here is left to whoever needs
    it.  Cost: 6 system calls.
    """
    if not system.HOLDS_OPEN:
        return
    there = directory
    while not os.path.isdir(there) and os.path.dirname(there) != there:
        there = os.path.dirname(there)
    with system.Opened() as opened:
        try:
            system.open_into(opened, os.path.join(there, "."), system.FOLDER)
            if writes and system.try_lock(opened[0]):
                system.unlock(opened[0])
        except OSError as error:
            raise_of_a_signal(error)
            if opened:
                raise _no_locks(error, directory) from error
            if error.errno == errno.EINVAL:
                raise OSError(errno.EINVAL, "this file system knows no O_NOFOLLOW or no O_DIRECTORY: chest could not "
                              "tell a link that leads elsewhere from a file of its own; choose another path",
                              directory) from error


# Not a `WeakValueDictionary`, whose callbacks are Python: what a signal's handler raises in one is lost, and a signal
# that comes while a chest is freed would be handled there.
_locks: dict[str, weakref.ref[DirectoryLock]] = {}
_mutex = threading.Lock()


def directory_lock(directory: str) -> DirectoryLock:
    """The one lock of ``directory`` in this process, however the path is spelled.  Cost: O(open directories) if new."""
    real = os.path.realpath(directory)
    with _mutex:
        lock = _locks[real]() if real in _locks else None
        if lock is None:
            for gone in [path for path, found in _locks.items() if found() is None]:
                del _locks[gone]
            lock = DirectoryLock(directory)  # as it is spelled: a link on the way may lead elsewhere one day
            _locks[real] = weakref.ref(lock)
        return lock


def after_fork() -> None:
    """In a fork's child: no lock is held, and no thread waits for any."""
    global _mutex
    _mutex = threading.Lock()
    descriptors.after_fork()
    for lock in [found() for found in _locks.values()]:
        if lock is not None:
            lock.abandon()
