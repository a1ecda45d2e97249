"""Open files that this process keeps, no more of them than it may have; and proof that a number is still our file's.

Many chests may be open at once, each with a pack and an index.  So what is kept open only for speed says so here, and
is closed when there is too much of it: it is opened again where it is needed.
"""
from __future__ import annotations

import errno
import os
import threading
from typing import Protocol

from chest.storage import system

__all__ = ["Closable", "Descriptor", "Descriptors", "descriptors"]


class Descriptor:
    """A file of ours that is open.

    A program may close descriptors that are not its own (a daemon does), and open other files under their numbers.
    `status` tells before we write, lock, or close.
    """

    __slots__ = ("device", "fd", "inode")

    def __init__(self, fd: int, status: os.stat_result):
        self.fd = fd
        self.device, self.inode = status.st_dev, status.st_ino

    def status(self) -> os.stat_result | None:
        """What the system says of the file now; `None` if the number is no longer ours.  One ``fstat``."""
        try:
            status = os.fstat(self.fd)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            return None
        return status if (status.st_dev, status.st_ino) == (self.device, self.inode) else None

    def close(self, locked: bool = False) -> None:
        """Close the file, if it is still this one, or the system fails to say (a stale handle); unlock it first."""
        ours = True
        with system.tolerated():
            ours = self.status() is not None
        if ours:
            if locked:
                with system.tolerated():  # as it was not locked yet, or cannot be
                    system.unlock(self.fd)
            os.close(self.fd)
        self.fd = -1


class Closable(Protocol):
    """Something that keeps a file open for speed."""

    def close_idle(self) -> bool:
        """Close the file if it can be opened again when needed; `False`: not now.  Any thread calls it: no waiting."""


class Descriptors:
    """What may be closed: at most ``limit`` files, or a quarter of what the system allows, stay open."""

    def __init__(self, limit: int = 0):
        self._limit = limit
        self._mutex = threading.RLock()  # re-entrant: a finaliser may run at any line
        self._open: dict[Closable, None] = {}

    def add(self, one: Closable) -> None:
        """``one`` has opened its file.  Others may be closed for it."""
        if not self._limit:
            try:
                self._limit = min(max(os.sysconf("SC_OPEN_MAX") // 4, 16), 1024)
            except (AttributeError, ValueError, OSError):
                self._limit = 128
        with self._mutex:
            if len(self._open) >= self._limit:
                self.close_all()
            self._open[one] = None

    def discard(self, one: Closable) -> None:
        """``one`` has closed its file, or needs it open.  From now on nobody closes it."""
        with self._mutex:
            self._open.pop(one, None)

    def make_room(self, error: OSError) -> bool:
        """Did ``error`` say that no descriptor is left?  Close all that can be.  Was there any?"""
        return error.errno in (errno.EMFILE, errno.ENFILE) and self.close_all()

    def after_fork(self) -> None:
        """In a fork's child: the mutex may have been another thread's.  The owners close their files themselves."""
        self._mutex = threading.RLock()

    def close_all(self) -> bool:
        """Close all that can be.  Was there any?"""
        with self._mutex:
            closed = [one for one in list(self._open) if one.close_idle()]
            for one in closed:
                self._open.pop(one, None)
            return bool(closed)


descriptors = Descriptors()
