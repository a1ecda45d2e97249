"""What all tests share: hypothesis profiles, a fresh working directory, and a look for what a test leaves behind."""
import gc
import os
import pathlib
import signal
import sys
import tempfile
import threading

import pytest
from children import open_files
from hypothesis import HealthCheck, settings

from chest import Chest

if sys.implementation.name != "cpython":  # there, what a finaliser lets go of is garbage of the next collection only
    _collect = gc.collect
    gc.collect = lambda: [_collect() for _ in range(4)]

if sys.platform != "emscripten":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell takes from what it starts in the background

settings.register_profile("default", deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile("quick", deadline=None, suppress_health_check=list(HealthCheck), max_examples=20)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def in_a_fresh_directory(tmp_path, monkeypatch):
    """No test writes into the checkout."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def path(tmp_path):
    """The path of a chest that is not there yet."""
    return str(tmp_path / "a-chest")


@pytest.fixture
def quick_path(tmp_path):
    """A directory in memory where there is one: what is made there is the same, and takes less time."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else tmp_path
    with tempfile.TemporaryDirectory(dir=memory, prefix="chest-test-") as made:
        yield pathlib.Path(made)


@pytest.fixture
def leaks_nothing():
    """A test that asks for this must leave no thread and no open file behind."""
    gc.collect()
    threads, files = set(threading.enumerate()), open_files()
    yield
    gc.collect()
    with Chest() as another:
        len(another)  # an operation, behind which none is left that was let go in the middle of another
    left = set(threading.enumerate()) - threads
    assert not [thread for thread in left if thread.is_alive()]
    assert {fd: name for fd, name in open_files().items() if fd not in files} == {}
