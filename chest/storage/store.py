"""One URL, by way of fsspec: its objects, which are got, put and removed in lists, and the index among them.

What goes wrong is an `OSError`, which shows no secret: its text is made anew, and it is not chained to what fsspec
raised, whose frames would also keep alive whoever called.
"""
from __future__ import annotations

import errno
import importlib
import os
import re
import secrets
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, thread
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Optional, TypeVar, cast
from urllib.parse import unquote

from chest.errors import ChestError, of_the_process
from chest.index import KEYS
from chest.index.format import Pairs, Refs, explained, parse, whole_list
from chest.storage.base import by_pack

if TYPE_CHECKING:
    from chest.serialize.codec import Codec

__all__ = ["Range", "RemoteKeys", "Store", "redacted"]

T = TypeVar("T")
Range = tuple[str, Optional[int], Optional[int]]  # the name of an object, and from where to where; `None`: all of it

_TIDY = {"file", "local", "sftp", "ssh"}  # where removing a folder never removes what is in it
# Answers of a store that is well.  ENOSYS: it, or the package that talks to it, does not know what was asked.
_NUMBERS = {"FileNotFoundError": errno.ENOENT, "FileExistsError": errno.EEXIST, "PermissionError": errno.EACCES,
            "NotImplementedError": errno.ENOSYS, "TypeError": errno.ENOSYS, "AttributeError": errno.ENOSYS,
            "ParamValidationError": errno.ENOSYS}
# User and password (Azure has the container's name there), and all from a query to the end of the link of the chain.
_SECRET = re.compile(r"(?<=://)(?<!abfs://)(?<!abfss://)(?<!az://)[^/?#]*@|[?#].*?(?=::[\w+.]+://|\Z)", re.DOTALL)

_HEAD = 300  # bytes of an index that hold its header, and so the random mark of the commit

_locks: dict[str, AbstractContextManager[bool]] = {}


def redacted(url: str) -> str:
    """``url`` without user, password, query and fragment, in each link of a chain.

    >>> redacted("simplecache::https://me:secret@host/run?token=1#2")
    'simplecache::https://***@host/run?***'
    """
    return _SECRET.sub(lambda found: "?***" if found[0][0] in "?#" else "***@", url)


def _secrets(url: str, options: object) -> list[str]:
    """Every text that must not be shown, longest first: what `redacted` cuts out, and all texts in ``options``."""
    found = {text for cut in _SECRET.findall(url) for text in (cut.strip("@?#"), *re.split("[:@?#&;=]", cut))}
    waiting = [options]
    for option in waiting:
        if isinstance(option, Mapping):
            waiting += option.values()
        elif isinstance(option, (list, tuple, set)):
            waiting += option
        elif isinstance(option, (str, bytes)):
            found.add(option if isinstance(option, str) else option.decode("utf-8", "replace"))
    return sorted({text for text in found | set(map(unquote, found)) if len(text) > 2}, key=len, reverse=True)


