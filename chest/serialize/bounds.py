"""Bounds on what a stranger's pickle makes the unpickler do.

Even where no name is allowed, a few bytes can make the C unpickler fill gigabytes (a huge index into its memo), end the
interpreter (the hash of tuples nested 200,000 deep overflows the C stack), or compare for hours (integers with the same
hash as keys).  To look at each opcode first takes longer than to load, so bytes are counted and searched, and only what
is then suspicious is gone through.  One thing is not bounded everywhere: where the unpickler lacks the fix of gh-115952
a huge index behind the first 320 opcodes fills as much memory as the system grants, 64 GB at most.
"""
from __future__ import annotations

import io
import pickle
import re
import sys
from contextlib import suppress
from functools import cache
from typing import Any

from chest.errors import LoadError

MOST_ALIKE = 1_000  # different numbers of the same hash: 10 ms if all of them are keys of one dict
_DEEPEST = 200  # tuples in tuples, where they are counted one by one
# Tuples in tuples that may be hashed: 64 bytes of the C stack each, several times as many without optimisation.
_MOST_TUPLES = 80_000 if sys.platform == "linux" and not hasattr(sys, "gettotalrefcount") else 10_000
_MOST_NUMBERS = 10_000  # large integers that may have the same hash: 1 s
_MEMO = 1 << 22  # an index into the memo that is always allowed: 64 MB
_STEPS = 10  # runs of opcodes that are looked at for such an index
_BLOCK = 131_072  # bytes that are counted at a time

_PUT = re.compile(rb"r(?=..(?:[\x40-\xff].|.[\x01-\xff]))", re.DOTALL)  # an index of 2 ** 22 or more
_SHORT = [re.escape(bytes((size,))) + b"." * size for size in range(33)]
# Numbers, short texts and bytes; but integers of more than 8 bytes, as no more than 9 of others have the same hash.
_ATOM = rb"G........|[C\x8c](?:%s)|K.|[N)\x88\x89]|M..|J....|\x8a(?:%s)" % (b"|".join(_SHORT), b"|".join(_SHORT[:9]))
_OTHER = rb"[012RQabdelosu\]}\x81\x8f-\x94\x97\x98]|[hq\x80\x82].|j....|\x83..|\x84....|r..[\0-\x3f]\0|\x95........"
_RUN = re.compile(rb"(?:%s|[(t\x85-\x87]|%s){0,32}" % (_ATOM, _OTHER), re.DOTALL)  # what need not be looked at
_ROWS = {ord("G"): 9, ord("J"): 5, ord("M"): 3, ord("K"): 2}  # numbers, of which there may be many in a row
_LONG1 = re.compile(b"\x8a(?=[\x09-\xff])")
_SAME = re.compile(b"G+|J+|M+|K+")
_SIZED = {code: size for size, codes in {1: b"UC\x8a\x8c", 4: b"TXB\x8b", 8: b"\x8d\x8e\x96"}.items() for code in codes}
_LINES = {ord("c"): 2, ord("i"): 2, **dict.fromkeys(b"FILSVgpP", 1)}


@cache
def _with_flat_tuples() -> re.Pattern[bytes]:
    """Runs in which tuples of atoms are, too, for these are in no depth: slower, but for many tuples."""
    atom = rb"(?:%s|\x8a(?:%s))\x94?" % (_ATOM, b"|".join(_SHORT[9:]))
    return re.compile(rb"(?:%s(?:\x85|%s(?:\x86|%s\x87?)?)?|\((?:(?:%s){4,16}t)?|%s){0,32}" % ((atom,) * 4 + (_OTHER,)),
                      re.DOTALL)


class Refused(LoadError):
    """A pickle names something, or asks for something, that is not done for a chest opened with ``trusted=False``."""


class Source(io.BytesIO):
    """Bytes as a file that the C unpickler looks at as a whole, instead of asking for each opcode."""

    def peek(self, size: int) -> bytes:
        """What is not read yet, without reading it."""
        return self.getvalue()[self.tell() :]


def check(data: bytes) -> bool:
    """May the C unpickler load ``data``, or must `Careful`?  `Refused` where neither may.

    Cost: 0.1 to 0.4 ns a byte, and up to 20 µs for the first opcodes; 50 ns an opcode where many bytes are suspicious.
    """
    at = tuples = 0
    large = len(data) > _MOST_TUPLES
    if large or ((_PUT.search(data) is not None or b"p" in data) and _fills_memo()):
        at, tuples = walk(data, _STEPS)
    if large:
        deep, alike = _suspicious(data, at, tuples)
        if deep:
            _, tuples = walk(data, len(data), _with_flat_tuples())
        if alike:
            walk(data, len(data))
    return tuples <= _MOST_TUPLES


