"""Several handles and processes on one directory: who is alive, what is reclaimed, compacted, synced."""
from __future__ import annotations

import errno
import os
import signal
import stat

import pytest
from children import forked, python
from invariants import files
from storage.directories import commit, directory, saved, values

from chest import Chest
from chest.storage import locks, packs, system
from chest.storage.base import PACK
from chest.storage.locks import directory_lock

MANY = {f"k{n}": bytes([n]) * 3000 for n in range(100)}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks stand for other processes here")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "c"


@pytest.fixture
def handle(path):
    return directory(path)


def killed(path, **items):
    """A child writes values, loose and packed, and dies; returns nothing, as its refs died with it."""
    def child():
        handle = directory(path)
        saved(handle, **{"loose_" + key: value for key, value in items.items()})
        handle.write([(("t", key), value) for key, value in items.items()], 0)
        saved(handle, 4096, **items)
        os.kill(os.getpid(), signal.SIGKILL)

    assert forked(child) == signal.SIGKILL


def test_what_a_killed_writer_made_or_was_to_supersede_stays_if_committed_or_of_another(path, tmp_path):
    mine = directory(path)
    saved(mine, x=1, y=2)

    def child():
        directory(path).committing(["x", "y", 1 << PACK, "gone"])
        os.kill(os.getpid(), signal.SIGKILL)

    assert forked(child) == signal.SIGKILL
    killed(path, z=1)
    commit(mine, ["y", "loose_z"])
    assert files(path) == ["loose_z", "y"]
    killed(path, w=1)
    os.rename(path / "loose_w", tmp_path / "keep")  # the inode stays, so that no other file gets it
    refs = saved(mine, loose_w="mine")
    directory(path).reclaim(["y"])
    assert values(mine, refs) == ["mine"]


@pytest.mark.skipif(not hasattr(os, "link"), reason="the system has no hard links")
def test_a_link_behind_which_its_writer_was_killed_is_reclaimed(path, tmp_path):
    other = directory(tmp_path / "other")
    ref, = saved(other, x=1)

    def child():
        real = os.link

        def link(*names, **more):
            real(*names, **more)
            os.kill(os.getpid(), signal.SIGKILL)

        os.link = link
        directory(path).link("x", other, ref)

    assert forked(child) == signal.SIGKILL
    os.link(path / "x", path / "x~1")
    mine = directory(path)
    commit(mine)
    assert files(path) == ["x~1"]
    os.rename(path / "x~1", path / "x")  # what somebody else links there stays
    mine.remove([mine.link("x", other, ref).ref])
    commit(mine)
    assert files(path) == ["x"] and values(other, [ref]) == [1]


def test_a_journal_goes_though_the_folder_of_what_it_lists_is_a_file_by_now(path):
    def child():
        handle = directory(path)
        handle.remove([one.ref for one in handle.write([(("t", "x"), 1)], 0)])
        os.kill(os.getpid(), signal.SIGKILL)

    assert forked(child) == signal.SIGKILL
    mine = directory(path)
    commit(mine, saved(mine, _t=2))
    assert files(path) == ["_t"]


def test_a_journal_removes_nothing_outside_and_no_inode_that_came_again_for_a_living_writer(path, tmp_path):
    killed(path, x=1)
    other = directory(path)
    other._packs.note(os.stat(path / "loose_x").st_ino, "loose_x")  # as if the living one had made it
    directory(path).reclaim([])
    assert "loose_x" in files(path)
    outside = tmp_path / "outside"
    outside.write_text("precious")
    (path / ".keys").write_text("precious")
    lines = [b"%d %s\0" % (os.stat(name).st_ino, text) for name, text in
             ((outside, b"../outside"), (outside, bytes(outside)), (path / ".keys", b".keys"))]
    (path / ".packs" / "0000000001.new").write_bytes(b"".join(lines) + b"9" * 5000 + b" x\0torn")
    other.reclaim([])
    assert outside.read_text() == (path / ".keys").read_text() == "precious"