def _copied(options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` with the mappings in them, to which botocore adds things, copied too."""
    return {name: _copied(value) if isinstance(value, dict) else value for name, value in options.items()}


class _Inline(thread.ThreadPoolExecutor):
    """For fsspec's loop while the interpreter ends and no thread can be started: a connection that broke while nobody
    used it has to look up its host."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **more: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(work(*args, **more))
        return future


class Store:
    """The objects below one URL; ``path`` is what may be shown of it.

    A file system that is asynchronous inside is shared with all the program, and does a list of objects at once; any
    other is our own, and does one call at a time.
    """

    def __init__(self, url: str, options: Mapping[str, Any]):
        self.url = url if url.endswith("://") else url.rstrip("/")
        self.path = redacted(self.url)
        self._options, self._secrets = options, _secrets(url, options)
        self._fs: Any = None  # as the URL has it
        self._below: Any = None  # the same without the caches on top
        self._inherited: list[Any] = []  # of the parent: paramiko says goodbye to the server when it lets go of one
        self._shared = False
        self._own = threading.RLock()  # whose turn it is with a file system of our own
        self.run(lambda fs: None)

    def shown(self, name: str) -> str:
        """The URL of the object ``name`` as it may be shown to anybody."""
        return redacted(self.url + ("" if self.url.endswith("/") else "/") + name)

    # The connection.

    def _connect(self) -> None:
        try:
            fsspec = importlib.import_module("fsspec")
            caching = importlib.import_module("fsspec.implementations.cached").CachingFileSystem
        except ImportError:
            raise ImportError("pip install 'chest[remote]'") from None
        kind = fsspec.get_filesystem_class(self.url.split("::")[-1].partition("://")[0])
        self._shared = bool(getattr(kind, "async_impl", False))
        own, options = {"skip_instance_cache": not self._shared}, _copied(self._options)
        for link in self.url.split("::")[1:]:
            protocol = link.partition("://")[0]
            options[protocol] = {**options.get(protocol, {}), **own}
        fs, self._base = fsspec.core.url_to_fs(self.url, **own, **options)
        self._below = fs
        while isinstance(self._below, caching):
            self._below = self._below.fs
        protocols = {kind.protocol} if isinstance(kind.protocol, str) else set(kind.protocol)
        self._tags = "s3" in protocols  # s3fs gives a tag, and hands the condition If-Match on
        self._tidy = bool(protocols & _TIDY)
        # It has folders, and replaces a file by a rename; elsewhere putting an object is a single step.
        self._folders = "ssh" in protocols or not (self._shared or kind.mv is fsspec.AbstractFileSystem.mv)
        self._fs = fs

    def run(self, work: Callable[[Any], T], cached: bool = False) -> T:
        """What ``work`` makes of the file system, of the one below all caches unless ``cached``.

        It is tried twice with one of our own, whose connection may have broken while nobody used it.
        """
        if sys.is_finalizing():  # fsspec's own thread has ended, and would be waited for for ever
            raise ConnectionError(errno.ECONNABORTED, "the interpreter has ended", self.path)
        with nullcontext() if self._shared else self._own:
            for last in (self._shared, True):
                try:
                    with self._own:
                        if self._fs is None:
                            self._connect()
                        if self._shared and thread._shutdown:
                            self._below.loop.set_default_executor(_Inline(1))
                        fs = self._fs if cached else self._below
                    return work(fs)
                except BaseException as error:
                    failed = self._explained(error)
                broken = isinstance(failed, ConnectionError)
                if broken or not isinstance(failed, OSError):
                    self.close()  # it may be half-way through a call
                if last or not broken:
                    break
        raise failed

    def _explained(self, error: BaseException) -> BaseException:
        """``error`` as one of the system, with a number and without secrets; what is no fault of the store as it is."""
        if not isinstance(error, Exception) or of_the_process(error):
            return error
        kind, number = type(error), error.errno if isinstance(error, OSError) else None
        text = str(getattr(error, "strerror", None) or error or kind.__name__).replace(self.url, self.path)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        if self._fs is None and isinstance(error, ImportError):
            return ImportError(f"a chest at {self.path} needs a package that is not installed: {text}")
        if self._fs is None and isinstance(error, ValueError):
            return ValueError(f"there can be no chest at {self.path}: {text}")
        for known in kind.__mro__ if number is None else ():
            number = number or _NUMBERS.get(known.__name__)
        if number is None and kind is OSError and "closed" not in text:
            number = errno.EIO
        if number is not None:
            return OSError(number, text, self.path)
        return ConnectionError(errno.ECONNABORTED, f"the store does not answer ({kind.__name__}: {text})", self.path)

    def close(self) -> None:
        """Let go of the connection; the next use makes a new one.  What fsspec shares stays open for others."""
        fs, self._fs = self._fs, None
        client = None if fs is None or self._shared else getattr(self._below, "client", None)
        if client is not None:  # sftp: it has a thread, which ends now and not when the garbage is collected
            client.close()

    def after_fork(self) -> None:
        """In the child: no connection, no thread of fsspec's, and no lock of the parent's."""
        self._inherited.append(self._fs)
        self._fs = None
        self._own = threading.RLock()
        _locks.pop(self.url, None)
        importlib.import_module("fsspec.asyn").reset_lock()

    # Objects.

    def _inner(self, name: str) -> str:
        """What fsspec calls the object ``name``."""
        return f"{self._base.rstrip('/')}/{name}" if name else self._base

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes of an object, past all caches."""
        return self.run(lambda fs: bytes(fs.cat_file(self._inner(name), start=start, end=end)))

    def get(self, wanted: Sequence[Range]) -> list[bytes | Exception]:
        """The bytes of each, or its `OSError`; all at once where the store can, through a cache if the URL has one."""
        def got(fs: Any) -> list[bytes | Exception]:
            names, starts, ends = zip(*wanted)
            paths = list(map(self._inner, names))
            if len(wanted) == 1:
                return [bytes(fs.cat_file(paths[0], start=starts[0], end=ends[0]))]
            found = fs.cat_ranges(paths, list(starts), list(ends), on_error="return")
            for item in found:
                if isinstance(item, Exception):
                    raise item
            return list(map(bytes, found))

        try:
            return self.run(got, cached=True)
        except OSError as error:
            if len(wanted) == 1 or isinstance(error, ConnectionError):
                return [error.with_traceback(None)] * len(wanted)  # frames would keep the chest as long as it is kept
            # One cannot be had; or it is a cache, of which some versions do not know lists.
            return [item for one in wanted for item in self.get([one])]

    def put(self, objects: Mapping[str, bytes]) -> None:
        """Write new objects, all at once where the store can.  After an `OSError` any of them may be there, or not."""
        def piped(fs: Any) -> None:
            paths = {self._inner(name): data for name, data in objects.items()}
            try:
                fs.pipe(paths)
            except FileNotFoundError:
                if not self._folders:
                    raise
                for folder in {path.rpartition("/")[0] for path in paths}:
                    fs.makedirs(folder, exist_ok=True)
                fs.pipe(paths)

        self.run(piped)

    def info(self, name: str) -> Mapping[str, Any]:
        """What the store says of an object; nothing of one that is not there."""
        try:
            return cast("Mapping[str, Any]", self.ask("info", name))
        except FileNotFoundError:
            return {}

    def tag(self, name: str) -> str:
        """What tells this version of an object from others; nothing where the store does not say."""
        return self.info(name).get("ETag") or "" if self._tags else ""

    def swap(self, name: str, data: bytes, tag: str | None) -> str:
        """Replace ``name`` in one step, if it is still the version ``tag``, or `None` of it is there, if that is known.

        Returns the new tag.  `FileExistsError` or another `OSError` where it is another version by now.
        """
        path, spare = self._inner(name), f"{name}~{secrets.token_hex(6)}"

        def put_and_rename(fs: Any) -> None:  # both again, if the connection breaks: a rename may have been done
            self.put({spare: data})
            fs.mv(self._inner(spare), path)

        if self._folders:
            try:
                self.run(put_and_rename)
            except BaseException:
                self.remove([spare])
                raise
            return ""
        condition = {"mode": "create"} if tag is None else {"IfMatch": tag} if tag and self._tags else {}
        try:
            told = self.run(lambda fs: fs.pipe_file(path, data, **condition))
        except OSError as error:
            if not condition or error.errno != errno.ENOSYS:
                raise
            self._tags = False  # the store, or the package that talks to it, knows no conditional puts
            told = self.run(lambda fs: fs.pipe_file(path, data))
        return told.get("ETag") or "" if isinstance(told, dict) else ""

    def ask(self, verb: str, name: str, **options: bool) -> Any:
        """What the store answers now, and not what fsspec remembers, to ``info``, ``ls`` or ``rm_file``."""
        def asked(fs: Any) -> Any:
            fs.invalidate_cache(self._inner(name))
            return getattr(fs, verb)(self._inner(name), **options)

        return self.run(asked)

    def listed(self, folder: str) -> dict[str, int]:
        """The names and bytes of what is in ``folder``; nothing where one may not look."""
        try:
            found = self.ask("ls", folder, detail=True)
        except (FileNotFoundError, PermissionError):
            return {}
        return {one["name"].rstrip("/").rpartition("/")[2]: one.get("size") or 0 for one in found}

    def remove(self, names: Sequence[str]) -> bool:
        """Remove objects; one that is gone, or cannot go, is no error.  `False` if the store does not answer."""
        paths = list(map(self._inner, names))
        try:
            if any(set(path) & set("*?[") for path in paths) or not self._tried("rm", paths):  # a list has patterns
                for path in paths:
                    self._tried("rm_file", path)
        except ConnectionError:
            return False
        return True

    def prune(self) -> None:
        """Remove the folder, and those in it, as far as they are empty, where that removes nothing else."""
        if self._tidy:
            for folder, *_ in self.run(lambda fs: list(fs.walk(self._base, topdown=False))):
                self._tried("rmdir", folder)

    def _tried(self, verb: str, path: str | list[str]) -> bool:
        try:
            self.run(lambda fs: getattr(fs, verb)(path))
        except ConnectionError:
            raise
        except OSError:
            return False
        return True


class RemoteKeys:
    """``.keys`` in a store, as one handle last read or wrote it; the `Keys` of an index.

    A version is told by its head, where each commit leaves a random mark.  On S3 its tag (ETag) is the condition of the
    next commit.  Cost: one round trip for each method, two for `read` on S3; `read` and `replace` move O(keys) bytes.
    """

    def __init__(self, store: Store, codec: Codec):
        self.path = store.shown(KEYS)
        self._store, self._codec = store, codec
        self.named: set[int] = set()  # the packs that this version names,
        self.known: set[int] = set()  # and that ones before a commit of ours did, as far as they were not removed since
        self._head: bytes | None = None  # of the version that was read, or written; None: there is none
        self._tag: str | None = None  # of the same

    @property
    def lock(self) -> AbstractContextManager[bool]:
        """One thread of this process at a time commits to this URL.  Other processes a store cannot lock out."""
        return _locks.setdefault(self._store.url, threading.RLock())  # one step, whatever other threads do

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
            self.named = set()
            return True, []
        with explained(self.path):
            refs, *_ = parse(data, self.path, self._codec, partial(self._codec.decode, data))
        self._head, self._tag, self.named = data[:_HEAD], tag, set(by_pack(refs.values()))
        return True, refs

    def append(self, changes: Pairs) -> bool:
        return False  # nothing can be appended to an object

    def replace(self, pairs: Pairs) -> None:
        """Commit ``pairs`` as the whole list.

        `ChestError`, and nothing done, if another writer committed since we read; the next commit takes over what that
        one committed.  Where the store has no conditional puts nobody can tell.
        """
        data = whole_list(pairs, os.urandom(16))
        packs = set(by_pack(ref for _, ref in pairs))
        self.known |= self.named
        self.named |= packs  # until it is known whether this was done
        try:
            self._tag = self._store.swap(KEYS, data, self._tag)
        except OSError as error:
            if not isinstance(error, ConnectionError) and (isinstance(error, FileExistsError) or self.changed()):
                raise ChestError(
                    f"another process committed to {self.path} at the same moment: nothing of this commit was saved, "
                    f"and nothing of the other's was lost. Commit again, and let one process at a time write"
                ) from error
            raise
        self._head, self.named = data[:_HEAD], packs

    def erase(self) -> None:
        with suppress(FileNotFoundError):
            self._store.ask("rm_file", KEYS)

    def close(self) -> None:
        self._head = self._tag = None  # the next look reads anew
