"""The index as one handle sees it: what the newest commit says, with the handle's own changes laid over it.

The caller holds the chest's lock.  Any line may be the last one, as Ctrl-C may come: ``refs`` is the truth, what it
changes is noted in ``pending`` before, and `Index.rebuild` makes all else agree with it.
"""
from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Set
from contextlib import AbstractContextManager
from typing import Any, Callable, Generic, NamedTuple, Protocol, TypeVar

from chest.errors import DumpError
from chest.index.filenames import Names, Ref
from chest.index.format import Pairs, Refs, refusal

__all__ = ["Changes", "Committed", "Index", "Keys"]

K = TypeVar("K", bound=Hashable)
SAME = (1 << 64) - 1  # the bits of a record's ref that it keeps when it is moved: length and checksum


class Keys(Protocol):
    """Where an index is committed: `chest.index.keysfile.KeysFile`, or its like in an object store."""

    @property
    def lock(self) -> AbstractContextManager[Any]: ...  # of commits, between threads and processes
    def changed(self) -> bool: ...  # has anybody committed since we read?  One look
    def read(self) -> tuple[bool, Pairs | Refs]: ...  # True, all; or False, what changed since
    def append(self, changes: Pairs) -> bool: ...  # commit changes; False: nothing done, only `replace` will do
    def replace(self, pairs: Pairs) -> None: ...  # commit all; `DumpError`: nothing done, a key cannot be pickled
    def plain(self) -> bool: ...  # is what was read last one list and nothing behind it?
    def erase(self) -> None: ...  # remove the index
    def close(self) -> None: ...  # forget what was read: all is read the next time


class Changes(NamedTuple):
    """What others committed: the keys that have another value now, or none; and whether the whole list was read, so
    that a name may have been free in between and come again."""

    stale: list[Any]
    replaced: bool


class Committed(NamedTuple):
    """What a commit left: refs that nothing names any more, and keys that cannot be pickled, with their errors."""

    orphans: list[Ref]
    refused: list[tuple[Any, Exception]]


