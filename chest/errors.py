"""The three exceptions of chest; a missing key or file is an ordinary ``KeyError``, the system's refusals ``OSError``."""
from __future__ import annotations

__all__ = ["ChestError", "DumpError", "LoadError"]


class ChestError(Exception):
    """Something that only a chest can report; the two below say what."""


class DumpError(ChestError):
    """A value cannot be serialised.  It stays in memory, and nothing that was saved before is touched."""


class LoadError(ChestError):
    """A value's file, or the index ``.keys``, cannot be read back.  Nothing is changed on disk."""
