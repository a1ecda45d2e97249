"""One clear exception for each thing that goes wrong, and nothing lost by any of them."""
from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import pickle
import shutil
import stat
from pathlib import Path

import pytest
from filesystems import mounts
from invariants import check, seen

from chest import Chest
from chest.errors import DamagedError, DumpError, LoadError


class Refuses:
    def __init__(self, error=None):
        self.error = error or TypeError("refuses to be dumped")

    def __reduce__(self):
        raise self.error


def chain(error):
    """An error and its causes, as a traceback shows them."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@pytest.fixture
def saved(path):
    c = Chest({"x": "saved x", "y": "saved y", ("t", "u"): "saved t"}, path=path)
    c.flush()
    return c


class Opens:
    """Opens a file of its own as it is loaded, as a model with a companion does."""

    def __init__(self, companion):
        self.companion = companion

    def __setstate__(self, state):
        open(state["companion"]).close()
        self.__dict__.update(state)


@pytest.mark.parametrize("settings", [{}, {"min_file_size": 1000}, {"load": lambda file: pickle.load(file)}])
def test_a_file_that_is_missing_to_the_values_own_code_is_not_taken_for_the_values(path, tmp_path, settings):
    """`get` gave the default, and the error advised to delete the key."""
    with Chest({"x": Opens(tmp_path / "companion")}, path=path, **settings):
        pass
    c = Chest(path=path, **settings)
    for action in lambda: c["x"], lambda: c.get("x"), lambda: c.pop("x", None), lambda: c.prefetch("x"):
        with pytest.raises(LoadError, match=r"'x'.*No such file or directory: '.*companion'.*Nothing proves it lost"):
            action()
    (tmp_path / "companion").touch()
    assert c["x"].companion == tmp_path / "companion"


def test_a_keyerror_of_the_users_on_miss_is_not_taken_for_a_missing_key(path):
    """`get` and `pop` gave the default, though the value is there."""
    c = Chest({"x": 1}, path=path, on_miss=lambda key: {}["counted"])
    c.flush()
    for action in lambda: c["x"], lambda: c.get("x"), lambda: c.pop("x", None), lambda: ("x", 1) in c.items():
        with pytest.raises(KeyError, match="counted"):
            action()
    assert seen(path) == {"x": 1}


def test_a_value_that_refers_to_a_damaged_chest_is_not_called_damaged(path, tmp_path):
    """The error advised to delete the key of an intact file."""
    other = Chest({"a": 1}, path=str(tmp_path / "other"))
    c = Chest({"x": [other]}, path=path)
    c.flush()
    other.close()
    del other
    (tmp_path / "other" / ".keys").write_bytes(b"\0")
    with pytest.raises(LoadError, match="'x'.*other.*Nothing proves it lost") as caught:
        c["x"]
    assert not isinstance(caught.value, DamagedError)


# What cannot be dumped.


class Exhausted:
    ended = False

    def __getstate__(self):
        return next(iter([] if self.ended else [vars(self)]))


@pytest.mark.parametrize("settings", [{}, {"min_file_size": 1000}])
def test_a_value_whose_own_code_raises_stopiteration_is_named_and_keeps_no_other_from_being_saved(path, settings):
    """Nothing was saved of what stood behind it, and no error said so."""
    c = Chest({"x": Exhausted(), "y": [1], "z": [1]}, path=path, **settings)
    c.sync()
    c["x"].ended = True
    c["y"].append(2)
    c["z"].append(2)
    for commit in c.sync, c.flush:
        with pytest.raises(DumpError, match="'x'.*StopIteration"):
            commit()
    assert (seen(path)["y"], seen(path)["z"]) == ([1, 2], [1, 2])
    c.rollback()


class Connects:
    """Asks a server as it is dumped and loaded, which does not answer if it is ``down``."""

    down = ()

    def __getstate__(self):
        return self._ask("dump") or self.__dict__

    def __setstate__(self, state):
        self.__dict__.update(self._ask("load") or state)

    def _ask(self, what):
        if what in Connects.down:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody listens")


@pytest.mark.parametrize("settings", [{}, {"min_file_size": 1000}, {"durable": True}])
@pytest.mark.parametrize("size", [10, 100_000, 10_000_000])
def test_a_server_that_does_not_answer_a_values_own_code_keeps_no_other_from_being_saved(
        path, monkeypatch, settings, size):
    """It was taken for a refusal of the system, for which nothing is committed."""
    value = Connects()
    value.content = [bytes(size)]
    c = Chest({"x": value, "y": [1]}, path=path, **settings)
    c.sync()
    for n, (down, error) in enumerate([("load", contextlib.nullcontext()), ("dump", pytest.raises(DumpError, match="'x'"))]):
        value.n = n
        c["y"].append(n)
        monkeypatch.setattr(Connects, "down", down)
        with error:
            c.sync()
        monkeypatch.setattr(Connects, "down", ())
        with Chest(path=path) as again:
            assert (again["y"], again["x"].n) == (c["y"], 0)
    c.close()  # else it may be ended in the next test, where the server does not answer either
    assert Chest(path=path)["x"].n == 1


class Changing:
    """A key whose hash may change.  Beside integers whose places in a dict are not its own, no dict finds it then."""

    def __init__(self, number):
        self.number = number

    def __hash__(self):
        return self.number

    def __eq__(self, other):
        return type(other) is Changing and self.number == other.number

    def __repr__(self):
        return f"Changing({self.number})"


@pytest.mark.parametrize("settings", [{}, {"min_file_size": 1000}])
@pytest.mark.parametrize("how", ["in memory", "spilled", "committed before"])
def test_a_key_whose_hash_changed_keeps_no_other_from_being_saved(path, how, settings):
    c, key = Chest({3: 1}, path=path, **settings), Changing(1)
    c[key], c[4] = "its value", 2
    if how == "spilled":
        c.move_to_disk(key)
    elif how == "committed before":
        c.sync()
        c[key] = "another value"
    key.number = 2
    c[5] = 3
    for save in (c.flush, c.sync, c.close):
        with pytest.raises(DumpError, match=r"Changing\(2\).*its hash changed"):
            save()
    found = seen(path)
    assert [found[name] for name in (3, 4, 5)] == [1, 2, 3]
    assert ("its value" in found.values()) == (how == "committed before")

    key.number = 1
    c.flush()
    assert c[key] == seen(path)[Changing(1)] == ("another value" if how == "committed before" else "its value")


@pytest.mark.parametrize("before", [0, 17])
def test_a_key_whose_hash_changed_and_that_some_dicts_find_keeps_no_other_from_being_saved(tmp_path, before):
    """A search in a dict tells a key by identity first, if it passes by the old place; so one finds it, another not,
    as a copy without the gaps of keys that were removed."""
    for after in range(1, 33):
        c = Chest({n: n for n in range(6)}, path=tmp_path / str(after))
        if not before:
            c.sync()
        key = Changing(before)
        c[100], c[key] = "new", 1
        for n in range(1, 5):
            del c[n]
        key.number = after
        with contextlib.suppress(DumpError):
            c.flush()
        assert {key: value for key, value in Chest(path=c.path).items() if type(key) is int} == {0: 0, 5: 5, 100: "new"}
        c.rollback()


def test_a_chest_with_a_key_whose_hash_changed_goes_on_after_an_interruption(path):
    c, key = Chest({3: 1}, path=path), Changing(1)
    c[key] = [1]
    key.number = 2
    c._engine.state.torn = True
    c[4] = 2
    with pytest.raises(DumpError, match="its hash changed"):
        c.flush()
    c.rollback()
    c[5] = 3
    c.flush()
    assert dict(c) == seen(path) == {3: 1, 4: 2, 5: 3}


@pytest.mark.parametrize("settings", [{}, {"min_file_size": 1000}, {"dump": pickle.dump, "load": pickle.load}])
@pytest.mark.parametrize("method", ["flush", "sync", "close", "move_to_disk", "__exit__"])
@pytest.mark.parametrize("error", [TypeError("no"), OSError("no number"), io.UnsupportedOperation("fileno"),
                                   StopIteration("at an end")], ids=repr)
def test_a_value_that_cannot_be_dumped_is_named_with_its_cause_and_kept(path, method, settings, error):
    """Errors of the system have a number; one that ends a loop ends none of chest's."""
    c = Chest({"good": 1}, path=path, **settings)
    c.sync()
    c["bad"] = bad = Refuses(error)
    c["also good"] = 2
    with pytest.raises(DumpError) as caught:
        getattr(c, method)(*{"move_to_disk": ["bad"], "__exit__": [None, None, None]}.get(method, []))
    assert all(word in str(caught.value) for word in ("'bad'", path, str(error)))
    assert caught.value.__cause__ is error
    assert c["bad"] is bad
    assert len(c) == 3
    if method != "move_to_disk":
        assert seen(path, **settings) == {"good": 1, "also good": 2}
    c["bad"] = "good now"
    c.close()
    assert seen(path, **settings) == {"good": 1, "also good": 2, "bad": "good now"}


