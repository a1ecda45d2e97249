"""Several handles and processes on one directory: who is alive, what is reclaimed, compacted, synced."""
from __future__ import annotations

import errno
import os
import random
import signal
import stat

import pytest
from directories import directory, files, in_child, saved, values

from chest import Chest
from chest.storage import packs, system
from chest.storage.base import LENGTH, PACK, pack_of
from chest.storage.descriptors import Descriptors

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks stand for other processes here")


def killed(path, **items):
    """A child writes values, loose and packed, and dies; returns nothing, as its refs died with it."""
    def child():
        handle = directory(path)
        saved(handle, **{"loose_" + key: value for key, value in items.items()})
        handle.write([(("t", key), value) for key, value in items.items()], 0)
        saved(handle, 4096, **items)
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(child) == -signal.SIGKILL


def test_what_a_killed_writer_left_is_reclaimed_and_what_is_committed_or_alive_is_not(tmp_path):
    path = tmp_path / "c"
    alive, mine = directory(path), directory(path)
    living = saved(alive, a=1) + saved(alive, 4096, b=2)
    killed(path, x=1, y=2)
    committed = saved(mine, c=3) + saved(mine, 4096, d=4)
    assert "loose_x" in files(path) and "_t/y" in files(path)
    mine.committed(plain=True)
    mine.settled(plain=True)
    mine.reclaim(committed)
    assert values(mine, committed) + values(alive, living) == [3, 4, 1, 2]
    left = [name for name in files(path) if not name.startswith(".packs/")]
    assert left == ["a", "c"] and not (path / "_t").exists()
    assert len(os.listdir(path / ".packs")) == 3  # two packs, and the journal of the living one
    alive.committed(plain=True)
    alive.settled(plain=True)
    alive.reclaim(committed + living)
    assert len(os.listdir(path / ".packs")) == 2


def test_files_of_a_killed_writer_that_were_committed_stay(tmp_path):
    path = tmp_path / "c"
    killed(path, x=1)
    mine = directory(path)
    mine.reclaim(["loose_x"])
    assert files(path) == ["loose_x"]


def test_what_a_killed_writer_was_about_to_supersede_goes_if_its_commit_was_done_and_stays_if_not(tmp_path):
    path = tmp_path / "c"
    mine = directory(path)
    saved(mine, x=1, y=2)

    def child():
        directory(path).committing(["x", "y", 1 << PACK, "gone"])
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(child) == -signal.SIGKILL
    mine.committed(plain=True)
    mine.settled(plain=True)
    mine.reclaim(["y"])
    assert files(path) == ["y"]


def test_a_name_that_others_use_meanwhile_is_not_removed_for_a_dead_writer(tmp_path):
    path = tmp_path / "c"
    killed(path, x=1)
    os.rename(path / "loose_x", tmp_path / "keep")  # the inode stays, so that no other file gets it
    mine = directory(path)
    refs = saved(mine, loose_x="mine")
    mine.reclaim([])
    assert values(mine, refs) == ["mine"]


def test_an_inode_that_came_again_for_a_living_writer_is_spared(tmp_path):
    path = tmp_path / "c"
    killed(path, x=1)
    other = directory(path)
    inode = os.stat(path / "loose_x").st_ino
    other._packs.note(inode, "loose_x")  # as if the living one had made it
    directory(path).reclaim([])
    assert "loose_x" in files(path)


def test_a_journal_that_names_what_is_outside_removes_nothing_there(tmp_path):
    path, outside = tmp_path / "c", tmp_path / "outside"
    handle = directory(path)
    outside.write_text("precious")
    (path / ".keys").write_text("precious")
    (path / ".packs").mkdir()
    lines = [b"%d %s\0" % (os.stat(name).st_ino, text) for name, text in
             ((outside, b"../outside"), (outside, bytes(outside)), (path / ".keys", b".keys"))]
    (path / ".packs" / "0000000001.new").write_bytes(b"".join(lines) + b"9" * 5000 + b" x\0torn")
    handle.reclaim([])
    assert outside.read_text() == (path / ".keys").read_text() == "precious"


