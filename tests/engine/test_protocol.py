"""The protocol between processes, in every order of its file-system steps: two handles, a few operations each.

What must hold in each order: a completed commit's keys are there, with their values, until a later commit takes them
away; a value that is loaded is one that was committed at some moment while it was asked for; `KeyError` says that the
key was not there at such a moment; nothing that a handle has in memory outlives a look at the index that knows better;
and no file is left that nothing names, unless somebody was killed.
"""
from __future__ import annotations

import contextlib
import gc
import itertools
import os
import shutil

import pytest
from interleavings import World, explore
from invariants import check, files

from chest import Chest
from chest.storage import keysfile
from chest.storage.descriptors import close_idle
from chest.storage.locks import DirectoryLock

fcntl = pytest.importorskip("fcntl", reason="the steps are those of POSIX")

THOROUGH = bool(os.environ.get("CHEST_STRESS"))
LIMIT = None if THOROUGH else 20  # runs of a scenario with more orders than the short test has time for
DEATHS = None if THOROUGH else 40  # and of one in which somebody may be killed at each step

GONE = object()


class Handle:
    """A chest that believes to be alone in its process, and what it should be thought to know."""

    def __init__(self, path, play, **settings):
        with pytest.MonkeyPatch.context() as patches:
            patches.setattr(keysfile, "directory_lock", DirectoryLock)
            self.chest = Chest(path=path, **settings)
        self.play = play
        self.pending = {}

    def set(self, key, value):
        self.chest[key] = value
        self.pending[key] = value

    def delete(self, key):
        del self.chest[key]
        self.pending[key] = GONE

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

    def link(self):
        """Another chest takes everything over, by hard links."""
        before = len(self.play.versions) - 1
        copy = Chest(path=self.play.path + ".copy", **self.play.settings)
        copy._engine.owner = 0
        copy.update(self.chest)
        for key, found in copy.items():
            right = [{**version, **self.pending}.get(key, GONE) for version in self.play.versions[before:]]
            assert found in right, (key, found, right)

    def leave(self):
        """As a process does that is gone: saves nothing, holds nothing."""
        self.chest._engine.owner = 0
        self.chest.close()


class Play:
    """One run of a scenario: two handles, ``a`` and ``b``, on one directory."""

    def __init__(self, path, start, programs, settings, seen):
        self.path = path
        self.settings = settings
        close_idle()  # lest it happens in the middle of a run
        with Chest(start, path=path, **settings) as first:
            first.flush()
        self.versions = [dict(start)]
        self.handles = {name: Handle(path, self, **settings) for name in programs}
        for name in seen:
            for key in start:
                self.handles[name].chest[key]  # in memory, and not changed
        self.world = World(path)
        self.world.on_commit = self.committed
        for fd in map(int, os.listdir("/proc/self/fd")):
            with contextlib.suppress(OSError):
                self.world.fds[fd] = os.readlink(f"/proc/self/fd/{fd}")

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
            check(handle.chest)
            handle.look()
            self.reads(handle.chest, {**now, **handle.pending})
        for handle in alive:
            handle.chest.sync()
            now = {**now, **handle.pending}
        self.reads(self.fresh(), {key: value for key, value in now.items() if value is not GONE})
        if len(alive) == len(self.handles):
            assert self.files() == sorted(self.fresh()._keys.values()), "files left"

    def fresh(self):
        reader = Chest(path=self.path, **self.settings)
        reader._engine.owner = 0
        return reader

    def reads(self, reader, expected):
        expected = {key: value for key, value in expected.items() if value is not GONE}
        found = {key: reader.get(key, "its file is gone") for key in reader}
        assert found == expected, (found, expected)

    def files(self):
        folders = [os.path.join(folder, name) for folder, names, _ in os.walk(self.path) for name in names]
        assert all(map(os.listdir, folders)), "an empty folder is left"
        # But for what a handle that is open writes of its own files.
        return [name for name in files(self.path) if not name.endswith(".new") and name not in (".keys", ".keys~")]


