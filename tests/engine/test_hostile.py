"""Names, keys, values, directories and callbacks that mean harm, or are only unlucky."""
from __future__ import annotations

import gc
import gzip
import json
import os
import pickle
import threading
from pathlib import Path

import pytest
from invariants import seen

from chest import Chest
from chest.errors import ChestError, DumpError

needs_links = pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs symbolic links")


def tree(path):
    """Every file and link under ``path`` with its content."""
    return {str(place.relative_to(path)): os.readlink(place) if place.is_symlink() else place.read_bytes()
            for place in Path(path).rglob("*") if place.is_symlink() or place.is_file()}


# Names.


@pytest.mark.parametrize("name", [
    "../out", "/etc/out", "a/../../out", ".", "..", "", ".keys", ".keys~", ".packs", ".hidden", "a/.b", "a//b", "a/", "/",
    "nul\0", "\udcff", "x" * 5000, "/".join("a" * 2000), None, 7, b"bytes", ["list"], "con", "a/nul/b"])
def test_a_key_to_filename_that_leads_astray_is_not_followed(tmp_path, name):
    path = str(tmp_path / "in" / "chest")
    outside = tree(tmp_path)
    c = Chest({"x": "x", "y": "y"}, path=path, key_to_filename=lambda key: name)
    c.flush()
    assert seen(path) == {"x": "x", "y": "y"}
    assert {name for name in tree(tmp_path) if not name.startswith(os.path.join("in", "chest"))} == set(outside)
    assert all(part and not part.startswith(".") for name in c._keys.values() for part in name.split("/"))
    c.clear()
    c.flush()
    assert os.listdir(path) == [".keys"]


def test_a_key_to_filename_that_fails_is_the_callers_error_and_loses_nothing(path):
    def name(key):
        if key == "bad":
            raise ZeroDivisionError
        return key

    c = Chest({"good": 1, "bad": 2, "also": 3}, path=path, key_to_filename=name)
    with pytest.raises((ZeroDivisionError, ChestError)):
        c.flush()
    assert dict(c) == {"good": 1, "bad": 2, "also": 3}
    assert seen(path) == {"good": 1, "also": 3}
    del c["bad"]


def index_of(path, pairs):
    os.makedirs(path, exist_ok=True)
    Path(path, ".keys").write_bytes(pickle.dumps(pairs))


ASTRAY = ["../victim", "a/../../victim", "./../victim", "/victim", "..", "a//b", ".keys", ".", "", "a/.git", ".packs/x", ".packs", "nul\0", 5, 1 << 104,
          -1, 1 << 200, 1.5, None, b"x", ("a", "b")]


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("name", ASTRAY)
def test_a_name_in_the_index_that_leads_outside_is_an_error_when_it_is_used_and_nothing_is_touched(tmp_path, name, trusted):
    victim = tmp_path / "victim"
    victim.write_bytes(pickle.dumps("precious"))
    path = tmp_path / "chest"
    name = str(victim) if name == "/victim" else name
    index_of(path, [("x", name), ("good", "good")])
    (path / "good").write_bytes(pickle.dumps("good"))
    before = tree(tmp_path)
    try:
        c = Chest(path=path, trusted=trusted)
    except ChestError as error:
        assert ".keys" in str(error)
        assert tree(tmp_path) == before
        return
    assert c["good"] == "good"
    assert "victim" not in str(name) or c.disk_usage()[0] == (path / "good").stat().st_size  # nor is the victim's told
    other = Chest()
    for use in (lambda: c["x"], lambda: list(c.values()), lambda: c.pop("x"), lambda: c.prefetch("x"), lambda: other.update(c)):
        with pytest.raises((ChestError, KeyError), match="'x'"):
            use()
    c.close()
    assert tree(tmp_path) == before
    c["x"] = c["good"] = "mine"
    c.flush()
    assert seen(path) == {"x": "mine", "good": "mine"}
    del c["x"]
    c.flush()
    index_of(path, [("x", name)])
    c = Chest(path=path, trusted=trusted)
    del c["x"]
    c.flush()
    assert len(c) == 0
    c.drop()
    assert {name: data for name, data in tree(tmp_path).items() if not name.startswith("chest")} == {
        "victim": before["victim"]}


# The directory.


@needs_links
@pytest.mark.parametrize("settings", [{}, {"dump": json.dump, "load": json.load}, {"open": gzip.open}])
def test_a_link_or_a_named_pipe_is_never_written_through(tmp_path, settings):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("precious")
    path = tmp_path / "chest"
    path.mkdir()
    os.symlink(outside, path / "_a")
    os.symlink(outside / "victim", path / "x")
    os.symlink(tmp_path / "nowhere", path / "y")
    os.symlink(outside / "victim", path / ".keys~")
    os.mkfifo(path / "z")
    before = tree(outside)
    c = Chest({("a", "b"): 1, "x": 2, "y": 3, "z": 5}, path=path, **settings)
    c.flush()
    c["x"] = 4
    c.flush()
    assert tree(outside) == before
    assert not os.path.lexists(tmp_path / "nowhere")
    assert dict(c) == seen(path, **settings) == {("a", "b"): 1, "x": 4, "y": 3, "z": 5}
    c.drop()
    assert tree(outside) == before


