"""The values of a chest in an object store, or wherever else fsspec reaches: one process at a time writes.

A round trip takes 10 to 100 ms.  So objects are put, got and removed in lists, the small values of a batch share an
object (a pack), and nothing is asked that can be known: a name ends in a random part, so that nobody picks it twice,
and in the size; whether a value changed is told by a digest of what it serialises to.
"""
from __future__ import annotations

import base64
import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from zlib import crc32

from chest.errors import ChestError, DamagedError, of_the_process
from chest.index import KEYS
from chest.index.filenames import Names, Ref, digest, inside, names_of
from chest.serialize.aligned import Encoded, without_mark
from chest.serialize.compare import can_change
from chest.storage import base
from chest.storage.base import CRC, LENGTH, OFFSET, PACK, PACKS, Loaded, Written, attempt, batches, file_of, offset_of
from chest.storage.store import Range, RemoteKeys, Store

if TYPE_CHECKING:
    from chest.serialize.codec import Codec, Stamp
    from chest.storage.base import Storage

__all__ = ["Remote"]

_OURS = re.compile(r"~[a-z2-7]{12}-([0-9a-f]+)\Z")  # the end of a name: 60 random bits, and the size in bytes
_ROOM = 220  # bytes of a name's last part that leave room for it: file systems allow 255
_UNKNOWN = 16 * 2**20  # bytes that an object is taken to have while its size is not known
_AT_ONCE = 32 * 2**20  # bytes after which no further object goes along: so many, and one object, are under way
_GAP = 2**14  # bytes between two records of a pack that are rather read than asked for separately


