"""One place of a store, by way of fsspec: objects are put, got and removed in bulk, and errors come as `OSError`.

An error shows no secret: its text is made anew, and it is not chained to what fsspec raised, whose frames would also
keep alive whoever called.
"""
from __future__ import annotations

import concurrent.futures.thread
import errno
import importlib
import re
import secrets
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, TypeVar
from urllib.parse import unquote

from chest.errors import raised_by_signal

if TYPE_CHECKING:
    from chest.serialize.codec import Codec

__all__ = ["KEYS", "PACKS", "Range", "Store", "redacted"]

T = TypeVar("T")

KEYS, PACKS = ".keys", ".packs"
_TIDY = {"file", "local", "sftp", "ssh"}  # where removing a folder never removes what is in it
# Answers of a store that is well; the last are those to calls that the package for this store does not know.
_NUMBERS = {FileNotFoundError: errno.ENOENT, FileExistsError: errno.EEXIST, PermissionError: errno.EACCES,
            NotImplementedError: errno.ENOSYS, TypeError: errno.ENOSYS, AttributeError: errno.ENOSYS}
# User and password (Azure has the container's name there), and all from a query to the end of the link of the chain.
_SECRET = re.compile(r"(?<=://)(?<!abfs://)(?<!abfss://)(?<!az://)[^/?#]*@|[?#].*?(?=::[\w+.]+://|\Z)", re.DOTALL)

_locks: dict[str, AbstractContextManager[bool]] = {}


class Range(NamedTuple):
    """Bytes ``start`` to ``end`` of the object ``name``; all of it where both are `None`."""

    name: str
    start: int | None = None
    end: int | None = None


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


