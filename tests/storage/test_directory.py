"""Loose files and packs of one directory: what is written is what is loaded, and nothing else is ever touched."""
from __future__ import annotations

import errno
import logging
import os
import pickle
import sys
from pathlib import Path

import pytest
from children import forked
from invariants import files
from storage.directories import Interrupts, commit, damaged, directory, saved, values

from chest import Chest
from chest.errors import DamagedError
from chest.storage import system
from chest.storage.base import CRC, LENGTH, PACK

BIG = bytes(range(256)) * 400


@pytest.fixture
def handle(tmp_path):
    return directory(tmp_path / "c")


@pytest.mark.parametrize("small", [0, 4096])
def test_an_error_leaves_no_file_of_its_value_and_ctrl_c_none_of_the_call(handle, tmp_path, small):
    with pytest.raises(KeyboardInterrupt):
        handle.write([("a", 1), ("b", [b"x" * (9 << 20), Interrupts()])], small)
    commit(handle)
    assert files(tmp_path / "c") == []
    done = handle.write([("a", 1), ("wrong", [b"x" * (9 << 20), lambda: 0]), ("b", 2)], small)
    assert done[1].ref is None and done[1].error is not None
    assert values(handle, [done[0].ref, done[2].ref]) == [1, 2]
    assert not [name for name in files(tmp_path / "c") if "wrong" in name]  # no pack's name has such letters


# What a hostile directory holds.


@pytest.mark.parametrize("settings", [{}, {"dump": pickle.dump, "load": pickle.load},
                                      {"dump": pickle.dump, "load": pickle.load, "open": lambda p, mode: open(p, mode)}])
@pytest.mark.parametrize("name", ["x", "_a/x"])
@pytest.mark.parametrize("walks", {system.WALKS, False})
def test_links_are_followed_neither_for_a_file_nor_for_a_folder_on_the_way(tmp_path, monkeypatch, settings, name, walks):
    monkeypatch.setattr(system, "WALKS", walks)  # whether folders are walked by descriptors
    outside, path = tmp_path / "outside", tmp_path / "c"
    outside.mkdir()
    (outside / "x").write_bytes(pickle.dumps("secret"))
    handle = directory(path, **settings)
    if name == "x":
        (path / "x").symlink_to(outside / "x")
    else:
        (path / "_a").symlink_to(outside)
    with pytest.raises(OSError) as caught:
        handle.load(name)
    assert str(path) in str(caught.value)
    assert not handle.same(name, "secret")  # so that a commit writes the value to a file of its own
    with pytest.raises(OSError):
        directory(tmp_path / "other").link("x", handle, name)
    handle.remove([name])
    assert os.stat(outside / "x").st_nlink == 1
    done = handle.write([(("a", "x"), 1)], 0)
    assert done[0].error is None and handle.load(done[0].ref).value == 1
    assert os.listdir(outside) == ["x"] and pickle.loads((outside / "x").read_bytes()) == "secret"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_the_folder_of_packs_is_no_way_out_either_and_a_named_pipe_does_not_hang(handle, tmp_path):
    outside, path = tmp_path / "outside", tmp_path / "c"
    outside.mkdir()
    (outside / "0123456789").write_text("precious")
    (outside / "0123456789.new").write_bytes(b"1 x\0")
    (path / ".packs").symlink_to(outside)
    handle.reclaim([])
    ref = saved(handle, 4096, x=1)[0]
    assert isinstance(ref, str) and handle.load(ref).value == 1
    handle.remove([ref])
    assert files(outside) == ["0123456789", "0123456789.new"]
    (path / ".packs").unlink()
    os.mkdir(path / ".packs")
    for name, ref in (path / "x", "x"), (path / ".packs" / "0000000001", 1 << PACK | 5 << LENGTH):
        os.mkfifo(name)
        for reader in handle, directory(path, dump=pickle.dump, load=pickle.load):
            with pytest.raises(OSError, match="regular"):
                reader.load(ref)
    handle.reclaim([])


# Damage.


def test_every_flipped_bit_of_a_pack_is_an_error_and_never_another_value_and_so_is_one_cut_off_or_gone(handle):
    refs = saved(handle, 4096, a={"x": 1}, b=[2] * 9, c="three")
    path = Path(handle.file(refs[0]))
    content = path.read_bytes()
    handle.close()
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        right = zip(damaged(handle, refs), [{"x": 1}, [2] * 9, "three"])
        assert [found for found, value in right if found != value] == ["damaged"]
    assert len(content) > 60
    path.write_bytes(content[:-1])  # cut off
    assert damaged(handle, refs) == [{"x": 1}, [2] * 9, "damaged"]
    with pytest.raises(DamagedError):
        handle.load(refs[0] | CRC << LENGTH)  # a length that no file has takes no memory
    handle.close()
    os.unlink(path)
    with pytest.raises(FileNotFoundError):
        handle.load(refs[0])
    assert [type(one) for one in handle.load_many(refs)] == [FileNotFoundError] * 3
    assert not handle.same(refs[0], {"x": 1})


# Faults.


