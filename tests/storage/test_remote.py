"""Values and index in a store: the promises of a directory over fsspec, and as few round trips as can be."""
from __future__ import annotations

import asyncio
import functools
import gzip
import json
import os
import pickle
import subprocess
import sys
import traceback
import types
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from children import Stop, forked

from chest import Chest
from chest.errors import ChestError, DamagedError, LoadError
from chest.index import Names
from chest.serialize import Codec
from chest.storage.base import LENGTH, OFFSET, PACK

fsspec = pytest.importorskip("fsspec", reason="a chest at a URL needs fsspec")

from fsspec.asyn import AsyncFileSystem  # noqa: E402
from fsspec.implementations.memory import MemoryFileSystem  # noqa: E402
from storage.directories import Interrupts  # noqa: E402
from storage.servers import S3, SFTP  # noqa: E402

from chest.storage.remote import Remote  # noqa: E402
from chest.storage.store import redacted  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the packages below fsspec
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),  # connections of a server that was ended
]


class Objects(AsyncFileSystem):
    """An object store in memory, with tags and conditional puts; it counts what is asked, and can refuse it."""

    protocol = ("objects", "s3")
    store: dict = {}
    calls: list = []
    kept: list = []  # what was replaced, so that no id comes back
    before = staticmethod(lambda what, path: None)
    under_way = peak = 0

    @classmethod
    def _strip_protocol(cls, path):
        return path.partition("://")[2].strip("/") if "://" in path else path

    async def _call(self, what, path):
        Objects.calls.append((what, path))
        Objects.under_way += 1
        Objects.peak = max(Objects.peak, Objects.under_way)
        try:
            for _ in range(3):
                await asyncio.sleep(0)  # a chance for the others of a bulk
            self.before(what, path)
        finally:
            Objects.under_way -= 1

    async def _pipe_file(self, path, value, mode="overwrite", IfMatch=None):
        await self._call("put", path)
        there = self.store.get(path)
        if (mode == "create" and there is not None) or (IfMatch is not None and IfMatch != str(id(there))):
            raise OSError(22, "At least one of the pre-conditions you specified did not hold")
        self.kept.append(there)
        self.store[path] = bytearray(value)
        return {"ETag": str(id(self.store[path]))}

    async def _cat_file(self, path, version_id=None, start=None, end=None):  # in the order of s3fs
        assert version_id is None
        await self._call("get", path)
        return bytes(self._there(path)[start:end])

    async def _info(self, path, **kwargs):
        await self._call("info", path)
        return {"name": path, "size": len(self._there(path)), "type": "file", "ETag": str(id(self.store[path]))}

    async def _rm_file(self, path, **kwargs):
        await self._call("remove", path)
        self._there(path)
        del self.store[path]

    async def _ls(self, path, detail=True, **kwargs):
        await self._call("list", path)
        return [{"name": name, "size": len(data), "type": "file"} for name, data in self.store.items()
                if name.startswith(path + "/")]

    def _there(self, path):
        if path in self.store:
            return self.store[path]
        raise FileNotFoundError(path)


fsspec.register_implementation("objects", Objects, clobber=True)


@pytest.fixture(autouse=True)
def fresh_stores():
    Objects.before = staticmethod(lambda what, path: None)
    Objects.store.clear()
    Objects.calls.clear()
    Objects.peak = 0
    MemoryFileSystem.store.clear()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """``server(S3)``, ``server(SFTP)``: started when it is asked for first."""
    with ExitStack() as stack:
        yield functools.cache(lambda kind: stack.enter_context(kind(tmp_path_factory.mktemp(kind.kind))))


class Place:
    """A URL where nothing is yet, and fsspec's own view of it."""

    def __init__(self, url, server=None):
        self.url, self.server, self.options = url, server, server.options if server else {}
        self.fs, self.base = fsspec.core.url_to_fs(url, skip_instance_cache=True, **self.options)
        self.fs = getattr(self.fs, "fs", self.fs)

    def open(self, codec=None, **settings):
        values = Remote(self.url, self.options, codec or Codec(**settings), Names())
        values.make()
        return values, values.keys

    def names(self):
        try:
            self.fs.invalidate_cache()
            return sorted(name[len(self.base):].strip("/") for name in self.fs.find(self.base))
        except FileNotFoundError:
            return []


