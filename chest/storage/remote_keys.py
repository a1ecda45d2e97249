"""The index ``.keys`` of a chest in a store: one object, replaced whole by each commit."""
from __future__ import annotations

import hashlib
import os
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from chest.errors import ChestError
from chest.index.format import Pairs, Parser, Refs, whole_list, written_by
from chest.storage.store import KEYS, Range, Store

if TYPE_CHECKING:
    from chest.serialize.codec import Codec

__all__ = ["RemoteKeys"]

_HEAD = 300  # bytes of an index that hold all that its header says


class RemoteKeys:
    """``.keys`` in a store, as one handle last read or wrote it; the `Keys` of an index.  Never appended to.

    A version is told by its tag (ETag) on S3; elsewhere by the head of the list, where every commit leaves a random
    mark.  Cost: one round trip for each method; `read` and `replace` move O(keys) bytes.
    """

    def __init__(self, store: Store, codec: Codec):
        self.path = store.shown(KEYS)
        self._store = store
        self._codec = codec
        self._parser = Parser(self.path, codec)
        self._signature: object = None  # of the version that was read, or written; None: there is none
        self._seen: object = None  # what `changed` saw last

    @property
    def lock(self) -> AbstractContextManager[bool]:
        return self._store.lock  # another one in a fork's child

    def changed(self) -> bool:
        """Has anybody committed since we read?"""
        self._seen = self._look()
        return self._seen != self._signature

    def plain(self) -> bool:
        """Was there an index when we read?  It is always one list and nothing behind it."""
        return self._signature is not None

    def _look(self) -> object:
        try:
            if self._store.tags:
                return self._store.info(KEYS).get("ETag")
            head = self._get(_HEAD)
            return _mark(head if written_by(head) else self._get())
        except FileNotFoundError:
            return None

    def _get(self, end: int | None = None) -> bytes:
        data = self._store.get([Range(KEYS, None if end is None else 0, end)], cached=False)[0]
        if isinstance(data, Exception):
            raise data
        return data

    def read(self) -> tuple[bool, Pairs | Refs]:
        """``(True, all pairs)``.  `LoadError` for what is no index of ours, `DamagedError` where checksums prove it."""
        seen, self._seen = self._seen or self._look(), None  # before: what is read now is no older
        try:
            if seen is None:
                raise FileNotFoundError
            data = self._get()
        except FileNotFoundError:
            self.close()
            return True, []
        with self._parser.explaining():
            refs, *_ = self._parser.whole(data, partial(self._codec.decode, data))
        self._signature = seen
        return True, refs

    def append(self, changes: Pairs) -> bool:
        """Nothing can be appended to an object: `False`."""
        return False

    def replace(self, pairs: Pairs) -> None:
        """Commit ``pairs`` as the whole list.

        `ChestError`, and nothing done, if another writer committed since we read; the next commit takes over what that
        one committed.  Where the store has no conditional puts nobody can tell.
        """
        def dumped_and_loaded(pairs: Pairs) -> Any:
            return self._codec.decode(b"".join(self._codec.encode(pairs).pieces))

        if self._codec.native or not self._parser.keeps(pairs, dumped_and_loaded):
            data = whole_list(pairs, os.urandom(16))
        else:
            data = b"".join(self._codec.encode(pairs).pieces)
        try:
            tag = self._store.swap(KEYS, data, self._signature)
        except ConnectionError:
            raise
        except OSError as error:
            if isinstance(error, FileExistsError) or self.changed():
                raise ChestError(
                    f"another process committed to {self.path} at the same moment: nothing of this commit was saved, "
                    f"and nothing of the other's was lost. Commit again, and let one process at a time write"
                ) from error
            raise
        self._signature = tag or (self._look() if self._store.tags else _mark(data))

    def erase(self) -> None:
        """Remove the index."""
        self._store.erase(KEYS)

    def close(self) -> None:
        """Forget what was read.  The next look reads anew."""
        self._signature = self._seen = None


def _mark(data: bytes) -> bytes:
    """What tells this version from all others: the head with its mark, or a digest where someone else wrote it."""
    return data[:_HEAD] if written_by(data) else hashlib.blake2b(data, digest_size=16).digest()
