"""Two helpers for tests, which scripts for 0.2.3 import from here."""
from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NoReturn

__all__ = ["raise_KeyError", "raises"]


def raises(error: type[BaseException] | tuple[type[BaseException], ...], callable: Callable[[], object]) -> bool:
    """Does the callable raise the error?  Any other error passes through.

    >>> raises(KeyError, lambda: {}["x"]), raises(KeyError, lambda: {"x": 1}["x"])
    (True, False)
    """
    try:
        callable()
    except error:
        return True
    return False


def raise_KeyError(key: Hashable) -> NoReturn:
    """Raise a `KeyError` that names the key; a function, so that a lambda can raise."""
    raise KeyError(key)
