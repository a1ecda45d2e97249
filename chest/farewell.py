"""How a chest in a store ends: its last save needs a connection, and so fsspec's own threads and those below it.

When the interpreter ends, paramiko hangs up by itself; so chests in a store are ended before that.  And the garbage
collector may find a chest in the middle of starting a thread, or in fsspec's own thread, where a save would wait for
ever: what it finds is ended by a thread that stands by.
"""
from __future__ import annotations

import atexit
import gc
import os
import threading
from queue import SimpleQueue
from typing import Any, Callable

__all__ = ["attend", "collecting", "hand_over"]

_found: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
_state = threading.local()
_thread: threading.Thread | None = None


def attend(end: Callable[[], None]) -> None:
    """See to it that ``end`` is called before connections are, and that `hand_over` has a taker.

    Called when a first connection was made: what is registered last for the interpreter's end comes first.
    """
    global _thread
    if _note not in gc.callbacks:
        gc.callbacks.append(_note)
        atexit.register(_last_call, end)
    if _thread is None:
        _thread = threading.Thread(target=_stand_by, name="chest-farewell", daemon=True)
        _thread.start()


def collecting() -> bool:
    """Is the garbage collector at work in this thread?"""
    return getattr(_state, "collecting", False)


def hand_over(action: Callable[[], None]) -> None:
    """Let the thread that stands by do it; where there is none any more, it is done now."""
    if _thread is None:
        action()
    else:
        _found.put(action)  # a queue that may be used from within a finaliser


def _note(phase: str, info: Any) -> None:
    _state.collecting = phase == "start"


def _stand_by() -> None:
    while True:
        action = _found.get()
        if action is None:
            return
        action()
        del action


def _last_call(end: Callable[[], None]) -> None:
    global _thread
    thread, _thread = _thread, None
    if thread is not None:
        _found.put(None)
        thread.join()
    end()


def _after_fork_in_child() -> None:
    """The thread and what it was handed are the parent's."""
    global _thread, _found
    _thread = None
    _found = SimpleQueue()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
