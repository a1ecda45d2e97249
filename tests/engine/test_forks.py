"""What a fork's child has of its parent's chests: all to read, nothing to save and nothing to remove."""
from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import sys
import threading

import pytest
from children import Stop, fork, forked, open_files, python, thread

from chest import Chest
from chest.engine import lifecycle
from chest.memory.changes import COUNTED

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@pytest.fixture
def done():
    """To be set on one side of a fork, and waited for on the other."""
    return multiprocessing.get_context("fork").Event()


def in_child(action):
    """Run ``action()`` in a forked child; an error there fails the test here."""
    assert forked(action) == 0


def ended(pid):
    """The same of a child that was forked before."""
    assert os.waitpid(pid, 0)[1] == 0


@pytest.fixture(params=["fork", "double fork"])
def child(request):
    return in_child if request.param == "fork" else lambda action: in_child(lambda: in_child(action))


@pytest.mark.parametrize("memory", [0, 1e9], ids=["spilled", "in memory"])
@pytest.mark.parametrize("min_file_size", [0, 4096])
def test_the_child_reads_what_its_parent_has_not_saved(path, child, memory, min_file_size):
    c = Chest({"saved": [0]}, path=path, available_memory=memory, min_file_size=min_file_size)
    c.sync()
    c["new"], c["saved"], c["none"] = [1], [2], [3]
    del c["none"]

    def look():
        assert dict(c) == {"saved": [2], "new": [1]}

    child(look)
    assert dict(Chest(path=path)) == {"saved": [0]}
    look()


@pytest.mark.parametrize("who", ["its parent", "another"])
def test_the_child_finds_what_is_committed_later_and_keeps_what_that_does_not_change(path, done, who):
    c = Chest({"x": 1, "y": 1, "gone": 1}, path=path)
    c.sync()
    c["x"], c["gone"], c["mine"] = 2, 2, 2

    def look():
        assert c["x"] == 2
        assert done.wait(60)
        assert dict(c) == {"x": 3, "y": 1, "mine": 2, "new": 3}

    pid = fork(look)
    committing = c if who == "its parent" else Chest(path=path)
    committing["x"], committing["new"] = 3, 3
    del committing["gone"]
    committing.sync()
    done.set()
    ended(pid)


def test_the_child_never_takes_a_later_file_of_its_parent_for_an_earlier_one(path, done):
    """A file that no commit knows is removed at once, and its name is free for the value of another key."""
    c = Chest(path=path, available_memory=0, key_to_filename=lambda key: "same")
    c["x"] = ["the value of x"]
    c.move_to_disk("x")

    def look():
        assert done.wait(60)
        with pytest.raises(KeyError, match="gone"):
            c["x"]
        assert c.get("x") is None

    pid = fork(look)
    name = c.key_to_filename("x")
    del c["x"]
    c["y"] = ["the value of y"]
    c.move_to_disk("y")
    assert c.key_to_filename("y") == name, "then this test shows nothing"
    done.set()
    ended(pid)


@pytest.mark.parametrize(("how", "temporary"), [
    *((how, False) for how in ("close", "sync", "flush", "write_keys", "drop", "del", "nothing")),
    *((how, True) for how in ("close", "drop", "del", "nothing"))])
def test_what_the_child_does_saves_and_removes_nothing_of_its_parents(path, child, how, temporary):
    c = Chest({"x": [1], "y": [1]}, path=None if temporary else path, available_memory=0)
    c.sync()
    del c["y"]
    c["x"], c["new"] = [2], [2]
    before = sorted(os.listdir(c.path))

    def use():
        nonlocal c
        assert dict(c) == {"x": [2], "new": [2]}
        if temporary:
            c["own"] = [3]
        if how == "del":
            del c
            gc.collect()
        elif how != "nothing":
            getattr(c, how)()
        if how in ("sync", "flush", "write_keys") or (how == "close" and not temporary):
            assert (c["x"], c["new"]) == ([2], [2]), "it lost what is not saved anywhere"

    child(use)
    assert sorted(os.listdir(c.path)) == before
    assert dict(c) == {"x": [2], "new": [2]}
    if not temporary:
        assert dict(Chest(path=path)) == {"x": [1], "y": [1]}
        c.close()
        assert dict(Chest(path=path)) == {"x": [2], "new": [2]}


