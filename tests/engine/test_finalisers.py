"""Values and other garbage whose finalisers use the chest: the garbage collector may run them at nearly any line."""
from __future__ import annotations

import gc
import os
import pickle
import random
import signal
import sys
import threading
from contextlib import suppress

import pytest
from children import Interruption, another_thread, limited, thread
from invariants import check

from chest import Chest
from chest.engine import lifecycle
from chest.engine.committer import Committer
from chest.index import Index
from chest.storage.directory import Directory

N = 500


@pytest.fixture
def often():
    """The garbage collector comes often."""
    if not hasattr(gc, "set_threshold"):
        pytest.skip("nobody can say when this collector comes")
    before = gc.get_threshold()
    gc.set_threshold(20)
    yield
    gc.set_threshold(*before)


class Garbage:
    """Something in a cycle, so that only the collector finds it; it then calls ``action()``."""

    def __init__(self, action):
        self.cycle, self.action = self, action

    def __del__(self):
        self.action()


@pytest.mark.parametrize("settings", [{}, {"min_file_size": 4096}], ids=["files", "packs"])
@pytest.mark.parametrize("what", ["read", "set", "save"])
def test_finalisers_that_use_the_chest_disturb_nobody(path, often, settings, what):
    chance, errors, expected = random.Random(1), [], {i: [i] * 20 for i in range(N)}
    c = Chest(expected, path=path, available_memory=40_000, **settings)
    c.flush()

    def use():
        key = chance.randrange(N)
        try:
            assert c[key] == [key] * 20
            if what == "set":
                c[key] = [key] * 20
            if what == "save" and chance.random() < 0.05:
                c.sync()
        except Exception as error:
            errors.append(error)

    for turn in range(4 * N):
        Garbage(use)
        key = chance.randrange(N)
        assert c[key] == [key] * 20
        assert c.get(key, "absent") == [key] * 20
        if turn % 50 == 0:
            c.sync() if turn % 100 else c.flush()
    gc.collect()
    assert not errors
    c.sync()
    check(c)
    assert dict(Chest(path=path, **settings)) == expected


def test_no_finaliser_comes_while_a_chest_looks_which_threads_there_are(monkeypatch):
    """Python 3.11 would stand still for ever where that looks, too."""
    def looks():
        seen.append(gc.isenabled())
        return real()

    real, seen = sys._current_frames, []
    monkeypatch.setattr(sys, "_current_frames", looks)
    with another_thread():
        c = Chest({n: [n] * 20 for n in range(500)}, available_memory=40_000)
        assert all(c[n] == [n] * 20 for n in range(500))
    assert True not in seen != [] and gc.isenabled()


class Value:
    """A value that does something when it goes."""

    use = staticmethod(lambda key: None)

    def __init__(self, key):
        self.key = key

    def __del__(self):
        self.use(self.key)

    def __reduce__(self):
        return Value, (self.key,)


def replaced(c):
    """By another handle, which this one finds out as it commits."""
    with Chest(path=c.path) as other:
        other["x"] = 2
    c["own"] = 1
    c.sync()


GOES = {
    "set": lambda c: c.update(x=2), "del": lambda c: c.__delitem__("x"), "pop": lambda c: c.pop("x").key, "clear": Chest.clear,
    "setitem": lambda c: c.__setitem__("x", 2), "flush": Chest.flush, "rollback": Chest.rollback,
    "move_to_disk": lambda c: c.move_to_disk("x"), "replaced": replaced,
}


