"""What ``nbytes`` promises: it counts what a value holds, each object once, and never raises nor changes the value."""

from __future__ import annotations

import collections
import dataclasses
import functools
import mmap
import pickle
import random
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chest import sizes
from chest.sizes import nbytes

MB = 1_000_000


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget after the test what it registers."""
    for table in ("_registered", "_plans"):
        monkeypatch.setattr(sizes, table, dict(getattr(sizes, table)))
    monkeypatch.setattr(sizes, "_plain", sizes._plain)


# Plain values


@pytest.mark.parametrize("value", [0, 1, -5, 10**100, 1.5, 1j, True, None, "", "x", "x" * 1000, b"", b"xyz", range(9)])
def test_plain_values_count_what_python_says(value: object) -> None:
    size = nbytes(value)

    assert type(size) is int
    assert size == sys.getsizeof(value) > 0


def test_small_values_are_small() -> None:
    assert nbytes("x") < 100
    assert nbytes(1) <= 48


def test_a_bytearray_counts_its_content() -> None:
    assert nbytes(bytearray(MB)) >= MB


# Containers


class Pair(NamedTuple):
    first: object
    second: object


@pytest.mark.parametrize(
    "wrap",
    [
        lambda item: [item],
        lambda item: (item,),
        lambda item: {"key": item},
        lambda item: {item: "value"},
        lambda item: {item},
        lambda item: frozenset([item]),
        lambda item: collections.deque([item]),
        lambda item: collections.OrderedDict(key=item),
        lambda item: collections.defaultdict(list, key=item),
        lambda item: collections.Counter({item: 1}),
        lambda item: collections.UserDict(key=item),
        lambda item: collections.UserList([item]),
        lambda item: Pair(1, item),
        lambda item: types.SimpleNamespace(field=item),
        lambda item: functools.partial(print, item),
        lambda item: [[({"deep": [item]},)]],
    ],
)
def test_a_container_counts_itself_and_what_it_holds(wrap: Any) -> None:
    outer = wrap(bytes(MB))
    size = nbytes(outer)

    assert MB + sys.getsizeof(outer) < size < MB + 5000


def test_a_flat_list_counts_exactly() -> None:
    items = [object() for _ in range(50)]

    assert nbytes(items) == sys.getsizeof(items) + 50 * sys.getsizeof(object())


def test_a_nested_value_counts_exactly() -> None:
    leaf = bytes(1000)
    inner = {"leaf": leaf}
    outer = [inner, 1.5]

    assert nbytes(outer) == sum(map(sys.getsizeof, (outer, inner, "leaf", leaf, outer[1])))


@pytest.mark.parametrize("length", [2, 100, 5000])
def test_an_object_met_again_counts_once(length: int) -> None:
    shared = bytes(MB)

    assert nbytes([shared] * length) == nbytes([shared]) + 8 * (length - 1)


def test_an_object_shared_by_many_containers_counts_once() -> None:
    shared = bytes(MB)

    assert nbytes([{"shared": shared, "own": [i]} for i in range(3000)]) < 3 * MB
    assert nbytes([[shared], [[shared]], shared]) < MB + 1000


def test_cycles_end() -> None:
    cycle: list[object] = [bytes(1000)]
    cycle.append(cycle)
    first, second = types.SimpleNamespace(), types.SimpleNamespace()
    first.other, second.other = second, first

    assert 1000 < nbytes(cycle) < 2000
    assert nbytes(first) == nbytes(second)


def test_deep_nesting_is_no_recursion() -> None:
    value: object = bytes(MB)
    for _ in range(3000):
        value = [value]

    assert nbytes(value) > MB + 3000 * sys.getsizeof([None])


# Long containers


@pytest.mark.parametrize(
    "collect", [list, tuple, set, frozenset, collections.deque, lambda items: dict.fromkeys(items, b"")]
)
def test_a_long_container_is_judged_by_a_sample(collect: Any) -> None:
    items = [b"%6d" % i + bytes(i % 1000) for i in range(20_000)]
    value = collect(items)
    true = sys.getsizeof(value) + sum(map(sys.getsizeof, items))

    assert nbytes(value) == pytest.approx(true, rel=0.15)


@pytest.mark.parametrize("period", [2, 3, 4, 5, 7, 8, 10, 16, 20])
def test_a_period_in_the_data_does_not_mislead(period: int) -> None:
    items = [bytes(100_000 if i % period == 0 else 0) for i in range(1000 * period)]

    assert 0.5 < nbytes(items) / (100_033 * 1000) < 2


def test_a_sample_opens_what_it_names() -> None:
    value = [{"name": "n%d" % i, "data": [bytes(1000)]} for i in range(5000)]

    assert nbytes(value) == pytest.approx(5000 * 1380, rel=0.1)


def test_many_short_containers_are_all_counted() -> None:
    value = [[[[bytes(1000)] for _ in range(20)] for _ in range(20)] for _ in range(20)]

    assert nbytes(value) == pytest.approx(8000 * 1100, rel=0.1)


def test_a_sample_is_the_same_each_time_and_moves_no_random_generator() -> None:
    value = [bytes(i % 977) for i in range(10_000)]
    state = random.getstate()

    assert len({nbytes(value) for _ in range(5)}) == 1
    assert type(nbytes(value)) is int
    assert random.getstate() == state


def test_a_huge_nest_takes_a_bounded_number_of_looks(registry: None) -> None:
    looks = 0

    class Leaf:
        pass

    @nbytes.register(Leaf)
    def _(leaf: Leaf) -> int:
        nonlocal looks
        looks += 1
        return 10

    size = nbytes([[[Leaf() for _ in range(40)] for _ in range(40)] for _ in range(40)])

    assert looks <= 1000
    assert size > 64_000 * 10


# Instances


class Slotted:
    __slots__ = ("__private", "empty", "public")

    def __init__(self, value: object) -> None:
        self.public = self.__private = value


class SlottedChild(Slotted):
    __slots__ = ("more",)
    more: object


class MixedChild(Slotted):
    pass


@dataclasses.dataclass
class Record:
    name: str
    data: bytes


def test_instances_count_their_attributes() -> None:
    record = Record("name", bytes(MB))
    space = types.SimpleNamespace(name="name")

    assert nbytes(space) == sum(map(sys.getsizeof, (space, vars(space), space.name)))
    assert nbytes(record) == sum(map(sys.getsizeof, (record, vars(record), record.name, record.data)))


@pytest.mark.parametrize("kind", [Slotted, SlottedChild, MixedChild])
def test_instances_count_their_slots_also_inherited_and_private_ones(kind: Any) -> None:
    value = kind(bytes(MB))

    assert MB < nbytes(value) < MB + 1000


def test_slots_of_parent_and_child_both_count() -> None:
    value = SlottedChild(bytes(MB))
    value.more = bytes(MB)

    assert 2 * MB < nbytes(value) < 2 * MB + 1000


@pytest.mark.parametrize("base", [list, dict, set, tuple, str, bytes, int, collections.deque])
def test_subclasses_of_builtins_count_items_and_attributes(base: Any) -> None:
    class Child(base):  # type: ignore[misc]
        pass

    value = Child()
    plain = nbytes(value)
    value.attribute = bytes(MB)

    assert plain + MB < nbytes(value) < plain + MB + 1000


def test_a_long_container_with_attributes_counts_these_once() -> None:
    class Child(list[object]):
        pass

    value = Child(range(1000, 3000))
    value.attribute = bytes(MB)  # type: ignore[attr-defined]

    assert MB < nbytes(value) < MB + 100_000


def test_exceptions_count_their_attributes() -> None:
    error = ValueError("text")
    error.payload = bytes(MB)  # type: ignore[attr-defined]

    assert nbytes(error) > MB


# nbytes of the object's own


def test_an_integer_nbytes_is_taken_at_its_word() -> None:
    class Block:
        nbytes = 12345

        def __init__(self) -> None:
            self.data = bytes(MB)

    class Computed:
        @property
        def nbytes(self) -> int:
            return 54321

    assert nbytes(Block()) == 12345
    assert nbytes(Computed()) == 54321
    assert nbytes(types.SimpleNamespace(nbytes=77)) == 77
    assert nbytes([Block()]) == 12345 + sys.getsizeof([None])


@pytest.mark.parametrize("odd", [None, "8", -1, 1.5, [], lambda: 8])
def test_an_nbytes_that_is_no_size_is_an_attribute_like_others(odd: object) -> None:
    class Odd:
        nbytes = odd

    value = Odd()
    value.data = bytes(MB)  # type: ignore[attr-defined]

    assert MB < nbytes(value) < MB + 1000
    assert MB < nbytes(types.SimpleNamespace(nbytes=odd, data=bytes(MB))) < MB + 2000


def test_an_object_that_answers_to_any_name_is_not_asked() -> None:
    class Proxy:
        def __getattr__(self, name: str) -> int:
            return 10**12

    assert nbytes(Proxy()) < 1000


# Odd values


class Hostile:
    """Everything that can raise does."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __len__(self) -> int:
        raise RuntimeError("len")

    def __iter__(self) -> Iterator[object]:
        raise RuntimeError("iter")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("eq")

    def __hash__(self) -> int:
        raise RuntimeError("hash")

    def __bool__(self) -> bool:
        raise RuntimeError("bool")

    def __sizeof__(self) -> int:
        raise RuntimeError("sizeof")


