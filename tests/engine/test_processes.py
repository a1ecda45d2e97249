"""Many processes on one chest, some of them killed all along: nothing is lost that was committed, and nothing is torn.

The short run is a few hundred commits; with ``CHEST_STRESS=1`` it is several thousand.
"""
from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import random
import signal
import threading
import traceback

import pytest

from chest import Chest
from chest.index import KeysFile
from chest.storage import system

STRESS = bool(os.environ.get("CHEST_STRESS"))
SHARED = [f"shared{n}" for n in range(5)] + [("a", "b"), ("a", "c"), "1", 1]
DELETED = None


def value(key, who, n):
    """A value that says whose it is, and that a torn file could not give."""
    try:
        import numpy as np
    except ImportError:
        return [repr(key), who, n, [n] * 20_000]
    return [repr(key), who, n, np.full(20_000 if n % 2 else 50, n)]


def checked(key, found):
    """The writer and number of a value, after a look at every part of it."""
    whose, who, n, content = found
    assert whose == repr(key), f"{key!r} has the value of {whose}"
    assert len(content) in (20_000, 50)
    assert all(part == n for part in content[:: 97]), f"{key!r} is torn"
    assert content[0] == content[-1] == n, f"{key!r} is torn"
    return who, n


def told(function):
    """Run in another process; the last thing that is sent says how it ended."""
    def run(pipe, *arguments):
        try:
            function(pipe.send_bytes, *arguments)
            pipe.send_bytes(b'"fine"')
        except BaseException:
            pipe.send_bytes(json.dumps({"error": traceback.format_exc()}).encode())
    return run


def _write(send, path, who, first, commits, seed):
    """Commit after commit: keys of its own, keys that all share, deletes, and one key that nobody ever touches again."""
    rng = random.Random(seed)
    c = Chest(path=path, available_memory=rng.choice([0, 300_000, 1e9]))
    mine = [f"{who}{n}" for n in range(3)]
    for n in range(first, first + commits):
        changes = {}
        for key in [*rng.sample(mine, 1), *rng.sample(SHARED, 2), f"{who}_{n}"]:
            if rng.random() < 0.2 and key in SHARED + mine and key in c:
                try:
                    del c[key]
                except KeyError:
                    continue
                changes[repr(key)] = DELETED
            else:
                c[key] = value(key, who, n)
                changes[repr(key)] = n
        send(json.dumps({"begin": n, "changes": changes}).encode())
        rng.choice([c.sync, c.sync, c.flush, c.close])()
        send(json.dumps({"done": n}).encode())
        _read(c, rng.choice(SHARED))


def _read(c, key):
    try:
        return checked(key, c[key])
    except KeyError as error:
        assert "gone" not in str(error), error
        return None


def _look(send, path, seed, writers, stop, mmap_mode):
    """Read whatever there is; what one writer alone sets never goes back."""
    rng = random.Random(seed)
    newest = {}
    reads = 0
    own = [f"{who}{n}" for who in writers for n in range(3)]
    while not os.path.exists(stop):
        c = Chest(path=path, available_memory=rng.choice([0, 300_000, 1e9]), mmap_mode=mmap_mode)
        for _ in range(100):
            key = rng.choice(SHARED + own)
            found = _read(c, key)
            if found is not None and key in own:
                assert found[1] >= newest.get(key, 0), f"{key!r} went back from {newest[key]} to {found[1]}"
                newest[key] = found[1]
            reads += 1
        if rng.random() < 0.2:
            for key, found in c.items():
                checked(key, found)
        len(c)
    send(json.dumps({"reads": reads}).encode())


def _take_over(send, path, other, seed, stop):
    """Another chest that takes everything over from the first, again and again, by hard links."""
    copy = Chest(path=other)
    rounds = 0
    while not os.path.exists(stop):
        copy.update(Chest(path=path))
        for key in SHARED:
            _read(copy, key)
        copy.sync()
        rounds += 1
    for key, found in copy.items():
        checked(key, found)
    send(json.dumps({"rounds": rounds}).encode())


