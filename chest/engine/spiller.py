"""Make room, and save: what is not on disk as it is now is written, and what is proven saved leaves memory.

How it goes:

1.  Under the lock: the policy (`_choose`), or a commit, names keys; they are taken out of ``given`` (`_withdraw`), so
    that who asks for one from now on is noticed; those that a thread was given last stay.
2.  Without it: what may have been changed in place is compared (`_divide`); what differs, or no file holds, is written
    (`write`).
3.  Under the lock (`_settle`): what a write or a comparison returned as saved leaves, unless its key was set, deleted
    or given to somebody meanwhile, or is to stay.  Everything else stays as it was.
"""
from __future__ import annotations

import _thread
import errno
import sys
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import compress
from operator import itemgetter
from typing import Any, Generic, Optional, TypeVar

from chest.engine.state import NOBODY, Flight, State, nothing
from chest.errors import explain_dump, explain_os, of_the_process, raise_of_a_signal, raised_by_signal, refused
from chest.log import log
from chest.memory.cache import UNKNOWN, Saved
from chest.memory.changes import counts_below, owned, references
from chest.memory.left import MORE
from chest.memory.sizeof import nbytes
from chest.serialize.compare import can_change
from chest.storage.base import Ref, Written

__all__ = ["Errors", "Spiller"]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T", bound="tuple[Any, ...]")

SMALL = 4096  # bytes: values that take less leave memory many at a time where they share packs
MANY = 1000  # keys: larger chests pack their small values where min_file_size is not given
SWEPT = 64  # values that left memory, and that the program refers to, that are looked at together
ROUNDS = 3  # batches that are tried before memory stays over the budget until the next operation

# A key, its value, where its bytes lie, if anywhere, and what tells whether it changed since.
Item = tuple[Any, Any, Optional[Ref], Optional[Saved]]
Errors = list[tuple[Any, Exception]]
_first_of, _value_of, _pair_of = itemgetter(0), itemgetter(1), itemgetter(0, 1)


