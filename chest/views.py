"""What a dict has beside the methods of a `MutableMapping`; its views load values one after another, when asked for."""
from __future__ import annotations

import collections.abc
from abc import abstractmethod
from collections.abc import Hashable, Iterator, Mapping, MutableMapping
from types import MappingProxyType
from typing import Any, TypeVar

from chest.memory.cache import ABSENT

__all__ = ["DictMethods", "ItemsView", "KeysView", "ValuesView"]

K = TypeVar("K")
V = TypeVar("V")
H = TypeVar("H", bound=Hashable)


class _View:
    _mapping: Any
    __slots__ = ()

    @property
    def mapping(self) -> Any:
        """The chest, read-only."""
        return MappingProxyType(self._mapping)


class KeysView(_View, collections.abc.KeysView[K]):
    """The keys, in the order of insertion."""

    def __reversed__(self) -> Iterator[K]:
        yield from reversed(self._mapping)


class ValuesView(_View, collections.abc.ValuesView[V]):
    """The values, loaded as they are asked for, so that memory stays within the budget."""

    def __iter__(self) -> Iterator[V]:
        return (value for _, value in self._mapping._pairs())

    def __reversed__(self) -> Iterator[V]:
        return (self._mapping[key] for key in reversed(self._mapping))


class ItemsView(_View, collections.abc.ItemsView[K, V]):
    """The pairs of key and value, loaded as the values are."""

    def __iter__(self) -> Iterator[tuple[K, V]]:
        return iter(self._mapping._pairs())

    def __reversed__(self) -> Iterator[tuple[K, V]]:
        return ((key, self._mapping[key]) for key in reversed(self._mapping))

    def __contains__(self, item: object) -> bool:
        if not (isinstance(item, tuple) and len(item) == 2):
            return False
        value = self._mapping.get(item[0], ABSENT)
        return value is item[1] or (value is not ABSENT and bool(value == item[1]))


class DictMethods(MutableMapping[H, V]):
    """The methods of a dict that need nothing but its other methods."""

    @abstractmethod
    def _pairs(self) -> Iterator[tuple[H, V]]:
        """The pairs, loaded one after another."""

    @abstractmethod
    def _another(self) -> Any:
        """A temporary one with the same settings and nothing in it."""

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
        both = self._another()
        both.update(first)
        both.update(second)
        return both

    def __ior__(self, other: Any) -> Any:
        self.update(other)
        return self
