"""Small values as rows of one SQLite file: what `Small` promises by itself, and what a chest makes of it."""
from __future__ import annotations

import contextlib
import errno
import gc
import gzip
import json
import os
import pickle
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import tracemalloc

import pytest
from children import HOME, forked, python
from hypothesis import given
from hypothesis import strategies as st

from chest import Chest, database, rows, statements
from chest.codec import Codec
from chest.dumper import Dumper
from chest.errors import ChestError, LoadError
from chest.files import Files, Stale
from chest.locks import later
from chest.names import Names
from chest.small import MOST, Small

LIMIT = 1000
SMALLER, LARGER = b"s" * 100, b"l" * 5000
WAIT = 30  # seconds until something counts as hung
posix = pytest.mark.skipif(os.name != "posix", reason="forks and signals are POSIX's")


@pytest.fixture(autouse=True)
def ids_from_one(monkeypatch):
    monkeypatch.setattr(database, "START", 1)


def always():
    return True


class Refuses:
    """A value that no pickle can take."""

    def __reduce__(self):
        raise TypeError("not me")


class Breaks:
    """A value that can be dumped, and not be loaded."""

    def __reduce__(self):
        return int, ("no number",)


def make(path, limit=LIMIT, durable=False, **settings):
    """A store of small values in the directory ``path``."""
    os.makedirs(path, exist_ok=True)
    codec = Codec(**settings)
    return Small(Files(str(path), codec, Names(), durable), str(path), codec, durable, limit)


def put(store, *values):
    """Write values under the keys k0, k1, …; returns their names."""
    done = list(store.write([(f"k{i}", value) for i, value in enumerate(values)]))
    assert [one.error for one in done] == [None] * len(values)
    return [one.name for one in done]


def get(store, *names):
    """The values of names; the error instead where there is one."""
    return [one.value if one.error is None else one.error for one in store.load(names, always)]


def bytes_of(path):
    return sum(os.path.getsize(os.path.join(path, name)) for name in os.listdir(path) if name.startswith(".small"))


@pytest.fixture
def store(path):
    made = make(path)
    yield made
    made.close()


# What becomes a row.


def test_a_value_is_a_row_if_its_dumped_form_is_shorter_than_the_limit(path):
    value = b"v" * 100
    size = len(pickle.dumps(value, 5))
    store = make(path, limit=size + 1)
    assert put(store, value, value + b"!") == [1, "k1"]
    assert get(store, 1, "k1") == [value, value + b"!"]
    store.close()
    assert sorted(os.listdir(path)) == [".small", "k1"]


def test_names_and_paths_say_where_a_value_is(path, store):
    row, file = put(store, SMALLER, LARGER)
    assert store.path(row) == os.path.join(path, ".small", "1")
    assert store.path(file) == os.path.join(path, "k1")
    assert store.reserve("k9") == "k9"


def test_results_come_in_order_and_an_undumpable_value_spoils_no_other(path, store):
    items = [("a", 1), ("b", LARGER), ("c", Refuses()), ("d", 2), ("e", LARGER), ("f", 3)]
    done = list(store.write(items))
    assert [one.name for one in done] == [1, "b", "", 2, "e", 3]
    assert [type(one.error) for one in done] == [type(None)] * 2 + [TypeError] + [type(None)] * 3
    large = [os.path.getsize(store.path(name)) for name in "be"]
    assert [one.nbytes for one in done] == [5, large[0], 0, 5, large[1], 5]
    assert get(store, 1, "b", 2, "e", 3) == [1, LARGER, 2, LARGER, 3]


def test_many_values_are_several_transactions_and_all_are_there(path, store, monkeypatch):
    monkeypatch.setattr("chest.small.CHUNK", 5000)
    monkeypatch.setattr("chest.small.CROWD", 30)
    values = [bytes([i % 256]) * (i * 7 % 1200) for i in range(500)]
    names = put(store, *values)
    assert len(set(names)) == 500
    assert get(store, *names) == values
    other = make(path)
    assert get(other, *names) == values
    other.close()


@pytest.mark.parametrize("count", [1, 2, statements.TOGETHER, statements.TOGETHER + 1, 3 * statements.TOGETHER + 7])
def test_rows_that_are_written_together_have_ids_one_after_another(store, count):
    values = [f"value {i}" for i in range(count)]
    for turn in range(2):
        names, nbytes = store.write_rows(values)
        assert names == list(range(1 + turn * count, 1 + (turn + 1) * count))
        assert get(store, *names) == values
        assert nbytes == sum(len(pickle.dumps(value, 5)) for value in values)
        store.remove(names[-1:])


