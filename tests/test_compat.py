"""Chests of 0.2.3 open here, chests from here open with `pickle` alone, and other people's dump, load and open work."""
from __future__ import annotations

import bz2
import contextlib
import functools
import gzip
import hashlib
import json
import lzma
import os
import pathlib
import pickle

import pytest
from children import python

from chest import Chest


def md5(key):
    return hashlib.md5(str(key).encode()).hexdigest()


OLD = {"x": [1, 2, 3], ("a", "b", "c"): {"nested": (1, 2)}, 1: "one", "1/2": None, ("t", 0): 1.5, "long" * 50: b"bytes"}
OLD_NAMES = {"x": "x", ("a", "b", "c"): "_a/_b/c", 1: md5(1), "1/2": md5("1/2"), ("t", 0): "_t/" + md5(0),
             "long" * 50: "long" * 50}


def written_by_0_2_3(path):
    """A chest as 0.2.3 left it: pickles of protocol 1 under plain names, and a list of pairs."""
    for name, value in [(".keys", list(OLD_NAMES.items())), *((OLD_NAMES[key], OLD[key]) for key in OLD)]:
        place = pathlib.Path(path, name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(pickle.dumps(value, 1))


def contents(path):
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in pathlib.Path(path).rglob("*") if file.is_file()}


def test_a_chest_of_0_2_3_opens_and_looking_at_it_changes_no_byte(path):
    written_by_0_2_3(path)
    before = contents(path)
    with Chest(path=path) as c:
        assert dict(c) == OLD
        assert list(c) == list(OLD)
        assert {key: os.path.relpath(c.key_to_filename(key), path) for key in c} == OLD_NAMES
        c.flush()
        c.prefetch(list(c))
    assert contents(path) == before


@pytest.mark.parametrize("settings", [{}, {"min_file_size": 1000}, {"durable": True}, {"mmap_mode": "c"}])
def test_a_chest_of_0_2_3_is_used_on_as_any_other(path, settings):
    written_by_0_2_3(path)
    expected = dict(OLD)
    for turn in range(3):
        with Chest(path=path, **settings) as c:
            assert dict(c) == expected
            c["x"].append(turn)
            expected["x"] = [*expected["x"], turn]
            c["new", turn] = expected["new", turn] = turn
            del c[list(expected)[1]], expected[list(expected)[1]]
    assert dict(Chest(path=path, **settings)) == expected


def test_a_chest_of_0_2_3_that_python_2_wrote_opens(path):
    """Protocol 1 and text keys: what a Python 2 pickle of plain text looks like."""
    os.makedirs(path)
    for name, data in {".keys": b"]q\x00U\x01xq\x01h\x01\x86q\x02a.", "x": b"U\x05helloq\x00."}.items():
        pathlib.Path(path, name).write_bytes(data)
    assert dict(Chest(path=path)) == {"x": "hello"}


# The other way.


READER = """if True:
    import pathlib, pickle, sys
    path = pathlib.Path(sys.argv[1])
    pairs = pickle.loads((path / '.keys').read_bytes())
    found = {key: pickle.loads((path / name).read_bytes()) for key, name in pairs}
    assert 'chest' not in sys.modules
    sys.stdout.write(ascii(list(found.items())))
"""


@pytest.mark.parametrize("settings", [{}, {"durable": True}, {"mmap_mode": "r"}, {"available_memory": 10}])
def test_a_chest_from_here_is_read_with_pickle_alone(path, settings):
    with Chest(OLD, path=path, **settings) as c:
        c.sync()
        c["x"] = "again"
        c.sync()
        del c[1]
    assert python(READER, path) == ascii([("x", "again"), *((key, OLD[key]) for key in OLD if key not in ("x", 1))])


def test_arrays_from_here_are_read_with_pickle_alone(path):
    numpy = pytest.importorskip("numpy")
    values = {"large": numpy.arange(100_000.0), "fortran": numpy.ones((300, 200), order="F"), "list": [numpy.arange(5)]}
    Chest(values, path=path).close()
    said = python(READER.replace("ascii(list(found.items()))", "repr([int(found['large'].sum()), found['fortran'].shape, "
                                 "found['fortran'].flags.f_contiguous, found['list'][0].tolist()])"), path)
    assert said == "[4999950000, (300, 200), True, [0, 1, 2, 3, 4]]"


# Other people's dump, load and open.


VALUES = {"x": [1, 2, 3], "y": {"a": None}, ("t", "u"): "text", 5: 1.5}


def round_trip(path, **settings):
    """Write, spill, change and read back in other handles; returns what the last one has."""
    with Chest(VALUES, path=path, available_memory=100, **settings) as c:
        c.sync()
        assert dict(c) == VALUES
    with Chest(path=path, **settings) as c:
        assert dict(c) == VALUES
        c["new"] = c["x"]
        c.prefetch(list(c))
        c.sync()
    c = Chest(path=path, **settings)
    assert dict(c) == {**VALUES, "new": VALUES["x"]}
    c.flush()
    assert c.stats.bytes_written == 0, "what was only read is not written again"
    assert [type(key) for key in c] == [type(key) for key in [*VALUES, "new"]]
    return c


