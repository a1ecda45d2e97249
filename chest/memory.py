"""What is in memory: the values, the sizes noted for them, and those that left but that somebody still holds.

Nothing here reads or writes a file, and nothing waits: the caller has the chest's lock.
"""
from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator
from itertools import repeat
from typing import Any, Generic, TypeVar

from chest.changeable import can_change
from chest.held import ABSENT, Held
from chest.sizes import nbytes
from chest.spill import ARRIVED, Order
from chest.tickets import Ticket, Tickets
from chest.watch import Watch

__all__ = ["ABSENT", "Memory", "budget"]

K = TypeVar("K", bound=Hashable)

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_AMOUNT = re.compile(r"\s*(\d+\.?\d*|\d*\.\d+)\s*([kmgt]i?|)b?\s*\Z", re.IGNORECASE)


def budget(amount: float | str) -> float:
    """``amount`` in bytes: a number, or a text with a unit.

    >>> budget("2 GB"), budget("1.5 KiB"), budget(1e9)
    (2000000000.0, 1536.0, 1000000000.0)
    """
    if isinstance(amount, str):
        match = _AMOUNT.match(amount)
        if match:
            return float(match[1]) * _UNITS[match[2].lower()]
    elif hasattr(amount, "__float__") and float(amount) >= 0:
        return float(amount)
    raise ValueError(f"available_memory is a number of bytes or a text such as '2 GB' or '500 MiB', not {amount!r}")


