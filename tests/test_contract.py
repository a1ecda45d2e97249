"""What scripts written for chest 0.2.3 count on, and what was added to it."""
import gc
import os
import pickle

import pytest
from children import python

import chest
from chest import Chest
from chest.core import Chest as CoreChest
from chest.core import key_to_filename, nbytes


class Block:
    """A value that says how large it is, and cannot be weakly referenced."""

    __slots__ = ("nbytes",)

    def __init__(self, nbytes):
        self.nbytes = nbytes


def test_the_public_names_are_where_they_were():
    assert CoreChest is Chest
    assert key_to_filename("x") == "x"
    assert nbytes(b"") > 0
    assert chest.__version__.split(".")[0] == "1"
    assert sorted(chest.__all__) == ["Chest", "__version__"]


def test_the_arguments_stand_in_the_old_order(tmp_path):
    seen = []
    c = Chest({"x": 1}, str(tmp_path / "c"), 1e6, pickle.dump, pickle.load, lambda key: "name", seen.append,
              seen.append, open, None, "b")
    c.flush()

    assert sorted(os.listdir(c.path)) == [".keys", "name"]
    assert c["x"] == 1
    assert seen == ["x", "x"]


def test_the_old_attributes_can_be_read(path):
    c = Chest(path=path, available_memory=10**6)
    c["x"] = 1

    assert c.inmem == {"x": 1}
    assert c.path == path
    assert c.available_memory == 10**6
    assert c.memory_usage == nbytes(1)
    assert (c.mode, c.open, c._explicitly_given_path) == ("b", open, True)
    assert list(c._keys) == ["x"]
    assert callable(c.dump)
    assert callable(c.load)
    with c.lock, c.lock:
        c.flush()
    assert c._keys == {"x": "x"}
    assert path in str(c)
    assert not Chest()._explicitly_given_path


def test_keys_tells_the_place_of_a_small_value_in_its_pack(path):
    c = Chest({"x": 1}, path=path, min_file_size=4096)
    c.flush()
    end = os.path.getsize(c.key_to_filename("x"))
    c["y"] = 2
    c.flush()
    c["z"] = 3

    pack = ".packs/" + os.path.basename(c.key_to_filename("x"))
    assert c._keys == {"x": f"{pack}:0", "y": f"{pack}:{end}", "z": None}


def test_keys_of_a_chest_that_was_closed_are_those_that_it_opens_again_with(path):
    with Chest({"x": 1, "y": 2}, path=path) as c:
        pass
    assert c._keys == {"x": "x", "y": "y"}


def test_after_a_flush_there_are_the_index_and_the_values_and_nothing_else(path):
    c = Chest({"x": [1, 2, 3], "y": 2}, path=path)
    c.flush()

    assert sorted(os.listdir(path)) == [".keys", "x", "y"]
    assert c.memory_usage == 0
    assert not c.inmem
    with open(c.key_to_filename("x"), "rb") as file:
        assert pickle.load(file) == [1, 2, 3]
    with open(os.path.join(path, ".keys"), "rb") as file:
        assert pickle.load(file) == [("x", "x"), ("y", "y")]


def test_on_miss_and_on_overflow_are_told_the_key():
    told = []
    c = Chest(available_memory=250, on_miss=lambda key: told.append(("miss", key)),
              on_overflow=lambda key: told.append(("overflow", key)))
    c["a"], c["b"] = Block(200), Block(200)
    c["b"]
    c["a"]

    assert told == [("overflow", "a"), ("miss", "a"), ("overflow", "b")]


def test_shrink_counts_what_values_grew_by_in_place():
    c = Chest(available_memory=1.5 * nbytes(list(range(2000))))
    for key in "abc":
        c[key] = []
        c[key].extend(range(2000))
    c.shrink()
    assert c.memory_usage == sum(map(nbytes, c.inmem.values())) <= c.available_memory
    assert len(c.inmem) == 1
    c["small"] = 1
    c["a"] = []
    c["a"].extend(range(10_000))
    c.shrink()
    assert "small" in c.inmem and "a" not in c.inmem, "one over the budget pushes nothing else out"
    assert c["a"] == list(range(10_000))


def test_stats_count_hits_misses_spills_and_bytes(path):
    c = Chest(path=path, available_memory=250)
    c["a"], c["b"], c["c"] = Block(100), Block(100), Block(100)
    c["c"], c["a"]
    size = os.path.getsize(c.key_to_filename("a"))

    assert c.stats == (1, 1, 2, size, 2 * size)
    assert c.stats["hits"] == c.stats.hits == 1
    assert c.stats.hit_rate == 0.5


def test_prefetch_loads_what_it_is_asked_for_and_calls_no_on_miss(path):
    Chest({"a": [1], ("a", "b"): [2], 3: [3]}, path=path).close()
    told = []
    c = Chest(path=path, on_miss=told.append)
    c.prefetch("a")
    assert list(c.inmem) == ["a"]
    c.prefetch(("a", "b"))
    assert list(c.inmem) == ["a", ("a", "b")]
    c.prefetch(3)
    c.prefetch(["a", 3, "a"])

    assert set(c.inmem) == {"a", ("a", "b"), 3}
    assert told == []
    assert c.memory_usage == sum(nbytes(value) for value in c.inmem.values())