def test_a_handle_that_is_closed_leaves_what_it_did_not_commit_to_the_next_commit_of_anyone(tmp_path):
    path = tmp_path / "c"
    one = directory(path)
    refs = saved(one, x=1) + saved(one, 4096, y=2)
    one.close()
    assert values(one, refs) == [1, 2]
    directory(path).reclaim([])
    assert files(path) == []


def test_three_processes_append_at_once_and_each_reads_its_own(tmp_path):
    path = tmp_path / "c"
    ready, go = os.pipe()

    def child(n):
        handle = directory(path)
        os.read(ready, 1)
        refs = []
        for turn in range(50):
            refs += saved(handle, random.choice([0, 4096]), **{f"k{i}": [n, turn, i] for i in range(5)})
            handle.committed()
            handle.reclaim(refs)  # what others wrote is no more committed than theirs is here, and yet it must stay
        assert values(handle, refs) == [[n, turn, i] for turn in range(50) for i in range(5)]
        handle.committed(plain=True)
        handle.settled(plain=True)

    pids = []
    for n in range(3):
        pid = os.fork()
        if not pid:
            status = 99
            try:
                child(n)
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    os.write(go, b"123")
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
    os.close(ready)
    os.close(go)


def test_a_fork_s_child_makes_a_pack_and_a_journal_of_its_own_and_unlocks_nothing(tmp_path):
    path = tmp_path / "c"
    parent = directory(path)
    refs = saved(parent, 4096, a=1) + saved(parent, b=2)
    pack = refs[0] >> PACK

    def child():
        parent.after_fork()
        mine = saved(parent, 4096, c=3) + saved(parent, d=4)
        assert mine[0] >> PACK != pack
        assert values(parent, refs + mine) == [1, 2, 3, 4]
        parent.committed(plain=True)
        parent.settled(plain=True)
        parent.reclaim([])
        parent.close()

    assert in_child(child) == 0
    directory(path).reclaim([])
    assert values(parent, refs) == [1, 2]
    assert saved(parent, 4096, e=5)[0] >> PACK == pack


def test_the_death_of_a_parent_frees_its_packs_although_its_child_lives(tmp_path):
    path = tmp_path / "c"
    told, tell = os.pipe()
    wait, done = os.pipe()

    def middle():
        handle = directory(path)
        saved(handle, 4096, a=1)
        if os.fork() == 0:
            handle.after_fork()
            os.close(done)
            os.write(tell, b"!")
            os.read(wait, 1)
            os._exit(0)
        os.read(told, 1)

    assert in_child(middle) == 0
    directory(path).reclaim([])
    assert files(path) == []
    os.close(done)
    for fd in (told, tell, wait):
        os.close(fd)


@pytest.mark.parametrize("small", [4096, 0], ids=["pack", "journal"])
@pytest.mark.parametrize("removed", [True, False], ids=["removed", "locked"])
def test_a_file_that_was_taken_for_a_dead_writers_before_it_was_locked_is_made_again(tmp_path, monkeypatch, small, removed):
    """1. we make a pack, or a journal; 2. a reclaimer finds it without a lock, and locks or removes it; 3. we lock it."""
    path = tmp_path / "c"
    handle, other = directory(path), directory(path)
    real = packs.system.try_lock
    held = packs.system.Opened()

    def late(fd):
        monkeypatch.setattr(packs.system, "try_lock", real)
        name, = os.listdir(path / ".packs")
        assert packs.taken(other._tree, ".packs/" + name, held)
        if removed:
            os.unlink(path / ".packs" / name)
            held.close()
        return real(fd)

    monkeypatch.setattr(packs.system, "try_lock", late)
    refs = saved(handle, small, a=1)
    held.close()
    other.reclaim([])
    assert values(handle, refs) == [1]
    assert len(os.listdir(path / ".packs")) == 1


def test_a_pack_that_somebody_removed_is_not_written_to_any_more(tmp_path):
    handle = directory(tmp_path / "c")
    first = saved(handle, 4096, a=1)
    os.unlink(handle.file(first[0]))
    then = saved(handle, 4096, b=2)
    handle.close()
    assert values(handle, then) == [2]


# Compaction.