def test_a_file_with_rows_where_none_can_be_is_refused_and_left_as_it_is(path, store):
    put(store, 1)
    with contextlib.closing(sqlite3.connect(os.path.join(path, ".small"))) as other, other:
        other.execute("INSERT INTO value VALUES (1000, 1, x'00')")
    for done in store.write([("a", 2), ("b", 3)]):
        assert isinstance(done.error, LoadError)
        assert "damaged" in str(done.error)
    with contextlib.closing(sqlite3.connect(os.path.join(path, ".small"))) as other:
        assert other.execute("SELECT id FROM value").fetchall() == [(1,), (1000,)]


@given(st.sets(st.one_of(st.integers(1, 400), st.integers(1, 10**6))), st.sets(st.integers(1, 20)))
def test_conditions_mean_the_rows_that_are_asked_for_and_no_others(rows, runs):
    rows = sorted(rows.union(*(range(run * 1000, run * 1000 + 10 * run) for run in runs)))
    meant = []
    for where, ids, wanted in statements.conditions(rows):
        assert where.count("?") == len(ids)
        found = range(ids[0], ids[1] + 1) if "BETWEEN" in where else ids
        assert set(found) == set(wanted)
        assert list(wanted) == sorted(wanted)
        meant += wanted
    assert sorted(meant) == rows


def test_a_name_is_given_out_only_when_its_row_is_committed(path, store):
    for one in store.write([(i, i) for i in range(3)]):
        assert get_elsewhere(path, one.name)[-1:] == pickle.STOP


def get_elsewhere(path, name):
    connection = sqlite3.connect(os.path.join(path, ".small"))
    try:
        return connection.execute("SELECT data FROM value WHERE id = ?", (name,)).fetchone()[0]
    finally:
        connection.close()


@pytest.mark.parametrize("value", [b"x" * 8_000_000, [b"x" * 8_000_000], ["x" * 4_000_000] * 2, list(range(300_000))],
                         ids=["bytes", "bytes in a list", "text", "numbers"])
def test_a_large_value_is_not_dumped_into_memory_to_learn_that_it_is(value):
    held_to_its_limit(value)


@pytest.mark.parametrize("make_array", [
    lambda numpy: numpy.zeros(10**6),
    lambda numpy: [numpy.zeros(10**6)],
    lambda numpy: numpy.zeros((10**6, 2))[:, 0],
], ids=["array", "array in a list", "array with gaps"])
def test_a_large_array_is_not_copied_to_learn_that_it_is(make_array):
    held_to_its_limit(make_array(pytest.importorskip("numpy")))


def held_to_its_limit(value):
    dumper = Dumper(Codec(), LIMIT)
    tracemalloc.start()
    try:
        assert dumper.dumped(value) is None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    text = sum(len(part) for part in value if isinstance(part, str)) if isinstance(value, list) else 0
    assert peak < 1_000_000 + text  # pickle encodes a text before it writes it


def test_rows_come_in_the_order_in_which_they_are_asked_for(path, store):
    store._rows.insert([b"%d" % i for i in range(200)])
    store._rows.remove([5, 100])
    for asked in ([], [1], [3, 1, 2], [1, 1, 3], [4, 5, 6], [5], [1000], [*range(150, 80, -1)], [*range(1, 201)],
                  [*range(1, 100), *range(101, 201), 7], [*range(6, 100)]):
        wanted = [b"%d" % (row - 1) if row < 201 and row not in (5, 100) else None for row in asked]
        assert store._rows.many(asked) == wanted
        assert store._rows.lengths(asked) == [one and len(one) for one in wanted]


def test_small_arrays_are_rows(path, store):
    numpy = pytest.importorskip("numpy")
    values = [numpy.arange(10.0), numpy.arange(40.0)[::2], numpy.float32(2), numpy.arange(3).astype(object)]
    names = put(store, *values)
    assert names == [1, 2, 3, 4]
    for value, back in zip(values, get(store, *names)):
        assert numpy.array_equal(value, back)
        assert getattr(back, "flags", numpy.arange(1).flags).writeable or back.shape == ()


def test_what_was_written_but_never_reported_is_removed(path, store):
    written = store.write([("a", 1), ("b", LARGER), ("c", 2), ("d", LARGER)])
    first = next(written)
    written.close()
    store.close()
    assert sorted(os.listdir(path)) == [".small"]
    assert get(store, first.name) == [1]
    assert [type(error) for error in get(store, 2)] == [FileNotFoundError]


def test_an_error_of_the_items_leaves_nothing_behind(path, store):
    def items():
        yield "a", LARGER
        yield "b", 1
        yield "c", LARGER
        raise KeyboardInterrupt

    written = store.write(items())
    assert next(written).name == "a"
    with pytest.raises(KeyboardInterrupt):
        next(written)
    store.close()
    assert os.listdir(path) == ["a"]


