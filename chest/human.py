"""Bytes and counts as people read them."""
from __future__ import annotations

__all__ = ["amount", "bar", "plural"]

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


def amount(nbytes: float) -> str:
    """``nbytes`` with a unit of 1000s, as ``available_memory`` takes it.

    >>> amount(512), amount(8_000_277), amount(1e9)
    ('512 bytes', '8.0 MB', '1.0 GB')
    """
    size = float(nbytes)
    for unit in _UNITS:
        if abs(size) < 999.95 or unit == _UNITS[-1]:
            break
        size /= 1000
    if unit == "bytes":
        return f"{size:.0f} byte{'' if size == 1 else 's'}"
    return f"{size:.1f} {unit}"


def plural(count: int, noun: str) -> str:
    """``count`` and ``noun``, which gets an s where there are not just one.

    >>> plural(1, "key"), plural(12_000, "key")
    ('1 key', '12,000 keys')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def bar(share: float, width: int, full: str = "█", empty: str = "░") -> str:
    """A bar of ``width`` characters, ``share`` of them full; a share over 1 is a full bar.

    >>> bar(0.5, 8, '#', '.')
    '####....'
    """
    filled = round(min(max(share, 0.0), 1.0) * width)
    return full * filled + empty * (width - filled)
