"""A handle that is pickled: elsewhere it becomes another handle on the same path, which owns nothing."""
from __future__ import annotations

import os
import pickle
import sys
from typing import TYPE_CHECKING, Any

from chest.errors import DumpError
from chest.serialize.codec import dumping

if TYPE_CHECKING:
    from chest.core import Chest
    from chest.engine.opening import Settings

__all__ = ["opened_like", "reduced"]


def opened_like(cls: type[Any], path: str | os.PathLike[str] | None, available: float, settings: Settings) -> Any:
    """A chest at ``path``, or a temporary one, with these settings."""
    return cls(path=path, available_memory=available, **settings._asdict())


def reduced(chest: Chest[Any, Any]) -> tuple[Any, ...]:
    """What `pickle` keeps of a chest: how another handle is opened.

    It is saved first, but not where it is a part of a value that is being saved; there a temporary one is a
    `DumpError`.  `TypeError` for a setting that cannot be pickled.
    """
    engine = chest._engine
    settings = engine.settings
    if dumping():
        if engine.temporary:
            raise DumpError(f"{chest} is temporary, and gone with its handle: give a path= to a chest that is part of "
                            f"a value")
    elif settings.flag != "r":
        chest.sync()
    for name, value in settings._asdict().items():
        try:
            pickle.dumps(value)
        except Exception as error:
            if "cloudpickle" not in sys.modules:  # which can pickle what pickle cannot
                raise TypeError(f"{chest} cannot be pickled, as its {name}={value!r} cannot ({error}); use a function "
                                f"that stands in a module") from error
    flag = "w" if engine.temporary else "c" if settings.flag == "n" else settings.flag
    return opened_like, (type(chest), engine.address, chest.available_memory, settings._replace(flag=flag))