def test_a_pack_of_a_dead_writer_that_holds_mostly_garbage_is_compacted_and_removed(tmp_path):
    path = tmp_path / "c"
    one = directory(path)
    refs = saved(one, 4096, **{f"k{n}": bytes([n]) * 3000 for n in range(100)})
    one.close()
    other = directory(path)
    live = {n: refs[n] for n in range(0, 100, 10)}
    moved = other.compact(live)
    assert sorted(moved) == sorted(live.values())
    assert all(old & (1 << 64) - 1 == new & (1 << 64) - 1 for old, new in moved.items())
    now = {n: moved[ref] for n, ref in live.items()}
    other.committed(plain=True)
    other.settled(plain=True)
    other.reclaim(list(now.values()))
    assert values(other, now.values()) == [bytes([n]) * 3000 for n in now]
    assert sum(os.stat(path / name).st_size for name in files(path)) < 50_000
    with pytest.raises(FileNotFoundError):
        directory(path).load(refs[0])
    assert values(one, now.values()) == [bytes([n]) * 3000 for n in now]


def test_packs_of_living_writers_or_full_of_life_are_not_compacted(tmp_path):
    path = tmp_path / "c"
    one, other = directory(path), directory(path)
    refs = saved(one, 4096, **{f"k{n}": bytes([n]) * 3000 for n in range(100)})
    assert other.compact({0: refs[0]}) == {}
    one.close()
    assert other.compact(dict(enumerate(refs[:60]))) == {}
    few = saved(one, 4096, **{f"k{n}": bytes([n]) * 3000 for n in range(10)})
    one.close()
    assert other.compact({0: few[0]}) == {}, "there is too little garbage"
    assert len(other.compact({0: refs[0]})) == 1


def test_many_tiny_packs_become_one(tmp_path):
    path = tmp_path / "c"
    refs = {}
    for n in range(40):
        handle = directory(path)
        refs[n] = saved(handle, 4096, k=n)[0]
        handle.close()
    moved = handle.compact(refs)
    assert len({ref >> PACK for ref in moved.values()}) == 1 and len(moved) == 40
    handle.committed(plain=True)
    handle.settled(plain=True)
    handle.reclaim([moved[ref] for ref in refs.values()])
    assert len(os.listdir(path / ".packs")) == 1
    assert values(handle, [moved[ref] for ref in refs.values()]) == list(range(40))


def test_a_damaged_record_stays_where_it_is(tmp_path):
    path = tmp_path / "c"
    one = directory(path)
    refs = saved(one, 4096, **{f"k{n}": bytes([n]) * 3000 for n in range(100)})
    with open(one.file(refs[0]), "r+b") as file:
        file.write(b"?" * 100)
    one.close()
    moved = one.compact({0: refs[0], 1: refs[1]})
    assert list(moved) == [refs[1]]
    one.committed(plain=True)
    one.settled(plain=True)
    one.reclaim([refs[0], moved[refs[1]]])
    assert os.path.exists(one.file(refs[0]))


def test_a_compaction_that_finds_no_space_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "c"
    one = directory(path)
    refs = saved(one, 4096, **{f"k{n}": bytes([n]) * 3000 for n in range(100)})
    one.close()

    def full(fd, pieces):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "writev", full)
    assert one.compact({0: refs[0]}) == {}
    assert one.load(refs[0]).value == bytes(3000)


def test_a_handle_that_lives_on_and_writes_the_same_keys_again_takes_bounded_space(tmp_path):
    handle = directory(tmp_path / "c")
    for turn in range(60):
        refs = saved(handle, 4096, **{f"k{n}": bytes([turn]) * 3000 for n in range(100)})
        moved = handle.compact(dict(enumerate(refs)))
        refs = [moved.get(ref, ref) for ref in refs]
        handle.committed(plain=True)
        handle.settled(plain=True)
        handle.reclaim(refs)
    assert values(handle, refs) == [bytes([59]) * 3000] * 100
    assert sum(os.stat(tmp_path / "c" / name).st_size for name in files(tmp_path / "c")) < 3_000_000


def test_nothing_is_given_up_while_other_threads_writes_wait_to_be_named(tmp_path):
    path = tmp_path / "c"
    handle = directory(path)
    refs = saved(handle, a=1) + saved(handle, 4096, b=2)
    handle.committed(plain=True, pending=True)
    handle.reclaim([])
    directory(path).reclaim([])
    assert values(handle, refs) == [1, 2]


