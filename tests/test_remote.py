"""A chest at a URL: the same promises over fsspec, and as few round trips one after another as can be."""
from __future__ import annotations

import concurrent.futures.thread
import copy
import gc
import gzip
import io
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import weakref
from pathlib import Path

import pytest

from chest import Chest, farewell, store
from chest.errors import ChestError, LoadError

fsspec = pytest.importorskip("fsspec", reason="a chest at a URL needs fsspec")

from fsspec.implementations.memory import MemoryFile, MemoryFileSystem  # noqa: E402
from servers import S3, SSH  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the packages below fsspec
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),  # connections of a server that was ended
]


class Counted(MemoryFileSystem):
    """A store in memory that counts what is asked of it, and can hold up or refuse a call."""

    protocol = "counted"
    store: dict = {}
    pseudo_dirs = [""]
    calls: list = []
    before = staticmethod(lambda what, path: None)
    under_way = peak = 0
    mutex = threading.Lock()
    mine = threading.local()

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.partition("://")[2].strip("/") if "://" in path else path

    def _call(self, what, path, work):
        kind = type(self)
        if getattr(self.mine, "busy", False):  # the base class calls its own methods
            return work()
        self.mine.busy = True
        with self.mutex:
            kind.calls.append((what, path))
            Counted.under_way += 1
            Counted.peak = max(Counted.peak, Counted.under_way)
        try:
            kind.before(what, path)
            return work()
        finally:
            self.mine.busy = False
            with self.mutex:
                Counted.under_way -= 1

    def pipe_file(self, path, value, mode="overwrite", **condition):
        return self._call("put", path, lambda: super(Counted, self).pipe_file(path, value, mode))

    def cat_file(self, path, start=None, end=None, **kwargs):
        return self._call("get", path, lambda: super(Counted, self).cat_file(path, start, end))

    def info(self, path, **kwargs):
        return self._call("info", path, lambda: super(Counted, self).info(path))

    def rm_file(self, path):
        return self._call("remove", path, lambda: super(Counted, self)._rm(path))


class Tagged(Counted):
    """The same as an object store with tags (ETag) and conditional puts, as s3fs shows one."""

    protocol = ("tagged", "s3")

    def info(self, path, **kwargs):
        return dict(super().info(path), ETag=str(id(self.store.get(path))))

    def pipe_file(self, path, value, mode="overwrite", IfMatch=None):
        def put():
            there = self.store.get(path)
            if (mode == "create" and there is not None) or (IfMatch is not None and IfMatch != str(id(there))):
                raise OSError(22, "At least one of the pre-conditions you specified did not hold")
            made = self.store[path] = MemoryFile(self, path, value)
            kept.append(there)  # so that no id comes back
            return {"ETag": str(id(made))}

        return self._call("put", path, put)


kept: list = []
fsspec.register_implementation("counted", Counted, clobber=True)
fsspec.register_implementation("tagged", Tagged, clobber=True)


@pytest.fixture(autouse=True)
def fresh_stores():
    for kind in (Counted, Tagged):
        kind.store.clear()
        kind.calls = []
        kind.before = staticmethod(lambda what, path: None)
    Counted.peak = 0
    MemoryFileSystem.store.clear()


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with S3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def ssh(tmp_path_factory):
    with SSH(tmp_path_factory.mktemp("ssh")) as server:
        yield server


@pytest.fixture(params=["memory", "file", "cached", "tagged", "sftp", "s3"])
def place(request, tmp_path):
    """Keywords of a chest at a URL of each kind where nothing is yet."""
    if request.param in ("sftp", "s3"):
        server = request.getfixturevalue({"sftp": "ssh", "s3": "s3"}[request.param])
        return {"path": f"{server.url}/{tmp_path.name}", "storage_options": server.options}
    return {"path": {"memory": "memory://a/chest", "file": f"file://{tmp_path}/chest", "tagged": "tagged://a/chest",
                     "cached": "simplecache::memory://a/chest"}[request.param]}


@pytest.fixture(params=["sftp", "s3"])
def server(request):
    """A server that may be ended and is running again afterwards."""
    found = request.getfixturevalue({"sftp": "ssh", "s3": "s3"}[request.param])
    yield found
    found.stop()
    found.start()


