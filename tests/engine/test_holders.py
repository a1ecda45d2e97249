"""Whoever holds a value of a chest, in whatever way, may change it between two commits: the next one saves that.

Where references are counted, a value that nobody holds is not looked at again; so each way of holding one is tried.
"""
from __future__ import annotations

import array
import collections
import contextvars
import functools
import gc
import itertools
import operator
import queue
import sys
import threading
import types
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from children import python

from chest import Chest
from chest.memory import changes, left
from chest.memory.changes import COUNTED

try:
    import numpy
    from numpy.lib.stride_tricks import sliding_window_view as windows
except ImportError:
    numpy = None


class Thing:
    def __init__(self, **attributes):
        vars(self).update(attributes)

    def __repr__(self):
        return f"Thing({vars(self)})"


class Slotted:
    __slots__ = ("n",)

    def __init__(self):
        self.n = 0

    def __repr__(self):
        return f"Slotted({self.n})"


class Items(list):
    pass


def put_first(value, number):
    value[0] = number


#: How a value is made, and how it is changed.
KINDS = {
    "a list": (lambda: [0, "text"], list.append),
    "a list of lists": (lambda: [[0], [1]], lambda value, number: value[1].append(number)),
    "a deep list": (lambda: [[[[[[0]]]]]], lambda value, number: value[0][0][0][0][0].append(number)),
    "a long list": (lambda: list(map(float, range(20_000))), put_first),
    "a tuple with a list": (lambda: (0, [1]), lambda value, number: value[1].append(number)),
    "a dict": (lambda: {"a": 0}, lambda value, number: value.update(a=number)),
    "a dict of dicts": (lambda: {"a": {"b": 0}}, lambda value, number: value["a"].update(b=number)),
    "a set": (lambda: {-1}, set.add),
    "bytes that change": (lambda: bytearray(b"abc"), put_first),
    "a deque": (lambda: collections.deque([1]), lambda value, number: value.append(number)),
    "a dict in order": (lambda: collections.OrderedDict(a=1), lambda value, number: value.update(a=number)),
    "an array of the library": (lambda: array.array("i", [1, 2]), put_first),
    "an instance": (lambda: Thing(n=0), lambda value, number: setattr(value, "n", number)),
    "an instance with slots": (Slotted, lambda value, number: setattr(value, "n", number)),
    "an instance in an instance": (lambda: Thing(part=Thing(n=0)), lambda value, number: setattr(value.part, "n", number)),
    "a list of its own class": (Items, lambda value, number: value.append(number)),
}
if numpy is not None:
    KINDS |= {
        "a small array": (lambda: numpy.zeros(3), put_first),
        "a large array": (lambda: numpy.zeros(20_000), put_first),
        "an array of objects": (lambda: numpy.array([[0], None], object), lambda value, number: value[0].append(number)),
        "a list of arrays": (lambda: [numpy.zeros(3), numpy.zeros(20_000)], lambda value, number: put_first(value[1], number)),
        "an array that is a view": (lambda: numpy.zeros((4, 9000)).T, lambda value, number: put_first(value, number)),
    }


def frame(value):
    def run():
        it = value  # noqa: F841 - the frame holds it
        raise ValueError

    try:
        run()
    except ValueError as raised:
        deepest = raised.__traceback__.tb_next.tb_frame
    value = None
    return lambda: deepest.f_locals["it"]


def context(value):
    variable = contextvars.ContextVar("held")
    inside = contextvars.copy_context()
    inside.run(variable.set, value)
    return lambda: inside[variable]


def weak(value):
    try:
        return weakref.ref(value)
    except TypeError:
        pytest.skip("there are no weak references to it")


def thread(value):
    pool, held = ThreadPoolExecutor(1), threading.local()
    pool.submit(setattr, held, "it", value).result()
    return lambda: pool.submit(getattr, held, "it").result()


