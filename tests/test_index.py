"""The index alone: the file ``.keys``, and what several handles on one file make of each other's commits."""
from __future__ import annotations

import contextlib
import json
import os
import pickle
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chest import Chest, keysfile
from chest.codec import Codec
from chest.errors import ChestError, LoadError
from chest.index import Index
from chest.keysfile import SPARE, KeysFile, header, records
from chest.names import Names

PAIRS = [("x", "x"), (("a", 1), "_a/b"), (1, "c4ca~1"), (b"x", "y"), (None, "z")]


@pytest.fixture
def keys(tmp_path):
    return KeysFile(str(tmp_path), Codec(), durable=False)


def another(keys, codec=None):
    """What another process has of the same file."""
    return KeysFile(os.path.dirname(keys.path), codec or Codec(), durable=False)


def content(keys):
    with open(keys.path, "rb") as file:
        return file.read()


def write(keys, data):
    """Put other bytes into place, in a new file as every writer does."""
    with open(keys.path + ".new", "wb") as file:
        file.write(data)
    os.replace(keys.path + ".new", keys.path)


def committed(keys):
    return dict(another(keys).read()[1])


# The file.


def test_no_file_is_an_empty_index(keys):
    assert keys.current() is None
    assert keys.read() == (True, [])


def test_what_is_replaced_is_read_in_order_with_types_as_they_were(keys):
    keys.replace(PAIRS)
    whole, pairs = another(keys).read()
    assert (whole, pairs) == (True, PAIRS)
    assert [type(key) for key, _ in pairs] == [type(key) for key, _ in PAIRS]


def test_the_list_is_an_ordinary_pickle_and_so_it_is_with_records_behind(keys):
    keys.replace(PAIRS)
    assert pickle.loads(content(keys)) == PAIRS
    assert keys.plain()
    keys.append([("more", "more")])
    assert not keys.plain()
    assert pickle.loads(content(keys)) == PAIRS


def test_replacing_leaves_nothing_but_the_file(keys):
    keys.replace(PAIRS)
    keys.replace(PAIRS[:1])
    assert os.listdir(os.path.dirname(keys.path)) == [".keys"]


def test_a_leftover_of_a_replacement_that_was_killed_is_in_nobodys_way(keys):
    with open(keys.path + "~", "wb") as file:
        file.write(b"half a li")
    keys.replace(PAIRS)
    assert committed(keys) == dict(PAIRS)
    assert os.listdir(os.path.dirname(keys.path)) == [".keys"]


def test_an_append_writes_what_changed_and_not_the_list(keys):
    many = [(f"key{n}", f"key{n}") for n in range(10_000)]
    keys.replace(many)
    before = len(content(keys))
    assert keys.append([("key7", "key7~1")])
    assert len(content(keys)) - before < 100


def test_only_what_was_appended_is_read_by_one_who_knows_the_rest(keys):
    keys.replace(PAIRS)
    other = another(keys)
    other.read()
    keys.append([("x", "x~1"), ("new", "new")])
    keys.append([("new", None)])
    assert other.current() != other.signature
    assert other.read() == (False, [("x", "x~1"), ("new", "new"), ("new", None)])
    assert other.current() == other.signature


def test_all_is_read_after_a_replacement(keys):
    keys.replace(PAIRS)
    other = another(keys)
    other.read()
    keys.append([("x", "x~1")])
    keys.replace(PAIRS[:2])
    assert other.read() == (True, PAIRS[:2])


def test_a_look_that_finds_nothing_new_is_one_stat(keys, monkeypatch):
    keys.replace(PAIRS)
    calls = []
    for name in ("stat", "open", "fstat", "lstat"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real, **k: (calls.append(name), real(*a, **k))[1])
    assert keys.current() == keys.signature
    assert calls == ["stat"]


