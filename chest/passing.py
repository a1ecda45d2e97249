"""The way past: once memory is full, small values that come or go many at a time do not push out one another.

What is iterated over is read a crowd at a time and handed out without entering memory; what comes in a crowd is written
at once.  A value in the hands of one who iterates is lent: whoever asks for its key meanwhile gets the same object, and
a change made to it is noticed when it is given back.
"""
from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Sequence
from itertools import compress, islice
from operator import length_hint
from typing import Any, Generic, TypeVar, cast

from chest.arriving import PER_BYTE, Arriving
from chest.changeable import which_can_change
from chest.errors import changed_size, file_is_gone
from chest.memory import ABSENT
from chest.names import Name
from chest.sizes import nbytes
from chest.state import nothing

__all__ = ["Passing"]

K = TypeVar("K", bound=Hashable)

STEP = 1024  # values that are looked up together as one iterates
SAMPLES = 16  # values that as many as come in are judged by
FULL = 7 / 8  # of the budget: what leaves in a crowd makes an eighth of it free


class Loan(Generic[K]):
    """Keys whose values are handed out one after another, with their names and the bytes of their rows if these were
    read at once.  Then ``values`` are what was made of them, and ``lent`` those that are in the user's hands."""

    def __init__(self, keys: list[K], names: Sequence[Name | None] = (), rows: Sequence[Any] = ()):
        self.keys = keys
        self.names = list(names)
        self.rows = list(rows)
        self.values: list[Any] = []
        self.lent: dict[K, Any] = {}