@needs_links
def test_an_error_says_what_is_a_link(path):
    c = Chest({"x": 1}, path=path)
    c.close()
    for name, read in (("x", lambda: c["x"]), (".keys", lambda: Chest(path=path))):
        os.rename(os.path.join(path, name), os.path.join(path, "elsewhere"))
        os.symlink("elsewhere", os.path.join(path, name))
        with pytest.raises(OSError, match=f"it is a link, which is not followed: '.*{name}'"):
            read()
        os.replace(os.path.join(path, "elsewhere"), os.path.join(path, name))


@needs_links
@pytest.mark.parametrize("durable", [False, True])
def test_a_chest_may_be_reached_by_a_link(tmp_path, durable):
    os.mkdir(tmp_path / "real")
    os.symlink("real", tmp_path / "link")
    one, other = (Chest(path=tmp_path / name, durable=durable) for name in ("real", "link"))
    one["a"], other["b"] = 1, 2
    one.flush()
    other.flush()
    assert dict(one) == dict(other) == {"a": 1, "b": 2}
    other.drop()
    assert os.listdir(tmp_path / "real") == []


@needs_links
def test_a_directory_may_be_moved_and_the_link_to_it_follow(tmp_path):
    os.mkdir(tmp_path / "real")
    os.symlink("real", tmp_path / "link")
    c = Chest({"a": 1}, path=tmp_path / "link")
    c.sync()
    os.rename(tmp_path / "real", tmp_path / "moved")
    os.unlink(tmp_path / "link")
    os.symlink("moved", tmp_path / "link")
    c["b"] = 2
    c.sync()
    assert dict(Chest(path=tmp_path / "moved")) == {"a": 1, "b": 2}


def test_directories_and_files_in_the_way_are_walked_around(path):
    with pytest.raises(OSError, match=r"\.keys|directory"):
        os.makedirs(os.path.join(path, ".keys"))
        Chest(path=path)
    os.rmdir(os.path.join(path, ".keys"))
    os.makedirs(os.path.join(path, "x", "y"))
    for name in ("_a", "x~1"):
        Path(path, name).write_text("mine")
    c = Chest({"x": 1, ("a", "b"): 2}, path=path)
    c.flush()
    assert seen(path) == {"x": 1, ("a", "b"): 2}
    c.drop()
    assert tree(path) == {"_a": b"mine", "x~1": b"mine"}


@pytest.mark.parametrize("settings", [{}, {"min_file_size": 100}])
def test_any_path_will_do(tmp_path, settings):
    names = ["with space", "ünïcödé", "per%20cent", "question?mark", "hash#tag", "new\nline", "'quote\"", "semi;colon", "a&b=c"]
    for name in names:
        path = str(tmp_path / name / name)
        with Chest({"x": 1, "large": "l" * 1000}, path=path, **settings) as c:
            assert c.path == path
        assert seen(path, **settings) == {"x": 1, "large": "l" * 1000}
        assert os.listdir(tmp_path / name) == [name]
    assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_a_chest_within_a_chest(path):
    outer = Chest({"x": 1}, path=path)
    inner = Chest({"x": 2}, path=os.path.join(path, "inner"))
    for c in (outer, inner, outer):
        c["inner"] = "value"
        c.flush()
    assert dict(outer) == {"x": 1, "inner": "value"}
    assert dict(inner) == {"x": 2, "inner": "value"}
    outer.drop()
    assert dict(inner) == seen(inner.path) == {"x": 2, "inner": "value"}


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
def test_a_temporary_chest_is_its_owners_alone():
    assert os.stat(Chest().path).st_mode & 0o077 == 0


def test_a_key_that_cannot_be_pickled_is_an_error_that_names_it_and_stops_no_other_handle(path):
    key = threading.Lock()
    c = Chest({key: 1, "x": 2}, path=path)
    with pytest.raises(Exception, match="lock"):
        c.flush()
    assert c[key] == 1
    del c[key]
    c.flush()
    assert seen(path) == {"x": 2}


def refuse(self, *arguments):
    raise ZeroDivisionError


class Odd:
    """A value with whom nothing can be done but to keep it."""

    __hash__ = None
    __eq__ = __bool__ = __len__ = __iter__ = __sizeof__ = __repr__ = refuse
    nbytes = shape = property(refuse)


def test_a_value_is_only_kept_and_never_asked_for_anything(path):
    value = Odd()
    c = Chest(path=path)
    c["x"] = value
    assert c["x"] is c.get("x") is c.setdefault("x") is value
    c.move_to_disk("x")
    assert c["x"] is value, "it is still held here"
    c.flush()
    c.sync()
    del value
    gc.collect()
    assert type(c.pop("x")) is Odd


def test_a_value_that_contains_itself(path):
    value = [1]
    value.append(value)
    c = Chest({"x": value}, path=path)
    assert c.memory_usage > 0
    c.flush()
    del value
    back = c["x"]
    assert back[0] == 1
    assert back[1] is back
    c.sync()


def test_a_value_that_is_nested_too_deeply_is_an_error_and_stays(path):
    value = []
    for _ in range(200_000):
        value = [value]
    c = Chest({"x": value, "y": 1}, path=path)
    with pytest.raises(DumpError, match="'x'.*Recursion"):
        c.flush()
    assert c["x"] is value
    assert seen(path) == {"y": 1}
    del c["x"]
    while value:
        value = value[0]


def test_a_dump_that_writes_nothing(path):
    settings = dict(path=path, dump=lambda value, file: None, load=lambda file: "always")
    c = Chest({"x": 1}, **settings)
    c.flush()
    assert dict(c) == dict(Chest(**settings)) == {"x": "always"}
