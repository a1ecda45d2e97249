"""A local directory as a storage: large values are loose files, many small ones records of packs."""
from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Collection, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, Callable, Generic, TypeVar
from zlib import crc32

from chest.errors import ChestError, DamagedError
from chest.index.filenames import Names
from chest.log import log
from chest.serialize.aligned import LEAST, Encoded
from chest.serialize.arrays import keeps_inodes
from chest.storage import system
from chest.storage.ahead import load_ahead
from chest.storage.base import CRC, LENGTH, OFFSET, Loaded, Ref, Storage, Written
from chest.storage.loose import Loose, NewFile, check_inside, version_of
from chest.storage.packs import FOLDER, NoPack, Packs
from chest.storage.tree import Tree

if TYPE_CHECKING:
    from chest.serialize.codec import Codec, Stamp

__all__ = ["Directory"]

K = TypeVar("K", bound=Hashable)
Record = tuple[int, int, "Stamp", bytes]  # its place among the items, its ref from the start of the batch on, bytes

BATCH = 4 << 20  # bytes of records that one append takes
WINDOW = 1000  # refs that are read ahead, if their records are
WINDOW_BYTES = 4 << 20  # no larger than this together

_new = tuple.__new__  # makes a Written or a Loaded without a call of Python
_WAITS = Written(None, 0, 0, None, None)  # stands for a record that is not written yet


