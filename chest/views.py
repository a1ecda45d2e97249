"""The views of a chest, which answer what those of a dict do; values are loaded one after another, when asked for."""
from __future__ import annotations

import collections.abc
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from chest.memory.cache import ABSENT

__all__ = ["ItemsView", "KeysView", "RefsView", "ValuesView"]

K = TypeVar("K")
V = TypeVar("V")


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


class RefsView(collections.abc.Mapping[K, "str | None"]):
    """Where the value of each key lies, as people see it; `None` while it is in memory only.

    >>> RefsView({'x': 'x~1', 7: 0xabc << 104 | 4096 << 64})
    {'x': 'x~1', 7: '.packs/0000000abc:4096'}
    """

    def __init__(self, refs: Mapping[K, Any]):
        self._refs = refs

    def __getitem__(self, key: K) -> str | None:
        ref = self._refs[key]
        return f".packs/{ref >> 104:010x}:{ref >> 64 & 0xFFFFFFFFFF}" if isinstance(ref, int) else ref

    def __iter__(self) -> Iterator[K]:
        return iter(self._refs)

    def __len__(self) -> int:
        return len(self._refs)

    def __repr__(self) -> str:
        return repr(dict(self))