@pytest.mark.parametrize("kept", [1, 100], ids=["exact", "coarse"])
def test_a_file_has_the_version_that_its_write_told_and_no_other_of_its_name_and_size(handle, monkeypatch, kept):
    real, seen = os.utime, set()
    monkeypatch.setattr(os, "utime", lambda fd, ns: real(fd, ns=tuple(t // kept * kept for t in ns)))
    for _ in range(200):
        one, = handle.write([("x", 1)], 0)
        assert one.version == handle.version("x")
        seen.add(one.version)
        handle.remove(["x"])
    assert kept > 1 or len(seen) == 200


@pytest.mark.parametrize("refused", [errno.EACCES, errno.EROFS, errno.EMFILE])
def test_where_no_pack_and_no_journal_can_be_made_values_go_to_loose_files(handle, tmp_path, monkeypatch, refused):
    real = os.open

    def refuses(path, flags, *args, **more):
        if flags == system.APPEND or ".packs" in str(path):
            raise OSError(refused, os.strerror(refused), path)
        return real(path, flags, *args, **more)

    monkeypatch.setattr(os, "open", refuses)
    refs = saved(handle, 4096, a=1, b=2)
    assert refs == ["a", "b"] and values(handle, refs) == [1, 2]
    commit(handle, refs)
    assert files(tmp_path / "c") == ["a", "b"]


def test_a_descriptor_that_the_program_closed_is_noticed_before_a_byte_is_written(path, tmp_path):
    def child():
        logging.disable()  # what pytest keeps of it goes to a descriptor that is closed below
        c, reader = Chest({"a": 1, "b": BIG}, path=path, min_file_size=4096), Chest(path=path)
        c.sync()
        expected = dict(reader)
        for save, *keys in (c.sync, "c", "d"), (c.flush, "e", "f"):
            os.closerange(3, 512)
            mine = [os.open(tmp_path / f"mine{n}", os.O_RDWR | os.O_CREAT) for n in range(500)]
            for fd in mine:
                os.pwrite(fd, b"precious", 0)
            assert dict(reader) == dict(c) == expected
            for key, value in zip(keys, ([3], BIG)):
                c[key] = expected[key] = value
                c.move_to_disk(key)
            save()
            assert dict(reader) == dict(c) == expected
            assert {os.pread(fd, 100, 0) for fd in mine} == {b"precious"}
        c.close()
        reader.close()
        assert {os.pread(fd, 100, 0) for fd in mine} == {b"precious"}
        assert dict(Chest(path=path)) == expected

    assert forked(child) == 0


def test_a_chest_is_dropped_whole_and_others_files_stay(tmp_path):
    handle, other = directory(tmp_path / "c"), directory(tmp_path / "c")
    uncommitted = saved(other, x=1) + saved(other, 4096, y=2)
    handle.drop(saved(handle, z=3))
    assert values(other, uncommitted) == [1, 2]
    (tmp_path / "c" / ".keys~").write_text("left")
    (tmp_path / "c" / "mine").write_text("mine")
    other.drop(uncommitted)
    assert files(tmp_path / "c") == ["mine"]
    (tmp_path / "c" / "mine").unlink()
    handle.make()
    handle.drop(saved(handle, x=1))
    assert not (tmp_path / "c").exists()


def test_a_drop_tries_all_before_it_raises_and_a_later_commit_removes_what_is_left(handle, tmp_path, monkeypatch):
    refs, real = saved(handle, x=1, y=2, z=3), os.unlink

    def unlink(path, **more):
        if os.path.basename(path) == "y":
            raise PermissionError(errno.EACCES, "no", path)
        real(path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        with pytest.raises(PermissionError) as caught:
            handle.drop(refs)
        assert caught.value.filename == str(tmp_path / "c" / "y")
        assert [name for name in files(tmp_path / "c") if "/" not in name] == ["y"]
        commit(handle)
        assert "y" in files(tmp_path / "c")
    commit(handle)
    assert files(tmp_path / "c") == []


@pytest.mark.parametrize("plain", [True, False])
def test_a_file_that_cannot_be_removed_is_removed_by_a_later_plain_commit_of_anybody(handle, tmp_path, monkeypatch, plain):
    """As Windows removes no file that is open or mapped."""
    refs = saved(handle, x=1, y=2)
    handle.committed(plain=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", lambda path, **more: (_ for _ in ()).throw(PermissionError(errno.EACCES, "in use", path)))
        handle.committing(["x"])
        handle.remove(["x"])
        handle.committed(plain)
        if plain:
            handle.reclaim(refs[1:])
        assert "x" in files(tmp_path / "c")
    handle.close()
    commit(directory(tmp_path / "c"), refs[1:])
    assert files(tmp_path / "c") == ["y"]


@pytest.mark.skipif(sys.platform == "emscripten", reason="there is nobody else who could read")
def test_the_umask_decides_who_may_read(path):
    before = os.umask(0o002)
    try:
        c = Chest({"large": BIG, "small": 1, ("a", "b"): BIG}, path=path, min_file_size=4096)
        c.flush()
        names = [".keys", *(os.path.relpath(c.key_to_filename(key), path) for key in c)]
        assert {os.stat(os.path.join(path, name)).st_mode & 0o777 for name in names} == {0o664}
        assert {os.stat(os.path.join(path, name)).st_mode & 0o777 for name in (".packs", "_a")} == {0o775}
    finally:
        os.umask(before)


def test_values_between_the_picklers_blocks_and_a_large_limit_are_records(handle):
    big = ["t" * 100_000, b"u" * 100_000, list(range(1000))]
    ref, loose = saved(handle, 1 << 20, x=big, y=[*big, "v" * 999_000])
    assert type(ref) is int and type(loose) is str
    assert values(handle, [ref, loose]) == [big, [*big, "v" * 999_000]]
