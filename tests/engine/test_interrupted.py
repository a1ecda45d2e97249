"""Ctrl-C at any line of what is done with values: none is lost, nor a change in place, the next commit works, and the
next flush leaves no file of what was hit.

Each 29th line is tried; with ``CHEST_STRESS=1`` all are.
"""
from __future__ import annotations

import contextlib
import copy
import functools
import gc
import itertools
import operator
import os
import signal
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
from children import Interruption, limited, open_files, thread
from invariants import Model, check, files

import chest
from chest import Chest
from chest.engine.state import State
from chest.index import Index
from chest.memory import hit_density
from chest.memory.cache import Cache
from chest.memory.changes import COUNTED
from chest.storage import system
from chest.storage.keysfile import KeysFile
from chest.storage.locks import DirectoryLock

N = 16
BUDGET = 2400  # bytes: about half of the values fit
STRESS = bool(os.environ.get("CHEST_STRESS"))
GONE = "gone"


def sets(c):
    c["new"] = ["new"]
    c[0] = ["new"]
    c["large"] = ["new"] * 2000


def gets(c):
    for key in range(5, N, 3):
        c[key]


def updates(c):
    c.update({key: ["new"] for key in [3, "pending", *range(N - 3, N + 3)]})


def deletes(c):
    del c[0]
    del c[N - 1]
    del c["pending"]


def pops(c):
    c.pop(0)
    c.pop(N - 1)
    c.pop("none", None)


def prefetches(c):
    c.move_to_disk(N - 1)
    c.prefetch([0, N - 1, N - 2])


def iterates(c):
    for _, value in c.items():
        value.append("seen")


def transacts(c):
    with c.transaction():
        c["new"], c[0] = ["new"], ["new"]
        c[5].append("new")
        del c[N - 1]


def shrinks(c):
    c.available_memory = BUDGET / 3
    c.shrink()


ACTIONS = {"set": sets, "get": gets, "update": updates, "delete": deletes, "pop": pops, "prefetch": prefetches,
           "iterate": iterates, "transaction": transacts, "shrink": shrinks,
           **{name: operator.methodcaller(name) for name in ("sync", "flush", "rollback", "close")}}
COMMITS = "transaction", "sync", "flush", "close"


def begun(path, settings):
    """A chest with something committed, by another handle too, and something not; what it holds, and an object of it that
    the program holds."""
    values = Model((key, [key] * 5) for key in range(N))
    c = Chest(values, path=path, available_memory=BUDGET, **settings)
    c.sync()
    values = copy.deepcopy(values)
    values.committed = copy.deepcopy(values)
    for each in (c, values):
        each[1].append("changed")
        each["pending"] = ["pending"]
        each[3] = ["set"]
        del each[2]
    held = c[4]
    for each in (c, values):
        each.move_to_disk(4)
        each[4].append("held")
        each[5]
    with Chest(path=path, **settings) as other:
        other["theirs"] = ["theirs"]
    for each in (values, values.committed):
        each["theirs"] = ["theirs"]
    return c, values, held


def is_free(lock):
    """Can another thread have the lock?"""
    def take():
        taken = lock.acquire(blocking=False)
        if taken:
            lock.release()
        return taken

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(take).result()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Ctrl-C in a finaliser
@pytest.mark.parametrize("settings", [{}, {"min_file_size": 1000}], ids=["files", "packs"])
@pytest.mark.parametrize("action", ACTIONS)
def test_ctrl_c_at_any_line_loses_nothing(tmp_path, action, settings, leaks_nothing, monkeypatch):
    if settings:
        monkeypatch.setattr(hit_density, "LARGE", 0)  # so few values are ranked as many are
    for n in itertools.count(1, 1 if STRESS else 29):
        if not once(str(tmp_path / str(n)), action, settings, n):
            break
    assert n > 1
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Ctrl-C in a finaliser
@pytest.mark.parametrize("action", ["set", "update", "delete", "sync", "flush", "rollback"])
def test_ctrl_c_at_any_line_of_the_index_loses_nothing(tmp_path, action):
    lines = [method for method in vars(Index).values() if isinstance(method, types.FunctionType)]
    for n in itertools.count(1, 3 if action in COMMITS and not STRESS else 1):
        if not once(str(tmp_path / str(n)), action, {}, n, lines):
            break
    assert n > 10


