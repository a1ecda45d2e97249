"""The index as one handle sees it: what the newest commit says, with the handle's own changes laid over it.

Cost: every method is O(1), or O(what changed) where others committed, but for a replacement of ``.keys``, which is
O(keys) to write and to read.
"""
from __future__ import annotations

from collections.abc import Hashable, Iterable, Set
from typing import Any, Callable, Generic, Protocol, TypeVar

from chest.keysfile import Pairs, apply
from chest.locks import Gate
from chest.names import Name, Names

__all__ = ["Index"]

K = TypeVar("K", bound=Hashable)


class Keys(Protocol):
    """Where an index is committed: a local `KeysFile`, or its like in an object store."""

    gate: Gate
    signature: Any

    def current(self) -> Any: ...
    def newest(self) -> bool: ...
    def read(self) -> tuple[bool, Pairs]: ...
    def append(self, changes: Pairs) -> bool: ...
    def replace(self, pairs: Pairs) -> None: ...
    def plain(self) -> bool: ...
    def erase(self) -> None: ...
    def close(self) -> None: ...


class Index(Generic[K]):
    """Which keys there are, in order, and the name of each one's file.

    ``names`` is the whole view: a key's value is in the file ``names[key]``, or nowhere on disk if that is `None`.
    ``pending`` has the keys that this handle set, deleted or found changed since its own last commit, each with the
    name that the newest commit gives it, or `None` if it gives none.  ``inherited`` are those of them that were so
    before a fork: the parent commits them.  ``lent`` are the names of files that only the parent knew of then, each
    with the mark that tells that file from a later one of its name.  ``replaced`` counts how often the whole list was
    read: a name may have changed hands in between and come back.  ``stale`` are the keys whose values are no longer
    what this handle has, until it lets go of them and strikes them out.
    """

    def __init__(self, keys: Keys, reserved: Names[K]):
        self._keys = keys
        self.newest = keys.newest
        self._reserved = reserved
        self.names: dict[K, Name | None] = {}
        self.pending: dict[K, Name | None] = {}
        self._moved: set[K] = set()  # deleted and set again: they stand last now, as in a dict
        self._fresh: dict[Name, Any] = {}  # names of this handle's that no commit knows, with the marks of their files
        self._tried: dict[Name, Any] | None = None  # those in a commit that began, and that we did not see succeed
        self.inherited: set[K] = set()
        self.lent: dict[Name, Any] = {}
        self.replaced = 0
        self.stale: dict[K, None] = {}
        self._torn = False  # did Ctrl-C come while we took over what others committed?
        self.appended = False  # did this handle's last commit leave a list with records behind it?
        self.turns = 0  # how often a key came or went through this handle, for iterators

    # The handle's own changes.

    def set(self, key: K, name: Name | None = None, mark: Any = None) -> Name | None:
        """``key`` has a new value: in the new file ``name``, which ``mark`` tells from later files of that name, or not
        on disk.  Returns the name of a file that nothing names any more."""
        if key not in self.names:
            self.turns += 1
            if key in self.pending:  # deleted before: move it to the end, in the next record too
                self.pending[key] = self.pending.pop(key)
                self._moved.add(key)
        if name is not None:
            self._reserved.release(key)  # first, as the name may be the one that was reserved
            self._take(name)
            self._fresh[name] = mark
        before = self._supersede(key)
        self.names[key] = name
        return self._orphan(before)

    def delete(self, key: K) -> Name | None:
        """``key`` is gone.  Returns the name of a file that nothing names any more."""
        before = self._supersede(key)
        del self.names[key]
        orphan = self._orphan(before)
        self._moved.discard(key)
        self._reserved.release(key)
        self.turns += 1
        if self.pending[key] is None and self._tried is None and self._keys.current() == self._keys.signature:
            del self.pending[key]  # nobody else ever saw it
        return orphan

    def _supersede(self, key: K) -> Name | None:
        """The name that ``key`` has.  It is noted before it gets another, as Ctrl-C may come in between."""
        before = self.names.get(key)
        self.pending.setdefault(key, before)
        self.inherited.discard(key)
        return before

    def _orphan(self, before: Name | None) -> Name | None:
        """A name that was superseded, if no commit knows it, so that its file can be removed at once."""
        if before is None or before not in self._fresh:
            return None
        del self._fresh[before]
        self._free(before)
        return before

    def add(self, keys: list[K], names: list[Name]) -> bool:
        """As `set` for many keys in rows; `False`, and nothing done, unless all of them are new."""
        if not (self.names.keys().isdisjoint(keys) and self.pending.keys().isdisjoint(keys)):
            return False
        self.pending.update(dict.fromkeys(keys))
        self.names.update(zip(keys, names))
        self._fresh.update(dict.fromkeys(names))
        for key in self._reserved.reserved.keys() & set(keys) if self._reserved.reserved else ():
            self._reserved.release(key)
        self.turns += len(keys)
        return True

    def _take(self, name: Name | None) -> None:
        if type(name) is str:
            self._reserved.taken.add(name)

    def _free(self, name: Name | None) -> None:
        if type(name) is str:
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

    def refresh(self) -> None:
        """Take over what others committed."""
        if self._tried is not None or self._torn:
            self._keys.close()  # so that everything is read: did our commit succeed, and how far did we come?
        elif self._keys.current() == self._keys.signature:
            return
        self._torn = True
        whole, changes = self._keys.read()
        if self._tried is not None:
            named = {name for _, name in changes}
            self._fresh.update((name, mark) for name, mark in self._tried.items() if name not in named)
            self._tried = None
        if whole:
            self._replaced(dict(changes))
        else:
            self._appended(changes)
        self._torn = False

    def _appended(self, changes: Pairs) -> None:
        handed = self._handed_over(key for key, _ in changes)
        for key, name in changes:
            if key in self.pending:
                self._free(self.pending[key])
                self.pending[key] = name
            elif key in handed or self.names.get(key) != name:
                self._free(self.names.get(key))
                self.stale[key] = None
                apply(self.names, [(key, name)])
            self._take(name)

    def _handed_over(self, keys: Iterable[K]) -> frozenset[K]:
        """What a fork's child had from its parent gives way to what is committed for these keys."""
        handed = frozenset(self.inherited.intersection(keys) if self.inherited else ())
        for key in handed:
            self.inherited.discard(key)
            self._moved.discard(key)
            self.lent.pop(self.names.get(key) or "", None)
            del self.pending[key]
        return handed

    def _replaced(self, committed: dict[K, Name | None]) -> None:
        self.replaced += 1
        ours = self.names
        handed = self._handed_over(key for key in list(self.inherited) if committed.get(key) != self.pending[key])
        self.stale.update((key, None) for key, name in ours.items()
                          if key not in self.pending and (key in handed or committed.get(key) != name))
        for key in self.pending:
            self.pending[key] = committed.get(key)
        self._reserved.taken.clear()
        self._reserved.taken.update(self._reserved.reserved.values())
        for name in (*self._fresh, *committed.values()):
            self._take(name)
        for key in self.pending:
            if key not in ours or key in self._moved:
                committed.pop(key, None)
            if key in ours:
                committed[key] = ours[key]
        self.names = committed

    # The commit.

    def commit(self, plain: bool) -> list[Name]:
        """Lay this handle's changes over the newest index in one atomic step.  Called within the gate, after `refresh`.

        A key whose value is not on disk keeps what was committed before.  With ``plain`` the file is left as one list.
        Returns the names of the files that nothing names any more.
        """
        inherited, names = self.inherited, self.names
        done = [key for key in self.pending if key not in inherited and names.get(key, "") is not None]
        if not done and (not plain or self._keys.plain()):
            return []
        if len(done) == len(self.pending):
            self._tried, self._fresh = self._fresh, {}
        else:
            fresh = self._fresh
            self._tried = {name: fresh[name] for name in map(names.get, done) if name in fresh}
            for name in self._tried:
                del fresh[name]
        self.appended = not plain and self._keys.append(self._changes(done))
        if not self.appended:
            self._keys.replace(self._committed(self.pending.keys() - set(done)))
        orphans = self._settled(done)
        self._tried = None
        return orphans

    def _changes(self, done: list[K]) -> Pairs:
        """What a record says of these keys: what moves to the end of the list is deleted first."""
        changes: Pairs = [(key, None) for key in done if key in self._moved or key not in self.names]
        return changes + [(key, self.names[key]) for key in done if key in self.names]

    def _settled(self, done: list[K]) -> list[Name]:
        """The changes of ``done`` are committed.  Returns the names that they superseded."""
        before = list(map(self.pending.pop, done))
        self._moved.difference_update(done)
        now = map(self.names.get, done)
        orphans = [name for name, new in zip(before, now) if name is not None and name != new]
        for name in orphans:
            self._free(name)
        return orphans

    def _committed(self, waiting: Set[K]) -> Pairs:
        """All pairs as they stand after a commit of all that is pending but for what is ``waiting``."""
        if not waiting:
            return list(self.names.items())
        pairs = [(key, self.pending[key] if key in waiting else name) for key, name in self.names.items()]
        return [pair for pair in pairs if pair[1] is not None]

    def own(self) -> list[K]:
        """The keys that this handle has changed since its own last commit."""
        return [key for key in self.pending if key not in self.inherited]

    def erase(self) -> None:
        """Remove the index itself: a chest that is dropped is empty before its first value goes."""
        self._keys.erase()

    def forget(self) -> list[Name]:
        """Forget everything, as nothing of it is on disk any more.  Returns the names of all that were there."""
        ours = (*self.names.values(), *self.pending.values(), *self._fresh, *(self._tried or ()))
        known = {name for name in ours if name is not None and name not in self.lent}
        for held in (self.names, self.pending, self._moved, self._fresh, self.inherited, self.lent, self.stale):
            held.clear()
        self._tried = None
        self._reserved.taken.clear()
        self._reserved.reserved.clear()
        self._keys.close()
        return sorted(known, key=str)

    def uncommitted(self) -> list[Name]:
        """The names of this handle's files that no commit knows."""
        return sorted(self._fresh, key=str)

    def after_fork(self) -> None:
        """In the child: what is pending is the parent's to commit, and what is fresh the parent's to remove."""
        self.inherited = set(self.pending)
        self.lent = {**self.lent, **self._fresh, **(self._tried or {})}
        self._fresh, self._tried = {}, None

    def close(self) -> None:
        self._keys.close()
