"""The sweeper: a thread that comes by now and then, as long as rows are read briskly, to end the read transactions that
were kept open.

To keep one open makes each read cost a third.  But SQLite's log cannot be emptied beyond it, by any process, so that
none may stay open where the user's script goes on with something else.  The thread ends as soon as there is nothing to
sweep.  A fork ends it first: a process with threads had better not fork, says Python.
"""
from __future__ import annotations

import atexit
import gc
import threading
import weakref
from collections.abc import Iterable
from typing import Protocol

from chest.locks import AT_FORK
from chest.log import log

__all__ = ["NAME", "forget", "pause", "resume", "watch"]

NAME = "chest-sweeper"
PERIOD = 0.05  # seconds


class Sweepable(Protocol):
    """What is swept: `sweep` ends a transaction, or returns `False` to be asked again the next time."""

    def sweep(self) -> bool: ...


class _Sweeper:
    """The thread of this process, and what it is to sweep."""

    def __init__(self) -> None:
        self.mutex = threading.RLock()  # re-entrant, as a finaliser may read rows
        self.left_open: weakref.WeakSet[Sweepable] = weakref.WeakSet()
        self.thread: threading.Thread | None = None
        self.end = threading.Event()
        self.forks = 0  # that are about to happen

    def start(self) -> bool:
        """Is there a thread now?  Some systems have none, and no process has as many as it likes."""
        if self.thread is None:
            self.end = threading.Event()
            thread = threading.Thread(target=self.run, args=(self.end,), name=NAME, daemon=True)
            try:
                _started(thread)
            except RuntimeError:
                return False
            self.thread = thread
        return True

    def run(self, end: threading.Event) -> None:
        while not end.wait(PERIOD):
            nothing: weakref.WeakSet[Sweepable] = weakref.WeakSet()  # not within the mutex: it may set off finalisers
            with self.mutex:
                found, self.left_open = self.left_open, nothing
                if not found:
                    self.thread = None
                    return
            self.sweep(found)
            del found, nothing  # so that nothing lives longer for us

    def sweep(self, found: Iterable[Sweepable]) -> None:
        for one in found:
            if not swept(one):
                with self.mutex:
                    self.left_open.add(one)


def _started(thread: threading.Thread) -> None:
    """Start a thread, and wait until it runs.  Whoever waits has locks, and so no finaliser may run in that thread."""
    collects = gc.isenabled()
    gc.disable()
    try:
        thread.start()
    finally:
        if collects:
            gc.enable()


def swept(one: Sweepable) -> bool:
    """Is there nothing left to do?  What cannot be swept is not asked again."""
    try:
        return one.sweep()
    except Exception as error:
        log("warning", "a read transaction could not be ended: %s", error)
        return True


_sweeper = _Sweeper()


def watch(one: Sweepable) -> bool:
    """Have ``one`` swept within two periods; `False` where nobody would do it.

    It does not wait: a finaliser that runs in the sweeper's thread may wait for a lock of the caller's.
    """
    sweeper = _sweeper
    if not sweeper.mutex.acquire(blocking=False):
        return False
    try:
        if sweeper.forks or not sweeper.start():
            return False
        sweeper.left_open.add(one)
        return True
    finally:
        sweeper.mutex.release()


def pause() -> None:
    """Before a fork, and at the end: the thread ends, and no other begins until `resume`.  Its work is done at once, as
    somebody may wait just for that."""
    sweeper = _sweeper
    with sweeper.mutex:
        sweeper.forks += 1
        thread = sweeper.thread
        sweeper.end.set()
        found, sweeper.left_open = sweeper.left_open, weakref.WeakSet()
    sweeper.sweep(found)
    if thread is not None and thread is not threading.current_thread():  # a finaliser may fork anywhere
        thread.join(AT_FORK)


atexit.register(pause)  # the thread must not be stopped at any line, as the interpreter does then, with a lock


def resume() -> None:
    """After it, in the parent."""
    sweeper = _sweeper
    with sweeper.mutex:
        sweeper.forks -= 1
        sweeper.thread = None
        if sweeper.left_open and not sweeper.forks:
            sweeper.start()


def forget() -> None:
    """After it, in the child, which has no such thread, and none of what it was to sweep."""
    global _sweeper
    _sweeper = _Sweeper()