def once(path, action, settings, n, lines=()):
    """The ``n``-th line of ``action``, or of those of some functions, is not reached; returns whether there is such a line."""
    c, before, held = begun(path, settings)
    after = copy.deepcopy(before)
    after.committed = before.committed
    ACTIONS[action](after)
    interrupted = Interruption(n, *lines).during(lambda: ACTIONS[action](c))
    assert is_free(c.lock), n
    if action in COMMITS:
        with Chest(path=path, flag="r") as reader:
            assert dict(reader) in (before.committed, before, after), n  # done as a whole, or not at all
    if action not in ("rollback", "transaction"):  # which make an end of what the program held
        held.append("later")
        for each in (before, after):
            each[4].append("later")
    c.available_memory = BUDGET
    check(c)
    found = {key: changed(c, key, before, after, n) for key in {**before, **after}}
    c[0] = found[0] = ["set anew"]
    c.shrink()
    assert c.memory_usage <= BUDGET, n
    c.flush()
    assert not c.inmem, n
    check(c)
    named = {ref for ref in c._keys.values() if not ref.startswith(".packs")}
    assert {name for name in os.listdir(path) if not name.startswith(".")} == named, n  # and no file stays of what was hit
    found = {key: value for key, value in found.items() if value is not GONE}
    with Chest(path=path) as again:
        assert dict(again) == found, n
    assert dict(c) == found, n
    c.drop()
    return interrupted


class WhileTheSystemIsAsked:
    """Ctrl-C that comes during the ``n``-th call of the system by chest's own code: Python raises it when that returns."""

    def __init__(self, n):
        self.left = n

    def __call__(self, frame, event, function):
        if event == "c_return" and frame.f_code.co_filename.startswith(os.path.dirname(chest.__file__)) and (
                function.__module__ in ("posix", "fcntl", "_io") or function.__name__ == "extend"):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt


def moves(c):
    for key in (1, 3, "pending"):
        c.move_to_disk(key)


def links(c):
    with Chest({"linked": ["linked"], ("linked", 1): ["linked"] * 9}, path=c.path + "-other") as other:
        other.sync()
        c.update(other)


@pytest.mark.skipif(sys.implementation.name != "cpython" or not os.path.isdir("/proc/self/fd"),
                    reason="no profile of calls into C, or open descriptors cannot be seen")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Ctrl-C in a finaliser
@pytest.mark.parametrize("settings", [{}, {"min_file_size": 1000}], ids=["files", "packs"])
@pytest.mark.parametrize("action", [moves, links, transacts, Chest.sync, Chest.flush], ids=lambda action: action.__name__)
def test_ctrl_c_while_the_system_is_asked_leaves_no_file_and_no_descriptor_behind_the_next_commits(tmp_path, action, settings):
    interrupted, n = True, 1
    while interrupted:
        path = str(tmp_path / str(n))
        c, *_ = begun(path, settings)
        before = set(open_files().values())
        interruption = WhileTheSystemIsAsked(n)
        sys.setprofile(interruption)
        try:
            action(c)
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        interrupted = interruption.left <= 0
        c["later"] = 1
        c.flush()
        named = {".keys", *(os.path.relpath(c.key_to_filename(key), path) for key in c)}
        c.close()
        assert named.issuperset(files(path)), n
        assert not {name for name in set(open_files().values()) - before if path in name or "pagemap" in name}, n
        c.drop()
        assert not os.path.exists(path), n
        n += 1 if STRESS else 5
    assert n > 6, "it asks the system of nothing"


def changed(c, key, before, after, n):
    """What ``c`` has for ``key``, which is what it was or what it was to be, changed in place."""
    value = c.get(key, GONE)
    assert value in (before.get(key, GONE), after.get(key, GONE)), (n, key)
    if value is not GONE:
        value.append("changed")
    return copy.copy(value)


@pytest.mark.parametrize("call, action", [
    ("write", Chest.sync), ("write", transacts), ("replace", Chest.flush), ("replace", Chest.close), ("writev", gets)])
def test_a_limit_of_time_that_comes_in_a_call_of_the_system_comes_out_as_itself_and_loses_nothing(
        tmp_path, monkeypatch, action, call):
    """In a commit, or while a read makes room."""
    def slow(*arguments, **more):
        done = real(*arguments, **more)
        monkeypatch.setattr(os, call, real)
        monkeypatch.setattr(system, "replace", os.replace)
        signal.raise_signal(signal.SIGINT)
        return done

    c, model, _ = begun(str(tmp_path / "c"), {})
    if action is transacts:
        transacts(model)
    if action is gets:  # then nothing of what is in memory is on disk
        for each in (c, model):
            each.update({key: [key] * 30 for key in range(N)})
    real = getattr(os, call)
    monkeypatch.setattr(os, call, slow)
    monkeypatch.setattr(system, "replace", os.replace)
    with limited(TimeoutError("time is up")), pytest.raises(TimeoutError, match="^time is up$"):
        action(c)
    if action is not transacts:
        assert dict(c) == model
    check(c)
    c.flush()
    with Chest(path=c.path) as again:
        assert dict(again) == dict(c)


