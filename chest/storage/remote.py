"""Values of a chest in an object store, or wherever else fsspec reaches.

A round trip takes 10 to 100 ms.  So objects are put, got and removed in lists, the small values of a batch share an
object (a pack), and nothing is asked that can be known: a name ends in a random part, so that nobody picks it twice,
and in the size; whether a value changed is told by a digest.

There is no lock in a store: one process at a time writes, any number read.
"""
from __future__ import annotations

import base64
import errno
import hashlib
import os
import re
import zlib
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from chest.errors import DamagedError, raised_by_signal
from chest.index.filenames import Names, digest
from chest.serialize.aligned import LEAST
from chest.serialize.compare import can_change
from chest.storage.base import CRC, LENGTH, OFFSET, PACK, Loaded, Ref, Storage, Written
from chest.storage.remote_keys import RemoteKeys
from chest.storage.store import PACKS, Range, Store, redacted

if TYPE_CHECKING:
    from chest.serialize.aligned import Encoded
    from chest.serialize.codec import Codec

__all__ = ["Remote", "connect"]

K = TypeVar("K", bound=Hashable)

_OURS = re.compile(r"~[a-z2-7]{12}-([0-9a-f]+)\Z")  # the end of a name: 60 random bits, and the size in bytes
_ROOM = 220  # bytes of a name's last part that leave room for it: file systems allow 255
_UNKNOWN = 16 * 2**20  # bytes that an object is taken to have while its size is not known
_AT_ONCE = 64 * 2**20  # bytes under way at once, but for a single larger object
_OBJECT = 2**19  # bytes that an object counts as at least: so no more than 128 are got at once
_GAP = 2**14  # bytes between two records of a pack that are rather read than asked for separately


def connect(url: str, storage_options: Mapping[str, Any] | None, codec: Codec,
            names: Names[K]) -> tuple[Remote[K], RemoteKeys]:
    """The values and the index at ``url``; ``storage_options`` go to fsspec.

    `ImportError` without the packages for this kind of URL, `ValueError` for an unknown kind, `OSError` without answer.
    """
    store = Store(url, storage_options or {}, codec)
    return Remote(store, codec, names), RemoteKeys(store, codec)


