"""How much memory the values may take, and how much the process takes."""
from __future__ import annotations

import mmap
import os
import sys
from contextlib import suppress

from chest.errors import raise_of_a_signal

__all__ = ["Growth", "budget", "peak"]

LEAST, MOST = 16, 2048  # uses of values between two looks
STEP = 1 << 24  # bytes


def budget(amount: float | str, name: str = "available_memory") -> float:
    """``amount`` in bytes: a number, a text with a unit, or a share of the machine's memory (of its cgroup, if less).

    >>> budget("2 GB"), budget("1.5 KiB"), budget(1e9), budget("50%") > 0
    (2000000000.0, 1536.0, 1000000000.0, True)
    """
    if isinstance(amount, str):
        import re

        match = re.match(r"\s*(\d+\.?\d*|\d*\.\d+)\s*(%|([kmgt]?)(i?)b?)\s*\Z", amount, re.IGNORECASE)
        if match and match[2] == "%":
            return float(match[1]) / 100 * _machine_memory()
        if match and (match[3] or not match[4]):
            return float(match[1]) * float(1024 if match[4] else 1000) ** " kmgt".index(match[3].lower() or " ")
    elif hasattr(amount, "__float__") and float(amount) >= 0:
        return float(amount)
    raise ValueError(f"{name} is a number of bytes, or a text such as '2 GB', '500 MiB' or '50%', not {amount!r}")


def _machine_memory() -> int:
    """Bytes of memory that this process may use at most: what the machine has, or its cgroup or one above allows."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        raise ValueError("this system does not say how much memory it has; give available_memory in bytes") from None
    limits = []
    with suppress(OSError, ValueError), open("/proc/self/cgroup", encoding="utf-8") as file:
        for line in file:
            _, controllers, group = line.rstrip("\n").split(":", 2)
            if controllers in ("", "memory"):
                name = "memory.limit_in_bytes" if controllers else "memory.max"
                folder = f"/sys/fs/cgroup{'/memory' * bool(controllers)}{group.rstrip('/')}"
                while folder != "/sys/fs":
                    limits.append(f"{folder}/{name}")
                    folder = os.path.dirname(folder)
    for limit in limits:
        with suppress(OSError, ValueError), open(limit, encoding="ascii") as file:  # there is none, or it is "max"
            found = min(found, int(file.read()))
    return found


def _resident() -> int:
    """Bytes of memory that this process takes now; where no more than `peak` is told, that."""
    try:
        with open("/proc/self/statm", "rb", 0) as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE
    except OSError as error:
        raise_of_a_signal(error)
    return peak()


def peak() -> int:
    """Bytes of memory that this process had at most; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Growth:
    """Did the process grow by what the sizes of the values do not explain?  ``c[k].append(v)`` makes it so.

    The system is asked after ``interval`` uses of values, at the one numbered ``due``: after few while it grows, else
    after twice as many as the time before, so that hits stay quick.  Where it was the program that grew, and not the
    values, they are sized anew behind twice the growth, up to half the budget.
    """

    def __init__(self, available: float) -> None:
        self.due = self.interval = LEAST
        self._steps = max(STEP, available / 16), max(STEP, available / 2)
        self._step = self._steps[0]
        self._unexplained = self._least = _resident()  # bytes that the sizes do not explain, now and at the least

    def seen(self, uses: int, usage: int) -> bool:
        """Look: is it more than a step, 16 MB or a sixteenth of the budget, beyond the least?  ``usage`` in bytes."""
        before, self._unexplained = self._unexplained, _resident() - usage
        self.interval = LEAST if self._unexplained > before + self._step / 8 else min(2 * self.interval, MOST)
        self.due = uses + self.interval
        self._least = min(self._least, self._unexplained)
        return self._unexplained > self._least + self._step

    def explained(self, more: int) -> None:
        """The values were sized anew, and take ``more`` bytes than was known."""
        least, most = self._steps
        self._step = least if more > self._step / 4 else min(2 * self._step, most)
        self._unexplained = self._least = self._unexplained - more
