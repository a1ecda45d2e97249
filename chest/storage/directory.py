"""A local directory as a storage: large values are loose files, many small ones records of packs."""
from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, Callable

from chest.errors import ChestError, DamagedError, raise_of_a_signal
from chest.index.filenames import Names, key_checksum, names_of
from chest.log import log
from chest.serialize.aligned import LEAST, Encoded, stamp_of, without_mark
from chest.storage import system
from chest.storage.base import PACKS, Loaded, Ref, Storage, Written, attempt, file_of, record_size
from chest.storage.loose import Loose, NewFile, version_of
from chest.storage.packs import NoPack, Packs
from chest.storage.tree import Tree

if TYPE_CHECKING:
    from chest.serialize.codec import Codec, Stamp

__all__ = ["Directory"]

Record = tuple[int, "Stamp", bytes]  # its place among the items, and its bytes

BATCH = 4 << 20  # bytes of records that one append takes
LONGEST = 1 << 30  # bytes: a larger value is no record

# What opening a file says that is no more: its name, or that of a folder, may be another file's, or a folder's, by now.
_ANOTHER = {errno.ENOENT, errno.ENOTDIR, errno.EINVAL, errno.ELOOP}

_new = tuple.__new__  # makes a Written or a Loaded without a call of Python
_WAITS = Written()  # stands for a value that is not written yet


