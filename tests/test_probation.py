"""Small values that are read one by one while memory is full: they wait, and nothing of them is lost."""
from __future__ import annotations

import os
import random
import threading
import tracemalloc

import pytest
from children import forked

from chest import Chest
from chest.core import nbytes
from chest.errors import LoadError
from chest.probation import MOST

N = 2000


class Thing:
    def __init__(self, number):
        self.number = number


def full(path, make=lambda i: {"i": i, "parts": [i]}, **settings):
    """A chest of many values, nearly all of them rows, with a memory that is full."""
    c = Chest(path=path, **{"min_file_size": 1000, "available_memory": 60_000, **settings})
    for i in range(N):
        c[i] = make(i)
    c.sync()
    for key in outside(c, N):
        if c._life._full():
            break
        c[key]
    assert 0 < len(c.inmem) < N * 2 // 3
    c._life.store._rows.sweep()  # as some time later: that was brisk, and may show what was there when it began
    return c


def outside(c, count=1):
    """Keys whose values are not in memory."""
    return [key for key in c if key not in c.inmem][:count]


def read_others(c, keys):
    """Read so many others that whoever waits is decided about."""
    for other in outside(c, 3 * MOST):
        if not any(key in c._life._crowd.values for key in keys):
            return
        c[other] if other not in keys else None
    raise AssertionError("they still wait")


@pytest.mark.parametrize("make", [lambda i: {"i": i}, lambda i: [i] * 30, str], ids=["dicts", "lists", "texts"])
def test_what_is_read_once_pushes_nothing_out(path, make):
    c = full(path, make)
    inside, before = set(c.inmem), c.stats
    keys = outside(c, N)
    random.Random(1).shuffle(keys)
    for key in keys:
        assert c[key] == make(key)
    assert set(c.inmem) == inside
    assert c.stats.misses == before.misses + len(keys)
    assert c.stats.bytes_read > before.bytes_read
    assert (c.stats.bytes_written, c.stats.spills) == (before.bytes_written, before.spills)
    assert len(c._life._crowd.values) <= MOST
    c._life.memory._check()


def test_what_is_read_again_enters_memory(path):
    c = full(path)
    key, other = outside(c, 2)
    value = c[key]
    assert key not in c.inmem
    assert c[key] is value
    assert c.inmem[key] is value
    c[other]
    read_others(c, [other])
    assert other not in c.inmem
    hits = c.stats.hits
    c[other]
    assert other in c.inmem
    assert c.stats.hits == hits
    assert c.memory_usage <= c.available_memory


@pytest.mark.parametrize("end", ["flush", "sync", "close", "others", "again"])
def test_a_change_of_what_nobody_holds_is_kept(path, end):
    c = full(path)
    key, nested = outside(c, 2)
    c[key]["new"] = 1
    c[nested]["parts"].append("new")
    if end == "others":
        read_others(c, [key, nested])
        c.sync()
    elif end == "again":
        assert c[key]["new"] == 1
        c.sync()
    else:
        getattr(c, end)()
    assert Chest(path=path)[key] == {"i": key, "parts": [key], "new": 1}
    assert Chest(path=path)[nested] == {"i": nested, "parts": [nested, "new"]}
    assert c[key]["new"] == 1
    c._life.memory._check()


@pytest.mark.parametrize("part", [lambda value: value, lambda value: value["parts"]], ids=["value", "part of it"])
def test_what_somebody_holds_stays(path, part):
    c = full(path)
    (key,) = outside(c)
    held = part(c[key])
    read_others(c, [key])
    assert part(c[key]) is held
    held.update(new=1) if isinstance(held, dict) else held.append("new")
    c.sync()
    assert part(Chest(path=path)[key]) == held


def test_an_instance_is_found_again_and_its_change_is_kept(path):
    c = full(path, Thing)
    (key,) = outside(c)
    thing = c[key]
    read_others(c, [key])
    assert c[key] is thing
    thing.number = "new"
    c.sync()
    assert Chest(path=path)[key].number == "new"


@pytest.mark.parametrize("commit", ["sync", "flush", "close"])
def test_a_commit_decides(path, commit):
    c = full(path)
    changed, unchanged = outside(c, 2)
    c[changed]["new"] = 1
    c[unchanged]
    before = c.stats.bytes_written
    getattr(c, commit)()
    assert not c._life._crowd.values
    assert not c._life.memory._held._crowds
    assert set(c.inmem) & {changed, unchanged} == ({changed} if commit == "sync" else set())
    assert 0 < c.stats.bytes_written - before < 1000