# Reading.


def test_values_come_in_the_order_asked_rows_and_files_mixed(path, store):
    values = [LARGER + b"%d" % i if i % 5 == 0 else b"%d" % i for i in range(1500)]
    names = put(store, *values)
    order = [random.Random(1).randrange(1500) for _ in range(3000)]
    for workers in (1, 4):
        loaded = store.load([names[i] for i in order], always, workers)
        assert [one.value for one in loaded] == [values[i] for i in order]
    assert get(store, *reversed(names)) == values[::-1]


def test_bytes_loaded_and_written_are_those_of_the_row(store):
    (written,) = store.write([("k", SMALLER)])
    (loaded,) = store.load([written.name], always)
    assert written.nbytes == loaded.nbytes == store.size(written.name) == len(pickle.dumps(SMALLER, 5))


def test_a_row_that_is_gone_is_a_file_that_is_gone(path, store):
    names = put(store, *range(300))
    store.remove(names[:299])
    for gone in (get(store, names[0])[0], get(store, names[299], names[0])[1], get(make(path + "2"), 1)[0]):
        assert isinstance(gone, FileNotFoundError)
        assert ".small" in str(gone)
    assert store.size(names[0]) == 0
    assert list(store.sizes([names[0], names[299]])) == [0, len(pickle.dumps(299, 5))]


def test_a_row_that_does_not_load_is_named_and_spoils_no_other(store):
    names = put(store, 1, Breaks(), 2)
    one, error, two = get(store, *names)
    assert (one, two) == (1, 2)
    assert isinstance(error, LoadError)
    assert ".small/2" in str(error).replace(os.sep, "/")


@pytest.mark.parametrize("count", [1, 3])
def test_rows_are_believed_only_if_the_index_still_stands_once_they_are_read(store, count):
    names = put(store, *range(count))

    def trusted():
        store.remove(names)
        return False

    assert [type(one.error) for one in store.load(names, trusted)] == [Stale] * count


def test_same_tells_what_changed(path, store):
    values = [[1, "two"], {"x": SMALLER}, LARGER, (1,)]
    names = put(store, *values)
    assert list(store.same(list(zip(names, values)))) == [True] * 4
    assert all(next(store.same([(name, value)])) for name, value in zip(names, values))
    changed = [[1, "2"], {"x": LARGER}, SMALLER, Refuses()]
    assert list(store.same(list(zip(names, changed)))) == [False] * 4
    store.remove(names[:1] * 300)
    assert not next(store.same([(names[0], values[0])]))


def test_same_gives_a_second_chance_to_what_pickles_in_another_way(store):
    part = "".join(["an attri", "bute"])
    (name,) = put(store, [part, "".join(["an attri", "bute"])])
    assert next(store.same([(name, [part, "".join(["an attri", "bute"])])]))
    (name,) = put(store, Named())
    assert next(store.same([(name, get(store, name)[0])]))


class Named:
    """An instance whose attribute names pickle interns when it loads them."""

    def __init__(self):
        self.__dict__["".join(["val", "ue"])] = 1
        self.__dict__["other"] = "".join(["val", "ue"])


# Settings.


@pytest.mark.parametrize("settings", [
    {"dump": json.dump, "load": json.load},
    {"dump": json.dump, "load": json.load, "mode": "t"},
    {"dump": pickle.dump, "load": pickle.load},
    {"dump": pickle.dump, "load": pickle.load, "open": gzip.open},
    {"mmap_mode": "c"},
], ids=["json", "json text", "pickle", "gzip", "mapped"])
def test_rows_hold_what_dump_makes(path, settings):
    store = make(path, **settings)
    codec = Codec(**settings)
    small, large = {"é": [1, None]}, ["é" * 2000]
    names = put(store, small, large)
    assert names == [1, "k1"]
    assert get(store, *names) == [small, large]
    assert next(store.same([(names[0], small)]))
    assert not next(store.same([(names[0], {"é": [2, None]})]))
    assert codec.loaded(get_elsewhere(path, names[0])) == small
    store.close()


def test_a_dump_that_takes_every_error_for_its_own_writes_a_file(path):
    def dump(value, file):
        try:
            file.write(value)
        except Exception:
            pass

    store = make(path, dump=dump, load=lambda file: file.read())
    assert put(store, LARGER, SMALLER) == ["k0", 1]
    assert get(store, "k0", 1) == [LARGER, SMALLER]
    store.close()


