"""The logger ``chest``: what is told there, and what it costs while nobody listens."""
from __future__ import annotations

import sys
from functools import cache
from typing import Any

from chest.errors import printable

__all__ = ["log"]


@cache
def _logger() -> Any:
    """Asked for once, as that takes a lock which all threads share, and which Ctrl-C may leave taken for ever."""
    return sys.modules["logging"].getLogger("chest")


def log(level: str, message: str, *details: object) -> None:
    """Tell the logger ``chest`` of a commit, a spill or a recovery (``debug``), of leftovers and drops (``warning``).

    Nobody listens in a program that has not imported `logging`, whose import would double the time of ``import chest``.
    """
    logging = sys.modules.get("logging")
    if logging is not None and hasattr(logging, "getLogger"):  # and not just being imported by another thread
        logger = _logger()
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())  # without one, warnings go to the user's terminal
        if logger.isEnabledFor(getattr(logging, level.upper())):
            # An error as its text: a handler that keeps it would keep the values and files of all frames on its way.
            getattr(logger, level)(message, *[
                printable(str(one)) if isinstance(one, (str, Exception)) else one for one in details])
