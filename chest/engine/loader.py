"""A miss: a value is loaded once, however many threads ask for it; several at a time where that helps.

How a value is loaded:

1.  Under the lock (`get`): where does it lie?  If another thread loads it already, wait for that one.
2.  Without it: the user's ``on_miss``, then the load (`_load`).
3.  Under the lock: is the key still what it was, and is the index the one in which it was looked up, or does the newest
    one name the very same bytes?  Then the value enters memory (`_arrive`); else the key is looked up anew.

The last question is asked when the bytes were read, as a name may be freed and taken again by other processes.
"""
from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import chain, islice
from typing import Any, Generic, TypeVar

from chest.engine.committer import Progress
from chest.engine.spiller import SWEPT, Spiller
from chest.engine.state import Flight, State, nothing
from chest.errors import GoneError, explain_load, of_the_process, shown
from chest.index import key_checksum
from chest.memory.cache import ABSENT, memory_of
from chest.memory.changes import COUNTED
from chest.memory.sizeof import nbytes
from chest.serialize.compare import can_change
from chest.storage.base import Loaded, Ref, batches, record_size

__all__ = ["TOGETHER", "Loader"]

K = TypeVar("K", bound=Hashable)

TOGETHER = 1000  # keys, or pairs, of an iteration, a prefetch or an update that are looked at together
FIRST = 16  # of an iteration over what is on this machine, which may end early
PASSED = 1 << 20  # bytes that an iteration hands out together, and then lets go of what nobody has any more


