"""The user's own dump, load, open and mode, and what tells that a dump is under way."""
from __future__ import annotations

import bz2
import gc
import gzip
import json
import os
import pickle
import threading
import weakref
from contextlib import suppress

import pytest

from chest.serialize import Codec, codec
from chest.serialize.aligned import stamp_of

VALUE = {"text": "ä", "list": [1, 2.5, None]}
CODECS = {
    "json": dict(dump=json.dump, load=json.load),
    "json as text": dict(dump=json.dump, load=json.load, mode="t"),
    "gzip": dict(open=gzip.open),
    "json in gzip": dict(dump=json.dump, load=json.load, open=gzip.open),
    "json as text in bz2": dict(dump=json.dump, load=json.load, open=bz2.open, mode="t"),
    "pickle": dict(dump=pickle.dump, load=pickle.load),
    "own": {},
}


@pytest.mark.parametrize("name", CODECS)
def test_values_come_back_from_bytes_and_from_files_and_a_dump_that_fails_leaves_nothing(name, tmp_path):
    made = Codec(**CODECS[name])
    path = str(tmp_path / "value")
    made.dump_to(VALUE, path)
    assert made.load_from(path) == VALUE
    assert made.same_from(VALUE, path) and not made.same_from({**VALUE, "more": 1}, path)
    encoded = made.encode(VALUE)
    data = b"".join(encoded.pieces)
    assert made.decode(data) == VALUE and made.decode_file(data + encoded.note())[0] == VALUE
    assert len(data) == encoded.nbytes and encoded.stamp == stamp_of(data)
    assert made.unchanged(VALUE, encoded.stamp) is True and made.unchanged([VALUE], encoded.stamp) is False
    assert made.same(VALUE, data) and not made.same([VALUE], data)
    data = b"".join(made.encode([(1, 2)]).pieces)
    assert made.same(made.decode(data), data), "json makes lists of tuples"
    assert made.native == (name == "own") and made.local == ("open" not in CODECS[name])
    with pytest.raises(FileExistsError):
        made.dump_to(VALUE, path)
    for fails in (lambda value: made.dump_to(value, path + "2"), made.encode):
        with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
            fails({"x": lambda: 1})
    assert os.listdir(tmp_path) == ["value"]


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="links are followed on this system")
def test_links_are_not_followed_and_pipes_do_not_hang(tmp_path):
    made, target = Codec(json.dump, json.load), tmp_path / "target"
    target.write_text("1")
    os.symlink(target, tmp_path / "link")
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "dangling"):
        with pytest.raises(OSError):
            made.load_from(str(tmp_path / name))
        for settings in ({}, {"open": gzip.open}):
            with pytest.raises(FileExistsError):
                Codec(json.dump, json.load, **settings).dump_to(2, str(tmp_path / name))
    assert target.read_text() == "1" and not (tmp_path / "nowhere").exists()


class Watching:
    """Notes whether a dump is under way when it is pickled; dumps another value meanwhile."""

    seen: list = []

    def __reduce__(self):
        other = []
        thread = threading.Thread(target=lambda: other.append(codec.dumping()))
        thread.start()
        thread.join()
        inner = Codec().encode(["inner"])
        self.seen.append((codec.dumping(), other[0], b"".join(inner.pieces)[-20:].count(b"inner")))
        return str, ("x",)


@pytest.mark.parametrize("fails", [False, True])
def test_a_dump_says_that_it_is_under_way_in_its_thread(fails, tmp_path):
    value = [Watching(), (lambda: 1) if fails else 1]
    made, user = Codec(), Codec(pickle.dump, pickle.load)
    for work in (lambda: made.encode(value), lambda: made.unchanged(value, 1), lambda: user.encode(value),
                 lambda: user.dump_to(value, str(tmp_path / "x")), lambda: made.same(value, b"")):
        Watching.seen.clear()
        try:
            work()
        except Exception:
            assert fails
        assert set(Watching.seen) == {(True, False, 1)}
        assert not codec.dumping()
    assert made.decode(b"".join(made.encode([Watching(), 1]).pieces)) == ["x", 1]


def test_nothing_is_held_of_a_value_when_it_was_encoded():
    class Thing:
        def __init__(self, more):
            self.more = more

        def __reduce__(self):
            return (str, ("x",)) if self.more is None else (list, (self.more,))

    for more in (None, [lambda: 1]):
        thing = Thing(more)
        gone = weakref.ref(thing)
        with suppress(pickle.PicklingError, AttributeError):
            Codec().encode([thing])
        del thing
        gc.collect()
        assert gone() is None
