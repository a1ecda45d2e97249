"""The chest: a dictionary that spills to disk."""
from __future__ import annotations

import builtins
import collections.abc
import os
import pickle
import sys
import warnings
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Callable, TypeVar, cast

from chest import arrays, endings, names
from chest.codec import Codec
from chest.life import Life
from chest.log import log
from chest.mapping import Progress, SpillMapping, silent
from chest.memory import budget
from chest.names import key_to_filename
from chest.opening import Settings, open_parts
from chest.sizes import nbytes
from chest.state import nothing
from chest.stats import Stats
from chest.views import NamesView

__all__ = ["Chest", "key_to_filename", "nbytes"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
D = TypeVar("D")


class Chest(SpillMapping[K, V]):
    """A dictionary that spills to disk.

    Parameters
    ----------
    data : mapping or iterable of pairs, optional
        What the chest holds at first, besides what is in ``path`` already.
    path : str or os.PathLike, optional
        The directory, made if it is not there; or, with ``chest[remote]`` installed, a URL such as ``s3://bucket/run``.
        Without a path the chest is temporary: its directory is removed when it goes.
    available_memory : float or str
        The budget for values in memory: bytes, or a text such as ``"2 GB"`` or ``"500 MiB"``.
    dump, load : callables
        ``dump(value, file)`` and ``load(file)``; by default pickle, laid out so that arrays can be mapped.
    key_to_filename : callable
        ``key -> str``, the plain name of a key's file; where it will not do, the md5 of the key's text is taken.
    on_miss, on_overflow : callables
        Called with the key before a value is loaded, and before one leaves memory.  They may use the chest.
    open : callable
        ``open(path, mode=...)``, for example `gzip.open`; used for the values' files and the index.
    open_many : callable, optional
        ``open_many(paths, mode=...)``, a context manager of open files, used by `prefetch`.
    mode : {'b', 't'}
        Binary or text files.
    writeback : bool
        Notice values that were changed in place, and write them again; `False`: never look.
    mmap_mode : {None, 'c', 'r'}
        Arrays come back as copy-on-write or read-only maps of their file.
    min_file_size : int
        Values that serialise to fewer bytes share one SQLite file.
    durable : bool
        A commit also survives a loss of power.
    storage_options : dict, optional
        For a URL: handed to fsspec.

    Examples
    --------
    >>> c = Chest(available_memory="1 GB")
    >>> c['x'] = [1, 2, 3]
    >>> c['x']
    [1, 2, 3]
    >>> c.flush()
    >>> sorted(os.listdir(c.path))
    ['.keys', 'x']

    Any thread may call any method.  A hit takes no lock; loads and dumps go on side by side.
    """

    def __init__(
        self,
        data: Mapping[K, V] | Iterable[tuple[K, V]] | None = None,
        path: str | os.PathLike[str] | None = None,
        available_memory: float | str | None = 1e9,
        dump: Callable[[Any, Any], Any] = arrays.dump,
        load: Callable[[Any], Any] = arrays.load,
        key_to_filename: Callable[[K], str] = names.key_to_filename,
        on_miss: Callable[[K], Any] = nothing,
        on_overflow: Callable[[K], Any] = nothing,
        open: Callable[..., Any] = builtins.open,
        open_many: Callable[..., Any] | None = None,
        mode: str = "b",
        *,
        writeback: bool = True,
        mmap_mode: str | None = None,
        min_file_size: int = 0,
        durable: bool = False,
        storage_options: dict[str, Any] | None = None,
    ):
        self._owner = 0  # a process id, once there is something to own
        if isinstance(data, (str, bytes, os.PathLike)):
            raise TypeError(f"the first argument is what the chest holds; for a directory say Chest(path={data!r})")
        self._explicitly_given_path = path is not None
        self._settings = Settings(dump, load, key_to_filename, on_miss, on_overflow, open, open_many, mode, writeback,
                                  mmap_mode, min_file_size, durable, storage_options)
        self.dump, self.load, self.open, self.mode = dump, load, open, mode
        available = budget(1e9 if available_memory is None else available_memory)
        self._life: Life[K] = open_parts(path, self._settings, available)
        self.path: str = self._life.store.path("")
        self._inmem = self._life.memory.values
        self._used = self._life.memory.used
        self._hit = self._life.counts.hit
        self._owner = os.getpid()
        endings.watch(self)
        if data is not None:
            self.update(data)

    def copy(self) -> Chest[K, V]:
        """A temporary chest with the same settings and values; files are shared by hard links until they change.

        Unlike a dict's copy it shares no objects with the original for longer than they stay in memory.  Cost: a
        commit, and one hard link for each key.

        >>> c = Chest({'x': [1]})
        >>> d = c.copy()
        >>> d['x'] = [2]
        >>> c['x'], d['x']
        ([1], [2])
        """
        chest = _reopen(type(self), None, self.available_memory, self._settings)
        chest.update(self)
        return cast("Chest[K, V]", chest)

    # Saving.

    def flush(self, *, progress: Progress | None = None) -> None:
        """Save everything, commit, and leave memory empty.

        Afterwards the directory holds ``.keys`` and the values' files, and nothing else.  What cannot be saved stays in
        memory; all else is committed before the error is raised: `DumpError`, or `OSError` where the system refused.
        Cost: O(what is in memory), and O(keys) for the index.

        >>> c = Chest({'x': [1, 2]})
        >>> c.flush()
        >>> c.memory_usage, c['x']
        (0, [1, 2])
        """
        life = self._alive()
        life.store.make()
        life.save(True, True, progress or silent)

    def sync(self, *, progress: Progress | None = None) -> None:
        """Save everything and commit, but keep values in memory.  Errors are those of `flush`.

        Cost: O(what changed), and a comparison with its file for each value that might have been changed in place:
        those that were read since the last time, and those that you hold, or whose parts you may hold.  It does not
        grow with the number of keys.

        >>> c = Chest({'x': [1, 2]})
        >>> c.sync()
        >>> c.inmem
        {'x': [1, 2]}
        """
        life = self._alive()
        life.store.make()
        life.save(False, False, progress or silent)

    def write_keys(self) -> None:
        """Commit the index as it stands, without the values that are not on disk yet.  Cost: O(keys).

        >>> c = Chest({'x': 1, 'y': 2})
        >>> c.move_to_disk('x')
        >>> c.write_keys()
        >>> list(Chest(path=c.path))
        ['x']
        """
        self._alive().store.make()
        self._life.commit(True)

    def close(self, *, progress: Progress | None = None) -> None:
        """Save everything, commit, and free memory; a temporary chest removes its directory instead.

        A chest with a path opens itself again on the next use; a temporary one raises `ValueError` then.  Errors are
        those of `flush`.  Leaving a ``with`` block, the end of the script and the garbage collector close a chest too.

        >>> c = Chest({'x': 1})
        >>> c.close()
        >>> os.path.exists(c.path)
        False
        """
        life = self._life
        if self._explicitly_given_path:
            if life.store.exists():
                life.retire(progress or silent)
            else:
                self._abandon()
        elif not self._closed:
            self._closed = True
            self._abandon(remove=self._owner == os.getpid())
        life.index.close()
        life.store.close()

    def _abandon(self, remove: bool = False) -> None:
        """Forget what is in memory; the directory is gone, or nobody's any more."""
        life = self._life
        if self._explicitly_given_path and life.index.own():
            lost = len(life.index.own())
            warnings.warn(f"the directory of {self} is gone, and with it {lost} unsaved value{'s' * (lost > 1)}",
                          RuntimeWarning, stacklevel=3)
        with life.lock:
            life.clear_memory()
            life.index.forget()
        if remove:
            life.store.clear_away()

    def drop(self) -> None:
        """Remove the chest's files, and its directory if nothing of anyone else's is in it.  Cost: O(keys).

        >>> c = Chest({'x': 1}, path='unwanted')
        >>> c.flush()
        >>> c.drop()
        >>> os.path.exists('unwanted'), len(c)
        (False, 0)
        """
        life = self._life
        with life.lock:
            life.clear_memory()
            if self._owner == os.getpid() and life.store.exists():
                with life.store.guard, life.index.gate:
                    life.index.refresh()
                    life.index.erase()
                    life.store.drop(life.index.forget())
            life.index.forget()
        if not self._explicitly_given_path:
            self.close()
        else:
            log("warning", "dropped %s", self.path)

    def __enter__(self) -> Chest[K, V]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_owner", 0):
            endings.let_go(self)

    def _end(self) -> None:
        """Nobody will ask this handle again, or the process ends."""
        if self._owner == os.getpid():
            self.close()

    def _after_fork(self) -> None:
        self._life.after_fork()

    # Memory and disk.

    def prefetch(self, keys: Any, *, progress: Progress | None = None) -> None:
        """Load several values at once, with several threads, until the budget is full.

        A str, bytes or what is no iterable is one key, and so is a tuple that is itself a key of the chest; anything
        else is an iterable of keys.  `KeyError` for one that is not there, before anything is read.  It stops when the
        next value would not fit into the budget, and pushes nothing out; ``on_miss`` is not called.

        >>> c = Chest({'x': 1, 'y': 2, ('a', 'b'): 3})
        >>> c.flush()
        >>> c.prefetch(['x', 'y'])
        >>> c.prefetch(('a', 'b'))
        >>> list(c.inmem)
        ['x', 'y', ('a', 'b')]
        """
        life = self._alive()
        if isinstance(keys, (str, bytes)) or not isinstance(keys, collections.abc.Iterable) or (
                isinstance(keys, tuple) and life.known(cast(K, keys))):
            keys = [keys]
        life.prefetch(list(keys), progress or silent)

    def move_to_disk(self, key: K) -> None:
        """Let the value of ``key`` leave memory, written first if no file holds it.  `KeyError` if there is none.

        >>> c = Chest({'x': 1})
        >>> c.move_to_disk('x')
        >>> 'x' in c.inmem, c['x']
        (False, 1)
        """
        self._alive().move_out(key)

    def get_from_disk(self, key: K) -> V:
        """The value of ``key``, loaded if it is not in memory: the same as ``c[key]``.  `KeyError` if there is none."""
        return self[key]

    def shrink(self) -> None:
        """Spill until memory is within the budget, or nothing more can leave; `OSError` if the disk refuses.

        A chest does so by itself after each value that is set or loaded; call it after you changed values in place.
        """
        self._alive().make_room()

    def key_to_filename(self, key: K) -> str:
        """The full path of the file where the value of ``key`` is, or would be, kept.

        Of a value that is not on disk it is the name that is reserved for it.  Of a small value (``min_file_size``) it
        is ``<path>/.small/<row>``: the row of the SQLite file ``.small``.

        >>> c = Chest({'x': 1})
        >>> os.path.relpath(c.key_to_filename('x'), c.path)
        'x'
        """
        life = self._alive()
        with life.lock:
            life.known(key)
            name = life.index.names.get(key)
            return cast(str, life.store.path(life.store.reserve(key) if name is None else name))

    @property
    def available_memory(self) -> float:
        """The budget in bytes for values in memory; it may be set, also to a text such as ``"2 GB"``."""
        return self._life.available

    @available_memory.setter
    def available_memory(self, amount: float | str) -> None:
        self._life.available = budget(amount)
        self._life.make_room()

    @property
    def memory_usage(self) -> int:
        """The sum of the bytes noted for the values in memory; see `chest.core.nbytes`."""
        with self._life.lock:
            return self._life.memory.usage

    @property
    def lock(self) -> Any:
        """The re-entrant lock of this handle: within ``with c.lock:`` no other thread changes it."""
        return self._life.lock

    @property
    def stats(self) -> Stats:
        """Hits, misses, spills, bytes read and written since this handle was made.

        >>> c = Chest({'x': 1})
        >>> c['x'], c.stats.hits, c.stats.misses
        (1, 1, 0)
        """
        return self._life.counts.snapshot()

    @property
    def _keys(self) -> Mapping[K, str | None]:
        """Each key's file name; `None` while its value is in memory only."""
        return NamesView(self._life.index.names)

    @property
    def _codec(self) -> Codec:
        return self._life.codec

    # Showing and travelling.

    def __str__(self) -> str:
        return f"<chest at {self.path}>"

    def __repr__(self) -> str:
        life = getattr(self, "_life", None)
        if life is None:
            return f"<chest at {getattr(self, 'path', '?')}, not open>"
        return (f"<chest at {self.path}: {len(life.index.names)} keys, {len(self._inmem)} of them in memory, "
                f"{self.memory_usage} of {self.available_memory:.0f} bytes>")

    def _repr_html_(self) -> str:
        """What a notebook shows of the chest."""
        from chest import html

        return html.table(self)

    def __reduce__(self) -> tuple[Any, ...]:
        self.sync()
        for name, value in self._settings._asdict().items():
            try:
                pickle.dumps(value)
            except Exception as error:
                if "cloudpickle" not in sys.modules:  # which can pickle what pickle cannot
                    raise TypeError(f"{self} cannot be pickled, as its {name}={value!r} cannot ({error}); use a "
                                    f"function that stands in a module") from error
        return _reopen, (type(self), self.path, self.available_memory, self._settings)


def _reopen(cls: Any, path: str | None, available: float, settings: Settings) -> Any:
    """What a pickled handle becomes: another one on the same path, which owns nothing."""
    return cls(path=path, available_memory=available, **settings._asdict())
