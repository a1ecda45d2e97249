"""``python -m chest demo``: a gigabyte of arrays through a chest of 100 MB, on data that every machine has.

Of each module of Python's standard library it makes a table: how often does each byte follow each other byte?  One
process puts the tables into a chest; another opens the chest by its path and compares every table with every other, as
far as it is about ASCII.  Each tells how much memory it took at its peak.
"""
from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from chest.core import Chest
from chest.errors import ChestError
from chest.human import amount, bar, plural
from chest.memory import budget

__all__ = ["run"]

TABLE = 256 * 256 * 8  # bytes of one table of float64
LEAST = 2000  # bytes of a module's source that is worth comparing
_SKIPPED = {"site-packages", "dist-packages", "encodings"}


def run(size: str = "1 GB", available_memory: str = "100 MB") -> int:
    """Write, reopen, answer, and remove all again.  Returns the exit status; errors are as of `Chest`.

    ``size`` is that of all arrays together, ``available_memory`` the budget of the chest.
    """
    if importlib.util.find_spec("numpy") is None:
        raise ChestError("the demo makes numpy arrays; install it: python -m pip install 'chest[numpy]'")
    total, available = int(budget(size)), int(budget(available_memory))
    if available < 8 * TABLE:
        raise ValueError(f"give the demo a budget of {amount(8 * TABLE)} at least, not {available_memory!r}")
    scratch = tempfile.mkdtemp(prefix="chest-demo-")
    try:
        free = shutil.disk_usage(scratch).free
        if free < 1.2 * total:
            raise ChestError(f"the demo needs {amount(1.2 * total)} of disk, and {scratch} has {amount(free)}; set "
                             f"TMPDIR to another directory, or give a smaller --size")
        _tell(os.path.join(scratch, "tables"), total, available)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


def _tell(path: str, total: int, available: int) -> None:
    start = time.perf_counter()
    python = ".".join(map(str, sys.version_info[:2]))
    print(f"How alike are the modules of Python {python}?  A chest with a budget of {amount(available)} in {path}\n")
    print("Writing: of each module a table, how often each byte follows each other", flush=True)
    wrote = _in_a_process("write", path, total, available)
    print(f"  {plural(wrote['keys'], 'array')}, {amount(wrote['bytes'])} in all; {amount(wrote['spilled'])} were "
          f"spilled on the way, the rest saved at the end")
    print(f"  {wrote['seconds']:.1f} s\n")
    print("Reading: a new process opens the chest by its path, and compares each table with each other", flush=True)
    read = _in_a_process("read", path, total, available)
    print(f"  {read['hit_rate']:.0%} of {plural(read['reads'], 'read')} came from memory; the rest were "
          f"{amount(read['bytes'])} from disk, at {amount(read['bytes'] / read['loading'])}/s")
    print(f"  {read['seconds']:.1f} s\n")
    print(f"Of {plural(read['pairs'], 'pair')}, the most alike:")
    for likeness, one, other in read["best"]:
        print(f"  {likeness:8.3%}  {one} and {other}")
    print("\nMemory at the peak, of the whole process:")
    most = max(wrote["bytes"], wrote["peak"], read["peak"])
    for name, nbytes in (("all arrays", wrote["bytes"]), ("budget", available), ("writer", wrote["peak"]),
                         ("reader", read["peak"])):
        print(f"  {name:<10} {bar(nbytes / most, 50)} {amount(nbytes)}")
    print(f"  (of which Python and numpy alone take {amount(wrote['idle'])}, and the reader's own matrices "
          f"{amount(read['matrices'])})")
    print(f"\n{time.perf_counter() - start:.0f} s; everything is removed again.")


def _in_a_process(what: str, *arguments: Any) -> dict[str, Any]:
    """What another process found out; its progress goes to the terminal, its results come through a pipe."""
    command = [sys.executable, "-m", "chest.demo", what, *map(str, arguments)]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode:
        raise ChestError(f"the demo's process to {what} ended with status {found.returncode}")
    results: dict[str, Any] = json.loads(found.stdout)
    return results


def _progress(items: Iterable[Any], total: int) -> Iterable[Any]:
    """tqdm if it is there, else a line that grows; nothing where nobody looks."""
    if not sys.stderr.isatty():
        return items
    try:
        import tqdm
    except ImportError:
        return _plain(items, total)
    wrapped: Iterable[Any] = tqdm.tqdm(items, total=total, leave=False, ncols=80, bar_format="  {l_bar}{bar}{r_bar}")
    return wrapped


def _plain(items: Iterable[Any], total: int) -> Iterator[Any]:
    for done, item in enumerate(items, 1):
        yield item
        if done * 100 // total != (done - 1) * 100 // total:
            print(f"\r  {bar(done / total, 50)} {done / total:4.0%}", end="", file=sys.stderr, flush=True)
    print("\r" + " " * 60 + "\r", end="", file=sys.stderr, flush=True)


