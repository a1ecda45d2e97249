"""Bounds on what a stranger's pickle makes the unpickler do.

Even where no name is allowed, a few bytes can make the C unpickler fill gigabytes (a huge index into its memo), end the
interpreter (the hash of tuples nested 200,000 deep overflows the C stack), or compare for hours (integers with the same
hash as keys).  Once such an opcode runs nothing stops it, and to look at each opcode first takes longer than to load.
So bytes are counted and searched, which is quick, and only what is then suspicious is looked at more closely.

One thing is not bounded everywhere: an unpickler without the fix of gh-115952 fills a list up to the index of a
LONG_BINPUT.  There the first opcodes are looked at, up to 640, which is enough for any small pickle and for a few large
texts and arrays; behind more of them, such an opcode may fill as much memory as the system grants, 64 GB at most.
"""
from __future__ import annotations

import io
import pickle
import re
import struct
import sys
from typing import Any

from chest.errors import LoadError

__all__ = ["DEEPEST", "MOST_ALIKE", "Careful", "Refused", "Whole", "asks_too_much", "check"]

DEEPEST = 200  # containers in containers, where chest goes through them
MOST_ALIKE = 1_000  # different numbers of the same hash: 10 ms if all of them are keys of one dict
# Tuples in tuples that may be hashed: 64 bytes of the C stack each, several times as many without optimisation.
_MOST_TUPLES = 80_000 if sys.platform == "linux" and not hasattr(sys, "gettotalrefcount") else 10_000
_CROWD = 10_000  # large integers that may have the same hash: 1 s
_MEMO = 1 << 22  # an index into the memo that is always allowed: 64 MB
_BLOCK = 65_536  # bytes that a processor holds near
_TOKENS = 32  # opcodes of fixed length, or short texts, that are looked at in a step
_STEPS = 20  # each of so many opcodes, or of one with a length or lines of its own

_PUT = re.compile(rb"r(?=..(?:[\x40-\xff].|.[\x01-\xff]))", re.DOTALL)  # an index of 2 ** 22 or more
_LARGE = re.compile(rb"\x8a(?=\x08.{7}[\x20-\xdf]|[\x09-\xff])", re.DOTALL)  # LONG1 of 2 ** 61 or more
_LARGE_TEXT = re.compile(rb"[IL](?=([-+\d_]{18,4000})[L\n])")
_LENGTH = re.compile(rb"[BXT\x8b](?=(.{4}))|[\x8d\x8e\x95\x96](?=(.{8}))", re.DOTALL)

_SHORT = b"|".join([re.escape(bytes((size,))) + b"." * size for size in range(33)])
_RUN = re.compile(
    rb"(?:G........|\x8c(?:%s)|K.|[N)\x88\x89012RQabdelostu\](}\x81\x85-\x87\x8f-\x94\x97\x98]|M..|J....|[hq\x80].|j....|"
    rb"r..[\0-\x3f]\0|\x95........){0,%d}" % (_SHORT, _TOKENS), re.DOTALL)
_SIZED = {code: size for size, codes in {1: b"U\x8cC\x8a", 4: b"TXB\x8b", 8: b"\x8d\x8e\x96"}.items() for code in codes}
_LINES = {ord("c"): 2, ord("i"): 2, **dict.fromkeys(b"FILSVgpP", 1)}
_fills: bool | None = None


class Refused(LoadError):
    """A pickle names something, or asks for something, that is not done for a chest opened with ``trusted=False``."""


class Whole:
    """Bytes as a file for the unpickler, which looks at all of them at once and asks no more."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def peek(self, size: int) -> bytes:
        """What is not read yet, without reading it."""
        return self.data[self.at :] if self.at else self.data

    def read(self, size: int) -> bytes:
        """The next bytes."""
        begin, self.at = self.at, min(self.at + size, len(self.data))
        return self.data[begin : self.at]

    def readline(self) -> bytes:
        """The next bytes up to the end of a line."""
        end = self.data.find(b"\n", self.at) + 1
        return self.read((end or len(self.data)) - self.at)


def check(data: bytes) -> bool:
    """May the C unpickler load ``data``, or must `Careful`?  `Refused` where neither may.  Cost: 0.1 to 1 ns a byte."""
    large = len(data) > min(_MOST_TUPLES, 10 * _CROWD)
    if large or ((_PUT.search(data) is not None or b"p" in data) and _fills_memo()):
        at = _look(data)
        rest = data[at:] if large and at > 4096 else data
    if not large:
        return True
    if len(rest) >= 10 * _CROWD and _count(rest, b"\x8a\x8b\n") > _CROWD:
        found = _integers(rest)
        if len(found) - len(set(found.values())) > MOST_ALIKE or rest.count(b"\x8b") > _CROWD:
            raise Refused("it has too many integers that may have the same hash")
    most = _MOST_TUPLES
    begin = max(0, len(rest) - most // 2)  # what is not looked at counts as if all of it made tuples
    return len(rest) <= most or _count(rest[:begin], b"\x85\x86\x87(") <= most - (len(rest) - begin)


def _count(data: bytes, codes: bytes) -> int:
    """How many bytes are one of ``codes``."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None:
        return len(data) - len(data.translate(None, codes))
    values = numpy.frombuffer(data, "u1")
    blocks = [values[at : at + _BLOCK] for at in range(0, len(data), _BLOCK)]
    return sum([int(numpy.count_nonzero(block == code)) for block in blocks for code in codes])


