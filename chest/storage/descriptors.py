"""Open files that this process keeps, no more of them than it may have; and proof that a number is still our file's.

Many chests may be open at once, each with a pack and an index.  So what is kept open only for speed says so here, and
the one that was not used for longest is closed when there are too many.
"""
from __future__ import annotations

import errno
import os
import threading
from typing import Protocol

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

    def lost(self) -> bool:
        """Is the number no longer ours?  It is ours where the system fails to say (a stale handle), to be closed."""
        try:
            return self.status() is None
        except OSError as error:
            if error.errno is None:
                raise
            return False

    def close(self) -> None:
        """Close the file, if it is still this one."""
        if self.fd >= 0 and not self.lost():
            os.close(self.fd)
        self.fd = -1


class Closable(Protocol):
    """Something that keeps a file open for speed.  It sets ``used`` to `True` at each use, which costs no call."""

    used: bool

    def close_idle(self) -> bool:
        """Close the file if it can be opened again when needed; `False`: not now.  Any thread calls it: no waiting."""


class Descriptors:
    """What may be closed, oldest first; ``limit`` of them at most stay open (default: a quarter of what is allowed)."""

    def __init__(self, limit: int | None = None):
        self._limit = limit
        self._mutex = threading.RLock()  # re-entrant: a finaliser may run at any line
        self._open: dict[Closable, None] = {}

    def add(self, one: Closable) -> None:
        """``one`` has opened its file.  Another's may be closed for it."""
        one.used = True
        with self._mutex:
            self._open[one] = None
            if len(self._open) > (self._limit or self._allowed()):
                self._close_some(1, spared=one)

    def discard(self, one: Closable) -> None:
        """``one`` has closed its file."""
        with self._mutex:
            self._open.pop(one, None)

    def make_room(self) -> bool:
        """The system has no descriptor left: close all that can be.  Was there any?"""
        with self._mutex:
            return self._close_some(len(self._open)) > 0

    def after_fork(self) -> None:
        """In a fork's child: the mutex may have been another thread's.  The owners close their files themselves."""
        self._mutex = threading.RLock()

    def _allowed(self) -> int:
        try:
            self._limit = min(max(os.sysconf("SC_OPEN_MAX") // 4, 16), 1024)
        except (AttributeError, ValueError, OSError):
            self._limit = 128
        return self._limit

    def _close_some(self, number: int, spared: Closable | None = None) -> int:
        """Close ``number`` of them: in order, but what was used since it was last looked at gets a second chance."""
        closed = 0
        for one in [*self._open, *self._open]:
            if closed == number:
                break
            if one is spared or one not in self._open:
                continue
            del self._open[one]
            if one.used and spared is not None:
                one.used = False
            elif one.close_idle():
                closed += 1
                continue
            self._open[one] = None
        return closed


descriptors = Descriptors()
