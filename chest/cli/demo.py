"""``python -m chest demo``: a gigabyte of arrays through a chest of 100 MB, on data that every machine has.

Of each module of Python's standard library it makes a table: how often does each byte follow each other byte?  One
process puts the tables into a chest; another opens the chest by its path and finds the modules that are most alike.
"""
from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

from chest.cli.text import amount, plural
from chest.core import Chest
from chest.errors import ChestError
from chest.memory.cache import budget

__all__ = ["run"]

TABLE = 256 * 256 * 8  # bytes of one table of float64
LEAST = 2000  # bytes of a module's source that is worth comparing
TEXT = slice(32, 128)  # the bytes of ASCII that are compared


def run(size: str, available_memory: str) -> None:
    """Write, reopen, answer, and remove all again.  Errors are as of `Chest`.

    ``size`` is that of all arrays together, ``available_memory`` the budget of the chest.
    """
    if importlib.util.find_spec("numpy") is None:
        raise ChestError("the demo makes numpy arrays; install it: python -m pip install 'chest[numpy]'")
    total, available = int(budget(size)), int(budget(available_memory))
    scratch = tempfile.mkdtemp(prefix="chest-demo-")
    try:
        free = shutil.disk_usage(scratch).free
        if free < 1.2 * total:
            raise ChestError(f"the demo needs {amount(1.2 * total)} of disk, and {scratch} has {amount(free)}; set "
                             f"TMPDIR to another directory, or give a smaller --size")
        _tell(os.path.join(scratch, "tables"), total, available)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _tell(path: str, total: int, available: int) -> None:
    print(f"Which modules of Python are most alike?  A chest with a budget of {amount(available)} in {path}\n")
    print("Writing: of each module a table, how often each byte follows each other", flush=True)
    wrote = _in_a_process(_write, path, total, available)
    print(f"  {plural(wrote['keys'], 'array')}, {amount(wrote['bytes'])} in all; {amount(wrote['spilled'])} were "
          f"spilled on the way, the rest saved at the end\n  {wrote['seconds']:.1f} s\n")
    print("Reading: a new process opens the chest by its path, and compares each table with each other", flush=True)
    read = _in_a_process(_read, path, available)
    print(f"  {amount(read['bytes'])} from disk\n  {read['seconds']:.1f} s\n\nThe most alike:")
    for likeness, one, other in read["best"]:
        print(f"  {likeness:8.3%}  {one} and {other}")
    print("\nMemory at the peak, of the whole process:")
    figures = {"all arrays": wrote["bytes"], "budget": available, "writer": wrote["peak"], "reader": read["peak"]}
    for name, nbytes in figures.items():
        print(f"  {name:<10} {'█' * round(50 * nbytes / max(figures.values())):░<50} {amount(nbytes)}")
    print(f"  (of which Python and numpy alone take {amount(wrote['idle'])}, and the reader's own matrices "
          f"{amount(read['matrices'])})\n\nEverything is removed again.")


def _in_a_process(function: Any, *arguments: object) -> dict[str, Any]:
    """What ``function`` returns in a new process, which is no copy of this one."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        found: dict[str, Any] = pool.submit(function, *arguments).result()
        return found


def _peak() -> int:
    """Bytes of memory that this process had at most; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _write(path: str, total: int, available: int) -> dict[str, Any]:
    import numpy as np

    idle, start = _peak(), time.perf_counter()
    root = Path(sysconfig.get_path("stdlib"))
    files = [file for file in sorted(root.rglob("*.py")) if file.stat().st_size >= LEAST
             and not {"site-packages", "dist-packages", "encodings"}.intersection(file.relative_to(root).parts)]
    distances = max(1, round(total / (len(files) * TABLE)))
    chest: Chest[str, Any] = Chest(path=path, available_memory=available)
    for file in files[: max(8, round(total / (distances * TABLE)))]:
        text = np.frombuffer(file.read_bytes(), "u1").astype("intp")
        counts = [np.bincount(text[:-d] * 256 + text[d:], minlength=65536) for d in range(1, distances + 1)]
        chest[file.relative_to(root).as_posix()] = np.stack(counts).reshape(-1, 256, 256).astype("f8")
    spilled, keys = chest.stats.bytes_written, len(chest)
    chest.close()
    return {"keys": keys, "bytes": keys * distances * TABLE, "spilled": spilled, "idle": idle, "peak": _peak(),
            "seconds": time.perf_counter() - start}


def _read(path: str, available: int) -> dict[str, Any]:
    import numpy as np

    start = time.perf_counter()
    chest: Chest[str, Any] = Chest(path=path, available_memory=available)
    keys = list(chest)
    rows = np.stack([table[0, TEXT, TEXT].astype("f4").ravel() for table in chest.values()])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    alike = np.triu(rows @ rows.T, 1)  # each pair once, and none of a module and itself
    alike[alike >= 0.999_999] = 0  # copies of one file are no news
    places = zip(*np.unravel_index(np.argsort(alike, axis=None)[:-6:-1], alike.shape))
    best = [(float(alike[one, other]), keys[one], keys[other]) for one, other in places]
    return {"seconds": time.perf_counter() - start, "bytes": chest.stats.bytes_read, "best": best, "peak": _peak(),
            "matrices": 2 * rows.nbytes + 3 * alike.nbytes}
