"""Values outside of memory that somebody has: those let go of that the user still holds, and those that are lent.

A value that left memory is found again, by weak reference, as long as the user holds it.  One that passes by, in the
hands of one who iterates, is lent: it is found until it is taken back.  Either way whoever asks for the key gets the
same object.
"""
from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterable
from typing import Any, Callable, Generic, TypeVar

__all__ = ["ABSENT", "Held"]

K = TypeVar("K", bound=Hashable)

ABSENT: Any = object()  # stands for "no value", where None may be one


class _Reference(weakref.ref):  # type: ignore[type-arg]
    """A weak reference to a value that left memory, which knows the value's key."""

    __slots__ = ("key",)
    key: Any


class Held(Generic[K]):
    """The values that are not in memory, but in somebody's hands.  ``forgotten`` is told the key of each that died."""

    def __init__(self, forgotten: Callable[[K], object]):
        self._forgotten = forgotten
        self._references: dict[K, _Reference] = {}
        self._crowds: list[dict[K, Any]] = []

    def among(self, keys: Iterable[K]) -> set[K]:
        """Those of ``keys`` whose values somebody has."""
        return set[K]().union(*(held.keys() & keys for held in (self._references, *self._crowds) if held))

    def find(self, key: K) -> Any:
        """The value of ``key``; `ABSENT` if nobody has it."""
        reference = self._references.get(key)
        if reference is not None:
            value = reference()
            return ABSENT if value is None else value
        for crowd in self._crowds:
            if key in crowd:
                return crowd[key]
        return ABSENT

    def pairs(self) -> list[tuple[K, Any]]:
        """All keys with their values."""
        alive = [(key, reference()) for key, reference in list(self._references.items())]
        found = [(key, value) for key, value in alive if value is not None]
        for crowd in self._crowds:
            found += crowd.items()
        return found

    def keep(self, key: K, value: Any) -> bool:
        """Remember a value for as long as somebody holds it; `False` if it cannot be weakly referenced."""
        if not type(value).__weakrefoffset__ or value is ABSENT:
            return False
        reference = _Reference(value, self._died)
        reference.key = key
        self._references[key] = reference
        return True

    def _died(self, reference: _Reference) -> None:
        held = self._references.pop(reference.key, None)
        if held is reference:
            self._forgotten(reference.key)
        elif held is not None:  # another value left memory under this key just then
            self._references.setdefault(reference.key, held)

    def lend(self, crowd: dict[K, Any]) -> None:
        """Let these values be found until they are taken back; those of which another became the value leave it."""
        self._crowds.append(crowd)

    def take_back(self, crowd: dict[K, Any]) -> None:
        """The end of `lend`."""
        self._crowds = [other for other in self._crowds if other is not crowd]

    def drop(self, key: K) -> None:
        """Another value is the key's now, or none."""
        self._references.pop(key, None)
        for crowd in self._crowds:
            crowd.pop(key, None)

    def clear(self) -> None:
        self._references.clear()
        for crowd in self._crowds:
            crowd.clear()
