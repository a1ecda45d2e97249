"""Which values are on their way to disk, and whether they are still those of their keys when they get there."""
from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

__all__ = ["Ticket", "Tickets"]

K = TypeVar("K", bound=Hashable)


class Ticket:
    """One batch of values on its way to disk, from `Tickets.hand_out` on.

    A value that is set, deleted or dropped while it is being written loses its ticket: then what was written is not
    what the key stands for any more.  ``leaving`` are the keys whose values leave memory once they are written.
    ``earlier`` has the tickets of other threads that are writing the same values, and that count until a later batch
    has written them.
    """

    __slots__ = ("earlier", "leaving")

    def __init__(self) -> None:
        self.leaving: frozenset[Any] = frozenset()
        self.earlier: dict[Any, Ticket] = {}


class Tickets(Generic[K]):
    """The tickets that are out, by key."""

    def __init__(self) -> None:
        self._out: dict[K, Ticket] = {}

    def __contains__(self, key: K) -> bool:
        return key in self._out

    def hand_out(self, ticket: Ticket, keys: Sequence[K], leaving: Iterable[K] = ()) -> None:
        """``ticket`` is for values that are about to be written; then those of ``leaving`` leave memory."""
        ticket.leaving = frozenset(leaving)
        ticket.earlier = {key: self._out[key] for key in keys if key in self._out}
        self._out.update(dict.fromkeys(keys, ticket))

    def hand_in(self, key: K, ticket: Ticket) -> bool:
        """Take ``ticket`` out of those that are out for ``key``; returns whether it was valid."""
        tickets = self._out
        while key in tickets:
            if tickets[key] is ticket:
                del tickets[key]
                if key in ticket.earlier:
                    tickets[key] = ticket.earlier.pop(key)
                return True
            tickets = tickets[key].earlier
        return False

    def withdraw(self, ticket: Ticket) -> None:
        """Take ``ticket`` out of those that are out for any key, if Ctrl-C kept anybody from handing it in."""
        for key in list(self._out):
            self.hand_in(key, ticket)

    def valid(self, key: K, ticket: Ticket) -> bool:
        """Is the value of ``key`` still the one that was to be written?"""
        held = self._out.get(key)
        while held is not None and held is not ticket:
            held = held.earlier.get(key)
        return held is ticket

    def void(self, keys: Iterable[K]) -> None:
        """These keys have other values now, or none."""
        for key in self._out.keys() & keys if self._out else ():
            del self._out[key]

    def leaving(self) -> Iterator[K]:
        """The keys whose values leave memory once they are written."""
        return (key for key, ticket in self._out.items() if key in ticket.leaving)

    def clear(self) -> None:
        self._out.clear()