@pytest.mark.parametrize("settings", [{}, {"min_file_size": 1000}, {"dump": pickle.dump, "load": pickle.load}])
def test_a_value_may_hold_a_chest_with_a_path_or_even_its_own_which_is_not_saved_by_the_way_but_no_temporary_one(
        path, tmp_path, settings):
    inner = Chest(path=tmp_path / "inner")
    c = Chest({"x": [inner], "y": [inner], "z": [inner] * 20_000}, path=path, **settings)
    c["me"] = c
    for save in (c.sync, c.sync, lambda: c.move_to_disk("x"), c.flush):  # they are written, and compared
        inner["pending"] = 1
        save()
        assert [c[key][-1].path for key in "xyz"] == [inner.path] * 3 and c["me"].path == path
        assert seen(inner.path) == {}
    inner.sync()
    assert dict(c["y"][0]) == {"pending": 1}
    c["temporary"] = [Chest()]
    with pytest.raises(DumpError, match="'temporary'.*is temporary"):
        c.flush()
    c.clear()


def test_a_value_that_could_not_be_dumped_and_leaves_memory_once_it_can_keeps_no_commit_from_its_end(path):
    c = Chest({"x": [Refuses()], "y": 1}, path=path, available_memory=0)
    del c["x"][0]
    c.move_to_disk("x")
    c.sync()
    assert dict(Chest(path=path)) == {"x": [], "y": 1}


