"""Threads: dumps go on side by side, a hit takes no lock, callbacks may use the chest, and nothing is lost.

The races are staged: a load or a dump stops in the middle until the test has done something else meanwhile.
"""
from __future__ import annotations

import collections
import compileall
import contextlib
import itertools
import os
import pickle
import random
import shutil
import threading

import pytest
from children import HOME, WAIT, Interruption, Stop, another_thread, python, thread
from invariants import Model, check

from chest import Chest
from chest.core import nbytes
from chest.engine.spiller import Spiller
from chest.errors import ChestError
from chest.memory.cache import Cache
from chest.memory.changes import COUNTED
from chest.storage.packs import Packs

VALUE = "v" * 900


class Gates:
    """``dump`` and ``load`` that stop at chosen values until they are let through."""

    def __init__(self):
        self.stops = {}
        self.loads = []

    def stop(self, what, value, error=None):
        """Let the next ``what`` ('dump' or 'load') of ``value`` stop, having announced itself, and then fail."""
        self.stops[what, repr(value)] = stop = Stop()
        self.error = error
        return stop

    @contextlib.contextmanager
    def during(self, what, value, action, *arguments, error=None):
        """The block runs while ``action`` has stopped, in a thread, in the middle of this dump or load."""
        stop = self.stop(what, value, error)
        self.go_on = stop.go_on
        with stop.during(action, *arguments) as results:
            yield results

    def pass_through(self, what, value):
        stop = self.stops.pop((what, repr(value)), None)
        if stop is not None:
            stop()
            if self.error is not None:
                raise self.error

    def dump(self, value, file):
        data = pickle.dumps(value)
        file.write(data[:3])
        self.pass_through("dump", value)
        file.write(data[3:])

    def load(self, file):
        value = pickle.load(file)
        self.loads.append(value)
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


def saved(chest):
    """What another handle finds now, as it would after a kill at this moment."""
    return dict(Chest(path=chest.path, dump=pickle.dump, load=pickle.load))


# Loads and dumps.


def test_two_threads_that_ask_for_one_key_load_it_once(chest, gates):
    chest["x"] = "x"
    chest.flush()
    misses = chest.stats.misses
    with gates.during("load", "x", chest.get, "x") as one:
        with thread(chest.get, "x") as two, thread(chest.prefetch, "x"):
            gates.go_on.set()
    assert one[0] is two[0]
    assert gates.loads.count("x") == 1
    assert chest.stats.misses == misses + 1


def test_a_load_that_fails_is_tried_by_the_one_who_waits(chest, gates):
    chest["x"] = "x"
    chest.flush()
    with gates.during("load", "x", chest.get, "x", error=ZeroDivisionError()) as one, thread(chest.get, "x") as two:
        gates.go_on.set()
    assert "ZeroDivisionError" in str(one[0])
    assert two == ["x"]


WRITES = {"move_to_disk": lambda c: c.move_to_disk("x"), "flush": Chest.flush, "sync": Chest.sync, "close": Chest.close}
CHANGES = {
    "set": lambda c, _: c.update(x="new"),
    "set and moved": lambda c, _: (c.update(x="new"), c.move_to_disk("x")),
    "deleted": lambda c, _: c.__delitem__("x"),
    "deleted and set": lambda c, _: (c.__delitem__("x"), c.update(x="new")),
    "read": lambda c, _: c["x"] in ("old", ["old"]) or pytest.fail("it is another value"),
    "popped": lambda c, _: c.pop("x"),
    "cleared": lambda c, _: c.clear(),
}
CHANGES_WITHIN_A_LOAD = {
    **{name: change for name, change in CHANGES.items() if name not in ("read", "popped")},  # which wait for the load
    "flushed": lambda c, _: c.flush(),
    "set and flushed": lambda c, _: (c.update(x="new"), c.flush()),
    "dropped": lambda c, _: c.drop(),
    "updated": lambda c, other: c.update(other),
}


@pytest.mark.parametrize("meanwhile", CHANGES_WITHIN_A_LOAD)
def test_what_happens_to_a_key_while_it_is_loaded_is_what_holds(chest, gates, meanwhile):
    change, model = CHANGES_WITHIN_A_LOAD[meanwhile], Model(x="old", other=1)
    chest.update(model)
    chest.flush()
    with Chest({"x": "new"}, dump=gates.dump, load=gates.load) as other:
        with gates.during("load", "old", lambda: chest.get("x", "gone")) as found:
            for each in (chest, model):
                change(each, other)
            assert not found
    assert found == [model.get("x", "gone")]
    assert dict(chest) == model
    chest.flush()
    assert dict(chest) == saved(chest) == model