def test_a_new_file_with_the_inode_of_one_that_a_dead_writer_made_committed_and_removed_stays(path, tmp_path):
    def child():
        c = Chest(path=path, min_file_size=0)
        c["x"] = 1
        c.sync()
        os.link(path / "x", tmp_path / "inode")
        del c["x"]
        c.sync()
        os.kill(os.getpid(), signal.SIGKILL)

    assert forked(child) == signal.SIGKILL
    os.rename(tmp_path / "inode", path / "x")  # as another handle made it just now: its journal says so in a moment
    with Chest(path=path) as c:
        c["y"] = 2
        c.flush()
    assert files(path) == [".keys", "x", "y"]


def test_a_new_file_with_the_inode_of_one_that_a_dead_writer_removed_stays_though_it_is_made_during_a_clean_up(
        path, monkeypatch):
    living = directory(path)
    living._packs.note(1, "another")
    killed(path, x=1)
    inode = os.stat(path / "loose_x").st_ino
    os.rename(path / "loose_x", path / "elsewhere")

    def status(reader, name):
        if name == "loose_x" and not (path / "loose_x").exists():
            os.rename(path / "elsewhere", path / "loose_x")
            living._packs.note(inode, "loose_x")
        return real(reader, name)

    real = packs.Tree.status
    monkeypatch.setattr(packs.Tree, "status", status)
    directory(path).reclaim([])
    assert "loose_x" in files(path)


def test_what_is_not_committed_stays_while_it_may_be_named_and_goes_when_its_handle_is_closed(path):
    one = directory(path)
    refs = saved(one, x=1) + saved(one, 4096, y=2)
    one.committed(plain=True, pending=True)  # other threads' writes wait to be named
    one.reclaim([])
    directory(path).reclaim([])
    assert values(one, refs) == [1, 2]
    one.close()
    assert values(one, refs) == [1, 2]
    directory(path).reclaim([])
    assert files(path) == []


def test_the_death_of_a_parent_frees_its_packs_and_its_lock_although_its_child_lives(path):
    told, tell = os.pipe()
    wait, done = os.pipe()

    def middle():
        handle = directory(path)
        saved(handle, 4096, a=1)
        with directory_lock(str(path)):
            if os.fork() == 0:
                locks.after_fork()
                handle.after_fork()
                os.close(done)
                os.write(tell, b"!")
                os.read(wait, 1)
                os._exit(0)
            os.read(told, 1)
            os._exit(7)

    assert forked(middle) == 7 << 8
    with directory_lock(str(path)):
        directory(path).reclaim([])
    assert files(path) == []
    for fd in (told, tell, wait, done):
        os.close(fd)


@pytest.mark.parametrize("small", [4096, 0], ids=["pack", "journal"])
@pytest.mark.parametrize("removed", [True, False], ids=["removed", "locked"])
def test_a_file_that_was_taken_for_a_dead_writers_before_it_was_locked_is_made_again(path, monkeypatch, small, removed):
    """1. we make a pack, or a journal; 2. a reclaimer finds it without a lock, and locks or removes it; 3. we lock it."""
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


def test_a_pack_that_somebody_removed_is_not_written_to_any_more(handle):
    first = saved(handle, 4096, a=1)
    os.unlink(handle.file(first[0]))
    then = saved(handle, 4096, b=2)
    handle.close()
    assert values(handle, then) == [2]


# Compaction.


@pytest.fixture
def dead(tmp_path):
    """A handle that let go of its pack of `MANY`, and their refs."""
    handle = directory(tmp_path / "c")
    refs = saved(handle, 4096, **MANY)
    handle.close()
    return handle, refs


def test_packs_of_living_writers_or_full_of_life_are_not_compacted(path):
    one, other = directory(path), directory(path)
    refs = saved(one, 4096, **MANY)
    assert other.compact({0: refs[0]}) == {}
    one.close()
    assert other.compact(dict(enumerate(refs[:60]))) == {}
    few = saved(one, 4096, **dict(list(MANY.items())[:10]))
    one.close()
    assert other.compact({0: few[0]}) == {}, "there is too little garbage"
    assert len(other.compact({0: refs[0]})) == 1


