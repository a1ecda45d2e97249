"""The bytes of ``.keys``, format 2, as ``docs/format.rst`` has them: a list, its footer, and records of commits.

A record is torn where its writer died or the power failed: the file ends before the trailer does, or has zeros where
bytes were not on the disk yet, and nothing whole follows.  It was never committed.  All else is damage.  A single
flipped bit cannot make a whole record look torn, as it leaves the trailer, or puts no zero into it: each of its bytes
has two bits set or more.
"""
from __future__ import annotations

import io
import operator
import os
import pickle
import struct
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Callable, Optional
from zlib import crc32

from chest._version import __version__
from chest.errors import ChestError, DamagedError, DumpError, LoadError, explain_os, of_the_process, printable, refused
from chest.index.filenames import Ref
from chest.log import log

if TYPE_CHECKING:
    from chest.serialize.codec import Codec

__all__ = ["KEYS", "Pairs", "Refs", "alike", "dumped", "explained", "parse", "parse_records", "put", "read_anew",
           "record", "whole_list", "written_by"]

Pairs = list[tuple[Any, Optional[Ref]]]  # a ref of None says that the key was deleted
Refs = dict[Any, Optional[Ref]]

KEYS = ".keys"
FORMAT = 2
END_OF_LIST = b"\xc5\xe7keys\xb9\x93"
_BEGIN = b"\x80\x05C"  # PROTO 5, SHORT_BINBYTES: a pickle that begins by pushing, and popping, what we say of it
_MAGIC = b"+chs"
_TRAILER = b"\xd3\xa6end\x95\xb3\xcb"
_FOOTER = struct.Struct("<8sQI")
_HEAD = struct.Struct("<4sQI")
_CRC = 4  # bytes of a checksum
_ATOMS = {str, int, float, bytes, bool, type(None)}
_REF = 1 << 144  # more than any ref of a record


# Writing.


def dumped(pairs: Pairs, whole: bool = False) -> bytes:
    """The pickle of ``pairs``; of a ``whole`` list of nothing but records as keys and steps: neighbours' refs differ
    little.  `DumpError` if a key cannot be pickled."""
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, 5)
    keys, refs = [key for key, _ in pairs], [ref for _, ref in pairs]
    records = set(map(type, refs)) == {int}
    if records and _ATOMS.issuperset(map(type, keys)):
        pickler.fast = True  # nothing is shared: without the memo it takes a fifth of the time
    try:
        pickler.dump((keys, list(map(operator.sub, refs, [0, *refs]))) if whole and records else pairs)
    except Exception as error:
        if of_the_process(error):
            raise
        raise DumpError(f"a key cannot be pickled ({type(error).__name__}: {error})") from error
    return stream.getvalue()


def _sealed(fields: bytes) -> bytes:
    return fields + crc32(fields).to_bytes(_CRC, "little")


def whole_list(pairs: Pairs, mark: bytes = b"") -> bytes:
    """The list and its footer; with a ``mark`` of up to 255 bytes, which unpickling skips, in front of the pairs."""
    pushed = (f"chest-keys {FORMAT} {__version__}".encode(), mark)
    head = b"".join(pickle.SHORT_BINBYTES + bytes([len(one)]) + one + pickle.POP for one in pushed if one)
    pickled = dumped(pairs, whole=True)
    data = pickled[:2] + head + pickled[2:]
    return data + _sealed(_FOOTER.pack(END_OF_LIST, len(data), crc32(data)))


def record(changes: Pairs) -> tuple[bytes, bytes]:
    """One commit's changes as they are appended, and the trailer that ends them."""
    body = dumped(changes)
    return _sealed(_HEAD.pack(_MAGIC, len(body), crc32(body))) + body, _TRAILER


# Reading.


def written_by(data: bytes) -> tuple[int, str] | None:
    """The format and version of chest that wrote a list beginning with ``data``; `None` for anyone else's."""
    text = data[4 : 4 + data[3]] if len(data) > 3 and data.startswith(_BEGIN) else b""
    words = text.split()
    if len(words) != 3 or words[0] != b"chest-keys" or not words[1].isdigit():
        return None
    return int(words[1]), words[2].decode("ascii", "replace")


