"""Bounds on what a stranger's pickle makes the unpickler do.

Even where no name is allowed, a few bytes can make the C unpickler fill gigabytes (a huge index into its memo), end the
interpreter (the hash of tuples nested 200,000 deep overflows the C stack), or compare for hours (integers with the same
hash as keys).  To look at each opcode first takes longer than to load.  But what does such harm is many, so it shows in
one byte of a thousand, chosen at random, and only what is then suspicious is gone through.  docs/security.rst says what
is not bounded.
"""
from __future__ import annotations

import io
import os
import pickle
import re
import sys
from contextlib import suppress
from functools import cache
from math import log1p
from typing import Any

from chest.errors import LoadError

_DEEPEST = 200  # tuples in tuples, where they are counted one by one
_MOST_PARTS = 100_000  # of a tuple, with those of the tuples in it as often as they are there: a hash looks at each
# Tuples in tuples that may be hashed: 64 bytes of the C stack each, several times as many without optimisation.
_MOST_TUPLES = 80_000 if sys.platform == "linux" and not hasattr(sys, "gettotalrefcount") else 10_000
_MOST_NUMBERS = 10_000  # large integers that may have the same hash, about: 1 s
# Bytes of which one is looked at: 130,000 tuples, 127 of them expected, are not seen once in 10 ** 11 times.
_EACH = 1024 if _MOST_TUPLES > 10_000 else 128
_STRIDE = 8192  # about so far apart are the bytes of one of several samples
_MEMO = 1 << 22  # an index into the memo that is always allowed: 64 MB
_SEARCHED = 16_384  # bytes up to which a search takes less time than to look at the first opcodes
_MOST_TIMES = 6.0  # logarithm of how many times a tuple may be in another where they are not counted
_STEPS = 5  # runs of opcodes that are looked at for such an index

_PUT = re.compile(rb"r(?=..(?:[\x40-\xff].|.[\x01-\xff]))", re.DOTALL)  # an index of 2 ** 22 or more
_PUT_TEXT = re.compile(rb"p(?=[\s+]*[0-9_]{7})")  # the same in text
_SHORT = [re.escape(bytes((size,))) + b"." * size for size in range(33)]
# Numbers, short texts and bytes; but integers of more than 8 bytes, as no more than 9 of others have the same hash.
_ATOM = rb"[N)\x88\x89]|K.|[C\x8c](?:%s)|J....|M..|G........|\x8a(?:%s)" % (b"|".join(_SHORT), b"|".join(_SHORT[:9]))
_SINGLE = rb"012RQabdelosu\]}\x81\x8f-\x94\x97\x98"
_OTHER = (rb"[hq\x80\x82].|j....|\x83..|\x84....|r..[\0-\x3f]\0|\x95........"
          rb"|[FILSVgP][^\n]*\n|[ci][^\n]*\n[^\n]*\n")
_ROWS = {ord("G"): 9, ord("J"): 5, ord("M"): 3, ord("K"): 2}  # numbers, of which there may be many in a row
_NUMBERS = re.compile(rb"[\x8a\x8bIL]")  # opcodes of integers of any size
_TEXT = re.compile(rb"[IL](\s*[+-]?\d\w{16,4000}?)\s*L?\s*\n")
_SIZED = {code: size for size, codes in {1: b"UC\x8a\x8c", 4: b"TXB\x8b", 8: b"\x8d\x8e\x96"}.items() for code in codes}


@cache
def _run() -> re.Pattern[bytes]:
    """Opcodes at which there is nothing to look; tuples of atoms are among them, for these are in no depth."""
    atom = rb"(?:%s|\x8a(?:%s))\x94?" % (_ATOM, b"|".join(_SHORT[9:]))
    return re.compile(rb"(?:%s(?:\x85|%s(?:\x86|%s\x87?)?)?|\((?:(?:%s){4,16}t)?|[%s]|%s){0,64}"
                      % ((atom,) * 4 + (_SINGLE, _OTHER)), re.DOTALL)


