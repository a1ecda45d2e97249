"""The default dump and load: ordinary pickles with aligned arrays, and noticing what changed."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import pickletools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from arrayvalues import (
    LARGE,
    MAPPED,
    MODES,
    VALUES,
    drawn_arrays,
    equal,
    hypothesis,
    is_same,
    map_of,
    notes,
    np,
    posix,
    quick,
    read,
    run,
    write,
)

from chest import Chest, arrays


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("arrays") / "value"


@quick
@hypothesis.given(array=drawn_arrays())
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
@hypothesis.given(array=drawn_arrays())
def test_an_array_that_did_not_change_is_the_same_when_just_dumped_and_when_loaded(array: Any, place: Path) -> None:
    path = write(place, array)
    assert is_same(array, path)
    for mode in MODES:
        assert is_same(read(path, mode), path)
        assert is_same([read(path, mode)], write(place.with_name("list"), [array]))


@quick
@hypothesis.given(
    array=drawn_arrays(),
    mode=hypothesis.strategies.sampled_from([None, "c"]),
    where=hypothesis.strategies.floats(0, 1, exclude_max=True),
)
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


# --- values that hold arrays ----------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("mode", MODES)
def test_bytes_and_bytearrays_stay_what_they_are(mode: str | None, tmp_path: Path) -> None:
    value = [b"x" * 100_000, bytearray(b"y" * 100_000), np.ones(LARGE)]
    loaded = read(write(tmp_path / "value", value), mode)
    assert [type(item) for item in loaded] == [bytes, bytearray, np.ndarray]
    assert loaded[:2] == value[:2]


def test_a_memory_mapped_input_is_dumped_as_the_array_that_it_shows(tmp_path: Path) -> None:
    shown = np.memmap(tmp_path / "input", dtype="f8", mode="w+", shape=(LARGE,))
    shown[:] = 7
    path = write(tmp_path / "value", {"x": shown})
    assert is_same({"x": shown}, path)
    shown[5] = 8
    assert not is_same({"x": shown}, path)
    for mode in MODES:
        loaded = read(path, mode)
        assert (loaded["x"] == 7).all()
        assert is_same(loaded, path)


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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts memory as Linux does")
@pytest.mark.parametrize("order", ["C", "F"])
def test_no_copy_of_an_array_is_made_when_it_is_dumped_compared_or_loaded(order: str, tmp_path: Path) -> None:
    script = """
        import resource
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        array = np.ones((256, 2**17), order=sys.argv[2])
        before = peak()
        with open(sys.argv[1], "xb", buffering=0) as file:
            arrays.dump({"x": array}, file)
        dumped = peak()
        with open(sys.argv[1], "rb", buffering=0) as file:
            assert arrays.same({"x": array}, file)
        compared = peak()
        del array
        with open(sys.argv[1], "rb", buffering=0) as file:
            value = arrays.load(file)
        loaded = peak()
        print(dumped - before, compared - before, loaded - before)
    """
    dumped, compared, loaded = map(float, run(script, tmp_path / "value", order).split())
    assert dumped < 64
    assert compared < 64
    assert loaded < 64


# --- files of every kind --------------------------------------------------------------------------------------------


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
        lambda: open(path, "rb", buffering=0),
        lambda: open(path, "r+b"),
    ]
    for opener in openers:
        with opener() as file:
            loaded = arrays.load(file, mode)
            assert not file.closed
        with opener() as file:
            assert arrays.same(loaded, file)
            assert not file.closed
        if loaded["x"].flags.writeable:
            loaded["x"][-1] += 1
            with opener() as file:
                assert not arrays.same(loaded, file)


def test_a_raw_file_stays_open_when_it_is_read_through_a_buffer(tmp_path: Path) -> None:
    path = write(tmp_path / "value", ["small"])
    with open(path, "rb", buffering=0) as file:
        assert arrays.load(file) == ["small"]
        file.seek(0)
        assert arrays.same(["small"], file)
        assert not file.closed


def test_a_value_of_very_many_pieces_is_written_whole(tmp_path: Path) -> None:
    value = [bytes([i % 256]) * 65_536 for i in range(700)]
    assert pickle.loads(write(tmp_path / "value", value).read_bytes()) == value


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


def test_a_file_of_the_user_s_is_given_bytes_first_as_pickle_promises():
    class Strict(io.BytesIO):
        def write(self, data):
            assert isinstance(data, bytes)
            return super().write(data)

    file = Strict()
    arrays.dump(["x"] * 10, file)
    assert pickle.loads(file.getvalue()) == ["x"] * 10


def test_an_unchanged_short_array_is_not_written_again_where_files_cannot_be_sought(path):
    class Forward(io.RawIOBase):
        def __init__(self, path):
            self.file = open(path, "rb", buffering=0)

        def readable(self):
            return True

        def readinto(self, buffer):
            return self.file.readinto(buffer)

        def close(self):
            self.file.close()
            super().close()

    def opened(path, mode="rb"):
        return io.BufferedReader(Forward(path)) if "r" in mode else open(path, mode)

    with Chest(path=path, open=opened) as c:
        c["x"] = np.arange(10.0)
    c = Chest(path=path, open=opened)
    c["x"].sum()
    c.flush()
    assert c.stats.bytes_written == 0