def _peak() -> int:
    """Bytes of memory that this process had at most."""
    try:  # what `resource` says was inherited from the process that started this one
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


# The writer.


def _modules() -> list[tuple[str, bytes]]:
    """The name and source of the modules of the standard library, but for short ones and for generated tables."""
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for file in sorted(root.rglob("*.py")):
        inside = file.relative_to(root)
        if not _SKIPPED.intersection(inside.parts):
            source = file.read_bytes()
            if len(source) >= LEAST:
                found.append((inside.as_posix(), source))
    return found


def _table(source: bytes, distances: int) -> Any:
    """How often byte b stands so many places behind byte a: an array of float64 by distance, a and b."""
    import numpy as np

    text = np.frombuffer(source, "u1").astype("intp")
    counts = [np.bincount(text[:-d] * 256 + text[d:], minlength=65536) for d in range(1, distances + 1)]
    return np.stack(counts).reshape(-1, 256, 256).astype("f8")


def _write(path: str, total: int, available: int) -> dict[str, Any]:
    import numpy  # noqa: F401

    idle = _peak()
    start = time.perf_counter()
    modules = _modules()
    distances = max(1, round(total / (len(modules) * TABLE)))
    modules = modules[: max(8, round(total / (distances * TABLE)))]
    chest: Chest[str, Any] = Chest(path=path, available_memory=available)
    for name, source in _progress(modules, total=len(modules)):
        chest[name] = _table(source, distances)
    spilled = chest.stats.bytes_written
    chest.close()
    return {"keys": len(modules), "bytes": len(modules) * distances * TABLE, "spilled": spilled, "idle": idle,
            "seconds": time.perf_counter() - start, "peak": _peak()}


# The reader.


def _read(path: str, total: int, available: int) -> dict[str, Any]:
    """Compare all tables with all others, block by block, as one does with matrices that do not fit into memory."""
    start = time.perf_counter()
    chest: Chest[str, Any] = Chest(path=path, available_memory=available)
    keys = list(chest)
    best: list[tuple[float, str, str]] = []
    loading, most = 0.0, 0
    work = list(_blocks(len(keys), tall=max(4, 4 * available // chest[keys[0]].nbytes), wide=8))
    rows: Any = None
    done = None
    for tall, wide in _progress(work, total=len(work)):
        before = time.perf_counter()
        if tall != done:
            rows = None  # let go of it before there is another
            rows, done = _unit_rows(chest, keys[tall]), tall
        columns = _unit_rows(chest, keys[wide])
        loading += time.perf_counter() - before
        best = _best(best, _once(rows @ columns.T, tall, wide), keys[tall], keys[wide])
        most = max(most, rows.nbytes + columns.nbytes)
    stats = chest.stats
    return {"seconds": time.perf_counter() - start, "loading": loading, "reads": stats.hits + stats.misses,
            "hit_rate": stats.hit_rate, "bytes": stats.bytes_read, "pairs": len(keys) * (len(keys) - 1) // 2,
            "best": best, "peak": _peak(), "matrices": most}


def _blocks(count: int, tall: int, wide: int) -> Iterator[tuple[slice, slice]]:
    """Pairs of slices that cover the upper half of a square: tall ones, and wide ones to and fro beside each.

    To and fro, so that what is used last beside one block is in memory still when it is used first beside the next.
    """
    for turn, top in enumerate(range(0, count, tall)):
        columns = [slice(left, left + wide) for left in range(top, count, wide)]
        for column in reversed(columns) if turn % 2 else columns:
            yield slice(top, top + tall), column


def _once(alike: Any, tall: slice, wide: slice) -> Any:
    """A block of the square without its lower half: each pair once, and none with itself."""
    import numpy as np

    return np.triu(alike, tall.start - wide.start + 1)


def _unit_rows(chest: Chest[str, Any], keys: list[str]) -> Any:
    """The tables of ``keys``, without what is not ASCII, as rows of length 1 in single precision."""
    import numpy as np

    rows = np.empty((len(keys), _ascii(chest[keys[0]]).size), "f4")
    for row, key in zip(rows, keys):
        row[:] = _ascii(chest[key]).ravel()
        row /= np.linalg.norm(row)
    return rows


def _ascii(table: Any) -> Any:
    return table[:, :128, :128]


def _best(best: list[tuple[float, str, str]], alike: Any, ones: list[str], others: list[str],
          count: int = 5) -> list[tuple[float, str, str]]:
    """The pairs that are most alike so far; copies of one file are no news."""
    import numpy as np

    news = np.where(alike < 0.999_999, alike, 0)
    for place in np.argsort(news, axis=None)[-count:]:
        one, other = np.unravel_index(place, news.shape)
        best = best + [(float(news[one, other]), ones[one], others[other])]
    return sorted(best, reverse=True)[:count]


if __name__ == "__main__":
    what, path, *sizes = sys.argv[1:]
    print(json.dumps({"write": _write, "read": _read}[what](path, *map(int, sizes))))