@pytest.mark.parametrize("action", [lambda c, _: c.close(), lambda c, other: other.update(c), lambda c, _: c.pop(N)],
                         ids=["close", "update", "pop"])
def test_a_limit_of_time_comes_out_as_itself_whatever_call_of_the_system_it_comes_in(tmp_path, monkeypatch, action):
    def slow(real, *arguments, **more):
        nonlocal left
        left -= threading.current_thread() is threading.main_thread()
        if left == 0:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments, **more)

    left = 0
    for name in "stat", "lstat", "fstat", "link":
        monkeypatch.setattr(os, name, functools.partial(slow, getattr(os, name)))
    for n in itertools.count(1):
        c, other = Chest({key: [key] for key in range(N)}, path=str(tmp_path / str(n))), Chest()
        c.sync()
        c[N] = ["new"]
        gc.collect()  # else a finaliser may swallow it
        gc.disable()
        with limited(TimeoutError("time is up")):
            left = n
            try:
                action(c, other)
            except TimeoutError as error:
                assert str(error) == "time is up"
            else:
                assert left > 0, "it was passed over"
                break
            finally:
                stopped, left = left, 0
                gc.enable()
        c.close()  # else an end that was cut off comes to its end in the midst of the next one
    assert n > 1 and stopped > 0
    del c, other
    gc.collect()


@pytest.mark.parametrize("error", [FileExistsError, FileNotFoundError])
def test_what_a_handler_raises_is_not_taken_for_what_the_system_says_of_a_file_that_is_made(path, monkeypatch, error):
    def slow(fd):
        nonlocal left
        status, left = real(fd), left - 1
        if not left:
            signal.raise_signal(signal.SIGINT)
        return status

    real, left = os.fstat, 0  # until then nothing is raised, as chests of before may end
    monkeypatch.setattr(os, "fstat", slow)
    with limited(error):
        for n in itertools.count(1):
            c = Chest(path=path)
            c[0], c["a", "b"], c["c"] = model = [n], [n + 1], [n + 2]
            left = n
            with contextlib.suppress(error):
                c.sync()
            if left > 0:  # it took fewer calls
                break
            assert (c[0], c["a", "b"], c["c"]) == model
            c.flush()
            with Chest(path=path) as again:
                assert (again[0], again["a", "b"], again["c"]) == model
                names = {again.key_to_filename(key) for key in again} | {os.path.join(path, ".keys")}
            assert names == {os.path.join(path, name) for name in files(path)}
            c.drop()
        left = 0
    assert n > 5


class Slow:
    def __reduce__(self):
        signal.raise_signal(signal.SIGINT)
        return Slow, ()


def test_a_limit_of_time_that_comes_while_an_update_pickles_a_value_comes_out_as_itself(path):
    c = Chest(path=path, available_memory=10, min_file_size=1000)
    with limited(TimeoutError("time is up")), pytest.raises(TimeoutError, match="^time is up$"):
        c.update({1: "one", 2: Slow(), 3: "three"})
    assert not c
    check(c)


class SlowToLoad:
    def __reduce__(self):
        return signal.raise_signal, (signal.SIGINT,)


def ends(why, number, frame):
    signal.signal(number, signal.SIG_IGN)  # one is enough
    raise TimeoutError(why)


@pytest.mark.parametrize("kind", [Slow, SlowToLoad])
@pytest.mark.parametrize("handler", [functools.partial(ends, "time is up"), lambda *given: ends("time is up", *given)])
def test_a_limit_of_time_comes_out_as_itself_of_a_handler_that_is_a_partial_or_is_installed_no_more(
        path, handler, kind):
    c = Chest({"x": kind(), "y": [1]}, path=path)
    with limited(TimeoutError):
        signal.signal(signal.SIGINT, handler)
        with pytest.raises(TimeoutError, match="^time is up$"):
            c.flush()
            c["x"]
    del c["x"]
    assert dict(c) == {"y": [1]}
    check(c)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Ctrl-C may come in a finaliser
@pytest.mark.parametrize("method", ["sync", "flush"])  # which append to the list, and replace it
@pytest.mark.parametrize("settings", [{}, {"min_file_size": 1000}], ids=["files", "packs"])
def test_ctrl_c_while_others_changes_are_taken_over_loses_none_of_them(tmp_path, method, settings, leaks_nothing):
    for n in itertools.count(1, 1 if STRESS else 3):
        path = str(tmp_path / str(n))
        c = Chest({key: [key] for key in range(10)}, path=path, **settings)
        c.sync()
        c["mine"], c[1] = "new", "new"
        del c[2]
        with Chest(path=path, **settings) as other:
            other["theirs"], other[3] = "theirs", "theirs"
            del other[4]
            getattr(other, method)()
        interrupted = Interruption(n).during(lambda c=c: len(c))
        expected = {0: [0], 1: "new", 3: "theirs", **{key: [key] for key in range(5, 10)}, "theirs": "theirs",
                    "mine": "new"}
        assert dict(c) == expected, n
        check(c)
        c.sync()
        with Chest(path=path) as again:
            assert dict(again) == expected, n
        c.drop()
        if not interrupted:
            break
    assert n > 1
    del c
    gc.collect()


