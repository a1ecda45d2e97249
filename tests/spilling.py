"""A memory with a budget around an order, as a chest has one, and the same with the least recently used leaving first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator

from chest.spill import Order

Step = tuple[str, int]          # "get" or "set", and the key


class Memory:
    """What a chest does with an order: a budget, sizes, and a count of what moves."""

    def __init__(self, budget: int, size: int = 1000) -> None:
        self.order: Order[int] = Order()
        self.budget, self.size = budget, size
        self.held: dict[int, bool] = {}             # dirty or not
        self.reads = self.writes = self.hits = 0
        self.left: list[int] = []

    def get(self, key: int) -> None:
        if key in self.held:
            self.hits += 1
            self.order.used(key)
        else:
            self.reads += 1
            self._came(key, dirty=False)

    def set(self, key: int) -> None:
        self._came(key, dirty=True)

    def _came(self, key: int, dirty: bool) -> None:
        self.order.put(key, self.size, on_disk=not dirty)
        self.held[key] = dirty
        while len(self.held) * self.size > self.budget:
            gone = self.order.pop(key)
            self.left.append(gone)
            self.writes += self.held.pop(gone)

    def run(self, steps: Iterable[Step]) -> Memory:
        for what, key in steps:
            (self.get if what == "get" else self.set)(key)
        self.order._check()
        return self


class LRU(Memory):
    """The same with the least recently used leaving first."""

    def __init__(self, budget: int, size: int = 1000) -> None:
        super().__init__(budget, size)
        self.recent: OrderedDict[int, bool] = OrderedDict()

    def get(self, key: int) -> None:
        if key in self.recent:
            self.recent.move_to_end(key)
            self.hits += 1
        else:
            self.reads += 1
            self._came(key, dirty=False)

    def _came(self, key: int, dirty: bool) -> None:
        self.recent[key] = dirty
        self.recent.move_to_end(key)
        while len(self.recent) * self.size > self.budget:
            self.writes += self.recent.popitem(last=False)[1]

    def run(self, steps: Iterable[Step]) -> Memory:
        for what, key in steps:
            (self.get if what == "get" else self.set)(key)
        return self


def cycles(keys: int, rounds: int, what: str = "get") -> Iterator[Step]:
    for _ in range(rounds):
        for key in range(keys):
            yield what, key


def filled(keys: Iterable[object], nbytes: int = 1000, on_disk: bool = False) -> Order[object]:
    order: Order[object] = Order()
    for key in keys:
        order.put(key, nbytes, on_disk)
    return order