def _suspicious(data: bytes, at: int, tuples: int) -> tuple[bool, bool]:
    """May too many tuples be nested, and too many integers have the same hash?  Bytes behind ``at`` are counted."""
    numpy: Any = sys.modules.get("numpy")
    rest: Any = data[at:] if numpy is None else numpy.frombuffer(data, "u1")[at:]
    parts = [rest[begin : begin + _BLOCK] for begin in range(0, len(rest), _BLOCK)]  # which a processor holds near

    def count(first: int, codes: int = 1) -> int:
        if numpy is None:
            return len(rest) - len(rest.translate(None, bytes(range(first, first + codes))))
        return sum([int(numpy.count_nonzero(part == first if codes == 1 else part - first < codes)) for part in parts])

    tuples += count(0x85, 3)
    # One of more than three takes TUPLE as well as MARK, which also begins what goes into a list or a dict.
    deep = tuples + len(rest) > _MOST_TUPLES and tuples + min(count(ord("(")), count(ord("t"))) > _MOST_TUPLES
    alike = len(rest) > 10 * _MOST_NUMBERS and count(0x8A, 2) + count(ord("\n")) > _MOST_NUMBERS
    if alike and numpy is not None:  # look at what is behind these bytes, too
        longs = others = 0
        for part in parts:
            # Sizes, the highest bytes of sizes; white space, signs or digits.  Those at the end of a part count.
            long, longer = numpy.flatnonzero(part == 0x8A) + 1, numpy.flatnonzero(part == 0x8B) + 4
            text = numpy.flatnonzero((part == ord("I")) | (part == ord("L"))) + 1
            longs += int(numpy.count_nonzero(part.take(long, mode="clip") > 8)) + 1
            others += int(numpy.count_nonzero(part.take(longer, mode="clip") <= len(data) >> 24)
                          + numpy.count_nonzero(part.take(text, mode="clip") - 9 < 49)) + 5
        most = _MOST_NUMBERS // 2
        alike = others > most or (longs > most and _share_hashes(data))
    return deep, alike


def _share_hashes(data: bytes) -> bool:
    """May integers of ``data`` have the same hash, as far as all bytes that LONG1 may be tell?"""
    places = [found.start() for found in _LONG1.finditer(data)]
    numbers = {data[at + 2 : at + 2 + data[at + 1]] for at in places}
    return len(numbers) - len({hash(int.from_bytes(one, "little", signed=True)) for one in numbers}) > MOST_ALIKE


@cache
def _fills_memo() -> bool:
    """Does this unpickler fill a list up to an index?  The newer C ones do not, nor does the one in Python."""
    unpickler = pickle.Unpickler(io.BytesIO(b"Nr\0\0\1\0."))
    unpickler.load()
    return sys.implementation.name == "cpython" and sys.getsizeof(unpickler) > 1 << 18


def walk(data: bytes, steps: int, run: re.Pattern[bytes] = _RUN) -> tuple[int, int]:
    """Go through so many runs of opcodes, or on while they are long; returns how far, and how many tuples they make.

    ``run`` without those that hold nothing but atoms; by default each byte that may be one counts.

    `Refused` for an index into the memo that is too large, a length that it does not have, and too many integers of
    the same hash.
    """
    at = step = tuples = 0
    largest = max(len(data), _MEMO)
    numbers: dict[bytes, int] = {}  # their hashes
    while at < len(data) and (step < steps or at > step * 2048):
        step += 1
        width = _ROWS.get(data[at])
        if width is not None and data[at : at + 16 * width : width].count(data[at]) == 16:
            at += width * _SAME.match(data[at : at + 1000 * width : width]).end()  # type: ignore[union-attr]
            if data[at : at + 2] == b"e(":  # the next row of the same list
                at += 2
                continue
        before, at = at, run.match(data, at).end()  # type: ignore[union-attr]
        if run is _RUN:
            tuples += at - before - len(data[before:at].translate(None, b"t\x85\x86\x87"))
        code = data[at] if at < len(data) else ord(".")
        index, size, begin = 0, _SIZED.get(code), at + 1
        if size is not None:
            begin += size
            at = begin + int.from_bytes(data[begin - size : begin], "little")
            if code in b"\x8a\x8b" and 9 <= at - begin < 1 << 16:
                part = data[begin:at]
                numbers[part] = hash(int.from_bytes(part, "little", signed=True))
        elif code in b"t\x85\x86\x87":
            tuples += 1
            at += 1
        elif code == ord("r"):
            index = int.from_bytes(data[begin : begin + 4], "little")
            at += 5
        elif code in _LINES:
            for _ in range(_LINES[code]):
                at = data.find(b"\n", at) + 1 or len(data)
            part = data[begin:at].replace(b"_", b"").strip(b"+ L\r\n")
            if code == ord("p"):
                index = int(part[:19]) if part.isdigit() else 0
            elif code in b"IL" and 18 <= len(part) < 4000:
                with suppress(ValueError):  # no number, which the unpickler will say as well
                    numbers[part] = hash(int(part, 0))
        elif at == before:  # STOP, or nothing that the unpickler takes
            break
        if at > len(data) or index >= largest:
            raise Refused("it asks for far more memory than it is long")
    if len(numbers) - len(set(numbers.values())) > MOST_ALIKE and len(data) > 10 * _MOST_NUMBERS:
        raise Refused("it has too many integers of the same hash")
    return at, tuples


_InPython: Any = pickle._Unpickler  # type: ignore[attr-defined,unused-ignore]


class Careful(_InPython):  # type: ignore[misc]
    """The unpickler in Python, 10 times as slow: refuses tuples that are nested too deep, and attributes of what is not
    chest's own, where `finish` would not look for what is not allowed.
    """

    dispatch = dict(_InPython.dispatch)

    def __init__(self, file: Any, **settings: Any) -> None:
        super().__init__(file, **settings)
        self._depths: dict[int, tuple[object, int]] = {}  # tuples are kept, so that an id is no other's

    def _load_tuple(self, usual: Any) -> None:
        usual(self)
        made = self.stack[-1]
        depth = max([self._depths[id(part)][1] for part in made if id(part) in self._depths], default=0) + 1
        if depth > _DEEPEST:
            raise Refused(f"it has tuples that are nested more than {_DEEPEST} deep")
        self._depths[id(made)] = made, depth

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
