"""The lock of a directory: between processes, between threads, and what becomes of it when somebody dies or forks."""
from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading

import pytest
from children import HOME, forked

from chest import Chest
from chest.locks import gate, later, shield

fcntl = pytest.importorskip("fcntl", reason="a lock on a directory is there on POSIX only")

LOCKING = """
import os, sys
from chest.locks import gate, shield
here = sys.argv[1]
def say(word):
    print(word, flush=True)
"""


@pytest.fixture
def child():
    """Start a script that knows `gate`, `here` and `say`; what it says comes through its ``stdout``."""
    started = []

    def start(script, *arguments):
        process = subprocess.Popen([sys.executable, "-c", LOCKING + script, *arguments], stdout=subprocess.PIPE,
                                   text=True, env=dict(os.environ, PYTHONPATH=HOME))
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def heard(process):
    return process.stdout.readline().strip()


def is_free(directory):
    """Could another process take the lock now?  A descriptor of its own stands for one."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def test_the_gate_of_a_directory_is_one_however_the_path_is_spelled(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").symlink_to("here")
    one = gate(str(tmp_path / "here"))
    assert gate("here") is one
    assert gate(str(tmp_path / "there")) is one
    assert gate(str(tmp_path / "here" / ".." / "here")) is one
    assert gate(str(tmp_path)) is not one


def test_a_thread_may_pass_the_gate_again_and_the_lock_is_held_until_it_comes_out_for_the_last_time(tmp_path):
    with gate(str(tmp_path)):
        with gate(str(tmp_path)):
            assert not is_free(tmp_path)
        assert not is_free(tmp_path)
    assert is_free(tmp_path)


def test_an_error_within_lets_the_lock_go(tmp_path):
    with pytest.raises(ZeroDivisionError), gate(str(tmp_path)):
        raise ZeroDivisionError
    assert is_free(tmp_path)


def test_the_lock_leaves_no_file_behind_and_no_descriptor_open(tmp_path, leaks_nothing):
    with gate(str(tmp_path)):
        assert os.listdir(tmp_path) == []
    assert os.listdir(tmp_path) == []


def test_a_directory_that_is_gone_is_an_error_and_the_gate_works_again_when_it_is_back(tmp_path):
    there = tmp_path / "there"
    closed = gate(str(there))
    with pytest.raises(FileNotFoundError), closed:
        pass
    there.mkdir()
    with closed:
        assert not is_free(there)
    assert shield.depth == 0


def test_one_thread_at_a_time_is_within(tmp_path):
    inside = []
    most = []

    def pass_often():
        for _ in range(200):
            with gate(str(tmp_path)):
                inside.append(None)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=pass_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 800
    assert set(most) == {1}


def test_another_process_gets_the_lock_only_when_it_is_let_go(tmp_path, child):
    with gate(str(tmp_path)):
        other = child("say('waiting')\nwith gate(here):\n    say(os.path.exists(sys.argv[2]))",
                      str(tmp_path), str(tmp_path / "done"))
        assert heard(other) == "waiting"
        (tmp_path / "done").touch()
    assert heard(other) == "True"


def test_a_process_that_is_killed_while_it_has_the_lock_holds_up_nobody(tmp_path, child):
    other = child("with gate(here):\n    say('mine')\n    sys.stdin.read()\n    os.read(os.pipe()[0], 1)", str(tmp_path))
    assert heard(other) == "mine"
    assert not is_free(tmp_path)
    other.kill()
    with gate(str(tmp_path)):
        pass


def test_ctrl_c_ends_the_wait_for_another_process(tmp_path, child):
    waiting = """
try:
    say('waiting')
    with gate(here):
        say('got it')
except KeyboardInterrupt:
    say(f'interrupted {shield.depth}')
sys.stdin.readline()
with gate(here):
    say('got it later')