write, look, take_over = told(_write), told(_look), told(_take_over)
for _function in (write, look, take_over):  # so that they can be pickled for a process that is spawned
    _function.__module__ = __name__
write.__qualname__, look.__qualname__, take_over.__qualname__ = "write", "look", "take_over"


class Process:
    """One of the processes, and everything that it told."""

    def __init__(self, context, target, *arguments, kill_after=None):
        receiving, sending = context.Pipe(duplex=False)
        self.killed = False
        self.messages = []
        self._kill_after = kill_after
        self._pipe = receiving
        self.process = context.Process(target=target, args=(sending, *arguments))
        self.process.start()
        sending.close()
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def _listen(self):
        while True:
            try:
                self.messages.append(json.loads(self._pipe.recv_bytes()))
            except (EOFError, OSError):
                return
            if len(self.messages) == self._kill_after:
                os.kill(self.process.pid, signal.SIGKILL)
                self.killed = True

    def join(self):
        self._listener.join()
        self.process.join()
        self._pipe.close()
        if not self.killed:
            assert self.messages, "it ended before it said a word"
            assert self.messages[-1] == "fine", self.messages[-1]

    def commits(self):
        """Each commit as (number, changes, was it completed?)."""
        done = {m["done"] for m in self.messages if "done" in m}
        return [(m["begin"], m["changes"], m["begin"] in done) for m in self.messages if "begin" in m]


