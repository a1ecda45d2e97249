"""The order in which values leave memory: what is worth least goes first.

To keep a value in memory costs room for as long as it stays; it earns what its next use would have cost.  `Order` watches
the uses of all keys, spilled ones too, and learns how they come back: keys that were used about as often, and that came
back after about as long the last time, form a group; for each group and each time since the last use ("age") it counts how
many values were used at that age, and how many were still waiting.  From that follows the best rate of *uses per tick* that
holding a value from now on can earn, the maximum being taken over how long one would hold it.  A value is worth that rate
times the cost of bringing it back per byte that it occupies.  There is nothing to set.  As long as nothing has come back, the
least recently used value leaves first, and so, of equally large new values, the first that came in.

A hit is one append to a bounded log, read when something must leave.  The values in memory are ranked now and then; the
least of them then leave one after the other, together with those that came later and are worth less still, which wait in
a `heapdict`.  Nothing here grows with the number of spilled keys but two small dictionary entries' worth of memory for each.

The ideas come from the index of J. C. Gittins, "Bandit processes and dynamic allocation indices" (1979), from N. Beckmann,
H. Chen and A. Cidon, "LHD: Improving cache hit rate by maximizing hit density" (2018), for ages and groups, and from
P. Cao and S. Irani, "Cost-aware WWW proxy caching algorithms" (1997), for cost by size.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from typing import Callable, Generic, TypeVar, cast

from heapdict import heapdict

__all__ = ["Order"]

K = TypeVar("K")

# Bytes that move from or to a disk in the time that it takes to open a file.
OPENING = 100_000

# A mark holds in one int what is remembered of a key: the tick of its last use, then the number of its uses (8 bits), the
# order of magnitude of the last gap between two uses (6 bits), and whether letting it go costs a write (1 bit).
TICK, USES, GAP, DIRTY = 15, 7, 1, 1
STATE = (1 << TICK) - 1
MOST_USES = 255

# What ended the wait for a use: the old value was read, or it was replaced or deleted unread.
READ, REPLACED = 0, 1

# Ages are counted in half octaves: 1, 2, 3, 4-5, 6-7, 8-11, 12-15 ...  A list of where the next one begins, for bisection.
EDGES = [edge << shift for shift in range(46) for edge in (2, 3)]
WIDTHS = [1] + [after - before for before, after in zip(EDGES, EDGES[1:])]

# The chances of a read and of a replacement at age 1 before anything is known, and how many observations that is worth.
FIRST_GUESS = (0.25, 0.0)
STRENGTH = 5.0

# Until so many uses of known keys were seen, nothing is taken for learnt.
ENOUGH = 32

# A dirty value may save its write as well: surely if it is replaced, and perhaps, later, if it is read before.
GAINS = ((1.0, 0.0), (1.5, 1.0))

Chances = list[tuple[float, float]]


class _Nobody:
    """Stands for no key where None might be one."""


NOBODY = _Nobody()


def chances(ended: list[float], waiting: list[float], parent: Chances | None) -> Chances:
    """For each age: how likely is it that a value that reached this age is read, or replaced, before the next?

    `ended` holds pairs of how many waits ended there, `waiting` how many have come as far and go on.  Where little was
    seen, the chances of the wider group count, `parent`; where there is none, the chances at the age before.
    """
    reached = sum(ended) + sum(waiting)
    guess = FIRST_GUESS
    found = []
    for bucket, still in enumerate(waiting):
        if parent is not None:
            guess = parent[bucket]
        reads, replacements = ended[2 * bucket], ended[2 * bucket + 1]
        seen = reached - still / 2 + STRENGTH
        guess = (reads + STRENGTH * guess[READ]) / seen, (replacements + STRENGTH * guess[REPLACED]) / seen
        found.append(guess)
        reached -= reads + replacements + still
    return found


def best_rates(group: Chances, gains: tuple[float, float]) -> list[float]:
    """What holding a value from each age on earns in a tick, for the best choice of how long to hold it.

    Ages are joined from the oldest down as long as holding on through the next stretch earns more than this one alone.
    """
    stretches: list[tuple[float, float, float]] = []        # gain, ticks, chance that it goes on
    rates = []
    for bucket in range(len(group) - 1, -1, -1):
        read, replaced = group[bucket]
        gain = read * gains[READ] + replaced * gains[REPLACED]
        on = max(0.0, 1 - read - replaced)
        ticks = WIDTHS[bucket] * (1 + on) / 2
        while stretches and stretches[-1][0] * ticks > gain * stretches[-1][1]:
            more, longer, further = stretches.pop()
            gain, ticks, on = gain + on * more, ticks + on * longer, on * further
        stretches.append((gain, ticks, on))
        rates.append(gain / ticks)
    rates.reverse()
    return rates + rates[-1:] * (len(WIDTHS) - len(rates))


class Group:
    """What was seen of keys with about the same number of uses and the same last gap."""

    __slots__ = ("ended", "uses", "waiting")

    def __init__(self, uses: int) -> None:
        self.uses = uses
        self.ended = array("d", bytes(16 * len(WIDTHS)))    # for each age: reads, replacements
        self.waiting: dict[int, int] = {}                   # for each cell of time: last used then, and not since


class Groups(dict[int, Group]):
    """The group of each pair of uses and gap as they stand in a mark; made when first asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.all: dict[tuple[int, int], Group] = {}

    def __missing__(self, pair: int) -> Group:
        uses, gap = ((pair >> USES - GAP) - 1).bit_length(), pair & (1 << USES - GAP) - 1
        group = self[pair] = self.all.setdefault((uses, gap), Group(uses))
        return group


