"""The index as one handle sees it: what the newest commit says, with the handle's own changes laid over it.

Cost: every method is O(1), or O(what changed) where others committed, but for a replacement of ``.keys``, which is
O(keys) to write and to read.
"""
from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any, Callable, Generic, Protocol, TypeVar

from chest.keysfile import Pairs, apply, small
from chest.locks import Gate
from chest.names import Names

__all__ = ["Index"]

K = TypeVar("K", bound=Hashable)


class Keys(Protocol):
    """Where an index is committed: a local `KeysFile`, or its like in an object store."""

    gate: Gate
    signature: Any

    def current(self) -> Any: ...
    def read(self) -> tuple[bool, Pairs]: ...
    def append(self, changes: Pairs) -> bool: ...
    def replace(self, pairs: Pairs) -> None: ...
    def plain(self) -> bool: ...
    def close(self) -> None: ...


class Index(Generic[K]):
    """Which keys there are, in order, and the name of each one's file.

    ``names`` is the whole view: a key's value is in the file ``names[key]``, or nowhere on disk if that is `None`.
    ``pending`` has the keys that this handle set, deleted or found changed since its own last commit, each with the
    name that the newest commit gives it, or `None` if it gives none.  ``inherited`` are those of them that were so
    before a fork: the parent commits them.
    """

    def __init__(self, keys: Keys, reserved: Names[K]):
        self._keys = keys
        self._reserved = reserved
        self.names: dict[K, str | None] = {}
        self.pending: dict[K, str | None] = {}
        self._moved: set[K] = set()  # deleted and set again: they stand last now, as in a dict
        self._fresh: set[str] = set()  # names of this handle's that no commit knows
        self.inherited: set[K] = set()
        self.appended = False  # did this handle's last commit leave a list with records behind it?
        self.turns = 0  # how often a key came or went through this handle, for iterators

    # The handle's own changes.

    def set(self, key: K) -> str | None:
        """``key`` has a new value that is not on disk.  Returns the name of a file that nothing names any more."""
        if key not in self.names:
            self.turns += 1
            if key in self.pending:  # deleted before: move it to the end, in the next record too
                self.pending[key] = self.pending.pop(key)
                self._moved.add(key)
        return self._change(key)

    def delete(self, key: K) -> str | None:
        """``key`` is gone.  Returns the name of a file that nothing names any more."""
        orphan = self._change(key)
        del self.names[key]
        self._moved.discard(key)
        self._reserved.release(key)
        self.turns += 1
        if self.pending[key] is None and self._keys.current() == self._keys.signature:
            del self.pending[key]  # nobody else ever saw it
        return orphan

    def _change(self, key: K) -> str | None:
        """Let go of the name that ``key`` has; returns it if no commit knows it, so that it can be removed at once."""
        name = self.names.get(key)
        self.names[key] = None
        self.inherited.discard(key)
        self.pending.setdefault(key, name)
        if name in self._fresh:
            self._fresh.discard(name)
            self._free(name)
            return name
        return None

    def written(self, key: K, name: str) -> None:
        """The value of ``key`` is in the new file ``name``."""
        self.names[key] = name
        self._reserved.release(key)
        self._fresh.add(name)
        self._take(name)

    def _take(self, name: str | None) -> None:
        if name is not None and not small(name):
            self._reserved.taken.add(name)

    def _free(self, name: str | None) -> None:
        if name is not None:
            self._reserved.taken.discard(name)

    # What others committed.

    @property
    def gate(self) -> Gate:
        """The lock of commits, between processes and threads."""
        return self._keys.gate

    def unchanged(self) -> Callable[[], bool]:
        """A question for later: is the newest index still the one of now?  It costs one ``stat``, and no lock."""
        seen = self._keys.signature
        return lambda: bool(self._keys.current() == seen)

    def refresh(self) -> list[K]:
        """Take over what others committed.  Returns the keys whose values are no longer what this handle has."""
        if self._keys.current() == self._keys.signature:
            return []
        whole, changes = self._keys.read()
        return self._replaced(dict(changes)) if whole else self._appended(changes)

    def _appended(self, changes: Pairs) -> list[K]:
        stale = []
        self._handed_over(key for key, _ in changes)
        for key, name in changes:
            if key in self.pending:
                self._free(self.pending[key])
                self.pending[key] = name
            elif self.names.get(key) != name:
                self._free(self.names.get(key))
                apply(self.names, [(key, name)])
                stale.append(key)
            self._take(name)
        return stale

    def _handed_over(self, keys: Iterable[K]) -> None:
        """What a fork's child had from its parent gives way to what is committed for these keys."""
        for key in self.inherited.intersection(keys) if self.inherited else ():
            self.inherited.discard(key)
            del self.pending[key]

    def _replaced(self, committed: dict[K, str | None]) -> list[K]:
        ours = self.names
        self._handed_over(committed)
        stale = [key for key, name in ours.items() if key not in self.pending and committed.get(key) != name]
        for key in self.pending:
            self.pending[key] = committed.get(key)
        self._reserved.taken.clear()
        self._reserved.taken.update(self._reserved.reserved.values(), self._fresh)
        for name in committed.values():
            self._take(name)
        for key in self.pending:
            if key not in ours or key in self._moved:
                committed.pop(key, None)
            if key in ours:
                committed[key] = ours[key]
        ours.clear()
        ours.update(committed)
        return stale

    # The commit.

    def commit(self, plain: bool) -> tuple[list[K], list[str]]:
        """Lay this handle's changes over the newest index, in one atomic step.

        A key whose value is not on disk keeps what was committed before.  With ``plain`` the file is left as one list.
        Returns the keys whose values others changed, and the names of the files that nothing names any more.
        """
        with self._keys.gate:
            stale = self.refresh()
            done = [key for key in self.pending if self._ready(key)]
            changes: Pairs = [(key, None) for key in done if key in self._moved or key not in self.names]
            changes += [(key, self.names[key]) for key in done if key in self.names]
            if not changes and (not plain or self._keys.plain()):
                return stale, []
            self.appended = not plain and self._keys.append(changes)
            if not self.appended:
                self._keys.replace(self._committed())
        orphans = []
        for key in done:
            before, now = self.pending.pop(key), self.names.get(key, "")
            self._moved.discard(key)
            self._fresh.discard(now or "")
            if before is not None and before != now:
                self._free(before)
                orphans.append(before)
        return stale, orphans

    def _ready(self, key: K) -> bool:
        return key not in self.inherited and self.names.get(key, "") is not None

    def _committed(self) -> Pairs:
        """All pairs as they stand after this commit."""
        pairs: Pairs = []
        for key, name in self.names.items():
            name = name if key not in self.pending or self._ready(key) else self.pending[key]
            if name is not None:
                pairs.append((key, name))
        return pairs

    def own(self) -> list[K]:
        """The keys that this handle has changed since its own last commit."""
        return [key for key in self.pending if key not in self.inherited]

    def forget(self) -> list[str]:
        """Forget everything, as nothing of it is on disk any more.  Returns the names of all that were there."""
        known = {name for name in (*self.names.values(), *self.pending.values(), *self._fresh) if name is not None}
        for held in (self.names, self.pending, self._moved, self._fresh, self.inherited):
            held.clear()
        self._reserved.taken.clear()
        self._reserved.reserved.clear()
        self._keys.close()
        return sorted(known)

    def uncommitted(self) -> list[str]:
        """The names of this handle's files that no commit knows."""
        return sorted(self._fresh)

    def after_fork(self) -> None:
        """In the child: what is pending is the parent's to commit, and what is fresh the parent's to remove."""
        self.inherited = set(self.pending)
        self._fresh = set()

    def close(self) -> None:
        self._keys.close()
