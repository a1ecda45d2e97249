"""Threads: loads and dumps go on side by side, a hit takes no lock, callbacks may use the chest, and nothing is lost.

The races are staged: a load or a dump stops in the middle until the test has done something else meanwhile.
"""
from __future__ import annotations

import collections
import contextlib
import itertools
import pickle
import random
import threading

import pytest
from invariants import check

from chest import Chest
from chest.core import nbytes

WAIT = 30  # seconds until something counts as hung
VALUE = "v" * 900


class Gates:
    """``dump`` and ``load`` that stop at chosen values until they are let through."""

    def __init__(self):
        self.gates = {}

    def stop(self, what, value):
        """Let the next ``what`` ('dump' or 'load') of ``value`` stop, having announced itself."""
        self.gates[what, value] = (threading.Event(), threading.Event())
        return self.gates[what, value]

    def pass_through(self, what, value):
        gate = self.gates.pop((what, value), None) if isinstance(value, (str, int)) else None
        if gate is not None:
            arrived, go_on = gate
            arrived.set()
            assert go_on.wait(WAIT), "the test never let this go on"

    def dump(self, value, file):
        file.write(pickle.dumps(value)[:3])
        self.pass_through("dump", value)
        file.write(pickle.dumps(value)[3:])

    def load(self, file):
        value = pickle.load(file)
        self.loads = getattr(self, "loads", []) + [value]
        self.pass_through("load", value)
        return value


@pytest.fixture
def gates():
    return Gates()


@pytest.fixture
def chest(path, gates):
    c = Chest(path=path, dump=gates.dump, load=gates.load)
    yield c
    check(c)
    assert c.memory_usage == sum(map(nbytes, c.inmem.values()))


@contextlib.contextmanager
def thread(action, *arguments):
    """Run ``action`` in a thread during the block; what it returned is in the list that is yielded, after the block."""
    results = []

    def run():
        try:
            results.append(action(*arguments))
        except BaseException as error:
            results.append(error)

    runner = threading.Thread(target=run, daemon=True)
    runner.start()
    yield results
    runner.join(WAIT)
    assert not runner.is_alive(), "a thread hangs"


# Loads.


def test_two_threads_load_two_keys_at_the_same_time(chest, gates):
    chest.update(x="x", y="y")
    chest.flush()
    (x_in, x_go), (y_in, y_go) = gates.stop("load", "x"), gates.stop("load", "y")
    with thread(chest.get, "x") as x, thread(chest.get, "y") as y:
        assert x_in.wait(WAIT)
        assert y_in.wait(WAIT)
        x_go.set()
        y_go.set()
    assert (x, y) == (["x"], ["y"])


def test_two_threads_that_ask_for_one_key_load_it_once(chest, gates):
    chest["x"] = "x"
    chest.flush()
    arrived, go_on = gates.stop("load", "x")
    misses = chest.stats.misses
    with thread(chest.get, "x") as one:
        assert arrived.wait(WAIT)
        with thread(chest.get, "x") as two, thread(chest.prefetch, "x"):
            go_on.set()
    assert one[0] is two[0]
    assert gates.loads.count("x") == 1
    assert chest.stats.misses == misses + 1


def test_a_load_that_fails_is_tried_by_the_one_who_waits(path):
    failures = [True]
    arrived, go_on = threading.Event(), threading.Event()

    def load(file):
        value = pickle.load(file)
        if value == "x" and failures:
            arrived.set()
            go_on.wait(WAIT)
            failures.pop()
            raise ZeroDivisionError
        return value

    c = Chest({"x": "x"}, path=path, load=load, dump=pickle.dump)
    c.flush()
    with thread(lambda: c["x"]) as one:
        assert arrived.wait(WAIT)
        with thread(lambda: c["x"]) as two:
            go_on.set()
    assert "ZeroDivisionError" in str(one[0])
    assert two == ["x"]


@pytest.mark.parametrize("meanwhile", ["set", "set and spilled", "set and flushed", "deleted", "deleted and set", "dropped",
                                       "flushed", "updated"])
