"""Loading several loose files in order, large ones ahead of time by threads."""
from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Callable

from chest.storage.base import Loaded, Ref

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["AHEAD", "load_ahead"]

AHEAD = 4  # files that are loaded ahead, by as many threads,
LARGE = 256 << 10  # if they have so many bytes: threads cost more than they bring to smaller ones


def load_ahead(load: Callable[[Ref], Loaded], refs: Sequence[Ref],
               threads: bool) -> Generator[Loaded | Exception, None, None]:
    """The values at ``refs``, or what went wrong with each, as they are asked for.

    With ``threads`` the next four are loaded meanwhile, once a value was large, and was read and not mapped.
    """
    def attempt(ref: Ref) -> Loaded | Exception:
        try:
            return load(ref)
        except Exception as error:  # of the user's load too
            return error

    pool: ThreadPoolExecutor | None = None
    under_way: deque[Future[Loaded | Exception]] = deque()
    started, large = 0, False
    try:
        for place, ref in enumerate(refs):
            while threads and large and started < min(place + AHEAD, len(refs)):
                try:
                    if pool is None:
                        from concurrent.futures import ThreadPoolExecutor  # only here: it takes as long as all of chest

                        pool = ThreadPoolExecutor(AHEAD)
                    under_way.append(pool.submit(attempt, refs[started]))
                    started += 1
                except (RuntimeError, ImportError):  # there are no threads, or none any more at the interpreter's end
                    threads = False
            one = under_way.popleft().result() if under_way else attempt(ref)
            started = max(started, place + 1)
            if isinstance(one, Loaded):
                large = one.nbytes >= LARGE and (one.stamp is None or isinstance(one.stamp, int))
            yield one
    finally:
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