@pytest.mark.parametrize("compared", [False, True])
@pytest.mark.parametrize("how", WRITES)
@pytest.mark.parametrize("meanwhile", CHANGES)
def test_what_happens_to_a_key_while_it_is_written_or_compared_is_what_holds(chest, gates, how, meanwhile, compared):
    old = ["old"] if compared else "old"
    model = Model(x=old, other=1)
    chest.update(model)
    if compared:  # it is on disk, and may have been changed since
        chest.flush()
        assert (chest["x"], chest["other"]) == (old, 1)
    with gates.during("dump", old, WRITES[how], chest) as done:
        for each in (chest, model):
            CHANGES[meanwhile](each, None)
    assert done == [None]
    assert dict(chest) == model
    chest.flush()
    assert dict(chest) == saved(chest) == model


@pytest.mark.parametrize("again", [False, True], ids=["written once", "written twice at once"])
@pytest.mark.parametrize("how", WRITES)
def test_a_change_in_place_while_a_value_is_written_is_not_lost(chest, gates, how, again):
    """The write has the value as it was before; of two writes the later one counts, though the first ends behind it."""
    chest.update(x=["mine"], last="this thread was given it last")
    with gates.during("dump", ["mine"], WRITES[how], chest):
        chest["x"].append("late")
        with thread(chest.move_to_disk, "x") if again else contextlib.nullcontext():
            gates.go_on.set()
    assert chest["x"] == ["mine", "late"]
    chest.sync()
    assert saved(chest)["x"] == ["mine", "late"]


@pytest.mark.parametrize("commit", ["sync", "flush"])
@pytest.mark.parametrize("first", ["commit", "spill"])
def test_a_commit_has_saved_its_values_even_if_another_thread_is_writing_them_too(chest, gates, commit, first):
    chest.update(x="x", last="stays")
    works = [getattr(chest, commit), lambda: chest.move_to_disk("x")]
    with gates.during("dump", "x", works.pop(0 if first == "commit" else 1)) as one:
        with thread(works[0]) as two:
            if first == "commit":
                gates.go_on.set()
        if first == "spill":  # for which the commit does not wait
            assert saved(chest) == {"x": "x", "last": "stays"}
    assert one == two == [None]
    assert saved(chest) == {"x": "x", "last": "stays"}
    assert chest["x"] == "x"
    chest.sync()
    assert saved(chest) == {"x": "x", "last": "stays"}


def test_a_commit_has_saved_its_values_even_if_another_threads_operation_is_interrupted_meanwhile(chest, gates):
    chest["x"] = "x"
    with gates.during("dump", "x", chest.sync) as commit:
        assert Interruption(1, Cache.put).during(lambda: chest.update(y="y"))
        assert chest.get("y") is None
    assert commit == [None]
    assert saved(chest) == {"x": "x"}


@pytest.mark.parametrize("linked", [False, True])
def test_what_an_update_wrote_is_not_reclaimed_as_another_threads_operation_is_interrupted(path, tmp_path, linked, monkeypatch):
    new = {"x": "x", "y": "y"}
    c = Chest(path=path, min_file_size=4096, available_memory=0)
    if linked:
        new = Chest(new, path=tmp_path / "source", min_file_size=4096)
        new.flush()
    append = Packs.append

    def others():
        assert Interruption(1, Cache.put).during(lambda: Chest.__setitem__(c, "z", "z"))
        c.flush()

    def append_and_let_others_run(self, records):
        refs = append(self, records)
        monkeypatch.undo()
        with thread(others):
            pass
        return refs

    monkeypatch.setattr(Packs, "append", append_and_let_others_run)
    c.update(new)
    assert dict(c) == {"x": "x", "y": "y"}
    c.flush()
    assert dict(Chest(path=path)) == {"x": "x", "y": "y"}


def test_a_sync_that_waits_for_the_begin_of_a_transaction_commits_no_part_of_it(chest, gates):
    def transact():
        with chest.transaction():
            chest["x"] = "half"
            in_the_block()
            seen.append(saved(chest))
            chest["y"] = "whole"

    in_the_block, seen = Stop(), []
    chest.update(x="x", y="y")
    with gates.during("dump", "x", transact) as one:
        with thread(chest.sync) as two:
            while not chest._engine.state._waiters:
                pass
            gates.go_on.set()
            assert in_the_block.arrived.wait(WAIT)
        in_the_block.go_on.set()
    assert one == [None] and isinstance(two[0], ChestError)
    assert seen == [{"x": "x", "y": "y"}]
    assert saved(chest) == {"x": "half", "y": "whole"}