def test_what_happens_to_a_key_while_it_is_loaded_is_what_holds(chest, gates, meanwhile):
    chest["x"] = "old"
    chest["other"] = 1
    chest.flush()
    arrived, go_on = gates.stop("load", "old")
    with thread(lambda: chest.get("x", "gone")) as found:
        assert arrived.wait(WAIT)
        if "deleted" in meanwhile:
            del chest["x"]
        if "set" in meanwhile:
            chest["x"] = "new"
        if "spilled" in meanwhile:
            chest.move_to_disk("x")
        if "flushed" in meanwhile:
            chest.flush()
        if meanwhile == "dropped":
            chest.drop()
        if meanwhile == "updated":
            with Chest({"x": "new"}, dump=gates.dump, load=gates.load) as other:
                chest.update(other)
        go_on.set()
    now = {"deleted": "gone", "dropped": "gone", "flushed": "old"}.get(meanwhile, "new")
    assert found == [now]
    assert chest.get("x", "gone") == now
    chest.flush()
    assert dict(Chest(path=chest.path, load=pickle.load, dump=pickle.dump)) == dict(chest)


def test_a_set_does_not_wait_for_the_load_of_its_key(chest, gates):
    chest["x"] = "old"
    chest.flush()
    arrived, go_on = gates.stop("load", "old")
    with thread(chest.get, "x") as found:
        assert arrived.wait(WAIT)
        chest["x"] = "new"
        assert chest["x"] == "new"
        assert not found
        go_on.set()
    assert found == ["new"]


# Dumps.


@pytest.mark.parametrize("how", ["move_to_disk", "flush", "sync"])
@pytest.mark.parametrize("meanwhile", ["set", "set and moved", "deleted", "deleted and set", "read", "popped", "cleared"])
def test_what_happens_to_a_key_while_it_is_written_is_what_holds(chest, gates, how, meanwhile):
    chest["x"] = "old"
    chest["other"] = 1
    arrived, go_on = gates.stop("dump", "old")
    with thread(chest.move_to_disk, "x") if how == "move_to_disk" else thread(getattr(chest, how)) as done:
        assert arrived.wait(WAIT)
        if "deleted" in meanwhile:
            del chest["x"]
        if "set" in meanwhile:
            chest["x"] = "new"
        if "moved" in meanwhile:
            chest.move_to_disk("x")
        if meanwhile == "read":
            assert chest["x"] == "old"
        if meanwhile == "popped":
            assert chest.pop("x") == "old"
        if meanwhile == "cleared":
            chest.clear()
        go_on.set()
    assert done == [None]
    now = {"deleted": "gone", "popped": "gone", "cleared": "gone", "read": "old"}.get(meanwhile, "new")
    assert chest.get("x", "gone") == now
    chest.flush()
    assert chest.get("x", "gone") == now
    assert dict(Chest(path=chest.path, load=pickle.load, dump=pickle.dump)) == dict(chest)


def test_others_go_on_while_a_value_is_written(chest, gates):
    chest.update(x="x", y="y", z="z")
    chest.move_to_disk("z")
    arrived, go_on = gates.stop("dump", "x")
    with thread(chest.flush) as done:
        assert arrived.wait(WAIT)
        assert chest["y"] == "y"
        assert chest["z"] == "z"
        chest["new"] = "new"
        del chest["y"]
        assert list(chest) == ["x", "z", "new"]
        assert len(chest) == 3
        assert not done
        go_on.set()
    chest.flush()
    assert dict(Chest(path=chest.path, load=pickle.load, dump=pickle.dump)) == {"x": "x", "z": "z", "new": "new"}


def test_two_values_are_written_at_the_same_time(chest, gates):
    chest.update(x="x", y="y", last="stays")
    (x_in, x_go), (y_in, y_go) = gates.stop("dump", "x"), gates.stop("dump", "y")
    with thread(chest.move_to_disk, "x"), thread(chest.move_to_disk, "y"):
        assert x_in.wait(WAIT)
        assert y_in.wait(WAIT)
        x_go.set()
        y_go.set()
    assert set(chest.inmem) == {"last"}


def test_a_change_in_place_while_a_value_is_written_is_not_lost(path):
    """The writer may have written the value as it was before, or half of it; the next commit looks again."""
    arrived, go_on = threading.Event(), threading.Event()

    def dump(value, file):
        file.write(pickle.dumps(value))
        if isinstance(value, list) and value and value[0] == "mine" and not arrived.is_set():
            arrived.set()
            assert go_on.wait(WAIT)

    c = Chest({"x": ["mine"]}, path=path, dump=dump, load=pickle.load)
    with thread(c.sync):
        assert arrived.wait(WAIT)
        c["x"].append("late")
        go_on.set()
    c.sync()
    assert dict(Chest(path=path, dump=pickle.dump, load=pickle.load)) == {"x": ["mine", "late"]}


