"""A chest beside a dict, through whatever one can do with it: they must agree, also after a crash.

The model is two dicts: what the chest holds, and what the last commit left.  A crash is a copy of the directory as it
is at that moment, opened by another handle: it must hold what the last commit left, in the same order.
"""
from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import tempfile

import hypothesis.strategies as st
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from chest import Chest, database
from chest.errors import DumpError

try:
    import numpy
except ImportError:
    numpy = None

STRESS = bool(os.environ.get("CHEST_STRESS"))

KEYS = ["a", "A", "a~1", "_a", ("a", "b"), ("a", "c"), ("a",), 1, "1", 0, "cfcd208495d565ef66e7dff9f98764da", (), "x y", ".keys"]
JSON_KEYS = ["a", "A", "a~1", "_a", ("a", "b"), 1, "1", ()]

texts = st.integers(0, 600).map(lambda n: f"{n}:" + "t" * n)
plain = st.one_of(st.integers(), st.none(), texts)
lists = st.lists(st.integers(0, 9), max_size=5).map(list)
values = st.one_of(plain, lists, st.dictionaries(st.sampled_from("xy"), st.lists(st.integers(0, 9), max_size=3), max_size=2))


def array(size, number):
    return list(range(size)) if numpy is None else numpy.full(size, float(number))


arrays = st.builds(array, st.sampled_from([3, 40, 9000]), st.integers(0, 99))  # the last is large enough to be mapped


class Refuses:
    """A value that cannot be dumped, and equals nothing but itself."""

    def __reduce__(self):
        raise TypeError("no")


def frozen(value):
    """Something that tells values apart, types included, and never changes."""
    if numpy is not None and isinstance(value, numpy.ndarray):
        return "array", value.shape, value.tobytes()
    return repr(value) if not isinstance(value, Refuses) else id(value)


def thaw(value):
    """A copy that shares nothing."""
    return value if isinstance(value, Refuses) else pickle.loads(pickle.dumps(value))


