"""The lock of a directory: between processes, between threads, and what becomes of it when somebody dies or forks."""
from __future__ import annotations

import _thread
import logging
import operator
import os
import signal

import pytest
from children import Interruption, forked, thread

from chest.storage import locks, system
from chest.storage.locks import DirectoryLock, directory_lock

fcntl = pytest.importorskip("fcntl", reason="a lock on a directory is there on POSIX only")


@pytest.fixture
def lock(tmp_path):
    return directory_lock(str(tmp_path))


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


class Other:
    """Another process that has the lock, until it is told to let go, or is killed."""

    def __init__(self, path):
        ready, told = os.pipe()
        wait, self.go = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            locks.after_fork()
            os.close(self.go)
            with directory_lock(str(path)):
                os.write(told, b"!")
                os.read(wait, 1)
            os._exit(0)
        assert os.read(ready, 1)
        for fd in (ready, told, wait):
            os.close(fd)

    def let_go(self):
        os.close(self.go)
        os.waitpid(self.pid, 0)


def test_a_directory_has_one_lock_however_its_path_is_spelled(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").symlink_to("here")
    one = directory_lock(str(tmp_path / "here"))
    os.chdir(tmp_path)
    assert directory_lock("here") is one
    assert directory_lock(str(tmp_path / "there" / ".." / "here")) is one
    assert directory_lock(str(tmp_path)) is not one


def test_it_is_re_entrant_and_held_until_its_thread_comes_out_for_the_last_time(lock, tmp_path, leaks_nothing):
    with pytest.raises(ZeroDivisionError), lock:
        with lock:
            assert not is_free(tmp_path)
        assert not is_free(tmp_path)
        raise ZeroDivisionError
    assert is_free(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.fixture
def looks(monkeypatch):
    """``looks(n, action)``: ``action()`` is called at the ``n``-th look whether the lock is free; a list of them."""
    def at(n, action):
        seen, real = [], system.try_lock

        def try_lock(fd):
            seen.append(fd)
            if len(seen) == n:
                action()
            return real(fd)

        monkeypatch.setattr(system, "try_lock", try_lock)
        return seen

    return at


def test_another_process_waits_and_the_log_says_for_what(tmp_path, monkeypatch, caplog, looks):
    monkeypatch.setattr(locks, "WARN", 0.0)
    seen = looks(80, Other(tmp_path).let_go)
    with caplog.at_level(logging.WARNING, "chest"), directory_lock(str(tmp_path)):
        assert len(seen) >= 80
    assert [str(tmp_path) in record.getMessage() for record in caplog.records] == [True]


def test_ctrl_c_ends_the_wait_for_another_process_whose_death_frees_the_lock(tmp_path, looks, leaks_nothing):
    other = Other(tmp_path)
    looks(100, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt), directory_lock(str(tmp_path)):
        pytest.fail("two are within")
    os.kill(other.pid, signal.SIGKILL)
    other.let_go()
    with directory_lock(str(tmp_path)):
        assert not is_free(tmp_path)


@pytest.mark.parametrize("functions", [(), (DirectoryLock.__enter__,)], ids=["anywhere", "on the way in"])
def test_ctrl_c_at_any_line_leaves_the_lock_free_or_to_be_mended_and_on_the_way_in_free(tmp_path, functions, leaks_nothing):
    def within():
        with lock:
            pass

    count, lock = 1, DirectoryLock(str(tmp_path))
    while Interruption(count, *functions).during(within):
        if not functions:
            lock.mend()
        with thread(within) as done:
            pass
        assert done == [None] and is_free(tmp_path), count
        count, lock = count + 1, DirectoryLock(str(tmp_path))
    assert count > (5 if functions else 15)


def test_ctrl_c_while_a_lock_is_let_go_of_is_not_lost(tmp_path):
    held = [directory_lock(str(tmp_path))]
    with pytest.raises(KeyboardInterrupt):  # the signal comes, and the lock goes, within one call of C
        any(map(operator.methodcaller("__call__"), [_thread.interrupt_main, held.clear]))
    assert not held and directory_lock(str(tmp_path)) is directory_lock(str(tmp_path / "."))


def test_ctrl_c_while_a_lock_is_let_go_of_keeps_no_other_process_waiting(lock, tmp_path, monkeypatch, leaks_nothing):
    def interrupted(fd):
        monkeypatch.undo()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), lock:
        monkeypatch.setattr(system, "unlock", interrupted)
    assert is_free(tmp_path)
    with lock:
        assert not is_free(tmp_path)


def test_a_directory_that_is_gone_is_an_error_and_one_that_was_made_anew_meanwhile_is_locked_anew(tmp_path, looks):
    there = tmp_path / "there"
    lock = directory_lock(str(there))
    with pytest.raises(FileNotFoundError), lock:
        pass
    there.mkdir()
    looks(1, lambda: (there.rmdir(), there.mkdir()))
    with lock:
        assert not is_free(there)


def test_a_lock_whose_descriptor_the_program_closed_closes_nobody_elses(lock, tmp_path):
    with lock:
        fd = lock._held.fd
        os.close(fd)
        mine = os.open(tmp_path / "mine", os.O_RDWR | os.O_CREAT)
        assert mine == fd
    os.write(mine, b"still open")
    os.close(mine)


def test_a_child_neither_unlocks_nor_keeps_what_its_parent_holds(lock, tmp_path):

    def child():
        locks.after_fork()
        lock.__exit__()  # as a fork within the block comes out of it
        assert not is_free(tmp_path), "the child unlocked what its parent holds"

    with lock:
        assert forked(child) == 0
        assert not is_free(tmp_path)
    assert is_free(tmp_path)
