"""The life of a value: into memory, out to disk when it is worth least, back when it is asked for; and the commit.

Two rules keep threads out of each other's way.  Values are read and written without the lock, so that loads and dumps
go on side by side; what was read or written counts only if the key was left alone meanwhile, which a `Load` or a
`Ticket` tells.  And the lock comes before the directory's gate, never the other way round.
"""
from __future__ import annotations

import logging
import threading
from typing import Any, Callable, Dict, Generic, Hashable, Iterable, Iterator, List, Optional, Sequence, Tuple, TypeVar, cast

from chest.codec import Codec
from chest.errors import ChestError, DumpError
from chest.files import Loaded, Stale
from chest.index import Index
from chest.memory import ABSENT, Memory, Ticket
from chest.sizes import nbytes
from chest.stats import Counts

__all__ = ["Life"]

K = TypeVar("K", bound=Hashable)

logger = logging.getLogger("chest")

WORKERS = 4  # threads that load: two cores are busy with two, and a slow disk or network wants more
CROWD = 1000  # values of a commit that are written between two looks at the clock of a progress bar


class Load:
    """One value on its way into memory.  ``valid`` until its key is set, deleted or changed by another process."""

    __slots__ = ("thread", "valid")

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.valid = True


class Life(Generic[K]):
    """All values of a chest, wherever they are."""

    def __init__(self, codec: Codec, store: Any, index: Index[K], memory: Memory[K], available: float,
                 on_miss: Callable[[K], Any], on_overflow: Callable[[K], Any]):
        self.codec = codec
        self.store = store
        self.index = index
        self.memory = memory
        self.available = available
        self.counts = Counts()
        self._on_miss = on_miss
        self._on_overflow = on_overflow
        self._loads: Dict[K, Load] = {}
        self.new_lock()

    def new_lock(self) -> None:
        self.lock = threading.RLock()
        self._arrived = threading.Condition(self.lock)

    # Which keys there are.

    def known(self, key: K) -> bool:
        """Is there such a key?  Only one that is not known here costs a look at what others committed."""
        if key in self.index.names:
            return True
        with self.lock:
            self.refresh()
            return key in self.index.names

    def refresh(self) -> None:
        """Take over what others committed, and drop the values that they changed."""
        with self.lock:
            self._drop(self.index.refresh())

    def _drop(self, stale: Iterable[K]) -> None:
        for key in stale:
            self._disown(key)
            self.memory.remove(key)

    def _disown(self, key: K) -> None:
        """Whoever loads the value of ``key`` just now loads one that is no longer it."""
        load = self._loads.get(key)
        if load is not None:
            load.valid = False

    # In.

    def set(self, key: K, value: Any) -> None:
        size = nbytes(value)
        with self.lock:
            orphan = self.index.set(key)
            self._disown(key)
            self.memory.put(key, value, size, on_disk=False)
        if orphan is not None:
            self.store.remove([orphan])
        if self.memory.usage > self.available:
            self.make_room(key)

    def delete(self, key: K) -> None:
        with self.lock:
            if not self.known(key):
                raise KeyError(key)
            orphan = self.index.delete(key)
            self._disown(key)
            self.memory.forget(key)
        if orphan is not None:
            self.store.remove([orphan])

    def get(self, key: K) -> Any:
        """The value of ``key``, which is not in memory; `KeyError` if there is none."""
        announced = False
        while True:
            with self.lock:
                value = self._at_hand(key)
                if value is not ABSENT:
                    break
                name = self._name(key)
                load = self._loads.get(key)
                if load is not None and load.thread != threading.get_ident():
                    self._arrived.wait()  # this lets go of the lock, even where the caller has it too
                    continue
                if announced:
                    mine = self._loads[key] = Load()
                    seen = self.index.signature
            if not announced:
                announced = True
                self._on_miss(key)
                continue
            value = self._load(key, name, mine, seen)
            if value is not ABSENT:
                break
        self._make_room_quietly(key)
        return value

    def _at_hand(self, key: K) -> Any:
        """The value of ``key`` if it need not be loaded: in memory by now, or let go of by us but not by the user."""
        value = self.memory.current(key)
        if value is not ABSENT:
            if key not in self.memory.values:
                self.memory.put(key, value, nbytes(value), on_disk=self.index.names.get(key) is not None)
            self.memory.used(key)
            self.counts.hit()
        return value

    def _name(self, key: K) -> str:
        if not self.known(key):
            raise KeyError(key)
        name = self.index.names[key]
        assert name is not None, f"{key!r} is neither in memory nor on disk"
        return name

    def _load(self, key: K, name: str, mine: Load, seen: Any) -> Any:
        try:
            loaded: Loaded = next(self.store.load([name], lambda: mine.valid and self.index.current() == seen))
            return self._arrive(key, name, loaded, mine)
        finally:
            with self.lock:
                if self._loads.get(key) is mine:
                    del self._loads[key]
                self._arrived.notify_all()

    def _arrive(self, key: K, name: str, loaded: Loaded, mine: Load) -> Any:
        """Take a loaded value into memory; `ABSENT` if the key has to be looked up anew."""
        size = nbytes(loaded.value)
        with self.lock:
            if loaded.error is None and mine.valid:
                self.counts.missed(loaded.nbytes)
                self.memory.put(key, loaded.value, size, on_disk=True)
                return loaded.value
            self.refresh()
            if not mine.valid or isinstance(loaded.error, Stale) or self.index.names.get(key) != name:
                return ABSENT
        if isinstance(loaded.error, FileNotFoundError):
            raise KeyError(f"{key!r}: its file {self.store.path(name)} is gone; set or delete the key to heal it")
        assert loaded.error is not None
        raise explained(loaded.error, key, self.store.path(name), "load")

    def adopt(self, key: K, name: str) -> None:
        """The value of ``key`` is what the new file ``name`` holds."""
        with self.lock:
            orphan = self.index.set(key)
            self.index.written(key, name)
            self._disown(key)
            self.memory.remove(key)
        if orphan is not None:
            self.store.remove([orphan])

    # Many at once.

    def prefetch(self, keys: Sequence[K], progress: Callable[..., Iterable[Any]]) -> None:
        """Load what is not in memory, several values at a time, until the budget is full."""
        with self.lock:
            for key in keys:
                if not self.known(key):
                    raise KeyError(key)
            wanted = [key for key in dict.fromkeys(keys) if self.memory.current(key) is ABSENT]
        for crowd in self._fitting(progress(wanted, total=len(wanted))):
            self._fetch(crowd)

    def _fitting(self, keys: Iterable[K]) -> Iterator[List[K]]:
        """``keys`` in lists of values that can be loaded together, while there is room for them."""
        crowd: List[K] = []
        room = self.available - self.memory.usage
        for key in keys:
            name = self.index.names.get(key)
            room -= self.store.size(name) if name else 0
            if room < 0:
                break
            crowd.append(key)
            if len(crowd) >= max(self.store.ahead, 4 * WORKERS):
                yield crowd
                crowd = []
                room = self.available - self.memory.usage
        if crowd:
            yield crowd

    def _fetch(self, keys: Sequence[K]) -> None:
        """Load the values of ``keys`` side by side; one that another thread is loading already is left to it."""
        with self.lock:
            mine = {key: Load() for key in keys if key not in self._loads and self.memory.current(key) is ABSENT}
            names = {key: self.index.names.get(key) for key in mine}
            mine = {key: load for key, load in mine.items() if names[key] is not None}
            self._loads.update(mine)
            seen = self.index.signature
        try:
            order = [names[key] for key in mine]
            loaded = self.store.load(order, lambda: self.index.current() == seen, WORKERS)
            for (key, load), one in zip(mine.items(), loaded):
                self._arrive(key, cast(str, names[key]), one, load)
        finally:
            with self.lock:
                for key, load in mine.items():
                    if self._loads.get(key) is load:
                        del self._loads[key]
                self._arrived.notify_all()

    # Out.

    def make_room(self, keep: Any = ABSENT) -> None:
        """Spill until memory is within the budget, or nothing more can leave."""
        while True:
            with self.lock:
                keys = self.memory.choose(self.available, keep, self.store.grain)
                if not keys:
                    return
                items = [(key, self.memory.values[key]) for key in keys]
                ticket = self.memory.mark(keys, leaves=True)
            errors = self.spill(items, ticket)
            refused = [(key, error) for key, error in errors if isinstance(error, OSError)]
            if refused:
                raise explained(refused[0][1], refused[0][0], self.store.path(""), "save")

    def _make_room_quietly(self, keep: Any) -> None:
        """A value that was read is the user's, also when no room can be made for it."""
        if self.memory.usage > self.available:
            try:
                self.make_room(keep)
            except OSError as error:
                logger.warning("over the budget: %s", error)

    def spill(self, items: Sequence[Tuple[K, Any]], ticket: Ticket) -> List[Tuple[K, Exception]]:
        """Let the values leave memory, those that no file holds by way of a new one.  Returns what went wrong."""
        errors: List[Tuple[K, Exception]] = []
        try:
            for key, _ in items:
                self._on_overflow(key)
            errors = self.write([item for item in items if not self._is_on_disk(*item)], ticket)
        finally:
            self._settle(items, ticket, errors)
        logger.debug("spilled %d values", len(items) - len(errors))
        return errors

    def _settle(self, items: Iterable[Tuple[K, Any]], ticket: Ticket, errors: List[Tuple[K, Exception]]) -> None:
        """Values that were to be written leave memory or stay; one that cannot be dumped does not try again soon."""
        undumpable = {key for key, error in errors if not isinstance(error, OSError)}
        with self.lock:
            for key, _ in items:
                saved = self.index.names.get(key) is not None
                if self.memory.settle(key, ticket, saved and key not in undumpable, key in undumpable):
                    self.counts.spills += 1

    def _is_on_disk(self, key: K, value: Any) -> bool:
        """Does a file hold the value just as it is now?"""
        name = self.index.names.get(key)
        if name is None or (key in self.memory.values and key not in self.memory.watched):
            return name is not None
        try:
            return bool(self.store.same(name, value))
        except Exception:
            return False  # what cannot be compared, or is gone, is written again

    def write(self, items: Sequence[Tuple[K, Any]], ticket: Ticket) -> List[Tuple[K, Exception]]:
        """Write values to new files and note their names.  Returns what went wrong, by key."""
        errors: List[Tuple[K, Exception]] = []
        if not items:
            return errors
        orphans: List[str] = []
        for (key, value), done in zip(items, self.store.write(items)):
            if done.error is not None:
                errors.append((key, done.error))
                continue
            with self.lock:
                self.counts.bytes_written += done.nbytes
                orphan: Optional[str] = done.name
                if self.memory.valid(key, ticket):
                    if self.index.names.get(key) is not None:  # changed in place
                        self.memory.renote(key, value)
                    orphan = self.index.set(key)
                    self.index.written(key, done.name)
                    if not ticket.leaves:
                        self.memory.watch(key, value, on_disk=True)
            if orphan is not None:
                orphans.append(orphan)
        self.store.remove(orphans)
        return errors

    def move_out(self, key: K) -> None:
        """Let the value of ``key`` leave memory, written first if no file holds it."""
        with self.lock:
            if not self.known(key):
                raise KeyError(key)
            if key not in self.memory.values:
                return
            items = [(key, self.memory.values[key])]
            ticket = self.memory.mark([key], leaves=True)
        for _, error in self.spill(items, ticket):
            raise explained(error, key, self.store.path(""), "save")

    # The commit.

    def save(self, plain: bool, progress: Callable[..., Iterable[Any]]) -> List[Tuple[K, Any]]:
        """Write what no file holds, then commit.  Returns what was in memory, all of it saved by now.

        Raises what stood in the way of the first value that could not be saved; all others are committed.
        """
        with self.lock:
            self.memory.unstick(self.index.inherited)
            inside = list(self.memory.values.items())
            items = self._unsaved()
        errors: List[Tuple[K, Exception]] = []
        for crowd in crowds(progress(items, total=len(items))):
            with self.lock:
                ticket = self.memory.mark((key for key, _ in crowd), leaves=False)
            try:
                errors += self.write([item for item in crowd if not self._is_on_disk(*item)], ticket)
            finally:
                self._settle(crowd, ticket, errors)
        self.commit(plain)
        if errors:
            key, error = errors[0]
            more = f" (and {len(errors) - 1} more)" if errors[1:] else ""
            raise explained(error, key, self.store.path(""), "save", more)
        return inside

    def _unsaved(self) -> List[Tuple[K, Any]]:
        """The values that no file holds, or that may have changed since one does."""
        names = self.index.names
        items = [(key, self.memory.current(key)) for key in self.index.own() if names.get(key, "") is None]
        items += [(key, self.memory.values[key]) for key in self.memory.watched]
        items += self.memory.held()
        return [item for item in items if item[1] is not ABSENT]

    def commit(self, plain: bool) -> None:
        """Commit the index as it stands, then remove the files that nothing names any more."""
        with self.lock:
            stale, orphans = self.index.commit(plain)
            self._drop(stale)
        self.store.remove(orphans)
        logger.debug("committed %s", self.store.path(""))

    def empty(self, items: Iterable[Tuple[K, Any]]) -> None:
        """Let values leave memory that were saved just now."""
        with self.lock:
            for key, value in items:
                if self.memory.values.get(key, ABSENT) is value and self.index.names.get(key) is not None:
                    self.memory.evict(key)

    def after_fork(self) -> None:
        """In a fork's child: new locks; nobody else is loading or writing here."""
        self.new_lock()
        self._loads.clear()
        self.index.after_fork()
        self.memory.after_fork(key for key in self.index.inherited if self.index.names.get(key, "") is None)
        self.store.after_fork()


def crowds(items: Iterable[Any]) -> Iterator[List[Any]]:
    """``items`` in lists of up to a thousand."""
    crowd: List[Any] = []
    for item in items:
        crowd.append(item)
        if len(crowd) == CROWD:
            yield crowd
            crowd = []
    if crowd:
        yield crowd


def explained(error: Exception, key: Any, path: str, what: str, more: str = "") -> Exception:
    """``error`` with the key, the path and what to do; of the system's own class where the system refused."""
    if isinstance(error, ChestError):
        text = f"cannot {what} the value of {key!r}{more}: {error}"
        return type(error)(text).with_traceback(error.__traceback__)
    if isinstance(error, OSError) and error.errno is not None:
        kept = "; it stays in memory, and what was saved before is untouched" if what == "save" else ""
        return OSError(error.errno, f"cannot {what} the value of {key!r}{more}: {error.strerror}{kept}", path)
    text = (f"cannot save the value of {key!r}{more} in {path}: {type(error).__name__}: {error}; it stays in memory. "
            f"Set a value that can be dumped, delete the key, or open the chest with another dump=")
    explained = DumpError(text)
    explained.__cause__ = error
    return explained
