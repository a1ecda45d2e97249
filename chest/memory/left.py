"""Values that left memory, and that the program still refers to: it may change them yet.

So the next read gives the same object, and a commit looks at it.

Thread safety: none.  The caller has the chest's lock; only a value's own end may come at any time.
"""
from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterable, Set
from itertools import islice
from operator import itemgetter
from typing import Any, Generic, TypeVar

from chest.memory.changes import COUNTED, closed, held_parts, lent, owner, referenced, references
from chest.memory.sizeof import nbytes
from chest.serialize.arrays import MAPPED_FROM
from chest.serialize.compare import can_change

__all__ = ["ABSENT", "MORE", "UNKNOWN", "Left", "Saved"]

K = TypeVar("K", bound=Hashable)

ABSENT: Any = object()  # stands for "no value", where None may be one

# What tells that a value is still as its bytes are: their stamp, and the version of the loose file that they are in.
Saved = tuple[Any, int]
UNKNOWN: Saved = (None, 0)

MORE = 8  # values, and two for each that leaves, are looked at by the next spill, so that few stay
_ALONE = 3  # references to a value that the program has no more: ``entries``, a list, and who asks
_WITHOUT = frozenset((dict, list, tuple, str, bytes, int, float))  # to which there are no weak references


class _Reference(weakref.ref):  # type: ignore[type-arg]
    """A weak reference to a value, or to the array that it is a view of; it knows the value's key.

    While the base of a view is there, a change of it is one of the view, and the view can be made anew.
    """

    key: Any
    layout: Any = None  # of a view: shape, dtype, begin, strides, and whether it can be written to
    view: Any

    def value(self) -> Any:
        """The value, the same object as before if that is still there; `None` if it is gone."""
        base = self()
        if base is None or closed(base):
            return None
        if self.layout is None:
            return base
        value = self.view()
        if value is None:
            shape, dtype, begin, strides, is_writeable = self.layout
            value = type(base)(shape, dtype, base if base.flags.c_contiguous else base.T, begin, strides)
            value.flags.writeable &= is_writeable
            self.view = weakref.ref(value)
        return value


