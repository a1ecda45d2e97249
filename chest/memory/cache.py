"""What is in memory: the values, and the bytes that they take.  Those that left have a room of their own (`left`).

Thread safety: none.  The caller has the chest's lock.  Nothing here reads or writes a file.

``values`` is the truth.  All else is derived: from the values and from where they lie, `rebuild` makes it anew,
whatever Ctrl-C or a failing callback left half done.
"""
from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Set
from typing import Any, Generic, TypeVar

from chest.memory.access import Access
from chest.memory.changes import CONTAINERS, held_parts, referenced
from chest.memory.hit_density import HitDensity
from chest.memory.left import ABSENT, UNKNOWN, Left, Saved
from chest.memory.sizeof import nbytes
from chest.serialize.compare import can_change

__all__ = ["ABSENT", "UNKNOWN", "Cache", "Saved", "memory_of"]

K = TypeVar("K", bound=Hashable)


def memory_of(value: Any, length: int) -> int:
    """The bytes that ``value`` takes in memory: what `nbytes` says; or the ``length`` to which it serialises, where
    that is far more, as with types that keep what they hold out of sight."""
    size = nbytes(value)
    return size if length <= 2 * size else length


class Cache(Generic[K]):
    """The values in memory, which of them may have been changed in place, and which leaves next.

    ``watch`` has the keys whose values are on disk too, but may have been changed since they were found to be as their
    bytes are; ``saved`` tells for values on disk what these bytes were.  ``stuck`` are those that cannot be written:
    they are not in the policy's order, lest they stand in the others' way.
    """

    def __init__(self, writeback: bool, most_beside: float):
        self.policy: HitDensity[K] = HitDensity()
        self.writeback = writeback
        self.access: Access[K] = Access()
        self.given = self.access.given
        self.values: dict[K, Any] = {}
        self.sizes: dict[K, int] = {}
        self.usage = 0
        self.saved: dict[K, Saved] = {}
        self.watch: dict[K, None] = {}
        self.stuck: set[K] = set()
        self.left: Left[K] = Left(writeback, most_beside)

    def put(self, key: K, value: Any, size: int, saved: Saved | None, is_given: bool = True) -> None:
        """The value of ``key`` is ``value``, of ``size`` bytes; ``saved`` if it is on disk, else it is dirty.

        If it ``is_given``, other threads may have it from now on, without the lock.
        """
        if self.stuck:
            self.stuck.discard(key)
        self.usage += size - (self.sizes[key] if key in self.sizes else 0)
        self.sizes[key] = size
        if saved is not None:
            self.saved[key] = saved
            if self.writeback and can_change(value):
                self.watch[key] = None
        elif key in self.saved:
            del self.saved[key]
            self.watch.pop(key, None)
        self.values[key] = value
        if is_given:
            self.given[key] = value
        left = self.left.entries
        if left and key in left:
            self.left.forget(key)
        self.policy.put(key, size, saved is None)

    def give(self, key: K) -> Any:
        """The value in memory of ``key``, noted as handed out; `ABSENT` if there is none."""
        if key not in self.values:
            return ABSENT
        value = self.given[key] = self.values[key]  # first: a finaliser of the user's may run below, and let it leave
        if key not in self.watch:
            self.look_at(key)
        return value

    def look_at(self, key: K) -> None:
        """The value of ``key`` may be changed in place from now on."""
        if self.writeback and key in self.saved and can_change(self.values.get(key)):
            self.watch[key] = None

    def wrote(self, key: K, saved: Saved, length: int | None) -> None:
        """The value of ``key`` is as its bytes on disk are; ``length`` of them, if they were just written."""
        if key not in self.values:
            left = self.left.entries
            if key in left:
                left[key] = left[key][0], saved
            return
        self.saved[key] = saved
        if length is not None:
            self.resize(key, memory_of(self.values[key], length))

    def resize(self, key: K, size: int) -> None:
        self.usage += size - self.sizes[key]
        self.sizes[key] = size
        self.policy.resized(key, size, key not in self.saved)

    def size_anew(self) -> None:
        """Size all values, which may have grown in place.  O(values)."""
        for key, value in list(self.values.items()):
            size = nbytes(value)
            if size > self.sizes.get(key, size):
                self.resize(key, size)

    def take_hits(self) -> None:
        if self.access.log:
            self.policy.used(self.access.take())

    # Out.

    def stick(self, key: K) -> None:
        """The value of ``key`` cannot be written: it is not to stand in the way of the others that leave."""
        self.policy.leave(key)
        self.stuck.add(key)

    def unstick(self, but: Set[K]) -> None:
        """What could not be written may be by now, ``but`` for these keys."""
        for key in self.stuck - but:
            self.stuck.discard(key)
            self.policy.put(key, self.sizes[key], key not in self.saved)

    def remove(self, key: K) -> Any:
        """``key`` has another value now, or none: nothing of this one is kept.  Returns it, so that a finaliser of the
        user's, which may use the chest, runs when the caller is through."""
        self.given.pop(key, None)  # first, lest a hit behind Ctrl-C gives what is kept no more
        gone = self.values.pop(key, ABSENT), self.left.entries.get(key)
        self.left.forget(key)
        self.watch.pop(key, None)
        self.saved.pop(key, None)
        self.stuck.discard(key)
        self.usage -= self.sizes.pop(key, 0)
        self.policy.leave(key)
        return gone

    def held(self, keys: Iterable[K]) -> dict[K, list[Any]]:
        """Those of ``keys`` whose values the program has, besides the cache and the item of a spill; with each the
        parts that it has, none where it has the whole."""
        found: dict[K, list[Any]] = {}
        keys = list(filter(self.values.__contains__, keys))
        values = list(map(self.values.__getitem__, keys))
        parts: list[list[Any] | None] = []  # looked at if need be
        are_held = referenced(values, 2, len(values) if self.left.has_cycles else 0)
        for place, (key, value, is_held) in enumerate(zip(keys, values, are_held)):
            if is_held:
                found[key] = []
            elif type(value) in CONTAINERS:
                parts = parts or held_parts(values)
                if some := parts[place]:
                    found[key] = some
        return found

    def evict(self, saved: Mapping[K, Saved], held: Mapping[K, list[Any]]) -> list[Any]:
        """The values of the keys of ``saved`` leave memory; those that are ``held`` are found again.

        Returns them, so that finalisers of the user's run when the caller is through.
        """
        values, watch, sizes = list(map(self.values.__getitem__, saved)), self.watch, self.sizes
        for key, value in zip(saved, values):
            if key in held:  # first, lest Ctrl-C comes in between, and a change of what the program holds is not seen
                if parts := held[key]:
                    self.left.keep_beside(key, value, saved[key], parts)
                else:
                    is_clean = key in self.saved and self.saved[key] is saved[key]
                    self.left.add(key, value, saved[key], sizes[key], is_clean)
            del self.values[key]
            if key in self.saved:
                del self.saved[key]
                if key in watch:
                    del watch[key]
            self.usage -= sizes[key]
            del sizes[key]
            self.policy.leave(key)
            if self.stuck:
                self.stuck.discard(key)
        return values

    def find(self, key: K) -> tuple[Any, Saved]:
        """The value of ``key``, in memory, or outside with what tells whether it changed; `ABSENT` if there is none."""
        if key in self.left.entries:
            found = self.left.find(key)
            if found[0] is not ABSENT:
                return found
        return self.values.get(key, ABSENT), UNKNOWN

    def suspects(self) -> list[tuple[K, Any, Saved]]:
        """What is on disk, and may have been changed in place since: in memory, or behind its leaving it."""
        watched = [(key, self.values[key], self.saved[key]) for key in list(self.watch)
                   if key in self.values and key in self.saved]  # a signal's handler may save half-way
        return watched + self.left.suspects(list(self.left.entries))

    # The whole.

    def clear(self) -> list[Any]:
        """Empty memory.  Returns what was there, so that finalisers of the user's run when the caller is through."""
        self.access.clear()  # first, as in `remove`
        kept = [*self.values.values(), *self.left.clear()]
        for part in (self.values, self.sizes, self.saved, self.watch, self.stuck):
            part.clear()
        self.usage = 0
        self.policy.clear()
        return kept

    def rebuild(self, refs: dict[K, Any]) -> None:
        """Make all that is derived agree with ``values`` and ``refs``, and suspect every value of being changed.

        A value without a key in ``refs`` was being set, or deleted: it goes.
        """
        self.given.clear()
        for key in [key for key in list(self.values) if key not in refs]:
            self.values.pop(key, None)  # one whose hash changed is not found
        self.saved = {key: self.saved.get(key, UNKNOWN) for key in self.values if refs.get(key) is not None}
        self.watch = dict.fromkeys(self.saved)
        self.left.rebuild(refs, self.values.keys())
        self.sizes = {key: nbytes(value) for key, value in self.values.items()}
        self.usage = sum(self.sizes.values())
        self.stuck &= self.values.keys()
        self.policy.clear()
        for key, size in self.sizes.items():
            if key not in self.stuck:
                self.policy.put(key, size, key not in self.saved)