@pytest.mark.parametrize("settings", {
    "json": dict(dump=json.dump, load=json.load),
    "json text": dict(dump=json.dump, load=json.load, mode="t"),
    "pickle": dict(dump=pickle.dump, load=pickle.load),
    "protocol 1": dict(dump=functools.partial(pickle.dump, protocol=1), load=pickle.load),
    "gzip": dict(open=gzip.open),
    "bz2": dict(open=bz2.open),
    "lzma": dict(open=lzma.open),
    "gzip pickle": dict(open=gzip.open, dump=pickle.dump, load=pickle.load),
    "gzip json": dict(open=gzip.open, dump=json.dump, load=json.load, mode="t"),
    "open": dict(open=open, mode="b"),
}.items(), ids=lambda item: item[0])
def test_settings_that_people_use_round_trip(path, settings):
    round_trip(path, **settings[1])


@pytest.mark.parametrize("small", [0, 500])
@pytest.mark.parametrize("open", [open, gzip.open, bz2.open, lzma.open, lambda path, mode: open(path, mode)],
                         ids=["open", "gzip", "bz2", "lzma", "another"])
def test_numpy_saves_into_any_file(path, open, small):
    """It asks a buffered file for its descriptor, and writes there, whatever compresses on the way."""
    numpy = pytest.importorskip("numpy")
    settings = dict(open=open, dump=lambda value, file: numpy.save(file, value), load=numpy.load, min_file_size=small)
    keys = {0: 0, ("a", 1): 3, "x": 100_000}  # numpy would have made strings of them
    with Chest({key: numpy.arange(float(n)) for key, n in keys.items()}, path=path, **settings):
        pass
    assert {key: value.tolist() for key, value in Chest(path=path, **settings).items()} == {
        key: list(range(n)) for key, n in keys.items()}


def closes(value, file):
    with file:
        pickle.dump(value, file)


@pytest.mark.parametrize("small", [0, 4096])
@pytest.mark.parametrize("settings", [
    dict(dump=closes, load=pickle.load),
    dict(dump=lambda value, file: os.write(file.fileno(), pickle.dumps(value)),
         load=lambda file: pickle.loads(os.read(file.fileno(), 1 << 20))),
    dict(dump=lambda value, file: file.write(value), load=lambda file: file.read(), mode="t"),
], ids=["closes the file", "needs a file of the system", "text as it is"])
def test_what_a_dump_may_do_with_its_file(path, settings, small):
    """It may do so whether the value has a file of its own or not, and values that were only read are looked at too."""
    values = {n: f"tèxt\r\n\n\r {n}" * 50 for n in range(9)}
    settings = dict(settings, path=path, min_file_size=small, available_memory=2000)
    with Chest(values, **settings):
        pass
    with Chest(**settings) as c:
        assert dict(c.items()) == values
        c.flush()
        c[3] = values[3] = "changed"
    assert dict(Chest(**settings)) == values


def test_joblib(path):
    joblib = pytest.importorskip("joblib")
    numpy = pytest.importorskip("numpy")
    c = round_trip(path, dump=functools.partial(joblib.dump, compress=True), load=joblib.load)
    c["array"] = numpy.arange(1000)
    c.flush()
    assert c["array"].sum() == 499500


def test_a_load_that_looks_at_the_name_of_its_file(path):
    """As PyTerrier has: what is loaded depends on where it lies."""
    names = []

    def dump(value, file):
        names.append(os.path.basename(file.name))
        pickle.dump(value, file)

    def load(file):
        if os.path.basename(file.name).startswith(".keys"):
            return pickle.load(file)
        return file.name, pickle.load(file)

    c = Chest({"x": 1}, path=path, dump=dump, load=load)
    c.flush()
    assert c["x"] == (c.key_to_filename("x"), 1)
    assert "x" in names


def test_open_many_opens_all_files_of_a_prefetch_at_once(path):
    calls = []

    @contextlib.contextmanager
    def open_many(names, mode="rb"):
        calls.append((len(names), mode))
        with contextlib.ExitStack() as files:
            yield [files.enter_context(open(name, mode)) for name in names]

    c = Chest({i: str(i) for i in range(5)}, path=path, open_many=open_many)
    c.flush()
    c.prefetch([0, 1, 2, 3])
    assert calls == [(4, "rb")]
    assert sorted(c.inmem) == [0, 1, 2, 3]


def test_a_users_open_that_fails_leaves_no_file_behind(path):
    failing = []

    def opener(name, mode="rb"):
        if failing and "w" in mode:
            raise PermissionError(13, "not today", name)
        return open(name, mode)

    c = Chest({"x": 1}, path=path, open=opener)
    c.flush()
    c["y"] = 2
    failing.append(1)
    with pytest.raises(PermissionError, match="'y'"):
        c.flush()
    assert sorted(set(os.listdir(path)) - {".packs"}) == [".keys", "x"]  # the handle's own journal is there
    failing.clear()
    c.flush()
    assert sorted(os.listdir(path)) == [".keys", "x", "y"]
    assert dict(Chest(path=path, open=opener)) == {"x": 1, "y": 2}