class HostileList(Hostile, list):  # type: ignore[type-arg, misc]
    pass


class HostileDict(Hostile, dict):  # type: ignore[type-arg, misc]
    pass


class HostileNBytes:
    @property
    def nbytes(self) -> int:
        raise RuntimeError("nbytes")


class HostileNamespace:
    @property
    def __dict__(self) -> dict[str, object]:  # type: ignore[override]
        raise RuntimeError("dict")


class HostileMeta(type):
    def __getattribute__(cls, name: str) -> Any:
        raise RuntimeError(name)


def hostile_class() -> object:
    return HostileMeta("HostileClass", (), {})()  # Made here: pytest looks into the classes of a module.


@pytest.mark.parametrize("kind", [Hostile, HostileList, HostileDict, HostileNBytes, HostileNamespace, hostile_class])
def test_odd_values_count_something_and_raise_nothing(kind: Any) -> None:
    assert 0 < nbytes(kind()) < 1000
    assert nbytes([kind(), bytes(MB)]) > MB


def test_a_negative_size_is_not_believed() -> None:
    class Negative:
        def __sizeof__(self) -> int:
            return -1000

    assert nbytes(Negative()) > 0


def test_no_property_is_called_and_no_method_of_a_container() -> None:
    calls: list[str] = []

    class Lazy:
        @property
        def data(self) -> bytes:
            calls.append("data")
            return bytes(MB)

    class Items(list[object]):
        def __iter__(self) -> Iterator[object]:
            calls.append("iter")
            return iter(())

        def __len__(self) -> int:
            calls.append("len")
            return 0

        def __getitem__(self, place: Any) -> Any:
            calls.append("getitem")
            return []

    value = Items()
    value.append(bytes(MB))
    calls.clear()

    assert nbytes(Lazy()) < 1000
    assert nbytes(value) > MB
    assert calls == []


