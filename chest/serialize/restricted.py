"""Loading pickles of strangers: what `Chest(path, trusted=False)` uses.

No byte of a pickle chooses code.  Each name in it must be one of those below, exactly, and stands for a function of
chest that checks its arguments, never for the class or function itself.

==========================================  ============================================================================
What may be in a pickle                     What is checked, what becomes of it
==========================================  ============================================================================
None, bool, int, float, str, bytes,         made by the unpickler, no name needed
list, tuple, dict, set, frozenset
bytearray, complex, range, slice            of numbers; a slice of integers and None
collections: deque, OrderedDict, Counter,   the factory is one of list, dict, int, set, tuple, float, str, bool, bytes,
defaultdict                                 frozenset, deque, OrderedDict, Counter or None
datetime, date, time, timedelta, timezone   every field in its range
zoneinfo.ZoneInfo                           the key is a plain relative name; the zone is this system's
Decimal, Fraction, UUID                     from their numbers or text
PurePosixPath, PureWindowsPath              from their parts; PosixPath and WindowsPath become the pure ones
numpy: arrays, scalars, dtypes              kinds ?biufcSUVmM, structured, with subarrays; a dtype is made from its text
                                            and fields, never from a state; memory is exactly as long as shape and dtype
                                            say; text has no code point that does not exist
numpy: arrays of objects                    from a list of values that are themselves of this table
numpy.ma.MaskedArray                        from an array, a mask and a fill value
scipy.sparse: csr, csc, coo                 from arrays, then `check_format` and the range of each index
==========================================  ============================================================================

Everything else, functions, classes as values, persistent ids, extensions of `copyreg`, is `Refused`.

Bounds: a pickle of n bytes takes at most about 100 n bytes of memory, and 64 MB for the memo (but see `bounds`).  What
is copied, such as the bytes of arrays and the text of numbers, is at most 4 n bytes and 64 KB; at most `MOST_ALIKE`
different numbers have the same hash; containers of values made here are nested at most `DEEPEST` deep, tuples as
`bounds` says.  Keys that are tuples or frozensets made to collide, or text where `PYTHONHASHSEED` is known, take time
that grows with n squared.
"""
from __future__ import annotations

import copyreg
import io
import pickle
import re
import sys
from collections import deque
from collections.abc import Iterable
from typing import IO, Any

from .allowed import HOW, NAMES, OF_ARRAYS, Global, Mapping, Own, State, Uuid
from .bounds import DEEPEST, MOST_ALIKE, Careful, Refused, Whole, asks_too_much, check

__all__ = ["Refused", "loads", "plain_load", "plain_loads"]

_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_SPARSE = re.compile(r"scipy\.sparse\._?(csr|csc|coo)")


class _Rules:
    """What an unpickler of a stranger's pickle finds."""

    state: State

    def find_class(self, module: str, name: str) -> Any:
        """Called for each name."""
        if module in _PYTHON_2:
            module, name = _PYTHON_2[module], "range" if name == "xrange" else name
        if _SPARSE.fullmatch(module) and name in (module[-3:] + "_matrix", module[-3:] + "_array"):
            from . import restricted_arrays

            self.state.later = True
            return restricted_arrays.sparse(name)
        function = NAMES.get((module, name))
        if function is Uuid:
            self.state.later = True
            return Uuid
        if function is None:
            if (module, name) not in OF_ARRAYS:
                raise Refused(f"it names {_shown(module)}.{_shown(name)}; {HOW}")
            from . import restricted_arrays

            function = NAMES[module, name] = getattr(restricted_arrays, OF_ARRAYS[module, name])
        made = Global((module, name), function, self.state)
        self.state.made.append(made)
        return made

    def persistent_load(self, pid: Any) -> Any:
        """Called for each persistent id."""
        raise Refused("it has a persistent id")


class _Fast(_Rules, pickle.Unpickler):
    pass


class _Slow(_Rules, Careful):
    pass


