"""What the order in which values leave memory costs: steps, memory, and what other threads may do meanwhile."""

from __future__ import annotations

import random
import sys
import threading
import tracemalloc
from typing import Callable

from spilling import Memory, filled

from chest.spill import Order


def test_hits_from_other_threads_while_values_leave() -> None:
    order = filled(range(500))
    started, stop, failed = threading.Event(), threading.Event(), []

    def hit(seed: int) -> None:
        rng = random.Random(seed)
        try:
            while not stop.is_set():
                for _ in range(100):
                    order.used(rng.randrange(1000))
                started.set()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=hit, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert started.wait(60)
        for key in range(500, 600):
            order.put(key, 1000, on_disk=False)
            assert order.pop(key) != key
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed
    assert len(order) == 500
    order._check()


def allocated(call: Callable[[], object], keys: int) -> float:
    """Bytes per key that `call` allocates and that stay allocated."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept = call()
        assert kept is not None
        return (tracemalloc.get_traced_memory()[0] - before) / keys
    finally:
        tracemalloc.stop()


def test_memory_for_each_key_is_bounded() -> None:
    keys = list(range(12_000))

    def in_memory() -> Order[int]:
        order: Order[int] = Order()
        for key in keys:
            order.put(key, 1000 + key % 7, on_disk=False)
        order.pop()
        return order

    def spilled() -> Order[int]:
        order = in_memory()
        while len(order) > 10:
            order.pop()
        return order

    assert allocated(in_memory, len(keys)) < 300
    assert allocated(spilled, len(keys)) < 200


def test_hits_without_end_take_no_memory() -> None:
    order = filled([1])

    def hits() -> Order[object]:
        for _ in range(100_000):
            order.used(1)
        return order

    assert allocated(hits, 1) < 100_000


def calls_made(order: Order[int], first: int, count: int) -> int:
    """How many calls, of Python or C, `count` values coming and leaving take."""
    calls = 0

    def count_calls(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count_calls)
    try:
        for key in range(first, first + count):
            order.put(key, 1000, on_disk=False)
            order.pop(key)
    finally:
        sys.setprofile(None)
    return calls


def test_choosing_does_not_take_more_steps_for_more_spilled_keys() -> None:
    few = Memory(500_000).run(("set", key) for key in range(2000)).order
    many = Memory(500_000).run(("set", key) for key in range(30_000)).order
    assert calls_made(many, 30_000, 1000) < 1.5 * calls_made(few, 2000, 1000)
