"""Processes that work on one chest and are killed at random: is all there that was committed, and nothing else?

    python benchmarks/chaos.py                     # five minutes, 8 processes
    python benchmarks/chaos.py --seconds 20 --processes 4 --seed 7

Each process sets, changes in place, deletes and reads keys of its own, rolls back, reads those of others, which never
go back to an older value, sets and deletes some that all share, and takes all over into another chest, by hard links;
by turns small values, in packs where that process has any, and arrays large enough to be mapped, of which an item is
changed.
Before a commit it notes down what the chest is to hold of its keys, and after it that it returned. A process that is
killed is followed by another, which first compares its keys: they must be as the last commit that returned left them,
or the whole one that was under way. At the end all keys are compared, and files are counted that no index names: at
most one for each kill, made just then and empty. Prints commits, how many of them compacted packs, maps that were
changed, kills, violations, leftovers; exit status 1 if there is any violation.
"""
from __future__ import annotations

import argparse
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from chest import Chest

KEYS = 12  # of each process
SHARED = ["shared", ("a", "b"), ("a", "c"), "1", 1]  # of which nobody knows whose value is there
Model = dict[Any, list[Any]]


def value(key: Any, n: int, rng: random.Random) -> list[Any]:
    """A list that says whose it is, with an item that is large now and then."""
    size = rng.choice([1, 50, 1000, 1000, 50_000])
    content: Any = [n] * size
    if size == 50_000:
        try:
            import numpy as np

            content = np.full(size, n)
        except ImportError:
            pass
    return [repr(key), n, content, "-"]


def wrong(key: Any, found: list[Any]) -> str:
    """What is wrong with a value by itself; empty if nothing is."""
    whose, n, content, _ = found
    if whose != repr(key):
        return f"{key!r} has the value of {whose}"
    if any(one != n for one in content[:-2:97]) or content[-1] != n:  # the last but one may have been changed
        return f"the value of {key!r} is torn"
    return ""


def brief(found: Any) -> Any:
    """What tells a value from those that its key had before."""
    return None if found is None else [found[0], found[1], len(found[2]), int(found[2][-2:][0]), found[3]]


def notes(path: str) -> tuple[list[Model], int]:
    """The models that the keys of a process may be as, the committed one first; and the number of the last."""
    allowed: list[Model] = [{}]
    count = 0
    if os.path.exists(path):
        with open(path, "rb") as file:
            while True:
                try:
                    what, count, model = pickle.load(file)
                except (EOFError, pickle.UnpicklingError):
                    break
                allowed = [model] if what == "done" else [allowed[0], model]
    return allowed, count


class Worker:
    """One process: its keys, its model, its notes."""

    def __init__(self, root: str, who: int, seed: int):
        self.root, self.who = root, who
        self.rng = rng = random.Random(seed)
        self.mine = [(f"w{who}", n) if n % 3 == 0 else f"w{who}_{n}" for n in range(KEYS)]
        self.notes = os.path.join(root, f"{who}.notes")
        self.newest: dict[Any, int] = {}  # the number of the last value that was seen, for keys of others
        self.chest: Chest[Any, Any] = Chest(
            path=os.path.join(root, "chest"), available_memory=rng.choice([0, 100_000, 1e9]),
            min_file_size=rng.choice([0, 4096, 4096]), mmap_mode=rng.choice(["auto", "c", None]))

    def compare(self) -> Model:
        """Are the keys as they may be?  Returns how they are."""
        allowed, self.count = notes(self.notes)
        found = {key: brief(held) for key in self.mine if (held := self.look(key)) is not None}
        for key in SHARED:
            self.look(key)
        if found not in allowed:
            say("violation", f"worker {self.who} finds {found} and not one of {allowed}")
        return found

    def look(self, key: Any) -> Any:
        """The value of a key, `None` if there is none; it must be right by itself, and no older than before."""
        held = self.chest.get(key)
        if held is not None:
            if wrong(key, held):
                say("violation", wrong(key, held))
            if key not in self.mine and key not in SHARED:
                if held[1] < self.newest.get(key, 0):
                    say("violation", f"{key!r} went back from {self.newest[key]} to {held[1]}")
                self.newest[key] = held[1]
        return held

    def take_over(self) -> None:
        """Another chest takes over all that there is, by hard links."""
        with Chest[Any, Any](path=self.notes + ".copy") as copy:
            copy.update(Chest(path=self.chest.path, flag="r"))  # which commits nothing
            for key, held in copy.items():
                if wrong(key, held):
                    say("violation", wrong(key, held))
            copy.drop()

    def note(self, what: str) -> None:
        with open(self.notes + "~" if what == "done" else self.notes, "wb" if what == "done" else "ab") as file:
            file.write(pickle.dumps((what, self.count, self.model)))
        if what == "done":
            os.replace(self.notes + "~", self.notes)

    def run(self) -> None:
        self.model = self.compare()
        self.note("done")
        self.count_compactions()
        while True:
            before = dict(self.model)
            for _ in range(self.rng.randrange(1, 8)):
                self.step()
            if self.rng.random() < 0.1:
                self.chest.rollback()
                self.model = before
                continue
            self.count += 1
            self.note("about")
            self.commit()
            self.note("done")
            say("commit")

    def count_compactions(self) -> None:
        """Say so whenever a commit moves records."""
        storage = self.chest._engine.state.storage
        compact = storage.compact

        def counted(refs: Any) -> Any:
            moved = compact(refs)
            if moved:
                say("compaction")
            return moved

        storage.compact = counted  # type: ignore[method-assign]

    def commit(self) -> None:
        self.rng.choice([self.chest.sync, self.chest.sync, self.chest.flush])()

    def step(self) -> None:
        c, rng = self.chest, self.rng
        key = rng.choice(self.mine)
        what = rng.random()
        if what < 0.5 or key not in c:
            self.count += 1
            c[key] = new = value(key, self.count, rng)
            self.model[key] = brief(new)
        elif what < 0.7:
            self.changed(key)
        elif what < 0.8:
            del c[key], self.model[key]
        elif what < 0.85:
            c.move_to_disk(key)
        elif what < 0.95:
            self.look(rng.choice(list(c)))
        elif what < 0.96:
            self.take_over()
        elif rng.random() < 0.7:
            self.count += 1
            shared = rng.choice(SHARED)
            c[shared] = value(shared, self.count, rng)
        else:
            c.pop(rng.choice(SHARED), None)

    def changed(self, key: Any) -> None:
        """Change a value in place."""
        held = self.chest[key]
        if len(held[2]) > 2 and self.rng.random() < 0.5:
            held[2][-2] = self.rng.randrange(1 << 30)
            if type(held[2]) is not list and not held[2].flags.owndata:
                say("map")
        else:
            held[3] = self.rng.choice("abcdef") + str(self.rng.randrange(1000))
        self.model[key] = brief(held)