"""
    with gate(str(tmp_path)):
        process = subprocess.Popen([sys.executable, "-c", LOCKING + waiting, str(tmp_path)], text=True,
                                   stdout=subprocess.PIPE, stdin=subprocess.PIPE, env=dict(os.environ, PYTHONPATH=HOME))
        assert heard(process) == "waiting"
        process.send_signal(signal.SIGINT)
        assert heard(process) == "interrupted 0"
    assert process.communicate("\n", timeout=60)[0] == "got it later\n"


def test_ctrl_c_ends_the_wait_for_another_thread_and_finalisers_run_as_before(tmp_path):
    held, about_to_wait, over = threading.Event(), threading.Event(), threading.Event()

    def hold():
        with gate(str(tmp_path)):
            held.set()
            about_to_wait.wait()
            os.kill(os.getpid(), signal.SIGINT)
            over.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    with pytest.raises(KeyboardInterrupt):
        about_to_wait.set()
        with gate(str(tmp_path)):
            pytest.fail("two threads are within")
    over.set()
    holder.join()
    done = []
    later(lambda: done.append("now"))
    assert done == ["now"]
    with gate(str(tmp_path)):
        pass


def test_a_directory_that_was_dropped_and_made_anew_meanwhile_is_locked_anew(tmp_path, child):
    there = tmp_path / "there"
    there.mkdir()
    with gate(str(there)):
        other = child("say('waiting')\nwith gate(here):\n    say('mine')\n    os.read(os.pipe()[0], 1)", str(there))
        assert heard(other) == "waiting"
        there.rename(tmp_path / "old")
        there.mkdir()
    assert heard(other) == "mine"
    assert not is_free(there)


# Finalisers.


def interrupted_in(method):
    """A block of this thread that Ctrl-C cuts short as ``method`` of the shield begins."""
    def trace(frame, event, argument):
        if frame.f_code is method.__code__:
            raise KeyboardInterrupt

    def block():
        with shield:
            pass

    sys.settrace(trace)
    try:
        block()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)


@pytest.mark.parametrize("method", ["__enter__", "__exit__"])
def test_ctrl_c_on_the_way_in_or_out_of_a_block_holds_up_no_later_finaliser(method):
    done = []

    def block():
        with shield:
            later(lambda: done.append("late"))
            assert done == ["now"]

    interrupted_in(getattr(type(shield), method))
    later(lambda: done.append("now"))
    assert done == ["now"]
    interrupted_in(getattr(type(shield), method))
    block()
    assert done == ["now", "late"]


def test_what_is_put_off_runs_behind_the_outermost_block_and_at_once_outside(tmp_path):
    done = []
    with shield:
        with shield:
            later(lambda: done.append("late"))
        assert done == []
    assert done == ["late"]
    later(lambda: done.append("now"))
    assert done == ["late", "now"]


def test_what_another_thread_finalises_is_not_put_off():
    done = []
    with shield:
        thread = threading.Thread(target=lambda: later(lambda: done.append("there")))
        thread.start()
        thread.join()
    assert done == ["there"]


def test_a_chest_that_is_collected_within_a_commit_of_the_same_directory_is_saved_after_it(path, monkeypatch):
    c = Chest(path=path)
    c["x"] = 1
    other = Chest(path=path)
    other["y"] = 2
    keys = c._life.index._keys
    real = keys.replace
    order = []

    def replace(pairs):
        nonlocal other
        other = None
        gc.collect()
        order.append(sorted(Chest(path=path)))
        real(pairs)

    monkeypatch.setattr(keys, "replace", replace)
    c.flush()
    assert order == [[]], "it was saved in the middle of the commit"
    assert dict(Chest(path=path)) == {"x": 1, "y": 2}


# Forks.

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@needs_fork
def test_a_child_of_a_process_within_neither_unlocks_nor_keeps_the_lock(tmp_path):
    here = gate(str(tmp_path))

    def child():
        here.__exit__()  # as a fork within the block comes out of it
        assert not is_free(tmp_path), "the child unlocked what its parent holds"

    with here:
        assert forked(child) == 0
        assert not is_free(tmp_path)
    assert is_free(tmp_path)


@needs_fork
def test_a_child_does_not_wait_for_a_thread_that_it_does_not_have(tmp_path):
    held, over = threading.Event(), threading.Event()

    def hold():
        with gate(str(tmp_path)):
            held.set()
            over.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    begun, told = os.pipe()

    def child():
        os.write(told, b"?")
        with gate(str(tmp_path)):  # waits for the parent's lock, but not for ever
            pass

    pid = os.fork()
    if not pid:
        try:
            child()
            os._exit(0)
        finally:
            os._exit(99)
    os.read(begun, 1)
    over.set()
    holder.join()
    assert os.waitpid(pid, 0)[1] == 0
    os.close(begun)
    os.close(told)


@needs_fork
def test_the_death_of_a_process_frees_its_lock_also_while_a_child_forked_meanwhile_lives_on(tmp_path):
    """A child that was forked while a thread waited in ``flock`` has a copy of the descriptor."""
    ready, started = os.pipe()
    living, hold = os.pipe()
    holder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)

    def middle():
        os.close(hold)
        os.close(holder)

        def lock():
            with gate(str(tmp_path)):
                os.write(started, b"locked")
                threading.Event().wait()

        from chest import system
        real, waiting = fcntl.flock, threading.Event()
        system.fcntl.flock = lambda fd, how: (how & fcntl.LOCK_NB or waiting.set(), real(fd, how))[1]
        threading.Thread(target=lock, daemon=True).start()
        waiting.wait()
        if os.fork() == 0:
            os.write(started, b"forked")  # said by the child: what is to happen in it after a fork has happened then
            os.read(living, 1)  # lives until the test is over
            os._exit(0)
        threading.Event().wait()

    pid = os.fork()
    if not pid:
        try:
            middle()
        finally:
            os._exit(99)
    assert os.read(ready, 6) == b"forked"
    os.close(holder)  # a copy: the lock itself goes with the flock below
    fresh = os.open(tmp_path, os.O_RDONLY)
    os.close(fresh)
    assert os.read(ready, 6) == b"locked"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    try:
        assert is_free(tmp_path)
    finally:
        for fd in (ready, started, living, hold):
            os.close(fd)
