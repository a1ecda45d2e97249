"""What a hit touches: the values that may be handed out at once, the log of accesses, and a counter.

A hit must cost next to nothing, so it takes no lock and makes one call: it notes its key in the log, steps the counter,
and takes the value from ``given``.  All else is found out later, under the chest's lock, by whoever needs it.

``given`` has the values that somebody was given since they were last found to be as their bytes on disk are.  Whoever
wants to compare a value, or let it leave, first takes it out of ``given``: from then on who asks for it has to ask the
engine, and so is noticed.
"""
from __future__ import annotations

import _thread
import gc
import sys
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from operator import length_hint
from types import FrameType
from typing import Any, Generic, TypeVar

from chest.errors import raise_of_a_signal
from chest.memory.changes import COUNTED

__all__ = ["Access", "frames"]

K = TypeVar("K", bound=Hashable)

LOGGED = 4096  # accesses that the log remembers; the policy can do without the older ones


def frames() -> dict[int, FrameType]:
    """The frame that each thread is in.  Python 3.11 has a lock meanwhile, and for ever if the garbage collector comes
    then and a finaliser asks, too."""
    collects = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames()
    finally:
        if collects:
            gc.enable()


class Access(Generic[K]):
    """The log and the counter of hits, and for each thread the key whose value it was given last.

    While the process has one thread, the log's last entry says that; from the moment that there are more, each access
    notes its thread.  So it does from the start where references are not counted, as there a part of a value that a
    thread has keeps no value.  The counter ends after some hits, so that the next one tells the engine.

    Thread safety: `used`, the counter and `count_on` need no lock.  All else is called with it, and, but for `take` and
    `counted`, behind a `take`.
    """

    def __init__(self) -> None:
        self.given: dict[K, Any] = {}
        self.hits: Iterator[None] = iter(())
        self._end = 0  # how many hits there were when the counter ends
        self.log: deque[K] = deque(maxlen=LOGGED)
        self._last: dict[int, K] = {}
        self.is_single = COUNTED
        self.used: Callable[[K], object] = self.log.append if COUNTED else self._used_by_thread

    def _used_by_thread(self, key: K) -> None:
        hash(key)  # `TypeError` for what is no key, before it is noted
        self._last[_thread.get_ident()] = key
        self.log.append(key)

    def asked(self, key: K) -> None:
        """This thread is given the value of ``key`` now, by way of the engine."""
        if self.is_single and _thread._count():
            self._tell_threads_apart()
        self._last[_thread.get_ident()] = key

    def _tell_threads_apart(self) -> None:
        """There are more threads by now: what was given last is taken for the main thread's."""
        last = [*self._last.values(), *filter(_is_key, [*self.log][-1:])]
        self._last = {threading.main_thread().ident or 0: key for key in last[-1:]}
        self.is_single, self.used = False, self._used_by_thread

    def take(self) -> list[K]:
        """The keys of the hits since the last call, in order; the log is empty then."""
        if self.is_single and _thread._count():
            self._tell_threads_apart()
        log = self.log
        keys = [log.popleft() for _ in range(len(log)) if log]  # a finaliser of the user's may take some meanwhile
        if self.is_single and keys and _is_key(keys[-1]):
            self._last[_thread.get_ident()] = keys[-1]
        return keys

    def pinned(self) -> set[K]:
        """The keys whose values threads were given last: these stay in memory.  Cost: O(threads)."""
        if not self.is_single:
            for ident in self._last.copy().keys() - frames().keys():
                self._last.pop(ident, None)
        return set(self._last.copy().values())

    def last(self) -> tuple[K, ...]:
        """The key whose value this thread was given last, if there is one."""
        ident = _thread.get_ident()
        return (self._last[ident],) if ident in self._last else ()

    def release(self) -> None:
        """This thread is through with the value that it was given last."""
        self._last.pop(_thread.get_ident(), None)

    def count_on(self, hits: int) -> None:
        """The counter is at its end: it counts this hit, and ends again after so many more."""
        self._end = self.counted() + 1 + hits
        self.hits = iter((None,) * hits)

    def counted(self) -> int:
        """The number of hits up to now that took no lock."""
        return self._end - length_hint(self.hits)

    def clear(self) -> None:
        self.given.clear()
        self.log.clear()
        self._last.clear()


def _is_key(key: object) -> bool:
    """Can it be hashed?  A hit is logged first, and then looked up, which says what is no key."""
    try:
        hash(key)
    except Exception as error:
        raise_of_a_signal(error)
        return False
    return True
