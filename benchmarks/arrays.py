"""What arrays cost in a chest, beside raw system calls and beside peers, each with the floor that chest must hold.

    python -m pip install -r benchmarks/requirements.txt pandas
    python benchmarks/arrays.py                    # all of it, several minutes
    python benchmarks/arrays.py --quick            # small sizes, once: only to see that it runs
    python benchmarks/arrays.py --only load hit    # the works whose names begin so
    python benchmarks/arrays.py --json arrays.json

Each figure comes from a process of its own; the rounds go through the ways of a work in turn, forwards and backwards.
The ratio is to the first way of the work, in the same round.  Before the clock starts each process touches as much
memory, and writes as much of a file, as it will need, because memory that the machine has to find first costs ten times
as much; and each has a fresh directory, removed when all is done.  Shown are medians.  A peer that is not installed
is left out.
"""
from __future__ import annotations

import argparse
import json
import mmap
import operator
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import compare
import numpy as np
from compare_pictures import figure_of

MB = 10**6
QUICK = bool(os.environ.get("CHEST_QUICK"))  # set by --quick for the processes that measure
HUGE, LARGE, ARRAY = (80, 32, 8) if QUICK else (800, 256, 8)  # megabytes of one array
EPOCH_KEYS, EPOCHS = (8, 2) if QUICK else (16, 4)  # arrays, of which half fit; how often all are read
HALF = EPOCH_KEYS * ARRAY * MB / 2
LOOKS = 50_000 if QUICK else 500_000

Opener = Callable[[str], Any]


# The system calls to compare with, and the peers.


def raw_write(value: Any, name: str) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    view = memoryview(value).cast("B")
    while view.nbytes:
        view = view[os.write(fd, view):]
    os.close(fd)


