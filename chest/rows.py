"""The SQLite file ``.small``: rows of bytes, each written once, under ids that are never used again.

It is in SQLite's WAL mode: readers never wait, one process at a time writes, and whatever kills a process, what it
committed is there and the rest is not.  Its two companions, ``-wal`` and ``-shm``, go with the last connection.

An SQLite connection must not cross a fork: its locks do not, but SQLite's own notes of them do, and a child that opens
the file anew would believe that it has locks which it has not.  So connections are closed before a fork, and both sides
open theirs when they next need one.
"""
from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Container, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Callable, TypeVar

from chest import locks, writers
from chest.errors import ChestError, LoadError
from chest.guard import PATIENCE, Guard
from chest.locks import gate
from chest.statements import ONE, append, conditions

if TYPE_CHECKING:
    import sqlite3

__all__ = ["SMALL", "Rows"]

T = TypeVar("T")

SMALL = ".small"
FORMAT = 1
CACHE = 8000  # kilobytes of pages kept in memory: with SQLite's own 2000, a row of 10 MB takes a tenth longer to read
PER_COMMIT = 20_000  # rows removed in one transaction
OVERHEAD = 12  # bytes that a row takes beside its data: id, writer, lengths, its place in the page

START = "1 + abs(random()) % (1 << 40)"  # a file that is made anew, after a drop, has other ids than the one before
_SCHEMA = f"""
    CREATE TABLE value (id INTEGER PRIMARY KEY, writer INTEGER, data BLOB);
    CREATE TABLE writer (id INTEGER PRIMARY KEY AUTOINCREMENT, process TEXT);
    CREATE TABLE state (next INTEGER, bytes INTEGER);
    INSERT INTO state VALUES (%s, 0);
    PRAGMA user_version = {FORMAT};
"""


