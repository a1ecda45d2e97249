"""Probation: small values that are read one by one while memory is full do not push out others at their first reading.

Such a value waits, with the bytes that it was read from, until some have come together.  Then those go that nobody
holds and nobody changed, without a look at the disk; the others enter memory.  A key that is read once more, soon
enough, enters memory as ever.

To let in what is read twice is the idea of T. Johnson and D. Shasha, "2Q: A low overhead high performance buffer
management replacement algorithm" (1994).
"""
from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from itertools import islice
from typing import Any, Callable, Generic, TypeVar

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


class Crowd(Generic[K]):
    """The values that wait, and for each the name and the bytes of the row that it was read from."""

    def __init__(self) -> None:
        self.values: dict[K, Any] = {}
        self.slips: list[tuple[K, Name, bytes]] = []
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

        A row that nobody else has or loads is read, and believed if nobody has committed since we looked last.
        """
        name = self.index.names.get(key)
        if type(name) is int and self._on_miss is nothing:
            if key not in self._crowd.values:
                data = self.store.row(name)
                if data is not None and self.index.newest():
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
        if self._crowd.nbytes > self.available / 8 or len(self._crowd.slips) >= MOST:
            self._decide()
        memory = self.memory
        most = LIGHT * len(data)
        is_light = self._native and light(value)
        with self.lock:
            if self.index.names.get(key) != name or key in self._loads or memory.current(key) is not ABSENT:
                return ABSENT
            self.counts.missed(len(data))
            room = memory.room(FULL * self.available, most)
            if room < 0 and key not in self._seen:
                self._wait(key, name, data, value, PER_BYTE * len(data) if is_light else nbytes(value))
                return value
            if room > most and is_light:
                memory.put_light_one(key, value, most)
                return value
            memory.put(key, value, nbytes(value), True)
        self._make_room_quietly(key)
        return value

    def _wait(self, key: K, name: Name, data: bytes, value: Any, size: int) -> None:
        crowd = self._crowd
        if not crowd.slips:
            self.memory.lend(crowd.values)
        crowd.slips.append((key, name, data))
        crowd.nbytes += size
        crowd.values[key] = value

    def _decide(self) -> None:
        """The end of a probation: what is in use enters memory, the rest goes."""
        if not self._crowd.slips:
            return
        with self.lock:
            crowd, self._crowd = self._crowd, Crowd()
        in_use = set(crowd.values)  # for all that is known if Ctrl-C comes now
        try:
            in_use = self._in_use(crowd)
        finally:
            with self.lock:
                for key, name, _ in crowd.slips:
                    if key in crowd.values and (key in in_use or self.index.names.get(key) != name):
                        self._disown(key)
                        self.memory.put(key, crowd.values[key], nbytes(crowd.values[key]), True)
                self._seen.update(dict.fromkeys(crowd.values))
                self.memory.take_back(crowd.values)
                for key in list(islice(self._seen, max(len(self._seen) - max(len(self.memory.values), MOST), 0))):
                    del self._seen[key]
        self._make_room_quietly(ABSENT)

    def _in_use(self, crowd: Crowd[K]) -> set[K]:
        """The keys of the values that somebody holds, or that are no longer as they were read."""
        values = crowd.values
        with self.lock:
            slips = [slip for slip in crowd.slips if slip[0] in values and can_change(values[slip[0]])]
            held = {key for key, _, _ in slips if not alone(values, key)}
        if not self.memory.writeback:
            return held
        doubts = [(key, values.get(key, ABSENT), data) for key, _, data in slips if key not in held]
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
