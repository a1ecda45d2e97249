"""How long values wait for their next use, and what it earns to hold them.

Keys that were used about as often, that came back after about as long the last time, and whose last use was of the same
kind, form a group.  For each group and each time since the last use (age) `Waits` counts how many values were used at
that age, and how many are waiting still.  From that follow the `Rates`: the most uses per tick that holding a value
from now on can earn, whatever the plan for how long to hold it.  Time is counted in uses: each is a tick.

J. C. Gittins, "Bandit processes and dynamic allocation indices" (1979): the best rate.  N. Beckmann, H. Chen and
A. Cidon, "LHD: Improving cache hit rate by maximizing hit density" (2018): groups and ages.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from operator import add

__all__ = ["Rates", "Waits"]

# A mark is one int, as a rule of at most 60 bits (32 bytes): all that is remembered of a key.  It holds the tick of its
# last use, the number of uses before that (8 bits), whether the last one set the value (1), the order of magnitude of
# the number (4), that of the time between the last two (6), whether leaving costs a write (1), and the size in half
# octaves (7).  The state is all but tick and number, the group is that without the size, and the kind is the group
# without the write.  Kinds get wider as bits are shifted out, up to the one of all values.
TICK, USES, SET, OFTEN, GAP, DIRTY = 27, 19, 18, 14, 8, 7
STATE, MOST_USES, SIZES = (1 << USES) - 1, 255, (1 << DIRTY) - 1
WIDER = (0, 6, 10, 11)

# What becomes of a wait: the value is read, or it is replaced or deleted unread, or the wait goes on.
READ, REPLACED, GOES_ON = 0, 1, 2

# Ages are counted in half octaves: 1, 2, 3, 4-5, 6-7, 8-11, 12-15 ...  Where each but the first begins, for bisection.
EDGES = [edge << shift for shift in range(41) for edge in (2, 3)]
WIDTHS = [1] + [after - before for before, after in zip(EDGES, EDGES[1:])]

# The chances of a read and of a replacement at age 1 before anything is known, and how many observations that is worth.
FIRST_GUESS = (0.25, 0.0)
STRENGTH = 5.0

# What a read and a replacement save, of a clean and of a dirty value: a load; a write, for now or for good.
GAINS = ((1.0, 0.0), (2.0, 1.0))

# For each age, the chances that a value is read, or replaced, before the next.
Chances = list[tuple[float, float]]


def chances(counts: list[float], parent: Chances | None) -> Chances:
    """For each age: how likely is it that a value that reached this age is read, or replaced, before the next?

    Where little was seen, the chances of the wider kind count, `parent`; where there is none, those at the age before.
    """
    reached = sum(counts)
    guess = FIRST_GUESS
    found = []
    for age, (reads, replaced, still) in enumerate(zip(counts[::3], counts[1::3], counts[2::3])):
        if parent is not None:
            guess = parent[age]
        seen = max(reached - still / 2, 0) + STRENGTH
        guess = (reads + STRENGTH * guess[READ]) / seen, (replaced + STRENGTH * guess[REPLACED]) / seen
        found.append(guess)
        reached -= reads + replaced + still
    return found


def best_rates(found: Chances, gains: tuple[float, float]) -> list[float]:
    """What holding a value from each age on earns in a tick, for the best choice of how long to hold it.

    Ages are joined from the oldest down as long as holding on through the next stretch earns more than this one alone.
    """
    stretches: list[tuple[float, float, float]] = []        # gain, ticks, chance that it goes on
    rates = []
    for age in range(len(found) - 1, -1, -1):
        read, replaced = found[age]
        gain = read * gains[READ] + replaced * gains[REPLACED]
        on = 1 - read - replaced
        ticks = WIDTHS[age] * (1 + on) / 2
        while stretches and stretches[-1][0] * ticks > gain * stretches[-1][1]:
            more, longer, further = stretches.pop()
            gain, ticks, on = gain + on * more, ticks + on * longer, on * further
        stretches.append((gain, ticks, on))
        rates.append(gain / ticks)
    rates.reverse()
    return rates + rates[-1:] * (len(WIDTHS) - len(rates))


class Rates:
    """What holding a value earns in a tick, for each group and age, as it was learnt at one time."""

    def __init__(self, seen: list[dict[int, list[float]]] | None = None) -> None:
        self.known: dict[int, list[float]] = {}         # the rates of the groups that were asked for
        self._learnt = seen is not None
        self._seen = seen or [{} for _ in WIDER]        # counts of kinds, and of wider and wider ones
        self._chances: list[dict[int, Chances]] = [{} for _ in WIDER]

    def of(self, group: int) -> list[float]:
        """Work out the rates of a group."""
        gains = GAINS[group & 1 if self._learnt else 0]
        rates = self.known[group] = best_rates(self._chances_of(group >> 1, 0), gains)
        return rates

    def _chances_of(self, kind: int, level: int) -> Chances:
        """The chances of a kind, made so much wider; where nothing was seen of it, those of a still wider one."""
        if level == len(WIDER):
            return [FIRST_GUESS]
        wide = kind >> WIDER[level]
        if wide not in self._chances[level]:
            parent = self._chances_of(kind, level + 1)
            counts = self._seen[level].get(wide)
            first = level + 1 == len(WIDER)
            self._chances[level][wide] = chances(counts, None if first else parent) if counts else parent
        return self._chances[level][wide]


class Waits:
    """Counts how long values wait for their next use."""

    def __init__(self) -> None:
        self.returns = 0        # uses of known keys
        self._ended: defaultdict[int, float] = defaultdict(float)   # kind << 8 | 3 * age + how: how many waits
        self._weight = 1.0      # of what is seen now; it grows instead of all the counts fading
        self._learnt = 0        # when that was

    def again(self, mark: int, tick: int, how: int) -> int:
        """A known key is used again, or deleted: its wait is over.  What its new mark says of uses and gap."""
        age = bisect_right(EDGES, tick - (mark >> TICK))
        self.returns += 1
        self._ended[(mark & STATE) >> GAP << 8 | 3 * age + how] += self._weight
        uses = mark >> USES & MOST_USES
        uses += uses < MOST_USES
        return uses << USES | uses.bit_length() << OFTEN | (age + 1 >> 1) << GAP

    def learn(self, now: int, known: int, marks: list[int], each: int) -> Rates:
        """Learn from the waits that ended, and from those that go on: `marks` are one in `each` of all `known` keys'.

        What was seen counts half after four uses of each known key.
        """
        ended, ages = self._ended.copy(), bisect_right(EDGES, now) + 1
        self._weight *= 2.0 ** ((now - self._learnt) / max(1000, 4 * known))
        self._learnt = now
        weight, nothing = self._weight, [0.0] * (3 * ages)
        kinds: dict[int, list[float]] = {}
        for place, amount in ended.items():
            if place & 255 < len(nothing):                      # else a finaliser made uses in between
                if place >> 8 not in kinds:
                    kinds[place >> 8] = nothing.copy()
                kinds[place >> 8][place & 255] += amount / weight
        for mark in marks:
            kind, age = (mark & STATE) >> GAP, bisect_right(EDGES, now - (mark >> TICK))
            if kind not in kinds:
                kinds[kind] = nothing.copy()
            kinds[kind][3 * age + GOES_ON] += each
        seen = [kinds]
        for bits in WIDER[1:]:
            wider: dict[int, list[float]] = {}
            for kind, counts in kinds.items():
                wider[kind >> bits] = list(map(add, wider.get(kind >> bits, nothing), counts))
            seen.append(wider)
        if weight > 1e30:
            self._ended = defaultdict(float, {place: amount / weight for place, amount in ended.items()})
            self._weight = 1.0
        return Rates(seen)
