"""What a chest did so far."""
from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["Stats"]


class Stats(NamedTuple):
    """Counts since this handle was made.

    Hits are values found in memory, or still held by the program after they left it; misses were loaded from disk;
    spills left memory to make room.  The bytes are those of values on disk.

    >>> stats = Stats(hits=3, misses=1)
    >>> stats.hits, stats['misses'], stats.hit_rate
    (3, 1, 0.75)
    """

    hits: int = 0
    misses: int = 0
    spills: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    @property
    def hit_rate(self) -> float:
        """The share of values that came from memory, between 0 and 1."""
        return self.hits / max(self.hits + self.misses, 1)

    def __getitem__(self, name: Any) -> Any:
        return getattr(self, name) if isinstance(name, str) else tuple.__getitem__(self, name)