def raw_read(name: str) -> Any:
    fd = os.open(name, os.O_RDONLY)
    value = np.empty(os.fstat(fd).st_size // 8)
    view = memoryview(value).cast("B")
    while view.nbytes:
        view = view[os.readv(fd, [view]):]
    os.close(fd)
    return value


def raw_map(name: str) -> Any:
    fd = os.open(name, os.O_RDONLY)
    value = np.frombuffer(mmap.mmap(fd, 0, access=mmap.ACCESS_COPY))
    os.close(fd)
    return value


def system_calls(path: str, read: Callable[[str], Any] = raw_read) -> Any:
    return compare.Files(path, raw_write, read)


def chest(path: str, budget: float = 1e10, **settings: Any) -> Any:
    return compare.opened_chest(path, budget, **settings)


def prefetching(path: str) -> Any:
    return chest(path)


PEERS: dict[str, Opener] = {"numpy.save/load": compare.opened_numpy, "joblib": compare.opened_joblib,
                            "zict.File": compare.opened_zict, "diskcache": compare.opened_diskcache}
STORES: dict[str, Opener] = {"system calls": system_calls, "chest": chest, **PEERS}
MAPPED: dict[str, Opener] = {
    "system calls": lambda path: system_calls(path, raw_map),
    "chest": lambda path: chest(path, mmap_mode="c"),
    "numpy.save/load": lambda path: compare.opened_numpy(path, "c"),
    "joblib": lambda path: compare.opened_joblib(path, "c"),
}


# The works.  Each is given what opens a store, and a path, and returns the time that one value takes, in seconds.


def array(megabytes: int, n: int = 0) -> Any:
    return np.full(megabytes * MB // 8, float(n))


def frame(megabytes: int, n: int = 0) -> Any:
    import pandas as pd

    return pd.DataFrame(np.full((megabytes * MB // 64, 8), float(n)), columns=list("abcdefgh"))


def clocked(act: Callable[..., Any], items: Iterable[Any]) -> float:
    """The median of what ``act`` takes for each item but the first; what it returns is kept, as a user keeps it."""
    kept, times = [], []
    for item in items:
        start = time.perf_counter()
        kept.append(act(item))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def filled(opener: Opener, path: str, values: Iterable[Any]) -> Any:
    """A store opened anew over ``values``, which are saved under ``x0``, ``x1`` and so on."""
    store = opener(path)
    for n, value in enumerate(values):
        store[f"x{n}"] = value
    compare.save(store)
    return opener(path)


def repeats(megabytes: int) -> int:
    return 1 + (3 if QUICK else max(3, 160 // megabytes))


def spilling(opener: Opener, path: str, megabytes: int, make: Callable[..., Any] = array) -> float:
    count = repeats(megabytes)
    value = make(megabytes)
    compare.touch(path, count * megabytes * MB)
    store = chest(path, 0) if opener is chest else opener(path)  # a budget of 0: a value is written when it is set
    return clocked(lambda n: store.__setitem__(f"x{n}", value), range(count))


def loading(opener: Opener, path: str, megabytes: int, make: Callable[..., Any] = array) -> float:
    count = repeats(megabytes)
    store = filled(opener, path, (make(megabytes, n) for n in range(count)))
    compare.touch(path, count * megabytes * MB)
    return clocked(lambda n: store[f"x{n}"], range(count))


def mapping(opener: Opener, path: str, megabytes: int) -> float:
    """One value again and again, each time after it was let go of, which is not timed.  Two hundred times, as Python
    itself runs a function faster from its tenth call or so on, whatever it does."""
    store = filled(opener, path, [array(megabytes, 7)])
    times = []
    for _ in range(20 if QUICK else 200):
        start = time.perf_counter()
        value = store["x0"]
        times.append(time.perf_counter() - start)
        assert value[-1] == 7
        del value
        if opener is MAPPED["chest"]:
            store.move_to_disk("x0")
    return statistics.median(times[1:])


def epochs(opener: Opener, path: str, use: Callable[[Any], Any]) -> float:
    """All keys, several times, where half of the values fit."""
    compare.touch(path, EPOCH_KEYS * ARRAY * MB)
    store = opener(path)
    for n in range(EPOCH_KEYS):
        store[f"x{n}"] = array(ARRAY, n)
    if hasattr(store, "sync"):
        store.sync()
        written = store.stats.bytes_written
    for n in range(EPOCH_KEYS):
        use(store[f"x{n}"])
    start = time.perf_counter()
    for _ in range(EPOCHS):
        for n in range(EPOCH_KEYS):
            use(store[f"x{n}"])
    took = time.perf_counter() - start
    assert not hasattr(store, "sync") or store.stats.bytes_written == written  # what did not change is not written
    return took / EPOCHS / EPOCH_KEYS


def half(**settings: Any) -> Opener:
    return lambda path: chest(path, HALF, **settings)


BUDGETED: dict[str, Opener] = {"writeback=False": half(writeback=False), "chest": half(),
                               "zict.Buffer": lambda path: compare.opened_zict(path, HALF),
                               **{name: PEERS[name] for name in ("numpy.save/load", "joblib", "diskcache")}}
BUDGETED_MAPS: dict[str, Opener] = {"writeback=False": half(writeback=False, mmap_mode="c"),
                                    "chest": half(mmap_mode="c"), "numpy.save/load": MAPPED["numpy.save/load"],
                                    "joblib": MAPPED["joblib"]}


def hitting(opener: Opener, path: str, key: Callable[[int], Any]) -> float:
    """What is in memory, in a plain loop over the keys; the loop itself is counted for all alike."""
    store, value = opener(path), np.zeros(10)
    for n in range(1000):
        store[key(n)] = value
    keys = [key(n) for n in range(1000)] * (LOOKS // 5000)

    def look(_: int) -> None:
        for key in keys:
            store[key]

    return clocked(look, range(6)) / len(keys)


IN_MEMORY: dict[str, Opener] = {"dict": lambda path: {}, "chest": chest,
                                "zict.Buffer": lambda path: compare.opened_zict(path, 1e9)}


def reading(opener: Opener, path: str, threads: int) -> float:
    """As ``loading``, but several threads share the keys.  Seconds of the clock for each array."""
    count = 8 if QUICK else 24
    store = filled(opener, path, (array(ARRAY, n) for n in range(count)))
    compare.touch(path, count * ARRAY * MB)
    if opener is prefetching:  # in one call
        start = time.perf_counter()
        store.prefetch([f"x{n}" for n in range(count)])
        return (time.perf_counter() - start) / count
    kept: list[Any] = []
    ready = threading.Barrier(threads + 1)

    def read(first: int) -> None:
        ready.wait()
        for n in range(first, count, threads):
            kept.append(store[f"x{n}"])

    pool = [threading.Thread(target=read, args=(n,)) for n in range(threads)]
    for thread in pool:
        thread.start()
    ready.wait()
    start = time.perf_counter()
    for thread in pool:
        thread.join()
    assert len(kept) == count
    return (time.perf_counter() - start) / count


def importing(package: str, path: str) -> float:
    """A fresh interpreter each time, in which nothing but the clock was imported before."""
    program = f"import time; start = time.perf_counter(); import {package}; print(time.perf_counter() - start)"
    places = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1]), "PYTHONDONTWRITEBYTECODE": ""}
    run = [subprocess.run([sys.executable, "-c", program], env=places, capture_output=True, text=True, check=True)
           for _ in range(4)]
    return statistics.median(float(one.stdout) for one in run[1:])


class Work(NamedTuple):
    """What is measured, of which ways; the floor is a ratio to the first way, or so many seconds."""

    run: Callable[..., float]
    ways: dict[str, Any]
    arguments: tuple[Any, ...] = ()
    most: float | None = None
    seconds: float | None = None
    floor_of: tuple[str, ...] = ("chest",)


CHEST = {"array": array, "frame": frame}


def of_chest(run: Callable[..., float]) -> Callable[..., float]:
    return lambda make, path, megabytes: run(chest, path, megabytes, make)


WORKS: dict[str, Work] = {
    f"spill {ARRAY} MB": Work(spilling, STORES, (ARRAY,), most=1.25),
    f"spill {LARGE} MB": Work(spilling, STORES, (LARGE,), most=1.25),
    f"load {ARRAY} MB": Work(loading, STORES, (ARRAY,), most=1.25),
    f"load {LARGE} MB": Work(loading, STORES, (LARGE,), most=1.25),
    f"map {ARRAY} MB": Work(mapping, MAPPED, (ARRAY,), seconds=60e-6),
    f"map {HUGE} MB": Work(mapping, MAPPED, (HUGE,), seconds=60e-6),
    "epochs, summed": Work(epochs, BUDGETED, (np.sum,), most=2),
    "epochs, mapped, summed": Work(epochs, BUDGETED_MAPS, (np.sum,), most=1.2),
    "epochs, one number": Work(epochs, BUDGETED, (operator.itemgetter(-1),), most=2),
    "epochs, mapped, one number": Work(epochs, BUDGETED_MAPS, (operator.itemgetter(-1),)),
    "hit, str": Work(hitting, IN_MEMORY, (lambda n: f"x{n}",), most=8),
    "hit, tuple": Work(hitting, IN_MEMORY, (lambda n: ("x", n),), most=8),
    "1 thread reads": Work(reading, {"system calls": system_calls, "chest": chest}, (1,)),
    "4 threads read": Work(reading, {"system calls": system_calls, "chest": chest, "prefetch": prefetching},
                           (4,), most=1 / 0.85),
    "spill a frame": Work(of_chest(spilling), CHEST, (ARRAY,), most=1.5, floor_of=("frame",)),
    "load a frame": Work(of_chest(loading), CHEST, (ARRAY,), most=1.5, floor_of=("frame",)),
    "import": Work(importing, {name: name for name in ("chest", "zict", "diskcache", "joblib")}, seconds=30e-3),
}


# Running.


Found = dict[str, list[float]]


def measure(name: str, rounds: int, scratch: str) -> Found:
    """The seconds of each way in each round, each from a process of its own."""
    ways = list(WORKS[name].ways)
    found: Found = {way: [] for way in ways}
    for turn in range(rounds):
        for way in ways[::-1] if turn % 2 else ways:
            if way not in found:
                continue
            path = os.path.join(tempfile.mkdtemp(dir=scratch), "store")
            done = subprocess.run([sys.executable, __file__, "--one", f"{name}/{way}", path],
                                  capture_output=True, text=True, check=False)
            if done.returncode:
                del found[way]
                print(f"left out: {name}, {way}: {(done.stderr.strip().splitlines() or ['?'])[-1]}", file=sys.stderr)
            else:
                found[way].append(float(done.stdout))
    return found


class Row(NamedTuple):
    """One line of the table."""

    work: str
    way: str
    seconds: float
    ratio: float
    floor: str
    holds: bool | None


def rows(name: str, found: Found) -> Iterator[Row]:
    work = WORKS[name]
    base = found.get(next(iter(work.ways)))
    for way, times in found.items():
        ratio = statistics.median(one / other for one, other in zip(times, base)) if base else float("nan")
        seconds = statistics.median(times)
        floor, holds = "", None
        if way in work.floor_of and work.most is not None:
            floor, holds = f"≤ {work.most:.3g} ×", ratio <= work.most
        elif way in work.floor_of and work.seconds is not None:
            floor, holds = f"< {in_words(work.seconds)}", seconds < work.seconds
        yield Row(name, way, seconds, ratio, floor, holds)


def in_words(seconds: float) -> str:
    for unit, size in (("s", 1), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{figure_of(seconds / size)} {unit}"
    return f"{figure_of(seconds / 1e-9)} ns"


def verdict(table: list[Row]) -> Iterator[str]:
    """Which floors hold, and where a peer is quicker than chest."""
    for row in table:
        if row.holds is not None:
            said = f"{in_words(row.seconds)}, {row.ratio:.2f} × {next(iter(WORKS[row.work].ways))}"
            yield f"{'holds' if row.holds else 'FAILS'}  {row.work}, {row.way}: {row.floor} ({said})"
    own = {row.work: row.seconds for row in table if row.way == "chest"}
    for row in table:
        peer = row.way in PEERS or row.way.startswith(("zict", "diskcache", "joblib"))
        if peer and row.seconds < own.get(row.work, 0):
            yield f"quicker than chest: {row.way} at {row.work}, {in_words(row.seconds)} and {in_words(own[row.work])}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="default: 7, or 1 with --quick")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORK", help="works whose names begin so")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "PATH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, way = arguments.one[0].split("/", 1)
        work = WORKS[name]
        print(work.run(work.ways[way], arguments.one[1], *work.arguments))
        return
    if arguments.quick and not QUICK:  # the sizes are part of the names
        os.environ["CHEST_QUICK"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    rounds = arguments.rounds or (1 if QUICK else 7)
    table: list[Row] = []
    scratch = tempfile.mkdtemp(prefix="chest-arrays-")
    try:
        for name in WORKS:
            if name.startswith(tuple(arguments.only)):
                for row in rows(name, measure(name, rounds, scratch)):
                    table.append(row)
                    print(f"{row.work:<27}{row.way:<17}{in_words(row.seconds):>9}{row.ratio:>8.2f} ×  {row.floor:<9}",
                          {True: "holds", False: "FAILS", None: ""}[row.holds], flush=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print("", *verdict(table), sep="\n")
    if arguments.json:
        about = {"machine": compare.machine(), "rounds": rounds, "quick": QUICK}
        Path(arguments.json).write_text(json.dumps({**about, "figures": [row._asdict() for row in table]}, indent=1))


if __name__ == "__main__":
    main()
