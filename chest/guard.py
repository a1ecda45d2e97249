"""The guard of a connection to SQLite: one thread at a time, no finaliser in between, errors in chest's own words."""
from __future__ import annotations

import errno
import os
import threading

from chest.errors import LoadError
from chest.locks import shield

__all__ = ["PATIENCE", "Guard"]

PATIENCE = 60.0  # seconds to wait for another process that writes: a compaction of millions of rows takes some


class Guard:
    """``with guard:`` this thread alone uses the connection, no finaliser of a chest comes between, and what SQLite
    raises turns into errors that the rest of chest knows."""

    def __init__(self, path: str):
        self._path = path
        self.lock = threading.RLock()
        self.depth = 0

    def __enter__(self) -> None:
        shield.__enter__()
        self.lock.acquire()
        self.depth += 1

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self.depth -= 1
        self.lock.release()
        shield.__exit__()
        if kind is not None and kind.__module__ == "sqlite3":
            raise translated(str(error), self._path) from error


def translated(text: str, path: str) -> Exception:
    """What an error of SQLite means."""
    if "locked" in text or "busy" in text:
        return TimeoutError(errno.ETIMEDOUT, f"another process kept the small values busy for {PATIENCE:.0f} s", path)
    for words, number in (("full", errno.ENOSPC), ("readonly", errno.EACCES), ("unable to open", errno.EACCES)):
        if words in text:
            return OSError(number, f"{os.strerror(number)} ({text})", path)
    if "malformed" in text or "not a database" in text or "no such table" in text:
        return LoadError(f"the file of small values {path} is damaged, or not chest's ({text}); nothing was changed")
    return OSError(errno.EIO, text, path)
