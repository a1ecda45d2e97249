"""Which values leave memory first: what the engine asks of a policy."""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable
from typing import Protocol, TypeVar

__all__ = ["Policy"]

K = TypeVar("K", bound=Hashable)


class Policy(Protocol[K]):
    """The order in which values leave memory.

    A policy does no I/O, holds no value and takes no lock: its caller holds the lock of the chest.  Any call may be
    interrupted (Ctrl-C, a finaliser that makes other calls) at any line; later calls do not raise for that, and `clear`
    followed by `put` for everything that is in memory makes the order right again.  Sizes are in bytes.
    """

    def put(self, key: K, size: int, dirty: bool) -> None:
        """The value of `key` was set (`dirty`: no file holds it, so that leaving costs a write) or loaded.  A use."""

    def put_many(self, keys: Iterable[K], sizes: Iterable[int], dirty: bool) -> None:
        """As `put` for each key and its size."""

    def used(self, keys: Iterable[K]) -> None:
        """Hits, in the order in which they came.  Keys that are unknown or cannot be hashed are passed over."""

    def saved(self, key: K) -> None:
        """A file holds the value now: to leave costs no write.  This is no use."""

    def choose(self, wanted: int, stay: Container[K]) -> list[K]:
        """The keys that are worth least, in order, whose sizes sum to at least `wanted`, or all that there are.

        None of them is in `stay`.  They are out of the order: the caller calls `leave` or `restore` for each.
        """

    def restore(self, keys: Iterable[K]) -> None:
        """Keys that were chosen stay after all, as they were.  Those that were deleted or put since are passed over."""

    def leave(self, key: K) -> None:
        """The value left memory, or cannot leave: it is out of the order.  Its history is remembered for later."""

    def forget(self, key: K) -> None:
        """The key was deleted, and its history goes too."""

    def resize(self, key: K, size: int) -> None:
        """The value takes up another number of bytes than was noted.  This is no use."""

    def clear(self) -> None:
        """Forget everything, what was learnt too."""

    def __len__(self) -> int:
        """How many keys are in the order."""

    def __contains__(self, key: object) -> bool:
        """Is the key in the order?"""

    def _check(self) -> None:
        """Verify all that must hold, and print the state if something does not; for tests."""
