"""What a value file holds, told from its opcodes: its kind, and its shape or length, without loading it.

Unpickling runs what the pickle says.  Here the opcodes are only read (`pickletools.genops`), on a stack of notes about
values instead of values; nothing is imported, called or built.  Of arrays that `chest.aligned` placed, the bytes are
skipped by the note at the file's end.
"""
from __future__ import annotations

import ast
import io
import pickletools
import re
import struct
from dataclasses import dataclass, field
from typing import IO, Any, Callable

from chest.aligned import read_layout

__all__ = ["UNKNOWN", "kind", "kind_of_file"]

UNKNOWN = "?"
ENOUGH = 64 * 1024  # bytes of opcodes that are looked at; of what is longer the length may stay unknown

_MARK: Any = object()
_LENGTHS = {"BINUNICODE8": 8, "BINBYTES8": 8, "BYTEARRAY8": 8, "BINUNICODE": 4, "BINBYTES": 4}
_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
_MAKERS = {"_frombuffer": "ndarray", "_reconstruct": "ndarray", "_mareconstruct": "MaskedArray", "encode": "bytes",
           "xrange": "range"}
_NUMPY_KINDS = {"b": "bool", "i": "int", "u": "uint", "f": "float", "c": "complex"}


@dataclass
class Made:
    """Something that the unpickler would build by calling ``maker`` with ``args``."""

    maker: Any
    args: Any = ()
    state: Any = None


@dataclass
class Container:
    """A list, dict or set with so many items; ``None`` for a length that was not reached."""

    name: str
    length: int | None = 0


@dataclass
class Name:
    """A global, by its dotted name."""

    name: str


@dataclass
class Plain:
    """A str, bytes or bytearray too long to be read."""

    name: str
    length: int


@dataclass
class Machine:
    """The unpickler's stack and memo, with notes about values in the place of values."""

    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def to_mark(self) -> list[Any]:
        """Take everything above the last mark off the stack, and the mark."""
        place = len(self.stack) - 1 - self.stack[::-1].index(_MARK)
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def step(self, name: str, arg: Any) -> None:
        """Do what the opcode ``name`` does."""
        action = _ACTIONS.get(name)
        if action is not None:
            action(self, arg)
        elif name in _SILENT:
            pass
        elif name.endswith("PUT"):
            self.memo[int(arg)] = self.stack[-1]
        elif name.endswith("GET"):
            self.stack.append(self.memo[int(arg)])
        elif arg is not None:
            self.stack.append(arg)
        else:
            raise ValueError(f"{name} is not followed here")

    def grow(self, items: int, leaves: int = 0) -> None:
        """``leaves`` items leave the stack, and the container below has ``items`` more."""
        del self.stack[len(self.stack) - leaves :]
        container = self.stack[-1]
        if isinstance(container, Container) and container.length is not None:
            container.length += items

    def make(self, how_many: int) -> None:
        maker, *args = self.stack[-how_many:]
        self.stack[-how_many:] = [Made(maker, args[0])]

    def build(self, _: Any) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Made):
            self.stack[-1].state = state

    def take(self, how_many: int, make: Callable[[list[Any]], Any]) -> None:
        items = self.stack[len(self.stack) - how_many :]
        self.stack[len(self.stack) - how_many :] = [make(items)]


_SILENT = frozenset(("PROTO", "FRAME", "STOP", "READONLY_BUFFER"))


def _pair(items: list[Any]) -> Name:
    return Name(".".join(map(str, items)))


