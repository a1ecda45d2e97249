"""Very many small values: chest with ``min_file_size`` beside its peers, in one run.

    python benchmarks/small.py --keys 100000

Each figure comes from a process of its own; rounds go through all peers in turn, so that what else the machine does
meanwhile meets all of them; shown are medians of processor time, which leaves out waits for the disk, and ratios to
chest.  Values are small dicts, and chest has a budget of 1 MB, so that nearly all of them spill; of fewer than 100,000
keys as large a part as of those, so that what a key costs can be compared.  A peer that is not installed is left out.
"""
from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

BUDGET, OF = 1e6, 100_000  # bytes, for so many keys or more
GETS = 5000
SINGLE = {"set": "µs a key, with the final commit", "get": "µs a random key"}
BULK = {"update": "µs a key, with the commit", "values": "µs a key", "prefetch": "µs a key, into memory that holds all"}
OTHER = {"flush": "s, all spilled before", "reopen": "s, with one value", "disk": "bytes for each of the pickles'",
         "memory": "bytes a spilled key"}


def value(i: int) -> Any:
    return {"id": i, "name": f"name-{i}", "score": i / 7}


# The peers: how each opens, saves and closes a mapping in a directory.


def chest(path: str, small: int = 4096, memory: float | None = None) -> Any:
    from chest import Chest

    return Chest(path=os.path.join(path, "chest"), available_memory=memory or BUDGET, min_file_size=small)


def files(path: str) -> Any:
    return chest(path, small=0)


def sqlitedict(path: str) -> Any:
    import sqlitedict

    return sqlitedict.SqliteDict(os.path.join(path, "sqlitedict"))


def diskcache(path: str) -> Any:
    import diskcache

    return diskcache.Cache(os.path.join(path, "diskcache"), eviction_policy="none")


class Text:
    """A mapping whose keys are texts, asked with integers."""

    def __init__(self, inner: Any):
        self.inner = inner

    def __setitem__(self, key: int, value: Any) -> None:
        self.inner[str(key)] = value

    def __getitem__(self, key: int) -> Any:
        return self.inner[str(key)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def shelve(path: str) -> Any:
    import shelve

    return Text(shelve.open(os.path.join(path, "shelve")))


def zict(path: str) -> Any:
    import zict

    slow = zict.Func(pickle.dumps, pickle.loads, zict.File(os.path.join(path, "zict")))
    return Text(zict.Buffer({}, slow, n=BUDGET, weight=lambda key, value: 400))


class Pickled:
    """A mapping of integers to pickles."""

    def __init__(self, inner: Any):
        self.inner = inner

    def __setitem__(self, key: int, value: Any) -> None:
        self.inner[b"%d" % key] = pickle.dumps(value, 5)

    def __getitem__(self, key: int) -> Any:
        return pickle.loads(self.inner[b"%d" % key])

    def values(self) -> Iterable[Any]:
        return map(pickle.loads, self.inner.values())

    def close(self) -> None:
        self.inner.close()


def lmdbm(path: str) -> Any:
    import lmdbm

    return Pickled(lmdbm.Lmdb.open(os.path.join(path, "lmdbm"), "c"))


def rocksdict(path: str) -> Any:
    import rocksdict

    return Pickled(rocksdict.Rdict(os.path.join(path, "rocksdict"), rocksdict.Options(raw_mode=True)))


class Bare:
    """SQLite with pickle, and nothing else: no budget, one process, one thread."""

    def __init__(self, path: str):
        self.connection = sqlite3.connect(os.path.join(path, "bare"))
        self.connection.execute("CREATE TABLE IF NOT EXISTS value (key INTEGER PRIMARY KEY, data BLOB)")

    def __setitem__(self, key: int, value: Any) -> None:
        self.connection.execute("INSERT OR REPLACE INTO value VALUES (?, ?)", (key, pickle.dumps(value, 5)))

    def __getitem__(self, key: int) -> Any:
        query = "SELECT data FROM value WHERE key = ?"
        return pickle.loads(self.connection.execute(query, (key,)).fetchone()[0])

    def update(self, values: dict[int, Any]) -> None:
        rows = ((key, pickle.dumps(value, 5)) for key, value in values.items())
        self.connection.executemany("INSERT OR REPLACE INTO value VALUES (?, ?)", rows)

    def values(self) -> Iterable[Any]:
        return (pickle.loads(data) for (data,) in self.connection.execute("SELECT data FROM value"))

    def close(self) -> None:
        self.connection.commit()
        self.connection.close()


PEERS: dict[str, Callable[..., Any]] = {
    "chest": chest, "chest, a file a key": files, "bare sqlite3": Bare, "sqlitedict": sqlitedict,
    "diskcache": diskcache, "shelve": shelve, "zict": zict, "lmdbm": lmdbm, "rocksdict": rocksdict}
IN_BULK = {"chest": ("update", "values", "prefetch"), "bare sqlite3": ("update", "values", "prefetch"),
           "sqlitedict": ("update", "values"), "lmdbm": ("values",), "rocksdict": ("values",)}


# One figure, in the process that measures it.


def measure(peer: str, work: str, path: str, keys: int) -> dict[str, float]:
    global BUDGET
    BUDGET *= min(keys / OF, 1)
    works: dict[str, Callable[[Callable[..., Any], str, int], dict[str, float]]] = {
        "set": set_, "get": get, "update": update, "values": values, "prefetch": prefetch, "reopen": reopen}
    return works[work](PEERS[peer], path, keys)


def save(mapping: Any) -> None:
    if hasattr(mapping, "evict_until_below_target"):
        mapping.evict_until_below_target(0)
    for name in ("flush", "commit", "sync"):
        if hasattr(mapping, name):
            getattr(mapping, name)()
            return


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def set_(opened: Callable[..., Any], path: str, keys: int) -> dict[str, float]:
    mapping = opened(path)
    mapping[keys] = value(keys)  # whatever is imported, made or warmed up first
    before = resident() if os.path.isdir("/proc/self") else 0
    start = time.process_time()
    for i in range(keys):
        mapping[i] = value(i)
    spilled = time.process_time()
    after = resident() if before else 0
    if opened is Bare:
        mapping.connection.commit()
    else:
        save(mapping)
    end = time.process_time()
    mapping.close()
    stored = sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names)
    pickles = sum(len(pickle.dumps(value(i), 5)) for i in range(keys))
    found = {"set": (end - start) / keys * 1e6, "disk": stored / pickles}
    if opened is chest:
        found.update(flush=end - spilled, memory=(after - before - BUDGET) / keys)
    return found


