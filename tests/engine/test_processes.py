"""Several handles on one chest, of one process; `test_chaos` has many processes, which are killed all along."""
from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from chest import Chest
from chest.storage import system
from chest.storage.keysfile import KeysFile

# They see each other as two processes do; `test_protocol` has every order of what they do.


def test_values_whose_files_did_not_change_stay_in_memory_when_others_commit(path):
    a = Chest({"x": [1], "y": [2]}, path=path)
    a.flush()
    b = Chest(path=path)
    mine = b["x"]
    b["own"] = [3]
    b.sync()
    own = b["own"]
    b["x"].append("changed in place")
    for n in range(3):
        a["y"] = [n]
        a.flush()
        assert len(b) == 3
        assert b["y"] == [n]
    assert b["x"] is mine
    assert b["own"] is own
    b.sync()
    assert Chest(path=path)["x"] == [1, "changed in place"]


@pytest.mark.parametrize("small", [0, 4096])
def test_a_reader_finds_new_keys_at_once_and_others_values_when_it_looks_or_loads(path, small):
    a = Chest({"x": 1}, path=path, min_file_size=small)
    a.sync()
    b = Chest(path=path, min_file_size=small)
    assert b["x"] == 1
    a["x"], a["new"] = 2, 3
    a.sync()
    assert b["x"] == 1, "a hit in memory looks at nothing"
    assert b["new"] == 3
    assert b["x"] == 2
    b.flush()
    a["x"] = 3
    a.sync()
    assert b["x"] == 3


def test_a_commit_that_changes_nothing_writes_nothing_unless_a_plain_list_is_asked_for(path):
    one, other, keys = Chest({"x": 1}, path=path), Chest(path=path), Path(path, ".keys")
    one.sync()
    one["x"] = 2
    one.sync()
    before = keys.read_bytes()
    other.sync()
    assert keys.read_bytes() == before
    other.flush()
    assert pickle.loads(keys.read_bytes()) == [("x", "x~1")]
    before = keys.stat()
    other.flush()
    assert keys.stat() == before


def test_a_key_set_here_stays_though_another_committed_the_very_bytes_and_then_deleted_it(path):
    a, b = Chest(path=path, min_file_size=4096), Chest(path=path, min_file_size=4096)
    a["x"], b["x"] = [1], [1]
    a.move_to_disk("x")
    b.sync()
    assert len(a) == 1
    del b["x"]
    b.sync()
    assert a["x"] == [1]
    a.sync()
    assert Chest(path=path)["x"] == [1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_commit_that_was_done_and_interrupted_does_not_come_again_once_others_committed_the_key(path, monkeypatch, error):
    a, b = Chest({"x": ["a"], "y": ["a"], "z": ["a"]}, path=path), Chest(path=path)
    a.flush()
    a["x"], a["y"], a["z"] = ["a's"], ["a's"], ["a's"]
    real = KeysFile.append

    def append(self, changes):
        assert real(self, changes)
        raise error(5, "interrupted")

    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(KeysFile, "append", append)
        a.sync()
    b["x"] = ["b's"]
    del b["y"]
    b.flush()
    freed = Chest({"x": ["c's"]}, path=path)
    freed.move_to_disk("x")  # to a name that a's commit had, and b's freed
    for _ in range(2):
        a.flush()
        assert dict(a) == dict(Chest(path=path)) == {"x": ["b's"], "z": ["a's"]}
    freed.flush()
    assert dict(a) == dict(Chest(path=path)) == {"x": ["c's"], "z": ["a's"]}


@pytest.mark.parametrize("save", [Chest.sync, Chest.flush])
def test_a_deletion_deletes_what_a_third_handle_set_behind_the_same_deletion_by_another(path, save):
    one, two, three = Chest({"x": 1, "y": 1}, path=path), Chest(path=path), Chest(path=path)
    one.sync()
    assert len(two) == len(three) == 2
    del one["x"], two["x"]
    two.sync()
    three["x"] = 3
    save(three)
    one.sync()

    assert dict(one) == dict(two) == dict(three) == {"y": 1}


@pytest.mark.parametrize("theirs", [("a", "b"), ("a", "b", "c", "d")], ids=["file", "folder"])
def test_what_stands_where_a_file_was_may_be_a_folder_by_now_or_the_other_way_round(path, theirs):
    a = Chest({("a", "b", "c"): [1], "x": 1}, path=path, dump=pickle.dump, load=pickle.load)
    a.flush()
    a["a", "b", "c"].append(2)
    with Chest(path=path, dump=pickle.dump, load=pickle.load) as b:
        del b["a", "b", "c"]
        b.flush()
        os.makedirs(os.path.join(path, "_a"), exist_ok=True)
        if len(theirs) == 2:
            open(os.path.join(path, "_a", "_b"), "w").close()  # of somebody else
        else:
            os.makedirs(os.path.join(path, "_a", "_b", "c"))
    a["x"] = 2
    a.sync()
    assert dict(a) == dict(Chest(path=path, dump=pickle.dump, load=pickle.load)) == {"x": 2}


def test_an_error_after_the_commit_is_done_does_not_undo_it(path, monkeypatch):
    """The disk may fail just when the index is in place."""
    a = Chest({"x": [1]}, path=path, durable=True)
    real = system.sync_directory

    def fail(directory):
        if directory == path:  # where the index is; folders of values are synced by descriptor
            raise OSError(5, "Input/output error")
        return real(directory)

    with monkeypatch.context() as patch:
        patch.setattr(system, "sync_directory", fail)
        with pytest.raises(OSError, match="Input/output"):
            a.sync()
    a["x"] = [2]  # not committed: whoever looks now finds what was
    assert dict(Chest(path=path)) == {"x": [1]}
    a.sync()
    assert dict(Chest(path=path)) == {"x": [2]}


class Long:
    """Takes so long to load that another handle commits meanwhile, each time."""

    def __setstate__(self, state):
        self.__dict__.update(state)
        Long.loads += 1
        assert Long.loads < 5
        Long.other["n"] = Long.loads
        Long.commit(Long.other)


@pytest.mark.parametrize("settings", [{}, {"min_file_size": 1000}])
@pytest.mark.parametrize("commit", [Chest.sync, Chest.flush])
def test_a_value_is_loaded_once_though_others_commit_all_the_time(path, settings, commit):
    """It was loaded again and again, and never returned."""
    value = Long()
    value.content = [1]
    with Chest({"x": value}, path=path, **settings):
        del value
    Long.other, Long.commit, Long.loads = Chest(path=path, **settings), commit, 0
    c = Chest(path=path, **settings)
    assert c["x"].content == [1]
    assert Long.loads == 1 and c["n"] == 1
    del Long.other
