"""The rows of bytes in the SQLite file: each is written once, under an id that is never used again."""
from __future__ import annotations

from collections.abc import Container, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Callable

from chest import writers
from chest.database import SMALL, Database
from chest.errors import ChestError, LoadError
from chest.statements import ONE, append, conditions

if TYPE_CHECKING:
    import sqlite3

__all__ = ["SMALL", "Rows"]

PER_COMMIT = 20_000  # rows removed in one transaction
OVERHEAD = 12  # bytes that a row takes beside its data: id, writer, lengths, its place in the page


class Rows(Database):
    """The rows of one directory, as one handle reads and writes them."""

    _packed = 1.0  # bytes of the file for each that lives in it, just after it was compacted

    def insert(self, data: Sequence[bytes], spent: Sequence[int] = ()) -> int:
        """Write new rows, with the ids from the one returned on, and remove those ``spent``, in one transaction."""
        while True:
            with self._guard:
                if self._read_only:
                    self._disconnect()  # perhaps we may write by now
                connection = self._open()
                if connection is not None:
                    return self._insert(connection, data, spent)
            self._create()

    def _insert(self, connection: sqlite3.Connection, data: Sequence[bytes], spent: Sequence[int]) -> int:
        def work(connection: sqlite3.Connection) -> int:
            first: int = connection.execute("SELECT next FROM state").fetchone()[0]
            if data and append(connection, first, writer, data) != first + len(data) - 1:
                raise LoadError(f"{self.path} is damaged: it has rows behind the last; nothing was changed")
            connection.execute("UPDATE state SET next = next + ?, bytes = bytes + ?",
                               (len(data), sum(map(len, data)) + OVERHEAD * len(data)))
            self._delete(connection, sorted(set(spent)))
            return first

        if self._writer is None:
            self._writer = self._transact(connection, writers.enrol)
        writer = self._writer
        first = self._transact(connection, work)
        if spent:
            self._tidy(connection)
        return first

    def one(self, row: int) -> bytes | None:
        """The bytes of one row, `None` if it is gone.  Cost: one SELECT."""
        data = self.at_once(row)
        if data is not None:
            return data
        with self._guard:
            connection = self._open()
            found = None if connection is None else connection.execute(ONE, (row,)).fetchone()
            return None if found is None else found[0]

    def at_once(self, row: int) -> bytes | None:
        """The row from the connection as it is; `None` also if there is none that will do.

        It may show a file that was dropped: an id is never used again, not even in a file that is made anew, and that
        the chest is another one is found by its index.
        """
        guard = self._guard
        with guard.lock:
            connection = self._connection
            if connection is None or self._cursor is None:
                return None
            depth = guard.depth
            try:
                guard.depth = depth + 1  # so that a fork in a finaliser leaves it open
                if not self.held:
                    self._hold()
                for (data,) in self._cursor.execute(ONE, (row,)):
                    return data  # type: ignore[no-any-return]
                return None
            except connection.Error:
                return None  # what it was is found out with the guard
            finally:
                guard.depth = depth

    def many(self, rows: Sequence[int]) -> list[bytes | None]:
        """The bytes of each of the rows, `None` for those that are gone.  Cost: a SELECT for each long run of them, and
        for each 256 of the others; least where they come in the order of their ids."""
        return self._select("data", rows)

    def lengths(self, rows: Sequence[int]) -> list[int | None]:
        """How many bytes each of the rows has, `None` for those that are gone."""
        return self._select("length(data)", rows)

    def _select(self, column: str, rows: Sequence[int]) -> list[Any]:
        parts = conditions(sorted(set(rows)))
        found: dict[int, Any] = {}
        with self._guard:
            connection = self._open()
            if connection is None:
                return [None] * len(rows)
            for where, ids, wanted in parts:
                values = connection.execute(f"SELECT {column} FROM value WHERE {where} ORDER BY id", ids)
                several = list(chain.from_iterable(values))
                if len(several) < len(wanted):  # some are gone
                    found.update(connection.execute(f"SELECT id, {column} FROM value WHERE {where}", ids))
                elif wanted == rows:  # there is one part, and all comes in order
                    return several
                else:
                    found.update(zip(wanted, several))
        return list(map(found.get, rows))

    def remove(self, rows: Sequence[int]) -> None:
        """Remove rows, and give back their space once the file has more than twice what lives in it."""
        with self._guard:
            connection = self._open()
            if connection is None:
                return
            rows = sorted(set(rows))
            for start in range(0, len(rows), PER_COMMIT):
                part = rows[start : start + PER_COMMIT]
                self._transact(connection, partial(self._delete, rows=part))
            self._tidy(connection)

    def _delete(self, connection: sqlite3.Connection, rows: Sequence[int]) -> None:
        for where, ids, _ in conditions(rows):
            freed = f"SELECT coalesce(sum(length(data) + {OVERHEAD}), 0) FROM value WHERE {where}"
            (size,) = connection.execute(freed, ids).fetchone()
            connection.execute(f"DELETE FROM value WHERE {where}", ids)
            connection.execute("UPDATE state SET bytes = bytes - ?", (size,))

    def _tidy(self, connection: sqlite3.Connection) -> None:
        """Rewrite the file if it is worth while: that costs as much as what was removed had cost to write."""
        import sqlite3

        (alive,) = connection.execute("SELECT bytes FROM state").fetchone()
        if self._size(connection) <= max(2.0, 1.25 * self._packed) * alive + 16 * self._page:
            return
        try:
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.OperationalError:
            return  # no room for the copy, or somebody else is busy here: the next removal tries again
        if alive:
            self._packed = max(1.0, (self._size(connection) - 16 * self._page) / alive)

    def _size(self, connection: sqlite3.Connection) -> int:
        """Bytes of the file once everything is in it."""
        pages, page = (connection.execute(f"PRAGMA page_{what}").fetchone()[0] for what in ("count", "size"))
        return int(pages * page)

    def has_others(self, named: Container[int]) -> bool:
        """Are there rows of other writers that live, but for those ``named``?  Cost: O(rows) if there are such."""
        try:
            with self._guard:
                connection = self._open()
                if connection is None:
                    return False
                others = [number for number in writers.alive(connection) if number != self._writer]
                if not others:
                    return False
                found = connection.execute(f"SELECT id FROM value WHERE writer IN ({','.join(map(str, others))})")
                return any(row not in named for (row,) in found)
        except (OSError, ChestError):
            return False  # nobody can read it

    def leftovers(self, named: Callable[[], Container[int]]) -> list[int]:
        """The rows of writers that are dead, but for those that an index names.

        ``named`` is asked when it is known who is dead, as its answer must have all that these ever committed.
        """
        with self._guard:
            connection = self._open()
            if connection is None:
                return []
            alive = ",".join(map(str, writers.alive(connection)))
            found = connection.execute(f"SELECT id FROM value WHERE writer NOT IN ({alive})").fetchall()
        kept = named()
        return [row for (row,) in found if row not in kept]