class Directory:
    """The values of one directory, as one handle writes and reads them.  `Storage` says what each method does."""

    remote = False

    def __init__(self, path: str, codec: Codec, names: Names, open_many: Callable[..., Any] | None = None):
        self.path = path
        self.codec = codec
        self._open_many = open_many
        self._durable = codec.durable
        self._tree = Tree(path)
        self._packs = Packs(self._tree, codec.durable)
        self._loose = Loose(self._tree, self._packs, names, codec.durable)
        self.reserve, self.reclaim, self.compact = self._loose.reserve, self._packs.reclaim, self._packs.compact
        self.committed, self.after_fork = self._packs.committed, self._packs.after_fork
        self._is_left = False  # was it dropped, and is the directory there still?

    # Out.

    def write(self, items: Sequence[tuple[object, object]], small: int) -> list[Written]:
        """Small values become records of this handle's pack, one append for 4 MB of them; others loose files.

        An `Exception` of one item is its ``Written.error``; others go on.  Anything else comes out, and no file of this
        call is left.  Cost beside the codec's: 5 calls of C a record; for a loose file see `NewFile`.
        """
        codec, native = self.codec, self.codec.native
        small = LONGEST if small > LONGEST else small
        new = NewFile(self._loose)
        overflow = new.write if native and small <= LEAST else None  # of what is larger than that
        done = [_WAITS] * len(items)
        batch: list[Record] = []
        waiting = 0
        try:
            for place, (key, value) in enumerate(items):
                if waiting >= BATCH:
                    self._append(batch, done, items)
                    batch, waiting = [], 0
                new.key, new.inode = key, 0
                try:
                    data = codec.dump_short(value) if small else b""
                    if not data or len(data) >= small:
                        encoded = None
                        if data:
                            encoded = Encoded.of(data, noted=True)
                        elif small or native:
                            try:
                                encoded = codec.encode(value, overflow)
                            except io.UnsupportedOperation:  # the user's dump needs a file of the system
                                if native:
                                    raise
                        if encoded is None or (encoded.nbytes >= small and not native):
                            done[place] = new.dump(value, codec)
                            continue
                        if encoded.nbytes >= small or new.opened:
                            note = encoded.note(key_checksum(key))
                            new.write([*encoded.pieces, note], encoded.nbytes + len(note))
                            done[place] = new.finish(stamp_of(data) if data else encoded.stamp)
                            continue
                        data = without_mark(encoded.pieces)
                    batch.append((place, hash(data) if len(data) < LEAST else None, data))
                    waiting += len(data)
                except Exception as error:
                    new.cancel()
                    done[place] = Written(error=error)
            if batch:
                self._append(batch, done, items)
            if self._durable:
                self._sync_names(done)
            new.opened.close()  # it has no finaliser then, in which what a signal's handler raises would be lost
            return done
        except BaseException:
            new.cancel()
            self.remove([one.ref for one in done if isinstance(one.ref, str)])
            raise

    def _sync_names(self, done: list[Written]) -> None:
        """Sync the folders of the new files.  Where the system refuses, who knows whether their names are on the disk:
        they are removed, and count as not written."""
        names = {one.ref: place for place, one in enumerate(done) if type(one.ref) is str}
        try:
            if names:
                self._tree.sync_folders(names)
        except OSError as error:
            self.remove(names)
            for place in names.values():
                done[place] = Written(error=error)

    def _append(self, batch: list[Record], done: list[Written], items: Sequence[tuple[object, object]]) -> None:
        """Write records, and put what became of them in their places in ``done``."""
        try:
            refs = self._packs.append([data for *_, data in batch])
        except OSError as error:
            raise_of_a_signal(error)
            log("debug", "no records in %s: %s", self.path, error)
            for place, *_ in batch:
                loose = isinstance(error, NoPack)
                done[place] = self.write([items[place]], 0)[0] if loose else Written(error=error)
        else:
            for ref, (place, stamp, data) in zip(refs, batch):
                done[place] = _new(Written, (ref, len(data), 0, stamp, None))

    def link(self, key: object, other: Storage, ref: Ref) -> Written:
        """A hard link to the other's loose file, or a copy of a record's bytes."""
        if not isinstance(other, Directory):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), other.path)
        if isinstance(ref, int):
            data = other._packs.read(ref)
            return Written(self._packs.append([data])[0], len(data), stamp=stamp_of(data))
        return self._loose.link(key, other._loose, ref)

    # Back.

    def load(self, ref: Ref, owner: int = 0) -> Loaded:
        """`ChestError` for a ref that is none, or leads out of the directory."""
        if type(ref) is int:
            data = self._packs.read(ref)
            size = len(data)
            return _new(Loaded, (self.codec.decode(data), size, 0, hash(data) if size < LEAST else None))
        if type(ref) is not str:
            raise ChestError(f"the index of {self.path} says that a value lies at {ref!r}: do not trust this chest")
        with system.Opened() as opened:
            status = self._loose.open(ref, opened)
            stamp: Stamp = None
            if self.codec.native:
                value, stamp = self.codec.load_file(opened[0], status, owner)
            else:  # the user's own load and open take a path: should another file be there by now, the index is newer
                value = self.codec.load_from(self._tree.path(ref))
            return _new(Loaded, (value, status.st_size, version_of(status), stamp))

    def load_many(self, refs: Sequence[Ref], keys: Sequence[object] = ()) -> Iterator[Loaded | Exception]:
        """Small records are all read at once, in the order of their places."""
        found: dict[Any, bytes] = self._packs.read_many([ref for ref in refs if type(ref) is int])
        decode, opens = self.codec.decode, self._open_many is not None
        with closing(self._load_opened([ref for ref in refs if type(ref) is str])) as files:
            for place, ref in enumerate(refs):
                if ref in found:
                    data = found[ref]
                    try:
                        one: Loaded | Exception = _new(Loaded, (decode(data), len(data), 0, hash(data)))
                    except Exception as error:
                        one = error
                elif opens and type(ref) is str:
                    one = next(files)
                else:
                    one = attempt(self.load, ref, key_checksum(keys[place]) if keys else 0)
                yield one

    def _load_opened(self, names: Sequence[str]) -> Generator[Loaded | Exception, None, None]:
        """The values of loose files that the user's ``open_many`` opens at once."""
        def loaded(file: Any, status: os.stat_result) -> Loaded:
            return Loaded(self.codec.load(file), status.st_size, version_of(status), None)

        looks = list(map(self._loose.look, names))
        assert self._open_many is not None
        with self._open_many(list(map(self.file, names)), mode="r" + self.codec.mode) as files:
            for file, status in zip(files, looks):
                yield attempt(loaded, file, status)

    def same(self, ref: Ref, value: object) -> bool:
        try:
            if isinstance(ref, int):
                return self.codec.same(value, self._packs.read(ref))
            with system.Opened() as opened:
                status = self._loose.open(ref, opened)
                if self.codec.native:
                    return self.codec.same_file(value, opened[0], status)
                return self.codec.same_from(value, self._tree.path(ref))
        except DamagedError:
            return False
        except OSError as error:
            if error.errno not in _ANOTHER:
                raise
            return False

    def size(self, ref: Ref) -> int:
        return record_size(ref) if isinstance(ref, int) else self._tree.size(ref)

    def version(self, ref: Ref) -> int | None:
        with suppress(FileNotFoundError, NotADirectoryError):
            return 0 if isinstance(ref, int) else version_of(self._tree.status(ref))
        return None

    def file(self, ref: Ref) -> str:
        return self._tree.path(file_of(ref))

    # Away.

    def remove(self, refs: Iterable[Ref]) -> None:
        """A file that the system does not let go, as Windows one that is open or mapped, stays, and nothing names it.
        The journal lists it, for the next plain commit."""
        for name in names_of(refs):
            if not self._tree.discard(name):
                self.left_bytes()

    def committing(self, superseded: Iterable[Ref]) -> None:
        for name in names_of(superseded):
            with system.tolerated():
                self._packs.note(self._tree.status(name).st_ino, name)

    def left_bytes(self) -> None:
        self._packs.left = True

    def make(self) -> None:
        """With the directories above it.  `NotADirectoryError` if there is a file."""
        self._is_left = False
        self._tree.make(self._durable)

    def exists(self) -> bool:
        with suppress(FileNotFoundError, NotADirectoryError):
            return stat.S_ISDIR(os.stat(self.path).st_mode)
        return False

    def drop(self, refs: Iterable[Ref]) -> None:
        """Remove these values, what this handle wrote and no commit names, what dead handles left, and the directory if
        that leaves it empty.  What other handles wrote and have not committed stays.

        With ``durable`` the index, which is removed by now, is gone from the disk before a value goes; an `OSError`
        there leaves the values' files.  Behind that all is tried before the first `OSError` is raised.
        """
        if self._durable:
            with suppress(FileNotFoundError):
                system.sync_directory(self.path)
        names = names_of(refs)
        errors = []
        for name in [*names, *self._packs.close(), ".keys~"]:  # what no commit names is nobody's now
            try:
                self._tree.unlink(name)
            except OSError as error:
                raise_of_a_signal(error)
                errors.append(error)
        self._packs.reclaim(())
        for name in [*names, PACKS + "/"]:  # again, as the removal of a folder may have failed
            self._tree.prune(name)
        with system.tolerated():  # if anything of anyone else's is in it
            os.rmdir(self.path)
        self._is_left = self.exists()
        if self._durable:
            with suppress(FileNotFoundError, PermissionError):
                system.sync_directory(self.path if self._is_left else os.path.dirname(os.path.abspath(self.path)))
        if errors:
            raise errors[0]

    def close(self) -> None:
        self._packs.close()
        with system.tolerated():  # again, as on Windows the file of the lock was in use until now
            if self._is_left:
                os.rmdir(self.path)
        self._is_left = False

    def clear_away(self) -> None:
        import shutil

        self._packs.close()
        shutil.rmtree(self.path, ignore_errors=True)
