"""The kind of a value is told right from its bytes or not at all, whatever they are, and in little time."""
import bz2
import collections
import datetime
import decimal
import gzip
import io
import json
import lzma
import pickle
import struct
import time
import uuid
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chest.cli.describe import HEAD, MOST, kind
from chest.serialize import dump


def kind_of(data):
    return kind(io.BytesIO(data), len(data))


class Plain:
    pass


VALUES = {
    "int": 1, "bool": True, "float": 1.5, "None": None, "complex": 1 + 2j, "str 3": "abc", "list 5": [1] * 5,
    "dict 1": {1: [2, 3]}, "tuple 0": (), "tuple 2": ([1], {}), "tuple 5": (1, 2, 3, 4, 5), "Plain": Plain(),
    "datetime": datetime.datetime(2020, 1, 1), "UUID": uuid.UUID(int=1), "Decimal": decimal.Decimal(1),
    "deque": collections.deque([1]), "range": range(3), "OrderedDict": collections.OrderedDict(a=1)}


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("expected", VALUES)
def test_pickles_of_all_protocols(expected, protocol):
    assert kind_of(pickle.dumps(VALUES[expected], protocol)) == expected


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("shape", [(3, 4), (300, 400), ()])
def test_arrays_tell_type_and_shape_however_large(protocol, shape):
    np = pytest.importorskip("numpy")
    for dtype, word in (("f8", "float64"), ("?", "bool"), ("u2", "uint16"), ("M8[ns]", "datetime64"), ("i4,f8", "V12")):
        assert kind_of(pickle.dumps(np.zeros(shape, dtype), protocol)) == f"ndarray {word} {shape}"


def test_a_large_array_of_a_compressed_chest_is_told_from_its_beginning():
    np = pytest.importorskip("numpy")
    file = io.BytesIO()
    dump(np.random.default_rng(0).random((300, 400)), file)
    assert kind_of(gzip.compress(file.getvalue())) == "ndarray float64 (300, 400) (gzip)"


def test_of_what_is_long_the_length_is_told_or_a_lower_bound_and_no_first_part_is_taken_for_the_value():
    assert kind_of(pickle.dumps(bytes(10**6))) == "bytes 1000000"
    assert kind_of(pickle.dumps("x" * 10**6)) == "str of 1000000 bytes"
    for value in (list(range(10**5)), dict.fromkeys(range(10**5)), set(range(10**5))):
        name, bound = kind_of(pickle.dumps(value)).split(" ")
        assert (name, bound[-1]) == (type(value).__name__, "+")
        assert MOST / 4 < int(bound[:-1]) < 10**5
    for value in ((list(range(10**5)), 1), ({n: n for n in range(10**4)}, [], 2), tuple(range(10**5))):
        assert kind_of(pickle.dumps(value)) == "unknown"


@pytest.mark.parametrize("pack", [gzip, bz2, lzma, zlib], ids=lambda module: module.__name__)
def test_compressed_values_are_looked_into(pack):
    name = {"lzma": "xz"}.get(pack.__name__, pack.__name__)
    assert kind_of(pack.compress(pickle.dumps([1, 2]))) == f"list 2 ({name})"
    assert kind_of(pack.compress(b"PAR1 and more")) == f"parquet ({name})"
    assert kind_of(pack.compress(bytes(10**7))).startswith("unknown")  # a bomb
    assert kind_of(pack.compress(pickle.dumps([1, 2]))[:8]) .startswith("unknown")


@pytest.mark.parametrize(("value", "expected"), [
    ([1, 2], "json list 2"), ({"a": [1]}, "json dict 1"), ("abc", "json str 3"), (None, "json None"), (3, "json int"),
    (["x" * HEAD], "json list"), ({"x" * HEAD: 1}, "json dict")])
def test_json(value, expected):
    assert kind_of(json.dumps(value).encode()) == expected


