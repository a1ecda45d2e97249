"""The names that a stranger's pickle may have, and what stands for them while it is loaded: see `restricted`.

An unpickler does more than call: BUILD sets attributes, SETITEM and APPENDS change what they are given.  So what is
made at once is only what these cannot change for the worse; all else is an `Own`, which says what to make when all is
loaded.
"""
from __future__ import annotations

import re
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any, Callable

from .bounds import MOST_ALIKE, Refused

__all__ = ["HOW", "NAMES", "OF_ARRAYS", "Global", "Later", "Mapping", "Own", "State", "Uuid"]

HOW = ("open the chest with trusted=True if you trust whoever could write to it, or have it keep such values in a "
       "format that is data, such as parquet, with dump= and load=")
_ZONE = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,3}")
_RATIO = re.compile(r"[-+]?\d{1,4000}(/\d{1,4000})?")


class State:
    """What one load has made and may still copy."""

    __slots__ = ("alike", "arrays", "hashes", "later", "made", "room")

    def __init__(self, room: int) -> None:
        self.room = room  # bytes
        self.made: list[Own] = []
        self.arrays: list[Any] = []  # those that can be written, but not while this is loaded
        self.later = False  # is anything made that is not in this list?
        self.hashes: dict[int, object] = {}
        self.alike = 0

    def spend(self, size: int) -> None:
        """Count what is copied: a value may be copied again and again by a few bytes each."""
        self.room -= size
        if self.room < 0:
            raise Refused("it asks for far more memory than it is long")

    def distinct(self, value: Any) -> Any:
        """``value``, whose hash whoever wrote it could choose."""
        first = self.hashes.setdefault(hash(value), value)
        if first is not value and first != value and value == value:
            self.alike += 1
            if self.alike > MOST_ALIKE:
                raise Refused("it has too many numbers of the same hash")
        return value