@pytest.mark.parametrize("end", [Chest.write_keys, Chest.close])
def test_a_commit_or_close_removes_nothing_that_a_flush_of_another_thread_has_copied(path, end, monkeypatch):
    """1. a flush copies the records of a dead writer's pack; 2. a commit for which the disk has no room to copy them, or
    a close; 3. another handle removes what dead writers left."""
    python("import os, sys, chest; chest.Chest({n: [n] * 100 for n in range(3000)}, path=sys.argv[1], "
           "min_file_size=4096).flush(); os._exit(0)", path)
    first = Chest(path=path, min_file_size=4096)
    for n in range(2600):
        del first[n]
    first.sync()
    c = Chest(path=path, min_file_size=4096)
    storage, state = c._engine.state.storage, c._engine.state
    real = storage.compact

    def copies(refs):
        monkeypatch.setattr(storage, "compact", lambda refs: {})
        moved.update(real(refs))
        other = threading.Thread(target=end, args=(c,))
        other.start()
        while other.is_alive() and not state._waiters:
            pass
        others.append(other)
        with monkeypatch.context() as patch:
            patch.setattr(Packs, "compact", lambda self, refs: {})
            with Chest(path=path) as another:
                another["theirs"] = 1
        return moved

    moved, others = {}, []
    monkeypatch.setattr(storage, "compact", copies)
    c.flush()
    others[0].join()
    assert moved
    assert dict(Chest(path=path)) == {"theirs": 1, **{n: [n] * 100 for n in range(2600, 3000)}}


# Locks.


@pytest.mark.parametrize("settings", [{}, {"writeback": False}, {"min_file_size": 1000}])
def test_a_hit_takes_no_lock(path, settings):
    c = Chest({"x": 1, ("a", "b"): [2]}, path=path, **settings)
    with c.lock, thread(lambda: [(c["x"], c.get("x"), c["a", "b"], "x" in c) for _ in range(10_000)]) as found:
        pass
    assert found[0][-1] == (1, 1, [2], True)
    assert c.stats.hits == 30_000


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

    def with_lock():
        with chest.lock:
            gates.go_on.set()
            return chest["x"]

    with gates.during("load", "x", chest.get, "x") as one, thread(with_lock) as two:
        pass
    assert one == two == ["x"]


# Callbacks.


@pytest.mark.parametrize("act", {
    "set": lambda c: c.update(x="new"), "delete": lambda c: c.pop("x"), "set another": lambda c: c.update(other=VALUE),
    "delete another": lambda c: c.pop("y"), "flush": lambda c: c.flush()}.items(), ids=lambda act: act[0])
@pytest.mark.parametrize("callback", ["on_overflow", "on_miss"])
def test_a_callback_may_use_the_chest(path, act, callback):
    told, expected = [], Model(x=VALUE, y=VALUE)

    def called(key):
        told.append(key)
        if told == ["x"]:
            act[1](c)

    c = Chest(expected, path=path, **{callback: called})
    if callback == "on_miss":
        c.flush()
    act[1](expected)
    with thread(c.move_to_disk if callback == "on_overflow" else c.get, "x") as done:
        pass
    assert done == [None if callback == "on_overflow" else expected.get("x")]
    assert told[0] == "x"
    assert dict(c) == expected
    c.flush()
    assert dict(Chest(path=path)) == expected
    check(c)


def test_on_overflow_may_read_what_leaves(path):
    seen = []
    c = Chest(path=path, available_memory=1000, on_overflow=lambda key: seen.append((key, c[key])))
    for n in range(50):
        c[n] = [n] * 10
    c.flush()
    assert not c.inmem
    assert sorted(seen) == [(n, [n] * 10) for n in range(50)]


@pytest.mark.parametrize("act", [Chest.move_to_disk, lambda c, key: c.sync(), lambda c, key: c.flush(),
                                 lambda c, key: c.update({-key: key}), lambda c, key: list(c.values())])
