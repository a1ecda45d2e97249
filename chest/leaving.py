"""The way out: values that are worth least leave memory, what no file holds is written, and the index is committed."""
from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count, islice
from typing import Any, Callable, TypeVar

from chest.errors import explained, uncommitted
from chest.keysfile import KEYS
from chest.log import log
from chest.memory import ABSENT
from chest.names import Name
from chest.state import State
from chest.tickets import Ticket
from chest.watch import Unseen

__all__ = ["Leaving"]

K = TypeVar("K", bound=Hashable)

PATIENCE = 3  # times that a value that others get just now may stay, instead of leaving memory


class Leaving(State[K]):
    """Values on their way from memory to disk."""

    def make_room(self, keep: Any = ABSENT) -> None:
        """Spill until memory is within the budget, or nothing more can leave."""
        for turn in count():
            with self._ticket() as ticket:
                with self.lock:
                    keys = self.memory.choose(self.available, keep)
                    if not keys:
                        return
                    batch = self.memory.company(keys)
                    items = self._present(batch)
                    self.memory.tickets.hand_out(ticket, batch, leaving=keys)
                errors = self.spill(items, ticket, turn < PATIENCE)
            refused = [(key, error) for key, error in errors if isinstance(error, OSError)]
            if refused:
                raise explained(refused[0][1], refused[0][0], self.store.path(""), "save")
            if not self.over(self.available):
                return

    def _make_room_quietly(self, keep: Any) -> None:
        """A value that was read is the user's, also when no room can be made for it."""
        if self.over(self.available):
            try:
                self.make_room(keep)
            except OSError as error:
                log("warning", "over the budget: %s", error)

    @contextmanager
    def _ticket(self) -> Iterator[Ticket]:
        """A ticket for a batch; behind the block it stands for nothing, wherever Ctrl-C came."""
        ticket = Ticket()
        try:
            yield ticket
        finally:
            with self.lock:
                self.memory.tickets.withdraw(ticket)

    def spill(self, items: Sequence[tuple[K, Any]], ticket: Ticket, patient: bool) -> list[tuple[K, Exception]]:
        """Let values leave memory, as ``ticket`` says, and write those that no file holds.  Returns what went wrong.

        With ``patient`` those stay that somebody gets meanwhile, as he may change them when they are compared already.
        """
        errors: list[tuple[K, Exception]] = []
        unseen: Unseen[K] | None = None
        try:
            leaving = [key for key, _ in items if key in ticket.leaving]
            for key in leaving:
                self._on_overflow(key)
            with self.lock:
                unseen = self.memory.watch.unseen(leaving) if patient else None
            errors = self.write(self._to_write(items), ticket)
        finally:
            self._settle(items, ticket, errors, unseen)
        log("debug", "spilled %d values, wrote %d", len(leaving), len(items) - len(errors))
        return errors

    def _settle(self, items: Iterable[tuple[K, Any]], ticket: Ticket, errors: list[tuple[K, Exception]],
                unseen: Unseen[K] | None = None) -> None:
        """Values that were to be written leave memory or stay; one that cannot be dumped does not try again soon."""
        failed = dict(errors)
        with self.lock:
            self.memory.catch_up()
            for key, _ in items:
                saved = key not in failed and self.index.names.get(key) is not None and not self._got_since(key, unseen)
                undumpable = key in failed and not isinstance(failed[key], OSError)
                if self.memory.settle(key, ticket, saved, undumpable):
                    self.counts.spills += 1
            self.memory.watch.forget(unseen)

    def _got_since(self, key: K, unseen: Unseen[K] | None) -> bool:
        """May the value of ``key`` have been changed since?  Asked when memory has caught up with all hits."""
        return unseen is not None and key not in unseen.keys and key in self.memory.watch.watched

    def _to_write(self, items: Sequence[tuple[K, Any]]) -> Sequence[tuple[K, Any]]:
        """Those values that no file holds just as they are now; what is the key's no more need not be written.

        Only under the newest index does a difference tell that a value was changed in place.
        """
        while True:
            with self.lock:
                names = [self.index.names.get(key) for key, _ in items]
                if not any(names):
                    return items
                self.memory.catch_up()
                trusted = self.index.unchanged()
                doubts = [name is not None and self._doubtful(key, name) for name, (key, _) in zip(names, items)]
            suspects = [(name, value) for name, (_, value), doubt in zip(names, items, doubts) if doubt]
            same = list(self.store.same(suspects)) if suspects else []
            told = iter(same)
            new = [item for item, name, doubt in zip(items, names, doubts)
                   if (not next(told) if doubt else name is None)]
            if all(same) or trusted():
                return new
            self.refresh()
            items = [(key, value) for key, value in items if self.memory.current(key) is value]

    def _doubtful(self, key: K, name: Name) -> bool:
        """Is the value to be compared with its file?  Of one that nobody could change the file may yet be gone."""
        watch = self.memory.watch
        if key in watch.watched or key not in self.memory.values:
            return True
        return key in watch.vouched and self.store.mark(name) != self.memory.marks.get(key)

    def write(self, items: Sequence[tuple[K, Any]], ticket: Ticket) -> list[tuple[K, Exception]]:
        """Write values to new files and note their names.  Returns what went wrong, by key."""
        errors: list[tuple[K, Exception]] = []
        if not items:
            return errors
        orphans: list[Name] = []
        for (key, value), done in zip(items, self.store.write(items)):
            if done.error is not None:
                errors.append((key, done.error))
                continue
            with self.lock:
                self.counts.bytes_written += done.nbytes
                orphan: Name | None = done.name
                if self.memory.tickets.valid(key, ticket):
                    if self.index.names.get(key) is not None:  # changed in place
                        self.memory.renote(key, value)
                    self.memory.saved(key, value, done.mark, ticket)
                    orphan = self.index.set(key, done.name, done.mark)
            if orphan is not None:
                orphans.append(orphan)
        self.store.remove(orphans)
        return errors

    def move_out(self, key: K) -> None:
        """Let the value of ``key`` leave memory, written first if no file holds it."""
        with self.lock:
            if not self.known(key):
                raise KeyError(key)
            value = self.memory.values.get(key, ABSENT)
        for turn in range(PATIENCE + 1):
            with self._ticket() as ticket:
                with self.lock:
                    if value is ABSENT or self.memory.values.get(key, ABSENT) is not value:
                        return
                    self.memory.tickets.hand_out(ticket, [key], leaving=[key])
                for _, error in self.spill([(key, value)], ticket, turn < PATIENCE):
                    raise explained(error, key, self.store.path(""), "save")

    # The commit.

    def save(self, plain: bool, empty: bool, progress: Callable[..., Iterable[Any]]) -> None:
        """Write what no file holds, commit, and with ``empty`` let everything that is saved leave memory.

        Raises what stood in the way of the first value that could not be saved; all others are committed.
        """
        with self.lock:
            self._mend()
            self.memory.unstick(self.index.inherited)
            unseen = (self.memory.watch.unseen(self.memory.values) if empty
                      else self.memory.watch.alone([*self.index.own(), *self.memory.watch.watched]))
            inside = self.memory.values.copy() if empty else {}
            items = self._unsaved(empty)
        try:
            errors = self._save(items, progress)
            self.commit(plain)
            if empty:
                self._empty(inside, dict(errors), unseen)
            else:
                with self.lock:
                    unseen.keys.difference_update(dict(errors))
                    self.memory.watch.vouch(unseen)
        finally:
            with self.lock:
                self.memory.watch.forget(unseen)
        if errors:
            key, error = errors[0]
            more = f" (and {len(errors) - 1} more)" if errors[1:] else ""
            raise explained(error, key, self.store.path(""), "save", more)

    def _mend(self) -> None:
        """Put right what Ctrl-C left between two lines: a key that was to be new has no value, and so is none."""
        self.memory.mend()
        for key in self.index.own():
            if self.index.names.get(key, "") is None and self.memory.current(key) is ABSENT:
                self.index.delete(key)

    def _save(self, items: list[tuple[K, Any]], progress: Callable[..., Iterable[Any]]) -> list[tuple[K, Exception]]:
        """Write those that no file holds as they are now, and leave all in memory.  Returns what went wrong."""
        errors: list[tuple[K, Exception]] = []
        for crowd in crowds(progress(items, total=len(items)), self.store.crowd):
            new = self._to_write(crowd)
            if not new:
                continue
            with self._ticket() as ticket:
                with self.lock:
                    new = [(key, value) for key, value in new if self.memory.current(key) is value]  # still?
                    self.memory.tickets.hand_out(ticket, [key for key, _ in new])
                try:
                    errors += self.write(new, ticket)
                finally:
                    self._settle(new, ticket, errors)
        return errors

    def retire(self, progress: Callable[..., Iterable[Any]]) -> None:
        """Save what there is to save and empty memory.  A chest that was only read touches nothing on disk."""
        if self.index.own() or self.index.appended or self.memory.may_differ():
            self.save(False, True, progress)
        else:
            self._empty(self.memory.values.copy(), {}, None)
        if self.index.appended:
            self.commit(True)  # what others read is one plain list again

    def _unsaved(self, leave: bool) -> list[tuple[K, Any]]:
        """The values that no file holds, or that may have changed since; if they ``leave``, also those vouched for."""
        names = self.index.names
        items = [(key, self.memory.current(key)) for key in self.index.own() if names.get(key, "") is None]
        items += self._present(list(self.memory.watch.watched))
        items += self._present(list(self.memory.watch.vouched) if leave else ())
        items += self.memory.held()
        return [item for item in items if item[1] is not ABSENT]

    def _present(self, keys: Iterable[K]) -> list[tuple[K, Any]]:
        """Those of ``keys`` with their values that are in memory: a finaliser of the user's may let one go just now."""
        values = self.memory.values
        return [(key, value) for key in keys if (value := values.get(key, ABSENT)) is not ABSENT]

    def commit(self, plain: bool) -> None:
        """Commit the index as it stands, then remove the files that nothing names any more."""
        with self.lock, self.index.gate:
            while self.refresh():
                pass  # a value that is dropped may run code of the user's, and that may commit by another handle
            try:
                orphans = self.index.commit(plain)
            except BaseException as error:
                self.refresh()  # was it committed all the same?
                if isinstance(error, OSError) and error.errno is not None:
                    raise uncommitted(error, self.store.path(KEYS)) from error
                raise
        self.store.remove(orphans)
        log("debug", "committed %s", self.store.path(""))

    def _empty(self, inside: dict[K, Any], failed: dict[K, Exception], unseen: Unseen[K] | None) -> None:
        """Let values leave memory that were saved just now, but for those that somebody got since."""
        for key, value in inside.items():
            with self.lock:
                self.memory.catch_up()
                stays = key in failed or self._got_since(key, unseen)
            if not stays:
                self._on_overflow(key)
                with self.lock:
                    if self.memory.values.get(key, ABSENT) is value and self.index.names.get(key) is not None:
                        self.memory.evict(key)


def crowds(items: Iterable[Any], most: int) -> Iterator[list[Any]]:
    """``items`` in lists of up to so many."""
    items = iter(items)
    while crowd := list(islice(items, most)):
        yield crowd
