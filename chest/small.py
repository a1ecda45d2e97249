"""Small values as rows of one SQLite file beside the big ones' files; it answers the same calls as `Files`.

Each value is written once, like a value file: a new row for a new value, named by its id, which is never used again.
The rows are committed before the index that names them, and removed after the one that no longer does.
"""
from __future__ import annotations

import errno
import io
import pickle
from collections import deque
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import repeat
from typing import Any, Callable, Generic, TypeVar, cast

from chest.codec import Codec
from chest.dumper import Dumper
from chest.errors import ChestError, LoadError
from chest.files import Files, Loaded, Stale, Written
from chest.names import Name, shown
from chest.rows import SMALL, Rows

__all__ = ["Small"]

K = TypeVar("K", bound=Hashable)

TOGETHER = 4000  # values of a commit that are one transaction
AHEAD = 1024  # rows that are read at a time
MOST = 1 << 24  # bytes that values take which are read or written together, whatever their number
CHUNK = 1 << 20  # bytes that wait in memory for their transaction
CROWD = 20_000  # values that do so
LATE = 256  # superseded rows that may wait for the next transaction, as one of their own costs too much for each


class Small(Generic[K]):
    """A `Files` whose values of less than ``limit`` bytes, as `codec.dumped` makes them, are rows of ``.small``.

    With a ``limit`` of 0 nothing becomes a row, but rows that are there are read and removed.  Cost, beside pickle's:
    3 to 5 µs for each of many values written, 2 µs for each of many read in the order in which they were written,
    12 µs and more for one, or 6 if many are read one after another.
    """

    remote = False

    def __init__(self, files: Files[K], directory: str, codec: Codec, durable: bool, limit: int):
        self.grain = limit
        together = MOST // max(limit, 4096)
        self._ahead = min(AHEAD, max(together, 1))
        self.ahead = self._ahead if limit else files.ahead
        self.crowd = min(TOGETHER, max(together, 1)) if limit else files.crowd
        self._files = files
        self._directory = directory
        self._codec = codec
        # A row is a plain pickle: there is nothing in it to map.
        self.decode: Callable[[bytes], Any] = pickle.loads if codec.native else codec.loaded
        self._limit = limit
        self._native = codec.native
        # Pages of twice the limit hold at least two rows each, so that no page is less than half full.
        page = min(max(1 << (2 * limit - 1).bit_length(), 4096), 65536) if limit else 4096
        self._rows = Rows(directory, durable, page)
        self.row = self._rows.at_once
        self._spent: deque[int] = deque()
        self.exists = files.exists
        self.make = files.make
        self.reserve = files.reserve

    @property
    def brisk(self) -> bool:
        """Are so many rows read one after another that all of them are as the file was when the moment began?"""
        return self._rows.held

    def path(self, name: Name) -> str:
        """The full path of the file ``name``; of a row it is that of the file ``.small``, a slash, and the row's id."""
        return self._files.path(shown(name))

    # Out.

    def write(self, items: Iterable[tuple[K, Any]]) -> Iterator[Written]:
        """Write each value to a new row, or a new file if it is large.  All rows of about a megabyte are one
        transaction, committed before the first of their names is returned."""
        return self._write(items) if self._limit else self._files.write(items)

    def _write(self, items: Iterable[tuple[K, Any]]) -> Iterator[Written]:
        dumper = Dumper(self._codec, self._limit)
        done: list[Written | None] = []  # in order; None stands for the next of the rows
        rows: list[bytes] = []
        waiting = 0
        try:
            for key, value in items:
                try:
                    data = dumper.dumped(value)
                except Exception as error:
                    done.append(Written("", 0, error))
                    continue
                if data is not None:
                    done.append(None)
                    rows.append(data)
                    waiting += len(data)
                else:
                    done += self._files.write([(key, value)])
                    waiting += done[-1].nbytes if done[-1] else 0
                if not rows or waiting > CHUNK or len(done) > CROWD:
                    written, done, rows, waiting = self._settled(done, rows), [], [], 0
                    yield from self._reported(written)
            written, done = self._settled(done, rows), []
            yield from self._reported(written)
        finally:
            self.remove([one.name for one in done if one and one.name])

    def _settled(self, done: list[Written | None], rows: list[bytes]) -> list[Written]:
        """``done`` with its rows written."""
        try:
            written = map(Written, self._insert(rows), map(len, rows))
        except Exception as error:
            written = map(Written, repeat(""), repeat(0, len(rows)), repeat(error))
        return list(written) if len(done) == len(rows) else [one or next(written) for one in done]

    def write_rows(self, values: Iterable[Any]) -> tuple[list[Name | None], int]:
        """Write those of the values that are small, in one transaction.  Returns their names, with `None` for what is
        large or cannot be written, and their bytes."""
        dumped = Dumper(self._codec, self._limit).dumped_together(values)
        rows = [data for data in dumped if data is not None]
        names: list[Name | None] = [None] * len(dumped)
        try:
            ids = self._insert(rows)
        except (OSError, ChestError):
            return names, 0  # whoever writes one alone is told why
        if len(rows) == len(dumped):
            return list(ids), sum(map(len, rows))
        return [None if data is None else next(ids) for data in dumped], sum(map(len, rows))

    def _insert(self, rows: list[bytes]) -> Iterator[int]:
        """Write rows in one transaction, in which superseded ones go.  Returns their ids."""
        spent = self._take_spent() if rows else []
        try:
            first = self._rows.insert(rows, spent) if rows else 0
        except BaseException:
            self._spent.extend(spent)
            raise
        return iter(range(first, first + len(rows)))

    def _reported(self, written: list[Written]) -> Iterator[Written]:
        waiting = iter(written)
        try:
            yield from waiting
        finally:
            self.remove([one.name for one in waiting if one.name])  # nobody will ever know these

    # Back.

    def load(self, names: Iterable[Name], trusted: Callable[[], bool], workers: int = 1) -> Iterator[Loaded]:
        """The values of ``names``, in order, one after another as they are asked for; rows come from the file many at
        a time.  ``trusted()`` is asked when they have come, and before they are believed."""
        names = list(names)
        rows = [name for name in names if isinstance(name, int)]
        files = [name for name in names if isinstance(name, str)]
        if not rows:
            return self._files.load(files, trusted, workers)
        if not files:
            return self._load_rows(rows, trusted)
        from_rows, from_files = self._load_rows(rows, trusted), self._files.load(files, trusted, workers)
        return (next(from_rows if isinstance(name, int) else from_files) for name in names)

    def load_one(self, name: Name, trusted: Callable[[], bool]) -> Loaded:
        """The value of one name."""
        if not isinstance(name, int):
            return self._files.load_one(name, trusted)
        try:
            data = self._rows.one(name)
            if not trusted():
                raise Stale(name)
        except Exception as error:
            return Loaded(None, 0, error)
        return self._loaded(name, data)

    def _load_rows(self, names: list[int], trusted: Callable[[], bool]) -> Iterator[Loaded]:
        for start in range(0, len(names), self._ahead):
            part = names[start : start + self._ahead]
            try:
                rows = self._rows.many(part)
                if not trusted():
                    raise Stale(part[0])
            except Exception as error:
                yield from (Loaded(None, 0, error) for _ in part)
                continue
            yield from map(self._loaded, part, rows)

    def _loaded(self, name: Name, data: bytes | None) -> Loaded:
        if data is None:
            return Loaded(None, 0, self._gone(name))
        try:
            return Loaded(self.decode(data), len(data))
        except Exception as error:
            why = f"{self.path(name)} cannot be read ({type(error).__name__}: {error})"
            return Loaded(None, 0, _caused(LoadError(why), error))

    def _gone(self, name: Name) -> FileNotFoundError:
        return FileNotFoundError(errno.ENOENT, f"there is no such row in {SMALL}", self.path(name))

    def peek(self, names: Sequence[Name | None], trusted: Callable[[], bool]) -> list[bytes | None]:
        """The bytes of rows, read at once, for `decode`; `None` for what is no row, is gone or cannot be trusted."""
        rows = [name for name in names if type(name) is int]
        try:
            data = self._rows.many(rows)
        except (OSError, ChestError):
            data = [None] * len(rows)
        if not trusted():
            return [None] * len(names)
        if len(rows) == len(names):
            return data
        told = iter(data)
        return [next(told) if type(name) is int else None for name in names]

    def alike(self, values: list[Any], data: list[bytes]) -> Sequence[bool]:
        """For each value and the bytes of its row: are these just what would be written for the value now?"""
        dumped: list[bytes] = []
        if self._native:
            try:
                dumped = list(map(pickle.dumps, values, repeat(5)))
            except Exception:  # one can no longer be pickled
                pass
        if dumped == data:
            return (True,) * len(data)
        return [one == now or self._same(one, value, Dumper(self._codec, 0))
                for one, value, now in zip(data, values, dumped or repeat(b""))]

    def same(self, pairs: Sequence[tuple[Name, Any]]) -> Iterator[bool]:
        """For each name and value: does the file or row hold just what would be written for the value now?  Rows come
        from the file many at a time.  What cannot be told, as the row or file is gone, is not the same."""
        dumper = None
        for start in range(0, len(pairs), self._ahead):
            part = pairs[start : start + self._ahead]
            ids = [name for name, _ in part if isinstance(name, int)]
            if not ids:
                yield from self._files.same(cast(Any, part))
                continue
            dumper = dumper or Dumper(self._codec, 0)
            try:
                rows = iter(self._rows.many(ids))
            except (OSError, ChestError):
                rows = iter([None] * len(ids))
            for name, value in part:
                if isinstance(name, int):
                    yield self._same(next(rows), value, dumper)
                else:
                    yield from self._files.same([(name, value)])

    def _same(self, data: bytes | None, value: Any, dumper: Dumper) -> bool:
        if data is None:
            return False
        dumper.limit = len(data) + 1
        try:
            return dumper.dumped(value) == data or self._codec.same(value, io.BytesIO(data))
        except Exception:
            return False  # it can no longer be dumped

    def size(self, name: Name) -> int:
        """Bytes that the file or row has, 0 if it is gone.  One ``stat``, or one SELECT."""
        return next(self.sizes([name]))

    def mark(self, name: Name) -> int | None:
        """What tells the file ``name`` from later ones of that name; `None` for a row, as its name has one row only."""
        return None if isinstance(name, int) else self._files.mark(name)

    def sizes(self, names: Sequence[Name]) -> Iterator[int]:
        """The `size` of each; those of rows come from the file many at a time."""
        for start in range(0, len(names), self._ahead):
            part = names[start : start + self._ahead]
            rows = iter(self._rows.lengths([name for name in part if isinstance(name, int)]))
            for name in part:
                yield (next(rows) or 0) if isinstance(name, int) else self._files.size(name)

    # Between chests, and away.

    def link(self, key: K, store: Any, name: Name, trusted: Callable[[], bool]) -> Name:
        """A second name, for ``key``, of a file of another store; of a row it is a copy.  `OSError` where that cannot
        be, as for a row where this store has none of its own."""
        if not isinstance(name, int):
            return self._files.link(key, store, name, trusted)
        if not self._limit or not isinstance(store, Small):
            raise OSError(errno.EXDEV, "rows are copied from one file of small values to another only", self.path(name))
        data = store._rows.one(name)
        if not trusted():
            raise Stale(store.path(name))
        if data is None:
            raise store._gone(name)
        return self._rows.insert([data])

    def remove(self, names: Iterable[Name]) -> None:
        """Remove files and rows.  One that is gone already is as well.  A few rows wait for the next transaction."""
        files = []
        for name in names:
            if isinstance(name, int):
                self._spent.append(name)
            else:
                files.append(name)
        self._files.remove(files)
        if len(self._spent) > LATE:
            self._remove_spent()

    def _remove_spent(self) -> None:
        spent = self._take_spent()
        try:
            if spent:
                self._rows.remove(spent)
        except BaseException as error:
            self._spent.extend(spent)
            if not isinstance(error, (OSError, LoadError)):
                raise  # else: what could not be removed now is removed another time

    def _take_spent(self) -> list[int]:
        taken: list[int] = []
        try:
            while True:  # others may take and add meanwhile
                taken.append(self._spent.popleft())
        except IndexError:
            return taken

    def leftovers(self, named: Callable[[], Iterable[Name]]) -> list[int]:
        """The rows of processes that died, but for those in ``named()``, the names that the newest index gives.

        ``named`` is asked after it was found who is dead.  What a process that lives has not committed yet is none.
        """
        def rows() -> set[int]:
            return {name for name in named() if isinstance(name, int)}

        return self._rows.leftovers(rows)

    def after_fork(self) -> None:
        """In a fork's child: what is to be removed is the parent's to remove; the connection was closed before."""
        self._spent.clear()
        self._files.after_fork()

    def close(self) -> None:
        """Let go of the file; the last process to do so takes SQLite's companions away."""
        self._remove_spent()
        self._rows.close()
        self._files.close()

    @property
    def guard(self) -> AbstractContextManager[object]:
        """What whoever calls `destroy` within the gate has to take before that."""
        return self._rows.guard

    def drop(self, names: Collection[Name]) -> None:
        """Remove all that the chest has, which are these files and rows.  What others have spilled and not committed
        stays theirs, as a row too."""
        if self._rows.has_others({name for name in names if isinstance(name, int)}):
            self.remove(names)
            self._remove_spent()
            self._rows.close()
            self._files.destroy()
        else:
            self.remove(name for name in names if isinstance(name, str))
            self.destroy()

    def destroy(self) -> None:
        """Remove the file of small values, and the directory itself if nothing of anyone else's is in it."""
        self._spent.clear()
        self._rows.destroy()
        self._files.destroy()

    def clear_away(self) -> None:
        """Remove a temporary directory with all that is in it."""
        self._spent.clear()
        self._rows.destroy()
        self._files.clear_away()


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error
