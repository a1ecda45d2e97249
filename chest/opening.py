"""From what the user asks for to the parts of a chest: where it is kept, and what keeps it."""
from __future__ import annotations

import os
from typing import Any, Callable, NamedTuple

from chest.codec import Codec
from chest.files import Files
from chest.index import Index
from chest.keysfile import KeysFile
from chest.life import Life
from chest.memory import Memory
from chest.names import Names
from chest.small import Small

__all__ = ["Settings", "open_parts"]


class Settings(NamedTuple):
    """The keywords of `Chest` that say how values are kept; a pickled handle carries them."""

    dump: Callable[[Any, Any], Any]
    load: Callable[[Any], Any]
    key_to_filename: Callable[[Any], str]
    on_miss: Callable[[Any], Any]
    on_overflow: Callable[[Any], Any]
    open: Callable[..., Any]
    open_many: Callable[..., Any] | None
    mode: str
    writeback: bool
    mmap_mode: str | None
    min_file_size: int
    durable: bool
    storage_options: dict[str, Any] | None


def is_url(path: str) -> bool:
    """Is ``path`` for fsspec?  ``s3://bucket/run`` is, and so is ``simplecache::s3://bucket/run``.

    >>> is_url('s3://bucket/run'), is_url('/data/run')
    (True, False)
    """
    return "://" in path


def _full_path(path: str | os.PathLike[str] | None) -> str:
    """``path`` as it stands from now on, wherever the process goes; a new temporary directory for `None`."""
    if path is None:
        import tempfile

        return tempfile.mkdtemp(prefix="chest-")
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise TypeError(f"path is a str or os.PathLike of str, not {path!r}")
    path = os.fspath(path)
    return path if is_url(path) else os.path.abspath(path)


def open_parts(asked: str | os.PathLike[str] | None, settings: Settings, available: float) -> Life[Any]:
    """The life of the chest at the path ``asked`` for, with everything read that was committed there."""
    codec = Codec(settings.dump, settings.load, settings.open, settings.mode, settings.mmap_mode).check()
    reserved: Names[Any] = Names(settings.key_to_filename)
    if not isinstance(settings.min_file_size, int) or settings.min_file_size < 0:
        raise ValueError(f"min_file_size is a number of bytes, 0 or more, not {settings.min_file_size!r}")
    path = _full_path(asked)
    store: Any
    keys: KeysFile
    if is_url(path):
        from chest import remote

        if settings.min_file_size:
            raise ValueError("min_file_size needs a local path, as small values share one SQLite file; leave it out")
        store, keys = remote.connect(path, settings.storage_options, codec, reserved, settings.writeback)
    elif settings.storage_options is not None:
        raise ValueError(f"storage_options are for a path that is a URL, such as s3://bucket/run, not for {path}")
    else:
        files = Files(path, codec, reserved, settings.durable, settings.open_many)
        store = Small(files, path, codec, settings.durable, settings.min_file_size)
        keys = KeysFile(path, codec, settings.durable)
    store.make()
    memory: Memory[Any] = Memory(settings.writeback, store.grain)
    life: Life[Any] = Life(codec, store, Index(keys, reserved), memory, available,
                           settings.on_miss, settings.on_overflow)
    life.refresh()
    return life