class Remote:
    """A `Storage` at ``url``.  A ref never comes again, so that all versions are 0; ``keys`` is the index there.

    `ImportError` without the packages for this kind of URL, `ValueError` for an unknown kind, `OSError` without answer,
    `ChestError` for an ``open`` of the user's.

    A pack is put whole by one `write`.  As nobody can tell whether a pack's writer is alive, only packs that a commit
    named, or that this handle made, are compacted or removed; packs that a killed writer left stay until the chest is
    dropped, its objects of single values for good.
    Cost: one round trip for each call, none for `same`, `size` and `version`.
    """

    remote = True

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None, codec: Codec, names: Names):
        if not codec.local:
            raise ChestError("open= is for files of a directory: at a URL let dump= and load= compress what they write")
        self._store = Store(url, storage_options or {})
        self.path, self.codec = self._store.path, codec
        self.keys = RemoteKeys(self._store, codec)
        self._names = names
        self._sizes: dict[int, int] = {}  # bytes of the packs that this handle made, or has seen in a listing
        self._new: set[int] = set()  # packs that this handle made, some of which a commit may still name

    def file(self, ref: Ref) -> str:
        return self._store.shown(file_of(ref))

    # Out.

    def write(self, items: Sequence[tuple[object, object]], small: int) -> list[Written]:
        """Small values, but for those whose names were reserved, share objects of up to 32 MB."""
        done: list[Written] = []
        try:
            encoded = ((key, attempt(self.codec.encode, value)) for key, value in items)
            for batch in batches(encoded, _AT_ONCE, lambda one: getattr(one[1], "nbytes", 0)):
                done += self._put(batch, small)
        except BaseException:  # nobody was told of these
            self.remove([one.ref for one in done if one.ref is not None])
            raise
        return done

    def _put(self, batch: Sequence[tuple[Any, Encoded | Exception]], small: int) -> list[Written]:
        """Put the objects of a batch, and its small values as a pack; if that fails none of them counts, nor stays."""
        done: list[Written] = []
        objects: dict[str, bytes] = {}
        pack = int.from_bytes(os.urandom(5), "big")
        records: dict[Ref, bytes] = {}
        end = 0
        for key, encoded in batch:
            if isinstance(encoded, Exception):
                done.append(Written(error=encoded))
                continue
            name = self._names.reserved.get(key)
            ref: Ref
            if name is None and 0 < encoded.nbytes < min(small, 1 << LENGTH):
                data = without_mark(encoded.pieces)
                ref = pack << PACK | end << OFFSET | len(data) << LENGTH | crc32(data)
                records[ref] = data
                end += len(data)
            else:
                data = b"".join((*encoded.pieces, encoded.note()))
                ref = name or f"{_new_name(self._names, key)}-{len(data):x}"
                objects[ref] = data
                self._names.release(key)
            done.append(Written(ref, len(data), stamp=encoded.whole_stamp()))
        if records:
            objects[file_of(pack << PACK)] = b"".join(records.values())
        try:
            if objects:
                self._store.put(objects)
            if records:
                self._new.add(pack)
                self._sizes[pack] = end
        except BaseException as error:
            self._store.remove(list(objects))
            if not isinstance(error, OSError):
                raise
            return [one if one.error else Written(error=error) for one in done]
        return done

    def reserve(self, key: object) -> str:
        """The name that the next object of ``key`` will have, which then lies in no pack."""
        return self._names.reserve(key, lambda: _new_name(self._names, key))

    def link(self, key: object, other: Storage, ref: Ref) -> Written:
        """No store has hard links: `OSError`, and the caller copies."""
        raise OSError(errno.EXDEV, "no hard links", self.path)

    # Back.

    def load(self, ref: Ref, owner: int = 0) -> Loaded:
        return self._loaded(ref, self._get([ref])[ref])

    def load_many(self, refs: Sequence[Ref], keys: Sequence[object] = ()) -> Iterator[Loaded | Exception]:
        """Up to 32 MB and one value are got at once."""
        for batch in batches(refs, _AT_ONCE, _weight):
            found = self._get(batch)
            for ref in batch:
                yield attempt(self._loaded, ref, found.pop(ref))  # which lets go of its bytes

    def _get(self, refs: Sequence[Ref]) -> dict[Ref, bytes | Exception]:
        """The verified bytes of each, or an error; records that are near each other in a pack are got as one."""
        found: dict[Ref, bytes | Exception] = {
            ref: ChestError(f"the index names {ref!r}, which is none of a chest's own: do not trust this chest")
            for ref in refs if isinstance(ref, str) and not inside(ref)}
        names: list[Ref] = [ref for ref in refs if isinstance(ref, str) and ref not in found]
        wanted: list[Range] = [(str(name), None, None) for name in names]
        places = [(name, number, 0) for number, name in enumerate(names)]  # in what is wanted, and where there
        begin = end = 0
        for record in sorted(ref for ref in refs if isinstance(ref, int)):
            pack, start = file_of(record), offset_of(record)
            if not wanted or wanted[-1][0] != pack or start > end + _GAP:
                begin = start
                wanted.append((pack, begin, end))
            end = start + _weight(record)
            wanted[-1] = pack, begin, end
            places.append((record, len(wanted) - 1, start - begin))
        got = self._store.get(wanted) if wanted else []
        for ref, number, start in places:
            one, told = got[number], _told(ref)
            if isinstance(one, bytes) and told is not None:
                if isinstance(ref, int):
                    one = one[start : start + told]
                if len(one) != told or (isinstance(ref, int) and crc32(one) != ref & CRC):
                    one = DamagedError(f"{self.file(ref)} does not hold what was written")
            found[ref] = one
        return found

    def _loaded(self, ref: Ref, data: bytes | Exception) -> Loaded:
        if isinstance(data, Exception):
            raise data
        value = self.codec.decode_file(data)[0] if isinstance(ref, str) else self.codec.decode(data)
        stamp: Stamp = None
        if can_change(value):
            again = attempt(self.codec.encode, value)  # need not be the very bytes that it was loaded from
            if isinstance(again, Encoded):  # else it cannot be dumped, so it will count as changed
                stamp = again.whole_stamp()
            elif of_the_process(again):
                raise again
        return Loaded(value, len(data), 0, stamp)

    # What is known without asking.

    def same(self, ref: Ref, value: object) -> bool:
        return False  # stamps tell all that can be told without a round trip

    def size(self, ref: Ref) -> int:
        """A round trip for a name that was reserved, which does not tell."""
        size = _told(ref)
        return int(self._store.info(str(ref)).get("size") or 0) if size is None else size

    def version(self, ref: Ref) -> int | None:
        return 0

    # Commits.

    def remove(self, refs: Iterable[Ref]) -> None:
        """What cannot go stays."""
        names = names_of(refs)
        if names:
            self._store.remove(names)

    def committed(self, plain: bool = False, pending: bool = False) -> None:
        """Remove the packs that a commit named once, or that this handle made, and the newest does not name."""
        named, known = self.keys.named, self.keys.known
        if not pending:  # nothing in a pack of this handle's waits for another commit
            known |= self._new
            self._new.clear()
        dead = known - named - self._new
        if dead and self._store.remove([file_of(pack << PACK) for pack in dead]):
            known.difference_update(dead)

    def _nothing(self, *what: object, **more: object) -> None:
        """There is nothing to make, `committed` reclaims, and no chest in a store is a temporary one."""

    make = committing = left_bytes = reclaim = clear_away = _nothing

    def compact(self, refs: Mapping[Any, Ref | None]) -> dict[int, int]:
        """Copy the records of committed packs that hold more than twice what lives in them to a new pack.

        Cost: O(keys); one listing for a handle that meets packs of others.  The old ones go with the commit.
        """
        living = {pack: held for pack, held in base.by_pack(refs.values()).items() if pack not in self._new}
        if not living.keys() <= self._sizes.keys():
            sizes = self._store.listed(PACKS)
            self._sizes.update((pack, sizes.get(f"{pack:010x}", 0)) for pack in living)
        worth = [pack for pack, held in living.items() if self._sizes[pack] > 2 * sum(map(self.size, held))]
        moved: dict[int, int] = {}
        for batch in batches(sorted(ref for pack in worth for ref in living[pack]), _AT_ONCE, _weight):
            found = {int(ref): data for ref, data in self._get(batch).items() if isinstance(data, bytes)}
            put = self._put([(object(), Encoded.of(data)) for data in found.values()], 1 << LENGTH)
            # What cannot be put stays where it is, and its pack with it.
            moved.update((ref, int(one.ref)) for ref, one in zip(found, put) if one.ref)
        return moved

    # The place as a whole.

    def exists(self) -> bool:
        return True  # folders, where there are any, come with what is put there

    def drop(self, refs: Iterable[Ref]) -> None:
        """Remove these values, all packs and what is left of indexes, and the folder if that leaves it empty."""
        names = [KEYS, *(name for name in self._store.listed("") if name.startswith(KEYS + "~"))]
        names += [f"{PACKS}/{name}" for name in self._store.listed(PACKS)]
        self._store.remove(names + names_of(refs))
        self._store.prune()

    def close(self) -> None:
        self.committed()  # at the last commit another thread may have been writing
        self._store.close()

    def after_fork(self) -> None:
        self._new.clear()  # the parent's
        self._store.after_fork()


def _new_name(names: Names, key: object) -> str:
    plain = names.plain(key)
    if len(plain.rpartition("/")[2].encode("utf-8")) > _ROOM:
        plain = digest(key)
    return f"{plain}~{base64.b32encode(os.urandom(8))[:12].decode().lower()}"


def _told(ref: Ref) -> int | None:
    """Bytes of the value, if its ref tells."""
    if isinstance(ref, int):
        return ref >> LENGTH & CRC
    found = _OURS.search(ref)
    return int(found[1], 16) if found else None


def _weight(ref: Ref) -> int:
    return _told(ref) or _UNKNOWN
