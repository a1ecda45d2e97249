"""What it is worth to hold a value in memory, learnt from the times between the uses of keys.

Keys that were used about as often, and that came back after about as long the last time, form a group.  For each group
and each time since the last use (age) `Ages` counts how many values were used at that age, and how many were still
waiting.  From that follows the best rate of uses per tick that holding a value from now on can earn, the maximum being
taken over how long one would hold it.  Time is counted in uses: each is a tick.

The ideas come from J. C. Gittins, "Bandit processes and dynamic allocation indices" (1979), for the best rate; and from
N. Beckmann, H. Chen and A. Cidon, "LHD: Improving cache hit rate by maximizing hit density" (2018), for groups and
ages.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import reduce
from operator import add

__all__ = ["Ages"]

# A mark holds in one int what is remembered of a key: the tick of its last use, then the number of its uses (8 bits),
# the order of magnitude of the last gap between two uses (6 bits), and whether letting it go costs a write (1 bit).
TICK, USES, GAP, DIRTY = 15, 7, 1, 1
STATE = (1 << TICK) - 1
MOST_USES = 255

# What ended the wait for a use: the old value was read, or it was replaced or deleted unread.
READ, REPLACED = 0, 1

# Ticks of the cells in which times of last use are counted, as long as they are short beside their age.
CELL = 64

# Ages are counted in half octaves: 1, 2, 3, 4-5, 6-7, 8-11, 12-15 ...  Where each but the first begins, for bisection.
EDGES = [edge << shift for shift in range(46) for edge in (2, 3)]
WIDTHS = [1] + [after - before for before, after in zip(EDGES, EDGES[1:])]

# The chances of a read and of a replacement at age 1 before anything is known, and how many observations that is worth.
FIRST_GUESS = (0.25, 0.0)
STRENGTH = 5.0

# Fewer values than this in memory are few: they are large, as a rule, and worth more thought each.
FEW = 1000

# Until so many uses of known keys were seen, nothing is taken for learnt.
ENOUGH = 32

# A dirty value may save its write as well: surely if it is replaced, and perhaps, later, if it is read before.
GAINS = ((1.0, 0.0), (1.5, 1.0))

# For each age, the chances that a value is read, or replaced, before the next.
Chances = list[tuple[float, float]]
# For each age, how many waits for a use ended there (reads and replacements, in pairs), and how many have come so far.
Counts = tuple[list[float], list[float]]


def added(some: Counts, more: Counts) -> Counts:
    """The counts of two groups together."""
    return list(map(add, some[0], more[0])), list(map(add, some[1], more[1]))


def chances(counts: Counts, parent: Chances | None) -> Chances:
    """For each age: how likely is it that a value that reached this age is read, or replaced, before the next?

    Where little was seen, the chances of the wider group count, `parent`; where there is none, those at the age before.
    """
    ended, waiting = counts
    reached = sum(ended) + sum(waiting)
    guess = FIRST_GUESS
    found = []
    for bucket, still in enumerate(waiting):
        if parent is not None:
            guess = parent[bucket]
        reads, replacements = ended[2 * bucket], ended[2 * bucket + 1]
        seen = max(reached - still / 2, 0) + STRENGTH
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
        on = 1 - read - replaced
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

    __slots__ = ("ended", "key", "waiting")

    def __init__(self, key: tuple[int, int]) -> None:
        self.key = key                                      # orders of magnitude of the number of uses and of the gap
        self.ended = array("d", bytes(16 * len(WIDTHS)))    # for each age: reads, replacements
        self.waiting: dict[int, int] = {}                   # for each cell of time: last used then, and not since


class Groups(dict[int, Group]):
    """The group of each pair of uses and gap as they stand in a mark; made when first asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.all: dict[tuple[int, int], Group] = {}

    def __missing__(self, pair: int) -> Group:
        key = ((pair >> USES - GAP) - 1).bit_length(), pair & (1 << USES - GAP) - 1
        group = self[pair] = self.all.setdefault(key, Group(key))
        return group