class Passing(Arriving[K]):
    """Values on their way from disk to the user, or from the user to disk, that do not stay in memory."""

    def _full(self) -> bool:
        return self.over(FULL * self.available)

    # Out to the user.

    def stream(self, keys: list[K], turns: int, owner: object, pairs: bool) -> Iterator[Any]:
        """The values, or ``pairs`` of key and value; a key that another process deletes meanwhile is left out.

        `RuntimeError` as soon as keys came or went by ``index.turns``; ``owner`` is kept for as long as one iterates.
        """
        index = self.index
        for loan in self._loans(keys):
            steps = iter(loan.keys)
            others = 0
            try:
                self._lend(loan)
                lent = loan.lent.get
                for key in steps:
                    value = lent(key, ABSENT)
                    if value is ABSENT:
                        others += 1
                        value = self._found(key)
                        if value is ABSENT:
                            continue
                    yield (key, value) if pairs else value
                    if index.turns != turns:
                        raise changed_size()
            finally:
                handed_out = len(loan.keys) - length_hint(steps)
                self._take_back(loan, handed_out)
                with self.lock:
                    self.counts.misses += handed_out - others

    def _loans(self, keys: list[K]) -> Iterator[Loan[K]]:
        """Parts of ``keys``: if memory is full with the rows read at once of what is to pass it, else with nothing."""
        if self._on_miss is not nothing or not self.store.grain:
            yield Loan(keys)
            return
        step = min(STEP, self.store.ahead)
        fills = len(keys) <= step or self._fills(keys)
        for start in range(0, len(keys), step):
            crowd = keys[start : start + step]
            if fills and not self._full():
                taken = self.memory.among(crowd)
                self._bring([key for key in crowd if key not in taken and type(self.index.names.get(key)) is int])
                if not self._full():
                    yield Loan(crowd)
                    continue
            names, data, encoded = self._read_rows(crowd)
            for few in self._by_few(data, encoded):
                yield Loan(crowd[few], names[few], data[few])

    def _fills(self, keys: list[K]) -> bool:
        """Would an eighth of these values, or more, find room in memory, judged by a few of them?  If not, none enters:
        it would be a few hits for the next one who iterates, and no room for what is read again sooner."""
        names = list(map(self.index.names.get, islice(keys, 0, None, 1 + len(keys) // SAMPLES)))
        rows = [data for data in self.store.peek(names, self.index.unchanged()) if data is not None]
        return PER_BYTE * sum(map(len, rows)) * len(keys) <= 8 * self.available * len(rows)

    def _found(self, key: K) -> Any:
        """The value of one key, `ABSENT` if there is no such key any more."""
        try:
            with self.lock:
                if key in self.memory.values:
                    self.memory.watch.handed_out([key])
                    return self.memory.values[key]
            return self.get(key)
        except KeyError as error:
            if file_is_gone(error, key):
                raise
            return ABSENT

    def _lend(self, loan: Loan[K]) -> None:
        if loan.rows:
            loan.values = self._decoded(loan.names, loan.rows)
            with self.lock:
                loan.lent = self._still(loan.keys, loan.names, loan.values)
                self.memory.lend(loan.lent)

    def _take_back(self, loan: Loan[K], handed_out: int) -> None:
        """The user is through with values: those that he changed enter memory, those that he holds can be found."""
        suspects = which_can_change(loan.values[:handed_out])
        if None in loan.names:
            suspects = [suspect and name is not None for suspect, name in zip(suspects, loan.names)]
        columns = (list(compress(column, suspects)) for column in (loan.keys, loan.names, loan.values, loan.rows))
        keys, names, values, rows = cast(Any, columns)
        alike: Sequence[bool] = [False] * len(keys)  # for all that is known if Ctrl-C comes now
        try:
            alike = self.store.alike(values, rows) if keys and self.memory.writeback else [True] * len(keys)
        finally:
            with self.lock:
                self.memory.take_back(loan.lent)
                named = list(map(self.index.names.get, keys))
                weak = any(kind.__weakrefoffset__ for kind in set(map(type, values)))
                if weak or not all(alike) or names != named:
                    same = [one and name == now for one, name, now in zip(alike, names, named)]
                    self._keep([one for one in zip(keys, same, values) if one[0] in loan.lent])
        self._make_room_quietly(ABSENT)

    def _keep(self, items: list[tuple[K, bool, Any]]) -> None:
        """Those changed enter memory, also where a commit wrote another state meanwhile; the others can be found."""
        for key, same, value in items:
            if not same:
                self._disown(key)
                self.memory.put(key, value, nbytes(value), True, self.memory.marks.get(key))
            elif type(value).__weakrefoffset__:
                self.memory.hold(key, value)

    # In from the user.

    def set_many(self, pairs: dict[K, Any]) -> Iterator[tuple[K, Any]]:
        """Set many pairs by writing them at once, if memory has no room for them.  Yields those that are to be set
        singly, each at its turn, as the order of the pairs is that of the keys."""
        if len(pairs) < 2 or not self.store.grain or self._on_overflow is not nothing or self._fit(pairs.values()):
            yield from pairs.items()
            return
        keys, values = list(pairs), list(pairs.values())
        names, nbytes = self.store.write_rows(values)
        with self.lock:
            self.counts.bytes_written += nbytes
        reached = 0
        try:
            while reached < len(keys):
                start = reached
                if names[start] is None:
                    reached += 1
                    yield keys[start], values[start]
                    continue
                reached = next((n for n in range(start, len(keys)) if names[n] is None), len(keys))
                self._take_in(keys[start:reached], values[start:reached], names[start:reached])
        finally:
            self.store.remove(filter(None, names[reached:]))  # nobody will ever know these

    def _fit(self, values: Collection[Any]) -> bool:
        """Is there room for new values in memory, judged by a few of them?"""
        some = list(islice(values, 0, None, 1 + len(values) // SAMPLES))
        return not self.over(FULL * self.available - sum(map(nbytes, some)) * len(values) / len(some))

    def _take_in(self, keys: list[K], values: list[Any], names: list[Name]) -> None:
        """These values are in new rows now, and not in memory."""
        orphans: list[Name] = []
        with self.lock:
            self.counts.spills += len(names)
            if not self.index.add(keys, names):
                for key, name in zip(keys, names):
                    orphan = self.index.set(key, name)
                    self._disown(key)
                    self.memory.remove(key)
                    if orphan is not None:
                        orphans.append(orphan)
            for key, value in zip(keys, values):
                if type(value).__weakrefoffset__:
                    self.memory.hold(key, value)
        self.store.remove(orphans)
