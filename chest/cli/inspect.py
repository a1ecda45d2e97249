"""A chest looked at from outside: what its index names, what is there, and what of it can be read.

Nothing here makes a directory.  Values are loaded by `Inspection.faults` alone, and without running code of a chest
that is not trusted.
"""
from __future__ import annotations

import importlib
import io
import json
import os
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import partial
from typing import Any

from chest.cli.describe import HEAD, UNKNOWN, kind, unpacked
from chest.core import Chest
from chest.errors import ChestError, DamagedError
from chest.index import KEYS, key_checksum
from chest.index.format import written_by
from chest.serialize.aligned import read_layout
from chest.serialize.bounds import Refused
from chest.storage import system
from chest.storage.base import CRC, PACKS, Ref, file_of, offset_of, record_size
from chest.storage.packs import idle
from chest.storage.store import Store
from chest.storage.tree import Tree

__all__ = ["LOST", "UNREADABLE", "UNTRUSTED", "Inspection", "refused"]

# Verdicts on a value that was not loaded.
LOST, UNREADABLE, UNTRUSTED = "damaged", "unreadable here", "not loaded without --trust"


def refused(error: BaseException | None) -> bool:
    """Is this, or what it explains, the refusal to run what a chest names that is not trusted?"""
    return error is not None and (isinstance(error, Refused) or refused(error.__cause__))


def _bounded(opener: Callable[..., Any], path: str, mode: str) -> Any:
    """A file that ``opener`` opens, read as a whole; `Refused` if it unpacks to 64 MB and 100 times its size."""
    file = opener(path, mode=mode)
    if "r" not in mode:
        return file
    most = (1 << 26) + 100 * os.path.getsize(path)
    with file:
        content = file.read(most)
    if len(content) >= most:
        raise Refused(f"{path} unpacks to more than 100 times its size")
    return io.StringIO(content) if isinstance(content, str) else io.BytesIO(content)


class Inspection:
    """One chest as it was committed when this was made; ``load`` and ``open`` are those that it was written with.

    Where they are not given, the first bytes of the index tell: pickle or json, also behind gzip, bz2 and xz.
    `ChestError` where there is no chest.  Cost: one reading of the index.
    """

    def __init__(self, path: str, trusted: bool, load: Callable[..., Any] | None = None,
                 open: Callable[..., Any] | None = None):
        self.url = path if "://" in path else ""
        self._store = Store(path, {}) if self.url else None
        self._tree = Tree(os.path.abspath(path))
        try:
            packed, head = unpacked(self._read(KEYS, HEAD))
        except FileNotFoundError:
            raise ChestError(f"{path} is not a chest: there is no index {KEYS} in it") from None
        self._settings: dict[str, Any] = {"path": path, "trusted": trusted}
        if head.lstrip().startswith(b"["):
            self._settings.update(dump=json.dump, load=json.load, mode="t")
        if load:
            self._settings["load"] = load
        if open or packed not in ("", "zlib"):
            opener = open or importlib.import_module({"xz": "lzma"}.get(packed, packed)).open
            self._settings["open"] = opener if trusted else partial(_bounded, opener)
        self.handle: Chest[Any, Any] = Chest(flag="r", mmap_mode=None, **self._settings)
        state = self.handle._engine.state
        self.size, self._load = state.storage.size, state.storage.load
        self._native = state.storage.codec.native
        self.refs: dict[Any, Ref] = {key: ref for key, ref in state.index.refs.items() if ref is not None}

    def _open(self, name: str) -> io.BufferedReader:
        """A local file; `OSError` if it is gone, a link, or not regular."""
        with system.Opened() as opened:
            self._tree.open(name, system.READ, opened)
            return open(os.dup(opened[0]), "rb")

    def _read(self, ref: Ref, most: int = -1) -> bytes:
        """The bytes of a record, or those of a file up to ``most``."""
        start = 0
        if isinstance(ref, int):
            start, most = offset_of(ref), record_size(ref)
        if self._store is not None:
            return self._store.read(file_of(ref), start, start + most if most >= 0 else None)
        with self._open(file_of(ref)) as file:
            file.seek(start)
            return file.read(most)

    def kind(self, ref: Ref) -> str:
        """The kind of a value as far as it can be told unloaded.  Cost: a ``stat``, and up to 64 kB read."""
        size = self.size(ref)
        try:
            if self.url or isinstance(ref, int):
                return kind(io.BytesIO(self._read(ref, HEAD)), size if size <= HEAD else -1)
            with self._open(ref) as file:
                layout = read_layout(file.fileno(), size) if self._native else None
                return kind(file, layout.stop if layout else size)
        except FileNotFoundError:
            return "gone"
        except DamagedError:
            return "damaged"
        except OSError:
            return UNKNOWN

    def index(self) -> tuple[int, str]:
        """The size of the index in bytes, and who wrote it."""
        data = self._read(KEYS)
        writer = written_by(data)
        return len(data), f"chest {writer[1]} (format {writer[0]})" if writer else "chest 0.2.3, or a dump= of your own"

    def leftovers(self) -> Iterator[tuple[str, int]]:
        """Files that no key's value is in, with their bytes; none for a URL, and none that a living writer packs into.

        Another process that has the chest open may commit them yet.  Folders that begin with a dot are not chest's.
        """
        named = {KEYS, KEYS + "~", *map(file_of, self.refs.values())}
        for folder, folders, names in os.walk("" if self.url else self._tree.root):
            folders[:] = [one for one in sorted(folders) if one[0] != "." or (one, folder) == (PACKS, self._tree.root)]
            for name in sorted(names):
                name = os.path.relpath(os.path.join(folder, name), self._tree.root).replace(os.sep, "/")
                if name not in named and (not name.startswith(PACKS + "/") or idle(self._tree, name)):
                    yield name, self._tree.size(name)

    def faults(self) -> Iterator[tuple[Hashable, str, str, str]]:
        """Load every value, one after another.  Of those that cannot be: key, file, verdict, and what is wrong."""
        for key, ref in self.refs.items():
            try:
                self._load(ref, key_checksum(key))
            except Exception as error:  # whatever code of the value's class raises
                why = self._damage(ref, key_checksum(key))
                verdict = LOST if why else UNTRUSTED if refused(error) else UNREADABLE
                yield key, file_of(ref), verdict, why or f"{type(error).__name__}: {error}"

    def _damage(self, ref: Ref, owner: int) -> str:
        """What proves that nobody will ever load this value; '' if nothing does, such as an error of its class."""
        try:
            data = self._read(ref)
            if isinstance(ref, int):
                return "" if zlib.crc32(data) == ref & CRC else "the checksum of the record differs"
            layout = read_layout(data, len(data), owner) if self._native else None
            if layout:
                layout.verify(data)
        except FileNotFoundError:
            return "its file is gone"
        except DamagedError as damage:
            return str(damage)
        except (OSError, MemoryError):
            pass
        return ""

    def drop(self, keys: Iterable[Hashable]) -> int:
        """Delete keys, but for those that another process gave a new value meanwhile; returns how many were.

        The commit also removes the leftovers of writers that were killed.
        """
        with Chest(flag="w", **self._settings) as chest:
            refs = chest._engine.state.index.refs
            same = [key for key in keys if refs.get(key) == self.refs[key]]
            for key in same:
                del chest[key]
            chest.flush()
        return len(same)