def test_iterators_are_not_advanced() -> None:
    generator = (i for i in range(3))
    iterator = iter([1, 2, 3])
    pairs = zip([1], [2])
    nbytes([generator, iterator, pairs])

    assert (list(generator), list(iterator), list(pairs)) == ([0, 1, 2], [1, 2, 3], [(1, 2)])


@pytest.mark.parametrize("code", [Record, sys, nbytes, len, [].append, Record("a", b"").__repr__, lambda: 0])
def test_classes_modules_and_functions_are_small_constants(code: object) -> None:
    assert 0 < nbytes(code) < 5000
    assert 0 < nbytes([code]) < 5000


def test_what_a_class_or_a_module_holds_is_not_the_value_s() -> None:
    class Meta(type):
        pass

    class Made(metaclass=Meta):
        data = bytes(MB)

    class Module(types.ModuleType):
        pass

    module = Module("module")
    module.data = bytes(MB)  # type: ignore[attr-defined]

    assert nbytes([Made, Made(), module]) < 10_000


def test_other_threads_may_change_the_value_meanwhile() -> None:
    value: dict[int, object] = {}
    stop = threading.Event()
    started = threading.Event()

    def change() -> None:
        while not stop.is_set():
            value.update(dict.fromkeys(range(300), b""))
            started.set()
            value.clear()

    thread = threading.Thread(target=change)
    thread.start()
    try:
        assert started.wait(30)
        assert all(nbytes([value, bytes(1000)]) > 1000 for _ in range(500))
    finally:
        stop.set()
        thread.join()


