"""Probation: small values that are read one by one while memory is full do not push out others at their first reading.

Such a value waits, with the bytes that it was read from, until some have come together.  Then those go that nobody
holds and nobody changed, without a look at the disk; the others enter memory.  A key that is read once more, soon
enough, enters memory as ever.

To let in what is read twice is the idea of T. Johnson and D. Shasha, "2Q: A low overhead high performance buffer
management replacement algorithm" (1994).
"""
from __future__ import annotations

from collections.abc import Hashable, Iterable
from itertools import islice
from typing import Any, Callable, TypeVar

from chest.alone import alone
from chest.arriving import PER_BYTE
from chest.changeable import can_change
from chest.memory import ABSENT
from chest.names import Name
from chest.passing import FULL, Passing
from chest.sizes import LIGHT, light, nbytes
from chest.state import nothing

__all__ = ["Probation"]

K = TypeVar("K", bound=Hashable)

MOST = 256  # values that wait


class Probation(Passing[K]):
    """The short way in, for one small value."""

    def __init__(self, *parts: Any):
        super().__init__(*parts)
        self._waiting: dict[K, Any] = {}
        self._slips: list[tuple[K, Name, bytes]] = []  # what each of them was read from
        self._encoded = 0  # bytes of those
        self._enough = 0.0  # bytes after which they are decided about
        self._seen: dict[K, None] = {}  # the keys that were let go last

    def get(self, key: K) -> Any:
        """The value of ``key``, which is not in memory; `KeyError` if there is none."""
        name = self.index.names.get(key)
        if type(name) is int and key not in self._waiting and self._on_miss is nothing:
            data = self.store.row(name)
            if data is not None and self.index.newest():
                value = self._let_in(key, name, data)
                if value is not ABSENT:
                    return value
        return super().get(key)

    def _let_in(self, key: K, name: Name, data: bytes) -> Any:
        """The value in a row, which is in memory now or on probation; `ABSENT`, and nothing is done, where that takes
        a closer look."""
        try:
            value = self.store.decode(data)
        except Exception:
            return ABSENT  # who looks closer is told why
        if self._encoded > self._enough or len(self._slips) >= MOST:
            self._decide()
        memory = self.memory
        most = LIGHT * len(data)
        with self.lock:
            if self.index.names.get(key) != name or key in self._loads or memory.current(key) is not ABSENT:
                return ABSENT
            self.counts.missed(len(data))
            room = memory.room(FULL * self.available, most)
            if room < 0 and key not in self._seen:
                self._wait(key, name, data, value)
                return value
            if room > most and self.codec.native and light(value):
                memory.put_light_one(key, value, most)
                return value
            memory.put(key, value, nbytes(value), True)
        self._make_room_quietly(key)
        return value

    def _wait(self, key: K, name: Name, data: bytes, value: Any) -> None:
        if not self._slips:
            self._waiting = {}
            self._enough = self.available / (8 * PER_BYTE)
            self.memory.lend(self._waiting)
        self._waiting[key] = value
        self._slips.append((key, name, data))
        self._encoded += len(data)

    def _decide(self) -> None:
        """The end of a probation: what is in use enters memory, the rest goes."""
        with self.lock:
            slips, self._slips, self._encoded = self._slips, [], 0
            waiting, self._waiting = self._waiting, {}
        in_use = self._in_use(slips, waiting)
        with self.lock:
            self.memory.take_back(waiting)
            for key, name, _ in slips:
                if key in waiting and (key in in_use or self.index.names.get(key) != name):
                    self._disown(key)
                    self.memory.put(key, waiting[key], nbytes(waiting[key]), True)
            self._seen.update(dict.fromkeys(waiting))
            for key in list(islice(self._seen, max(len(self._seen) - max(len(self.memory.values), MOST), 0))):
                del self._seen[key]
        self._make_room_quietly(ABSENT)

    def _in_use(self, slips: list[tuple[K, Name, bytes]], waiting: dict[K, Any]) -> set[K]:
        """The keys of the values that somebody holds, or that are no longer as they were read."""
        with self.lock:
            slips = [slip for slip in slips if slip[0] in waiting and can_change(waiting[slip[0]])]
            held = {key for key, _, _ in slips if not alone(waiting, key)}
        if not self.memory.writeback:
            return held
        doubts = [(key, waiting.get(key, ABSENT), data) for key, _, data in slips if key not in held]
        alike = self.store.alike([value for _, value, _ in doubts], [data for _, _, data in doubts])
        return held.union(key for (key, _, _), same in zip(doubts, alike) if not same)

    def save(self, plain: bool, empty: bool, progress: Callable[..., Iterable[Any]]) -> None:
        """As `Leaving.save`.  What is on probation and not in use goes first, as it would be compared each time."""
        if self._slips:
            in_use = self._in_use(self._slips, self._waiting)
            with self.lock:
                for key, name, _ in self._slips:
                    if key not in in_use and self.index.names.get(key) == name:
                        self._waiting.pop(key, None)
                self._slips = [slip for slip in self._slips if slip[0] in self._waiting]
                self._encoded = sum(len(data) for _, _, data in self._slips)
        super().save(plain, empty, progress)
        if empty:
            with self.lock:
                self.memory.take_back(self._waiting)
                self._waiting, self._slips, self._encoded = {}, [], 0
