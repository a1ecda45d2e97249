"""Figures, counts and names as people read them, and nothing that a terminal would obey."""
from __future__ import annotations

__all__ = ["amount", "key_text", "plural", "printable"]

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


def printable(text: str, keep: str = "", most: int = 0) -> str:
    r"""``text`` with what is no visible character escaped, but for those in ``keep``; cut after ``most`` characters.

    A stranger can put escape sequences, and marks that turn the direction of writing, into a key or a file's name.
    """
    if most and len(text) > most:
        text = text[:most] + "..."
    return text if text.isprintable() else "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def key_text(key: object, most: int = 0) -> str:
    """The text of ``key``, whatever its ``repr`` does, cut after ``most`` characters."""
    try:
        text = repr(key)
    except Exception:  # code of the key's class, or an integer of more digits than Python turns into decimal ones
        text = hex(key) if isinstance(key, int) else f"<{type(key).__name__}>"
    return printable(text, most=most)
