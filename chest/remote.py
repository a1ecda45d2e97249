"""Value files and index of a chest in an object store, or wherever else fsspec reaches.

The promises are those of a directory, kept by other means.  A value's object gets a name that nobody picks twice, as it
ends in a random part, so it is written once without a look at what is there.  The index is replaced by one put, or,
where the store is a file system, by a rename.  A round trip takes 10 to 100 ms, so that values travel several at once,
and what can be known without asking is not asked: the name of an object tells its size.

There is no lock: one process at a time writes, any number read.  Where the store has conditional puts a second writer
gets an error; elsewhere each commit takes over what others committed just before.
"""
from __future__ import annotations

import base64
import contextlib
import errno
import functools
import hashlib
import os
import pickle
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, Callable, Generic, TypeVar

from chest import arrays
from chest.codec import Codec
from chest.errors import ChestError, LoadError
from chest.files import Loaded, Written
from chest.keysfile import KEYS, KeysFile, Pairs, alike, header, written_by
from chest.names import Names, digest, shown
from chest.store import Store

__all__ = ["RemoteFiles", "RemoteKeys", "connect"]

K = TypeVar("K", bound=Hashable)

_OURS = re.compile(r"~[a-z2-7]{12}-([0-9a-f]+)\Z")  # the end of a name: 60 random bits, and the size in bytes
_ROOM = 220  # bytes of a name's last part that leave room for it: file systems allow 255
_UNKNOWN = 16 * 2**20  # bytes that an object is taken to have while its size is not known
_HEAD = 300  # bytes of an index that hold all that its header says


def connect(path: str, options: Mapping[str, Any] | None, codec: Codec, names: Names[K],
            watch: bool = True) -> tuple[RemoteFiles[K], RemoteKeys]:
    """The value files and the index at the URL ``path``; ``options`` go to fsspec.

    With ``watch`` what is needed to notice changes in place is noted of every value.  Raises `ImportError`
    without fsspec or the package for this kind of URL, `ValueError` for a kind that fsspec does not know, and
    `OSError` where a connection is needed and cannot be had.
    """
    store = Store(path, options or {}, codec)
    return RemoteFiles(store, codec, names, watch), RemoteKeys(store, codec)


class _Print:
    """Takes what `dump` writes, and remembers only a digest of it."""

    def __init__(self, data: bytes = b"") -> None:
        self._hash = hashlib.blake2b(data, digest_size=16)

    def write(self, data: Any) -> int:
        self._hash.update(data)
        return memoryview(data).nbytes

    def digest(self) -> bytes:
        return self._hash.digest()