# Registration


def test_a_registered_function_measures_its_type_and_the_subclasses(registry: None) -> None:
    class Base:
        pass

    class Child(Base):
        nbytes = 5

    assert nbytes(Base()) != 1000

    @nbytes.register(Base)
    def measure(value: Base) -> int:
        return 1000

    assert measure(Base()) == nbytes(Base()) == nbytes(Child()) == 1000
    assert nbytes([Base()]) == 1000 + sys.getsizeof([None])


def test_the_nearest_registered_class_wins(registry: None) -> None:
    class Base:
        pass

    class Child(Base):
        pass

    nbytes.register(Child)(lambda value: 2)
    nbytes.register(Base)(lambda value: 1)

    assert (nbytes(Base()), nbytes(Child())) == (1, 2)


@pytest.mark.parametrize("kind", [int, str, list, dict])
def test_builtin_types_can_be_registered(registry: None, kind: Any) -> None:
    nbytes.register(kind)(lambda value: 4321)

    assert nbytes(kind()) == 4321
    assert nbytes((kind(),)) == 4321 + sys.getsizeof((None,))


def test_a_type_can_be_registered_by_name(registry: None) -> None:
    nbytes.register(f"{__name__}.Record")(lambda value: 99)

    assert nbytes(Record("", b"")) == 99


def test_a_registered_function_that_fails_is_passed_over(registry: None) -> None:
    nbytes.register(Record)(lambda value: 1 // 0)
    record = Record("", b"")

    assert nbytes(record) == sys.getsizeof(record)

    nbytes.register(Record)(lambda value: -1)

    assert nbytes(record) == sys.getsizeof(record)


def test_only_types_and_names_can_be_registered() -> None:
    with pytest.raises(TypeError, match="takes a type"):
        nbytes.register(5)  # type: ignore[arg-type]


def test_types_made_on_the_fly_are_forgotten() -> None:
    for _ in range(3 * sizes._TYPES):
        nbytes(type("Passing", (), {})())

    assert len(sizes._plans) <= sizes._TYPES


# Any value at all

leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.binary(max_size=20))
hashable = st.recursive(
    leaves, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=5), max_leaves=5
)
nested = st.recursive(
    leaves | st.builds(Record, st.text(max_size=5), st.binary(max_size=50)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=8),
        st.tuples(inner, inner),
        st.dictionaries(hashable, inner, max_size=8),
        st.sets(hashable, max_size=8),
        st.builds(types.SimpleNamespace, a=inner, b=inner),
        leaves.map(lambda item: [item] * 150),
    ),
    max_leaves=12,
)


@given(nested)
def test_a_value_holds_at_least_itself(value: object) -> None:
    assert nbytes(value) >= sys.getsizeof(value)


@given(nested)
def test_measuring_changes_nothing(value: object) -> None:
    before = repr(value)
    first = nbytes(value)

    assert repr(value) == before
    assert nbytes(value) == first


@given(nested, nested)
def test_a_list_counts_at_least_each_item_and_at_most_all(first: object, second: object) -> None:
    size = nbytes([first, second])

    assert size >= sys.getsizeof([first, second]) + max(nbytes(first), nbytes(second))
    assert size <= sys.getsizeof([first, second]) + nbytes(first) + nbytes(second)


@given(st.lists(nested, max_size=20), nested)
def test_adding_an_item_never_makes_a_list_smaller(items: list[object], item: object) -> None:
    before = nbytes(items)
    items.append(item)

    assert nbytes(items) >= before


