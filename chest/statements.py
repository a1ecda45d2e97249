"""What is said to SQLite about many rows at once, and how to say it in few statements."""
from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import count, repeat
from operator import sub
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

__all__ = ["ONE", "append", "conditions"]

ONE = "SELECT data FROM value WHERE id = ?"

TOGETHER = 50  # rows inserted by one statement, which takes half as long for each as one of its own
AT_ONCE = 256  # rows named in one statement: SQLite takes 999 or more
FEW = 32  # rows that are not worth a range of their own
_SOME = {size: f"id IN ({','.join('?' * size)})" for size in (FEW, AT_ONCE)}
_RANGE = "id BETWEEN ? AND ?"


def append(connection: sqlite3.Connection, first: int, writer: int, data: Sequence[bytes]) -> int | None:
    """Insert rows with the ids from ``first`` on.  Returns the last id: behind all others each gets the next one."""
    last = connection.execute("INSERT INTO value VALUES (?, ?, ?)", (first, writer, data[0])).lastrowid
    for start in range(1, len(data), TOGETHER):
        some = data[start : start + TOGETHER]
        rows = ",".join(repeat(f"({writer}, ?)", len(some)))
        last = connection.execute(f"INSERT INTO value (writer, data) VALUES {rows}", some).lastrowid
    return last


def conditions(rows: Sequence[int]) -> list[tuple[str, Sequence[int], Sequence[int]]]:
    """Conditions for ``rows``, sorted and each once, with those that each means: ranges for long runs, the rest by ids.

    As a rule there are a few long runs, as values that leave memory together are written together.
    """
    if rows and rows[-1] - rows[0] + 1 == len(rows):
        return [(_RANGE, (rows[0], rows[-1]), rows)]
    found: list[tuple[str, Sequence[int], Sequence[int]]] = []
    sparse: list[int] = []
    missing = list(map(sub, rows, count()))  # how many before each row, counted from somewhere
    start = 0
    while start < len(rows):
        run = rows[start : bisect_right(missing, missing[start], start + 1)]
        if len(run) < FEW:
            sparse += run
        else:
            found.append((_RANGE, (run[0], run[-1]), run))
        start += len(run)
    for start in range(0, len(sparse), AT_ONCE):
        some = sparse[start : start + AT_ONCE]
        most = next(size for size in _SOME if size >= len(some))  # few statements, so that SQLite keeps them prepared
        found.append((_SOME[most], [*some, *repeat(some[0], most - len(some))], some))
    return found