class Left(Generic[K]):
    """``entries`` has for each key the value, or a weak reference, and what tells whether it changed.

    Values in ``kept`` are held by a plain reference until the reference counts say that the program has them no more;
    till then it keeps their memory anyway.  Values that have weak references (arrays, frames) are among them only where
    they fit into ``most`` bytes and are quick to look at once more; else a weak one holds them.  These bytes are also
    for the rest of values of which the program has only a part.  ``kept`` has how many of them each takes, the one
    looked at longest ago first.
    """

    def __init__(self, writeback: bool, most: float):
        self.writeback = writeback
        self.most = most
        self.entries: dict[K, Any] = {}
        self.kept: dict[K, int] = {}
        self._usage = 0  # the sum of these
        self._forced = 0  # bytes that came to be kept, as there are no weak references to them
        # So many that cycles may be among them: from now on references within a value do not count, which takes longer.
        self.has_cycles = False

    def add(self, key: K, value: Any, saved: Saved, size: int | None = None, is_clean: bool = False) -> None:
        """The value of ``key`` left memory; if it ``is_clean``, it was not written for that.

        By a plain reference, if there is room and that is quick: then it is looked at once more when it is let go of.
        """
        reference = None
        if type(value) not in _WITHOUT:
            size = nbytes(value) if size is None else size
            # A large copy that did not change would be compared with its file twice, which takes longer than a load.
            is_slow = (is_clean and type(value).__name__ == "ndarray" and value.base is None
                       and value.nbytes >= MAPPED_FROM)
            if (self._usage + size <= self.most and COUNTED and self.writeback and not is_slow and not lent(value)
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
                self._forced += size or 0
                self.has_cycles = self._forced > self.most
            return
        if base is not value:
            begin = value.__array_interface__["data"][0] - base.__array_interface__["data"][0]
            reference.layout = value.shape, value.dtype, begin, value.strides, value.flags.writeable
            reference.view = weakref.ref(value)
        reference.key = key
        self.entries[key] = reference, saved

    def keep(self, key: K, value: Any, saved: Saved, beside: int = 0) -> None:
        """As `add`, by a plain reference, and with so many of the ``most`` bytes."""
        self.entries[key] = value, saved
        self.kept[key] = beside
        self._usage += beside

    def keep_beside(self, key: K, value: Any, saved: Saved, parts: list[Any]) -> bool:
        """Keep a value of which the program has ``parts``, and may change them, if there is room for the rest."""
        if not self.kept.get(key):
            size = max(0, nbytes(value) - nbytes(parts))
            if not self.writeback or self._usage + size > self.most:
                return False
            self.keep(key, value, saved, size)
        return True

    def _died(self, reference: _Reference) -> None:
        if self.entries.get(reference.key, UNKNOWN)[0] is reference:
            self.entries.pop(reference.key, None)

    def find(self, key: K) -> tuple[Any, Saved]:
        """The value of ``key``, and what tells whether it changed; `ABSENT` if there is none."""
        value, saved = self.entries.get(key, (ABSENT, UNKNOWN))  # it may have died just now
        if type(value) is _Reference:
            value = value.value()
        return (ABSENT, UNKNOWN) if value is None else (value, saved)

    def suspects(self, keys: Iterable[K]) -> list[tuple[K, Any, Saved]]:
        """Those values of ``keys`` that the program may have changed since they left."""
        found = [(key, *self.find(key)) for key in keys] if self.writeback else []
        return [entry for entry in found if entry[1] is not ABSENT and can_change(entry[1])]

    def unreferenced(self, most: int) -> list[tuple[K, Any, Saved]]:
        """Of up to ``most`` values kept by plain references, those of which the program has neither all nor a part."""
        entries, kept = self.entries, self.kept
        found = [(key, *entries[key]) for key in islice(kept, most) if key in entries and key in kept]
        # ``entries`` and ``found`` refer to it.  For one more than left since, references within it do not count.
        held = referenced([one[1] for one in found], 2, (most - MORE) // 2 + 1 if self.has_cycles else 0)
        free = [one for one, is_held in zip(found, held) if not is_held]
        free = [(key, value, saved) for (key, value, saved), parts in zip(free, held_parts([one[1] for one in free]))
                if not (parts and self.keep_beside(key, value, saved, parts))]
        for key, *_ in found:
            beside = kept[key]
            del kept[key]
            kept[key] = beside  # as the one looked at last
        return free

    def unheld(self, items: Iterable[tuple[Any, ...]]) -> set[K]:
        """The keys of those of ``items`` (key, value, …) that are kept, and that only this and the item refer to."""
        return {item[0] for item in items if item[0] in self.kept
                and not (referenced([item[1]], 2)[0] or held_parts([item[1]])[0])}

    def is_due(self, few: int) -> bool:
        """Does the program refer no more to one of the ``few`` looked at longest ago, or are there more?"""
        # But for those whose key's hash changed, which nobody finds.
        kept = list(map(itemgetter(0), filter(None, map(self.entries.get, islice(self.kept, few)))))
        return _ALONE in map(references, kept) or bool(kept[few - 1 :]) or self.has_cycles

    def forget(self, key: K) -> None:
        """The value is as its bytes are, and nobody has it; or ``key`` has another one."""
        self._usage -= self.kept.pop(key, 0)
        self.entries.pop(key, None)

    def clear(self) -> list[Any]:
        """Forget all.  Returns what was there, so that finalisers of the user's run when the caller is through."""
        gone = [*self.entries.values()]
        self.kept.clear()
        self.entries.clear()
        self._usage = 0
        return gone

    def rebuild(self, refs: dict[K, Any], values: Set[K]) -> None:
        """Keep what has a place in ``refs`` and is not among the ``values`` in memory, whatever was interrupted."""
        entries = {key: entry for key, entry in self.entries.copy().items()
                   if refs.get(key) is not None and key not in values}
        self.kept = {key: self.kept.get(key, 0) for key, (value, _) in entries.items() if type(value) is not _Reference}
        self.entries = entries  # last, as what is kept is among it at any time
        self._usage = sum(self.kept.values())