def below(place):
    """fsspec's own view of the place, and the path there."""
    ended = place["path"].startswith("sftp")  # the connection that fsspec has from before may be one of a server that ended
    fs, base = fsspec.core.url_to_fs(place["path"], skip_instance_cache=ended, **place.get("storage_options", {}))
    return getattr(fs, "fs", fs), base


def objects(place):
    """The names of all objects there."""
    fs, base = below(place)
    try:
        return sorted(name[len(base):].strip("/") for name in fs.find(base))
    except FileNotFoundError:
        return []


def counted(what):
    return [path for call, path in Counted.calls if call == what]


# As a directory.


def test_what_was_saved_is_there_for_the_next_handle(place):
    saved = {"x": [1, 2], ("a", "b"): "in a folder", 1: b"int", "1": "str", "k" * 300: None, "": 0}
    with Chest(path=place.pop("path"), **place) as c:
        c.update(saved)
        place["path"] = c.path
    assert dict(Chest(**place)) == saved
    assert list(Chest(**place)) == list(saved)
    assert len(objects(place)) == 1 + len(saved)


def test_a_new_value_gets_a_new_object_and_the_old_one_goes_after_the_commit(place):
    c = Chest(**place)
    c.update(x=1, y=2)
    c.sync()
    before = objects(place)
    c["x"] = 3
    del c["y"]
    c.move_to_disk("x")
    assert set(before) < set(objects(place))
    c.flush()
    assert len(objects(place)) == 2
    assert not set(objects(place)) & set(before) - {".keys"}
    assert dict(Chest(**place)) == {"x": 3}


def test_no_object_but_the_index_is_ever_put_twice():
    c = Chest(path="counted://a")
    for version in range(5):
        c["x"] = c["_x"] = version
        c.flush()
    puts = [path for path in counted("put") if not path.endswith("/.keys")]
    assert len(puts) == len(set(puts)) == 10


def test_a_reader_sees_what_a_writer_committed_though_size_and_second_are_the_same(place):
    writer, reader = Chest(**place), Chest(**place)
    writer.update((n, n) for n in range(50))  # what changes does not stand at the beginning of the index
    for version in range(5):
        writer["x"] = version
        writer.flush()
        assert len(reader) == 51
        assert reader["x"] == version


def test_writers_that_take_turns_lose_nothing(place):
    one, two = Chest(**place), Chest(**place)
    for n in range(3):
        one["one", n] = two["two", n] = n
        one.flush()
        two.flush()
    assert dict(Chest(**place)) == {(name, n): n for n in range(3) for name in ("one", "two")}


def test_drop_takes_everything_but_what_is_not_its_own(place):
    c = Chest(**place)
    c["a", "b"] = c["x"] = 1
    c.flush()
    fs, base = below(place)
    fs.pipe_file(f"{base}/mine", b"mine")
    c.drop()
    assert objects(place) == ["mine"]
    fs.rm_file(f"{base}/mine")


@pytest.mark.parametrize("kind", ["file", "sftp"])
def test_where_there_are_files_the_index_is_replaced_by_a_rename_and_empty_folders_go(kind, request, tmp_path):
    place, files = {"path": f"file://{tmp_path}/chest"}, tmp_path / "chest"
    if kind == "sftp":
        server = request.getfixturevalue("ssh")
        place = {"path": f"{server.url}/{tmp_path.name}", "storage_options": server.options}
        files = server.files / tmp_path.name
    c = Chest({("a", "b"): 1, "x": 2}, **place)
    c.flush()
    assert (files / "_a").is_dir()
    before = (files / ".keys").read_bytes()
    with open(files / ".keys", "rb") as reader:
        del c["a", "b"]
        c.flush()
        assert reader.read() == before  # whoever reads it just then reads all of it
    assert sorted(os.listdir(files)) == sorted([".keys", c._keys["x"]])
    c.drop()
    assert not files.exists()


def test_a_spilled_value_comes_back(place):
    with Chest(available_memory=1000, **place) as c:
        for n in range(20):
            c[n] = str(n) * 300
        assert c.stats.spills > 10
        assert [c[n] for n in range(20)] == [str(n) * 300 for n in range(20)]


