"""A chest beside a dict, through whatever one can do with it: they must agree, also after a crash or a failing disk.

The model is two dicts: what the chest holds, and what the last commit left.  A crash is a copy of the directory as it
is at that moment, opened by another handle: it must hold what the last commit left, in the same order; in the middle of a
commit that, or the whole one.  Ctrl-C comes at system calls here, and at any line in `test_interrupted`.
"""
from __future__ import annotations

import gc
import gzip
import json
import os
import pickle
import shutil
import sys
import tempfile
from contextlib import contextmanager

import faults as injection
import hypothesis.strategies as st
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from invariants import check

from chest import Chest
from chest.errors import ChestError, DumpError

try:
    import numpy
except ImportError:
    numpy = None

STRESS = bool(os.environ.get("CHEST_STRESS"))
COUNTED = hasattr(sys, "getrefcount") and getattr(sys, "_is_gil_enabled", lambda: True)()  # lists that left are found again

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


def is_array(value):
    return numpy is not None and isinstance(value, numpy.ndarray)


def frozen(value):
    """Something that tells values apart, types included, and never changes."""
    if is_array(value):
        return "array", value.shape, value.tobytes()
    return repr(value) if not isinstance(value, Refuses) else id(value)


def frozen_all(pairs):
    return {key: frozen(value) for key, value in pairs.items()}


def thaw(value):
    """A copy that shares nothing."""
    return value if isinstance(value, Refuses) else pickle.loads(pickle.dumps(value))


def alter(value, number):
    """Change ``value`` in place; `False` if that cannot be."""
    if is_array(value):
        value[-1] = number
    elif isinstance(value, list):
        value.append(number)
    elif isinstance(value, dict):
        value.setdefault("x", []).append(number)
    else:
        return False
    return True


def link_or_copy(source, target):
    """A crash: files keep their inodes, which journals tell of; what the old handle may yet write to is copied."""
    (shutil.copy2 if ".keys" in source or ".packs" in source else os.link)(source, target)