# durable=True.


def recorded(monkeypatch, path):
    """What is created, written and synced below ``path`` from now on: pairs of what and where."""
    seen = []
    calls = {name: getattr(os, name) for name in ("open", "close", "write", "writev", "fsync", "mkdir", "rename", "link")}

    def where(fd):
        return os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), path)

    def opens(name, flags, mode=0o777, dir_fd=None):
        fd = calls["open"](name, flags, mode, dir_fd=dir_fd)
        if flags & os.O_CREAT:
            seen.append(("create", where(fd)))
        return fd

    def makes(name, mode=0o777, dir_fd=None):
        calls["mkdir"](name, mode, dir_fd=dir_fd)
        seen.append(("create", os.path.normpath(os.path.join(where(dir_fd), name)) if dir_fd is not None else "?"))

    def noting(what, call):
        def noted(fd, *rest):
            seen.append((what, where(fd)))
            return call(fd, *rest)
        return noted

    monkeypatch.setattr(os, "open", opens)
    monkeypatch.setattr(os, "mkdir", makes)
    for name, what in (("write", "write"), ("writev", "write"), ("fsync", "sync")):
        monkeypatch.setattr(os, name, noting(what, calls[name]))
    return seen


def last(seen, event):
    return len(seen) - 1 - seen[::-1].index(event)


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors are named by /proc")


@needs_proc
def test_what_a_durable_write_returns_is_synced_data_names_and_folders(tmp_path, monkeypatch):
    handle = directory(tmp_path / "c", durable=True)
    seen = recorded(monkeypatch, str(tmp_path / "c"))
    refs = [one.ref for one in handle.write([("x", b"x" * 9000), (("t", "u", 1), b"y" * 9000), ("small", 1), ("s2", 2)], 4096)]
    pack = pack_of(refs[2])
    for name in (refs[0], refs[1], pack):
        assert last(seen, ("write", name)) < last(seen, ("sync", name))
        folder = os.path.dirname(name)
        while True:
            assert seen.index(("create", name)) < last(seen, ("sync", folder or "."))
            if not folder:
                break
            folder = os.path.dirname(folder)
    assert seen.count(("write", pack)) == seen.count(("sync", pack)) == 1
    assert len([event for event in seen if event == ("sync", ".")]) <= 2
    del seen[:]
    saved(handle, 4096, s3=3, s4=4)
    assert seen == [("write", pack), ("sync", pack)]


@needs_proc
def test_folders_that_another_handle_made_without_sync_are_synced(tmp_path, monkeypatch):
    directory(tmp_path / "c").write([(("t", "a"), 1)], 0)
    handle = directory(tmp_path / "c", durable=True)
    seen = recorded(monkeypatch, str(tmp_path / "c"))
    handle.write([(("t", "b"), 1)], 0)
    assert {("sync", "_t"), ("sync", "."), ("sync", "_t/b")} <= set(seen)


def fsync_fails(monkeypatch, folders):
    real = os.fsync

    def fsync(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode) == folders:
            raise OSError(errno.EIO, "the disk lost it")
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)


def test_behind_a_failed_fsync_nothing_is_referred_to_and_the_pack_is_never_appended_to_again(tmp_path, monkeypatch):
    handle = directory(tmp_path / "c", durable=True)
    first = saved(handle, 4096, a=1)
    for folders in (False, True):
        with monkeypatch.context() as patch:
            fsync_fails(patch, folders)
            done = handle.write([("x", 1), ("y", b"y" * 9000), (("t", 1), b"z" * 9000)], 4096)
            assert [one.error.errno for one in done[1:]] == [errno.EIO] * 2
            assert folders or done[0].error.errno == errno.EIO
    assert [name for name in files(tmp_path / "c") if not name.startswith(".packs")] == []
    then = saved(handle, 4096, b=2)
    assert then[0] >> PACK != first[0] >> PACK
    directory(tmp_path / "c").reclaim([])
    assert values(handle, first + then) == [1, 2]


