"""Values of many kinds and libraries come back equal, however they are kept.

``python tests/test_zoo.py DIRECTORY`` saves those of Python and numpy; with ``CHEST_ZOO=DIRECTORY`` a test reads them,
which may run with another numpy, or another Python.
"""
from __future__ import annotations

import array
import collections
import datetime
import decimal
import enum
import fractions
import gzip
import os
import pathlib
import pickle
import sys
import uuid

import pytest

from chest import Chest

Point = collections.namedtuple("Point", "x y")


class Colour(enum.Enum):
    RED = 1


class Thing:
    def __init__(self, n):
        self.n = n

    def __eq__(self, other):
        return type(other) is Thing and other.n == self.n


PLAIN = {
    "none": None, "bool": True, "ellipsis": ..., "class": dict, "function": os.getcwd, "int": 5, "large int": 10**400, "float": 1.5, "complex": 1 + 2j,
    "text": "t" * 100, "text of any length": "ä" * 100_000,
    "bytes": b"b" * 100, "long bytes": b"b" * 300_000, "bytearray": bytearray(b"a" * 70_000), "tuple": (1, (2, "x")), "list": [1, [2, "x"]],
    "dict": {"a": {1: None}}, "set": {1, "a"}, "frozenset": frozenset([1, 2]), "range": range(1, 9, 2), "slice": [slice(1, None)],
    "deque": collections.deque([1], 3), "counter": collections.Counter("abca"), "ordered": collections.OrderedDict(b=1, a=2),
    "date and time": datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc), "decimal": decimal.Decimal("1.50"), "fraction": fractions.Fraction(1, 3),
    "uuid": uuid.UUID(int=7), "path": pathlib.PurePosixPath("a/b"), "array of the library": array.array("d", [1.5] * 20_000),
}
OF_THIS_MODULE = {"named tuple": Point(1, [2]), "enum": Colour.RED, "instance": Thing([1])}


def of_numpy():
    numpy = pytest.importorskip("numpy")
    table = numpy.zeros(5000, [("a", "i4"), ("b", "U3"), ("c", "f8", (2,))])
    return {
        "small array": numpy.arange(5), "array": numpy.arange(100_000.0), "array of 65 KiB": numpy.arange(65 * 128), "in Fortran's order": numpy.ones((300, 400)).T,
        "every other": numpy.arange(200_000)[::2], "other order of bytes": numpy.arange(50_000, dtype=">i4"), "bools": numpy.ones(300_000, bool),
        "texts": numpy.array(["abc", "d"] * 20_000), "times": numpy.arange(50_000).astype("M8[ns]"), "objects": numpy.array([1, "a", [2]], object),
        "table": table, "no axis": numpy.array(5.0), "nothing": numpy.zeros((0, 3)), "scalar": numpy.float64(1.5), "half": numpy.ones(50_000, "e"),
        "masked": numpy.ma.array([1.0, 2], mask=[0, 1]), "dict of arrays": {"x": numpy.arange(50_000), "y": [numpy.ones(3)]}, "dtype": numpy.dtype("i4"),
        "an axis of one": numpy.arange(20_000.0).reshape(-1, 1), "times of two axes": numpy.arange(20_000).astype("M8[s]").reshape(10, -1),
        "spans": numpy.arange(20_000).astype("m8[25us]"), "complex": numpy.arange(20_000) * 1j, "bytes in an array": numpy.array([b"abc", b"d"] * 20_000),
        "read only": numpy.frombuffer(bytes(160_000)), "matrix": numpy.arange(20_000.0).reshape(100, -1).view(numpy.matrix),
        "masked and large": numpy.ma.masked_array(numpy.arange(20_000), numpy.arange(20_000) % 7 == 0),
        "long text beside an array": ["ä" * 100_000, bytearray(70_000), numpy.ones(20_000)],
        "many opcodes": [list(map(float, range(400_000))), numpy.arange(20_000), dict.fromkeys(range(200_000), "x")],
    }


