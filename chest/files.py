"""A directory of value files, each written once: created under a free name, read, compared, linked, removed."""
from __future__ import annotations

import errno
import io
import os
import stat
import time
from collections.abc import Hashable, Iterable, Iterator
from typing import IO, Any, Callable, Generic, NamedTuple, TypeVar

from chest import system
from chest.aligned import lend_a_hand
from chest.codec import Codec
from chest.errors import LoadError
from chest.keysfile import sync_file
from chest.log import log
from chest.names import Name, Names

__all__ = ["Files", "Loaded", "Stale", "Written"]

K = TypeVar("K", bound=Hashable)


class Stale(Exception):
    """A file was opened under a name that may have changed hands: look the key up anew."""


class Written(NamedTuple):
    """One value's way out: the new file's name, bytes and mark, or what went wrong."""

    name: Name
    nbytes: int
    error: Exception | None = None
    mark: int | None = None


class Loaded(NamedTuple):
    """One value's way back: the value and the bytes and mark of its file, or what went wrong.

    The mark tells the file from all that had its name before or will have it after.  It is `None` where names are not
    used again, as those of rows.
    """

    value: Any
    nbytes: int
    error: Exception | None = None
    mark: int | None = None


class Files(Generic[K]):
    """The value files of one directory, as one handle writes and reads them.

    ``open_many``, if given, opens a list of paths at once for a `load` of several values, as in chest 0.2.3.
    """

    grain = 0  # no value is so small that it would rather leave memory in a crowd
    remote = False  # its files are on this machine
    crowd = 1  # values of a commit that are written in one go: progress is told after each
    ahead = 1  # values that are worth loading before they are asked for

    def __init__(self, directory: str, codec: Codec, names: Names[K], durable: bool,
                 open_many: Callable[..., Any] | None = None):
        self._directory = directory
        self._prefix = os.path.join(directory, "")
        self._codec = codec
        self._names = names
        self._durable = durable
        self._open_many = open_many

    def path(self, name: str) -> str:
        """The full path of the file ``name``."""
        return self._prefix + (name if os.sep == "/" else name.replace("/", os.sep)) if name else self._directory

    # Out.

    def write(self, items: Iterable[tuple[K, Any]]) -> Iterator[Written]:
        """Write each value to a new file of its own.  Nothing that stands in the directory is ever touched."""
        for key, value in items:
            yield self._write(key, value)

    def _write(self, key: K, value: Any) -> Written:
        name = ""
        try:
            name, file = self._create(key)
            with file:
                self._codec.dump(value, file)
                by_descriptor = _BY_DESCRIPTOR and type(file) is io.FileIO and not file.closed
                if by_descriptor:  # which saves the system the way to the file
                    size, mark = _finished(file.fileno())
            if not by_descriptor:
                size, mark = _finished(self.path(name))
            if self._durable:
                self._settle(name)
            return Written(name, size, None, mark)
        except BaseException as error:  # a half-written file must not stay, whatever stopped us
            if name:
                self.remove([name])
            if not isinstance(error, Exception):
                raise
            return Written(name, 0, error)

    def _create(self, key: K) -> tuple[str, IO[Any]]:
        """A new file for ``key``, under its reserved name if it has one, else under the next free one."""
        reserved = self._names.reserved.get(key)
        if reserved is not None:
            try:
                self._folders(reserved)
                return reserved, self._codec.create(self.path(reserved))
            except OSError:
                pass  # somebody took the name, or a folder of its path, meanwhile
        opened: list[IO[Any]] = []

        def usable(path: str, last: bool) -> bool:
            if not last:
                return self._folder(path)
            if path in self._names.taken:
                return False
            try:
                opened.append(self._codec.create(self.path(path)))
            except FileExistsError:
                log("warning", "%s is there already, and no index names it: it is left alone", self.path(path))
                return False
            return True

        while True:
            try:
                return self._names.next_free(key, usable), opened[0]
            except FileNotFoundError:  # another process removed the folder, empty just then: make it again
                if not os.path.isdir(self._directory):
                    raise

    def _folder(self, name: str) -> bool:
        """Is there a folder ``name`` now?  A link to one elsewhere does not count: we write inside the chest only."""
        try:
            os.mkdir(self.path(name))
            if self._durable:
                system.sync_directory(os.path.dirname(self.path(name)))
        except FileExistsError:
            return stat.S_ISDIR(os.lstat(self.path(name)).st_mode)
        return True

    def _folders(self, name: str) -> None:
        parts = name.split("/")[:-1]
        for depth in range(len(parts)):
            self._folder("/".join(parts[: depth + 1]))

    def _settle(self, name: str) -> None:
        """Make a new file survive a loss of power: its content, and its name in its folder."""
        sync_file(self.path(name))
        system.sync_directory(os.path.dirname(self.path(name)))

    def reserve(self, key: K) -> str:
        """The name that the next file of ``key`` will have, as far as anyone can tell now; kept for the key."""
        def usable(path: str, last: bool) -> bool:
            here = self.path(path)
            if last:
                return path not in self._names.taken and not os.path.lexists(here)
            return not os.path.lexists(here) or stat.S_ISDIR(os.lstat(here).st_mode)

        if key not in self._names.reserved:
            self._names.reserve(key, self._names.next_free(key, usable))
        return self._names.reserved[key]

    # Back.

    def load(self, names: Iterable[str], trusted: Callable[[], bool], workers: int = 1) -> Iterator[Loaded]:
        """The values in the files ``names``, in order, one after another as they are asked for.

        With several ``workers`` all are loaded now, by so many threads.  ``trusted()`` is asked when a file is open:
        only then can its name not change hands any more.
        """
        names = list(names)
        if self._open_many is not None and len(names) > 1:
            return self._load_many(names, trusted)
        if workers < 2 or len(names) < 2:
            return (self.load_one(name, trusted) for name in names)
        from concurrent.futures import ThreadPoolExecutor  # only here: it takes as long to import as all of chest

        with ThreadPoolExecutor(min(workers, len(names)), initializer=lend_a_hand) as pool:
            return iter(list(pool.map(lambda name: self.load_one(name, trusted), names)))

    def load_one(self, name: str, trusted: Callable[[], bool]) -> Loaded:
        """The value in the file ``name``."""
        try:
            with self._codec.reader(self.path(name)) as file:
                return self._read(name, file, trusted)
        except Exception as error:
            return Loaded(None, 0, error)

    def _load_many(self, names: list[str], trusted: Callable[[], bool]) -> Iterator[Loaded]:
        paths = [self.path(name) for name in names]
        assert self._open_many is not None
        with self._open_many(paths, mode="r" + self._codec.mode) as files:
            for name, file in zip(names, files):
                try:
                    yield self._read(name, file, trusted)
                except Exception as error:
                    yield Loaded(None, 0, error)

    def _read(self, name: str, file: IO[Any], trusted: Callable[[], bool]) -> Loaded:
        status = os.fstat(file.fileno()) if self._codec.local else None
        size, mark = sized(status) if status else self._look(name)
        if not trusted():
            raise Stale(name)
        try:
            return Loaded(self._codec.read(file, status), size, None, mark)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise LoadError(f"{self.path(name)} cannot be read ({type(error).__name__}: {error})") from error

    def same(self, pairs: Iterable[tuple[str, Any]]) -> Iterator[bool]:
        """For each name and value: does the file hold just what would be written for the value now?  What cannot be
        told, as the file is gone or cannot be read, is not the same."""
        for name, value in pairs:
            try:
                with self._codec.reader(self.path(name)) as file:
                    yield bool(self._codec.same(value, file))
            except Exception:
                yield False

    def size(self, name: str) -> int:
        """Bytes that the file has, 0 if it is gone.  One ``stat``."""
        return self._look(name)[0]

    def sizes(self, names: Iterable[str]) -> Iterator[int]:
        """The `size` of each."""
        return map(self.size, names)

    def mark(self, name: str) -> int | None:
        """What tells the file ``name`` from others that had the name or will have it.  One ``stat``."""
        return self._look(name)[1]

    def _look(self, name: str) -> tuple[int, int | None]:
        try:
            return sized(os.stat(self.path(name)))
        except OSError:
            return 0, None

    # Between chests, and away.

    def link(self, key: K, store: Any, name: str, trusted: Callable[[], bool]) -> str:
        """A second name, for ``key``, of the file ``name`` of another store.  `OSError` where that cannot be."""
        source = store.path(name)

        def usable(path: str, last: bool) -> bool:
            if not last:
                return self._folder(path)
            if path in self._names.taken:
                return False
            try:
                os.link(source, self.path(path), follow_symlinks=False)
            except FileExistsError:
                return False
            return True

        linked = self._names.next_free(key, usable)
        if not trusted():
            self.remove([linked])
            raise Stale(source)
        if self._durable:
            self._settle(linked)
        return linked

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, and folders that this leaves empty.  One that is gone already is as well."""
        for name in names:
            try:
                os.unlink(self.path(name))
                while "/" in name:
                    name = name.rpartition("/")[0]
                    os.rmdir(self.path(name))
            except OSError:
                continue  # somebody else was quicker, or keeps something in the folder

    def after_fork(self) -> None:
        """Nothing here belongs to one process alone."""

    def close(self) -> None:
        """Nothing is held open."""

    def drop(self, names: Iterable[str]) -> None:
        """Remove these files, which are all that the chest has, and the directory, as `destroy` does."""
        self.remove(names)
        self.destroy()

    def destroy(self) -> None:
        """Remove the directory itself, if nothing of anyone else's is in it."""
        try:
            os.unlink(self.path(".keys~"))
        except OSError:
            pass
        try:
            os.rmdir(self._directory)
        except OSError:
            pass

    def clear_away(self) -> None:
        """Remove a temporary directory with all that is in it."""
        import shutil

        shutil.rmtree(self._directory, ignore_errors=True)

    def exists(self) -> bool:
        return os.path.isdir(self._directory)

    def make(self) -> None:
        """Make the directory, and those above it, where it is not there."""
        if self.exists():
            return
        new = missing(self._directory) if self._durable else []
        made = False
        while not made:
            try:
                os.makedirs(self._directory, exist_ok=True)
                made = True
            except FileExistsError:
                if os.path.isdir(self._directory) or not os.path.lexists(self._directory):
                    continue  # somebody dropped it just then
                raise NotADirectoryError(errno.ENOTDIR, "a chest is a directory, and this is a file; choose another "
                                         "path", self._directory) from None
        for folder in new:
            system.sync_directory(os.path.dirname(folder))


def _finished(file: int | str) -> tuple[int, int]:
    """What `sized` tells of a new file, by its descriptor or path, which is marked with the time of now: no two files
    that had one inode one after another were finished in the same nanosecond."""
    os.utime(file, ns=(time.time_ns(),) * 2)
    return sized(os.stat(file))


_BY_DESCRIPTOR = os.utime in os.supports_fd and os.stat in os.supports_fd


def sized(found: os.stat_result) -> tuple[int, int]:
    """The bytes of a file, and what tells it from others that had its name or will have it."""
    return found.st_size, hash((found.st_ino, found.st_size, found.st_mtime_ns))


def missing(folder: str) -> list[str]:
    """The directories that have to be made for ``folder`` to be there, in the order of their making."""
    above = os.path.dirname(folder)
    return [] if above == folder or os.path.isdir(folder) else [*missing(above), folder]
