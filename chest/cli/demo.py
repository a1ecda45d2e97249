"""``python -m chest demo``: a gigabyte of arrays through a chest of 100 MB, on data that every machine has.

Of each module of Python's standard library it makes a table: how often does each byte follow each other byte?  It puts
the tables into a chest, opens that again by its path, and finds the modules that are like one.
"""
from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

from chest.cli import amount, plural
from chest.core import Chest
from chest.errors import ChestError
from chest.memory.budget import budget, peak

__all__ = ["run"]

TABLE = 256 * 256 * 8  # bytes of one table of float64
LEAST = 2000  # bytes of a module's source that is worth comparing


def run(size: str, available_memory: str) -> None:
    """Write, reopen, answer, and remove all again.  Errors are as of `Chest`.

    ``size`` is that of all arrays together, ``available_memory`` the budget of the chest.
    """
    if importlib.util.find_spec("numpy") is None:
        raise ChestError("the demo makes numpy arrays; install it: python -m pip install 'chest[numpy]'")
    import numpy as np

    total, available, idle = int(budget(size)), int(budget(available_memory)), peak()
    with tempfile.TemporaryDirectory(prefix="chest-demo-") as scratch:
        free = shutil.disk_usage(scratch).free
        if free < 1.2 * total:
            raise ChestError(f"the demo needs {amount(1.2 * total)} of disk, and {scratch} has {amount(free)}; set "
                             f"TMPDIR to another directory, or give a smaller --size")
        path = os.path.join(scratch, "tables")
        print(f"Which modules are alike?  A chest with a budget of {amount(available)} in {path}\n", flush=True)
        for work in (_write, _read):
            start = time.perf_counter()
            with Chest[str, Any](path=path, available_memory=available) as chest:
                work(np, chest, total)
            print(f"  {time.perf_counter() - start:.1f} s, {amount(peak())} of memory at the peak, of which Python and "
                  f"numpy alone take {amount(idle)}\n", flush=True)
    print("Everything is removed again.")


def _write(np: Any, chest: Chest[str, Any], total: int) -> None:
    print("Writing: of each module a table, how often each byte follows each other byte", flush=True)
    root = Path(sysconfig.get_path("stdlib"))
    files = [file for file in sorted(root.rglob("*.py")) if file.stat().st_size >= LEAST
             and not {"site-packages", "dist-packages", "encodings"}.intersection(file.relative_to(root).parts)]
    distances = max(1, round(total / (len(files) * TABLE)))
    for file in files[: max(8, round(total / (distances * TABLE)))]:
        text = np.frombuffer(file.read_bytes(), "u1").astype("intp")
        counts = [np.bincount(text[:-d] * 256 + text[d:], minlength=65536) for d in range(1, distances + 1)]
        chest[file.relative_to(root).as_posix()] = np.stack(counts).reshape(-1, 256, 256).astype("f8")
    print(f"  {plural(len(chest), 'array')}, {amount(len(chest) * distances * TABLE)} in all; "
          f"{amount(chest.stats.bytes_written)} were spilled on the way, the rest saved at the end")


def _read(np: Any, chest: Chest[str, Any], total: int) -> None:
    print("Reading: the chest is opened again by its path, and one table compared with each other", flush=True)
    chosen = list(chest)[len(chest) // 2]
    one = chest[chosen][0] / np.linalg.norm(chest[chosen][0])
    likeness = {key: (one * table[0]).sum() / np.linalg.norm(table[0]) for key, table in chest.items() if key != chosen}
    print(f"  {amount(chest.stats.bytes_read)} from disk")
    print(f"Most like {chosen}:")
    for key in sorted(likeness, key=likeness.__getitem__, reverse=True)[:5]:
        print(f"  {likeness[key]:8.3%}  {key}")