@pytest.fixture(params=["memory", "file", "cached", "objects", "sftp", "s3"])
def place(request, server, tmp_path):
    if request.param in ("sftp", "s3"):
        served = server({"sftp": SFTP, "s3": S3}[request.param])
        return Place(f"{served.url}/{tmp_path.name}", served)
    return Place({"memory": "memory://a/chest", "file": f"file://{tmp_path}/chest", "objects": "objects://a/chest",
                  "cached": "simplecache::memory://a/chest"}[request.param])


@pytest.fixture
def objects():
    return Place("objects://a/chest")


@pytest.fixture
def values(objects):
    return objects.open()[0]


def written(values, items, small=0):
    """The refs of ``items``, a dict."""
    done = values.write(list(items.items()), small)
    assert [one.error for one in done] == [None] * len(items)
    return {key: one.ref for key, one in zip(items, done)}


def many(values, refs):
    """The values of ``refs``, a dict, loaded together."""
    return [one.value for one in values.load_many(list(refs.values()))]


def calls(what=None):
    found = [path for call, path in Objects.calls if what in (None, call)]
    Objects.calls.clear()
    return found


VALUES = {"x": [1, 2], ("a", "b"): "in a folder", 1: b"int", "large": bytes(10_000), "k" * 300: None}


# Values.


@pytest.mark.parametrize("small", [0, 1000, 1 << 40])
def test_what_was_written_is_there_for_the_next_handle(place, small):
    refs = written(place.open()[0], VALUES, small)
    values, _ = place.open()
    assert {key: values.load(ref).value for key, ref in refs.items()} == VALUES
    found = list(values.load_many(list(refs.values())))
    assert [one.value for one in found] == list(VALUES.values())
    assert [one.nbytes for one in found] == [values.size(ref) for ref in refs.values()]
    packs = [name for name in place.names() if name.startswith(".packs/")]
    assert (len(packs), len(place.names())) == {0: (0, 5), 1000: (1, 2), 1 << 40: (1, 1)}[small]
    assert sum(type(ref) is int for ref in refs.values()) == {0: 0, 1000: 4, 1 << 40: 5}[small]


def test_a_thousand_small_values_take_one_put_and_one_get(values):
    calls()
    refs = written(values, {n: [n] for n in range(1000)}, 4096)
    assert len(calls()) == 1
    for order in range(1000), range(900, 0, -97):
        assert many(values, {n: refs[n] for n in order}) == [[n] for n in order]
        assert len(calls()) == 1


def test_large_values_travel_several_at_once_and_their_names_never_come_again(objects, values, monkeypatch):
    items = {n: bytes([n]) * 5000 for n in range(96)}
    first, second = written(values, items), written(values, items)
    assert Objects.peak > 8
    Objects.peak = 0
    assert many(values, first) == list(items.values())
    assert Objects.peak > 8
    values.remove(list(first.values()))
    assert len(calls("put")) == len({*first.values(), *second.values()}) == 192
    assert set(objects.names()) == set(second.values())
    monkeypatch.setattr("chest.storage.remote._AT_ONCE", 5000)
    Objects.peak = 0
    third = written(values, items)
    assert many(values, third) == list(items.values())
    assert Objects.peak == 1  # no further one goes along with so many bytes


