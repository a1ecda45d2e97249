"""What a chest from a stranger may hold comes back as it was, by every protocol and of every numpy."""
from __future__ import annotations

import collections
import datetime as dt
import decimal
import fractions
import pathlib
import pickle
import random
import sys
import threading
import time
import uuid
import zoneinfo

import pytest
from children import thread

from chest.errors import LoadError
from chest.memory.access import frames
from chest.serialize import bounds, restricted

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
SHARED = ["shared"]
VALUES = [
    None, True, 1, -(2 ** 70), 2.5, "text", "r" * 300, b"", b"bytes", (), [1, [2, (3,)]], {"a": (1, 2), 3: None}, {1, 2}, set(),
    frozenset([1, "a"]), bytearray(b"abc"), bytearray(), 1 + 2j, range(1, 9, 2), [SHARED, SHARED], [(i, str(i)) for i in range(3000)],
    collections.deque([1, [2]], 5), collections.deque(), collections.OrderedDict([("b", 1), ("a", [2])]), collections.Counter("abca"),
    collections.defaultdict(list, {1: [2]}), collections.defaultdict(None, a=1), collections.defaultdict(collections.OrderedDict),
    dt.datetime(2020, 1, 2, 3, 4, 5, 6, fold=1), dt.datetime(2020, 1, 2, tzinfo=dt.timezone.utc), dt.date(1, 1, 1), dt.time(1, 2, 3),
    dt.timedelta(-1, 2, 3), dt.timezone(dt.timedelta(hours=2), "there"), decimal.Decimal("1.50"), decimal.Decimal("NaN"),
    fractions.Fraction(-3, 4), {uuid.UUID(int=5): uuid.UUID(int=6)}, {(uuid.UUID(int=7),)}, pathlib.PurePosixPath("a/b"),
    pathlib.PureWindowsPath("c:/x"), {"deep": [{"a": (collections.OrderedDict(a=[slice(1, None, 2)]), [slice(3)])}]},
]


