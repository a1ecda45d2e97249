"""What is left after a SIGKILL: exactly what the last completed commit left, or all of the one under way.

Two ways to it.  `strace` kills a process that commits as it enters its first, second, third … system call, until the
commit gets through; and several hundred processes that commit in a loop are killed at whatever moment comes.
"""
from __future__ import annotations

import collections
import contextlib
import os
import pickle
import random
import re
import shutil
import signal
import subprocess

import pytest

from chest import Chest

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

BASE = {"a": "base-a" * 50, "b": [1, 2], ("t", 1): "base-t", "same": "same", 5: "base-5"}


class Scenario:
    """A commit: how the chest is opened, what is changed in it, how it is committed."""

    def __init__(self, change, commit=Chest.flush, base=BASE, **settings):
        self.change, self.commit, self.base, self.settings = change, commit, base, settings

    def open(self, path):
        return Chest(path=path, **self.settings)

    def prepare(self, path):
        """A chest with the base committed and the changes made, and what it must hold after its next commit."""
        with self.open(path) as c:
            c.update(self.base)
        c = self.open(path)
        expected = dict(self.base)
        self.change(c)
        self.change(expected)
        return c, expected


def add(c):
    for key in ("new", ("t", 2), 6):
        c[key] = f"new-{key}" * 30


def overwrite(c):
    for key in BASE:
        if key != "same":
            c[key] = f"over-{key}" * 30


def delete(c):
    del c["a"], c["t", 1]


def everything(c):
    add(c)
    delete(c)
    c["b"] = "over"
    c["b"] = "over and over"
    c["t", 1] = "again"


def in_place(c):
    c["b"].append(3)


def many(c):
    for i in range(12):
        c[i] = str(i)


def spilled(c):
    many(c)
    delete(c)
    if isinstance(c, Chest):
        for key in list(c.inmem):
            c.move_to_disk(key)


def mixed(c):
    everything(c)
    c["large"] = "large" * 2000


def updated(c):
    other = Chest({"a": "other-a", "o": "other-o"}) if isinstance(c, Chest) else {"a": "other-a", "o": "other-o"}
    c.update(other)


def nothing_before(c):
    c["first"] = 1


SCENARIOS = {
    "flush of new keys": Scenario(add),
    "flush of new values": Scenario(overwrite),
    "flush of deletions": Scenario(delete),
    "flush of everything": Scenario(everything),
    "flush of many": Scenario(many),
    "flush of what was spilled": Scenario(spilled),
    "flush of a change in place": Scenario(in_place),
    "first flush": Scenario(nothing_before, base={}),
    "sync of new keys": Scenario(add, Chest.sync),
    "sync of everything": Scenario(everything, Chest.sync),
    "close": Scenario(everything, Chest.close),
    "write_keys": Scenario(spilled, Chest.write_keys),
    "update by links": Scenario(updated, Chest.sync),
    "durable flush": Scenario(everything, durable=True),
    "durable sync": Scenario(everything, Chest.sync, durable=True),
    "flush with pickle": Scenario(everything, dump=pickle.dump, load=pickle.load),
    "flush of small values": Scenario(mixed, min_file_size=1000),
    "sync of small values": Scenario(mixed, Chest.sync, min_file_size=1000),
    "durable flush of small values": Scenario(mixed, min_file_size=1000, durable=True),
    "drop": Scenario(lambda c: c.clear(), Chest.drop),
    "durable drop": Scenario(lambda c: c.clear(), Chest.drop, durable=True),
}


class Tracee:
    """A forked child that has a commit to make, and stops before it until it is told to go on."""

    def __init__(self, scenario, path):
        report, ready = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                c, expected = scenario.prepare(path)
                os.write(ready, pickle.dumps(expected))
                os.close(ready)
                os.kill(os.getpid(), signal.SIGSTOP)
                scenario.commit(c)
                os._exit(0)
            finally:
                os._exit(99)
        os.close(ready)
        with open(report, "rb") as file:
            self.expected = pickle.load(file)
        assert os.WIFSTOPPED(os.waitpid(self.pid, os.WUNTRACED)[1])

    def go(self):
        os.kill(self.pid, signal.SIGCONT)

    def wait(self):
        return os.waitpid(self.pid, 0)[1]


def traced(scenario, path, log, inject=()):
    """Commit in a child under strace.

    Returns what the chest holds once the commit is through, the system calls that were entered, and whether the child
    came to its end.
    """
    tracee = Tracee(scenario, path)
    with subprocess.Popen(["strace", "-f", "-o", log, "-e", "trace=%file,%desc", *inject, "-p", str(tracee.pid)],
                          stderr=subprocess.PIPE, text=True) as strace:
        while "attached" not in (said := strace.stderr.readline()):
            if not said:
                os.kill(tracee.pid, signal.SIGKILL)
                tracee.wait()
                pytest.skip("strace cannot attach to a process here")
        tracee.go()
        status = tracee.wait()
        strace.stderr.read()
    with open(log) as file:
        calls = [line.split(maxsplit=1)[1] for line in file if re.match(r"\d+ +(?!mmap)\w+\(", line)]  # mmap: of memory
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
    else:
        assert os.WEXITSTATUS(status) == 0, calls[-5:]
    return tracee.expected, calls, not os.WIFSIGNALED(status)


