"""A chest looked at from outside: what its index names, what is there, and what of it can be read.

Nothing here makes a directory or commits; only `Inspection.drop` and `Inspection.remove` take anything away.  Values
are loaded by `Inspection.faults` alone, and without running code of a chest that is not trusted.
"""
from __future__ import annotations

import importlib
import io
import json
import os
import sys
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, NamedTuple

from chest.cli.describe import HEAD, UNKNOWN, kind, unpacked
from chest.core import Chest
from chest.errors import ChestError, DamagedError
from chest.index.format import written_by
from chest.index.keysfile import KEYS
from chest.serialize.aligned import MARK, read_layout
from chest.serialize.bounds import Refused
from chest.storage import system
from chest.storage.base import CRC, OFFSET, PACK, Ref
from chest.storage.locks import directory_lock
from chest.storage.packs import FOLDER, idle
from chest.storage.store import Store
from chest.storage.tree import Tree

__all__ = ["Fault", "Inspection", "refused"]


class Fault(NamedTuple):
    """A key whose value was not loaded: it is ``lost`` for certain, ``refused`` as its code is not run, or neither."""

    key: Hashable
    file: str
    why: str
    lost: bool
    refused: bool


def refused(error: BaseException | None) -> bool:
    """Is this, or what it explains, the refusal to run what a chest names that is not trusted?"""
    return error is not None and (isinstance(error, Refused) or refused(error.__cause__))