def test_without_a_limit_nothing_becomes_a_row_and_sqlite_is_not_touched(path):
    script = """if True:
        import sys
        from chest import Chest
        with Chest({'x': 1}, path=sys.argv[1]) as c:
            c.flush()
            assert c['x'] == 1
            del c['x']
        print('sqlite3' in sys.modules)
    """
    assert python(script, path).strip() == "False"
    assert os.listdir(path) == [".keys"]


def test_rows_are_read_and_removed_by_a_chest_that_was_not_told_of_them(path):
    Chest({"a": 1, "b": 2, "l": LARGER}, path=path, min_file_size=LIMIT).close()
    assert sorted(os.listdir(path)) == [".keys", ".small", "l"]
    with Chest(path=path) as c:
        assert dict(c) == {"a": 1, "b": 2, "l": LARGER}
        assert c.key_to_filename("a") == os.path.join(path, ".small", "1")
        c["a"] = 3
        del c["b"]
    assert sorted(os.listdir(path)) == [".keys", ".small", "a", "l"]
    with Chest(path=path, min_file_size=2 * len(LARGER)) as c:
        assert dict(c) == {"a": 3, "l": LARGER}
        c["l"] = LARGER
    assert sorted(os.listdir(path)) == [".keys", ".small", "a"]
    assert dict(Chest(path=path)) == {"a": 3, "l": LARGER}


def test_durable_waits_for_the_disk_and_otherwise_the_file_is_never_damaged(path):
    for durable, level in ((True, 2), (False, 1)):
        store = make(path, durable=durable)
        put(store, 1)
        assert store._rows._connection.execute("PRAGMA synchronous").fetchone() == (level,)
        store.close()


# Names and space.


@pytest.mark.parametrize("dropped", [False, True])
def test_ids_are_never_used_again(path, dropped, monkeypatch):
    monkeypatch.undo()
    seen = set()
    for _ in range(4):
        store = make(path)
        names = put(store, *[SMALLER] * 500)
        assert seen.isdisjoint(names)
        seen.update(names)
        store.remove(names)
        store.destroy() if dropped else store.close()


@pytest.mark.parametrize("kept", [
    lambda i: i % 2,
    lambda i: i % 7 == 0,
    lambda i: i > 9000,
    lambda i: i == 5,
    lambda i: False,
], ids=["half", "a seventh", "the last", "one", "none"])
@pytest.mark.parametrize("size", [10, 300, 900])
def test_space_of_what_was_removed_is_given_back(path, kept, size):
    store = make(path)
    names = put(store, *(b"%06d" % i + b"v" * size for i in range(10_000)))
    store.remove([name for i, name in enumerate(names) if not kept(i)])
    left = [name for i, name in enumerate(names) if kept(i)]
    alive = sum(store.sizes(left)) + rows.OVERHEAD * len(left)
    assert get(store, *left) == [b"%06d" % i + b"v" * size for i in range(10_000) if kept(i)]
    store.close()
    assert bytes_of(path) <= 2 * alive + 64 * 1024
    assert os.listdir(path) == [".small"]


def test_space_is_given_back_also_where_rows_are_removed_a_few_at_a_time(path, store):
    names = put(store, *[b"v" * 300] * 10_000)
    for start in range(0, 9_900, 100):
        store.remove(names[start : start + 100])
        put(store, 1)
    assert bytes_of(path) < 200 * 1024


def test_removing_a_row_twice_removes_no_other(store):
    names = put(store, *range(6))
    store.remove([names[0], names[0], names[2], names[0]])
    store.remove([names[5], names[5], names[3]])
    store.close()
    assert [type(value) for value in get(store, *names)] == [
        FileNotFoundError, int, FileNotFoundError, FileNotFoundError, int, FileNotFoundError]


def test_space_stays_bounded_however_often_everything_is_written_anew(path):
    with Chest(path=path, available_memory=1e4, min_file_size=LIMIT) as c:
        sizes = []
        for turn in range(6):
            for i in range(2000):
                c[i] = b"%d" % turn + SMALLER
            c.flush()
            sizes.append(os.path.getsize(os.path.join(path, ".small")))
        assert c[1999] == b"5" + SMALLER
    assert max(sizes) <= 2 * 2000 * 130 + 64 * 1024


def test_reading_goes_on_while_the_file_is_compacted(path, store):
    names = put(store, *range(20_000))
    other = make(path)
    values = other.load(names, always)
    assert [next(values).value for _ in range(10)] == list(range(10))
    store.remove(names[600:])
    assert [one.value for one in values][:500] == list(range(10, 510))
    assert get(other, names[599]) == [599]
    other.close()


# The end of a handle.