def test_long_records_are_copied_as_short_ones_are(path):
    handle = directory(path)
    refs = saved(handle, 1 << 30, **{f"k{n}": bytes([n]) * 20_000 for n in range(10)})
    handle.close()
    moved = [*handle.compact({3: refs[3], 4: refs[4]}).values()]
    commit(handle, moved)
    assert len(os.listdir(path / ".packs")) == 1
    assert values(handle, moved) == [bytes([3]) * 20_000, bytes([4]) * 20_000]


def test_many_tiny_packs_become_one(path):
    refs = {}
    for n in range(40):
        handle = directory(path)
        refs[n] = saved(handle, 4096, k=n)[0]
        handle.close()
    moved = handle.compact(refs)
    assert len({ref >> PACK for ref in moved.values()}) == 1 and len(moved) == 40
    commit(handle, [moved[ref] for ref in refs.values()])
    assert len(os.listdir(path / ".packs")) == 1
    assert values(handle, [moved[ref] for ref in refs.values()]) == list(range(40))


def test_a_record_that_cannot_be_copied_as_it_is_damaged_or_finds_no_space_stays_where_it_is(dead, monkeypatch):
    def full(fd, pieces):
        raise OSError(errno.ENOSPC, "full")

    one, refs = dead
    with open(one.file(refs[0]), "r+b") as file:
        file.write(b"?" * 100)
    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", full)
        assert one.compact({0: refs[0], 1: refs[1]}) == {}
    moved = one.compact({0: refs[0], 1: refs[1]})
    assert list(moved) == [refs[1]]
    commit(one, [refs[0], moved[refs[1]]])
    assert os.path.exists(one.file(refs[0]))


def test_a_handle_that_lives_on_and_writes_the_same_keys_again_takes_bounded_space(handle, tmp_path):
    for turn in range(60):
        refs = saved(handle, 4096, **{f"k{n}": bytes([turn]) * 3000 for n in range(100)})
        moved = handle.compact(dict(enumerate(refs)))
        refs = [moved.get(ref, ref) for ref in refs]
        commit(handle, refs)
    assert values(handle, refs) == [bytes([59]) * 3000] * 100
    assert sum(os.stat(tmp_path / "c" / name).st_size for name in files(tmp_path / "c")) < 3_000_000


# What the system refuses.


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


# Descriptors.


@pytest.mark.parametrize("min_file_size", [0, 4096])
def test_a_finaliser_runs_only_where_a_descriptor_was_not_closed(path, tmp_path, min_file_size, leaks_nothing, monkeypatch):
    """What a signal's handler raises in a finaliser is lost: there is none on the usual path."""
    with system.Opened() as opened:
        opened.append(os.open(tmp_path, os.O_RDONLY))
    assert opened == [] and not hasattr(opened, "__del__")
    opened = system.Opened()
    opened.append(os.open(tmp_path, os.O_RDONLY))
    del opened
    ran = []
    monkeypatch.setattr(system.Opened, "__del__", ran.append)
    with Chest({n: [n] for n in range(10)}, path=path, min_file_size=min_file_size) as c:
        c.flush()
        assert dict(c) == {n: [n] for n in range(10)}
    assert not ran


HUNDREDS = """if True:
    import os, resource, sys
    from chest import Chest
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    chests = [Chest({"x": [n]}, path=os.path.join(sys.argv[1], str(n)), min_file_size=n % 2 * 4096) for n in range(200)]
    for c in chests * 2:  # so that each has a journal that it uses again
        c["x"].append(0)
        c.sync()
    for c in chests:
        c.flush()
    assert [c["x"] for c in chests] == [[n, 0, 0] for n in range(200)]
    assert len(os.listdir("/proc/self/fd")) < 30
    # None commits: the packs keep their locks, and when there is no descriptor left values go to loose files.
    for n, c in enumerate(chests):
        c["y"] = [n]
        c.move_to_disk("y")
    assert {":" in c._keys["y"] for c in chests[1::2]} == {False, True}
    assert [(c["x"], c["y"]) for c in chests] == [([n, 0, 0], [n]) for n in range(200)]
    os._exit(0)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open descriptors cannot be seen here")
def test_hundreds_of_chests_need_few_descriptors_and_stay_usable(tmp_path):
    python(HUNDREDS, tmp_path)