@given(nested, st.integers(0, 5))
def test_a_cycle_through_any_value_ends(value: object, turns: int) -> None:
    cycle: list[object] = [value]
    inner: object = cycle
    for _ in range(turns):
        inner = {"inner": inner}
    cycle.append(inner)

    assert nbytes(cycle) >= nbytes(value)


# Buffers and memory maps


def test_a_memoryview_holds_the_whole_buffer() -> None:
    buffer = bytearray(MB)

    assert MB < nbytes(memoryview(buffer)[:1]) < MB + 1000
    assert MB < nbytes([memoryview(buffer)[i:] for i in range(50)]) < MB + 20_000
    with mmap.mmap(-1, MB) as mapped, memoryview(mapped) as whole, whole[:10] as part:
        assert MB < nbytes(whole) < MB + 1000
        assert 10 < nbytes(part) < 1000


def test_a_released_memoryview_is_small() -> None:
    view = memoryview(bytes(MB))
    view.release()

    assert 0 < nbytes(view) < 1000


def test_arrays_count_exactly_their_data() -> None:
    np = pytest.importorskip("numpy")

    for array in (np.zeros(10), np.zeros((3, 0)), np.arange(6).reshape(2, 3), np.zeros(5, "S7"), np.array(1.0)):
        assert nbytes(array) == array.nbytes
        assert type(nbytes(array)) is int
    assert nbytes(np.float64(1)) == 8
    assert nbytes(np.zeros(3, [("a", "f8"), ("b", "i4")])) == 36


def test_a_view_counts_what_it_keeps_alive() -> None:
    np = pytest.importorskip("numpy")
    array = np.zeros(MB)

    for view in (array[:1], array[5:9][1:2], array[::1000], array.reshape(1000, 1000).T, array.view("u1")):
        assert nbytes(view) == 8 * MB
    assert nbytes([array[:1], array[2:], array]) == 8 * MB + sys.getsizeof([0] * 3)


def test_a_broadcast_array_counts_what_it_really_holds() -> None:
    np = pytest.importorskip("numpy")
    row = np.zeros(100)

    assert nbytes(np.broadcast_to(row, (10**6, 100))) == 800
    assert nbytes(np.lib.stride_tricks.as_strided(row, (10**6, 100), (0, 8))) == 800
    assert nbytes(np.lib.stride_tricks.sliding_window_view(row, 50)) == 800


def test_an_array_over_a_buffer_counts_the_buffer_once() -> None:
    np = pytest.importorskip("numpy")
    buffer = bytearray(MB)

    assert nbytes(np.frombuffer(buffer)) == MB
    assert nbytes(np.frombuffer(buffer, count=1)) == MB
    assert nbytes([np.frombuffer(buffer, count=i) for i in range(1, 50)]) < MB + 1000
    assert nbytes([np.frombuffer(bytearray(MB), count=1) for _ in range(300)]) == pytest.approx(300 * MB, rel=0.01)
    assert nbytes([buffer, np.frombuffer(buffer)]) < MB + 1000


def test_an_array_over_an_opaque_object_counts_what_it_shows() -> None:
    np = pytest.importorskip("numpy")
    data = np.zeros(100)

    class Opaque:
        __array_interface__ = data.__array_interface__

    array = np.asarray(Opaque())

    assert type(array.base) is Opaque
    assert nbytes(array) == 800
    assert nbytes(np.broadcast_to(array, (50, 100))) == 800


