"""How a chest ends: with the interpreter, with a process of `multiprocessing`, with a fork, or as garbage.

``atexit`` runs before modules are taken apart, so that values such as numpy arrays can still be pickled then; a
finaliser alone would come too late.
"""
from __future__ import annotations

import atexit
import functools
import os
import sys
import threading
import warnings
import weakref
from typing import Any

from chest import farewell, locks

__all__ = ["end", "let_go", "watch"]

_open: dict[int, weakref.ref[Any]] = {}
_watched_process = 0  # where `multiprocessing` ends the chests of its children, as atexit does not run there


def watch(chest: Any) -> None:
    """See to it that ``chest`` is ended with this process, and re-made after a fork."""
    mark = id(chest)
    _open[mark] = weakref.ref(chest, lambda _: _open.pop(mark, None))
    if chest._life.store.remote:
        farewell.attend(_end_remote)
    process = sys.modules.get("multiprocessing.process")
    if process is not None and _watched_process != os.getpid():
        _watch_process(process.parent_process() is not None)


def _watch_process(child: bool) -> None:
    """End the chests of a `multiprocessing` child by its own finalisers, and those of its children likewise.

    A chest that came with the arguments of a child is there before the child forgets all finalisers of its parent;
    what is to be called after that fork is called after that.
    """
    global _watched_process
    from multiprocessing import util

    _watched_process = os.getpid()
    util.register_after_fork(_watch_process, _end_with_process)
    if child:
        _end_with_process()


def _end_with_process(_: object = None) -> None:
    from multiprocessing import util

    util.Finalize(None, _end_all, exitpriority=100)


def _chests() -> list[Any]:
    return [chest for ref in list(_open.values()) if (chest := ref()) is not None]


def _end_all() -> None:
    for chest in _chests():
        end(chest)


def _end_remote() -> None:
    for chest in _chests():
        if chest._life.store.remote:
            end(chest)
            _open.pop(id(chest), None)  # the second end would ask a store that cannot be asked any more


def let_go(chest: Any) -> None:
    """End ``chest``, which nobody refers to any more, at once if that can be."""
    ending = functools.partial(end, chest)
    if chest._life.store.remote and farewell.collecting():
        farewell.hand_over(ending)
    else:
        locks.later(ending)


def end(chest: Any) -> None:
    """Save a chest that nobody will ask again; what stands in the way is a warning, as nobody could catch an error."""
    try:
        chest._end()
    except Exception as error:
        if not sys.is_finalizing():
            warnings.warn(f"{chest} could not be saved as it ended: {error}", RuntimeWarning, stacklevel=2)


def _before_fork() -> None:
    """Let no other thread be half-way through a change of a chest while its memory is copied.

    The wait is bounded: a program may hold one chest's lock in a thread that waits for another's.
    """
    _locked[threading.get_ident()] = [chest.lock for chest in _chests() if chest.lock.acquire(timeout=locks.AT_FORK)]


def _after_fork_in_parent() -> None:
    for lock in _locked.pop(threading.get_ident()):
        lock.release()


def _after_fork_in_child() -> None:
    _locked.clear()
    for chest in _chests():
        chest._after_fork()


_locked: dict[int, list[Any]] = {}  # by thread, as several may fork at once

atexit.register(_end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
