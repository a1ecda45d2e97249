"""The lock of a directory: one process at a time commits, and within a process one thread.

Between processes the lock is on the directory itself, so that no file of it is left behind, and the kernel releases it
when its holder dies.  Within a process all handles on one directory share one re-entrant `Gate`, because two
descriptors of one process would block each other.
"""
from __future__ import annotations

import os
import sys
import threading
import weakref
from collections import deque
from types import CodeType
from typing import Callable

from chest import system

__all__ = ["AT_FORK", "Gate", "gate", "later", "shield"]

AT_FORK = 2.0  # seconds for which a fork waits for another thread that is half-way through something


class Shield(threading.local):
    """``with shield:`` no finaliser of a chest saves in this thread until the outermost such block has ended.

    The garbage collector may run at any line, also in the middle of a commit, and the handle that it finds may be on
    the same directory; its save, started there, would wait for locks that this very thread holds, or change an index
    that is half merged.

    A Ctrl-C that comes in the few instructions with which a block is entered or left would make a bare count wrong for
    ever, and every later finaliser would wait in vain.  So the count holds only while the frame that opened the
    outermost block is on the stack.
    """

    depth = 0
    # The frame's identity and code: the frame itself would keep alive what it refers to.
    _opener: tuple[int, CodeType | None] = (0, None)

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()

    def __enter__(self) -> None:
        if not self._within():
            self.depth = 0
            self._opener = _opener()
        self.depth += 1

    def __exit__(self, *exception: object) -> None:
        self.depth -= 1
        self._catch_up()

    def later(self, action: Callable[[], None]) -> None:
        """Run ``action`` now, or behind the outermost block that this thread is in."""
        self._waiting.append(action)
        if not self._within():
            self.depth = 0
        self._catch_up()

    def _within(self) -> bool:
        frame = sys._getframe(1) if self.depth > 0 else None
        while frame is not None and (id(frame), frame.f_code) != self._opener:
            frame = frame.f_back
        return frame is not None

    def _catch_up(self) -> None:
        while self._waiting and self.depth <= 0:
            self._waiting.popleft()()


def _opener() -> tuple[int, CodeType | None]:
    """The frame whose ``with`` it is that asks, by way of ``__enter__``s only."""
    frame = sys._getframe(1)
    while frame.f_code.co_name == "__enter__" and frame.f_back is not None:
        frame = frame.f_back
    return id(frame), frame.f_code


shield = Shield()
later = shield.later


class Gate:
    """``with gate:`` this thread alone, of all processes, commits to the directory.  Re-entrant."""

    def __init__(self, directory: str):
        self._directory = directory
        self._held: list[int] = []  # the descriptor that has the lock
        self._depth = 0
        self._mutex = threading.RLock()

    def __enter__(self) -> None:
        shield.__enter__()
        try:
            self._mutex.acquire()
            try:
                if not self._depth:
                    system.unlock(self._held)  # there is none, unless Ctrl-C came just as it was taken
                    system.lock(self._directory, self._held)
                self._depth += 1
            except BaseException:
                self._mutex.release()
                raise
        except BaseException:  # Ctrl-C while we waited, or a directory that is gone
            shield.__exit__()
            raise

    def __exit__(self, *exception: object) -> None:
        try:
            if self._depth:  # else: a fork's child comes out of a block that its parent went into
                self._leave()
        finally:
            shield.__exit__()

    def _leave(self) -> None:
        try:
            self._depth -= 1
            if not self._depth:
                system.unlock(self._held)
        finally:
            self._mutex.release()

    def abandon(self) -> None:
        """In a fork's child: the lock, if it is held, is the parent's, and stays locked there."""
        self._mutex = threading.RLock()
        self._depth = 0
        self._held = []


_gates: weakref.WeakValueDictionary[str, Gate] = weakref.WeakValueDictionary()
_gates_mutex = threading.Lock()


def gate(directory: str) -> Gate:
    """The one gate of ``directory`` in this process, however the path is spelled."""
    real = os.path.realpath(directory)
    with _gates_mutex:
        found = _gates.get(real)
        if found is None:
            found = _gates[real] = Gate(real)
        return found


def _after_fork_in_child() -> None:
    global _gates_mutex
    _gates_mutex = threading.Lock()
    system.abandon_locks()
    for held in list(_gates.values()):
        held.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
