"""Which processes wrote rows, and which of them are dead: what those did not commit will never be committed."""
from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

__all__ = ["alive", "enrol"]


def enrol(connection: sqlite3.Connection) -> int:
    """The number of this process among the writers.  Those that are dead are struck off.  Within a transaction."""
    me = _identity(os.getpid())
    for number, process in connection.execute("SELECT id, process FROM writer").fetchall():
        if process == me:
            return int(number)
        if _dead(process):
            connection.execute("DELETE FROM writer WHERE id = ?", (number,))
    added = connection.execute("INSERT INTO writer (process) VALUES (?)", (me,)).lastrowid
    assert added is not None
    return added


def alive(connection: sqlite3.Connection) -> list[int]:
    """The numbers of the writers that may be alive; any other is dead."""
    return [number for number, process in connection.execute("SELECT id, process FROM writer") if not _dead(process)]


def _identity(pid: int) -> str:
    """What tells a process from all others, as far as the system says: its start too, as numbers are used again."""
    return f"{_place()}\n{pid}\n{_started(pid)}"


@functools.lru_cache(maxsize=1)
def _place() -> str:
    """Where process numbers mean what they mean here: the machine, its boot, and the container."""
    import platform

    boot = container = ""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        container = os.readlink("/proc/self/ns/pid")
    except OSError:
        pass
    return f"{platform.node()}\n{boot}\n{container}"


def _started(pid: int) -> str:
    """When a process started, in the system's own ticks; empty where it does not tell, or there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[19].decode("ascii")
    except (OSError, IndexError):
        return ""


def _dead(process: str) -> bool:
    """Is it certain that the process is no more?"""
    machine, boot, container, pid, started = process.split("\n")
    here, this_boot, this_container = _place().split("\n")
    if machine != here or os.name != "posix":
        return False
    if boot != this_boot:
        return True
    if container != this_container:
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # somebody else's, but there is one
    return bool(started) and _started(int(pid)) not in ("", started)