def test_a_value_changed_in_place_is_written_and_one_that_was_not_is_not(place):
    with Chest(**place) as c:
        c["same"], c["other"] = {"n": [1]}, {"n": [1]}
    before = objects(place)
    with Chest(**place) as c:
        assert c["same"] == c["other"]
        c["other"]["n"].append(2)
    assert Chest(**place)["other"] == {"n": [1, 2]}
    assert len([name for name in objects(place) if name in before]) == 2  # .keys, and the one that is the same


def test_no_round_trip_tells_whether_a_value_changed():
    class_like = {"".join(["at", "tribute"]): io.BytesIO}  # a string that comes back interned
    with Chest(path="counted://a") as c:
        c.update((n, [class_like, n]) for n in range(10))
    c = Chest(path="counted://a")
    c.prefetch(range(10))
    del Counted.calls[:]
    c.flush()
    assert counted("put") == []
    assert {path for _, path in Counted.calls} == {"/a/.keys"}


def test_a_missing_object_is_a_missing_value_that_heals(place):
    with Chest(**place) as c:
        c.update(x=1, y=2)
    fs, base = below(place)
    fs.rm_file(f"{base}/{c._keys['x']}")
    assert len(c) == 2
    with pytest.raises(KeyError, match="is gone"):
        c["x"]
    assert c.get("x", "default") == "default"
    c["x"] = 3
    c.flush()
    assert dict(Chest(**place)) == {"x": 3, "y": 2}


def test_the_name_told_beforehand_is_the_name_of_the_object(place):
    c = Chest(**place)
    told = c.key_to_filename("x")
    c["x"] = 1
    c.flush()
    assert c.key_to_filename("x") == told
    assert told.startswith(place["path"] + "/x~")
    c.prefetch("x")
    assert c.inmem == {"x": 1}


def test_chests_here_and_there_take_from_each_other(place, path):
    with Chest({"x": [1], ("a", "b"): 2}, **place) as there:
        here = Chest(path=path)
        here.update(there)
        there.clear()
        there.flush()
        there.update(here)
    assert dict(Chest(**place)) == dict(here) == {"x": [1], ("a", "b"): 2}


def test_a_handle_travels_as_a_pickle(place):
    options = copy.deepcopy(place.get("storage_options"))
    c = Chest({"x": 1}, **place)
    other = pickle.loads(pickle.dumps(c))
    assert place.get("storage_options") == options  # nobody below wrote into them
    other["y"] = 2
    other.flush()
    assert dict(c) == {"x": 1, "y": 2}


# Settings.


@pytest.mark.parametrize("mode", ["b", "t"])
def test_another_format_is_kept_as_the_user_writes_it(place, mode):
    settings = dict(place, dump=json.dump, load=json.load, mode=mode)
    with Chest(**settings) as c:
        c.update({"x": [1, "ü"], ("a", 1): None})
    fs, base = below(place)
    assert [key for key, _ in json.loads(fs.cat_file(f"{base}/.keys"))] == ["x", ["a", 1]]
    assert json.loads(fs.cat_file(f"{base}/{c._keys['x']}")) == [1, "ü"]
    assert dict(Chest(**settings)) == {"x": [1, "ü"], ("a", 1): None}


def test_the_users_open_is_used_for_every_value_and_the_index(place):
    opened = []

    def zipped(path, mode):
        opened.append((path, mode))
        return fsspec.open(path, mode, compression="gzip", **place.get("storage_options", {}))

    with Chest(open=zipped, **place) as c:
        c.update({"x": [1], ("a", "b"): 2})
        paths = [c.key_to_filename(key) for key in c]
    written = {path for path, mode in opened if mode == "wb"}
    assert {*paths} < written
    assert len(written) == 3
    fs, base = below(place)
    for name in objects(place):
        gzip.decompress(fs.cat_file(f"{base}/{name}"))
    del opened[:]
    assert dict(Chest(open=zipped, **place)) == {"x": [1], ("a", "b"): 2}
    assert {mode for _, mode in opened} == {"rb"}


def test_arrays_are_loaded_by_copy_where_maps_were_asked_for(place):
    numpy = pytest.importorskip("numpy")
    with Chest(mmap_mode="c", **place) as c:
        c["x"] = numpy.arange(100_000)
    assert (Chest(mmap_mode="c", **place)["x"] == numpy.arange(100_000)).all()


def test_small_values_in_one_file_are_refused():
    with pytest.raises(ValueError, match="min_file_size"):
        Chest(path="memory://a", min_file_size=100)


