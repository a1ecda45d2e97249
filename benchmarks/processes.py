"""Many processes on one chest: what a commit costs, beside diskcache and sqlitedict, each with the floor it must hold.

    python -m pip install -r benchmarks/requirements.txt
    python benchmarks/processes.py                 # a few minutes
    python benchmarks/processes.py --quick         # small sizes, once: only to see that it runs
    python benchmarks/processes.py --json processes.json

*store*: four processes store 2,000 arrays of 64 KB between them, with a commit after each, in a fresh store; the peers
take turns, forwards and backwards. Chest is shown twice: with a budget of a few arrays, as its peers keep none in
memory, and with the default one, which keeps them all. *small*: two processes set 2,000 small values each, with default
settings, and close; diskcache commits each. *sync*: one small value is set, in a chest of so many keys, and
committed; the clock runs for `sync()` alone. *notice*: another handle, which has everything in its index, finds that
value. *nothing new*: a look-up of a key that is not there, as one finds that nobody committed. The list is rewritten
now and then, when what was appended outgrows it; that, and the look after it, cost O(keys) and are shown apart. All is
shown as medians. A peer that is not installed is left out.
"""
from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import compare
import numpy as np

QUICK = bool(os.environ.get("CHEST_QUICK"))  # set by --quick for the processes that measure
WORKERS = 4
ARRAYS, ARRAY = (80, 64_000) if QUICK else (2_000, 64_000)  # arrays in all, and bytes of one
SMALL = 100 if QUICK else 2_000  # small values of each of two processes
SIZES = (100, 1_000) if QUICK else (1_000, 100_000)  # keys of a chest
COMMITS = 30 if QUICK else 400

Figures = dict[str, float]


# Storing.


def to_chest(path: str, memory: float = 8 * ARRAY) -> Callable[[str, Any], None]:
    from chest import Chest

    c = Chest(path=path, available_memory=memory)

    def store(key: str, value: Any) -> None:
        c[key] = value
        c.sync()

    return store


def to_diskcache(path: str) -> Callable[[str, Any], None]:
    import diskcache

    return diskcache.Cache(path, eviction_policy="none", size_limit=2**50, timeout=600).__setitem__  # type: ignore


def to_sqlitedict(path: str) -> Callable[[str, Any], None]:
    import sqlitedict

    os.makedirs(path, exist_ok=True)
    d = sqlitedict.SqliteDict(os.path.join(path, "db"), journal_mode="WAL", timeout=600)

    def store(key: str, value: Any) -> None:
        d[key] = value
        d.commit(blocking=True)

    return store


def to_large_chest(path: str) -> Callable[[str, Any], None]:
    return to_chest(path, 1e9)


PEERS = {"chest": to_chest, "chest, 1 GB": to_large_chest, "diskcache": to_diskcache, "sqlitedict": to_sqlitedict}