class Remote(Generic[K]):
    """A `Storage` in a store.  A ref never comes again, so that all versions are 0.

    A pack is put whole by one `write`.  As nobody can tell whether a pack's writer is alive, only packs that a commit
    named are compacted or removed; what a writer left that was killed before stays until the chest is dropped.

    ``path`` and `file` show no secrets.  Cost: one round trip for each call, none for `same`, `size` and `version`.
    """

    remote = True

    def __init__(self, store: Store, codec: Codec, names: Names[K]):
        self.path = redacted(store.url)
        self.codec = codec
        self._store = store
        self._names = names
        self._digests: dict[Ref, bytes] = {}  # what values dumped to when they were written or loaded
        self._sizes: dict[int, int] = {}  # bytes of the packs that this handle made, or has seen in a listing
        self._new: dict[int, set[int]] = {}  # packs of this handle's, with the refs there that no commit named yet
        self._named: set[int] = set()  # packs that the last plain commit named

    def __repr__(self) -> str:
        return f"<Remote {self.path}>"

    def file(self, ref: Ref) -> str:
        """The URL of the object that holds the value."""
        return self._store.shown(self._range(ref).name)

    def _range(self, ref: Ref) -> Range:
        if isinstance(ref, str):
            return Range(ref)
        start = ref >> OFFSET & (1 << PACK - OFFSET) - 1
        return Range(_pack_name(ref >> PACK), start, start + self.size(ref))

    # Out.

    def write(self, items: Sequence[tuple[K, object]], small: int) -> list[Written]:
        """Write each value to a new object, the small ones of a batch of up to 64 MB to one object together.

        Not so a value whose name was reserved, and none where the user has an ``open``.
        """
        written: list[Written] = []
        batch = _Batch()
        try:
            for key, value in items:
                try:
                    encoded = self.codec.encode(value)
                except Exception as error:
                    if isinstance(error, MemoryError) or raised_by_signal(error):
                        raise
                    batch.written.append(Written(None, 0, 0, None, error))
                    continue
                if batch.nbytes and batch.nbytes + encoded.nbytes > _AT_ONCE:
                    written += self._put(batch)
                    batch = _Batch()
                name = self._names.reserved.get(key)
                if name is None and 0 < encoded.nbytes < min(small, 1 << LENGTH) and not self._store.hooked:
                    ref = batch.add(b"".join(encoded.pieces), None, encoded.stamp)
                else:
                    data = b"".join((*encoded.pieces, encoded.note()))
                    ref = batch.add(data, name or f"{self._new_name(key)}-{len(data):x}", encoded.stamp)
                    self._names.release(key)
                if encoded.stamp is None and can_change(value):
                    self._digests[ref] = _digest(encoded)
            return written + self._put(batch)
        except BaseException:  # nobody was told of these
            self.remove([one.ref for one in written if one.ref is not None])
            raise

    def _put(self, batch: _Batch) -> list[Written]:
        """Put the objects; if that fails none of them counts, nor stays."""
        objects = dict(batch.objects)
        if batch.records:
            objects[_pack_name(batch.pack)] = b"".join(batch.records)
        try:
            if objects:
                self._store.put(objects)
        except BaseException as error:
            self._store.remove(list(objects))
            if not isinstance(error, OSError):
                raise
            return [one if one.error else Written(None, 0, 0, None, error) for one in batch.written]
        if batch.records:
            self._new[batch.pack] = {one.ref for one in batch.written if type(one.ref) is int}
            self._sizes[batch.pack] = batch.end
        return batch.written

    def _new_name(self, key: K) -> str:
        plain = self._names.plain(key)
        if len(plain.rpartition("/")[2].encode("utf-8")) > _ROOM:
            plain = digest(key)
        return f"{plain}~{base64.b32encode(os.urandom(8))[:12].decode().lower()}"

    def reserve(self, key: K) -> str:
        """The name that the next object of ``key`` will have, which then lies in no pack."""
        if key not in self._names.reserved:
            self._names.reserve(key, self._new_name(key))
        return self._names.reserved[key]

    def link(self, key: K, other: Storage[K], ref: Ref) -> Written:
        """No store has hard links: `OSError`, and the caller copies."""
        raise OSError(errno.EXDEV, "no hard links", self.path)

    # Back.

    def load(self, ref: Ref) -> Loaded:
        """The value at ``ref``, by copy."""
        return self._loaded(ref, self._get([ref])[ref])

    def load_many(self, refs: Sequence[Ref]) -> Iterator[Loaded | Exception]:
        """The values in order, or what went wrong with each.  Up to 64 MB are got at once."""
        for chunk in self._chunks(refs):
            found = self._get(chunk)
            for ref in chunk:
                try:
                    result: Loaded | Exception = self._loaded(ref, found[ref])
                except Exception as error:
                    result = error
                yield result

    def _chunks(self, refs: Sequence[Ref]) -> Iterator[list[Ref]]:
        chunk: list[Ref] = []
        weight = 0
        for ref in refs:
            size = self._told(ref)
            if size is None:
                size = _UNKNOWN
            elif isinstance(ref, str):
                size = max(size, _OBJECT)
            if chunk and weight + size > _AT_ONCE:
                yield chunk
                chunk, weight = [], 0
            chunk.append(ref)
            weight += size
        if chunk:
            yield chunk

    def _get(self, refs: Sequence[Ref]) -> dict[Ref, bytes | Exception]:
        """The verified bytes of each, or an error; records that are near each other in a pack are got as one."""
        ranges = [Range(ref) for ref in refs if isinstance(ref, str)]
        places: list[tuple[Ref, int, int]] = [(one.name, at, 0) for at, one in enumerate(ranges)]
        for record in sorted(ref for ref in refs if not isinstance(ref, str)):
            name, start, end = one = self._range(record)
            last = ranges[-1] if ranges else Range("")
            if last.name == name and (start or 0) <= (last.end or 0) + _GAP:
                ranges[-1] = last._replace(end=end)
            else:
                ranges.append(one)
            places.append((record, len(ranges) - 1, (start or 0) - (ranges[-1].start or 0)))
        got = self._store.get(ranges)
        found: dict[Ref, bytes | Exception] = {}
        for ref, at, start in places:
            data, told = got[at], self._told(ref)
            if isinstance(data, bytes) and told is not None:
                data = data if isinstance(ref, str) else data[start : start + told]
                if len(data) != told or (isinstance(ref, int) and zlib.crc32(data) != ref & CRC):
                    data = DamagedError(f"{self.file(ref)} does not hold what was written")
            found[ref] = data
        return found

    def _loaded(self, ref: Ref, data: bytes | Exception) -> Loaded:
        if isinstance(data, Exception):
            raise data
        if isinstance(ref, str):
            value, stamp = self.codec.decode_file(data)
        else:
            value, stamp = self.codec.decode(data), hash(data) if len(data) < LEAST else None
        if can_change(value):
            try:
                encoded = self.codec.encode(value)  # need not be the very bytes that it was loaded from
                if stamp is None or encoded.stamp != stamp:
                    self._digests[ref] = _digest(encoded)
            except Exception as error:
                if isinstance(error, MemoryError) or raised_by_signal(error):
                    raise  # else: it cannot be dumped again, so it will count as changed
        return Loaded(value, len(data), 0, stamp)

    # What is known without asking.

    def same(self, ref: Ref, value: object, version: int | None = None) -> bool:
        """Is the value as this handle wrote or loaded it?  Digests are compared."""
        return ref in self._digests and _digest(self.codec.encode(value)) == self._digests[ref]

    def _told(self, ref: Ref) -> int | None:
        """Bytes of the value, if its ref tells."""
        if not isinstance(ref, str):
            return ref >> LENGTH & CRC
        found = _OURS.search(ref)
        return int(found[1], 16) if found else None

    def size(self, ref: Ref) -> int:
        """Bytes that the value takes, 0 if it is gone; a round trip for a name that was given away beforehand."""
        size = self._told(ref)
        try:
            return int(self._store.info(str(ref)).get("size") or 0) if size is None else size
        except FileNotFoundError:
            return 0

    def version(self, ref: Ref) -> int | None:
        """Nothing has to tell an object from others of its name: there are none."""
        return 0

    # Commits.

    def remove(self, refs: Iterable[Ref]) -> None:
        """Remove objects, and packs of which no record was ever committed and none is left; what cannot go stays."""
        names = []
        for ref in refs:
            self._digests.pop(ref, None)
            if isinstance(ref, str):
                names.append(ref)
            elif (left := self._new.get(ref >> PACK)) is not None:
                left.discard(ref)
                if not left and self._new.pop(ref >> PACK, None) is not None and ref >> PACK not in self._named:
                    names.append(_pack_name(ref >> PACK))
        if names:
            self._store.remove(names)

    def committed(self, plain: bool = False, pending: bool = False) -> None:
        """Nothing has to be done: no journal tells what was written."""

    def compact(self, refs: Mapping[K, Ref | None]) -> dict[int, int]:
        """Copy the records of committed packs that hold more than twice what lives in them to a new pack.

        Cost: O(keys); one listing for a handle that meets packs of others.  The old ones go with `reclaim`.
        """
        living: defaultdict[int, list[int]] = defaultdict(list)
        for ref in refs.values():
            if type(ref) is int:
                living[ref >> PACK].append(ref)
        known = living.keys() - self._new.keys()
        if not known <= self._sizes.keys():
            sizes = self._store.listed(PACKS)
            self._sizes.update((pack, sizes.get(f"{pack:010x}", 0)) for pack in known)
        worth = [pack for pack in known if self._sizes[pack] > 2 * sum(map(self.size, living[pack]))]
        moved: dict[int, int] = {}
        for chunk in self._chunks(sorted(ref for pack in worth for ref in living[pack])):
            batch = _Batch()
            found = {int(ref): data for ref, data in self._get(chunk).items() if isinstance(data, bytes)}
            for data in found.values():
                batch.add(data, None, None)
            # What cannot be put stays where it is, and its pack with it.
            moved.update((ref, int(one.ref)) for ref, one in zip(found, self._put(batch)) if one.ref is not None)
        return moved

    def reclaim(self, refs: Collection[Ref]) -> None:
        """Remove the packs that a commit named once, and this one, with ``refs``, does not.  Cost: O(keys)."""
        now = {ref >> PACK for ref in refs if not isinstance(ref, str)}
        for pack, left in list(self._new.items()):
            left.difference_update([ref for ref in left if ref in refs])
            if not left:
                del self._new[pack]
        dead = self._named - now - self._new.keys()
        if not dead or self._store.remove([_pack_name(pack) for pack in dead]):
            self._named = now | self._named & self._new.keys()

    # The place as a whole.

    def make(self) -> None:
        self._store.make()

    def exists(self) -> bool:
        return self._store.exists()

    def drop(self, refs: Iterable[Ref]) -> None:
        """Remove these values, the index and all packs, and the folder if nothing of anyone else's is in it."""
        self._store.remove(list({self._range(ref).name for ref in refs}))
        self._store.destroy()

    def clear_away(self) -> None:
        """No chest in a store is a temporary one."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the connection; the next use makes a new one."""
        self._store.close()

    def after_fork(self) -> None:
        """In the child: connections are the parent's, and so are packs that no commit names yet."""
        self._new.clear()
        self._store.after_fork()


class _Batch:
    """Values on their way out: objects of their own, and the records of a pack."""

    def __init__(self) -> None:
        self.pack = int.from_bytes(os.urandom(5), "big")
        self.objects: dict[str, bytes] = {}
        self.records: list[bytes] = []
        self.written: list[Written] = []
        self.nbytes = 0
        self.end = 0  # of the pack

    def add(self, data: bytes, name: str | None, stamp: int | None) -> Ref:
        """Add an object, or a record where there is no name.  Returns its ref."""
        ref: Ref
        if name is None:
            ref = self.pack << PACK | self.end << OFFSET | len(data) << LENGTH | zlib.crc32(data)
            self.records.append(data)
            self.end += len(data)
        else:
            ref, self.objects[name] = name, data
        self.written.append(Written(ref, len(data), 0, stamp, None))
        self.nbytes += len(data)
        return ref


def _pack_name(pack: int) -> str:
    return f"{PACKS}/{pack:010x}"


def _digest(encoded: Encoded) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for piece in encoded.pieces:
        found.update(piece)
    return found.digest()