def test_the_last_close_leaves_the_file_alone_and_an_earlier_one_disturbs_nobody(path):
    first, second = make(path), make(path)
    names = put(first, 1), put(second, 2)
    first.close()
    assert get(second, *names[0], *names[1]) == [1, 2]
    put(second, 3)
    second.close()
    assert os.listdir(path) == [".small"]
    assert get(first, *names[0], *names[1]) == [1, 2]  # opens itself again
    first.close()
    assert os.listdir(path) == [".small"]


def test_destroy_removes_the_file_and_the_directory_and_strangers_stay(path):
    store = make(path)
    put(store, 1, LARGER)
    store.remove(["k1"])
    with open(os.path.join(path, "strangers"), "w"):
        pass
    store.destroy()
    assert os.listdir(path) == ["strangers"]
    os.unlink(os.path.join(path, "strangers"))
    store.destroy()
    assert not os.path.exists(path)


def test_a_handle_whose_directory_was_dropped_and_made_anew_harms_nobody(path):
    old = make(path)
    (name,) = put(old, "old")
    assert get(old, name) == ["old"]
    other = make(path)
    other.destroy()
    assert not os.path.exists(path)
    assert isinstance(get(old, name)[0], FileNotFoundError)
    new = make(path)
    (name,) = put(new, "new")
    assert get(old, name) == ["new"]
    (second,) = put(old, "more")
    old.close()
    assert get(new, name, second) == ["new", "more"]
    new.close()
    assert os.listdir(path) == [".small"]
    assert get(new, name, second) == ["new", "more"]
    new.close()


def test_a_handle_that_sleeps_through_a_drop_does_not_take_the_new_file_s_companions_away(path):
    old, older = make(path), make(path)
    put(old, "old")
    assert get(older, 1) == ["old"]
    make(path).destroy()
    new = make(path)
    (name,) = put(new, "new")
    old.close()
    assert get(older, name) == ["new"]
    older.close()
    (second,) = put(new, "more")
    new.close()
    assert get(new, name, second) == ["new", "more"]
    new.close()


def test_a_directory_that_is_gone_is_not_made_again(path):
    store = make(path)
    put(store, 1)
    os.unlink(os.path.join(path, ".small"))
    for name in os.listdir(path):
        os.unlink(os.path.join(path, name))
    os.rmdir(path)
    (done,) = store.write([("k", 1)])
    assert isinstance(done.error, FileNotFoundError)
    assert not os.path.exists(path)
    store.close()


def test_nothing_is_left_open(path, leaks_nothing):
    store = make(path)
    assert get(store, *put(store, 1, 2)) == [1, 2]
    store.close()
    c = Chest({"x": 1}, path=path, min_file_size=LIMIT)
    c.flush()
    assert c["x"] == 1
    del c, store
    gc.collect()


# Between stores.


def test_a_row_is_copied_into_another_store_byte_for_byte(path, store):
    names = put(store, SMALLER, LARGER)
    other = make(path + "2", limit=50)
    row = other.link("x", store, names[0], always)
    assert row == 1
    assert get(other, row) == [SMALLER]
    file = other.link("y", store, names[1], always)
    assert os.path.samefile(other.path(file), store.path(names[1]))
    with pytest.raises(Stale):
        other.link("z", store, names[0], lambda: False)
    store.remove(names[:1])
    store.close()
    with pytest.raises(FileNotFoundError):
        other.link("z", store, names[0], always)
    assert get(other, row) == [SMALLER]
    other.close()


def test_a_row_is_no_link_for_a_store_that_has_no_rows(path, store):
    (name,) = put(store, SMALLER)
    plain = make(path + "2", limit=0)
    for other, source in ((plain, store), (store, Files(path, Codec(), Names(), False))):
        with pytest.raises(OSError, match="copied"):
            other.link("x", source, name, always)
    assert os.listdir(path + "2") == []


@pytest.mark.parametrize("limits", [(0, LIMIT), (LIMIT, 0), (LIMIT, 200), (200, 10**5)])
def test_update_between_chests_of_different_settings(path, limits):
    data = {"a": 1, "b": SMALLER * 3, "c": LARGER}
    mine, theirs = limits
    with Chest(data, path=path, min_file_size=mine) as source, Chest(path=path + "2", min_file_size=theirs) as c:
        c.update(source)
        assert dict(c) == data
    assert dict(Chest(path=path + "2")) == data
    assert dict(Chest(path=path)) == data


# Processes.


def small_of(*lines):
    return "\n".join(["import os, sys", f"sys.path.insert(0, {os.path.dirname(__file__)!r})",
                      "from test_small import *", "database.START = 1", "store = make(sys.argv[1])", *lines])


def ids(printed):
    return list(map(int, printed.split()))