def same(one, other):
    """Equal in type and content, however deep."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple, collections.deque)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        made = getattr(one, "default_factory", None) is getattr(other, "default_factory", None)
        return made and all(map(same, one, other)) and all(map(same, one.values(), other.values()))
    return repr(one) == repr(other) if one != one or isinstance(one, slice) else one == other


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", VALUES, ids=lambda value: ascii(value)[:30])
def test_what_is_allowed_comes_back(value, protocol):
    data = pickle.dumps(value, protocol)
    assert same(restricted.loads(data), value)
    assert same(restricted.loads(memoryview(data), whole=True), value) and same(restricted.loads(data + b"more"), value)
    with pytest.raises(restricted.Refused, match="behind"):
        restricted.loads(data + b"more", whole=True)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_zone_is_this_systems_and_a_path_a_pure_one(protocol):
    loaded = restricted.loads(pickle.dumps(pathlib.Path("a/b"), protocol))
    assert type(loaded) in (pathlib.PurePosixPath, pathlib.PureWindowsPath) and loaded == pathlib.PurePath("a/b")
    try:
        zone = zoneinfo.ZoneInfo("Europe/Berlin")
    except zoneinfo.ZoneInfoNotFoundError:
        pytest.skip("no zones here")
    value = [zone, dt.datetime(2020, 1, 1, tzinfo=zone)]
    assert restricted.loads(pickle.dumps(value, protocol)) == value


def test_what_is_shared_stays_shared_and_what_is_in_itself_too():
    one = uuid.UUID(int=1)
    ring = [one]
    ring.append((ring, one))
    ring.append(collections.OrderedDict(ring=ring))
    loaded = restricted.loads(pickle.dumps(ring))
    assert loaded[0] == one and loaded[1][0] is loaded and loaded[1][1] is loaded[0] and loaded[2]["ring"] is loaded


@pytest.mark.parametrize("value", [print, int, dt.datetime, collections.OrderedDict, uuid.UUID, restricted.Refused("x"), sys.stdin.__class__])
@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: [{"a": (value,)}], lambda value: {value}])
def test_a_class_a_function_or_another_object_is_refused_with_its_name(value, wrap):
    with pytest.raises(LoadError, match=r"trusted=True"):
        restricted.loads(pickle.dumps(wrap(value)))


def test_an_extension_that_somebody_looked_up_is_not_given_out(monkeypatch):
    import copyreg

    copyreg.add_extension("builtins", "print", 77)
    try:
        data = pickle.dumps(print, 2)
        assert pickle.loads(data) is print and copyreg._extension_cache
        with pytest.raises(restricted.Refused):
            restricted.loads(data)
    finally:
        copyreg.remove_extension("builtins", "print", 77)


def test_many_numbers_and_tuples_are_loaded_and_deep_ones_only_if_nothing_can_break(monkeypatch):
    for value in ([random.random() for _ in range(600_000)], [i << 60 for i in range(1, 20_000)]):  # none collide
        assert restricted.loads(pickle.dumps(value)) == value
    monkeypatch.setattr(bounds, "_MOST_TUPLES", 100)
    monkeypatch.setattr(bounds, "_EACH", 1)
    value = {(i, (str(i), uuid.UUID(int=i))): [i] for i in range(500)}
    assert restricted.loads(pickle.dumps(value)) == value
    with pytest.raises(restricted.Refused, match="nested"):
        restricted.loads(b"\x80\x04)" + b"\x85" * 20_000 + b".")


# --- numpy ------------------------------------------------------------------------------------------------------------

try:
    import numpy
except ImportError:
    numpy = None
with_numpy = pytest.mark.skipif(numpy is None, reason="there is no numpy here")


def arrays():
    """Arrays of every kind that is allowed."""
    np = numpy
    if np is None:
        return []
    found = [np.arange(3).astype(code) for code in "?bBhHiIqQefdgFD"]
    table = np.zeros(3, [("a", ">i4"), ("b", "U3"), ("c", "f4", (2, 2)), ("d", "M8[us]"), ("e", [("x", "i1")])])
    table["b"] = "xyz"
    return [*found, np.arange(24.0).reshape(2, 3, 4).T, np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1), np.arange(10)[::2],
            np.array(["abc", "\U0010ffff"]), np.array([b"abc", b"d"]), np.array(["2020", "NaT"], "M8[ns]"), np.array([1, 2], "m8[15m]"),
            table, table["c"], np.ones(2, np.dtype([("a", "i1"), ("b", "f8")], align=True)), np.array(5.0),
            np.zeros((0, 3)), np.arange(5, dtype=">i4"), np.zeros(3, "V5"), np.zeros(3, "U0"), np.zeros(0),
            np.array([1, "a", None, [1, 2], uuid.UUID(int=3)], object), np.array([[1, "a"], [2, None]], object).T,
            np.ma.array([1, 2, 3], mask=[0, 1, 0]), np.ma.array([1.0, 2], mask=[0, 1], fill_value=7), np.ma.array([[1, 2], [3, 4]], mask=[[0, 1], [0, 0]]).T,
            np.ma.zeros(3, dtype=[("a", "i4"), ("b", "f8")]), np.ma.array(["a", None], dtype=object, mask=[1, 0])]


def alike(one, other):
    """Arrays that nobody can tell apart, but for their place in memory."""
    np = numpy
    if isinstance(one, np.ma.MaskedArray):
        if type(other) is not type(one) or str(one) != str(other) or str(one.fill_value) != str(other.fill_value):
            return False
        if one.mask.tolist() != other.mask.tolist():
            return False
        one, other = one.data, other.data
    return (type(one) is type(other) and one.dtype == other.dtype and one.shape == other.shape and other.flags.writeable
            and (one.dtype == object or other.flags.aligned) and one.tolist().__repr__() == other.tolist().__repr__())


def renamed(data, new):
    """A pickle with the names of the other numpy, whose frames and texts are as long as they then are."""
    parts = data.replace(b"\x95" + data[3:11], b"", 1) if data[2:3] == b"\x95" else data
    for module in b"multiarray", b"numeric":
        for old in b"numpy.core." + module, b"numpy._core." + module:
            name = (b"numpy._core." if new else b"numpy.core.") + module
            parts = parts.replace(b"\x8c" + bytes((len(old),)) + old, b"\x8c" + bytes((len(name),)) + name)
            parts = parts.replace(b"c" + old + b"\n", b"c" + name + b"\n")
    return parts


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("number", range(len(arrays())))
def test_an_array_comes_back_whatever_numpy_wrote_it(number, protocol):
    value = arrays()[number]
    data = pickle.dumps(value, protocol)
    for given in data, renamed(data, True), renamed(data, False):
        assert alike(value, restricted.loads(given))
    both = restricted.loads(pickle.dumps({"a": (value, [value])}, protocol))["a"]
    assert both[0] is both[1][0] and alike(value, both[0])
    buffers = []  # memory may be given beside the pickle
    data = pickle.dumps(value, 5, buffer_callback=buffers.append)
    assert alike(value, restricted.loads(data, [bytearray(buffer.raw()) for buffer in buffers]))


@with_numpy
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scalars_and_dtypes(protocol):
    np = numpy
    dtypes = [np.dtype(text) for text in ("f8", ">i4", "U3", "M8[ns]", "m8[D]")] + [np.dtype([("a", "i4"), ("b", "U3", (2,))])]
    scalars = [np.float64(1.5), np.int8(3), np.bool_(True), np.str_("abc"), np.bytes_(b"xy"), np.datetime64("2020-01-01"),
               np.timedelta64(3, "s"), np.complex64(1j), np.longdouble(2), np.str_(""), np.zeros(2, [("a", "i4"), ("b", "S2")])[0]]
    loaded = restricted.loads(pickle.dumps([dtypes, scalars], protocol))
    assert [repr(one) for one in loaded[0]] == [repr(one) for one in dtypes]
    for one, other in zip(scalars, loaded[1]):
        assert type(one) is type(other) and one == other and one.dtype == other.dtype


@with_numpy
def test_the_form_in_which_chest_itself_writes_plain_arrays():
    data = b"\x80\x05cnumpy\nndarray\n((K\x02tcnumpy\ndtype\n\x8c\x03<f8\x85R\x97K\x00N\x8c\x01CtR."
    memory = bytearray(numpy.arange(2.0).tobytes())
    loaded = restricted.loads(data, [memory])
    assert loaded.tolist() == [0, 1] and loaded.flags.writeable
    loaded[0] = 7
    assert numpy.frombuffer(memory)[0] == 7
    assert not restricted.loads(data, [bytes(memory)]).flags.writeable


@with_numpy
@pytest.mark.parametrize("value", [lambda: numpy.zeros(2, [("a", "O")]), lambda: numpy.recarray(2, [("a", "i4")]), lambda: numpy.float64,
                                   lambda: numpy.dtype("i4", metadata={"a": 1}), lambda: numpy.random.default_rng(1)])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.filterwarnings("ignore")
def test_other_things_of_numpy_are_refused(value, protocol):
    with pytest.raises(LoadError):
        restricted.loads(pickle.dumps(value(), protocol))


@pytest.mark.parametrize("make, match", [
    (lambda: pytest.importorskip("scipy.sparse").csr_matrix(numpy.diag([1.0, 2, 3])), "scipy.*csr_matrix.*trusted=True.*parquet"),
    (lambda: pytest.importorskip("pandas").DataFrame({"a": [1]}), "pandas.*parquet")], ids=["sparse", "frame"])
def test_what_others_classes_are_needed_for_is_refused_with_what_to_do_instead(make, match):
    data = pickle.dumps(make())
    with pytest.raises(LoadError, match=match):
        restricted.loads(data)


def test_a_thread_that_looks_at_the_frames_of_others_gets_no_value_refused():
    value, ends, interval = [fractions.Fraction(n, 7) for n in range(50)], threading.Event(), sys.getswitchinterval()
    data = pickle.dumps(value)

    def look():  # as a profiler does, and as chest does that wants to know which threads there are
        while not ends.is_set():
            held = frames()
            time.sleep(0)
            del held

    with thread(look):
        sys.setswitchinterval(1e-5)
        try:
            for _ in range(100):
                assert restricted.loads(data) == value
        finally:
            sys.setswitchinterval(interval)
            ends.set()
