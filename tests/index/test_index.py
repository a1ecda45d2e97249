"""The index: what several handles on one ``.keys`` make of each other's commits, and what an interruption leaves."""
from __future__ import annotations

import functools
import os
import threading
from contextlib import contextmanager, suppress

import pytest
from children import thread
from hypothesis import given, settings
from hypothesis import strategies as st
from index.handles import commit, index_on, on_disk

LOW = 500 << 32 | 7  # length and checksum of a record


# The rules of merging, against a model.


class Model:
    """What one handle must know: the newest commit it looked at, and its own changes since its own last commit."""

    def __init__(self):
        self.seen, self.own = {}, {}

    def view(self):
        view = dict(self.seen)
        for key, ref in self.own.items():
            view.pop(key, None) if ref is None or key not in view else None
            if ref is not None:
                view[key] = ref
        return view


OPERATIONS = st.lists(st.tuples(
    st.integers(0, 2),  # which handle
    st.sampled_from(["set", "set", "delete", "refresh", "sync", "sync", "flush", "unwritten", "rollback", "fail before",
                     "fail behind"]),
    st.sampled_from("xyz")), max_size=40)


@contextmanager
def interrupted(keys, when):
    """Ctrl-C comes "before" a commit is done, just "behind", or not at all; gives what was reached of that."""
    reached = []

    def call(real, *args):
        if when == "behind" and real(*args) is False:
            return False
        reached.append(when)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
        for name in ("append", "replace") if when else ():
            patch.setattr(keys, name, functools.partial(call, getattr(keys, name)))
        yield reached


@settings(max_examples=200)
@given(operations=OPERATIONS, packed=st.booleans())
def test_different_keys_never_conflict_and_for_one_key_the_last_commit_wins(operations, packed, tmp_path_factory):
    directory = tmp_path_factory.mktemp("c")
    indices = [index_on(directory) for _ in range(2 if packed else 3)]
    models = [Model() for _ in indices]
    truth = {}  # what the newest commit says
    removed, written, doubtful = set(), set(), False
    for index in indices:
        index.version = lambda ref: ref not in removed
        index.journals = False  # else what a failed commit superseded is left to the clean-up
    for number, (who, what, key) in enumerate(operations):
        who %= len(indices)
        index, model = indices[who], models[who]
        ref = (who + 1) << 104 | number << 64 | number if packed else f"{key}{number}"
        if what in ("set", "unwritten"):
            removed.update(index.set(key))
            if what == "set":
                removed.update(index.set(key, ref, 1))
                written.update({ref} if not packed else ())  # records go with their pack
            model.own[key] = ref if what != "unwritten" else "nowhere"
        elif what == "delete":
            if key in index.refs:
                nobody_saw_it = key not in model.seen and index.newest_check()() and not index.uncertain
                removed.update(index.delete(key))
                model.own[key] = None
                if nobody_saw_it:  # nothing is left to delete, and the handle keeps no note of it
                    del model.own[key]
        elif what == "rollback":
            index.refresh()
            removed.update(index.rollback())
            assert not (index.own() or index.fresh or index.names.reserved)
            model.own, model.seen = {}, dict(truth)
            assert index.refs == model.seen
            index.refresh()
        else:
            with index.keys.lock:
                changed = set(index.refresh()[0])
                assert {k for k, old in model.seen.items() if k not in model.own and truth.get(k) != old} <= changed
                assert not changed & set(model.own), "a key of its own was called stale"
                model.seen = dict(truth)
                reached = []
                if what != "refresh":
                    with interrupted(index.keys, what.partition("fail ")[2]) as reached:
                        orphans, refused = index.commit(what == "flush")
                        assert not refused
                        assert doubtful or not removed & set(orphans), "removed twice"
                        removed.update(orphans)
            doubtful |= bool(reached)  # what it wrote, or superseded, others may have superseded and removed meanwhile
            if what != "refresh" and reached != ["before"]:
                for k, ref in model.own.items():
                    if ref is None:
                        truth.pop(k, None)
                    elif ref != "nowhere":
                        truth[k] = ref
                model.own = {k: ref for k, ref in model.own.items() if ref == "nowhere"}
                model.seen = dict(truth)
        expected = {k: None if ref == "nowhere" else ref for k, ref in model.view().items()}
        assert index.refs == expected
        assert index.names.is_free("", "")
        assert index.names.noted == {r for r in index.known_refs() if type(r) is str}
        assert index.committed_refs() == set(model.seen.values())
        assert not removed & set(truth.values()), "a file that the index names was removed"
    assert on_disk(directory) == truth
    for index in indices:
        removed.update(commit(index)[0])
    assert packed or written - removed == set(on_disk(directory).values()) | {
        ref for index in indices for ref in index.fresh}, "a file is left that nothing names"