def test_two_commits_of_one_handle_do_not_disturb_each_other(chest, gates):
    chest.update(x="x", y="y")
    arrived, go_on = gates.stop("dump", "x")
    with thread(chest.sync) as one:
        assert arrived.wait(WAIT)
        chest["z"] = "z"
        with thread(chest.sync) as two:  # waits for its turn
            go_on.set()
    assert one == two == [None]
    assert seen_after_a_crash(chest) == {"x": "x", "y": "y", "z": "z"}


# Locks.


@contextlib.contextmanager
def lock_held_elsewhere(chest):
    """Another thread has the chest's lock during the block."""
    held, release = threading.Event(), threading.Event()

    def hold():
        with chest.lock:
            held.set()
            assert release.wait(WAIT)

    with thread(hold) as done:
        assert held.wait(WAIT)
        yield
        release.set()
    assert done == [None]


@pytest.mark.parametrize("settings", [{}, {"writeback": False}, {"min_file_size": 1000}])
def test_a_hit_takes_no_lock(path, settings):
    c = Chest({"x": 1, ("a", "b"): [2]}, path=path, **settings)
    with lock_held_elsewhere(c), thread(lambda: [(c["x"], c.get("x"), c["a", "b"], "x" in c) for _ in range(10_000)]) as found:
        pass
    assert found[0][-1] == (1, 1, [2], True)
    assert c.stats.hits == 30_000


def test_a_hit_does_not_wait_for_a_load_a_dump_or_a_commit(chest, gates):
    chest.update(x="x", y="y", hit="hit")
    chest.move_to_disk("y")
    (x_in, x_go), (y_in, y_go) = gates.stop("dump", "x"), gates.stop("load", "y")
    with thread(chest.sync), thread(chest.get, "y"):
        assert x_in.wait(WAIT)
        assert y_in.wait(WAIT)
        assert chest["hit"] == "hit"
        x_go.set()
        y_go.set()


def test_the_lock_is_re_entrant_and_keeps_others_from_changing_the_chest(chest):
    with chest.lock:
        chest["x"] = 1
        chest.flush()
        assert chest["x"] == 1
        with thread(chest.__setitem__, "x", 2) as done:
            assert chest["x"] == 1
            assert not done
            chest["y"] = chest["x"]
            with chest.lock:
                pass
            chest.lock.release()  # so that the thread can end within the block
        chest.lock.acquire()
    assert (chest["x"], chest["y"]) == (2, 1)


def test_who_has_the_lock_can_wait_for_a_key_that_another_thread_loads(chest, gates):
    chest["x"] = "x"
    chest.flush()
    arrived, go_on = gates.stop("load", "x")
    with thread(chest.get, "x") as one:
        assert arrived.wait(WAIT)

        def with_lock():
            with chest.lock:
                go_on.set()
                return chest["x"]

        with thread(with_lock) as two:
            pass
    assert one == two == ["x"]


# Callbacks.


def test_on_miss_may_use_the_chest(path):
    log = []

    def on_miss(key):
        log.append(key)
        if key == "x":
            c["seen"] = c["y"]
            c.flush()

    c = Chest({"x": 1, "y": 2}, path=path, on_miss=on_miss)
    c.flush()
    with thread(lambda: c["x"]) as found:
        pass
    assert found == [1]
    assert log == ["x", "y"]
    assert dict(c) == {"x": 1, "y": 2, "seen": 2}


@pytest.mark.parametrize("act", ["read", "set", "delete", "set another", "flush", "delete another"])
def test_on_overflow_may_use_the_chest(path, act):
    log = []

    def on_overflow(key):
        log.append(key)
        if key != "x" or len(log) > 1:
            return
        if act == "read":
            assert c["x"] == VALUE
        if act == "set":
            c["x"] = "new"
        if act == "delete":
            del c["x"]
        if act == "set another":
            c["other"] = VALUE
        if act == "delete another":
            del c["y"]
        if act == "flush":
            c.flush()

    c = Chest({"x": VALUE, "y": VALUE}, path=path, on_overflow=on_overflow)
    with thread(c.move_to_disk, "x") as done:
        pass
    assert done == [None]
    expected = {"x": VALUE, "y": VALUE}
    expected.update({"set": {"x": "new"}, "set another": {"other": VALUE}}.get(act, {}))
    expected.pop({"delete": "x", "delete another": "y"}.get(act), None)
    assert dict(c) == expected
    c.flush()
    assert dict(Chest(path=path)) == expected
    check(c)


