"""What comes from outside: a fresh interpreter that runs a script, a forked child that dies as it likes, a thread that
stops where it is told to, Ctrl-C, open files."""
from __future__ import annotations

import contextlib
import dis
import functools
import linecache
import os
import signal
import subprocess
import sys
import threading
import traceback

import chest

WAIT = 30  # seconds until a thread counts as hung
HOME = os.path.dirname(os.path.dirname(os.path.abspath(chest.__file__)))  # so that a child imports the same chest


def open_files():
    """The descriptors that this process has open, and what they are; empty where the system does not tell."""
    found = {}
    for fd in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
    return found


def python(script, *arguments, code=0, stderr="", options=(), timeout=120, **environment):
    """Run ``script``, a text or the path of a file, in a fresh interpreter and return what it printed.

    Its end and its errors must be as said; ``stderr=None``: whatever it says there is fine.
    """
    paths = os.pathsep.join(filter(None, [HOME, os.environ.get("PYTHONPATH")]))
    what = [script] if script.endswith(".py") else ["-c", script]
    done = subprocess.run([sys.executable, *options, *what, *map(str, arguments)], capture_output=True, text=True,
                          timeout=timeout, env={**os.environ, "PYTHONPATH": paths, **environment})
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    if stderr is not None:
        assert done.stderr == stderr, done.stderr
    return done.stdout


def chest_command(*arguments, **settings):
    """What becomes of ``python -m chest`` with these arguments."""
    return subprocess.run([sys.executable, "-m", "chest", *arguments], capture_output=True, text=True, timeout=120,
                          check=False, **settings)


def forked(action, ends=os._exit):
    """Run ``action()`` in a forked child, which then ends by ``ends(0)``; returns the status that it ended with."""
    return os.waitpid(fork(action, ends), 0)[1]


def fork(action, ends=os._exit):
    """The same side by side: returns the child's number at once."""
    pid = os.fork()
    if not pid:
        try:
            action()
            ends(0)
        except SystemExit as end:
            os._exit(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(99)
    return pid


@contextlib.contextmanager
def thread(action, *arguments):
    """Run ``action`` in a thread during the block; what it returned is in the list that is yielded, after the block."""
    results = []

    def run():
        try:
            results.append(action(*arguments))
        except BaseException as error:
            results.append(error)

    runner = threading.Thread(target=run, daemon=True)
    runner.start()
    yield results
    runner.join(4 * WAIT)
    assert not runner.is_alive(), "a thread hangs"


class Stop:
    """A place where a thread announces itself, by a call, and stops until it is let through."""

    def __init__(self):
        self.arrived, self.go_on = threading.Event(), threading.Event()

    def __call__(self):
        self.arrived.set()
        assert self.go_on.wait(WAIT), "the test never let this go on"

    @contextlib.contextmanager
    def during(self, action, *arguments):
        """The block runs while ``action``, in a thread, has stopped here."""
        with thread(action, *arguments) as results:
            assert self.arrived.wait(WAIT)
            yield results
            self.go_on.set()


@contextlib.contextmanager
def another_thread():
    """In this block there is another thread, which does nothing."""
    idle = Stop()
    with idle.during(idle):
        yield


@functools.cache
def without_signals(code):
    """Where lines begin at which no signal is handled: those with nothing but ``try:``, and, as the interpreter is about
    to leave a ``with``, its first statement again.  And, since Python 3.12, the jumps and heads of loops: what a trace
    function raises there may miss the ``with`` around them."""
    found, begun, line = set(), set(), None
    starts = dict(dis.findlinestarts(code))
    for at in dis.get_instructions(code):
        begins = starts.get(at.offset) not in (None, line)
        line = starts.get(at.offset, line)
        text = linecache.getline(code.co_filename, line or 0).strip()
        if text == "try:" or (text.startswith("with ") and not (begins and line not in begun)):
            found.add(at.offset)
        elif sys.version_info >= (3, 12) and ("JUMP" in at.opname or at.opname == "FOR_ITER"):
            found.add(at.offset)
        begun.add(line)
    return found


class Interruption:
    """Ctrl-C as the ``n``-th line of chest's own code is about to run, or of some functions': a trace function is more
    exact than a signal."""

    def __init__(self, n, *functions):
        self.left = n
        self.codes = {function.__code__ for function in functions}

    def __call__(self, frame, event, argument):
        code = frame.f_code
        if code not in self.codes if self.codes else (
                not code.co_filename.startswith(os.path.dirname(chest.__file__))):
            return None
        if event == "line" and frame.f_lasti not in without_signals(code):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt
        return self

    def during(self, action):
        """Returns whether the interrupt came before ``action()`` was through; a finaliser may have swallowed it."""
        before = sys.gettrace()  # of a debugger, or of what measures coverage
        sys.settrace(self)
        try:
            action()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        return self.left <= 0


@contextlib.contextmanager
def limited(error):
    """The handler of SIGINT raises ``error`` in this block."""
    def limit(number, frame):
        raise error

    handler = signal.signal(signal.SIGINT, limit)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