@pytest.mark.parametrize("memory", [0, 1e9] if COUNTED else [1e9])  # a list that left is found again by its references
@pytest.mark.parametrize("reads", [False, True])
def test_what_the_parent_changed_in_place_before_a_fork_is_not_the_childs_to_save(path, child, memory, reads):
    c = Chest({"x": [1], "y": [1], "same": [1]}, path=path, available_memory=memory)
    c.sync()
    x, y = c["x"], c["y"]
    c["same"], x.append(2), y.append(2)

    def save():
        assert not reads or (c["x"], c["y"]) == ([1, 2], [1, 2])
        c["own"] = 3
        c["same"].append(3)
        c.sync()

    child(save)
    x.append(3)
    assert dict(Chest(path=path)) == {"x": [1], "y": [1], "same": [1, 3], "own": 3}
    assert dict(c) == {"x": [1, 2, 3], "y": [1, 2], "same": [1, 3], "own": 3}
    c.close()
    assert dict(Chest(path=path)) == {"x": [1, 2, 3], "y": [1, 2], "same": [1, 3], "own": 3}


@pytest.mark.parametrize("min_file_size", [0, 4096])
def test_the_child_saves_its_own_keys_when_told_to(path, child, min_file_size):
    c = Chest({"x": 1, "y": 1, "z": 1, "list": [1]}, path=path, min_file_size=min_file_size)
    c.sync()
    c["x"], c["y"], c["mine"] = 2, 2, 2

    def save():
        c["own"], c["y"] = 3, 3
        c["list"].append(3)
        del c["z"]
        c.sync()

    child(save)
    assert dict(Chest(path=path)) == {"x": 1, "y": 3, "own": 3, "list": [1, 3]}
    assert dict(c) == {"x": 2, "y": 2, "own": 3, "mine": 2, "list": [1, 3]}
    c.sync()
    assert dict(Chest(path=path)) == dict(c)


# The end of a process.


ENDS = """
import os, sys
from chest import Chest
c = Chest({'x': 1}, path=sys.argv[1])
temporary = Chest({'x': 1})
c.sync()
c['x'], c['unsaved'] = 2, 2
pid = os.fork()
if pid == 0:
    mine = Chest({'child': 1}, path=sys.argv[2])
    inherited = c
    with Chest({'y': 2}) as own:
        pass
    assert not os.path.exists(own.path)
    END
assert os.waitpid(pid, 0)[1] == 0
assert dict(Chest(path=sys.argv[1])) == {'x': 1}, 'the child saved'
assert os.path.isdir(temporary.path), 'the child removed'
print(temporary.path)
"""


@pytest.mark.parametrize(("end", "saved"), [("sys.exit()", {"child": 1}), ("os._exit(0)", {})])
def test_a_child_that_ends_saves_what_it_opened_itself_and_nothing_else(tmp_path, end, saved):
    theirs, own = tmp_path / "parent", tmp_path / "child"
    temporary = python(ENDS.replace("END", end), theirs, own).strip()
    assert dict(Chest(path=theirs)) == {"x": 2, "unsaved": 2}
    assert dict(Chest(path=own)) == saved
    assert not os.path.exists(temporary)


POOL = """
import sys
from chest import Chest
c = Chest({'x': 1}, path=sys.argv[1])
c.sync()
c['unsaved'] = 1

def work(n):
    c['work', n] = n

import multiprocessing
pool = multiprocessing.get_context('fork').Pool(2)
pool.map(work, range(4))
pool.close()
pool.join()
assert 'unsaved' not in Chest(path=sys.argv[1]), 'a worker saved it'
"""


def test_what_workers_set_in_an_inherited_chest_is_saved_at_their_end(path):
    """Also if `multiprocessing` is imported after the chest was made."""
    python(POOL, path)
    assert dict(Chest(path=path)) == {"x": 1, "unsaved": 1, **{("work", n): n for n in range(4)}}


def test_what_the_parent_has_not_saved_stays_the_childs_to_read_where_others_move_the_record_before_it(path):
    python("import os, sys, chest; chest.Chest({n: [n] * 100 for n in range(3000)}, path=sys.argv[1], "
           "min_file_size=4096).flush(); os._exit(0)", path)
    c, other = Chest(path=path, min_file_size=4096), Chest(path=path, min_file_size=4096)
    c[2999] = "not saved"
    for n in range(2600):
        del other[n]
    other.sync()
    other = Chest(path=path, min_file_size=4096)

    def use():
        before = other._engine.state.index.refs[2999]
        other.flush()
        assert other._engine.state.index.refs[2999] != before
        assert len(c) == 400
        assert c[2999] == "not saved"

    in_child(use)


# Forks in the middle of something.


