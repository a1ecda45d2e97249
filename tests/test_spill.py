"""The order in which values leave memory, on its own."""

from __future__ import annotations

import random
import sys
import threading
import tracemalloc
from collections import OrderedDict
from collections.abc import Iterable, Iterator

import pytest

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


@pytest.mark.parametrize("room", [1, 2, 3, 10, 100, 1500])
def test_of_new_values_of_one_size_the_first_in_is_the_first_out(room: int) -> None:
    memory = Memory(room * 1000).run(("set", key) for key in range(room + 3000))
    assert memory.left == list(range(3000))


def test_a_hit_saves_a_value_from_leaving_next() -> None:
    order = filled("abc")
    order.used("a")
    assert [order.pop("c"), order.pop("c")] == ["b", "a"]


def test_a_hit_saves_a_value_that_was_about_to_leave() -> None:
    order = filled(range(100))
    assert order.pop() == 0
    order.used(1)
    assert order.pop() == 2


def test_hits_count_in_the_order_in_which_they_came() -> None:
    order = filled(range(5))
    for key in (3, 0, 4, 2, 1):
        order.used(key)
    assert [order.pop() for _ in range(5)] == [3, 0, 4, 2, 1]


def test_of_values_used_alike_the_one_that_costs_least_per_byte_to_bring_back_leaves_first() -> None:
    order = filled(range(10), nbytes=1000)
    order.put("large", 50_000_000, on_disk=False)
    order.put("newest", 1000, on_disk=False)
    assert order.pop("newest") == "large"


@pytest.mark.parametrize("keep", ["x", None, 0, ("a", 1)])
def test_the_value_to_keep_stays_although_it_is_worth_least(keep: object) -> None:
    order = filled([keep, "b", "c"])
    assert [order.pop(keep), order.pop(keep)] == ["b", "c"]
    with pytest.raises(KeyError):
        order.pop(keep)
    assert keep in order and len(order) == 1
    order._check()
    assert order.pop() == keep


def test_an_empty_order_raises_key_error() -> None:
    with pytest.raises(KeyError):
        Order[str]().pop()


def test_a_key_to_keep_that_is_not_in_memory_does_no_harm() -> None:
    order = filled("ab")
    assert order.pop("z") == "a"
    assert "z" not in order and len(order) == 1


def test_what_was_popped_or_left_is_not_chosen_again_until_it_comes_back() -> None:
    order = filled("abcd")
    assert order.pop() == "a"
    order.leave("b")
    assert len(order) == 2 and "a" not in order and "b" not in order
    order.put("b", 1000, on_disk=True)
    assert [order.pop(), order.pop(), order.pop()] == ["c", "d", "b"]
    order._check()


def test_a_restored_key_is_in_the_order_again_where_it_was() -> None:
    order = filled(range(4))
    assert order.pop() == 0
    order.restore(0, 1000)
    assert 0 in order
    assert [order.pop() for _ in range(4)] == [0, 1, 2, 3]
    order._check()


def test_a_key_deleted_while_it_was_popped_can_be_restored() -> None:
    order = filled("ab")
    order.forget(order.pop())
    order.restore("a", 1000)
    order._check()
    assert {order.pop(), order.pop()} == {"a", "b"}


def test_deleting_forgets() -> None:
    order = filled("abc")
    order.pop()
    order.forget("a")
    order.forget("b")
    order._check()
    assert not order._marks.keys() & {"a", "b"}
    assert order.pop() == "c"
    with pytest.raises(KeyError):
        order.pop()


def test_unknown_keys_are_passed_over() -> None:
    order = filled("a")
    for call in (order.leave, order.forget, order.saved, order.used):
        call("nobody")
    order.resize("nobody", 10)
    assert len(order) == 1 and order.pop() == "a"


def test_uses_of_keys_that_left_or_were_deleted_since_do_no_harm() -> None:
    order = filled("abcd")
    for key in "abcd":
        order.used(key)
    order.leave("a")
    order.forget("b")
    assert order.pop() == "c"
    order._check()
    assert "a" not in order and "b" not in order
    assert order.pop() == "d"


def test_a_changed_size_counts() -> None:
    order = filled(range(5))
    order.resize(3, 80_000_000)
    assert order.pop() == 3


def test_clear_leaves_an_order_like_a_new_one() -> None:
    order = Memory(20_000).run(cycles(40, 5)).order
    order.used(1)
    order.clear()
    assert len(order) == 0 and 1 not in order
    order.used(1)
    order.put(5, 100, on_disk=False)
    order.put(6, 100, on_disk=False)
    assert order.pop() == 5
    order._check()


def test_in_a_loop_over_twice_the_room_nearly_half_the_reads_are_hits() -> None:
    steps = list(cycles(300, 30))
    memory = Memory(150_000).run(cycles(300, 1, "set")).run(steps)
    assert memory.hits >= 0.45 * len(steps)


def test_in_a_loop_over_many_values_those_just_passed_leave_before_those_ranked_before() -> None:
    memory = Memory(1_500_000).run(cycles(3000, 3))
    before = memory.hits
    memory.run(cycles(3000, 3))
    assert memory.hits - before > 0.485 * 9000


