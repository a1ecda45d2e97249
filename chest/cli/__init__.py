"""The command line, and what a notebook shows of a chest; here figures and counts as people read them."""
from __future__ import annotations

__all__ = ["amount", "plural"]

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


def amount(nbytes: float) -> str:
    """``nbytes`` with a unit of 1000s, as ``available_memory`` takes it.

    >>> amount(512), amount(8_000_277), amount(1e9)
    ('512 bytes', '8.0 MB', '1.0 GB')
    """
    size, unit = float(nbytes), 0
    while abs(size) >= 999.95 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.1f} {_UNITS[unit]}" if unit else f"{size:.0f} byte{'' if size == 1 else 's'}"


def plural(count: int, noun: str) -> str:
    """``count`` and ``noun``, which gets an s where there are not just one."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
