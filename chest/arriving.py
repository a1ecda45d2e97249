"""The way in: a value is loaded once, however many threads ask for it, and several at a time where that helps."""
from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, Callable, TypeVar, cast

from chest.errors import explained
from chest.files import Loaded, Stale
from chest.leaving import Leaving, crowds
from chest.memory import ABSENT
from chest.sizes import nbytes
from chest.state import Load, nothing

__all__ = ["Arriving"]

K = TypeVar("K", bound=Hashable)

WORKERS = 4  # threads that load: two cores are busy with two, and a slow disk or network wants more


class Arriving(Leaving[K]):
    """Values on their way from disk to memory; each pushes out what is worth less."""

    def get(self, key: K) -> Any:
        """The value of ``key``, which is not in memory; `KeyError` if there is none."""
        announced = self._on_miss is nothing
        while True:
            with self.lock:
                value = self._at_hand(key)
                if value is not ABSENT:
                    break
                name = self._name(key)
                load = self._loads.get(key)
                if load is not None and load.thread != threading.get_ident():
                    load.awaited = True
                    self._arrived.wait()  # this lets go of the lock, even where the caller has it too
                    continue
                if announced:
                    mine = self._loads[key] = Load()
                    trusted = self.index.unchanged()
            if not announced:
                announced = True
                self._on_miss(key)
                continue
            value = self._load(key, name, mine, trusted)
            if value is not ABSENT:
                break
        self._make_room_quietly(key)
        return value

    def _at_hand(self, key: K) -> Any:
        """The value of ``key`` if it need not be loaded: in memory by now, or let go of by us but not by the user."""
        value = self.memory.current(key)
        if value is not ABSENT:
            if key not in self.memory.values:
                self.memory.put(key, value, nbytes(value), self.index.names.get(key) is not None,
                                self.memory.marks.get(key))
            self.memory.used(key)
            self.counts.hit()
        return value

    def _name(self, key: K) -> str:
        if not self.known(key):
            raise KeyError(key)
        name = self.index.names[key]
        if name is None:
            raise KeyError(f"{key!r}: it was being set when that was interrupted; set or delete it")
        return name

    def _load(self, key: K, name: str, mine: Load, trusted: Callable[[], bool]) -> Any:
        try:
            loaded: Loaded = self.store.load_one(name, lambda: mine.valid and trusted())
            return self._arrive(key, name, loaded, mine, trusted)
        finally:
            with self.lock:
                if self._loads.get(key) is mine:
                    del self._loads[key]
                if mine.awaited:
                    self._arrived.notify_all()

    def _arrive(self, key: K, name: str, loaded: Loaded, mine: Load, trusted: Callable[[], bool]) -> Any:
        """Take a loaded value into memory; `ABSENT` if the key has to be looked up anew."""
        size = nbytes(loaded.value)
        with self.lock:
            lent = self.index.lent.get(name, loaded.mark)
            if loaded.error is None and mine.valid and loaded.mark == lent:
                self.counts.missed(loaded.nbytes)
                self.memory.put(key, loaded.value, size, True, loaded.mark)
                return loaded.value
            self.refresh()
            if not mine.valid or isinstance(loaded.error, Stale) or self.index.names.get(key) != name or not trusted():
                return ABSENT
        if isinstance(loaded.error, FileNotFoundError) or self._taken_back(name):
            raise KeyError(f"{key!r}: its file {self.store.path(name)} is gone; set or delete the key to heal it")
        assert loaded.error is not None
        raise explained(loaded.error, key, self.store.path(name), "load")

    def _taken_back(self, name: str) -> bool:
        """Did the parent that we were forked from give the name of a file that it never committed to another file?"""
        lent = self.index.lent
        return name in lent and self.store.mark(name) != lent[name]

    # Many at once.

    def prefetch(self, keys: Sequence[K], progress: Callable[..., Iterable[Any]]) -> None:
        """Load what is not in memory, several values at a time, until the budget is full."""
        with self.lock:
            for key in keys:
                if not self.known(key):
                    raise KeyError(key)
            wanted = [key for key in dict.fromkeys(keys) if self.memory.current(key) is ABSENT]
        for crowd in self._fitting(progress(wanted, total=len(wanted))):
            self._fetch(crowd)

    def _fitting(self, keys: Iterable[K]) -> Iterator[list[K]]:
        """``keys`` in lists of values that can be loaded together, while there is room for them."""
        for asked in crowds(keys, max(self.store.ahead, 4 * WORKERS)):
            room = self.available - self.memory.usage
            crowd: list[K] = []
            for key, size in zip(asked, self.store.sizes([self.index.names.get(key) or "" for key in asked])):
                room -= size
                if room < 0:
                    break
                crowd.append(key)
            yield crowd
            if len(crowd) < len(asked):
                return

    def _fetch(self, keys: Sequence[K]) -> None:
        """Load the values of ``keys`` side by side; one that another thread is loading already is left to it."""
        with self.lock:
            mine = {key: Load() for key in keys if key not in self._loads and self.memory.current(key) is ABSENT}
            names = {key: self.index.names.get(key) for key in mine}
            mine = {key: load for key, load in mine.items() if names[key] is not None}
            self._loads.update(mine)
            trusted = self.index.unchanged()
        try:
            order = [names[key] for key in mine]
            loaded = self.store.load(order, trusted, WORKERS)
            for (key, load), one in zip(mine.items(), loaded):
                self._arrive(key, cast(str, names[key]), one, load, trusted)
        finally:
            with self.lock:
                for key, load in mine.items():
                    if self._loads.get(key) is load:
                        del self._loads[key]
                self._arrived.notify_all()
        self._make_room_quietly(ABSENT)
