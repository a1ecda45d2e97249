"""Every order in which the file-system steps of a few actors can happen, driving the real code step by step.

Each actor runs in a thread of its own and stops before every call that touches the directory under test; a scheduler
says who goes on.  One run follows one order.  The orders are visited depth first, each from a fresh start, and two that
differ only in steps that touch different files, or that only read, count as one: where two steps clashed, the other
order is visited as well, and nothing else (dynamic partial-order reduction of C. Flanagan and P. Godefroid, 2005, with
the sleep sets of P. Godefroid, 1996).

A lock that somebody else has disables the step that asks for it.  A kill is one more thing that can happen to an actor
where it stands: none of its calls has an effect any more, and its lock is released, as the kernel would do.
"""
from __future__ import annotations

import fcntl
import itertools
import os
import threading

from chest.storage import system

LOCK = "the lock"


class Killed(BaseException):
    """Ends an actor's thread; it passes every handler, and whatever these still try has no effect."""


class Step:
    """What an actor is about to do: the paths it reads and those it writes."""

    def __init__(self, what, reads=(), writes=()):
        self.what = what
        self.reads = frozenset(reads)
        self.writes = frozenset(writes)

    def clashes(self, other):
        """Could it matter which of the two comes first?"""
        return bool(self.writes & (other.reads | other.writes) or other.writes & self.reads)


class Actor:
    """A thread that runs ``program(actor)`` and waits before each of its steps."""

    def __init__(self, name, program, world):
        self.name = name
        self.world = world
        self.step = None  # what comes next; None when all is done
        self.error = None
        self.killed = False
        self.torn = False
        self._program = program
        self._go = threading.Semaphore(0)
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        self.world.actors_by_thread[threading.get_ident()] = self
        try:
            self.stop(Step("start"))
            self._program(self)
        except Killed:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.step = None
            self.world.actors_by_thread.pop(threading.get_ident(), None)
            self.world.stopped.release()

    def stop(self, step):
        if self.killed:
            raise Killed
        self.step = step
        self.world.stopped.release()
        self._go.acquire()
        if self.killed:
            raise Killed

    def proceed(self):
        """Take the step that comes next, up to the one after it."""
        self._go.release()
        self.world.stopped.acquire()

    def kill(self):
        self.killed = True
        if self.step is not None:
            self.proceed()
        if self.world.holder is self:
            self.world.holder = None


