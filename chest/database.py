"""The SQLite file ``.small``, as one handle has it open: made when first written to, closed before a fork, and read
briskly where many single rows are read one after another.

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
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Callable, TypeVar

from chest import locks, sweeper
from chest.errors import ChestError
from chest.guard import PATIENCE, Guard
from chest.locks import gate

if TYPE_CHECKING:
    import sqlite3

__all__ = ["SMALL", "Database"]

T = TypeVar("T")

SMALL = ".small"
FORMAT = 1
MAPPED = 1 << 28  # bytes of the file that are read by way of a memory map, which needs no copy of its pages
BRISK = 32  # reads within a moment from which on their transaction stays open
MOMENT = 0.01  # seconds
LONGEST = 1 << 25  # bytes of SQLite's log from which on none does: while any is open, it is not begun anew

START = "1 + abs(random()) % (1 << 40)"  # a file that is made anew, after a drop, has other ids than the one before
_SCHEMA = f"""
    CREATE TABLE value (id INTEGER PRIMARY KEY, writer INTEGER, data BLOB);
    CREATE TABLE writer (id INTEGER PRIMARY KEY AUTOINCREMENT, process TEXT);
    CREATE TABLE state (next INTEGER, bytes INTEGER);
    INSERT INTO state VALUES (%s, 0);
    PRAGMA user_version = {FORMAT};
"""


class Database:
    """The file of one directory.  Any thread may call any method.

    ``page`` is the size in bytes of the file's pages, should this handle be the one that makes the file.
    Errors of SQLite come as `OSError`, or as `LoadError` for a damaged file.
    """

    def __init__(self, directory: str, durable: bool, page: int):
        self.path = os.path.join(directory, SMALL)
        self._directory = directory
        self._durable = durable
        self._page = page
        self._forget()
        _all.add(self)

    def _forget(self) -> None:
        self._guard = Guard(self.path)
        self._connection: sqlite3.Connection | None = None
        self._cursor: sqlite3.Cursor | None = None  # of a connection to a file that others may write too
        self._closer: weakref.finalize[..., Database] | None = None
        self._identity: tuple[int, ...] = ()
        self._read_only = False
        self._writer: int | None = None
        self.held = False  # may reads be part of a transaction that is open already?
        self._begun = False  # is there one, or was there just now?
        self._reads: deque[float] = deque(maxlen=BRISK)  # when the last ones began

    def _open(self) -> sqlite3.Connection | None:
        """The connection to the file that is there now; `None` if there is none, or none that is ready."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            self._disconnect()
            return None
        identity = (found.st_dev, found.st_ino)
        if not self._alive():
            self._disconnect()
        self._let_go()
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
            connection.execute(f"PRAGMA mmap_size = {MAPPED}")
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
        self.held = self._begun = False
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

    # Many reads, one after another.

    def _hold(self) -> None:
        """Keep the read transaction open from the next read on, if the last ones were brisk: it costs as much to begin
        and to end one as to read two rows.  Called within the lock, before a read.

        What is read may be as old as the transaction.  An id is never used again, so that a row cannot be out of date:
        either it is there, or who asks has to look more closely.
        """
        outermost = self._guard.depth == 1  # else a finaliser reads in the middle of a read, or of a transaction
        if self._begun and outermost:
            self._let_go()
        now = monotonic()
        self._reads.append(now)
        brisk = len(self._reads) == BRISK and now - self._reads[0] < MOMENT
        if brisk and outermost and self._connection is not None and self._log_is_short() and sweeper.watch(self):
            self._begun = True
            self._connection.execute("BEGIN")
            self.held = True

    def _log_is_short(self) -> bool:
        try:
            return os.stat(self.path + "-wal").st_size < LONGEST
        except OSError:
            return True

    def _let_go(self) -> None:
        """End the read transaction that was kept open, if there is one.  Called within the lock.

        A read that is under way is given up, or one that Ctrl-C left unfinished, as nothing could be written then if
        others wrote since it began: a finaliser of the user's may bring us here in the middle of one.
        """
        if self._connection is not None and self._cursor is not None:
            cursor, self._cursor = self._cursor, self._connection.cursor()
            cursor.close()
            self._end_read()

    def _end_read(self) -> None:
        self.held = False
        if self._begun and self._connection is not None:
            self._connection.rollback()
            self._begun = False

    def sweep(self) -> bool:
        """End the read transaction that was kept open.  `False` if somebody is at the file just now: if that is a read,
        the next one ends it.

        Nothing is made here that could set off the garbage collector: a finaliser of the user's must not wait for a
        lock whose owner waits for ours.
        """
        self.held = False
        if not self._guard.lock.acquire(blocking=False):
            return False
        try:
            if self._guard.depth:
                return False  # a fork in a finaliser that runs in the middle of a read
            if self._alive():
                self._end_read()
        finally:
            self._guard.lock.release()
        return True

    # The end.

    def _alive(self) -> bool:
        """`False` once we are garbage, in a cycle with the chest, which is being saved: the connection is closed."""
        return self._closer is None or self._closer.alive

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
            self._let_go()
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


_all: weakref.WeakSet[Database] = weakref.WeakSet()
_guarded: dict[int, list[Database]] = {}  # by thread, as several may fork at once
_leaked: list[Any] = []


def _before_fork() -> None:
    sweeper.pause()  # first: who is about to be watched has a guard
    _guarded[threading.get_ident()] = [database for database in list(_all) if database.before_fork()]


def _after_fork_in_parent() -> None:
    for database in _guarded.pop(threading.get_ident()):
        database.after_fork_in_parent()
    sweeper.resume()


def _after_fork_in_child() -> None:
    sweeper.forget()
    _guarded.clear()
    for database in list(_all):
        database.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