class Machine(RuleBasedStateMachine):
    """One chest with one path; ``settings`` are those of the subclass."""

    keys: list = KEYS
    values = st.one_of(values, arrays)
    chest_settings: dict = {}
    budgets = [0, 200, 1000, 100_000, 1e9]
    refuses = False
    faults: injection.Faults

    def __init__(self):
        super().__init__()
        self.base = tempfile.mkdtemp(prefix="chest-model-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        self.lives = 0
        self.model = {}
        self.committed = {}
        self.ordered = True
        self.touched = set()  # the keys that were set, deleted or changed since the last commit
        self.mine = {}  # values, or views of them, that we hold, and that are the chest's as long as nobody sets the key
        self.unseen = set()  # of these, those that we changed since the chest could last see it
        self.faulty = False  # a call failed, or a crash came as a file was made: files that no index names may stay
        self.chest = self.peer = None  # the peer is another handle that stays open: it has a pack of its own, too

    @initialize(data=st.data())
    def start(self, data):
        few = st.lists(st.sampled_from(type(self).keys), min_size=1, max_size=4, unique_by=repr)
        self.keys = data.draw(few)  # so that much happens to each
        self.open(data)

    def open(self, data):
        self.lets_peer_go()
        self.path = os.path.join(self.base, str(self.lives))
        self.chest = Chest(path=self.path, available_memory=data.draw(st.sampled_from(self.budgets)), **self.chest_settings)

    def another(self, reads_only=False):
        there = os.path.exists(os.path.join(self.path, ".keys"))
        return Chest(path=self.path, flag="r" if reads_only and there else "c", **self.chest_settings)

    @contextmanager
    def other(self, stays):
        """A handle that was opened for this, or one that is open for long."""
        if stays:
            self.peer = self.another() if self.peer is None else self.peer
            yield self.peer
            self.peer.sync()
        else:
            with self.another() as other:
                yield other

    def lets_peer_go(self):
        peer, self.peer = self.peer, None
        if peer is not None:
            peer.close()

    def teardown(self):
        if self.chest is not None:
            self.drops()
        shutil.rmtree(self.base)

    def draw(self, data, known=False):
        keys = [key for key in self.keys if not known or key in self.model]
        return data.draw(st.sampled_from(keys or self.keys))

    def in_memory(self):
        return self.chest._engine.state.cache.values  # not `inmem`, after which each commit looks at all

    def forget(self, key):
        """The value of ``key`` is another one now, or none."""
        self.touched.add(key)
        self.mine.pop(key, None)
        self.unseen.discard(key)

    # What a dict does.

    @rule(data=st.data(), held=st.booleans(), view=st.booleans())
    def sets(self, data, held, view):
        key, value = self.draw(data), data.draw(self.values)
        given = thaw(value)
        self.chest[key] = given[:] if view and is_array(value) else given
        self.model[key] = value
        self.forget(key)
        self.hold(key, given, held)
        self.within_the_budget()

    @rule(data=st.data())
    def reads(self, data):
        key = self.draw(data, known=True)
        if key in self.model:
            assert frozen(self.chest[key]) == frozen(self.model[key])
            assert frozen(self.chest.get(key)) == frozen(self.model[key])
            self.unseen.discard(key)
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
            self.forget(key)
        else:
            with pytest.raises(KeyError):
                del self.chest[key]

    @rule(data=st.data())
    def pops(self, data):
        key = self.draw(data)
        assert frozen(self.chest.pop(key, "default")) == frozen(self.model.pop(key, "default"))
        self.forget(key)

    @rule()
    def pops_the_last(self):
        if self.model and self.ordered:
            (key, value), (expected, model) = self.chest.popitem(), self.model.popitem()
            assert (key, frozen(value)) == (expected, frozen(model))
            self.forget(key)
        elif not self.model:
            with pytest.raises(KeyError):
                self.chest.popitem()

    @rule(data=st.data())
    def sets_default(self, data):
        key, value = self.draw(data), data.draw(self.values)
        if key not in self.model:
            self.forget(key)
        assert frozen(self.chest.setdefault(key, thaw(value))) == frozen(self.model.setdefault(key, value))

    @rule(data=st.data(), overwrite=st.booleans())
    def updates(self, data, overwrite):
        other = data.draw(st.dictionaries(st.sampled_from(self.keys), self.values, max_size=6))
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
                self.forget(key)

    @rule()
    def clears(self):
        self.chest.clear()
        for key in self.model:
            self.forget(key)
        self.model.clear()

    @precondition(lambda self: not self.refuses)
    @rule()
    def copies(self):
        with self.chest.copy() as copy:
            self.commit()  # a copy shares files, so the original is synced first
            self.agree(copy, self.model)

    # In place.

    writes_back = precondition(lambda self: self.chest_settings.get("writeback", True))

    @writes_back
    @rule(data=st.data(), number=st.integers(0, 9))
    def changes_in_place(self, data, number):
        """What one was given last may be changed, also if it is larger than the budget."""
        key = self.draw(data, known=True)
        if key in self.model and alter(self.chest[key], number):
            alter(self.model[key], number)
            self.touched.add(key)
            self.unseen.discard(key)

    @writes_back
    @rule(number=st.integers(0, 9))
    def changes_in_a_loop(self, number):
        for key, value in self.chest.items():
            if alter(value, number):
                alter(self.model[key], number)
                self.touched.add(key)
        self.unseen.clear()

    @writes_back
    @rule(data=st.data(), view=st.booleans())
    def holds(self, data, view):
        key = self.draw(data, known=True)
        if key in self.model:
            value = self.chest[key]
            self.unseen.discard(key)
            self.hold(key, value[:] if view and is_array(value) else value, True)

    def hold(self, key, value, held):
        if held and self.chest_settings.get("writeback", True) and (is_array(value) or (
                COUNTED and isinstance(value, (list, dict)))):
            self.mine[key] = value

    @precondition(lambda self: self.mine)
    @rule(data=st.data(), number=st.integers(100, 199))
    def changes_what_it_holds(self, data, number):
        key = data.draw(st.sampled_from(list(self.mine)))
        alter(self.mine[key], number)
        alter(self.model[key], number)
        self.touched.add(key)
        self.unseen.add(key)

    @precondition(lambda self: self.mine)
    @rule(data=st.data())
    def gets_what_it_holds(self, data):
        key = data.draw(st.sampled_from(list(self.mine)))
        value = self.chest[key]
        assert value is self.mine[key] or (is_array(value) and numpy.shares_memory(value, self.mine[key]))
        self.unseen.discard(key)

    @precondition(lambda self: self.mine)
    @rule(data=st.data())
    def lets_go(self, data):
        key = data.draw(st.sampled_from(list(self.mine)))
        if key in self.unseen:  # so that the chest can see the change
            assert frozen(self.chest[key]) == frozen(self.model[key])
            self.unseen.discard(key)
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
            assert key in self.in_memory()
        else:
            self.chest.move_to_disk(key)
            assert key not in self.in_memory()

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
        assert self.refuses or self.chest.memory_usage <= self.chest.available_memory

    def within_the_budget(self):
        """Not counting a value that is larger than the whole budget, and that was given last."""
        budget = self.chest.available_memory
        large = max((size for size in self.chest._engine.state.cache.sizes.values() if size > budget), default=0)
        assert self.refuses or self.chest.memory_usage - large <= budget

    # Commits, crashes.

    def cannot_be_saved(self):
        return any(isinstance(value, Refuses) for value in self.model.values())

    def commits_with(self, method):
        if self.cannot_be_saved():
            with pytest.raises(DumpError, match="Refuses|no"):
                method(self.chest)
        else:
            method(self.chest)
        self.commit()

    def commit(self):
        dumpable = {key: not isinstance(value, Refuses) for key, value in self.model.items()}
        self.committed = {key: thaw(value) if dumpable[key] else self.committed[key]
                          for key, value in self.model.items() if dumpable[key] or key in self.committed}
        self.ordered = self.ordered and all(dumpable.values())
        self.touched = {key for key in self.touched if not dumpable.get(key, True)}
        self.unseen.clear()

    @rule()
    def flushes(self):
        self.commits_with(Chest.flush)
        if not self.cannot_be_saved():
            assert self.chest.memory_usage == 0
            assert self.faulty or self.peer is not None or self.files() == {".keys"} | self.named()

    def named(self):
        """The files that the index names."""
        file = self.chest._engine.state.storage.file
        return {os.path.relpath(file(ref), self.path).replace(os.sep, "/")
                for ref in self.chest._engine.state.index.refs.values() if ref is not None}

    def files(self):
        """All files, and folders that are empty."""
        return {os.path.relpath(os.path.join(folder, name), self.path).replace(os.sep, "/") for folder, folders, names
                in os.walk(self.path) for name in names or ([] if folders or folder == self.path else [""])}

    @rule()
    def syncs(self):
        before = dict(self.in_memory())
        self.commits_with(Chest.sync)
        after = self.in_memory()
        assert after.keys() == before.keys() or self.chest.available_memory <= 1000  # what was written may take more
        assert all(before[key] is value for key, value in after.items())

    @rule()
    def closes(self):
        self.commits_with(Chest.close)

    @rule()
    def rolls_back(self):
        self.chest.rollback()
        self.begins_anew()

    def begins_anew(self):
        """What the last commit left is all there is, in the order that it has there."""
        self.agree(self.chest, self.committed)
        self.committed = {key: self.committed[key] for key in self.chest}
        self.model = {key: thaw(value) for key, value in self.committed.items()}
        self.ordered = True
        for held in (self.mine, self.touched, self.unseen):
            held.clear()

    @rule(data=st.data(), fails=st.booleans())
    def transacts(self, data, fails):
        """All of it is committed, or nothing; what was pending before is committed at its start."""
        if self.cannot_be_saved():
            with pytest.raises(DumpError), self.chest.transaction():
                raise AssertionError("it began all the same")
            self.commit()
            return
        changes = data.draw(st.lists(st.tuples(st.sampled_from(self.keys), st.one_of(st.just(...), self.values)), max_size=4))
        refuses = False
        try:
            with self.chest.transaction():
                self.commit()
                for key, value in changes:
                    if value is ...:
                        self.chest.pop(key, None)
                        self.model.pop(key, None)
                    else:
                        self.chest[key] = thaw(value)
                        self.model[key] = value
                    self.forget(key)
                with pytest.raises(ChestError):
                    self.chest.sync()
                refuses = self.cannot_be_saved()
                if fails:
                    raise ZeroDivisionError
        except (ZeroDivisionError, DumpError) as error:
            assert fails or (refuses and isinstance(error, DumpError))
            self.begins_anew()
        else:
            assert not (fails or refuses)
            self.commit()

    @rule()
    def drops(self):
        self.lets_peer_go()
        self.chest.drop()
        assert self.faulty or not os.path.exists(self.path)
        self.committed = {}
        self.begins_anew()

    @precondition(lambda self: os.path.isdir(self.path))
    @rule(data=st.data())
    def crashes(self, data):
        old = self.chest
        self.copy()
        self.open(data)
        self.begins_anew()
        old.drop()

    def copy(self):
        self.lives += 1
        shutil.copytree(self.path, os.path.join(self.base, str(self.lives)), copy_function=link_or_copy)

    @precondition(lambda self: os.path.isdir(self.path) and not self.refuses)
    @rule(data=st.data(), n=st.one_of(st.integers(1, 6), st.integers(7, 40)), how=st.sampled_from(["sync", "flush", "close"]))
    def crashes_within_a_commit(self, data, n, how):
        old, was = self.chest, self.lives
        with self.failing(n, self.copy):
            getattr(old, how)()
        if self.lives == was:  # it took fewer calls
            self.commit()
            return
        self.open(data)
        self.faulty = True
        found, before = frozen_all(self.chest), frozen_all(self.committed)
        assert found in (frozen_all(self.model), before)
        if found != before:
            self.commit()
        self.begins_anew()
        old.drop()

    @rule(reads_only=st.booleans())
    def is_seen_by_others(self, reads_only):
        if self.peer is not None:
            self.peer.rollback()
            self.agree(self.peer, self.committed)
        before = self.files()
        with self.another(reads_only) as other:
            self.agree(other, self.committed)
            if reads_only and ".keys" in before:
                with pytest.raises(ChestError):
                    other["a"] = 1
        assert self.files() == before

    @rule(data=st.data(), stays=st.booleans())
    def others_commit(self, data, stays):
        """Theirs is the value of a key that we did not change."""
        keys = [key for key in self.keys if key not in self.touched and (key in self.model or not self.touched)]
        if not keys or self.cannot_be_saved():
            return
        key = data.draw(st.sampled_from(keys))
        value = data.draw(st.one_of(st.just(...), self.values))
        if isinstance(value, Refuses):
            return
        with self.other(stays) as other:
            if value is not ...:
                other[key] = thaw(value)
            elif key in other:
                del other[key]
        for model in (self.model, self.committed):
            if value is ...:
                model.pop(key, None)
            else:
                model[key] = thaw(value)
        self.mine.pop(key, None)
        self.unseen.discard(key)

    # System calls that fail.

    @precondition(lambda self: not self.refuses)
    @rule(data=st.data(), n=st.one_of(st.integers(1, 6), st.integers(7, 30)),
          error=st.sampled_from([*injection.ERRORS, injection.SHORT, *[KeyboardInterrupt] * 4]),
          operation=st.sampled_from(["sync", "flush", "close", "write_keys", "set", "get", "pop", "move_to_disk", "prefetch", "items",
                                     "update", "rollback", "transaction", "open"]))
    def a_call_fails(self, data, n, error, operation):
        """The operation is done, or it is not; a commit is whole, or nothing."""
        key = self.draw(data, known=True)
        new = {key: data.draw(self.values)}
        if operation == "update":
            new.update(data.draw(st.dictionaries(st.sampled_from(self.keys), self.values, max_size=3)))
        with self.failing(n, error) as faults:
            try:
                self.operate(operation, key, new)
                raised = False
            except (OSError, KeyboardInterrupt):
                raised = True
            except KeyError:
                assert key not in self.model
                raised = True
        self.faulty = self.faulty or bool(faults.what)
        self.settle(operation, key, new, raised)

    @contextmanager
    def failing(self, n, error):
        """The faults are those of what the block does, not of how handles of before end."""
        self.chest._engine.alive()
        gc.disable()
        try:
            with self.faults(n, error) as faults:
                yield faults
        finally:
            gc.enable()
            self.opened = None

    def operate(self, operation, key, new):
        c = self.chest
        if operation in ("set", "update"):
            c.update({key: thaw(value) for key, value in new.items()})
        elif operation == "get":
            assert frozen(c[key]) == frozen(self.model[key])
        elif operation in ("pop", "move_to_disk", "prefetch"):
            getattr(c, operation)(key if operation != "prefetch" else [key])
        elif operation == "items":
            assert frozen_all(c) == frozen_all(self.model)
        elif operation == "transaction":
            with c.transaction():
                c[key] = thaw(new[key])
        elif operation == "open":
            with self.another(True) as self.opened:
                self.agree(self.opened, self.committed)
        else:
            getattr(c, operation)()

    def settle(self, operation, key, new, raised):
        """Find out which it was."""
        before = dict(self.model)
        if operation == "rollback" and (not raised or frozen_all(self.chest) != frozen_all(before)):
            return self.begins_anew()
        if operation == "pop" and key in before and (not raised or key not in self.chest):
            del self.model[key]
            self.forget(key)
        if operation in ("set", "update"):
            for each, value in new.items():
                if not raised or (each in self.chest and frozen(self.chest[each]) == frozen(value)):
                    self.model[each] = value
                    self.forget(each)
        if operation == "transaction":
            return self.settle_transaction(key, new)
        if operation in ("sync", "flush", "close") and (not raised or self.on_disk(self.model)):
            self.commit()
        if operation == "write_keys":  # all that happens to be on disk, which changes in place may be in or not
            with self.another(True) as other:
                assert dict(other).keys() <= {*self.model, *self.committed}
            self.ordered = False  # what comes with the next commit stands behind what came with this one
            self.chest.sync()
            self.commit()
        self.agree(self.chest, self.model)
        if raised and operation in ("sync", "flush"):
            getattr(self.chest, operation)()
            self.commit()

    def on_disk(self, model):
        with self.another(True) as other:
            found = frozen_all(other)
        assert found in (frozen_all(model), frozen_all(self.committed))
        return found == frozen_all(model)

    def settle_transaction(self, key, new):
        after = {**self.model, **new}
        if frozen_all(self.chest) == frozen_all(after) and self.on_disk(after):
            self.model = after
            self.commit()
            self.forget(key)
            self.touched.clear()
        elif self.on_disk(self.model):  # it began
            self.commit()
            self.begins_anew()
        else:
            self.agree(self.chest, self.model)

    # What always holds.

    def agree(self, chest, model):
        assert len(chest) == len(model)
        assert list(chest) == list(model) if self.ordered else set(chest) == set(model)
        assert frozen_all(chest) == frozen_all(model)

    @invariant()
    def keys_agree(self):
        if self.chest is None:
            return
        assert list(self.chest) == list(self.model) if self.ordered else set(self.chest) == set(self.model)
        assert all((key in self.chest) == (key in self.model) for key in self.keys)
        check(self.chest)
        assert (self.chest.memory_usage == 0) == (not self.in_memory())

    @rule()
    def values_agree(self):
        self.agree(self.chest, self.model)
        self.unseen.clear()


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
    "copied": dict(mmap_mode=None),
    "packed": dict(min_file_size=300),
    "packed and mapped": dict(min_file_size=300, mmap_mode="c"),
    "all packed": dict(min_file_size=1 << 30),
    "durable": dict(durable=True, min_file_size=300),
    "writeback off": dict(writeback=False),
}.items():
    MACHINES[name] = type(name, (Text if "json" in name else Machine,), {"chest_settings": chosen})


@pytest.mark.parametrize("name", MACHINES)
def test_a_chest_and_a_dict_agree(name, monkeypatch):
    from hypothesis.stateful import run_state_machine_as_test

    machine = MACHINES[name]
    machine.faults = injection.install(monkeypatch)
    run_state_machine_as_test(machine, settings=settings(
        max_examples=1000 if STRESS else 25, stateful_step_count=40, print_blob=True, report_multiple_bugs=False,
        phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink]))