def test_a_file_that_goes_just_as_ones_own_dump_is_to_make_it_is_no_error_of_the_value(path, monkeypatch):
    class Late(io.FileIO):
        def __init__(self, name, mode):
            try:
                super().__init__(name, mode)
            except FileExistsError:
                os.unlink(name)  # as by the commit of another process, which superseded it
                raise

    c = Chest(path=path, dump=json.dump, load=json.load)
    c["y"] = 1
    c.flush()
    open(f"{path}/x", "x").close()
    monkeypatch.setattr(io, "FileIO", Late)
    c["x"] = 2
    c.flush()
    assert c["x"] == 2


def test_several_that_cannot_be_dumped_are_counted(path):
    c = Chest({i: Refuses() for i in range(3)}, path=path)
    with pytest.raises(DumpError, match=r"of 0 \(and 2 more\)") as caught:
        c.flush()
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), str(copy)) == (DumpError, str(caught.value))
    c.clear()


def test_a_saved_value_outlives_one_in_its_place_and_a_change_in_place_that_cannot_be_dumped(path):
    c = Chest({"x": "saved", "list": [1]}, path=path)
    c.sync()
    c["x"] = Refuses()
    c["list"].append(Refuses())
    for commit in (c.sync, c.flush):
        with pytest.raises(DumpError, match="'x'|'list'"):
            commit()
        assert seen(path) == {"x": "saved", "list": [1]}
    assert len(c["list"]) == 2
    c["list"].pop()
    c["list"].append(2)
    del c["x"]
    c.flush()
    assert not c.inmem
    assert seen(path) == {"list": [1, 2]}


def test_a_transaction_with_a_key_that_cannot_be_saved_is_rolled_back_whole(path):
    c = Chest({4: "saved"}, path=path)
    c.flush()
    for key, word in ((lambda: 0, "lambda"), (Changing(1), "its hash changed")):
        with pytest.raises(DumpError, match=word), c.transaction():
            c[4], c[key] = "new", 1
            c.move_to_disk(4)
            if word != "lambda":
                key.number = 2
        assert dict(c) == seen(path) == {4: "saved"}


