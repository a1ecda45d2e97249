"""What `Chest.update` takes in: another chest's bytes by hard link, and anything else value by value."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from chest.engine.committer import Progress
from chest.engine.engine import Engine
from chest.engine.loader import TOGETHER
from chest.engine.state import State
from chest.errors import ChestError, raised_by_signal
from chest.index import key_checksum
from chest.memory.cache import ABSENT
from chest.storage.base import Ref, batches

__all__ = ["receive", "receive_chest"]


def receive(engine: Engine[Any], other: Any, overwrite: bool, progress: Progress) -> None:
    """Take every key of ``other``, a mapping or pairs, into ``engine``.

    What a dict or list holds is in memory anyway, and goes many at a time; of another mapping, or of an iterator, each
    value may be large and come from afar.
    """
    pairs, total = other, len(other) if hasattr(other, "__len__") else None
    if isinstance(other, dict):
        pairs = dict(other).items()  # as it is now, whatever other threads do to it
    elif isinstance(other, Mapping) or hasattr(other, "keys"):
        keys = list(other.keys())
        pairs, total = ((key, other[key]) for key in keys), len(keys)
    for some in batches(progress(pairs, total=total), TOGETHER if hasattr(pairs, "__len__") else 1):
        engine.set_many({key: value for key, value in some if overwrite or not engine.state.known(key)})


def receive_chest(engine: Engine[Any], other: Engine[Any], overwrite: bool, progress: Progress) -> None:
    """Take every key of another chest: by hard links where the format is the same and the system can, else by value.

    The other one is saved first, so that its newest values have bytes; what cannot be saved is taken from its memory,
    and is one object in both then.
    """
    if other is engine:
        return
    saved = False
    with suppress(ChestError, OSError):
        if other.settings.flag != "r":
            other.save(False, False)
            saved = True
    linked = engine.state.codec.same_format(other.state.codec)
    keys = other.alive().state.keys()
    for key in progress(keys, total=len(keys)):
        if overwrite or not engine.state.known(key):
            if not (linked and _link(engine, other, key, saved)):
                value = _copied(other, key, saved)
                if value is not ABSENT:  # one that somebody deleted meanwhile is no loss
                    engine.set(key, value)


def _place(theirs: State[Any], key: Any, saved: bool) -> tuple[Ref | None, Callable[[], bool]]:
    """Where the bytes lie of a value as it is now, `None` if nowhere; and whether they are still these, for later."""
    with theirs.lock:
        theirs.refresh()
        ref, newest = theirs.index.refs.get(key), theirs.index.newest_check()
    return ref if saved or key not in theirs.cache.watch else None, newest


def _copied(other: Engine[Any], key: Any, saved: bool) -> Any:
    """The value as its bytes are, an object of its own; the other chest's object where there are no such bytes."""
    ref, newest = _place(other.state, key, saved)
    if ref is not None:
        try:
            value = other.state.storage.load(ref, key_checksum(key)).value
            if newest():  # else the name may be another file's by now
                return value
        except Exception as error:  # of the user's load too; below it is told with the key
            if raised_by_signal(error):
                raise
    return other.get(key)


def _link(engine: Engine[Any], other: Engine[Any], key: Any, saved: bool) -> bool:
    """Give ``key`` the bytes of the other chest's value; `False` where that cannot be and a copy has to do."""
    theirs, mine = other.state, engine.state
    while True:
        ref, newest = _place(theirs, key, saved)
        if ref is None:
            return False
        try:
            with mine.protected():
                made = mine.storage.link(key, theirs.storage, ref)
                if made.ref is None:
                    return False
                if newest():
                    engine.adopt([(key, made, ABSENT)])
                    return True
                mine.storage.remove([made.ref])  # the name may have been another file's by then
        except FileNotFoundError:
            if newest():
                return False
        except (OSError, ChestError):  # what is wrong with their file, who loads it is told
            return False