class Rates(dict[int, "list[float]"]):
    """For each state of a mark, the rate at each age; worked out when first asked for, after each learning."""

    def __init__(self, ages: Ages) -> None:
        super().__init__()
        self._ages = ages
        self._known: dict[tuple[tuple[int, int], int], list[float]] = {}

    def __missing__(self, state: int) -> list[float]:
        group, dirty = self._ages.groups[state >> GAP].key, state & DIRTY if self._ages.learnt else 0
        if (group, dirty) not in self._known:
            self._known[group, dirty] = best_rates(self._ages.chances_of(group), GAINS[dirty])
        rates = self[state] = self._known[group, dirty]
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
        self._wide: Chances = [FIRST_GUESS]
        self._by_uses: dict[int, Chances] = {}
        self._seen: dict[tuple[int, int], Counts] = {}

    def born(self, dirty: int) -> int:
        """The mark of a key that is used for the first time."""
        self._tick()
        return self._wait(1 << USES | dirty)

    def born_together(self, count: int) -> Iterator[int]:
        """The marks of so many keys, one after another, whose values are on disk."""
        while count:
            self._tick()
            first = self.now
            ticks = min(count, CELL - first % CELL)  # up to the next cell of time
            self._wait(1 << USES, ticks)
            self.now += ticks - 1
            count -= ticks
            yield from range(first << TICK | 1 << USES, self.now + 1 << TICK, 1 << TICK)

    def used(self, mark: int, how: int, dirty: int) -> int:
        """The new mark of a key that is used again."""
        self._tick()
        self._returns += 1
        self.ended(mark, how)
        uses = min((mark >> USES & MOST_USES) + 1, MOST_USES)
        gap = ((self.now - (mark >> TICK)).bit_length() + 1) // 2
        return self._wait(uses << USES | gap << GAP | dirty)

    def ended(self, mark: int, how: int) -> None:
        """A wait is over."""
        tick = mark >> TICK
        group = self.groups[(mark & STATE) >> GAP]
        group.ended[2 * bisect_right(EDGES, self.now - tick) + how] += self._weight
        cell = self.cell(tick)  # it may be none of the group's, if a finaliser of the user's comes as cells are joined
        group.waiting[cell] = group.waiting.get(cell, 0) - 1

    def cell(self, tick: int) -> int:
        """The beginning of the cell of time that holds a tick."""
        return self._cells[bisect_right(self._cells, tick) - 1]

    def _tick(self) -> None:
        self.now += 1
        if self.now % CELL == 0:
            self._new_cell()

    def _wait(self, state: int, keys: int = 1) -> int:
        waiting, cell = self.groups[state >> GAP].waiting, self._cells[-1]
        waiting[cell] = waiting.get(cell, 0) + keys
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
        self._next_learning = self.now + max(16, min(max(64, held // (5 if held < FEW else 2)), self.now // 4))
        return True

    def learn(self, known: int) -> None:
        """Work the rates out anew; what was seen counts half after four uses of each known key.

        A finaliser of the user's that comes in between may count more uses: so all is as of one moment.
        """
        now, cells = self.now, self._cells
        self._fade(2.0 ** ((now - self._learnt) / max(1000, 4 * known)))
        self._learnt = now
        middles = [(start + end) // 2 for start, end in zip(cells, [*cells[1:], now])]
        buckets = {start: bisect_right(EDGES, now - middle) for start, middle in zip(cells, middles)}
        top = bisect_right(EDGES, now) + 1
        seen = {key: self._counts(group, buckets, top) for key, group in self.groups.all.copy().items()}
        uses: dict[int, Counts] = {}
        for (often, _), counts in seen.items():
            uses[often] = added(uses[often], counts) if often in uses else counts
        wide = chances(reduce(added, uses.values()), None)
        by_uses = {often: chances(counts, wide) for often, counts in uses.items()}
        self._seen, self._wide, self._by_uses, self.rates = seen, wide, by_uses, Rates(self)

    def chances_of(self, key: tuple[int, int]) -> Chances:
        """The chances of one group, where it was seen little those of all groups with as many uses."""
        wide = self._by_uses.get(key[0], self._wide)
        return chances(self._seen[key], wide) if key in self._seen else wide

    def _counts(self, group: Group, buckets: dict[int, int], top: int) -> Counts:
        """How many waits of a group ended, and how many go on, for each age up to `top`, `buckets` being the cells'."""
        waiting = [0.0] * top
        for start, count in group.waiting.copy().items():
            waiting[buckets.get(start, 0)] += count
        return [count / self._weight for count in group.ended[: 2 * top]], waiting

    def check(self, marks: Iterable[int]) -> None:
        """Verify that the waits counted are those of the marks."""
        waiting: dict[tuple[int, int], Counter[int]] = defaultdict(Counter)
        for mark in marks:
            assert mark >> TICK <= self.now, "used in the future"
            waiting[self.groups[(mark & STATE) >> GAP].key][self.cell(mark >> TICK)] += 1
        for key, group in self.groups.all.items():
            counted = {cell: count for cell, count in group.waiting.items() if count}
            assert counted == waiting[key], "waits counted wrongly"
        assert self._cells == sorted(set(self._cells)), "cells of time out of order"
        assert len(self._cells) <= 2 + 8 * self.now.bit_length(), "too many cells of time"

    def _fade(self, by: float) -> None:
        self._weight *= by
        if self._weight > 1e30:
            for group in self.groups.all.values():
                group.ended = array("d", [count / self._weight for count in group.ended])
            self._weight = 1.0