def test_dump_and_load_may_use_the_chest(path):
    chests = []

    def dump(value, file):
        if value == "x":
            chests[0]["dumped"] = True
            assert chests[0]["y"] == "y"
        pickle.dump(value, file)

    def load(file):
        value = pickle.load(file)
        if value == "x":
            chests[0]["loaded"] = chests[0]["y"]
        return value

    c = Chest({"x": "x", "y": "y"}, path=path, dump=dump, load=load)
    chests.append(c)
    with thread(c.flush) as done:
        pass
    assert done == [None]
    with thread(lambda: c["x"]) as found:
        pass
    assert found == ["x"]
    c.flush()
    assert dict(Chest(path=path)) == {"x": "x", "y": "y", "dumped": True, "loaded": "y"}


def test_a_load_that_asks_for_its_own_key_does_not_wait_for_itself(path):
    depth = []

    def load(file):
        value = pickle.load(file)
        if value == "x" and not depth:
            depth.append(1)
            assert c["x"] == "x"
        return value

    c = Chest({"x": "x"}, path=path, load=load)
    c.flush()
    with thread(lambda: c["x"]) as found:
        pass
    assert found == ["x"]


def test_an_error_in_a_callback_is_the_callers_and_leaves_the_chest_whole(path):
    failing = [True]

    def fail(key):
        if failing:
            raise ZeroDivisionError(key)

    c = Chest({"x": VALUE, "y": VALUE}, path=path, on_miss=fail, on_overflow=fail)
    with pytest.raises(ZeroDivisionError):
        c.move_to_disk("x")
    with pytest.raises(ZeroDivisionError):
        c.available_memory = 10
    c.available_memory = 1e9
    c.sync()
    other = Chest(path=path, on_miss=fail)
    with pytest.raises(ZeroDivisionError):
        other["x"]
    failing.clear()
    assert dict(c) == dict(other) == {"x": VALUE, "y": VALUE}
    for each in (c, other):
        check(each)


# Like a dict: one step each.


def test_pop_gives_each_value_to_one_thread_only():
    c = Chest(available_memory=2000)
    for i in range(300):
        c[i] = VALUE + str(i)
    taken = [[] for _ in range(6)]

    def work(mine):
        for i in range(300):
            value = c.pop(i, None)
            if value is not None:
                mine.append(value)

    run([lambda mine=mine: work(mine) for mine in taken])
    assert sorted(itertools.chain(*taken)) == sorted(VALUE + str(i) for i in range(300))
    assert len(c) == c.memory_usage == 0


def test_popitem_gives_each_pair_to_one_thread_only():
    c = Chest({i: i for i in range(200)}, available_memory=2000)
    taken = [[] for _ in range(6)]
    run([lambda mine=mine: [mine.append(c.popitem()) for _ in range(30)] for mine in taken])
    keys = [key for key, _ in itertools.chain(*taken)]
    assert sorted(keys) == list(range(20, 200))
    assert list(c) == list(range(20))


def test_setdefault_gives_all_threads_the_same_default():
    c = Chest(available_memory=2000)
    defaults = [[] for _ in range(6)]
    run([lambda me=me: [defaults[me].append(c.setdefault(f"key{i}", f"{me}:{i}")) for i in range(50)] for me in range(6)])
    assert len({tuple(mine) for mine in defaults}) == 1, "threads were given different defaults"
    assert defaults[0] == [c[f"key{i}"] for i in range(50)]


def run(actions):
    """Run the actions in a thread each, all at once; the first error is raised here."""
    errors = []
    start = threading.Barrier(len(actions))

    def guarded(action):
        start.wait(WAIT)
        try:
            action()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(action,), daemon=True) for action in actions]
    for one in threads:
        one.start()
    for one in threads:
        one.join(4 * WAIT)
        assert not one.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


