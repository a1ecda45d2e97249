"""Other systems, emulated: the branches of Windows and macOS, and file systems that can do less."""
from __future__ import annotations

import errno
import os
import stat

import pytest
from storage.directories import commit, directory, files, saved, values

from chest.storage import system


def test_where_folders_are_not_walked_by_descriptors_no_link_is_followed_either(tmp_path, monkeypatch):
    monkeypatch.setattr(system, "WALKS", False)
    handle = directory(tmp_path / "c")
    (done,) = handle.write([(("a", "b"), 3)], 0)
    assert handle.load(done.ref).value == 3
    (tmp_path / "c" / "_l").symlink_to(tmp_path)
    (tmp_path / "x").write_text("outside")
    with pytest.raises(OSError, match="directory"):
        handle.load("_l/x")
    handle.remove(["_l/x"])
    assert (tmp_path / "x").exists()


def test_while_locks_are_refused_values_are_written_and_nobody_is_taken_for_dead(tmp_path, monkeypatch):
    def refused(fd):
        raise OSError(errno.ENOLCK, "no locks available")

    one, other = directory(tmp_path / "c"), directory(tmp_path / "c")
    with monkeypatch.context() as patch:
        patch.setattr(system, "try_lock", refused)
        refs = saved(one, x=1) + saved(one, 4096, y=2)
        other.reclaim([])
        assert values(other, refs) == [1, 2]
    commit(one, refs)
    one.reclaim(refs)
    assert files(tmp_path / "c") == ["x", "y"]


@pytest.mark.skipif(not hasattr(os, "sync"), reason="the system has no sync")
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EISDIR])
def test_where_a_folder_cannot_be_synced_everything_is(number, tmp_path, monkeypatch):
    """A name of a new file is on the disk when a durable write returns, also where the folder's own sync is refused."""
    calls, real = [], os.fsync

    def refused(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(number, os.strerror(number))
        real(fd)

    handle = directory(tmp_path / "c", durable=True)
    monkeypatch.setattr(os, "fsync", refused)
    monkeypatch.setattr(os, "sync", lambda: calls.append(files(tmp_path / "c")))
    saved(handle, x=1)
    assert calls and all("x" in there for there in calls)
