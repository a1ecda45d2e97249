"""What the parts of the engine share: one lock, the cache, the index, the storage, and what is in flight.

Three rules keep threads out of each other's way.

1.  Values are read and written without the lock.  A `Flight` stands in the table ``flights`` meanwhile, one for each
    key; what was read or written counts only if it still stands there.
2.  The handle's lock comes before the directory's, never the other way round.
3.  A section that changes several parts sets ``torn``, and behind it takes it back.  So whoever finds it set knows that
    Ctrl-C or an error came in between, and makes everything derived anew from the two dicts that are the truth:
    ``cache.values`` and ``index.refs``.  ``state.section`` does that; where every call counts, the lines are spelt out.
"""
from __future__ import annotations

import _thread
import gc
import os
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, SimpleNamespace
from typing import Any, Generic, TypeVar

from chest.errors import ChestError, raised_by_signal
from chest.index import Index
from chest.log import log
from chest.memory.access import frames
from chest.memory.budget import Growth
from chest.memory.cache import ABSENT, Cache
from chest.stats import Stats
from chest.storage.base import Ref, Storage

__all__ = ["Flight", "State", "nothing"]

K = TypeVar("K", bound=Hashable)

BESIDE = 1 << 24  # bytes, or more, of values that left memory that may be kept beside what the program has of them
LOOK_AGAIN = 0.5  # seconds until who waits for another thread sees whether that is at it still
NOBODY: frozenset[Any] = frozenset()


def nothing(key: Any) -> None:
    """The default of ``on_miss`` and ``on_overflow``."""


_HERE = os.path.dirname(nothing.__code__.co_filename)  # what frames say, also of a program that was frozen elsewhere


class Flight:
    """A load, or a batch of writes, of ``keys`` under way.  ``given`` has those whose values somebody got, ``away`` the
    items of those that had left memory before."""

    given: frozenset[Any] = NOBODY
    away: Sequence[Any] = ()
    counts: Sequence[int] = ()  # of the references to each value at the start

    def __init__(self, loads: bool = False, keys: Sequence[Any] = ()) -> None:
        self.thread = _thread.get_ident()
        self.loads = loads
        self.keys = keys

    def under_way(self) -> bool:
        """Is the thread still at it?  Not if Ctrl-C ended it before it could say so."""
        frame: FrameType | None = frames().get(self.thread)
        while frame is not None:
            if frame.f_code.co_filename.startswith(_HERE) and any(local is self for local in frame.f_locals.values()):
                return True
            frame = frame.f_back
        return False


class _Section:
    """A block of rule 3.  What the system refuses is raised where nothing is half done, and leaves ``torn`` as it was.

    The garbage collector does not come meanwhile: it may run a finaliser of the user's that uses the chest.
    """

    def __init__(self, state: State[Any]) -> None:
        self._state = state
        self.depth = 0
        self.before = self.collects = False

    def __enter__(self) -> None:
        if not self.depth:
            self.before, self.collects = self._state.torn, gc.isenabled()
        self.depth += 1
        self._state.torn = True
        gc.disable()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self.depth == 1:
            if self.collects:
                gc.enable()
            if error is None or _is_answer(error):
                self._state.torn = self.before
            else:  # it may have come on the way out of the directory's lock, for which others wait
                self._state.mend_lock()
        self.depth -= 1


def _is_answer(error: BaseException) -> bool:
    """Is this chest's own error, or the system's, and not what a signal's handler raised?"""
    return isinstance(error, (ChestError, OSError)) and not raised_by_signal(error)