class _NoNames(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise Refused(f"it names {_shown(module)}.{_shown(name)}, and an index needs no names; {HOW}")

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("it has a persistent id")


def _shown(name: str) -> str:
    return ascii(name[:100])[1:-1]


# --- loading ----------------------------------------------------------------------------------------------------------


def loads(data: bytes | memoryview, buffers: Iterable[Any] | None = None) -> object:
    """The value pickled in ``data``.

    ``buffers``: memory for the arrays, as for `pickle.loads`; each is taken as bytes, and must stay as it is.
    `Refused` for what is not allowed; for what is no whole pickle, whatever unpickling raises.
    """
    data = bytes(data)
    state = State(4 * len(data) + 65_536)
    unpickler = (_Fast if _prepared(data) else _Slow)(Whole(data), buffers=buffers)
    unpickler.state = state
    value = _run(unpickler, data)
    del unpickler  # and its memo
    if state.later or (state.made and max(map(sys.getrefcount, state.made)) > _UNUSED):
        value = Finisher()(value)
    for made in state.arrays:
        made.flags.writeable = True
    return value


def plain_loads(data: bytes | memoryview) -> object:
    """As `loads`, for what consists of numbers, text and containers: `Refused` if any name stands in it."""
    return _plain_load(bytes(data))[0]


def plain_load(file: IO[bytes], bounded: bool = True) -> object:
    """As `plain_loads`, from where ``file`` stands; it then stands behind the pickle, if it can be positioned.

    ``bounded=False`` is for a chest that is trusted: memory and time are not looked at, which is faster.
    """
    if not bounded:
        return _NoNames(file).load()
    value, rest = _plain_load(file.read())
    if rest and file.seekable():
        file.seek(-rest, io.SEEK_CUR)
    return value


def _prepared(data: bytes) -> bool:
    if getattr(copyreg, "_extension_cache", None):
        copyreg.clear_extension_cache()  # what is in it is given out without a question
    return check(data)


def _plain_load(data: bytes) -> tuple[Any, int]:
    source = Whole(data)
    kind = _NoNames if _prepared(data) else _CarefulNoNames
    value = _run(kind(source), data)
    return value, len(source.data) - source.at


class _CarefulNoNames(Careful):
    find_class = _NoNames.find_class
    persistent_load = _NoNames.persistent_load


def _run(unpickler: Any, data: bytes) -> Any:
    try:
        return unpickler.load()
    except MemoryError as error:
        if asks_too_much(data):
            raise Refused("it asks for far more memory than it is long") from error
        raise


_UNUSED = max(map(sys.getrefcount, [Own()]))  # references to what only a list holds
_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, bytearray, range, slice})


class Finisher:
    """Puts values in the place of what stands for them."""

    def __init__(self) -> None:
        self.done: dict[int, Any] = {}
        self.kept: list[Any] = []  # so that no id is given to another
        self.depth = 0

    def __call__(self, value: Any) -> Any:
        """``value`` with all that it is made of.  Lists, dicts, sets and deques stay the objects that they are."""
        kind = type(value)
        if kind in _ATOMS:
            return value
        key = id(value)
        if key in self.done:
            return self.done[key]
        self.kept.append(value)
        self.depth += 1
        if self.depth > DEEPEST:
            raise Refused(f"it is nested more than {DEEPEST} deep")
        made = value
        if kind in (list, deque):
            self.done[key] = value
            for place, part in enumerate(value):
                value[place] = self(part)
        elif kind is dict:
            self.done[key] = value
            items = list(value.items())
            value.clear()
            self.fill(value, items)
        elif kind in (tuple, set, frozenset):
            self.done[key] = value
            parts = [self(part) for part in value]
            if any(new is not old for new, old in zip(parts, value)):
                _judge_hashes(parts if kind is not tuple else [])
                if kind is set:
                    value.clear()
                    value.update(parts)
                else:
                    made = kind(parts)
        elif isinstance(value, Mapping):
            made = self.done[key] = value.make(*value.arguments)
            self.fill(made, value.items)
        elif isinstance(value, Own):
            try:
                made = value.finish(self)
            except (Refused, MemoryError, ImportError):
                raise
            except Exception as error:
                raise Refused(f"it has a value that does not fit its class: {error}") from error
        elif isinstance(value, type):
            raise Refused(f"it has a class as a value; {HOW}")
        self.done[key] = made
        self.depth -= 1
        return made

    def fill(self, target: Any, items: list[tuple[Any, Any]]) -> None:
        """Set keys and values."""
        keys = [self(key) for key, _ in items]
        _judge_hashes(keys)
        for key, (_, value) in zip(keys, items):
            target[key] = self(value)


def _judge_hashes(keys: list[Any]) -> None:
    if len(keys) - len(set(map(hash, keys))) > MOST_ALIKE:
        raise Refused("it has too many keys of the same hash")