def waiting_thread(value):
    asked, answers = queue.SimpleQueue(), queue.SimpleQueue()

    def run(it):
        for _ in range(4):
            asked.get()
            answers.put(it)

    threading.Thread(target=run, args=(value,), daemon=True).start()
    return lambda: asked.put("the value, please") or answers.get(timeout=60)


def held_by(make, get=operator.itemgetter(0)):
    """A place: what ``make`` makes of a value has it, and ``get`` gets it back."""
    def place(value):
        holder = make(value)
        return lambda: get(holder)

    return place


#: How a value is held, and got back.
PLACES = {
    "frame": frame, "context": context, "weak reference": weak, "thread": thread, "waiting thread": waiting_thread,
    "closure": lambda value: lambda: value,
    "default": lambda value: lambda it=value: it,
    "partial": lambda value: functools.partial(lambda it: it, value),
    "method": lambda value: types.MethodType(lambda it: it, value),
    "generator": held_by(lambda value: (it for it in [value] * 9), next),
    "attribute": held_by(lambda value: Thing(it=value), lambda holder: holder.it),
    "class": held_by(lambda value: type("Holder", (), {"it": value}), lambda holder: vars(holder)["it"]),
    "error": held_by(ValueError, lambda error: error.args[0]),
    "list": held_by(lambda value: [value]),
    "tuple": held_by(lambda value: (value,)),
    "dict": held_by(lambda value: {0: value}),
    "deque": held_by(lambda value: collections.deque([value])),
    "proxy": held_by(lambda value: types.MappingProxyType({0: value})),
    "repeat": held_by(itertools.repeat, next),
    "cycle": held_by(lambda value: itertools.cycle([value]), next),
    "map": held_by(lambda value: map(max, itertools.repeat([value])), next),
    "chain": held_by(lambda value: itertools.chain(itertools.repeat(value)), next),
}

def below_array(value):
    """What was given to numpy to make the array over; the array itself once it was loaded."""
    below = getattr(value.base, "obj", getattr(value.base, "base", None))
    return value.ravel() if below is None or type(below).__module__.startswith("chest") else below


#: What is made, a part or view of it, and how that is changed.
VIEWS = {
    "part of a list": (lambda: [[0]], lambda value: value[0], list.append),
    "deep part": (lambda: [[[[[[0]]]]]], lambda value: value[0][0][0][0][0], list.append),
    "part of a dict": (lambda: {"a": {"b": 0}}, lambda value: value["a"], lambda part, number: part.update(a=number)),
    "values of a dict": (lambda: {"a": [0]}, dict.values, lambda view, number: next(iter(view)).append(number)),
    "attributes": (lambda: Thing(n=0), vars, lambda part, number: part.update(n=number)),
    "method": (lambda: [0], lambda value: value.append, lambda method, number: method(number)),
    "view of bytes": (lambda: bytearray(9), memoryview, put_first),
    "view of a view of bytes": (lambda: bytearray(9), lambda value: memoryview(value)[1:], put_first),
    "bytes of a list": (lambda: [bytearray(9), [0]], lambda value: value[0], put_first),
    "view of bytes of a dict": (lambda: {"a": (bytearray(9),)}, lambda value: memoryview(value["a"][0]), put_first),
    "iterator": (lambda: [[0], [1], [2], [3]], iter, lambda iterator, number: next(iterator).append(number)),
}
if numpy is not None:
    VIEWS |= {
        "view of an array": (lambda: numpy.zeros(3), lambda value: value[:], put_first),
        "view of a large array": (lambda: numpy.zeros(20_000), lambda value: value[5:], put_first),
        "view of a view": (lambda: numpy.zeros((3, 4)), lambda value: value.T[1:][::2], put_first),
        "flat": (lambda: numpy.zeros((3, 4)), lambda value: value.flat, put_first),
        "memory of an array": (lambda: numpy.zeros(20_000), memoryview, put_first),
        "array of a list": (lambda: [numpy.zeros(20_000)], lambda value: value[0], put_first),
        "array below another class": (lambda: numpy.zeros(20_000).view(numpy.recarray), numpy.asarray, put_first),
        "data of a masked array": (lambda: numpy.ma.MaskedArray(numpy.zeros(20_000)), lambda value: value.data, put_first),
        "buffer below an array": (lambda: numpy.frombuffer(bytearray(160_000), "u1"), below_array, put_first),
        "array below windows": (lambda: windows(numpy.zeros(300), 90, writeable=True), below_array, put_first),
    }