@pytest.mark.parametrize("settings", [
    {"available_memory": 5000}, {"available_memory": 1e9}, {"available_memory": 0}, {"available_memory": 5000, "min_file_size": 800},
    {"available_memory": 5000, "writeback": False}], ids=["spilling", "roomy", "no memory", "small values", "writeback off"])
def test_eight_threads_that_do_everything_at_once_agree_with_what_each_did(path, settings, leaks_nothing):
    c = Chest(path=path, **settings)
    models = [{} for _ in range(8)]

    def work(me):
        chance = random.Random(me)
        mine = models[me]
        for number in range(120):
            key = (me, chance.randrange(12))
            what = chance.random()
            if what < 0.4:
                c[key] = mine[key] = f"{number}:" + "v" * chance.choice([0, 10, 1000])
            elif what < 0.5:
                assert c.pop(key, None) == mine.pop(key, None)
            elif what < 0.55:
                c.update({key: number})
                mine[key] = number
            elif what < 0.6 and key in mine:
                c.move_to_disk(key)
            elif what < 0.62:
                c.sync()
            elif what < 0.63:
                c.flush()
            elif what < 0.65:
                c.prefetch(list(mine))
            elif what < 0.67:
                assert {k: v for k, v in c.copy().items() if k[0] == me} == mine
            elif what < 0.7:
                assert [k for k in list(c._keys) if k[0] == me] == list(mine)
            else:
                assert c.get(key) == mine.get(key)
            c["shared"] = me
            assert c.get("shared") in range(8)

    run([lambda me=me: work(me) for me in range(8)])
    expected = {key: value for model in models for key, value in model.items()}
    shared = c.pop("shared")
    assert shared in range(8)
    assert dict(c) == expected
    check(c)
    sizes = list(map(nbytes, c.inmem.values()))
    assert c.memory_usage == sum(sizes) <= max([c.available_memory, *sizes])  # one that was given last may be larger
    c.close()
    assert dict(Chest(path=path)) == expected
    c.drop()


def test_iterating_while_others_change_values_but_no_keys(path):
    c = Chest(dict.fromkeys(range(50), 0), path=path, available_memory=2000)
    stop = threading.Event()

    def change():
        number = 0
        while not stop.is_set():
            number += 1
            c[number % 50] = number

    with thread(change):
        for _ in range(10):
            assert [key for key, _ in c.items()] == list(range(50))
            assert len(list(c.values())) == 50
        stop.set()


class Clumsy:
    """A key; each so many times that it is looked up, another value is let go of, as a thread might do just then."""

    held, calls, every = [], 0, 1

    def __init__(self, number):
        self.number = number

    def __eq__(self, other):
        return self.number == other.number

    def __hash__(self):
        Clumsy.calls += 1
        if Clumsy.held and not Clumsy.calls % Clumsy.every:
            Clumsy.held.pop()
        return hash(self.number)


@pytest.mark.parametrize("every", [3, 30])
@pytest.mark.parametrize("how", ["sync", "sync, behind an interruption", "flush", "rollback"])
def test_a_value_that_left_memory_may_die_at_any_moment(path, how, every):
    """Its weak reference takes itself out of what is looked through just then."""
    keys = [Clumsy(number) for number in range(100)]
    c = Chest({key: collections.deque([key.number]) for key in keys}, path=path, available_memory=0)
    c.flush()
    held = [c[key] for key in keys]
    c[keys[0]].append("changed")
    c._engine.state.torn = "interruption" in how
    Clumsy.held, Clumsy.every = held, every
    getattr(c, how.partition(",")[0])()
    Clumsy.held = []
    assert c[keys[0]] == collections.deque([0, "changed"][:1 if how == "rollback" else 2])
    assert all(c[key] == collections.deque([key.number]) for key in keys[1:])


def test_a_key_that_comes_or_goes_while_one_iterates_is_an_error_as_with_a_dict():
    for change in (lambda c: c.pop(1), lambda c: c.update(new=1), lambda c: c.clear()):
        c = Chest({1: 1, 2: 2})
        with pytest.raises(RuntimeError, match="changed size"):
            for _ in c:
                change(c)


def test_an_update_of_keys_that_are_there_is_no_change_of_size():
    c = Chest({n: [n] for n in range(10)}, min_file_size=1000, available_memory=0)
    for _ in c:
        c.update({1: ["new"], 2: ["new"]})
    with pytest.raises(RuntimeError, match="changed size"):
        for _ in c:
            c.update({1: ["newer"], 10: ["new"]})
    assert dict(c) == {**{n: [n] for n in range(11)}, 1: ["newer"], 2: ["new"], 10: ["new"]}


