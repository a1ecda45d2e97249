"""The default dump and load: ordinary pickles, aligned arrays, memory maps, and noticing what changed."""

from __future__ import annotations

import dataclasses
import gzip
import io
import os
import pickle
import pickletools
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

np = pytest.importorskip("numpy", reason="these are tests of arrays")
hypothesis = pytest.importorskip("hypothesis", reason="these tests draw arrays")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from chest import aligned, arrays, maps  # noqa: E402

LARGE = 20_000  # items: with eight bytes each well over the size from which on arrays are mapped
MODES = (None, "c", "r")
posix = pytest.mark.skipif(not hasattr(os, "preadv"), reason="files are not mapped on this system")
linux = pytest.mark.skipif(not os.path.exists("/proc/self/pagemap"), reason="no page map on this system")
quick = settings(max_examples=60, deadline=None)


def write(path: Path, value: object) -> Path:
    path.unlink(missing_ok=True)
    with open(path, "xb", buffering=0) as file:
        arrays.dump(value, file)
    return path


def read(path: Path, mode: str | None = None) -> Any:
    with open(path, "rb", buffering=0) as file:
        return arrays.load(file, mode)


def is_same(value: object, path: Path) -> bool:
    with open(path, "rb", buffering=0) as file:
        return arrays.same(value, file)


def notes(path: Path) -> list[aligned.Note]:
    with open(path, "rb") as file:
        layout = aligned.read_layout(file)
    return layout.notes if layout else []


def map_of(array: Any) -> Any:
    place = maps.place(array)
    return place and place.under


def equal(one: Any, other: Any) -> bool:
    """Equal in every way that shows, flags of memory apart."""
    if type(one) is not type(other) or one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.dtype.hasobject:
        return bool(one.tolist() == other.tolist())
    masks = np.ma.getmaskarray(one).tobytes() == np.ma.getmaskarray(other).tobytes()
    return masks and bool(np.asarray(one).tobytes() == np.asarray(other).tobytes())


# --- drawing arrays -----------------------------------------------------------------------------------------------

DTYPES = ["?", "i1", "<i4", ">i8", "u8", "f2", "f4", "<f8", ">f8", "c16", "S3", "U2", "M8[s]", "m8[ns]", "V5"]
DTYPES += ["i4,f8", [("x", "f8"), ("y", "S3", (2,))], "O"]  # type: ignore[list-item]
VIEWS: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda a: a,
    "Fortran": np.asfortranarray,
    "transposed": lambda a: a.T,
    "axes swapped": lambda a: a.swapaxes(0, -1) if a.ndim else a,
    "every other": lambda a: a[::2] if a.ndim else a,
    "backwards": lambda a: a[::-1] if a.ndim else a,
    "part": lambda a: a[1:] if a.ndim else a,
    "masked": lambda a: np.ma.masked_array(a, mask=np.arange(a.size).reshape(a.shape) % 3 == 0),
    "record": lambda a: a.view(np.recarray) if a.dtype.names else a,
    "broadcast": lambda a: np.broadcast_to(a, (2, *a.shape)),
}


