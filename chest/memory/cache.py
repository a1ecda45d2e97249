"""What is in memory: the values, the bytes that they take, and those that left but that the program still refers to.

Thread safety: none.  The caller has the chest's lock.  Nothing here reads or writes a file.

``values`` is the truth.  All else is derived: from the values and from where they lie, `rebuild` makes it anew,
whatever Ctrl-C or a failing callback left half done.
"""
from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterable, Mapping, Set
from itertools import islice
from typing import Any, Generic, TypeVar

from chest.memory.access import Access
from chest.memory.changes import CONTAINERS, COUNTED, held_parts, owner, referenced
from chest.memory.hit_density import HitDensity
from chest.memory.sizeof import nbytes
from chest.serialize.arrays import MAPPED_FROM
from chest.serialize.compare import can_change

__all__ = ["ABSENT", "UNKNOWN", "Cache", "Saved", "memory_of"]

K = TypeVar("K", bound=Hashable)

ABSENT: Any = object()  # stands for "no value", where None may be one

# What tells that a value is still as its bytes are: their stamp, and the version of the loose file that they are in.
Saved = tuple[Any, int]
UNKNOWN: Saved = (None, 0)


def memory_of(value: Any, length: int) -> int:
    """The bytes that ``value`` takes in memory: what `nbytes` says; or the ``length`` to which it serialises, where
    that is far more, as with types that keep what they hold out of sight."""
    size = nbytes(value)
    return size if length <= 2 * size else length


_WITHOUT = frozenset((dict, list, tuple, str, bytes, int, float))  # to which there are no weak references


class _Reference(weakref.ref):  # type: ignore[type-arg]
    """A weak reference to a value that left memory, or to the array that it is a view of; it knows the value's key.

    While the base of a view is there, a change of it is one of the view, and the view can be made anew.
    """

    key: Any
    layout: Any = None  # of a view: shape, dtype, begin, strides, and whether it can be written to
    view: Any

    def value(self) -> Any:
        """The value, the same object as before if that is still there; `None` if it is gone."""
        base = self()
        if base is None or self.layout is None:
            return base
        value = self.view()
        if value is None:
            shape, dtype, begin, strides, is_writeable = self.layout
            value = type(base)(shape, dtype, base if base.flags.c_contiguous else base.T, begin, strides)
            value.flags.writeable &= is_writeable
            self.view = weakref.ref(value)
        return value