class Inspection:
    """One chest as it was committed when this was made; ``load`` and ``open`` are those that it was written with.

    `ChestError` where there is no chest.  Cost: one reading of the index.
    """

    def __init__(self, path: str, trusted: bool, load: Callable[..., Any] | None = None,
                 open: Callable[..., Any] | None = None):
        self.url = path if "://" in path else ""
        self._tree = Tree(os.path.abspath(path))
        if self.url:
            self._store = Store(path, {})
        self.trusted = trusted
        self._settings = {"path": path, "trusted": trusted, **self._format(path, load, open)}
        self.chest: Chest[Any, Any] = Chest(flag="r", mmap_mode=None, **self._settings)
        self.path, self.close = self.chest.path, self.chest.close
        self._state = self.chest._engine.state
        self._storage, self._codec = self._state.storage, self._state.storage.codec
        self.size = self._storage.size
        self.refs: dict[Any, Ref] = {key: ref for key, ref in self._state.index.refs.items() if ref is not None}

    def _format(self, path: str, load: object, open: object) -> dict[str, Any]:
        """The keywords with which the index was written, as far as they are not given and its first bytes tell them.

        Pickle and json are known, both also behind gzip, bz2 and xz.
        """
        try:
            packed, head = unpacked(self._read(KEYS))
        except FileNotFoundError:
            raise ChestError(f"{path} is not a chest: there is no index {KEYS} in it") from None
        except ValueError as error:
            raise ChestError(f"the index of {path} cannot be read: {error}") from None
        found: dict[str, Any] = {"load": load} if load else {}
        if open or packed:
            found["open"] = open or importlib.import_module({"xz": "lzma"}.get(packed, packed)).open
        if head.lstrip().startswith(b"["):
            return {"dump": json.dump, "load": json.load, "mode": "t", **found}
        what = kind(io.BytesIO(head), len(head))
        if not load and not head.startswith(b"\x80") and not what.startswith("list"):
            raise ChestError(f"the index of {path} cannot be read: its format is {what}; give --load and --open")
        return found

    def _open(self, name: str) -> io.BufferedReader:
        opened: list[int] = []
        self._tree.open(name, system.READ, opened)
        return io.BufferedReader(io.FileIO(opened[0]))

    def _read(self, name: str, start: int = 0, size: int = HEAD) -> bytes:
        """The bytes there, fewer at the end of the file.  `OSError` if it is gone, a link, or not regular."""
        if self.url:
            return self._store.read(name, start, start + size)
        with self._open(name) as file:
            file.seek(start)
            return file.read(size)

    def _value(self, ref: Ref, most: int = sys.maxsize) -> bytes:
        start = 0 if isinstance(ref, str) else ref >> OFFSET & (1 << PACK - OFFSET) - 1
        return self._read(self.file(ref), start, min(self.size(ref) or 1, most))

    def file(self, ref: Ref) -> str:
        """Where a value lies, below the path of the chest."""
        return ref if isinstance(ref, str) else f"{FOLDER}/{ref >> PACK:010x}"

    def kind(self, ref: Ref) -> str:
        """The kind of a value as far as it can be told unloaded.  Cost: a ``stat``, and up to 64 kB read."""
        size = self.size(ref)
        try:
            if self.url or isinstance(ref, int) or not self._codec.native:
                return kind(io.BytesIO(self._value(ref, HEAD)), size if size <= HEAD else -1)
            with self._open(ref) as file:
                layout = read_layout(file.fileno(), size)
                return kind(file, layout.stop if layout else size)
        except FileNotFoundError:
            return "gone"
        except DamagedError:
            return "damaged"
        except OSError:
            return UNKNOWN

    def index(self) -> tuple[int, str]:
        """The size of the index in bytes, and who wrote it."""
        writer = written_by(self._read(KEYS, size=260))
        return (self._store.ask("info", KEYS)["size"] if self.url else self._tree.size(KEYS),
                f"chest {writer[1]} (format {writer[0]})" if writer else "chest 0.2.3, or a dump= of your own")

    def leftovers(self) -> Iterator[tuple[str, int, bool]]:
        """Files that no index names, with their bytes, and whether it is certain that a chest wrote them.

        Another process that has the chest open may commit them yet.  None for a URL: no writer's life shows there.
        """
        named = {KEYS, *map(self.file, self.refs.values())}
        for name in () if self.url else self._files(""):
            packed = name.startswith(FOLDER + "/")
            if name not in named and (not packed or idle(self._tree, name)):
                yield name, self._tree.size(name), packed or self._is_ours(name)

    def _files(self, folder: str) -> Iterator[str]:
        """The names of all files; folders that begin with a dot are not chest's, but for that of its packs."""
        for entry in sorted(os.scandir(self._tree.path(folder)), key=lambda entry: entry.name):
            name = folder + entry.name
            if not entry.is_dir(follow_symlinks=False):
                yield name
            elif not entry.name.startswith(".") or name == FOLDER:
                yield from self._files(name + "/")

    def _is_ours(self, name: str) -> bool:
        """A file with the mark of chest's own dump, or the next index that a commit was killed over; and no link."""
        try:
            return self._read(name).startswith(MARK) or name == KEYS + "~"
        except OSError:
            return False

    def remove(self, leftovers: Iterable[str]) -> int:
        """Remove files that the newest index still does not name; returns how many were."""
        count = 0
        with directory_lock(self.path):
            self._state.refresh()
            named = {self.file(ref) for ref in self._state.index.refs.values() if ref is not None}
            for name in set(leftovers) - named:
                packed = name.startswith(FOLDER + "/")
                count += idle(self._tree, name, remove=True) if packed else self._tree.unlink(name)
        return count

    def faults(self) -> Iterator[Fault]:
        """Load every value, one after another; what stands in the way of those that cannot be."""
        for key, ref in self.refs.items():
            try:
                self._storage.load(ref)
            except Exception as error:  # whatever code of the value's class raises
                damage = self._damage(ref)
                needs_trust = not damage and not self.trusted and refused(error)
                why = f"not loaded: needs --trust ({error})" if needs_trust else f"{type(error).__name__}: {error}"
                yield Fault(key, self.file(ref), damage or why, bool(damage), needs_trust)

    def _damage(self, ref: Ref) -> str:
        """What proves that nobody will ever load this value; '' if nothing does, such as an error of its class."""
        try:
            data = self._value(ref)
            if isinstance(ref, int) and zlib.crc32(data) != ref & CRC:
                return "the checksum of the record differs"
            layout = read_layout(data, len(data)) if self._codec.native and isinstance(ref, str) else None
            if layout:
                layout.verify()
        except FileNotFoundError:
            return "its file is gone"
        except DamagedError as damage:
            return str(damage)
        except (OSError, MemoryError):
            pass
        return ""

    def drop(self, keys: Iterable[Hashable]) -> int:
        """Delete keys, but for those that another process gave a new value meanwhile; returns how many were."""
        count = 0
        with Chest(flag="w", **self._settings) as chest:
            for key in keys:
                if chest._engine.state.index.refs.get(key) == self.refs[key]:
                    del chest[key]
                    count += 1
        return count