class RemoteFiles(Generic[K]):
    """The value objects of one chest, as one handle writes and reads them; it answers what `chest.files.Files` does.

    A name is never used again, so what is found under it is what the index meant: nobody has to be asked whether a name
    changed hands meanwhile.  Cost: one round trip each, several at once; none for `same`, nor for `size` as a rule.
    """

    grain = 0
    guard = contextlib.nullcontext()
    remote = True  # saving needs threads, which cannot be started at the very end

    def __init__(self, store: Store, codec: Codec, names: Names[K], watch: bool):
        self._store = store
        self._codec = codec
        self._names = names
        self._watch = watch
        self._prints: dict[str, tuple[bytes, ...]] = {}
        self._sizes: dict[str, int] = {}
        self.crowd = self.ahead = 16 * store.width  # in one list, so that not every few of them wait for the last

    def path(self, name: str) -> str:
        """The URL of the object ``name``."""
        return self._store.url_of(name)

    # Out.

    def write(self, items: Iterable[tuple[K, Any]]) -> Iterator[Written]:
        """Write each value to a new object, several at once.  Values are dumped one by one, in the calling thread."""
        started: dict[Any, None] = {}
        results = self._store.many(self._puts(items, started))
        try:
            for written in results:
                started.pop(written.name, None)
                yield written
        finally:  # whatever stopped us, an object that nobody was told of must not stay
            results.close()
            self.remove(list(started))

    def _puts(self, items: Iterable[tuple[K, Any]],
              started: dict[Any, None]) -> Iterator[tuple[int, Callable[[], Written]]]:
        for key, value in items:
            try:
                data = self._codec.dumped(value)
                name = self._names.reserved.get(key) or self._new_name(key, len(data))
            except Exception as error:
                yield 0, functools.partial(Written, "", 0, error)
                continue
            started[name] = None
            yield len(data), functools.partial(self._put, name, data, self._watched(value))

    def _put(self, name: str, data: bytes, watched: bool) -> Written:
        try:
            self._store.put(name, data)
        except Exception as error:
            return Written(name, 0, error.with_traceback(None))
        if watched:
            self._prints[name] = (_Print(data).digest(),)
        if not _OURS.search(name):
            self._sizes[name] = len(data)
        return Written(name, len(data))

    def _new_name(self, key: K, size: int | None = None) -> str:
        plain = self._names.plain(key)
        if len(plain.rpartition("/")[2].encode("utf-8")) > _ROOM:
            plain = digest(key)
        name = f"{plain}~{base64.b32encode(os.urandom(8))[:12].decode().lower()}"
        return name if size is None else f"{name}-{size:x}"

    def reserve(self, key: K) -> str:
        """The name that the next object of ``key`` will have, kept for the key."""
        if key not in self._names.reserved:
            self._names.reserve(key, self._new_name(key))
        return self._names.reserved[key]

    # Back.

    def load(self, names: Iterable[str], trusted: Callable[[], bool], workers: int = 1) -> Iterator[Loaded]:
        """The values of the objects ``names``, in order, several on their way at once.

        They are loaded by copy, and made into values one by one, in the calling thread.  ``trusted`` need not be asked.
        """
        names = list(names)
        gets = ((self._weight(name), functools.partial(self._get, name)) for name in names)
        return map(self._loaded, names, self._store.many(gets))

    def load_one(self, name: str, trusted: Callable[[], bool]) -> Loaded:
        """The value in the object ``name``."""
        return self._loaded(name, self._get(name))

    def _weight(self, name: str) -> int:
        size = self._noted(name)
        return _UNKNOWN if size is None else size

    def _get(self, name: str) -> bytes | Exception:
        try:
            return self._store.get(name, cached=True)
        except Exception as error:
            return error.with_traceback(None)  # its frames would keep the chest for as long as the error is kept

    def _loaded(self, name: str, data: bytes | Exception) -> Loaded:
        if isinstance(data, Exception):
            return Loaded(None, 0, data)
        try:
            value = self._codec.loaded(data)
        except Exception as error:
            why = f"{self._store.shown(name)} cannot be read ({type(error).__name__}: {error})"
            return Loaded(None, 0, LoadError(why).with_traceback(error.__traceback__))
        if not _OURS.search(name):
            self._sizes[name] = len(data)
        if self._watched(value):
            self._note(name, value)
        return Loaded(value, len(data))

    # What is known without asking.

    def _watched(self, value: Any) -> bool:
        return self._watch and arrays.can_change(value)

    def _note(self, name: str, value: Any) -> None:
        """What was loaded need not dump to the very bytes of its object: note what it does dump to."""
        try:
            now, known = self._print(value), self._prints.get(name, ())
        except Exception:
            return  # it cannot be dumped again, so it will count as changed
        if now not in known:
            self._prints[name] = (*known, now)

    def _print(self, value: Any) -> bytes:
        if self._codec.dump is not arrays.dump:
            return _Print(self._codec.dumped(value)).digest()
        sink: Any = _Print()
        arrays.dump(value, sink)
        found: bytes = sink.digest()
        return found

    def same(self, pairs: Iterable[tuple[str, Any]]) -> Iterator[bool]:
        """For each name and value: is the value still as it was written to, or loaded from, the object?  No round trip:
        digests are compared."""
        for name, value in pairs:
            try:
                yield self._print(value) in self._prints.get(name, ())
            except Exception:
                yield False  # it can no longer be dumped

    def _noted(self, name: str) -> int | None:
        told = _OURS.search(name)
        return int(told[1], 16) if told else self._sizes.get(name)

    def size(self, name: str) -> int:
        """Bytes that the object has, as its name tells; a round trip for one whose name was given away beforehand."""
        size = self._noted(name)
        if size is None:
            try:
                size = self._sizes[name] = self._store.size(name)
            except OSError:
                return 0
        return size

    def sizes(self, names: Iterable[str]) -> Iterator[int]:
        """The `size` of each."""
        return map(self.size, names)

    # Between chests, and away.

    def mark(self, name: str) -> None:
        """Nothing has to tell an object from others of its name: there are none."""

    def link(self, key: K, store: Any, name: str, trusted: Callable[[], bool]) -> str:
        """No store has hard links: `OSError`, and the caller copies."""
        raise OSError(errno.EXDEV, "no hard links", self.path(name))

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects, several at once.  One that is gone already is as well, and one that cannot go now stays."""
        names = list(names)
        for name in names:
            self._prints.pop(name, None)
            self._sizes.pop(name, None)
        self._store.remove(names)

    def after_fork(self) -> None:
        """In the child: connections are the parent's, and fsspec's file systems do not survive a fork."""
        self._store.after_fork()

    def close(self) -> None:
        """Let go of the connections; the next use makes new ones."""
        self._store.close()

    def drop(self, names: Iterable[str]) -> None:
        """Remove these values, which are all that the chest has, and the rest, as `destroy` does."""
        self.remove(names)
        self.destroy()

    def destroy(self) -> None:
        """Remove the index, and the folder where there are folders, if nothing of anyone else's is in it."""
        self._store.destroy()

    def clear_away(self) -> None:
        """Remove everything under the URL."""
        self._store.clear_away()

    def exists(self) -> bool:
        """Is there such a folder?  Where there are only objects every prefix counts."""
        return self._store.exists()

    def make(self) -> None:
        """Make the folder, where there are folders, if this handle has not done so yet."""
        self._store.make()


