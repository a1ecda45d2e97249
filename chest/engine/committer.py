"""Save: write what is not on disk as it is now, commit the index, remove what nothing names any more; or roll back.

How a commit goes:

1.  Under the lock: what is dirty, or may have been changed in place, is taken out of ``given``, as for a spill.
2.  Without it: values are compared and written.  If the system refuses one of them, nothing is committed.
3.  Under the lock, and that of the directory: what others committed is taken over, and ``.keys`` appended to or
    replaced.  A key or a value that cannot be dumped is left out, alone, and named by the error at the end.
4.  What the commit superseded is removed.
"""
from __future__ import annotations

import _thread
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from chest.engine.spiller import Item, Spiller
from chest.engine.state import Flight, State, nothing
from chest.errors import ChestError, explain_dump, explain_os, raised_by_signal, refused
from chest.index import KEYS
from chest.log import log
from chest.memory.cache import ABSENT, Saved
from chest.memory.changes import owned
from chest.storage.base import Ref, record_size

__all__ = ["Committer", "silent"]

K = TypeVar("K", bound=Hashable)

AT_ONCE = 1 << 20  # bytes of small values that are written together
Progress = Callable[..., Iterable[Any]]
Errors = list[tuple[Any, Exception]]


def silent(items: Iterable[Any], total: int) -> Iterable[Any]:
    """The default of ``progress=``: a wrapper of an iterable that shows nothing."""
    return items


