"""Which of the values in memory may have been changed in place since they were written, and so are to be compared.

A key too many costs a comparison, one that is missing may cost the user a change.  So, as Ctrl-C may come between any
two lines, what is to be watched is noted before its value is there, and struck out when it has left.
"""
from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping
from itertools import compress
from typing import Any, Callable, Generic, TypeVar

from chest.alone import alone
from chest.changeable import can_change, which_can_change

__all__ = ["Unseen", "Watch"]

K = TypeVar("K", bound=Hashable)


class Unseen(Generic[K]):
    """The keys whose values nobody set or got since one moment."""

    def __init__(self, keys: Iterable[K]):
        self.keys = set(keys)


class Watch(Generic[K]):
    """``watched`` has the keys whose ``values`` are on disk too, but may be changed in place; ``vouched`` those that
    nobody else held when they were last found to be as their file has them, and that nobody got since.

    ``catch_up()`` tells of all hits up to now.  Without ``writeback`` nothing is watched.
    """

    def __init__(self, values: Mapping[K, Any], writeback: bool, catch_up: Callable[[], object]):
        self._values = values
        self._writeback = writeback
        self._catch_up = catch_up
        self.watched: dict[K, None] = {}
        self.vouched: dict[K, None] = {}
        self._exposed = False
        self._unseen: set[Unseen[K]] = set()

    def note(self, key: K, value: Any) -> None:
        """Note whether a change in place of a value that is on disk would have to be written."""
        if self._writeback and can_change(value):
            self.watched[key] = None
        else:
            self.watched.pop(key, None)
        self.vouched.pop(key, None)

    def suspect(self, key: K) -> None:
        """The value of ``key`` is not as its file has it."""
        self.watched[key] = None

    def note_all(self, values: Mapping[K, Any]) -> None:
        """As `note` for values that were not here."""
        if self._writeback:
            self.watched.update(dict.fromkeys(compress(values, which_can_change(list(values.values())))))

    def strike_out(self, key: K) -> None:
        """The value has left."""
        self.watched.pop(key, None)
        self.vouched.pop(key, None)

    def strike_out_others(self) -> None:
        """Strike out what has left, but for a Ctrl-C just then."""
        for book in (self.watched, self.vouched):
            for key in book.keys() - self._values.keys():
                book.pop(key, None)

    def clear(self) -> None:
        self.watched.clear()
        self.vouched.clear()

    # Who has had a value in hands.

    def unseen(self, keys: Iterable[K]) -> Unseen[K]:
        """From now on, and until `forget`, those of ``keys`` whose values nobody sets or gets."""
        self._catch_up()
        found = Unseen(keys)
        self._unseen.add(found)
        return found

    def alone(self, keys: Iterable[K]) -> Unseen[K]:
        """As `unseen`, of the values that nobody else can reach now: then nobody can change them either."""
        return self.unseen(key for key in keys if key in self._values and alone(self._values, key))

    def forget(self, found: Unseen[K] | None) -> None:
        """The end of `unseen` or `alone`."""
        if found is not None:
            self._unseen.discard(found)

    def vouch(self, found: Unseen[K]) -> None:
        """These values were `alone`, and then found to be as their files have them."""
        self._catch_up()
        for key in found.keys if not self._exposed else ():
            if key in self.watched:
                self.vouched[key] = None
                del self.watched[key]

    def set(self, keys: Iterable[K]) -> None:
        """Other values are about to be those of ``keys``."""
        for found in self._unseen:
            found.keys.difference_update(keys)

    def handed_out(self, keys: Collection[K]) -> None:
        """Somebody has the values of ``keys`` now, and may change them."""
        self.set(keys)
        for key in keys if self.vouched else ():
            if key in self.vouched:
                self.watched[key] = None
                del self.vouched[key]

    def expose(self) -> None:
        """Somebody may take from ``values`` itself what he likes: nothing is vouched for any more."""
        self.handed_out(list(self.vouched))
        self._exposed = True
