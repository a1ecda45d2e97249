"""What a dict does, done by values that may be on disk."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any, Callable, TypeVar, cast

from chest.errors import file_is_gone
from chest.exchange import receive
from chest.life import Life
from chest.memory import ABSENT
from chest.views import ItemsView, ValuesView, iterate

__all__ = ["Progress", "SpillMapping", "silent"]

K = TypeVar("K")
V = TypeVar("V")

Progress = Callable[..., Iterable[Any]]


def silent(items: Iterable[Any], total: int) -> Iterable[Any]:
    """The default of ``progress=``: a wrapper of an iterable that shows nothing."""
    return items


class SpillMapping(MutableMapping[K, V]):
    """A mutable mapping over a `Life`: everything that a dict does, in the order of insertion."""

    _inmem: dict[K, V]
    _life: Life[K]
    _used: Callable[[K], None]
    _hit: Callable[[], int]
    _closed = False

    @property
    def inmem(self) -> dict[K, V]:
        """The values that are in memory, by key.  To be looked at only: set and delete through the chest.

        Cost: O(1) but for the first time, after which each `sync` compares all values in memory with their files, as
        one that was taken from here may have been changed.

        >>> from chest import Chest
        >>> c = Chest({'x': 1})
        >>> c.inmem
        {'x': 1}
        """
        return self._life.memory.exposed()

    def __getitem__(self, key: K) -> V:
        try:
            value = self._inmem[key]
        except KeyError:
            return self._alive().get(key)  # type: ignore[no-any-return]
        self._used(key)
        self._hit()
        return value

    def __setitem__(self, key: K, value: V) -> None:
        self._alive().set(key, value)

    def __delitem__(self, key: K) -> None:
        self._alive().delete(key)

    def __contains__(self, key: object) -> bool:
        return self._alive().known(cast(K, key))

    def __len__(self) -> int:
        self._alive().refresh()
        return len(self._life.index.names)

    def __iter__(self) -> Iterator[K]:
        return iterate(self)

    def __reversed__(self) -> Iterator[K]:
        return iterate(self, reversed)

    def get(self, key: K, default: Any = None) -> Any:
        """The value of ``key``, or ``default`` if there is none or its file is gone.  Cost: as ``c[key]``.

        >>> from chest import Chest
        >>> Chest({'x': 1}).get('y', 0)
        0
        """
        value = self._inmem.get(key, ABSENT)
        if value is ABSENT:
            if not self._alive().known(key):
                return default
            try:
                return self._life.get(key)
            except KeyError:
                return default
        self._used(key)
        self._hit()
        return value

    def pop(self, key: K, *default: Any) -> Any:
        """Remove ``key`` and return its value; ``default``, if given, where there is none, else `KeyError`."""
        if len(default) > 1:
            raise TypeError(f"pop expected at most 2 arguments, got {1 + len(default)}")
        try:
            return self._take(key)
        except KeyError:
            if default:
                return default[0]
            raise

    def _take(self, key: K) -> V:
        """Remove ``key`` and return the value that it had then, whatever other threads do meanwhile."""
        self[key]  # loads the value, if need be, without the lock
        with self._life.lock:
            value = self._life.memory.current(key)
            if value is ABSENT:
                value = self[key]
            self._life.delete(key)
        return cast(V, value)

    def popitem(self) -> tuple[K, V]:
        """Remove and return the pair that was inserted last, as a dict does; `KeyError` if the chest is empty."""
        while True:
            key = self._last()
            try:
                return key, self._take(key)
            except KeyError as error:
                if file_is_gone(error, key):
                    raise

    def _last(self) -> K:
        life = self._alive()
        with life.lock:
            life.refresh()
            for key in reversed(life.index.names):
                return key
        raise KeyError("popitem(): chest is empty")

    def setdefault(self, key: K, default: Any = None) -> Any:
        """The value of ``key``, set to ``default`` first if there is none."""
        while True:
            if key not in self:
                self._life.set(key, default, new=True)
            try:
                return self[key]
            except KeyError as error:
                if file_is_gone(error, key):
                    raise

    def clear(self) -> None:
        """Remove all keys.  What is saved stays on disk until the next commit."""
        for key in self._alive().keys():
            with self._life.lock:
                if self._alive().known(key):
                    self._life.delete(key)

    def values(self) -> ValuesView[V]:
        """The values, loaded one after another as one iterates, so that memory stays within the budget."""
        return ValuesView(self)

    def items(self) -> ItemsView[K, V]:
        """The pairs of key and value, loaded one after another as one iterates."""
        return ItemsView(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return len(self) == len(other) and all(key in other and other[key] == value for key, value in self.items())

    def update(self, other: Any = (), /, overwrite: bool = True, *, progress: Progress | None = None,
               **more: Any) -> None:
        """Take in all keys of a mapping, of pairs or of keywords; of another chest by hard links, without a copy.

        With ``overwrite=False`` keys that are here stay as they are.  Another chest is synced first, and emptied of
        nothing.  Where its files cannot be linked (another format, another disk) its values are copied.

        >>> from chest import Chest
        >>> c = Chest({'x': 1})
        >>> c.update({'x': 2, 'y': 3}, overwrite=False)
        >>> dict(c)
        {'x': 1, 'y': 3}
        """
        self._alive()
        receive(self, other, overwrite, progress or silent)
        if more:
            receive(self, more, overwrite, silent)

    @classmethod
    def fromkeys(cls, keys: Iterable[K], value: Any = None) -> Any:
        """A temporary chest with ``value`` for each of ``keys``."""
        chest = cls()
        for key in keys:
            chest[key] = value
        return chest

    def copy(self) -> Any:
        """Another mapping with the same values."""
        raise TypeError(f"{type(self).__name__} does not say how it is copied")

    def __or__(self, other: Any) -> Any:
        if not isinstance(other, Mapping):
            return NotImplemented
        both = self.copy()
        both.update(other)
        return both

    def __ior__(self, other: Any) -> Any:
        self.update(other)
        return self

    def _alive(self) -> Life[K]:
        if self._closed:
            raise ValueError(f"{self} was temporary and is closed; give a path= to keep one")
        return self._life