def test_damage_is_told_from_what_is_gone_and_the_other_values_come(place):
    if place.url.startswith("simplecache"):
        pytest.skip("the cache has them as they were")
    values, _ = place.open()
    refs = written(values, {n: [n] * 100 for n in range(4)}, 1000)
    refs.update(written(values, {"cut": bytes(9000), "gone": bytes(9000), "well": bytes(9000)}))
    pack = f"{place.base}/.packs/{refs[0] >> PACK:010x}"
    data = bytearray(place.fs.cat_file(pack))
    data[(refs[2] >> OFFSET) % (1 << 40) + 7] ^= 4
    place.fs.pipe_file(pack, bytes(data))
    place.fs.pipe_file(f"{place.base}/{refs['cut']}", bytes(100))
    place.fs.rm_file(f"{place.base}/{refs['gone']}")
    found = dict(zip(refs, values.load_many(list(refs.values()))))
    assert {key: type(one) for key, one in found.items() if isinstance(one, Exception)} == {
        2: DamagedError, "cut": DamagedError, "gone": FileNotFoundError}
    assert found[1].value == [1] * 100
    for key, error in ((2, DamagedError), ("cut", DamagedError), ("gone", FileNotFoundError)):
        with pytest.raises(error):
            values.load(refs[key])


def test_a_name_told_beforehand_is_that_of_the_next_object_and_of_no_other(values):
    told = values.reserve("x")
    assert values.reserve("x") == told
    refs = written(values, {"x": 1, "y": 2}, 1000)
    assert (refs["x"], type(refs["y"])) == (told, int)
    assert values.file(told) == f"objects://a/chest/{told}"
    assert values.size(told) == len(Objects.store[f"a/chest/{told}"])
    assert type(written(values, {"x": 3}, 1000)["x"]) is int


def test_no_round_trip_tells_whether_a_value_is_as_it_was_loaded(objects, values):
    name = "".join(["at", "tribute"])
    namespace = types.SimpleNamespace()
    namespace.__dict__[name] = 1  # comes back interned, and so dumps to other bytes than before
    refs = written(values, {"small": [namespace, name], "large": list(range(99_999))})
    values, _ = objects.open()
    for ref in refs.values():
        loaded = values.load(ref)
        Objects.calls.clear()
        assert values.codec.unchanged(loaded.value, loaded.stamp) or values.same(ref, loaded.value)
        loaded.value.append(1)
        assert not values.codec.unchanged(loaded.value, loaded.stamp)
        assert not values.same(ref, loaded.value)
        assert values.version(ref) == 0
        assert calls() == []


# When it fails.


def test_what_a_store_refuses_leaves_nothing_and_the_next_write_works(objects, values):

    def refuse(what, path):
        if what == "put" and len(Objects.store) > 2:
            raise TimeoutError("no answer")

    Objects.before = staticmethod(refuse)
    done = values.write([(n, bytes(5000)) for n in range(9)] + [("small", 1)], 100)
    assert all(isinstance(one.error, ConnectionError) and one.ref is None for one in done)
    assert "does not answer" in str(done[0].error)
    assert objects.names() == []
    Objects.before = staticmethod(lambda what, path: None)
    done = values.write([("x", 1), ("f", lambda: 0), ("y", 2)], 1000)  # the second cannot be dumped
    assert [one.error is None for one in done] == [True, False, True]
    assert [values.load(one.ref).value for one in (done[0], done[2])] == [1, 2]


def test_an_interrupted_write_leaves_no_object_that_nobody_knows(objects, monkeypatch):
    monkeypatch.setattr("chest.storage.remote._AT_ONCE", 1000)

    values, _ = objects.open()
    with pytest.raises(KeyboardInterrupt):
        values.write([*((n, bytes(600 * (n % 2) + 1)) for n in range(7)), (7, Interrupts())], 100)
    assert calls("put")
    values.committed()  # with which the packs go, as after a commit that does not name them
    assert objects.names() == []


def test_objects_that_cannot_be_removed_are_no_error_and_a_dead_store_is_not_asked_for_ever(objects, values):
    def refuse(what, path):
        raise TimeoutError("no answer")

    refs = written(values, {n: n for n in range(20)})
    values.remove([*refs.values(), "gone~aaaaaaaaaaaa-1"])
    assert objects.names() == []
    calls()
    Objects.before = staticmethod(refuse)
    values.remove(list(refs.values()))
    assert len(calls()) <= 20


