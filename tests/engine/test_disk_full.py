"""A disk that is full, a real one: every value stays reachable, the last commit stays whole, and freeing space heals."""
from __future__ import annotations

import errno
import functools
import os
import pickle

import pytest
from filesystems import mounts
from invariants import check, files, seen

from chest import Chest

CHUNK = 100 * 1024


@pytest.fixture
def disk(tmp_path):
    """A file system of two megabytes and three hundred entries."""
    place = str(tmp_path / "disk")
    try:
        with mounts.mounted(place, "mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=300", "tmpfs", place):
            yield place
    except mounts.Unavailable as error:
        pytest.skip(f"a small tmpfs is mounted by root: {error}")


class Filler:
    """A file of somebody else's that takes what is free on the disk, but for ``left`` bytes."""

    def __init__(self, disk, left=0):
        self.path = os.path.join(disk, "filler")
        with open(self.path, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"f" * 4096)
            except OSError as error:
                assert error.errno == errno.ENOSPC
            file.truncate(max(file.tell() - left, 0) // 4096 * 4096)

    def free(self):
        os.unlink(self.path)


def value(letter):
    return letter.encode() * CHUNK


@pytest.fixture
def path(disk):
    return os.path.join(disk, "chest")


def own(path):
    """All files but what is a handle's own while it lives: its pack and its journal."""
    return {name for name in files(path) if not name.startswith(".packs")}


SETTINGS = {"default": {}, "plain pickle": {"dump": pickle.dump, "load": pickle.load}, "durable": {"durable": True},
            "small values": {"min_file_size": 2 * CHUNK}}
every_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)


def full(call):
    """``call()`` must fail as the disk is full, and say for which key and where."""
    with pytest.raises(OSError) as caught:
        call()
    assert caught.value.errno == errno.ENOSPC
    return caught.value


snapshot = functools.partial(seen, flag="r")  # what another handle finds, which changes nothing


@every_setting
@pytest.mark.parametrize("commit", [Chest.flush, Chest.sync, Chest.close])
def test_a_commit_on_a_full_disk_loses_nothing_and_works_once_there_is_space(disk, path, settings, commit):
    c = Chest({"old": value("o")}, path=path, **settings)
    c.flush()
    filler = Filler(disk, left=CHUNK * 3 // 2)  # room for one of the two
    new = {"x": value("x"), "old": value("O")}
    c.update(new)
    before = own(path)
    for _ in range(3):
        error = full(lambda: commit(c))
        assert "'x'" in str(error) or "'old'" in str(error)
        assert path in str(error)
        assert dict(c) == new
        assert own(path) <= {*before, "x"}, "a half-written file stayed"
        assert snapshot(path) == {"old": value("o")}
    filler.free()
    commit(c)
    assert dict(c) == snapshot(path) == new


@every_setting
def test_a_spill_to_a_full_disk_keeps_the_value_and_says_so(disk, path, settings):
    c = Chest(path=path, available_memory=1.5 * CHUNK, **settings)
    c["a"] = value("a")
    c.sync()
    filler = Filler(disk)
    c["b"] = value("b")  # `a` is on disk already and makes room
    error = full(lambda: c.update({"c": value("c")}))
    assert "'b'" in str(error) or "'c'" in str(error)
    assert {key: c.get(key) for key in "abc"} == {key: value(key) for key in "abc"}
    assert c.memory_usage >= 2 * CHUNK
    full(c.flush)
    assert snapshot(path) == {"a": value("a")}
    filler.free()
    c.flush()
    assert dict(c) == snapshot(path) == {key: value(key) for key in "abc"}
    check(c)


def test_reading_never_fails_for_want_of_space(disk, path):
    c = Chest(path=path, available_memory=1.5 * CHUNK)
    for key in "ab":
        c[key] = list(value(key))[:10000]
    c.flush()
    filler = Filler(disk)
    for key in "abab":
        c[key].append(key)  # each is changed, so that reading the next would have to write this one
    assert c["a"][-2:] == ["a", "a"]
    assert c["b"][-2:] == ["b", "b"]
    full(c.flush)
    filler.free()
    c.flush()
    assert c["a"][-2:] == ["a", "a"]


@pytest.mark.parametrize("durable", [False, True])
def test_an_index_that_finds_no_space_leaves_the_one_before(disk, path, durable):
    """The values fit, but the list of a thousand keys, or the record of them, does not."""
    c = Chest({"x": 1}, path=path, durable=durable)
    c.flush()
    keys = {(f"key{i}", f"k{i}" * 300): None for i in range(50)}
    c.update(keys)
    for key in keys:
        c.move_to_disk(key)
    filler = Filler(disk, left=4096)
    for commit in (c.sync, c.flush, c.write_keys, c.close):
        assert os.path.join(path, ".keys") in str(full(commit))
        assert snapshot(path) == {"x": 1}
        assert ".keys~" not in os.listdir(path)
        assert len(c) == 51
    filler.free()
    c.sync()
    assert snapshot(path) == {"x": 1, **keys}


def test_a_chest_whose_values_are_all_saved_can_be_closed(disk, path):
    c = Chest(path=path)
    for n in range(3):  # the records behind the list are to be taken into it
        c[n] = [n]
        c.sync()
    filler = Filler(disk)
    c.close()
    assert snapshot(path) == {n: [n] for n in range(3)} == dict(c)
    filler.free()
    c.close()
    assert snapshot(path) == {n: [n] for n in range(3)}


@every_setting
def test_deleting_works_on_a_full_disk_once_it_made_space(disk, path, settings):
    c = Chest(path=path, **settings)
    c.update({key: value(key) for key in "ab"})
    c.flush()
    Filler(disk, left=16384)
    del c["a"]
    c.flush()
    assert snapshot(path) == {"b": value("b")}
    if "min_file_size" not in settings:
        c["c"] = value("c")
        c.flush()
        assert snapshot(path) == {key: value(key) for key in "bc"}


def test_a_chest_can_not_be_made_on_a_full_disk_but_later(disk, path):
    with pytest.raises(OSError, match="No space"):
        for n in range(400):
            os.mkdir(os.path.join(disk, f"entry{n}"))
    with pytest.raises(OSError, match="No space"):
        Chest(path=path)
    for n in range(9):
        os.rmdir(os.path.join(disk, f"entry{n}"))
    Chest({"x": 1}, path=path).flush()
    assert snapshot(path) == {"x": 1}
