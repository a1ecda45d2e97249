"""Loading pickles of strangers: what `Chest(path, trusted=False)` uses.

No byte of a pickle chooses code.  Each name in it must be one that this module or `restricted_arrays` allows, exactly,
and stands for a function of chest that checks its arguments, never for the class or function itself.  What may be in a
pickle, and how much time and memory it can take, stands in docs/security.rst.

An unpickler does more than call: BUILD sets attributes, SETITEM and APPENDS change what they are given.  So what is
made at once is only what these cannot change for the worse; all else is an `Own`, which becomes the value itself when
all is loaded.
"""
from __future__ import annotations

import copyreg
import pickle
import re
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable
from functools import cache, partial
from importlib import import_module
from typing import Any, Callable
from weakref import ref

from .bounds import Careful, Refused, Source, check, walk

HOW = ("open the chest with trusted=True if you trust whoever could write to it, or have it keep such values in a "
       "format that is data, such as parquet, with dump= and load=")
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_CPYTHON = sys.implementation.name == "cpython"  # PyPy's own unpickler crashes at a frame cut short
_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, bytearray, range})
_FACTORIES = frozenset("list dict int set tuple float str bool bytes frozenset deque OrderedDict Counter".split())
_ZONE = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,3}")
_RATIO = re.compile(r"[-+]?\d{1,4000}(/\d{1,4000})?")
_WAITS = (0.001, 0.01, 0.05)  # seconds for which another thread that looks at our frames may keep what these had
_MOST_ALIKE = 1_000  # different numbers of the same hash: 10 ms if all of them are keys of one dict


class Load:
    """What one load has made and may still copy."""

    def __init__(self, room: int) -> None:
        self.room = room  # bytes
        self.watched: list[ref[Any]] = []  # what must not be in the value
        self.dicts: list[Any] = []  # those that have attributes
        self.last: list[Callable[[], object]] = []  # what is to be done when all is loaded
        self.uuid: Any = None  # what stands for the class
        self._hashes: dict[int, object] = {}
        self._alike = 0

    def left(self) -> list[Any]:
        """What is watched and there still."""
        return [one for one in [watched() for watched in self.watched] if one is not None]

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
            if self._alike > _MOST_ALIKE:
                raise Refused("it has too many numbers of the same hash")
        return value


class Own:
    """What stands in for a value that is made when all else is.  BUILD can do nothing to it."""

    __hash__ = None  # type: ignore[assignment]  # so it is no key, and in no set

    def __init__(self, load: Load, make: Callable[[], Any] | None = None) -> None:
        self.load, self.make = load, make
        load.watched.append(ref(self))

    def __setstate__(self, state: Any) -> None:
        raise Refused("it gives a state to what has none")

    def finish(self, done: dict[int, tuple[Any, Any]]) -> Any:
        """The value itself; ``done`` is for `finish`."""
        return self.make()  # type: ignore[misc]  # whatever has none has a `finish` of its own


class Named(Own):
    """An allowed name."""

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __init__(self, load: Load, name: tuple[str, str]) -> None:
        super().__init__(load)
        self.name = name

    def finish(self, done: dict[int, tuple[Any, Any]]) -> Any:
        raise Refused(f"it has {'.'.join(self.name)} itself as a value; {HOW}")


NAMES: dict[tuple[str, str], Callable[[Load, tuple[str, str]], Any]] = {}
"""What makes that which stands for a name in one load."""