def test_a_memory_map_counts_its_own_bytes(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    mapped = np.memmap(tmp_path / "map", dtype="f8", mode="w+", shape=(1000,))
    with mmap.mmap(-1, 8000) as anonymous:
        array = np.frombuffer(anonymous)

        assert nbytes(array) == 8000
        assert nbytes(array[:10]) == 80
        assert nbytes([array[:10], array[10:30]]) == 240 + sys.getsizeof([0, 0])
        assert nbytes(np.broadcast_to(array, (1000, 1000))) == 8000
        del array
    assert nbytes(mapped) == 8000
    assert nbytes(mapped[:10]) == nbytes(np.asarray(mapped)[:10]) == 80


def test_object_arrays_count_what_they_refer_to() -> None:
    np = pytest.importorskip("numpy")
    array = np.array([bytes(1000 + i) for i in range(50)] + [None], dtype=object)
    long = np.empty(5000, dtype=object)
    long[:] = [bytes(1000) + b"%d" % i for i in range(5000)]
    fields = np.zeros(3, [("a", "f8"), ("b", object)])
    fields["b"] = [bytes(MB), None, bytes(MB)]

    assert nbytes(array) == array.nbytes + sum(map(sys.getsizeof, array))
    assert nbytes(array[:1]) == nbytes(array.reshape(3, 17)) == nbytes(array)
    assert nbytes(long) == pytest.approx(5000 * 1045, rel=0.02)
    assert 2 * MB < nbytes(fields) < 2 * MB + 1000


def test_numpy_s_own_strings_count_in_full() -> None:
    dtypes = pytest.importorskip("numpy.dtypes")
    np = pytest.importorskip("numpy", minversion="2.0")
    array = np.array(["x" * 1000] * 50, dtype=dtypes.StringDType())

    assert 50_000 <= nbytes(array) < 60_000


def test_an_object_array_that_holds_itself_ends() -> None:
    np = pytest.importorskip("numpy")
    array = np.empty(2, dtype=object)
    array[0] = array

    assert nbytes(array) == 16 + sys.getsizeof(None)


def test_attributes_of_array_subclasses_count() -> None:
    np = pytest.importorskip("numpy")

    class Named(np.ndarray):  # type: ignore[misc, name-defined]
        pass

    named = np.zeros(1000).view(Named)
    named.label = bytes(MB)
    masked = np.ma.array(np.zeros(1000), mask=np.zeros(1000, bool))

    assert MB + 8000 < nbytes(named) < MB + 9000
    assert 9000 <= nbytes(masked) < 11_000


# Frames, sparse matrices, tables


def test_frames_and_series_count_their_columns() -> None:
    pd = pytest.importorskip("pandas")
    np = pytest.importorskip("numpy")
    frame = pd.DataFrame({"a": np.arange(MB), "b": np.arange(MB) / 2, "c": np.arange(MB) % 2 == 0})

    assert 17 * MB <= nbytes(frame) < 17 * MB + 20_000
    assert 8 * MB <= nbytes(pd.Series(np.arange(MB))) < 8 * MB + 20_000
    assert 8 * MB <= nbytes(pd.Index(np.arange(MB) * 3)) < 8 * MB + 20_000
    assert 8 * MB <= nbytes(pd.date_range("2020", periods=MB, freq="s")) < 8 * MB + 20_000
    assert nbytes(frame.iloc[:1]) >= 17 * MB or nbytes(frame.iloc[:1].copy()) < 20_000


@pytest.mark.parametrize("dtype", ["object", "string", "string[pyarrow]", "category"])
def test_strings_in_frames_count_in_full(dtype: str) -> None:
    pd = pytest.importorskip("pandas")
    if "pyarrow" in dtype:
        pytest.importorskip("pyarrow")
    words = ["%06d" % i + "x" * 994 for i in range(2000)]
    series = pd.Series(words, dtype=dtype)

    assert 2 * MB <= nbytes(series) < 3 * MB
    assert 2 * MB <= nbytes(series.array) < 3 * MB
    assert 2 * MB <= nbytes(pd.DataFrame({"a": series, "b": range(2000)})) < 3 * MB
    assert 2 * MB <= nbytes(pd.Index(words, dtype=dtype)) < 3 * MB
    assert 2 * MB <= nbytes(pd.DataFrame({"a": range(2000)}, index=words)) < 3 * MB


def test_extension_arrays_count_their_parts() -> None:
    pd = pytest.importorskip("pandas")
    numbers = pd.array(range(100_000), dtype="Int64")
    periods = pd.period_range("2000", periods=10_000, freq="D").array
    labels = pd.MultiIndex.from_arrays([range(300), ["%03d" % i + "x" * 1000 for i in range(300)]])

    assert 900_000 <= nbytes(numbers) < 910_000
    assert 80_000 <= nbytes(periods) < 90_000
    assert nbytes(labels) > 300_000


def test_wide_frames_count_each_column() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"c%d" % i: pd.array(range(1000), dtype="Int64") for i in range(500)})

    assert nbytes(frame) == pytest.approx(500 * 9000, rel=0.1)