def test_prefetch_of_a_key_that_is_not_there_reads_nothing(path):
    Chest({"a": [1]}, path=path).close()
    c = Chest(path=path)

    for keys in ("zz", ["a", "zz"], ("a", "zz")):
        with pytest.raises(KeyError, match="zz"):
            c.prefetch(keys)
    assert not c.inmem


def test_prefetch_stops_when_the_budget_is_full(path):
    Chest(dict.fromkeys(range(20), b"x" * 1000), path=path).close()
    c = Chest(path=path, available_memory=5500)
    c.prefetch(range(20))

    assert 4 <= len(c.inmem) <= 5
    assert c.stats.spills == 0


@pytest.mark.parametrize(("text", "amount"), [("2 GB", 2e9), ("500 MiB", 500 * 2**20), ("1.5kb", 1500), ("100", 100),
                                              ("1 TB", 1e12), (10, 10), (1e9, 1e9), (0, 0)])
def test_the_budget_may_be_a_text_with_a_unit(text, amount):
    c = Chest(available_memory=text)
    assert c.available_memory == amount
    c.available_memory = text
    assert c.available_memory == amount


@pytest.mark.parametrize(("settings", "error", "says"), [
    *[(dict(available_memory=wrong), ValueError, "'2 GB'")
      for wrong in ("", "lots", "2 XB", "-1", -1, "1,5 GB", [], float("nan"))],
    (dict(mode="x"), ValueError, "mode"),
    (dict(mmap_mode="w"), ValueError, "mmap_mode"),
    (dict(path="x", storage_options={}), ValueError, "storage_options"),
    (dict(min_file_size=-1), ValueError, "min_file_size"),
    (dict(min_file_size="small"), ValueError, "min_file_size"),
    *[({name: None}, TypeError, f"{name} is a function, not None")
      for name in ("dump", "load", "open", "key_to_filename", "on_miss", "on_overflow")],
    (dict(open="gzip"), TypeError, "open"),
    (dict(path=""), ValueError, "path"),
    (dict(path=3), TypeError, "path is a str"),
    (dict(path=b"x"), TypeError, "path is a str"),
    (dict(data="results"), TypeError, "path='results'"),
    (dict(data=1), TypeError, "iterable"),
    (dict(data=[1]), TypeError, "unpack|sequence"),
])
def test_an_argument_that_makes_no_sense_is_an_error_that_says_so_and_leaves_nothing_behind(
        settings, error, says, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(error, match=says):
        Chest(**settings)
    gc.collect()
    assert os.listdir(tmp_path) == []


def test_a_path_may_begin_with_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("USERPROFILE" if os.name == "nt" else "HOME", str(tmp_path))

    assert Chest(path="~/here").path == str(tmp_path / "here")


@pytest.mark.parametrize("use", [lambda c: c["y"], lambda c: c.pop("y"), lambda c: c.__delitem__("y")])
def test_a_missing_key_is_one_traceback_of_one_frame(use):
    with pytest.raises(KeyError, match="^'y'$") as caught:
        use(Chest({"x": 1}))

    assert len(caught.traceback[2:]) == 1  # behind this test's own, and the lambda's
    assert caught.value.__suppress_context__ and caught.value.__cause__ is None


@pytest.mark.parametrize("change", [lambda c: c.update(c=3), lambda c: c.pop("a"), lambda c: c.clear()])
@pytest.mark.parametrize("over", [iter, reversed, lambda c: iter(c.keys()), lambda c: reversed(c.keys()), lambda c: iter(c.values()),
                                  lambda c: reversed(c.values()), lambda c: iter(c.items()),
                                  lambda c: reversed(c.items())])
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_an_iterator_notices_what_was_added_and_removed_since_it_was_made(steps, over, change):
    for mapping in ({"a": 1, "b": 2}, Chest({"a": 1, "b": 2})):
        iterator = over(mapping)
        for _ in range(steps):
            next(iterator)
        change(mapping)
        with pytest.raises(RuntimeError, match="changed size"):
            next(iterator)


def test_importing_chest_imports_nothing_that_is_large():
    program = ("import sys, chest; "
               "print([name for name in ('numpy', 'pandas', 'sqlite3', 'fsspec', 'logging', 'multiprocessing',"
               " 'concurrent.futures', 'dataclasses') if name in sys.modules])")
    assert python(program) == "[]\n"


@pytest.mark.parametrize("limit", [4096, 4096.0, "4 KiB", float("inf")])
def test_min_file_size_is_a_number_of_bytes_or_a_text(limit, tmp_path):
    with Chest({n: n for n in range(9)}, path=tmp_path, min_file_size=limit) as c:
        c.flush()
        assert c.disk_usage() == (os.path.getsize(c.key_to_filename(0)), 1)
