"""Other systems, emulated: the branches of Windows and macOS, and file systems that can do less."""
from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys

import pytest
from directories import directory, files, saved, values

import chest
from chest.storage import system

WINDOWS = """
import os, sys
sys.path[:0] = sys.argv[2:]
import emulations
emulations.windows()
from directories import directory, files, saved, values
from chest.storage import system
from chest.storage.locks import directory_lock

path = sys.argv[1]
one, other = directory(path, durable=True, mmap_mode=None), directory(path)
lock = directory_lock(path)
with lock, lock:
    assert os.path.exists(os.path.join(path, ".lock"))
refs = saved(one, x=[1], y=b"y" * 100_000) + saved(one, 4096, z=[2], w="w" * 5000)
refs += [done.ref for done in one.write([(("a", "b"), 3)], 0)]
assert values(one, refs) == values(other, refs) == [[1], b"y" * 100_000, [2], "w" * 5000, 3]
assert [two.value for two in other.load_many(refs)] == values(one, refs)
other.reclaim(refs)
linked = directory(path + "2")
assert values(linked, [linked.link("q", one, ref).ref for ref in refs]) == values(one, refs)
one.committed(plain=True)
one.settled(plain=True)
one.reclaim(refs)
other.close()
one.close()
dead = {1: saved(other, 4096, p=1)[0], 2: saved(other, q=2)[0]}
other.close()
one.reclaim(refs)
assert "q" not in files(path)
one.drop(refs)
linked.clear_away()
one.close()
assert not os.path.exists(path), files(path)
print("right")
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="what is in use is told by /proc")
def test_the_branch_for_windows(tmp_path):
    home = os.path.dirname(os.path.dirname(chest.__file__))
    here = os.path.dirname(__file__)
    done = subprocess.run([sys.executable, "-c", WINDOWS, str(tmp_path / "c"), home, here, os.path.dirname(here)],
                          capture_output=True, text=True, timeout=120)
    assert done.stdout == "right\n", done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fcntl")
def test_macos_flushes_the_disk_s_cache_where_it_can(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(system, "_FULL_SYNC", 51)
    monkeypatch.setattr(system.fcntl, "fcntl", lambda fd, what: synced.append(what))
    refs = saved(directory(tmp_path / "c", durable=True), x=1)
    assert synced == [51]

    def refused(fd, what):
        raise OSError(25, "inappropriate ioctl")

    monkeypatch.setattr(system.fcntl, "fcntl", refused)
    assert values(directory(tmp_path / "c", durable=True), refs) == [1]
    saved(directory(tmp_path / "d", durable=True), x=1)


@pytest.mark.parametrize("missing", ["WALKS", "_WRITEV", "UTIME_BY_DESCRIPTOR"])
def test_where_the_system_can_do_less(tmp_path, monkeypatch, missing):
    monkeypatch.setattr(system, missing, False)
    handle = directory(tmp_path / "c", durable=True)
    refs = saved(handle, x=[1], y=b"y" * 100_000) + saved(handle, 4096, z=2)
    refs += [one.ref for one in handle.write([(("a", "b"), 3)], 0)]
    assert values(handle, refs) == [[1], b"y" * 100_000, 2, 3]
    assert [handle.version(ref) for ref in refs] == [handle.load(ref).version for ref in refs]
    (tmp_path / "c" / "_l").symlink_to(tmp_path)
    (tmp_path / "x").write_text("outside")
    with pytest.raises(OSError, match="directory"):
        handle.load("_l/x")
    handle.remove(["_l/x"])
    assert (tmp_path / "x").exists()
    (tmp_path / "c" / "_l").unlink()
    handle.drop(refs)
    assert not (tmp_path / "c").exists()


def test_without_locks_values_are_written_and_nobody_is_taken_for_dead(tmp_path, monkeypatch):
    def refused(fd):
        raise OSError(95, "not supported")

    monkeypatch.setattr(system, "try_lock", refused)
    one, other = directory(tmp_path / "c"), directory(tmp_path / "c")
    refs = saved(one, x=1) + saved(one, 4096, y=2)
    other.reclaim([])
    assert values(other, refs) == [1, 2]
    one.committed(plain=True)
    one.settled(plain=True)
    assert [name for name in files(tmp_path / "c") if name.endswith(".new")] == []


def test_without_hard_links_a_link_is_an_error_of_the_system(tmp_path, monkeypatch):
    def refused(*args, **more):
        raise OSError(1, "Operation not permitted")

    one, other = directory(tmp_path / "one"), directory(tmp_path / "other")
    ref, = saved(one, x=1)
    monkeypatch.setattr(os, "link", refused)
    with pytest.raises(OSError, match="not permitted"):
        other.link("x", one, ref)
    assert files(tmp_path / "other") == []


@pytest.mark.skipif(not hasattr(os, "sync"), reason="the system has no sync")
def test_where_a_folder_cannot_be_synced_everything_is(tmp_path, monkeypatch):
    """A name of a new file is on the disk when a durable write returns, also where the folder's own sync is refused."""
    calls, real = [], os.fsync

    def refused(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(fd)

    handle = directory(tmp_path / "c", durable=True)
    monkeypatch.setattr(os, "fsync", refused)
    monkeypatch.setattr(os, "sync", lambda: calls.append(files(tmp_path / "c")))
    saved(handle, x=1)
    assert calls and all("x" in there for there in calls)