class RemoteKeys(KeysFile):
    """``.keys`` in a store, in the format of `KeysFile`, but never appended to: each commit is one put.

    The signature of a version is the store's own tag (ETag), or else the head of the file, where every commit leaves a
    random mark; times will not do, as they often have whole seconds.  Cost: `current` is one round trip, `read` another
    one, O(keys) bytes; `replace` one, or two where the store does not tell the new tag, O(keys) bytes.
    """

    def __init__(self, store: Store, codec: Codec):
        super().__init__(store.url, codec, durable=False)
        self.path = store.shown(KEYS)
        self.gate = store.gate
        self._store = store
        self._seen: Any = None
        self._tagged: bool | None = None  # does the store give tags?

    def current(self) -> Any:
        """The signature of the index as it is now, `None` if there is none."""
        try:
            self._seen = self._store.run(self._look)
        except FileNotFoundError:
            self._seen = None
        return self._seen

    def _look(self, fs: Any) -> Any:
        path = self._store.inner(KEYS)
        if self._tagged is not False:
            fs.invalidate_cache(path)  # fsspec may answer from a listing that somebody asked for
            info = fs.info(path)
            tag = info.get("ETag") or info.get("etag")
            self._tagged = tag is not None
            if tag is not None:
                return tag
        return self._mark(fs.cat_file(path, end=_HEAD), lambda: fs.cat_file(path))

    @staticmethod
    def _mark(head: bytes, whole: Callable[[], bytes]) -> bytes:
        """What tells a version from all others: the head with its mark, or a digest where someone else wrote it."""
        return head[:_HEAD] if written_by(head) else _Print(whole()).digest()

    def read(self) -> tuple[bool, Pairs]:
        """``(True, all pairs)``."""
        seen = self.current() if self._seen is None else self._seen  # what is read now is no older
        try:
            pairs = self._parsed(self._store.get(KEYS))
        except FileNotFoundError:
            self.close()
            return True, []
        self.signature = seen
        return True, [(key, name if name is None else shown(name)) for key, name in pairs]  # here are no rows

    def _parsed(self, data: bytes) -> Pairs:
        return self._whole(data) if written_by(data[:_HEAD]) else self._checked(self._others(data))

    def _others(self, data: bytes) -> Any:
        """The list as the user's ``load`` gives it, or else as a pickle."""
        try:
            return self._codec.loaded(data)
        except Exception as error:
            try:
                return pickle.loads(data)
            except Exception:
                raise self._damaged(error) from error

    def append(self, changes: Pairs) -> bool:
        """Nothing can be appended to an object: `False`."""
        return False

    def erase(self) -> None:
        """Remove the index object."""
        self._store.remove([KEYS])

    def replace(self, pairs: Pairs) -> None:
        """Commit ``pairs`` as the whole list.  `ChestError` if the store found another writer's commit in between."""
        data = self._dumped(pairs)
        tag = self._put(data)
        if tag is None and self._tagged is False and not self._store.hooked:
            tag = self._mark(data, lambda: data)
        self.signature = self.current() if tag is None else tag

    def _dumped(self, pairs: Pairs) -> bytes:
        if not self._codec.native:
            try:
                data = self._codec.dumped(pairs)
                if alike(self._checked(self._codec.loaded(data)), pairs):
                    return data
            except Exception:
                pass  # what these settings cannot write, or not give back, is written as a pickle
        mark = pickle.SHORT_BINBYTES + bytes([16]) + os.urandom(16) + pickle.POP
        return header() + mark + pickle.dumps(pairs, 5)[2:]

    def _put(self, data: bytes) -> Any:
        """Put the index.  Returns its new tag if the store tells."""
        try:
            return self._store.swap(KEYS, data, self.signature)
        except ConnectionError:
            raise
        except OSError as error:
            if isinstance(error, FileExistsError) or self.current() != self.signature:
                raise ChestError(
                    f"another process committed to {self._store.shown()} at the same moment: nothing of this commit "
                    f"was saved, and nothing of the other's was lost. Commit again, and let one process at a time write"
                ) from error
            raise

    def plain(self) -> bool:
        """Is there an index?  It is always one list and nothing behind it."""
        return self.signature is not None

    def close(self) -> None:
        """Forget what was read.  The next look reads anew."""
        super().close()
        self._seen = None