def test_a_fork_while_another_thread_commits_does_not_hang_the_child(path, done, monkeypatch):
    c = Chest({"x": 1}, path=path)
    within, keys = Stop(), c._engine.state.index.keys
    real = keys.replace

    def replace(pairs):
        within()
        real(pairs)

    def use():
        monkeypatch.undo()
        assert c["x"] == 1
        c["child"] = 2
        done.set()
        c.sync()  # waits for the parent's commit, and no longer

    monkeypatch.setattr(keys, "replace", replace)
    with within.during(c.flush):
        pid = fork(use)
        assert done.wait(60)
    ended(pid)
    assert dict(Chest(path=path)) == {"x": 1, "child": 2}


def test_a_transaction_of_another_thread_is_not_the_childs(path):
    c = Chest({"x": 1}, path=path)
    within = Stop()

    def transact():
        with c.transaction():
            c["parent"] = 2
            within()

    def use():
        c["child"] = 2
        c.sync()

    with within.during(transact):
        in_child(use)
        assert dict(Chest(path=path)) == {"x": 1, "child": 2}
    assert dict(Chest(path=path)) == {"x": 1, "child": 2, "parent": 2}


@pytest.mark.skipif(not open_files(), reason="the system does not tell what is open")
@pytest.mark.skipif(sys.implementation.name != "cpython", reason="nobody can say when garbage is collected")
def test_a_handle_that_waits_for_its_end_at_a_fork_is_the_parents_and_leaves_no_file_open_in_the_child(path):
    gc.collect()  # a chest of an earlier test that is collected below would end this one, too
    held = [Chest({"x": 1}, path=path)]
    held[0].move_to_disk("x")
    other = Chest({"y": 1}, on_miss=lambda key: held.clear())
    other.flush()
    assert other["y"] == 1
    gc.collect()

    def look():
        gc.collect()
        assert not [name for name in open_files().values() if name.startswith(path)]
        lifecycle.drain()

    in_child(look)
    assert not os.path.exists(os.path.join(path, ".keys"))
    lifecycle.drain()
    assert dict(Chest(path=path)) == {"x": 1}


@pytest.mark.parametrize("what", ["dump", "load"])
def test_a_fork_while_another_thread_dumps_or_loads_leaves_the_child_free_and_saves_nothing_of_it(path, what):
    within = Stop()

    def slowly(*arguments):
        if threading.current_thread() is not threading.main_thread() and arguments[0] != [2]:
            within()
        return getattr(pickle, what)(*arguments)

    c = Chest({"x": [1]}, path=path, **{"dump": pickle.dump, "load": pickle.load, what: slowly})
    c.flush()
    c["y"], x = [2], [1]
    if what == "dump":
        x = c["x"]
        x.append(2)

    def use():
        c["own"] = [3]
        c.sync() if what == "dump" else c.flush()
        assert dict(c) == {"x": x, "y": [2], "own": [3]}

    with within.during(c.sync if what == "dump" else lambda: c["x"]):
        in_child(use)
        assert dict(Chest(path=path)) == {"x": [1], "own": [3]}
        if what == "dump":
            x.append(3)
    assert dict(c) == {"x": x, "y": [2], "own": [3]}
    c.sync()
    assert dict(Chest(path=path)) == dict(c)


def test_a_fork_from_a_callback_leaves_both_free(path):
    c = Chest({"x": 1}, path=path, on_overflow=lambda key: in_child(lambda: c["x"]))
    c.flush()
    assert c["x"] == 1


def test_threads_that_fork_at_the_same_time_let_go_of_their_own_locks_only(path):
    python("""
import os, sys, threading
both = threading.Barrier(2)
os.register_at_fork(before=lambda: both.wait(60))  # what was registered first comes last, when chest has its locks
from chest import Chest
from chest.engine import lifecycle
lifecycle.AT_FORK = 0.1

c = Chest({"x": 1}, path=sys.argv[1], min_file_size=1000)
c.flush()

def fork():
    pid = os.fork()
    if not pid:
        os._exit(0 if c["x"] == 1 else 1)
    assert os.waitpid(pid, 0)[1] == 0

def use():
    c["x"] += 1
    c.flush()

def run(*works):
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()

run(fork, fork)
run(use)
""", path, options=("-W", "ignore::DeprecationWarning"))
    assert dict(Chest(path=path)) == {"x": 2}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # as Python says of an error before a fork
def test_ctrl_c_while_a_fork_waits_for_a_thread_leaves_no_lock_taken(tmp_path, monkeypatch):
    class Interrupted:
        def acquire(self, timeout):
            raise KeyboardInterrupt

    first, second = [Chest(path=str(tmp_path / name)) for name in ("first", "second")]
    with monkeypatch.context() as patch:
        patch.setattr(second._engine.state, "lock", Interrupted())
        child = os.fork()
        if not child:
            os._exit(0)
    os.waitpid(child, 0)
    with thread(first.__setitem__, "x", 1) as done:
        pass
    assert done == [None]