def seen_after_a_crash(chest):
    """What another handle finds now, as it would after a kill at this moment."""
    return dict(Chest(path=chest.path, dump=pickle.dump, load=pickle.load))


class Announced:
    """Says when it is pickled."""

    told = staticmethod(lambda: None)

    def __reduce__(self):
        Announced.told()
        return Announced, ()


def test_what_is_set_while_the_value_before_it_is_compared_is_not_taken_for_saved(path, monkeypatch):
    c = Chest({"x": Announced(), "last": 1}, path=path)
    c.sync()
    assert c["x"] and c["last"]
    arrived, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(Announced, "told", lambda: (arrived.set(), go_on.wait(WAIT)))
    with thread(c.move_to_disk, "x"):
        assert arrived.wait(WAIT)
        c["x"] = ["new"]
        go_on.set()
    check(c)
    c.flush()
    assert dict(Chest(path=path)) == {"x": ["new"], "last": 1}


@pytest.mark.parametrize("commit", ["sync", "flush"])
@pytest.mark.parametrize("first", ["commit", "spill"])
def test_a_commit_has_saved_its_values_even_if_another_thread_is_writing_them_too(chest, gates, commit, first):
    chest.update(x="x", last="stays")
    works = [getattr(chest, commit), lambda: chest.move_to_disk("x")]
    arrived, go_on = gates.stop("dump", "x")
    with thread(works.pop(0 if first == "commit" else 1)) as one:
        assert arrived.wait(WAIT)
        with thread(works[0]) as two:
            if first == "commit":
                go_on.set()  # else the commit does not wait for the spill
        assert seen_after_a_crash(chest) == {"x": "x", "last": "stays"}
        go_on.set()
    assert one == two == [None]
    assert chest["x"] == "x"
    chest.sync()
    assert seen_after_a_crash(chest) == {"x": "x", "last": "stays"}


def test_of_two_writes_of_a_value_that_changes_the_later_one_counts(path):
    """The first began before the change and ends behind it."""
    first, first_go = threading.Event(), threading.Event()

    def dump(value, file):
        file.write(pickle.dumps(value))
        if value == ["mine"] and not first.is_set():
            first.set()
            assert first_go.wait(WAIT)

    c = Chest({"x": ["mine"]}, path=path, dump=dump, load=pickle.load)
    with thread(c.sync):
        assert first.wait(WAIT)
        c["x"].append("late")
        with thread(c.move_to_disk, "x"):
            first_go.set()
    assert c["x"] == ["mine", "late"]
    c.sync()
    assert seen_after_a_crash(c) == {"x": ["mine", "late"]}


@pytest.mark.parametrize("commit", ["sync", "flush", "close"])
def test_a_key_that_is_set_between_the_look_and_the_write_of_a_commit_keeps_its_new_value(path, commit):
    c = Chest({"x": "old", "y": "y"}, path=path)

    def meanwhile(items, total):
        c["x"] = "new"
        del c["y"]
        return items

    getattr(c, commit)(progress=meanwhile)
    assert dict(c) == {"x": "new"}
    c.available_memory = 0
    assert dict(c) == {"x": "new"}
    c.flush()
    assert dict(Chest(path=path)) == {"x": "new"}


@pytest.mark.parametrize("how", ["move_to_disk", "flush", "shrink", "close"])
def test_a_change_that_comes_between_the_comparison_and_the_leaving_is_kept(path, how):
    """Thread B gets the value when it was compared, and changes it before it leaves memory."""
    c = Chest({"x": [1]}, path=path)
    c.sync()
    c["x"]  # so that it is looked at
    spiller = c._engine.spiller
    real, changed = spiller.divide, []

    def divide(items, saved):
        found = real(items, saved)
        if not changed:
            changed.append(True)
            with thread(lambda: c["x"].append("new")):
                pass
        return found

    spiller.divide = divide
    if how == "shrink":
        c["y"] = 1  # now this is what the thread was given last
        c.available_memory = 10
    elif how == "move_to_disk":
        c.move_to_disk("x")
    else:
        getattr(c, how)()
    assert changed
    c.sync()
    assert Chest(path=path)["x"] == [1, "new"]
    assert c["x"] == [1, "new"]


