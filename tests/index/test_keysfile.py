"""The file ``.keys``: what is read of it, and what is damage."""
from __future__ import annotations

import json
import os
import pickle
import zlib
from pathlib import Path

import pytest
from index.handles import another, committed, content, keys_file, put

from chest.errors import ChestError, DamagedError, LoadError
from chest.index import format
from chest.index.format import record, whole_list
from chest.serialize import Codec
from chest.storage import system
from chest.storage.keysfile import SPARE

PAIRS = [("x", "x"), (("a", 1), "_a/b"), (1, "c4ca~1"), (b"x", "y"), (None, 5 << 104 | 7)]


@pytest.fixture
def keys(tmp_path):
    return keys_file(tmp_path)


def joined(changes):
    return b"".join(record(changes))


# Reading and writing.


@pytest.mark.parametrize("pairs", [PAIRS, [(n, n << 64) for n in range(5)], [("k", 1), (True, 2), (b"", 3), (None, 4), (1.5, 5)], []])
def test_the_list_is_an_ordinary_pickle_and_so_it_is_with_records_behind(keys, pairs):
    assert (keys.changed(), keys.read()) == (False, (True, []))
    Path(keys.path + "~").write_bytes(b"half a list of another, who was killed")
    records = pairs and all(type(ref) is int for _, ref in pairs)
    steps = [ref - before for (_, ref), (_, before) in zip(pairs, [("", 0), *pairs])] if records else []
    listed = ([key for key, _ in pairs], steps) if records else pairs
    keys.replace([("before", "before")])
    keys.replace(pairs)
    assert os.listdir(os.path.dirname(keys.path)) == [".keys"]
    assert pickle.loads(content(keys)) == listed
    whole, refs = another(keys).read()
    assert whole and keys.plain() and format.alike(list(refs.items()), pairs)
    if pairs:
        assert keys.append([("more", "more")])
        assert not keys.plain()
        assert pickle.loads(content(keys)) == listed
        assert committed(keys) == {**dict(pairs), "more": "more"}


def test_only_what_was_appended_is_read_by_one_who_knows_the_rest(keys):
    keys.replace(PAIRS)
    other = another(keys)
    other.read()
    keys.append([("x", "x~1"), ("new", "new")])
    keys.append([("new", None)])
    assert other.changed()
    assert other.read() == (False, [("x", "x~1"), ("new", "new"), ("new", None)])
    assert not other.changed()
    keys.append([("x", "x")])
    keys.replace(PAIRS[:2])
    assert other.read() == (True, dict(PAIRS[:2]))


