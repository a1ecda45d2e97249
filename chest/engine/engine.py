"""One handle: its parts, and what is done to a key.  Everything that takes several steps is in the rooms beside."""
from __future__ import annotations

import os
import warnings
from collections.abc import Hashable, Iterable, Mapping
from itertools import islice
from typing import Any, Generic, TypeVar

from chest.engine import lifecycle
from chest.engine.committer import Committer, Progress, silent
from chest.engine.loader import Loader
from chest.engine.opening import Settings, open_parts
from chest.engine.spiller import SWEPT, Spiller
from chest.engine.state import Flight, State
from chest.errors import ChestError, explain_os, raise_of_a_signal
from chest.log import log
from chest.memory.cache import ABSENT
from chest.memory.sizeof import nbytes
from chest.storage.base import Ref, Written
from chest.storage.system import tolerated

__all__ = ["Engine"]

K = TypeVar("K", bound=Hashable)


class Engine(Generic[K]):
    """All values of a chest, wherever they are.  Any method may be called by any thread."""

    def __init__(self, path: str | os.PathLike[str] | None, settings: Settings, available: float):
        self.temporary = path is None
        self.settings = settings
        self.owner = os.getpid()
        self.closed = self.dropped = False
        self.state: State[K] = open_parts(path, settings, available)
        self.path, self.remote = self.state.storage.path, self.state.storage.remote
        # What another handle opens: of a URL the user's own text, as `path` has no secrets in it.
        self.address = os.fspath(path) if self.remote and path is not None else self.path
        self.spiller = Spiller(self.state, settings.min_file_size, settings.on_overflow)
        self.loader = Loader(self.state, self.spiller, settings.on_miss)
        self.committer = Committer(self.state, self.spiller)
        self.get = self.loader.get
        lifecycle.begin(self)

    def alive(self) -> Engine[K]:
        """This engine, if it can be used; `ValueError` for a temporary chest that is closed."""
        if lifecycle.waiting:
            lifecycle.drain()
        if self.closed:
            raise ValueError(f"<chest at {self.path}> was temporary and is closed; give a path= to keep one")
        return self

    def writable(self) -> Engine[K]:
        """This engine, if it can be changed; `ChestError` for a chest opened with ``flag='r'``."""
        if self.settings.flag == "r":
            raise ChestError(f"<chest at {self.path}> was opened to be read only (flag='r')")
        if self.dropped:  # it is used again
            self.state.storage.make()
            self.dropped = False
        return self.alive()

    # Keys.

    def set(self, key: K, value: Any, new: bool = False) -> None:
        """``key`` has this value now; with ``new`` only if there is no such key yet."""
        if lifecycle.waiting or self.closed or self.dropped or self.settings.flag == "r":
            self.writable()
        size = nbytes(value)
        state, cache = self.state, self.state.cache
        with state.lock:
            if state.torn:
                state.mend()
            if new and state.known(key):
                return
            refs = state.index.refs
            # Its finaliser, which may use the chest, comes behind all this.  `get` takes 25 us on 3.13t: it waits for
            # itself if another thread made the dict's key.
            gone = cache.values[key] if key in cache.values else None
            torn, state.torn = state.torn, True
            if state.flights:
                state.flights.pop(key, None)
            if cache.access.log:
                cache.take_hits()
            cache.access.asked(key)
            if size > state.available:
                state.large.add(key)
            cache.put(key, value, size, None)
            if key not in refs or refs[key] is not None or state.index.inherited:
                if key not in refs:
                    state.count_change()
                orphans = state.index.set(key)
                if orphans:
                    state.storage.remove(orphans)
            state.torn = torn
        del gone
        if cache.usage > state.available or cache.policy.now >= state.growth.due:
            self.spiller.make_room()

    def delete(self, key: K) -> bool:
        """Remove ``key``; `False` if there is none."""
        self.writable()
        state = self.state
        with state.lock:
            state.mend()
            if not state.known(key):
                return False
            with state.section:
                state.cache.given.pop(key, None)  # first, as in `Cache.remove`
                state.cache.take_hits()  # one of this key is a read before its end
                orphans = state.index.delete(key)
                gone = state.drop(key)
                state.cache.policy.forget(key)
                state.count_change()
                state.storage.remove(orphans)
        del gone
        return True

    def take(self, key: K) -> Any:
        """Remove ``key`` and return the value that it had then, whatever others do; `ABSENT` if there is none."""
        self.writable()
        state = self.state
        while self.get(key) is not ABSENT:  # loads the value, if need be, without the lock
            with state.lock:
                value, _ = state.cache.find(key)
                if value is not ABSENT:
                    self.delete(key)
                    return value
        return ABSENT

    def last(self) -> K:
        """The key that was inserted last; `KeyError` if there is none."""
        state = self.alive().state
        with state.lock:
            state.refresh()
            refs = state.index.refs
            if not refs:
                raise KeyError("popitem(): chest is empty")
            with state.section:  # not by `reversed`, which also passes the places of all keys that were removed
                refs.update([last := refs.popitem()])
        return last[0]

    def count_on(self) -> None:
        """The counter of hits is at its end: did values grow in place meanwhile?  Then room is made for them.

        Only where they did is the lock waited for, as by a miss.
        """
        growth = self.state.growth
        self.state.cache.access.count_on(growth.interval)
        growth.due = 0
        self.spiller.make_room_quietly()

    def shrink(self) -> None:
        """Size all values anew, as they may have grown in place, and spill until memory is within the budget."""
        state = self.state
        with state.lock:
            state.mend()
            with state.section:
                state.cache.take_hits()
                state.cache.access.release()  # this thread is through with the value that it was given last
        state.size_anew()
        self.spiller.make_room()

    def exposed(self) -> dict[K, Any]:
        """The values in memory, for somebody who may take from them, and change, what he likes, now and later."""
        state, cache = self.state, self.state.cache
        with state.lock:
            state.mend()
            state.is_exposed = True
            for key in list(cache.values):
                cache.give(key)
            for flight in state.flights.values():
                flight.given = flight.given.union(cache.values)
            return cache.values

    def name(self, key: K) -> str:
        """The full path of the file where the value of ``key`` is, or would be, kept."""
        state = self.alive().state
        with state.lock:
            state.known(key)  # looks at what others committed, if need be
            ref = state.index.refs.get(key)
            return state.storage.file(state.storage.reserve(key) if ref is None else ref)

    def adopt(self, made: Iterable[tuple[K, Written, Any]]) -> None:
        """The values of keys are what new bytes hold; with each the object that was written, or `ABSENT`."""
        state, cache, gone = self.state, self.state.cache, []
        orphans: list[Ref] = []
        with state.lock:
            state.mend()
            with state.section:
                refs = state.index.refs
                before = len(refs)
                for key, one, value in made:
                    was_there = key in refs
                    orphans += state.index.set(key, one.ref, one.version)
                    if was_there:
                        gone.append(state.drop(key))
                    if value is not ABSENT:
                        cache.left.add(key, value, (one.stamp, one.version))
                        state.counts.bytes_written += one.nbytes
                if len(refs) > before:
                    state.count_change()
                if orphans:
                    state.storage.remove(orphans)
        del gone

    def set_many(self, pairs: Mapping[K, Any]) -> None:
        """As `set` for each.  Small values that do not fit into memory go straight to a pack, in one batch."""
        self.writable()
        state, small = self.state, self.spiller.threshold()
        largest = max(map(nbytes, islice(pairs.values(), 4)), default=0)  # of a few, which stand for all
        if len(pairs) < 2 or largest >= small or state.cache.usage + len(pairs) * largest <= state.available:
            for key, value in pairs.items():
                self.set(key, value)
            return
        mine = Flight()  # in this frame, where `Flight.under_way` looks for it
        with state.in_flight(mine):
            done = self.spiller.write(list(pairs.items()))
            self.adopt((key, one, value) for (key, value), one in done if one.ref is not None)
        for (key, value), one in done:
            if one.ref is None:
                self.set(key, value)  # the errors are those of a spill
        self.spiller.sweep(SWEPT)
        self.spiller.make_room()

    # Saving and ending.

    def save(self, plain: bool, empty: bool, progress: Progress = silent) -> None:
        self.writable().ensure_directory().committer.save(plain, empty, progress)

    def ensure_directory(self) -> Engine[K]:
        self.spiller.ensure_directory()
        return self

    def unsaved(self) -> int:
        return len(self.state.index.own()) if not self.temporary else 0

    def close(self, progress: Progress = silent) -> None:
        """Save everything and free memory; a temporary chest removes its directory instead."""
        state = self.state
        self.committer.no_transaction()
        if self.temporary:
            self.closed = True
            state.forget()
            if self.owner == os.getpid():
                state.storage.clear_away()
                self.owner = 0  # now, as Ctrl-C may come before: there is nothing left that is anybody's to remove
        elif not self._forgets_all() and not self._is_gone():
            self.committer.save(plain=bool(self.unsaved()), empty=True, progress=progress)
            if state.index.untidy:  # all is saved: what the system refuses now is left to the next
                with tolerated("warning", "%s is saved, and cannot be tidied: %s", self.path):
                    self.committer.commit()
        with state.lock:
            if not self.committer.is_busy():  # else other threads' files would be taken for a dead writer's
                state.close()

    def _forgets_all(self) -> bool:
        """Empty memory, and touch nothing on disk, if nothing was changed, nor may have been.  Was it so?"""
        state, cache, index = self.state, self.state.cache, self.state.index
        with state.lock:
            state.mend()
            if self.settings.flag != "r" and (
                    self.unsaved() or cache.watch or cache.left.entries or index.inherited or index.untidy):
                return False
            state.forget()
            return True

    def _is_gone(self) -> bool:
        """Has the directory vanished?  Then nothing can be saved there, which is a warning if there is anything."""
        storage = self.state.storage
        try:
            if storage.exists():
                return False
        except OSError as error:
            raise_of_a_signal(error)
            raise explain_os(error, "save the chest", self.path, "; nothing is lost in memory") from error
        lost = self.unsaved()
        if lost:
            warnings.warn(f"the directory of <chest at {self.path}> is gone, and with it {lost} unsaved "
                          f"value{'s' * (lost > 1)}", RuntimeWarning, stacklevel=4)
        self.state.forget()
        return True

    def drop(self) -> None:
        """Remove the chest's files, and its directory if nothing of anyone else's is in it: all of it or nothing."""
        if self.temporary:
            return self.close()
        state = self.writable().state
        self.committer.no_transaction()
        with state.lock:
            state.mend()
            if self.owner == os.getpid() and state.storage.exists():
                state.erase()
            else:
                state.forget()
        self.dropped = True
        state.close()
        log("warning", "dropped %s", self.path)

    def end(self) -> None:
        """Nobody will ask this handle again, or the process ends."""
        if self.owner == os.getpid() or self.unsaved():  # in the child of a fork only what the child itself set
            if self.committer.transacts is not None and self.owner == os.getpid():
                self.committer.rollback()  # it is a daemon thread's, say, and does not come to its end
            self.committer.transacts = None
            try:
                self.close()
            except Exception as error:
                raise_of_a_signal(error)  # then it is tried again
                # What could not be saved is lost, and nothing stays open for it.  Else: 1. its journal is closed;
                # 2. others remove what that lists; 3. at the end of the script it is tried again, and commits that.
                self.state.forget()
                self.state.close()
                raise
