"""The order in which values leave memory: what is worth least goes first.

To keep a value in memory costs room for as long as it stays; it earns what its next use would have cost.  `Order`
watches the uses of all keys, spilled ones too, and learns how they come back (`chest.ages`).  A value is worth the best
rate of *uses per tick* that holding it from now on can earn, times the cost of bringing it back per byte that it
occupies; one that no file holds yet is worth more, since to let it go costs a write.  There is nothing to set.  As long
as little has come back, the least recently used value leaves first, and so, of equally large new values, the one that
came in first.

A hit is one append to a bounded log, read when something must leave.  The values in memory are ranked now and then; the
least of them leave one after the other, together with those that came later and are worth less still, which wait in a
`heapdict`.  Nothing takes longer for more spilled keys; each of them takes one small integer in a dictionary.

Cost by size is an idea of P. Cao and S. Irani, "Cost-aware WWW proxy caching algorithms" (1997).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, KeysView, Mapping
from typing import Callable, Generic, TypeVar, cast

from heapdict import heapdict

from chest.ages import DIRTY, EDGES, FEW, READ, REPLACED, STATE, TICK, Ages

__all__ = ["Order"]

K = TypeVar("K")

# Bytes that move from or to a disk in the time that it takes to open a file.
OPENING = 100_000

# New keys that are remembered until some of them leave; of more, the last ones.
ARRIVED = 1 << 16

# Hits that are remembered until something must leave; of more, the last count.
LOGGED = 4096


def _price(nbytes: int) -> float:
    """What the return of a value of so many bytes costs, for each of them."""
    return 1 + OPENING / max(nbytes, 1)


class _Nobody:
    """Stands for no key where None might be one."""


NOBODY = _Nobody()


class Order(Generic[K]):
    """Which of the values in memory leaves next.

    It does no I/O, holds no value and takes no lock: the caller makes its calls one at a time, except for `used`, which
    any thread may call at any time.  Sizes are in bytes.  Keys need to be hashable, no more.

    >>> order: Order[str] = Order()
    >>> for key in "abc":
    ...     order.put(key, 1000, on_disk=False)
    >>> order.used("a")
    >>> order.pop(keep="c")
    'b'
    >>> len(order), "b" in order, "a" in order
    (2, False, True)

    Choosing takes about 10 microseconds, at 10,000 values in memory too; a key in memory takes about 200 bytes here,
    and a spilled one about 100, the key itself not counted.
    """

    used: Callable[[K], None]
    """Note a hit in memory: the `append` of a bounded log, no lock, no look-up; of very many, the last count."""

    def __init__(self, noticed: Callable[[list[K], bool], object] = lambda keys, lost: None,
                 arrived: int = ARRIVED) -> None:
        self._noticed = noticed
        self._arrived: deque[tuple[K, int]] = deque(maxlen=arrived)  # new keys and their marks, since company left
        self._log: deque[K] = deque(maxlen=LOGGED)
        self.used = self._log.append
        self.clear()

    def clear(self) -> None:
        """Forget everything, what was learnt too."""
        self._log.clear()
        self._ages = Ages()
        self._marks: dict[K, int] = {}                          # of every key known
        self._prices: dict[K, float] = {}                       # of keys in memory: what their return costs per byte
        self._ranked: list[tuple[float, int, K]] = []           # worth, mark, key: the next to leave at the end
        self._limit = 0.0                                       # the most worth among those ranked to leave
        self._later = heapdict()                                # keys worth less than that which came since
        self._newest: K | _Nobody = NOBODY
        self._arrived.clear()

    def __len__(self) -> int:
        return len(self._prices)

    def __contains__(self, key: object) -> bool:
        return key in self._prices

    def put(self, key: K, nbytes: int, on_disk: bool) -> None:
        """The value of `key` came into memory: read back (`on_disk`: letting it go costs no write) or set anew.

        It counts as a use.  To be called again when a value in memory is replaced.
        """
        self.read_log()
        mark, dirty = self._marks.get(key), not on_disk
        if mark is None:
            mark = self._marks[key] = self._ages.born(dirty)
            if dirty:
                self._arrived.append((key, mark))
        else:
            self._marks[key] = self._ages.used(mark, READ if on_disk else REPLACED, dirty)
        self._prices[key] = _price(nbytes)
        self._consider_newest()
        self._newest = key

    def put_many(self, sizes: Mapping[K, int]) -> None:
        """As `put` for values that were read back together.  Before the next one leaves all are ranked anew."""
        marks = self._marks
        new = [key for key in sizes if key not in marks]
        if len(new) < len(sizes):
            marks.update({key: self._ages.used(marks[key], READ, 0) for key in sizes if key in marks})
        marks.update(zip(new, self._ages.born_together(len(new))))
        self._prices.update({key: _price(nbytes) for key, nbytes in sizes.items()})
        self._ranked = []

    def resize(self, key: K, nbytes: int) -> None:
        """The value takes up another number of bytes than was noted.  This is no use; unknown keys are passed over."""
        if key in self._prices:
            self._prices[key] = _price(nbytes)

    def saved(self, key: K) -> None:
        """A file holds the value now, as after a commit: to let it go costs no write any more.  This is no use."""
        if key in self._prices:
            self._marks[key] &= ~DIRTY

    def restore(self, key: K, nbytes: int) -> None:
        """A key that was popped stays in memory after all.  This is no use."""
        if key not in self._marks:
            self._marks[key] = self._ages.born(DIRTY)
        self._prices[key] = _price(nbytes)

    def leave(self, key: K) -> None:
        """The value left memory by another way than `pop`.  Its past is remembered; unknown keys are passed over."""
        self._prices.pop(key, None)

    def keep_only(self, keys: KeysView[K]) -> None:
        """No other values are in memory."""
        for key in self._prices.keys() - keys:
            del self._prices[key]

    def forget(self, key: K) -> None:
        """The key was deleted: nothing is known of it any more.  Unknown keys are passed over."""
        self._prices.pop(key, None)
        mark = self._marks.pop(key, None)
        if mark is not None:
            self._ages.ended(mark, REPLACED)

    def pop(self, keep: object = NOBODY) -> K:
        """Take the key that is worth least out of the order, and return it; its past is remembered.

        `keep` is never chosen.  Raises KeyError when there is no other.
        """
        self.read_log()
        spared = self._prices.pop(cast(K, keep), None)
        try:
            return self._choose()
        finally:
            if spared is not None:
                self._prices[cast(K, keep)] = spared

    def company(self, keys: Iterable[K], nbytes: int) -> list[K]:
        """`keys`, which were popped together, and those in memory that may as well be written with them: of at most so
        many bytes, older than the youngest of these, in no file, and not used since they came.  All by age."""
        marks, arrived, price = self._marks, self._arrived, _price(nbytes)
        found = list(keys)
        youngest = max(map(marks.__getitem__, found))
        while arrived and arrived[0][1] < youngest:
            key, mark = arrived.popleft()
            if marks.get(key) == mark and self._prices.get(key, 0) >= price:
                found.append(key)
        return sorted(found, key=marks.__getitem__)

    def _choose(self) -> K:
        if self._newest in self._prices:
            self._consider_newest()
        if self._ages.due(len(self._prices)):
            self._ages.learn(len(self._marks))
            self._rank()
        while True:
            key, mark = self._next()
            if key in self._prices and self._marks[key] == mark:
                del self._prices[key]
                return key

    def _next(self) -> tuple[K, int]:
        """The least of those ranked and those that came later; it may have been used, or have left, since."""
        ranked = self._ranked or self._rank()
        worth, mark, key = ranked[-1]
        if self._later and self._later.peekitem()[1][0] < worth:
            key, (worth, mark) = self._later.popitem()
        else:
            ranked.pop()
        return key, mark

    def _rank(self) -> list[tuple[float, int, K]]:
        """Choose the next to leave: a quarter of many values, or fewer of few, which as a rule are large."""
        if not self._prices:
            raise KeyError("nothing is left that could leave memory")
        now, rates = self._ages.now, self._ages.rates
        prices = self._prices.copy()  # a finaliser of the user's that comes in between may read others
        marks = list(map(self._marks.__getitem__, prices))
        worths = [
            rates[mark & STATE][bisect_right(EDGES, now - (mark >> TICK))] * price
            for mark, price in zip(marks, prices.values())
        ]
        count = 1 + len(worths) // (32 if len(worths) < FEW else 4)
        self._limit = limit = sorted(worths)[count - 1]
        least = sorted([entry for entry in zip(worths, marks, prices) if entry[0] <= limit])
        self._ranked = least[count - 1 :: -1]
        self._later.clear()
        return self._ranked

    def _consider_newest(self) -> None:
        """Let the value that came last leave before those ranked if it is worth less, as when all are read in turn."""
        key, self._newest = cast(K, self._newest), NOBODY
        price = self._prices.get(key)
        if price is None or not self._ranked:
            return
        mark = self._marks[key]
        age = self._ages.now - (mark >> TICK)
        worth = self._ages.rates[mark & STATE][bisect_right(EDGES, age)] * price
        if worth < self._limit:
            self._later[key] = worth, mark

    def read_log(self) -> None:
        """Count the hits, and give ``noticed`` their keys, and whether some were lost.

        Threads may add to the log meanwhile: as many as there are now are read, and no more.  A log that loses hits
        stays full until we take one, so a look just behind that tells.
        """
        keys, lost = [], False
        for _ in range(len(self._log)):
            keys.append(self._log.popleft())
            lost = lost or len(self._log) >= LOGGED - 1
        if keys:
            self._noticed(keys, lost)
        for key in keys:
            mark = self._marks.get(key)
            if mark is not None:
                self._marks[key] = self._ages.used(mark, READ, mark & DIRTY)

    def _check(self) -> None:
        """Verify everything that must hold, and print the state if something does not; for tests."""
        try:
            assert self._prices.keys() <= self._marks.keys(), "a key in memory without a mark"
            assert all(price > 1 for price in self._prices.values()), "a price without a size"
            assert self._ranked == sorted(self._ranked, key=lambda entry: entry[:2], reverse=True), "not ranked"
            worths = [entry[0] for entry in self._later.heap]
            assert all(worths[(i - 1) // 2] <= worths[i] for i in range(1, len(worths))), "not a heap"
            self._ages.check(self._marks.values())
        except AssertionError:
            print({name: value for name, value in vars(self).items() if name != "_ages"})
            print(vars(self._ages))
            raise