# What cannot be loaded.


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-3], lambda data: data[:7], lambda data: b"\0" * len(data),
                                    lambda data: b"not a pickle at all"], ids=["empty", "torn", "head", "zeros", "text"])
def test_a_value_that_cannot_be_loaded_is_named_and_left_alone_and_healed_by_setting_or_deleting_it(saved, damage):
    name = saved.key_to_filename("x")
    data = Path(name).read_bytes()
    Path(name).write_bytes(damage(data))
    for use in (lambda: saved["x"], lambda: saved.get("x"), lambda: saved.prefetch(["y", "x"]), lambda: saved.pop("x"),
                lambda: list(saved.values()), lambda: saved.pop("x", None)):
        with pytest.raises(LoadError, match=f"'x'.*{name}") as caught:
            use()
        causes = [type(error) for error in chain(caught.value)]
        assert len(causes) >= 2
        assert KeyError not in causes  # that it was not in memory is no cause
    assert (saved["y"], saved["t", "u"], len(saved), "x" in saved) == ("saved y", "saved t", 3, True)
    saved.flush()
    assert Path(name).read_bytes() == damage(data)
    Path(name).write_bytes(data)
    assert saved["x"] == "saved x"
    for key in ("x", "y"):
        Path(saved.key_to_filename(key)).write_bytes(damage(data))
    saved["x"] = "healed"
    del saved["y"]
    saved.flush()
    assert seen(saved.path) == {"x": "healed", ("t", "u"): "saved t"}


def test_a_file_under_the_name_of_another_key_is_damage_and_its_own_key_reads_it(path):
    """As an index that is older than the file has it, after a loss of power."""
    with Chest(path=path) as c:
        c[1], c["1"] = ["one"], ["text"]
        mine, theirs = c.key_to_filename(1), c.key_to_filename("1")
    os.remove(mine)
    shutil.copyfile(theirs, mine)
    for use in lambda: c[1], lambda: c.prefetch([1]), lambda: Chest(path=path, mmap_mode=None)[1], lambda: dict(c):
        with pytest.raises(DamagedError, match="value of 1: .*another key"):
            use()
    assert c["1"] == ["text"]


@pytest.mark.parametrize("method", ["sync", "flush", "close"])
def test_what_the_system_refuses_where_a_value_is_compared_names_the_file_and_loses_no_change(path, method, monkeypatch):
    c = Chest({"x": list(range(100_000))}, path=path)
    c.flush()
    c["x"].append("changed")

    def refusing(fd):  # it is given no path, and so names none
        status = fstat(fd)
        if stat.S_ISREG(status.st_mode):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return status

    fstat = os.fstat
    with monkeypatch.context() as patch, pytest.raises(OSError) as caught:
        patch.setattr(os, "fstat", refusing)
        getattr(c, method)()
    assert caught.value.errno == errno.ESTALE and c.key_to_filename("x") in str(caught.value)
    c.close()
    assert seen(path)["x"][-1] == "changed"


def test_what_others_committed_is_seen_although_the_system_refused_to_look_at_a_file_meanwhile(saved, monkeypatch):
    def fail(ref):
        raise OSError(errno.EIO, "refused")

    other = Chest(path=saved.path)
    assert list(saved.values()) == ["saved x", "saved y", "saved t"]
    del other["x"]
    for value in "their", "their y":  # the name that the first one freed is the second one's
        other["y"] = value
        other.flush()
    monkeypatch.setattr(saved._engine.state.storage, "version", fail)
    for _ in range(2):
        with pytest.raises(OSError, match="refused"):
            len(saved)
    monkeypatch.undo()
    assert dict(saved) == seen(saved.path) == {"y": "their y", ("t", "u"): "saved t"}
    saved.flush()
    assert "x" not in Chest(path=saved.path)