class World:
    """One run: the actors, who has the lock, and what happened."""

    def __init__(self, root):
        self.root = root
        self.actors = []
        self.actors_by_thread = {}
        self.stopped = threading.Semaphore(0)
        self.holder = None
        self.log = []
        self.fds = {}  # descriptors of ours, and their paths
        self.on_commit = lambda actor: None
        self.keys = os.path.join(root, ".keys")
        self._numbers = itertools.count(1)
        self._held = []

    def start(self, programs):
        for name, program in programs.items():
            self.actors.append(Actor(name, program, self))
            self.actors[-1].thread.start()
            self.stopped.acquire()

    def choices(self, kills):
        """What can happen next, by name: an actor goes on, or is killed there, or dies in the middle of a write."""
        found = {}
        for actor in self.actors:
            step = actor.step
            if step is None:
                continue
            if step.what != "lock" or self.holder is None:
                found[actor.name] = step
            if actor.name in kills and not any(a.killed for a in self.actors):
                found["kill " + actor.name] = Step("kill", writes=[LOCK] if self.holder is actor else [])
                if step.what == "write":
                    found["tear " + actor.name] = Step("tear", writes=[LOCK, *step.writes])
        return found

    def take(self, choice):
        what, _, name = choice.rpartition(" ")
        actor = next(a for a in self.actors if a.name == name)
        self.log.append((choice, actor.step.what, *sorted(actor.step.reads | actor.step.writes)))
        if what == "kill":
            actor.kill()
        else:
            actor.torn = what == "tear"
            actor.proceed()
            if actor.killed:
                self.holder = None

    def end(self):
        """Let nobody do anything any more."""
        for actor in self.actors:
            actor.kill()
        for actor in self.actors:
            actor.thread.join()
        while self._held:
            os.close(self._held.pop())

    # The patched calls.

    def me(self):
        return self.actors_by_thread.get(threading.get_ident())

    def full(self, path, folder=None):
        """The path that a call means, which may be relative to an open folder."""
        if isinstance(path, int):
            return self.fds.get(path)
        return path if folder is None else os.path.join(self.fds.get(folder, ""), path)

    def mine(self, path):
        """The path as a step names it, relative to the root; empty if it is no business of ours."""
        if not isinstance(path, (str, os.PathLike)) or not (os.fspath(path) + os.sep).startswith(self.root + os.sep):
            return ""
        path = os.path.relpath(os.fspath(path), self.root)
        if path.endswith(".new"):  # what a handle notes of its own files is read when it is gone
            return ""
        return path if path != "." else ""

    def _stop(self, what, reads=(), writes=()):
        """Announce a step on these paths; it also needs the folders above them to be there."""
        reads, writes = ([p for p in map(self.mine, paths) if p] for paths in (reads, writes))
        above = {p[:i] for p in reads + writes for i in range(len(p)) if p[i] == os.sep}
        if reads or writes:
            self.me().stop(Step(what, {*reads, *above}, writes))

    def _patched(self, real, what):
        def call(*args, **kwargs):
            if self.me() is None:
                return real(*args, **kwargs)
            return what(real, *args, **kwargs)
        return call

    def _reading(self, real, path, *args, dir_fd=None, **kwargs):
        self._stop("look", [self.full(path, dir_fd)])
        return real(path, *args, **kwargs, **_given(dir_fd))

    def _writing(self, real, path, *args, dir_fd=None, **kwargs):
        self._stop("change", writes=[self.full(path, dir_fd)])
        return real(path, *args, **kwargs, **_given(dir_fd))

    def _unlink(self, real, path, dir_fd=None):
        self._stop("remove", writes=[self.full(path, dir_fd)])
        return real(path, dir_fd=dir_fd)

    def _making(self, real, path, *args, dir_fd=None, **kwargs):
        full = self.full(path, dir_fd)
        self._stop("make", *(([], [full]) if full != self.root or not os.path.isdir(path) else ([full], [])))
        return real(path, *args, **kwargs, **_given(dir_fd))

    def _os_open(self, real, path, flags, *args, dir_fd=None, **kwargs):
        full = self.full(path, dir_fd)
        if flags & os.O_CREAT:
            self._stop("create", writes=[full])
        else:
            self._stop("open", [full])
        fd = real(path, flags, *args, dir_fd=dir_fd, **kwargs)
        self.fds[fd] = full
        if flags & os.O_CREAT:  # while it is open its inode is no other file's: that would be so in some runs only
            self._held.append(real(path, os.O_RDONLY, dir_fd=dir_fd))
        return fd

    def _write(self, real, fd, data):
        actor = self.me()
        self._stop("write", writes=[self.fds.get(fd)])
        if actor.torn:
            data = data if isinstance(data, bytes) else b"".join(data)
            os.pwrite(fd, data[: len(data) // 2], os.fstat(fd).st_size)  # not patched: this one does happen
            actor.killed = True
            raise Killed
        done = real(fd, data)
        if self.fds.get(fd) == self.keys:
            self.on_commit(actor)
        return done

    def _replace(self, real, source, target):
        self._stop("replace", writes=[source, target])
        done = real(source, target)
        if self.mine(target):
            self.on_commit(self.me())
        return done

    def _link(self, real, source, target, *, src_dir_fd=None, dst_dir_fd=None, **kwargs):
        self._stop("link", [self.full(source, src_dir_fd)], [self.full(target, dst_dir_fd)])
        return real(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, **kwargs)

    def _flock(self, real, fd, how):
        actor = self.me()
        if self.fds.get(fd) != self.root:  # of a pack or a journal, which are taken only if they are free
            self._stop("look", writes=[self.fds.get(fd)])
            return real(fd, how)
        if how & fcntl.LOCK_EX:
            actor.stop(Step("lock", writes=[LOCK]))
            real(fd, how)
            self.holder = actor
            return
        if self.holder is actor:
            try:
                actor.stop(Step("unlock", writes=[LOCK]))
            except Killed:
                os.close(fd)
                raise
            self.holder = None
        real(fd, how)

    def _close(self, real, fd):
        self.fds.pop(fd, None)
        return real(fd)

    def patch(self, monkeypatch):
        for name, what in dict(open=self._os_open, stat=self._reading, lstat=self._reading, fstat=self._reading,
                               write=self._write, writev=self._write, replace=self._replace, unlink=self._unlink,
                               utime=self._writing, ftruncate=self._writing, mkdir=self._making, rmdir=self._writing,
                               link=self._link, close=self._close).items():
            monkeypatch.setattr(os, name, self._patched(getattr(os, name), what))
        listdir = os.listdir  # in the order of the numbers of packs and journals, which are the same in each run
        monkeypatch.setattr(os, "listdir", lambda *folder: sorted(listdir(*folder)))
        monkeypatch.setattr(os, "urandom", lambda size: next(self._numbers).to_bytes(size, "big"))
        monkeypatch.setattr(system, "replace", os.replace)
        monkeypatch.setattr(system, "pread", self._patched(os.pread, self._reading))
        monkeypatch.setattr(fcntl, "flock", self._patched(fcntl.flock, self._flock))


def _given(folder):
    return {} if folder is None else {"dir_fd": folder}


class Node:
    """A point where several things could happen: which of them were tried, and which are worth trying."""

    def __init__(self, choices, asleep):
        self.choices = choices
        self.asleep = asleep
        self.wanted = []
        self.tried = {}
        self.chosen = None

    def want(self, *choices):
        """These are worth trying, as far as they can happen here; all is, if none of them can."""
        possible = [choice for choice in choices if choice in self.choices] or list(self.choices)
        self.wanted += [choice for choice in possible if choice not in self.wanted]

    def next(self):
        """Choose what was not tried yet; False if there is nothing."""
        if self.chosen is not None:
            self.tried[self.chosen] = self.choices[self.chosen]
        self.chosen = next((c for c in self.wanted if c not in self.asleep and c not in self.tried), None)
        if self.chosen in self.choices and " " not in self.chosen:
            dying = [choice for choice in self.choices if choice.endswith(" " + self.chosen)]
            self.wanted += [choice for choice in dying if choice not in self.wanted]
        return self.chosen is not None

    @property
    def step(self):
        return self.choices[self.chosen]

    @property
    def releases(self):
        """Does the lock come free here?  Then nobody could have asked for it with success before."""
        return self.step.what in ("unlock", "kill", "tear")

    @property
    def actor(self):
        return self.chosen.rpartition(" ")[2]

    def below(self):
        """What sleeps at the next node: all that was, or will have been, tried here and may as well come later."""
        return {choice: other for choice, other in {**self.asleep, **self.tried}.items()
                if choice.rpartition(" ")[2] != self.actor and not self.step.clashes(other)}


def note_races(path):
    """Want the last step of ``path`` to be tried before each step of the others that it could have come before."""
    last = path[-1]
    before = [n for n, node in enumerate(path[:-1]) if node.actor != last.actor]
    own = [n for n, node in enumerate(path[:-1]) if node.actor == last.actor]
    known = max((n for mine in own for n in before if n < mine and path[n].step.clashes(path[mine].step)), default=-1)
    for n in reversed(before):
        if n > known and path[n].step.clashes(last.step) and not (last.step.what == "lock" and path[n].releases):
            path[n].want(last.actor)
            return


def explore(begin, kills=(), limit=None):
    """Visit all orders of two actors.  ``begin()`` gives a started `World`, and what to call when both are done.

    Returns how many orders were followed to their end, and whether there are no others.  With ``limit`` no more than so
    many runs are made.
    """
    path = []
    complete = runs = 0
    while limit is None or runs < limit:
        runs += 1
        world, check = begin()
        try:
            for node in path:
                step = world.choices(kills).get(node.chosen)
                assert step is not None and step.what == node.step.what, "a run is not repeated as it was"
                world.take(node.chosen)
            if path:
                note_races(path)
            while any(actor.step for actor in world.actors):
                choices = world.choices(kills)
                assert choices, "nobody can go on"
                node = Node(choices, path[-1].below() if path else {})
                node.want(next((choice for choice in choices if choice not in node.asleep), ""))
                if not node.next():
                    break  # all that could happen here was, or will be, seen in another order
                path.append(node)
                world.take(node.chosen)
                note_races(path)
            else:
                complete += 1
                check()
        except AssertionError as error:
            raise AssertionError(f"{error}\nafter:\n" + "\n".join(map(str, world.log))) from error
        finally:
            world.end()
        while path and not path[-1].next():
            path.pop()
        if not path:
            break
    return complete, not path