class Directory(Generic[K]):
    """The values of one directory, as one handle writes and reads them.  `Storage` says what each method does.

    ``names`` says which names are taken; ``durable`` that what was written survives a loss of power when `write`
    returns.  File systems that refuse to sync a directory, to set a file's time, or to lock, get what they can.
    """

    remote = False

    def __init__(self, path: str, codec: Codec, names: Names[K], durable: bool = False,
                 open_many: Callable[..., Any] | None = None):
        self.path = path
        self._open_many = open_many
        self.codec = codec
        self._durable = durable
        self._tree = Tree(path)
        self._packs = Packs(self._tree, durable)
        self._loose = Loose(self._tree, names, durable)
        self._left = False  # was it dropped, and still stands as something in it is in use?
        self._in_use: dict[str, int] = {}  # files that were to be removed, and could not be, with their inodes

    # Out.

    def write(self, items: Sequence[tuple[K, object]], small: int) -> list[Written]:
        """Write each value to new bytes: those that serialise to fewer than ``small`` as records of this handle's pack,
        one append for all (or for 4 MB of them), others as loose files.

        An `Exception` of one item is its ``Written.error``; others go on.  Anything else comes out, and no file of this
        call is left.  Cost beside the codec's: a record 8 calls of C; a loose file 7 system calls.
        """
        new = NewFile(self._loose, small)
        done: list[Written] = []
        batch: list[Record] = []
        waiting = 0
        codec, native = self.codec, self.codec.native
        try:
            for key, value in items:
                if waiting >= BATCH:
                    self._append(batch, done, items)
                    batch, waiting = [], 0
                new.key = key
                try:
                    if not (small or native):
                        done.append(self._dump(new, value))
                        continue
                    encoded = codec.encode(value, new.overflow)
                    size = encoded.nbytes
                    if size >= small or new.name:
                        done.append(self._finish(new, encoded) if native else self._dump(new, value))
                        continue
                    data = b"".join(new.take(encoded.pieces) if new.held else encoded.pieces)
                    ref = waiting << OFFSET | size << LENGTH | crc32(data)
                    batch.append((len(done), ref, hash(data) if size < LEAST else None, data))
                    done.append(_WAITS)
                    waiting += size
                except Exception as error:
                    done.append(self._failed(new, value, error))
            if batch:
                self._append(batch, done, items)
            if self._durable:
                self._settle(done)
        except BaseException:
            new.cancel()
            self.remove([one.ref for one in done if isinstance(one.ref, str)])
            raise
        return done

    def _finish(self, new: NewFile[K], encoded: Encoded) -> Written:
        """Write what is left of a value, and close its file."""
        if not new.name:
            self._loose.create(new)
        note = encoded.note()
        pieces = new.take(encoded.pieces) if new.held else encoded.pieces
        system.write_all(new.fds[0], [*pieces, note] if note else pieces)
        size = encoded.nbytes + len(note)
        version = self._loose.finish(new, size)
        name, new.name = new.name, ""
        return _new(Written, (name, size, version, encoded.stamp, None))

    def _dump(self, new: NewFile[K], value: object) -> Written:
        """Write a file with the user's own dump and open."""
        new.take([])
        size, version = self._loose.dump(new, value, self.codec)
        name, new.name = new.name, ""
        return Written(name, size, version, None, None)

    def _failed(self, new: NewFile[K], value: object, error: Exception) -> Written:
        new.cancel()
        if isinstance(error, io.UnsupportedOperation) and not self.codec.native:
            try:  # the user's dump needs a file of the system, for a small value too
                return self._dump(new, value)
            except Exception as again:
                new.cancel()
                error = again
        return Written(None, 0, 0, None, error)

    def _append(self, batch: list[Record], done: list[Written], items: Sequence[tuple[K, object]]) -> None:
        """Write records, and put what became of them in their places in ``done``."""
        try:
            start = self._packs.append([record[3] for record in batch])
        except NoPack as error:
            log("debug", "no pack in %s, small values go to loose files: %s", self.path, error.__cause__)
            for place, *_ in batch:
                done[place] = self.write([items[place]], 0)[0]
        except OSError as error:
            system.raise_of_a_signal(error)
            for place, *_ in batch:
                done[place] = Written(None, 0, 0, None, error)
        else:
            for place, ref, stamp, _ in batch:
                done[place] = _new(Written, (start + ref, ref >> LENGTH & CRC, 0, stamp, None))

    def _settle(self, done: list[Written]) -> None:
        """Make the names of new files survive a loss of power; what cannot be is not written."""
        names = {one.ref: place for place, one in enumerate(done) if isinstance(one.ref, str)}
        try:
            if names:
                self._tree.sync_folders(names)
        except OSError as error:
            self.remove(names)
            for place in names.values():
                done[place] = Written(None, 0, 0, None, error)

    def reserve(self, key: K) -> str:
        return self._loose.reserve(key)

    # Back.

    def load(self, ref: Ref) -> Loaded:
        """`ChestError` for a ref that is none, or leads out of the directory."""
        if type(ref) is int:
            data = self._packs.read(ref)
            value, size = self.codec.decode(data), len(data)
            return _new(Loaded, (value, size, 0, hash(data) if size < LEAST else None))
        if type(ref) is not str:
            raise ChestError(f"the index of {self.path} says that a value lies at {ref!r}: do not trust this chest")
        if not self.codec.native:
            return self._load_from(ref)
        opened = system.Opened()
        try:
            status = self._loose.open(ref, opened)
            value, stamp = self.codec.load_file(opened[0], status)
        finally:
            opened.close()
        number = status.st_ino if keeps_inodes(status.st_dev) else 0  # as in `version_of`
        version = hash((number, status.st_size, status.st_mtime_ns))
        return _new(Loaded, (value, status.st_size, version, stamp))

    def _load_from(self, name: str) -> Loaded:
        """Load with the user's own load and open, which take a path: so the file is looked at before and after."""
        while True:
            before = self._look(name)
            value = self.codec.load_from(self._tree.path(name))
            after = self._look(name)
            if version_of(before) == version_of(after):
                return Loaded(value, after.st_size, version_of(after), None)

    def _look(self, name: str) -> os.stat_result:
        opened = system.Opened()
        try:
            return self._loose.open(name, opened)
        finally:
            opened.close()

    def load_many(self, refs: Sequence[Ref]) -> Iterator[Loaded | Exception]:
        """Records are read up to 1,000 or 4 MB ahead, in the order of their places; large loose files by threads."""
        names = [ref for ref in refs if type(ref) is not int]
        if self._open_many is None:
            files = load_ahead(self.load, names, self.codec.native)
        else:
            files = self._opened_together(self._open_many, names)
        with closing(files):
            first = 0
            while first < len(refs):
                last, size = first, 0
                while last < len(refs) and last - first < WINDOW and size < WINDOW_BYTES:
                    ref = refs[last]
                    size += ref >> LENGTH & CRC if type(ref) is int else 0
                    last += 1
                window, first = refs[first:last], last
                found = self._packs.read_many([ref for ref in window if type(ref) is int])
                for ref in window:
                    yield self._decoded(found[ref]) if type(ref) is int else next(files)

    def _opened_together(self, open_many: Callable[..., Any],
                         names: list[Ref]) -> Generator[Loaded | Exception, None, None]:
        """The values of files that the user's ``open_many`` opens at once, as in chest 0.2.3."""
        looks = [self._look(str(name)) for name in names]
        with open_many([self.file(name) for name in names], mode="r" + self.codec.mode) as files:
            for status, file in zip(looks, files):
                try:
                    yield Loaded(self.codec.load(file), status.st_size, version_of(status), None)
                except Exception as error:
                    yield error

    def _decoded(self, data: bytes | Exception) -> Loaded | Exception:
        if isinstance(data, Exception):
            return data
        try:
            return _new(Loaded, (self.codec.decode(data), len(data), 0, hash(data) if len(data) < LEAST else None))
        except Exception as error:  # of the user's load, or a class that is not there
            return error

    def same(self, ref: Ref, value: object, version: int | None = None) -> bool:
        opened = system.Opened()
        try:
            if isinstance(ref, int):
                return self.codec.same(value, self._packs.read(ref))
            status = self._loose.open(ref, opened)
            if version is not None and version != version_of(status):
                raise FileNotFoundError(errno.ENOENT, "there is another file now", self.file(ref))
            if self.codec.native:
                return self.codec.same_file(value, opened[0], status)
            return self.codec.same_from(value, self._tree.path(ref))
        except FileNotFoundError:
            if version is not None:
                raise
            return False
        except DamagedError:
            return False
        finally:
            opened.close()

    def size(self, ref: Ref) -> int:
        return ref >> LENGTH & CRC if isinstance(ref, int) else self._tree.size(ref)

    def version(self, ref: Ref) -> int | None:
        if isinstance(ref, int):
            return 0
        try:
            return version_of(self._tree.status(ref))
        except FileNotFoundError:
            return None

    def file(self, ref: Ref) -> str:
        """The full path of a loose file, or of the pack of a record."""
        return self._tree.path(self._packs.name(ref) if isinstance(ref, int) else ref)

    # Between chests, and away.

    def link(self, key: K, other: Storage[K], ref: Ref) -> Written:
        """A hard link to the other's loose file, or a copy of a record's bytes."""
        if not isinstance(other, Directory):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), other.path)
        if isinstance(ref, int):
            data = other._packs.read(ref)
            try:
                start = self._packs.append([data])
            except NoPack as error:
                raise OSError(errno.EACCES, "no pack can be made here", self.path) from error
            copied = start | ref & (1 << OFFSET) - 1
            return Written(copied, len(data), 0, hash(data) if len(data) < LEAST else None, None)
        name, status = self._loose.link(key, other._tree, ref)
        if self._durable:
            opened = system.Opened()
            try:
                self._loose.open(name, opened)
                system.sync_file(opened[0])
                self._tree.sync_folders([name])
            except BaseException:
                self.remove([name])
                raise
            finally:
                opened.close()
        return Written(name, status.st_size, version_of(status), None, None)

    def remove(self, refs: Iterable[Ref]) -> None:
        """A file that the system does not let go stays, and nothing names it; the next commit tries again."""
        for ref in refs:
            if isinstance(ref, str):
                error = self._unlink(ref)
                if error is not None:
                    log("warning", "%s, which no index names, stays: %s", self.file(ref), error)
                if isinstance(error, OSError):
                    with suppress(OSError):
                        self._in_use[ref] = self._tree.status(ref).st_ino

    def _remove_again(self) -> None:
        """Remove what was in use before: Windows removes no file that is open or mapped."""
        for name, inode in list(self._in_use.items()):
            try:
                self._tree.unlink(name, inode)
                self._in_use.pop(name, None)
            except OSError as error:
                system.raise_of_a_signal(error)

    def _unlink(self, name: str) -> OSError | ChestError | None:
        try:
            check_inside(name, self.path)
            self._tree.unlink(name)
        except ChestError as error:
            return error
        except OSError as error:
            system.raise_of_a_signal(error)
            return error.with_traceback(None)  # its frames would keep values that are mapped from the file
        return None

    def committed(self, plain: bool = False, pending: bool = False) -> None:
        if not pending:  # else nothing that protects other threads' files from a reclaimer is given up
            self._packs.committed(plain)
            self._loose.journal.empty(remove=plain)
        self._remove_again()

    def compact(self, refs: Mapping[K, Ref | None]) -> dict[int, int]:
        """Of packs without a living writer that hold more than twice what lives in them.  Cost: O(keys)."""
        return self._packs.compact(refs.values())

    def reclaim(self, refs: Collection[Ref]) -> None:
        names = self._tree.listed(FOLDER)
        if names:
            self._packs.reclaim(refs, names)
            self._loose.journal.reclaim(refs, names)
            self._tree.prune(FOLDER + "/")

    def make(self) -> None:
        """With the directories above it.  `NotADirectoryError` if there is a file."""
        self._left = False
        self._tree.make(self._durable)

    def exists(self) -> bool:
        try:
            return stat.S_ISDIR(os.stat(self.path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
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
        names = [ref for ref in refs if isinstance(ref, str)]
        self._remove_again()
        errors = [self._unlink(name) for name in names]
        self._loose.journal.erase_own()
        for step in (self._packs.erase_own, lambda: self.reclaim(()), lambda: self._tree.unlink(".keys~")):
            try:
                step()
            except OSError as error:
                errors.append(error)
        for name in [*names, FOLDER + "/"]:  # again, as one may have failed
            self._tree.prune(name)
        self._remove_directory()
        for one in errors:
            if one is not None:
                raise one

    def _remove_directory(self) -> None:
        """Remove the directory if nothing of anyone else's is in it; durably if the chest is."""
        gone = True
        try:
            os.rmdir(self.path)
        except OSError:
            gone = not self.exists()
        self._left = not gone
        if self._durable:
            try:
                system.sync_directory(os.path.dirname(os.path.abspath(self.path)) if gone else self.path)
            except (FileNotFoundError, PermissionError):
                pass

    def clear_away(self) -> None:
        import shutil

        self.close()
        shutil.rmtree(self.path, ignore_errors=True)

    def close(self) -> None:
        self._packs.close()
        self._loose.journal.close()
        self._remove_again()
        if self._left:  # on Windows the file of the lock was in use until now
            self._remove_directory()
            self._left = False

    def after_fork(self) -> None:
        self._packs.after_fork()
        self._loose.journal.after_fork()
        self._in_use.clear()  # these are the parent's to remove