class Rates(dict[int, "list[float]"]):
    """For each state of a mark, the rate at each age; worked out when first asked for, after each learning."""

    def __init__(self, ages: Ages) -> None:
        super().__init__()
        self._ages = ages
        self._chances: dict[int, Chances] = {}

    def __missing__(self, state: int) -> list[float]:
        group = self._ages.groups[state >> GAP]
        key = id(group)
        if key not in self._chances:
            self._chances[key] = self._ages.chances_of(group)
        gains = GAINS[state & DIRTY if self._ages.learnt else 0]
        rates = self[state] = best_rates(self._chances[key], gains)
        return rates


class Ages:
    """Learns from the times between uses what it is worth to hold a value."""

    def __init__(self) -> None:
        self.now = 0
        self.groups = Groups()
        self.rates = Rates(self)
        self._weight = 1.0          # of what is seen now; it grows instead of all the counts fading
        self._cells = [0]           # ticks at which cells of time begin: narrow ones lately, wide ones long ago
        self._learnt = self._next_learning = 0
        self._returns = 0
        self._top = 0
        self._everything: Chances = [FIRST_GUESS]
        self._by_uses: dict[int, Chances] = {}

    def born(self, dirty: int) -> int:
        """The mark of a key that is used for the first time."""
        self._tick()
        return self._wait(1 << USES | dirty)

    def used(self, mark: int, how: int, dirty: int) -> int:
        """The new mark of a key that is used again."""
        self._tick()
        self._returns += 1
        self.ended(mark, how)
        uses = min((mark >> USES & MOST_USES) + 1, MOST_USES)
        gap = (self.now - (mark >> TICK)).bit_length()
        return self._wait(uses << USES | gap << GAP | dirty)

    def ended(self, mark: int, how: int) -> None:
        """A wait is over."""
        tick = mark >> TICK
        group = self.groups[(mark & STATE) >> GAP]
        group.ended[2 * bisect_right(EDGES, self.now - tick) + how] += self._weight
        group.waiting[self.cell(tick)] -= 1

    def cell(self, tick: int) -> int:
        """The beginning of the cell of time that holds a tick."""
        return self._cells[bisect_right(self._cells, tick) - 1]

    def _tick(self) -> None:
        self.now += 1
        if self.now & 63 == 0:
            self._new_cell()

    def _wait(self, state: int) -> int:
        waiting, cell = self.groups[state >> GAP].waiting, self._cells[-1]
        waiting[cell] = waiting.get(cell, 0) + 1
        return self.now << TICK | state

    def _new_cell(self) -> None:
        """Begin a new cell; cells that together are short beside their age become one."""
        self._cells.append(self.now)
        kept, joined = [0], []
        for start, end in zip(self._cells[1:], self._cells[2:]):
            if (end - kept[-1]) * 4 <= self.now - end:
                joined.append((start, kept[-1]))
            else:
                kept.append(start)
        self._cells = [*kept, self.now]
        for group in self.groups.all.values():
            for start, into in joined:
                if start in group.waiting:
                    group.waiting[into] = group.waiting.get(into, 0) + group.waiting.pop(start)

    @property
    def learnt(self) -> bool:
        """Has enough come back to go by?"""
        return self._returns >= ENOUGH

    def due(self, held: int) -> bool:
        """Is it time to learn anew?  True when enough has happened for so many values in memory."""
        if self.now < self._next_learning or not self.learnt:
            return False
        self._next_learning = self.now + max(16, min(max(128, held // 5), self.now // 4))
        return True

    def learn(self, known: int) -> None:
        """Work the rates out anew; what was seen counts half after four uses of each known key."""
        self._fade(2.0 ** ((self.now - self._learnt) / max(1000, 4 * known)))
        self._learnt = self.now
        self._top = bisect_right(EDGES, self.now) + 1
        seen: dict[int, tuple[list[float], list[float]]] = {}
        for group in self.groups.all.values():
            ended, waiting = self._counts(group)
            if group.uses in seen:
                ended, waiting = (list(map(float.__add__, *both)) for both in zip(seen[group.uses], (ended, waiting)))
            seen[group.uses] = ended, waiting
        pool = [[sum(column) for column in zip(*lists)] for lists in zip(*seen.values())]
        self._everything = chances(pool[0], pool[1], None)
        self._by_uses = {uses: chances(*counts, self._everything) for uses, counts in seen.items()}
        self.rates = Rates(self)

    def chances_of(self, group: Group) -> Chances:
        """The chances of one group, seen within those of all groups with as many uses."""
        if group.uses not in self._by_uses:
            return self._everything
        return chances(*self._counts(group), self._by_uses[group.uses])

    def _counts(self, group: Group) -> tuple[list[float], list[float]]:
        """How many waits of a group ended, and how many go on, for each age up to now."""
        waiting = [0.0] * self._top
        ends = dict(zip(self._cells, [*self._cells[1:], self.now]))
        for start, count in group.waiting.items():
            age = self.now - (start + ends[start]) // 2
            waiting[min(bisect_right(EDGES, age), self._top - 1)] += count
        return [count / self._weight for count in group.ended[: 2 * self._top]], waiting

    def check(self, marks: Iterable[int]) -> None:
        """Verify that the waits counted are those of the marks."""
        waiting: dict[int, Counter[int]] = defaultdict(Counter)
        for mark in marks:
            assert mark >> TICK <= self.now, "used in the future"
            waiting[id(self.groups[(mark & STATE) >> GAP])][self.cell(mark >> TICK)] += 1
        for group in self.groups.all.values():
            counted = {cell: count for cell, count in group.waiting.items() if count}
            assert counted == waiting[id(group)], "waits counted wrongly"
        assert self._cells == sorted(set(self._cells)), "cells of time out of order"

    def _fade(self, by: float) -> None:
        self._weight *= by
        if self._weight > 1e30:
            for group in self.groups.all.values():
                group.ended = array("d", [count / self._weight for count in group.ended])
            self._weight = 1.0


class Order(Generic[K]):
    """Which of the values in memory leaves next.

    It does no I/O, holds no value and takes no lock: the caller makes its calls one at a time, except for `used`, which any
    thread may call at any time.  Sizes are in bytes.  Keys need to be hashable, no more.

    >>> order: Order[str] = Order()
    >>> for key in "abc":
    ...     order.put(key, 1000, on_disk=False)
    >>> order.used("a")
    >>> order.pop(keep="c")
    'b'
    >>> len(order), "b" in order, "a" in order
    (2, False, True)

    Choosing takes about 10 microseconds, at 10,000 values in memory too; a key in memory takes about 200 bytes here, and a
    spilled one about 100, the key itself not counted.
    """

    used: Callable[[K], None]
    """Note a hit in memory.  This is the `append` of a bounded log: no lock, no look-up; of very many hits in a row the last count."""

    def __init__(self) -> None:
        self._log: deque[K] = deque(maxlen=4096)
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

    def __len__(self) -> int:
        return len(self._prices)

    def __contains__(self, key: object) -> bool:
        return key in self._prices

    def put(self, key: K, nbytes: int, on_disk: bool) -> None:
        """The value of `key` came into memory: read back (`on_disk`: letting it go costs no write) or set anew.

        It counts as a use.  To be called again when a value in memory is replaced.
        """
        self._read_log()
        mark, dirty = self._marks.get(key), not on_disk
        how = READ if on_disk else REPLACED
        self._marks[key] = self._ages.born(dirty) if mark is None else self._ages.used(mark, how, dirty)
        self._prices[key] = 1 + OPENING / max(nbytes, 1)
        self._consider_newest()
        self._newest = key

    def resize(self, key: K, nbytes: int) -> None:
        """The value takes up another number of bytes than was noted.  This is no use; unknown keys are passed over."""
        if key in self._prices:
            self._prices[key] = 1 + OPENING / max(nbytes, 1)

    def saved(self, key: K) -> None:
        """A file holds the value now, as after a commit: to let it go costs no write any more.  This is no use."""
        if key in self._prices:
            self._marks[key] &= ~DIRTY

    def restore(self, key: K, nbytes: int) -> None:
        """A key that was popped stays in memory after all.  This is no use; it is not chosen again at once."""
        if key not in self._marks:
            self._marks[key] = self._ages.born(DIRTY)
        self._prices[key] = 1 + OPENING / max(nbytes, 1)

    def leave(self, key: K) -> None:
        """The value left memory by another way than `pop`.  Its past is remembered; unknown keys are passed over."""
        self._prices.pop(key, None)

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
        self._read_log()
        spared = self._prices.pop(cast(K, keep), None)
        try:
            return self._choose()
        finally:
            if spared is not None:
                self._prices[cast(K, keep)] = spared

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
        if not self._ranked:
            self._rank()
        worth, mark, key = self._ranked[-1]
        if self._later and self._later.peekitem()[1][0] < worth:
            key, (worth, mark) = self._later.popitem()
        else:
            self._ranked.pop()
        return key, mark

    def _rank(self) -> None:
        """Choose the next to leave: an eighth of many values, or fewer of few, which as a rule are large."""
        if not self._prices:
            raise KeyError("nothing is left that could leave memory")
        now, rates = self._ages.now, self._ages.rates
        marks = list(map(self._marks.__getitem__, self._prices))
        worths = [
            rates[mark & STATE][bisect_right(EDGES, now - (mark >> TICK))] * price
            for mark, price in zip(marks, self._prices.values())
        ]
        count = 1 + len(worths) // (8 if len(worths) > 1000 else 32)
        self._limit = limit = sorted(worths)[count - 1]
        least = sorted(entry for entry in zip(worths, marks, self._prices) if entry[0] <= limit)
        self._ranked = least[count - 1 :: -1]
        self._later.clear()

    def _consider_newest(self) -> None:
        """Let the newest value but one leave before those ranked if it is worth less: it was used only once, say, in passing."""
        key, self._newest = cast(K, self._newest), NOBODY
        if key not in self._prices or not self._ranked:
            return
        mark = self._marks[key]
        age = self._ages.now - (mark >> TICK)
        worth = self._ages.rates[mark & STATE][bisect_right(EDGES, age)] * self._prices[key]
        if worth < self._limit:
            self._later[key] = worth, mark

    def _read_log(self) -> None:
        """Count the hits.  Threads may add to the log meanwhile: what is there now is read, and no more."""
        for _ in range(len(self._log)):
            try:
                key = self._log.popleft()
            except IndexError:
                return
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
