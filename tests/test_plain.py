"""Plain arrays that are made without the unpickler: what is remembered of one must be true of all that look like it."""
from __future__ import annotations

import io
import os
import pickle

import pytest

np = pytest.importorskip("numpy")

from chest import Chest, aligned, arrays, plain  # noqa: E402

N = 20_000  # items: enough to be a buffer of its own

ARRAYS = {
    "floats": lambda: np.arange(N, dtype="f8"),
    "ints of two axes": lambda: np.arange(N, dtype="i4").reshape(100, -1),
    "columns first": lambda: np.asfortranarray(np.arange(N, dtype="f4").reshape(100, -1)),
    "an axis of one": lambda: np.asfortranarray(np.arange(N, dtype="f8").reshape(1, -1)),
    "another axis of one": lambda: np.arange(N, dtype="f8").reshape(-1, 1),
    "big-endian": lambda: np.arange(N, dtype=">f8"),
    "dates": lambda: np.arange(N).astype("M8[D]"),
    "bools": lambda: np.arange(5 * N) % 3 == 0,
    "complex": lambda: np.arange(N) * 1j,
    "texts": lambda: np.array([f"text{n}" for n in range(N)]),
    "read-only": lambda: np.frombuffer(np.arange(N, dtype="f8").tobytes()),
    "fields": lambda: np.zeros(N, [("a", "f8"), ("b", "i2")]),
    "a matrix": lambda: np.arange(N, dtype="f8").reshape(100, -1).view(np.matrix),
}


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(plain, "_known", {})


def saved(value, path):
    with open(path, "wb", buffering=0) as file:
        arrays.dump(value, file)


def loaded(path, mode):
    with open(path, "rb", buffering=0) as file:
        return arrays.load(file, mode)


def look(array):
    return (type(array), array.dtype, array.shape, array.strides, array.flags.c_contiguous, array.flags.f_contiguous,
            array.flags.writeable, array.flags.aligned, array.tobytes())


@pytest.mark.parametrize("mode", [None, "c", "r"])
@pytest.mark.parametrize("name", ARRAYS)
def test_the_second_load_gives_what_the_first_gave(name, mode, tmp_path):
    value = ARRAYS[name]()
    saved(value, tmp_path / "one")
    twin = value[::-1].copy() if value.ndim == 1 else value
    twin.flags.writeable = value.flags.writeable
    saved(twin, tmp_path / "two")
    first, second, other = (loaded(tmp_path / which, mode) for which in ("one", "one", "two"))
    assert look(first) == look(second)
    assert look(first)[:-1] == look(other)[:-1]
    assert (second == value).all()
    with open(tmp_path / "two", "rb") as file:
        assert (other == pickle.load(file)).all()


def test_what_is_remembered_is_not_unpickled_again(tmp_path, monkeypatch):
    for n in range(2):
        saved(np.full(N, float(n)), tmp_path / str(n))
    loaded(tmp_path / "0", None)
    monkeypatch.setattr(plain, "_Watched", None)
    monkeypatch.setattr(plain.pickle, "loads", None)
    assert (loaded(tmp_path / "1", None) == 1).all()


class Registered:
    """Leaves a trace when it is loaded, and is an array by then."""

    def __init__(self, array):
        self.array = array

    def __reduce__(self):
        return register, (self.array,)


SEEN = []


def register(array):
    SEEN.append(array)
    return array


@pytest.mark.parametrize("name", ["fields", "a matrix", "registered", "in a list"])
def test_what_is_more_than_a_plain_array_is_not_remembered(name, tmp_path):
    array = np.arange(N, dtype="f8")
    value = {"registered": Registered(array), "in a list": [array]}.get(name) or ARRAYS[name]()
    saved(value, tmp_path / "x")
    before = len(SEEN)
    for _ in range(2):
        loaded(tmp_path / "x", None)
    assert plain._known == {}
    assert len(SEEN) - before == (2 if name == "registered" else 0)


def test_kinds_of_arrays_without_end_take_no_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(plain, "_MOST", 3)
    for n in range(10):
        saved(np.zeros(N + n), tmp_path / "x")
        assert len(loaded(tmp_path / "x", None)) == N + n
        assert 0 < len(plain._known) <= 3


def test_a_file_that_ends_too_early_is_an_error_also_for_a_kind_that_is_known(tmp_path):
    saved(np.arange(N, dtype="f8"), tmp_path / "x")
    loaded(tmp_path / "x", None)
    data = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(data[: len(data) // 2])
    with pytest.raises((EOFError, pickle.UnpicklingError)):
        loaded(tmp_path / "x", None)
    with pytest.raises((EOFError, pickle.UnpicklingError)):
        arrays.load(io.BytesIO(data[: len(data) // 2]))


# What a file says is remembered too, of a chest's files.


def read_again(path, mode, monkeypatch):
    """The value in the file, as a chest loads it, and how often the system was asked for bytes beside the array's."""
    reads = []
    real = os.pread
    with monkeypatch.context() as patch, open(path, "rb", buffering=0) as file:
        patch.setattr(os, "pread", lambda *args: reads.append(args) or real(*args))
        value = arrays.load(file, mode, status=os.fstat(file.fileno()))
    return value, len(reads)


@pytest.fixture
def nothing_remembered(monkeypatch):
    monkeypatch.setattr(aligned, "_remembered", {})
    return monkeypatch


@pytest.mark.parametrize("mode", [None, "c", "r"])
@pytest.mark.parametrize("name", ARRAYS)
def test_a_file_that_was_loaded_before_is_asked_for_its_array_only(name, mode, tmp_path, nothing_remembered):
    values = ARRAYS[name](), {"a": ARRAYS[name](), "b": [ARRAYS[name]()]}
    for value in values:
        saved(value, tmp_path / "one")
        first, asked = read_again(tmp_path / "one", mode, nothing_remembered)
        again, not_asked = read_again(tmp_path / "one", mode, nothing_remembered)
        with open(tmp_path / "one", "rb", buffering=0) as file:
            laid_out = aligned.read_layout(file) is not None  # dates, and subclasses, are pickled by copy
        assert asked and (not not_asked or not laid_out)
        if value is values[0]:
            assert look(first) == look(again)
        else:
            assert [look(first["a"]), look(first["b"][0])] == [look(again["a"]), look(again["b"][0])]
        os.unlink(tmp_path / "one")


def test_another_file_of_the_same_name_and_size_is_another(tmp_path, nothing_remembered):
    c = Chest(path=tmp_path / "c", mmap_mode="c")
    for turn in range(5):
        c["x"] = np.arange(N, dtype="f8" if turn % 2 else "i8")
        expected = look(c["x"])
        c.flush()
        for _ in range(2):  # nobody holds it, so it is loaded each time
            misses = c.stats.misses
            assert look(c["x"]) == expected
            assert c.stats.misses > misses
            c.move_to_disk("x")


def test_files_that_nobody_vouches_for_are_not_remembered(tmp_path, nothing_remembered):
    for kind in ("f8", "i8"):
        saved(np.arange(N, dtype=kind), tmp_path / "x")
        assert loaded(tmp_path / "x", "c").dtype == kind
    assert not aligned._remembered


def test_no_more_is_remembered_than_is_worth_it(tmp_path, nothing_remembered):
    nothing_remembered.setattr(aligned, "_MOST_REMEMBERED", 3)
    c = Chest(path=tmp_path / "c")
    for n in range(7):
        c[n] = np.arange(float(N))
    c["much beside it"] = [np.arange(float(N)), list(range(10_000))]
    c.flush()
    for key in c:
        c[key]
    assert 0 < len(aligned._remembered) <= 3
