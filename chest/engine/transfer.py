"""What `Chest.update` takes in: another chest's bytes by hard link, and anything else value by value."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chest.engine.committer import Progress
from chest.engine.engine import Engine
from chest.engine.loader import TOGETHER
from chest.engine.state import Flight
from chest.errors import ChestError, raise_of_a_signal
from chest.index import key_checksum
from chest.memory.cache import ABSENT
from chest.storage.base import batches

__all__ = ["receive", "receive_chest"]


def receive(engine: Engine[Any], other: Any, overwrite: bool, progress: Progress) -> None:
    """Take every key of ``other``, a mapping or pairs, into ``engine``.

    What a dict or list holds is in memory anyway, and goes many at a time; of anything else, as another mapping's
    items, each value may be large and come from afar.
    """
    pairs, total = other, len(other) if hasattr(other, "__len__") else None
    if isinstance(other, dict):
        pairs = dict(other).items()  # as it is now, whatever other threads do to it
    elif isinstance(other, Mapping) or hasattr(other, "keys"):
        keys = list(other.keys())
        pairs, total = ((key, other[key]) for key in keys), len(keys)
    together = isinstance(other, dict) or (overwrite and isinstance(other, (list, tuple)))  # which may repeat a key
    for some in batches(progress(pairs, total=total), TOGETHER if together else 1):
        engine.set_many({key: value for key, value in some if overwrite or not engine.state.known(key)})


def receive_chest(engine: Engine[Any], other: Engine[Any], overwrite: bool, progress: Progress) -> None:
    """Take every key of another chest: by hard links where the format is the same and the system can, else by value.

    The other one is saved first, so that its newest values have bytes; what cannot be saved is taken from its memory,
    and is one object in both then.
    """
    if other is engine:
        return
    saved = False
    try:
        if other.settings.flag != "r":
            other.save(plain=False, empty=False)
            saved = True
    except (ChestError, OSError) as error:
        raise_of_a_signal(error)
    linked = engine.state.codec.same_format(other.state.codec)
    keys = other.alive().state.keys()
    for key in progress(keys, total=len(keys)):
        if overwrite or not engine.state.known(key):
            _take(engine, other, key, saved, linked)


def _take(engine: Engine[Any], other: Engine[Any], key: Any, saved: bool, linked: bool) -> None:
    """Give ``key`` the bytes of the other chest's value, or a copy made of them; where there are none, its object."""
    theirs, mine = other.state, engine.state
    flight = Flight()  # in this frame, where `Flight.under_way` looks for it
    while True:
        with theirs.lock:
            theirs.refresh()
            ref, newest = theirs.index.refs.get(key), theirs.index.newest_check()
            if ref is None or (not saved and (key in theirs.cache.watch or key in theirs.cache.left.entries)):
                break
        if linked:
            try:
                with mine.in_flight(flight):
                    made = mine.storage.link(key, theirs.storage, ref)
                    if made.ref is not None:
                        if newest():
                            return engine.adopt([(key, made, ABSENT)])
                        mine.storage.remove([made.ref])  # the name may have been another file's by then
                        continue
            except (ChestError, OSError) as error:
                raise_of_a_signal(error)
        try:
            value = theirs.storage.load(ref, key_checksum(key)).value
        except Exception as error:  # of the user's load too
            raise_of_a_signal(error)
            if newest():
                break  # what is wrong is told with the key
        else:
            if newest():
                return engine.set(key, value)
    value = other.get(key)
    if value is not ABSENT:  # one that somebody deleted meanwhile is no loss
        engine.set(key, value)