def test_two_versions_never_look_alike_though_size_and_time_are_the_same(keys):
    """Inodes are used again; but not that of a file that is held open."""
    versions = [[(key, "name")] for key in "zabcdefgh"]  # all of one size
    keys.replace(versions[0])
    other = another(keys)
    other.read()
    seen = os.stat(keys.path)
    for version in versions[1:]:
        keys.replace(version)
        os.utime(keys.path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
        assert os.stat(keys.path).st_size == seen.st_size
        assert other.current() != other.signature


def test_the_file_is_replaced_when_the_records_outgrow_the_list(keys):
    many = [(f"key{n}", f"key{n}") for n in range(1000)]
    keys.replace(many)
    plain = len(content(keys))
    appended = 0
    while keys.append([(f"key{appended % 1000}", "x" * 20)]):
        appended += 1
        assert len(content(keys)) <= 2 * plain + SPARE + 1000
    assert appended > 100


def test_an_append_needs_the_default_settings_and_a_list_to_stand_behind(keys, tmp_path):
    assert not keys.append([("x", "x")])
    other = KeysFile(str(tmp_path), Codec(dump=pickle.dump, load=pickle.load), durable=False)
    other.replace(PAIRS)
    assert not other.append([("new", "new")])
    assert pickle.loads(content(keys)) == PAIRS


def test_a_list_that_may_only_be_read_is_read_and_an_append_says_that_it_may_not(keys, monkeypatch):
    keys.replace(PAIRS)
    real = os.open

    def refuse(path, flags, *args, **kwargs):
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise PermissionError(13, "Permission denied", path)
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    reader = another(keys)
    assert reader.read() == (True, PAIRS)
    with pytest.raises(PermissionError, match="Permission denied"):
        reader.append([("x", "x~1")])
    assert reader.read() == (False, [])


# Torn tails.


def test_a_record_that_is_torn_at_any_byte_was_never_committed(keys):
    keys.replace(PAIRS)
    keys.append([("x", "x~1")])
    first = len(content(keys))
    keys.append([("new", "new"), ("x", None)])
    data = content(keys)
    before = {**dict(PAIRS), "x": "x~1"}
    for size in range(first, len(data)):
        write(keys, data[:size])
        assert committed(keys) == before, size
    write(keys, data)
    assert "new" in committed(keys)


def test_a_record_with_one_wrong_bit_was_never_committed(keys):
    keys.replace(PAIRS)
    first = len(content(keys))
    keys.append([("new", "new")])
    data = content(keys)
    for position in range(first, len(data)):
        broken = bytearray(data)
        broken[position] ^= 1
        write(keys, bytes(broken))
        assert committed(keys) == dict(PAIRS), position


@pytest.mark.parametrize("tail", [b"\0", b"+chs", b"\0" * 500, b"garbage that is no record" * 3])
def test_nobody_appends_behind_a_torn_record(keys, tail):
    keys.replace(PAIRS)
    other = another(keys)
    other.read()
    with open(keys.path, "ab") as file:
        file.write(tail)
    assert other.read() == (False, [])
    assert not other.append([("new", "new")])
    assert not other.plain()
    other.replace([*PAIRS, ("new", "new")])
    assert committed(keys) == {**dict(PAIRS), "new": "new"}


def test_the_rest_of_a_record_that_was_seen_half_written_is_read_when_it_is_there(keys):
    """A reader takes no lock, and may look in the middle of another's write."""
    keys.replace(PAIRS)
    other = another(keys)
    other.read()
    body = pickle.dumps([("new", "new")], 5)
    data = struct.pack("<4sQI", b"+chs", len(body), zlib.crc32(body)) + body
    with open(keys.path, "ab", buffering=0) as file:
        file.write(data[:20])
        assert other.read() == (False, [])
        file.write(data[20:])
    assert other.current() != other.signature
    assert other.read() == (False, [("new", "new")])


def test_the_first_commit_after_a_crash_makes_the_file_plain(keys):
    keys.replace(PAIRS)
    keys.append([("x", "x~1")])
    fresh = another(keys)
    fresh.read()
    assert not fresh.append([("y", "y")])


@given(st.lists(st.lists(st.tuples(st.integers(0, 5), st.none() | st.text("abc", min_size=1)), max_size=4), max_size=5),
       st.integers(0, 2000))
def test_whole_records_are_read_and_nothing_behind_them(commits, cut):
    data = b"".join(keysfile.record(changes) for changes in commits)[:cut]
    changes, end = records(data)
    assert end <= len(data)
    whole = 0
    for commit in commits:
        size = len(keysfile.record(commit))
        if whole + size > end:
            break
        assert changes[: len(commit)] == commit
        changes, whole = changes[len(commit):], whole + size
    assert (changes, whole) == ([], end)
    assert len(data) - end < max((len(keysfile.record(c)) for c in commits), default=1)


# Lists of others.


def test_a_list_of_the_original_is_read(keys):
    for protocol in range(6):
        write(keys, pickle.dumps(PAIRS, protocol))
        assert committed(keys) == dict(PAIRS), protocol


def test_a_list_of_the_original_is_not_appended_to(keys):
    write(keys, pickle.dumps(PAIRS, 2))
    keys.read()
    assert not keys.append([("new", "new")])
    assert content(keys) == pickle.dumps(PAIRS, 2)


def test_a_newer_format_is_an_error_that_names_the_version_and_changes_nothing(keys):
    text = b"chest-keys 2 9.8"
    data = b"\x80\x05C" + bytes([len(text)]) + text + b"0" + pickle.dumps(PAIRS, 5)[2:]
    write(keys, data)
    with pytest.raises(ChestError, match=r"written by chest 9\.8.*upgrade"):
        keys.read()
    with pytest.raises(ChestError, match="upgrade"):
        Chest(path=os.path.dirname(keys.path))
    assert content(keys) == data


def test_what_another_version_of_this_format_wrote_is_read(keys):
    text = b"chest-keys 1 0.0.1.dev"
    write(keys, b"\x80\x05C" + bytes([len(text)]) + text + b"0" + pickle.dumps(PAIRS, 5)[2:])
    assert committed(keys) == dict(PAIRS)


@pytest.mark.parametrize("data", [b"", b"\x80", b"no pickle", pickle.dumps(PAIRS)[:-5], pickle.dumps(3),
                                  pickle.dumps([1, 2]), pickle.dumps([("x",)]), pickle.dumps([({}, "x")]), header()])
def test_an_index_that_cannot_be_read_is_a_clear_error_and_stays_as_it_is(keys, data):
    write(keys, data)
    with pytest.raises(LoadError, match=r"\.keys.*nothing was changed"):
        another(keys).read()
    with pytest.raises(LoadError, match=r"\.keys"):
        Chest(path=os.path.dirname(keys.path))
    assert content(keys) == data


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", ".keys", "a/../../x", "", "a//b", "_a/.b", ".small/x", ".small/5", "x\0", 0, -1, 1 << 63])
def test_a_name_that_points_outside_is_a_clear_error(keys, name):
    write(keys, pickle.dumps([("fine", "fine"), ("bad", name)]))
    with pytest.raises(ChestError, match="outside"):
        another(keys).read()
    keys.replace([("bad", name)])
    with pytest.raises(ChestError, match="outside"):
        another(keys).read()


def test_a_name_that_points_outside_is_an_error_in_a_record_too(keys):
    keys.replace(PAIRS)
    other = another(keys)
    other.read()
    keys.append([("bad", "../x")])
    with pytest.raises(ChestError, match="outside"):
        other.read()
    with pytest.raises(ChestError, match="outside"):
        another(keys).read()


# The user's own format.


def json_keys(keys, mode):
    return another(keys, Codec(dump=json.dump, load=json.load, mode=mode))


@pytest.mark.parametrize("mode", ["b", "t"])
def test_json_is_written_where_it_gives_back_the_same_keys(keys, mode):
    pairs = [("x", "x"), (("a", ("b", "c")), "_a/b")]
    json_keys(keys, mode).replace(pairs)
    assert json.loads(content(keys)) == [["x", "x"], [["a", ["b", "c"]], "_a/b"]]
    assert json_keys(keys, mode).read() == (True, pairs)


@pytest.mark.parametrize("key", [1.5j, b"x", frozenset("x")])
def test_a_pickle_is_written_where_json_cannot(keys, key):
    mine = json_keys(keys, "t")
    mine.replace([(key, "x")])
    assert pickle.loads(content(keys)) == [(key, "x")]
    assert json_keys(keys, "t").read() == (True, [(key, "x")])


class Odd(str):
    """Becomes an ordinary string in json, silently."""


def test_a_pickle_is_written_where_json_would_change_a_type(keys):
    json_keys(keys, "t").replace([(Odd("x"), "x")])
    (key, _), = json_keys(keys, "t").read()[1]
    assert type(key) is Odd


def test_a_pickle_is_written_where_numpy_makes_strings_of_everything(keys):
    np = pytest.importorskip("numpy")
    mine = another(keys, Codec(dump=lambda value, file: np.save(file, value), load=np.load))
    mine.replace([(1, "x"), (2, "y")])
    assert committed(mine) == {1: "x", 2: "y"}
    assert pickle.loads(content(keys)) == [(1, "x"), (2, "y")]


def test_a_pickle_is_read_though_another_format_is_asked_for(keys):
    keys.replace(PAIRS)
    assert json_keys(keys, "t").read() == (True, PAIRS)


def test_a_full_disk_leaves_the_old_list(keys, monkeypatch):
    keys.replace(PAIRS)
    before = content(keys)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keysfile.system, "replace", full)
    with pytest.raises(OSError, match="No space"):
        keys.replace(PAIRS[:1])
    assert content(keys) == before
    assert os.listdir(os.path.dirname(keys.path)) == [".keys"]