class Own:
    """What stands in for something until the whole pickle is loaded.  BUILD can do nothing to it."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise Refused("it gives a state to what has none")

    def finish(self, finish: Callable[[Any], Any]) -> Any:
        """The value itself.  ``finish`` gives that of what it is made of."""
        raise Refused(f"it has a function or a class as a value; {HOW}")


class Global(Own):
    """An allowed name, and what calling it does."""

    __slots__ = ("function", "name", "state")

    def __init__(self, name: tuple[str, str], function: Callable[..., Any], state: State) -> None:
        self.name = name
        self.function = function
        self.state = state

    def __call__(self, *arguments: Any) -> Any:
        try:
            return self.function(self.state, *arguments)
        except (Refused, MemoryError, ImportError):
            raise
        except Exception as error:
            raise Refused(f"it calls {'.'.join(self.name)} with what does not fit: {error}") from error


class Later(Own):
    """A value that is made when all else is: of a class that a BUILD could change."""

    __slots__ = ("arguments", "make")

    def __init__(self, state: State, make: Callable[..., Any], *arguments: Any) -> None:
        state.made.append(self)
        self.make = make
        self.arguments = arguments

    def finish(self, finish: Callable[[Any], Any]) -> Any:
        """See `Own`."""
        return self.make(*self.arguments)


class Mapping(Later):
    """An `OrderedDict`, `Counter` or `defaultdict`."""

    __slots__ = ("items",)

    def __init__(self, state: State, make: Callable[..., Any], *arguments: Any) -> None:
        super().__init__(state, make, *arguments)
        self.items: list[tuple[Any, Any]] = []

    def __setitem__(self, key: object, value: object) -> None:
        self.items.append((key, value))


class Uuid(Own):
    """A `uuid.UUID`, which has a state.  A class, as NEWOBJ asks for one."""

    __slots__ = ("number",)

    def __setstate__(self, state: object) -> None:
        if type(state) is not dict or type(state.get("int")) is not int:
            raise Refused("it has a UUID that is none")
        self.number = state["int"]

    def finish(self, finish: Callable[[Any], Any]) -> Any:
        """See `Own`."""
        import uuid

        return uuid.UUID(int=self.number)


# --- names ------------------------------------------------------------------------------------------------------------


def _only(*kinds: type) -> Callable[..., None]:
    def judge(*values: object) -> None:
        for value in values:
            if type(value) not in kinds:
                raise Refused(f"it has a {type(value).__name__} where a number or a text belongs")

    return judge


_numbers, _integers, _texts = _only(int, float), _only(int, type(None)), _only(str)


def _no(state: State, *arguments: Any) -> Any:
    raise Refused("it calls what may only be named")


def _encode(state: State, text: str, coding: str) -> bytes:
    _texts(text, coding)
    if coding not in ("latin1", "latin-1"):
        raise Refused("it has bytes in another encoding than latin1")
    state.spend(len(text))
    return text.encode("latin1")


def _bytearray(state: State, data: Any = b"", coding: str = "") -> bytearray:
    made = bytearray(_encode(state, data, coding) if type(data) is str else data if type(data) is bytes else _no(state))
    state.spend(len(made))
    return made


def _bytes(state: State) -> bytes:
    return b""


def _set(make: Callable[[list[Any]], Any]) -> Callable[..., Any]:
    def build(state: State, items: list[Any]) -> Any:
        if type(items) is not list:
            raise Refused("it has a set of what is no list")
        state.spend(4 * len(items))
        return make(items)

    return build


def _complex(state: State, *parts: float) -> complex:
    _numbers(*parts)
    made: complex = state.distinct(complex(*parts))
    return made


def _range(state: State, *parts: int) -> range:
    _only(int)(*parts)
    return range(*parts)


def _slice(state: State, *parts: Any) -> Later:
    _integers(*parts)
    return Later(state, slice, *parts)  # later: SETITEM with a slice would copy a list into itself


def _getattr(state: State, owner: Any, name: str) -> Global:
    if type(owner) is Global and owner.name == ("zoneinfo", "ZoneInfo") and name == "_unpickle":
        return Global(("zoneinfo", "_unpickle"), _zone, state)
    raise Refused("it asks for an attribute")


def _reconstructor(state: State, kind: Any, base: Any, value: Any) -> Uuid:
    if kind is not Uuid or type(base) is not Global or base.name != ("builtins", "object") or value is not None:
        raise Refused("it makes an object of a class by copyreg")
    return Uuid()


def _deque(state: State, items: Any = (), most: int | None = None) -> deque[Any]:
    if type(items) not in (tuple, list) or items:
        raise Refused("it has a deque that is made from another value")
    return deque(maxlen=most)


def _ordered(state: State) -> Mapping:
    return Mapping(state, OrderedDict)


def _counter(state: State, items: Any = None) -> Mapping:
    made = Mapping(state, Counter)
    if items is not None:
        if type(items) is not dict:
            raise Refused("it has a Counter of what is no dict")
        state.spend(4 * len(items))
        made.items.extend(items.items())
    return made


def _defaultdict(state: State, factory: Any = None) -> Mapping:
    kind = None if factory is None else _FACTORIES.get(factory.name) if type(factory) is Global else None
    if kind is None and factory is not None:
        raise Refused("it has a defaultdict with a factory of its own")
    return Mapping(state, defaultdict, kind)


def _of_datetime(name: str) -> Callable[..., Any]:
    kind: Any = None

    def build(state: State, *arguments: Any) -> Any:
        nonlocal kind
        if kind is None:
            import datetime

            kind = getattr(datetime, name)
        made = kind(*arguments)
        # Packed fields are taken over unseen: that of minutes may be 255.
        return made.replace() if type(arguments[0]) in (bytes, str) else made

    return build


def _timedelta(state: State, *arguments: int) -> Any:
    import datetime

    _only(int)(*arguments)
    return state.distinct(datetime.timedelta(*arguments))


def _zone(state: State, key: str, from_cache: bool = True) -> Any:
    import zoneinfo

    if type(key) is not str or len(key) > 100 or _ZONE.fullmatch(key) is None:
        raise Refused("it has a time zone without a plain name")
    return zoneinfo.ZoneInfo(key)


def _decimal(state: State, text: str) -> Any:
    import decimal

    _texts(text)
    state.spend(len(text))
    made = decimal.Decimal(text)
    return made if made.is_nan() else state.distinct(made)


def _fraction(state: State, number: Any, below: int = 1) -> Later:
    import fractions

    if type(number) is str and _RATIO.fullmatch(number):
        above, _, divisor = number.partition("/")
        number, below = int(above), int(divisor or 1)
    _only(int)(number, below)
    state.spend((number.bit_length() + below.bit_length()) // 8)
    if number.bit_length() + below.bit_length() > 100_000:
        raise Refused("it has a fraction of more than 100,000 bits")
    return Later(state, fractions.Fraction, number, below)


def _path(name: str) -> Callable[..., Later]:
    def build(state: State, *parts: str) -> Later:
        import pathlib

        _texts(*parts)
        state.spend(sum(map(len, parts)))
        return Later(state, getattr(pathlib, name), *parts)

    return build


_FACTORIES: dict[tuple[str, str], Any] = {
    **{("builtins", kind.__name__): kind for kind in (list, dict, int, set, tuple, float, str, bool, bytes, frozenset)},
    **{("collections", kind.__name__): kind for kind in (deque, OrderedDict, Counter)},
}
NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    **{("builtins", name): _no for name in ("object", "list", "dict", "int", "tuple", "float", "str", "bool")},
    ("builtins", "bytearray"): _bytearray, ("builtins", "bytes"): _bytes, ("builtins", "complex"): _complex,
    ("builtins", "set"): _set(set), ("builtins", "frozenset"): _set(frozenset), ("builtins", "range"): _range,
    ("builtins", "slice"): _slice, ("builtins", "getattr"): _getattr, ("_codecs", "encode"): _encode,
    ("copyreg", "_reconstructor"): _reconstructor, ("uuid", "UUID"): Uuid,
    ("collections", "deque"): _deque, ("collections", "OrderedDict"): _ordered, ("collections", "Counter"): _counter,
    ("collections", "defaultdict"): _defaultdict,
    **{("datetime", name): _of_datetime(name) for name in ("datetime", "date", "time", "timezone")},
    ("datetime", "timedelta"): _timedelta,
    ("zoneinfo", "ZoneInfo"): _no, ("zoneinfo", "ZoneInfo._unpickle"): _zone,
    ("decimal", "Decimal"): _decimal, ("fractions", "Fraction"): _fraction,
    **{(module, pure + kind): _path("Pure" + kind) for module in ("pathlib", "pathlib._local") for pure in ("Pure", "")
       for kind in ("PosixPath", "WindowsPath")},
    **{(module, "MaskedArray"): _no for module in ("numpy.ma", "numpy.ma.core")},
}
# What needs numpy: names in `restricted_arrays`, which is put into `NAMES` when it is first met.
OF_ARRAYS = {
    ("numpy", "dtype"): "make_dtype", ("numpy", "ndarray"): "over_memory",
    **{(f"numpy.{core}.{module}", name): make for core in ("core", "_core") for module, name, make in
       (("numeric", "_frombuffer", "from_buffer"), ("multiarray", "_reconstruct", "reconstruct"),
        ("multiarray", "scalar", "scalar"))},
    **{(module, "_mareconstruct"): "reconstruct_masked" for module in ("numpy.ma", "numpy.ma.core")},
}