class _Rules:
    """What an unpickler of a stranger's pickle finds."""

    made: Load

    def find_class(self, module: str, name: str) -> Any:
        asked = _PYTHON_2.get(module, module), name
        if asked not in NAMES and module.startswith("numpy"):
            import_module("chest.serialize.restricted_arrays")
        if asked in NAMES:
            return NAMES[asked](self.made, asked)
        raise Refused(f"it names {ascii(module[:100])[1:-1]}.{ascii(name[:100])[1:-1]}; {HOW}")


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
    del unpickler  # and its memo, so that what is watched is there only if the value has it
    if whole and source.tell() != len(data):
        raise Refused("something stands behind its end")
    if any(map(vars, made.dicts)):  # which numpy, for one, would take for a description of memory
        raise Refused("it gives attributes to a dict")
    left = made.left()
    for seconds in _WAITS if _CPYTHON and threading.active_count() > 1 else ():
        if any(isinstance(one, Named) for one in left):
            left = []
            time.sleep(seconds)
            left = made.left()
    for one in left:
        if _CPYTHON and isinstance(one, Named):  # elsewhere it may be there still, and `finish` meets it
            one.finish({})
    if left:
        value = finish(value, {})
    for act in made.last:
        act()
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


# What may be named, and what calling it does.


def allow(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates what calling these names does; it is called with what stands for the name, and the arguments.

    So each has a class of its own, as no call is faster than that of a method.
    """

    def register(call: Callable[..., Any]) -> Callable[..., Any]:
        kind = type("Named", (Named,), {"__call__": call})
        for name in names:
            module, _, name = name.rpartition(".")
            NAMES[module, name] = kind
        return call

    return register


@cache
def _real(name: tuple[str, str]) -> Any:
    """The class itself, imported when it is needed."""
    return getattr(import_module(name[0]), name[1])


def only(kind: type, *values: object) -> None:
    """`Refused` unless all values are of this very type."""
    for value in values:
        if type(value) is not kind:
            raise Refused(f"it has a {type(value).__name__} where a {kind.__name__} belongs")


def _small(*numbers: Any) -> None:
    """`Refused` unless all are integers of a size with which calculating takes no time."""
    only(int, *numbers)
    if any(number.bit_length() > 1_000 for number in numbers):
        raise Refused("it has an integer of more than 1,000 bits where none belongs")


@cache
def _like(real: type) -> type:
    """A class like ``real``, one in Python, whose objects BUILD cannot change: else it would choose their hashes."""
    rules = {"__slots__": (), "__setstate__": Own.__setstate__, "__module__": __name__}
    return type(real.__name__, (real,), rules)


def _disguised(load: Load, real: type, *arguments: Any) -> Any:
    """An object of that class, which becomes one of ``real`` when all is loaded."""
    made = _like(real)(*arguments)
    load.last.append(partial(object.__setattr__, made, "__class__", real))
    return made


@allow("builtins.object", "builtins.list", "builtins.dict", "builtins.int", "builtins.tuple", "builtins.float",
       "builtins.str", "builtins.bool", "zoneinfo.ZoneInfo", "numpy.ma.MaskedArray", "numpy.ma.core.MaskedArray")
def _only_named(self: Named, *arguments: Any) -> Any:
    raise Refused(f"it calls {'.'.join(self.name)}")


@allow("builtins.bytearray", "builtins.bytes", "_codecs.encode")
def _bytes(self: Named, data: Any = b"", coding: str = "latin1") -> Any:
    self.load.spend(len(data))
    if type(data) is str and coding in ("latin1", "latin-1"):
        data = data.encode("latin1")
    only(bytes, data)
    return bytearray(data) if self.name[1] == "bytearray" else data


@allow("builtins.set", "builtins.frozenset", "collections.OrderedDict", "collections.Counter", "collections.deque")
def _container(self: Named, items: Any = (), *most: Any) -> Any:
    if type(items) not in (list, tuple, dict):
        raise Refused(f"it has a {self.name[1]} that is made from another value")
    self.load.spend(4 * len(items))
    made = _real(self.name)(items, *most)
    if isinstance(made, dict):
        self.load.dicts.append(made)
    return made


@allow("builtins.complex", "datetime.timedelta", "decimal.Decimal")
def _number(self: Named, *parts: Any) -> Any:
    for part in parts:
        if type(part) is str:
            self.load.spend(len(part))
        elif type(part) is not float:
            _small(part)
    made = _real(self.name)(*parts)
    return made if self.name[1] == "Decimal" and made.is_nan() else self.load.distinct(made)


@allow("builtins.range", "builtins.xrange", "builtins.slice")
def _range(self: Named, *parts: Any) -> Any:
    _small(*[part for part in parts if part is not None])
    if self.name[1] == "slice":
        return Own(self.load, partial(slice, *parts))  # else SETITEM with a slice could copy a list into itself
    return range(*parts)


@allow("collections.defaultdict")
def _defaultdict(self: Named, factory: Any = None) -> Any:
    if factory is not None and not (isinstance(factory, Named) and factory.name[1] in _FACTORIES):
        raise Refused("it has a defaultdict with a factory of its own")
    return defaultdict(None if factory is None else _real(factory.name))


@allow("datetime.datetime", "datetime.date", "datetime.time", "datetime.timezone")
def _datetime(self: Named, *arguments: Any) -> Any:
    made = _real(self.name)(*arguments)
    # Packed fields are taken over unseen: that of minutes may be 255.
    return made.replace() if type(arguments[0]) in (bytes, str) else made


@allow("builtins.getattr")
def _getattr(self: Named, owner: Any, name: str) -> Any:
    if not isinstance(owner, Named) or owner.name[1] != "ZoneInfo" or name != "_unpickle":
        raise Refused("it asks for an attribute")
    return NAMES["zoneinfo.ZoneInfo", name](self.load, owner.name)


@allow("zoneinfo.ZoneInfo._unpickle")
def _zone(self: Named, key: str, from_cache: bool = True) -> Any:
    only(str, key)
    if len(key) > 100 or _ZONE.fullmatch(key) is None:
        raise Refused("it has a time zone without a plain name")
    return _real(("zoneinfo", "ZoneInfo"))(key)


@allow("fractions.Fraction")
def _fraction(self: Named, number: Any, below: int = 1) -> Any:
    if type(number) is str and _RATIO.fullmatch(number):
        above, _, divisor = number.partition("/")
        number, below = int(above), int(divisor or 1)
    only(int, number, below)
    bits = number.bit_length() + below.bit_length()
    self.load.spend(bits // 8)
    if bits > 100_000:
        raise Refused("it has a fraction of more than 100,000 bits")
    return self.load.distinct(_disguised(self.load, _real(self.name), number, below))


@allow(*[f"{module}.{pure}{kind}Path" for module in ("pathlib", "pathlib._local") for pure in ("Pure", "")
         for kind in ("Posix", "Windows")])
def _path(self: Named, *parts: str) -> Any:
    only(str, *parts)
    self.load.spend(8 * len(parts) + sum(map(len, parts)))
    return _disguised(self.load, _real(("pathlib", "Pure" + self.name[1].replace("Pure", ""))), *parts)


def _uuid(load: Load, name: tuple[str, str]) -> Any:
    """A class, as NEWOBJ asks for one.  What is made of it is of the real one when all is loaded."""
    if load.uuid is None:
        real, found = _real(name), list[Any]()

        def set_state(made: Any, state: Any) -> None:
            only(int, state["int"])
            made.__init__(int=state["int"])
            found.append(made)

        def end() -> None:
            while found:
                object.__setattr__(found.pop(), "__class__", real)

        load.last.append(end)
        load.uuid = type("UUID", (real,), {"__slots__": (), "__setstate__": set_state, "__module__": __name__})
        load.watched.append(ref(load.uuid))  # so that the class is seen if it is a value itself
    return load.uuid


NAMES["uuid", "UUID"] = _uuid


@allow("copyreg._reconstructor")
def _reconstructor(self: Named, kind: Any, base: Any, value: Any) -> Any:
    is_plain = isinstance(base, Named) and base.name[1] == "object" and value is None
    if kind is None or kind is not self.load.uuid or not is_plain:
        raise Refused("it makes an object of a class by copyreg")
    return object.__new__(kind)