# The index over it.


class Commits:
    """A ``.keys`` that several handles share without a file: the rules of merging, and nothing else."""

    def __init__(self):
        self.list, self.records = [], []
        self.version = 0

    def handle(self):
        return SharedKeys(self)


class SharedKeys:
    gate = contextlib.nullcontext()

    def __init__(self, shared):
        self.shared = shared
        self.signature = None
        self.seen = 0

    def current(self):
        return (self.shared.version, len(self.shared.records)) if self.shared.version else None

    def newest(self):
        return self.current() == self.signature

    def read(self):
        known = self.signature is not None and self.signature[0] == self.shared.version
        new = self.shared.records[self.signature[1] if known else 0:]
        self.signature = self.current()
        if known:
            return False, [change for commit in new for change in commit]
        names = dict(self.shared.list)
        for commit in new:
            keysfile.apply(names, commit)
        return True, list(names.items())

    def append(self, changes):
        if len(self.shared.records) > 2 or not self.shared.version:
            return False
        self.shared.records.append(list(changes))
        self.signature = self.current()
        return True

    def replace(self, pairs):
        self.shared.list, self.shared.records = list(pairs), []
        self.shared.version += 1
        self.signature = self.current()

    def plain(self):
        return self.signature is not None and not self.shared.records

    def close(self):
        self.signature = None