class State(Generic[K]):
    """The parts of one handle."""

    def __init__(self, index: Index[K], storage: Storage, looks: bool, available: float):
        self.cache: Cache[K] = Cache(looks, max(BESIDE, available / 8))
        self.index = index
        self.storage = storage
        self.codec = storage.codec
        self.available = available
        self.counts = SimpleNamespace(**Stats()._asdict())  # but for hits that took no lock, which `Access` counts
        self.growth = Growth(available)
        self.flights: dict[K, Flight] = {}
        self.writing: dict[Flight, None] = {}  # all that write, also where the keys are others' by now
        self.torn = False
        index.version, index.committing = storage.version, storage.committing
        index.journals = not storage.remote
        # The index's, for a load: in a store no name comes again, so that there it needs no round trip.
        self.newest_check: Callable[[], Callable[[], bool]] = (
            index.newest_check if not storage.remote else lambda: lambda: True)
        self.section = _Section(self)
        self.large: set[K] = set()  # keys in memory whose values are larger than the budget: these leave first
        self.is_exposed = False  # if so, no value is known to be in nobody's hands
        self.changes: defaultdict[int, int] = defaultdict(int)  # by thread, how often it added or removed a key
        self.new_lock()

    def new_lock(self) -> None:
        self.lock = threading.RLock()
        self.landed = threading.Condition(self.lock)
        self._waiters = 0

    # With the lock.

    def mend(self) -> None:
        """Where a section was interrupted: make all that is derived anew.  Called with the lock, before the next one.

        A finaliser of the user's may bring a thread here from the middle of its own section: that is no interruption.
        """
        if self.torn and not self._in_a_section():
            log("debug", "an operation was interrupted; what is derived is made anew")
            self.may_have_left_bytes()
            if self.section.depth and self.section.collects:
                gc.enable()
            self.section = _Section(self)
            self.mend_lock()
            mine = _thread.get_ident()
            self.writing = {one: None for one in list(self.writing) if one.thread != mine and one.under_way()}
            self.index.rebuild(self.cache.values)
            gone = self._drop_stale(self.index.replaced())
            refs, values, saved = self.index.refs, self.cache.values, self.cache.saved
            # What tells of bytes may be that of those before.
            cut = {key for key, one in self.flights.items() if not (one.loads or one in self.writing)}
            values.update((key, value) for key in cut if (value := self.cache.find(key)[0]) is not ABSENT)
            for key in [key for key in list(values) if key in values and (key not in saved or key in cut)
                        and refs.get(key, "") is not None]:
                self.index.set(key)  # it was being set, which a hit may have shown since, or written
            self.cache.rebuild(refs)
            # What other threads write is theirs to note: else their sync would return, and not have saved it.
            self.flights = {key: one for key, one in self.flights.items()
                            if one in self.writing and key in self.cache.values}
            self.torn = False
            self.landed.notify_all()
            del gone

    def mend_lock(self) -> None:
        """Let go of the directory's lock, if this thread has it still."""
        mend: Any = getattr(self.index.keys.lock, "mend", None)
        if mend is not None:
            mend()

    def _in_a_section(self) -> bool:
        """Is another operation of this handle further up this thread's stack?"""
        frame = sys._getframe(2).f_back  # that of the operation that asks is the next one below
        asking = True
        while frame is not None:
            within = frame.f_code.co_filename.startswith(_HERE)
            holder = frame.f_locals.get("self") if within and not asking else None
            if holder is self or getattr(holder, "state", None) is self:
                return True
            asking = asking and within
            frame = frame.f_back
        return False

    def known(self, key: K) -> bool:
        """Is there such a key?  Only one that is not known here costs a look at what others committed."""
        return key in self.index.refs or key in self.newest()

    def keys(self) -> list[K]:
        with self.lock:
            return list(self.newest())

    def newest(self) -> dict[K, Ref | None]:
        """The index's refs, with what others committed taken over."""
        with self.lock:
            self.mend()
            self.refresh()
            return self.index.refs

    def refresh(self) -> list[object]:
        """Take over what others committed.  Returns the values that they replaced, whose finalisers may use chests."""
        with self.lock:
            if self.index.is_current():
                return []
            with self.section:
                stale, whole = self.index.refresh()
                gone = self._drop_stale(stale)
                if whole:  # a name may have been free, and taken again, in between
                    self.index.uncertain = True  # so that all is read again if the system refuses to tell
                    gone += [self.drop(key) for key in self._of_other_files()]
                    self.index.uncertain = False
                return gone

    def _drop_stale(self, keys: list[K]) -> list[object]:
        """Drop what a refresh found to have another value.  Returns the values, as `refresh` does."""
        gone = [self.drop(key) for key in keys]
        self.index.stale.clear()  # else the next refresh drops what is loaded of these from now on
        return gone

    def _of_other_files(self) -> list[K]:
        """The keys whose values in memory are no longer those of their loose files."""
        found: list[K] = [key for key, flight in self.flights.copy().items() if flight.loads]
        pending, refs = self.index.pending, self.index.refs
        left = [(key, saved) for key, (_, saved) in self.cache.left.entries.copy().items()]
        for key, (_, version) in [*self.cache.saved.copy().items(), *left]:
            ref = refs.get(key)
            if isinstance(ref, str) and key not in pending and self.storage.version(ref) != version:
                found.append(key)
        return found

    def drop(self, key: K) -> object:
        """The value of ``key`` is another one now: what is in memory, or under way, is no longer it."""
        self.flights.pop(key, None)
        return self.cache.remove(key)

    def size_anew(self) -> None:
        with self.lock:
            self.mend()
            with self.section:
                self.cache.size_anew()
                self.large.update([key for key, size in self.cache.sizes.items() if size > self.available])

    def forget(self) -> list[object]:
        """Forget values and index.  Returns the values, as `refresh` does."""
        with self.lock, self.section:
            self.flights.clear()
            gone = self.cache.clear()
            self.index.forget()
            return gone

    def erase(self) -> None:
        """Remove the index, and then the files of all values."""
        with self.lock, self.section, self.index.keys.lock:
            gone = self.refresh()
            self.storage.committing(self.index.committed_refs())
            refs = self.index.known_refs()
            self.index.keys.erase()  # from now on the chest is empty, whatever becomes of its files
            gone += self.forget()
            self.storage.drop(refs)
        del gone  # see `Committer._commit`

    def count_change(self) -> None:
        """A key came or went through this thread: its iterators have to notice."""
        self.changes[_thread.get_ident()] += 1

    def take_off(self, flight: Flight, keys: Sequence[K]) -> None:
        """``flight`` is that of ``keys``; one that another thread has under way for them is void from now on."""
        flight.keys = keys
        if not flight.loads:
            self.writing[flight] = None
        for key in keys:
            self.flights[key] = flight

    def land(self, flight: Flight) -> None:
        """The end of a flight, whatever became of it."""
        flights = self.flights
        for key in flight.keys:
            if key in flights and flights[key] is flight:
                del flights[key]
        if flight in self.writing:
            del self.writing[flight]
        if self._waiters:
            self.landed.notify_all()

    @contextmanager
    def in_flight(self, flight: Flight, choose: Callable[[], Sequence[K]] = tuple) -> Iterator[None]:
        """In this block ``flight`` is that of the keys that ``choose`` names, which is called with the lock.

        For bytes that no key names yet it has no keys: it tells a commit that they are being written.
        """
        try:
            with self.lock:
                self.take_off(flight, choose())
            try:
                yield
            finally:
                with self.lock:
                    self.land(flight)
        except BaseException as error:
            self.check_landed(flight, error)
            raise

    def check_landed(self, flight: Flight, error: BaseException) -> None:
        """``error`` came out of a flight: if that has not landed, all is to be mended."""
        if not _is_answer(error):
            self.may_have_left_bytes()
        if flight in self.writing or any(other is flight for other in list(self.flights.values())):
            self.torn = True

    def may_have_left_bytes(self) -> None:
        """Bytes may be there that nothing names, as of an operation that was cut off: a plain commit has to look."""
        self.index.untidy = True
        self.storage.left_bytes()

    def waited(self, key: K, loads: bool) -> bool:
        """If another thread loads (or writes) the value of ``key``, wait until it is through.  Was there one?"""
        other = self.flights.get(key)
        if other is None or other.loads != loads or other.thread == _thread.get_ident():
            return False
        self.wait_for(lambda: self.flights.get(key) is not other, other)
        return True

    def wait_for(self, done: Callable[[], bool], flight: Flight) -> None:
        """Wait until another thread is through.  The lock is free meanwhile, however often this thread has taken it."""
        self._waiters += 1
        try:
            while not done():
                if not self.landed.wait(LOOK_AGAIN) and not flight.under_way():
                    self.land(flight)
                    return
        finally:
            self._waiters -= 1

    # Without the lock.

    def close(self) -> None:
        self.index.keys.close()
        self.storage.close()

    def after_fork(self) -> None:
        """In a fork's child: new locks; nobody else loads or writes; what is pending is the parent's to save."""
        self.new_lock()
        for key, flight in self.flights.items():
            if not flight.loads and key in self.cache.values and self.index.refs.get(key) is not None:
                self.index.set(key)  # it may have been changed in place, and its parent writes it
                self.cache.put(key, self.cache.values[key], self.cache.sizes[key], None)
        self.flights.clear()
        self.writing.clear()
        self.changes.clear()
        self.storage.after_fork()
        self.index.after_fork()
        for key in self.index.inherited:
            if self.index.refs.get(key, "") is None and key in self.cache.values:
                self.cache.stick(key)  # it is the parent's to save
