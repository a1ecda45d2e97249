"""What every storage can do, and what it says of a value: `Storage`, `Ref`, `Written`, `Loaded`."""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from chest.index.filenames import Ref

if TYPE_CHECKING:
    from chest.serialize.codec import Codec, Stamp

__all__ = ["CRC", "LENGTH", "OFFSET", "PACK", "PACKS", "Loaded", "Ref", "Storage", "Written", "attempt", "batches",
           "by_pack", "file_of", "offset_of", "pack_of", "record_size"]

T = TypeVar("T")

# A ref that is an int is a record: pack << PACK | offset << OFFSET | length << LENGTH | crc, with 40 random bits
# for the pack, 40 for the offset, 32 for the length, and `zlib.crc32` of the record's bytes.  As the checksum stands in
# the ref, nobody's bytes can pass for another's.  A record that moved keeps its low 64 bits.
PACK, OFFSET, LENGTH = 104, 64, 32
PACKS = ".packs"  # the folder of the packs
CRC = 0xFFFF_FFFF  # mask of the checksum, and of the length


def pack_of(record: int) -> str:
    """The name of the pack that a record is in, below the path of the chest."""
    return f"{PACKS}/{record >> PACK:010x}"


def file_of(ref: Ref) -> str:
    """The name of the file that a value is in, below the path of the chest: its own, or its pack."""
    return pack_of(ref) if isinstance(ref, int) else ref


def record_size(record: int) -> int:
    """The bytes of a record."""
    return record >> LENGTH & CRC


def offset_of(record: int) -> int:
    """The byte of its pack at which a record begins."""
    return record >> OFFSET & (1 << PACK - OFFSET) - 1


def by_pack(refs: Iterable[Ref | None]) -> dict[int, list[int]]:
    """The records among ``refs``, by the numbers of their packs."""
    found: defaultdict[int, list[int]] = defaultdict(list)
    for ref in refs:
        if type(ref) is int:
            found[ref >> PACK].append(ref)
    return found


def batches(items: Iterable[T], most: int, size: Callable[[T], int] = lambda item: 1) -> Iterator[list[T]]:
    """``items`` in lists, each of which ends with the item that brings the sum of their sizes to ``most``."""
    some, total = [], 0
    for item in items:
        some.append(item)
        total += size(item)
        if total >= most:
            yield some
            some, total = [], 0
    if some:
        yield some


def attempt(work: Callable[..., T], *what: object) -> T | Exception:
    """What ``work`` makes of a value; or its error, such as one of the user's dump or load."""
    try:
        return work(*what)
    except Exception as error:
        return error


class Written(NamedTuple):
    """One value's way out: where its bytes lie, how many, and which version of the file; or what went wrong."""

    ref: Ref | None = None
    nbytes: int = 0
    version: int = 0
    stamp: Stamp = None
    error: Exception | None = None


class Loaded(NamedTuple):
    """One value's way back, with the bytes that it takes on disk, the version of its file, and its stamp."""

    value: object
    nbytes: int
    version: int
    stamp: Stamp


class Storage(Protocol):
    """Where the bytes of values lie.  Bytes that were written once are never changed.  Any thread calls any method.

    What the system refuses is an `OSError`, a value that is gone a `FileNotFoundError`, bytes that are proven to be
    others than were written a `DamagedError`; what unpickling raises comes out as itself.
    """

    path: str
    remote: bool
    codec: Codec

    def write(self, items: Sequence[tuple[object, object]], small: int) -> list[Written]:
        """Write each value to new bytes; those that serialise to fewer than ``small`` bytes into packs."""
    def load(self, ref: Ref, owner: int = 0) -> Loaded:
        """The value at ``ref``; `DamagedError` if its file is that of a key with another checksum than ``owner``."""
    def load_many(self, refs: Sequence[Ref], keys: Sequence[object] = ()) -> Iterator[Loaded | Exception]:
        """The values in order, or what went wrong with each; small ones are read ahead: ask for 1,000 at most."""
    def same(self, ref: Ref, value: object) -> bool:
        """Is the value as its bytes are?  `False` if nobody can tell, as they are gone or damaged."""
    def size(self, ref: Ref) -> int:
        """Bytes that the value takes on disk, 0 if it is gone."""
    def version(self, ref: Ref) -> int | None:
        """What tells this file from others that had its name or will have it; 0 for a record, `None` if it is gone."""
    def link(self, key: object, other: Storage, ref: Ref) -> Written:
        """Give the bytes of another storage's value to ``key`` here.  `OSError` where that cannot be."""
    def remove(self, refs: Iterable[Ref]) -> None:
        """Remove values.  One that is gone already is as well.  Records need nothing."""
    def committing(self, superseded: Iterable[Ref]) -> None:
        """The commit that follows names these no more: who finds this process dead then removes them in its stead."""
    def committed(self, plain: bool = False, pending: bool = False) -> None:
        """A commit, ``plain`` if of all keys, names what was written so far, but for what is ``pending``; what it
        superseded was removed."""
    def left_bytes(self) -> None:
        """Bytes may be there, or a file may, that nothing names: they stay listed until `reclaim` has looked."""
    def compact(self, refs: Mapping[Any, Ref | None]) -> dict[int, int]:
        """Copy records out of packs that hold little else than garbage.  Returns old and new ref of each."""
    def reclaim(self, refs: Collection[Ref]) -> None:
        """Remove what no commit names and no living writer has made just now; the caller has the directory's lock,
        ``refs`` are all that are committed."""
    def reserve(self, key: object) -> str:
        """The name that the next file of ``key`` will have, as far as anyone can tell now; kept for the key."""
    def file(self, ref: Ref) -> str:
        """The full path of a value's file, for people."""
    def make(self) -> None:
        """Make the place where values are to lie, where it is not there."""
    def exists(self) -> bool:
        """Is it there?"""
    def drop(self, refs: Iterable[Ref]) -> None:
        """Remove these values, which are all that is committed, and the place itself if that leaves it empty."""
    def clear_away(self) -> None:
        """Remove the place with all that is in it: it was a temporary one."""
    def close(self) -> None:
        """Let go of all that is held open."""
    def after_fork(self) -> None:
        """In a fork's child: what is the parent's stays the parent's."""
