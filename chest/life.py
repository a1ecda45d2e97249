"""The life of a value: it is set, spilled when it is worth least, loaded when it is asked for, and deleted."""
from __future__ import annotations

from collections.abc import Hashable
from typing import Any, TypeVar

from chest.names import Name
from chest.probation import Probation
from chest.sizes import nbytes

__all__ = ["Life"]

K = TypeVar("K", bound=Hashable)


class Life(Probation[K]):
    """All values of a chest, wherever they are."""

    def set(self, key: K, value: Any, new: bool = False) -> None:
        """``key`` has this value now; with ``new`` only if there is no such key yet."""
        size = nbytes(value)
        with self.lock:
            if new and self.known(key):
                return
            self._disown(key)
            if self.index.names.get(key) is None:
                orphan = self.index.set(key)
                self.memory.put(key, value, size, on_disk=False)
            else:  # should Ctrl-C come in between, it was changed in place
                self.memory.watch.suspect(key)
                self.memory.put(key, value, size, on_disk=False)
                orphan = self.index.set(key)
                self.memory.watch.strike_out(key)
        self.discard(orphan)
        if self.over(self.available):
            self.make_room(key)

    def delete(self, key: K) -> None:
        with self.lock:
            if not self.known(key):
                raise KeyError(key)
            value = self.memory.current(key)  # so that its finaliser, which may use the chest, comes behind all this
            self._disown(key)
            self.memory.forget(key)  # first: what is in memory and not in the index would be written, as if it were new
            orphan = self.index.delete(key)
        del value
        self.discard(orphan)

    def adopt(self, key: K, name: Name) -> None:
        """The value of ``key`` is what the new file ``name`` holds."""
        with self.lock:
            orphan = self.index.set(key, name, self.store.mark(name))
            self._disown(key)
            self.memory.remove(key)
        self.discard(orphan)
