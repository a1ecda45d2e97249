"""The way in: a value is loaded once, however many threads ask for it, and several at a time where that helps."""
from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import accumulate, filterfalse
from typing import Any, Callable, TypeVar

from chest.errors import explained
from chest.files import Loaded, Stale
from chest.leaving import Leaving, crowds
from chest.memory import ABSENT
from chest.names import Name
from chest.sizes import LIGHT, all_light, nbytes
from chest.state import Load, nothing

__all__ = ["Arriving"]

K = TypeVar("K", bound=Hashable)

SAMPLES = 4  # values that many are judged by
FEW = 64  # values that are decoded, or in the hands of a loop, at a time, if they may be large
PER_BYTE = 8  # bytes that a small value takes, for each of its pickle, as a rule
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

    def _name(self, key: K) -> Name:
        if not self.known(key):
            raise KeyError(key)
        name = self.index.names[key]
        if name is None:
            raise KeyError(key)  # Ctrl-C came as it was about to be set
        return name

    def _load(self, key: K, name: Name, mine: Load, trusted: Callable[[], bool]) -> Any:
        try:
            loaded: Loaded = self.store.load_one(name, lambda: self._loads.get(key) is mine and trusted())
            return self._arrive(key, name, loaded, mine, trusted)
        finally:
            with self.lock:
                if self._loads.get(key) is mine:
                    del self._loads[key]
                if mine.awaited:
                    self._arrived.notify_all()

    def _arrive(self, key: K, name: Name, loaded: Loaded, mine: Load, trusted: Callable[[], bool]) -> Any:
        """Take a loaded value into memory; `ABSENT` if the key has to be looked up anew."""
        size = nbytes(loaded.value)
        with self.lock:
            lent = self.index.lent.get(name, loaded.mark)
            if loaded.error is None and self._loads.get(key) is mine and loaded.mark == lent:
                self.counts.missed(loaded.nbytes)
                self.memory.put(key, loaded.value, size, True, loaded.mark)
                return loaded.value
            self.refresh()
            if (self._loads.get(key) is not mine or isinstance(loaded.error, Stale)
                    or self.index.names.get(key) != name or not trusted()):
                return ABSENT
        if isinstance(loaded.error, FileNotFoundError) or self._taken_back(name):
            raise KeyError(f"{key!r}: its file {self.store.path(name)} is gone; set or delete the key to heal it")
        assert loaded.error is not None
        raise explained(loaded.error, key, self.store.path(name), "load")

    def _taken_back(self, name: Name) -> bool:
        """Did the parent that we were forked from give the name of a file that it never committed to another file?"""
        lent = self.index.lent
        return name in lent and self.store.mark(name) != lent[name]

    # Many at once.

    def prefetch(self, keys: Sequence[K], progress: Callable[..., Iterable[Any]]) -> None:
        """Load what is not in memory, several values at a time, until the budget is full."""
        with self.lock:
            names = self.index.names
            for key in filterfalse(names.__contains__, keys):
                if not self.known(key):
                    raise KeyError(key)
            taken = self.memory.among(keys)
            wanted = [key for key in dict.fromkeys(keys) if key not in taken] if taken else list(dict.fromkeys(keys))
        together = self.store.ahead if self.store.grain else max(self.store.ahead, 4 * WORKERS)
        for crowd in crowds(progress(wanted, total=len(wanted)), together):
            if not self._bring(crowd):
                return

    def _bring(self, keys: list[K]) -> bool:
        """Load values that are not in memory as long as there is room.  Returns whether there was room for all."""
        names, data, encoded = self._read_rows(keys)
        return all(self._bring_few(keys[few], names[few], data[few]) for few in self._by_few(data, encoded))

    def _by_few(self, rows: list[Any], encoded: int) -> Iterator[slice]:
        """Parts of the rows that were read at once, which have so many bytes: so small that it does not matter what
        they take once decoded, as nobody counts that: an eighth of the budget, as a rule."""
        share = self.available / (8 * PER_BYTE * encoded) if encoded else 1
        few = max(int(len(rows) * min(share, 1)), 1)
        if not self.codec.native:
            few = 1  # of other formats nothing is known
        elif not all_light(self._decoded([], list(filter(None, rows[:: 1 + len(rows) // SAMPLES])))):
            few = min(few, FEW)
        return (slice(start, start + few) for start in range(0, len(rows), few))

    def _bring_few(self, keys: list[K], names: list[Name | None], data: list[Any]) -> bool:
        values = self._decoded(names, data)
        if None not in names and self._bring_light(keys, names, data, values):
            return True
        others = [key for key, name in zip(keys, names) if name is None]
        waiting = iter(self.store.sizes([self.index.names.get(key) or "" for key in others]))
        sizes = [next(waiting) if value is ABSENT else nbytes(value) for value in values]
        with self.lock:
            fitting = bisect_right(list(accumulate(sizes)), self.available - self.memory.usage)
            found = self._still(keys[:fitting], names[:fitting], values)
            self.memory.put_many(found, {key: size for key, size in zip(keys, sizes) if key in found})
            self.counts.misses += len(found)
        self._fetch([key for key, name in zip(keys[:fitting], names) if name is None])
        self._make_room_quietly(ABSENT)  # another thread may have filled the same room
        return fitting == len(keys)

    def _bring_light(self, keys: list[K], names: list[Name | None], data: list[bytes], values: list[Any]) -> bool:
        """Take in values for which there certainly is room; `False`, and nothing is done, if there may be none."""
        if not (self.codec.native and all_light(values)):
            return False
        most = LIGHT * sum(map(len, data))
        with self.lock:
            if self.memory.room(self.available, most) < most:
                return False
            found = self._still(keys, names, values)
            self.memory.put_light(found, most)
            self.counts.misses += len(found)
        return True

    def _read_rows(self, keys: list[K]) -> tuple[list[Name | None], list[Any], int]:
        """The names of what is neither in memory nor in somebody's hands, `None` for the rest; the bytes of those that
        are rows, read at once, `None` for the rest; and how many bytes these are."""
        with self.lock:
            trusted = self.index.unchanged()
            names = list(map(self.index.names.get, keys))
            taken = self.memory.among(keys)
        if taken:
            names = [None if key in taken else name for key, name in zip(keys, names)]
        data = self.store.peek(names, trusted) if self.store.grain else [None] * len(keys)
        encoded = sum(map(len, filter(None, data)))
        with self.lock:
            self.counts.bytes_read += encoded
        return names, data, encoded

    def _decoded(self, names: list[Name | None], rows: list[Any]) -> list[Any]:
        """The values in rows; `ABSENT`, and no name any more, for one that is none or cannot be read: who asks for it
        alone is told why."""
        decode: Any = getattr(self.store, "decode", None)
        if None not in rows:
            try:
                return list(map(decode, rows))
            except Exception:
                pass
        values = [self._decoded_one(row, decode) for row in rows]
        names[:] = [None if value is ABSENT else name for name, value in zip(names, values)]
        return values

    def _decoded_one(self, row: Any, decode: Callable[[bytes], Any]) -> Any:
        try:
            return ABSENT if row is None else decode(row)
        except Exception:
            return ABSENT

    def _still(self, keys: list[K], names: list[Name | None], values: list[Any]) -> dict[K, Any]:
        """The values read that are still those of their keys, and that nobody has or is about to have.

        Rows are written once, under names that are never used again: the same name is the same value.
        """
        found = dict(zip(keys, values))
        gone = self.memory.among(keys)
        if self._loads:
            gone |= self._loads.keys() & keys
        now = list(map(self.index.names.get, keys))
        if now != names or None in names:
            gone.update(key for key, name, then in zip(keys, now, names) if name != then or then is None)
        for key in gone:
            del found[key]
        return found

    def _fetch(self, keys: list[K]) -> None:
        """Load the values of ``keys`` side by side; one that another thread is loading already is left to it."""
        mine = Load()
        with self.lock:
            taken = self.memory.among(keys) | self._loads.keys()
            names = {key: name for key in keys
                     if key not in taken and (name := self.index.names.get(key)) is not None}
            self._loads.update(dict.fromkeys(names, mine))
            trusted = self.index.unchanged()
        try:
            loaded = self.store.load(list(names.values()), trusted, WORKERS)
            for (key, name), one in zip(names.items(), loaded):
                self._arrive(key, name, one, mine, trusted)
        finally:
            with self.lock:
                for key in names:
                    if self._loads.get(key) is mine:
                        del self._loads[key]
                self._arrived.notify_all()
        self._make_room_quietly(ABSENT)
