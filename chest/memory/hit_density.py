"""The eviction policy of chest: what earns least for its room leaves memory first.

To keep a value in memory costs room for as long as it stays; it earns what its next use would have cost.  What is known
of the next use is learnt in `chest.memory.waits`; here the values in memory are ranked by it.  There is nothing to set.

P. Cao and S. Irani, "Cost-aware WWW proxy caching algorithms" (1997): cost by size.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Container, Hashable, Iterable
from itertools import islice
from typing import Generic, TypeVar

from heapdict import heapdict

from chest.memory.waits import DIRTY, EDGES, READ, REPLACED, SET, SIZES, STATE, TICK, Rates, Waits

__all__ = ["HitDensity"]

K = TypeVar("K", bound=Hashable)

# Bytes that move from or to a disk in the time that it takes to open a file: what a value costs beside its own bytes.
OPENING = 100_000
# The cost of a value for each of its bytes, by its size in half octaves.
PRICES = [1 + OPENING * 2 ** (0.25 - half / 2) for half in range(SIZES + 1)]

ENOUGH = 32                 # uses of known keys: until so many were seen, nothing is taken for learnt
SAMPLE = 4096               # of so many keys, or up to twice as many, learning looks at how long they have waited
FEW = 1000                  # fewer values than this in memory are large, as a rule, and worth more thought each
LARGE = 1 << 15             # bytes each, on average, from which on values are worth that
REMEMBERED = 1_000_000      # keys not in memory whose history is remembered, or four times as many as are in memory

# What leaves together: its worth, the tick by which it is known, and the ticks of last use, the latest first.
Run = tuple[float, int, list[int]]


class Ranks:
    """Which values leave next, as far as they are ranked."""

    __slots__ = ("later", "least", "limit")

    def __init__(self, runs: list[Run]) -> None:
        self.limit = runs[-1][0] if runs else 0.0           # the most worth among them
        runs.reverse()
        self.least = runs                                   # the next to leave at the end
        self.later: heapdict | None = None                  # those worth less than the limit that came since, by tick


class HitDensity(Generic[K]):
    """A `chest.memory.policy.Policy` that learns.

    >>> policy: HitDensity[str] = HitDensity()
    >>> policy.put_many("abc", [1000, 1000, 1000], dirty=True)
    >>> policy.used("a")
    >>> policy.choose(1500, stay=())
    ['b', 'c']
    >>> policy.restore(["c"])
    >>> len(policy), "b" in policy, "c" in policy
    (2, False, True)

    The values in memory are ranked now and then, and the least of them leave one after the other, together with those
    that came since and are worth less still, which wait in a `heapdict`.  Many values are ranked in runs, of one group,
    size and age each; few of them one by one.  A value on its way takes about a microsecond; a key in memory takes
    about 190 bytes here, and one that was spilled about 70, the key itself not counted.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything, what was learnt too."""
        self._now = self._next_learning = 0
        self._waits = Waits()
        self._rates = Rates()
        self._marks: dict[K, int] = {}              # of the keys in the order, the last used at the end
        self._away: dict[K, int] = {}               # of all others, the last to leave at the end
        self._sizes: dict[K, int] = {}              # of the keys in the order, and of those chosen
        self._at: dict[int, K] = {}                 # the key that was last used at a tick, if it is in the order
        self._fresh: list[int] = []                 # the marks of keys used since the others were ranked
        self._singly = True                         # few large values are ranked one by one
        self._fresh_until = 0                       # the tick from which on all are ranked anew instead
        self._ranks: Ranks | None = None

    def __len__(self) -> int:
        return len(self._marks)

    def __contains__(self, key: object) -> bool:
        return key in self._marks

    def put(self, key: K, size: int, dirty: bool) -> None:
        """The value was set (`dirty`: no file holds it, so that leaving costs a write) or loaded.  A use either way."""
        tick = self._now = self._now + 1
        mark = self._marks.pop(key, 0) or self._away.pop(key, 0)
        if mark:
            self._at.pop(mark >> TICK, None)
            mark = self._waits.again(mark, tick, REPLACED if dirty else READ)
        mark |= tick << TICK | dirty << SET | dirty << DIRTY | (size * size).bit_length()
        self._sizes[key] = size
        self._marks[key] = mark
        self._at[tick] = key
        if tick < self._fresh_until:
            self._fresh.append(mark)

    def put_many(self, keys: Iterable[K], sizes: Iterable[int], dirty: bool) -> None:
        """As `put` for each key and its size."""
        for key, size in zip(keys, sizes):
            self.put(key, size, dirty)

    def used(self, keys: Iterable[K]) -> None:
        """Hits, in the order in which they came.  Keys that are unknown or cannot be hashed are passed over."""
        marks = self._marks
        for key in keys:
            try:
                mark = marks.pop(key, 0)
            except TypeError:
                continue
            if mark:
                tick = self._now = self._now + 1
                self._at.pop(mark >> TICK, None)
                mark = self._waits.again(mark, tick, READ) | tick << TICK | mark & ((2 << DIRTY) - 1)
                marks[key] = mark
                self._at[tick] = key
                if tick < self._fresh_until:
                    self._fresh.append(mark)

    def saved(self, key: K) -> None:
        """A file holds the value now: to leave costs no write.  This is no use."""
        for marks in self._marks, self._away:
            mark = marks.get(key)
            if mark:
                marks[key] = mark & ~(1 << DIRTY)

    def resize(self, key: K, size: int) -> None:
        """The value takes up another number of bytes than was noted.  This is no use."""
        mark = self._marks.get(key)
        if mark:
            self._sizes[key] = size
            self._marks[key] = mark & ~SIZES | (size * size).bit_length()

    def leave(self, key: K) -> None:
        """The value left memory, or cannot leave.  Its history is remembered; unknown keys are passed over."""
        self._sizes.pop(key, None)
        if key in self._marks:
            mark = self._marks.pop(key, 0)
            self._at.pop(mark >> TICK, None)
            self._away[key] = mark

    def forget(self, key: K) -> None:
        """The key was deleted, and its history goes too.  Unknown keys are passed over."""
        self._sizes.pop(key, None)
        mark = self._marks.pop(key, 0) or self._away.pop(key, 0)
        if mark:
            self._at.pop(mark >> TICK, None)
            self._waits.again(mark, self._now, REPLACED)

    def restore(self, keys: Iterable[K]) -> None:
        """Keys that were chosen stay after all, as they were.  Those that were deleted or put since are passed over."""
        for key in keys:
            mark = self._away.pop(key, 0) if key in self._sizes else 0
            if mark:
                self._marks[key] = mark
                self._at[mark >> TICK] = key
                self._fresh.append(mark)

    def choose(self, wanted: int, stay: Container[K]) -> list[K]:
        """The keys that are worth least, in order, whose sizes sum to at least `wanted`, or all that there are.

        None of them is in `stay`.  They are out of the order: the caller calls `leave` or `restore` for each.
        """
        if self._now >= self._next_learning and self._waits.returns >= ENOUGH:
            self._learn()
        if len(self._away) > REMEMBERED:
            self._forget_oldest()
        at, marks, away, sizes = self._at, self._marks, self._away, self._sizes
        # Taken out and put back at the end: whoever is interrupted leaves no ranks that are half changed, but none.
        ranks, self._ranks = self._ranks, None
        if ranks is None or not ranks.least or self._now >= self._fresh_until:
            ranks = self._rank()
        elif self._fresh:
            self._rank_fresh(ranks, stay)
        chosen: list[K] = []
        spared: dict[int, K] = {}
        while wanted > 0:
            if not ranks.least:
                ranks = self._rank()
                if not ranks.least:
                    break
            run = ranks.least.pop()
            if ranks.later and ranks.later.peekitem()[1] < run:
                ranks.least.append(run)
                run = ranks.later.popitem()[1]
            ticks = run[2]
            while ticks and wanted > 0:
                tick = ticks.pop()
                try:
                    key = at.pop(tick)
                except KeyError:
                    continue                        # used since, or it left
                if key in stay:
                    spared[tick] = key
                    continue
                mark = marks.pop(key, 0)
                if mark >> TICK == tick:
                    away[key] = mark
                    chosen.append(key)
                    wanted -= sizes.get(key, 0)
                elif mark:
                    marks[key] = mark               # an interruption left an old tick
            if ticks:
                ranks.least.append((run[0], ticks[-1], ticks))
        for tick, key in spared.items():
            at[tick] = key
            self._fresh.append(marks.get(key, 0))
        self._fresh_until = self._now + 4 * len(marks) + 1000
        self._ranks = ranks
        return chosen

    def _rank(self) -> Ranks:
        """Choose the next to leave: half of many values, or a few of few, which as a rule are large."""
        self._fresh = []
        marks = list(self._marks.copy().values())       # a copy: finalisers may change it meanwhile
        self._singly = len(marks) < FEW and sum(self._sizes.copy().values()) >= LARGE * len(marks)
        runs = sorted(self._runs(marks))
        if self._singly:
            return Ranks(runs[: 1 + len(marks) // 128])
        room = 1 + len(marks) // 2
        most = 0
        while room > 0 and most < len(runs):
            room -= len(runs[most][2])
            most += 1
        return Ranks(runs[:most])

    def _rank_fresh(self, ranks: Ranks, stay: Container[K]) -> None:
        """Let values that came or were used since the others were ranked leave before these if they are worth less."""
        at = self._at
        fresh, self._fresh = self._fresh, []
        staying = [mark for mark in fresh if mark >> TICK in at and at[mark >> TICK] in stay]
        if staying:
            fresh = [mark for mark in fresh if mark not in staying]
            self._fresh += staying                      # lest they are ranked again and again
        for run in sorted(self._runs(fresh), reverse=True):
            if run < ranks.least[-1]:
                ranks.least.append(run)
            elif run[0] < ranks.limit:
                if ranks.later is None:
                    ranks.later = heapdict()
                ranks.later[run[1]] = run

    def _runs(self, marks: list[int]) -> list[Run]:
        """Put marks of the same state and age together, or, if few values are in memory, each by itself."""
        now, at, sizes, known, of = self._now, self._at, self._sizes, self._rates.known, self._rates.of
        runs: list[Run] = []
        if self._singly:
            for mark in marks:
                tick, group = mark >> TICK, (mark & STATE) >> DIRTY
                if tick in at:
                    rates = known[group] if group in known else of(group)
                    worth = rates[bisect_right(EDGES, now - tick)] * (1 + OPENING / (sizes.get(at[tick]) or 1))
                    runs.append((worth, tick, [tick]))
            return runs
        states: defaultdict[int, list[int]] = defaultdict(list)
        kept = STATE if self._waits.returns >= ENOUGH else SIZES    # nothing learnt: all of a size are of one group
        for mark in sorted(marks):
            if mark >> TICK in at:
                states[mark & kept].append(mark >> TICK)
        for state, ticks in states.items():
            rates, price = known.get(state >> DIRTY) or of(state >> DIRTY), PRICES[state & SIZES]
            start = 0
            while start < len(ticks):
                age = bisect_right(EDGES, now - ticks[start])
                end = bisect_right(ticks, now - EDGES[age - 1], start + 1) if age else len(ticks)
                runs.append((rates[age] * price, ticks[start], ticks[start:end][::-1]))
                start = end
        return runs

    def _learn(self) -> None:
        held, known = len(self._marks), len(self._marks) + len(self._away)
        pause = max(64, held // 5 if held < FEW else known // 8)
        self._next_learning = self._now + max(16, min(pause, self._now // 4))
        each = 1 + known // SAMPLE
        marks = [*self._marks.copy().values()][::each] + [*self._away.copy().values()][::each]
        self._rates = self._waits.learn(self._now, known, marks, each)
        self._ranks = None

    def _forget_oldest(self) -> None:
        """Bound what is remembered of keys that are not in memory."""
        away = self._away
        if len(away) > 4 * len(self._marks):
            for key in list(islice(away, len(away) // 8)):
                away.pop(key, None)

    def _check(self) -> None:
        """Verify all that must hold, and print the state if something does not; for tests."""
        try:
            assert self._at == {mark >> TICK: key for key, mark in self._marks.items()}, "ticks and marks differ"
            assert self._marks.keys() <= self._sizes.keys(), "a key without a size"
            assert not self._marks.keys() & self._away.keys(), "in the order, and not"
            assert all(0 < mark >> TICK <= self._now for mark in self._marks.values()), "used in the future"
            assert all(mark < 1 << 60 for mark in self._marks.values()), "a mark too long"
            if self._ranks is not None:
                worths = [run[0] for run in self._ranks.least]
                assert worths == sorted(worths, reverse=True), "not ranked"
        except AssertionError:
            print({name: value for name, value in vars(self).items() if name != "_waits"})
            print(vars(self._waits))
            raise
