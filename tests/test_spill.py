"""The order in which values leave memory, on its own."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from spilling import LRU, Memory, Step, cycles, filled

from chest.ages import STATE
from chest.spill import Order


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


def test_with_those_that_leave_go_the_older_ones_that_wait_to_be_written() -> None:
    order: Order[str] = Order()
    order.put("on disk", 100, on_disk=True)
    for key in ("large", "a", "used", "b", "saved", "c", "replaced", "d", "forgotten", "left"):
        order.put(key, 100 if key != "large" else 10_000, on_disk=False)
    order.used("used")
    order.saved("saved")
    order.forget("forgotten")
    order.put("replaced", 100, on_disk=False)
    order.put("e", 50_000_000, on_disk=False)
    order.put("younger", 100, on_disk=False)
    order.leave("left")
    assert order.pop() == "e"
    assert order.company(["e", "left"], 1000) == ["a", "b", "c", "d", "left", "e"]
    assert order.company(["e"], 1000) == ["e"]
    order.put("f", 50_000_000, on_disk=False)
    assert order.pop() == "f"
    assert order.company(["f"], 1000) == ["younger", "f"]


def test_a_key_that_is_set_again_and_again_holds_up_no_company() -> None:
    order = filled(["hot", "a", "b"], nbytes=100)
    order.put("c", 50_000_000, on_disk=False)
    order.put("hot", 100, on_disk=False)
    assert order.pop() == "c"
    assert order.company(["c"], 1000) == ["a", "b", "c"]


def test_any_sequence_of_calls_keeps_what_must_hold() -> None:
    for seed in range(6):
        rng = random.Random(seed)
        order: Order[int] = Order()
        held: set[int] = set()
        popped: list[int] = []
        for step in range(4000):
            key = int(120 * rng.random() ** 2)
            what = rng.randrange(13)
            if what == 12:
                together = {key: rng.choice((1, 1000)) for key in rng.sample(range(120), 20) if key not in held}
                order.put_many(together)
                held |= together.keys()
            elif what < 4:
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


def test_values_that_come_together_are_as_if_they_had_come_one_by_one() -> None:
    one, other = filled(range(20)), filled(range(20))
    for order in (one, other):
        for _ in range(10):
            order.pop()
    sizes = {key: 500 + key for key in (*range(5), *range(100, 300))}
    for key, nbytes in sizes.items():
        one.put(key, nbytes, on_disk=True)
    other.put_many(sizes)
    other._check()
    known = [order._marks for order in (one, other)]
    assert {key: known[0][key] & STATE for key in sizes} == {key: known[1][key] & STATE for key in sizes}
    assert one._prices == other._prices
    assert one._ages.now == other._ages.now
    assert sorted(one.pop() for _ in range(100)) == sorted(other.pop() for _ in range(100))
