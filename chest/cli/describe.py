"""The kind of value that bytes hold, without loading it: from magic bytes, or from the opcodes of a pickle.

Unpickling runs what the pickle says.  Here its opcodes are only read, on a stack of notes about values: nothing is
imported, called, hashed or built, and nothing is recursive.
"""
from __future__ import annotations

import bz2
import io
import json
import lzma
import pickletools
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import IO, Any

from chest.errors import printable

__all__ = ["HEAD", "UNKNOWN", "kind", "unpacked"]

UNKNOWN = "unknown"
MOST = 3000  # opcodes that are followed; of what has more the length is a lower bound
NEAR = 4096  # bytes: of a longer argument only the length is read
HEAD = 65536  # bytes of other formats that are looked at

_MAGIC = {
    b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow stream", b"FEA1": "feather", b"ORC": "orc",
    b"Obj\x01": "avro", b"\x89HDF\r\n\x1a\n": "hdf5", b"SQLite format 3\0": "sqlite", b"\x93NUMPY": "npy",
    b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4", b"\x89PNG\r\n": "png",
    b"\xff\xd8\xff": "jpeg", b"%PDF-": "pdf",
}
_inflate = partial(zlib.decompressobj, 47)
_COMPRESSED: dict[bytes, tuple[str, Callable[[], Any]]] = {
    b"\x1f\x8b": ("gzip", _inflate), b"BZh": ("bz2", bz2.BZ2Decompressor),
    b"\xfd7zXZ\0": ("xz", partial(lzma.LZMADecompressor, memlimit=1 << 26)),
    **dict.fromkeys((b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda"), ("zlib", _inflate)),
}
_WORDS = {"bytes_or_str": "str", "long": "int", "int_or_bool": "int", "encode": "bytes", "xrange": "range",
          "_mareconstruct": "MaskedArray"}
_SIZED = ("list", "dict", "set", "frozenset", "tuple", "str", "bytes", "bytearray")
_ARRAYS = {"ndarray": (0, 1), "_frombuffer": (2, 1), "_reconstruct": (1, 2)}  # where shape and dtype stand
_DTYPES = {"i": "int", "u": "uint", "f": "float", "c": "complex", "b": "bool", "O": "object", "M": "datetime64",
           "m": "timedelta64"}
_ODD = (ValueError, LookupError, TypeError, OverflowError, AttributeError)  # what bytes that are no pickle give rise to
_LENGTHS = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT4: 4,
            pickletools.TAKEN_FROM_ARGUMENT4U: 4, pickletools.TAKEN_FROM_ARGUMENT8U: 8}  # bytes of the length


def unpacked(head: bytes) -> tuple[str, bytes]:
    """How a file that begins with ``head`` is compressed, '' if it is not, and the beginning of what is in it.

    Nothing is in what cannot be unpacked.  Cost: at most `HEAD` bytes are made, in 64 MB of memory.
    """
    for magic, (name, decompressor) in _COMPRESSED.items():
        if head.startswith(magic):
            try:
                return name, decompressor().decompress(head, HEAD)
            except (zlib.error, lzma.LZMAError, OSError, EOFError):
                return name, b""
    return "", head


def kind(file: IO[bytes], size: int = -1) -> str:
    """The kind of value that ``file`` holds, open in binary and at its start, or `UNKNOWN`: one line, printable.

    ``size``: where the value ends, in bytes; -1 where only its beginning is at hand.  Cost: at most 10 ms.

    >>> import pickle
    >>> [kind(io.BytesIO(pickle.dumps(value))) for value in ([1, 2, 3], 'abc', None)]
    ['list 3', 'str 3', 'None']
    """
    head = file.read(HEAD)
    packed, inside = unpacked(head)
    if packed:
        size = len(inside) if 0 <= size <= HEAD and len(inside) < HEAD else -1
        file, head = io.BytesIO(inside), inside
    found = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of `pickletools`: a text with an escape that there is not
        found = found or _pickle(file, head, size) or _json(head, 0 <= size <= HEAD) or UNKNOWN
    return printable(f"{found} ({packed})" if packed and (packed, found) != ("zlib", UNKNOWN) else found, most=60)


def _json(head: bytes, whole: bool) -> str:
    if not whole:
        begins = re.match(rb'\s*(?:(\[)\s*["\[{\d-]|\{\s*")', head)
        return "" if begins is None else "json list" if begins[1] else "json dict"
    try:
        value = json.loads(head)
    except (ValueError, RecursionError):
        return ""
    name = "None" if value is None else type(value).__name__
    return f"json {name} {len(value)}" if isinstance(value, (list, dict, str)) else f"json {name}"


class _Note:
    """A value that is not built: its type, or the dotted name of what makes it, its length, and what it is made of."""

    def __init__(self, opcode: pickletools.OpcodeInfo, argument: Any, length: int, parts: list[Any]):
        self.argument, self.parts, self.state = argument, parts, list[Any]()
        self.length = len(argument) if isinstance(argument, (str, bytes, bytearray)) else length or len(parts)
        word = opcode.stack_after[0].name
        if opcode.name == "GLOBAL":
            word = argument.replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":
            word = f"{parts[0].argument}.{parts[1].argument}"
        elif word == "any":
            word = parts[0].name if parts and "." in parts[0].name else ""
        self.name = _WORDS.get(word, word)

    def __str__(self) -> str:
        module, _, name = self.name.rpartition(".")
        if not module and name in _SIZED:
            size = self.length // 2 if name == "dict" else self.length
            return f"str of {size} bytes" if name == "str" and self.argument is None else f"{name} {size}"
        if module.partition(".")[0] == "numpy" and name in _ARRAYS:
            shape, dtype = ((self.state or self.parts[1].parts)[place] for place in _ARRAYS[name])
            axes, code = tuple(part.argument for part in shape.parts), str(dtype.parts[1].parts[0].argument)
            found = re.fullmatch(r"[<>=|]?([a-zA-Z])(\d{0,4})", code)
            if found is None or len(axes) > 64 or not all(0 <= length < 1 << 63 for length in axes):
                raise ValueError("not of an array")
            bits = 8 * int(found[2]) if found[1] in "iufc" else ""
            return f"ndarray {_DTYPES.get(found[1], code)}{bits} {axes}"
        return _WORDS.get(name) or (f"{name}()" if name.startswith("_") else name)


def _opcodes(file: IO[bytes]) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int]]:
    """Each opcode, its argument, and that one's length.  A long argument is passed over, and `None` in its place."""
    while True:
        opcode = pickletools.code2op[file.read(1).decode("latin-1")]  # type: ignore[attr-defined]  # LookupError at the end
        size, length = opcode.arg.n if opcode.arg else 0, 0
        if size == pickletools.UP_TO_NEWLINE:
            data = file.readline(NEAR) + (file.readline(NEAR) if "pair" in opcode.arg.name else b"")
        else:
            data = file.read(_LENGTHS.get(size, size))
            length = int.from_bytes(data, "little") if size in _LENGTHS else 0
            if length > NEAR:
                file.seek(length, io.SEEK_CUR)
            else:
                data += file.read(length)
        yield opcode, opcode.arg.reader(io.BytesIO(data)) if opcode.arg and length <= NEAR else None, length


