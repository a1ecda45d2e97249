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

from chest.log import log
from chest.storage import system
from chest.storage.descriptors import Descriptor, descriptors

__all__ = ["DirectoryLock", "after_fork", "check", "directory_lock"]

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
        self._held: list[int] = []  # the descriptor that has the lock, or waits for it
        self._proof: Descriptor | None = None  # that it is still that

    def __enter__(self) -> None:
        mutex, entered, depth = self._mutex, False, 0
        try:
            entered = mutex.acquire(timeout=WARN)  # in one line, so that Ctrl-C comes before it or after it
            if not entered:
                log("warning", "another thread has held the lock of %s for %g seconds", self.directory, WARN)
                entered = mutex.acquire()
            depth = self._depth
            if not depth:
                self._let_go()  # nothing is held, unless Ctrl-C came just as it was taken
                self._lock()
            self._depth = depth + 1
        except BaseException:  # Ctrl-C while we waited, or a directory that is gone
            if entered:
                self._depth = depth
                if not depth:
                    self._let_go()
                mutex.release()
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
            try:
                while True:
                    self._mutex.release()
            except RuntimeError:  # now it is not ours any more
                pass

    def abandon(self) -> None:
        """In a fork's child: the lock, if it is held, is the parent's, and stays locked there.

        The copies of its descriptors are closed, lest the parent's death leave its lock to us.
        """
        self._mutex = threading.RLock()
        self._depth = 0
        while self._held:
            os.close(self._held.pop())

    def _lock(self) -> None:
        """Wait for the other processes.

        A directory that was dropped and made anew while we waited is another one: then its lock is what we need.
        """
        while True:
            self._proof = None
            self._held.append(_open(self.directory))
            mine = os.fstat(self._held[-1])
            self._proof = Descriptor(self._held[-1], mine)
            self._wait(self._held[-1])
            if not system.HOLDS_OPEN or os.path.samestat(mine, os.stat(self.directory)):
                return
            self._let_go()

    def _wait(self, fd: int) -> None:
        start, told, looks = time.monotonic(), False, 0
        while not self._try(fd):
            looks += 1
            if looks < _QUICK and hasattr(os, "sched_yield"):
                os.sched_yield()
                continue
            waited = time.monotonic() - start
            if waited > WARN and not told:
                told = True
                log("warning", "another process has held the lock of %s for more than %g seconds", self.directory, WARN)
            time.sleep(min(0.0005 + waited / 50, 0.01))

    def _try(self, fd: int) -> bool:
        try:
            return system.try_lock(fd)
        except OSError as error:
            system.raise_of_a_signal(error)
            raise _no_locks(error, self.directory) from error

    def _let_go(self) -> None:
        while self._held:
            if self._proof is None or not self._proof.lost():
                system.unlock(self._held[-1])
                os.close(self._held.pop())
            else:  # the program closed it, and so freed the lock
                self._held.pop()


def _no_locks(error: OSError, directory: str) -> OSError:
    return OSError(error.errno, f"cannot lock the directory ({error.strerror}): without locks, processes that share a "
                                f"chest would undo each other's commits; choose another path, or only read (flag='r')",
                   directory)


def check(directory: str, writes: bool) -> None:
    """`OSError` if the file system of ``directory`` lacks what a chest cannot do without: it says what, and why.

    What else goes wrong here is left to whoever needs it.  Cost: 5 system calls.
    """
    if not system.HOLDS_OPEN:
        return
    opened = system.Opened()
    try:
        try:
            opened.append(os.open(os.path.join(directory, "."), system.FOLDER))
        except OSError as error:
            system.raise_of_a_signal(error)
            if error.errno == errno.EINVAL:
                raise OSError(errno.EINVAL, "this file system knows no O_NOFOLLOW or no O_DIRECTORY: chest could not "
                              "tell a link that leads elsewhere from a file of its own; choose another path",
                              directory) from error
            return
        try:
            if writes and system.try_lock(opened[0]):
                system.unlock(opened[0])
        except OSError as error:
            system.raise_of_a_signal(error)
            raise _no_locks(error, directory) from error
    finally:
        opened.close()


def _open(directory: str) -> int:
    try:
        return system.open_lock(directory)
    except OSError as error:
        if isinstance(error, FileNotFoundError) or not descriptors.make_room():
            raise
        return system.open_lock(directory)


_locks: weakref.WeakValueDictionary[str, DirectoryLock] = weakref.WeakValueDictionary()
_mutex = threading.Lock()


def directory_lock(directory: str) -> DirectoryLock:
    """The one lock of ``directory`` in this process, however the path is spelled."""
    real = os.path.realpath(directory)
    with _mutex:
        found = _locks.get(real)
        if found is None:
            found = _locks[real] = DirectoryLock(real)
        return found


def after_fork() -> None:
    """In a fork's child: no lock is held, and no thread waits for any."""
    global _mutex
    _mutex = threading.Lock()
    descriptors.after_fork()
    for lock in list(_locks.values()):
        lock.abandon()
