"""What the life of a value happens in: one lock, and under it the memory, the index and the store of a chest.

Two rules keep threads out of each other's way.  Values are read and written without the lock, so that loads and dumps
go on side by side; what was read or written counts only if the key was left alone meanwhile, which a `Load` or a
`Ticket` tells.  And the lock comes before the directory's gate, never the other way round.
"""
from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable
from typing import Any, Callable, Generic, TypeVar

from chest.codec import Codec
from chest.index import Index
from chest.memory import Memory
from chest.names import Name
from chest.stats import Counts

__all__ = ["Load", "State"]

K = TypeVar("K", bound=Hashable)


def nothing(key: Any) -> None:
    """The default of ``on_miss`` and ``on_overflow``."""


class Load:
    """Values on their way into memory.  It counts for those keys under which it is still noted when they arrive: who
    sets or deletes a key, or finds that another process did, takes its load away."""

    __slots__ = ("awaited", "thread")

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.awaited = False


class State(Generic[K]):
    """A chest's parts, and what all its rooms ask of them."""

    def __init__(self, codec: Codec, store: Any, index: Index[K], memory: Memory[K], available: float,
                 on_miss: Callable[[K], Any], on_overflow: Callable[[K], Any]):
        self.codec = codec
        self.store = store
        self.index = index
        self.memory = memory
        self.available = available
        self.counts = Counts()
        self._on_miss = on_miss
        self._on_overflow = on_overflow
        self._loads: dict[K, Load] = {}
        self._looked = 0  # at the files of what is in memory, when the index had been replaced so often
        self.new_lock()

    def new_lock(self) -> None:
        self.lock = threading.RLock()
        self._arrived = threading.Condition(self.lock)

    def over(self, limit: float) -> bool:
        """Do the values in memory take more than ``limit`` bytes?"""
        if self.memory.within(limit):
            return False
        with self.lock:
            return self.memory.usage > limit

    def known(self, key: K) -> bool:
        """Is there such a key?  Only one that is not known here costs a look at what others committed."""
        if key in self.index.names:
            return True
        with self.lock:
            self.refresh()
            return key in self.index.names

    def keys(self) -> list[K]:
        """The keys there are at this moment, in order."""
        with self.lock:
            self.refresh()
            return list(self.index.names)

    def refresh(self) -> bool:
        """Take over what others committed, and drop the values that they changed.  Returns whether there were any."""
        with self.lock:
            self.index.refresh()
            stale, replaced = list(self.index.stale), self.index.replaced
            if not stale and replaced == self._looked:
                return False
            self._drop(stale)
            if replaced != self._looked:
                self._drop(self._reused())
                self._looked = replaced
            return True

    def _drop(self, stale: Iterable[K]) -> None:
        for key in stale:
            self._disown(key)
            self.memory.remove(key)
            self.index.stale.pop(key, None)

    def _reused(self) -> list[K]:
        """The keys whose files may be others by now, of the same names: names can be free and taken again."""
        names, pending, mark = self.index.names, self.index.pending, self.store.mark
        return [*self._loads, *(key for key, noted in self.memory.marks.items()
                                if key not in pending and mark(names[key]) != noted)]

    def discard(self, orphan: Name | None) -> None:
        """Remove a file that nothing names any more, if there is one.  Not within the lock: it takes a while."""
        if orphan is not None:
            self.store.remove([orphan])

    def _disown(self, key: K) -> None:
        """Whoever loads the value of ``key`` just now loads one that is no longer it."""
        self._loads.pop(key, None)

    def clear_memory(self) -> None:
        """Forget every value, those too that threads are just loading."""
        with self.lock:
            self._loads.clear()
            self.memory.clear()

    def after_fork(self) -> None:
        """In a fork's child: new locks; nobody else is loading or writing here."""
        self.new_lock()
        self._loads.clear()
        self.index.after_fork()
        self.memory.after_fork(key for key in self.index.inherited if self.index.names.get(key, "") is None)
        self.store.after_fork()