def get(opened: Callable[..., Any], path: str, keys: int) -> dict[str, float]:
    mapping = opened(path)
    order = [random.randrange(keys) for _ in range(GETS + 100)]
    for i in order[:100]:
        mapping[i]
    start = time.process_time()
    for i in order[100:]:
        mapping[i]
    took = time.process_time() - start
    assert mapping[order[-1]] == value(order[-1])
    return {"get": took / GETS * 1e6}


def update(opened: Callable[..., Any], path: str, keys: int) -> dict[str, float]:
    data = {i: value(i) for i in range(keys)}
    other = os.path.join(path, "bulk")
    os.mkdir(other)
    mapping = opened(other)
    start = time.process_time()
    mapping.update(data)
    if opened is Bare:
        mapping.connection.commit()
    else:
        save(mapping)
    return {"update": (time.process_time() - start) / keys * 1e6}


def values(opened: Callable[..., Any], path: str, keys: int) -> dict[str, float]:
    mapping = opened(path)
    start = time.process_time()
    count = sum(1 for _ in mapping.values())
    took = time.process_time() - start
    assert count > keys
    return {"values": took / count * 1e6}


def prefetch(opened: Callable[..., Any], path: str, keys: int) -> dict[str, float]:
    mapping = opened(path, memory=1e10) if opened is chest else opened(path)
    start = time.process_time()
    if opened is chest:
        mapping.prefetch(range(keys))
    else:
        held = {key: pickle.loads(data) for key, data in mapping.connection.execute("SELECT key, data FROM value")}
    took = time.process_time() - start
    assert len(mapping.inmem if opened is chest else held) >= keys
    return {"prefetch": took / keys * 1e6}


def reopen(opened: Callable[..., Any], path: str, keys: int) -> dict[str, float]:
    start = time.process_time()
    assert opened(path)[keys // 2] == value(keys // 2)
    return {"reopen": time.process_time() - start}


# The run.


def installed(peer: str) -> bool:
    with tempfile.TemporaryDirectory() as path:
        try:
            PEERS[peer](path).close()
        except ImportError as error:
            print(f"{peer} is left out: {error}")
            return False
    return True


def run(peers: list[str], works: list[str], keys: int, rounds: int, base: str) -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = {peer: {} for peer in peers}
    for turn in range(rounds):
        for work in ["set", *works]:
            for peer in peers:
                if (work in BULK and work not in IN_BULK.get(peer, ())) or (work == "reopen" and peer != "chest"):
                    continue
                path = os.path.join(base, f"{turn} {peer}")
                os.makedirs(path, exist_ok=True)
                command = [sys.executable, __file__, "--one", json.dumps([peer, work, path, keys])]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                for name, figure in json.loads(done.stdout).items():
                    found[peer].setdefault(name, []).append(figure)
    return found


def show(found: dict[str, dict[str, list[float]]], keys: int) -> None:
    for title, works in (("one by one", SINGLE), ("in bulk", BULK), ("and", OTHER)):
        print(f"\n{keys:,} keys, {title}")
        for work, unit in works.items():
            ours = statistics.median(found["chest"].get(work, [0]))
            print(f"  {work} ({unit})")
            for peer, figures in found.items():
                if work in figures:
                    median = statistics.median(figures[work])
                    ratio = f"{median / ours:8.2f} × chest" if ours else ""
                    spread = f"{min(figures[work]):.2f} to {max(figures[work]):.2f}"
                    print(f"    {peer:22}{median:10.2f}{ratio}   ({spread})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--works", nargs="*", default=["get", "update", "values", "prefetch", "reopen"])
    parser.add_argument("--directory", help="where to write; by default the system's temporary directory")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if arguments.one:
        print(json.dumps(measure(*json.loads(arguments.one))), flush=True)
        os._exit(0)  # what a peer does as it ends belongs to no figure
    base = tempfile.mkdtemp(dir=arguments.directory)
    try:
        peers = [peer for peer in dict.fromkeys(["chest", *arguments.peers]) if peer in PEERS and installed(peer)]
        show(run(peers, arguments.works, arguments.keys, arguments.rounds, base), arguments.keys)
    finally:
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()