_ACTIONS: dict[str, Callable[[Machine, Any], Any]] = {
    "MARK": lambda m, _: m.stack.append(_MARK),
    "MEMOIZE": lambda m, _: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    "NONE": lambda m, _: m.stack.append(None),
    "NEWTRUE": lambda m, _: m.stack.append(True),
    "NEWFALSE": lambda m, _: m.stack.append(False),
    "POP": lambda m, _: m.stack.pop(),
    "POP_MARK": lambda m, _: m.to_mark(),
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "EMPTY_LIST": lambda m, _: m.stack.append(Container("list")),
    "EMPTY_DICT": lambda m, _: m.stack.append(Container("dict")),
    "EMPTY_SET": lambda m, _: m.stack.append(Container("set")),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.to_mark())),
    "TUPLE1": lambda m, _: m.take(1, tuple),
    "TUPLE2": lambda m, _: m.take(2, tuple),
    "TUPLE3": lambda m, _: m.take(3, tuple),
    "LIST": lambda m, _: m.stack.append(Container("list", len(m.to_mark()))),
    "DICT": lambda m, _: m.stack.append(Container("dict", len(m.to_mark()) // 2)),
    "FROZENSET": lambda m, _: m.stack.append(Container("frozenset", len(m.to_mark()))),
    "APPEND": lambda m, _: m.grow(1, leaves=1),
    "APPENDS": lambda m, _: m.grow(len(m.to_mark())),
    "ADDITEMS": lambda m, _: m.grow(len(m.to_mark())),
    "SETITEM": lambda m, _: m.grow(1, leaves=2),
    "SETITEMS": lambda m, _: m.grow(len(m.to_mark()) // 2),
    "GLOBAL": lambda m, arg: m.stack.append(Name(arg.replace(" ", "."))),
    "STACK_GLOBAL": lambda m, _: m.take(2, _pair),
    "REDUCE": lambda m, _: m.make(2),
    "NEWOBJ": lambda m, _: m.make(2),
    "NEWOBJ_EX": lambda m, _: m.make(3),
    "BUILD": Machine.build,
    "NEXT_BUFFER": lambda m, _: m.stack.append(Plain("buffer", 0)),
}


def kind_of_file(file: IO[bytes]) -> str:
    """The kind of value that ``file`` holds, open in binary at its start.  Reads up to 64 kB and a note at the end."""
    return kind(_opcodes(file))


def _opcodes(file: IO[bytes]) -> bytes:
    """The beginning of a pickle, with each noted array left out."""
    parts: list[bytes] = []
    room = ENOUGH
    start = 0
    layout = read_layout(file)
    for note in layout.notes if layout else ():
        if room < note.start - start:
            break
        file.seek(start)
        parts.append(file.read(note.start - start) + b"\x97")  # NEXT_BUFFER, as a reader sees it
        room -= len(parts[-1])
        start = note.begin() + note.size
    file.seek(start)
    parts.append(file.read(max(room, 0)))
    return b"".join(parts)


def kind(head: bytes) -> str:
    """The kind of value in the pickle that begins with ``head``, or `UNKNOWN`.

    With a ``…`` behind it only the beginning was seen: a list may be longer, and a tuple may begin with this array.

    >>> import pickle
    >>> kind(pickle.dumps([1, 2, 3])), kind(pickle.dumps('abc')), kind(pickle.dumps(None))
    ('list 3', 'str 3', 'None')
    """
    if head.startswith(b"\x93NUMPY"):
        return _npy(head)
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    if head.lstrip()[:1] in (b"{", b"[", b'"'):
        return {b"{": "json object", b"[": "json array", b'"': "json string"}[head.lstrip()[:1]]
    machine = Machine()
    complete, rest = _run(machine, head)
    if not machine.stack:
        return _long(rest)
    found = _described(machine, complete)
    return found if complete or found == UNKNOWN else found + " …"


def _run(machine: Machine, head: bytes) -> tuple[bool, bytes]:
    """Follow the opcodes of ``head``.  Returns whether STOP was reached, and what could not be followed."""
    file = io.BytesIO(head)
    end = 0
    try:
        for opcode, arg, _ in pickletools.genops(file):
            machine.step(opcode.name, arg)
            end = file.tell()
    except (ValueError, IndexError, KeyError, TypeError, struct.error, UnicodeDecodeError):
        return False, head[end:]
    return True, b""


def _long(rest: bytes) -> str:
    """A value that is one long text or piece of bytes: its opcode tells how long."""
    opcode = _OPCODES.get(rest[:1].decode("latin-1"))
    width = _LENGTHS.get(opcode.name, 0) if opcode else 0
    if not opcode or not width or len(rest) <= width:
        return UNKNOWN
    return f"{opcode.stack_after[0].name} {int.from_bytes(rest[1 : 1 + width], 'little')}"


def _described(machine: Machine, complete: bool) -> str:
    value = machine.stack[0]
    if value is _MARK:  # a tuple, or a list or dict of the oldest protocol, that goes on
        return UNKNOWN
    if isinstance(value, Made):
        return _made(value, [item for item in machine.stack[1:] if item is not _MARK])
    if isinstance(value, Container):
        return f"{value.name} {value.length}" if complete else value.name
    if len(machine.stack) > 1:  # the first part of a tuple or of a call
        return UNKNOWN if not isinstance(value, Name) else _last(value.name)
    if isinstance(value, (str, bytes, bytearray, tuple)):
        return f"{type(value).__name__} {len(value)}"
    if isinstance(value, Name):
        return _last(value.name)
    return "None" if value is None else type(value).__name__


def _last(name: str) -> str:
    """The last part of a dotted name, or what the function of that name makes."""
    last = name.rpartition(".")[2]
    return _MAKERS.get(last, last)


def _made(value: Made, behind: list[Any]) -> str:
    """``behind`` is what stands on the stack after the value: the state of which older protocols build an array."""
    name = value.maker.name if isinstance(value.maker, Name) else UNKNOWN
    args = value.args if isinstance(value.args, tuple) else ()
    if name.startswith("numpy") and name.endswith("._frombuffer") and len(args) == 4:
        return _array(args[1], args[2])
    if name.startswith("numpy") and name.endswith("._reconstruct"):
        state = value.state if isinstance(value.state, tuple) else tuple(behind)
        return _array(state[2], state[1]) if len(state) >= 3 else "ndarray"
    if name in ("copyreg.__newobj__", "copyreg._reconstructor", "copy_reg._reconstructor") and args:
        return _last(args[0].name) if isinstance(args[0], Name) else UNKNOWN
    if name.startswith("numpy") and name.endswith(".scalar") and args:
        return _dtype(args[0])
    return _last(name)


def _array(dtype: Any, shape: Any) -> str:
    shape = tuple(item for item in shape if isinstance(item, int)) if isinstance(shape, tuple) else ()
    return f"ndarray {_dtype(dtype)} {shape}"


def _dtype(dtype: Any) -> str:
    """``f8`` is ``float64``; what numpy has no shorter word for stays as it is."""
    if not (isinstance(dtype, Made) and isinstance(dtype.args, tuple) and dtype.args):
        return UNKNOWN
    code = dtype.args[0].decode("latin-1") if isinstance(dtype.args[0], bytes) else str(dtype.args[0])
    match = re.fullmatch(r"([biufc])(\d+)", code)
    if match is None:
        return {"O8": "object", "O": "object"}.get(code, code)
    return "bool" if match[1] == "b" else _NUMPY_KINDS[match[1]] + str(8 * int(match[2]))


def _npy(head: bytes) -> str:
    """An array saved by ``numpy.save`` tells its type and shape in a header."""
    start = 10 if head[6:7] == b"\x01" else 12
    size = int.from_bytes(head[8:start], "little")
    try:
        about = ast.literal_eval(head[start : start + size].decode("latin-1").strip())
        return f"ndarray {about['descr']} {about['shape']}"
    except (ValueError, SyntaxError, KeyError, TypeError):
        return "ndarray"
