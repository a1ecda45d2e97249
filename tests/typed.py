"""What type checkers say of a chest: as of a dict.  `test_types` runs them on this file; nothing here is executed.

A line with ``type: ignore`` is one that a checker must refuse: an ignore that is not needed is an error too.
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

from chest import Chest


def mapping(c: Chest[str, int]) -> None:
    value: int = c["x"]
    maybe: int | None = c.get("x")
    sure: int = c.get("x", 0)
    other: int | str = c.get("x", "none")
    taken: int = c.pop("x")
    dropped: int | None = c.pop("x", None)
    there: int = c.setdefault("x", 0)
    pair: tuple[str, int] = c.popitem()
    keys: Iterator[str] = iter(c)
    values: list[int] = list(c.values())
    items: dict[str, int] = dict(c.items())
    lock: AbstractContextManager[bool] = c.lock
    with c as entered:
        same: Chest[str, int] = entered
    c["x"] = value
    c.update(y=1)
    c.update({"z": 2}, overwrite=False)
    del c["x"]
    print(maybe, sure, other, taken, dropped, there, pair, keys, values, items, lock, same)


def refused(c: Chest[str, int]) -> None:
    surely: int = c.get("x")  # type: ignore[assignment]
    c["x"] = "text"  # type: ignore[assignment]
    c[1] = 1  # type: ignore[index]
    Chest(mode="x")  # type: ignore[arg-type]
    Chest(flag="a")  # type: ignore[arg-type]
    Chest(mmap_mode="w+")  # type: ignore[arg-type]
    print(surely)
