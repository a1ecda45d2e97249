"""The protocol between processes, in every order of its file-system steps: two handles, a few operations each.

What must hold in each order: a completed commit's keys are there, with their values, until a later commit takes them
away; a value that is loaded is one that was committed at some moment while it was asked for; `KeyError` says that the
key was not there at such a moment; nothing that a handle has in memory outlives a look at the index that knows better;
and no file is left that nothing names, unless somebody was killed.
"""
from __future__ import annotations

import itertools
import os
import shutil

import pytest
from interleavings import World, explore

import chest
from chest import Chest
from chest.locks import Gate

fcntl = pytest.importorskip("fcntl", reason="the steps are those of POSIX")

THOROUGH = bool(os.environ.get("CHEST_STRESS"))
LIMIT = None if THOROUGH else 1500  # runs of one scenario; those that have more are cut in the short test

GONE = object()


class Handle:
    """A chest that believes to be alone in its process, and what it should be thought to know."""

    def __init__(self, path, play, **settings):
        self.chest = Chest(path=path, **settings)
        self.chest._life.index._keys.gate = Gate(path)
        self.play = play
        self.pending = {}

    def set(self, key, value):
        self.chest[key] = value
        self.pending[key] = value

    def delete(self, key):
        del self.chest[key]
        self.pending[key] = GONE

    def sync(self):
        self.chest.sync()

    def flush(self):
        self.chest.flush()

    def get(self, key):
        """Load a value, or find it in memory; it must be right at some moment meanwhile."""
        at_hand = key in self.chest.inmem
        before = len(self.play.versions) - 1
        try:
            found = self.chest[key]
        except KeyError:
            found = GONE
        if key in self.pending:
            assert found == self.pending[key], (key, found, self.pending[key])
        elif not at_hand:
            right = [version.get(key, GONE) for version in self.play.versions[before:]]
            assert found in right, (key, found, right)

    def look(self):
        len(self.chest)

    def update(self, other):
        self.chest.update(other)

    def leave(self):
        """As a process does that is gone: saves nothing, holds nothing."""
        self.chest._owner = 0
        self.chest._life.index.close()


class Play:
    """One run of a scenario: two handles, ``a`` and ``b``, on one directory."""

    def __init__(self, path, start, programs, settings, seen):
        self.path = path
        self.settings = settings
        with Chest(start, path=path, **settings) as first:
            first.flush()
        self.versions = [dict(start)]
        self.handles = {name: Handle(path, self, **settings) for name in programs}
        for name in seen:
            for key in start:
                self.handles[name].chest[key]  # in memory, and not changed
        self.world = World(path)
        self.world.on_commit = self.committed
        self.killed = False

    def committed(self, actor):
        handle = self.handles[actor.name]
        version = {**self.versions[-1], **handle.pending}
        self.versions.append({key: value for key, value in version.items() if value is not GONE})
        handle.pending = {}

    def check(self):
        for actor in self.world.actors:
            if actor.error is not None:
                raise AssertionError(f"{actor.name}: {actor.error!r}") from actor.error
        alive = [self.handles[actor.name] for actor in self.world.actors if not actor.killed]
        now = self.versions[-1]
        self.reads(self.fresh(), now)
        for handle in alive:
            handle.chest._life.memory._check()
            handle.look()
            self.reads(handle.chest, {**now, **handle.pending})
        for handle in alive:
            handle.chest.sync()
            now = {**now, **handle.pending}
        self.reads(self.fresh(), {key: value for key, value in now.items() if value is not GONE})
        if len(alive) == len(self.handles):
            assert self.files() == sorted(filter(None, self.fresh()._keys.values())), "files left"

    def fresh(self):
        reader = Chest(path=self.path, **self.settings)
        reader._owner = 0
        return reader

    def reads(self, reader, expected):
        expected = {key: value for key, value in expected.items() if value is not GONE}
        found = {key: reader.get(key, "its file is gone") for key in reader}
        assert found == expected, (found, expected)

    def files(self):
        found = [os.path.relpath(os.path.join(folder, name), self.path)
                 for folder, _, names in os.walk(self.path) for name in names]
        assert all(os.listdir(folder) for folder, _, _ in os.walk(self.path)), "an empty folder is left"
        return sorted(set(found) - {".keys", ".keys~"})


@pytest.fixture
def orders(tmp_path):
    """Visit all orders of the two programs, each a function of a `Handle`."""
    runs = itertools.count()
    play = None

    def begin(programs, start, settings, seen):
        nonlocal play
        finish()
        play = Play(str(tmp_path / f"run{next(runs)}"), start, programs, settings, seen)
        play.world.patch(patches)
        play.world.start({name: (lambda actor, name=name: programs[name](play.handles[name])) for name in programs})
        return play.world, play.check

    def finish():
        patches.undo()
        if play is not None:
            for handle in play.handles.values():
                handle.leave()
            shutil.rmtree(play.path, ignore_errors=True)

    def visit(a, b, *, start=None, kills=(), seen=(), **settings):
        return explore(lambda: begin({"a": a, "b": b}, start or {}, settings, seen), kills, LIMIT)

    with pytest.MonkeyPatch.context() as patches:
        yield visit
        finish()


def script(*calls):
    """A program: ``script("set x 1", "sync")``."""
    def program(handle):
        for call in calls:
            name, *arguments = call.split()
            getattr(handle, name)(*arguments)
    return program


def same_name(key):
    return "same"


SC = dict(
 two_keys=(script("set x 1", "sync"), script("set y 2", "sync"), dict()),
 one_key=(script("set x 1", "sync","set x 2", "sync"), script("set x 3", "sync"), dict(start={"x":"0"})),
 seen=(script("set x 1", "sync","set x 2", "flush"), script("set y 3", "sync","get x"), dict(start={"x":"0","z":"9"},seen="b")),
 delread=(script("delete x", "sync"), script("get x","get x"), dict(start={"x":"0"})),
 aba=(script("set x 1", "flush","set x 2","flush"), script("get x", "look", "get x"), dict(start={"x":"0"})),
 aba2=(script("set x 1", "flush","set x 2","flush"), script("get x", "set y 1", "sync", "get x"), dict(start={"x":"0"})),
 reuse=(script("delete x", "sync","set y 1","sync", "set x 2", "sync"), script("get x", "get y"), dict(start={"x":"0"},key_to_filename=same_name)),
 reuse2=(script("delete x", "sync","set y 1","sync"), script("set z 5","get x", "sync", "get x"), dict(start={"x":"0"},key_to_filename=same_name)),
 spill=(script("set x 1", "set x 2","sync","set y 3", "sync"), script("set x 1", "set y 5", "sync"), dict(start={"x":"0"},key_to_filename=same_name,available_memory=0)),
)
@pytest.mark.parametrize("name", SC)
@pytest.mark.parametrize("kills", ["", "a", "b"])
def test_x(orders,name,kills):
    import time
    t=time.time()
    a,b,k=SC[name]
    n = orders(a,b,kills=kills,**k)
    print(name,kills,n, time.time()-t)
