"""Save: write what is not on disk as it is now, commit the index, remove what nothing names any more; or roll back.

How a commit goes:

1.  What is dirty, or may have been changed in place, is written as a spill does it, a megabyte at a time (`_save`); a
    flush lets it leave memory.  If the system refuses one of the values, nothing is committed.
2.  Under the lock, and that of the directory (`_commit`): what others committed is taken over, and ``.keys`` appended
    to or replaced.  A key or a value that cannot be dumped is left out, alone, and named by the error at the end.
3.  What the commit superseded is removed.
"""
from __future__ import annotations

import _thread
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from chest.engine.spiller import Errors, Spiller
from chest.engine.state import Flight, State
from chest.errors import ChestError, explain_dump, explain_os, raise_of_a_signal
from chest.index import KEYS
from chest.log import log
from chest.storage.base import batches, record_size

__all__ = ["Committer", "silent"]

K = TypeVar("K", bound=Hashable)

AT_ONCE = 1 << 20  # bytes of values that are written together; in a store, a round trip, 64 times
Progress = Callable[..., Iterable[Any]]


def silent(items: Iterable[Any], total: int) -> Iterable[Any]:
    """The default of ``progress=``: a wrapper of an iterable that shows nothing."""
    return items


class Committer(Generic[K]):
    """The commits of one handle, one at a time."""

    def __init__(self, state: State[K], spiller: Spiller[K]):
        self.state = state
        self.spiller = spiller
        self.transacts: Flight | None = None  # what stands for the transaction that is open
        self._saves: Flight | None = None  # the save or commit that is under way

    def save(self, plain: bool, empty: bool, progress: Progress) -> None:
        """Write what is not on disk as it is now, and commit; with ``empty`` let all that is saved leave memory.

        With ``plain`` the index is left as one list, and space is reclaimed.  `OSError`: nothing was committed.
        `DumpError`: all was, but for the keys that it names.
        """
        self._explain(self._in_turn(lambda: self._save(plain, empty, progress)))

    def _explain(self, errors: Errors) -> None:
        if errors:
            key, error = errors[0]
            more = f" (and {len(errors) - 1} more)" if errors[1:] else ""
            raise explain_dump(error, key, self.state.storage.path, more) from error

    def no_transaction(self, but: object = None) -> None:
        """`ChestError` while a transaction is open."""
        if self.transacts not in (None, but):
            raise ChestError("a transaction is open: it saves at its end, and nothing before")

    def _in_turn(self, action: Callable[[], Errors], within: object = None) -> Errors:
        """Do what commits: one thread after the other, and none while there is a transaction that it is not ``within``.

        Else: 1. a flush copies the records of a dead writer's pack; 2. another thread commits, and removes what no key
        names, the copies too; 3. the flush commits the copies.
        """
        state = self.state
        with state.lock:
            before = self._wait_for_others()
            self.no_transaction(within)
            mine = self._saves = Flight()  # in this frame, where `Flight.under_way` looks for it
        try:
            return action()
        finally:
            with state.lock:
                self._saves = before
                state.landed.notify_all()
            del mine

    def _wait_for_others(self) -> Flight | None:
        """Wait until no other thread saves; the save of this very thread that this one is nested in, if it is."""
        while self._saves is not None and self._saves.thread != _thread.get_ident():
            other = self._saves
            self.state.wait_for(lambda: self._saves is not other, other)  # noqa: B023 - called at once
            if self._saves is other:
                self._saves = None  # Ctrl-C ended it before it could say so
        return self._saves

    def _save(self, plain: bool, empty: bool, progress: Progress = silent, strict: bool = False) -> Errors:
        """As `save`; with ``strict`` nothing is committed if anything cannot be dumped."""
        state, cache = self.state, self.state.cache
        with state.lock:
            state.mend()
            with state.section:
                cache.unstick(state.index.inherited.keys())  # these are the parent's to save
                unsaved = self._unsaved()
                clean = list(cache.saved.keys() - set(unsaved)) if empty else []
        errors: Errors = []
        most = 64 * AT_ONCE if state.storage.remote else AT_ONCE
        least = 0 if self.spiller.threshold() else AT_ONCE // 4  # of files a few at a time, so that progress is told of
        for some in batches(progress(unsaved, total=len(unsaved)), most, lambda key: max(self._size(key), least)):
            errors += self.spiller.save(some, leaves=empty)
        if not (strict and errors):
            errors += self._commit(plain, strict)
        if empty:  # with what somebody let go of just as it was written, which stayed, as it might have been changed
            stayed = [key for key in unsaved if key in cache.values and key not in cache.stuck]
            if clean or stayed:
                self.spiller.save(clean + stayed)
        self.spiller.sweep(len(cache.left.kept))
        self.spiller.make_room_quietly()  # what was written may have turned out to be larger
        return errors

    def _unsaved(self) -> list[K]:
        """The keys of what is dirty, or may have been changed in place, also behind its leaving memory."""
        cache, refs = self.state.cache, self.state.index.refs
        cache.take_hits()
        keys = [key for key in self.state.index.own() if refs.get(key, "") is None and key in cache.values]
        return keys + [key for key, *_ in cache.suspects()]

    def _size(self, key: K) -> int:
        """The bytes of a value that is to be written, about; of one that left memory only a record tells them."""
        sizes, ref = self.state.cache.sizes, self.state.index.refs.get(key)
        return sizes[key] if key in sizes else record_size(ref) if type(ref) is int else AT_ONCE

    # The index.

    def commit(self) -> None:
        """Commit the index as it stands, as one list.  Keys that cannot be pickled are left out."""
        self._in_turn(lambda: self._commit(plain=True))

    def _commit(self, plain: bool, strict: bool = False) -> Errors:
        state = self.state
        moved: dict[int, int] = {}
        if plain:
            with state.lock:
                refs = dict(state.index.refs)
            moved = state.storage.compact(refs)
        with state.lock, state.section, state.index.keys.lock:
            gone = state.refresh()
            try:
                orphans, left_out = state.index.commit(plain, moved, strict)
                state.storage.remove(orphans)  # now, as behind a `reclaim` the names may be others' files
                pending = self.is_pending()
                state.storage.committed(plain, pending)
            except OSError as error:
                raise_of_a_signal(error)
                gone += state.refresh()
                raise explain_os(error, "commit the index", state.storage.file(KEYS),
                                 "; nothing is lost in memory, and what was committed before is untouched") from error
            if plain:
                state.index.untidy = state.index.untidy and pending
                state.storage.reclaim(state.index.committed_refs())
        # 1. A finaliser waits for another handle of this path; 2. a thread that has it waits for the directory's lock.
        del gone
        log("debug", "committed %s; keys: %d", state.storage.path, len(state.index.refs))
        return left_out

    def is_pending(self) -> bool:
        """Is anything written that no commit names?  Another thread's write may wait for the lock to say where."""
        state = self.state
        return state.index.has_unnamed() or bool(state.writing)

    def is_busy(self) -> bool:
        """The same; or does a save go on, which may have copied records that no commit names yet?"""
        return self.is_pending() or (self._saves is not None and self._saves.under_way())

    def rollback(self) -> None:
        """Forget what was not committed: values in memory, pending changes, new bytes on disk."""
        state = self.state
        with state.lock:
            state.mend()
            try:
                state.refresh()
            except (ChestError, OSError) as error:  # the next look says so; all is forgotten nevertheless
                raise_of_a_signal(error)
            with state.section:
                gone = state.cache.clear()  # first: what the index has of a value that is nowhere is not taken for one
                unnamed = state.index.rollback()
                state.may_have_left_bytes()
                state.flights.clear()
                state.count_change()
                state.landed.notify_all()
                state.storage.remove(unnamed)
        del gone

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What was pending before is saved now; what the block does is saved at its end, all of it or nothing.

        It begins and ends within a save, so that no other thread's sync comes between and commits a part of it.
        """
        mine = Flight()

        def begin() -> Errors:
            errors = self._save(plain=False, empty=False)
            self.transacts = None if errors else mine
            return errors

        try:
            self._explain(self._in_turn(begin))
            yield
            self._explain(self._in_turn(lambda: self._save(plain=False, empty=False, strict=True), mine))
            self.transacts = None
        except BaseException:
            if self.transacts is mine:
                try:
                    self.rollback()
                finally:
                    self.transacts = None
            raise
