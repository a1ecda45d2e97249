"""The logger ``chest``: what is told there, and what it costs while nobody listens."""
from __future__ import annotations

import sys
from typing import Any

from chest.errors import printable

__all__ = ["log"]

_logger: Any = None


def log(level: str, message: str, *details: object) -> None:
    """Tell the logger ``chest`` of a commit, a spill or a recovery (``debug``), of leftovers and drops (``warning``).

    Nobody listens in a program that has not imported `logging`, whose import would double the time of ``import chest``.
    """
    logging = sys.modules.get("logging")
    if logging is not None and hasattr(logging, "getLogger"):  # and not just being imported by another thread
        global _logger
        # Asked for once, as it takes a lock that all threads share, and that Ctrl-C may leave taken for ever.
        logger = _logger = _logger or logging.getLogger("chest")
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())  # without one, warnings go to the user's terminal
        if logger.isEnabledFor(getattr(logging, level.upper())):
            # An error as its text: a handler that keeps it would keep the values and files of all frames on its way.
            getattr(logger, level)(message, *[
                printable(str(one)) if isinstance(one, (str, Exception)) else one for one in details])