def test_a_pack_whose_name_could_not_be_synced_is_an_error(tmp_path, monkeypatch):
    handle = directory(tmp_path / "c", durable=True)
    with monkeypatch.context() as patch:
        fsync_fails(patch, True)
        assert handle.write([("x", 1)], 4096)[0].error.errno == errno.EIO
    assert values(handle, saved(handle, 4096, x=1)) == [1]


def test_a_directory_that_cannot_be_synced_has_no_more_to_offer(tmp_path, monkeypatch):
    real = os.fsync

    def fsync(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not supported")
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    handle = directory(tmp_path / "c", durable=True)
    refs = saved(handle, x=1) + saved(handle, 4096, y=2)
    assert values(handle, refs) == [1, 2]
    handle.drop(refs)
    assert not (tmp_path / "c").exists()


# Descriptors.


class Kept:
    def __init__(self, may=True):
        self.may, self.open = may, True

    def close_idle(self):
        self.open = not self.may
        return self.may


def test_no_more_files_than_the_limit_are_kept_open(tmp_path):
    pool = Descriptors(limit=3)
    kept = [Kept() for _ in range(10)]
    for number, one in enumerate(kept):
        pool.add(one)
        assert one.open and sum(other.open for other in kept[: number + 1]) <= 3


def test_what_cannot_be_closed_stays_open_and_all_others_make_room(tmp_path):
    pool, full = Descriptors(limit=2), OSError(errno.EMFILE, "too many")
    kept = [Kept(may=False), Kept(), Kept(may=False)]
    for one in kept:
        pool.add(one)
    assert [one.open for one in kept] == [True, False, True]
    pool.add(kept[1])
    assert pool.make_room(full) and not pool.make_room(full)


def test_a_finaliser_runs_only_where_a_descriptor_was_not_closed(tmp_path, leaks_nothing):
    """What a signal's handler raises in a finaliser is lost: there is none on the usual path."""
    with system.Opened() as opened:
        opened.append(os.open(tmp_path, os.O_RDONLY))
    assert opened == [] and not hasattr(opened, "__del__")
    opened = system.Opened()
    opened.append(os.open(tmp_path, os.O_RDONLY))
    del opened


def test_hundreds_of_handles_need_few_descriptors_and_stay_usable(tmp_path):
    resource = pytest.importorskip("resource")

    def child():
        os.closerange(3, 4096)  # what other tests have open
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        handles, refs = [], []
        for n in range(200):
            handles.append(directory(tmp_path / str(n)))
            refs.append(saved(handles[-1], 4096, x=[n])[0])
            handles[-1].committed(plain=True)
        assert [handle.load(ref).value for handle, ref in zip(handles, refs)] == [[n] for n in range(200)]
        assert sum(type(ref) is int for ref in refs) == 200
        # None commits: the packs keep their locks, and when there is no descriptor left values go to loose files.
        refs = [saved(handle, 4096, y=[n])[0] for n, handle in enumerate(handles)]
        assert {type(ref) for ref in refs} == {int, str}
        assert [handle.load(ref).value for handle, ref in zip(handles, refs)] == [[n] for n in range(200)]

    assert in_child(child) == 0


def test_hundreds_of_chests_that_sync_need_few_descriptors(tmp_path):
    resource = pytest.importorskip("resource")

    def child():
        os.closerange(3, 4096)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        chests = [Chest({"x": [n]}, path=tmp_path / str(n), min_file_size=n % 2 * 4096) for n in range(200)]
        for chest in chests * 2:  # so that each has a journal that it uses again
            chest["x"].append(0)
            chest.sync()
        assert [chest["x"] for chest in chests] == [[n, 0, 0] for n in range(200)]

    assert in_child(child) == 0


def test_no_descriptor_is_left(tmp_path, leaks_nothing):
    handle = directory(tmp_path / "c")
    refs = saved(handle, x=1) + saved(handle, 4096, y=2)
    values(handle, refs)
    list(handle.load_many(refs))
    for ref in ("gone", 5 << LENGTH, "../x"):
        with pytest.raises(Exception, match="."):
            handle.load(ref)
    handle.committed(plain=True)
    handle.settled(plain=True)
    handle.reclaim(refs)
    handle.close()
