"""What nobody else can reach is not compared with its file again; what anybody can reach is, and no change is lost."""
from __future__ import annotations

import array
import os
import sys
import threading
import weakref

import pytest

from chest import Chest, arrays
from chest.alone import alone

np = pytest.importorskip("numpy")
pytestmark = pytest.mark.skipif(sys.implementation.name != "cpython", reason="there are no reference counts here")


def loaded(value):
    with open("file", "wb") as file:
        arrays.dump(value, file)
    with open("file", "rb") as file:
        return arrays.load(file)


MADE = {
    "array": lambda: np.zeros(5), "large array": lambda: np.zeros(50_000), "matrix": lambda: np.ones((3, 4), order="F"),
    "loaded": lambda: loaded(np.zeros(50_000)), "loaded dict": lambda: loaded({"a": np.zeros(50_000), "b": np.ones(3)}),
    "list": lambda: [1, "two", None], "dict": lambda: {"a": [1.5], ("b", 2): {3}}, "tuple": lambda: ([],),
    "list of arrays": lambda: [np.zeros(3), np.zeros(50_000)],
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_a_value_that_nobody_else_holds_is_alone(make):
    values = {"x": make()}
    assert alone(values, "x")
    assert alone(values, "x"), "asking changes nothing"
    held = values["x"]
    assert not alone(values, "x")
    del held
    assert alone(values, "x")


HELD = {
    "a view": (lambda: np.zeros(5), lambda v: v[1:]),
    "a memoryview": (lambda: np.zeros(5), memoryview),
    "a weak reference": (lambda: np.zeros(5), weakref.ref),
    "the base of one that was loaded": (lambda: loaded(np.zeros(50_000)), lambda v: v.base),
    "the memory of one that was loaded": (lambda: loaded(np.zeros(50_000)), lambda v: v.base.base),
    "an item": (lambda: [1, [2]], lambda v: v[1]),
    "an array in a dict in a list": (lambda: [{"a": np.zeros(3)}], lambda v: v[0]["a"]),
    "a view of one of those": (lambda: [{"a": np.zeros(3)}], lambda v: v[0]["a"][:1]),
    "an iterator": (lambda: [1, 2], iter),
    "a dict's values": (lambda: {"a": 1}, lambda v: v.values()),
}


@pytest.mark.parametrize(("make", "hold"), HELD.values(), ids=HELD)
def test_a_value_of_which_anybody_holds_a_part_is_not(make, hold):
    values = {"x": make()}
    held = hold(values["x"])
    assert not alone(values, "x")
    del held


class Thing:
    pass


@pytest.mark.parametrize("make", [
    Thing, lambda: [Thing()], lambda: np.array([[], None], dtype=object), lambda: array.array("d", [1]), lambda: bytearray(3),
    lambda: [[[[[1]]]]], lambda: [[] for _ in range(2000)], lambda: np.zeros(5).view(np.matrix), lambda: {Thing(): 1},
    lambda: np.frombuffer(array.array("d", [1.0])),
], ids=["instance", "list of one", "array of objects", "array.array", "bytearray", "deep", "long", "subclass", "key", "foreign memory"])
def test_what_cannot_be_told_is_not_alone(make):
    assert not alone({"x": make()}, "x")


# In a chest.


@pytest.fixture
def looked_at(monkeypatch):
    """The names of files that were compared with values."""
    seen = []
    real = arrays.same

    def same(value, file):
        seen.append(os.path.basename(file.name))
        return real(value, file)

    monkeypatch.setattr(arrays, "same", same)
    return seen


def saved(path, **values):
    c = Chest(path=path)
    for key in values:
        c[key] = values[key].copy()
    values.clear()
    c.sync()
    return c


def test_a_commit_looks_only_at_what_was_handed_out_since_the_last(path, looked_at):
    c = saved(path, **{f"k{i}": np.zeros(100) for i in range(50)})
    c.sync()
    assert looked_at == []
    c["k3"], c.get("k4"), c.setdefault("k5"), c.prefetch(["k6"])
    c["new"] = [1]
    c.sync()
    assert sorted(looked_at) == ["k3", "k4", "k5"]
    del looked_at[:]
    c.sync()
    assert looked_at == [], "these are alone again"
    next(iter(c.values()))
    c.sync()
    assert looked_at == ["k0"]


@pytest.mark.parametrize("change", [
    lambda c: c["x"].fill(7), lambda c: c.get("x").fill(7), lambda c: c.setdefault("x").fill(7), lambda c: c.inmem["x"].fill(7),
    lambda c: [value.fill(7) for value in c.values()], lambda c: [value.fill(7) for _, value in c.items()],
    lambda c: c.__class__.__getitem__(c, "x").fill(7),
], ids=["[]", "get", "setdefault", "inmem", "values", "items", "class"])
@pytest.mark.parametrize("save", [lambda c: c.sync(), lambda c: c.flush(), lambda c: c.move_to_disk("x")],
                         ids=["sync", "flush", "spill"])
def test_a_change_of_what_was_vouched_for_is_saved(path, change, save):
    c = saved(path, x=np.zeros(100))
    assert c._life.memory.watch.vouched
    change(c)
    save(c)
    c.close()
    assert Chest(path=path)["x"][0] == 7


def test_who_keeps_inmem_may_change_what_is_in_it_at_any_time(path):
    c = saved(path, x=np.zeros(100))
    inside = c.inmem
    for number in (1, 2):
        c.sync()
        inside["x"].fill(number)
    c.sync()
    assert Chest(path=path)["x"][0] == 2


def test_more_hits_than_are_remembered_lose_no_change(path):
    c = saved(path, x=np.zeros(100), y=np.zeros(1))
    c["x"].fill(7)
    for _ in range(10_000):
        c["y"]
    c.sync()
    assert Chest(path=path)["x"][0] == 7


def test_hits_that_come_while_the_log_is_read_and_push_out_others_lose_no_change(path, monkeypatch):
    """Another thread may note thousands of them in between, and the log keeps only the last."""
    c = saved(path, x=np.zeros(100), y=np.zeros(1))
    order = c._life.memory._order

    class Log(type(order._log)):
        def __len__(self):
            length = super().__len__()
            if length and others:
                others.pop()
                self.extend(["y"] * 5000)
            return length

    others = [1]
    c["x"].fill(7)
    order._log = Log(order._log, maxlen=order._log.maxlen)
    c.sync()
    assert not others
    c.sync()
    assert Chest(path=path)["x"][0] == 7


def test_what_was_held_while_it_was_saved_is_looked_at_until_it_is_let_go(path, looked_at):
    c = Chest(path=path)
    mine = c["x"] = np.zeros(100)
    for number in range(1, 4):
        mine.fill(number)
        c.sync()
        assert Chest(path=path)["x"][0] == number
    part = mine[50:]
    del mine
    part.fill(9)
    c.sync()
    assert Chest(path=path)["x"][99] == 9
    del part, looked_at[:]
    c.sync()
    c.sync()
    assert looked_at == ["x~1"], "once more, and then it is alone"


def test_a_value_that_comes_back_from_disk_is_notvouched_for_by_what_it_was(path):
    c = saved(path, x=np.zeros(100))
    c.flush()
    c["x"].fill(7)
    c.sync()
    assert Chest(path=path)["x"][0] == 7


def test_threads_that_change_what_others_vouch_for_lose_nothing(path):
    c = saved(path, **{f"k{i}": np.zeros(100) for i in range(8)})
    stop = threading.Event()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def commit():
        while not stop.is_set():
            c.sync()

    def count(key):
        for _ in range(300):
            c[key][0] += 1

    committer = threading.Thread(target=commit)
    counters = [threading.Thread(target=count, args=(f"k{i}",)) for i in range(8)]
    try:
        for thread in (committer, *counters):
            thread.start()
        for thread in counters:
            thread.join()
    finally:
        stop.set()
        committer.join()
        sys.setswitchinterval(interval)
    c.close()
    assert {Chest(path=path)[f"k{i}"][0] for i in range(8)} == {300}