@pytest.mark.parametrize("commits", [False, True])
@pytest.mark.parametrize("how", GOES)
def test_the_finaliser_of_a_value_that_goes_may_use_the_chest(path, how, commits, monkeypatch):
    c, other = Chest({"x": Value("x"), "y": 1}, path=path, writeback=False), Chest(path=path)
    c.sync()

    def use(key):
        (other if commits else c)["gone", key] = True
        if commits:
            other.sync()

    with monkeypatch.context() as patch:
        patch.setattr(Value, "use", staticmethod(use))
        GOES[how](c)
        if sys.implementation.name != "cpython":  # there, the last reference to a value runs its finaliser at once
            gc.collect()
    assert c["gone", "x"] is True
    check(c)
    c.sync()
    with Chest(path=path) as again:
        assert ("gone", "x") in again
        assert ("x" in again) is (how not in ("del", "pop", "clear"))


@pytest.mark.parametrize("how", [Chest.sync, Chest.drop])
def test_a_finaliser_may_wait_for_a_handle_by_which_another_thread_commits(path, how, monkeypatch):
    c, other = Chest({"x": Value("x")}, path=path), Chest(path=path)
    c.sync()
    other["x"] = 2
    other.sync()
    within = threading.Event()

    def commit():
        with other.lock:
            within.set()
            other["y"] = 3
            with suppress(FileNotFoundError):  # it was dropped just then
                other.sync()

    def use(key):
        committing.start()
        within.wait()
        done.append(other.get("x"))

    committing, done = threading.Thread(target=commit, daemon=True), []
    with monkeypatch.context() as patch:
        patch.setattr(Value, "use", staticmethod(use))
        c["z"] = 4
        with thread(how, c) as acted:
            pass
        assert acted == [None]
        if sys.implementation.name != "cpython":
            gc.collect()
    committing.join()
    assert len(done) == 1


def test_what_a_signals_handler_raises_while_a_handle_ends_comes_out_and_it_is_saved_the_next_time(path, tmp_path):
    def dump(value, file):
        if limits:
            signal.raise_signal(limits.pop())
        pickle.dump(value, file)

    limits = [signal.SIGINT]
    c, other = Chest(path=path, dump=dump, load=pickle.load), Chest({"y": 2}, path=str(tmp_path / "other"))
    c["x"] = [1]
    lifecycle.waiting.append(c._engine)
    with limited(TimeoutError("time is up")), pytest.raises(TimeoutError):
        "z" in other  # noqa: B015 - it is asked for what ends meanwhile
    assert other["y"] == 2 and "z" not in other
    assert dict(Chest(path=path, load=pickle.load)) == {"x": [1]}


@pytest.mark.parametrize("temporary", [False, True])
@pytest.mark.parametrize("end", ["close", *["del"] * (sys.implementation.name == "cpython")])  # elsewhere later, at any time
def test_a_chest_whose_end_ctrl_c_cut_off_is_saved_or_removed_the_next_time(path, monkeypatch, end, temporary):
    box, other = [Chest({"x": [1]}, path=None if temporary else path)], Chest()
    monkeypatch.setattr(sys, "unraisablehook", lambda told: None)  # Python says that a finaliser raised, and goes on
    place, step = box[0].path, Directory.clear_away if temporary else Committer.save
    assert Interruption(1, step).during(box[0].close if end == "close" else lambda: box.clear() or gc.collect())
    assert os.path.exists(place)
    for c in box:
        c.close()
    "z" in other  # noqa: B015 - it is asked for what ends meanwhile
    assert not os.path.exists(place) if temporary else dict(Chest(path=place)) == {"x": [1]}


def test_what_was_spilled_by_a_chest_that_could_not_be_saved_as_it_ended_is_not_committed_later(path, monkeypatch):
    c = Chest({"x": [1]}, path=path)
    c.move_to_disk("x")
    engine = c._engine
    with monkeypatch.context() as patch, pytest.warns(RuntimeWarning, match="could not be saved as it ended"):
        patch.setattr(Index, "commit", lambda *_: os.close(-1))
        lifecycle._end(engine)
    with Chest({"z": 3}, path=path) as other:
        other.flush()  # removes what dead handles left
    lifecycle._end(engine)  # as at the end of the script, for what something still refers to
    assert dict(Chest(path=path)) == {"z": 3}
