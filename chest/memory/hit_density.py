"""The eviction policy: what earns least for its room leaves memory first.  It learns, and there is nothing to set.

To hold a value costs room for as long as it stays; it earns what its next use would have cost.  Time is counted in
uses, each is a tick.  Keys that were used about as often, that came back after about as long the last time, and whose
last use was of the same kind, form a group.  For each group and each time since the last use (age) it counts how many
values were used at that age, and how many wait still.  From that follows the most that holding a value from now on can
earn in a tick, whatever the plan for how long to hold it; a value's worth is that, for each of its bytes.
docs/how-it-works.rst names the papers that have these ideas.
"""
from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable
from itertools import product
from operator import add, itemgetter, sub
from typing import Generic, TypeVar

from heapdict import heapdict

from chest.errors import raise_of_a_signal

__all__ = ["HitDensity"]

K = TypeVar("K", bound=Hashable)

# A mark is one int: all that is remembered of a key.  It holds the size of the value in memory, the tick of its last
# use (40 bits), the number of uses before that (8), whether the last one set the value (1), the orders of magnitude of
# the number (4) and of the time between the last two uses (6), and whether leaving costs a write (1).  A kind is set,
# often and gap; a group is that and dirty.  Kinds get narrower as fewer bits are shifted out, the first one is of all.
SIZE, TICK, USES, SET, OFTEN, GAP = 60, 20, 12, 11, 7, 1
TICKS, MOST_USES, DIRTY, GROUP = (1 << 40) - 1, 255, 1, (1 << USES) - 1
WIDER = (11, 10, 6, 0)

# What becomes of a wait: the value is read, or it is replaced or deleted unread, or the wait goes on.
READ, REPLACED, GOES_ON = 0, 1, 2
# What a read and a replacement save, of a clean and of a dirty value: a load; a write, for now or for good.
GAINS = ((1.0, 0.0), (2.0, 1.0))

# Ages are counted in half octaves: 1, 2, 3, 4-5, 6-7, 8-11, 12-15 ...  Where each but the first begins, for bisection.
# (No comprehensions: a debugger that reads the variables of this module as it is imported breaks these in 3.12.)
EDGES = sorted([*map((2).__lshift__, range(41)), *map((3).__lshift__, range(41))])
WIDTHS = [1, *map(sub, EDGES[1:], EDGES)]

# The chances of a read and of a replacement at age 1 before anything is known, and how many observations that is worth.
FIRST_GUESS, STRENGTH = (0.25, 0.0), 10.0

# The cost of a value for each of its bytes, by its size in octaves: to open its file takes as long as to move 100,000
# bytes from or to a disk.
PRICES = [1 + 100_000 * 2 ** (0.5 - bits) for bits in range(65)]

NEVER = (math.inf,)  # later than any worth
ENOUGH = 32  # uses of known keys: until so many were seen, nothing is taken for learnt
FAINT = 0.01  # observations that count less are forgotten
SAMPLE = 4096  # of so many keys, or up to twice as many, learning looks at how long they have waited
LARGE = 1 << 17  # bytes, from which on a value is worth more thought
REMEMBERED = 1_000_000  # keys not in memory whose history is remembered, or four times as many as are in memory


class Rates(dict[int, list[float]]):
    """What holding a value earns in a tick, for each group and age, as it was learnt at one time; found when asked.

    Made of the counts of each kind: for each age, how many values were read, were replaced, and wait still.
    """

    def __init__(self, kinds: dict[int, list[float]]) -> None:
        self._chances: dict[tuple[int, int], list[tuple[float, float]]] = {}
        self._seen: dict[tuple[int, int], list[float]] = {}  # the counts of kinds, and of wider and wider ones
        for bits, (kind, counts) in product(WIDER, kinds.items()):
            place = bits, kind >> bits
            self._seen[place] = list(map(add, self._seen[place], counts)) if place in self._seen else counts

    def __missing__(self, group: int) -> list[float]:
        """The rates from each age on, for the best choice of how long to hold the value.

        Ages are joined from the oldest down as long as holding on through the next stretch earns more than this one
        alone.
        """
        chances = [FIRST_GUESS]
        for bits in WIDER:
            place = bits, group >> 1 >> bits
            if place in self._seen:
                if place not in self._chances:
                    self._chances[place] = _weigh(self._seen[place], chances)
                chances = self._chances[place]
        for_read, for_replaced = GAINS[group & 1 if self._seen else 0]
        stretches: list[tuple[float, float, float]] = []  # gain, ticks, chance that it goes on
        rates = []
        for (read, replaced), width in zip(chances[::-1], WIDTHS[len(chances) - 1 :: -1]):
            gain, on = read * for_read + replaced * for_replaced, 1 - read - replaced
            ticks = width * (1 + on) / 2
            while stretches and stretches[-1][0] * ticks > gain * stretches[-1][1]:
                more, longer, further = stretches.pop()
                gain, ticks, on = gain + on * more, ticks + on * longer, on * further
            stretches.append((gain, ticks, on))
            rates.append(gain / ticks)
        rates.reverse()
        self[group] = rates = rates + rates[-1:] * (len(WIDTHS) - len(rates))
        return rates


