"""However a program ends, its chests end well: saved where they have a path, removed where they are temporary."""
from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import os
import pickle
import shutil
import signal
import sys
import threading
import warnings

import pytest
from children import python

from chest import Chest
from chest.errors import ChestError
from chest.memory.changes import COUNTED

collected = pytest.mark.skipif(sys.implementation.name != "cpython", reason="nobody can say when garbage is collected")

BEGIN = """if True:
    import atexit, gc, os, signal, sys, threading
    from chest import Chest
    try:
        import NUMPY as numpy
        value = numpy.arange(10000.0)
    except ImportError:
        value = list(range(10000))
    c = Chest(path=sys.argv[1] or None)
    print(c.path, flush=True)
    c['saved'] = 1
    c.flush()
    c['x'] = value
"""

ARRAYS = BEGIN.replace("NUMPY", "numpy")  # where it is there: importing it takes time, so not in all the tests

ENDS = {
    "the script just ends": ("", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "sys.exit in a function that has the only handle": ("""
    def f(mine):
        globals().pop('c')
        sys.exit(3)
    f(c)""", 3),
    "an exception": ("raise ZeroDivisionError", 1),
    "an exception that keeps the frame": ("""
    try:
        1 / 0
    except ZeroDivisionError as error:
        kept = error
    """, 0),
    "with": ("""
    with c:
        c['x'] = value
    del c
    """, 0),
    "with, and an exception": ("""
    with c:
        raise ZeroDivisionError""", 1),
    "del": ("del c", 0),
    "close": ("c.close()", 0),
    "close, and a use after it": ("""
    c.close()
    if sys.argv[1]:
        c['x'] = value""", 0),
    "a handler that turns a signal into an exit": ("""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(20)""", 4),
    "garbage in a cycle": ("""
    class Cycle: pass
    cycle = Cycle()
    cycle.me, cycle.chest = cycle, c
    del cycle, c""", 0),
    "a module that lives for ever": ("""
    import types
    module = sys.modules['module'] = types.ModuleType('module')
    module.c = c
    module.me = module
    del c""", 0),
    "a thread that works on": ("""
    def late():
        threading.main_thread().join()
        c['x'] = value
    del c['x']
    threading.Thread(target=late).start()""", 0),
    "an exit handler": ("""
    del c['x']
    atexit.register(lambda: c.update(x=value))""", 0),
    "a daemon thread that holds the handle": ("""
    threading.Thread(target=lambda mine: threading.Event().wait(), args=(c,), daemon=True).start()
    """, 0),
    "Ctrl-C": ("""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait(20)""", -signal.SIGINT),
}


@pytest.mark.parametrize("how", ENDS)
def test_a_program_that_ends_saves_a_chest_with_a_path(how, path):
    end, code = ENDS[how]
    python((ARRAYS if "with" not in how else BEGIN) + end, path, code=code, stderr=None if code else "")
    with Chest(path=path) as c:
        assert sorted(c) == ["saved", "x"]
        assert list(c["x"]) == list(range(10000))
    assert sorted(os.listdir(path)) == [".keys", "saved", "x" if how != "close, and a use after it" else "x~1"]


@pytest.mark.parametrize("how", [how for how in ENDS if how != "an exit handler"])  # that finds it closed
def test_a_program_that_ends_removes_a_temporary_chest(how, tmp_path):
    end, code = ENDS[how]
    place = python(BEGIN + end, "", code=code, stderr=None if code else "", TMPDIR=str(tmp_path)).strip()
    assert place.startswith(str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_a_value_that_cannot_be_saved_as_the_program_ends_is_a_warning_that_names_it(path):
    said = python("import sys; sys.stderr = sys.stdout\n" + BEGIN + "c['bad'] = lambda: 0", path)
    assert all(word in said for word in ("RuntimeWarning", "'bad'", path))
    assert sorted(Chest(path=path)) == ["saved", "x"]


# Garbage.


class Cycle:
    """Something that only the collector finds."""

    def __init__(self, chest):
        self.me, self.chest = self, chest


@pytest.mark.parametrize("where", ["this thread", pytest.param("another thread", marks=collected)])
def test_a_handle_that_is_collected_in_the_middle_of_a_commit_is_saved_after_it(path, where):
    """The collector may run at any line; here it finds, inside of a commit, other handles on the same directory."""
    collectors = []

    def dump(value, file):
        pickle.dump(value, file)
        if isinstance(value, list) and not collectors:  # the index itself, within the lock of the directory
            collectors.append(threading.Thread(target=gc.collect))
            (collectors[0].start if where == "another thread" else collectors[0].run)()

    c = Chest(path=path, dump=dump, load=pickle.load)
    gc.disable()
    try:
        for i in range(3):
            Cycle(Chest({f"litter{i}": i}, path=path))
        c["x"] = 1
        c.flush()
        if where == "another thread":
            collectors[0].join(20)
        gc.collect()
    finally:
        gc.enable()
    assert dict(Chest(path=path)) == {"x": 1, "litter0": 0, "litter1": 1, "litter2": 2}


@pytest.mark.parametrize("settings", [{}, {"min_file_size": 1000}, {"min_file_size": 1000, "available_memory": 10}])
@pytest.mark.parametrize("spilled", [False, True])
def test_garbage_in_a_cycle_with_all_its_parts_is_saved(path, settings, spilled, leaks_nothing):
    """The collector may take what a chest has before the chest itself."""
    cycle = Cycle(Chest({"x": 1, "y": 2}, path=path, **settings))
    cycle.chest.sync()
    cycle.chest["x"], cycle.chest["z"] = 3, 4
    if spilled:
        cycle.chest.move_to_disk("x")
    del cycle
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gc.collect()
    with Chest(path=path, **settings) as c:
        assert dict(c) == {"x": 3, "y": 2, "z": 4}


@collected
@pytest.mark.parametrize("damage", [os.unlink, lambda file: open(file, "wb").close()], ids=["gone", "damaged"])
def test_a_handle_of_which_a_value_could_not_be_loaded_is_saved_as_soon_as_nobody_refers_to_it(path, damage):
    with Chest(path=path) as c:
        c["lost"] = 1
    damage(c.key_to_filename("lost"))
    gc.disable()
    try:
        with contextlib.suppress(KeyError, ChestError):
            c["lost"]
        c["x"] = 2
        del c
        assert "x" in Chest(path=path)
    finally:
        gc.enable()


# The directory is gone.


@pytest.mark.parametrize("end", ["close", pytest.param("del", marks=collected)])
@pytest.mark.parametrize("unsaved", [False, True])
@pytest.mark.parametrize("given", [True, False])
def test_a_directory_that_is_gone_is_not_made_again_and_worth_a_word_if_something_is_lost(path, end, unsaved, given):
    """Of a temporary one nothing was to stay."""
    c = Chest({"x": 1}, path=path if given else None)
    c.flush()
    place = c.path
    if unsaved:
        c["y"] = 2
    shutil.rmtree(place)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if end == "close":
            c.close()
        del c
        gc.collect()
    assert [w.category for w in said] == ([RuntimeWarning] if unsaved and given else [])
    assert all(place in str(w.message) and "1 unsaved" in str(w.message) for w in said)
    assert not os.path.exists(place)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("steps", [steps for n in (1, 2, 3) for steps in itertools.product(["drop", "close", "end"], repeat=n)])
def test_drop_close_and_end_may_follow_each_other_in_any_order(path, given, steps):
    c = Chest(path=path if given else None)
    c["x"] = 1
    c.flush()
    c["y"] = 2
    place = c.path
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in steps:
            (c._engine.end if step == "end" else getattr(c, step))()
        del c
        gc.collect()
    assert os.path.exists(place) == (given and "drop" not in steps)


def transact(chest):
    with chest.transaction():
        pass


@pytest.mark.parametrize("stays", [False, True])
@pytest.mark.parametrize("before", [lambda c: c["x"], lambda c: c.update(x=2) or c.close()], ids=["read", "closed"])
@pytest.mark.parametrize("save", [Chest.flush, Chest.sync, Chest.write_keys, transact])
def test_what_another_handle_dropped_is_gone_and_what_is_set_then_is_saved(path, save, before, stays):
    with Chest(path=path) as other:
        other["x"] = 1
    c = Chest(path=path)
    before(c)
    other.drop()
    if stays:
        os.mkdir(path)
    c["y"] = 2
    save(c)
    assert dict(c) == {"y": 2}
    assert dict(Chest(path=path)) == ({} if save is Chest.write_keys else {"y": 2})


@pytest.mark.parametrize("packed", [0, None, 1000])
@pytest.mark.parametrize("store", [
    lambda c, values: [c.__setitem__(key, value) for key, value in values.items()], Chest.update,
    lambda c, values: [(c.setdefault(key, value), c.move_to_disk(key)) for key, value in values.items()]])
def test_values_are_spilled_behind_another_handles_drop(path, store, packed):
    with Chest(path=path) as other:
        other["x"] = 1
    c = Chest(path=path, available_memory=2000, min_file_size=packed)
    len(c)
    other.drop()
    values = {key: key * 500 for key in "abcdef"}
    store(c, dict(values))
    assert c.memory_usage <= c.available_memory
    c.sync()
    assert dict(c) == dict(Chest(path=path)) == values


@pytest.mark.parametrize("temporary", [False, True])
@pytest.mark.parametrize("how", ["flush", "sync", "close", "write_keys", "drop"])
def test_what_saves_or_drops_in_a_transaction_is_an_error_and_changes_nothing(path, how, temporary):
    c = Chest({"x": 1, "y": 2}, path=None if temporary else path)
    c.sync()
    with pytest.raises(ChestError, match="a transaction is open"), c.transaction():
        del c["x"]
        c["z"] = 3
        c.move_to_disk("z")
        getattr(c, how)()
    assert dict(c) == dict(Chest(path=c.path)) == {"x": 1, "y": 2}


@pytest.mark.parametrize("where", ["values", "index"])
def test_a_transaction_is_undone_also_where_the_index_cannot_be_read(path, where, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(errno.EMFILE, "Too many open files")

    c, other = Chest({"x": 1}, path=path), Chest(path=path)
    c.sync()
    with monkeypatch.context() as patch:
        with pytest.raises(OSError, match="Too many"), c.transaction():
            c["x"], c["y"] = 2, 2
            if where == "index":
                c.move_to_disk("x")
                c.move_to_disk("y")
            other["z"] = 3
            other.sync()
            patch.setattr(os, "open", fail)
    c.flush()
    assert dict(c) == dict(Chest(path=path)) == {"x": 1, "z": 3}
    other.close()
    assert sorted(os.listdir(path)) == [".keys", "x", "z"]


def test_of_a_transaction_that_is_open_as_the_script_ends_nothing_is_saved(path):
    python("import chest, sys; c = chest.Chest({'x': [0]}, path=sys.argv[1]); block = c.transaction(); block.__enter__(); "
           "c['x'].append(1); c['y'] = 1", path)
    assert dict(Chest(path=path)) == {"x": [0]}


@pytest.mark.skipif(sys.platform == "win32", reason="the system renames no folder of an open file")
@pytest.mark.parametrize("look", [len, list, lambda c: c.get("none"), lambda c: "none" in c, lambda c: c["x"]],
                         ids=["len", "list", "get", "in", "read"])
def test_a_directory_that_was_renamed_is_an_error_of_what_saves_and_loses_nothing_whatever_one_looks_at(path, look):
    c = Chest({"x": [1], "z": [2]}, path=path)
    c.flush()
    c["x"].append("changed")
    os.rename(path, path + "-elsewhere")
    look(c)
    assert list(c) == ["x", "z"]
    c["y"] = 3
    for save in (c.flush, c.sync, c.transaction):
        with pytest.raises(FileNotFoundError, match="renamed or removed while the chest was open"):
            save()
    assert not os.path.exists(path)
    os.rename(path + "-elsewhere", path)
    c.flush()
    assert dict(Chest(path=path)) == dict(c) == {"x": [1, "changed"], "z": [2], "y": 3}


@pytest.mark.parametrize("small", [0, 1000])
def test_a_closed_chest_with_a_path_opens_itself_again_and_leaves_no_file_open(path, small, leaks_nothing):
    c = Chest(path=path, min_file_size=small)
    for i in range(3):
        with c:
            c[i] = "old"
            c.sync()
            c[i] = i
        assert c.memory_usage == 0
        assert dict(c) == {j: j for j in range(i + 1)}
    c.close()
    del c


def test_a_closed_temporary_chest_says_so_at_every_use():
    c = Chest({"x": 1})
    c.close()
    c.close()
    for use in (lambda: c["x"], lambda: c.update(y=1), lambda: len(c), lambda: list(c), lambda: "x" in c, c.flush, c.sync,
                lambda: c.get("x"), lambda: c.pop("x", 1), lambda: c.prefetch("x"), c.write_keys, lambda: dict(c),
                lambda: c.setdefault("x"), c.popitem, c.clear, lambda: c.key_to_filename("x"), lambda: c.move_to_disk("x"),
                lambda: list(c.values()), lambda: list(c.items()), lambda: c == {"x": 1}):
        with pytest.raises(ValueError, match="temporary and is closed"):
            use()
    assert "chest at" in str(c)
    assert "chest at" in repr(c)
    c.drop()


@pytest.mark.parametrize("small", [0, 1000])
def test_a_chest_that_is_read_only_writes_nothing_whatever_is_changed_in_place(path, small):
    with Chest({n: [n] * 100 for n in range(9)}, path=path, min_file_size=small):
        pass

    def files():
        return {name: os.stat(os.path.join(path, name)).st_mtime_ns for name in [*os.listdir(path), "."]}

    before = files()
    with Chest(path=path, available_memory=2000, flag="r") as c:
        held = c[3]
        for value in c.values():
            value.append("changed")
        assert c.memory_usage <= 2000
        if COUNTED:  # else nobody could tell that it is held
            assert c[3] is held
            assert held[-1] == "changed"
    assert files() == before


@collected
@pytest.mark.parametrize("small", [0, 1000])
def test_a_chest_that_cannot_be_saved_as_it_ends_leaves_no_file_open(path, small, leaks_nothing):
    c = Chest({"x": 1}, path=path, min_file_size=small)
    c.sync()
    c["x"], c["y"] = 2, threading.Lock()
    with pytest.warns(RuntimeWarning, match="could not be saved"):
        del c
    assert Chest(path=path, flag="r")["x"] == 2
