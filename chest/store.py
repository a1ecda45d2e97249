"""One place of a store: objects that are put, got and removed, several at once."""
from __future__ import annotations

import errno
import functools
import secrets
import threading
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import Any, Callable, TypeVar

from chest.codec import Codec
from chest.connection import Connection, started
from chest.keysfile import KEYS
from chest.locks import Gate, shield

__all__ = ["Store"]

T = TypeVar("T")
Task = tuple[int, Callable[[], T]]  # bytes that it holds in memory, and what is to be done

_TIDY = {"file", "local", "sftp", "ssh"}  # where removing a folder never removes what is in it
_AT_ONCE = 64 * 2**20  # bytes under way at once, but for a single larger object


class _Gate(Gate):
    """One thread of this process at a time commits; what others do a store does not let us lock."""

    def __enter__(self) -> None:
        shield.__enter__()
        self._mutex.acquire()
        self._depth += 1


_gates: weakref.WeakValueDictionary[str, _Gate] = weakref.WeakValueDictionary()


class Store(Connection):
    """One URL, with all that a chest does there.

    Where ``folders`` is true the store is a file system with folders and a rename, elsewhere it knows nothing but
    objects, and putting one is a single step.  ``hooked`` says that objects are opened by the user's ``open``, one
    after another, as nobody knows whether it may be called by several threads.
    """

    def __init__(self, url: str, options: Mapping[str, Any], codec: Codec):
        super().__init__(url, options)
        self._open = codec.open
        self._mode = codec.mode
        self.hooked = not codec.local
        if self.hooked:
            self.width = 1
        self.gate = _gates.setdefault(self.url, _Gate(self.url))
        protocols = {self.kind.protocol} if isinstance(self.kind.protocol, str) else set(self.kind.protocol)
        self.folders = "ssh" in protocols or (not self._shared and self.renames())
        self._tidy = bool(protocols & _TIDY)
        self._matches = "s3" in protocols  # s3fs hands the condition If-Match on
        self._made = False

    def after_fork(self) -> None:
        """In the child: neither connections nor locks of the parent's."""
        super().after_fork()
        self.gate.abandon()

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
            under_way.append((size, started(pool, work)))
        while under_way:
            yield under_way.popleft()[1]()

    # Objects.

    def get(self, name: str, cached: bool = False) -> bytes:
        """The content of ``name``; `FileNotFoundError` if there is none."""
        data: bytes
        if not self.hooked:
            data = self.run(lambda fs: fs.cat_file(self.inner(name)), cached)
        else:
            data = self._hook("r", name, lambda file: file.read())
        return data

    def put(self, name: str, data: bytes) -> Any:
        """Write ``data`` to ``name``, with one round trip where the folder is there."""
        if not self.hooked:
            return self.run(lambda fs: self._pipe(fs, name, data))
        return self._hook("w", name, lambda file: file.write(data.decode("utf-8") if self._mode == "t" else data))

    def _hook(self, direction: str, name: str, work: Callable[[Any], Any]) -> Any:
        """``work`` with the file that the user's ``open`` gives; text is taken for utf-8."""
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
            self.put(name, data)
            return None
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