class Rows:
    """The rows of one directory, as one handle reads and writes them.  Any thread may call any method.

    ``page`` is the size in bytes of the file's pages, should this handle be the one that makes the file.
    Errors of SQLite come as `OSError`, or as `LoadError` for a damaged file.
    """

    def __init__(self, directory: str, durable: bool, page: int):
        self.path = os.path.join(directory, SMALL)
        self._directory = directory
        self._durable = durable
        self._page = page
        self._packed = 1.0  # bytes of the file for each that lives in it, just after it was compacted
        self._forget()
        _all.add(self)

    def _forget(self) -> None:
        self._guard = Guard(self.path)
        self._connection: sqlite3.Connection | None = None
        self._cursor: sqlite3.Cursor | None = None  # of a connection to a file that others may write too
        self._closer: weakref.finalize[..., Rows] | None = None
        self._identity: tuple[int, ...] = ()
        self._read_only = False
        self._writer: int | None = None

    # The connection.

    def _open(self) -> sqlite3.Connection | None:
        """The connection to the file that is there now; `None` if there is none, or none that is ready."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            self._disconnect()
            return None
        identity = (found.st_dev, found.st_ino)
        if self._closer is not None and not self._closer.alive:
            self._disconnect()  # we are garbage, in a cycle with the chest, which is being saved
        same_file = identity == self._identity[:2] and (len(self._identity) < 3 or self._still(found))
        if self._connection is None or not same_file:
            self._disconnect()
            self._connection = self._connect(found)
            if self._connection is not None:
                closer: Any = weakref.finalize(self, self._connection.close)
                closer.atexit = False  # chests are saved then
                self._closer = closer
        return self._connection

    def _connect(self, found: os.stat_result) -> sqlite3.Connection | None:
        writable = os.access(self.path, os.W_OK) and os.access(self._directory, os.W_OK)
        at_rest = not writable and not os.path.exists(self.path + "-wal")
        connection = self._connection_to("mode=rw" if writable else "immutable=1" if at_rest else "mode=ro")
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if not version and connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
                connection.close()  # whoever was making it died, or is at it
                return None
            if version != FORMAT or connection.execute("SELECT count(next) FROM state").fetchone() != (1,):
                raise ChestError(f"{self.path} is not a file that this chest can use: it was written by a newer "
                                 f"chest, or by another program")
        except BaseException:
            connection.close()
            raise
        self._read_only = not writable
        self._cursor = connection.cursor() if writable else None
        self._identity = _version(found) if at_rest else (found.st_dev, found.st_ino)
        return connection

    def _still(self, found: os.stat_result) -> bool:
        """Is a file that we may not write, and so read as if nobody could, just as it was?"""
        return self._identity == _version(found) and not os.path.exists(self.path + "-wal")

    def _connection_to(self, mode: str) -> sqlite3.Connection:
        import sqlite3
        from pathlib import Path

        connection = sqlite3.connect(f"{Path(self.path).as_uri()}?{mode}", uri=True, timeout=PATIENCE,
                                     isolation_level=None, check_same_thread=False, cached_statements=32)
        try:  # NORMAL: a loss of power may lose the newest rows, but never damages the file
            connection.execute(f"PRAGMA synchronous = {'FULL' if self._durable else 'NORMAL'}")
            connection.execute(f"PRAGMA journal_size_limit = {1 << 22}")
            connection.execute(f"PRAGMA cache_size = -{CACHE}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _create(self) -> None:
        """Make the file, or finish what somebody died over.

        The guard comes before the gate: a finaliser that runs as a row is read, with the guard, may commit.
        """
        with self._guard, gate(self._directory):
            if self._open() is not None:
                return
            connection = self._connection_to("mode=rwc")
            try:
                connection.execute(f"PRAGMA page_size = {self._page}")
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA % START} COMMIT;")
            finally:
                connection.close()

    def _disconnect(self) -> None:
        closer, self._closer = self._closer, None
        self._connection, self._cursor, self._identity, self._writer = None, None, (), None
        if closer is not None:
            closer()

    def _transact(self, connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
        """``work(connection)`` in one transaction, within the guard."""
        if self._guard.depth > 1 and connection.in_transaction:
            return work(connection)  # a `__del__` of the user's that ran in the middle of our own transaction
        if connection.in_transaction:
            connection.execute("ROLLBACK")  # Ctrl-C came just behind its BEGIN
        connection.execute("BEGIN IMMEDIATE")
        try:
            done = work(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return done

    # The rows.

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
            cursor = self._cursor
            if cursor is None:
                return None
            guard.depth += 1  # so that a fork in a finaliser leaves it open
            try:
                for (data,) in cursor.execute(ONE, (row,)):
                    return data  # type: ignore[no-any-return]
                return None
            except cursor.connection.Error:
                return None  # what it was is found out with the guard
            finally:
                guard.depth -= 1

    def many(self, rows: Sequence[int]) -> dict[int, bytes]:
        """The bytes of those rows that are there.  Cost: a SELECT for each long run of them, and
        for each 256 of the others."""
        return self._select("data", rows)

    def lengths(self, rows: Sequence[int]) -> dict[int, int]:
        """How many bytes each of the rows has that are there."""
        return self._select("length(data)", rows)

    def _select(self, column: str, rows: Sequence[int]) -> dict[int, Any]:
        found: dict[int, Any] = {}
        with self._guard:
            connection = self._open()
            if connection is not None:
                for where, ids, wanted in conditions(rows):
                    values = connection.execute(f"SELECT {column} FROM value WHERE {where} ORDER BY id", ids)
                    several = list(chain.from_iterable(values))
                    if len(several) == len(wanted):
                        found.update(zip(wanted, several))
                    else:  # some are gone
                        found.update(connection.execute(f"SELECT id, {column} FROM value WHERE {where}", ids))
        return found

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

    # The end.

    @property
    def guard(self) -> Guard:
        """What keeps other threads from the connection; to be taken before the gate, never within it."""
        return self._guard

    def close(self) -> None:
        """Close the connection; the last one of all processes takes SQLite's companions away."""
        with self._guard:
            self._disconnect()

    def destroy(self) -> None:
        """Remove the file."""
        with self._guard:
            if self._connection is not None:
                self._connection.execute("PRAGMA synchronous = OFF")
            self._disconnect()
            for end in ("", "-journal", "-wal", "-shm"):
                try:
                    os.unlink(self.path + end)
                except OSError:
                    pass

    def before_fork(self) -> bool:
        """Close the connection, if it is idle within a moment, and keep others from opening one until `after_fork`.

        Returns whether this thread has the guard now.
        """
        if not self._guard.lock.acquire(timeout=locks.AT_FORK):
            return False
        if not self._guard.depth:
            self._disconnect()
        return True

    def after_fork_in_parent(self) -> None:
        self._guard.lock.release()

    def after_fork_in_child(self) -> None:
        if self._closer is not None:
            _leaked.append(self._closer.detach())  # closing it would act upon the parent's files
        self._forget()


def _version(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


_all: weakref.WeakSet[Rows] = weakref.WeakSet()
_guarded: dict[int, list[Rows]] = {}  # by thread, as several may fork at once
_leaked: list[Any] = []


def _before_fork() -> None:
    _guarded[threading.get_ident()] = [rows for rows in list(_all) if rows.before_fork()]


def _after_fork_in_parent() -> None:
    for rows in _guarded.pop(threading.get_ident()):
        rows.after_fork_in_parent()


def _after_fork_in_child() -> None:
    _guarded.clear()
    for rows in list(_all):
        rows.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
