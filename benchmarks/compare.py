"""chest beside its peers: arrays, reads under a budget, small values, hits; in figures and in pictures.

    python -m pip install -r benchmarks/requirements.txt
    python benchmarks/compare.py

Each figure comes from a process of its own; the rounds go through all peers in turn, so that what else the machine does
meanwhile meets all of them; what is shown are medians.  Before the clock starts each process touches as much memory,
and writes as many bytes, as it will need, because memory that the machine has to find first costs ten times as much.
A peer that is not installed is left out.  The figures go to ``docs/figures/compare.json``, with the machine and all
versions, and the pictures beside it.  ``pictures.py`` makes all pictures of the documentation.
"""
from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import pickle
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import compare_pictures
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # chest, where it is not installed

FIGURES = Path(__file__).parents[1] / "docs" / "figures"

ARRAYS, ARRAY = 24, 1_000_000  # arrays, and float64 in each: 8 MB
MIXED, PIECE, ROOM = 160, 125_000, 80e6  # arrays of 1 MB, of which half fit
SMALL, SMALL_GETS = 2_000, 1_000
HITS = 200_000
PROCESSOR = "CHEST_PROCESSOR_TIME"  # set by --processor for the processes that measure
clock = time.process_time if os.environ.get(PROCESSOR) else time.perf_counter

Figures = dict[str, float]


# The peers.  Each is a mapping over a directory, opened with a budget of memory where it has one.


class Files:
    """One file a key, by a pair of functions, as people write it themselves."""

    def __init__(self, path: str, dump: Callable[[Any, str], Any], load: Callable[[str], Any]):
        os.makedirs(path, exist_ok=True)
        self.path, self.dump, self.load = path, dump, load

    def __setitem__(self, key: str, value: Any) -> None:
        self.dump(value, os.path.join(self.path, key))

    def __getitem__(self, key: str) -> Any:
        return self.load(os.path.join(self.path, key))

    def close(self) -> None:
        """Nothing is open."""


class Raw(Files):
    """The bytes of arrays of one shape by system calls alone: what the machine can do."""

    def __init__(self, path: str):
        super().__init__(path, self.write, self.read)

    def write(self, value: Any, name: str) -> None:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(fd, value)
        os.close(fd)

    def read(self, name: str) -> Any:
        value = np.empty(ARRAY)
        fd = os.open(name, os.O_RDONLY)
        os.readv(fd, [value])
        os.close(fd)
        return value


def opened_chest(path: str, budget: float = 1e9, **settings: Any) -> Any:
    from chest import Chest

    return Chest(path=path, available_memory=budget, **settings)


def opened_copies(path: str, budget: float = 1e9) -> Any:
    return opened_chest(path, budget, mmap_mode=None)


def opened_zict(path: str, budget: float = 0) -> Any:
    import zict

    disk = zict.Func(lambda value: pickle.dumps(value, 5), pickle.loads, zict.File(path))
    return zict.Buffer({}, disk, n=budget, weight=lambda key, value: value.nbytes) if budget else disk


def opened_shelve(path: str, **settings: Any) -> Any:
    import shelve

    return shelve.open(path, protocol=5, **settings)


def opened_diskcache(path: str) -> Any:
    import diskcache

    return diskcache.Cache(path, eviction_policy="none", disk_pickle_protocol=5)


def opened_sqlitedict(path: str) -> Any:
    import sqlitedict

    return sqlitedict.SqliteDict(path)


class Pickled:
    """A store of bytes, given values."""

    def __init__(self, inner: Any):
        self.inner = inner

    def __setitem__(self, key: str, value: Any) -> None:
        self.inner[key] = pickle.dumps(value, 5)

    def __getitem__(self, key: str) -> Any:
        return pickle.loads(self.inner[key])

    def close(self) -> None:
        self.inner.close()


def opened_lmdbm(path: str) -> Any:
    import lmdbm

    return Pickled(lmdbm.Lmdb.open(path, "c"))


def opened_joblib(path: str, mmap_mode: str | None = None) -> Any:
    import joblib

    return Files(path, joblib.dump, lambda name: joblib.load(name, mmap_mode=mmap_mode))


def opened_numpy(path: str, mmap_mode: Any = None) -> Any:
    return Files(path, lambda value, name: np.save(name + ".npy", value),
                 lambda name: np.load(name + ".npy", mmap_mode=mmap_mode))


def opened_zarr(path: str) -> Any:
    import zarr

    def dump(value: Any, name: str) -> None:
        zarr.create_array(name, shape=value.shape, dtype=value.dtype, chunks=value.shape, compressors=None)[:] = value

    return Files(path, dump, lambda name: zarr.open_array(name, mode="r")[:])


