"""A dict's methods that a `MutableMapping` lacks; its views load values one after another, when asked for."""
from __future__ import annotations

import collections.abc
import errno
import os
from abc import abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping, MutableMapping
from operator import itemgetter
from threading import get_ident
from types import MappingProxyType
from typing import Any, TypeVar, cast

from chest.memory.cache import ABSENT

__all__ = ["DictMethods", "ItemsView", "KeysView", "ValuesView", "unchanging"]

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")
H = TypeVar("H", bound=Hashable)
C = TypeVar("C", bound="DictMethods[Any, Any]")


class _View:
    _mapping: Any
    __slots__ = ()

    @property
    def mapping(self) -> Any:
        """The chest, read-only."""
        return MappingProxyType(self._mapping)


class KeysView(_View, collections.abc.KeysView[K]):
    """The keys, in the order of insertion."""

    def __iter__(self) -> Iterator[K]:
        return iter(self._mapping)

    def __reversed__(self) -> Iterator[K]:
        return cast("Iterator[K]", reversed(self._mapping))


class ValuesView(_View, collections.abc.ValuesView[V]):
    """The values, loaded as they are asked for, so that memory stays within the budget."""

    def __iter__(self) -> Iterator[V]:
        return map(itemgetter(1), ItemsView(self._mapping))

    def __reversed__(self) -> Iterator[V]:
        return (self._mapping[key] for key in reversed(self._mapping))


class ItemsView(_View, collections.abc.ItemsView[K, V]):
    """The pairs of key and value, loaded as the values are."""

    def __iter__(self) -> Iterator[tuple[K, V]]:
        engine = self._mapping._engine.alive()
        return unchanging(self._mapping, engine.loader.stream(engine.state.keys()))

    def __reversed__(self) -> Iterator[tuple[K, V]]:
        return ((key, self._mapping[key]) for key in reversed(self._mapping))

    def __contains__(self, item: object) -> bool:
        if not (isinstance(item, tuple) and len(item) == 2):
            return False
        value = self._mapping.get(item[0], ABSENT)
        return value is item[1] or (value is not ABSENT and bool(value == item[1]))


def unchanging(chest: Any, steps: Iterable[T]) -> Iterator[T]:
    """The ``steps`` of an iteration over ``chest``, as long as this thread adds and removes no keys from now on."""
    ident = get_ident()
    changes: Mapping[int, int] = chest._engine.state.changes
    before = changes.get(ident)

    def checked() -> Iterator[T]:
        if changes.get(ident) == before:
            for step in steps:
                yield step
                if changes.get(ident) != before:
                    break
            else:
                return
        raise RuntimeError(f"{chest} changed size during iteration")

    return checked()


class DictMethods(MutableMapping[H, V]):
    """The methods of a dict that need nothing but its other methods."""

    @abstractmethod
    def _another(self, path: str | os.PathLike[str] | None) -> Any:
        """A chest with the same settings, at ``path`` or temporary."""

    def copy(self: C, path: str | os.PathLike[str] = "") -> C:
        """Another chest with the same settings and values, at ``path`` or temporary, that shares no objects with this.

        Cost: a commit, and a hard link for each key, as files are shared until they change.

        >>> from chest import Chest
        >>> c = Chest({'x': [1]})
        >>> c.copy() == c
        True
        """
        if path is None:
            raise TypeError("copy() makes a temporary chest, and copy(path) one that stays")
        chest = self._another(path or None)
        if len(chest):
            raise FileExistsError(errno.EEXIST, "there is a chest already: open it, and update() it", chest.path)
        chest.update(self)
        if path:
            chest.sync()
        return cast(C, chest)

    __copy__ = copy

    def __deepcopy__(self: C, memo: dict[int, Any]) -> C:
        return self.copy()

    @classmethod
    def fromkeys(cls, keys: Iterable[H], value: Any = None) -> Any:
        """A temporary chest with ``value`` for each of ``keys``."""
        chest = cls()
        for key in keys:
            chest[key] = value
        return chest

    def keys(self) -> KeysView[H]:
        """The keys, in the order of insertion."""
        return KeysView(self)

    def values(self) -> ValuesView[V]:
        """The values, loaded one after another as one iterates, so that memory stays within the budget."""
        return ValuesView(self)

    def items(self) -> ItemsView[H, V]:
        """The pairs of key and value, loaded one after another as one iterates."""
        return ItemsView(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        theirs = ItemsView(other)
        return len(self) == len(other) and all(pair in theirs for pair in self.items())

    def __or__(self, other: Any) -> Any:
        return self._union(self, other)

    def __ror__(self, other: Any) -> Any:
        return self._union(other, self)

    def _union(self, first: Any, second: Any) -> Any:
        if not (isinstance(first, Mapping) and isinstance(second, Mapping)):
            return NotImplemented
        both = self._another(None)
        both.update(first)
        both.update(second)
        return both

    def __ior__(self, other: Any) -> Any:
        self.update(other)
        return self
