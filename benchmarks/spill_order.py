"""What the spill order costs: disk traffic of chest, of LRU and of an oracle that knows the future, over the budget.

    python benchmarks/spill_order.py                      a table
    python benchmarks/spill_order.py --draw figure.svg    the picture of the documentation (needs matplotlib)

Five programs are replayed, all values of one size; a load costs 1 and so does the first write of each new value.  The
oracle spills the value that is read last (Belady 1966), which no program can know; as writes cost too, it is not quite
the least that can be had.
"""
from __future__ import annotations

import argparse
import random
from collections import OrderedDict

from chest.memory.hit_density import HitDensity

GET, SET = "get", "set"
BUDGETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SIZE = 1_000_000  # bytes of each value


def loop(rng, keys=200, rounds=20):
    """All keys, in order, again and again."""
    yield from ((SET, key) for key in range(keys))
    for _ in range(rounds):
        yield from ((GET, key) for key in range(keys))


def epochs(rng, keys=200, rounds=20):
    """All keys, in another order each time, as one trains on them."""
    yield from ((SET, key) for key in range(keys))
    for _ in range(rounds):
        yield from ((GET, key) for key in rng.sample(range(keys), keys))


def favourites(rng, keys=400, uses=8000):
    """Some keys far more often than others (Zipf), with a look at all of them now and then."""
    yield from ((SET, key) for key in range(keys))
    weights = [1 / (rank + 1) for rank in range(keys)]
    for turn in range(uses):
        yield GET, rng.choices(range(keys), weights)[0]
        if turn % 2000 == 1999:
            yield from ((GET, key) for key in range(keys))


def blocks(rng, n=9):
    """A blocked matrix product, C += A B."""
    names = [(matrix, i, j) for matrix in "abc" for i in range(n) for j in range(n)]
    yield from ((SET, name) for name in names)
    for i in range(n):
        for j in range(n):
            for k in range(n):
                yield GET, ("a", i, k)
                yield GET, ("b", k, j)
                yield GET, ("c", i, j)
                yield SET, ("c", i, j)


def stencil(rng, keys=150, rounds=12):
    """Each block is made new from itself and its neighbours, over and over."""
    yield from ((SET, key) for key in range(keys))
    for _ in range(rounds):
        for key in range(1, keys - 1):
            yield from ((GET, key + step) for step in (-1, 0, 1))
            yield SET, key


PROGRAMS = (loop, epochs, favourites, blocks, stencil)


class Learnt:
    """Chest's own policy."""

    def __init__(self, trace):
        self.policy = HitDensity()

    def use(self, now, key, kind, inside):
        if inside and kind == GET:
            self.policy.used([key])
        else:
            self.policy.put(key, SIZE, kind == SET)

    def pop(self, keep):
        (key,) = self.policy.choose(1, {keep})
        self.policy.leave(key)
        return key


class LRU:
    """The value that was not used for the longest time leaves."""

    def __init__(self, trace):
        self.order = OrderedDict()

    def use(self, now, key, kind, inside):
        self.order[key] = None
        self.order.move_to_end(key)

    def pop(self, keep):
        return self.order.popitem(last=False)[0]


class Oracle:
    """The value that will not be read for the longest time leaves; one that is set anew before is not needed."""

    def __init__(self, trace):
        self.next_use = [0] * len(trace)
        coming = {}
        for now in reversed(range(len(trace))):
            kind, key = trace[now]
            self.next_use[now] = coming.get(key, float("inf"))
            coming[key] = now if kind == GET else float("inf")
        self.inside = {}

    def use(self, now, key, kind, inside):
        self.inside[key] = self.next_use[now]

    def pop(self, keep):
        key = max((key for key in self.inside if key != keep), key=self.inside.__getitem__)
        del self.inside[key]
        return key


def cost(trace, policy, room):
    """Loads and writes of a chest with room for so many values."""
    inside, on_disk, moved = set(), set(), 0
    for now, (kind, key) in enumerate(trace):
        policy.use(now, key, kind, key in inside)
        if kind == SET:
            on_disk.discard(key)
        elif key not in inside:
            moved += 1
        inside.add(key)
        while len(inside) > room:
            leaving = policy.pop(key)
            inside.remove(leaving)
            moved += leaving not in on_disk
            on_disk.add(leaving)
    return moved


def measure(program, seed):
    """For each policy the cost at each budget."""
    trace = list(program(random.Random(seed)))
    keys = len({key for _, key in trace})
    return {
        policy.__name__: [cost(trace, policy(trace), max(int(keys * share), 2)) for share in BUDGETS]
        for policy in (Learnt, LRU, Oracle)
    }


def draw(table, path):
    """One panel a program: cost over budget."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "chest", "font.size": 8, "axes.titlesize": 9})
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(table), figsize=(10, 2.4), sharex=True)
    for panel, (name, costs) in zip(panels, table.items()):
        for policy, label, style in (("LRU", "LRU", "--"), ("Learnt", "chest", "-"), ("Oracle", "Oracle", ":")):
            panel.plot([100 * share for share in BUDGETS], costs[policy], style, label=label)
        panel.set_title(name.capitalize())
        panel.set_ylim(bottom=0)
        panel.set_xlabel("Budget (% of all values)")
    panels[0].set_ylabel("Values loaded or written")
    panels[0].legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--draw", metavar="FILE", help="also draw the picture")
    options = parser.parse_args()
    table = {program.__name__: measure(program, options.seed) for program in PROGRAMS}
    print(f"{'program':12s} {'policy':8s} " + " ".join(f"{share:6.0%}" for share in BUDGETS))
    for name, costs in table.items():
        for policy, moved in costs.items():
            label = {"Learnt": "chest"}.get(policy, policy)
            print(f"{name:12s} {label:8s} " + " ".join(f"{count:6d}" for count in moved))
    if options.draw:
        draw(table, options.draw)


if __name__ == "__main__":
    main()
