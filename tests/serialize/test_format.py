"""What a value's file looks like: an ordinary pickle with aligned arrays and a note that proves damage."""
from __future__ import annotations

import io
import os
import pickle
import random

import pytest
from children import python

from chest.errors import DamagedError, LoadError
from chest.serialize import Codec, aligned, load
from chest.serialize.aligned import read_layout

np = pytest.importorskip("numpy")

N = 20_000  # items of eight bytes: enough to be a buffer of its own
SMALL = [None, 5, "text", {"a": [1, 2.5], "b": ("x", b"y")}, list(range(1000)), np.arange(10.0)]
SOME = {"dict": SMALL[3], "array": np.arange(N), "dict of arrays": {"x": np.arange(N), "y": np.ones((N, 2)), "z": [np.arange(3), "end"]}}


def content(value, **settings):
    encoded = Codec(**settings).encode(value)
    return b"".join([*encoded.pieces, encoded.note()])


def from_file(path, mode, owner=0, **settings):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return Codec(mmap_mode=mode, **settings).load_file(descriptor, os.fstat(descriptor), owner)
    finally:
        os.close(descriptor)


def alike(one, other):
    if isinstance(one, np.ndarray):
        return (type(one), one.dtype, one.shape, one.strides) == (type(other), other.dtype, other.shape, other.strides) \
            and _pickled(np.ascontiguousarray(one)) == _pickled(np.ascontiguousarray(other))
    return _pickled(one) == _pickled(other)


def _pickled(value):
    return pickle.dumps(value, 4)  # in the later ones an array that is read only is told from one that is not


def test_an_array_is_not_copied_when_it_is_encoded_and_views_of_a_loaded_one_keep_it(tmp_path):
    value, dates = np.arange(N, dtype="f8"), np.arange(N).astype("M8[s]")
    for encoded, array in (Codec().encode(value), value), (Codec().encode([dates]), dates):
        assert any(isinstance(piece, memoryview) and np.shares_memory(np.frombuffer(piece, "u1"), array)
                   for piece in encoded.pieces)
    (tmp_path / "value").write_bytes(content(value))
    for mode in ("c", None):
        loaded, _ = from_file(tmp_path / "value", mode)
        assert loaded[5:].base is loaded and np.asarray(loaded) is loaded
    loaded, _ = from_file(tmp_path / "value", None)
    assert loaded.flags.owndata


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="links are followed on this system")
def test_a_load_of_the_users_own_follows_no_link_and_does_not_hang_at_a_pipe(tmp_path):
    (tmp_path / "target").write_bytes(pickle.dumps(1))
    os.symlink("target", tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    for name in "link", "pipe":
        with pytest.raises(OSError):
            Codec(load=pickle.load).load_from(str(tmp_path / name))


def test_a_bytearray_that_changes_while_it_is_written_is_no_damaged_file():
    value, written = bytearray(1 << 20), []

    def write(pieces):
        value[7] = 7  # as another thread does, behind the checksum
        written.extend(map(bytes, pieces))

    encoded = Codec().encode({"x": value}, write)
    found = Codec().decode_file(b"".join([*written, *encoded.pieces, encoded.note()]))[0]["x"]
    assert found in (value, bytearray(1 << 20))


def test_pieces_are_passed_on_before_they_are_too_many():
    value = {n: "x" * 1000 + str(n) for n in range(40_000)}
    value["text"], value["bytes"] = "t" * 9_000_000, b"b" * 9_000_000
    passed = []
    encoded = Codec().encode(value, lambda pieces: passed.append(b"".join(pieces)))
    rest = b"".join(encoded.pieces)
    assert max(map(len, passed)) < 20_000_000 and len(rest) < 10_000_000
    data = b"".join([*passed, rest, encoded.note()])
    assert len(data) == encoded.nbytes + len(encoded.note())
    assert pickle.loads(data) == value == load(io.BytesIO(data))


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOME)
def test_any_flipped_bit_is_noticed(name, tmp_path):
    data = content(SOME[name], durable=True)
    path, draw = tmp_path / "value", random.Random(7)
    ends = [*range(400), *range(len(data) - 400, len(data))] if len(data) > 800 else range(len(data))
    for at in [*ends, *draw.choices(range(len(data)), k=300)]:
        torn = bytearray(data)
        torn[at] ^= 1 << draw.randrange(8)
        path.write_bytes(torn)
        with pytest.raises(DamagedError):
            from_file(path, None)
        descriptor = os.open(path, os.O_RDONLY)
        with pytest.raises(DamagedError):
            read_layout(descriptor, len(torn)).verify(descriptor)
        os.close(descriptor)


@pytest.mark.parametrize("name", SOME)
def test_a_file_of_another_key_is_damaged_and_one_that_names_no_key_is_not(name, tmp_path):
    value = SOME[name]
    encoded, path = Codec().encode(value), tmp_path / "value"
    for written, asked in (0, 0), (7, 0), (0, 7), (7, 7):
        path.write_bytes(b"".join([*encoded.pieces, encoded.note(written)]))
        assert alike(from_file(path, "auto", asked)[0], value)
    with pytest.raises(DamagedError, match="another key"):
        from_file(path, "auto", 8)


