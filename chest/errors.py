"""The three exceptions of chest.  A missing key or file is a ``KeyError``, what the system refuses an ``OSError``."""
from __future__ import annotations

from typing import Any

__all__ = ["ChestError", "DumpError", "LoadError", "changed_size", "explained", "file_is_gone", "uncommitted"]


class ChestError(Exception):
    """Something that only a chest can report; the two below say what."""


class DumpError(ChestError):
    """A value cannot be serialised.  It stays in memory, and nothing that was saved before is touched."""


class LoadError(ChestError):
    """A value's file, or the index ``.keys``, cannot be read back.  Nothing is changed on disk."""


def explained(error: Exception, key: Any, path: str, what: str, more: str = "") -> Exception:
    """``error`` with the key, the path and what to do; of the system's own class where the system refused."""
    if isinstance(error, ChestError):
        todo = "; open the chest with the load that wrote it, or set or delete the key" if what == "load" else ""
        again = type(error)(f"cannot {what} the value of {key!r}{more}: {error}{todo}")
        again.__cause__ = error.__cause__
        return again
    if isinstance(error, OSError) and error.errno is not None:
        kept = "; it stays in memory, and what was saved before is untouched" if what == "save" else ""
        return OSError(error.errno, f"cannot {what} the value of {key!r}{more}: {error.strerror}{kept}", path)
    text = (f"cannot save the value of {key!r}{more} in {path}: {type(error).__name__}: {error}; it stays in memory. "
            f"Set a value that can be dumped, delete the key, or open the chest with another dump=")
    explained = DumpError(text)
    explained.__cause__ = error
    return explained


def changed_size() -> RuntimeError:
    """What a dict says when keys come or go while one iterates."""
    return RuntimeError("chest changed size during iteration")


def file_is_gone(error: KeyError, key: Any) -> bool:
    """Does ``error`` say that the key's file is gone, and not that there was no such key just then?"""
    return error.args[0] is not key


def uncommitted(error: OSError, path: str) -> OSError:
    """``error``, for which the index could not be written, with its path and what is left."""
    return OSError(error.errno, f"cannot commit the index: {error.strerror}; nothing is lost in memory, and what was "
                                f"committed before is untouched", path)