def one_that_waits(path):
    """A process that wrote a value, told its name and waits until its standard input is closed."""
    script = small_of("print(*put(store, 4), flush=True)", "sys.stdin.read()")
    return subprocess.Popen([sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            text=True, env=dict(os.environ, PYTHONPATH=HOME))


@posix
def test_a_kill_in_the_middle_of_a_transaction_leaves_what_was_committed(path):
    script = small_of("names = put(store, *range(100))",
                      "class Deadly(list):",
                      "    def __iter__(self):",
                      "        os.kill(os.getpid(), signal.SIGKILL)",
                      "print(*names, flush=True)",
                      "store._rows.insert([b'half'] * 5000, Deadly())")
    names = ids(python(script, path, code=-signal.SIGKILL))
    store = make(path)
    assert get(store, *names) == list(range(100))
    (name,) = put(store, "next")
    assert get_elsewhere(path, name) == pickle.dumps("next", 5)
    assert name == 101
    store.close()
    assert os.listdir(path) == [".small"]


@posix
def test_a_kill_at_any_moment_leaves_the_last_commit(path):
    script = """if True:
        import sys
        from chest import Chest
        c = Chest(path=sys.argv[1], available_memory=20_000, min_file_size=1000)
        for turn in range(1, 10_000):
            for i in range(300):
                c[i] = (turn, 'v' * (turn * i % 200))
            del c[turn % 300]
            c.sync()
            print(turn, flush=True)
    """
    chooser = random.Random(5)
    for _ in range(4):
        seen = 0
        with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE, text=True,
                              env=dict(os.environ, PYTHONPATH=HOME)) as child:
            for _ in range(chooser.randrange(1, 6)):
                seen = int(child.stdout.readline())
            child.send_signal(signal.SIGKILL)
            rest = child.stdout.read().split()
        seen = int(rest[-1]) if rest else seen
        with Chest(path=path) as c:
            turn = c[(seen + 5) % 300][0]
            assert turn in (seen, seen + 1)
            assert len(c) == 299
            assert all(value == (turn, "v" * (turn * key % 200)) for key, value in c.items())


@posix
def test_what_a_dead_process_did_not_commit_is_found_and_nothing_else(path):
    dead = ids(python(small_of("print(*put(store, 1, 2, 3), flush=True)", "os._exit(0)"), path))
    with one_that_waits(path) as alive:
        theirs = ids(alive.stdout.readline())
        store = make(path)
        mine = put(store, 5)
        assert store.leftovers(lambda: [dead[1], "a_file"]) == [dead[0], dead[2]]
        alive.stdin.close()
        alive.wait(WAIT)
    assert store.leftovers(lambda: [dead[1]]) == [dead[0], dead[2], *theirs]
    store.remove(store.leftovers(lambda: [dead[1]]))
    store.close()
    assert get(store, dead[1], *mine) == [2, 5]
    assert store.leftovers(lambda: [dead[1]]) == []
    store.close()


@posix
def test_the_index_is_asked_only_after_it_was_found_who_is_dead(path):
    """A process that commits and then dies, just between, must not lose what it committed."""
    with one_that_waits(path) as alive:
        (name,) = ids(alive.stdout.readline())
        store = make(path)

        def named():
            alive.kill()
            alive.wait(WAIT)
            return []  # read before it committed

        assert store.leftovers(named) == []
        assert store.leftovers(list) == [name]
    store.close()


@posix
def test_a_process_that_has_the_number_of_a_dead_one_is_another(path, monkeypatch):
    names = ids(python(small_of("print(*put(store, 1))", "store.close()"), path))
    connection = sqlite3.connect(os.path.join(path, ".small"))
    (mark,) = connection.execute("SELECT process FROM writer").fetchone()
    parts = mark.split("\n")
    connection.execute("UPDATE writer SET process = ?", ("\n".join([*parts[:3], str(os.getpid()), parts[4]]),))
    connection.commit()
    connection.close()
    if not parts[4]:
        pytest.skip("the system does not tell when a process started")
    assert make(path).leftovers(list) == names


@posix
@pytest.mark.parametrize("far", [0, 2], ids=["machine", "container"])
def test_a_writer_that_cannot_be_judged_from_here_counts_as_alive(path, far):
    python(small_of("print(*put(store, 1))", "store.close()"), path)
    connection = sqlite3.connect(os.path.join(path, ".small"))
    parts = connection.execute("SELECT process FROM writer").fetchone()[0].split("\n")
    parts[far] = "elsewhere"
    connection.execute("UPDATE writer SET process = ?", ("\n".join(parts),))
    connection.commit()
    connection.close()
    assert make(path).leftovers(list) == []


