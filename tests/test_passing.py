"""Small values that pass by a full memory: as one iterates, and as a dict is taken in."""
from __future__ import annotations

import contextlib
import sqlite3
import threading
import tracemalloc
import zlib

import pytest

from chest import Chest
from chest.errors import DumpError
from chest.passing import STEP

N = 3 * STEP + 7


class Thing:
    def __init__(self, number):
        self.number = number


def full(path, make=lambda i: {"i": i}, **settings):
    """A chest of many values, nearly all of them rows, with a memory that is full, and what it holds."""
    c = Chest(path=path, min_file_size=1000, available_memory=20_000, **settings)
    values = {i: make(i) for i in range(N)}
    for key, value in values.items():
        c[key] = value
    c.sync()
    assert 10 < len(c.inmem) < N // 3
    return c


@pytest.mark.parametrize("make", [lambda i: {"i": i}, str, Thing, lambda i: "large" * 300 if i % 100 == 0 else [i]],
                         ids=["dicts", "texts", "instances", "a few files"])
def test_who_iterates_gets_every_value_and_memory_stays_as_it_was(path, make):
    c = full(path, make)
    inside, before = set(c.inmem), c.stats
    found = dict(c.items())
    assert list(found) == list(range(N))
    assert [vars(v) if isinstance(v, Thing) else v for v in found.values()] == [
        vars(v) if isinstance(v, Thing) else v for v in map(make, range(N))]
    assert len(set(c.inmem) & inside) > len(inside) / 2
    assert c.memory_usage <= c.available_memory
    assert c.stats.misses - before.misses >= N - len(inside)
    assert c.stats.bytes_written == before.bytes_written
    c._life.memory._check()
    assert not c._life.memory._held.pairs() or make is Thing


def test_a_value_in_the_hands_of_who_iterates_is_the_value_of_its_key(path):
    c = full(path)
    for key, value in c.items():
        assert c[key] is value


@pytest.mark.parametrize("make", [lambda i: {"i": i}, lambda i: [i], Thing], ids=["dicts", "lists", "instances"])
@pytest.mark.parametrize("commit", ["flush", "sync", "close", "spill"])
def test_what_one_changes_as_one_iterates_is_kept(path, make, commit):
    c = full(path, make)

    def change(value):
        if isinstance(value, dict):
            value["new"] = 1
        elif isinstance(value, list):
            value.append("new")
        else:
            value.number = "new"

    for value in c.values():
        change(value)
    if commit == "spill":
        for i in range(1000):
            c["more", i] = i
    else:
        getattr(c, commit)()
    expected = make(0)
    change(expected)
    for key in range(N):
        found = c[key]
        if make is Thing:
            assert found.number == "new"
        else:
            assert "new" in found
    c.close()
    saved = dict(Chest(path=path))
    assert all("new" in (vars(saved[i]).values() if make is Thing else saved[i]) for i in range(N))


def test_the_last_change_counts_also_when_the_loop_is_left(path):
    c = full(path)
    for key, value in c.items():
        value["i"] = "changed"
        if key == 700:
            break
    del value
    c.close()
    found = Chest(path=path)
    assert [found[i]["i"] for i in (0, 699, 700, 701)] == ["changed", "changed", "changed", 701]


def test_a_commit_in_the_loop_sees_what_was_changed_in_it(path):
    c = full(path)
    for key, value in c.items():
        value["i"] = "changed"
        if key in (5, 700):
            c.flush()
            assert Chest(path=path)[key] == {"i": "changed"}


def test_what_is_set_on_the_way_is_what_comes(path):
    c = full(path)
    seen = {}
    for key, value in c.items():
        seen[key] = value
        if key + 3 < N:
            c[key + 3] = f"set {key + 3}"
        c[key] = "over"
    assert seen == {**{i: f"set {i}" for i in range(N)}, 0: {"i": 0}, 1: {"i": 1}, 2: {"i": 2}}
    assert set(c.values()) == {"over"}


def test_a_key_that_comes_or_goes_on_the_way_is_an_error_as_in_a_dict(path):
    c = full(path)
    with pytest.raises(RuntimeError, match="changed size"):
        for _key in c.values():
            del c[N - 1]