@pytest.mark.parametrize("action", [Chest.sync, Chest.drop], ids=["sync", "drop"])
def test_ctrl_c_on_the_way_out_of_the_directorys_lock_keeps_nobody_waiting(path, action):
    c = Chest({"x": 1}, path=path)
    other = Chest({"y": 2}, path=path)
    assert Interruption(1, DirectoryLock.__exit__).during(lambda: action(c))
    with thread(other.sync):  # else it waits until this thread uses the chest again
        pass
    assert other["y"] == 2


def test_a_key_whose_set_was_interrupted_stays_if_a_hit_showed_it(path):
    c = Chest(path=path)
    assert Interruption(1, State.count_change).during(lambda: Chest.__setitem__(c, "x", [1]))
    c["x"].append(2)
    c.sync()
    assert dict(c) == dict(Chest(path=path)) == {"x": [1, 2]}


def test_a_removal_that_was_interrupted_as_it_began_leaves_the_keys_in_their_order(path):
    c = Chest({"x": 1, "y": 2}, path=path)
    assert Interruption(1, KeysFile.changed).during(lambda: c.pop("x"))
    assert list(c) == ["x", "y"]


@pytest.mark.parametrize("remove", [lambda c: c.pop("x"), Chest.rollback], ids=["pop", "rollback"])
def test_what_a_hit_gives_behind_an_interrupted_removal_stays(path, remove):
    for line in itertools.count(1):
        c = Chest({"x": [1]}, path=path)
        c.sync()
        c["x"]
        if not Interruption(line, Index.delete, Cache.remove, Cache.clear).during(lambda c=c: remove(c)):
            break
        value = c.get("x")
        if value is not None:
            value.append(2)
        assert dict(c) == ({} if value is None else {"x": [1, 2]})
        c.drop()
    assert line > 5


@pytest.mark.parametrize("min_file_size", [0, 4096])
@pytest.mark.parametrize("away", [False, COUNTED])
def test_a_value_whose_save_was_interrupted_is_compared_with_its_new_bytes(path, away, min_file_size):
    c = Chest({"x": [1]}, path=path, min_file_size=min_file_size)
    c.sync()
    held = c["x"]
    if away:
        c.move_to_disk("x")
    held.append(2)
    assert Interruption(1, Cache.wrote).during(c.sync)
    c.sync()
    held.pop()
    c.sync()
    assert Chest(path=path)["x"] == [1]
    held.append(3)
    assert Interruption(1, Index.commit).during(c.sync)
    assert c["x"] == [1, 3]


def test_what_is_read_behind_an_interrupted_look_at_others_commits_may_change_in_place(path):
    c, other = Chest({"x": [1]}, path=path), Chest(path=path)
    c.flush()
    other["x"] = [2]
    other.sync()
    assert Interruption(1, State.drop).during(lambda: len(c))
    c["x"].append(3)
    c.sync()
    assert dict(c) == dict(Chest(path=path)) == {"x": [2, 3]}


def test_a_deletion_that_ctrl_c_found_committed_is_not_committed_again(path, monkeypatch):
    c, replace = Chest({"x": 1}, path=path), system.replace
    c.flush()
    del c["x"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(system, "replace", lambda *paths: [replace(*paths), signal.raise_signal(signal.SIGINT)])
        c.flush()
    assert "x" not in c  # this looks at what is committed
    with Chest(path=path) as other:
        other["x"] = 2
    c.flush()
    assert dict(c) == dict(Chest(path=path)) == {"x": 2}


@pytest.mark.parametrize("method", ["sync", "flush"])
def test_what_an_interrupted_commit_was_to_supersede_is_not_removed_when_its_name_has_come_again(path, monkeypatch, method):
    c, other = Chest({"x": 1}, path=path), Chest(path=path)
    c.flush()
    c["x"] = 2
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(system, "replace", lambda *paths: signal.raise_signal(signal.SIGINT))
        c.flush()
    other["x"] = 3
    other.flush()  # which removes the file that c's commit was to remove
    other["x"] = 4
    other.move_to_disk("x")
    assert os.path.basename(other.key_to_filename("x")) == "x"
    c["y"] = 5
    getattr(c, method)()
    assert other["x"] == 4
    other.flush()
    c.flush()
    assert dict(c) == dict(Chest(path=path)) == {"x": 4, "y": 5}