class Committer(Generic[K]):
    """The commits of one handle, one at a time."""

    def __init__(self, state: State[K], spiller: Spiller[K]):
        self.state = state
        self.spiller = spiller
        self.in_transaction = False
        self._saves: Flight | None = None  # the save that is under way

    def save(self, plain: bool, empty: bool, progress: Progress = silent, strict: bool = False) -> None:
        """Write what is not on disk as it is now, and commit; with ``empty`` let all that is saved leave memory.

        With ``plain`` the index is left as one list, and space is reclaimed.  `OSError`: nothing was committed.
        `DumpError`: all was, but for the keys that it names; with ``strict`` nothing.
        """
        state = self.state
        with state.lock:
            self.no_transaction()
            before = self._wait_for_others()
            mine = self._saves = Flight(False)
        try:
            errors = self._save(plain, empty, progress, strict)
        finally:
            with state.lock:
                self._saves = before
                state.landed.notify_all()
        del mine
        if errors:
            key, error = errors[0]
            more = f" (and {len(errors) - 1} more)" if errors[1:] else ""
            raise explain_dump(error, key, state.storage.path, more)

    def no_transaction(self) -> None:
        """`ChestError` while a transaction is open."""
        if self.in_transaction:
            raise ChestError("a transaction is open: it saves at its end, and nothing before")

    def _wait_for_others(self) -> Flight | None:
        """Wait until no other thread saves; the save of this very thread that this one is nested in, if it is."""
        while self._saves is not None and self._saves.thread != _thread.get_ident():
            other = self._saves
            self.state.wait_for(lambda: self._saves is not other, other)  # noqa: B023 - called at once
            if self._saves is other:
                self._saves = None  # Ctrl-C ended it before it could say so
        return self._saves

    def _save(self, plain: bool, empty: bool, progress: Progress, strict: bool) -> Errors:
        state, flight = self.state, Flight(False)
        saved: dict[K, Saved] = {}
        try:
            with state.lock:
                state.mend()
                with state.section:
                    self._unstick()
                    items = self._unsaved()
                    clean: dict[K, Saved] = self._leave_together(items) if empty else {}
                    keys = [*[item[0] for item in items], *clean]
                    for key in keys:
                        state.cache.given.pop(key, None)
                    # Now, and not behind the comparison: thread B may have a value, change it then, and let go of it.
                    alone = set() if empty or state.is_exposed else {item[0] for item in items if owned((item[1],), 2)}
                    state.take_off(flight, keys)
                    # 1. thread B has a value in hand; 2. it is written; 3. B changes it, and asks for another.
                    flight.given |= state.cache.access.pinned()
            try:
                errors = self._write(items, saved, flight, progress)
                if not (strict and errors):
                    errors += self.commit(plain, flight)
            finally:
                self._land(items, saved, alone, flight)
            if empty:
                self._empty({**clean, **saved}, flight)
        except BaseException as error:
            state.check_landed(flight, error)
            raise
        return errors

    def _leave_together(self, items: list[Item]) -> dict[K, Saved]:
        """The other values in memory, which are known to be as their bytes are, and may leave with ``items``."""
        cache = self.state.cache
        cache.access.release()
        unsaved = {item[0] for item in items}
        return {key: saved for key, saved in cache.saved.copy().items() if key not in unsaved}

    def _unstick(self) -> None:
        """What could not be dumped may be by now, but for what is the parent's to save."""
        cache = self.state.cache
        for key in cache.stuck - self.state.index.inherited.keys():
            cache.stuck.discard(key)
            cache.policy.put(key, cache.sizes[key], key not in cache.saved)

    def _unsaved(self) -> list[Item]:
        """What is dirty, or may have been changed in place."""
        cache, refs = self.state.cache, self.state.index.refs
        cache.take_hits()
        keys = [key for key in self.state.index.own() if refs.get(key, "") is None and key in cache.values]
        keys += cache.watch
        # A finaliser of the user's that uses the chest may run at any of these lines, and let values leave.
        items: list[Item] = [(key, value, refs.get(key), cache.saved.get(key)) for key in keys
                             if (value := cache.values.get(key, ABSENT)) is not ABSENT]
        items += [(key, value, refs[key], saved) for key, value, saved in cache.departed() if key in refs]
        return items

    def _write(self, items: list[Item], saved: dict[K, Saved], flight: Flight, progress: Progress) -> Errors:
        """Write what is not on disk as it is now.  Returns what cannot be dumped; `OSError` if the system refuses."""
        state, errors = self.state, []
        orphans: list[Ref] = []
        try:
            for some in self._batches(progress(items, total=len(items))):
                new = self.spiller.divide(some, saved)
                if not new:
                    continue
                written = self.spiller.write(new)
                with state.lock, state.section:
                    orphans += self.spiller.record(written, saved, flight)
                    for item, one in written:
                        if item[0] in saved:
                            state.cache.wrote(item[0], saved[item[0]], one.nbytes, item[2] is not None)
                for item, one in written:
                    if one.error is not None:
                        if refused(one.error):
                            raise explain_dump(one.error, item[0], state.storage.path)
                        errors.append((item[0], one.error))
        finally:
            if orphans:
                state.storage.remove(orphans)
        return errors

    def _batches(self, items: Iterable[Item]) -> Iterator[list[Item]]:
        """``items`` in lists of about `AT_ONCE` bytes, if small values share packs; each alone, if not.

        For a store in lists of 64 times as many, as each is a round trip.
        """
        some: list[Item] = []
        remote = self.state.storage.remote
        most = AT_ONCE << 6 if remote else AT_ONCE
        sizes, together, total = self.state.cache.sizes, remote or self.spiller.threshold(), 0
        for item in items:
            some.append(item)
            key, _, ref, _ = item
            if together and key in sizes:
                total += sizes[key]
            else:  # of a value that left memory, and may have been changed since, only a record tells the size
                total += record_size(ref) if together and type(ref) is int else AT_ONCE
            if total >= most:
                yield some
                some, total = [], 0
        if some:
            yield some

    def _land(self, items: list[Item], saved: dict[K, Saved], alone: set[K], flight: Flight) -> None:
        """Note which values are known to be as their bytes are: those saved that nobody but the chest can reach."""
        state, cache = self.state, self.state.cache
        with state.lock, state.section:
            cache.take_hits()
            for key, *_ in items:
                if key in cache.values:
                    if key in alone and key in saved and key not in flight.given and state.flights.get(key) is flight:
                        cache.watch.pop(key, None)
                    else:
                        cache.look_at(key)
            for key, *_ in cache.unreferenced(len(cache.kept), 2):  # besides, each is in its item
                if key in saved:
                    cache.let_go(key)
            state.land(flight)

    def _empty(self, saved: dict[K, Saved], flight: Flight) -> None:
        """Let values leave memory that were just saved, but for those that somebody was given since."""
        state, cache = self.state, self.state.cache
        if self.spiller.on_overflow is not nothing:
            for key in list(saved):
                if key in cache.values:
                    self.spiller.on_overflow(key)
            self.spiller.leave([key for key in saved if state.index.refs.get(key) is not None], announced=True)
            return
        with state.lock, state.section:
            cache.take_hits()
            stay = flight.given | cache.access.pinned()
            # Who is given a value behind the commit is in `given`; what was set then, and written by another, is saved
            # otherwise than this commit says.  What was given then, and is in another's flight now, that one looks at.
            leaving = {key: saved[key] for key in list(cache.values) if key in saved and key not in stay
                       and key not in cache.given and key not in state.flights and cache.saved.get(key) == saved[key]}
            gone = cache.evict(leaving, 2)
            state.counts.spills += len(leaving)
        del gone

    # The index.

    def write_keys(self) -> None:
        """Commit the index as it stands, by itself."""
        self.no_transaction()
        self.commit(True)

    def commit(self, plain: bool, mine: Flight | None = None) -> Errors:
        """Commit the index as it stands, for the save ``mine``.  Returns the keys that cannot be pickled, left out."""
        state = self.state
        moved: dict[int, int] = {}
        if plain:
            with state.lock:
                refs = dict(state.index.refs)
            moved = state.storage.compact(refs)
        orphans, left_out = self._commit(plain, moved, mine)
        state.storage.remove(orphans)
        with state.lock:
            if not self.is_pending(mine):
                state.storage.settled(plain)
        log("debug", "committed %s; keys: %d", state.storage.path, len(state.index.refs))
        return left_out

    def _commit(self, plain: bool, moved: dict[int, int], mine: Flight | None) -> tuple[list[Ref], Errors]:
        state = self.state
        with state.lock, state.section, state.index.keys.lock:
            while state.refresh():
                pass  # a value that is dropped may run code of the user's, and that may commit by another handle
            try:
                done = state.index.commit(plain, moved)
                pending = self.is_pending(mine)
                state.storage.committed(plain, pending)
            except OSError as error:
                if raised_by_signal(error):
                    raise
                state.refresh()
                raise explain_os(error, "commit the index", state.storage.file(KEYS),
                                 "; nothing is lost in memory, and what was committed before is untouched") from error
            if plain:
                if state.storage.doubtful and not pending:  # what the journal lists is reclaimed as a dead writer's
                    state.storage.remove(done[0])
                    done[0].clear()  # now, as the names may be others' files behind this
                    state.storage.settled(plain)
                state.storage.reclaim(state.index.committed_refs())
        return done

    def is_pending(self, mine: Flight | None = None) -> bool:
        """Is anything written that no commit names?  Another thread's write may wait for the lock to say where."""
        state = self.state
        return state.index.has_unnamed() or any(flight is not mine and not flight.loads
                                               for flight in state.flights.copy().values())

    def rollback(self) -> None:
        """Forget what was not committed: values in memory, pending changes, new bytes on disk."""
        state = self.state
        with state.lock:
            state.mend()
            state.refresh()
            with state.section:
                gone = state.cache.clear()  # first: what the index has of a value that is nowhere is not taken for one
                unnamed = state.index.rollback()
                writes = self.is_pending()
                state.flights.clear()
                state.count_change()
                state.landed.notify_all()
        del gone
        state.storage.remove(unnamed)
        with state.lock:
            if not (writes or self.is_pending()):
                state.storage.settled(False)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What was pending before is saved now; what the block does is saved at its end, all of it or nothing."""
        self.save(False, False)
        try:
            with self.state.lock:
                self.in_transaction = True
            yield
            self.in_transaction = False
            self.save(False, False, strict=True)
        except BaseException:
            self.in_transaction = False
            self.rollback()
            raise