def test_measuring_a_frame_adds_nothing_to_it() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"_ndarray": [1, 2], "_mgr": [3, 4], "nbytes": [5, 6]})
    before = {name: repr(state) for name, state in vars(frame).items()}

    assert nbytes(frame) < 5000
    assert {name: repr(state) for name, state in vars(frame).items()} == before


@pytest.mark.parametrize("layout", ["csr", "csc", "coo", "bsr", "dia", "lil", "dok"])
def test_sparse_matrices_count_their_arrays(layout: str) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    np = pytest.importorskip("numpy")
    matrix = sparse.csr_matrix(np.eye(1000)).asformat(layout)

    assert nbytes(matrix) >= 8000
    if layout in ("csr", "csc"):
        arrays = matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes
        assert arrays <= nbytes(matrix) < arrays + 2000


def test_arrow_tables_count_their_buffers() -> None:
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"a": list(range(10_000)), "b": ["x" * 100] * 10_000})

    assert nbytes(table) == table.get_total_buffer_size() > MB
    assert nbytes(table.slice(0, 1)) == nbytes(table)
    assert nbytes(table["b"]) > MB
    assert nbytes(table["a"].chunk(0)[:1]) >= 80_000
    assert nbytes(table.to_batches()[0]) > MB


def test_no_library_is_imported() -> None:
    code = (
        "import sys; before = set(sys.modules); import chest.sizes; chest.sizes.nbytes({'a': [object()]});"
        "print(*sorted({name.split('.')[0] for name in sys.modules} & {'numpy', 'pandas', 'scipy', 'pyarrow'}))"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


LIGHT_PARTS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.text(), st.binary(),
                        st.integers(0, 255), st.sampled_from(["", b"", (), 0]))


@given(st.one_of(LIGHT_PARTS, st.lists(LIGHT_PARTS), st.lists(LIGHT_PARTS).map(tuple),
                 st.dictionaries(LIGHT_PARTS.filter(lambda part: part != ()), LIGHT_PARTS)))
def test_a_light_value_takes_no_more_than_it_may_for_each_byte_of_its_pickle(value: Any) -> None:
    back = pickle.loads(pickle.dumps(value, 5))
    if sizes.light(back):
        assert nbytes(back) <= sizes.LIGHT * len(pickle.dumps(value, 5))


@pytest.mark.parametrize("count", [*range(40), 85, 86, 170, 171, 341, 342, 1365, 1366])
def test_the_emptiest_light_values_stay_below_the_bound_at_every_size(count: int) -> None:
    for value in (dict.fromkeys(range(count)), [None] * count, tuple(range(count)), list(map(str, range(count)))):
        back = pickle.loads(pickle.dumps(value, 5))
        assert sizes.light(back)
        assert nbytes(back) <= sizes.LIGHT / 2 * len(pickle.dumps(value, 5))


@pytest.mark.parametrize("value", [[[]], {"x": {}}, {(1,): 2}, ((),), object(), {1}, bytearray(3), [object()], len, int])
def test_nothing_else_is_light(value: Any) -> None:
    assert not sizes.light(value)


def test_what_has_a_measure_of_the_users_is_not_light() -> None:
    registered = dict(sizes._registered)
    try:
        nbytes.register(str)(lambda text: 10**9)
        assert not sizes.light("x")
        assert not sizes.light(["x"])
        assert not sizes.light(1.5)
    finally:
        sizes._registered.clear()
        sizes._registered.update(registered)
        nbytes.register("no.such")(lambda value: 0)  # works the tables out anew
        sizes._registered.pop("no.such")
    assert sizes.light("x")