@pytest.mark.parametrize("place", ["sftp", "s3"], indirect=True)
def test_a_server_that_ends_is_an_error_and_is_used_again_when_it_is_back(place):
    server, (values, keys) = place.server, place.open()
    refs = written(values, VALUES, 1000)
    server.stop()
    try:
        with pytest.raises(OSError, match="."):
            values.load(refs["x"])
        assert all(isinstance(one.error, OSError) for one in values.write(list(VALUES.items()), 1000))
    finally:
        server.start()
    assert values.load(refs["x"]).value == VALUES["x"]
    server.stop()
    server.start()  # a connection that broke while nobody used it
    written(values, VALUES)
    keys.replace(list(refs.items()))


# Packs.


def test_a_pack_that_is_mostly_garbage_is_copied_and_goes_when_that_is_committed(place):
    values, keys = place.open()
    refs = written(values, {n: [n] * 50 for n in range(100)}, 1000)
    assert values.compact({1: refs[1]}) == {}  # nobody committed it
    keys.replace(list(refs.items()))
    values, keys = place.open()
    keys.read()
    refs = {key: ref for key, ref in refs.items() if key % 3 == 0}
    moved = values.compact({**refs, "loose": "x", "in memory": None})
    assert set(moved) == set(refs.values())
    assert {new % (1 << OFFSET) for new in moved.values()} == {old % (1 << OFFSET) for old in refs.values()}
    old = {ref >> PACK for ref in refs.values()}
    values.committed(pending=True)
    assert len(place.names()) == 3
    refs = {key: moved[ref] for key, ref in refs.items()}
    keys.replace(list(refs.items()))
    values.committed()
    assert len(place.names()) == 2
    assert not any(f"{pack:010x}" in name for pack in old for name in place.names())
    assert many(values, refs) == [[n] * 50 for n in refs]
    assert values.compact(refs) == {}


def test_packs_of_others_that_no_commit_named_are_left_alone(objects):
    (one, keys), (two, _) = objects.open(), objects.open()
    mine, others = written(one, {n: n for n in range(9)}, 100), written(two, {n: n for n in range(9)}, 100)
    keys.replace(list(mine.items()))
    one.committed()
    newer = written(one, {n: n for n in range(9)}, 100)  # by another thread, while the next commit is on its way
    keys.replace([])
    one.committed(pending=True)
    assert len(objects.names()) == 3
    assert two.load(others[3]).value == one.load(newer[3]).value == 3


@pytest.mark.parametrize("done", [True, False], ids=["done", "unknown"])
def test_a_pack_goes_with_the_last_of_its_records_that_a_commit_named_or_may_have(objects, values, done, monkeypatch):
    def lost(*what):
        swap(*what)
        raise ConnectionResetError(104, "the store's answer is lost")

    keys = values.keys
    refs = list(written(values, {n: n for n in range(3)}, 100).values())
    swap = values._store.swap
    with monkeypatch.context() as patch, suppress(ConnectionError):
        patch.setattr(values._store, "swap", swap if done else lost)
        keys.replace([(0, refs[0])])
    values.committed()
    assert values.load(refs[0]).value == 0
    keys.read()
    written(values, {4: 4}, 100)  # and nothing names it
    keys.replace([])
    values.committed()
    assert objects.names() == [".keys"]


@pytest.mark.parametrize("small", [0, 1000])
def test_what_is_superseded_goes_and_what_is_committed_stays_however_many_handles_there_were(small):
    place, model = Place("memory://a/chest"), {}
    for session in range(6):
        with Chest(path=place.url, min_file_size=small) as chest:
            assert dict(chest.items()) == model
            for n in range(session * 17, session * 17 + 60):
                chest[n % 80] = model[n % 80] = [session, n]
                if n % 20 == 0:
                    chest.sync()
            chest.flush()
            chest["rolled back"] = 1
            chest.rollback()
    chest = Chest(path=place.url)
    assert dict(chest.items()) == model
    places = {ref.partition(":")[0] for ref in chest._keys.values()}
    assert set(place.names()) == {".keys", *places}
    assert sum(place.fs.size(f"{place.base}/{name}") for name in places) < 3 * sum(
        len(pickle.dumps(value)) + 100 * (not small) for value in model.values())
    chest.drop()
    assert place.names() == []