def killed_at(scenario, path, log, calls, n):
    """Commit in a child that is killed as it enters its ``n``-th system call, which is ``calls[n]``."""
    call = name(calls[n])
    number = sum(name(earlier) == call for earlier in calls[: n + 1])
    expected, entered, through = traced(scenario, path, log, ["-e", f"inject={call}:signal=SIGKILL:when={number}"])
    assert not through
    assert list(map(name, entered)) == list(map(name, calls[: n + 1]))
    return expected


KINDS = {
    "create": re.compile(r"open(at)?\(.*O_CREAT"),
    "write": re.compile(r"p?writev?(64)?\("),
    "lock": re.compile(r"flock\(.*LOCK_EX"),
    "replace": re.compile(r"rename(at2?)?\("),
    "unlink": re.compile(r"(unlink(at)?|rmdir)\("),
    "other": re.compile(r"(mkdir|link|ftruncate|fallocate)"),
}
EVERY = bool(os.environ.get("CHEST_STRESS"))  # also at calls that change nothing: what is left then is what the next finds


def name(call):
    return call[: call.index("(")]


def kind(call):
    return next((kind for kind, pattern in KINDS.items() if pattern.match(call)), "other" if EVERY else None)


def contents(scenario, path):
    with scenario.open(path) as c:
        return dict(c)


def unnamed(scenario, path):
    """The number of files that no key names; one that was made a moment before it was killed may be there, and empty."""
    found = {os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names} - {path + "/.keys"}
    with scenario.open(path) as c:
        left = found - {c.key_to_filename(key) for key in c}
    assert [name for name in left if os.path.getsize(name)] == []
    return len(left)


@needs_fork
@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_a_commit_that_is_killed_at_any_system_call_happens_all_or_not_at_all(scenario, quick_path, steps_reached):
    log, path = str(quick_path / "strace.log"), str(quick_path / "whole")
    expected, calls, through = traced(scenario, path, log)
    assert through
    assert contents(scenario, path) == expected != scenario.base
    happened = []
    for n, call in enumerate(calls):
        if kind(call) is None:
            continue
        path = str(quick_path / str(n))
        assert killed_at(scenario, path, log, calls, n) == expected
        steps_reached[kind(call)] += 1
        found = contents(scenario, path)
        assert found in (scenario.base, expected), call
        happened.append(found == expected)
        assert happened == sorted(happened), f"killed later, at {call}, it is the earlier state again"
        with scenario.open(path) as c:  # and life goes on: leftovers are in nobody's way
            c.update(after := dict.fromkeys([*expected, "more"], "after"))
        assert contents(scenario, path) == {**found, **after}
        assert unnamed(scenario, path) <= 1 - bool(KINDS["unlink"].match(call)), call
        shutil.rmtree(path)
    assert happened[0] is False


@pytest.fixture(scope="module")
def steps_reached():
    """How often a process was killed as it was about to do what; counted over all commits of this module."""
    reached = collections.Counter()
    yield reached
    if reached:
        print("\nkilled at:", dict(reached))
        assert reached.keys() == KINDS.keys()


# At random moments.


def rounds(path, settings, acknowledge):
    """Commit one state after another, for ever; acknowledge the number of each that is complete."""
    c = Chest(path=path, **settings)
    for number in range(10**9):
        for key, value in state(number).items():
            c[key] = value
        for key in list(c):
            if key not in state(number):
                del c[key]
        if number % 5 == 4:
            c.flush()
        elif number % 7 == 6:
            c.close()
        else:
            c.sync()
        os.write(acknowledge, b"%d\n" % number)


def state(number):
    """What the chest holds after commit ``number``: every key changes, some come and go."""
    pairs = {f"k{i}": f"{number}:" * (1 + i * 40) for i in range(4)}
    pairs["t", number % 3] = number
    pairs["list"] = [number] * (number % 50)
    return pairs


@needs_fork
@pytest.mark.parametrize(("settings", "times"), [
    ({}, 150), ({"available_memory": 500}, 100), ({"min_file_size": 300}, 80), ({"dump": pickle.dump, "load": pickle.load}, 60)],
    ids=["default", "spilling", "small values", "plain pickle"])
def test_a_process_that_is_killed_at_a_random_moment_leaves_its_last_commit(settings, times, quick_path):
    chance = random.Random(f"{settings}")
    moments = collections.Counter()
    for attempt in range(times):
        path = str(quick_path / str(attempt))
        acknowledged, acknowledge = os.pipe()
        pid = os.fork()
        if not pid:
            with contextlib.suppress(BaseException):
                rounds(path, settings, acknowledge)
            os._exit(99)
        os.close(acknowledge)
        with open(acknowledged, "rb", buffering=0) as file:
            said = b""
            until = chance.randrange(8)
            while said.count(b"\n") < until:
                said += file.read(1)
            for _ in range(chance.randrange(30000)):
                pass
            os.kill(pid, signal.SIGKILL)
            assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
            said += file.readall()
        last = int(said.split(b"\n")[-2]) if b"\n" in said else -1
        with Chest(path=path, **settings) as c:
            found = dict(c)
        allowed = [state(last) if last >= 0 else {}, state(last + 1)]
        assert found in allowed, (attempt, last, found)
        moments["before" if found == allowed[0] else "after"] += 1
        with Chest(path=path, **settings) as c:
            c["after"] = "life goes on"
        with Chest(path=path, **settings) as c:
            assert dict(c) == {**found, "after": "life goes on"}
        shutil.rmtree(path)
    assert moments["before"] > 0
