"""The index as one handle sees it: what the newest commit says, with the handle's own changes laid over it.

The caller holds the chest's lock.  Any line may be the last one, as Ctrl-C may come: ``refs`` is the truth, what it
changes is noted in ``pending`` before, and `Index.rebuild` makes all else agree with it.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Mapping
from contextlib import AbstractContextManager, suppress
from typing import Any, Callable, Generic, Protocol, TypeVar

from chest.errors import DumpError, raise_of_a_signal
from chest.index.filenames import Names, Ref
from chest.index.format import Pairs, Refs, dumped, put

__all__ = ["Index", "Keys"]

K = TypeVar("K", bound=Hashable)
SAME = (1 << 64) - 1  # the bits of a record's ref that it keeps when it is moved: length and checksum


class Keys(Protocol):
    """Where an index is committed: `chest.storage.keysfile.KeysFile`, or its like in an object store."""

    @property
    def lock(self) -> AbstractContextManager[Any]: ...  # of commits, between threads and processes
    def changed(self) -> bool: ...  # has anybody committed since we read?  One look
    def read(self) -> tuple[bool, Pairs | Refs]: ...  # True, all; or False, what changed since
    def append(self, changes: Pairs) -> bool: ...  # commit changes; False: nothing done, only `replace` will do
    def replace(self, pairs: Pairs) -> None: ...  # commit all; `DumpError`: nothing done, a key cannot be pickled
    def plain(self) -> bool: ...  # is what was read last one list and nothing behind it?
    def erase(self) -> None: ...  # remove the index
    def close(self) -> None: ...  # forget what was read: all is read the next time


class Index(Generic[K]):
    """Which keys there are, in order, and where each one's value lies.

    - ``keys``: where it is committed.
    - ``refs``: the whole view, key to ref; `None`: the value is in memory only.  Another dict after a refresh.
    - ``pending``: the keys that this handle changed since its last commit, with what the newest commit says of each.
    - ``fresh``: this handle's loose files that no commit names, with their versions; and those that its last commit
      superseded, until it is known that that was done.
    - ``inherited``: keys that were pending before a fork, with the versions of their files: the parent commits them.
    - ``stale``: keys that a refresh found to have another value; emptied when these left memory.
    - ``untidy``: a plain commit has something to do: changes stand behind the list, a journal has to go, or files that
      no key names.
    """

    def __init__(self, keys: Keys, names: Names):
        self.keys = keys
        self.names = names
        names.source = self.known_refs
        self.refs: dict[K, Ref | None] = {}
        self.pending: dict[K, Ref | None] = {}
        self.fresh: dict[Ref, int] = {}
        self.inherited: dict[K, int | None] = {}
        self.untidy = False
        self.stale: dict[K, None] = {}
        self.version: Callable[[Ref], int | None] = lambda ref: self.fresh.get(ref)  # as `Storage.version`
        self.committing: Callable[[list[Ref]], object] = len  # as `Storage.committing`
        self.journals = True  # does the storage list what is to be removed, as a directory does and a store does not?
        # Of the keys in ``pending`` those that were deleted and set again, and so stand last, as in a dict.
        self._again: dict[K, Ref | None] = {}
        self.uncertain = False  # after an interruption, or a commit that failed: only reading all tells what is there
        self._reads = 0

    def own(self) -> list[K]:
        """The keys that this handle has changed and not committed; asked without the lock, too.  O(pending)."""
        return [key for key in list(self.pending) if key not in self.inherited]

    def has_unnamed(self) -> bool:
        """Has this handle written anything that the newest commit does not name?  O(pending)."""
        return bool(self.fresh) or int in {type(self.refs.get(key)) for key in self.own()}

    def known_refs(self) -> set[Ref]:
        """All refs that this handle knows of, committed or not.  O(keys)."""
        return {ref for ref in (*self.refs.values(), *self.pending.values(), *self.fresh) if ref is not None}

    def committed_refs(self) -> set[Ref]:
        """All refs that the newest commit names.  O(keys)."""
        return {ref for ref in {**self.refs, **self.pending}.values() if ref is not None}

    # The handle's own changes.

    def set(self, key: K, ref: Ref | None = None, version: int = 0) -> tuple[Ref, ...]:
        """``key`` has a new value: at ``ref``, or in memory only.  Returns what nothing names any more.  O(1)."""
        refs, pending = self.refs, self.pending
        before = refs[key] if key in refs else None
        if key not in pending:
            pending[key] = before
        elif before is None and key not in refs:  # deleted before: it moves to the end, in the next record too
            self._again[key] = pending[key]
            pending[key] = pending.pop(key)
        if self.inherited:
            self.inherited.pop(key, None)
        if ref is not None:
            if key in self.names.reserved:
                self.names.release(key)  # first, as the name may be the one that was reserved
            if type(ref) is str:
                self.names.noted.add(ref)
                self.fresh[ref] = version
        refs[key] = ref
        return self._orphan(before) if before is not None and before != ref and before in self.fresh else ()

    def delete(self, key: K) -> tuple[Ref, ...]:
        """``key``, which there must be, is gone.  Returns the ref that nothing names any more.  O(1)."""
        before, is_unseen = self.refs[key], False
        if self.pending.get(key, before) is None and not self.uncertain:
            try:
                is_unseen = not self.keys.changed()  # first: what Ctrl-C ends here has changed nothing
            except OSError as error:
                raise_of_a_signal(error)
        self.pending.setdefault(key, before)
        self.inherited.pop(key, None)
        del self.refs[key]
        self._again.pop(key, None)
        self.names.release(key)
        if is_unseen:
            del self.pending[key]
        return self._orphan(before) if before is not None and before in self.fresh else ()

    def _orphan(self, ref: Ref) -> tuple[Ref, ...]:
        """A fresh ref that was superseded, to be removed now; or by the next commit, if one may have named it."""
        if self.uncertain:
            return ()
        del self.fresh[ref]
        self.names.noted.discard(ref)
        return (ref,)

    # What others committed.

    def newest_check(self) -> Callable[[], bool]:
        """A question for later, without any lock: is the newest commit still the one of now?  One ``stat``."""
        reads, changed = self._reads, self.keys.changed
        return lambda: not changed() and self._reads == reads  # in this order: who reads counts before

    def is_current(self) -> bool:
        """Is there nothing to `refresh`?  One ``stat``."""
        return not (self.uncertain or self.keys.changed())

    def refresh(self) -> tuple[list[K], bool]:
        """Take over what others committed.

        Returns the keys that have another value now, or none; and whether the whole list was read, so that a name may
        have been free in between and come again.  What an interrupted call found is told again.  Cost: O(what changed),
        or O(keys) where the list was replaced.
        """
        uncertain = self.uncertain
        if uncertain:
            self.keys.close()  # so that all is read
        self.uncertain = True
        self._reads += 1
        whole, found = self.keys.read()
        refs, pending, names = self.refs, self.pending, self.names
        committed: Refs = found if isinstance(found, dict) else {}
        gone: list[K] = []
        if whole:
            own = set(self.own()) if uncertain else ()  # these may be committed, and superseded since
            found = [(key, committed.get(key)) for key, ref in {**refs, **pending}.items()
                     if key in own or committed.get(key) != ref]
        for key, ref in list(found):
            # What came with a fork is stale also where the ref is the same, as the parent may have set the key twice;
            # but not where all that changed is the place of its record.
            if key in self.inherited and not (whole and same(pending.get(key), ref)):
                self.stale[key] = None
                put(refs, key, pending.get(key))
                for held in (self._again, pending, self.inherited):
                    held.pop(key, None)
            before = refs.get(key)
            if key not in pending:
                if not same(before, ref):
                    self.stale[key] = None
                put(refs, key, ref)
            elif uncertain and before is not None and (same(before, ref) or (  # our commit, which failed, was done
                    before in self.fresh and self.version(before) != self.fresh[before])):
                del pending[key]
                self._again.pop(key, None)
                if not same(before, ref):  # and others committed the key since, and removed our file
                    self.stale[key] = None
                    del self.fresh[before]  # its name may be another file's by now
            else:
                before, pending[key] = pending[key], ref
                if ref is None and key not in refs:
                    gone.append(key)
            if before != ref:
                names.noted.discard(before)
            if type(ref) is str:
                names.noted.add(ref)
                self.fresh.pop(ref, None)
        for key in gone:  # its deletion was committed, by others, or by us and cut off then; unless others set it since
            if pending.get(key, "") is None:
                del pending[key]
        if whole:
            self._lay_over(committed)
        self.uncertain = False
        return self.replaced(), whole

    def replaced(self) -> list[K]:
        """The keys that are ``stale``, but for those that this handle changed as well."""
        return [key for key in self.stale if key not in self.pending]

    def _lay_over(self, committed: Refs) -> None:
        """``refs`` are all that was ``committed``, with what is pending laid over it."""
        named = set(committed.values()) if self.fresh else ()
        # What a commit that failed was to supersede is not fresh any more: others may have removed it since, and made a
        # new file of its name.  The journal lists it, too; and in a store no name comes again.
        self.fresh = {ref: version for ref, version in self.fresh.items()
                      if ref not in named and (version or not self.journals)}
        for key in self.pending:
            if key not in self.refs or key in self._again:
                committed.pop(key, None)
            if key in self.refs:
                committed[key] = self.refs[key]
        self.refs = committed
        self.names.renew()

    # The commit.

    def commit(self, plain: bool, moved: Mapping[Any, int] | None = None, strict: bool = False,
               ) -> tuple[list[Ref], list[tuple[K, Exception]]]:
        """Lay this handle's changes over the newest index in one atomic step.  Called within the lock, after `refresh`.

        A key whose value is not on disk keeps what was committed before, and so does one that cannot be pickled; with
        ``strict`` nothing is committed if there is one.  With ``plain`` the file is left as one list.  ``moved`` has
        the old and new refs of records that were copied, whosever they are: no key has an old one afterwards.  Returns
        refs that nothing names any more, and keys that cannot be pickled, with their errors.  Cost: O(changes), or
        O(keys) for a list.
        """
        own = self.own()
        times = Counter(own) if len({*own}) < len(own) else {}
        there = self.pending.copy()  # without the gaps of what was removed, so that it finds others than `pending` does
        # Whose hash changed: nobody finds them, or they came again, beside what they were.
        astray = [key for key in own
                  if key not in self.pending or key not in there or (key in times and times[key] > 1)]
        refused: list[tuple[K, Exception]] = [(key, DumpError("its hash changed since it was set")) for key in astray]
        lost = set(map(id, astray))
        done = [key for key in own if id(key) not in lost and self.refs.get(key, "") is not None]
        try:
            if not (strict and astray):
                self._write(done, plain, moved or {})
        except DumpError:
            left_out = {}
            for key in done:
                try:
                    dumped([(key, 0)])
                except DumpError as error:
                    left_out[key] = error
            if not left_out:
                raise
            refused += left_out.items()
            if not strict:
                self._write([key for key in done if key not in left_out], plain, moved or {})
        orphans = [] if astray else list(self.fresh.keys() - set(map(self.refs.get, self.pending)))
        self.names.noted.difference_update(orphans)
        for ref in orphans:
            del self.fresh[ref]
        return orphans, refused

    def _write(self, done: list[K], plain: bool, moved: Mapping[Any, int]) -> None:
        """Commit the changes of ``done``, if there is anything to do.  What they superseded is in ``fresh`` then."""
        if not (done or moved or (plain and not self.keys.plain())):
            return
        pending, refs = self.pending, self.refs
        superseded = [old for key in done if (old := pending[key]) is not None and old != refs.get(key)]
        self.committing(superseded)
        self.uncertain = True
        self.fresh.update((old, 0) for old in superseded if type(old) is str)
        self._reads += 1
        try:
            gone = [(key, None) for key in done if key in self._again or key not in refs]  # first: it moves to the end
            appended = not (plain or moved) and self.keys.append(
                [*gone, *((key, refs[key]) for key in done if key in refs)])
            self.untidy = self.untidy or (self.journals and not plain)
            if not appended:
                waiting = pending.copy()  # of these it says what was committed before
                for key in done:
                    del waiting[key]
                pairs: Pairs = list(refs.items())
                if waiting or moved or None in refs.values():  # the latter of a key whose hash changed
                    pairs = [(key, moved.get(ref, ref)) for key, ref in {**refs, **waiting}.items() if ref is not None]
                self.keys.replace(pairs)
        except DumpError:  # nothing was done
            for old in superseded:
                self.fresh.pop(old, None)
            self.uncertain = False
            raise
        except BaseException:
            with suppress(Exception):
                self.refresh()  # was it done?  Behind the lock another commit may hide that
            self.uncertain = True  # so that the next refresh tells what this one found
            raise
        for changed in (refs, pending) if moved else ():
            changed.update([(key, moved[ref]) for key, ref in changed.items() if ref in moved])
        for key in done:
            self.fresh.pop(refs.get(key), None)  # type: ignore[arg-type]
            self._again.pop(key, None)
            del pending[key]
        if not pending:  # a new dict, as one that was emptied key by key keeps its memory
            self.pending = {}
        self.uncertain = False

    # Beginning anew.

    def rollback(self) -> list[Ref]:
        """Forget all pending changes: ``refs`` are what the newest commit says.  Called after `refresh`.

        Returns refs to be removed; none if a commit may name them, as that `refresh` failed.  O(pending); the next one
        reads all, and so finds the order of the keys.
        """
        unnamed = [] if self.uncertain else list(self.fresh)
        self.uncertain = True
        for key, ref in self.pending.items():
            put(self.refs, key, ref)
        for held in (self._again, self.pending, self.fresh, self.inherited, self.names.reserved):
            held.clear()
        self.names.renew()
        return unnamed

    def forget(self) -> None:
        """Forget everything, as nothing of it is on disk any more, or will be read here.  O(keys)."""
        self.pending.clear()  # first, as a key's hash may have changed, or raise
        self.rollback()
        self.refs.clear()
        self.stale.clear()
        self.keys.close()
        self.uncertain = False

    def rebuild(self, values: Collection[K]) -> None:
        """After an interruption: make all that is derived agree with ``refs`` again, and what is in memory.

        A key that has no value in memory nor on disk was not set: it is what it was before.  The next `refresh` reads
        all, and the next commit removes what nothing names.  Never raises.  O(keys).
        """
        self.uncertain = True
        for key, ref in self._again.items():
            self.pending.setdefault(key, ref)
        for key in [key for key, ref in self.refs.items() if ref is None and key not in values]:
            put(self.refs, key, None if key in self._again else self.pending.get(key))
            if self.pending.get(key) is None:
                self.pending.pop(key, None)
        for key in self.inherited.keys() - self.pending.keys():
            del self.inherited[key]
        self.names.renew()

    def after_fork(self) -> None:
        """In the child: what is pending is the parent's to commit, and what is fresh the parent's to remove."""
        fresh: dict[Any, int] = self.fresh
        self.inherited = {key: self.inherited.get(key, fresh.get(self.refs.get(key))) for key in self.pending}
        self.fresh, self.untidy = {}, False


def same(before: Ref | None, now: Ref | None) -> bool:
    """Is this the same value, though its record may have moved?"""
    return before == now or (type(before) is int and type(now) is int and not (before ^ now) & SAME)