@posix
def test_several_processes_write_read_and_remove_at_once(path):
    make(path).close()
    pids = []
    for number in range(4):
        pid = os.fork()
        if not pid:
            status = 1
            try:
                store = make(path)
                for turn in range(10):
                    values = [(number, turn, i) for i in range(200)]
                    names = put(store, *values)
                    assert get(store, *names) == values
                    store.remove(names[:100])
                    assert get(store, *names[100:]) == values[100:]
                store.close()
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
    connection = sqlite3.connect(os.path.join(path, ".small"))
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert connection.execute("SELECT count(*) FROM value").fetchone() == (4000,)
    assert connection.execute("SELECT bytes FROM state").fetchone() == connection.execute(
        f"SELECT sum(length(data) + {rows.OVERHEAD}) FROM value").fetchone()
    connection.close()
    assert os.listdir(path) == [".small"]


@posix
def test_parent_and_child_go_on_after_a_fork(path):
    store = make(path)
    before = put(store, *range(50))
    store.remove(before[:1])

    def child():
        assert get(store, *before[1:]) == list(range(1, 50))
        put(store, *["of the child"] * 5)
        store.close()

    assert forked(lambda: (store.after_fork(), child())) == 0
    assert get(store, *before[1:]) == list(range(1, 50))
    mine = put(store, *["of the parent"] * 5)
    assert forked(lambda: (store.after_fork(), child())) == 0
    assert get(store, *mine) == ["of the parent"] * 5
    store.close()
    assert os.listdir(path) == [".small"]


@posix
def test_a_child_that_outlives_its_parent_s_handle_loses_nothing(path):
    """A connection that crossed the fork holds no lock in the child: the parent, closing, takes the log away."""
    store = make(path)
    put(store, 1)
    wrote, closed = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            store.after_fork()
            names = put(store, 2)
            os.write(wrote[1], b"!")
            os.read(closed[0], 1)
            names += put(store, 3)
            assert get(store, *names) == [2, 3]
            store.close()
            assert get(make(path), *names) == [2, 3]
            status = 0
        finally:
            os._exit(status)
    os.read(wrote[0], 1)
    store.close()
    os.write(closed[1], b"!")
    assert os.waitpid(pid, 0)[1] == 0
    assert get(store, 1, 2, 3) == [1, 2, 3]
    store.close()
    for fd in wrote + closed:
        os.close(fd)


@posix
def test_a_fork_waits_for_the_transaction_of_another_thread(path):
    store = make(path)
    put(store, 0)
    begun, go_on = threading.Event(), threading.Event()

    class Slow(list):
        def __iter__(self):
            begun.set()
            assert go_on.wait(WAIT)
            return super().__iter__()

    thread = threading.Thread(target=lambda: store._rows.insert([b"a", b"b"], Slow([])))
    thread.start()
    assert begun.wait(WAIT)
    threading.Timer(0.2, go_on.set).start()

    def child():
        assert go_on.is_set()
        store.after_fork()
        put(store, "of the child")
        store.close()

    assert forked(child) == 0
    thread.join(WAIT)
    assert store._rows.one(2) == b"a"
    assert get(store, 4) == ["of the child"]
    store.close()


# Threads and finalisers.


def test_threads_share_a_store(path, store):
    failures = []

    def work(number):
        try:
            for turn in range(10):
                values = [(number, turn, i) for i in range(100)]
                names = put(store, *values)
                assert get(store, *names) == values
                assert get(store, names[7]) == [values[7]]
                store.remove(names[::2])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert not failures
    store._remove_spent()
    assert len(store.leftovers(list)) == 0
    assert store._rows._connection.execute("SELECT count(*) FROM value").fetchone() == (2000,)


def test_a_finaliser_that_comes_in_the_middle_of_a_transaction_waits_for_its_end(store):
    put(store, 0)
    seen = []

    class Collected(list):
        def __iter__(self):
            later(lambda: seen.append((store._rows._guard.depth, store._rows._connection.in_transaction)))
            return super().__iter__()

    store._rows.insert([b"a"], Collected([]))
    assert seen == [(0, False)]


def test_ctrl_c_in_the_middle_of_a_transaction_undoes_it(store):
    put(store, 0)

    class Interrupts(list):
        def __iter__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store._rows.insert([b"a"], Interrupts([]))
    assert put(store, 1) == [2]
    store._rows._connection.execute("BEGIN")  # as if Ctrl-C had come just behind it
    assert put(store, 2) == [3]
    assert get(store, 2, 3) == [1, 2]


# What the system refuses.