@st.composite
def drawn_arrays(draw: Any) -> Any:
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    large = 70_000 // dtype.itemsize + 1
    shape = draw(
        st.sampled_from([(), (0,), (3, 0), (1,), (5,), (2, 3, 4), (large,), (2, large // 2 + 1), (large, 1, 2)])
    )
    size = int(np.prod(shape, dtype=int))
    if dtype.hasobject:
        made = np.array([None, "text", 7] * (size // 3 + 1), dtype=object)[:size].reshape(shape)
    else:
        seed = draw(st.binary(min_size=1, max_size=40))
        made = np.resize(np.frombuffer(seed, "u1") & 1, size * dtype.itemsize).view(dtype).reshape(shape).copy()
    made = VIEWS[draw(st.sampled_from(sorted(VIEWS)))](made)
    if draw(st.booleans()):
        made.flags.writeable = False
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("arrays") / "value"


@quick
@given(array=drawn_arrays())
def test_every_array_comes_back_equal_in_each_mode_and_with_pickle_alone(array: Any, place: Path) -> None:
    path = write(place, array)
    with open(path, "rb") as file:
        ordinary = pickle.load(file)
    pickletools.dis(path.read_bytes(), out=io.StringIO())
    by_pickle = pickle.loads(pickle.dumps(array, 5))  # of a few arrays numpy itself changes the byte order on the way
    assert equal(ordinary, by_pickle)
    for mode in MODES:
        loaded = read(path, mode)
        assert equal(loaded, by_pickle)
        assert loaded.flags.writeable == (ordinary.flags.writeable and not (mode == "r" and map_of(loaded)))


@quick
@given(array=drawn_arrays())
def test_an_array_that_did_not_change_is_the_same_when_just_dumped_and_when_loaded(array: Any, place: Path) -> None:
    path = write(place, array)
    assert is_same(array, path)
    for mode in MODES:
        assert is_same(read(path, mode), path)
        assert is_same([read(path, mode)], write(place.with_name("list"), [array]))


@quick
@given(array=drawn_arrays(), mode=st.sampled_from([None, "c"]), where=st.floats(0, 1, exclude_max=True))
def test_a_change_of_one_byte_anywhere_is_noticed(array: Any, mode: str | None, where: float, place: Path) -> None:
    path = write(place, array)
    loaded = read(path, mode)
    hypothesis.assume(loaded.size and loaded.flags.writeable and not loaded.dtype.hasobject)
    raw = np.ma.getdata(loaded).reshape(-1, order="A").view("u1")
    assert np.shares_memory(raw, loaded)
    raw[int(where * raw.size)] ^= 1
    assert not is_same(loaded, path)
    assert not is_same([loaded], write(place.with_name("list"), [array]))
    raw[int(where * raw.size)] ^= 1
    assert is_same(loaded, path)


# --- values that hold arrays --------------------------------------------------------------------------------------


@dataclasses.dataclass
class Result:
    name: str
    data: Any


class Plain:
    """An instance whose values repeat the names of its attributes: interning changes how it pickles."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self.title = "".join(["ti", "tle"])


def frame() -> Any:
    pandas = pytest.importorskip("pandas", reason="a value of this test is a frame")
    numbers = np.arange(4.0 * LARGE).reshape(LARGE, 4)
    made = pandas.DataFrame(numbers, columns=list("abcd"))
    made["text"] = "x"
    made["whole"] = np.arange(LARGE)
    return made


def shared() -> Any:
    one = np.arange(LARGE, dtype="f8")
    fixed = one.copy()
    fixed.flags.writeable = False
    return {"first": one, "again": one, "view": one[3:], "fixed": fixed, "both": (fixed, one)}


VALUES: dict[str, Callable[[], Any]] = {
    "dict": lambda: {"x": np.ones(LARGE), "y": [np.zeros(LARGE, "f4"), np.zeros(3)], "n": 1},
    "shared": shared,
    "dataclass": lambda: Result("r", {"deep": [Result("s", np.arange(LARGE))]}),
    "instances": lambda: [Plain(np.ones(LARGE)), Plain(np.zeros(LARGE)), {"data", "title", frozenset([1])}],
    "frame": frame,
    "series": lambda: frame()["whole"].copy(),
    "one dtype": lambda: [np.zeros(LARGE, d) for d in [np.dtype([("a", "f8")])] * 3],
    "masked": lambda: np.ma.masked_array(np.arange(LARGE), mask=False),
    "bytes": lambda: [b"x" * 100_000, bytearray(100_000), "é" * 100_000, np.ones(LARGE)],
    "long stream": lambda: [np.ones(LARGE), [f"{i:>20}" for i in range(100_000)], b"x" * 100_000, np.zeros(LARGE)],
}
MAPPED = {"dict", "shared", "dataclass", "instances", "frame", "series", "one dtype", "bytes", "long stream"}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("mode", MODES)
def test_a_value_that_did_not_change_is_the_same_however_it_was_loaded(
    name: str, mode: str | None, tmp_path: Path
) -> None:
    value = VALUES[name]()
    path = write(tmp_path / "value", value)
    assert is_same(value, path)
    loaded = read(path, mode)
    assert is_same(loaded, path)
    assert is_same(read(path, mode), write(tmp_path / "again", loaded)) or name == "masked"
    with open(path, "rb") as file:
        assert pickle.dumps(pickle.load(file)) == pickle.dumps(read(path))


@pytest.mark.parametrize("name", sorted(MAPPED))
def test_each_large_array_is_aligned_in_its_file(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "value", VALUES[name]())
    assert notes(path)
    assert all(note.begin() % 64 == 0 and note.size >= 64 * 1024 for note in notes(path))


@posix
def test_arrays_deep_inside_a_value_are_maps_of_its_file(tmp_path: Path) -> None:
    path = write(tmp_path / "value", Result("r", {"deep": (np.arange(LARGE), [np.ones(LARGE)])}))
    deep = read(path, "c").data["deep"]
    assert map_of(deep[0]) is map_of(deep[1][0]) is not None
    assert map_of(read(path).data["deep"][0]) is None


@posix
def test_numeric_blocks_of_a_frame_are_mapped(tmp_path: Path) -> None:
    loaded = read(write(tmp_path / "value", frame()), "r")
    assert map_of(loaded["a"].to_numpy()) is not None


@pytest.mark.parametrize("mode", MODES)
def test_bytes_and_bytearrays_stay_what_they_are(mode: str | None, tmp_path: Path) -> None:
    value = [b"x" * 100_000, bytearray(b"y" * 100_000), np.ones(LARGE)]
    loaded = read(write(tmp_path / "value", value), mode)
    assert [type(item) for item in loaded] == [bytes, bytearray, np.ndarray]
    assert loaded[:2] == value[:2]


class Buffered:
    """Pickles its memory as a buffer, and counts on the type that an ordinary load makes of one."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Buffered, (pickle.PickleBuffer(self.data),)


@pytest.mark.parametrize("mode", MODES)
def test_buffers_that_are_no_arrays_load_as_they_do_with_pickle(mode: str | None, tmp_path: Path) -> None:
    value = [Buffered(bytearray(100_000)), Buffered(b"x" * 100_000), np.ones(LARGE)]
    loaded = read(write(tmp_path / "value", value), mode)
    assert [type(item.data) for item in loaded[:2]] == [bytearray, bytes]
    assert is_same(loaded, tmp_path / "value")


# --- maps ---------------------------------------------------------------------------------------------------------


@posix
def test_what_is_written_to_a_map_stays_out_of_the_file_and_a_read_only_map_takes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "value", np.zeros(LARGE))
    before = path.read_bytes()
    mapped = read(path, "c")
    mapped[:] = 7
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="read-only"):
        read(path, "r")[0] = 1


@posix
def test_a_map_outlives_the_name_of_its_file_and_another_file_of_that_name(tmp_path: Path) -> None:
    path = write(tmp_path / "value", np.arange(LARGE))
    kept, fixed = read(path, "c"), read(path, "r")
    write(tmp_path / "other", np.zeros(LARGE, int))
    os.replace(tmp_path / "other", path)
    assert (kept == np.arange(LARGE)).all()
    assert not is_same(kept, path)
    assert not is_same(fixed, path)
    path.unlink()
    assert (kept == np.arange(LARGE)).all()


@posix
@pytest.mark.parametrize("mode", ["c", "r"])
def test_a_map_is_the_same_as_a_copy_of_its_file_and_as_another_name_of_it(mode: str, tmp_path: Path) -> None:
    path = write(tmp_path / "value", np.arange(LARGE))
    os.link(path, tmp_path / "link")
    mapped = read(path, mode)
    assert is_same(mapped, tmp_path / "link")
    (tmp_path / "copy").write_bytes(path.read_bytes())
    assert is_same(mapped, tmp_path / "copy")


@posix
@pytest.mark.parametrize("change", ["dtype", "shape", "flag", "part", "fields"])
def test_a_map_that_looks_different_now_is_not_the_same_though_no_byte_changed(change: str, tmp_path: Path) -> None:
    path = write(tmp_path / "value", np.zeros(LARGE, [("a", "i8")] if change == "fields" else "i8"))
    value = read(path, "c")
    if change == "dtype":
        value = value.view("f8")
    elif change == "shape":
        value = value.reshape(2, -1)
    elif change == "flag":
        value.flags.writeable = False
    elif change == "part":
        value = value[1:]
    else:
        value.dtype.names = ("b",)
    assert not is_same(value, path)


def page_map_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "_page_map_tells", lambda: False)


def page_map_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(page: int, count: int) -> bytes:
        raise PermissionError("hidden")

    monkeypatch.setattr(maps, "_flags", fail)


def page_map_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert maps._page_map_tells() or not sys.platform.startswith("linux")


@posix
@pytest.mark.parametrize("system", [page_map_seen, page_map_hidden, page_map_fails])
@pytest.mark.parametrize("index", [0, 1, LARGE // 2, LARGE - 1])
def test_a_write_to_a_map_is_noticed_whatever_the_system_tells(
    system: Callable[[pytest.MonkeyPatch], None], index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system(monkeypatch)
    for wrap in (lambda array: array, lambda array: {"a": np.ones(LARGE), "x": array}):
        path = write(tmp_path / "value", wrap(np.zeros(LARGE)))
        loaded = read(path, "c")
        assert is_same(loaded, path)
        array = loaded if isinstance(loaded, np.ndarray) else loaded["x"]
        array[index] = 1
        assert not is_same(loaded, path)
        array[index] = 0
        assert is_same(loaded, path)


@linux
def test_an_unwritten_map_is_known_to_be_the_same_without_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "value", [np.zeros(LARGE), np.ones(LARGE)])
    loaded = read(path, "c")
    assert loaded[0].sum() == 0  # looked at, so its pages are present
    compared: list[int] = []
    compare = maps.equal

    def counting(one: memoryview, other: memoryview) -> bool:
        compared.append(one.nbytes)
        return compare(one, other)

    monkeypatch.setattr(maps, "equal", counting)
    assert is_same(loaded, path)
    assert not compared
    loaded[1][5] = 1
    assert is_same(loaded, path)
    assert 0 < sum(compared) <= maps.mmap.PAGESIZE


@linux
def test_a_page_map_of_zeros_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert maps._page_map_tells.__wrapped__()
    monkeypatch.setattr(maps, "_flags", lambda page, count: bytes(count))
    assert not maps._page_map_tells.__wrapped__()


@linux
def test_a_forked_child_sees_its_own_writes_and_the_parent_does_not(tmp_path: Path) -> None:
    path = write(tmp_path / "value", np.zeros(LARGE))
    mapped = read(path, "c")
    assert is_same(mapped, path)
    child = os.fork()
    if not child:
        code = 1
        try:
            before = is_same(mapped, path)
            mapped[3] = 1
            code = 0 if before and not is_same(mapped, path) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert is_same(mapped, path)


def run(script: str, *arguments: object) -> str:
    """What a script prints in a process of its own."""
    head = "import sys\nimport numpy as np\nfrom chest import arrays, maps\n"
    root = str(Path(arrays.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return done.stdout.strip()


@posix
def test_three_thousand_mapped_arrays_live_with_a_thousand_descriptors(tmp_path: Path) -> None:
    path = write(tmp_path / "value", np.arange(8192.0))
    script = """
        import os, resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        kept = []
        for _ in range(3000):
            with open(sys.argv[1], "rb", buffering=0) as file:
                kept.append(arrays.load(file, "c"))
        assert all(array[8191] == 8191 for array in kept)
        mapped = sum(maps.place(array) is not None for array in kept)
        left = [os.open(sys.argv[1], os.O_RDONLY) for _ in range(500)]
        del kept
        with open(sys.argv[1], "rb", buffering=0) as file:
            again = maps.place(arrays.load(file, "c")) is not None
        print(mapped, again)
    """
    mapped, again = run(script, path).split()
    assert int(mapped) == 3000 if sys.version_info >= (3, 13) else int(mapped) >= 100
    assert again == "True"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts memory as Linux does")
@pytest.mark.parametrize("order", ["C", "F"])
def test_no_copy_of_an_array_is_made_when_it_is_dumped_compared_or_mapped(order: str, tmp_path: Path) -> None:
    script = """
        import resource
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        array = np.ones((256, 2**17), order=sys.argv[2])
        before = peak()
        with open(sys.argv[1], "xb", buffering=0) as file:
            arrays.dump({"x": array}, file)
        dumped = peak()
        del array
        with open(sys.argv[1], "rb", buffering=0) as file:
            value = arrays.load(file)
        loaded = peak()
        print(dumped - before, loaded - before)
    """
    dumped, loaded = map(float, run(script, tmp_path / "value", order).split())
    assert dumped < 64
    assert loaded < 64


# --- files of every kind ------------------------------------------------------------------------------------------


class Miser(io.RawIOBase):
    """A raw file that takes a few bytes at a time."""

    def __init__(self) -> None:
        self.taken = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.taken += bytes(data[:1000])
        return min(len(data), 1000)


def test_every_kind_of_file_gets_the_same_bytes(tmp_path: Path) -> None:
    value = {"x": np.arange(LARGE), "text": "t" * 70_000}
    expected = write(tmp_path / "raw", value).read_bytes()
    with open(tmp_path / "buffered", "wb") as file:
        arrays.dump(value, file)
    memory, miser = io.BytesIO(), Miser()
    arrays.dump(value, memory)
    arrays.dump(value, miser)  # type: ignore[arg-type]
    with gzip.open(tmp_path / "gzip", "wb") as packed:
        arrays.dump(value, packed)  # type: ignore[arg-type]
    assert (tmp_path / "buffered").read_bytes() == memory.getvalue() == miser.taken == expected
    assert gzip.decompress((tmp_path / "gzip").read_bytes()) == expected


@pytest.mark.parametrize("mode", MODES)
def test_values_are_loaded_and_compared_in_every_kind_of_file(mode: str | None, tmp_path: Path) -> None:
    value = {"x": np.arange(LARGE), "y": 1}
    path = write(tmp_path / "value", value)
    (tmp_path / "gzip").write_bytes(gzip.compress(path.read_bytes()))
    openers: list[Callable[[], Any]] = [
        lambda: io.BytesIO(path.read_bytes()),
        lambda: gzip.open(tmp_path / "gzip", "rb"),
        lambda: open(path, "rb"),
        lambda: open(path, "r+b"),
    ]
    for opener in openers:
        with opener() as file:
            loaded = arrays.load(file, mode)
            assert not file.closed
        with opener() as file:
            assert arrays.same(loaded, file)
        if loaded["x"].flags.writeable:
            loaded["x"][-1] += 1
            with opener() as file:
                assert not arrays.same(loaded, file)


class Undumpable:
    def __getstate__(self) -> Any:
        raise TypeError("not this one")


def test_an_undumpable_value_raises_its_own_error_and_a_text_file_raises_too(tmp_path: Path) -> None:
    with open(tmp_path / "text", "w") as file, pytest.raises(TypeError, match="not this one"):
        arrays.dump(Undumpable(), file)  # type: ignore[arg-type]
    with open(tmp_path / "text", "w") as file, pytest.raises(TypeError):
        arrays.dump(1, file)  # type: ignore[arg-type]
    path = write(tmp_path / "value", 1)
    with pytest.raises(TypeError, match="not this one"):
        is_same(Undumpable(), path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_ordinary_pickles_of_every_protocol_load_and_are_the_same(protocol: int, tmp_path: Path) -> None:
    value = {"x": np.arange(LARGE), "y": "text", "z": [1, 2.5, None]}
    path = tmp_path / "value"
    path.write_bytes(pickle.dumps(value, protocol))
    for mode in MODES:
        loaded = read(path, mode)
        assert (loaded["x"] == value["x"]).all()
        assert loaded["y"] == "text"
        assert is_same(loaded, path)
    loaded["x"] = loaded["x"] + 1
    assert not is_same(loaded, path)


def test_every_file_begins_with_the_mark_and_other_pickles_do_not(tmp_path: Path) -> None:
    for value in (None, "x" * 100_000, np.zeros(3), np.zeros(LARGE), b"x" * 70_000):
        data = write(tmp_path / "value", value).read_bytes()
        assert arrays.marked(data[: len(arrays.MARK)])
        assert not arrays.marked(pickle.dumps(value, 5))


def torn_lengths(path: Path) -> Iterator[int]:
    """Every length outside of the arrays, and some inside."""
    inside = {at for note in notes(path) for at in range(note.begin() + 1, note.begin() + note.size)}
    size = path.stat().st_size
    return (at for at in range(size) if at not in inside or at % 4099 == 0)


@pytest.mark.parametrize(
    "value", [{"x": [1, 2, "three"], "y": np.arange(5)}, [np.arange(9000.0), "between", np.ones(9000), "after"]]
)
def test_a_torn_file_raises_or_is_whole_up_to_its_note_but_never_gives_another_value(
    value: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / "value", value)
    data = path.read_bytes()
    stop = data.index(b".", notes(path)[-1].begin() + notes(path)[-1].size) if notes(path) else len(data) - 1
    lengths = sorted(torn_lengths(path), reverse=True)
    for length in lengths:
        os.truncate(path, length)
        for mode in MODES:
            if length > stop:
                assert pickle.dumps(read(path, mode)) == pickle.dumps(pickle.loads(data))
            else:
                with pytest.raises((EOFError, pickle.UnpicklingError)):
                    read(path, mode)


@posix
@pytest.mark.parametrize("where", ["padding", "header"])
@pytest.mark.parametrize("name", ["dict", "long stream"])
def test_a_note_that_does_not_fit_the_pickle_raises(where: str, name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "value", VALUES[name]())
    note = notes(path)[-1]
    data = bytearray(path.read_bytes())
    data[note.start if where == "padding" else note.begin() - 1] ^= 1
    path.write_bytes(data)
    for mode in MODES:
        with pytest.raises((EOFError, pickle.UnpicklingError)):
            read(path, mode)


@posix
def test_any_flipped_bit_in_the_note_makes_it_no_note(tmp_path: Path) -> None:
    path = write(tmp_path / "value", [np.arange(9000), 5])
    data = path.read_bytes()
    end = notes(path)[0].begin() + notes(path)[0].size
    for at in range(data.index(b".", end) + 1, len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        assert notes(path) == []
        assert (read(path, "c")[0] == np.arange(9000)).all()


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="mmap_mode"):
        arrays.load(io.BytesIO(), "w+")


def test_a_file_that_holds_more_or_less_than_the_value_is_not_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "value", [np.ones(LARGE), 1])
    assert not is_same([np.ones(LARGE)], path)
    assert not is_same([np.ones(LARGE), 1, 2], path)
    assert not is_same([np.ones(LARGE + 1), 1], path)
    path.write_bytes(b"")
    assert not is_same([np.ones(LARGE), 1], path)


# --- what can change ----------------------------------------------------------------------------------------------


class Number(float):
    """A number that can hold attributes."""


def read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


CANNOT = [1, 1.5, 2j, True, None, "s", b"b", ..., (), (1, ("a", (None,))), frozenset([1, "a"])]
CANNOT += [np.float64(1), np.int8(1), np.bool_(True), np.datetime64(1, "s"), np.str_("a")]
CANNOT += [read_only(np.zeros(3)), read_only(np.zeros(3))[1:], np.frombuffer(b"12345678"), (read_only(np.ones(2)),)]
CAN: list[Any] = [[], {}, set(), bytearray(), object(), Number(1), (1, []), (((((1,),),),),), np.zeros(3), np.zeros(())]
CAN += [read_only(np.zeros(3)[:]), read_only(np.array([[]], dtype=object)), (np.zeros(2),), np.zeros(1, "i4,f4")[0]]
CAN += [read_only(np.frombuffer(bytearray(8))), np.ma.masked_array([1]), tuple(range(1000))]


@pytest.mark.parametrize("value", CANNOT, ids=repr)
def test_what_cannot_change_in_place_is_known(value: Any) -> None:
    assert arrays.can_change(value) is False


@pytest.mark.parametrize("value", CAN, ids=lambda value: repr(value)[:30])
def test_whatever_else_can_change(value: Any) -> None:
    assert arrays.can_change(value) is True


@posix
def test_a_loaded_array_can_change_unless_it_is_read_only(tmp_path: Path) -> None:
    path = write(tmp_path / "value", np.zeros(LARGE))
    assert [arrays.can_change(read(path, mode)) for mode in MODES] == [True, True, False]
    path = write(tmp_path / "fixed", read_only(np.zeros(LARGE)))
    assert [arrays.can_change(read(path, mode)) for mode in MODES] == [False, False, False]