def test_a_file_that_is_gone_is_a_key_error_that_names_it(saved):
    name = saved.key_to_filename("x")
    os.unlink(name)
    for use in (lambda: saved["x"], lambda: saved.pop("x"), lambda: saved.prefetch("x")):
        with pytest.raises(KeyError, match=f"'x'.*{name}") as caught:
            use()
        assert not isinstance(caught.value.__context__, FileNotFoundError), "it says that already"
    assert (saved.get("x", "default"), "x" in saved, len(saved), saved["y"]) == ("default", True, 3, "saved y")
    saved.sync()
    del saved["x"]
    saved[10 ** 6000] = 1  # which Python does not show
    saved.flush()
    assert set(seen(saved.path)) == {"y", ("t", "u"), 10 ** 6000}
    os.unlink(saved.key_to_filename(10 ** 6000))
    assert saved.get(10 ** 6000, "default") == "default"


@pytest.mark.parametrize("error", [ZeroDivisionError("in load"), OSError("without a number"), KeyError("inner"), MemoryError()])
def test_an_error_in_the_users_load_is_reported_with_the_key_and_want_of_memory_as_itself(path, error):
    failing = []

    def load(file):
        value = pickle.load(file)
        if failing and value == "value":
            raise error
        return value

    c = Chest({"x": "value", "y": "other"}, path=path, load=load)
    c.flush()
    failing.append(1)
    with pytest.raises((LoadError, MemoryError)) as caught:
        c["x"]
    if caught.value is not error:
        assert "'x'" in str(caught.value)
        assert not isinstance(caught.value, DamagedError)
        assert caught.value.__cause__ is error
    assert isinstance(caught.value, MemoryError) == isinstance(error, MemoryError)
    assert c["y"] == "other"
    failing.clear()
    assert c["x"] == "value"


# The system refuses.


@contextlib.contextmanager
def read_only(path):
    """The directory cannot be written to in this block, by root neither."""
    try:
        if os.getuid():
            os.chmod(path, 0o555)
        else:
            mounts.run("mount", "--bind", path, path)
            mounts.run("mount", "-o", "remount,ro,bind", path)
        yield
    except mounts.Unavailable as error:
        pytest.skip(f"cannot make a directory read-only here: {error}")
    finally:
        if os.getuid():
            os.chmod(path, 0o755)
        else:
            with contextlib.suppress(mounts.Unavailable):  # then it was not mounted
                mounts.run("umount", "-l", path)


@pytest.mark.parametrize("settings", [{}, {"min_file_size": 1000}])
def test_a_read_only_directory_can_be_read_and_says_so_when_written(path, settings):
    with Chest({"x": 1, "y": [2]}, path=path, **settings):
        pass
    with read_only(path):
        with Chest(path=path, **settings) as c:
            assert dict(c) == {"x": 1, "y": [2]}
            c.sync()
            c.flush()
        c = Chest(path=path, **settings)
        c["x"] = "new"
        for _ in range(2):
            with pytest.raises(OSError, match="'x'|index") as caught:
                c.flush()
            assert caught.value.errno in (errno.EROFS, errno.EACCES)
            assert path in str(caught.value)
            assert dict(c) == {"x": "new", "y": [2]}
    c.flush()
    assert seen(path, **settings) == {"x": "new", "y": [2]}


def test_a_path_that_is_a_file_is_said_to_be_one(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for path in (file, file / "below"):
        with pytest.raises(NotADirectoryError, match="file"):
            Chest(path=path)
    assert file.read_text() == "mine"


# Signals.


def test_ctrl_c_while_a_value_is_loaded_leaves_the_key_free_for_the_next(path):
    armed = []

    def load(file):
        if armed:
            raise armed.pop()
        return pickle.load(file)

    c = Chest({"x": 1, "y": 2}, path=path, load=load)
    c.flush()
    for use in (lambda: c["x"], lambda: c.prefetch(["x", "y"])):
        armed.append(KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            use()
        check(c)
    assert dict(c) == {"x": 1, "y": 2}


# In a with block.


def test_an_error_in_a_with_block_is_not_hidden_by_one_of_the_save(path):
    c = Chest(path=path)
    with pytest.raises(DumpError) as caught, c:
        c["bad"] = Refuses()
        raise ZeroDivisionError("the first")
    assert isinstance(caught.value.__context__, (ZeroDivisionError, TypeError))
    assert ZeroDivisionError in [type(error) for error in chain(caught.value)]
    c.clear()
