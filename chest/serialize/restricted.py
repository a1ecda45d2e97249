"""Loading pickles of strangers: what `Chest(path, trusted=False)` uses.

No byte of a pickle chooses code.  Each name in it must be one that `allowed` or `restricted_arrays` has, exactly, and
stands for a function of chest that checks its arguments, never for the class or function itself.  What may be in a
pickle, and how much time and memory it can take, stands in docs/security.rst.

An unpickler does more than call: BUILD sets attributes, SETITEM and APPENDS change what they are given.  So what is
made at once is only what these cannot change for the worse; all else is an `Own`, which becomes the value itself when
all is loaded.
"""
from __future__ import annotations

import copyreg
import pickle
import sys
from collections import deque
from collections.abc import Iterable
from importlib import import_module
from typing import Any, Callable

from .bounds import MOST_ALIKE, Careful, Refused, Source, check, walk

HOW = ("open the chest with trusted=True if you trust whoever could write to it, or have it keep such values in a "
       "format that is data, such as parquet, with dump= and load=")
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_ALLOWED = "chest.serialize.allowed"
_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, bytearray, range})


class Load:
    """What one load has made and may still copy."""

    def __init__(self, room: int) -> None:
        self.room = room  # bytes
        self.watched: list[Own] = []  # what must be gone at the end, but for dtypes
        self.dicts: list[Any] = []  # those that have attributes
        self.arrays: list[Any] = []  # those that can be written, but not while this is loaded
        self.texts: list[Any] = []  # arrays of which not all bytes are a value
        self.disguised: list[tuple[Any, type]] = []  # what is of a class of `allowed`, and the class it is to be of
        self.later = False  # is there anything that becomes another value at the end?
        self._hashes: dict[int, object] = {}
        self._alike = 0

    def spend(self, size: int) -> None:
        """Count what is copied: a value may be copied again and again by a few bytes each."""
        self.room -= size
        if self.room < 0:
            raise Refused("it asks for far more memory than it is long")

    def distinct(self, value: Any) -> Any:
        """``value``, whose hash whoever wrote it could choose."""
        first = self._hashes.setdefault(hash(value), value)
        if first is not value and first != value and value == value:
            self._alike += 1
            if self._alike > MOST_ALIKE:
                raise Refused("it has too many numbers of the same hash")
        return value


class Own:
    """What stands in for something until the whole pickle is loaded.  BUILD can do nothing to it."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]  # so it is no key, and in no set

    def __setstate__(self, state: Any) -> None:
        raise Refused("it gives a state to what has none")

    def finish(self, done: dict[int, tuple[Any, Any]]) -> Any:
        """The value itself; ``done`` is for `finish`."""
        raise NotImplementedError


class Named(Own):
    """An allowed name."""

    __slots__ = ("load", "name")
    __hash__ = object.__hash__  # type: ignore[assignment]

    def __init__(self, load: Load, name: tuple[str, str]) -> None:
        self.load, self.name = load, name
        load.watched.append(self)


def _references(held: list[Own]) -> list[int]:
    """How many references there are to each, or -1 where they are not counted."""
    # Some of them are the interpreter's, as many as it needs for this very code.
    return [sys.getrefcount(one) for one in held] if hasattr(sys, "getrefcount") else [-1] * len(held)


[_USED] = _references([Own()])  # those to what only a list holds
_CPYTHON = sys.implementation.name == "cpython"  # PyPy's own unpickler crashes at a frame cut short

NAMES: dict[tuple[str, str], Callable[[Load, tuple[str, str]], Any]] = {}
"""What makes that which stands for a name in one load: `allowed` and `restricted_arrays` fill this."""


class _Rules:
    """What an unpickler of a stranger's pickle finds."""

    made: Load

    def find_class(self, module: str, name: str) -> Any:
        """Called for each name."""
        asked = _PYTHON_2.get(module, module), name
        if asked not in NAMES:
            import_module("chest.serialize.restricted_arrays" if module.startswith("numpy") else _ALLOWED)
        if asked in NAMES:
            return NAMES[asked](self.made, asked)
        raise Refused(f"it names {ascii(module[:100])[1:-1]}.{ascii(name[:100])[1:-1]}; {HOW}")

    def persistent_load(self, pid: Any) -> Any:
        """Called for each persistent id."""
        raise Refused("it has a persistent id")


class _Fast(_Rules, pickle.Unpickler):
    pass


class _Slow(_Rules, Careful):
    pass


def loads(data: bytes | memoryview, buffers: Iterable[Any] | None = None, whole: bool = False) -> object:
    """The value pickled in ``data``; ``whole``: and nothing stands behind it.

    ``buffers``: memory for the arrays, as for `pickle.loads`; each is taken as bytes, and must stay as it is.
    `Refused` for what is not allowed; for what is no whole pickle, or does not fit its class, whatever that raises.
    """
    data = bytes(data)
    made, source = Load(4 * len(data) + 65_536), Source(data)
    if getattr(copyreg, "_extension_cache", None):
        copyreg.clear_extension_cache()  # what is in it is given out without a question
    unpickler: Any = (_Fast if check(data) and _CPYTHON else _Slow)(source, buffers=buffers)
    unpickler.made = made
    try:
        value = unpickler.load()
    except MemoryError:
        walk(data, len(data))
        raise
    del unpickler  # and its memo, so that `watched` is counted right
    if whole and source.tell() != len(data):
        raise Refused("something stands behind its end")
    if any(map(vars, made.dicts)):  # which numpy, for one, would take for a description of memory
        raise Refused("it gives attributes to a dict")
    if made.watched:
        left = [one for one, used in zip(made.watched, _references(made.watched)) if used > _USED or _USED < 0]
        for one in left:
            if _USED >= 0 and isinstance(one, Named):
                raise Refused(f"it has {'.'.join(one.name)} itself as a value; {HOW}")
        made.later |= bool(left)
        made.watched.clear()  # they refer to what has this list
    if made.later:
        try:
            value = finish(value, {})
        except RecursionError as error:
            raise Refused("it is nested too deep") from error
    for one, real in made.disguised:
        one.__class__ = real
    for array in made.texts:
        import_module("chest.serialize.restricted_arrays").judge(array)
    for array in made.arrays:
        array.setflags(True)
    return value


def finish(value: Any, done: dict[int, tuple[Any, Any]]) -> Any:
    """``value`` with the values themselves in the place of each `Own` in its lists, tuples, deques and dicts.

    All but tuples stay the objects that they are.  ``done`` has what was met, and what became of it, by its id.
    """
    kind = type(value)
    if kind in _ATOMS:
        return value
    if id(value) in done:
        return done[id(value)][1]
    made = value
    done[id(value)] = value, made
    if isinstance(value, Named):  # met here where references are not counted
        raise Refused(f"it has {'.'.join(value.name)} itself as a value; {HOW}")
    if isinstance(value, Own):
        made = value.finish(done)
    elif kind is list or kind is deque:
        for place, part in () if _ATOMS.issuperset(map(type, value)) else enumerate(value):
            value[place] = finish(part, done)
    elif isinstance(value, dict):
        for key, part in list(value.items()):
            finish(key, done)
            value[key] = finish(part, done)
    elif kind is tuple or kind is set or kind is frozenset:
        parts = [finish(part, done) for part in value]
        if kind is tuple and any(new is not old for new, old in zip(parts, value)):
            made = tuple(parts)
    elif isinstance(value, type):
        raise Refused(f"it has the class {value.__name__} itself as a value; {HOW}")
    done[id(value)] = value, made
    return made