def test_what_cannot_be_changed_does_not_wait(path):
    c = full(path, str)
    inside, keys = set(c.inmem), outside(c, 5)
    for key in keys:
        assert c[key] == str(key)
    assert not c._life._crowd.values
    assert set(c.inmem) == inside
    c[keys[0]]
    assert keys[0] in c.inmem
    c._life.memory._check()


def test_so_many_keys_are_remembered_as_there_are_values_in_memory(path):
    c = full(path, str, available_memory=20_000)
    keys = outside(c, N)
    for key in keys:
        c[key]
    assert len(c._life._seen) <= max(len(c.inmem), MOST) + MOST < len(keys)
    c[keys[-1]]
    assert keys[-1] in c.inmem


def test_nothing_that_waits_is_left_when_a_chest_that_was_only_read_is_closed(path):
    c = full(path)
    for key in outside(c, 5):
        c[key]
    assert c._life._crowd.values
    c.close()
    assert not c._life._crowd.values
    assert not c._life.memory._held._crowds


def test_an_instance_is_the_same_object_after_a_flush_and_its_change_is_kept(path):
    c = full(path, Thing)
    (key,) = outside(c)
    thing = c[key]
    c.flush()
    assert c[key] is thing
    thing.number = "new"
    c.sync()
    assert Chest(path=path)[key].number == "new"


def test_many_commits_leave_no_crowds_behind(path):
    c = full(path)
    for key in outside(c, 50):
        c[key]
        c.sync()
    assert not c._life.memory._held._crowds


def test_what_another_thread_reads_during_a_commit_is_not_let_go(path, monkeypatch):
    c = full(path)
    first, second = outside(c, 2)
    c[first]
    found = []
    real = c._life.store.alike

    def alike(values, data):
        monkeypatch.undo()
        thread = threading.Thread(target=lambda: found.append(c[second]))
        thread.start()
        thread.join()
        return real(values, data)

    monkeypatch.setattr(c._life.store, "alike", alike)
    c.sync()
    assert c[second] is found[0]
    found[0]["new"] = 1
    c.sync()
    assert Chest(path=path)[second]["new"] == 1


def test_ctrl_c_while_they_are_compared_loses_nothing(path, monkeypatch):
    c = full(path)
    keys = outside(c, 5)
    held = [c[key] for key in keys]

    def interrupted(values, data):
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(c._life.store, "alike", interrupted)
    with pytest.raises(KeyboardInterrupt):
        c._life._decide()
    assert not c._life.memory._held._crowds
    assert all(c[key] is value for key, value in zip(keys, held))
    for value in held:
        value["new"] = 1
    c.sync()
    assert all(Chest(path=path)[key]["new"] == 1 for key in keys)
    c._life.memory._check()


def test_what_waits_is_dropped_when_another_process_has_committed_another_value(path):
    c = full(path)
    (key,) = outside(c)
    c[key]
    with Chest(path=path) as other:
        other[key] = "other"
    assert c[key] == "other"


class Lazy:
    """Far larger than its pickle."""

    def __init__(self, size):
        self.size = size
        self.data = bytes(size)

    def __reduce__(self):
        return Lazy, (self.size,)


@pytest.mark.parametrize("how", ["one by one", "iteration", "prefetch"])
def test_values_larger_than_their_pickles_do_not_pile_up(path, how):
    c = full(path, lambda i: Lazy(20_000), available_memory=2e6)
    if how == "prefetch":
        c.flush()
    tracemalloc.start()
    try:
        if how == "one by one":
            for i in range(400):
                c[i]
        elif how == "iteration":
            assert all(value.size == 20_000 for value in c.values())
        else:
            c.prefetch(range(400))
        assert tracemalloc.get_traced_memory()[1] < (1.5e6 if how == "one by one" else 6e6)
    finally:
        tracemalloc.stop()
    assert c.memory_usage <= c.available_memory


def test_a_prefetched_value_is_in_memory_though_it_waited(path):
    c = full(path)
    (key,) = outside(c)
    c[key]
    c.available_memory = 1e9
    c.prefetch([key])
    assert key in c.inmem


def test_sizes_found_late_are_noted_once(path):
    with Chest(path=path, min_file_size=4096) as c:
        c.update({i: [i, "x" * 50] for i in range(10)})
    c = Chest(path=path, min_file_size=4096)
    values = [c[i] for i in range(10)]
    values[3].append("y" * 10)
    c.sync()
    assert c.memory_usage == sum(map(nbytes, c.inmem.values()))
    c.flush()
    assert c.memory_usage == 0


