"""The chest: a dictionary that spills to disk."""
from __future__ import annotations

import builtins
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from chest import serialize
from chest.engine.committer import Progress, silent
from chest.engine.engine import Engine
from chest.engine.lifecycle import let_go
from chest.engine.opening import Settings
from chest.engine.state import nothing
from chest.engine.transfer import receive, receive_chest
from chest.errors import GoneError
from chest.index import key_to_filename
from chest.mapping import DictMethods, unchanging
from chest.memory.budget import budget
from chest.memory.cache import ABSENT
from chest.memory.sizeof import nbytes
from chest.stats import Stats
from chest.storage.base import offset_of, pack_of

__all__ = ["Chest", "key_to_filename", "nbytes"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Chest(DictMethods[K, V]):
    """A dictionary that spills to disk.  Any thread may call any method; a hit takes no lock.

    Args:
        data: What the chest holds at first, besides what is in ``path`` already.
        path: The directory, made if it is not there; or, with ``chest[remote]`` installed, a URL such as
            ``s3://bucket/run``.  Without a path the chest is temporary: its directory is removed when it goes.
        available_memory: The budget for values in memory: bytes, ``"2 GB"``, ``"500 MiB"``, ``"50%"`` of the machine's.
        dump, load: ``dump(value, file)`` and ``load(file)``; by default pickle, laid out so that arrays can be mapped.
        key_to_filename: ``key -> str``, the plain name of a key's file; where it will not do, it is an md5.
        on_miss, on_overflow: Called with the key before a value is loaded, or leaves memory; may use the chest.
        open: ``open(path, mode=...)`` for all files, for example `gzip.open`; not for a URL.
        open_many: ``open_many(paths, mode=...)``, a context manager of open files, used by `prefetch`.
        mode: ``'b'`` for binary or ``'t'`` for text files.
        writeback: Notice values that were changed in place, and write them again; `False`: never look.
        mmap_mode: Large arrays come back as copy-on-write (``'c'``) or read-only (``'r'``) maps, or as copies (`None`);
            ``'auto'``: as ``'c'`` where the system tells which pages were written and the disk is local, else copies.
        min_file_size: Values that serialise to fewer bytes, or ``"4 kB"``, share files, the packs; 0: none do.  `None`:
            4096 in a chest of more than 1,000 keys with the built-in ``open``, else 0.
        durable: A commit also survives a loss of power, and arrays carry a checksum.
        trusted: `False` for a chest from an untrusted source: no code that it names is run.
        flag: As in `dbm`: ``'r'`` read only, must exist; ``'w'`` must exist; ``'c'`` made if needed; ``'n'`` emptied.
        storage_options: For a URL: handed to fsspec.

    >>> c = Chest({'x': [1, 2, 3]}, available_memory="1 GB")
    >>> c.flush()
    >>> sorted(os.listdir(c.path)), c['x']
    (['.keys', 'x'], [1, 2, 3])
    """

    def __init__(
        self,
        data: Mapping[K, V] | Iterable[tuple[K, V]] | None = None,
        path: str | os.PathLike[str] | None = None,
        available_memory: float | str | None = 1e9,
        dump: Callable[[Any, Any], Any] = serialize.dump,
        load: Callable[[Any], Any] = serialize.load,
        key_to_filename: Callable[[K], str] = key_to_filename,
        on_miss: Callable[[K], Any] = nothing,
        on_overflow: Callable[[K], Any] = nothing,
        open: Callable[..., Any] = builtins.open,
        open_many: Callable[..., Any] | None = None,
        mode: Literal["b", "t"] = "b",
        *,
        writeback: bool = True,
        mmap_mode: Literal["auto", "c", "r"] | None = "auto",
        min_file_size: float | str | None = None,
        durable: bool = False,
        trusted: bool = True,
        flag: Literal["r", "w", "c", "n"] = "c",
        storage_options: dict[str, Any] | None = None,
    ):
        if isinstance(data, (str, bytes, os.PathLike)):
            raise TypeError(f"the first argument is what the chest holds; for a directory say Chest(path={data!r})")
        self._explicitly_given_path = path is not None
        self.dump, self.load, self.open, self.mode = dump, load, open, mode
        small = None if min_file_size is None else int(min(budget(min_file_size, "min_file_size"), 1 << 40))
        settings = Settings(dump, load, key_to_filename, on_miss, on_overflow, open, open_many, mode, writeback,
                            mmap_mode, small, durable, trusted, flag, storage_options)
        self._engine: Engine[K] = Engine(path, settings, budget(1e9 if available_memory is None else available_memory))
        self.path: str = self._engine.path
        self._access = self._engine.state.cache.access
        if data is not None:
            self.update(data)

    def __getitem__(self, key: K) -> V:
        access = self._access
        access.used(key)  # first: from now on the value stays for this thread
        try:
            value: V = access.given[key]
        except KeyError:
            pass  # what the engine raises must not show this one as its cause
        else:
            for _ in access.hits:  # one step of a C counter, without a call
                return value
            self._engine.count_on()
            return value
        value = self._engine.alive().get(key)
        if value is not ABSENT:
            return value
        if hasattr(type(self), "__missing__"):
            return cast(V, cast(Any, self).__missing__(key))
        raise KeyError(key) from None

    def __setitem__(self, key: K, value: V) -> None:
        self._engine.set(key, value)

    def __delitem__(self, key: K) -> None:
        if not self._engine.delete(key):
            raise KeyError(key) from None

    def __contains__(self, key: object) -> bool:
        return self._engine.alive().state.known(cast(K, key))

    def __len__(self) -> int:
        return len(self._engine.alive().state.newest())

    def __iter__(self) -> Iterator[K]:
        return unchanging(self, self._engine.alive().state.keys())

    def __reversed__(self) -> Iterator[K]:
        return unchanging(self, reversed(self._engine.alive().state.keys()))

    if not TYPE_CHECKING:  # a type checker knows these as `MutableMapping` has them, with their overloads

        def get(self, key: K, default: Any = None) -> Any:
            """The value of ``key``, or ``default`` if there is none or its file is gone.  Cost: as ``c[key]``."""
            access = self._access
            access.used(key)
            value = access.given.get(key, ABSENT)
            if value is not ABSENT:
                for _ in access.hits:
                    return value
                self._engine.count_on()
                return value
            try:
                value = self._engine.alive().get(key)
            except GoneError:
                return default
            return default if value is ABSENT else value

        def pop(self, key: K, default: Any = ABSENT) -> Any:
            """Remove ``key`` and return its value; ``default``, if given, where there is none, else `KeyError`."""
            try:
                value = self._engine.take(key)
            except GoneError:
                if default is ABSENT:
                    raise
                return default
            if value is not ABSENT:
                return value
            if default is ABSENT:
                raise KeyError(key) from None
            return default

        def setdefault(self, key: K, default: Any = None) -> Any:
            """The value of ``key``, set to ``default`` first if there is none."""
            while (value := self._engine.alive().get(key)) is ABSENT:
                self._engine.set(key, default, new=True)
            return value

    def popitem(self) -> tuple[K, V]:
        """Remove and return the pair that was inserted last, as a dict does; `KeyError` if the chest is empty."""
        while (value := self._engine.take(key := self._engine.last())) is ABSENT:
            pass  # another thread was quicker
        return key, value

    def clear(self) -> None:
        """Remove all keys.  What is saved stays on disk until the next commit."""
        for key in self._engine.writable().state.keys():
            self._engine.delete(key)

    def update(self, other: Any = (), /, overwrite: bool = True, *, progress: Progress | None = None,
               **more: Any) -> None:
        """Take in all keys of a mapping, of pairs or of keywords; with ``overwrite=False`` those that are not here yet.

        Of another chest, which is synced first, files are linked, or copied where that cannot be.

        >>> c = Chest({'x': 1})
        >>> c.update({'x': 2, 'y': 3}, overwrite=False)
        >>> dict(c)
        {'x': 1, 'y': 3}
        """
        engine = self._engine.writable()
        if isinstance(other, Chest):
            receive_chest(engine, other._engine, overwrite, _wrapper(progress))
        else:
            receive(engine, other, overwrite, _wrapper(progress))
        receive(engine, more, overwrite, silent)

    # Saving.

    def flush(self, *, progress: Progress | None = None) -> None:
        """Save everything, commit, and leave memory empty.  Cost: O(what is in memory), and O(keys) for the index.

        `OSError`: the system refuses, and nothing was committed.  `DumpError`: a key or a value cannot be dumped; that
        one stays in memory, and all others are committed.

        >>> c = Chest({'x': 1})
        >>> c.flush()
        >>> c.memory_usage
        0
        """
        self._engine.save(plain=True, empty=True, progress=_wrapper(progress))

    def sync(self, *, progress: Progress | None = None) -> None:
        """Save everything and commit, but keep values in memory.  Errors are those of `flush`.

        Cost: O(what changed), and a look at each value that was read since the last time, or that you may hold.

        >>> c = Chest({'x': 1})
        >>> c.sync()
        >>> c.inmem
        {'x': 1}
        """
        self._engine.save(plain=False, empty=False, progress=_wrapper(progress))

    def rollback(self) -> None:
        """Forget what was not committed: keys that were set or deleted, and changes in place.  Cost: O(keys).

        >>> c = Chest({'x': 1})
        >>> c.rollback()
        >>> 'x' in c
        False
        """
        self._engine.writable().committer.rollback()

    def transaction(self) -> AbstractContextManager[None]:
        """``with c.transaction():`` what the block does is committed at its end, all keys together, or rolled back.

        What was pending before is committed at its start.  Others that save, and `drop`, are a `ChestError` in it.

        >>> with Chest() as c, c.transaction():
        ...     c['from'], c['to'] = -10, 10
        """
        return self._engine.writable().ensure_directory().committer.transaction()

    def write_keys(self) -> None:
        """Commit the index as it stands, without the values that are not on disk yet.  Cost: O(keys)."""
        self._engine.writable().ensure_directory().committer.commit()

    def close(self, *, progress: Progress | None = None) -> None:
        """Save everything, commit, and free memory; a temporary chest removes its directory instead.

        The next use opens a chest with a path again; of a temporary one it is a `ValueError`.  Errors are those of
        `flush`.  Leaving a ``with`` block, the end of the script and the garbage collector close a chest too.

        >>> c = Chest({'x': 1})
        >>> c.close()
        >>> os.path.exists(c.path)
        False
        """
        self._engine.close(_wrapper(progress))

    def drop(self) -> None:
        """Remove the chest's files, and its directory if nothing of anyone else's is in it.  Cost: O(keys).

        >>> Chest({'x': 1}, path='unwanted').drop()
        >>> os.path.exists('unwanted')
        False
        """
        self._engine.drop()

    def __enter__(self) -> Chest[K, V]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_engine") and callable(let_go):  # it is `None` where modules are taken apart already
            let_go(self._engine)

    # Memory and disk.

    def prefetch(self, keys: Any, *, progress: Progress | None = None) -> None:
        """Load several values at once, until the budget is full.

        A str, bytes, what is no iterable, and a tuple that is a key of the chest are one key; anything else is an
        iterable of keys.  `KeyError`, before anything is read, if one is not there.  ``on_miss`` is not called.

        >>> c = Chest({'x': 1, 'y': 2, 'z': 3})
        >>> c.flush()
        >>> c.prefetch(['x', 'y'])
        >>> c.inmem
        {'x': 1, 'y': 2}
        """
        engine = self._engine.alive()
        is_one = (isinstance(keys, (str, bytes)) or not isinstance(keys, Iterable)
                  or (isinstance(keys, tuple) and engine.state.known(cast(K, keys))))
        engine.loader.prefetch([keys] if is_one else list(keys), _wrapper(progress))

    def move_to_disk(self, key: K) -> None:
        """Let the value of ``key`` leave memory, written first if no file holds it.  `KeyError` if there is none.

        >>> c = Chest({'x': 1})
        >>> c.move_to_disk('x')
        >>> c.inmem
        {}
        """
        if not self._engine.writable().spiller.move_out(key):
            raise KeyError(key) from None

    def get_from_disk(self, key: K) -> V:
        """The value of ``key``, loaded if it is not in memory: the same as ``c[key]``.  `KeyError` if there is none."""
        return self[key]

    def shrink(self) -> None:
        """Spill until memory is within the budget, for when values grew in place.  `OSError` if the disk refuses."""
        self._engine.alive().shrink()

    def key_to_filename(self, key: K) -> str:
        """The full path of the file where the value of ``key`` is, or would be, kept; of a small value, of its pack."""
        return self._engine.name(key)

    def disk_usage(self) -> tuple[int, int]:
        """Bytes and files that the values take on disk.  Cost: one ``stat`` for each file."""
        state = self._engine.alive().state
        with state.lock:
            state.refresh()
            refs = [ref for ref in list(state.index.refs.values()) if ref is not None]
        return sum(map(state.storage.size, refs)), len(set(map(state.storage.file, refs)))

    @property
    def inmem(self) -> dict[K, V]:
        """The values in memory, by key, to be looked at only.  Cost: O(their number), now and in each later `sync`."""
        return self._engine.exposed()

    @property
    def available_memory(self) -> float:
        """The budget in bytes for values in memory; it may be set, also to a text such as ``"2 GB"``."""
        return self._engine.state.available

    @available_memory.setter
    def available_memory(self, amount: float | str) -> None:
        self._engine.state.available = budget(amount)
        self._engine.shrink()

    @property
    def memory_usage(self) -> int:
        """The sum of the bytes noted for the values in memory; see `chest.core.nbytes`."""
        return self._engine.state.cache.usage

    @property
    def lock(self) -> AbstractContextManager[bool]:
        """The re-entrant lock of this handle: within ``with c.lock:`` no other thread changes it."""
        return self._engine.state.lock

    @property
    def stats(self) -> Stats:
        """Hits, misses, spills, bytes read and written since this handle was made."""
        state = self._engine.state
        with state.lock:
            return Stats(**{**vars(state.counts), "hits": state.counts.hits + state.cache.access.counted()})

    @property
    def _keys(self) -> dict[K, str | None]:
        """Each key's place on disk, in a pack ``.packs/number:offset``; `None`: in memory only.  Cost: O(keys)."""
        refs = self._engine.state.newest().copy()
        return {key: f"{pack_of(ref)}:{offset_of(ref)}" if isinstance(ref, int) else ref for key, ref in refs.items()}

    # Showing and travelling.

    def __str__(self) -> str:
        return f"<chest at {getattr(self, 'path', '?')}>"

    def __repr__(self) -> str:
        if not hasattr(self, "_engine"):
            return str(self)
        state = self._engine.state
        count = len(state.index.refs)
        return (f"<chest at {self.path}: {count} key{'s' * (count != 1)}, {len(state.cache.values)} in memory, "
                f"{state.cache.usage} of {state.available:.0f} bytes>")

    def _repr_html_(self) -> str:
        """What a notebook shows of the chest."""
        from chest.cli import notebook

        return notebook.table(self)


def _wrapper(progress: Any) -> Progress:
    if progress is not None and not callable(progress):
        raise TypeError(f"progress is a wrapper of an iterable, such as tqdm, not {progress!r}")
    return progress or silent
