"""The way to one place of a store: connections, errors in one tongue, and several things at once."""
from __future__ import annotations

import concurrent.futures.thread
import errno
import functools
import importlib
import re
import secrets
import sys
import threading
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, Callable, NoReturn, TypeVar

from chest.codec import Codec
from chest.keysfile import KEYS
from chest.locks import Gate, shield

__all__ = ["Store"]

T = TypeVar("T")
Task = tuple[int, Callable[[], T]]  # bytes that it holds in memory, and what is to be done

_PASSWORD = re.compile(r"(://[^/@:]*):[^/@]*@")
_TIDY = {"file", "local", "sftp", "ssh"}  # where removing a folder never removes what is in it
_AT_ONCE = 64 * 2**20  # bytes under way at once, but for a single larger object
_CALM = (FileNotFoundError, FileExistsError, PermissionError)  # answers of a store that is well


class _Gate(Gate):
    """One thread of this process at a time commits; what others do a store does not let us lock."""

    def __enter__(self) -> None:
        shield.__enter__()
        self._mutex.acquire()
        self._depth += 1


class _Inline(ThreadPoolExecutor):
    """Does at once what is submitted.  While the interpreter ends fsspec's loop finds no other that takes anything."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **more: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*args, **more))
        except BaseException as error:
            future.set_exception(error)
        return future


_gates: weakref.WeakValueDictionary[str, _Gate] = weakref.WeakValueDictionary()


class Store:
    """One URL, with all that a chest does there.

    A file system that is asynchronous inside takes calls from all threads.  Of any other kind, such as sftp, each call
    borrows one that no other thread uses meanwhile; a spare one is kept for the next call.  ``width`` says how many
    calls may be under way.  Where ``folders`` is true the store is a file system with folders and a rename, elsewhere
    it knows nothing but objects, and putting one is a single step.
    """

    def __init__(self, url: str, options: Mapping[str, Any], codec: Codec):
        self.url = url if url.endswith("://") else url.rstrip("/")
        self._options = options
        self._open = None if codec.local else codec.open
        self._mode = codec.mode
        self._making = threading.Lock()
        self.gate = _gates.setdefault(self.url, _Gate(self.url))
        self._fsspec: Any = self._imported()
        self._spare: deque[Any] = deque()
        self._inherited: list[Any] = []
        kind = self._kind()
        protocols = {kind.protocol} if isinstance(kind.protocol, str) else set(kind.protocol)
        self._shared = bool(getattr(kind, "async_impl", False))
        self._own = not self._shared  # must the next connection be a new one?
        first, self._base = self._connected()
        self.folders = "ssh" in protocols or (kind.mv is not self._fsspec.AbstractFileSystem.mv and not self._shared)
        self._tidy = bool(protocols & _TIDY)
        self._matches = "s3" in protocols  # s3fs hands the condition If-Match on
        self.hooked = self._open is not None
        self.width = 1 if self.hooked else 16 if self._shared else 8
        self._places = threading.Semaphore(self.width)
        self._made = False
        self._spare.append(first)

    # Names.

    def url_of(self, name: str) -> str:
        return self.url + ("" if self.url.endswith("/") else "/") + name if name else self.url

    def shown(self, name: str = "") -> str:
        """The URL without the password that may stand in it."""
        return _PASSWORD.sub(r"\1:***@", self.url_of(name))

    def inner(self, name: str) -> str:
        """What fsspec calls the object ``name``."""
        return f"{self._base.rstrip('/')}/{name}" if name else self._base

    # Connections.

    def _imported(self) -> Any:
        try:
            return importlib.import_module("fsspec")
        except ImportError as error:
            raise ImportError(f"a chest at {self.shown()} needs fsspec: pip install 'chest[remote]'") from error

    def _kind(self) -> Any:
        """The class of the file system below those that only cache."""
        protocol = self.url.split("::")[-1].partition("://")[0]
        with self._explained():
            return self._fsspec.get_filesystem_class(protocol)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except ImportError as error:
            raise ImportError(f"a chest at {self.shown()} needs a package that is not installed: {error}") from error
        except ValueError as error:
            raise ValueError(f"there can be no chest at {self.shown()}: {error}") from error

    def _connected(self) -> tuple[Any, str]:
        """A file system, where that matters one that fsspec gives to nobody else, and the path in it.

        It is made in another thread: paramiko keeps the frames of those who connect, and with ours the chest would
        stay until the garbage is collected.
        """
        with ThreadPoolExecutor(1) as pool:
            return self._started(pool, self._connect)()

    def _connect(self) -> tuple[Any, str]:
        options = copied(self._options)
        for link in self.url.split("::")[1:]:
            protocol = link.partition("://")[0]
            options[protocol] = {**options.get(protocol, {}), "skip_instance_cache": self._own}
        url_to_fs = importlib.import_module("fsspec.core").url_to_fs
        with self._explained():
            try:
                fs, base = url_to_fs(self.url, skip_instance_cache=self._own, **options)
            except (ImportError, ValueError):
                raise
            except Exception as error:
                self._fail(error)
        return fs, base

    def _under(self, fs: Any) -> Any:
        """The file system below those that only cache."""
        caching = importlib.import_module("fsspec.implementations.cached").CachingFileSystem
        while isinstance(fs, caching):
            fs = fs.fs
        return fs

    def run(self, work: Callable[[Any], T], cached: bool = False) -> T:
        """``work`` with a file system, below all caches unless ``cached``.  One attempt, or two if the first
        found a connection that broke while it was idle.  Errors are those of the system, with a number and a text."""
        if sys.is_finalizing():  # fsspec's own thread has ended, and it would be waited for for ever
            raise ConnectionError(errno.ECONNABORTED, "the interpreter has ended", self.shown())
        with self._places:
            while True:
                fs, used = self._borrow()
                try:
                    result = work(fs if cached else self._under(fs))
                except _CALM as error:
                    self._give_back(fs)
                    self._fail(error)
                except Exception as error:
                    self.close()
                    self._hang_up(fs)
                    self._own = True
                    if not used or self._shared:
                        self._fail(error)
                    continue
                self._give_back(fs)
                return result

    def _borrow(self) -> tuple[Any, bool]:
        with self._making:  # one after another: servers refuse a crowd of newcomers
            used = bool(self._spare)
            if not used:
                self._spare.append(self._connected()[0])
            if not self._shared:
                return self._spare.pop(), used
            if getattr(concurrent.futures.thread, "_shutdown", False):
                self._under(self._spare[-1]).loop.set_default_executor(_Inline(1))
            return self._spare[-1], used

    def _give_back(self, fs: Any) -> None:
        if not self._shared:
            self._spare.append(fs)

    def _fail(self, error: Exception) -> NoReturn:
        """Raise ``error`` as one of the system's own, with the number and the text that callers look for.

        Its traceback goes: fsspec's error, and the frames of its own thread, keep each other and all who called, also
        the chest, until the garbage is collected, which may be in that very thread.
        """
        cause = error.with_traceback(None)
        try:
            raise self._clear(cause) from cause
        finally:
            del cause, error

    def _clear(self, error: Exception) -> OSError:
        text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        for kind, number in zip(_CALM, (errno.ENOENT, errno.EEXIST, errno.EACCES)):
            if isinstance(error, kind):
                return kind(error.errno or number, text, self.shown())
        if isinstance(error, OSError) and error.errno is not None:
            return OSError(error.errno, text, self.shown())
        return ConnectionError(errno.ECONNABORTED, f"the store does not answer ({type(error).__name__}: {text})",
                               self.shown())

    def close(self) -> None:
        """Let go of the spare connections.  What fsspec shares stays open for others."""
        spare, self._spare = self._spare, deque()
        for fs in spare:
            self._hang_up(fs)

    def _hang_up(self, fs: Any) -> None:
        """End the connection of sftp now, with its thread, and not when the garbage is collected."""
        client = None if self._shared else getattr(self._under(fs), "client", None)
        if client is not None:
            client.close()

    def after_fork(self) -> None:
        """In the child: none of the parent's connections, and no lock that a thread of the parent may hold.

        The connections are kept, though: paramiko says goodbye to the server when it lets go of one.
        """
        self._inherited.append(self._spare)
        self.gate.abandon()
        self._making = threading.Lock()
        self._places = threading.Semaphore(self.width)
        self._spare = deque()

    # Several at once.

    def many(self, tasks: Iterable[Task[T]]) -> Generator[T, None, None]:
        """Do the tasks, several at once, and give their results in order, as one asks for them.

        While the interpreter shuts down no thread can be started: then they are done one after another.
        """
        tasks = iter(tasks)
        first = list(islice(tasks, 2))
        if len(first) < 2 or self.width < 2:
            for _, work in chain(first, tasks):
                yield work()
            return
        pool = ThreadPoolExecutor(self.width)
        try:
            yield from self._flow(pool, chain(first, tasks))
        finally:
            pool.shutdown()

    def _flow(self, pool: ThreadPoolExecutor, tasks: Iterable[Task[T]]) -> Generator[T, None, None]:
        under_way: deque[Task[T]] = deque()
        weight = 0
        for size, work in tasks:
            while under_way and (len(under_way) >= self.width or weight + size > _AT_ONCE):
                done, result = under_way.popleft()
                yield result()
                weight -= done
            weight += size
            under_way.append((size, self._started(pool, work)))
        while under_way:
            yield under_way.popleft()[1]()

    @staticmethod
    def _started(pool: ThreadPoolExecutor, work: Callable[[], T]) -> Callable[[], T]:
        try:
            with shield:  # a chest that the garbage collector ends here would wait for a lock that we have
                return pool.submit(work).result
        except RuntimeError:
            return work

    # Objects.

    def get(self, name: str, cached: bool = False) -> bytes:
        """The content of ``name``; `FileNotFoundError` if there is none."""
        data: bytes
        if self._open is None:
            data = self.run(lambda fs: fs.cat_file(self.inner(name)), cached)
        else:
            data = self._hook("r", name, lambda file: file.read())
        return data

    def put(self, name: str, data: bytes) -> Any:
        """Write ``data`` to ``name``, with one round trip where the folder is there."""
        if self._open is None:
            return self.run(lambda fs: self._pipe(fs, name, data))
        return self._hook("w", name, lambda file: file.write(data.decode("utf-8") if self._mode == "t" else data))

    def _hook(self, direction: str, name: str, work: Callable[[Any], Any]) -> Any:
        """``work`` with the file that the user's ``open`` gives; text is taken for utf-8."""
        assert self._open is not None
        try:
            with self._open(self.url_of(name), mode=direction + self._mode) as file:
                result = work(file)
        except Exception as error:
            self._fail(error)
        return result.encode("utf-8") if isinstance(result, str) else result

    def _pipe(self, fs: Any, name: str, data: bytes, **condition: Any) -> Any:
        for _ in range(3):
            try:
                return fs.pipe_file(self.inner(name), data, **condition)
            except FileNotFoundError:
                if not self.folders:
                    raise
            fs.makedirs(self.inner(name).rpartition("/")[0], exist_ok=True)  # another handle may just have emptied it
        return fs.pipe_file(self.inner(name), data, **condition)

    def swap(self, name: str, data: bytes, tag: Any) -> Any:
        """Replace ``name`` in one step, and only if it is still the version ``tag`` where the store can tell.

        `None` as a tag says that there is none yet.  Returns the new tag if the store tells it, else `None`.
        """
        if self.folders:
            return self._renamed(name, data)
        if self.hooked:
            return self.put(name, data) and None
        condition = {"mode": "create"} if tag is None else {"IfMatch": tag} if self._matches else {}
        try:
            told = self.run(lambda fs: self._pipe(fs, name, data, **condition))
        except OSError as error:
            if not condition or not _unsupported(error):
                raise
            self._matches = False
            told = self.run(lambda fs: self._pipe(fs, name, data))
        return told.get("ETag") if self._matches and isinstance(told, dict) else None

    def _renamed(self, name: str, data: bytes) -> None:
        spare = f"{name}~{secrets.token_hex(6)}"
        try:
            self.put(spare, data)
            self.run(lambda fs: fs.mv(self.inner(spare), self.inner(name)))
        except BaseException:
            self.remove([spare])
            raise

    def size(self, name: str) -> int:
        return self.run(lambda fs: fs.size(self.inner(name)) or 0)

    def remove(self, names: list[str]) -> None:
        """Remove objects, and folders that this leaves empty; give up when the store does not answer."""
        gone = threading.Event()

        def remove(name: str) -> None:
            try:
                if not gone.is_set():
                    self.run(lambda fs: fs.rm_file(self.inner(name)))
            except ConnectionError:
                gone.set()
            except OSError:
                pass

        for _ in self.many((0, functools.partial(remove, name)) for name in names):
            pass
        if self._tidy and not gone.is_set():
            for folder in sorted({folder for name in names for folder in above(name)}, key=len, reverse=True):
                self._remove_folder(folder)

    def _remove_folder(self, folder: str) -> None:
        try:
            self.run(lambda fs: fs.rmdir(self.inner(folder)))
        except OSError:
            pass  # something is in it

    # The place as a whole.

    def exists(self) -> bool:
        if not self.folders:
            return True
        try:
            self.run(lambda fs: fs.info(self._base))
        except FileNotFoundError:
            return False
        return True

    def make(self) -> None:
        if self.folders and not self._made:
            if not self.exists():
                self.run(lambda fs: fs.makedirs(self._base, exist_ok=True))
            self._made = True

    def destroy(self) -> None:
        names = [KEYS]
        if self.folders:
            names += [name for name in self._listed() if name.startswith(KEYS + "~")]  # of commits that were killed
        self.remove(names)
        if self._tidy:
            self._remove_folder("")
        self._made = False

    def _listed(self) -> list[str]:
        return [path.rpartition("/")[2] for path in self.run(lambda fs: fs.ls(self._base, detail=False))]

    def clear_away(self) -> None:
        try:
            self.run(lambda fs: fs.rm(self._base, recursive=True))
        except FileNotFoundError:
            pass
        self._made = False


def copied(options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` with the mappings in them, to which botocore adds things, copied too."""
    return {name: copied(value) if isinstance(value, dict) else value for name, value in options.items()}


def above(name: str) -> list[str]:
    """The folders that the path ``name`` goes through.

    >>> above('_a/_b/c')
    ['_a/_b', '_a']
    """
    folders = []
    while "/" in name:
        name = name.rpartition("/")[0]
        folders.append(name)
    return folders


def _unsupported(error: OSError) -> bool:
    """Does the store, or the package that talks to it, not know conditional puts?"""
    cause = error.__cause__
    return error.errno == errno.ENOSYS or isinstance(cause, TypeError) or "ParamValidation" in type(cause).__name__
