"""How a handle begins and ends: with the interpreter, with a process of `multiprocessing`, with a fork, or as garbage.

The order, in one place:

-   A handle that nobody refers to any more (`let_go`, from ``Chest.__del__``) is put into a queue, no more: the garbage
    collector may run at any line, also in the middle of a commit.  The queue is drained at once if no frame of
    chest is on this thread's stack, as then it holds none of chest's locks; else by the next operation of any handle,
    or at the end of the interpreter.
-   ``atexit`` ends all that are open, before modules are taken apart, so that values can still be pickled then.
-   A child of `multiprocessing` does not run ``atexit``: there a finaliser of its own does the same.
-   Before a fork the locks of all handles are taken, so that none is in the middle of a change; the parent lets go of
    them.  In the child, first the locks of directories are abandoned, then descriptors, then each handle begins anew.
-   A handle on a store at a URL is not saved by the garbage collector, which may find it in the middle of the store's
    own threads: a `ResourceWarning` says so.  The end of the script still saves it.
"""
from __future__ import annotations

import atexit
import os
import sys
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from chest.errors import ChestError, raised_by_signal
from chest.storage import locks

if TYPE_CHECKING:
    from chest.engine.engine import Engine

    Handle = Engine[Any]

__all__ = ["begin", "drain", "let_go", "waiting"]

AT_FORK = 2.0  # seconds for which a fork waits for another thread that is half-way through something

waiting: deque[Handle] = deque()  # those that nobody refers to any more
_open: dict[int, weakref.ref[Handle]] = {}
_watched = False  # is `multiprocessing` asked to end the handles of its children, here or where this was forked from?
_package = __name__.partition(".")[0] + "."


def begin(handle: Handle) -> None:
    """See to it that ``handle`` is ended with this process, and begins anew in a fork's child."""
    mark = id(handle)
    _open[mark] = weakref.ref(handle, partial(_open.pop, mark))  # in C: what a signal's handler raised would be lost
    _watch()


def _watch() -> None:
    """If there is `multiprocessing`, let its children, this one included, end their handles by a finaliser.

    A handle that came with the arguments of a child is there before the child forgets all finalisers of its parent;
    what is to be called after that fork is called after that.
    """
    global _watched
    process = sys.modules.get("multiprocessing.process")
    if process is not None and not _watched:
        from multiprocessing import util

        def end_with_process(work: Callable[[], object]) -> None:
            util.Finalize(None, work, exitpriority=100)

        _watched = True
        util.register_after_fork(_end_all, end_with_process)
        if process.parent_process() is not None:
            end_with_process(_end_all)


def let_go(handle: Handle) -> None:
    """Nobody refers to ``handle`` any more: end it, now or at the next operation."""
    if not sys:  # the interpreter ends, and modules are taken apart: all was saved by then
        return
    if handle.remote:
        unsaved = handle.unsaved()
        if unsaved:
            warnings.warn(f"{handle.path} was let go with {unsaved} unsaved values: close() it, or use `with`",
                          ResourceWarning, stacklevel=3, source=handle)
        return
    waiting.append(handle)
    frame = sys._getframe(1).f_back  # behind __del__
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(_package):
            return
        frame = frame.f_back
    drain()


def drain() -> None:
    """End the handles in the queue.  Called where this thread holds none of chest's locks."""
    while waiting:
        try:
            handle = waiting.popleft()
        except IndexError:  # another thread took the last one
            return
        _end(handle)


def _end(handle: Handle) -> None:
    """What stands in the way is a warning, as nobody could catch an error."""
    try:
        handle.end()
    except BaseException as error:
        if not isinstance(error, Exception) or raised_by_signal(error):  # what is not saved yet waits for the next time
            waiting.append(handle)
            raise
        if not sys.is_finalizing():
            text = f"<chest at {handle.path}> could not be saved as it ended: {error}"
            warnings.warn(text, RuntimeWarning, stacklevel=3)


def _handles() -> list[Handle]:
    return [handle for reference in list(_open.values()) if (handle := reference()) is not None]


def _end_all() -> None:
    with ExitStack() as ends:  # Ctrl-C, or a warning that is an error, keeps no other handle from being saved
        for handle in reversed(_handles()):
            ends.callback(_end, handle)
        ends.callback(drain)


# Forks.

_locked: dict[int, list[Any]] = {}  # by thread, as several may fork at once


def _before_fork() -> None:
    """The wait is bounded: a program may hold one chest's lock in a thread that waits for another's."""
    locked = _locked[threading.get_ident()] = []  # first: Ctrl-C, which forks all the same, may end a wait
    for handle in _handles():
        lock = handle.state.lock
        if lock.acquire(timeout=AT_FORK):
            locked.append(lock)
            with suppress(OSError, ChestError):  # it is as if the change came behind the fork
                handle.spiller.notice()


def _after_fork_in_parent() -> None:
    for lock in _locked.pop(threading.get_ident(), ()):
        lock.release()


def _after_fork_in_child() -> None:
    _locked.clear()
    locks.after_fork()
    for handle in _handles():
        handle.state.after_fork()
        if handle.committer.transacts is not None and handle.committer.transacts.thread != threading.get_ident():
            handle.committer.transacts = None  # its thread is the parent's
    waiting.clear()  # they are the parent's to end
    if _open:  # `multiprocessing` may have been imported since they were made
        _watch()


atexit.register(_end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
