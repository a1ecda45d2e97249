"""The way past: once memory is full, small values that come or go many at a time do not push out one another.

What is iterated over is read a crowd at a time and handed out without entering memory; what comes in a crowd is written
at once.  A value in the hands of one who iterates is lent: whoever asks for its key meanwhile gets the same object, and
a change made to it is noticed when it is given back.
"""
from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, TypeVar

from chest.arrays import can_change
from chest.arriving import Arriving
from chest.errors import file_is_gone
from chest.files import Written
from chest.keysfile import small
from chest.memory import Lent
from chest.sizes import nbytes
from chest.state import nothing

__all__ = ["Passing"]

K = TypeVar("K", bound=Hashable)

STEP = 512  # values that are looked up together as one iterates
FULL = 7 / 8  # of the budget: what leaves in a crowd makes an eighth of it free


class Passing(Arriving[K]):
    """Values on their way from disk to the user, or from the user to disk, that do not stay in memory."""

    def _full(self) -> bool:
        return self.memory.usage > FULL * self.available

    # Out to the user.

    def stream(self, keys: list[K]) -> Iterator[tuple[K, Any]]:
        """The pairs of key and value; a key that another process deletes meanwhile is left out."""
        if self._on_miss is not nothing or not self.store.grain:
            yield from self._pairs(keys)
            return
        for start in range(0, len(keys), STEP):
            crowd = keys[start : start + STEP]
            if self._full():
                yield from self._passing(crowd)
            else:
                self._fetch([key for key in crowd if small(self.index.names.get(key) or "")])
                yield from self._pairs(crowd)

    def _pairs(self, keys: list[K]) -> Iterator[tuple[K, Any]]:
        for key in keys:
            try:
                value = self._value(key)
            except KeyError as error:
                if file_is_gone(error, key):
                    raise
                continue
            yield key, value

    def _value(self, key: K) -> Any:
        with self.lock:
            if key in self.memory.values:
                self.memory.handed_out([key])
                return self.memory.values[key]
        return self.get(key)

    def _passing(self, keys: list[K]) -> Iterator[tuple[K, Any]]:
        """The pairs of ``keys``; what is in memory comes from there, the rest is read at once and not kept."""
        with self.lock:
            trusted = self.index.unchanged()
            names = list(map(self.index.names.get, keys))
        rows = self.store.peek(names, trusted)
        misses = bytes_read = 0
        try:
            for key, name, data in zip(keys, names, rows):
                value, lent = self._lent(key, name, data)
                if lent is None:
                    yield from self._pairs([key])
                    continue
                misses += 1
                bytes_read += len(data)
                try:
                    yield key, value
                finally:
                    self._give_back(key, value, data, lent)
        finally:
            with self.lock:
                self.counts.misses += misses
                self.counts.bytes_read += bytes_read

    def _lent(self, key: K, name: str | None, data: Any) -> tuple[Any, Lent | None]:
        """The value that the row holds, lent; `None` for it where the row is not what the key stands for now."""
        if data is None:
            return None, None
        try:
            value = self.store.decode(data)
        except Exception:
            return None, None
        with self.lock:
            if self.index.names.get(key) is not name or self.memory.has(key):
                return None, None
            return value, self.memory.lend(key, value)

    def _give_back(self, key: K, value: Any, data: bytes, lent: Lent) -> None:
        """The user is through with a value: if it was changed it enters memory, if he holds it it can be found."""
        changed = self.memory.writeback and can_change(value) and not self.store.alike(value, data)
        size = nbytes(value) if changed else 0
        with self.lock:
            if self.memory.take_back(key, lent):
                if changed:
                    self._disown(key)
                    self.memory.put(key, value, size, on_disk=True)
                else:
                    self.memory.hold(key, value)
        if changed:
            self._make_room_quietly(key)

    # In from the user.

    def set_many(self, pairs: dict[K, Any]) -> dict[K, Any]:
        """Set many pairs by writing them at once, if memory is full.  Returns those that are yet to be set, singly."""
        if len(pairs) < 2 or not self.store.grain or self._on_overflow is not nothing or not self._full():
            return pairs
        written: list[tuple[K, Any, Written]] = []
        try:
            for (key, value), one in zip(pairs.items(), self.store.write(pairs.items())):
                written.append((key, value, one))
        finally:
            with self.lock:
                orphans = self._take_in([one for one in written if one[2].error is None])
            self.store.remove(orphans)
        return {key: value for key, value, one in written if one.error is not None}

    def _take_in(self, written: list[tuple[K, Any, Written]]) -> list[str]:
        """The values are in new files now, and not in memory.  Returns the files that nothing names any more."""
        self.counts.spills += len(written)
        self.counts.bytes_written += sum(one.nbytes for _, _, one in written)
        orphans: list[str] = []
        if not self.index.add([key for key, _, _ in written], [one.name for _, _, one in written],
                              [one.mark for _, _, one in written]):
            for key, _, one in written:
                orphan = self.index.set(key)
                self.index.written(key, one.name, one.mark)
                self._disown(key)
                self.memory.remove(key)
                if orphan is not None:
                    orphans.append(orphan)
        for key, value, one in written:
            self.memory.note(key, one.mark)
            self.memory.hold(key, value)
        return orphans
