"""Iteration over a chest: its keys as they stand at the start, their values streamed."""
from __future__ import annotations

import collections.abc
from collections.abc import Iterator, Mapping
from typing import Any, Callable, TypeVar

from chest.errors import changed_size
from chest.names import Name, shown

__all__ = ["ItemsView", "NamesView", "ValuesView", "iterate"]

K = TypeVar("K")
V = TypeVar("V")


def iterate(chest: Any, through: Callable[[list[Any]], Iterator[Any]] = iter) -> Iterator[Any]:
    """``through`` the keys that there are now, in order.

    As with a dict, keys that come or go through this very handle while one iterates are a `RuntimeError`; what other
    processes commit meanwhile is not.
    """
    life = chest._alive()
    with life.lock:
        keys, turns = life.keys(), life.index.turns
    return _walk(through(keys), chest, turns)


def _walk(steps: Iterator[Any], chest: Any, turns: int) -> Iterator[Any]:
    """The steps; who iterates over a temporary chest keeps it, as nobody else may."""
    for step in steps:
        yield step
        if chest._life.index.turns != turns:
            raise changed_size()


class ValuesView(collections.abc.ValuesView[V]):
    """The values, loaded as they are asked for, so that memory stays within the budget."""

    _mapping: Any

    def __iter__(self) -> Iterator[V]:
        return _streamed(self._mapping, pairs=False)


class ItemsView(collections.abc.ItemsView[K, V]):
    """The pairs of key and value, loaded as they are asked for, so that memory stays within the budget."""

    _mapping: Any

    def __iter__(self) -> Iterator[tuple[K, V]]:
        return _streamed(self._mapping, pairs=True)


def _streamed(chest: Any, pairs: bool) -> Iterator[Any]:
    life = chest._alive()
    with life.lock:
        stream: Iterator[Any] = life.stream(life.keys(), life.index.turns, chest, pairs)
    return stream


class NamesView(collections.abc.Mapping[K, "str | None"]):
    """The names of an index, as texts."""

    def __init__(self, names: Mapping[K, Name | None]):
        self._names = names

    def __getitem__(self, key: K) -> str | None:
        name = self._names[key]
        return None if name is None else shown(name)

    def __iter__(self) -> Iterator[K]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return repr(dict(self))
