"""What `Chest.update` takes in: another chest's files by hard link, and anything else value by value."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Callable

from chest.errors import ChestError, file_is_gone
from chest.files import Stale
from chest.leaving import crowds
from chest.life import Life

__all__ = ["receive"]

Progress = Callable[..., Iterable[Any]]


def receive(chest: Any, other: Any, overwrite: bool, progress: Progress) -> None:
    """Take every key of ``other``, a chest, a mapping or pairs, into ``chest``."""
    if other is chest:
        return
    if isinstance(other, type(chest)):
        _from_chest(chest, other, overwrite, progress)
        return
    for part in _parts(other, chest._life.store.crowd, progress):
        for key, value in chest._life.set_many(part) if overwrite else part.items():
            if overwrite or key not in chest:
                chest[key] = value


def _parts(other: Any, crowd: int, progress: Progress) -> Iterator[dict[Any, Any]]:
    """The pairs of a mapping, or pairs, in dicts.  What a dict holds is in memory anyway, and goes many at a time; of
    another mapping each value may be large and come from afar.

    No list of very many tuples is made: the garbage collector would look at all of them time and again.
    """
    if isinstance(other, dict):
        other = dict(other)  # as it is now, whatever other threads do to it
    if isinstance(other, Mapping) or hasattr(other, "keys"):
        keys = list(other.keys())
        for some in crowds(progress(keys, total=len(keys)), crowd if isinstance(other, dict) else 1):
            yield {key: other[key] for key in some}
    else:
        for key, value in other:
            yield {key: value}


def _from_chest(chest: Any, other: Any, overwrite: bool, progress: Progress) -> None:
    try:
        other.sync()
    except (ChestError, OSError):
        pass  # what cannot be saved there is copied from its memory
    linked = chest._codec.same_format(other._codec)
    keys = other._alive().keys()  # at one moment, whatever other threads do to it
    for key in progress(keys, total=len(keys)):
        if not overwrite and key in chest:
            continue
        if linked and _link(chest._life, other._life, key):
            continue
        try:
            chest[key] = other[key]
        except KeyError as error:
            if file_is_gone(error, key):
                raise  # a key that somebody deleted meanwhile is no loss


def _link(mine: Life[Any], theirs: Life[Any], key: Any) -> bool:
    """Give ``key`` a second name of the other chest's file; `False` where that cannot be and a copy has to do."""
    while True:
        with theirs.lock:
            theirs.refresh()
            name, trusted = theirs.index.names.get(key), theirs.index.unchanged()
        if name is None:
            return False
        try:
            mine.adopt(key, mine.store.link(key, theirs.store, name, trusted))
        except Stale:
            continue
        except OSError:
            return False
        return True
