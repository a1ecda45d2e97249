"""Small values as rows of one SQLite file beside the big ones' files; it answers the same calls as `Files`.

Each value is written once, like a value file: a new row for a new value, under a name ``.small/<id>`` that is never
used again.  The rows are committed before the index that names them, and removed after the one that no longer does.
"""
from __future__ import annotations

import errno
import io
import pickle
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, Callable, Generic, TypeVar

from chest.codec import Codec
from chest.errors import ChestError, LoadError
from chest.files import Files, Loaded, Stale, Written
from chest.keysfile import small
from chest.rows import SMALL, Rows

__all__ = ["Small"]

K = TypeVar("K", bound=Hashable)

AHEAD = 512  # rows that are read at a time
CHUNK = 1 << 20  # bytes that wait in memory for their transaction
CROWD = 20_000  # values that do so
LATE = 256  # superseded rows that may wait for the next transaction, as one of their own costs too much for each


class Small(Generic[K]):
    """A `Files` whose values of less than ``limit`` bytes, as `codec.dumped` makes them, are rows of ``.small``.

    With a ``limit`` of 0 nothing becomes a row, but rows that are there are read and removed.  Cost, beside pickle's:
    3 to 5 µs for each of many values written, 2 µs for each of many read in the order in which they were written,
    12 µs and more for one.
    """

    ahead = AHEAD

    def __init__(self, files: Files[K], directory: str, codec: Codec, durable: bool, limit: int):
        self.grain = limit
        self._files = files
        self._directory = directory
        self._codec = codec
        self._limit = limit
        # Pages of twice the limit hold at least two rows each, so that no page is less than half full.
        page = min(max(1 << (2 * limit - 1).bit_length(), 4096), 65536) if limit else 4096
        self._rows = Rows(directory, durable, page)
        self._spent: deque[int] = deque()
        self.exists = files.exists
        self.make = files.make
        self.reserve = files.reserve

    def path(self, name: str) -> str:
        """The full path of the file ``name``; of a row it is that of the file ``.small``, a slash, and the row's id."""
        return self._files.path(name)

    # Out.

    def write(self, items: Iterable[tuple[K, Any]]) -> Iterator[Written]:
        """Write each value to a new row, or a new file if it is large.  All rows of about a megabyte are one
        transaction, committed before the first of their names is returned."""
        return self._write(items) if self._limit else self._files.write(items)

    def _write(self, items: Iterable[tuple[K, Any]]) -> Iterator[Written]:
        dumper = _Dumper(self._codec, self._limit)
        done: deque[Written] = deque()  # in order; rows have no name yet
        rows: list[bytes] = []
        waiting = 0
        try:
            for key, value in items:
                try:
                    data = dumper.dumped(value)
                except Exception as error:
                    done.append(Written("", 0, error))
                    continue
                if data is None:
                    done.extend(self._files.write([(key, value)]))
                    waiting += done[-1].nbytes
                else:
                    done.append(Written("", len(data)))
                    rows.append(data)
                    waiting += len(data)
                if not rows or waiting > CHUNK or len(done) > CROWD:
                    done = self._settled(done, rows)
                    rows, waiting = [], 0
                    while done:
                        yield done.popleft()
            done = self._settled(done, rows)
            while done:
                yield done.popleft()
        finally:
            self.remove([written.name for written in done if written.name])  # nobody will ever know these

    def _settled(self, done: deque[Written], rows: list[bytes]) -> deque[Written]:
        """``done`` with the rows written, and their names."""
        if not rows:
            return done
        spent = self._take_spent()
        try:
            row = self._rows.insert(rows, spent)
        except BaseException as error:
            self._spent.extend(spent)
            if not isinstance(error, Exception):
                raise
            return deque(written._replace(nbytes=0, error=error) if _unnamed(written) else written for written in done)
        settled: deque[Written] = deque()
        for written in done:
            if _unnamed(written):
                written = Written(f"{SMALL}/{row}", written.nbytes)
                row += 1
            settled.append(written)
        return settled

    # Back.

    def load(self, names: Iterable[str], trusted: Callable[[], bool], workers: int = 1) -> Iterator[Loaded]:
        """The values of ``names``, in order, one after another as they are asked for; rows come from the file many at
        a time.  ``trusted()`` is asked when they have come, and before they are believed."""
        names = list(names)
        if len(names) == 1 and small(names[0]):
            return iter((self._load_one(names[0], trusted),))
        rows = [name for name in names if small(name)]
        if not rows:
            return self._files.load(names, trusted, workers)
        return self._load(names, rows, trusted, workers)

    def _load_one(self, name: str, trusted: Callable[[], bool]) -> Loaded:
        try:
            data = self._rows.one(number(name))
            if not trusted():
                raise Stale(name)
        except Exception as error:
            return Loaded(None, 0, error)
        return self._loaded(name, data)

    def _load(self, names: list[str], rows: list[str], trusted: Callable[[], bool], workers: int) -> Iterator[Loaded]:
        from_rows = self._load_rows(rows, trusted)
        files = [name for name in names if not small(name)]
        from_files = self._files.load(files, trusted, workers) if files else iter(())
        for name in names:
            yield next(from_rows if small(name) else from_files)

    def _load_rows(self, names: list[str], trusted: Callable[[], bool]) -> Iterator[Loaded]:
        for start in range(0, len(names), AHEAD):
            part = names[start : start + AHEAD]
            rows: dict[int, bytes] = {}
            error: Exception | None = None
            try:
                rows = self._rows.many(sorted(map(number, part)))
                if not trusted():
                    raise Stale(part[0])
            except Exception as caught:
                error = caught
            for name in part:
                yield self._loaded(name, rows.get(number(name))) if error is None else Loaded(None, 0, error)

    def _loaded(self, name: str, data: bytes | None) -> Loaded:
        if data is None:
            return Loaded(None, 0, self._gone(name))
        try:
            # A row is a plain pickle: there is nothing in it to map.
            value = pickle.loads(data) if self._codec.native else self._codec.loaded(data)
        except Exception as error:
            text = f"{self.path(name)} cannot be read ({type(error).__name__}: {error})"
            return Loaded(None, 0, _caused(LoadError(text), error))
        return Loaded(value, len(data))

    def _gone(self, name: str) -> FileNotFoundError:
        return FileNotFoundError(errno.ENOENT, f"there is no such row in {SMALL}", self.path(name))

    def same(self, name: str, value: Any) -> bool:
        """Does the file or row hold just what would be written for ``value`` now?"""
        return next(self.same_many([(name, value)]))

    def same_many(self, pairs: Sequence[tuple[str, Any]]) -> Iterator[bool]:
        """For each name and value, what `same` says; rows come from the file many at a time.  What cannot be told, as
        the row or file is gone or cannot be read, is not the same."""
        dumper = _Dumper(self._codec, max(self._limit, 1))
        for start in range(0, len(pairs), AHEAD):
            part = pairs[start : start + AHEAD]
            try:
                rows = self._rows.many(sorted(number(name) for name, _ in part if small(name)))
            except (OSError, ChestError):
                rows = {}
            for name, value in part:
                if small(name):
                    yield self._same(rows.get(number(name)), value, dumper)
                else:
                    yield self._same_file(name, value)

    def _same_file(self, name: str, value: Any) -> bool:
        try:
            return self._files.same(name, value)
        except Exception:
            return False

    def _same(self, data: bytes | None, value: Any, dumper: _Dumper) -> bool:
        if data is None:
            return False
        dumper.limit = len(data) + 1
        try:
            return dumper.dumped(value) == data or self._codec.same(value, io.BytesIO(data))
        except Exception:
            return False  # it can no longer be dumped

    def size(self, name: str) -> int:
        """Bytes that the file or row has, 0 if it is gone.  One ``stat``, or one SELECT."""
        return next(self.sizes([name]))

    def mark(self, name: str) -> int | None:
        """What tells the file ``name`` from later ones of that name; `None` for a row, as its name has one row only."""
        return None if small(name) else self._files.mark(name)

    def sizes(self, names: Sequence[str]) -> Iterator[int]:
        """The `size` of each; those of rows come from the file many at a time."""
        for start in range(0, len(names), AHEAD):
            part = names[start : start + AHEAD]
            rows = self._rows.lengths(sorted(number(name) for name in part if small(name)))
            for name in part:
                yield rows.get(number(name), 0) if small(name) else self._files.size(name)

    # Between chests, and away.

    def link(self, key: K, store: Any, name: str, trusted: Callable[[], bool]) -> str:
        """A second name, for ``key``, of a file of another store; of a row it is a copy.  `OSError` where that cannot
        be, as for a row where this store has none of its own."""
        if not small(name):
            return self._files.link(key, store, name, trusted)
        if not self._limit or not isinstance(store, Small):
            raise OSError(errno.EXDEV, "rows are copied from one file of small values to another only", self.path(name))
        data = store._rows.one(number(name))
        if not trusted():
            raise Stale(store.path(name))
        if data is None:
            raise store._gone(name)
        return f"{SMALL}/{self._rows.insert([data])}"

    def remove(self, names: Iterable[str]) -> None:
        """Remove files and rows.  One that is gone already is as well.  A few rows wait for the next transaction."""
        files = []
        for name in names:
            if small(name):
                self._spent.append(number(name))
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

    def leftovers(self, named: Callable[[], Iterable[str]]) -> list[str]:
        """The rows of processes that died, but for those in ``named()``, the names that the newest index gives.

        ``named`` is asked after it was found who is dead.  What a process that lives has not committed yet is none.
        """
        return [f"{SMALL}/{row}" for row in self._rows.leftovers(lambda: {number(n) for n in named() if small(n)})]

    def after_fork(self) -> None:
        """In a fork's child: what is to be removed is the parent's to remove; the connection was closed before."""
        self._spent.clear()
        self._files.after_fork()

    def close(self) -> None:
        """Let go of the file; the last process to do so takes SQLite's companions away."""
        self._remove_spent()
        self._rows.close()
        self._files.close()

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