class Machine(RuleBasedStateMachine):
    """One chest with one path; ``settings`` are those of the subclass."""

    keys: list = KEYS
    values = st.one_of(values, arrays)
    chest_settings: dict = {}
    budgets = [0, 200, 1000, 100_000, 1e9]
    refuses = False

    held = Bundle("held")

    def __init__(self):
        super().__init__()
        self.base = tempfile.mkdtemp(prefix="chest-model-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        self.lives = 0
        self.model = {}
        self.committed = {}
        self.ordered = True
        self.mine = {}  # values that we hold, and that so are the chest's as long as nobody sets the key
        self.leftovers = set()  # of a crash: in nobody's way, and nobody's to remove
        self.chest = None

    @initialize(budget=st.data())
    def start(self, budget):
        self.open(budget.draw(st.sampled_from(self.budgets)))

    def open(self, budget):
        self.path = os.path.join(self.base, str(self.lives))
        self.chest = Chest(path=self.path, available_memory=budget, **self.chest_settings)

    def teardown(self):
        if self.chest is not None:
            self.chest.drop()
        shutil.rmtree(self.base)

    def draw(self, data, known=False):
        keys = [key for key in self.keys if not known or key in self.model]
        return data.draw(st.sampled_from(keys or self.keys))

    # What a dict does.

    @rule(data=st.data())
    def sets(self, data):
        key, value = self.draw(data), data.draw(self.values)
        self.chest[key] = thaw(value)
        self.model[key] = value
        self.mine.pop(key, None)
        self.within_the_budget()

    @rule(data=st.data())
    def reads(self, data):
        key = self.draw(data, known=True)
        if key in self.model:
            assert frozen(self.chest[key]) == frozen(self.model[key])
            assert frozen(self.chest.get(key)) == frozen(self.model[key])
            self.within_the_budget()
        else:
            with pytest.raises(KeyError):
                self.chest[key]
            assert self.chest.get(key, "default") == "default"

    @rule(data=st.data())
    def deletes(self, data):
        key = self.draw(data)
        if key in self.model:
            del self.chest[key], self.model[key]
        else:
            with pytest.raises(KeyError):
                del self.chest[key]
        self.mine.pop(key, None)

    @rule(data=st.data())
    def pops(self, data):
        key = self.draw(data)
        assert frozen(self.chest.pop(key, "default")) == frozen(self.model.pop(key, "default"))
        self.mine.pop(key, None)

    @rule()
    def pops_the_last(self):
        if self.model and self.ordered:
            (key, value), (expected, model) = self.chest.popitem(), self.model.popitem()
            assert (key, frozen(value)) == (expected, frozen(model))
            self.mine.pop(key, None)
        elif not self.model:
            with pytest.raises(KeyError):
                self.chest.popitem()

    @rule(data=st.data())
    def sets_default(self, data):
        key, value = self.draw(data), data.draw(self.values)
        new = key not in self.model
        assert frozen(self.chest.setdefault(key, thaw(value))) == frozen(self.model.setdefault(key, value))
        if new:
            self.mine.pop(key, None)

    @rule(data=st.data(), overwrite=st.booleans())
    def updates(self, data, overwrite):
        other = data.draw(st.dictionaries(st.sampled_from(self.keys), self.values, max_size=3))
        self.chest.update({key: thaw(value) for key, value in other.items()}, overwrite)
        self.take(other, overwrite)

    @rule(data=st.data(), overwrite=st.booleans(), same=st.booleans(), writes=st.booleans())
    def updates_from_a_chest(self, data, overwrite, same, writes):
        other = data.draw(st.dictionaries(st.sampled_from(self.keys), self.values, max_size=3))
        with tempfile.TemporaryDirectory(dir=self.base) as folder:
            with Chest(path=folder, **(self.chest_settings if same else {})) as source:
                source.update({key: thaw(value) for key, value in other.items()})
                self.chest.update(source, overwrite)
                if self.refuses:  # what cannot be saved would be an error as the source ends
                    source.clear()
                if writes:  # what was linked is the chest's own from now on
                    for key in other:
                        source[key] = "not yours"
        self.take(other, overwrite)

    def take(self, other, overwrite):
        for key, value in other.items():
            if overwrite or key not in self.model:
                self.model[key] = value
                self.mine.pop(key, None)

    @rule()
    def clears(self):
        self.chest.clear()
        self.model.clear()
        self.mine.clear()

    @rule()
    def copies(self):
        if any(isinstance(value, Refuses) for value in self.model.values()):
            return
        with self.chest.copy() as copy:
            self.commit()  # a copy shares files, so the original is synced first
            self.agree(copy, self.model)

    # In place.

    @precondition(lambda self: self.chest_settings.get("writeback", True))
    @rule(data=st.data(), item=st.integers(0, 9))
    def changes_in_place(self, data, item):
        key = self.draw(data, known=True)
        if key not in self.model:
            return
        value = self.chest[key]
        if isinstance(value, list) and self.chest.inmem.get(key) is value:
            value.append(item)
            self.model[key].append(item)
        elif isinstance(value, dict) and self.chest.inmem.get(key) is value:
            value.setdefault("x", []).append(item)
            self.model[key].setdefault("x", []).append(item)

    @precondition(lambda self: numpy is not None and self.chest_settings.get("writeback", True))
    @rule(target=held, data=st.data())
    def holds(self, data):
        arrays = [key for key, value in self.model.items() if isinstance(value, numpy.ndarray)]
        if not arrays:
            return multiple()
        key = data.draw(st.sampled_from(arrays))
        self.mine[key] = self.chest[key]
        return key

    @rule(key=held, number=st.integers(100, 199))
    def changes_what_it_holds(self, key, number):
        if key in self.mine:
            self.mine[key][-1] = number
            self.model[key][-1] = number
            assert self.chest[key] is self.mine[key]

    @rule(key=held)
    def lets_go(self, key):
        if key in self.mine:
            assert frozen(self.chest[key]) == frozen(self.model[key])
            if key in self.chest.inmem or self.chest_settings.get("writeback", True):
                self.chest.sync() if not self.refuses else self.commits_with(Chest.sync)
                self.commit()
            del self.mine[key]

    # Memory and disk.

    @rule(data=st.data())
    def moves_out(self, data):
        key = self.draw(data, known=True)
        if key not in self.model:
            with pytest.raises(KeyError):
                self.chest.move_to_disk(key)
        elif isinstance(self.model[key], Refuses):
            with pytest.raises(DumpError):
                self.chest.move_to_disk(key)
            assert key in self.chest.inmem
        else:
            self.chest.move_to_disk(key)
            assert key not in self.chest.inmem

    @rule(data=st.data())
    def prefetches(self, data):
        keys = data.draw(st.lists(st.sampled_from(self.keys), max_size=4))
        if all(key in self.model for key in keys):
            self.chest.prefetch(keys)
        else:
            with pytest.raises(KeyError):
                self.chest.prefetch(keys)

    @rule(data=st.data())
    def has_another_budget(self, data):
        self.chest.available_memory = data.draw(st.sampled_from(self.budgets))
        self.within_the_budget()

    def within_the_budget(self):
        undumpable = any(isinstance(value, Refuses) for value in self.model.values())
        assert undumpable or self.chest.memory_usage <= self.chest.available_memory

    # Commits, crashes.

    def commits_with(self, method):
        if any(isinstance(value, Refuses) for value in self.model.values()):
            with pytest.raises(DumpError, match="Refuses|no"):
                method(self.chest)
        else:
            method(self.chest)

    def commit(self):
        dumpable = {key: not isinstance(value, Refuses) for key, value in self.model.items()}
        self.committed = {key: thaw(value) if dumpable[key] else self.committed[key]
                          for key, value in self.model.items() if dumpable[key] or key in self.committed}
        self.ordered = self.ordered and all(dumpable.values())

    @rule()
    def flushes(self):
        self.commits_with(Chest.flush)
        self.commit()
        if all(key in self.committed and self.committed[key] is not None for key in self.model) and self.ordered:
            assert self.chest.memory_usage == 0
            self.holds_nothing_else()

    def holds_nothing_else(self):
        named = {name for name in self.chest._keys.values() if not name.startswith(".small/")}
        found = self.files() - self.leftovers
        assert {name for name in found if not name.startswith(".small")} == {".keys", *named}
        assert self.leftovers or all(files or folders for _, folders, files in os.walk(self.path)), "an empty folder stayed"

    def files(self):
        return {os.path.relpath(os.path.join(folder, file), self.path).replace(os.sep, "/")
                for folder, _, files in os.walk(self.path) for file in files}

    @rule()
    def syncs(self):
        self.chest._life._decide()  # what was on probation may enter memory, and push out others
        before = dict(self.chest.inmem)
        self.commits_with(Chest.sync)
        self.commit()
        assert self.chest.inmem.keys() == before.keys()
        assert all(self.chest.inmem[key] is value for key, value in before.items())

    @rule()
    def closes(self):
        self.commits_with(Chest.close)
        self.commit()

    @rule(data=st.data())
    def crashes(self, data):
        before, old = self.path, self.chest
        self.lives += 1
        shutil.copytree(before, os.path.join(self.base, str(self.lives)))
        self.open(data.draw(st.sampled_from(self.budgets)))
        self.agree(self.chest, self.committed)
        self.committed = {key: self.committed[key] for key in self.chest}  # from here on in the order that it has
        self.model = {key: thaw(value) for key, value in self.committed.items()}
        self.mine.clear()
        self.ordered = True
        self.leftovers = self.files() - {".keys", *self.chest._keys.values()}
        old.drop()

    @rule()
    def is_seen_by_others(self):
        with Chest(path=self.path, **self.chest_settings) as other:
            self.agree(other, self.committed)

    # What always holds.

    def agree(self, chest, model):
        assert len(chest) == len(model)
        assert list(chest) == list(model) if self.ordered else set(chest) == set(model)
        assert {key: frozen(value) for key, value in chest.items()} == {key: frozen(value) for key, value in model.items()}

    @invariant()
    def keys_agree(self):
        if self.chest is None:
            return
        assert len(self.chest) == len(self.model)
        assert list(self.chest) == list(self.model) if self.ordered else set(self.chest) == set(self.model)
        assert all((key in self.chest) == (key in self.model) for key in self.keys)
        self.chest._life.memory._check()
        assert self.chest.memory_usage >= 0
        assert (self.chest.memory_usage == 0) == (not self.chest.inmem)

    @rule()
    def values_agree(self):
        self.agree(self.chest, self.model)


class Refusing(Machine):
    values = st.one_of(values, st.builds(Refuses))
    refuses = True


class Text(Machine):
    keys = JSON_KEYS
    values = values
    chest_settings = dict(dump=json.dump, load=json.load, mode="t")


MACHINES = {
    "default": Machine,
    "refusing": Refusing,
    "json": Text,
}
for name, chosen in {
    "json in bytes": dict(dump=json.dump, load=json.load),
    "pickle": dict(dump=pickle.dump, load=pickle.load),
    "gzip": dict(open=gzip.open),
    "mapped": dict(mmap_mode="c"),
    "small values": dict(min_file_size=300),
    "small and mapped": dict(min_file_size=300, mmap_mode="c"),
    "durable": dict(durable=True),
    "writeback off": dict(writeback=False),
}.items():
    MACHINES[name] = type(name, (Text if "json" in name else Machine,), {"chest_settings": chosen})


def run(machine):
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(machine, settings=settings(
        max_examples=1000 if STRESS else 25, stateful_step_count=40, print_blob=True, report_multiple_bugs=False,
        phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink]))


@pytest.mark.parametrize("name", MACHINES)
def test_a_chest_and_a_dict_agree(name):
    run(MACHINES[name])


def test_they_agree_while_each_read_leaves_a_transaction_open(monkeypatch):
    monkeypatch.setattr(database, "BRISK", 1)
    monkeypatch.setattr(database, "MOMENT", float("inf"))
    run(MACHINES["small values"])
