"""What is left after a loss of power: whatever the disk did not confirm may be missing, torn, or there alone.

Each script runs once, with its system calls recorded (`powerloss`); then the states that a crash may leave are built, a
seeded sample of them, or with ``CHEST_STRESS=1`` many more, and each is opened and read.

``durable=True``: exactly the last commit that returned, or the whole one that was under way.  Without: each value is one
that was committed for its key, or an error that names what is damaged; an index that opens is one of a commit.
"""
from __future__ import annotations

import gc
import itertools
import os
import pickle
import random
import shutil

import pytest
from storage.powerloss import Disk, everything, fingerprint, make, newest, real_tree
from storage.recorder import Recorder

from chest import Chest
from chest.errors import ChestError, shown

STRESS = bool(os.environ.get("CHEST_STRESS"))
STATES = 20000 if STRESS else 600  # of each script, about
ROLLED_BACK = "never committed"
SMALL = 3000  # bytes below which values go to packs, where there are any
PLACE = os.path.join("far", "chest")  # below a folder that is made with it

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="simulates POSIX")

tried = {}


def text(key, n, size=2000):
    """A value that says whose it is in every part, with opcodes around it."""
    return [f"{key!r} {n} "[:16].ljust(16, ".") * (size // 16), n]


class Run:
    """A script's chests, and what they are to hold: ``c[k] = v`` goes to `model` as well."""

    def __init__(self, recorder, **settings):
        self.recorder, self.settings = recorder, settings
        self.path = os.path.join(recorder.root, PLACE)
        self.model, self.count = {}, 0

    def open(self, **more):
        return Chest(**{"path": self.path, **self.settings, **more})

    def set(self, c, *keys, size=2000):
        for key in keys:
            self.count += 1
            c[key] = self.model[key] = text(key, self.count, size)

    def delete(self, c, *keys):
        for key in keys:
            del c[key], self.model[key]

    def commit(self, action):
        self.recorder.note("begin", dict(self.model))
        action()
        self.recorder.note("end")


# The scripts.


def loose(run):
    c = run.open()
    run.set(c, "a", "b", ("t", "u"), 1, "2", "same")
    run.commit(c.flush)
    run.set(c, "a", ("t", "u"), ("t", "v", "w"), size=5000)
    run.set(c, "large", size=60_000)
    for key in list(c.inmem):
        c.move_to_disk(key)
    run.delete(c, "b")
    run.commit(c.sync)
    run.set(c, 1)
    run.commit(c.sync)
    run.set(c, "2", "b")
    run.commit(c.sync)
    c["a"] = ROLLED_BACK
    c.move_to_disk("a")
    c.rollback()
    run.delete(c, ("t", "u"), ("t", "v", "w"))
    run.commit(c.flush)
    run.set(c, ("t", "u"), "2")
    c["a"].append(3)
    run.model["a"] = run.model["a"] + [3]
    run.commit(c.close)


def packed(run):
    c = run.open(min_file_size=SMALL)
    run.set(c, *range(5), "a", ("t", 1))
    run.set(c, "large", size=9000)
    run.commit(c.flush)
    run.set(c, 0, 1, ("t", 1))
    for key in list(c.inmem):
        c.move_to_disk(key)
    run.set(c, 7)
    run.commit(c.sync)
    run.delete(c, 2)
    run.set(c, "large", size=9000)
    run.commit(c.sync)
    run.set(c, "a", "large", 3)
    run.commit(c.close)
    c = run.open(min_file_size=SMALL)
    run.set(c, 4, "more")
    run.commit(c.sync)
    run.commit(c.close)


def compacted(run):
    c = run.open(min_file_size=SMALL)
    run.set(c, *range(50))
    run.commit(c.close)
    before = set(os.listdir(os.path.join(run.path, ".packs")))
    c = run.open(min_file_size=SMALL)
    run.set(c, *range(44))
    run.commit(c.flush)
    assert before - set(os.listdir(os.path.join(run.path, ".packs"))), "nothing was compacted"
    run.set(c, 48, 49)
    run.commit(c.close)


def outgrown(run):
    """A list that is appended to until it is replaced, by two handles that take turns."""
    c, d = run.open(), run.open(min_file_size=SMALL)
    for n in range(6):
        run.set((c, d)[n % 2], "k" * 9000 + str(n), size=16)
        run.commit((c, d)[n % 2].sync)
    c.close()
    d.close()


def linked(run):
    other = run.open(path=os.path.join(run.recorder.root, "other"), min_file_size=SMALL, durable=False)
    for key in ("a", "x", ("t", "y")):
        other[key] = text(key, "other", 5000)
    other["record"] = text("record", "other")
    other.flush()
    c = run.open(min_file_size=SMALL)
    run.set(c, "a", "b")
    run.commit(c.flush)
    c.update(other)
    run.model.update({key: text(key, "other", 5000) for key in ("a", "x", ("t", "y"))}, record=text("record", "other"))
    run.commit(c.sync)
    other.drop()
    run.set(c, "x")
    run.commit(c.close)


def dropped(run):
    c = run.open(min_file_size=SMALL)
    run.set(c, "a", ("t", "u"), size=4000)
    run.set(c, "small")
    run.commit(c.flush)
    run.set(c, "a")
    c.move_to_disk("a")
    run.model.clear()
    run.commit(c.drop)
    run.recorder.note("gone")
    c = run.open()
    run.set(c, "a", "b")
    run.commit(c.close)
    run.model.clear()
    run.recorder.note("begin", {})
    c = run.open(flag="n")
    run.recorder.note("end")
    run.set(c, "b")
    run.commit(c.close)


def killed(run):
    """Another process is killed as it commits, at several of its calls; the first handle goes on each time."""
    c = run.open(min_file_size=SMALL)
    run.set(c, "a", "b", 1)
    run.commit(c.flush)

    def other():
        d = run.open(min_file_size=SMALL)
        d["b"] = d["theirs"] = text("b", "theirs", 5000)
        d[1] = text(1, "theirs")
        d.flush()

    was, calls = True, 0
    while was:
        calls += 1
        before, theirs = dict(run.model), {**run.model, "b": text("b", "theirs", 5000), 1: text(1, "theirs")}
        theirs["theirs"] = theirs["b"]
        run.recorder.note("begin", theirs)
        was = run.recorder.killed(calls, other)
        run.model = dict(c.items())
        assert run.model == (theirs if "theirs" in run.model else before)
        run.set(c, "a", 1, ("t", calls % 5), size=4000 if calls % 4 else 1000)
        if "theirs" in run.model:
            run.delete(c, "theirs")
        run.commit(c.flush if calls % 10 == 0 else c.sync)
    assert calls > 10
    c.close()


def refused(run):
    """A sync that fails, or two in a row: nothing that they were for is trusted again, also by another handle."""
    c, d = run.open(min_file_size=SMALL), run.open(min_file_size=SMALL)
    for how, fails in ("flush", 1), ("sync", 1), ("sync", 2), ("flush", 2), ("sync", 1):
        for nth in itertools.count(1):
            if how == "flush":  # so that it makes a pack anew
                c.close()
                c = run.open(min_file_size=SMALL)
            run.set(c, "small", "a")
            run.set(c, "large", ("t", "large"), size=5000)
            run.recorder.failing = range(nth, nth + fails)
            run.recorder.note("begin", dict(run.model))
            try:
                getattr(c, how)()
            except OSError:
                failed = True
            else:
                failed = False
                run.recorder.note("end")
            through, run.recorder.failing = len(run.recorder.failing) == fails, ()
            if through:
                break
            if failed and fails == 2:
                there = dict(d.items())  # without what failed, unless all but the sync of the index's name was done
                d["theirs"] = there["theirs"] = run.model["theirs"] = text("theirs", nth)
                run.recorder.note("begin", there)
                d.sync()
                run.recorder.note("end")
            if nth % 2:
                run.set(c, "later")
            run.commit(getattr(c, how))
    c.close()
    d.close()


def clashing(run):
    """Keys that share a plain name, so that a name that is free is soon another key's."""
    c = run.open(key_to_filename=lambda key: "n")
    run.set(c, "a", "b", "c")
    run.commit(c.flush)
    for key, commit in zip("abcacb", [c.sync, c.flush] * 3):
        run.set(c, key)
        run.commit(commit)
    c.close()


def namesakes(run):
    """Keys of one text, of which one is deleted and the other set: by this handle, and by one that knows nothing of it."""
    c = run.open()
    run.set(c, 1, "b", ("t", 2.5), (3,))
    run.set(c, ("t", 1), size=70_000)
    run.commit(c.flush)
    for old, new in (1, "1"), (("t", 2.5), ("t", "2.5")), (("t", 1), ("t", "1")), ((3,), 3), ("1", 1):
        run.delete(c, old)
        run.commit(c.sync)
        if isinstance(new, str):
            c.close()
            c = run.open()
        run.set(c, new, size=70_000 if new == ("t", "1") else 2000)
        run.commit(c.sync)
    c.close()


def plain(run):
    run.settings.update(REREAD[plain])
    loose(run)


SCRIPTS = [loose, packed, compacted, outgrown, linked, dropped, killed, clashing, namesakes]
REREAD = {plain: dict(dump=pickle.dump, load=pickle.load), clashing: dict(key_to_filename=lambda key: "n")}


# What must hold.


def read(path, **settings):
    """All that can be read there, with the error in the place of a value that cannot; or the error of opening it."""
    try:
        c = Chest(path=path, **settings)
    except (ChestError, OSError) as error:
        return error
    found = {}
    for key in list(c):
        try:
            found[key] = c[key]
        except (KeyError, ChestError, OSError) as error:
            found[key] = error
    c.close()
    return found


def right_if_durable(found, models, path):
    assert not isinstance(found, Exception), found
    for key, value in found.items():
        assert not isinstance(value, Exception), (key, value)
    assert found in models, {key: ("there", found.get(key, "nothing")[-1:], "not", models[0].get(key, "nothing")[-1:])
                             for key in {*found, *models[0]} if found.get(key) != models[0].get(key)}


def right_if_not(found, models, path):
    if isinstance(found, Exception):
        assert os.path.join(path, ".keys") in str(found)
        return
    assert any(set(found) == set(model) for model in models), "the keys of no commit"
    for key, value in found.items():
        if isinstance(value, Exception):
            told = str(value.args[0] if isinstance(value, KeyError) else value)
            assert path in told and (repr(key) in told or shown(key) in told), told
        else:
            # Or one of its own that was rolled back: its file may have the name that an older index gives to the key.
            assert (key, value) == ("a", ROLLED_BACK) or any(
                key in model and model[key] == value for model in models), (key, value[0][:40], value[1:])


def life_goes_on(path, found, durable, **settings):
    """What can be read after a crash can be after the next commit too."""
    if isinstance(found, Exception):
        return
    with Chest(path=path, durable=durable, **settings) as c:
        c["after"] = "life goes on"
        c.flush()
    again = read(path, **settings)
    assert again.pop("after") == "life goes on"
    assert {key: value for key, value in again.items() if not isinstance(value, Exception)} == {
        key: value for key, value in found.items() if not isinstance(value, Exception)}


def play(script, durable, quick_path, monkeypatch, states=STATES):
    """Run a script, and crash it.  Returns how many different states were tried."""
    root = str(quick_path / "root")
    os.mkdir(root)
    run = Run(Recorder(root), durable=durable)
    with run.recorder.recording(monkeypatch):
        script(run)
        gc.collect()
    ops = run.recorder.ops
    rng = random.Random(f"{script.__name__} {durable}")
    disk, models, seen, begun, gone = Disk(), [{}], set(), 1, False
    settings = REREAD.get(script, {})
    share = 0.0
    for op in ops:
        if op[0] == "begin":
            models.append(op[1])
        elif op[0] == "end":
            if durable:
                models = models[-1:]
        elif op[0] != "gone":
            disk.apply(op)
        gone = durable and (op[0] == "gone" or (gone and op[0] == "sync"))
        if op[0] == "sync" and not durable:
            raise AssertionError("nothing is synced unless it is asked for")
        share += states / len(ops)
        while share >= 1:
            share -= 1
            tree, numbers = disk.tree(*disk.state(rng))
            mark = fingerprint(tree)
            if (mark, len(models), begun) in seen:
                continue
            seen.add((mark, len(models), begun))
            where = str(quick_path / str(len(seen)))
            make(tree, numbers, where)
            path = os.path.join(where, PLACE)
            assert not (gone and os.path.exists(path)), "a chest that was dropped is there again"
            found = read(path, **settings)
            (right_if_durable if durable else right_if_not)(found, models, path)
            if len(seen) % 4 == 0:
                life_goes_on(path, found, durable, **settings)
            shutil.rmtree(where)
        begun += op[0] == "end"
    tree, _ = disk.tree(everything, newest)
    if script is not refused:
        assert tree == real_tree(root), "a call was not recorded"
    return len(seen)


@pytest.mark.parametrize("script", [*SCRIPTS, refused, plain], ids=lambda script: script.__name__)
def test_a_durable_chest_is_the_last_commit_or_the_whole_one_under_way(script, quick_path, monkeypatch):
    tried[script, True] = play(script, True, quick_path, monkeypatch)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_without_durable_no_value_is_anothers_or_torn(script, quick_path, monkeypatch):
    tried[script, False] = play(script, False, quick_path, monkeypatch)


def test_many_states_were_tried(capsys):
    """The last test of this file: it counts what those above did."""
    with capsys.disabled():
        print(f"\n{sum(tried.values())} states after a loss of power, of {len(tried)} scripts")
    assert sum(tried.values()) > STATES * len(tried) // 4
