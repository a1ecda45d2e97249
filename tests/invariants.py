"""What holds of every chest while no thread is at work with it, whatever happened before; and what to hold beside one."""
from __future__ import annotations

import contextlib
import copy
import os

from chest import Chest
from chest.memory.cache import ABSENT


def check(chest):
    """Fail where an invariant of ``chest`` does not hold."""
    state = chest._engine.state
    with state.lock:
        state.mend()
        cache, refs = state.cache, state.index.refs
        cache.take_hits()
        values, saved = cache.values, cache.saved
        assert not state.flights and not state.writing, f"in flight: {state.flights}, {state.writing}"
        assert all(cache.given[key] is values.get(key, ABSENT) for key in cache.given), "another value is given"
        assert cache.sizes.keys() == values.keys(), "values and sizes differ"
        assert cache.usage == sum(cache.sizes.values()), "the sum of the sizes is wrong"
        assert saved.keys() <= values.keys(), "saved, and not in memory"
        assert cache.watch.keys() <= saved.keys(), "watched, and dirty or not in memory"
        assert not cache.left.entries.keys() & values.keys(), "left memory, and is in it"
        assert cache.left.kept.keys() <= cache.left.entries.keys(), "kept, and did not leave"
        assert all((key in cache.policy) != (key in cache.stuck) for key in values), "stuck and in the order, or neither"
        assert values.keys() <= refs.keys(), "a value in memory without a key"
        for key, ref in refs.items():
            assert ref is not None or key in values, f"{key!r} has no value anywhere"
            assert key not in values or (ref is None) == (key not in saved), key


def files(path):
    """All that stands below ``path``, relative."""
    return sorted(os.path.relpath(os.path.join(folder, name), path) for folder, _, names in os.walk(path) for name in names)


def seen(path, **settings):
    """What another handle finds."""
    with Chest(path=path, **settings) as c:
        return dict(c)


class Model(dict):
    """A dict that does as a chest with no directory would."""

    committed = {}

    def nothing(self, key=None):
        pass

    sync = flush = close = shrink = prefetch = move_to_disk = nothing
    drop = dict.clear

    def rollback(self):
        self.clear()
        self.update(copy.deepcopy(self.committed))

    def transaction(self):
        return contextlib.nullcontext()