class Cache(Generic[K]):
    """The values in memory, which of them may have been changed in place, and which leaves next.

    ``watch`` has the keys whose values are on disk too, but may have been changed since they were found to be as their
    bytes are; ``saved`` tells for values on disk what these bytes were.  ``stuck`` are those that cannot be written:
    they are not in the policy's order, lest they stand in the others' way.

    ``left`` has values that left memory and that the program still refers to, so that the next read gives the same
    object and a commit looks at it.  Those in ``kept`` are held by a plain reference until the reference counts say
    that the program has them no more; till then it keeps their memory anyway.  Values that have weak references
    (arrays, frames) are among them only where they fit into ``most_beside`` bytes and are quick to look at once more;
    else a weak one holds them.  These bytes are also for the rest of values of which the program has only a part.
    ``kept`` has how many of them each takes, the one looked at longest ago first.
    """

    def __init__(self, writeback: bool, most_beside: float):
        self.policy: HitDensity[K] = HitDensity()
        self.writeback = writeback
        self.most_beside = most_beside
        self.access: Access[K] = Access()
        self.given = self.access.given
        self.values: dict[K, Any] = {}
        self.sizes: dict[K, int] = {}
        self.usage = 0
        self.saved: dict[K, Saved] = {}
        self.watch: dict[K, None] = {}
        self.stuck: set[K] = set()
        self.left: dict[K, Any] = {}
        self.kept: dict[K, int] = {}
        self._usage_beside = 0  # the sum of these

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
        if self.left and key in self.left:
            self.let_go(key)
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
            if key in self.left:
                self.left[key] = self.left[key][0], saved
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
        gone = self.values.pop(key, ABSENT), self.left.get(key)
        self.let_go(key)
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
        for place, (key, value, is_held) in enumerate(zip(keys, values, referenced(values, 2))):
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
                    self._keep_beside(key, value, saved[key], parts)
                else:
                    self.leave(key, value, saved[key])
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

    # Values that left, and that the program still refers to.

    def leave(self, key: K, value: Any, saved: Saved) -> None:
        """Remember a value outside of memory for as long as somebody else refers to it.

        By a plain reference, if there is room and that is quick: then it is looked at once more when it is let go of.
        """
        reference = None
        if type(value) not in _WITHOUT:
            size = self.sizes[key] if key in self.sizes else nbytes(value)
            # A large copy that did not change would be compared with its file twice, which takes longer than a load.
            is_slow = (type(value).__name__ == "ndarray" and value.base is None and value.nbytes >= MAPPED_FROM
                       and key in self.saved and self.saved[key] is saved)
            if (self._usage_beside + size <= self.most_beside and COUNTED and self.writeback and not is_slow
                    and can_change(value)):
                self.keep(key, value, saved, size)
                return
            if (base := owner(value)) is not None:
                try:
                    reference = _Reference(base, self._died)
                except TypeError:
                    pass
        if reference is None:
            if COUNTED and can_change(value):
                self.keep(key, value, saved)
            return
        if base is not value:
            begin = value.__array_interface__["data"][0] - base.__array_interface__["data"][0]
            reference.layout = value.shape, value.dtype, begin, value.strides, value.flags.writeable
            reference.view = weakref.ref(value)
        reference.key = key
        self.left[key] = reference, saved

    def keep(self, key: K, value: Any, saved: Saved, beside: int = 0) -> None:
        """As `leave`, by a plain reference, and with so many of the ``most_beside`` bytes."""
        self.left[key] = value, saved
        self.kept[key] = beside
        self._usage_beside += beside

    def _keep_beside(self, key: K, value: Any, saved: Saved, parts: list[Any]) -> bool:
        """Keep a value of which the program has ``parts``, and may change them, if there is room for the rest."""
        if not self.kept.get(key):
            size = max(0, nbytes(value) - nbytes(parts))
            if not self.writeback or self._usage_beside + size > self.most_beside:
                return False
            self.keep(key, value, saved, size)
        return True

    def _died(self, reference: _Reference) -> None:
        if self.left.get(reference.key, UNKNOWN)[0] is reference:
            self.left.pop(reference.key, None)

    def find(self, key: K) -> tuple[Any, Saved]:
        """The value of ``key``, in memory, or outside with what tells whether it changed; `ABSENT` if there is none."""
        if key in self.left:
            value, saved = self.left.get(key, (ABSENT, UNKNOWN))  # it may have died just now
            if type(value) is _Reference:
                value = value.value()
            if value is not None:
                return value, saved
        return self.values.get(key, ABSENT), UNKNOWN

    def suspects(self) -> list[tuple[K, Any, Saved]]:
        """What is on disk, and may have been changed in place since: in memory, or behind its leaving it."""
        watched = [(key, self.values[key], self.saved[key]) for key in list(self.watch)
                   if key in self.values and key in self.saved]  # a signal's handler may save half-way
        return watched + self.departed(list(self.left))

    def departed(self, keys: Iterable[K]) -> list[tuple[K, Any, Saved]]:
        """Those values of ``keys`` that left memory and that the program may have changed since."""
        found = [(key, *self.find(key)) for key in keys] if self.writeback else []
        return [entry for entry in found if entry[1] is not ABSENT and can_change(entry[1])]

    def unreferenced(self, most: int) -> list[tuple[K, Any, Saved]]:
        """Of up to ``most`` values kept by plain references, those of which the program has neither all nor a part."""
        found = [(key, *self.left[key]) for key in islice(self.kept, most) if key in self.left and key in self.kept]
        held = referenced([one[1] for one in found], 2)  # ``left`` and ``found`` refer to it
        free = [one for one, is_held in zip(found, held) if not is_held]
        free = [(key, value, saved) for (key, value, saved), parts in zip(free, held_parts([one[1] for one in free]))
                if not (parts and self._keep_beside(key, value, saved, parts))]
        kept = self.kept
        for key, *_ in found:
            beside = kept[key]
            del kept[key]
            kept[key] = beside  # as the one looked at last
        return free

    def let_go(self, key: K) -> None:
        """A value that left memory, and that is as its bytes are, is kept no more."""
        self._usage_beside -= self.kept.pop(key, 0)
        self.left.pop(key, None)

    # The whole.

    def clear(self) -> list[Any]:
        """Empty memory.  Returns what was there, so that finalisers of the user's run when the caller is through."""
        self.access.clear()  # first, as in `remove`
        kept = [*self.values.values(), *self.left.values()]
        for part in (self.values, self.sizes, self.saved, self.watch, self.stuck, self.kept, self.left):
            part.clear()
        self.usage = self._usage_beside = 0
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
        left = {key: found for key, found in self.left.copy().items() if refs.get(key) is not None
                and key not in self.values}
        self.kept = {key: self.kept.get(key, 0) for key, (value, _) in left.items() if type(value) is not _Reference}
        self.left = left  # last, as what is kept is among it at any time
        self._usage_beside = sum(self.kept.values())
        self.sizes = {key: nbytes(value) for key, value in self.values.items()}
        self.usage = sum(self.sizes.values())
        self.stuck &= self.values.keys()
        self.policy.clear()
        for key, size in self.sizes.items():
            if key not in self.stuck:
                self.policy.put(key, size, key not in self.saved)