def run(context, path, writers, lives, commits, readers, seed):
    """All processes at once; a writer that is killed is followed by another one of its name."""
    rng = random.Random(seed)
    stop = path + ".stop"
    names = [chr(ord("p") + n) for n in range(writers)]
    others = [Process(context, look, path, rng.random(), names, stop, mode) for mode in readers]
    others.append(Process(context, take_over, path, path + ".copy", rng.random(), stop))
    past = {name: [] for name in names}

    def live(name, seed):
        rng = random.Random(seed)
        for life in range(lives):
            kill = rng.randrange(2, 2 * commits) if life < lives - 1 else None
            past[name].append(Process(context, write, path, name, 1 + life * 100_000, commits, rng.random(),
                                      kill_after=kill))
            past[name][-1].join()

    threads = [threading.Thread(target=live, args=(name, rng.random())) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with open(stop, "w"):
        pass
    for other in others:
        other.join()
    assert all(len(lived) == lives and lived[-1].messages[-1] == "fine" for lived in past.values())
    return past, others


def verify(path, past):
    """Every key has a value that its last completed commit, or one that was killed, may have given it."""
    c = Chest(path=path)
    found = {repr(key): checked(key, val) for key, val in c.items()}
    right = {}  # key: what it may be
    count = 0
    for name, lived in past.items():
        last = {}
        for process in lived:
            for n, changes, completed in process.commits():
                count += completed
                for key, what in changes.items():
                    outcome = DELETED if what is DELETED else (name, n)
                    last[key] = {outcome} if completed else {outcome, *last.get(key, [DELETED])}
        for key, outcomes in last.items():
            right.setdefault(key, set()).update(outcomes)
    wrong = {key: (found.get(key), outcomes) for key, outcomes in right.items() if found.get(key) not in outcomes}
    assert not wrong
    assert found.keys() <= right.keys()
    return count


CONTEXTS = [name for name in ("fork", "spawn") if name in multiprocessing.get_all_start_methods()]


@pytest.mark.parametrize("how", CONTEXTS)
def test_no_commit_is_lost_and_no_value_is_torn_whoever_is_killed(how, path):
    pytest.importorskip("fcntl", reason="a process cannot be killed as on POSIX")
    modes = [None]
    try:
        import numpy  # noqa: F401
        modes += ["c", "r"]
    except ImportError:
        pass
    if STRESS:
        plan = dict(writers=5, lives=6, commits=100, readers=modes)
    elif how == "fork":
        plan = dict(writers=4, lives=3, commits=12, readers=modes[:2])
    else:
        plan = dict(writers=2, lives=2, commits=12, readers=modes[-1:])
    context = multiprocessing.get_context(how)
    past, others = run(context, path, seed=random.randrange(10**6), **plan)
    count = verify(path, past)
    killed = sum(process.killed for lived in past.values() for process in lived)
    assert count >= plan["writers"] * plan["commits"]
    assert sorted(name for name in os.listdir(path) if name.startswith(".")) == [".keys"]
    if STRESS:
        print(f"\n{how}: {count} commits, {killed} processes killed, {[o.messages[0] for o in others]}")


def _fill(path, keys):
    c = Chest(path=path)
    for key in keys:
        c[key] = value(key, "w", 1)
        c.sync()


@pytest.mark.parametrize("how", CONTEXTS)
def test_the_parent_reads_what_a_pool_of_workers_commits_while_they_work(how, path):
    c = Chest(path=path)
    context = multiprocessing.get_context(how)
    workers = [context.Process(target=_fill, args=(path, [f"k{who}_{n}" for n in range(10)])) for who in range(3)]
    for worker in workers:
        worker.start()
    seen = set()
    while len(seen) < 30 and any(worker.is_alive() for worker in workers):
        for key in c:
            if key not in seen:
                checked(key, c[key])
                seen.add(key)
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert sorted(c) == sorted(f"k{who}_{n}" for who in range(3) for n in range(10))


# Two handles of one process see each other as two processes do.


def test_a_value_that_was_only_read_never_overwrites_a_newer_one(path):
    a = Chest({"x": [1]}, path=path)
    a.sync()
    b = Chest(path=path)
    assert b["x"] == [1]
    a["x"] = [2]
    a.sync()
    b["y"] = 0
    b.sync()
    assert Chest(path=path)["x"] == [2]
    assert b["x"] == [2]


@pytest.mark.parametrize("between", ["set", "delete"])
def test_a_value_in_memory_is_dropped_though_its_file_has_the_same_name_again(path, between):
    a = Chest({"x": [1]}, path=path)
    a.flush()
    b = Chest(path=path)
    assert b["x"] == [1]
    name = a.key_to_filename("x")
    if between == "set":
        a["x"] = [2]
    else:
        del a["x"]
    a.flush()
    a["x"] = [3]
    a.flush()
    assert a.key_to_filename("x") == name, "then this test shows nothing"
    assert len(b) == 1
    assert b["x"] == [3]
    b.sync()
    assert Chest(path=path)["x"] == [3]


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


def test_the_value_that_a_handle_set_wins_at_its_next_commit(path):
    a, b = Chest(path=path), Chest(path=path)
    a["x"] = "a's"
    b["x"] = "b's"
    b.sync()
    a["other"] = 1
    assert a["x"] == "a's"
    a.sync()
    assert b.get("other") == 1
    assert b["x"] == "a's"


def test_a_commit_that_deletes_a_key_deletes_whatever_value_it_has_then(path):
    a = Chest({"x": 1}, path=path)
    a.sync()
    b = Chest(path=path)
    del b["x"]
    a["x"] = 2
    a.sync()
    b.sync()
    assert "x" not in Chest(path=path)
    with pytest.raises(KeyError):
        Chest(path=path)["x"]
    b.flush()
    assert sorted(set(os.listdir(path)) - {".packs"}) == [".keys"]


def test_a_reader_finds_new_keys_at_once_and_others_values_when_it_looks(path):
    a = Chest({"x": 1}, path=path)
    a.sync()
    b = Chest(path=path)
    assert b["x"] == 1
    a["x"], a["new"] = 2, 3
    a.sync()
    assert b["x"] == 1, "a hit in memory looks at nothing"
    assert b["new"] == 3
    assert b["x"] == 2


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
