"""The index ``.keys`` of a chest in a store: one object, always a list as chest writes it, which a commit replaces."""
from __future__ import annotations

import os
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import TYPE_CHECKING

from chest.errors import ChestError
from chest.index import KEYS
from chest.index.format import Pairs, Parser, Refs, whole_list
from chest.storage.base import PACK
from chest.storage.store import Store

if TYPE_CHECKING:
    from chest.serialize.codec import Codec

__all__ = ["RemoteKeys"]

_HEAD = 300  # bytes of an index that hold its header, and so the random mark of the commit


class RemoteKeys:
    """``.keys`` in a store, as one handle last read or wrote it; the `Keys` of an index.

    A version is told by its head, where each commit leaves a random mark.  On S3 its tag (ETag) is the condition of the
    next commit.  Cost: one round trip for each method, two for `read` on S3; `read` and `replace` move O(keys) bytes.
    """

    def __init__(self, store: Store, codec: Codec, named: set[int]):
        self.path = store.shown(KEYS)
        self._store, self._codec, self._parser = store, codec, Parser(store.shown(KEYS), codec)
        self._named = named  # gets the packs that the index names
        self._head: bytes | None = None  # of the version that was read, or written; None: there is none
        self._tag: str | None = None  # of the same

    @property
    def lock(self) -> AbstractContextManager[bool]:
        return self._store.lock  # another one in a fork's child

    def changed(self) -> bool:
        """Has anybody committed since we read?"""
        try:
            return self._store.read(KEYS, 0, _HEAD) != self._head
        except FileNotFoundError:
            return self._head is not None

    def plain(self) -> bool:
        return self._head is not None

    def read(self) -> tuple[bool, Pairs | Refs]:
        """``(True, all pairs)``.  `LoadError` for what is no index of ours, `DamagedError` where checksums prove it."""
        try:
            tag = self._store.tag(KEYS)  # before: what is read then is no older
            data = self._store.read(KEYS)
        except FileNotFoundError:
            self.close()
            return True, []
        with self._parser.explaining():
            refs, *_ = self._parser.whole(data, partial(self._codec.decode, data))
        self._named |= {ref >> PACK for ref in refs.values() if isinstance(ref, int)}
        self._head, self._tag = data[:_HEAD], tag
        return True, refs

    def append(self, changes: Pairs) -> bool:
        return False  # nothing can be appended to an object

    def replace(self, pairs: Pairs) -> None:
        """Commit ``pairs`` as the whole list.

        `ChestError`, and nothing done, if another writer committed since we read; the next commit takes over what that
        one committed.  Where the store has no conditional puts nobody can tell.
        """
        data = whole_list(pairs, os.urandom(16))
        try:
            self._tag = self._store.swap(KEYS, data, self._tag)
        except OSError as error:
            if not isinstance(error, ConnectionError) and (isinstance(error, FileExistsError) or self.changed()):
                raise ChestError(
                    f"another process committed to {self.path} at the same moment: nothing of this commit was saved, "
                    f"and nothing of the other's was lost. Commit again, and let one process at a time write"
                ) from error
            raise
        self._head = data[:_HEAD]

    def erase(self) -> None:
        with suppress(FileNotFoundError):
            self._store.ask("rm_file", KEYS)

    def close(self) -> None:
        self._head = self._tag = None  # the next look reads anew