class Model:
    """What one handle must know: the newest commit it looked at, and its own changes since its own last commit."""

    def __init__(self):
        self.seen, self.own = {}, {}

    def view(self):
        view = dict(self.seen)
        for key, name in self.own.items():
            view.pop(key, None) if name is None or key not in view else None
            if name is not None:
                view[key] = name
        return view


def commit(index, plain):
    """As a chest commits: what others did first.  Returns the keys that they changed, and the names that are free."""
    with index.gate:
        return refreshed(index), index.commit(plain)


def refreshed(index):
    """The keys that others changed, let go of at once."""
    index.refresh()
    stale = list(index.stale)
    index.stale.clear()
    return stale


OPERATIONS = st.lists(st.tuples(
    st.integers(0, 2),  # which handle
    st.sampled_from(["set", "set", "set", "delete", "refresh", "sync", "sync", "flush", "unwritten"]),
    st.sampled_from("xyz")), max_size=40)


@settings(max_examples=300)
@given(OPERATIONS)
def test_different_keys_never_conflict_and_for_one_key_the_last_commit_wins(operations):
    shared = Commits()
    indices = [Index(shared.handle(), Names()) for _ in range(3)]
    models = [Model() for _ in range(3)]
    truth = {}  # what the newest commit says
    removed, written = set(), set()
    for number, (who, what, key) in enumerate(operations):
        index, model = indices[who], models[who]
        if what in ("set", "unwritten"):
            removed.update(filter(None, [index.set(key)]))
            if what == "set":
                index.set(key, f"{key}{number}")
                written.add(f"{key}{number}")
            model.own[key] = f"{key}{number}" if what == "set" else "nowhere"
        elif what == "delete":
            if key in index.names:
                nobody_saw_it = key not in model.seen and index.unchanged()()
                removed.update(filter(None, [index.delete(key)]))
                model.own[key] = None
                if nobody_saw_it:  # nothing is left to delete, and the handle keeps no note of it
                    del model.own[key]
        else:
            stale = refreshed(index) if what == "refresh" else None
            if stale is None:
                stale, orphans = commit(index, plain=what == "flush")
                assert not removed & set(orphans), "removed twice"
                removed.update(orphans)
            assert {k for k, name in model.seen.items() if k not in model.own and truth.get(k) != name} <= set(stale)
            assert not set(stale) & set(model.own), "a key of its own was called stale"
            if what != "refresh":
                for k, name in model.own.items():
                    if name is None:
                        truth.pop(k, None)
                    elif name != "nowhere":
                        truth[k] = name
                model.own = {k: name for k, name in model.own.items() if name == "nowhere"}
            model.seen = dict(truth)
        expected = {k: None if name == "nowhere" else name for k, name in model.view().items()}
        assert index.names == expected
    last = Index(shared.handle(), Names())
    last.refresh()
    assert last.names == truth
    assert not removed & set(truth.values()), "a file that the index names was removed"
    for index in indices:
        removed.update(commit(index, plain=False)[1])
    last.refresh()
    assert written - removed == {name for name in last.names.values() if name} | {
        name for index in indices for name in index.uncommitted()}, "a file is left that nothing names"


