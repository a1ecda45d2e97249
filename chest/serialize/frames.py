"""pandas' objects as they are pickled here: without what they cache, so that one that was only used pickles as before.

What pandas computed of an object stands in its ``_cache``, and is computed anew where that is missing.
"""
from __future__ import annotations

import copyreg
import pickle
import sys
from typing import Any

__all__ = ["Pickler", "is_of_pandas"]


def is_of_pandas(value: object) -> bool:
    """Is this a frame, a column, an index or an array of pandas, and of no class of the user's?"""
    return "pandas" in sys.modules and type(value).__module__.partition(".")[0] == "pandas"


class Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        """Called for each object that is no plain one."""
        if not is_of_pandas(value) or type(value) in copyreg.dispatch_table:
            return NotImplemented
        reduced = value.__reduce_ex__(5)
        if isinstance(reduced, str):
            return reduced
        return (*reduced[:2], *map(_without_cache, reduced[2:3]), *reduced[3:])


def _without_cache(state: object) -> object:
    if isinstance(state, dict):  # names that are one object, or are not, make pickles that differ
        return {sys.intern(str(name)): part for name, part in state.items() if name != "_cache"}
    if type(state) is not tuple:
        return state
    # Of an array: its dtype, its memory, and its attributes, which may be missing where there are none.
    return tuple(map(_without_cache, state if len(state) != 2 else (*state, {})))
