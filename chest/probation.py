"""Probation: small values that are read one by one while memory is full do not push out others at their first reading.

What cannot be changed, as a text, goes at once.  Any other waits, with the bytes that it was read from, until some have
come together.  Then those go that nobody holds and nobody changed, without a look at the disk; the others enter memory.
A key that is read once more, soon enough, enters memory as ever.

To let in what is read twice is the idea of T. Johnson and D. Shasha, "2Q: A low overhead high performance buffer
management replacement algorithm" (1994).
"""
from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from itertools import compress, islice
from typing import Any, Callable, Generic, TypeVar

from chest.alone import alone
from chest.arriving import PER_BYTE
from chest.changeable import FIXED, which_can_change
from chest.memory import ABSENT
from chest.names import Name
from chest.passing import FULL, Passing
from chest.sizes import LIGHT, light, nbytes
from chest.state import nothing

__all__ = ["Probation"]

K = TypeVar("K", bound=Hashable)

MOST = 256  # values that wait


class Crowd(Generic[K]):
    """The values that wait: their keys, in order, with the name and the bytes of the row that each was read from."""

    def __init__(self) -> None:
        self.values: dict[K, Any] = {}  # without those that were set or deleted meanwhile
        self.keys: list[K] = []
        self.names: list[Name] = []
        self.rows: list[bytes] = []
        self.nbytes = 0  # that all of them take, about


class Probation(Passing[K]):
    """The short way in, for one small value."""

    def __init__(self, *parts: Any):
        super().__init__(*parts)
        self._native = self.codec.native
        self._crowd: Crowd[K] = Crowd()
        self._seen: dict[K, None] = {}  # the keys that were let go last

    def get(self, key: K) -> Any:
        """The value of ``key``, which is not in memory; `KeyError` if there is none.

        A row that nobody else has or loads is read, and believed if nobody has committed since we looked last; where
        many are read one after another, since that moment began, as a row is never another value than its name's.
        """
        name = self.index.names.get(key)
        if type(name) is int and self._on_miss is nothing:
            if key not in self._crowd.values:
                data = self.store.row(name)
                if data is not None and (self.store.brisk or self.index.newest()):
                    value = self._let_in(key, name, data)
                    if value is not ABSENT:
                        return value
            elif not self.index.newest():
                self.refresh()
        return super().get(key)

    def _let_in(self, key: K, name: Name, data: bytes) -> Any:
        """The value in a row, which is in memory now or on probation; `ABSENT`, and nothing is done, where that takes
        a closer look."""
        try:
            value = self.store.decode(data)
        except Exception:
            return ABSENT  # who looks closer is told why
        if self._crowd.nbytes > self.available / 8 or len(self._crowd.keys) >= MOST:
            self._decide()
        memory = self.memory
        with self.lock:
            if self.index.names.get(key) != name or key in self._loads or memory.current(key) is not ABSENT:
                return ABSENT
            self.counts.missed(len(data))
            most = LIGHT * len(data)
            # While others wait memory counts as full, also if something left since: it is looked at again behind them.
            room = -1 if self._crowd.keys else memory.room(FULL * self.available, most)
            if room < 0 and key not in self._seen:
                if type(value) in FIXED:
                    self._see((key,))
                else:
                    self._wait(key, name, data, value)
                return value
            if room > most and self._native and light(value):
                memory.put_light_one(key, value, most)
                return value
            memory.put(key, value, nbytes(value), True)
        self._make_room_quietly(key)
        return value

    def _wait(self, key: K, name: Name, data: bytes, value: Any) -> None:
        crowd = self._crowd
        if not crowd.keys:
            self.memory.lend(crowd.values)
        crowd.keys.append(key)
        crowd.names.append(name)
        crowd.rows.append(data)
        crowd.nbytes += PER_BYTE * len(data) if self._native and light(value) else nbytes(value)
        crowd.values[key] = value

    def _decide(self) -> None:
        """The end of a probation: what is in use enters memory, the rest goes."""
        if not self._crowd.keys:
            return
        with self.lock:
            crowd, self._crowd = self._crowd, Crowd()
        in_use = set(crowd.values)  # for all that is known if Ctrl-C comes now
        try:
            in_use = self._in_use(crowd)
        finally:
            with self.lock:
                now = map(self.index.names.get, crowd.keys)
                in_use.update(key for key, name, then in zip(crowd.keys, now, crowd.names) if name != then)
                for key in in_use & crowd.values.keys():
                    self._disown(key)
                    self.memory.put(key, crowd.values[key], nbytes(crowd.values[key]), True)
                self._see(crowd.values)
                self.memory.take_back(crowd.values)
        self._make_room_quietly(ABSENT)

    def _see(self, keys: Iterable[K]) -> None:
        """The values of ``keys`` were read once and let go; so many are remembered as there are in memory, about."""
        self._seen.update(dict.fromkeys(keys))
        most = max(len(self.memory.values), MOST)
        if len(self._seen) > most + MOST:
            for key in list(islice(self._seen, len(self._seen) - most)):
                del self._seen[key]

    def _in_use(self, crowd: Crowd[K]) -> set[K]:
        """The keys of the values that somebody holds, or that are no longer as they were read."""
        values = crowd.values
        with self.lock:
            current = [values.get(key) for key in crowd.keys]
            suspects = which_can_change(current)
            del current
            held = {key for key in compress(crowd.keys, suspects) if not alone(values, key)}
        if not self.memory.writeback:
            return held
        doubts = [(key, values.get(key, ABSENT), data)
                  for key, data in compress(zip(crowd.keys, crowd.rows), suspects) if key not in held]
        alike = self.store.alike([value for _, value, _ in doubts], [data for _, _, data in doubts])
        return held.union(key for (key, _, _), same in zip(doubts, alike) if not same)

    # What is asked of all values decides about these first, so that all are in memory or gone.

    def save(self, plain: bool, empty: bool, progress: Callable[..., Iterable[Any]]) -> None:
        self._decide()
        super().save(plain, empty, progress)

    def retire(self, progress: Callable[..., Iterable[Any]]) -> None:
        self._decide()
        super().retire(progress)

    def prefetch(self, keys: Sequence[K], progress: Callable[..., Iterable[Any]]) -> None:
        self._decide()
        super().prefetch(keys, progress)
