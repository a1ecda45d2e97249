"""Read transactions that stay open from one read to the next: nothing is out of date, nobody is kept waiting for long."""
from __future__ import annotations

import contextlib
import gc
import itertools
import os
import sqlite3
import textwrap
import threading
import warnings

import pytest
from children import Interruption, forked, python, wait_for_the_sweeper

from chest import Chest, database, sweeper
from chest.rows import Rows

FIRST = 1


@pytest.fixture(autouse=True)
def ids_from_one(monkeypatch):
    monkeypatch.setattr(database, "START", FIRST)


@pytest.fixture(autouse=True)
def no_sweeper_of_another_test():
    wait_for_the_sweeper()


@pytest.fixture
def unhurried():
    """The sweeper never comes; tests call `Rows.sweep` where it would."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sweeper, "PERIOD", 1000)
        yield
        sweeper.pause()
    sweeper.resume()


@pytest.fixture
def rows(tmp_path):
    """Rows of ``b"0"`` to ``b"99"``, with the ids from 1 on."""
    made = Rows(str(tmp_path), False, 4096)
    made.insert([b"%d" % i for i in range(100)])
    yield made
    made.close()


def another(rows):
    """Somebody else's connection to the file, without patience."""
    return contextlib.closing(sqlite3.connect(rows.path, isolation_level=None, timeout=0))


def read_briskly(rows):
    """Read until the transaction stays open, however slow the machine is, and whoever closes the file in between."""
    for _ in range(1000):
        for row in range(1, 2 + database.BRISK):
            assert rows.one(row) == b"%d" % (row - 1)
        if rows.held:
            return
    raise AssertionError("never brisk")


def swept(rows):
    wait_for_the_sweeper()
    assert not rows.held
    assert rows._connection is None or not rows._connection.in_transaction


def test_few_reads_leave_nothing_open(rows):
    for row in range(1, database.BRISK):
        rows.at_once(row)
    assert not rows.held
    assert not rows._connection.in_transaction