@pytest.mark.parametrize(("head", "expected"), [
    (b"PAR1", "parquet"), (b"ARROW1\0\0", "arrow"), (b"FEA1", "feather"), (b"\x89HDF\r\n\x1a\n", "hdf5"),
    (b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff\xe0", "jpeg"), (b"%PDF-1.7", "pdf"), (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"SQLite format 3\0", "sqlite"), (b"", "unknown"), (b"hello world", "unknown"), (b"\0" * 100, "unknown"),
    (b"S'a\\_b'\n.", "str 4"),  # an escape that there is not is no warning
    (b"name,age\n1,2\n", "unknown"), (b"[draft] notes", "unknown"), (b".", "unknown"), (b"\x80\x05.", "unknown")])
def test_other_formats_by_their_magic_bytes_and_no_guesses(head, expected):
    assert kind_of(head) == expected
    assert kind_of(head + b" and much more" * 10**4) in (expected, "unknown")


def test_files_of_numpy_and_joblib(tmp_path):
    np, joblib = pytest.importorskip("numpy"), pytest.importorskip("joblib")
    np.save(tmp_path / "a.npy", np.zeros((3, 4), "i2"))
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    assert [kind_of((tmp_path / name).read_bytes()) for name in ("a.npy", "a.npz")] == ["npy", "zip"]
    for value, expected in ((np.zeros((30, 40)), "joblib"), ({"a": np.zeros(3)}, "joblib"), ([1, 2], "list 2")):
        for compress, more in ((0, ""), (3, " (zlib)"), (("gzip", 3), " (gzip)")):
            file = io.BytesIO()
            joblib.dump(value, file, compress=compress)
            assert kind_of(file.getvalue()) == expected + more


def frombuffer(dtype, shape=b"K\x01t"):
    return b"cnumpy.core.numeric\n_frombuffer\n(N" + dtype + b"(" + shape + b"X\x01\x00\x00\x00Ct" + b"R."


DTYPE = b"cnumpy\ndtype\n"


@pytest.mark.parametrize("data", [
    frombuffer(DTYPE + b")" + b"2\x86" * 40 + b"\x85R"),
    frombuffer(DTYPE + b"X" + struct.pack("<I", 5001) + b"f" + b"9" * 5000 + b"\x85R"),
    frombuffer(DTYPE + b"N\x85R"),
    frombuffer(DTYPE + b"X\x02\x00\x00\x00f8\x85R", b"\x8b\x00\x20\x00\x00" + b"\x7f" * 8192 + b"t"),
    b"]" * 200_000 + b"a" * 199_999 + b".",
    b"(" * 200_000 + b".",
    b"(" + b"2" * 200_000 + b".",
    b"\x80\x04Nr\xff\xff\xff\x7f.",  # a memo of 2**31
    b"\x80\x04})" + b"2\x86" * 40 + b"Ns.",  # a tuple that doubles, as a key
    b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.",  # a bytearray of 2**63
    b"L" + b"9" * 10**6 + b"L\n.",
    b"[" * 10**6,
    b'{"a":' * 10**5,
    b"\x80\x04" + b"(" * 1000 + b"K\x01" * 1000 + b"t" * 1000 + b".",
], ids=range(14))
def test_what_is_crafted_to_stall_is_told_at_once(data):
    start = time.process_time()
    found = kind_of(data)
    assert found.isprintable() and len(found) <= 63
    assert time.process_time() - start < 2


@given(st.binary(max_size=300), st.sampled_from([b"", b"\x80\x04", b"\x93NUMPY\x01\x00", b"PK\x03\x04", b"\x1f\x8b"]),
       st.data())
def test_any_bytes_and_a_pickle_with_flipped_ones_have_a_kind(data, head, more):
    whole = bytearray(pickle.dumps({"a": [1, (2, 3)], "b": {4}, "c": decimal.Decimal(5)}, more.draw(st.integers(0, 5))))
    for _ in range(3):
        whole[more.draw(st.integers(0, len(whole) - 1))] = more.draw(st.integers(0, 255))
    assert kind_of(head + data).isprintable() and kind_of(bytes(whole)).isprintable()
