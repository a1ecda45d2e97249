"""The way past: once memory is full, small values that come or go many at a time do not push out one another.

What is iterated over is read a crowd at a time and handed out without entering memory; what comes in a crowd is written
at once.  A value in the hands of one who iterates is lent: whoever asks for its key meanwhile gets the same object, and
a change made to it is noticed when it is given back.
"""
from __future__ import annotations

from collections.abc import Hashable, Iterator
from operator import length_hint
from typing import Any, TypeVar

from chest.arriving import Arriving, Rows
from chest.changeable import FIXED, can_change
from chest.errors import file_is_gone
from chest.keysfile import small
from chest.memory import ABSENT
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
        step = min(STEP, self.store.ahead)
        for start in range(0, len(keys), step):
            crowd = keys[start : start + step]
            if not self._full():
                self._bring([key for key in crowd if small(self.index.names.get(key) or "")])
            yield from self._passing(crowd) if self._full() else self._pairs(crowd)

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
        """The pairs of ``keys``; rows are read at once, lent as they are handed out, and not kept."""
        rows = self._read_rows(keys)
        with self.lock:
            lent = self._still(keys, rows)
            self.memory.lend(lent)
        steps = iter(keys)
        others = 0
        try:
            for key in steps:
                value = lent.get(key, ABSENT)
                if value is ABSENT:
                    others += 1
                    yield from self._pairs([key])
                else:
                    yield key, value
        finally:
            handed_out = len(keys) - length_hint(steps)
            self._take_back(keys[:handed_out], rows, lent)
            with self.lock:
                self.counts.misses += handed_out - others
                self.counts.bytes_read += sum(map(len, filter(None, rows.data)))

    def _take_back(self, keys: list[K], rows: Rows, lent: dict[K, Any]) -> None:
        """The user is through with values: those that he changed enter memory, those that he holds can be found."""
        suspects = [(key, value, data) for key, value, data in zip(keys, rows.values, rows.data)
                    if type(value) not in FIXED and can_change(value) and value is not ABSENT]
        changed = {key: nbytes(value) for key, value in self._changed(suspects)}
        with self.lock:
            self.memory.take_back(lent)
            for key in changed.keys() & lent:
                self._disown(key)
                self.memory.put(key, lent[key], changed[key], on_disk=True)
            for key, value in [(key, value) for key, value, _ in suspects if type(value).__weakrefoffset__]:
                if key in lent and key not in changed:
                    self.memory.hold(key, value)
        if changed:
            self._make_room_quietly(ABSENT)

    def _changed(self, items: list[tuple[K, Any, Any]]) -> list[tuple[K, Any]]:
        """Those of the values that are no longer as the bytes of their rows say."""
        if not self.memory.writeback:
            return []
        alike = self.store.alike([value for _, value, _ in items], [data for _, _, data in items])
        return [] if all(alike) else [(key, value) for (key, value, _), same in zip(items, alike) if not same]

    # In from the user.

    def set_many(self, pairs: dict[K, Any]) -> dict[K, Any]:
        """Set many pairs by writing them at once, if memory is full.  Returns those that are yet to be set, singly."""
        if len(pairs) < 2 or not self.store.grain or self._on_overflow is not nothing or not self._full():
            return pairs
        keys, values = list(pairs), list(pairs.values())
        names, nbytes = self.store.write_rows(values)
        rest = {key: value for key, value, name in zip(keys, values, names) if name is None} if None in names else {}
        for key in rest:
            del pairs[key]
        with self.lock:
            orphans = self._take_in(pairs, [name for name in names if name is not None], nbytes)
        self.store.remove(orphans)
        return rest

    def _take_in(self, pairs: dict[K, Any], names: list[str], nbytes: int) -> list[str]:
        """The values are in new rows now, and not in memory.  Returns the files that nothing names any more."""
        self.counts.spills += len(names)
        self.counts.bytes_written += nbytes
        orphans: list[str] = []
        if not self.index.add(list(pairs), names):
            for key, name in zip(pairs, names):
                orphan = self.index.set(key)
                self.index.written(key, name)
                self._disown(key)
                self.memory.remove(key)
                if orphan is not None:
                    orphans.append(orphan)
        for key, value in pairs.items():
            if type(value).__weakrefoffset__:
                self.memory.hold(key, value)
        return orphans