class _Full(Exception):
    """There is more to write than was wanted."""


class _Dumper:
    """Dumps values one after another as a `Codec` does, and gives up on one as soon as it has ``limit`` bytes."""

    def __init__(self, codec: Codec, limit: int):
        self._codec = codec
        self._pieces = _Pieces()
        self._pickler = pickle.Pickler(self._pieces, 5, buffer_callback=self._pieces.in_line)
        self.limit = limit

    def dumped(self, value: Any) -> bytes | None:
        """The bytes of ``value``, or `None` if it is not small."""
        data = self._pickled(value) if self._codec.native else self._by_user(value)
        return data if data is not None and len(data) < self.limit else None

    def _pickled(self, value: Any) -> bytes | None:
        if type(value).__module__ == "numpy" and getattr(value, "nbytes", 0) >= self.limit:
            return None  # numpy would copy one that is not contiguous before any byte is written
        self._pieces.start(self.limit)
        try:
            self._pickler.dump(value)
        except _Full:
            return None
        finally:
            self._pickler.clear_memo()
        return b"".join(self._pieces.all)

    def _by_user(self, value: Any) -> bytes | None:
        file: Any = _Text(self.limit) if self._codec.mode == "t" else _Bytes(self.limit)
        try:
            self._codec.dump(value, file)
        except Exception:
            if file.full:
                return None
            raise
        if file.full:  # it took the error for one of its own
            return None
        data = file.getvalue()
        return data.encode("utf-8") if isinstance(data, str) else bytes(data)