def test_on_overflow_may_save_and_make_more_leave(path, act):
    c = Chest(path=path, available_memory=20_000, on_overflow=lambda key: act(c, key))
    for n in range(50):
        c[n] = bytearray([n]) * 1000
        assert c.memory_usage <= c.available_memory
    assert all(c[n] == bytes([n]) * 1000 for n in range(1, 50))
    check(c)


def test_dump_and_load_may_use_the_chest_and_ask_for_the_very_key(path):
    depth = []

    def dump(value, file):
        if value == "x":
            c["dumped"] = True
            c.pop("gone", None)
            c["last"] = "new"
            assert c["y"] == "y"
        pickle.dump(value, file)

    def load(file):
        value = pickle.load(file)
        if value == "x" and not depth:
            depth.append(1)
            c["loaded"] = c["y"]
            assert c["x"] == "x"
        return value

    c = Chest({"gone": 1, "x": "x", "y": "y", "last": "old"}, path=path, dump=dump, load=load)
    for action, result in (c.flush, None), (lambda: c["x"], "x"):
        with thread(action) as found:
            pass
        assert found == [result]
    c.flush()
    assert dict(Chest(path=path)) == dict(c) == {"x": "x", "y": "y", "last": "new", "dumped": True, "loaded": "y"}
    check(c)


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


def run(action, count=6):
    """Run ``action(number)`` in so many threads, all at once; what each returned, or the first error is raised."""
    start = threading.Barrier(count)

    def work(number):
        start.wait(WAIT)
        return action(number)

    with contextlib.ExitStack() as threads:
        found = [threads.enter_context(thread(work, number)) for number in range(count)]
    for result, in found:
        if isinstance(result, BaseException):
            raise result
    return [result for result, in found]


@pytest.mark.parametrize("steps, take", [(300, lambda c, i: c.pop(i, None)), (50, lambda c, i: c.popitem()[1])],
                         ids=["pop", "popitem"])
def test_each_value_is_taken_by_one_thread_only(steps, take):
    values = {i: VALUE + str(i) for i in range(300)}
    c = Chest(values, available_memory=2000)
    taken = run(lambda _: [value for i in range(steps) if (value := take(c, i)) is not None])
    assert sorted(itertools.chain(*taken)) == sorted(values.values())
    assert len(c) == c.memory_usage == 0


def test_setdefault_gives_all_threads_the_same_default():
    c = Chest(available_memory=2000)
    defaults = run(lambda me: [c.setdefault(f"key{i}", f"{me}:{i}") for i in range(50)])
    assert len(set(map(tuple, defaults))) == 1, "threads were given different defaults"
    assert defaults[0] == [c[f"key{i}"] for i in range(50)]


@pytest.mark.parametrize("settings", [
    {"available_memory": 5000}, {"available_memory": 1e9}, {"available_memory": 0},
    {"available_memory": 5000, "min_file_size": 800}, {"available_memory": 5000, "writeback": False}],
    ids=["spilling", "roomy", "no memory", "small values", "writeback off"])
def test_eight_threads_that_do_everything_at_once_agree_with_what_each_did(path, settings, leaks_nothing):
    c = Chest(path=path, **settings)
    models = [{} for _ in range(8)]
    writeback = settings.get("writeback", True)

    def work(me):
        chance = random.Random(me)
        mine = models[me]
        for number in range(200):
            key = (me, chance.randrange(12))
            what = chance.random()
            if what < 0.4:
                mine[key] = [number] * chance.choice([1, 10, 100])
                c[key] = list(mine[key])
            elif what < 0.5:
                assert c.pop(key, None) == mine.pop(key, None)
            elif what < 0.55:
                c.update({key: [number]})
                mine[key] = [number]
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
            elif what < 0.69:
                assert {k: v for k, v in c.items() if k[0] == me} == mine
            elif what < 0.7:
                assert [k for k in list(c._keys) if k[0] == me] == list(mine)
            elif what < 0.85 and key in mine and writeback:
                c[key].append("in place")
                mine[key].append("in place")
            else:
                assert c.get(key) == mine.get(key)
            c["shared"] = me
            assert c.get("shared") in range(8)

    run(work, 8)
    expected = {key: value for model in models for key, value in model.items()}
    assert c.pop("shared") in range(8)
    assert dict(c) == expected
    check(c)
    c.shrink()  # which sizes anew what grew in place
    sizes = list(map(nbytes, c.inmem.values()))
    assert c.memory_usage == sum(sizes) <= max([c.available_memory, *sizes])  # one that was given last may be larger
    c.close()
    assert dict(Chest(path=path)) == expected
    c.drop()


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