def parse(data: bytes, path: str, codec: Codec, load: Callable[[], Any]) -> tuple[Refs, int, int]:
    """All pairs of the index at ``path``, whose bytes are ``data``; where the list and its footer end, 0 if others
    wrote it; and where the whole records do.

    ``load`` reads with the user's settings what chest did not write: with them, as a pickle, or 0.2.3.
    """
    writer = written_by(data[:260])
    if writer is None:
        if END_OF_LIST in data:
            raise DamagedError("the first bytes of the list are not those that chest wrote")
        try:
            return checked(read_anew(_unpickled(data, codec) if codec.native else load())), 0, 0
        except Exception as error:
            if codec.native or of_the_process(error):
                raise
            try:
                return checked(read_anew(_unpickled(data, codec))), 0, 0
            except Exception:
                raise error from None
    if writer[0] != FORMAT:
        raise ChestError(f"{path} was written by chest {printable(writer[1])} in format {writer[0]}, which "
                         f"this one ({__version__}) does not know; upgrade chest to open it")
    stop = end = 0
    while not end:
        stop = data.find(END_OF_LIST, stop + 1)  # it may stand in a key, too
        if stop < 0:
            raise DamagedError("the checksum of the list is wrong")
        footer = _sealed(_FOOTER.pack(END_OF_LIST, stop, crc32(memoryview(data)[:stop])))
        end = stop + len(footer) if data.startswith(footer, stop) else 0
    refs = checked(_unpickled(data[:stop], codec))
    changes, length = parse_records(data[end:], path, codec)
    for key, ref in changes:
        put(refs, key, ref)
    return refs, end, end + length


def parse_records(data: bytes, path: str, codec: Codec) -> tuple[Pairs, int]:
    """What the whole records in ``data`` say, and where they end.  `DamagedError` unless the rest is torn."""
    changes: Pairs = []
    start = 0
    while start < len(data):
        begin = start + _HEAD.size + _CRC
        place, found, written = start, data[start : start + len(_MAGIC)], _MAGIC
        if data[start:begin] == _sealed(_MAGIC + data[start + len(_MAGIC) : begin - _CRC]):
            _, length, checksum = _HEAD.unpack_from(data, start)
            place = begin + length
            found, written = data[place : place + len(_TRAILER)], _TRAILER
            if found == _TRAILER and crc32(data[begin:place]) == checksum:
                changes += _unpickled(data[begin:place], codec)
                start = place + len(_TRAILER)
                continue
        if data.find(_TRAILER, place) >= 0 or any(byte not in (0, right) for byte, right in zip(found, written)):
            raise DamagedError(f"the commit at byte {start} behind the list is damaged")
        log("debug", "%s ends in a torn record, which was never committed", path)
        break
    checked(changes, {str, int, type(None)})
    return changes, start


def _unpickled(data: bytes, codec: Codec) -> Any:
    """What is pickled in ``data``: if it is a stranger's, without running code of it."""
    if not codec.trusted:
        from chest.serialize import restricted

        return restricted.loads(data, whole=True)
    return pickle.loads(data)


@contextmanager
def explained(path: str) -> Iterator[None]:
    """What goes wrong in reading the index comes out as a `LoadError`, or `OSError`, that names it."""
    try:
        yield
    except Exception as error:
        if type(error) is ChestError or of_the_process(error):
            raise
        if refused(error):
            raise explain_os(error, "read the index", path) from error
        told = str(error) if isinstance(error, LoadError) else f"{type(error).__name__}: {error}"
        raise (DamagedError if isinstance(error, DamagedError) else LoadError)(
            f"the index {path} cannot be read ({told}); nothing was changed. Open the chest with the dump, "
            f"load, open and mode that it was written with, or put the file back from a copy") from error


def checked(found: Any, kinds: Iterable[type] = (str, int)) -> Refs:
    """Pairs, or keys and steps, as a dict.  Names are looked at when they are used; here only that they are names."""
    if type(found) is tuple:
        keys, steps = found
        # Else sums of what a stranger puts there might take all memory.
        if len(keys) != len(steps) or set(map(type, steps)) != {int} or min(steps) < -_REF or max(steps) > _REF:
            raise LoadError("it does not map keys to files")
        found = zip(keys, accumulate(steps))
    refs = dict(found)
    if not set(map(type, refs.values())).issubset(kinds):
        raise LoadError("it does not map keys to files")
    return refs


def put(refs: Refs, key: Any, ref: Ref | None) -> None:
    """``key`` is what a commit says of it: at ``ref``, or not there."""
    if ref is None:
        refs.pop(key, None)
    else:
        refs[key] = ref


def read_anew(pairs: Any) -> Pairs:
    """Pairs that others wrote: json makes lists of tuples, 0.2.3 wrote the system's own separators."""
    return [(hashable(key), ref.replace(os.sep, "/") if isinstance(ref, str) else ref) for key, ref in
            (pairs.items() if isinstance(pairs, dict) else pairs)]


def hashable(key: Any) -> Hashable:
    """``key`` with its lists read as tuples: json knows no others."""
    return tuple(map(hashable, key)) if type(key) in (list, tuple) else key


def alike(a: Any, b: Any) -> bool:
    """Equal, and of equal types all the way down: ``1`` is not ``True``, nor ``'1'``."""
    if isinstance(a, (tuple, list)) and type(a) is type(b):
        return len(a) == len(b) and all(map(alike, a, b))
    return type(a) is type(b) and bool(a == b)