@given(OPERATIONS)
def test_keys_stand_in_the_order_in_which_they_were_set(operations):
    """With one handle the order is that of a dict; the list on disk has it too."""
    shared = Commits()
    index, expected = Index(shared.handle(), Names()), {}
    for number, (_, what, key) in enumerate(operations):
        if what == "set":
            index.set(key)
            index.set(key, f"{key}{number}")
            expected[key] = f"{key}{number}"
        elif what == "delete" and key in expected:
            index.delete(key)
            del expected[key]
        elif what in ("sync", "flush"):
            commit(index, plain=what == "flush")
            fresh = Index(shared.handle(), Names())
            fresh.refresh()
            assert list(fresh.names.items()) == list(expected.items())
        assert list(index.names.items()) == list(expected.items())


def test_a_commit_that_fails_leaves_the_changes_pending_and_the_files_fresh():
    shared = Commits()
    keys = shared.handle()
    index = Index(keys, Names())
    index.set("x")
    index.set("x", "x")

    def refuse(pairs):
        raise OSError(28, "No space left on device")

    keys.replace = refuse
    with pytest.raises(OSError, match="No space"):
        commit(index, plain=False)
    del keys.replace
    index.refresh()
    assert index.own() == ["x"]
    assert index.uncommitted() == ["x"]
    assert index.delete("x") == "x", "nobody will ever remove it"


def test_a_commit_that_fails_after_it_is_done_never_removes_what_it_named():
    """An error, or Ctrl-C, can come between the rename and our hearing of it."""
    shared = Commits()
    keys = shared.handle()
    index = Index(keys, Names())
    index.set("x")
    index.set("x", "x")
    real = keys.replace

    def interrupted(pairs):
        real(pairs)
        raise KeyboardInterrupt

    keys.replace = interrupted
    with pytest.raises(KeyboardInterrupt):
        commit(index, plain=False)
    keys.replace = real
    assert index.set("x") is None, "the file that the newest index names was to be removed"
    index.set("x", "x~1")
    assert commit(index, plain=False) == ([], ["x"])


def test_a_key_that_was_deleted_stays_deleted_after_a_commit_that_failed_when_it_was_done():
    shared = Commits()
    keys = shared.handle()
    index = Index(keys, Names())
    index.set("x")
    index.set("x", "x")
    real = keys.replace

    def interrupted(pairs):
        real(pairs)
        raise KeyboardInterrupt

    keys.replace = interrupted
    with pytest.raises(KeyboardInterrupt):
        commit(index, plain=False)
    keys.replace = real
    index.delete("x")
    commit(index, plain=True)
    fresh = Index(shared.handle(), Names())
    fresh.refresh()
    assert fresh.names == {}


def test_a_commit_that_changes_nothing_writes_nothing_unless_a_plain_list_is_asked_for(keys):
    keys.replace(PAIRS)
    keys.append([("x", "x~1")])
    before = keys.current()
    index = Index(another(keys), Names())
    commit(index, plain=False)
    assert keys.current() == before
    commit(index, plain=True)
    assert pickle.loads(content(keys))[0] == ("x", "x~1")
    before = keys.current()
    commit(index, plain=True)
    assert keys.current() == before


def test_a_child_of_a_fork_keeps_what_its_parent_had_not_saved_until_that_key_is_committed():
    shared = Commits()
    parent = Index(shared.handle(), Names())
    for key in "xyz":
        parent.set(key)
    parent.set("y", "y")
    other = Index(shared.handle(), Names())
    other.set("o")
    other.set("o", "o")
    commit(other, plain=True)
    child = Index(shared.handle(), Names())
    child.names, child.pending, child._fresh = dict(parent.names), dict(parent.pending), dict(parent._fresh)
    child.after_fork()
    child.refresh()
    assert child.names == {"o": "o", "x": None, "y": "y", "z": None}
    assert child.own() == []
    child.set("z")
    child.set("z", "z")
    commit(child, plain=False)
    assert dict(shared.list + shared.records[-1]) == {"o": "o", "z": "z"}
    parent.set("x", "x")
    parent.delete("z")
    commit(parent, plain=False)
    assert set(refreshed(child)) == {"x", "y", "z"}
    assert child.names == {"o": "o", "x": "x", "y": "y"}


def test_a_name_that_was_reserved_stays_taken_once_it_is_used():
    names = Names()
    index = Index(Commits().handle(), names)
    names.reserve("x", "x")
    index.set("x")
    index.set("x", "x")
    assert names.taken == {"x"}
    assert not names.reserved
    assert index.delete("x") == "x"
    assert not names.taken