def _pickle(file: IO[bytes], head: bytes, size: int) -> str:
    """What a pickle makes, also where its end is not reached: ``list 1000+``; '' if it is none, or nobody can tell.

    Each opcode does with notes what it does with values, as `pickletools` describes it; a mark is `None`.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    file.seek(0)
    with suppress(*_ODD):
        for opcode, argument, length in islice(_opcodes(file), MOST):
            name, before, after = opcode.name, opcode.stack_before, opcode.stack_after
            if name == "STOP":
                return str(stack[0]) if len(stack) == 1 and stack[0] else ""
            if name == "MEMOIZE" or name.endswith("PUT"):
                memo[len(memo) if argument is None else argument] = stack[-1]
                continue
            if name.endswith("GET"):
                stack.append(memo[argument])
                continue
            place = len(stack) - len(before)
            if pickletools.markobject in before:
                place = len(stack) - 1 - stack[::-1].index(None) - before.index(pickletools.markobject)
            if place < 0:
                break
            parts = [note for note in stack[place:] if note]
            del stack[place:]
            if name == "BUILD":
                if parts[0].name.startswith("joblib."):
                    return "joblib"  # the bytes of an array follow, which are no opcodes
                parts[0].state = parts[1].parts
            elif len(before) > 1 and after == before[:1] and after != [pickletools.anyobject]:  # APPENDS and its like
                parts[0].length += len(parts) - 1
            elif after:
                parts = [None if name == "MARK" else _Note(opcode, argument, length, parts)] * len(after)
            stack += parts[: len(after)]
    with suppress(*_ODD):
        value = stack[0]
        if not b"\x80" <= head[:2] < b"\x80\x06":
            return ""
        if value.name == "numpy.ndarray":  # as chest writes an array
            value.state = [note for note in stack[1:] if note]
            return str(value)
        file.seek(max(size - 2, 0))
        last = file.read(2) if size >= 0 else b""
        if last[1:] == b"." and last[0] in b"aeusb\x90":  # adds to a value: the lowest, as a tuple only begins with it
            return f"{value}+".replace(" 0+", "") if value.name in _SIZED else str(value)
    return ""