def say(what: str, more: str = "") -> None:
    os.write(1, f"{what} {more}\n".encode())


class Chaos:
    """All processes, what they said, and who is killed next."""

    def __init__(self, root: str, processes: int, seed: int):
        self.root, self.rng = root, random.Random(seed)
        self.log = open(os.path.join(root, "log"), "ab")
        self.workers = [self.start(who) for who in range(processes)]
        self.kills = 0
        self.failures: list[str] = []

    def start(self, who: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, __file__, "--worker", str(who), "--root", self.root,
                   "--seed", str(self.rng.randrange(1 << 30))]
        return subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(self.rng.uniform(0.05, 2.0 / len(self.workers) + 0.1))
            self.kill(self.rng.randrange(len(self.workers)), again=True)
        for who in range(len(self.workers)):
            self.kill(who, again=False)

    def kill(self, who: int, again: bool) -> None:
        worker = self.workers[who]
        if worker.poll() is not None:
            self.failures.append(f"worker {who} ended by itself")
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        self.kills += 1
        if again:
            self.workers[who] = self.start(who)

    def end(self) -> tuple[dict[str, int], list[str], int]:
        """How often what was said, violations, files that no index names: after all are dead, and one more commit."""
        for who in range(len(self.workers)):
            found = Worker(self.root, who, 0)
            self.capture(found.compare)
            found.chest.close()
        path = os.path.join(self.root, "chest")
        with Chest(path=path) as c:
            c["end"] = 1
            c.flush()
            named = {c.key_to_filename(key) for key in c}
        files = [os.path.join(above, name) for above, _, names in os.walk(path) for name in names]
        left = [one for one in files if one not in named and os.sep + ".packs" + os.sep not in one
                and not one.endswith(".keys")]
        left += [one for one in files if one.endswith(".new")]
        self.failures += [f"{one} is left" for one in left if os.path.getsize(one)]
        self.log.close()
        with open(os.path.join(self.root, "log"), errors="replace") as file:
            lines = file.read().splitlines()
        said = {what: lines.count(what + " ") for what in ("commit", "compaction", "map")}
        return said, self.failures + [line for line in lines if line.rstrip() not in said], len(left)

    def capture(self, action: Callable[[], Any]) -> None:
        """``action()`` with what it says in the log."""
        kept = os.dup(1)
        os.dup2(self.log.fileno(), 1)
        try:
            action()
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", help="a directory for the chest (default: a temporary one)")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker is not None:
        Worker(asked.root, asked.worker, asked.seed).run()
    root = asked.root or tempfile.mkdtemp(prefix="chaos-")
    chaos = Chaos(root, asked.processes, asked.seed)
    chaos.run(asked.seconds)
    said, violations, left = chaos.end()
    if left > chaos.kills:
        violations.append(f"{left} files are left that no index names")
    for line in violations[:50]:
        print(line)
    print(f"{said['commit']} commits, {said['compaction']} of them compacted packs, {said['map']} maps changed; "
          f"{chaos.kills} kills, {len(violations)} violations, {left} leftovers")
    if not asked.root and not violations:
        shutil.rmtree(root)
    return bool(violations)


if __name__ == "__main__":
    sys.exit(main())