def _fills_memo() -> bool:
    """Does this unpickler fill a list up to an index?  The newer C ones do not, nor does the one in Python."""
    global _fills
    if _fills is None:
        unpickler = pickle.Unpickler(io.BytesIO(b"Nr\0\0\1\0."))
        unpickler.load()
        _fills = sys.implementation.name == "cpython" and sys.getsizeof(unpickler) > 1 << 18
    return _fills


def _look(data: bytes) -> int:
    """Look at the first opcodes, for an index that is too large.  Returns how far that was."""
    at = steps = 0
    while steps < _STEPS or at > steps * 4096:  # where it comes along quickly, this is faster than to count
        steps += 1
        before, at = at, _end(data, at)
        code = data[at] if at < len(data) else ord(".")
        lines, begin = _LINES.get(code, 0), at + 1
        index = 0
        if code in _SIZED:
            size = _SIZED[code]
            at = begin + size + int.from_bytes(data[begin : begin + size], "little")
        elif code == ord("r"):
            index = int.from_bytes(data[begin : begin + 4], "little")
            at += 5
        elif lines:
            for _ in range(lines):
                at = data.find(b"\n", at) + 1 or len(data)
            if code == ord("p"):
                digits = data[begin:at].replace(b"_", b"").strip().lstrip(b"+0")
                index = int(digits[:19]) if digits.isdigit() else 0
        elif at == before:  # STOP, or nothing that the unpickler takes
            break
        if index >= max(len(data), _MEMO):
            raise Refused("it asks for a memo far larger than itself")
    return at


def _end(data: bytes, at: int) -> int:
    found = _RUN.match(data, at)
    return at if found is None else found.end()


def _integers(data: bytes) -> dict[bytes, int]:
    """The hashes of all that may be integers whose hash can be chosen, wherever they stand."""
    hashes = {}
    for found in _LARGE.finditer(data):
        begin = found.end() + 1
        part = data[begin : begin + data[begin - 1]]
        hashes[part] = hash(int.from_bytes(part, "little", signed=True))
    for found in _LARGE_TEXT.finditer(data):
        try:
            hashes[found[1]] = hash(int(found[1]))
        except ValueError:
            continue
    return hashes


def asks_too_much(data: bytes) -> bool:
    """Can it be that ``data`` names a length or an index that it does not have?  Asked when memory has run out."""
    return _PUT.search(data) is not None or b"p" in data or any(
        int.from_bytes(found[1] or found[2], "little") > len(data) for found in _LENGTH.finditer(data))


_InPython: Any = pickle._Unpickler  # type: ignore[attr-defined,unused-ignore]


class Careful(_InPython):  # type: ignore[misc]
    """The unpickler in Python, 10 times as slow: refuses tuples that are nested too deep."""

    dispatch = dict(_InPython.dispatch)

    def __init__(self, file: Any, **settings: Any) -> None:
        super().__init__(file, **settings)
        self._depths: dict[int, tuple[object, int]] = {}  # tuples are kept, so that an id is no other's

    def _made(self) -> None:
        made = self.stack[-1]
        depth = max([self._depths[id(part)][1] for part in made if id(part) in self._depths], default=0) + 1
        if depth > DEEPEST:
            raise Refused(f"it has tuples that are nested more than {DEEPEST} deep")
        self._depths[id(made)] = made, depth

    def _load_bytearray8(self) -> None:  # the usual one makes room before it reads
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(min(size, sys.maxsize))))

    dispatch[0x96] = _load_bytearray8


def _counting(usual: Any) -> Any:
    def load(self: Careful) -> None:
        usual(self)
        self._made()

    return load


for _opcode in b"t\x85\x86\x87":
    Careful.dispatch[_opcode] = _counting(Careful.dispatch[_opcode])
