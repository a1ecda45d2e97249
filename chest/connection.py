"""A connection to a store by way of fsspec: making it, sharing it, and its errors in one tongue."""
from __future__ import annotations

import concurrent.futures.thread
import errno
import importlib
import re
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Callable, NoReturn, TypeVar

from chest.locks import shield

__all__ = ["Connection", "started"]

T = TypeVar("T")

_PASSWORD = re.compile(r"(://[^/@:]*):[^/@]*@")
_CALM = (FileNotFoundError, FileExistsError, PermissionError)  # answers of a store that is well


class _Inline(ThreadPoolExecutor):
    """Does at once what is submitted.  While the interpreter ends fsspec's loop finds no other that takes anything."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **more: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*args, **more))
        except BaseException as error:
            future.set_exception(error)
        return future


def started(pool: ThreadPoolExecutor, work: Callable[[], T]) -> Callable[[], T]:
    """What gives the result of ``work``, which the pool does, or the caller where no thread can be started any more."""
    try:
        with shield:  # a chest that the garbage collector ends here would wait for a lock that we have
            return pool.submit(work).result
    except RuntimeError:
        return work


class Connection:
    """What calls of fsspec go through.

    A file system that is asynchronous inside takes calls from all threads.  Of any other kind, such as sftp, each call
    borrows one that no other thread uses meanwhile; a spare one is kept for the next call.  ``width`` says how many
    calls may be under way.
    """

    def __init__(self, url: str, options: Mapping[str, Any]):
        self.url = url if url.endswith("://") else url.rstrip("/")
        self._options = options
        self._fsspec = self._imported()
        self.kind = self._found()
        self._shared = bool(getattr(self.kind, "async_impl", False))
        self._own = not self._shared  # must the next one be a new one?
        self.width = 16 if self._shared else 8
        self._spare: deque[Any] = deque()
        self._inherited: list[deque[Any]] = []
        self._new_locks()
        first, self._base = self._connected()
        self._spare.append(first)

    def _new_locks(self) -> None:
        self._making = threading.Lock()
        self._places = threading.Semaphore(self.width)

    # Names.

    def url_of(self, name: str) -> str:
        return self.url + ("" if self.url.endswith("/") else "/") + name if name else self.url

    def shown(self, name: str = "") -> str:
        """The URL without the password that may stand in it."""
        return _PASSWORD.sub(r"\1:***@", self.url_of(name))

    def inner(self, name: str) -> str:
        """What fsspec calls the object ``name``."""
        return f"{self._base.rstrip('/')}/{name}" if name else self._base

    # Making one.

    def _imported(self) -> Any:
        try:
            return importlib.import_module("fsspec")
        except ImportError as error:
            raise ImportError(f"a chest at {self.shown()} needs fsspec: pip install 'chest[remote]'") from error

    def _found(self) -> Any:
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
            return started(pool, self._connect)()

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

    def renames(self) -> bool:
        """Has this kind of file system a rename of its own, rather than a copy and a removal?"""
        return self.kind.mv is not self._fsspec.AbstractFileSystem.mv

    # Using it.

    def run(self, work: Callable[[Any], T], cached: bool = False) -> T:
        """What ``work`` makes of a file system, of the one below all caches unless ``cached``.

        It is tried again with a new connection where one was used that may have broken while it was idle.  Raises
        errors of the system, with a number and a text.
        """
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
        self._spare = deque()
        self._new_locks()


def copied(options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` with the mappings in them, to which botocore adds things, copied too."""
    return {name: copied(value) if isinstance(value, dict) else value for name, value in options.items()}