def test_without_fsspec_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ImportError, match=r"needs fsspec: pip install 'chest\[remote\]'"):
        Chest(path="memory://a")


def test_without_the_package_for_a_kind_of_url_one_sentence_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(ImportError, match="package that is not installed: Install s3fs"):
        Chest(path="s3://bucket/run")


def test_an_unknown_kind_of_url_is_a_value_error():
    with pytest.raises(ValueError, match="no chest at gopher://host/run"):
        Chest(path="gopher://host/run")


def test_a_password_in_the_url_is_not_shown():
    c = Chest(path="counted://me:secret@host/run")

    def refuse(what, path):
        raise ConnectionResetError(104, "reset")

    Counted.before = staticmethod(refuse)
    with pytest.raises(OSError, match="reset") as caught:
        len(c)
    assert "secret" not in str(caught.value)
    Counted.before = staticmethod(lambda what, path: None)


# Several at once.


@pytest.fixture
def company(request):
    """Makes each call of one kind wait until as many are under way as may be; alone it would wait in vain."""
    def demand(what, parties=8):
        barrier = threading.Barrier(parties)

        def before(called, path):
            if called == what and not path.endswith("/.keys"):
                barrier.wait(timeout=10)

        Counted.before = staticmethod(before)

    return demand


def test_flush_puts_several_values_at_once(company):
    c = Chest(path="counted://a")
    c.update((n, [n]) for n in range(96))
    company("put")
    c.flush()
    assert Counted.peak == 8
    assert len(counted("put")) == 96 + 1


def test_prefetch_gets_several_values_at_once_and_asks_for_nothing_else(company):
    Chest({n: [n] for n in range(96)}, path="counted://a").close()
    c = Chest(path="counted://a")
    del Counted.calls[:]
    company("get")
    c.prefetch(range(96))
    assert dict(c.inmem) == {n: [n] for n in range(96)}
    assert len(Counted.calls) == 96


def test_old_objects_are_removed_several_at_once(company):
    c = Chest({n: n for n in range(96)}, path="counted://a")
    c.flush()
    c.update((n, -n) for n in range(96))
    company("remove")
    c.flush()
    assert len(counted("remove")) == 96


def test_a_commit_of_one_value_costs_a_handful_of_round_trips():
    c = Chest({n: n for n in range(100)}, path="counted://a")
    c.flush()
    del Counted.calls[:]
    c[0] = "new"
    c.sync()
    assert len(counted("put")) == 2
    assert len(counted("remove")) == 1
    assert len(Counted.calls) <= 5  # and a look or two at the index as it is


@pytest.mark.parametrize("what", ["put", "get"])
def test_large_values_do_not_travel_in_a_crowd(monkeypatch, what):
    monkeypatch.setattr(store, "_AT_ONCE", 10_000)
    c = Chest(path="counted://a")
    c.update((n, bytes([n]) * 9_000) for n in range(10))
    if what == "get":
        c.flush()
    one, two = threading.Event(), threading.Event()

    def before(called, path):
        if called == what and not one.is_set():
            one.set()
            two.wait(0.5)  # the first one waits for a second, which must not come before it is done
        elif called == what and Counted.under_way > 1:
            two.set()

    Counted.before = staticmethod(before)
    c.flush()
    c.prefetch(range(10))
    assert one.is_set()
    assert not two.is_set()
    assert len(c.inmem) == 10


def test_prefetch_stops_where_the_budget_ends():
    Chest({n: bytes(10_000) for n in range(50)}, path="counted://a").close()
    c = Chest(path="counted://a", available_memory=105_000)
    del Counted.calls[:]
    c.prefetch(range(50))
    assert len(c.inmem) == len(counted("get")) == 10