Opener = Callable[..., Any]
BY_VALUE: dict[str, Opener] = {
    "chest": opened_chest, "chest, copies": opened_copies, "shelve": opened_shelve, "zict": opened_zict,
    "diskcache": opened_diskcache, "sqlitedict": opened_sqlitedict, "lmdbm": opened_lmdbm, "joblib.dump": opened_joblib,
    "zarr": opened_zarr, "numpy.save": opened_numpy, "system calls": Raw,
}
MAPPED: dict[str, Opener] = {
    "chest": lambda path: opened_chest(path, mmap_mode="r"), "joblib.load": lambda path: opened_joblib(path, "r"),
    "numpy.load": lambda path: opened_numpy(path, "r"),
}
BUDGETED: dict[str, Opener] = {
    "dict (all in memory)": lambda path: {}, "chest": lambda path: opened_chest(path, ROOM),
    "chest, copies": lambda path: opened_copies(path, ROOM),
    "zict": lambda path: opened_zict(path, ROOM), "diskcache": opened_diskcache, "joblib.dump": opened_joblib,
}
SMALL_VALUES: dict[str, Opener] = {
    "chest": lambda path: opened_chest(path, 1e6), "shelve": opened_shelve,
    "chest, a file each": lambda path: opened_chest(path, 1e6, min_file_size=0),
    "zict": opened_zict, "diskcache": opened_diskcache, "sqlitedict": opened_sqlitedict, "lmdbm": opened_lmdbm,
}
IN_MEMORY: dict[str, Opener] = {
    "dict": lambda path: {}, "chest": opened_chest, "zict": lambda path: opened_zict(path, 1e9),
    "shelve, writeback": lambda path: opened_shelve(path, writeback=True),
}


# The works.  Each opens its peer, and returns figures by name.


def write_and_read(opener: Opener, path: str) -> Figures:
    """Milliseconds to store an array of 8 MB; to get it back and add it up, so that maps are read too.  It is kept."""
    values = [np.full(ARRAY, float(n)) for n in range(ARRAYS)]
    touch(path, 2 * ARRAYS * 8 * ARRAY)
    store = opener(path, 0) if opener in (opened_chest, opened_copies) else opener(path)  # 0: each leaves at once
    start = clock()
    for n, value in enumerate(values):
        store[f"x{n}"] = value
    save(store)
    wrote = clock() - start
    store = opener(path)
    back = []
    start = clock()
    for n in range(ARRAYS):
        back.append(store[f"x{n}"])
        assert float(back[-1].sum()) == ARRAY * n
    read = clock() - start
    return {"write": 1e3 * wrote / ARRAYS, "read": 1e3 * read / ARRAYS}


def map_and_look(opener: Opener, path: str) -> Figures:
    """Milliseconds to get an array of 8 MB as a map, and to look at one number of it."""
    store = opener(path)
    for n in range(ARRAYS):
        store[f"x{n}"] = np.full(ARRAY, float(n))
    save(store)
    store = opener(path)
    start = clock()
    back = [store[f"x{n}"] for n in range(ARRAYS)]
    looked = [float(value[-1]) for value in back]
    took = clock() - start
    assert looked == list(range(ARRAYS))
    return {"map": 1e3 * took / ARRAYS}


def read_under_a_budget(opener: Opener, path: str) -> Figures:
    """Milliseconds to get an array of 1 MB and add it up.

    Four rounds through all keys, then as many reads at random, of some keys more often than of others.
    """
    touch(path, int(2 * ROOM))
    store = opener(path)
    for n in range(MIXED):
        store[f"x{n}"] = np.full(PIECE, float(n))
    if type(store).__module__.partition(".")[0] not in ("builtins", "zict"):  # these two keep nothing when they close
        save(store)
        store = opener(path)
    skewed = np.random.default_rng(1).zipf(1.2, 20 * MIXED)
    keys = [n for _ in range(4) for n in range(MIXED)] + [int(n) - 1 for n in skewed if n <= MIXED][: 4 * MIXED]
    start = clock()
    total = sum(float(store[f"x{n}"].sum()) for n in keys)
    took = clock() - start
    assert total == PIECE * sum(keys)
    return {"reads": 1e3 * took / len(keys)}