class _Inline(concurrent.futures.thread.ThreadPoolExecutor):
    """For fsspec's loop while the interpreter ends and no thread can be started: a connection that broke while nobody
    used it has to look up its host."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **more: Any) -> concurrent.futures.Future[Any]:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            future.set_result(work(*args, **more))
        except BaseException as error:
            future.set_exception(error)
        return future


class Store:
    """One URL, with all that a chest does there.

    ``folders``: it is a file system with a rename; elsewhere putting an object is a single step.  ``tags``: it tells
    versions of an object apart.  ``hooked``: the user's ``open`` opens objects, one after another.  A file system that
    is asynchronous inside is shared, and does a list of objects at once; any other has a connection of its own, and
    one call at a time.
    """

    def __init__(self, url: str, options: Mapping[str, Any], codec: Codec):
        self.url = url if url.endswith("://") else url.rstrip("/")
        self._shown = redacted(self.url)
        self._options, self._secrets = options, _secrets(url, options)
        self._open, self._mode, self.hooked = codec.open, codec.mode, not codec.local
        self._fs: Any = None
        self._inherited: list[Any] = []  # of the parent: paramiko says goodbye to the server when it lets go of one
        kind = self._clearly(self._kind)
        protocols = {kind.protocol} if isinstance(kind.protocol, str) else set(kind.protocol)
        self._shared = bool(getattr(kind, "async_impl", False))
        self._tidy = bool(protocols & _TIDY)
        renames = kind.mv is not importlib.import_module("fsspec").AbstractFileSystem.mv
        self.folders = "ssh" in protocols or (not self._shared and renames)
        self.tags = self._matches = "s3" in protocols  # s3fs gives a tag, and hands the condition If-Match on
        self._made = False
        self._new_locks()
        self.run(lambda fs: None)

    def _new_locks(self) -> None:
        self._connecting = threading.Lock()
        self._turn: AbstractContextManager[object] = nullcontext() if self._shared else threading.RLock()

    @property
    def lock(self) -> AbstractContextManager[bool]:
        """One thread of this process at a time commits to this URL.  Other processes a store cannot lock out."""
        return _locks.setdefault(self.url, threading.RLock())  # one step, whatever other threads do

    def _url_of(self, name: str) -> str:
        return self.url + ("" if self.url.endswith("/") else "/") + name

    def shown(self, name: str) -> str:
        """The URL of the object ``name`` as it may be shown to anybody."""
        return redacted(self._url_of(name))

    def _inner(self, name: str) -> str:
        """What fsspec calls the object ``name``."""
        return f"{self._base.rstrip('/')}/{name}" if name else self._base

    # The connection.

    def _kind(self) -> Any:
        """The class of the file system below those that only cache."""
        try:
            fsspec = importlib.import_module("fsspec")
        except ImportError:
            raise ImportError("pip install 'chest[remote]'") from None
        return fsspec.get_filesystem_class(self.url.split("::")[-1].partition("://")[0])

    def _connected(self, cached: bool) -> Any:
        """The file system, or the one below those that only cache."""
        with self._connecting:
            if self._fs is None:
                private = {"skip_instance_cache": not self._shared}
                options = _copied(self._options)
                for link in self.url.split("::")[1:]:
                    protocol = link.partition("://")[0]
                    options[protocol] = {**options.get(protocol, {}), **private}
                self._fs, self._base = importlib.import_module("fsspec.core").url_to_fs(self.url, **private, **options)
            if self._shared and concurrent.futures.thread._shutdown:
                self._below(self._fs).loop.set_default_executor(_Inline(1))
            return self._fs if cached else self._below(self._fs)

    def _below(self, fs: Any) -> Any:
        caching = importlib.import_module("fsspec.implementations.cached").CachingFileSystem
        while isinstance(fs, caching):
            fs = fs.fs
        return fs

    def run(self, work: Callable[[Any], T], cached: bool = False) -> T:
        """What ``work`` makes of the file system, of the one below all caches unless ``cached``.

        It is tried twice with a connection of our own, which may have broken while nobody used it.
        """
        if sys.is_finalizing():  # fsspec's own thread has ended, and would be waited for for ever
            raise ConnectionError(errno.ECONNABORTED, "the interpreter has ended", self._shown)
        with self._turn:
            for last in (self._shared, True):
                try:
                    return self._clearly(lambda: work(self._connected(cached)))
                except BaseException as error:
                    if isinstance(error, OSError) and not isinstance(error, ConnectionError):
                        raise
                    self.close()  # it may be half-way through a call
                    if last or not isinstance(error, ConnectionError):
                        raise
        raise AssertionError

    def _clearly(self, work: Callable[[], T]) -> T:
        """What ``work`` returns; what it raises as an error of the system, with a number and without secrets."""
        try:
            return work()
        except Exception as error:
            if isinstance(error, MemoryError) or raised_by_signal(error):
                raise
            failed = self._explained(error)
        raise failed

    def _explained(self, error: Exception) -> Exception:
        kind, number, shown = type(error), getattr(error, "errno", None), self._shown
        text = str(getattr(error, "strerror", None) or error or kind.__name__).replace(self.url, shown)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        if self._fs is None and isinstance(error, ImportError):
            return ImportError(f"a chest at {shown} needs a package that is not installed: {text}")
        if self._fs is None and isinstance(error, ValueError):
            return ValueError(f"there can be no chest at {shown}: {text}")
        usual = [usual for known, usual in _NUMBERS.items() if isinstance(error, known)]
        if "ParamValidation" in kind.__name__:  # of botocore: it knows no such condition
            usual = [errno.ENOSYS]
        elif isinstance(error, OSError) and (number is not None or (kind is OSError and "closed" not in text)):
            usual.append(errno.EIO)
        if usual:
            return OSError(number or usual[0], text, shown)
        return ConnectionError(errno.ECONNABORTED, f"the store does not answer ({kind.__name__}: {text})", shown)

    def close(self) -> None:
        """Let go of the connection; the next use makes a new one.  What fsspec shares stays open for others."""
        fs, self._fs = self._fs, None
        client = None if fs is None or self._shared else getattr(self._below(fs), "client", None)
        if client is not None:  # sftp: it has a thread, which ends now and not when the garbage is collected
            client.close()

    def after_fork(self) -> None:
        """In the child: no connection, no thread of fsspec's, and no lock of the parent's."""
        self._inherited.append(self._fs)
        self._fs = None
        self._new_locks()
        _locks.pop(self.url, None)
        importlib.import_module("fsspec.asyn").reset_lock()

    # Objects.

    def get(self, wanted: Sequence[Range], cached: bool = True) -> list[bytes | Exception]:
        """The bytes of each, or its `OSError`; all at once where the store can, through a cache if the URL has one."""
        if self.hooked:
            return [self._read(one.name) for one in wanted]

        def got(fs: Any) -> list[bytes | Exception]:
            paths, starts, ends = map(list, zip(*((self._inner(one.name), one.start, one.end) for one in wanted)))
            if len(wanted) > 1 or not cached:
                found = fs.cat_ranges(paths, starts, ends, on_error="return")
            else:  # some versions of fsspec's caches know no other
                found = [fs.cat_file(paths[0], start=starts[0], end=ends[0])]
            found = [self._explained(item) if isinstance(item, Exception) else bytes(item) for item in found]
            for item in found:
                if isinstance(item, ConnectionError) or (isinstance(item, OSError) and item.errno == errno.ENOSYS):
                    raise item
            return found

        try:
            return self.run(got, cached)
        except OSError as error:
            if len(wanted) > 1 and not isinstance(error, ConnectionError):  # of one of them: a cache does not say which
                return [item for one in wanted for item in self.get([one], cached)]
            return [error.with_traceback(None)] * len(wanted)  # its frames would keep the chest as long as it is kept

    def _read(self, name: str) -> bytes | Exception:
        try:
            data = self._clearly(lambda: self._hook("r", name))
        except OSError as error:
            return error.with_traceback(None)
        return data.encode("utf-8") if isinstance(data, str) else bytes(data)

    def _hook(self, direction: str, name: str, data: bytes = b"") -> Any:
        with self._open(self._url_of(name), mode=direction + self._mode) as file:
            return file.read() if direction == "r" else file.write(data.decode() if self._mode == "t" else data)

    def put(self, objects: Mapping[str, bytes]) -> None:
        """Write new objects, all at once where the store can.  After an `OSError` any of them may be there, or not."""
        if self.hooked:
            self._clearly(lambda: [self._hook("w", name, data) for name, data in objects.items()])
        else:
            self.run(lambda fs: self._pipe(fs, objects))

    def _pipe(self, fs: Any, objects: Mapping[str, bytes]) -> None:
        paths = {self._inner(name): data for name, data in objects.items()}
        for _ in range(3 if self.folders else 0):
            try:
                fs.pipe(paths)
                return
            except FileNotFoundError:  # or another handle has just removed the folders, as they were empty
                for folder in {path.rpartition("/")[0] for path in paths}:
                    fs.makedirs(folder, exist_ok=True)
        fs.pipe(paths)

    def swap(self, name: str, data: bytes, tag: object) -> object:
        """Replace ``name`` in one step, and only if it is still the version ``tag`` where the store can tell.

        `None` as a tag says that there is none yet.  Returns the new tag if the store tells it, else `None`.  Raises
        `FileExistsError` or another `OSError` where it is another version by now.
        """
        if self.hooked:
            self.put({name: data})
            return None
        if self.folders:
            spare = f"{name}~{secrets.token_hex(6)}"

            def put_and_rename(fs: Any) -> None:  # both again, if the connection breaks: a rename may have been done
                self._pipe(fs, {spare: data})
                fs.mv(self._inner(spare), self._inner(name))

            try:
                self.run(put_and_rename)
            except BaseException:
                self._tried("rm_file", self._inner(spare))
                raise
            return None
        condition: dict[str, Any] = {"mode": "create"} if tag is None else {"IfMatch": tag} if self._matches else {}
        try:
            told = self.run(lambda fs: fs.pipe_file(self._inner(name), data, **condition))
        except OSError as error:
            if not condition or error.errno != errno.ENOSYS:
                raise
            self._matches = False  # the store, or the package that talks to it, knows no conditional puts
            told = self.run(lambda fs: fs.pipe_file(self._inner(name), data))
        return told.get("ETag") if self.tags and isinstance(told, dict) else None

    def info(self, name: str, verb: str = "info", **options: bool) -> Any:
        """What the store says of the object now, and not what fsspec remembers of a listing."""
        def ask(fs: Any) -> Any:
            fs.invalidate_cache(self._inner(name))
            return getattr(fs, verb)(self._inner(name), **options)

        return self.run(ask)

    def listed(self, folder: str) -> dict[str, int]:
        """The names and bytes of what is in ``folder``; nothing where one may not look."""
        try:
            found = self.info(folder, "ls", detail=True)
        except (FileNotFoundError, PermissionError):
            return {}
        return {one["name"].rstrip("/").rpartition("/")[2]: one.get("size") or 0 for one in found}

    def remove(self, names: Sequence[str]) -> bool:
        """Remove objects, and folders that this leaves empty.  `False` if the store does not answer."""
        paths = list(map(self._inner, names))
        patterns = any(set(path) & set("*?[") for path in paths)
        folders = {name[:at] for name in names for at, sign in enumerate(name) if sign == "/"} if self._tidy else ()
        try:
            if len(paths) == 1 or patterns or not self._tried("rm", paths):
                for path in paths:
                    self._tried("rm_file", path)
            for folder in sorted(folders, key=len, reverse=True):
                self._tried("rmdir", self._inner(folder))
        except ConnectionError:
            return False
        return True

    def erase(self, name: str) -> None:
        """Remove an object; `OSError` if that cannot be."""
        with suppress(FileNotFoundError):
            self.run(lambda fs: fs.rm_file(self._inner(name)))

    def _tried(self, verb: str, path: str | list[str]) -> bool:
        try:
            self.run(lambda fs: getattr(fs, verb)(path))
        except ConnectionError:
            raise
        except OSError:
            return False  # it is gone already, or something is in it
        return True

    # The place as a whole.

    def exists(self) -> bool:
        """Is there such a folder?  Where there are none: is there an index, or did this handle `make` the place?"""
        try:
            return (self._made and not self.folders) or bool(self.info("" if self.folders else KEYS))
        except FileNotFoundError:
            return False

    def make(self) -> None:
        """Make the folder, where there are folders, if this handle has not done so yet."""
        if self.folders and not self._made:
            self.run(lambda fs: fs.makedirs(self._base, exist_ok=True))
        self._made = True

    def destroy(self) -> None:
        """Remove the index and the packs, and the folder if nothing of anyone else's is in it."""
        spare = [name for name in self.listed("") if name.startswith(KEYS + "~")] if self.folders else []
        self.remove([KEYS, *spare, *(f"{PACKS}/{name}" for name in self.listed(PACKS))])
        if self._tidy:
            self._tried("rmdir", self._base)
        self._made = False


def _copied(options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` with the mappings in them, to which botocore adds things, copied too."""
    return {name: _copied(value) if isinstance(value, dict) else value for name, value in options.items()}
