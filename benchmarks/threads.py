"""What a second thread adds, above all where the interpreter has no global lock (``python3.13t``).

    python benchmarks/threads.py

Each figure is the work that two threads do in a second, beside that of one: 2 is twice as much, 1 no gain.  Threads use
one chest, and keys of their own.  A round takes some milliseconds, and counts only if as many threads that calculate,
and have no object in common, got a core each in front of it and behind it (with a global lock: each round).  Shown are
ratios of medians, and how many rounds of one and of two threads counted.  Beside chest are an instance with a dict,
which is the least that any class in Python can do, and one that locks it.
"""
from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from chest import Chest

ENOUGH = 0.8  # of what they do on a core of their own: what threads that calculate must do for a round to count
KEYS = 500  # of each thread
LOCKED = getattr(sys, "_is_gil_enabled", lambda: True)()
Work = Callable[[int], object]


class Holder:
    """An instance with a dict."""

    def __init__(self) -> None:
        self.values: dict[Any, Any] = {}
        self.lock = threading.RLock()

    def __getitem__(self, key: Any) -> Any:
        return self.values[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        with self.lock:
            self.values[key] = value


def rate(threads: int, work: Work) -> float:
    """Rounds of ``work`` a second, of so many threads together."""
    ready: list[int] = []
    begun, ended = [], []

    def run(number: int) -> None:
        ready.append(number)
        while len(ready) < threads:  # who waits for an event comes too late
            pass
        begun.append(time.perf_counter())
        work(number)
        ended.append(time.perf_counter())

    running = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for one in running:
        one.start()
    for one in running:
        one.join()
    return threads / (max(ended) - min(begun))


def calculate(number: int, steps: int = 20_000) -> None:
    x = 0
    for _ in range(steps):
        x = x * 3 % 1001


def compare(work: Work, rounds: int, seconds: float) -> str:
    """Two threads beside one, in rounds that count."""
    fastest = max(rate(1, calculate) for _ in range(100))
    found: dict[int, list[float]] = {1: [], 2: []}
    end = time.monotonic() + seconds
    while min(map(len, found.values())) < rounds and time.monotonic() < end:
        for threads, rates in found.items():
            before, here, behind = rate(threads, calculate), rate(threads, work), rate(threads, calculate)
            if LOCKED or min(before, behind) > ENOUGH * threads * fastest:
                rates.append(here)
    ratio = f"{statistics.median(found[2]) / statistics.median(found[1]):5.2f}" if all(found.values()) else "    -"
    return f"{ratio}, {len(found[1])} and {len(found[2])} rounds"


def reads(mapping: Any, times: int) -> Work:
    """Each thread reads keys of its own."""
    def work(number: int) -> None:
        mine = [f"k{i}" for i in range(number * KEYS, (number + 1) * KEYS)]
        for _ in range(times):
            for key in mine:
                mapping[key]
    return work


def works_with(mapping: Any) -> Work:
    """Each thread does something with each value."""
    def work(number: int) -> None:
        for i in range(number * KEYS, number * KEYS + KEYS // 2):
            mapping[f"k{i}"]
            calculate(number, 200)
    return work


def writes(mapping: Any, times: int) -> Work:
    """Each thread sets keys of its own."""
    def work(number: int) -> None:
        mine = [f"k{i}" for i in range(number * KEYS, (number + 1) * KEYS)]
        for n in range(times):
            for key in mine:
                mapping[key] = {"n": n}
    return work


def filled(mapping: Any) -> Any:
    for i in range(2 * KEYS):
        mapping[f"k{i}"] = {"n": i}
    return mapping


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50, help="that must count, for each figure")
    parser.add_argument("--seconds", type=float, default=30, help="that a figure may take at most")
    settings = parser.parse_args()
    resident, own = filled(Chest()), [filled(Chest()), filled(Chest())]
    spilled = filled(Chest(available_memory=20_000, min_file_size=4096))
    print(f"Python {sys.version}")
    for name, work in {
        "read: an instance with a dict": reads(filled(Holder()), 20),
        "read: hits": reads(resident, 5),
        "read: hits, each thread with a chest of its own": lambda number: reads(own[number], 5)(number),
        "read: hits, and some 10 us of work with each": works_with(resident),
        "read: misses of small values": reads(spilled, 1),
        "set: an instance with a dict and a lock": writes(filled(Holder()), 8),
        "set: in memory": writes(resident, 2),
        "set: in memory, each thread with a chest of its own": lambda number: writes(own[number], 2)(number),
        "set: with spills of small values": writes(spilled, 1),
    }.items():
        print(f"{name:56} {compare(work, settings.rounds, settings.seconds)}", flush=True)


if __name__ == "__main__":
    main()