def of_pandas():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"n": range(20_000), "x": 1.5, "text": "abc", "time": pandas.Timestamp("2026-01-02")})
    return {
        "frame": frame, "column": frame["x"], "index": frame.index, "frame of categories": frame.astype({"text": "category"}),
        "many axes": frame.set_index(["n", "text"]), "texts with gaps": pandas.Series(["a", None] * 9000, dtype="string"),
        "integers with gaps": pandas.Series([1, None] * 9000, dtype="Int64"), "frame with zones": frame.assign(time=frame["time"].dt.tz_localize("UTC")),
        "moment": pandas.Timestamp("2026-01-02"),
    }


def of_scipy():
    sparse = pytest.importorskip("scipy.sparse")
    return {f"sparse {kind}": sparse.random(300, 300, 0.2, kind, random_state=1) for kind in ("csr", "csc", "coo")}


def of_xarray():
    array = pytest.importorskip("xarray").DataArray([[1.0, 2]] * 20_000, dims=("x", "y"))
    return {"xarray": array, "data set": array.to_dataset(name="a")}


def same(one, other):
    """Of the same type, and equal as its library says; an array in Fortran's order stays that."""
    if type(one) is not type(other):
        return False
    home = type(one).__module__.partition(".")[0]
    if home == "numpy" and hasattr(one, "dtype"):
        content = [repr(it.tolist()) if it.dtype.hasobject else it.tobytes() for it in (one, other)]
        return (one.dtype == other.dtype and one.shape == other.shape and content[0] == content[1]
                and one.flags.f_contiguous <= other.flags.f_contiguous)
    if home == "scipy":
        return one.shape == other.shape and (one != other).nnz == 0
    if home == "xarray":
        return one.identical(other)
    if home == "dask":
        return one.dask.keys() == other.dask.keys() and (one.compute() == other.compute()).all()
    if hasattr(one, "equals"):
        return one.equals(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


HOW = {
    "loose files": {"min_file_size": 0}, "maps": {"min_file_size": 0, "mmap_mode": "c"}, "maps to read": {"min_file_size": 0, "mmap_mode": "r"},
    "copies": {"min_file_size": 0, "mmap_mode": None}, "packs": {"min_file_size": 10**6}, "durable": {"durable": True},
    "durable copies": {"durable": True, "mmap_mode": None}, "gzip": {"open": gzip.open},
}
COLUMNS = {"a": list(range(20_000)), "b": ["x"] * 20_000}
HOUSES = {
    "Python": lambda: {**PLAIN, **OF_THIS_MODULE}, "numpy": of_numpy, "pandas": of_pandas, "scipy": of_scipy, "xarray": of_xarray,
    "pyarrow": lambda: {"arrow table": pytest.importorskip("pyarrow").table(COLUMNS)},
    "polars": lambda: {"polars frame": pytest.importorskip("polars").DataFrame(COLUMNS)},
    "dask": lambda: {"array, not calculated": pytest.importorskip("dask.array").arange(20_000, chunks=5000)},
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("house", HOUSES)
def test_values_of_every_kind_come_back(house, how, path):
    values = HOUSES[house]()
    with Chest(values, path=path, **HOW[how]):
        pass
    c = Chest(path=path, **HOW[how])
    assert [kind for kind in values if not same(values[kind], c[kind])] == []
    if how == "loose files":  # which pickle alone reads, too
        files = {kind: pathlib.Path(c.key_to_filename(kind)) for kind in values}
        assert [kind for kind in values if not same(values[kind], pickle.loads(files[kind].read_bytes()))] == []
    c.sync()
    again = Chest(path=path, **HOW[how])
    assert [kind for kind in values if not same(values[kind], again[kind])] == []


@pytest.mark.skipif("CHEST_ZOO" not in os.environ, reason="CHEST_ZOO names no directory of another version's")
@pytest.mark.parametrize("how", HOW)
def test_what_another_version_wrote_is_read(how):
    values = {**PLAIN, **of_numpy()}
    del values["path"]  # Python 3.13 pickles one by a module that no other Python has
    c = Chest(path=os.path.join(os.environ["CHEST_ZOO"], how), flag="r", **HOW[how])
    assert [kind for kind in values if not same(values[kind], c[kind])] == []


if __name__ == "__main__":
    for how in HOW:
        with Chest({**PLAIN, **of_numpy()}, path=os.path.join(sys.argv[1], how), **HOW[how]):
            pass