# The place as a whole.


def test_drop_takes_everything_but_what_is_not_its_own(place):
    values, keys = place.open()
    refs = written(values, VALUES, 100)
    keys.replace(list(refs.items()))
    place.fs.pipe_file(f"{place.base}/mine", b"mine")
    place.fs.pipe_file(f"{place.base}/.keys~0123456789ab", b"of a commit that was killed")
    assert place.open()[1].changed()
    values.drop(list(refs.values()))
    assert place.names() == ["mine"]
    assert not place.open()[1].changed()
    if place.url.startswith(("file", "sftp")):
        place.fs.rm_file(f"{place.base}/mine")
        values.drop([])
        assert not place.fs.exists(place.base)


@pytest.mark.parametrize("place", ["file", "sftp"], indirect=True)
def test_where_there_are_folders_the_index_is_renamed_and_they_go_with_the_chest(place, tmp_path):
    files = place.server.files / tmp_path.name if place.server else tmp_path / "chest"
    values, keys = place.open()
    refs = written(values, {("a", "b"): 1, "x": 2})
    keys.replace(list(refs.items()))
    before = (files / ".keys").read_bytes()
    with open(files / ".keys", "rb") as reader:
        keys.replace([("x", refs["x"])])
        assert reader.read() == before  # whoever reads it just then reads all of it
    values.remove([refs["a", "b"]])
    assert {".keys", refs["x"]} <= set(os.listdir(files)) <= {".keys", refs["x"], "_a"}
    written(values, {("a", "b"): 1})
    values.drop([refs["x"]])
    assert os.listdir(files) == ["_a"] and len(os.listdir(files / "_a")) == 1  # nobody said that it was the chest's
    place.fs.rm(f"{place.base}/_a", recursive=True)
    values.drop([])
    assert not files.exists()


def test_a_name_that_leads_out_of_the_chest_is_neither_read_nor_removed(tmp_path):
    (tmp_path / "mine").write_bytes(pickle.dumps(1))
    values, _ = Place(f"file://{tmp_path}/chest").open()
    for name in ("../mine", "/mine", "x/../../mine"):
        with pytest.raises(ChestError, match="do not trust this chest"):
            values.load(name)
        values.remove([name])
        values.drop([name])
    assert (tmp_path / "mine").exists()


# The index.


PAIRS = [("x", "x~1"), (("a", 1), 3 << PACK | 5 << LENGTH), (1, "y")]


def test_a_reader_sees_each_commit_though_size_and_second_are_the_same(place):
    (_, writer), (_, reader) = place.open(), place.open()
    assert not reader.changed() and not reader.plain()
    assert reader.read() == (True, [])
    for version in range(4):
        pairs = [*((n, "abc") for n in range(50)), ("x", f"x~{version}")]
        writer.replace(pairs)
        assert not writer.changed() and writer.plain()
        assert reader.changed()
        whole, found = reader.read()
        assert whole and list(dict(found).items()) == pairs
        assert not reader.changed() and not reader.append([("x", None)])
        fsspec.core.url_to_fs(place.url, **place.options)[0].ls(place.base)  # fsspec may remember it
    writer.erase()
    assert reader.changed() and reader.read() == (True, [])


@pytest.mark.parametrize("place", ["objects", "memory"], indirect=True)
def test_a_second_writer_within_one_commit_gets_an_error_and_loses_nothing(place):
    (_, one), (_, two) = place.open(), place.open()
    assert one.lock is two.lock, "threads of one process wait for each other"
    two.replace([("two", "x")])
    with pytest.raises(ChestError, match="another process committed.*Commit again"):
        one.replace([("one", "x")])
    assert one.changed() and dict(one.read()[1]) == {"two": "x"}
    one.replace([("one", "x"), ("two", "x")])
    if place.url.startswith("objects"):  # who has tags knows of later commits too
        with pytest.raises(ChestError, match="another process committed"):
            two.replace([("two", "y")])