class Memory(Generic[K]):
    """The values in memory, and which of them leaves next.

    ``values`` is the dictionary itself, ``used`` what a hit calls, ``tickets`` those of the values that are being
    written, ``watch`` knows which of them may have been changed in place.  ``marks`` tells the files that values came
    from, or went to, from later ones of the same name.  Values of at most ``grain`` bytes leave in crowds.

    Ctrl-C may come between any two lines.  No value is lost then; what the books say of its size, and its place in the
    order, may be wrong until `mend`.
    """

    def __init__(self, writeback: bool, grain: int):
        self.writeback = writeback
        self._grain = grain
        self._noted: dict[K, int] = {}
        self._usage = 0
        self._unsized: list[K] = []  # since sizes were found out last: some may have left, or have come again
        self._most = 0  # bytes that those can take together
        self._order: Order[K] = Order(self._noticed, ARRIVED if grain else 0)
        self._held: Held[K] = Held(self._forget_mark)
        self.tickets: Tickets[K] = Tickets()
        self.values: dict[K, Any] = {}
        self.used = self._order.used
        self.watch: Watch[K] = Watch(self.values, writeback, self._order.read_log)
        self.marks: dict[K, int] = {}
        self.stuck: set[K] = set()

    # In.

    def put(self, key: K, value: Any, size: int, on_disk: bool, mark: int | None = None) -> None:
        """The value of ``key`` is ``value``, noted with ``size`` bytes; ``on_disk`` if its file, marked, has it too."""
        self.tickets.void((key,))
        self._held.drop(key)
        self.stuck.discard(key)
        self.watch.set((key,))
        if on_disk:
            self.watch.note(key, value)
        self._usage += size - self._noted.get(key, 0)
        self._noted[key] = size
        self.values[key] = value
        self.note(key, mark)
        self._order.put(key, size, on_disk)

    def put_many(self, values: dict[K, Any], sizes: dict[K, int]) -> None:
        """As `put` for values that are on disk, in rows, and of which none is in memory or in somebody's hands."""
        self._size_up()
        self._take(values)
        self._book(sizes)

    def put_light(self, values: dict[K, Any], most: int) -> None:
        """As `put_many` for values that are known to take at most ``most`` bytes together: what each of them takes is
        found out when it matters."""
        self._most += most
        self._unsized.extend(values)
        self._take(values)

    def put_light_one(self, key: K, value: Any, most: int) -> None:
        """As `put_light` for one value: a read of a row takes a tenth longer by way of the crowd's."""
        self.tickets.void((key,))
        self.watch.set((key,))
        self.watch.note(key, value)
        self._most += most
        self._unsized.append(key)
        self.values[key] = value

    def _take(self, values: dict[K, Any]) -> None:
        self.tickets.void(values)
        self.watch.set(values)
        self.watch.note_all(values)
        self.values.update(values)

    def _book(self, sizes: dict[K, int]) -> None:
        more = sum(sizes.values()) - sum(map(self._noted.get, sizes, repeat(0)))
        try:
            self._noted.update(sizes)
            self._usage += more
        except BaseException:  # Ctrl-C
            self._usage = sum(self._noted.values())
            raise
        self._order.put_many(sizes)

    def _size_up(self) -> None:
        """Find out what those values take that are not noted yet.

        A finaliser of the user's may bring us here once more in the middle of it.
        """
        if self._unsized or self._most:
            unsized, most = self._unsized, self._most
            self._unsized = []
            new = {key: self.values[key] for key in unsized if key in self.values and key not in self._noted}
            self._book({key: nbytes(value) for key, value in new.items()})
            self._most -= most

    @property
    def _sizes(self) -> dict[K, int]:
        self._size_up()
        return self._noted

    @property
    def usage(self) -> int:
        """The sum of the bytes noted for what is in memory."""
        self._size_up()
        return self._usage

    def room(self, limit: float, wanted: float) -> float:
        """The bytes that are left of ``limit``: at least so many, unless it is more than is ``wanted``."""
        if limit - self._usage - self._most < wanted:
            self._size_up()
        return limit - self._usage - self._most

    def within(self, limit: float) -> bool:
        """Is it certain, without a look at any value, that those in memory take no more than ``limit`` bytes?"""
        return self._most + self._usage <= limit  # in this order, as another thread may size up just now

    def note(self, key: K, mark: int | None) -> None:
        """The value of ``key`` is what the file with this mark holds, as far as anyone knows."""
        if mark is None:
            self.marks.pop(key, None)
        else:
            self.marks[key] = mark

    def saved(self, key: K, value: Any, mark: int | None, ticket: Ticket) -> None:
        """The file with this mark holds the value of ``key`` as it is now."""
        ticket.earlier.pop(key, None)  # what began before us may have missed a change that we saw
        self.note(key, mark)
        if key in self.values:
            self.watch.note(key, value)
        self._order.saved(key)

    def may_differ(self) -> bool:
        """Is there any value that may not be as its file has it?"""
        return bool(self.watch.watched or self.watch.vouched or self.held())

    def _noticed(self, keys: list[K], lost: bool) -> None:
        self._size_up()  # so that the order knows the keys
        self.watch.handed_out(self.values if lost else keys)

    def catch_up(self) -> None:
        """Take note of all hits up to now."""
        self._order.read_log()

    def exposed(self) -> dict[K, Any]:
        """``values`` itself, for somebody who may take from it what he likes."""
        self.watch.expose()
        return self.values

    def renote(self, key: K, value: Any) -> None:
        """A change in place was noticed: the value may have another size now."""
        if self.values.get(key, ABSENT) is value:
            size, before = nbytes(value), self._sizes[key]
            self._usage += size - before
            self._noted[key] = size
            self._order.resize(key, size)

    # Out.

    def remove(self, key: K) -> None:
        """The value of ``key`` is no longer what it was: nothing of it is kept."""
        self.tickets.void((key,))
        self._held.drop(key)
        self._let_go(key)
        self.marks.pop(key, None)
        self._order.leave(key)

    def forget(self, key: K) -> None:
        """``key`` was deleted: not even how it was used is remembered."""
        self.remove(key)
        self._order.forget(key)

    def evict(self, key: K) -> None:
        """The value of ``key`` leaves memory; it is found again as long as somebody holds it."""
        self.hold(key, self.values.get(key, ABSENT))
        self._let_go(key)
        self._order.leave(key)

    def among(self, keys: Iterable[K]) -> set[K]:
        """Those of ``keys`` whose values are in memory, or in somebody's hands."""
        return self.values.keys() & keys | self._held.among(keys)

    def hold(self, key: K, value: Any) -> None:
        """Remember a value outside of memory for as long as somebody else does, if it can be weakly referenced."""
        if not self._held.keep(key, value):
            self._forget_mark(key)

    def _forget_mark(self, key: K) -> None:
        self.marks.pop(key, None)

    def lend(self, crowd: dict[K, Any]) -> None:
        """Let values that are not in memory be found until `take_back`; those that are no longer it leave ``crowd``."""
        self._held.lend(crowd)

    def take_back(self, crowd: dict[K, Any]) -> None:
        """The end of `lend`."""
        self._held.take_back(crowd)

    def _let_go(self, key: K) -> None:
        self.values.pop(key, None)
        self.watch.strike_out(key)
        self.stuck.discard(key)
        self._usage -= self._noted.pop(key, 0)

    def clear(self) -> None:
        for held in (self.values, self._noted, self._unsized, self.watch, self.marks, self.stuck, self._held,
                     self.tickets):
            held.clear()
        self._usage = self._most = 0
        self._order.clear()

    # Who is here.

    def current(self, key: K) -> Any:
        """The value of ``key``, in memory or still held by somebody; `ABSENT` if there is none."""
        value = self.values.get(key, ABSENT)
        return self._held.find(key) if value is ABSENT else value

    def size(self, key: K) -> int:
        """Bytes noted for the value of ``key``; 0 if it is not in memory."""
        return self._sizes.get(key, 0)

    def held(self) -> list[tuple[K, Any]]:
        """The values outside of memory that somebody holds, and may have changed."""
        return [(key, value) for key, value in self._held.pairs() if can_change(value)] if self.writeback else []

    # Who leaves.

    def choose(self, available: float, keep: Any) -> list[K]:
        """The keys whose values leave so that the rest fits into ``available`` bytes: those that are worth least.

        ``keep`` stays, unless it alone is over the budget: then it leaves and nothing else.  Small values leave in a
        crowd, an eighth of the budget at a time, as writing them singly costs too much.  They are still in memory when
        they are returned, but no longer in the order.
        """
        if keep in self._sizes and self._sizes[keep] > available and keep not in self.stuck:
            self._order.leave(keep)
            return [keep]
        leaving = set(self.tickets.leaving())
        if not self._agree(leaving):
            self.mend()
        chosen: list[K] = []
        usage = self.usage - sum(map(self.size, leaving))
        target = available
        while usage > target:
            try:
                key = self._order.pop(keep)
            except KeyError:
                self._usage = sum(self._noted.values())  # Ctrl-C may have come between this sum and one of its parts
                break
            size = self._sizes[key]
            if usage <= available and size > self._grain:
                self._order.restore(key, size)
                break
            chosen.append(key)
            usage -= size
            if usage <= available and target == available and size <= self._grain:
                target = usage - available / 8
        return chosen

    def company(self, keys: list[K]) -> list[K]:
        """``keys``, which leave, and the older small values that wait to be written: by age, as rows that lie in the
        order in which values were set are read faster."""
        return self._order.company(keys, self._grain) if len(keys) > 1 and self._grain else keys

    def settle(self, key: K, ticket: Ticket, saved: bool, undumpable: bool) -> bool:
        """The batch of ``ticket`` is done with ``key``.  Returns whether its value left memory.

        What cannot be dumped is `stuck`: out of the order, so that it does not stand in the others' way.
        """
        valid = self.tickets.hand_in(key, ticket)
        if key not in self.values:
            return False
        if valid and saved and key in ticket.leaving:
            self.evict(key)
            return True
        if key in self.tickets:
            return False  # another batch has the value too, and settles it
        if valid and undumpable:
            self._order.leave(key)
            self.stuck.add(key)
        elif key not in self._order and key not in self.stuck:
            self._order.restore(key, self._sizes[key])
        return False

    def unstick(self, pinned: set[K]) -> None:
        """What could not be written may be writable now, but for what is ``pinned``."""
        for key in self.stuck - pinned:
            self._order.restore(key, self._sizes[key])
        self.stuck &= pinned

    def after_fork(self, pinned: Iterable[K]) -> None:
        """In a fork's child: nothing is being written; what the parent has not saved stays in memory."""
        self.tickets.clear()
        self.mend()
        for key in pinned:
            self._order.leave(key)
            self.stuck.add(key)

    # Behind a Ctrl-C.

    def mend(self) -> None:
        """Make the books agree with what is in memory, as they do but for a Ctrl-C between two lines."""
        self.watch.strike_out_others()
        self._usage = sum(self._noted.values())
        if not self._agree(set(self.tickets.leaving())):
            self._mend_sizes()
            self._mend_order()

    def _agree(self, leaving: set[K]) -> bool:
        """Is all that is in memory noted with a size, and in the order, on its way out or stuck?  By their numbers."""
        return len(self.values) == len(self._sizes) == len(self._order) + len(leaving | self.stuck)

    def _mend_sizes(self) -> None:
        for key in self._noted.keys() - self.values.keys():
            self._usage -= self._noted.pop(key)
        self._unsized = list(self.values.keys() - self._noted.keys())
        self._size_up()

    def _mend_order(self) -> None:
        self.stuck &= self.values.keys()
        self._order.keep_only(self.values.keys())
        for key, size in self._noted.items():
            if key not in self._order and key not in self.stuck and key not in self.tickets:
                self._order.restore(key, size)

    def _check(self) -> None:
        """Verify what must always hold."""
        assert self.usage == sum(self._sizes.values()), (self.usage, self._sizes)
        assert self._sizes.keys() == self.values.keys(), (self._sizes.keys(), self.values.keys())
        assert self.watch.watched.keys() <= self.values.keys()
        assert self.watch.vouched.keys() <= self.values.keys() - self.watch.watched.keys()
        assert self.marks.keys() <= self.among(self.marks)
        assert self.stuck <= self.values.keys()
        self._order._check()

    def __iter__(self) -> Iterator[K]:
        return iter(list(self.values))
