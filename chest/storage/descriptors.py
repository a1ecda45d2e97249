"""Open files that this process keeps, no more of them than it may have; and proof that a number is still our file's.

Many chests may be open at once, each with a pack and an index.  So what is kept open only for speed is *idle*, and is
closed when there is too much of it, or when no descriptor is left: it is opened again where it is needed.
"""
from __future__ import annotations

import errno
import os
import threading

from chest.errors import raise_of_a_signal

__all__ = ["Descriptor", "after_fork", "close_idle", "make_room"]

_mutex = threading.RLock()  # re-entrant: a finaliser may run at any line
_idle: dict[Descriptor, None] = {}


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

    def idle(self) -> None:
        """From now on anybody may close the file, as happens to all such where there are many."""
        with _mutex:
            if len(_idle) >= _most():
                close_idle()
            _idle[self] = None

    def needed(self) -> None:
        """From now on nobody else closes the file, unless it was done already."""
        with _mutex:
            _idle.pop(self, None)

    def close(self) -> None:
        """Close the file, if it is still this one, or the system fails to say (a stale handle)."""
        self.needed()
        try:
            ours = self.status() is not None
        except OSError as error:
            if error.errno is None:  # a signal's handler raised it
                raise
            ours = True
        if ours:
            os.close(self.fd)
        self.fd = -1


def _most() -> int:
    try:
        return min(max(os.sysconf("SC_OPEN_MAX") // 4, 16), 1024)
    except (AttributeError, ValueError, OSError) as error:
        raise_of_a_signal(error)
        return 128


def close_idle() -> bool:
    """Close all that is idle.  Was there any?"""
    with _mutex:
        idle = list(_idle)
        for one in idle:
            one.close()
        return bool(idle)


def make_room(error: OSError) -> bool:
    """Did ``error`` say that no descriptor is left?  Close all that is idle.  Was there any?"""
    return error.errno in (errno.EMFILE, errno.ENFILE) and close_idle()


def after_fork() -> None:
    """In a fork's child: the mutex may have been another thread's.  The owners close their files themselves."""
    global _mutex
    _mutex = threading.RLock()