def test_opcodes_are_covered_without_durable_too_and_in_maps(tmp_path):
    value = np.arange(N)
    data, path = content(value), tmp_path / "value"
    begin = data.index(value.tobytes())
    for at in [*range(begin), *range(begin + value.nbytes, len(data))]:
        path.write_bytes(data[:at] + bytes((data[at] ^ 16,)) + data[at + 1 :])
        for mode in ("c", None):
            with pytest.raises(DamagedError):
                from_file(path, mode)


@pytest.mark.parametrize("value", [[b"x" * 200_000, "y" * 99_999], [np.arange(N), b"x" * 200_000]], ids=["bytes", "array"])
def test_opcodes_of_more_bytes_than_the_system_reads_at_once_come_back(value, tmp_path, monkeypatch):
    pread = aligned.pread
    monkeypatch.setattr(aligned, "AT_ONCE", 60_000, raising=False)
    monkeypatch.setattr(aligned, "pread", lambda descriptor, size, at: pread(descriptor, min(size, 60_000), at))
    path = tmp_path / "value"
    path.write_bytes(content(value))
    for mode in ("c", None):
        assert alike(from_file(path, mode)[0], value)


@pytest.mark.parametrize("value", [SMALL[3], {"x": np.arange(N), "more": list(range(20_000))}], ids=["small", "large"])
def test_a_file_that_is_cut_off_or_ends_in_zeros_is_damaged(value, tmp_path):
    data, path = content(value), tmp_path / "value"
    for length in range(0, len(data), 1 if len(data) < 1000 else 997):
        for torn in (data[:length], data[:length] + bytes(len(data) - length)):
            path.write_bytes(torn)
            with pytest.raises(DamagedError):
                from_file(path, "c")


class Gone:
    def __reduce__(self):
        return eval, ("1 / 0",)


def test_pickles_of_others_load_and_their_errors_are_their_own(tmp_path):
    path = tmp_path / "value"
    for value in ({"a": 1}, [np.arange(N), "x"], list(range(100_000))):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            path.write_bytes(pickle.dumps(value, protocol))
            assert alike(from_file(path, "c")[0], pickle.loads(path.read_bytes()))
    path.write_bytes(b"no pickle at all")
    with pytest.raises(pickle.UnpicklingError):
        from_file(path, None)
    for value in (Gone(), [Gone(), np.arange(N)]):
        path.write_bytes(content(value))
        with pytest.raises(ZeroDivisionError):
            from_file(path, "c")


@pytest.mark.parametrize("wrap", [lambda array: array, lambda array: {"x": array}], ids=["array", "inside"])
@pytest.mark.parametrize("mode", ["auto", "c", "r", None])
@pytest.mark.parametrize(("value", "code", "wrong"), [(["text"] * 100_000, "u4", 0x110000), ([True] * 1_000_000, "u1", 2)],
                         ids=["texts", "truths"])
def test_a_strangers_texts_and_truths_that_cannot_be_are_refused(mode, wrap, value, code, wrong, tmp_path):
    path = tmp_path / "value"
    for array in np.array(value), np.asfortranarray(np.array(value).reshape(100, -1)):
        path.write_bytes(content(wrap(array)))
        assert alike(from_file(path, mode, trusted=False)[0], wrap(array))
        array.ravel("K").view(code)[-1] = wrong
        path.write_bytes(content(wrap(array)))
        with pytest.raises(LoadError, match="characters|truths"):
            from_file(path, mode, trusted=False)


# --- versions of numpy -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.arange(10.0), {"a": np.ones(N)}, np.float64(2), list(np.arange(9000.0))],
                         ids=["small", "inside", "scalar", "scalars"])
def test_a_plain_array_has_no_name_that_one_numpy_lacks_and_names_of_the_other_are_found(value, tmp_path):
    floats = np.arange(N, dtype="f8")
    for array in floats, floats.reshape(100, -1), floats.astype("M8[ns]"), floats.astype(str), np.frombuffer(floats.tobytes()):
        assert b"numpy.core" not in content(array) and b"_core" not in content(array)
    mine, other = sorted((b"numpy.core", b"numpy._core"), key=lambda name: name not in pickle.dumps(np.float64(1)))
    code = """if True:
        import os, sys
        sys.modules[sys.argv[2]] = None  # so that its import fails
        from chest.serialize import Codec
        descriptor = os.open(sys.argv[1], os.O_RDONLY)
        print(type(Codec().load_file(descriptor, os.fstat(descriptor))[0]).__name__)
    """
    data = pickle.dumps(value, 2).replace(mine + b".", other + b".")
    (tmp_path / "value").write_bytes(data)
    assert python(code, tmp_path / "value", other.decode(), stderr=None).strip() == type(value).__name__