class Loader(Generic[K]):
    def __init__(self, state: State[K], spiller: Spiller[K], on_miss: Callable[[K], Any]):
        self.state = state
        self.spiller = spiller
        self.on_miss = on_miss

    def get(self, key: K, announced: bool = False) -> Any:  # if so, ``on_miss`` is not called
        """The value of ``key``, loaded if need be; `ABSENT` if there is none, `KeyError` if its file is gone."""
        state = self.state
        announced = announced or self.on_miss is nothing
        flight: Flight | None = None
        try:
            while True:
                with state.lock:
                    if state.torn:
                        state.mend()
                    value = self._at_hand(key)
                    if value is not ABSENT:
                        break
                    ref = state.index.refs[key] if key in state.index.refs or state.known(key) else None
                    if ref is None:
                        break
                    if key in state.flights and state.waited(key, loads=True):
                        continue
                    if announced:
                        flight = state.flights[key] = Flight(loads=True, keys=(key,))
                        newest = state.newest_check()
                if flight is None:
                    announced = True
                    self.on_miss(key)
                    continue
                value = self._load(key, ref, flight, newest)
                if value is not ABSENT:
                    break
        except BaseException:
            if flight is not None:
                with state.lock:
                    state.land(flight)
            raise
        if state.cache.usage > state.available or state.cache.policy.now >= state.growth.due:
            self.spiller.make_room_quietly()
        return value

    def _at_hand(self, key: K) -> Any:
        """The value of ``key`` if it need not be loaded: in memory, or let go of by us but not by the program."""
        state, cache = self.state, self.state.cache
        is_there = key in cache.values  # first, as a key that cannot be hashed raises here
        torn, state.torn = state.torn, True
        log = cache.access.log
        if log and log[-1] is key:
            log.pop()  # `c[key]` took it for a hit
        if log and not is_there:
            cache.take_hits()
        cache.access.asked(key)
        value = cache.give(key) if is_there else ABSENT
        if value is not ABSENT:
            log.append(key)
        elif key in cache.left.entries:
            value, saved = cache.left.find(key)
            if value is not ABSENT:
                cache.put(key, value, nbytes(value), saved)
        if value is not ABSENT:
            state.counts.hits += 1
            if key in state.flights:
                state.flights[key].given |= {key}
        state.torn = torn
        return value

    def _load(self, key: K, ref: Ref, flight: Flight, newest: Callable[[], bool]) -> Any:
        """Load and take in a value; `ABSENT` if the key has to be looked up anew."""
        state = self.state
        loaded: Loaded | None = None
        error: Exception | None = None
        try:
            loaded = state.storage.load(ref, key_checksum(key) if type(ref) is str else 0)
        except Exception as found:
            if of_the_process(found):
                raise
            error = found
        try:
            size = memory_of(loaded.value, loaded.nbytes) if loaded is not None else 0
            is_newest = newest()  # without the lock, as other threads run while the system is asked
            with state.lock:
                ours = key in state.flights and state.flights[key] is flight
                if loaded is not None and ours and not is_newest:  # others may commit more often than a load takes
                    state.refresh()
                    is_newest = state.index.refs.get(key) == ref and state.storage.version(ref) == loaded.version
                if loaded is not None and ours and is_newest and (
                        not state.index.inherited or self._is_as_inherited(key, loaded.version)):
                    torn, state.torn = state.torn, True
                    self._arrive(key, loaded, size)
                    state.land(flight)
                    state.torn = torn
                    return loaded.value
                state.land(flight)
                state.refresh()
                if not (ours and is_newest) or state.index.refs.get(key) != ref:
                    return ABSENT
                # A value's own code may open files, too.
                files = state.storage.file(ref), state.storage.path
                gone = loaded is not None or (isinstance(error, FileNotFoundError) and error.filename in files) or (
                    key in state.index.inherited and not self._is_as_inherited(key, state.storage.version(ref)))
            if gone:
                raise GoneError(f"{shown(key)}: its file {state.storage.file(ref)} is gone; "
                                f"set or delete the key to repair it")
            assert error is not None
            raise explain_load(error, key, state.storage.file(ref)) from error
        finally:
            error = None  # else its traceback, which has this frame, would keep the chest until garbage is collected

    def _is_as_inherited(self, key: K, version: int | None) -> bool:
        """Is a file that only the parent of a fork knew of still the one that it was then?"""
        return self.state.index.inherited.get(key) in (None, version)

    def _arrive(self, key: K, loaded: Loaded, size: int, is_given: bool = True) -> None:
        counts = self.state.counts
        counts.misses += 1
        counts.bytes_read += loaded.nbytes
        if size > self.state.available:
            self.state.large.add(key)
        self.state.cache.put(key, loaded.value, size, (loaded.stamp, loaded.version), is_given)

    # Many at once.

    def prefetch(self, keys: list[K], progress: Progress) -> None:
        """Load what is not in memory, several values at a time, until the budget is full."""
        state = self.state
        with state.lock:
            state.mend()
            for key in keys:
                if not state.known(key):
                    raise KeyError(key)
            wanted = [key for key in dict.fromkeys(keys) if state.cache.find(key)[0] is ABSENT]
        failed: list[K] = []
        for some in batches(progress(wanted, total=len(wanted)), TOGETHER):
            if not self._bring(some, failed):
                break
        for key in failed:
            self.get(key, announced=True)  # says what is wrong with it, if anything still is

    def _bring(self, keys: list[K], failed: list[K]) -> bool:
        """Load values as long as there is room.  Returns whether there was room for all but those that ``failed``."""
        state, cache, flight = self.state, self.state.cache, Flight(loads=True)
        refs: dict[K, Ref] = {}

        def choose() -> list[K]:
            state.refresh()
            refs.update((key, ref) for key in keys if cache.find(key)[0] is ABSENT and key not in state.flights
                        and (ref := state.index.refs.get(key)) is not None)
            return list(refs)

        with state.in_flight(flight, choose):
            newest = state.newest_check()
            loads = zip(refs, state.storage.load_many(list(refs.values()), list(refs)))
            for some in batches(loads, PASSED, lambda one: _weight(refs[one[0]])):
                found = []
                for key, loaded in some:
                    if not isinstance(loaded, Exception):
                        found.append((key, loaded, memory_of(loaded.value, loaded.nbytes)))
                    elif of_the_process(loaded):
                        raise loaded
                    else:
                        failed.append(key)
                with state.lock:
                    if not newest():
                        state.refresh()  # the flight of a key that may have another value now is void then
                        newest = state.newest_check()
                    with state.section:
                        for key, loaded, size in found:
                            if cache.usage + size > state.available:
                                return False
                            if state.flights.get(key) is flight and self._is_as_inherited(key, loaded.version):
                                self._arrive(key, loaded, size, is_given=False)
                                cache.watch.pop(key, None)  # as nobody has it
            return True

    def stream(self, keys: list[K]) -> Iterator[tuple[K, Any]]:
        """The pairs of ``keys``, but for those that are gone by their turn.  Records of packs that do not fit into
        memory do not enter it, so that nothing leaves for them, and are compared when the loop is through with them."""
        state, cache = self.state, self.state.cache
        begin = TOGETHER if state.storage.remote else FIRST
        for some in chain(batches(keys[:begin], begin), batches(keys[begin:], TOGETHER)):
            ahead = self._ahead(some)
            loads = state.storage.load_many(list(ahead.values()))
            for few in _portions(some, ahead):
                wanted = [key for key in few if key in ahead]
                found = list(islice(loads, len(wanted)))  # has the values until their turn
                passing = self._pass(wanted, found, ahead) if wanted else {}
                for key in few:
                    entry = passing.get(key)
                    # Nobody had, set or deleted it meanwhile: what may be changed is known as what left memory.
                    if entry is not None and (cache.left.entries.get(key) is entry if entry[1] is not None
                                              else state.index.refs.get(key) == ahead[key]):
                        yield key, entry[0]
                    elif (value := self.get(key)) is not ABSENT:
                        yield key, value
                        del value
                del found, passing, entry
                if wanted:
                    self.spiller.sweep(2 * SWEPT)
                    self.spiller.make_room_quietly()

    def _ahead(self, keys: list[K]) -> dict[K, Ref]:
        """Those of ``keys`` that lie in packs, and are not in memory, if there is no room for them there.  If there is,
        they are brought: each by itself takes twice as long, and in a store a round trip."""
        state, cache, remote = self.state, self.state.cache, self.state.storage.remote
        with state.lock:
            state.mend()
            refs = {key: ref for key in keys if (type(ref := state.index.refs.get(key)) is int or (remote and ref))
                    and key not in cache.values and key not in cache.left.entries}
            least = sum([record_size(ref) if type(ref) is int else 1 << 16 for ref in refs.values()])
            # In memory they take more than on disk.  Where not COUNTED nobody could tell when the loop is through.
            if COUNTED and cache.usage + 4 * least > state.available:
                return refs
        if refs and (remote or self.on_miss is nothing):
            self._bring(list(refs), [])
        return {}

    def _pass(self, keys: list[K], found: list[Loaded | Exception], ahead: dict[K, Ref]) -> dict[K, Any]:
        """Of values that were read ahead those that are still their keys', and that nobody else has.

        With each stands what tells whether it changed, `None` if it never does; others get the same object from now on.
        """
        state, cache = self.state, self.state.cache
        passing: dict[K, Any] = {}
        with state.lock, state.section:
            refs, values, left, flights = state.index.refs, cache.values, cache.left.entries, state.flights
            for key, loaded in zip(keys, found):
                if type(loaded) is Loaded and key in refs and refs[key] == ahead[key] and not (
                        key in values or key in left or key in flights):
                    value, length, version, stamp = loaded
                    if can_change(value):
                        cache.left.keep(key, value, (stamp, version))
                        passing[key] = left[key]
                    else:
                        passing[key] = value, None
                    state.counts.bytes_read += length
            state.counts.misses += len(passing)
        return passing


def _portions(keys: list[K], ahead: dict[K, Ref]) -> Iterable[list[K]]:
    """``keys`` as they are handed out together, where some of them lie ``ahead``."""
    return batches(keys, PASSED, lambda key: _weight(ahead.get(key, 0))) if ahead else [keys]


def _weight(ref: Ref) -> int:
    """How much of ``PASSED`` a value counts: the bytes of a record, so that 64 go together at most; else all of it."""
    return max(record_size(ref) if type(ref) is int else PASSED, PASSED // SWEPT)