def content(value):
    return repr(value.tolist() if numpy is not None and isinstance(value, numpy.ndarray) else value)


def changes_are_saved(path, make, hold, change, leaves=False):
    """``hold`` is called with the value, and returns what gives that which ``change`` changes."""
    c = Chest({"x": make(), "other": 0}, path=path)
    for _ in range(2):  # as it was set, and as it was loaded
        held, model = hold(c["x"]), c.copy()["x"]
        mirror = hold(model)
        for number in range(2):
            c["other"] = number
            c.sync()
            assert c["other"] == number  # so that the value is no longer the one that was given last
            (c.flush if leaves else c.sync)()
            assert bool(c.memory_usage) is not leaves
            change(held(), number)
            change(mirror(), number)
            c.sync()
            assert content(Chest(path=path)["x"]) == content(model)
            if leaves:
                assert content(c["x"]) == content(model)
        held = mirror = None
        c.flush()


#: Not each kind in each place, but the common ones in each place, and each kind in some places.
COMMON = KINDS.keys() & {"a list", "a dict of dicts", "an instance", "a large array", "a list of arrays"}
SOME = "closure", "list", "repeat", "thread"
BOTH = [(kind, place) for kind in KINDS for place in PLACES if kind in COMMON or place in SOME]


@pytest.mark.parametrize(("kind", "place"), BOTH)
def test_a_held_value_that_changes_between_commits_is_saved(kind, place, path):
    if place == "weak reference" and sys.implementation.name != "cpython":
        pytest.skip("how long a value lives is not known")
    changes_are_saved(path, KINDS[kind][0], PLACES[place], KINDS[kind][1])


@pytest.mark.parametrize("leaves", [False, True], ids=["in memory", "left memory"])
@pytest.mark.parametrize("view", VIEWS)
def test_a_part_or_view_that_changes_between_commits_is_saved(view, leaves, path):
    if leaves and (view == "attributes" or not COUNTED):
        pytest.skip("nobody can tell that it is held")
    make, look, change = VIEWS[view]

    def hold(value):
        part = look(value)
        return lambda: part

    changes_are_saved(path, make, hold, change, leaves)


def test_a_loaded_array_is_found_again_by_its_view_also_where_references_are_not_counted(path, monkeypatch):
    """It is a view itself, of an array that is one of the buffer that was unpickled."""
    np = pytest.importorskip("numpy")
    for module in changes, left:
        monkeypatch.setattr(module, "COUNTED", False)
    c = Chest({"x": np.zeros(3)}, path=path)
    c.flush()
    view = c["x"][:]
    c.flush()
    view[0] = 1
    assert c["x"].tolist() == [1, 0, 0]


@pytest.mark.skipif(not COUNTED, reason="references are not counted here")
def test_a_value_is_kept_for_a_part_that_is_held_and_no_longer(path):
    """Nor for one that is in it twice."""
    c, marks = Chest(path=path), []
    for number in range(10):
        part, mark = [number], {number}
        marks.append(weakref.ref(mark))
        c[number] = {"part": part, "again": [part, {"deep": part}], "mark": mark}
    del mark
    part = c[5]["part"]
    c.flush()
    gc.collect()
    assert [number for number, mark in enumerate(marks) if mark() is not None] == [5]
    assert c[5]["part"] is c[5]["again"][0] is part
    part = c[0] = None
    c.flush()
    gc.collect()
    assert [number for number, mark in enumerate(marks) if mark() is not None] == []


def tree(mark, size):
    root = {"mark": mark, "data": bytes(size)}
    root["nodes"] = [{"parent": root}, {"parent": root}]
    return root