def test_a_full_disk_is_an_error_of_the_rows_and_nothing_is_lost(path, store):
    (name,) = put(store, 0)
    pages = store._rows._connection.execute("PRAGMA page_count").fetchone()[0]
    store._rows._connection.execute(f"PRAGMA max_page_count = {pages}")
    done = list(store.write([(i, b"x" * 900) for i in range(100)] + [("large", LARGER)]))
    assert {one.error.errno for one in done[:100]} == {errno.ENOSPC}
    assert done[100].name == "large"
    store._rows._connection.execute("PRAGMA max_page_count = 100000")
    names = put(store, *[b"x" * 900] * 100)
    assert names[0] == 2
    assert get(store, name, "large", names[99]) == [0, LARGER, b"x" * 900]


def test_a_process_that_keeps_the_file_busy_for_too_long_is_reported(path, monkeypatch):
    monkeypatch.setattr(database, "PATIENCE", 0.01)
    store = make(path)
    (name,) = put(store, 0)
    busy = sqlite3.connect(os.path.join(path, ".small"), isolation_level=None)
    busy.execute("BEGIN IMMEDIATE")
    (done,) = store.write([("k", 1)])
    assert isinstance(done.error, TimeoutError)
    assert get(store, name) == [0]
    store.remove([name] * 300)  # is put off
    busy.execute("COMMIT")
    busy.close()
    put(store, 1)
    assert isinstance(get(store, name)[0], FileNotFoundError)
    store.close()


@pytest.mark.parametrize("content", [b"a text of somebody's " * 100, b"SQLite format 3\0" + b"?" * 5000])
def test_a_stranger_s_file_is_reported_and_not_touched(path, content):
    store = make(path)
    with open(os.path.join(path, ".small"), "wb") as file:
        file.write(content)
    (done,) = store.write([("k", 1)])
    assert isinstance(done.error, (ChestError, OSError))
    assert ".small" in str(done.error)
    assert isinstance(get(store, 1)[0], (ChestError, OSError))
    store.close()
    with open(os.path.join(path, ".small"), "rb") as file:
        assert file.read() == content


def test_a_stranger_s_database_is_reported_and_not_touched(path):
    store = make(path)
    connection = sqlite3.connect(os.path.join(path, ".small"))
    connection.execute("CREATE TABLE mine (x)")
    connection.commit()
    (done,) = store.write([("k", 1)])
    assert isinstance(done.error, ChestError)
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("mine",)]
    connection.close()


def test_a_file_of_a_newer_chest_is_reported(path):
    store = make(path)
    put(store, 1)
    store._rows._connection.execute("PRAGMA user_version = 2")
    store.close()
    (error,) = get(store, 1)
    assert isinstance(error, ChestError)
    assert "newer" in str(error)


def test_a_file_whose_maker_died_at_once_is_finished(path):
    store = make(path)
    with open(os.path.join(path, ".small"), "wb"):
        pass
    assert isinstance(get(store, 1)[0], FileNotFoundError)
    assert get(store, *put(store, 1)) == [1]
    store.close()
    assert os.listdir(path) == [".small"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_rows_are_read_where_nothing_may_be_written(path):
    store = make(path)
    names = put(store, *range(1000))
    store.close()
    os.chmod(path, 0o555)
    os.chmod(os.path.join(path, ".small"), 0o444)
    try:
        assert get(store, *names) == list(range(1000))
        assert get(store, names[7]) == [7]
        (done,) = store.write([("k", 1)])
        assert isinstance(done.error, PermissionError)
        os.chmod(path, 0o755)
        os.chmod(os.path.join(path, ".small"), 0o644)
        other = make(path)
        (name,) = put(other, "more")
        assert get(store, name) == ["more"]
        other.close()
    finally:
        os.chmod(path, 0o755)
    store.close()


@pytest.mark.parametrize("limit", [1, 100, 4096, 1 << 20, 1 << 30])
def test_what_is_read_or_written_together_is_bounded_by_bytes_too(path, limit):
    with Chest(path=path, min_file_size=limit) as c:
        store = c._life.store
        for together in (store.crowd, store.ahead):
            assert together >= 1
            assert together == 1 or together * limit <= MOST


@pytest.mark.parametrize("settings", [{}, {"min_file_size": 1000}], ids=["files", "rows"])
def test_what_was_spilled_and_not_committed_survives_that_others_drop_the_chest(path, settings):
    c = Chest({i: [i] for i in range(50)}, path=path, available_memory=2000, **settings)
    c.sync()
    for i in range(50, 100):
        c[i] = [i]
    assert not {50, 60} & set(c.inmem)
    Chest(path=path, **settings).drop()
    assert dict(Chest(path=path)) == {}
    c.flush()
    found = dict(Chest(path=path))
    assert found == {i: [i] for i in range(50, 100)}
    c.drop()
    assert not os.path.exists(path)