def test_where_no_thread_can_be_started_values_travel_one_after_another(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    monkeypatch.setattr(store.ThreadPoolExecutor, "submit", refuse)
    with Chest({n: n for n in range(20)}, path="counted://a") as c:
        pass
    c.prefetch(range(20))
    assert dict(c.inmem) == {n: n for n in range(20)}


def test_an_interrupted_flush_leaves_no_object_that_nobody_knows():
    def dump(value, file):
        if value == 20:
            raise KeyboardInterrupt
        pickle.dump(value, file)

    c = Chest({n: n for n in range(15)}, path="counted://a", dump=dump)
    c.flush()
    c.update((n, n) for n in range(15, 30))
    with pytest.raises(KeyboardInterrupt):
        c.flush()
    del c[20]
    c.flush()
    assert len(Counted.store) == 29 + 1


# When it fails.


def test_a_failed_commit_changes_nothing_and_the_next_one_works(company):
    c = Chest(dict.fromkeys(range(20), "old"), path="counted://a")
    c.sync()
    c.update((n, "new") for n in range(20))

    def refuse(what, path):
        if what == "put" and (path.endswith("/.keys") or len(counted("put")) > 30):
            raise TimeoutError("no answer")

    Counted.before = staticmethod(refuse)
    with pytest.raises(OSError, match="does not answer.*no answer"):
        c.flush()
    assert set(Chest(path="counted://a").values()) == {"old"}
    assert set(c.values()) == {"new"}
    Counted.before = staticmethod(lambda what, path: None)
    c.flush()
    assert set(Chest(path="counted://a").values()) == {"new"}
    assert len(Counted.store) == 20 + 1


def test_old_objects_that_cannot_be_removed_do_not_spoil_a_commit():
    c = Chest(dict.fromkeys(range(20), "old"), path="counted://a")
    c.flush()
    c.update((n, "new") for n in range(20))

    def refuse(what, path):
        if what == "remove":
            raise TimeoutError("no answer")

    Counted.before = staticmethod(refuse)
    c.flush()
    assert set(Chest(path="counted://a").values()) == {"new"}
    assert len(counted("remove")) < 20  # a store that does not answer is not asked for ever


def test_a_server_that_ends_in_the_middle_of_a_commit(server, tmp_path):
    values = {n: [n] * 1000 for n in range(30)}
    place = {"path": f"{server.url}/{tmp_path.name}", "storage_options": server.options}
    Chest({"old": "value"}, **place).close()
    ended = threading.Event()

    def dump(value, file):
        if value == values[20] and not ended.is_set():
            server.stop()
            ended.set()
        pickle.dump(value, file)

    c = Chest(dump=dump, load=pickle.load, **place)
    c.update(values, old="new value")
    with pytest.raises(OSError, match="does not answer"):
        c.flush()
    assert ended.is_set()
    assert c.inmem[29] == values[29]
    server.start()
    assert dict(Chest(load=pickle.load, **place)) == {"old": "value"}
    c.flush()
    assert dict(Chest(load=pickle.load, **place)) == {**values, "old": "new value"}


def test_a_connection_that_broke_while_nobody_used_it_is_made_anew(server, tmp_path):
    place = {"path": f"{server.url}/{tmp_path.name}", "storage_options": server.options}
    c = Chest({n: n for n in range(20)}, **place)
    c.flush()
    server.stop()
    server.start()
    assert c[0] == 0
    c.prefetch(range(20))
    c["x"] = 1
    c.flush()
    assert len(Chest(**place)) == 21


def test_a_chest_that_is_let_go_is_saved_at_once_also_after_an_error(server, tmp_path):
    place = {"path": f"{server.url}/{tmp_path.name}", "storage_options": server.options}
    c = Chest({"x": 1}, **place)
    server.stop()
    with pytest.raises(OSError, match="does not answer"):
        c.flush()
    server.start()
    gone = weakref.ref(c)
    del c
    assert gone() is None
    assert dict(Chest(**place)) == {"x": 1}


@pytest.mark.parametrize("scheme", ["counted", "tagged"])
def test_a_second_writer_within_one_commit_gets_an_error_where_the_store_can_tell(scheme):
    one, two = Chest(path=f"{scheme}://a"), Chest(path=f"{scheme}://a")
    for turn in range(2):  # the first commit of all must make the index, the next must find it as it was
        kind = {"counted": Counted, "tagged": Tagged}[scheme]

        def other_commits(what, path, kind=kind, turn=turn):
            if what == "put" and path.endswith("/.keys"):
                kind.before = staticmethod(lambda what, path: None)
                two["two", turn] = turn
                two.flush()

        one["one", turn] = turn
        if scheme == "counted" and turn:
            break
        kind.before = staticmethod(other_commits)
        with pytest.raises(ChestError, match="another process committed.*Commit again"):
            one.flush()
        one.flush()
        assert set(Chest(path=one.path)) >= {("one", turn), ("two", turn)}


def test_a_store_that_knows_no_conditional_put_is_used_without(monkeypatch):
    def refuse(self, path, value, mode="overwrite", IfMatch=None):
        if IfMatch is not None:
            raise OSError(38, "A header you provided implies functionality that is not implemented")
        return Counted.pipe_file(self, path, value)

    monkeypatch.setattr(Tagged, "pipe_file", refuse)
    c = Chest(path="tagged://a")
    for n in range(3):
        c[n] = n
        c.flush()
    assert dict(Chest(path="tagged://a")) == {0: 0, 1: 1, 2: 2}


def test_an_index_that_cannot_be_read_is_an_error_and_stays(place):
    Chest({"x": 1}, **place).close()
    fs, base = below(place)
    whole = fs.cat_file(f"{base}/.keys")
    for torn in (whole[: len(whole) // 2], b"", pickle.dumps([("x", "../outside")])):
        fs.pipe_file(f"{base}/.keys", torn)
        with pytest.raises(ChestError, match=r"nothing was (read or )?changed"):
            Chest(**place)
        assert fs.cat_file(f"{base}/.keys") == torn


def test_a_value_that_cannot_be_read_names_its_url(place):
    with Chest({"x": [1] * 1000}, **place) as c:
        url = c.key_to_filename("x")
    fs, base = below(place)
    name = f"{base}/{c._keys['x']}"
    fs.pipe_file(name, fs.cat_file(name)[:20])
    with pytest.raises(LoadError) as caught:
        Chest(**place)["x"]
    assert url in str(caught.value)


# Its end.


def test_what_the_garbage_collector_finds_is_saved_though_no_thread_could_be_started_there():
    c = Chest({n: [n] for n in range(20)}, path="counted://a")
    c.itself = c

    def collect():
        with concurrent.futures.thread._global_shutdown_lock:  # as in the middle of a submit
            gc.collect()

    gone = weakref.ref(c)
    del c
    collector = threading.Thread(target=collect, daemon=True)
    collector.start()
    collector.join(30)
    assert not collector.is_alive()
    assert gone() is None
    ended = threading.Event()
    farewell.hand_over(ended.set)
    assert ended.wait(30)
    assert dict(Chest(path="counted://a")) == {n: [n] for n in range(20)}



@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forks_child_uses_the_chest_beside_its_parent(place):
    if place["path"].startswith(("memory", "simplecache", "tagged")):
        pytest.skip("a store in memory is not shared between processes")
    c = Chest({"parent": 1}, **place)
    c.flush()
    child = multiprocessing.get_context("fork").Process(target=_in_child, args=(c,), daemon=True)
    child.start()
    assert c["parent"] == 1
    child.join(30)
    assert child.exitcode == 0
    assert dict(c) == {"parent": 1, "child": [1]}


def _in_child(c):
    c["child"] = [c["parent"]]
    c.flush()


def test_a_script_that_ends_without_a_flush_has_saved(place):
    if place["path"].startswith(("memory", "simplecache", "tagged")):
        pytest.skip("a store in memory ends with the process")
    script = f"""
        from chest import Chest
        c = Chest(**{place!r})
        c.update((n, n) for n in range(40))
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=Path(__file__).parents[1], timeout=60,
                          capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert dict(Chest(**place)) == {n: n for n in range(40)}


def test_a_script_whose_connection_broke_before_it_ends_has_saved(s3, tmp_path):
    place = {"path": f"{s3.url}/{tmp_path.name}", "storage_options": copy.deepcopy(s3.options)}
    place["storage_options"]["client_kwargs"]["endpoint_url"] = f"http://localhost:{s3.port}"  # a name has to be resolved
    place["storage_options"]["config_kwargs"]["connector_args"] = {"use_dns_cache": False}
    script = f"""
        from chest import Chest
        c = Chest({{n: n for n in range(20)}}, **{place!r})
        print("ready", flush=True)
        input()
        """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], cwd=Path(__file__).parents[1], text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout.readline() == "ready\n"
        s3.stop()
        s3.start()
        told, _ = process.communicate("\n", timeout=60)
    assert (process.returncode, told) == (0, "")
    assert dict(Chest(**place)) == {n: n for n in range(20)}