@cache
def _strides() -> list[int]:
    """Primes, so that what stands in regular distances is in a sample as often as anything else."""
    return [number for number in range(_STRIDE * 3 // 4 + 1, _STRIDE * 5 // 4, 2) if pow(2, number - 1, number) == 1]


class Refused(LoadError):
    """A pickle names something, or asks for something, that is not done for a chest opened with ``trusted=False``."""


class Source(io.BytesIO):
    """Bytes as a file that the C unpickler looks at as a whole, instead of asking for each opcode."""

    def peek(self, size: int) -> memoryview:
        """What is not read yet, without reading it."""
        return memoryview(self.getvalue())[self.tell() :]


def check(data: bytes) -> bool:
    """May the C unpickler load ``data``, or must `Careful`?  `Refused` where neither may.

    Cost: 0.01 ns a byte, and up to 20 µs for the first opcodes; 50 ns an opcode where there may be too many tuples.
    """
    if len(data) <= _SEARCHED and _multiplies(data):
        return False
    if len(data) > _SEARCHED or (_fills_memo() and (_PUT.search(data) or _PUT_TEXT.search(data))):
        at, _ = walk(data, _STEPS)
        if len(data) - at > _MOST_TUPLES and _suspicious(data, at):
            return walk(data, len(data))[1] <= _MOST_TUPLES
    return True


def _multiplies(data: bytes) -> bool:
    """May a tuple of tuples that hold others again and again have very many parts, as 40 that double have 2 ** 40?

    Each of them adds what it repeats, by DUP or from the memo, so that they have most if all repeat equally often.
    """
    again = sum(map(data.count, (b"2", b"g", b"h", b"j")))
    tuples = sum(map(data.count, (b"\x85", b"\x86", b"\x87"))) + min(data.count(b"("), data.count(b"t"))
    if tuples * log1p(again / max(tuples, 1)) > _MOST_TIMES:
        tuples = walk(data, len(data))[1]
    return tuples * log1p(again / max(tuples, 1)) > _MOST_TIMES


def _suspicious(data: bytes, begin: int) -> bool:
    """May there be too many tuples?  `Refused` for too many integers of the same hash.

    Both as far as one byte of `_EACH` from ``begin`` on tells, chosen at random: nobody can hide what is many.
    """
    sample, found = b"", []
    for chosen in memoryview(os.urandom(4 * _STRIDE // _EACH)).cast("I"):
        offset, which = divmod(chosen, len(_strides()))
        stride = _strides()[which]
        first = begin + offset % stride
        part = data[first::stride]
        found += [_number(data, first + one.start() * stride) for one in _NUMBERS.finditer(part)]
        sample += part
    alike = dict(zip(map(hash, found), found))
    if sum([alike[hash(number)] != number for number in found]) > _MOST_NUMBERS // _EACH // 4:
        raise Refused("it has too many integers of the same hash")
    # One of more than three takes TUPLE as well as MARK, which also begins what goes into a list or a dict.
    tuples = sum(map(sample.count, (b"\x85", b"\x86", b"\x87"))) + min(sample.count(b"("), sample.count(b"t"))
    return tuples * _EACH > _MOST_TUPLES * 3 // 4


def _number(data: bytes, at: int) -> int:
    """The integer whose opcode may be there, if it is one of more than 8 bytes; else 0."""
    if data[at] in b"\x8a\x8b":
        begin = at + 1 + _SIZED[data[at]]
        size = int.from_bytes(data[at + 1 : begin], "little")
        return int.from_bytes(data[begin : begin + size], "little", signed=True) if 9 <= size < 1 << 16 else 0
    line = _TEXT.match(data, at)
    with suppress(ValueError):  # no number, which the unpickler will say as well
        return int(line[1], 0) if line else 0
    return 0


@cache
def _fills_memo() -> bool:
    """Does this unpickler fill a list up to an index?  The newer C ones do not, nor does the one in Python."""
    unpickler = pickle.Unpickler(io.BytesIO(b"Nr\0\0\1\0."))
    unpickler.load()
    return sys.implementation.name == "cpython" and sys.getsizeof(unpickler) > 1 << 18


def walk(data: bytes, steps: int) -> tuple[int, int]:
    """Go through so many runs of opcodes; returns how far, and how many tuples of other than atoms they make.

    `Refused` for an index into the memo that is too large, and a length that it does not have.
    """
    at = step = tuples = largest = 0
    run = _run()
    while at < len(data) and step < steps:
        width = _ROWS.get(data[at])
        if width is not None:  # to skip a row takes no more time than to look at one opcode
            row = data[at : at + 1000 * width : width]
            at += width * (len(row) - len(row.lstrip(row[:1])))
            if data[at : at + 2] == b"e(":  # the next row of the same list
                at += 2
            continue
        step += 1
        before, at = at, run.match(data, at).end()  # type: ignore[union-attr]
        code = data[at] if at < len(data) else ord(".")
        if code in _SIZED:
            begin = at + 1 + _SIZED[code]
            at = begin + int.from_bytes(data[at + 1 : begin], "little")
        elif code in b"t\x85\x86\x87":
            tuples += 1
            at += 1
        elif code == ord("r"):
            largest = max(largest, int.from_bytes(data[at + 1 : at + 5], "little"))
            at += 5
        elif code == ord("p"):
            begin, at = at + 1, data.find(b"\n", at) + 1 or len(data)
            part = data[begin:at].replace(b"_", b"").strip(b"+ \r\n").lstrip(b"0")
            largest = max(largest, int(part[:19]) if part.isdigit() else 0)
        elif at == before:  # STOP, or nothing that the unpickler takes
            break
    if at > len(data) or largest >= max(len(data), _MEMO):
        raise Refused("it asks for far more memory than it is long")
    return at, tuples


_InPython: Any = pickle._Unpickler  # type: ignore[attr-defined,unused-ignore]


class Careful(_InPython):  # type: ignore[misc]
    """The unpickler in Python, 10 times as slow: refuses tuples that are nested too deep or have too many parts, and
    attributes of what is not chest's own, where `finish` would not look for what is not allowed.
    """

    dispatch = dict(_InPython.dispatch)

    def __init__(self, file: Any, **settings: Any) -> None:
        super().__init__(file, **settings)
        # Depth and parts of each tuple, which is kept, so that an id is no other's.
        self._tuples: dict[int, tuple[object, int, int]] = {}

    def _load_tuple(self, usual: Any) -> None:
        usual(self)
        made = self.stack[-1]
        inner = [self._tuples[id(part)] for part in made if id(part) in self._tuples]
        depth = 1 + max([deep for _, deep, _ in inner], default=0)
        parts = len(made) + sum([many for *_, many in inner])
        if depth > _DEEPEST or parts > _MOST_PARTS:
            raise Refused(f"it has tuples that are nested more than {_DEEPEST} deep, or hold others again and again")
        self._tuples[id(made)] = made, depth, parts

    for _code in b"t\x85\x86\x87":
        dispatch[_code] = lambda self, usual=dispatch[_code]: self._load_tuple(usual)

    def _load_build(self) -> None:
        module = type(self.stack[-2]).__module__
        if module == "datetime":  # PyPy repeats there what the call was given
            self.stack.pop()
        elif module.startswith("chest.serialize."):
            _InPython.load_build(self)
        else:
            raise Refused("it gives attributes to what has none")

    dispatch[ord("b")] = _load_build