def test_slow_reads_leave_nothing_open(rows, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(database, "monotonic", lambda: next(clock) * database.MOMENT)
    for row in range(1, 100):
        rows.at_once(row)
    assert not rows.held


def test_brisk_reads_keep_a_transaction_open_and_the_sweeper_ends_it(rows, leaks_nothing):
    read_briskly(rows)
    swept(rows)
    assert not rows._connection.in_transaction
    read_briskly(rows)
    swept(rows)


def test_the_log_can_be_emptied_once_the_sweeper_was_there(rows, unhurried):
    read_briskly(rows)
    with another(rows) as other:
        other.execute("INSERT INTO value VALUES (1000, 1, 'new')")
        assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 1, "it would not have been kept from it"
        assert rows.sweep()
        assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    assert os.path.getsize(rows.path + "-wal") == 0


def test_a_row_that_is_newer_than_the_transaction_is_found(rows, unhurried):
    read_briskly(rows)
    with another(rows) as other:
        other.execute("INSERT INTO value VALUES (1000, 1, x'61')")
    assert rows.at_once(1000) is None
    assert rows.one(1000) == b"a"
    assert not rows.held


@pytest.mark.parametrize("use", [
    lambda rows: rows.insert([b"new"]), lambda rows: rows.insert([b"new"], [5]), lambda rows: rows.remove([5]),
    lambda rows: rows.many([1, 2]), lambda rows: rows.lengths([1]), lambda rows: rows.leftovers(list)])
def test_whatever_else_is_done_ends_the_transaction_first(rows, unhurried, use):
    read_briskly(rows)
    with another(rows) as other:
        other.execute("INSERT INTO value VALUES (50, 1, x'61') ON CONFLICT DO NOTHING")
        other.execute("UPDATE state SET bytes = bytes + 1")  # so that nobody can write on from what we saw
    use(rows)
    assert not rows.held
    assert not rows._connection.in_transaction
    assert rows.one(1) == b"0"


@pytest.mark.parametrize("read", [read_briskly, lambda rows: rows.at_once(1)], ids=["brisk", "single"])
def test_a_finaliser_that_writes_in_the_middle_of_a_read_is_not_refused(rows, unhurried, read):
    read(rows)
    real = rows._cursor

    class Interrupted:
        """A cursor that runs a finaliser of the user's between the statement and its row."""

        connection = real.connection
        close = real.close

        def execute(self, *statement):
            found = real.execute(*statement)
            with another(rows) as other:
                other.execute("UPDATE state SET bytes = bytes + 1")
            rows.insert([b"written by a finaliser"])
            return found

    rows._cursor = Interrupted()
    assert rows.at_once(7) in (None, b"6")
    assert rows.one(101) == b"written by a finaliser"
    assert rows.one(7) == b"6"


def test_a_read_within_a_transaction_of_our_own_does_not_begin_another(rows):
    class Reads:
        """Bytes that read rows as SQLite asks for them."""

        def __len__(self):
            return 1

        def __iter__(self):
            for row in range(1, 100):
                assert rows.at_once(row) == b"%d" % (row - 1)
            return iter([5])

    rows.insert([b"new"], Reads())
    assert rows.one(101) == b"new"
    assert rows.one(5) is None


def test_who_is_busy_is_swept_the_next_time(rows, monkeypatch):
    asked = threading.Event()
    real = rows.sweep

    def sweep():
        done = real()
        if not done:
            asked.set()
        return done

    monkeypatch.setattr(rows, "sweep", sweep)
    with rows._guard.lock:
        read_briskly(rows)
        assert asked.wait(60)
        assert rows._connection.in_transaction
    swept(rows)


def test_who_reads_without_a_pause_ends_the_transaction_when_the_sweeper_was_there(rows, unhurried):
    with rows._guard.lock:
        read_briskly(rows)
        with another(rows) as other:
            other.execute("INSERT INTO value VALUES (1000, 1, x'61')")
        assert rows.at_once(1000) is None
        found = []
        thread = threading.Thread(target=lambda: found.append(rows.sweep()))
        thread.start()
        thread.join()
        assert found == [False]
        assert rows.at_once(1000) == b"a"


def test_what_cannot_be_swept_keeps_nobody_else_from_it(rows, tmp_path):
    class Broken:
        def sweep(self):
            raise OSError("a failing disk")

    broken = Broken()
    assert sweeper.watch(broken)
    read_briskly(rows)
    swept(rows)
    read_briskly(rows)
    swept(rows)


def test_ctrl_c_at_any_line_leaves_no_transaction_that_nobody_knows_of(rows, unhurried):
    number = 1000
    functions = database.Database._hold, database.Database._let_go, database.Database._end_read
    for n, held in itertools.product(range(1, 40), (True, False)):
        read_briskly(rows)
        rows.held = held  # or as if the sweeper had just been there
        interrupted = Interruption(n, *functions).during(lambda: [rows.at_once(1), rows.at_once(2), rows.one(200)])
        number += 1
        with another(rows) as other:
            other.execute("INSERT INTO value VALUES (?, 1, x'61')", (number,))
        assert rows.one(number) == b"a", n
        assert rows.at_once(1) == b"0"
        rows.remove([number])
        assert rows.sweep()
        assert not rows._connection.in_transaction
        with another(rows) as other:
            assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0, n
    assert not interrupted, "some lines were not tried"


def test_ctrl_c_in_the_middle_of_a_read_does_not_keep_us_from_writing(rows, unhurried):
    real = rows._cursor

    class Interrupted:
        connection = real.connection
        close = real.close

        def execute(self, *statement):
            real.execute(*statement)
            raise KeyboardInterrupt

    rows._cursor = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        rows.at_once(7)
    with another(rows) as other:
        other.execute("UPDATE state SET bytes = bytes + 1")
    rows.insert([b"new"])
    assert rows.one(101) == b"new"


def test_without_threads_nothing_stays_open(rows, monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    for row in [*range(1, 101)] * 10:
        assert rows.at_once(row) == b"%d" % (row - 1)
    assert not rows.held


def test_nothing_stays_open_between_pause_and_resume(rows):
    sweeper.pause()
    try:
        for row in [*range(1, 101)] * 10:
            rows.at_once(row)
        assert not rows.held
    finally:
        sweeper.resume()
    read_briskly(rows)
    swept(rows)


def test_resume_begins_again_where_something_was_left_open(rows):
    read_briskly(rows)
    sweeper.pause()
    sweeper.resume()
    swept(rows)


def test_a_handle_that_is_dropped_or_closed_leaves_nothing(rows, leaks_nothing):
    read_briskly(rows)
    rows.close()
    assert not rows.held
    other = Rows(os.path.dirname(rows.path), False, 4096)
    other.one(1)
    read_briskly(other)
    del other
    with another(rows) as connection:
        assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_finds_no_thread_and_both_sides_read_on(rows):
    read_briskly(rows)

    def child():
        names = [thread.name for thread in threading.enumerate()]
        assert sweeper.NAME not in names, names
        rows.one(1)
        read_briskly(rows)
        swept(rows)

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # from 3.12 on a process with threads is told not to fork
        assert forked(child) == 0
    assert not rows.held
    rows.one(1)
    read_briskly(rows)
    swept(rows)


def brisk(path):
    """A handle on lists of one number each, in the middle of reading them."""
    for _ in range(1000):
        c = Chest(path=path, min_file_size=1000, available_memory=10_000)
        for key in range(200):
            assert c[key] == [key]
            if c._life.store.brisk:
                return c
    raise AssertionError("never brisk")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_fork_waits_for_who_is_about_to_be_watched(rows, tmp_path, monkeypatch):
    """As that thread starts another one, the garbage collector may end another chest, for which it needs its guard."""
    (tmp_path / "other").mkdir()
    other = Rows(str(tmp_path / "other"), False, 4096)
    entered, forks, ends = threading.Event(), threading.Event(), []
    start, pause = sweeper._Sweeper.start, sweeper.pause

    def collects(self):
        entered.set()
        assert forks.wait(60)
        with other._guard:
            return start(self)

    def pausing():
        forks.set()
        pause()

    monkeypatch.setattr(sweeper._Sweeper, "start", collects)
    monkeypatch.setattr(sweeper, "pause", pausing)
    reader = threading.Thread(target=lambda: read_briskly(rows), daemon=True)
    forker = threading.Thread(target=lambda: ends.append(forked(lambda: None)), daemon=True)
    reader.start()
    assert entered.wait(60)
    forker.start()
    forker.join(60)
    reader.join(60)
    assert ends == [0]
    assert not reader.is_alive()
    swept(rows)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_fork_in_the_sweepers_own_thread_is_one_like_any_other(rows, monkeypatch):
    real, ends = rows.sweep, []

    def sweep():
        ends.append(forked(lambda: None))
        return real()

    monkeypatch.setattr(rows, "sweep", sweep)
    read_briskly(rows)
    swept(rows)
    assert ends and set(ends) == {0}


def test_a_script_that_ends_in_the_middle_of_reading_ends_well(path):
    Chest({i: [i] for i in range(200)}, path=path, min_file_size=1000).close()
    python("import sys, threading; sys.path.insert(0, sys.argv[2])\n"
           "from test_sweeper import brisk, sweeper\n"
           "sweeper.PERIOD = 1000\n"
           "c = brisk(sys.argv[1])\n"
           "assert sweeper.NAME in [thread.name for thread in threading.enumerate()]\n"
           "c[0] = 'changed'\n"
           "c = brisk(sys.argv[1]), c", path, os.path.dirname(__file__))
    assert sorted(os.listdir(path)) == [".keys", ".small"]
    assert Chest(path=path)[0] == "changed"


def test_brisk_reads_see_what_their_own_handle_looked_at(path, unhurried):
    one = Chest({i: [i] for i in range(200)}, path=path, min_file_size=1000, available_memory=10_000)
    one.sync()
    two = brisk(path)
    one[198] = ["new"]
    del one[199]
    one.flush()
    assert len(two) == 199
    assert two[198] == ["new"]
    with pytest.raises(KeyError):
        two[199]


def test_what_others_committed_is_seen_once_the_sweeper_was_there(path):
    one = Chest({i: [i] for i in range(200)}, path=path, min_file_size=1000, available_memory=10_000)
    one.sync()
    two = brisk(path)
    one[198] = ["new"]
    one.flush()
    swept(two._life.store._rows)
    assert two[198] == ["new"]


@pytest.mark.parametrize("temporary", [False, True])
def test_what_was_read_briskly_can_be_dropped_at_once(path, unhurried, temporary):
    """SQLite refuses some settings while a transaction is open."""
    c = Chest({i: i for i in range(200)}, path=None if temporary else path, min_file_size=1000, available_memory=1000)
    c.flush()
    while not c._life.store.brisk:
        assert [c[i] for i in range(100)] == [*range(100)]
    directory = c.path
    c.close() if temporary else c.drop()
    assert not os.path.exists(directory)


def test_a_pause_does_at_once_what_the_sweeper_would_have_done(rows, unhurried):
    """Else who waits for that, as a compaction does, waits in vain: at a fork, and at the end of the script."""
    read_briskly(rows)
    sweeper.pause()
    try:
        assert not rows.held
        assert not rows._connection.in_transaction
    finally:
        sweeper.resume()


def test_a_script_with_two_handles_ends_at_once(path):
    python(textwrap.dedent("""
        import sys
        from chest import Chest, database, sweeper
        database.PATIENCE = 10000  # seconds for which SQLite waits
        sweeper.PERIOD = 10000
        one = Chest({i: [i] * 100 for i in range(5000)}, path=sys.argv[1], min_file_size=4096)
        one.sync()
        two = Chest(path=sys.argv[1], available_memory=1000)
        while not two._life.store.brisk:
            for key in range(1000):
                two[key]
        for key in range(1, 5000):
            del one[key]
        assert two._life.store.brisk
        """), path)
    assert dict(Chest(path=path)) == {0: [0] * 100}


def test_the_log_stays_short_while_somebody_reads_briskly(rows, unhurried, monkeypatch):
    monkeypatch.setattr(database, "LONGEST", 1 << 20)
    sizes = []
    with another(rows) as other:
        for _ in range(100):
            rows.sweep()
            for row in range(1, 1 + 2 * database.BRISK):
                rows.at_once(row)
            other.execute("INSERT INTO value (writer, data) VALUES (1, zeroblob(100000))")
            sizes.append(os.path.getsize(rows.path + "-wal"))
    assert max(sizes) < 8 << 20, sizes


def test_a_reader_does_not_wait_for_the_sweeper(rows):
    """In its thread a finaliser may run that waits for the reader."""
    taken, done = threading.Event(), threading.Event()

    def busy():
        with sweeper._sweeper.mutex:
            taken.set()
            done.wait(60)

    thread = threading.Thread(target=busy)
    thread.start()
    assert taken.wait(60)
    for row in range(1, 101):
        assert rows.at_once(row) == b"%d" % (row - 1)
    assert not rows.held
    done.set()
    thread.join()


def test_no_finaliser_runs_in_a_thread_that_is_just_being_started(rows, monkeypatch):
    start, collects = threading.Thread.start, []

    def started(self):
        collects.append(gc.isenabled())
        start(self)

    monkeypatch.setattr(threading.Thread, "start", started)
    read_briskly(rows)
    assert collects == [False]
    assert gc.isenabled()


def test_a_fork_in_the_middle_of_a_read_leaves_that_read_alone(rows, unhurried):
    read_briskly(rows)
    with rows._guard:
        assert not rows.sweep()
        assert rows._connection.in_transaction
    assert rows.sweep()