# What others committed.


def two(directory, refs):
    """Two handles that know of the same commit."""
    one, other = index_on(directory), index_on(directory)
    for key, ref in refs.items():
        one.set(key, ref, 1)
    commit(one, True)
    other.refresh()
    return one, other


@pytest.mark.parametrize("plain", [False, True])
def test_a_key_that_was_deleted_and_set_again_stands_last(tmp_path, plain):
    one, other = two(tmp_path, {"x": "x", "y": "y"})
    one.delete("x")
    one.set("z", "z")
    one.set("x", "x~1")
    commit(one, plain)
    other.refresh()
    assert list(one.refs) == list(other.refs) == list(on_disk(tmp_path)) == ["y", "z", "x"]


@pytest.mark.parametrize("plain", [False, True])
def test_a_record_that_moved_is_the_same_value(tmp_path, plain):
    old, new, third = 1 << 104 | 5 << 64 | LOW, 2 << 104 | 9 << 64 | LOW, 3 << 104 | LOW
    one, other = two(tmp_path, {"x": old, "y": "y", "z": old + 1, "mine": old + 2, "gone": old + 3})
    other.set("mine")
    other.delete("gone")
    one.set("y", "y~1")
    assert commit(one, plain, {old: new, old + 2: new + 2, old + 3: new + 3})[0] == ["y"]
    assert one.refs == {"x": new, "y": "y~1", "z": old + 1, "mine": new + 2, "gone": new + 3} == on_disk(tmp_path)
    assert other.refresh() == (["y"], True)
    assert other.refs == {"x": new, "y": "y~1", "z": old + 1, "mine": None}
    assert commit(other)[0] == []  # a record goes with its pack
    assert on_disk(tmp_path) == {"x": new, "y": "y~1", "z": old + 1, "mine": new + 2}
    other.set("x")  # and not written: it keeps what was committed, though that moved
    assert commit(other, True, {new: third})[0] == []
    assert on_disk(tmp_path)["x"] == third
    other.set("x", 4 << 104)
    commit(other)
    assert on_disk(tmp_path)["x"] == 4 << 104


def test_a_damaged_index_is_an_error_each_time_and_what_is_known_stays(tmp_path):
    one, other = two(tmp_path, {"x": "x"})
    one.set("y", "y")
    commit(one)
    with open(tmp_path / ".keys", "r+b") as file:
        file.seek(-30, os.SEEK_END)
        file.write(b"?")
    for _ in range(2):
        with pytest.raises(Exception, match="nothing was changed"):
            other.refresh()
        assert other.refs == {"x": "x"}


# Commits that fail.


def test_a_name_that_came_again_after_a_failed_commit_is_not_removed(tmp_path):
    index, _ = two(tmp_path, {"x": "x", "y": "y"})
    index.set("x", "x~1")
    with interrupted(index.keys, "behind"):
        commit(index)
    index.refresh()
    index.set("y", "x")  # somebody removed the file, and the name was free
    assert commit(index)[0] == ["y"]


def test_a_record_that_moved_after_a_commit_that_we_did_not_see_succeed_is_not_looked_for_at_its_old_place(tmp_path):
    index, other = two(tmp_path, {"x": "x"})
    index.set("x", 1 << 104 | LOW)
    with interrupted(index.keys, "behind"):
        commit(index)
    commit(other, True, {1 << 104 | LOW: 2 << 104 | LOW})
    index.set("y", "y")
    commit(index)
    assert on_disk(tmp_path) == {"x": 2 << 104 | LOW, "y": "y"}


def test_a_child_of_a_fork_removes_nothing_of_its_parents(tmp_path):
    index, _ = two(tmp_path, {"x": "x"})
    index.set("y", "y")
    index.after_fork()
    assert index.set("y", "y~1") == ()
    assert index.delete("y") == ("y~1",)
    assert index.set("y") == ()


def test_names_are_asked_for_while_another_thread_sets_keys(tmp_path):
    index = index_on(tmp_path)
    done = threading.Event()

    def ask():
        while not done.is_set():
            index.names.renew()
            assert index.names.next_free("never", lambda name: True) == "never"

    with thread(ask) as asked:
        for n in range(3000):
            index.set(n % 500, f"f{n}")
        done.set()
    assert asked == [None]