def test_a_store_that_knows_no_conditional_put_is_used_without(objects, monkeypatch):
    async def put(self, path, value, mode="overwrite", IfMatch=None):
        if IfMatch is not None:
            raise NotImplementedError("A header you provided implies functionality that is not implemented")
        self.kept.append(self.store.get(path))
        self.store[path] = bytearray(value)

    monkeypatch.setattr(Objects, "_pipe_file", put)
    _, keys = objects.open()
    for n in range(3):
        keys.replace([("x", f"x~{n}")])
    assert not keys.changed() and dict(objects.open()[1].read()[1]) == {"x": "x~2"}


def test_an_index_that_was_copied_there_opens_and_one_that_cannot_be_read_is_an_error_and_stays(place):
    place.fs.makedirs(place.base, exist_ok=True)
    place.fs.pipe_file(f"{place.base}/.keys", pickle.dumps([("x", "x")]))  # as 0.2.3 wrote it
    place.fs.pipe_file(f"{place.base}/x", pickle.dumps([1, 2]))
    values, keys = place.open()
    assert dict(keys.read()[1]) == {"x": "x"} and not keys.changed()
    assert values.load("x").value == [1, 2]
    assert values.size("x") == len(pickle.dumps([1, 2]))
    keys.replace(PAIRS)
    assert list(dict(place.open()[1].read()[1]).items()) == PAIRS
    whole = place.fs.cat_file(f"{place.base}/.keys")
    for torn in (whole[: len(whole) // 2], b"", whole[:-1], bytes([*whole[:40], whole[40] ^ 1, *whole[41:]])):
        place.fs.pipe_file(f"{place.base}/.keys", torn)
        with pytest.raises(LoadError, match="nothing was changed"):
            place.open()[1].read()
        assert place.fs.cat_file(f"{place.base}/.keys") == torn


# Settings.


@pytest.mark.parametrize("settings, loads", [
    ({"dump": json.dump, "load": json.load, "mode": "b"}, json.loads),
    ({"dump": json.dump, "load": json.load, "mode": "t"}, json.loads),
    ({"dump": lambda value, file: file.write(gzip.compress(pickle.dumps(value))),
      "load": lambda file: pickle.load(gzip.open(file))},
     lambda data: pickle.loads(gzip.decompress(data)))], ids=["json", "text", "gzip"])
def test_values_are_kept_as_the_user_writes_them(place, settings, loads):
    values, keys = place.open(**settings)
    refs = written(values, {"x": [1, "ü"], ("a", 1): None})
    keys.replace(list(refs.items()))
    assert dict(pickle.loads(place.fs.cat_file(f"{place.base}/.keys"))) == refs
    assert loads(place.fs.cat_file(f"{place.base}/{refs['x']}")) == [1, "ü"]
    values, keys = place.open(**settings)
    assert dict(keys.read()[1]) == refs and not keys.changed()
    assert many(values, refs) == [[1, "ü"], None]
    packed = written(values, {"p": [2]}, 1000)
    assert values.load(packed["p"]).value == [2]
    if loads is json.loads:
        place.fs.pipe_file(f"{place.base}/.keys", json.dumps([["x", refs["x"]], [["a", 1], refs["a", 1]]]).encode())
        assert dict(place.open(**settings)[1].read()[1]) == refs  # a directory of json that was copied there
    cut = written(values, {"cut": 12345})["cut"]
    place.fs.pipe_file(f"{place.base}/{cut}", place.fs.cat_file(f"{place.base}/{cut}")[:3])
    with pytest.raises(DamagedError):
        values.load(cut)


def test_what_is_missing_is_said_in_one_sentence(monkeypatch):
    with pytest.raises(ChestError, match="open= is for"):
        Remote("memory://a", None, Codec(open=gzip.open), Names())
    with pytest.raises(ValueError, match="no chest at gopher://host/run"):
        Remote("gopher://host/run", None, Codec(), Names())
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "s3fs", None)
        without.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
        with pytest.raises(ImportError, match="package that is not installed: Install s3fs"):
            Remote("s3://bucket/run", None, Codec(), Names())
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ImportError, match=r"not installed: pip install 'chest\[remote\]'"):
        Remote("memory://a", None, Codec(), Names())