@pytest.mark.parametrize("change", ["set", "delete", "by another handle", "clear"])
def test_another_value_takes_the_place_of_what_waits(path, change):
    c = full(path)
    (key,) = outside(c)
    c[key]["new"] = 1
    if change == "set":
        c[key] = "other"
    elif change == "delete":
        del c[key]
    elif change == "clear":
        c.clear()
    else:
        c._life._crowd.values[key].pop("new")
        with Chest(path=path) as other:
            other[key] = "other"
        len(c)
    expected = None if change in ("delete", "clear") else "other"
    assert c.get(key) == expected
    for other in outside(c, 3 * MOST):
        c[other]
    assert c.get(key) == expected
    c.flush()
    assert Chest(path=path).get(key) == expected
    c._life.memory._check()


def test_a_value_that_another_handle_has_just_committed_is_the_one_that_is_read(path):
    c = full(path)
    keys = outside(c, 20)
    with Chest(path=path) as other:
        for turn in range(2):
            for key in keys[10 * turn :][:10]:
                other[key] = f"other {key}"
                other.flush() if turn else other.sync()
                assert c[key] == f"other {key}"


def test_two_threads_that_read_one_key_get_one_object(path):
    c = full(path)
    (key,) = outside(c)
    real, both, found = c._life.store.row, threading.Barrier(2), []

    def row(name):
        data = real(name)
        both.wait(30)
        return data

    c._life.store.row = row
    threads = [threading.Thread(target=lambda: found.append(c[key])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] is found[1]


def test_what_is_decided_about_is_found_meanwhile(path, monkeypatch):
    c = full(path)
    (key,) = outside(c)
    value = c[key]
    real = c._life._in_use

    def in_use(crowd):
        monkeypatch.undo()
        assert c[key] is value  # another thread could
        return real(crowd)

    monkeypatch.setattr(c._life, "_in_use", in_use)
    c._life._decide()
    assert c.inmem[key] is value
    c._life.memory._check()


def test_a_row_that_does_not_load_is_named(path):
    c = full(path, Thing)
    (key,) = outside(c)

    def broken(data):
        raise ValueError("odd")

    c._life.store.decode = broken
    with pytest.raises(LoadError, match="small.*odd"):
        c[key]


def test_without_writeback_nothing_is_compared_but_what_is_held_stays_the_same_object(path, monkeypatch):
    c = full(path, writeback=False)
    (key,) = outside(c)
    held = c[key]
    monkeypatch.delattr(c._life.store.__class__, "alike")
    read_others(c, [key])
    assert c[key] is held


def test_on_miss_is_told_of_every_value_that_is_loaded(path):
    seen = []
    c = full(path, on_miss=seen.append)
    (key,) = outside(c)
    c[key]
    assert seen == [key]
    assert key in c.inmem


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_of_a_fork_has_what_waits_too(path):
    c = full(path)
    (key,) = outside(c)
    c[key]["new"] = 1

    def child():
        assert c[key]["new"] == 1
        c[key]["child"] = 1
        c.sync()

    assert forked(child) == 0
    len(c)
    assert Chest(path=path)[key]["child"] == 1
    c.close()


@pytest.mark.parametrize("make", [lambda i: [set() for _ in range(200)], lambda i: [{} for _ in range(200)], Thing])
def test_what_waits_takes_an_eighth_of_the_budget_or_not_much_more(path, make):
    c = full(path, make, available_memory=200_000)
    most = 0
    for key in outside(c, 300):
        c[key]
        most = max(most, sum(map(nbytes, c._life._crowd.values.values())))
    assert 0 < most <= c.available_memory / 8 + nbytes(make(0))


def test_large_values_do_not_pile_up_as_they_wait(path):
    c = full(path, lambda i: {"i": i, "p": bytes(3000)}, min_file_size=4096, available_memory=300_000)
    tracemalloc.start()
    try:
        for key in outside(c, 500):
            c[key]["x"] = bytes(30_000)
        assert tracemalloc.get_traced_memory()[1] < 1_500_000
    finally:
        tracemalloc.stop()
    assert c.memory_usage <= c.available_memory


def test_where_nothing_tells_who_holds_a_value_all_enter_memory(path, monkeypatch):
    monkeypatch.setattr("chest.alone._COUNTS", False)
    c = full(path)
    keys = outside(c, 3 * MOST)
    for key in keys:
        c[key]["new"] = 1
    c.sync()
    fresh = Chest(path=path)
    assert all(fresh[key]["new"] == 1 for key in keys)
    c._life.memory._check()