def test_a_loop_over_many_does_not_push_out_the_few_that_are_used_all_the_time() -> None:
    def steps() -> Iterator[Step]:
        for i in range(6000):
            yield "get", i % 20
            yield "get", 20 + i % 500
    memory = Memory(60_000).run(steps())
    assert memory.hits > 0.5 * 12_000 * 0.95


def test_it_learns_anew_when_the_program_changes() -> None:
    rng = random.Random(5)
    memory = Memory(100_000).run(cycles(200, 20))
    hot = [("get", rng.randrange(300, 380)) for _ in range(4000)]
    memory.run(hot)
    before = memory.hits
    memory.run(hot)
    assert memory.hits - before > 0.97 * len(hot)
    before = memory.hits
    memory.run(cycles(200, 20))
    assert memory.hits - before > 0.4 * 4000


def test_what_was_seen_long_ago_counts_for_little() -> None:
    rng = random.Random(5)
    memory = Memory(100_000).run(("get", int(200 * rng.random() ** 2)) for _ in range(60_000))
    before = memory.hits
    memory.run(cycles(200, 20))
    assert memory.hits - before > 0.4 * 4000


def test_values_that_are_only_overwritten_are_held_so_that_half_their_writes_are_saved() -> None:
    memory = Memory(100_000).run(cycles(200, 20, "set"))
    assert memory.writes < 0.6 * 200 * 20


def patterns() -> Iterator[tuple[str, list[Step]]]:
    rng = random.Random(11)
    yield "uniform", [("get", rng.randrange(300)) for _ in range(6000)]
    yield "skewed", [("get", int(300 * rng.random() ** 3)) for _ in range(6000)]
    yield "drifting", [("get", i // 12 + int(rng.gauss(0, 15))) for i in range(6000)]
    yield "there and back", [("get", min(i % 500, 499 - i % 500)) for i in range(6000)]
    yield "read, then written", [(what, key) for key in (int(250 * rng.random() ** 2) for _ in range(3000))
                                 for what in ("get", "set")]
    yield "lags", [("set" if lag == 0 else "get", i - lag) for i in range(200, 1700) for lag in (0, 1, 7, 30)]
    stack = list(range(300))
    steps = []
    for _ in range(6000):
        stack.append(stack.pop(-1 - min(299, int(rng.lognormvariate(3, 1.2)))))
        steps.append(("get", stack[-1]))
    yield "recency", steps


@pytest.mark.parametrize("room", [20, 140])
@pytest.mark.parametrize(("name", "steps"), [pytest.param(*pattern, id=pattern[0]) for pattern in patterns()])
def test_it_never_costs_a_quarter_more_than_least_recently_used(name: str, steps: list[Step], room: int) -> None:
    ours, theirs = Memory(room * 1000).run(steps), LRU(room * 1000).run(steps)
    assert ours.reads + ours.writes <= 1.25 * (theirs.reads + theirs.writes)


def test_the_same_uses_give_the_same_order() -> None:
    steps = [step for _, pattern in patterns() for step in pattern[:1500]]
    assert Memory(50_000).run(steps).left == Memory(50_000).run(steps).left


def test_thousands_may_leave_in_a_row_each_once() -> None:
    order = filled(range(20_000), nbytes=100)
    for key in range(0, 20_000, 3):
        order.used(key)
    left = [order.pop(19_999) for _ in range(19_999)]
    assert set(left) == set(range(19_999))
    assert 19_999 in order
    order._check()


def test_saved_values_are_still_in_the_order() -> None:
    order = filled(range(50))
    assert order.pop() == 0
    for key in range(50):
        order.saved(key)
    assert [order.pop() for _ in range(49)] == list(range(1, 50))
    order._check()


def test_any_sequence_of_calls_keeps_what_must_hold() -> None:
    for seed in range(6):
        rng = random.Random(seed)
        order: Order[int] = Order()
        held: set[int] = set()
        popped: list[int] = []
        for step in range(4000):
            key = int(120 * rng.random() ** 2)
            what = rng.randrange(12)
            if what < 4:
                order.put(key, rng.choice((0, 1, 10, 1000, 10 ** 8)), on_disk=rng.random() < 0.5)
                held.add(key)
            elif what < 7:
                order.used(key)
            elif what == 7:
                for function in (order.leave, order.forget)[rng.randrange(2):]:
                    function(key)
                held.discard(key)
            elif what == 8:
                order.resize(key, rng.randrange(1, 5000))
                order.saved(key)
            elif what == 9 and popped:
                order.restore(popped[-1], 50)
                held.add(popped.pop())
            elif held - {key}:
                gone = order.pop(key)
                assert gone in held and gone != key
                held.remove(gone)
                popped.append(gone)
            else:
                with pytest.raises(KeyError):
                    order.pop(key)
            assert len(order) == len(held)
            if step % 50 == 0:
                order._check()
                assert all((key in order) == (key in held) for key in range(120))


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


def allocated(call: object, keys: int) -> float:
    """Bytes per key that `call` allocates and that stay allocated."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept = call()       # type: ignore[operator]
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