def work(peer: str, path: str, who: int, ready: Any, go: Any) -> None:
    store = PEERS[peer](path)
    store(f"first{who}", np.zeros(1))
    ready.wait()
    go.wait()
    for n in range(who, ARRAYS, WORKERS):
        store(f"w{n}", np.full(ARRAY // 8, float(n)))


def store(peer: str, path: str) -> Figures:
    compare.touch(path, ARRAYS * ARRAY)
    PEERS[peer](path)("first", np.zeros(1))
    return together(work, WORKERS, peer, path)


def work_small(peer: str, path: str, who: int, ready: Any, go: Any) -> None:
    if peer == "chest":
        from chest import Chest as Mapping
    else:
        from diskcache import Cache as Mapping
    mapping = Mapping(path) if peer == "diskcache" else Mapping(path=path)
    ready.wait()
    go.wait()
    for n in range(SMALL):
        mapping[f"{who}-{n}"] = {"id": n, "name": f"name-{n}", "score": n / 7}
    mapping.close()


def small(peer: str, path: str) -> Figures:
    return together(work_small, 2, peer, path)


def together(work: Callable[..., None], processes: int, peer: str, path: str) -> Figures:
    """Seconds from when all are ready until the last has gone."""
    context = multiprocessing.get_context("spawn")
    ready, go = context.Barrier(processes + 1), context.Event()
    workers = [context.Process(target=work, args=(peer, path, who, ready, go)) for who in range(processes)]
    for worker in workers:
        worker.start()
    ready.wait()
    start = time.perf_counter()
    go.set()
    for worker in workers:
        worker.join()
    took = time.perf_counter() - start
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a worker failed")
    return {"seconds": took}


# Committing, and noticing.


def commit(_: str, path: str) -> Figures:
    """Chests of both sizes in turn, so that whatever else the machine does meets both."""
    from chest import Chest

    pairs = {}
    for size in SIZES:
        where = os.path.join(path, str(size))
        with Chest(path=where, min_file_size=4096) as c:
            for n in range(size):
                c[f"key{n}"] = n
        pairs[size] = Chest(path=where), Chest(path=where)
        len(pairs[size][1])
    times: dict[str, list[float]] = {}
    for n in range(COMMITS):
        for size, (mine, theirs) in pairs.items():
            for what, took in one_commit(mine, theirs, f"key{n * 7 % size}", [n]).items():
                times.setdefault(f"{what} at {size} keys", []).append(took)
    mine, theirs = pairs[SIZES[-1]]
    times["nothing new"] = [clocked(lambda: "absent" in theirs) for _ in range(2_000)]
    keys_file = os.path.join(path, str(SIZES[-1]), ".keys")
    times["one stat"] = [clocked(lambda: os.stat(keys_file)) for _ in range(2_000)]
    return {what: statistics.median(took) for what, took in times.items()}


def one_commit(mine: Any, theirs: Any, key: str, value: Any) -> Figures:
    mine[key] = value
    before = os.stat(os.path.join(mine.path, ".keys")).st_ino
    sync = clocked(mine.sync)
    notice = clocked(lambda: len(theirs))
    if theirs[key] != value:
        raise AssertionError("it was not noticed")
    again = "" if os.stat(os.path.join(mine.path, ".keys")).st_ino == before else ", list rewritten"
    return {f"sync{again}": sync, f"notice{again}": notice}


def clocked(act: Callable[[], Any]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


# Running.


class Row(NamedTuple):
    """One line of the table; times in seconds."""

    work: str
    seconds: float
    ratio: float | None = None
    floor: str = ""
    holds: bool | None = None


def measured(rounds: int, scratch: str) -> dict[str, list[float]]:
    """Every figure of every round, each work in a process of its own."""
    found: dict[str, list[float]] = {}
    left_out: set[str] = set()
    works: list[tuple[Any, str]] = [(store, peer) for peer in PEERS] + [(commit, "chest")]
    works += [(small, peer) for peer in ("chest", "diskcache")]
    for turn in range(rounds):
        for run, peer in works[::-1] if turn % 2 else works:
            if peer in left_out:
                continue
            path = os.path.join(tempfile.mkdtemp(dir=scratch), "store")
            done = subprocess.run([sys.executable, __file__, "--one", run.__name__, peer, path],
                                  capture_output=True, text=True, check=False)
            if done.returncode:
                left_out.add(peer)
                print(f"left out: {peer}: {(done.stderr.strip().splitlines() or ['?'])[-1]}", file=sys.stderr)
                continue
            for what, seconds in json.loads(done.stdout).items():
                found.setdefault(what if run is commit else f"{run.__name__}, {peer}", []).append(seconds)
    return found


def rows(found: dict[str, list[float]]) -> Iterator[Row]:
    """The table, with the ratios taken round by round."""
    seconds = {what: statistics.median(took) for what, took in found.items()}

    def ratio(one: str, other: str) -> float | None:
        if one not in found or other not in found:
            return None
        return statistics.median(a / b for a, b in zip(found[one], found[other]))

    few, many = SIZES
    for work, peer in [*(("store", peer) for peer in PEERS), ("small", "chest"), ("small", "diskcache")]:
        name = f"{work}, {peer}"
        if name in found:
            of = ratio(name, f"{work}, chest")
            floor = ("> 1 × chest", of is not None and of > 1) if not peer.startswith("chest") else ("", None)
            yield Row(name, seconds[name], of, *floor)
    for what, most in (("sync", 3e-3), ("notice", 1e-3)):
        first, last = (f"{what} at {size} keys" for size in SIZES)
        of = ratio(last, first)
        yield Row(first, seconds[first])
        held = seconds[last] < most and (what != "sync" or (of is not None and of < 3))
        yield Row(last, seconds[last], of, f"< {most * 1e3:.0f} ms" + (", < 3 ×" if what == "sync" else ""), held)
        for size in (few, many):
            name = f"{what}, list rewritten at {size} keys"
            if name in found:
                yield Row(name, seconds[name])
    of = ratio("nothing new", "one stat")
    yield Row("one stat", seconds["one stat"])
    yield Row("nothing new", seconds["nothing new"], of)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="default: 5, or 1 with --quick")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--one", nargs=3, metavar=("WORK", "PEER", "PATH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        work_of = {"store": store, "small": small, "commit": commit}[arguments.one[0]]
        print(json.dumps(work_of(*arguments.one[1:])))
        return
    if arguments.quick and not QUICK:
        os.environ["CHEST_QUICK"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    rounds = arguments.rounds or (1 if QUICK else 5)
    scratch = tempfile.mkdtemp(prefix="chest-processes-")
    try:
        table = list(rows(measured(rounds, scratch)))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for row in table:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f} ×"
        holds = {True: "holds", False: "FAILS", None: ""}[row.holds]
        print(f"{row.work:<40}{row.seconds * 1e3:>12.3f} ms{ratio:>12}  {row.floor:<16}{holds}")
    if arguments.json:
        about = {"machine": compare.machine(), "rounds": rounds, "quick": QUICK}
        Path(arguments.json).write_text(json.dumps({**about, "figures": [row._asdict() for row in table]}, indent=1))


if __name__ == "__main__":
    main()