class Spiller(Generic[K]):
    """The way out of memory, for `make_room` as for a commit."""

    def __init__(self, state: State[K], min_file_size: int | None, on_overflow: Callable[[K], Any]):
        self.state = state
        self._min_file_size = min_file_size
        self.on_overflow = on_overflow
        self._due = 0  # how many values the next sweep looks at

    def threshold(self) -> int:
        """Values that serialise to fewer bytes than this go into packs."""
        if self._min_file_size is None:
            return SMALL if len(self.state.index.refs) > MANY and self.state.codec.local else 0
        return self._min_file_size

    def make_room(self) -> None:
        """Spill until memory is within the budget, or nothing more can leave; `OSError` if the disk refuses."""
        state, cache, growth = self.state, self.state.cache, self.state.growth
        before = cache.usage
        if cache.policy.now >= growth.due and growth.seen(cache.policy.now, before):
            state.size_anew()
            growth.explained(cache.usage - before)
        for _ in range(ROUNDS):
            if cache.usage <= state.available:
                return
            if self._due:
                self.sweep(self._due)
            flight = Flight()
            self.save(None, flight=flight)
            if not flight.keys:
                return

    def sweep(self, most: int) -> None:
        """Of up to ``most`` values that left memory let those go that the program does not refer to any more; one that
        was changed in place is in memory again, to be saved as any other."""
        state, cache = self.state, self.state.cache
        self._due = 0
        with state.lock, state.section:
            found = cache.left.unreferenced(most)
            for key, value, saved in found:
                if self._is_same(value, saved):
                    cache.left.forget(key)
                else:
                    cache.put(key, value, nbytes(value), saved, is_given=False)
        del found

    def notice(self) -> None:
        """What was changed in place counts as set from now on.  Called with the lock, before a fork.

        Else the child would save it: 1. x is changed; 2. a fork; 3. x is changed again; 4. the child commits its x;
        5. the parent takes that over.
        """
        state, cache, refs = self.state, self.state.cache, self.state.index.refs
        if state.torn or not (cache.watch or cache.left.entries) or not state.storage.exists():
            return  # where the directory is gone, nothing is as its bytes are
        with state.section:
            cache.take_hits()
        items: list[Item] = [(key, value, refs[key], saved) for key, value, saved in cache.suspects()
                             if key not in state.flights and key in refs]
        for key, value, *_ in self._divide(items, {}):
            with state.section:
                orphans = state.index.set(key)
                cache.put(key, value, nbytes(value), None)
                state.storage.remove(orphans)

    def make_room_quietly(self) -> None:
        """As `make_room` for a value that was loaded: it is the user's, also when no room can be made for it."""
        try:
            self.make_room()
        except OSError as error:
            raise_of_a_signal(error)
            log("warning", "over the budget: %s", error)

    def move_out(self, key: K) -> bool:
        """Let the value of ``key`` leave memory, written first if need be; `False` if there is no such key."""
        state = self.state
        with state.lock:
            state.mend()
            if not state.known(key):
                return False
            while state.waited(key, loads=False):  # a sync, say, that is to find it written when it commits
                pass
        for _, error in self.save([key]):
            raise explain_dump(error, key, state.storage.path) from error
        return True

    def _choose(self) -> list[K]:
        """The keys whose values leave, so that the rest fits into the budget; what threads were given last stays, and
        does not count if it alone is larger than the budget.  Nor does what this thread lets leave already."""
        state, cache = self.state, self.state.cache
        if cache.access.log:
            cache.take_hits()
        stay = cache.access.pinned()
        excess = cache.usage - state.available
        leaving: frozenset[K] = NOBODY
        for one in state.writing:
            if one.thread == _thread.get_ident():  # it is within ``on_overflow``, say
                leaving = leaving.union(one.keys)
        for key in stay | leaving:
            if key in cache.sizes and (cache.sizes[key] > state.available or key in leaving):
                excess -= cache.sizes[key]
        if excess <= 0:
            return []
        if state.flights:
            stay = stay.union(state.flights)
        if state.large:
            large = [key for key in state.large if key in cache.policy and key not in stay]
            state.large.intersection_update(stay)
            if large:  # these alone, as without them the others fit
                return large
        # Several small ones at a time, as each choice costs the same; of packed ones more, as they are written at once.
        share = 128 if excess >= SMALL else 8 if self.threshold() else 32
        least = state.available / share
        return cache.policy.choose(excess if excess > least else least, stay)

    def _withdraw(self, keys: Sequence[K], flight: Flight) -> list[Item]:
        """From now on whoever asks for one of ``keys`` is noticed.  Called with the lock."""
        state, cache, given = self.state, self.state.cache, self.state.cache.given
        for key in keys:
            if key in given:
                del given[key]
        state.take_off(flight, keys)
        if cache.access.log:  # thread B had a hit between the choice and the line above, and may change what it got
            cache.take_hits()
            flight.given |= cache.access.pinned()
        values, refs, saved = cache.values, state.index.refs, cache.saved
        items: list[Item] = [(key, values[key], refs[key] if key in refs else None, saved[key]) if key in saved
                             else (key, values[key], None, None) for key in keys if key in values]
        if cache.left.entries and keys[len(items) :]:
            away = cache.left.suspects([key for key in keys if key not in values])
            flight.away = [(key, value, refs[key], as_saved) for key, value, as_saved in away if key in refs]
            items += flight.away
        return items

    def save(self, keys: Sequence[K] | None, leaves: bool = True, flight: Flight | None = None) -> Errors:
        """Write those of these keys' values that are not on disk as they are now; `None`: of those that leave to make
        room.  With ``leaves`` they leave memory, but for what other threads were given last.  Returns what went wrong;
        `OSError` if the system refused one.
        """
        state, access, flight = self.state, self.state.cache.access, flight or Flight()
        written: list[tuple[Item, Written]] = []
        saved: dict[K, Saved] = {}
        alone: set[K] | None = None
        chooses = keys is None
        if leaves and self.on_overflow is not nothing:
            keys = self._announce(keys)
        try:
            with state.lock:
                if state.torn:
                    state.mend()
                torn, state.torn = state.torn, True
                if keys is None:
                    keys = self._choose()
                else:
                    state.cache.take_hits()
                    if leaves and not chooses:
                        access.release()
                    flight.given |= access.pinned()  # 1. B has a value in hand; 2. it is written; 3. B changes it
                items = self._withdraw(keys, flight)
                flight.counts = list(map(references, map(_value_of, items)))
                if not access.is_single:
                    flight.counts += counts_below(list(map(_value_of, items)))
                if not leaves:
                    # Now, and not behind the comparison: thread B may have one, change it then, and let go of it.
                    are_owned = owned(list(map(_value_of, items)), 2)
                    alone = set() if state.is_exposed else set(compress(map(_first_of, items), are_owned))
                state.torn = torn
            try:
                new = self._divide(items, saved)
                if new:
                    written = self.write(new)
            finally:
                self._settle(items, written, saved, flight, alone)
        except BaseException as error:
            state.check_landed(flight, error)
            raise
        errors = []
        for item, one in written:
            if one.error is not None:
                errors.append((item[0], one.error))
                if refused(one.error):
                    raise explain_dump(one.error, item[0], state.storage.path) from one.error
        return errors

    def _announce(self, keys: Sequence[K] | None) -> Sequence[K] | None:
        """Call ``on_overflow`` for what is to leave.  What it reads of that does not keep it; nor is it called for what
        its own use of the chest lets leave."""
        state, access, flight = self.state, self.state.cache.access, Flight()
        if flight.thread in [one.thread for one in list(state.writing)]:
            return keys

        def choose() -> Sequence[K]:
            state.mend()
            with state.section:
                state.cache.take_hits()
                return self._choose() if keys is None else keys

        with state.in_flight(flight, choose):
            last = access.last()
            for key in flight.keys:
                if key in state.cache.values:
                    self.on_overflow(key)
        with state.lock, state.section:
            state.cache.take_hits()
            access.release()
            for key in last:
                access.asked(key)
        return flight.keys

    def _settle(self, items: list[Item], written: list[tuple[Item, Written]], saved: dict[K, Saved],
                flight: Flight, alone: set[K] | None) -> None:
        """Step 3: of what is ``saved`` all leaves that may.  Where nothing was to leave, ``alone`` has the keys whose
        values nobody can change before they are handed out; else it is `None`."""
        state, cache = self.state, self.state.cache
        orphans: list[Ref] = []
        with state.lock, state.section:
            if cache.access.log:
                cache.take_hits()
            if written:
                orphans = self._record(written, saved, flight)
            flights = state.flights
            lengths: dict[K, int] = {}  # of what was written, and stays
            held = cache.held(saved) if alone is None else {}
            unheld = cache.left.unheld(flight.away) if flight.away else ()
            # 1. thread B has one in hand; 2. it is compared; 3. B changes it; 4. B lets go of it, before we ask who has
            # it: then the counts, which are taken behind that, are lower.
            counts = list(map(references, map(_value_of, items)))
            if not cache.access.is_single:
                counts += counts_below(list(map(_value_of, items)))
            if counts != flight.counts:
                flight.given |= {item[0] for item, was, now in zip(items * 2, flight.counts, counts)
                                 if now < was and can_change(item[1])}
            for item in items:
                key = item[0]
                if key in saved and not (key in flights and flights[key] is flight):
                    del saved[key]  # of a value that is the key's no more
                is_free = key in saved and key in cache.values and key not in flight.given
                if is_free and alone is None:
                    state.counts.spills += 1
                    continue
                if key in saved:  # it stays, and is known to be saved
                    lengths = lengths or {one[0][0]: one[1].nbytes for one in written}
                    cache.wrote(key, saved.pop(key), lengths.get(key))
                    if key in unheld and key not in flight.given:
                        cache.left.forget(key)
                if is_free and alone and key in alone:
                    cache.watch.pop(key, None)
                else:
                    cache.look_at(key)
            gone = cache.evict(saved, held)
            if cache.left.kept:
                self._due = 2 * len(items) + MORE if cache.left.is_due(2 * SWEPT) else 0
            if orphans:
                state.storage.remove(orphans)
            state.land(flight)
        if saved and "logging" in sys.modules:  # else nobody listens
            log("debug", "spilled %d of %s; wrote %d, %d bytes", len(saved), state.storage.path, len(written),
                sum([one.nbytes for _, one in written]))
        del gone

    def _divide(self, items: Iterable[Item], saved: dict[K, Saved]) -> list[Item]:
        """Those of ``items`` that have to be written.  The others are on disk as they are now: what tells that later is
        put into ``saved``."""
        watch, values = self.state.cache.watch, self.state.cache.values
        new: list[Item] = []
        for item in items:
            key, value, ref, before = item
            may_differ = key in watch or key not in values
            if ref is None or (may_differ and not self._is_same(value, before, ref)
                               and not self._is_replaced(key, value)):
                new.append(item)
            else:
                saved[key] = before or UNKNOWN
        return new

    def _is_same(self, value: Any, saved: Saved | None, ref: Ref | None = None) -> bool:
        """Is the value as its bytes are, by what is known of them, or by those at ``ref``?  No, if nobody can tell."""
        try:
            return bool(saved is not None and saved[0] is not None and self.state.codec.unchanged(value, saved[0])) or (
                ref is not None and self.state.storage.same(ref, value))
        except Exception as error:
            if of_the_process(error):
                raise
            if refused(error):  # of what is open already the system names no file
                storage = self.state.storage
                path = storage.path if ref is None else storage.file(ref)
                raise explain_os(error, "compare a value with its bytes", path, "; it stays in memory") from error
            return False  # it can no longer be dumped: the write says why

    def _is_replaced(self, key: K, value: Any) -> bool:
        """Did others set the key meanwhile?  Then the value need not be written: theirs is the key's."""
        self.state.refresh()
        return self.state.cache.find(key)[0] is not value

    def write(self, items: Sequence[T], tries: int = 8) -> list[tuple[T, Written]]:
        """Write ``items``, each of which begins with key and value, to new bytes; what goes wrong is noted with it."""
        storage = self.state.storage
        done = list(zip(items, storage.write(list(map(_pair_of, items)), self.threshold())))
        passing = []
        for item, one in done:
            if one.error is not None:
                if raised_by_signal(one.error):
                    storage.remove([each.ref for _, each in done if each.ref is not None])
                    raise one.error
                if tries and _is_passing(one.error):
                    passing.append(item)
        if passing:
            try:
                self.ensure_directory()
            except FileNotFoundError as error:  # it was renamed: the values' errors stay as they are
                raise_of_a_signal(error)
                return done
            again = iter(self.write(passing, tries - 1))
            done = [next(again) if _is_passing(one.error) else (item, one) for item, one in done]
        return done

    def ensure_directory(self) -> None:
        """Make the directory if it is not there: an error if it was, and was renamed or removed."""
        state, storage = self.state, self.state.storage
        if not storage.exists():
            state.refresh()  # it may have been dropped
            if any(ref is not None for ref in list(state.index.refs.values())):
                raise FileNotFoundError(errno.ENOENT, "the chest's directory is gone: it was renamed or removed while "
                                        "the chest was open, and what it held is not in memory; put it back, or open "
                                        "the chest anew", storage.path)
            storage.make()

    def _record(self, written: Iterable[tuple[Item, Written]], saved: dict[K, Saved], flight: Flight) -> list[Ref]:
        """Note where values lie now, with the lock.  Returns refs that nothing names, of keys set meanwhile."""
        state, cache = self.state, self.state.cache
        orphans: list[Ref] = []
        for item, one in written:
            key = item[0]
            ours = key in state.flights and state.flights[key] is flight
            if one.ref is None:
                if ours and not refused(one.error) and key in cache.values:
                    cache.stick(key)  # it cannot be dumped
                continue
            state.counts.bytes_written += one.nbytes
            if ours:
                orphans += state.index.set(key, one.ref, one.version)
                saved[key] = one.stamp, one.version
            else:
                orphans.append(one.ref)
        return orphans


def _is_passing(error: Exception | None) -> bool:
    """Does a dict, set or deque say so that another thread changed it while it was pickled?  Or is there no directory,
    as another handle dropped the chest?"""
    return isinstance(error, FileNotFoundError) or (
        isinstance(error, RuntimeError) and "during iteration" in str(error))
