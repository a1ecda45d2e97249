"""The names that a stranger's pickle may have, and what calling them does: see `restricted`."""
from __future__ import annotations

import re
from collections import Counter, OrderedDict, defaultdict, deque
from functools import cache
from typing import Any, Callable

from .bounds import Refused
from .restricted import NAMES, Load, Named, Own

_ZONE = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,3}")
_RATIO = re.compile(r"[-+]?\d{1,4000}(/\d{1,4000})?")
_FACTORIES: dict[str, Any] = {kind.__name__: kind for kind in (
    list, dict, int, set, tuple, float, str, bool, bytes, frozenset, deque, OrderedDict, Counter)}


def allow(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates what calling these names does; it is called with what stands for the name, and the arguments.

    So each has a class of its own, as no call is faster than that of a method.
    """

    def register(call: Callable[..., Any]) -> Callable[..., Any]:
        kind = type("Named", (Named,), {"__slots__": (), "__call__": call})
        for name in names:
            module, _, name = name.rpartition(".")
            NAMES[module, name] = kind
        return call

    return register


class Later(Own):
    """A value that is made when all else is."""

    __slots__ = ("arguments", "make")

    def __init__(self, load: Load, make: Callable[..., Any], *arguments: Any) -> None:
        load.later = True
        self.make, self.arguments = make, arguments

    def finish(self, done: dict[int, tuple[Any, Any]]) -> Any:
        """See `Own`."""
        return self.make(*self.arguments)


def only(kind: type, *values: object) -> None:
    """`Refused` unless all values are of this very type."""
    for value in values:
        if type(value) is not kind:
            raise Refused(f"it has a {type(value).__name__} where a {kind.__name__} belongs")


def small(*numbers: Any) -> None:
    """`Refused` unless all are integers of a size with which calculating takes no time."""
    only(int, *numbers)
    if any(number.bit_length() > 1_000 for number in numbers):
        raise Refused("it has an integer of more than 1,000 bits where none belongs")


@cache
def _stateless(real: type) -> type:
    """A class like ``real``, one in Python, whose objects BUILD cannot change: else it would choose their hashes."""

    def refuse(self: Any, state: Any) -> None:
        raise Refused("it gives a state to what has none")

    return type(real.__name__, (real,), {"__slots__": (), "__setstate__": refuse, "__module__": __name__})


def _disguised(load: Load, real: type, *arguments: Any) -> Any:
    made = _stateless(real)(*arguments)
    load.disguised.append((made, real))
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


@allow("builtins.set", "builtins.frozenset")
def _set(self: Named, items: Any) -> Any:
    if type(items) is not tuple:  # PyPy's set has one
        only(list, items)
    self.load.spend(4 * len(items))
    return _FACTORIES[self.name[1]](items)


@allow("builtins.complex")
def _complex(self: Named, *parts: float) -> Any:
    only(float, *parts)
    return self.load.distinct(complex(*parts))


@allow("builtins.range", "builtins.xrange", "builtins.slice")
def _range(self: Named, *parts: Any) -> Any:
    small(*[part for part in parts if part is not None])
    if self.name[1] == "slice":
        return Later(self.load, slice, *parts)  # later: SETITEM with a slice would copy a list into itself
    return range(*parts)


@allow("collections.deque")
def _deque(self: Named, items: Any = (), most: int | None = None) -> deque[Any]:
    if type(items) not in (tuple, list) or items:
        raise Refused("it has a deque that is made from another value")
    return deque(maxlen=most)


@allow("collections.OrderedDict", "collections.Counter")
def _dict(self: Named, *items: Any) -> Any:
    only(dict, *items)
    self.load.spend(4 * sum(map(len, items)))
    made = _FACTORIES[self.name[1]](*items)
    self.load.dicts.append(made)
    return made


@allow("collections.defaultdict")
def _defaultdict(self: Named, factory: Any = None) -> Any:
    if factory is not None and not (isinstance(factory, Named) and factory.name[1] in _FACTORIES):
        raise Refused("it has a defaultdict with a factory of its own")
    return defaultdict(None if factory is None else _FACTORIES[factory.name[1]])


@allow("datetime.datetime", "datetime.date", "datetime.time", "datetime.timezone")
def _datetime(self: Named, *arguments: Any) -> Any:
    made = _datetime_class(self.name[1])(*arguments)
    # Packed fields are taken over unseen: that of minutes may be 255.
    return made.replace() if type(arguments[0]) in (bytes, str) else made


@cache
def _datetime_class(name: str) -> Any:
    import datetime

    return getattr(datetime, name)


@allow("datetime.timedelta")
def _timedelta(self: Named, *arguments: int) -> Any:
    import datetime

    small(*arguments)
    return self.load.distinct(datetime.timedelta(*arguments))


@allow("builtins.getattr")
def _getattr(self: Named, owner: Any, name: str) -> Any:
    if not isinstance(owner, Named) or owner.name[1] != "ZoneInfo" or name != "_unpickle":
        raise Refused("it asks for an attribute")
    return NAMES["zoneinfo.ZoneInfo", name](self.load, owner.name)


@allow("zoneinfo.ZoneInfo._unpickle")
def _zone(self: Named, key: str, from_cache: bool = True) -> Any:
    import zoneinfo

    only(str, key)
    if len(key) > 100 or _ZONE.fullmatch(key) is None:
        raise Refused("it has a time zone without a plain name")
    return zoneinfo.ZoneInfo(key)


@allow("decimal.Decimal")
def _decimal(self: Named, text: str) -> Any:
    import decimal

    only(str, text)
    self.load.spend(len(text))
    made = decimal.Decimal(text)
    return made if made.is_nan() else self.load.distinct(made)


@allow("fractions.Fraction")
def _fraction(self: Named, number: Any, below: int = 1) -> Any:
    import fractions

    if type(number) is str and _RATIO.fullmatch(number):
        above, _, divisor = number.partition("/")
        number, below = int(above), int(divisor or 1)
    only(int, number, below)
    bits = number.bit_length() + below.bit_length()
    self.load.spend(bits // 8)
    if bits > 100_000:
        raise Refused("it has a fraction of more than 100,000 bits")
    return self.load.distinct(_disguised(self.load, fractions.Fraction, number, below))


@allow(*[f"{module}.{pure}{kind}Path" for module in ("pathlib", "pathlib._local") for pure in ("Pure", "")
         for kind in ("Posix", "Windows")])
def _path(self: Named, *parts: str) -> Any:
    import pathlib

    only(str, *parts)
    self.load.spend(8 * len(parts) + sum(map(len, parts)))
    return _disguised(self.load, getattr(pathlib, "Pure" + self.name[1].replace("Pure", "")), *parts)


@cache
def _uuid_class() -> type:
    import uuid

    class UUID(uuid.UUID):
        """A class, as NEWOBJ asks for one; what is made of it is of the real class when it has its state."""

        __slots__ = ()

        def __setstate__(self, state: Any) -> None:
            only(int, state["int"])
            super().__init__(int=state["int"])
            object.__setattr__(self, "__class__", uuid.UUID)

    return UUID


def _uuid(load: Load, name: tuple[str, str]) -> Any:
    load.later = True  # so that the class is seen if it is a value itself
    return _uuid_class()


NAMES["uuid", "UUID"] = _uuid


@allow("copyreg._reconstructor")
def _reconstructor(self: Named, kind: Any, base: Any, value: Any) -> Any:
    if kind is not _uuid_class() or not isinstance(base, Named) or base.name[1] != "object" or value is not None:
        raise Refused("it makes an object of a class by copyreg")
    return object.__new__(kind)