def test_an_update_of_keys_that_are_there_is_no_change_of_size():
    c = Chest({n: [n] for n in range(10)}, min_file_size=1000, available_memory=0)
    for _ in c:
        c.update({1: ["new"], 2: ["new"]})
    with pytest.raises(RuntimeError, match="changed size"):
        for _ in c:
            c.update({1: ["newer"], 10: ["new"]})
    assert dict(c) == {**{n: [n] for n in range(11)}, 1: ["newer"], 2: ["new"], 10: ["new"]}


@pytest.mark.parametrize("min_file_size", [0, 4096])
def test_a_close_by_one_thread_gives_up_nothing_that_another_wrote_behind_its_commit(path, min_file_size, monkeypatch):
    c = Chest({"x": 1}, path=path, min_file_size=min_file_size)
    save = c._engine.committer.save

    def set_and_spill():
        c["y"] = "set since"
        c.move_to_disk("y")

    def save_and_let_another_thread_run(*arguments, **more):
        save(*arguments, **more)
        with thread(set_and_spill):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(c._engine.committer, "save", save_and_let_another_thread_run)
        c.close()
    with Chest(path=path, min_file_size=min_file_size) as other:
        other["theirs"] = 2  # its commit removes what dead writers left
    assert dict(c) == {"x": 1, "y": "set since", "theirs": 2}
    c.close()
    assert dict(Chest(path=path)) == dict(c)


def test_a_key_that_comes_as_a_close_counts_what_is_unsaved_is_no_error_of_the_close(path, monkeypatch):
    c = Chest({"x": 1}, path=path)
    engine = c._engine
    with monkeypatch.context() as patch:
        class Inherited(dict):
            def __contains__(self, key):
                if not engine.state.lock._is_owned():
                    patch.setattr(engine.state.index, "inherited", {})
                    with thread(c.__setitem__, "y", 2):
                        pass
                return False

        patch.setattr(engine.state.index, "inherited", Inherited())
        c.close()
    assert dict(Chest(path=path)) == {"x": 1, "y": 2}


@pytest.mark.parametrize("how", ["flush", "sync"])
def test_what_another_thread_has_in_hand_as_a_commit_begins_may_be_changed_once_it_is_written(path, gates, how):
    chest = Chest({"x": [0], "last": "last"}, path=path, dump=gates.dump, load=gates.load, min_file_size=0)
    has_it, written, last = threading.Event(), threading.Event(), gates.stop("dump", "last")

    def other():
        chest["first"] = "first"
        value = chest["x"]
        has_it.set()
        assert last.arrived.wait(WAIT)
        written.set()
        value.append(1)
        value = chest["last"]  # "x" is no longer what this thread was given last
        last.go_on.set()

    with thread(other):
        assert has_it.wait(WAIT)
        getattr(chest, how)()
    assert written.is_set()
    chest.flush()
    assert chest["x"] == [0, 1] == Chest(path=path, load=gates.load, dump=gates.dump)["x"]


@pytest.mark.parametrize("on_overflow", [None, lambda key: None])
def test_what_threads_have_in_hand_whose_first_use_of_a_chest_is_a_hit_may_be_changed_behind_a_flush(path, on_overflow):
    """Each has but a part of what it was given last, so that only memory has the whole."""
    settings = {"on_overflow": on_overflow} if on_overflow else {}
    chest = Chest({"x": {"part": [0]}, "y": {"part": [0]}, "main": 1}, path=path, **settings)
    has_it = {"x": Stop(), "y": Stop()}

    def change(key):
        part = chest[key]["part"]
        has_it[key]()
        part.append(1)

    with has_it["x"].during(change, "x"), has_it["y"].during(change, "y"):
        chest.flush()
    chest.flush()
    assert not chest.memory_usage
    assert [Chest(path=path)[key]["part"] for key in "xy"] == [[0, 1], [0, 1]]


class Growing:
    """When it is pickled the first time, its dict grows, as where another thread changes it just then."""

    def __init__(self, home):
        self.home = home

    def __reduce__(self):
        self.home.setdefault("more", 1)
        return int, ()