def small_values(opener: Opener, path: str) -> Figures:
    """Microseconds to store a small dict, with the commit at the end, and to get one of them at random."""
    store = opener(path)
    start = clock()
    for n in range(SMALL):
        store[f"x{n}"] = {"id": n, "score": n / 7, "name": f"name-{n}"}
    save(store)
    wrote = clock() - start
    store = opener(path)
    order = [int(n) for n in np.random.default_rng(1).permutation(SMALL)[:SMALL_GETS]]
    start = clock()
    assert all(store[f"x{n}"]["id"] == n for n in order)
    return {"set": 1e6 * wrote / SMALL, "get": 1e6 * (clock() - start) / SMALL_GETS}


def hits(opener: Opener, path: str) -> Figures:
    """Nanoseconds to get a value that is in memory."""
    store = opener(path)
    value = np.zeros(10)
    for n in range(1000):
        store[f"x{n}"] = value
    keys = [f"x{n}" for n in range(1000)] * (HITS // 1000)
    best = min(timed(store, keys) for _ in range(5))
    return {"hit": 1e9 * best / len(keys)}


def timed(store: Any, keys: list[str]) -> float:
    start = clock()
    for key in keys:
        store[key]
    return clock() - start


def save(store: Any) -> None:
    """Make what was stored safe, as each peer does that, and let go of it."""
    if hasattr(store, "commit"):
        store.commit()
    if hasattr(store, "close"):
        store.close()


def touch(path: str, size: int) -> None:
    """Have the machine find memory and page cache for so many bytes."""
    block = np.ones(size // 8)
    with open(path + ".touch", "wb") as file:
        file.write(block)
    os.remove(path + ".touch")


WORKS: dict[str, tuple[Callable[[Opener, str], Figures], dict[str, Opener]]] = {
    "arrays": (write_and_read, BY_VALUE),
    "maps": (map_and_look, MAPPED),
    "budget": (read_under_a_budget, BUDGETED),
    "small": (small_values, SMALL_VALUES),
    "hits": (hits, IN_MEMORY),
}


# Running.


def measure(rounds: int, scratch: str) -> Iterator[tuple[str, str, Figures]]:
    """The figures of each work, peer and round, each from a process of its own."""
    everything = [(work, peer) for work, (_, peers) in WORKS.items() for peer in peers]
    missing: set[tuple[str, str]] = set()
    for turn in range(rounds):
        for work, peer in everything[turn % 7 :] + everything[: turn % 7]:
            if (work, peer) in missing:
                continue
            folder = tempfile.mkdtemp(dir=scratch)
            command = [sys.executable, __file__, "--one", work, peer, os.path.join(folder, "store")]
            found = subprocess.run(command, capture_output=True, text=True, check=False)
            if found.returncode:
                missing.add((work, peer))
                print(f"left out: {work}, {peer}: {found.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                continue
            yield work, peer, json.loads(found.stdout)


def machine() -> dict[str, Any]:
    """Where and with what this was measured."""
    versions = {}
    for line in (Path(__file__).parent / "requirements.txt").read_text().split():
        try:
            versions[line] = importlib.metadata.version(line)
        except importlib.metadata.PackageNotFoundError:
            continue
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
    import chest

    return {"date": datetime.date.today().isoformat(), "cpu": cpu, "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.release().split('-')[0]}", "python": platform.python_version(),
            "chest": chest.__version__, **versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="default: 7")
    parser.add_argument("--processor", action="store_true",
                        help="measure processor time, for a machine that is busy: waits for the disk do not count")
    parser.add_argument("--draw", action="store_true", help="draw the figures of the last run again")
    parser.add_argument("--one", nargs=3, metavar=("WORK", "PEER", "PATH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        work, peer, path = arguments.one
        run, peers = WORKS[work]
        print(json.dumps(run(peers[peer], path)))
        return
    kept = FIGURES / "compare.json"
    FIGURES.mkdir(exist_ok=True)
    if not arguments.draw:
        if arguments.processor:
            os.environ[PROCESSOR] = "1"
        seen: dict[str, dict[str, list[Figures]]] = {}
        scratch = tempfile.mkdtemp(prefix="chest-compare-")
        try:
            for work, peer, figures in measure(arguments.rounds, scratch):
                seen.setdefault(work, {}).setdefault(peer, []).append(figures)
                print(f"{work:<8} {peer:<22}", "  ".join(f"{name} {value:.4g}" for name, value in figures.items()))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        medians = {work: {peer: {name: statistics.median(one[name] for one in runs) for name in runs[0]}
                          for peer, runs in peers.items()} for work, peers in seen.items()}
        kept.write_text(json.dumps({"machine": machine(), "rounds": arguments.rounds, "processor": arguments.processor,
                                    "medians": medians}, indent=1))
    compare_pictures.draw(json.loads(kept.read_text()), FIGURES)


if __name__ == "__main__":
    main()