class _Pieces:
    """The file of a pickler: takes its bytes up to a limit."""

    def start(self, limit: int) -> None:
        self.room = limit
        self.all: list[bytes] = []

    def write(self, data: Any) -> None:
        self.room -= len(data)
        if self.room <= 0:
            raise _Full
        self.all.append(data)

    def in_line(self, buffer: Any) -> bool:
        """Leaves the memory of an array in the pickle, unless that alone is too much: then it is not even copied."""
        if memoryview(buffer).nbytes >= self.room:
            raise _Full
        return True



class _Bytes(io.BytesIO):
    """A binary file in memory, up to a limit, that takes text as well, as all of chest's do."""

    def __init__(self, limit: int):
        super().__init__()
        self._limit = limit
        self.full = False

    def write(self, data: Any) -> int:
        data = data.encode("utf-8") if isinstance(data, str) else data
        if self.tell() + memoryview(data).nbytes >= self._limit:
            self.full = True
            raise _Full
        return super().write(data)


class _Text(io.StringIO):
    """A text file in memory, up to a limit."""

    def __init__(self, limit: int):
        super().__init__()
        self._limit = limit
        self.full = False

    def write(self, text: str) -> int:
        if self.tell() + len(text) >= self._limit:
            self.full = True
            raise _Full
        return super().write(text)


def number(name: str) -> int:
    """The id of the row that ``name`` names."""
    return int(name[len(SMALL) + 1 :])


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def _unnamed(written: Written) -> bool:
    return not written.name and written.error is None
