"""A dict's methods that a `MutableMapping` lacks, copies, and what is pickled of a handle.

Views load values one after another, when asked for.  Elsewhere a pickled handle becomes another one on the same path,
which owns nothing.
"""
from __future__ import annotations

import collections.abc
import errno
import os
import pickle
import sys
from collections.abc import Hashable, Iterable, Iterator, Mapping, MutableMapping
from operator import itemgetter
from threading import get_ident
from types import MappingProxyType
from typing import Any, TypeVar, cast

from chest.engine.opening import Settings
from chest.errors import DamagedError, DumpError, LoadError
from chest.memory.cache import ABSENT
from chest.serialize.codec import dumping

__all__ = ["DictMethods", "ItemsView", "KeysView", "ValuesView", "unchanging"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
C = TypeVar("C", bound="DictMethods[Any, Any]")


class _View:
    _mapping: Any
    __slots__ = ()

    @property
    def mapping(self) -> Any:
        """The chest, read-only."""
        return MappingProxyType(self._mapping)


class KeysView(_View, collections.abc.KeysView[K]):
    def __iter__(self) -> Iterator[K]:
        return iter(self._mapping)

    def __reversed__(self) -> Iterator[K]:
        return cast("Iterator[K]", reversed(self._mapping))


class ValuesView(_View, collections.abc.ValuesView[V]):
    def __iter__(self) -> Iterator[V]:
        return map(itemgetter(1), ItemsView(self._mapping))

    def __reversed__(self) -> Iterator[V]:
        return (self._mapping[key] for key in reversed(self._mapping))


class ItemsView(_View, collections.abc.ItemsView[K, V]):
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


def unchanging(chest: Any, steps: Iterable[V]) -> Iterator[V]:
    """The ``steps`` of an iteration over ``chest``, as long as this thread adds and removes no keys from now on."""
    ident = get_ident()
    changes: Mapping[int, int] = chest._engine.state.changes
    before = changes.get(ident)

    def checked() -> Iterator[V]:
        if changes.get(ident) == before:
            for step in steps:
                yield step
                if changes.get(ident) != before:
                    break
            else:
                return
        raise RuntimeError(f"{chest} changed size during iteration")

    return checked()


def opened_like(cls: type[Any], path: str | os.PathLike[str] | None, available: float, settings: Settings) -> Any:
    """A chest at ``path``, or a temporary one, with these settings."""
    try:
        return cls(path=path, available_memory=available, **settings._asdict())
    except DamagedError as error:  # it is that chest which is damaged, and no value that refers to it
        raise LoadError(str(error)) from error


class DictMethods(MutableMapping[K, V]):
    """The methods of a dict that need nothing but its other methods."""

    _engine: Any

    def _another(self, path: str | os.PathLike[str] | None) -> Any:
        engine = self._engine
        return opened_like(type(self), path, engine.state.available, engine.settings._replace(flag="c"))

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
    def fromkeys(cls, keys: Iterable[K], value: Any = None) -> Any:
        """A temporary chest with ``value`` for each of ``keys``."""
        chest = cls()
        for key in keys:
            chest[key] = value
        return chest

    def keys(self) -> KeysView[K]:
        """The keys, in the order of insertion."""
        return KeysView(self)

    def values(self) -> ValuesView[V]:
        """The values, loaded one after another as one iterates, so that memory stays within the budget."""
        return ValuesView(self)

    def items(self) -> ItemsView[K, V]:
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

    def __reduce__(self) -> Any:
        """What `pickle` keeps of a chest: how another handle is opened.

        It is saved first, but not where it is a part of a value that is being saved; there a temporary one is a
        `DumpError`.  `TypeError` for a setting that cannot be pickled.
        """
        engine = self._engine
        settings = engine.settings
        if dumping():
            if engine.temporary:
                raise DumpError(f"{self} is temporary, and gone with its handle: give a path= to a chest that is part "
                                f"of a value")
        elif settings.flag != "r":
            engine.save(plain=False, empty=False)
        for name, value in settings._asdict().items():
            try:
                pickle.dumps(value)
            except Exception as error:
                if "cloudpickle" not in sys.modules:  # which can pickle what pickle cannot
                    raise TypeError(f"{self} cannot be pickled, as its {name}={value!r} cannot ({error}); use a "
                                    f"function that stands in a module") from error
        flag = "w" if engine.temporary else "c" if settings.flag == "n" else settings.flag
        return opened_like, (type(self), engine.address, engine.state.available, settings._replace(flag=flag))
