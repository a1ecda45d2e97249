"""A chest's directory looked at from outside: what the index names, what is there, and what of it can be read.

Nothing here makes a directory, commits or removes a value that an index names.  To read the index is to unpickle the
keys; values are unpickled by `Survey.check` alone.
"""
from __future__ import annotations

import gzip
import json
import os
import pickle
import stat
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

from chest import arrays
from chest.codec import Codec
from chest.errors import ChestError
from chest.files import Files
from chest.index import Index
from chest.keysfile import KEYS, KeysFile, written_by
from chest.kinds import UNKNOWN, kind, kind_of_file
from chest.names import Name, Names
from chest.rows import SMALL, Rows
from chest.small import Small

__all__ = ["Entry", "Fault", "Leftover", "Survey", "codec_of"]


class Entry(NamedTuple):
    """One key: its file's name, the bytes on disk, and the kind of its value as far as it can be told unloaded."""

    key: Hashable
    name: Name
    nbytes: int
    kind: str


class Fault(NamedTuple):
    """A key whose value cannot be read; ``lost`` if nobody ever will, as its file is gone, empty or torn."""

    key: Hashable
    name: Name
    why: str
    lost: bool


class Leftover(NamedTuple):
    """A file or row that no index names; ``ours`` if it is certain that a chest wrote it."""

    name: Name
    nbytes: int
    ours: bool


def codec_of(path: str) -> Codec:
    """The settings with which the index in ``path`` was written, as far as its first bytes tell them.

    Pickle and json are known, both also behind gzip.
    """
    with open(os.path.join(path, KEYS), "rb") as file:
        head = file.read(64)
    opener: Callable[..., Any] = open
    if head.startswith(b"\x1f\x8b"):
        opener = gzip.open
        with gzip.open(os.path.join(path, KEYS), "rb") as unpacked:
            head = unpacked.read(64)
    if head.lstrip().startswith(b"["):
        return Codec(json.dump, json.load, opener, "t")
    return Codec(open=opener)


class Survey:
    """One chest on a local disk, as it was committed when this was made.

    `ChestError` where there is no chest.  Cost: one reading of the index.
    """

    def __init__(self, path: str, codec: Codec | None = None):
        self.path = os.path.abspath(path)
        self._index = os.path.join(self.path, KEYS)
        if not os.path.isfile(self._index):
            raise ChestError(f"{path} is not a chest: there is no index {self._index}")
        self.codec = codec_of(self.path) if codec is None else codec
        self.names = self._committed()
        files: Files[Any] = Files(self.path, self.codec, Names(), False)
        self._store: Small[Any] = Small(files, self.path, self.codec, False, 0)
        self._rows = Rows(self.path, False, 4096)

    def _committed(self) -> dict[Any, Name]:
        index: Index[Any] = Index(KeysFile(self.path, self.codec, False), Names())
        try:
            index.refresh()
            return {key: name for key, name in index.names.items() if name is not None}
        finally:
            index.close()

    def close(self) -> None:
        """Let go of the files."""
        self._rows.close()
        self._store.close()

    def version(self) -> str:
        """Who wrote the index."""
        with open(self._index, "rb") as file:
            writer = written_by(file.read(260))
        return f"chest {writer[1]} (format {writer[0]})" if writer else "chest 0.2.3, or a dump= of your own"

    # What there is.

    def entries(self, kinds: bool = True) -> Iterator[Entry]:
        """Each key, in the order of insertion.  Cost: one ``stat`` each, and with ``kinds`` up to 64 kB read."""
        for key, name in self.names.items():
            yield Entry(key, name, self._store.size(name), self._kind(name) if kinds else UNKNOWN)

    def _kind(self, name: Name) -> str:
        try:
            if isinstance(name, int):
                row = self._rows.one(name)
                return UNKNOWN if row is None else kind(row)
            with open(self._full(name), "rb") as file:
                return kind_of_file(file)
        except OSError:
            return "gone"

    def leftovers(self) -> Iterator[Leftover]:
        """What no index names.  While another process has the chest open, that may be what it has not committed yet."""
        named = {*self.names.values(), KEYS}
        for name in self._files(""):
            if name not in named and name.partition("-")[0] != SMALL:
                found = os.lstat(self._full(name))
                yield Leftover(name, found.st_size, self._is_ours(name, found))
        for row in self._store.leftovers(lambda: self._committed().values()):
            yield Leftover(row, self._store.size(row), True)

    def _full(self, name: str) -> str:
        return os.path.join(self.path, *name.split("/"))

    def _files(self, folder: str) -> Iterator[str]:
        """The names of all files; folders that begin with a dot are not chest's, and not looked into."""
        for entry in sorted(os.scandir(self._full(folder)), key=lambda entry: entry.name):
            name = folder + entry.name
            if not entry.is_dir(follow_symlinks=False):
                yield name
            elif not entry.name.startswith("."):
                yield from self._files(name + "/")

    def _is_ours(self, name: str, found: os.stat_result) -> bool:
        """A file with the mark of the default ``dump``, or the next index that a commit was killed over."""
        if not stat.S_ISREG(found.st_mode):
            return False
        try:
            with open(self._full(name), "rb") as file:
                return name == KEYS + "~" or arrays.marked(file.read(len(arrays.MARK)))
        except OSError:
            return False

    def remove(self, leftovers: list[Leftover]) -> list[Leftover]:
        """Remove leftovers that are ours and that the newest index still does not name; returns them."""
        with KeysFile(self.path, self.codec, False).gate:
            named = set(self._committed().values())
            gone = [one for one in leftovers if one.ours and one.name not in named]
            self._store.remove([one.name for one in gone])
        self._store.close()
        return gone

    # What can be read.

    def load(self, name: Name) -> Any:
        """The value in a file or row."""
        loaded = next(iter(self._store.load([name], lambda: True)))
        if loaded.error is not None:
            raise loaded.error
        return loaded.value

    def check(self, name: Name, key: Hashable) -> Fault | None:
        """Load one value; what stands in the way, if anything does."""
        try:
            self.load(name)
        except FileNotFoundError:
            return Fault(key, name, "its file is gone", True)
        except Exception as error:
            cause = error.__cause__ or error
            return Fault(key, name, f"{type(cause).__name__}: {cause}", self._is_lost(name, cause))
        return None

    def _is_lost(self, name: Name, cause: BaseException) -> bool:
        """Would anybody fail?  Not if a library is missing here, or if the file may be in a format of the user's."""
        if isinstance(cause, (ImportError, AttributeError, MemoryError, OSError)):
            return False
        if isinstance(name, int):
            return isinstance(cause, (pickle.UnpicklingError, EOFError))
        with open(self._full(name), "rb") as file:
            head = file.read(len(arrays.MARK))
        return arrays.marked(head) or not head.strip(b"\0") or arrays.MARK.startswith(head)