def ring(mark, size):
    value = [mark, bytes(size)]
    value += [value, (value,)]
    return value


@pytest.mark.skipif(not COUNTED, reason="references are not counted here")
@pytest.mark.parametrize("make", [tree, ring])
def test_values_that_refer_to_themselves_leave_memory_and_are_saved_while_they_are_held(make, path):
    c, marks = Chest(path=path, available_memory=3_000_000), []
    for number in range(60):
        mark = {number}
        marks.append(weakref.ref(mark))
        c[number] = make(mark, 1_000_000)
    del mark
    gc.collect()
    assert len([mark for mark in marks if mark() is not None]) < 30
    held = c[5]
    for number in range(6, 20):
        assert c[number]
    (held["nodes"] if make is tree else held).append("changed")
    c.flush()
    assert c[5] is held
    held = None
    c.flush()
    gc.collect()
    assert [mark for mark in marks if mark() is not None] == []
    assert "changed" in (c[5]["nodes"] if make is tree else c[5])


@pytest.mark.skipif(numpy is None, reason="needs numpy")
def test_arrays_that_are_views_of_one_another_are_kept_no_longer_than_they_are_held(path):
    c, bases = Chest(path=path), []
    for number in range(10):
        base = numpy.zeros(1000)
        bases.append(weakref.ref(base))
        c[number] = {"a": base[:500], "b": base[500:], "c": [base[2:4]]}
    del base
    part = c[5]["a"][7:]
    c.flush()
    assert not COUNTED or [number for number, base in enumerate(bases) if base() is not None] == [5]
    part[0] = 1
    c.close()
    assert not COUNTED or Chest(path=path)[5]["a"].sum() == 1


@pytest.mark.skipif(numpy is None, reason="needs numpy")
@pytest.mark.parametrize("make", ["np.ndarray((n,), 'f8', {})", "np.frombuffer({})", "np.frombuffer({})[5:]"])
@pytest.mark.parametrize("memory", ["memory.buf", "memory"], ids=["shared memory", "map"])
def test_memory_below_arrays_can_be_closed_when_they_left_the_chest(memory, make, path):
    """In a process of its own, which would crash where an array is looked at whose memory is gone."""
    python(f"""
import gc, mmap, sys
import numpy as np
from multiprocessing import shared_memory
from chest import Chest
for n in 200, 100_000:
    memory = shared_memory.SharedMemory(create=True, size=8 * n) if "buf" in {memory!r} else mmap.mmap(-1, 8 * n)
    array = {make.format(memory)}
    c = Chest({{n: array}}, path=sys.argv[1])
    c.flush()
    array[9] = n
    c.sync()
    assert Chest(path=sys.argv[1])[n][9] == n  # as long as the program has it, it is looked at
    if "ndarray" not in {make!r}:  # else numpy lets its memory be closed below it
        del array
    memory.close()
    gc.collect()
    c["new"] = 1
    c.sync()
    assert c[n][9] == n
    c.close()
    if "buf" in {memory!r}:
        memory.unlink()
""", path)


@pytest.mark.parametrize("hook", ["settrace", "setprofile"])
def test_a_debugger_or_profiler_that_reads_frames_while_chest_is_imported_makes_no_change_pass_unseen(hook, path):
    """It may hold what is in them, so that reference counts are not what they are without it."""
    python("""
import sys
seen = []
def trace(frame, event, argument):
    if "chest" in frame.f_code.co_filename:
        seen.append((frame, dict(frame.f_locals)))
        return trace
getattr(sys, sys.argv[2])(trace)
from chest import Chest
getattr(sys, sys.argv[2])(None)

c = Chest({"x": [0], "other": 0}, path=sys.argv[1])
x = c["x"]
for number in range(3):
    c["other"] = number
    c.sync()
    c.sync()
    x.append(number)
    c.sync()
    assert Chest(path=sys.argv[1])["x"] == x
""", path, hook, stderr=None)  # 3.12 warns of variables that the debugger should not have read
