"""From what the user asks for to the parts of a handle: where values lie, and what keeps them."""
from __future__ import annotations

import errno
import os
import stat
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from chest.engine.state import State
from chest.index import KEYS, Index, Names
from chest.serialize import Codec
from chest.storage.directory import Directory
from chest.storage.keysfile import KeysFile
from chest.storage.locks import check_file_system

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
    min_file_size: int | None
    durable: bool
    trusted: bool
    flag: str
    storage_options: dict[str, Any] | None


def _full_path(path: str | os.PathLike[str] | None) -> str:
    """``path`` as it stands from now on, wherever the process goes; a new temporary directory for `None`."""
    if path is None:
        import tempfile

        return tempfile.mkdtemp(prefix="chest-")
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise TypeError(f"path is a str or os.PathLike of str, not {path!r}")
    path = os.fspath(path)
    if not path:
        raise ValueError("path is empty: name a directory, such as '.', or leave it out for a temporary one")
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def _warn_of_others(path: str) -> None:
    """A warning, once for each path, where others can put pickles that are about to be run."""
    if not hasattr(os, "getuid") or sys.platform == "emscripten":  # in a browser there is nobody else
        return
    status = os.stat(path)
    open_to_all = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
    if path not in _warned and (open_to_all or status.st_uid not in (0, os.getuid())):
        _warned.add(path)
        who = "everybody" if open_to_all else f"the user {status.st_uid}"
        warnings.warn(f"{path} can be written by {who}, who can make this program run code by a pickle: open it with "
                      f"trusted=False, or change its owner or mode", RuntimeWarning, stacklevel=5)


_warned: set[str] = set()


def _check_settings(settings: Settings) -> None:
    if settings.flag not in ("r", "w", "c", "n"):
        raise ValueError(f"flag is 'r' (read only), 'w' (must exist), 'c' (made if needed) or 'n' (new and empty), "
                         f"not {settings.flag!r}")
    for name in ("dump", "load", "open", "key_to_filename", "on_miss", "on_overflow"):
        if not callable(getattr(settings, name)):
            raise TypeError(f"{name} is a function, not {getattr(settings, name)!r}")


def open_parts(asked: str | os.PathLike[str] | None, settings: Settings, available: float) -> State[Any]:
    """The parts of the chest at the path ``asked`` for, with everything read that was committed there."""
    _check_settings(settings)
    codec = Codec(settings.dump, settings.load, settings.open, settings.mode, settings.mmap_mode, settings.trusted,
                  settings.durable)
    names = Names(settings.key_to_filename)
    if asked is None and settings.flag in "rw":
        raise ValueError(f"flag={settings.flag!r} says that the chest is there already; give its path=")
    path = _full_path(asked)
    storage: Any
    keys: Any
    if "://" in path:  # for fsspec
        from chest.storage.remote import Remote

        storage = Remote(path, settings.storage_options, codec, names)
        keys = storage.keys
        is_there = keys.changed()  # as none was read
    elif settings.storage_options is not None:
        raise ValueError(f"storage_options are for a path that is a URL, such as s3://bucket/run, not for {path}")
    else:
        storage = Directory(path, codec, names, settings.open_many)
        keys = KeysFile(path, codec)
        is_there = os.path.lexists(os.path.join(path, KEYS))
    if settings.flag in "rw" and not is_there:
        raise FileNotFoundError(errno.ENOENT, f"there is no chest (flag={settings.flag!r} makes none)", path)
    if not storage.remote:
        check_file_system(path, settings.flag != "r")
        if is_there and settings.trusted:
            _warn_of_others(path)
    if settings.flag != "r":
        storage.make()
    index: Index[Any] = Index(keys, names)
    looks = settings.writeback and settings.flag != "r"  # a change that cannot be saved is not looked for
    state: State[Any] = State(index, storage, looks, available)
    if settings.flag == "n" and is_there:
        state.erase()
        storage.make()
    state.refresh()
    return state