def test_two_versions_never_look_alike_though_size_and_time_are_the_same(keys):
    """Inodes are used again; but not that of a file that is held open."""
    keys.replace([("z", "name")])
    other = another(keys)
    other.read()
    seen = os.stat(keys.path)
    for key in "abcdefgh":
        keys.replace([(key, "name")])
        os.utime(keys.path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
        assert os.stat(keys.path).st_size == seen.st_size
        assert other.changed()


@pytest.mark.parametrize("records", [0, 1])
@pytest.mark.parametrize("names", ["b", "longer"])
def test_what_is_copied_over_the_file_is_read_whole_although_it_is_the_same_file_and_no_shorter(keys, names, records):
    """As ``cp -a backup/. chest/`` does."""
    for name in ("a", names):
        keys.replace([(f"{name}{n}", name) for n in range(20)])
        for n in range(records):
            keys.append([(f"{name}{n}", f"{name}~1")])
        if name == "a":
            other = another(keys)
            other.read()
            os.link(keys.path, keys.path + ".before")
    backup, right = content(keys), committed(keys)
    os.replace(keys.path + ".before", keys.path)
    assert not other.changed()
    Path(keys.path).write_bytes(backup)
    os.utime(keys.path, (1, 1))
    assert other.changed()
    assert other.read() == (True, right)


def test_the_file_is_replaced_when_the_records_outgrow_the_list(keys):
    keys.replace([(f"key{n}", f"key{n}") for n in range(1000)])
    plain = len(content(keys))
    appended = 0
    while keys.append([(f"key{appended % 1000}", "x" * 20)]):
        appended += 1
        assert len(content(keys)) <= 2 * plain + SPARE + 1000
    assert appended > 100


# Damage and torn tails.


def test_every_single_flipped_bit_is_an_error_or_gives_the_right_content(keys):
    keys.replace(PAIRS)
    for changes in ([("x", "x~1")], [("new", 3 << 104 | 9), (1, None)], [("last", "last")]):
        assert keys.append(changes)
    data, right = content(keys), committed(keys)
    assert len(right) == 6
    harmless = 0
    for bit in range(8 * len(data)):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        put(keys, bytes(broken))
        try:
            assert committed(keys) == right, bit
            harmless += 1
        except ChestError as error:
            assert keys.path in str(error)
        assert content(keys) == broken
    assert harmless < 8


@pytest.mark.parametrize("cut", ["cut off", "zeros behind"])
def test_a_record_that_is_torn_at_any_byte_was_never_committed(keys, cut):
    keys.replace(PAIRS)
    keys.append([("x", "x~1")])
    first = len(content(keys))
    keys.append([("new", "new"), ("x", None)])
    data = content(keys)
    before = {**dict(PAIRS), "x": "x~1"}
    for size in range(first, len(data)):
        put(keys, data[:size] + (bytes(len(data) - size) if cut == "zeros behind" else b""))
        other = another(keys)
        assert other.read()[1] == before, size
        assert not other.plain()
        assert size == first or not other.append([("y", "y")]), "nobody appends behind a torn record"
    other.replace(list(before.items()))
    assert committed(keys) == before
    put(keys, data)
    assert "new" in committed(keys)


@pytest.mark.parametrize("tail", [*[joined([("a", "a")])[:size] + joined([("b", "b")]) for size in (1, 20, 40)],
                                  b"garbage that is no record" * 3, b"g"])
def test_a_torn_record_that_a_whole_one_follows_and_what_no_writer_of_ours_left_is_damage(keys, tail):
    keys.replace(PAIRS)
    other = another(keys)
    other.read()
    put(keys, content(keys) + tail)
    for reader in (other, another(keys)):
        with pytest.raises(DamagedError, match="nothing was changed"):
            reader.read()


def test_a_durable_append_ends_with_a_trailer_that_is_written_when_all_else_is_on_the_disk(keys, monkeypatch):
    one, calls, real = another(keys, Codec(durable=True)), [], os.writev
    one.replace(PAIRS)
    monkeypatch.setattr(os, "writev", lambda fd, data: (calls.extend(map(len, data)), real(fd, data))[1])
    monkeypatch.setattr(system, "sync_file", lambda fd: calls.append("sync"))
    assert one.append([("new", "new")])
    assert calls == [len(joined([("new", "new")])) - 8, "sync", 8, "sync"]


def test_the_rest_of_a_record_that_was_seen_half_written_is_read_when_it_is_there(keys):
    """A reader takes no lock, and may look in the middle of another's write."""
    keys.replace(PAIRS)
    other = another(keys)
    other.read()
    data = joined([("new", "new")])
    with open(keys.path, "ab", buffering=0) as file:
        file.write(data[:20])
        assert other.read() == (False, [])
        file.write(data[20:])
    assert other.changed()
    assert other.read() == (False, [("new", "new")])


def test_magics_in_keys_are_keys_and_neighbouring_records_take_little_room(keys):
    pairs = [(format.END_OF_LIST, "a"), (format._TRAILER, "b"), (whole_list([]), "c")]
    keys.replace(pairs)
    assert keys.append([(format._TRAILER + b"2", "d"), (joined(pairs), "e")])
    assert list(committed(keys).items()) == [*pairs, (format._TRAILER + b"2", "d"), (joined(pairs), "e")]
    pairs = [(n, 7 << 104 | 60 * n << 64 | 60 << 32 | zlib.crc32(b"%d" % n)) for n in range(1000)]
    keys.replace(pairs)
    assert committed(keys) == dict(pairs) and len(content(keys)) < 16 * len(pairs)


# Lists of others.


@pytest.mark.parametrize("protocol", range(6))
def test_a_list_of_the_original_is_read_and_not_appended_to_and_another_format_is_an_error(keys, protocol):
    data = pickle.dumps(PAIRS, protocol)
    put(keys, data)
    assert keys.read()[1] == dict(PAIRS)
    assert keys.plain()
    assert not keys.append([("new", "new")])
    assert content(keys) == data
    for version in b"chest-keys 3 9.8", b"chest-keys 1 0.9":
        data = b"\x80\x05C" + bytes([len(version)]) + version + b"0" + pickle.dumps(PAIRS, 5)[2:]
        put(keys, data)
        with pytest.raises(ChestError, match=r"written by chest \d\.\d in format [13],.*upgrade"):
            keys.read()
        assert content(keys) == data


@pytest.mark.parametrize("data", [b"", b"\x80", b"no pickle", pickle.dumps(PAIRS)[:-5],
                                  *map(pickle.dumps, ([1, 2], [("x",)], [({}, "x")], [("x", 1.5)],
                                                      None, 1, "text", [("x", "x", "x")])),
                                  *[whole_list(PAIRS)[:-cut] for cut in (1, 10, 24, 25, 60)],
                                  whole_list([("x", 1.5)]), whole_list([({}, "x")])])
def test_an_index_that_cannot_be_read_is_a_clear_error_and_stays_as_it_is(keys, data):
    put(keys, data)
    with pytest.raises(LoadError, match=r"\.keys.*nothing was changed"):
        another(keys).read()
    assert content(keys) == data


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("found", [([1], [1, 2]), (["a", "b"], ["x", "y"]), (["a"], [1.5]), ([], []), ([1], [1], [1]), ([{}], [1]),
                                   ([1, 2], [1 << 145, 1]), ([1, 2], [-(1 << 145), 1])], ids=str)
def test_keys_and_steps_that_make_no_index_are_a_clear_error(keys, found, trusted, monkeypatch):
    monkeypatch.setattr(format, "dumped", lambda pairs, whole: pickle.dumps(found, 5))
    put(keys, whole_list([]))
    with pytest.raises(LoadError, match=r"\.keys.*nothing was changed"):
        another(keys, Codec(trusted=trusted)).read()


class Point(tuple):
    """A key that is no ordinary one."""


@pytest.mark.parametrize("write", [lambda keys: keys.replace([(Point(), "p")]), lambda keys: put(keys, pickle.dumps([(Point(), "p")])),
                                   lambda keys: (keys.replace([]), keys.append([(Point(), "p")]))])
def test_keys_of_classes_are_loaded_where_that_is_trusted_and_refused_else(keys, write):
    write(keys)
    assert list(map(type, committed(keys))) == [Point]
    with pytest.raises(LoadError, match="Point"):
        another(keys, Codec(trusted=False)).read()


def json_keys(keys, mode="t"):
    return another(keys, Codec(dump=json.dump, load=json.load, mode=mode))


@pytest.mark.parametrize("mode", ["b", "t"])
def test_json_is_written_where_it_gives_back_the_same_keys_and_a_pickle_is_read_all_the_same(keys, mode):
    pairs = [("x", "x"), (("a", ("b", "c")), "_a/b"), (3, 5 << 104), (None, "n"), ((float("inf"), 1.0), "i")]
    json_keys(keys, mode).replace(pairs)
    assert json.loads(content(keys)) == [["x", "x"], [["a", ["b", "c"]], "_a/b"], [3, 5 << 104], [None, "n"],
                                         [[float("inf"), 1.0], "i"]]
    found = json_keys(keys, mode)
    assert found.read() == (True, dict(pairs))
    assert found.plain()
    assert not found.append([("new", "new")])
    for data in whole_list(PAIRS), pickle.dumps(PAIRS, 2):
        put(keys, data)
        assert json_keys(keys, mode).read() == (True, dict(PAIRS))


class Odd(str):
    """Becomes an ordinary string in json, silently."""


@pytest.mark.parametrize("key", [1.5j, b"x", frozenset("x"), Odd("x"), (Odd("x"),)])
def test_a_pickle_is_written_where_json_cannot_or_would_change_a_type(keys, key):
    json_keys(keys).replace([(key, "x")])
    assert pickle.loads(content(keys)) == [(key, "x")]
    (found,) = json_keys(keys).read()[1]
    assert format.alike(found, key)


def test_another_format_never_hides_records_behind_a_header_that_is_damaged(keys):
    data = bytearray(whole_list(PAIRS) + joined([("new", "new")]))
    data[6] ^= 1
    put(keys, bytes(data))
    for codec in (Codec(dump=pickle.dump, load=pickle.load), Codec(dump=json.dump, load=json.load), Codec()):
        with pytest.raises(DamagedError):
            another(keys, codec).read()


# What the system refuses.


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("real", path), lambda path: os.symlink("nowhere", path)],
                         ids=["pipe", "folder", "link", "dead link"])
@pytest.mark.parametrize("codec", [Codec(), Codec(dump=json.dump, load=json.load)], ids=["native", "json"])
def test_only_a_regular_file_is_an_index(keys, make, codec):
    Path(keys.path).with_name("real").write_bytes(whole_list(PAIRS))
    make(keys.path)
    reader = another(keys, codec)
    assert reader.changed()
    with pytest.raises(OSError, match=r"\.keys"):
        reader.read()