class Index(Generic[K]):
    """Which keys there are, in order, and where each one's value lies.

    - ``refs``: the whole view, key to ref; `None`: the value is in memory only.  Another dict after a refresh.
    - ``pending``: the keys that this handle changed since its last commit, with what the newest commit says of each.
    - ``fresh``: refs of this handle's that no commit names, with the versions of their files.
    - ``inherited``: keys that were pending before a fork: the parent commits them.
    - ``lent``: the refs that only the parent knew of then, with the versions of their files.
    - ``appended``: did this handle's last commit leave a list with changes behind it?
    """

    def __init__(self, keys: Keys, names: Names[K]):
        self._keys = keys
        self.names = names
        names.source = self._all_refs
        self.refs: dict[K, Ref | None] = {}
        self.pending: dict[K, Ref | None] = {}
        self.fresh: dict[Ref, int] = {}
        self.inherited: set[K] = set()
        self.lent: dict[Ref, int] = {}
        self.appended = False
        self._again: dict[K, Ref | None] = {}  # deleted and set again: they stand last now, as in a dict; as in pending
        self._stale: dict[K, None] = {}  # what the last refresh found
        self._superseded: list[Ref] = []  # by a commit that we did not see succeed
        self._uncertain = False  # is there such a commit?
        self._torn = False  # must all be read anew?
        self._reads = 0

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """The lock of commits, between threads and processes."""
        return self._keys.lock

    def _all_refs(self) -> list[Ref | None]:
        return [*self.refs.values(), *self.pending.values(), *self.fresh]

    # The handle's own changes.

    def set(self, key: K, ref: Ref | None = None, version: int = 0) -> Ref | None:
        """``key`` has a new value: at ``ref``, or in memory only.  Returns a ref that nothing names any more.  O(1)."""
        refs, pending = self.refs, self.pending
        before = refs.get(key)
        if key not in pending:
            pending[key] = before
        elif before is None and key not in refs:  # deleted before: it moves to the end, in the next record too
            self._again[key] = pending[key]
            pending[key] = pending.pop(key)
        if self.inherited:
            self.inherited.discard(key)
        if ref is not None:
            if key in self.names.reserved:
                self.names.release(key)  # first, as the name may be the one that was reserved
            if type(ref) is str:
                self.names.noted.add(ref)
            self.fresh[ref] = version
        refs[key] = ref
        return self._orphan(before) if before is not None and before != ref and before in self.fresh else None

    def delete(self, key: K) -> Ref | None:
        """``key``, which there must be, is gone.  Returns a ref that nothing names any more.  O(1)."""
        before = self.refs[key]
        self.pending.setdefault(key, before)
        self.inherited.discard(key)
        del self.refs[key]
        self._again.pop(key, None)
        self.names.release(key)
        if self.pending[key] is None and not (self._uncertain or self._others_committed()):
            del self.pending[key]  # nobody else ever saw it
        return self._orphan(before) if before is not None and before in self.fresh else None

    def _others_committed(self) -> bool:
        try:
            return self._keys.changed()
        except OSError:  # for all we know
            return True

    def _orphan(self, ref: Ref) -> Ref | None:
        """A fresh ref that was superseded, to be removed, unless a commit may have named it."""
        if self._uncertain:
            return None
        del self.fresh[ref]
        self._free(ref)
        return ref

    def _free(self, ref: Ref | None) -> None:
        if type(ref) is str:
            self.names.noted.discard(ref)

    # What others committed.

    def newest_check(self) -> Callable[[], bool]:
        """A question for later, without any lock: is the newest commit still the one of now?  One ``stat``."""
        reads, changed = self._reads, self._keys.changed
        return lambda: not changed() and self._reads == reads  # in this order: who reads counts before

    def is_current(self) -> bool:
        """Does the next `refresh` take over nothing?  One ``stat``."""
        return not (self._uncertain or self._torn or self._keys.changed())

    def refresh(self) -> Changes | None:
        """Take over what others committed; `None` if that is nothing.  One ``stat``, then O(what changed), or O(keys)
        where the list was replaced."""
        if self.is_current():
            return None
        if self._uncertain or self._torn:
            self._keys.close()  # so that all is read: did our commit succeed, and how far did we come?
        else:
            self._stale = {}
        self._torn = True
        self._reads += 1
        whole, changes = self._keys.read()
        if whole:
            self._replaced(changes if isinstance(changes, dict) else dict(changes))
        else:
            self._appended(list(changes))
        self._torn = self._uncertain = False
        return Changes([key for key in self._stale if key not in self.pending], whole)

    def _appended(self, changes: list[tuple[K, Ref | None]]) -> None:
        handed = self._hand_over(key for key, _ in changes)
        for key, ref in changes:
            known = self.pending if key in self.pending else self.refs
            before = known.get(key)
            if type(ref) is str:
                self.names.noted.add(ref)
            if before != ref:
                self._free(before)
            elif key not in handed:
                continue
            if known is self.refs and (key in handed or not moved(before, ref)):
                self._stale[key] = None
            if ref is None and known is self.refs:
                known.pop(key, None)
            else:
                known[key] = ref

    def _hand_over(self, keys: Iterable[K]) -> Collection[K]:
        """What a fork's child had from its parent gives way to what is committed for these keys."""
        handed = self.inherited.intersection(keys) if self.inherited else ()
        for key in handed:
            self.lent.pop(self.refs.get(key) or "", None)
            self._again.pop(key, None)
            self.pending.pop(key, None)
            self.inherited.discard(key)
        return handed

    def _replaced(self, committed: dict[K, Ref | None]) -> None:
        ours, pending = self.refs, self.pending
        handed = self._hand_over([key for key in self.inherited if committed.get(key) != pending[key]])
        for key in [key for key, ref in ours.items() if committed.get(key) != ref or key in handed]:
            if key not in pending and (key in handed or not moved(ours[key], committed.get(key))):
                self._stale[key] = None
        if self._uncertain:
            named = set(committed.values())
            unnamed = {*self._superseded, *self.fresh.keys() - set(ours.values())} - named
            self._superseded = list(unnamed)
            self.fresh = {ref: version for ref, version in self.fresh.items() if ref not in named | unnamed}
        for key in pending:
            pending[key] = ref = committed.get(key)
            if key not in ours or key in self._again:
                committed.pop(key, None)
            if key in ours:
                committed[key] = ref if moved(ours[key], ref) else ours[key]
        self.refs = committed
        self.names.renew()

    # The commit.

    def commit(self, plain: bool, moved: Mapping[int, int] | None = None) -> Committed:
        """Lay this handle's changes over the newest index in one atomic step.  Called within the lock, after `refresh`.

        A key whose value is not on disk keeps what was committed before, and so does one that cannot be pickled.  With
        ``plain`` the file is left as one list.  ``moved`` has the old and new refs of records that were copied,
        whosever they are: no key has an old one afterwards.  Cost: O(changes), or O(keys) for a list.
        """
        inherited, refs = self.inherited, self.refs
        done = [key for key in self.pending if key not in inherited and refs.get(key, "") is not None]
        refused: list[tuple[K, Exception]] = []
        while done or moved or (plain and not self._keys.plain()):
            try:
                return Committed(self._write(done, plain, moved or {}), refused)
            except DumpError:
                found = [(key, error) for key in done if (error := refusal(key)) is not None]
                if not found:
                    raise
                refused += found
                without = {id(key) for key, _ in found}
                done = [key for key in done if id(key) not in without]
        return Committed(self._unnamed([]), refused)

    def _write(self, done: list[K], plain: bool, moved: Mapping[int, int]) -> list[Ref]:
        """Commit the changes of ``done``.  Returns the refs that they superseded."""
        pending, refs = self.pending, self.refs
        now = list(map(refs.get, done))
        superseded = [old for old, new in zip(map(pending.get, done), now) if old is not None and old != new]
        before = self._superseded
        self._superseded, self._uncertain = [*before, *superseded], True
        self._reads += 1
        try:
            self.appended = not plain and not moved and self._keys.append(self._changes(done))
            if not self.appended:
                self._keys.replace(self._pairs(pending.keys() - set(done), moved))
        except DumpError:  # nothing was done
            self._superseded, self._uncertain = before, False
            raise
        for changed in (refs, pending) if moved else ():
            changed.update([(key, _moved(ref, moved)) for key, ref in changed.items() if ref in moved])
        for ref in now:
            self.fresh.pop(ref, None)  # type: ignore[arg-type]
        for key in done:
            self._again.pop(key, None)
            del pending[key]
        self._uncertain = False
        return self._unnamed(superseded)

    def _unnamed(self, superseded: list[Ref]) -> list[Ref]:
        """What was superseded by this commit, and by those before that failed when they were done."""
        orphans, self._superseded = self._superseded, []
        if len(orphans) > len(superseded):  # the names of some may have come again
            orphans = list(set(orphans).difference(self._all_refs()))
        self.names.noted.difference_update([ref for ref in orphans if type(ref) is str])
        return orphans

    def _changes(self, done: list[K]) -> Pairs:
        """What a record says of these keys: what moves to the end of the list is deleted first."""
        refs = self.refs
        changes: Pairs = [(key, None) for key in done if key in self._again or key not in refs]
        return changes + [(key, refs[key]) for key in done if key in refs]

    def _pairs(self, waiting: Collection[K], moved: Mapping[int, int]) -> Pairs:
        """All pairs as they stand after a commit of all that is pending but for what is ``waiting``."""
        pairs: Pairs = list(self.refs.items())
        if waiting:
            pairs = [(key, self.pending[key] if key in waiting else ref) for key, ref in pairs]
            pairs += [(key, self.pending[key]) for key in waiting if key not in self.refs]
            pairs = [pair for pair in pairs if pair[1] is not None]
        return [(key, _moved(ref, moved)) for key, ref in pairs] if moved else pairs

    def own(self) -> list[K]:
        """The keys that this handle has changed and not committed.  O(pending)."""
        return [key for key in self.pending if key not in self.inherited]

    def committed_refs(self) -> Set[Ref]:
        """All refs that the newest commit names.  O(keys)."""
        named = [ref for key, ref in self.refs.items() if key not in self.pending]
        return {ref for ref in (*named, *self.pending.values()) if ref is not None}

    # Beginning anew.

    def rollback(self) -> list[Ref]:
        """Forget all pending changes: ``refs`` are what the newest commit says.  Returns the fresh refs, to be removed.

        O(pending); the next `refresh` reads all, and so finds the order of the keys.  `OSError` only if the last commit
        failed, and nobody can tell now whether it was done.
        """
        if self._uncertain:
            self.refresh()
        self._torn = True
        for key, ref in self.pending.items():
            if ref is None:
                self.refs.pop(key, None)
            else:
                self.refs[key] = ref
        fresh = list(self.fresh)
        self._forget_changes()
        return fresh

    def _forget_changes(self) -> None:
        for held in (self.pending, self._again, self.fresh, self.inherited, self.lent, self.names.reserved):
            held.clear()
        self.names.renew()

    def forget(self) -> list[Ref]:
        """Forget everything, as nothing of it is on disk any more.  Returns all refs that there were.  O(keys)."""
        known = {ref for ref in (*self._all_refs(), *self._superseded) if ref is not None and ref not in self.lent}
        for held in (self.refs, self._stale, self._superseded):
            held.clear()
        self._forget_changes()
        self._uncertain = False
        self._keys.close()
        return sorted(known, key=str)

    def rebuild(self, values: Collection[K]) -> list[Ref]:
        """After an interruption: make all that is derived agree with ``refs`` again, and what is in memory.

        A key that has no value in memory nor on disk was not set: it is what it was before.  The next `refresh` reads
        all.  Returns fresh refs that nothing names, to be removed.  Never raises.  O(keys).
        """
        self._torn = True
        for key, ref in self._again.items():
            self.pending.setdefault(key, ref)
        for key in [key for key, ref in self.refs.items() if ref is None and key not in values]:
            committed = self.pending.get(key)
            if committed is None or key in self._again:
                del self.refs[key]
            else:
                self.refs[key] = committed
            if committed is None:
                self.pending.pop(key, None)
        self.inherited.intersection_update(self.pending)
        named = {*self.refs.values(), *self.pending.values()}
        unnamed = [] if self._uncertain else [ref for ref in self.fresh if ref not in named]
        for ref in unnamed:
            del self.fresh[ref]
        self.names.renew()
        return unnamed

    def erase(self) -> None:
        """Remove the index itself: a chest that is dropped is empty before its first value goes."""
        self._keys.erase()

    def after_fork(self) -> None:
        """In the child: what is pending is the parent's to commit, and what is fresh the parent's to remove."""
        self.inherited, self.appended = set(self.pending), False
        self.lent = {**self.lent, **self.fresh}
        self.fresh = {}
        self._superseded = []

    def close(self) -> None:
        """Let go of the file.  The next `refresh` reads all."""
        self._keys.close()


def moved(before: Ref | None, now: Ref | None) -> bool:
    """Is this the same record in another place?"""
    return type(before) is int and type(now) is int and not (before ^ now) & SAME


def _moved(ref: Ref | None, moved: Mapping[int, int]) -> Ref | None:
    return moved.get(ref, ref) if isinstance(ref, int) else ref