@pytest.fixture
def orders(tmp_path):
    """Visit all orders of two programs, each a list of what a `Handle` does; returns how many there are."""
    runs = itertools.count()
    play = None

    def begin(programs, start, seen, settings):
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
            shutil.rmtree(play.path + ".copy", ignore_errors=True)

    def visit(a, b, start, *, kills, few, seen="", **settings):
        programs = {"a": script(a), "b": script(b)}
        gc.collect()  # an unsaved chest of an earlier test would be saved in an actor's thread, by steps of its own
        count, complete = explore(lambda: begin(programs, start, seen, settings), kills,
                                  LIMIT if not few else DEATHS if kills else None)
        assert complete or not ((few and not kills) or THOROUGH)
        return count

    with pytest.MonkeyPatch.context() as patches:
        yield visit
        finish()


def script(calls):
    """A program: ``"set x 1, sync"``, of what a `Handle` does or its chest.  A key with a slash is a tuple."""
    def program(handle):
        for call in calls.split(", "):
            name, *arguments = call.split()
            if arguments and "/" in arguments[0]:
                arguments[0] = tuple(arguments[0].split("/"))
            getattr(handle if hasattr(handle, name) else handle.chest, name)(*arguments)
    return program


def same_name(key):
    return "same"


SAME = dict(key_to_filename=same_name)  # all keys want one file name: each takes over what another leaves

# What happens side by side, and what else there is to it.  Those with few orders are visited in all of them always.
FEW = {
    "different keys": ("set x 1, sync", "set y 2, sync"),
    "different keys, replaced": ("set x 1, flush", "set y 2, flush", {"x": "0"}),
    "one key": ("set x 1, sync", "set x 3, sync", {"x": "0"}),
    "a value that was only read": ("set x 1, sync", "set y 3, sync, get x", {"x": "0", "z": "9"}, dict(seen="b")),
    "delete and read": ("delete x, sync", "get x, get x", {"x": "0"}),
    "delete and set": ("delete x, sync", "set x 1, sync", {"x": "0"}),
    "the last file of a folder": ("delete f/x, sync", "set f/y 1, sync", {("f", "x"): "0"}),
}
MANY = {
    "one key, replaced": ("set x 1, flush", "set x 3, flush", {"x": "0"}),
    "one key, again and again": ("set x 1, sync, set x 2, sync", "set x 3, sync, set x 4, flush", {"x": "0"}),
    "a name that comes back": ("set x 1, flush, set x 2, flush", "get x, look, get x", {"x": "0"}),
    "a name that comes back, seen": ("set x 1, flush, set x 2, flush", "look, get x, sync", {"x": "0"}, dict(seen="b")),
    "a name that comes back, committed": ("set x 1, flush, set x 2, flush", "get x, set y 1, sync, get x", {"x": "0"}),
    "a name that another key takes": ("delete x, sync, set y 1, sync, set x 2, sync", "get x, get y", {"x": "0"}, SAME),
    "a name that both want": ("delete x, sync, set y 1, sync", "set z 5, get x, sync, get x", {"x": "0"}, SAME),
    "spilled before the commit": ("set x 1, set x 2, sync, set y 3, sync", "set x 1, set y 5, sync", {"x": "0"},
                                  dict(SAME, available_memory=0)),
    "links": ("set x 1, sync, delete y, set x 2, flush", "link", {"x": "0", "y": "9"}),
    "links to names that change hands": ("delete x, sync, set y 1, flush", "link", {"x": "0"}, SAME),
}


@pytest.mark.parametrize("name", {**FEW, **MANY})
@pytest.mark.parametrize("kills", ["", "a", "b"], ids=["nobody dies", "a may die", "b may die"])
def test_in_every_order(orders, name, kills):
    a, b, start, settings = (*{**FEW, **MANY}[name], {}, {})[:4]
    count = orders(a, b, start, kills=kills, few=name in FEW, **settings)
    print(f"\n{name}, killed: {kills or 'nobody'}: {count} orders")
    assert count >= (5 if name in MANY else 10 if kills else 2)