def test_on_overflow_may_read_what_leaves(path):
    seen = []
    c = Chest(path=path, available_memory=1000, on_overflow=lambda key: seen.append((key, c[key])))
    for n in range(50):
        c[n] = [n] * 10
    c.flush()
    assert not c.inmem
    assert sorted(seen) == [(n, [n] * 10) for n in range(50)]


@pytest.mark.parametrize("how", ["flush", "sync"])
def test_what_another_thread_has_in_hand_as_a_commit_begins_may_be_changed_once_it_is_written(path, gates, how):
    chest = Chest({"x": [0], "last": "last"}, path=path, dump=gates.dump, load=gates.load, min_file_size=0)
    has_it, written = threading.Event(), threading.Event()
    arrived, go_on = gates.stop("dump", "last")

    def other():
        chest["first"] = "first"
        value = chest["x"]
        has_it.set()
        assert arrived.wait(WAIT)
        written.set()
        value.append(1)
        value = chest["last"]  # "x" is no longer what this thread was given last
        go_on.set()

    with thread(other):
        assert has_it.wait(WAIT)
        getattr(chest, how)()
    assert written.is_set()
    chest.flush()
    assert chest["x"] == [0, 1] == Chest(path=path, load=gates.load, dump=gates.dump)["x"]


@pytest.mark.parametrize("on_overflow", [None, lambda key: None])
def test_what_threads_have_in_hand_whose_first_use_of_a_chest_is_a_hit_may_be_changed_behind_a_flush(path, on_overflow):
    """Each has but a part of what it was given last, so that only memory has the whole."""
    chest = Chest({"x": {"part": [0]}, "y": {"part": [0]}, "main": 1}, path=path, **{"on_overflow": on_overflow} if on_overflow else {})
    done, ready = threading.Event(), {"x": threading.Event(), "y": threading.Event()}

    def change(key):
        part = chest[key]["part"]
        ready[key].set()
        assert done.wait(WAIT)
        part.append(1)

    with thread(change, "x"):
        assert ready["x"].wait(WAIT)
        with thread(change, "y"):
            assert ready["y"].wait(WAIT)
            chest.flush()
            done.set()
    chest.flush()
    assert not chest.memory_usage
    assert [Chest(path=path)[key]["part"] for key in "xy"] == [[0, 1], [0, 1]]


@pytest.mark.parametrize("seed", range(3))
def test_what_threads_change_in_hand_survives_the_spills_and_commits_of_others(path, seed):
    chest = Chest(path=path, min_file_size=1000, available_memory=3000)

    def work(number):
        rng, mine = random.Random(seed * 10 + number), {}
        for _ in range(1500):
            key, step = (number, rng.randrange(20)), rng.random()
            if key not in mine or step < 0.2:
                mine[key] = [rng.random()] * rng.choice([1, 10, 100])
                chest[key] = list(mine[key])
            elif step < 0.5:
                assert chest[key] == mine[key], key
            elif step < 0.97:
                chest[key].append(1)
                mine[key].append(1)
            else:
                rng.choice([chest.flush, chest.sync])()
        return mine

    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(thread(work, number)) for number in range(3)]
    assert [type(mine) for (mine,) in found] == [dict] * 3, found
    model = {key: value for (mine,) in found for key, value in mine.items()}
    chest.close()
    assert dict(Chest(path=path)) == model


@pytest.mark.parametrize("late", [False, True])
def test_what_is_no_key_is_asked_for_as_threads_come_and_disturbs_nobody(tmp_path, late):
    """Hits are logged before anybody looks at them, and told apart by thread from the first operation behind its start."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    c = Chest({"x": [1]}, path=tmp_path / "c", available_memory=0)
    try:
        if not late:
            thread.start()
        for use in (lambda: c[[]], lambda: c.__setitem__([], 1)):
            with pytest.raises(TypeError, match="unhashable"):
                use()
        if late:
            thread.start()
        c["y"] = [2]
        c["x"].append(3)
        for key in "zzz":
            c[key] = 4
        assert list(c.inmem) == ["z"]  # what a thread that idles might have been given does not stay for good
        c.flush()
    finally:
        done.set()
        thread.join()
    assert dict(Chest(path=tmp_path / "c")) == {"x": [1, 3], "y": [2], "z": 4}