@pytest.mark.parametrize("min_file_size", [0, 4096])
def test_a_dict_that_another_thread_changes_while_it_is_pickled_is_pickled_again(path, min_file_size):
    c = Chest({"x": {"a": 1}, "y": 1}, path=path, min_file_size=min_file_size)
    c["x"]["grows"] = Growing(c["x"])
    c.flush()
    assert dict(Chest(path=path)) == {"x": {"a": 1, "grows": 0, "more": 1}, "y": 1}


def test_a_value_may_be_changed_that_a_look_at_memory_gave_away_while_it_was_saved(chest, gates):
    chest["x"], chest["last"] = [0], 1
    with gates.during("dump", [0], chest.sync):
        assert chest.inmem["x"] == [0]
    chest["x"].append(1)
    chest.close()
    assert saved(chest)["x"] == [0, 1]


def test_what_a_thread_asks_for_just_as_another_prefetches_it_may_be_changed(path, monkeypatch):
    Chest({"x": [0]}, path=path).close()
    chest, put, changes = Chest(path=path), Cache.put, []

    def put_and_let_another_thread_run(*arguments, **more):
        put(*arguments, **more)
        if not changes:
            changes.append(threading.Thread(target=lambda: chest["x"].append(1), daemon=True))
            changes[0].start()
            changes[0].join(0.1)

    monkeypatch.setattr(Cache, "put", put_and_let_another_thread_run)
    chest.prefetch("x")
    changes[0].join(WAIT)
    chest.close()
    assert Chest(path=path)["x"] == [0, 1]


@pytest.mark.skipif(not COUNTED, reason="references are not counted here")
@pytest.mark.parametrize("away", [False, True])
@pytest.mark.parametrize("make, get", [(lambda: [0], lambda value: value), (lambda: {"part": [0]}, lambda value: value["part"])])
@pytest.mark.parametrize("when", [(Spiller, "_divide"), (Cache, "held")])
def test_what_a_thread_changes_and_lets_go_of_at_the_very_end_of_a_spill_is_saved(path, monkeypatch, make, get, when, away):
    """Behind its comparison, or as the spill has just asked who has it."""
    chest = Chest({"x": make(), "y": 1}, path=path)
    chest.flush()
    held, (kind, name) = [], when
    before = getattr(kind, name)

    def change_behind(*arguments):
        found = before(*arguments)
        if held:
            held.pop().append(1)
        return found

    with another_thread():
        held.append(get(chest["x"]))
        chest["y"]
        if away:
            chest.move_to_disk("x")
        monkeypatch.setattr(kind, name, change_behind)
        (chest.flush if away else chest.move_to_disk)(*[] if away else ["x"])
        assert not held or (away and kind is Cache)
    chest.close()
    assert get(Chest(path=path)["x"]) == ([0, 1] if not held else [0])


@pytest.mark.parametrize("late", [False, True])
def test_what_is_no_key_is_asked_for_as_threads_come_and_disturbs_nobody(tmp_path, late):
    """Hits are logged before anybody looks at them, and told apart by thread from the first operation behind its start."""
    c = Chest({"x": [1]}, path=tmp_path / "c", available_memory=0)
    with contextlib.ExitStack() as threads:
        if not late:
            threads.enter_context(another_thread())
        for use in (lambda: c[[]], lambda: c.__setitem__([], 1)):
            with pytest.raises(TypeError, match="unhashable"):
                use()
        if late:
            threads.enter_context(another_thread())
        c["y"] = [2]
        c["x"].append(3)
        for key in "zzz":
            c[key] = 4
        assert list(c.inmem) == ["z"]  # what a thread that idles might have been given does not stay for good
        c.flush()
    assert dict(Chest(path=tmp_path / "c")) == {"x": [1, 3], "y": [2], "z": 4}


FROZEN = """
import pickle, sys
sys.path.insert(0, sys.argv[1])
from chest import Chest

def load(file):
    flight, = c._engine.state.flights.values()
    print(flight.under_way())
    return pickle.load(file)

c = Chest({"x": 1}, load=load)
c.flush()
c["x"]
"""


def test_a_load_is_known_to_be_under_way_where_the_program_was_compiled_elsewhere(tmp_path):
    """As a frozen program is, without sources: what code says of its file is not where the module lies."""
    folder = shutil.copytree(os.path.join(HOME, "chest"), tmp_path / "chest", ignore=lambda *_: ["__pycache__"])
    assert compileall.compile_dir(str(folder), ddir="elsewhere/chest", legacy=True, quiet=1)
    for source in folder.rglob("*.py"):
        source.unlink()
    assert python(FROZEN, tmp_path) == "True\n"