def _weigh(counts: list[float], wider: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """For each age: how likely is it that a value that reached this age is read, or replaced, before the next?

    Where little was seen of a kind, the chances of a wider one count; of all values, those at the age before.
    """
    found, reached, guess = [], sum(counts), FIRST_GUESS
    for age, (reads, replaced, still) in enumerate(zip(counts[::3], counts[1::3], counts[2::3])):
        if age < len(wider):
            guess = wider[age]
            if reached < FAINT:
                break
        seen = max(reached - still / 2, 0) + STRENGTH
        guess = (reads + STRENGTH * guess[READ]) / seen, (replaced + STRENGTH * guess[REPLACED]) / seen
        found.append(guess)
        reached -= reads + replaced + still
    return found + wider[len(found) :]


class HitDensity(Generic[K]):
    """The order in which values leave memory.

    A policy does no I/O, holds no value and takes no lock: its caller holds the lock of the chest.  Any call may be
    interrupted (Ctrl-C, a finaliser that makes other calls) at any line; later calls do not raise for that, and `clear`
    followed by `put` for everything that is in memory makes the order right again.  Sizes are in bytes.

    >>> policy: HitDensity[str] = HitDensity()
    >>> for key in "abc":
    ...     policy.put(key, 1000, dirty=True)
    >>> policy.used("a")
    >>> policy.choose(1500, stay=())
    ['b', 'c']
    >>> policy.leave("b")
    >>> "b" in policy, "c" in policy
    (False, True)

    The values in memory are ranked now and then, and the least of them leave one after the other, together with those
    that came since and are worth less still, which wait in a `heapdict`.  A key takes about 100 bytes here, the key
    itself not counted.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything, what was learnt too."""
        self.now = self._learnt = self._next_learning = self._ranked = 0
        self._marks: dict[K, int] = {}  # of the keys whose values are in memory, the last used at the end
        self._away: dict[K, int] = {}  # of all others, the last to leave at the end
        self._ended: defaultdict[int, float] = defaultdict(float)  # kind << 8 | 3 * age + how: how many waits
        self._rates = Rates({})
        self._least: list[tuple[float, int, K]] = []  # worth, tick and key of those ranked, the next to leave last
        self._later: heapdict | None = None  # worth and tick of those used since that leave before the last of these

    def __contains__(self, key: object) -> bool:
        return key in self._marks

    def put(self, key: K, size: int, dirty: bool) -> None:
        """The value was set (`dirty`: no file holds it, so that leaving costs a write) or loaded.  A use either way."""
        tick = self.now = self.now + 1
        marks = self._marks if key in self._marks else self._away
        mark = marks.pop(key, 0) if key in marks else 0
        history = self._end_wait(mark, REPLACED if dirty else READ) if mark else 0
        self._marks[key] = size << SIZE | tick << TICK | history | (dirty and 1 << SET | DIRTY)

    def used(self, keys: Iterable[K]) -> None:
        """Hits, in the order in which they came.  Unknown keys, and those whose own code raises, are passed over."""
        for key in keys:
            try:
                mark = self._marks.pop(key, 0)
            except Exception as error:
                raise_of_a_signal(error)
                continue
            if mark:
                tick = self.now = self.now + 1
                self._marks[key] = mark >> SIZE << SIZE | tick << TICK | self._end_wait(mark, READ) | mark & DIRTY

    def _end_wait(self, mark: int, how: int) -> int:
        """A key's wait is over.  Returns what its next mark says of uses and gap."""
        age = bisect_right(EDGES, self.now - (mark >> TICK & TICKS))
        self._ended[(mark & GROUP) >> GAP << 8 | 3 * age + how] += 1
        uses = mark >> USES & MOST_USES
        uses += uses < MOST_USES
        return uses << USES | uses.bit_length() << OFTEN | (age + 3 >> 2) << GAP

    def resized(self, key: K, size: int, dirty: bool) -> None:
        """The value takes up so many bytes now, and no file holds it, or one does.  This is no use."""
        if key in self._marks:
            self._marks[key] = size << SIZE | self._marks[key] & (1 << SIZE) - 1 & ~DIRTY | dirty

    def leave(self, key: K) -> None:
        """The value left memory, or cannot leave.  Its history is remembered; unknown keys are passed over."""
        if key in self._marks:
            self._away[key] = self._marks.pop(key, 0) & (1 << SIZE) - 1

    def forget(self, key: K) -> None:
        """The key was deleted, and its history goes too.  Unknown keys are passed over."""
        self.leave(key)
        mark = self._away.pop(key, 0)
        if mark:
            self._end_wait(mark, REPLACED)

    def choose(self, wanted: float, stay: Collection[K]) -> list[K]:
        """The keys that are worth least, in order, whose sizes sum to at least `wanted`, or all that there are.

        None of them is in `stay`, nor is one whose room is not needed.  The caller has them in `stay` for as long as it
        is at it, and calls `leave` for those that do leave.
        """
        if self.now >= self._next_learning:
            self._learn()
        # Whoever is interrupted leaves no order that is half changed, but none.
        (least, self._least), (later, self._later) = (self._least, []), (self._later, None)
        since, self._ranked = self.now - self._ranked, self.now
        marks = self._marks
        if least:
            fresh = [*marks][::-1][:since]  # of a list, as a finaliser may change the dict meanwhile
            for worth, tick, key in self._rank({key: marks[key] for key in fresh if key in marks}):
                if (worth, tick) < least[0]:
                    later = heapdict() if later is None else later
                    later[key] = worth, tick
        soonest = later.peekitem()[1] if later else NEVER
        others: int | None = None  # how many were ranked by this very call, and are to be ranked anew by the next
        chosen: dict[K, int] = {}  # with their sizes
        spared: list[tuple[float, int, K]] = []
        while wanted > 0:
            if least and least[-1] < soonest:
                worth, tick, key = least.pop()
            elif later is not None and soonest is not NEVER:
                key, (worth, tick) = later.popitem()
                soonest = later.peekitem()[1] if later else NEVER
            elif others is None:
                # Ranking takes a microsecond for each value in memory, which is little beside the writing of a large
                # one: so of large values only a few leave before all are ranked anew, of small ones the half.
                ranked = dict(marks)
                least, spared = self._rank(ranked)[::-1], []
                many = len(least)
                # Of a key whose hash changed nothing is found.
                is_large = many and (key := least[-1][2]) in ranked and ranked[key] >> SIZE >= LARGE
                others = many - 1 - min(many // 2, many * many >> 17 if is_large else many)
                continue
            else:
                break
            mark = marks[key] if key in marks else 0
            if mark >> TICK & TICKS != tick or key in chosen:  # used since, or it left
                continue
            if key in stay:
                spared.append((worth, tick, key))
                continue
            chosen[key] = mark >> SIZE
            wanted -= mark >> SIZE
        self._least, self._later = least[others or 0 :] + spared[::-1], later
        if wanted < 0 and len(chosen) > 1:  # with a large value at the end, those before it may not be needed
            for key in [*chosen][-2::-1]:
                if chosen[key] <= -wanted:
                    wanted += chosen.pop(key)
                    self._least.append((0.0, marks[key] >> TICK & TICKS if key in marks else 0, key))
        return [*chosen]

    def _rank(self, marks: dict[K, int]) -> list[tuple[float, int, K]]:
        """Worth, last tick and key of each key with its mark, the least first."""
        now, rates = self.now, self._rates
        worths = [(rates[mark & GROUP][bisect_right(EDGES, now - (tick := mark >> TICK & TICKS))]
                   * PRICES[(mark >> SIZE).bit_length()], tick, key) for key, mark in marks.items()]
        return sorted(worths, key=itemgetter(0))

    def _learn(self) -> None:
        """Learn from the waits that ended or go on; what was seen counts half after four uses of each known key."""
        known = len(self._marks) + len(self._away)
        if len(self._away) > max(REMEMBERED, 4 * len(self._marks)):
            for key in [*self._away][: known // 8]:
                self._away.pop(key, None)
        now = self.now
        self._next_learning = now + max(16, min(max(64, known // 8), now // 4))
        if not self._learnt and sum(self._ended.values()) < ENOUGH:
            return
        fade = 0.5 ** ((now - self._learnt) / max(1000, 4 * known))
        self._learnt = now
        nothing = [0.0] * (3 * (bisect_right(EDGES, now) + 1))
        kinds: defaultdict[int, list[float]] = defaultdict(nothing.copy)
        self._ended = defaultdict(float, {
            place: amount * fade for place, amount in self._ended.copy().items() if amount * fade > FAINT})
        for place, amount in self._ended.copy().items():
            if place & 255 < len(nothing):  # else a finaliser made uses in between
                kinds[place >> 8][place & 255] += amount
        each = 1 + known // SAMPLE
        for mark in [*self._marks.copy().values()][::each] + [*self._away.copy().values()][::each]:
            kinds[(mark & GROUP) >> GAP][3 * bisect_right(EDGES, now - (mark >> TICK & TICKS)) + GOES_ON] += each
        self._rates = Rates(kinds)
        self._least, self._later = [], None