# Secrets.


def test_what_of_a_url_is_shown():
    for url, shown in {
            "s3://bucket/run": "s3://bucket/run",
            "sftp://me:pa@ss@host/run": "sftp://***@host/run",
            "https://token@host/a@b/x?sig=abc&x=1#frag": "https://***@host/a@b/x?***",
            "simplecache::https://u:p@h/x?t=1::s3://v:q@b/y?z": "simplecache::https://***@h/x?***::s3://***@b/y?***",
            "abfs://container@account/x": "abfs://container@account/x",
            "file:///a/b#c": "file:///a/b?***"}.items():
        assert redacted(url) == shown


@pytest.mark.parametrize("what", ["load", "write", "remove", "changed", "replace"])
def test_no_error_and_no_text_has_a_secret(what):
    secrets = ["hunter2", "sesame", "letmein", "AKIA77", "pass word"]
    url = "objects://me:hunter2@host/run?token=sesame&user=letmein"

    def refuse(called, path):
        raise ConnectionResetError(104, f"cannot connect to {url} ({path}) with AKIA77, pass word, sesame")

    values = Remote(url, {"key": "AKIA77", "nested": {"secret": "pass word"}}, Codec(), Names())
    keys = values.keys
    Objects.before = staticmethod(refuse)
    told = [values.path, repr(values), repr(keys), values.file("x"), keys.path]
    work = {"load": lambda: values.load("x"), "changed": keys.changed, "replace": lambda: keys.replace(PAIRS),
            "remove": lambda: values.remove(["x"]), "write": lambda: values.write([("x", 1)], 0)[0].error}[what]
    try:
        error = work()
    except Exception as raised:
        error = raised
    assert (error is None) == (what == "remove")
    told += traceback.format_exception(type(error), error, error.__traceback__) if error else []
    while error is not None:
        told.append(repr(error))
        error = error.__cause__ or error.__context__
    code = [line for line in told if "\n    " not in line]  # a traceback also has the lines of this file
    assert not [(secret, text) for secret in secrets for text in code if secret in text]


# Processes.


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process")
@pytest.mark.parametrize("place", ["file", "sftp", "s3"], indirect=True)
def test_a_forks_child_uses_the_store_beside_its_parent(place):
    values, keys = place.open()
    refs = written(values, VALUES, 1000)
    has_it = Stop()

    def child():
        values.after_fork()
        with keys.lock:
            assert many(values, refs) == list(VALUES.values())
            keys.replace(list(written(values, {"child": 1}, 1000).items()))
        values.remove(list(refs.values())[:1])

    with has_it.during(lambda: (keys.lock.__enter__(), has_it())), fsspec.asyn.get_lock():  # which threads of the parent's may have
        assert forked(child) == 0
    _, found = keys.read()
    assert values.load(dict(found)["child"]).value == 1
    assert values.load(refs["x"]).value == VALUES["x"]


def test_a_script_whose_connection_broke_before_it_ends_is_saved(server, tmp_path):
    s3 = server(S3)
    options = json.loads(json.dumps(s3.options))
    options["client_kwargs"]["endpoint_url"] = f"http://localhost:{s3.port}"  # a name has to be resolved
    options["config_kwargs"]["connector_args"] = {"use_dns_cache": False}
    script = f"""if True:
        from chest import Chest
        c = Chest(path="{s3.url}/{tmp_path.name}", storage_options={options!r})
        c.update(zip(range(20), range(20)))
        print("ready", flush=True)
        input()
        """
    with subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2], text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout.readline() == "ready\n"
        s3.stop()
        s3.start()
        told, _ = process.communicate("\n", timeout=60)
    assert (process.returncode, told) == (0, "")
    assert dict(Chest(path=f"{s3.url}/{tmp_path.name}", storage_options=s3.options)) == dict(zip(range(20), range(20)))