def test_what_others_delete_on_the_way_is_left_out_and_what_they_set_is_seen_in_time(path):
    c = full(path)
    with Chest(path=path) as other:
        found = iter(c.items())
        assert next(found) == (0, {"i": 0})
        del other[N - 1]
        other[N - 2] = "theirs"
    rest = dict(found)
    assert list(rest) == list(range(1, N - 1))
    assert rest[N - 2] == "theirs"


def test_two_who_iterate_in_step_have_the_same_objects(path):
    c = full(path, lambda i: [])
    for one, other in zip(c.values(), c.values()):
        assert one is other
        one.append(1)
        other.append(2)
    c.close()
    assert all(value == [1, 2] for value in Chest(path=path).values())


def test_a_callback_for_misses_is_called_for_each(path):
    called = []
    c = full(path, on_miss=called.append)
    inside = set(c.inmem)
    del called[:]
    assert len(list(c.values())) == N
    assert len(called) >= N - len(inside)


def test_with_writeback_off_changes_of_what_passes_are_not_looked_for(path):
    c = full(path, writeback=False)
    for value in c.values():
        value["i"] = "changed"
    before = c.stats.bytes_written
    c.flush()
    assert c.stats.bytes_written == before


# In.


def test_a_dict_that_is_taken_in_by_a_full_memory_is_written_at_once(path):
    c = full(path)
    inside = dict(c.inmem)
    new = {i: [i] for i in range(N // 2, 2 * N)}
    c.update(new)
    c._life.memory._check()
    assert c.memory_usage <= c.available_memory
    assert dict(c) == {**{i: {"i": i} for i in range(N)}, **new}
    assert not set(c.inmem) & set(inside) - set(range(N // 2))
    c.close()
    assert dict(Chest(path=path)) == {**{i: {"i": i} for i in range(N)}, **new}


def test_what_the_user_holds_of_it_is_found_again_and_changes_are_kept(path):
    c = full(path)
    things = {i: Thing(i) for i in range(N)}
    c.update(things)
    assert all(c[i] is thing for i, thing in things.items())
    things[3].number = things[N - 1].number = "changed"
    c.close()
    found = Chest(path=path)
    assert [found[i].number for i in (3, 4, N - 1)] == ["changed", 4, "changed"]


def test_values_that_cannot_be_dumped_stay_in_memory_and_the_others_are_saved(path):
    c = full(path)
    c.update({**dict.fromkeys(range(N), "new"), 7: lambda: None})
    assert callable(c[7])
    with pytest.raises(DumpError, match="7"):
        c.flush()
    found = dict(Chest(path=path))
    assert found.pop(7) == {"i": 7}
    assert set(found.values()) == {"new"}
    del c[7]


def test_with_overwrite_off_what_is_there_stays(path):
    c = full(path)
    c.update(dict.fromkeys(range(2 * N), "new"), overwrite=False)
    assert dict(c) == {**{i: {"i": i} for i in range(N)}, **dict.fromkeys(range(N, 2 * N), "new")}


def test_a_key_that_was_deleted_and_comes_again_with_others_stands_last(path):
    c = full(path)
    del c[3]
    c.update(dict.fromkeys(range(10), "new"))
    expected = [*(i for i in range(N) if i != 3), 3]
    assert list(c) == expected
    c.close()
    assert list(Chest(path=path)) == expected


def test_the_rows_of_what_was_deleted_before_go_with_the_next_commit(path):
    c = full(path)
    del c[3], c[4]
    c.update({3: "new", N: "new"})
    c.close()
    with contextlib.closing(sqlite3.connect(f"{path}/.small")) as database:
        assert database.execute("SELECT count(*) FROM value").fetchone() == (N,)
    assert list(Chest(path=path))[-2:] == [3, N]


def test_a_dict_taken_in_while_others_read_and_set_leaves_one_value_of_each_key(path):
    c = full(path)
    stop = threading.Event()
    errors = []

    def use():
        try:
            while not stop.is_set():
                for i in range(0, N, 50):
                    c[i]
                    c[i] = "theirs"
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        c.update(dict.fromkeys(range(N), "mine"))
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    c._life.memory._check()
    found = dict(c)
    assert set(found.values()) <= {"mine", "theirs"}
    c.close()
    assert dict(Chest(path=path)) == found


def test_what_a_commit_wrote_on_the_way_is_written_again_when_it_is_undone(path):
    c = full(path, lambda i: [i])
    for key, value in c.items():
        if key == 0:
            first = value
            first.append("x")
            c.sync()
        if key == 3:
            first.pop()
    c.flush()
    assert Chest(path=path)[0] == [0]


def test_large_and_small_values_stand_in_the_order_in_which_they_came(path):
    c = Chest(path=path, available_memory=20_000, min_file_size=4096)
    c["fill"] = bytes(18_500)
    pairs = {f"k{n}": bytes(9000) if n % 3 == 1 else b"s" for n in range(9)}
    c.update(pairs)
    assert list(c) == ["fill", *pairs]
    c.close()
    assert list(Chest(path=path)) == ["fill", *pairs]


def test_values_that_grow_as_one_iterates_do_not_pile_up(path):
    c = Chest(path=path, available_memory=100_000, min_file_size=4096)
    for n in range(1000):
        c[n] = {"n": n, "p": bytes(2000)}
    tracemalloc.start()
    try:
        for value in c.values():
            value["x"] = bytes(50_000)
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()
    assert c.memory_usage <= c.available_memory
    assert all(len(value["x"]) == 50_000 for value in c.values())


def test_values_that_are_large_once_they_are_loaded_come_one_by_one(path):
    def dump(value, file):
        file.write(zlib.compress(value))

    def load(file):
        return zlib.decompress(file.read())

    c = Chest(path=path, available_memory=1_000_000, min_file_size=4096, dump=dump, load=load)
    for n in range(100):
        c[n] = bytes(500_000)
    tracemalloc.start()
    try:
        assert sum(map(len, c.values())) == 100 * 500_000
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


def test_what_is_in_memory_is_not_read_again_as_one_iterates(path):
    c = Chest(path=path, min_file_size=4096)
    c.update((n, [n]) for n in range(2000))
    c.sync()
    for _ in range(2):
        assert len(list(c.items())) == 2000
    assert c.stats.bytes_read == 0


def test_ctrl_c_as_values_are_compared_leaves_nothing_lent_and_no_change_behind(path, monkeypatch):
    c = full(path)
    for _ in range(3):
        with monkeypatch.context() as patch:
            steps = iter(c.items())
            next(steps)[1]["new"] = 1

            def interrupted(*args):
                raise KeyboardInterrupt

            patch.setattr(c._life.store, "alike", interrupted)
            with pytest.raises(KeyboardInterrupt):
                list(steps)
    assert c._life.memory._held.pairs() == []
    c.close()
    assert Chest(path=path)[0] == {"i": 0, "new": 1}


def test_large_rows_are_not_all_read_to_learn_that_they_do_not_fit(path):
    c = Chest(path=path, min_file_size=1 << 22)
    for n in range(16):
        c[n] = bytes(3_000_000)
    c.close()
    c = Chest(path=path, min_file_size=1 << 22, available_memory=7_000_000)
    tracemalloc.start()
    try:
        c.prefetch(range(16))
        assert tracemalloc.get_traced_memory()[1] < 2 * 16_800_000
    finally:
        tracemalloc.stop()
    assert len(c.inmem) == 2


def test_a_prefetch_that_another_thread_overtook_leaves_memory_within_the_budget(path, monkeypatch):
    c = Chest(path=path, min_file_size=4096, available_memory=100_000)
    c.update((n, [n, bytes(1000)]) for n in range(200))
    c.flush()
    real = c._life._still

    def overtaken(*args):
        if not c.inmem:
            monkeypatch.undo()
            c.prefetch(range(100, 200))
        return real(*args)

    monkeypatch.setattr(c._life, "_still", overtaken)
    c.prefetch(range(100))
    assert 0 < c.memory_usage <= c.available_memory


@pytest.mark.parametrize("budget, fills", [(5_000, False), (300_000, True)])
def test_memory_is_filled_as_one_iterates_if_a_good_part_fits(path, budget, fills):
    Chest({i: {"i": i} for i in range(N)}, path=path, min_file_size=1000).close()
    c = Chest(path=path, min_file_size=1000, available_memory=budget)
    assert list(c.values()) == [{"i": i} for i in range(N)]
    assert bool(c.inmem) is fills
    assert list(c.values()) == [{"i": i} for i in range(N)]
    assert c.memory_usage <= budget
