"""Loose files and packs of one directory: what is written is what is loaded, and nothing else is ever touched."""
from __future__ import annotations

import errno
import gzip
import json
import os
import pickle
import sys

import pytest
from directories import directory, files, in_child, saved, values
from hypothesis import given
from hypothesis import strategies as st

from chest.errors import ChestError, DamagedError
from chest.serialize.codec import Codec
from chest.storage import system
from chest.storage.base import CRC, LENGTH, OFFSET, PACK

BIG = bytes(range(256)) * 400


@pytest.fixture(params=[{}, {"dump": json.dump, "load": json.load}, {"dump": json.dump, "load": json.load, "mode": "t"},
                        {"dump": pickle.dump, "load": pickle.load, "open": gzip.open}],
                ids=["native", "json", "text", "gzip"])
def codec(request):
    return request.param


@pytest.mark.parametrize("small", [0, 4096])
def test_values_come_back_by_their_refs(tmp_path, codec, small):
    handle = directory(tmp_path / "c", **codec)
    items = {"a": {"x": 1}, "b": "é" * 5000, "c": [1, 2, 3]}
    refs = saved(handle, small, **items)
    assert [type(ref) for ref in refs] == ([int, str, int] if small else [str, str, str])
    assert values(handle, refs) == list(items.values())
    assert [one.value for one in handle.load_many(refs * 2)] == list(items.values()) * 2
    for ref, value in zip(refs, items.values()):
        assert handle.same(ref, value)
        assert not handle.same(ref, "other")
        assert handle.size(ref) == handle.load(ref).nbytes
        assert handle.version(ref) == handle.load(ref).version


def test_a_stamp_is_the_same_at_writing_and_at_loading(tmp_path):
    handle = directory(tmp_path / "c")
    for small in (0, 4096):
        one, = handle.write([("x", [1, 2])], small)
        assert one.stamp == handle.load(one.ref).stamp is not None
        assert one.version == handle.load(one.ref).version == handle.version(one.ref)
        assert handle.codec.unchanged([1, 2], one.stamp)


def test_loose_files_are_plain_pickles_under_the_names_of_their_keys(tmp_path):
    handle = directory(tmp_path / "c")
    saved(handle, x=[1])
    handle.write([(("a", "b"), 2), (1, 3)], 0)
    handle.committed(plain=True)
    handle.settled(plain=True)
    assert files(tmp_path / "c") == ["_a/b", "c4ca4238a0b923820dcc509a6f75849b", "x"]
    assert pickle.loads((tmp_path / "c" / "_a" / "b").read_bytes()) == 2


def test_an_error_of_one_value_is_its_own_and_leaves_no_file(tmp_path):
    handle = directory(tmp_path / "c")
    for small in (0, 4096):
        done = handle.write([("a", 1), ("wrong", [b"x" * (9 << 20), lambda: 0]), ("b", 2)], small)
        assert done[1].ref is None and done[1].error is not None
        assert values(handle, [done[0].ref, done[2].ref]) == [1, 2]
    assert not [name for name in files(tmp_path / "c") if "wrong" in name]  # no pack's name has such letters


class Interrupts:
    def __reduce__(self):
        raise KeyboardInterrupt


@pytest.mark.parametrize("small", [0, 4096])
def test_ctrl_c_comes_out_and_leaves_no_file_of_the_call(tmp_path, small):
    handle = directory(tmp_path / "c")
    with pytest.raises(KeyboardInterrupt):
        handle.write([("a", 1), ("b", [b"x" * (9 << 20), Interrupts()])], small)
    handle.committed(plain=True)
    handle.settled(plain=True)
    handle.reclaim([])
    assert files(tmp_path / "c") == []


def test_nothing_that_stands_there_is_overwritten(tmp_path):
    handle = directory(tmp_path / "c")
    (tmp_path / "c" / "x").write_text("mine")
    (tmp_path / "c" / "y").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "c" / "z").mkdir()
    (tmp_path / "c" / "_t").write_text("a file where a folder would be")
    assert saved(handle, x=1, y=2, z=3) == ["x~1", "y~1", "z~1"]
    assert handle.write([(("t", "u"), 4)], 0)[0].ref == "_t~1/u"
    assert (tmp_path / "c" / "x").read_text() == "mine"
    assert not (tmp_path / "elsewhere").exists()


def test_a_name_of_a_removed_file_that_an_index_still_gives_to_a_key_is_not_used_again(tmp_path):
    handle = directory(tmp_path / "c")
    handle._loose.names.source = lambda: ["x", 5]
    assert saved(handle, x=1) == ["x~1"]


def test_a_reserved_name_is_the_one_that_is_used(tmp_path):
    handle = directory(tmp_path / "c")
    (tmp_path / "c" / "x").write_text("mine")
    assert handle.reserve("x") == handle.reserve("x") == "x~1"
    assert handle.reserve(("a", "b")) == "_a/b"
    done = handle.write([("x", 1), (("a", "b"), 2)], 0)
    assert [one.ref for one in done] == ["x~1", "_a/b"]


def test_removing_takes_the_empty_folders_too_and_nothing_else(tmp_path):
    handle = directory(tmp_path / "c")
    refs = [one.ref for one in handle.write([(("a", "b"), 1), (("a", "c"), 2)], 0)]
    handle.remove([refs[0], "gone", 5, "../outside"])
    assert (tmp_path / "c" / "_a").exists()
    handle.remove(refs)
    assert not (tmp_path / "c" / "_a").exists()


@pytest.mark.skipif(not hasattr(os, "link"), reason="there are no hard links here")
def test_a_link_is_a_second_name_of_a_file_or_a_copy_of_a_record(tmp_path):
    one, other = directory(tmp_path / "one"), directory(tmp_path / "other")
    loose, packed = saved(one, x=BIG)[0], saved(one, 4096, y=[1])[0]
    linked, copied = other.link("k", one, loose), other.link(("k", 1), one, packed)
    assert values(other, [linked.ref, copied.ref]) == [BIG, [1]]
    assert os.path.samefile(one.file(loose), other.file(linked.ref))
    assert linked.version == one.version(loose)
    assert copied.ref & (1 << OFFSET) - 1 == packed & (1 << OFFSET) - 1
    one.drop([loose, packed])
    assert values(other, [linked.ref, copied.ref]) == [BIG, [1]]


# What a hostile directory holds.


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", ".keys", "_a//b", "", "x\0y"])
def test_a_name_that_leads_out_is_refused(tmp_path, name):
    handle = directory(tmp_path / "c")
    with pytest.raises(ChestError, match="do not trust") as caught:
        handle.load(name)
    assert str(tmp_path / "c") in str(caught.value)
    with pytest.raises(ChestError):
        handle.same(name, 1)
    with pytest.raises(ChestError):
        directory(tmp_path / "other").link("x", handle, name)


@pytest.mark.parametrize("ref", [None, 1.5, ("x",), True, -1, 1 << 200])
def test_a_ref_that_is_none_is_an_error(tmp_path, ref):
    with pytest.raises((ChestError, OSError)):
        directory(tmp_path / "c").load(ref)


@pytest.mark.parametrize("settings", [{}, {"dump": pickle.dump, "load": pickle.load},
                                      {"dump": pickle.dump, "load": pickle.load, "open": lambda p, mode: open(p, mode)}])
@pytest.mark.parametrize("name", ["x", "_a/x"])
def test_links_are_followed_neither_for_a_file_nor_for_a_folder_on_the_way(tmp_path, settings, name):
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


def test_the_folder_of_packs_is_no_way_out_either(tmp_path):
    outside, path = tmp_path / "outside", tmp_path / "c"
    outside.mkdir()
    (outside / "0123456789").write_text("precious")
    (outside / "0123456789.new").write_bytes(b"1 x\0")
    handle = directory(path)
    (path / ".packs").symlink_to(outside)
    handle.reclaim([])
    ref = saved(handle, 4096, x=1)[0]
    assert isinstance(ref, str) and handle.load(ref).value == 1
    handle.drop([ref])
    assert files(outside) == ["0123456789", "0123456789.new"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_an_error_and_does_not_hang(tmp_path):
    handle = directory(tmp_path / "c")
    os.mkfifo(tmp_path / "c" / "x")
    with pytest.raises(OSError, match="regular"):
        handle.load("x")
    os.mkdir(tmp_path / "c" / ".packs")
    os.mkfifo(tmp_path / "c" / ".packs" / "0000000001")
    with pytest.raises(OSError):
        handle.load(1 << PACK | 5 << LENGTH)
    handle.reclaim([])


# Damage.


def test_every_flipped_bit_of_a_pack_is_an_error_and_never_another_value(tmp_path):
    handle = directory(tmp_path / "c")
    refs = saved(handle, 4096, a={"x": 1}, b=[2] * 9, c="three")
    path = handle.file(refs[0])
    with open(path, "rb") as file:
        content = file.read()
    handle.close()
    wrong = 0
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        with open(path, "wb") as file:
            file.write(flipped)
        got = []
        for ref in refs:
            try:
                got.append(handle.load(ref).value)
            except DamagedError:
                got.append("damaged")
        many = [one.value if not isinstance(one, Exception) else "damaged" for one in handle.load_many(refs)]
        assert got == many
        assert got.count("damaged") == 1
        wrong += [a for a, b in zip(got, [{"x": 1}, [2] * 9, "three"]) if a != b] != ["damaged"]
    assert wrong == 0 and len(content) > 60


def test_a_pack_that_is_cut_off_or_gone(tmp_path):
    handle = directory(tmp_path / "c")
    refs = saved(handle, 4096, a="first", b="second")
    path = handle.file(refs[0])
    handle.close()
    os.truncate(path, os.stat(path).st_size - 1)
    assert handle.load(refs[0]).value == "first"
    with pytest.raises(DamagedError):
        handle.load(refs[1])
    assert not handle.same(refs[1], "second")
    handle.close()
    os.unlink(path)
    with pytest.raises(FileNotFoundError):
        handle.load(refs[0])
    assert [type(one) for one in handle.load_many(refs)] == [FileNotFoundError] * 2
    assert not handle.same(refs[0], "first")


def test_a_length_that_no_file_has_takes_no_memory(tmp_path):
    handle = directory(tmp_path / "c")
    ref = saved(handle, 4096, a=1)[0]
    with pytest.raises(DamagedError):
        handle.load(ref | CRC << LENGTH)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5000)), max_size=60), st.randoms())
def test_many_are_read_in_the_order_asked_whatever_their_places(tmp_path_factory, sizes, random):
    handle = directory(tmp_path_factory.mktemp("c"))
    try:
        expected, refs = [], []
        for key, size in sizes:
            value = bytes([key]) * size
            expected.append(value)
            refs.append(handle.write([(f"k{key}", value)], random.choice([0, 2000, 8000]))[0].ref)
        order = list(range(len(refs))) * 2
        random.shuffle(order)
        if random.random() < 0.5:
            handle.close()
        assert [one.value for one in handle.load_many([refs[n] for n in order])] == [expected[n] for n in order]
    finally:
        handle.close()


def test_loose_files_are_loaded_as_they_are_asked_for(tmp_path, monkeypatch):
    handle = directory(tmp_path / "c")
    refs = saved(handle, **{f"k{n}": bytes([n]) * 300_000 for n in range(6)})
    loaded = []
    real = handle.load
    monkeypatch.setattr(handle, "load", lambda ref, owner: (loaded.append(ref), real(ref, owner))[1])
    for n, one in enumerate(handle.load_many(refs)):
        assert one.value[0] == n and len(loaded) == n + 1


# Faults.


def failing(monkeypatch, name, error=errno.ENOSPC, after=0):
    """Make the calls of ``os.<name>`` fail behind the first ``after``."""
    real, calls = getattr(os, name), []

    def fails(*args, **more):
        calls.append(args)
        if len(calls) > after:
            raise OSError(error, os.strerror(error))
        return real(*args, **more)

    monkeypatch.setattr(os, name, fails)
    return calls


@pytest.mark.parametrize("small", [0, 4096])
def test_a_full_disk_is_an_error_of_each_value_and_the_next_write_is_right(tmp_path, monkeypatch, small):
    handle = directory(tmp_path / "c")
    before = saved(handle, small, a=1)
    with monkeypatch.context() as patch:
        for name in ("write", "writev"):
            failing(patch, name)
        done = handle.write([("b", 2), ("c", 3)], small)
    assert [one.error.errno for one in done] == [errno.ENOSPC] * 2
    after = saved(handle, small, b=2, c=3)
    assert values(handle, before + after) == [1, 2, 3]
    assert not [name for name in files(tmp_path / "c") if "~" in name]


@pytest.mark.parametrize("key", ["x", ("t", "x")])
def test_a_file_that_the_system_fails_to_look_at_does_not_stay(tmp_path, monkeypatch, key):
    handle = directory(tmp_path / "c")
    saved(handle, other=1)
    real, failed = os.fstat, []

    def once(fd):
        if not failed:
            failed.append(fd)
            raise OSError(errno.EIO, "cannot say")
        return real(fd)

    monkeypatch.setattr(os, "fstat", once)
    done, = handle.write([(key, 1)], 0)
    assert done.error.errno == errno.EIO
    assert [name for name in files(tmp_path / "c") if not name.startswith(".packs")] == ["other"]


def test_what_an_append_left_half_written_is_never_referred_to(tmp_path, monkeypatch):
    handle = directory(tmp_path / "c")
    first = saved(handle, 4096, a="first")
    real = os.writev

    def half(fd, pieces):
        real(fd, [bytes(pieces[0])[:10]])
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", half)
        assert handle.write([("b", "second")], 4096)[0].error is not None
    then = saved(handle, 4096, c="third")
    assert values(handle, first + then) == ["first", "third"]
    assert then[0] >> PACK == first[0] >> PACK


@given(st.lists(st.binary(max_size=50), max_size=20), st.lists(st.integers(1, 40), min_size=1))
def test_short_writes_are_continued(tmp_path_factory, pieces, portions):
    path = tmp_path_factory.mktemp("w") / "file"
    real = os.writev
    turn = [0]

    def short(fd, parts):
        turn[0] += 1
        return real(fd, [b"".join(parts)[: portions[turn[0] % len(portions)]]])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "writev", short)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT)
        system.write_all(fd, [memoryview(piece) for piece in pieces])
        os.close(fd)
    assert path.read_bytes() == b"".join(pieces)


@pytest.mark.parametrize("small", [0, 4096])
def test_a_refused_utime_is_no_reason_not_to_save(tmp_path, monkeypatch, small):
    handle = directory(tmp_path / "c")
    failing(monkeypatch, "utime", errno.EPERM)
    refs = saved(handle, small, x=[1], y=BIG)
    assert values(handle, refs) == [[1], BIG]
    assert handle.load(refs[1]).version == handle.version(refs[1])


def test_two_files_of_one_inode_and_size_have_different_versions(tmp_path):
    handle = directory(tmp_path / "c")
    seen = set()
    for _ in range(200):
        one, = handle.write([("x", 1)], 0)
        assert one.version == handle.version("x")
        seen.add(one.version)
        handle.remove(["x"])
    assert len(seen) == 200


def test_a_file_system_with_coarse_times_is_found_out(tmp_path, monkeypatch):
    real = os.utime
    monkeypatch.setattr(os, "utime", lambda fd, ns: real(fd, ns=tuple(t // 100 * 100 for t in ns)))
    handle = directory(tmp_path / "c")
    for key in "abc":
        one, = handle.write([(key, 1)], 0)
        assert one.version == handle.version(key)


@pytest.mark.parametrize("refused", [errno.EACCES, errno.EROFS, errno.EMFILE])
def test_where_no_pack_and_no_journal_can_be_made_values_go_to_loose_files(tmp_path, monkeypatch, refused):
    handle = directory(tmp_path / "c")
    real = os.open

    def refuses(path, flags, *args, **more):
        if flags == system.APPEND or ".packs" in str(path):
            raise OSError(refused, os.strerror(refused), path)
        return real(path, flags, *args, **more)

    monkeypatch.setattr(os, "open", refuses)
    refs = saved(handle, 4096, a=1, b=2)
    assert refs == ["a", "b"] and values(handle, refs) == [1, 2]
    handle.committed(plain=True)
    handle.settled(plain=True)
    handle.reclaim(refs)
    assert files(tmp_path / "c") == ["a", "b"]


def test_descriptors_that_run_out_are_taken_from_those_that_are_kept_for_speed(tmp_path, monkeypatch):
    handles = [directory(tmp_path / str(n)) for n in range(5)]
    refs = [saved(handle, 4096, x=n)[0] for n, handle in enumerate(handles)]
    for handle in handles:
        handle.committed(plain=True)
        handle.settled(plain=True)
    real, left = os.open, [1]

    def full(*args, **more):
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EMFILE, "too many")
        return real(*args, **more)

    monkeypatch.setattr(os, "open", full)
    assert saved(directory(tmp_path / "more"), y=1) == ["y"]
    assert [handle.load(ref).value for handle, ref in zip(handles, refs)] == [0, 1, 2, 3, 4]


def test_a_descriptor_that_the_program_closed_is_noticed_before_a_byte_is_written(tmp_path):
    def child():
        handle = directory(tmp_path / "c")
        refs = saved(handle, 4096, a=1) + saved(handle, b=2)
        os.closerange(3, 512)
        mine = [os.open(tmp_path / f"mine{n}", os.O_RDWR | os.O_CREAT) for n in range(500)]
        for fd in mine:
            os.write(fd, b"precious")
        assert values(handle, refs) == [1, 2]
        refs += saved(handle, 4096, c=3) + saved(handle, d=4)
        handle.committed()
        assert values(handle, refs) == [1, 2, 3, 4]
        handle.committed(plain=True)
        handle.settled(plain=True)
        handle.close()
        for n, fd in enumerate(mine):
            assert os.pread(fd, 100, 0) == b"precious", n
        assert values(directory(tmp_path / "c"), refs) == [1, 2, 3, 4]

    assert in_child(child) == 0


def test_a_chest_is_dropped_whole_and_others_files_stay(tmp_path):
    handle = directory(tmp_path / "c")
    refs = saved(handle, x=1) + saved(handle, 4096, y=2)
    (tmp_path / "c" / ".keys~").write_text("left")
    (tmp_path / "c" / "mine").write_text("mine")
    handle.drop(refs)
    assert files(tmp_path / "c") == ["mine"]
    (tmp_path / "c" / "mine").unlink()
    handle.make()
    handle.drop(saved(handle, x=1))
    assert not (tmp_path / "c").exists()


def test_what_another_handle_has_not_committed_survives_a_drop(tmp_path):
    one, other = directory(tmp_path / "c"), directory(tmp_path / "c")
    refs = saved(other, x=1) + saved(other, 4096, y=2)
    one.drop(saved(one, z=3))
    assert values(other, refs) == [1, 2]


def test_a_drop_tries_all_before_it_raises(tmp_path, monkeypatch):
    handle = directory(tmp_path / "c")
    refs = saved(handle, x=1, y=2, z=3)
    real = os.unlink

    def unlink(path, **more):
        if os.path.basename(path) == "y":
            raise PermissionError(errno.EACCES, "no", path)
        real(path, **more)

    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(PermissionError) as caught:
        handle.drop(refs)
    assert caught.value.filename == str(tmp_path / "c" / "y")
    assert files(tmp_path / "c") == ["y"]


def test_a_folder_that_could_not_be_removed_at_once_goes_with_its_chest(tmp_path, monkeypatch):
    handle = directory(tmp_path / "c")
    done = handle.write([(("t", 1), 1)], 0)
    real, failed = os.rmdir, []

    def once(path, **more):
        if not failed:
            failed.append(path)
            raise OSError(errno.EBUSY, "busy", path)
        real(path, **more)

    monkeypatch.setattr(os, "rmdir", once)
    handle.drop([done[0].ref])
    assert failed and not (tmp_path / "c").exists()


def test_a_file_where_the_directory_would_be(tmp_path):
    (tmp_path / "c").write_text("mine")
    with pytest.raises(NotADirectoryError, match="choose another path"):
        directory(tmp_path / "c")


@pytest.mark.skipif(sys.platform == "emscripten", reason="there is nobody else who could read")
def test_the_umask_decides_who_may_read(tmp_path):
    before = os.umask(0o002)
    try:
        handle = directory(tmp_path / "c")
        refs = saved(handle, x=1) + saved(handle, 4096, y=1)
        assert {os.stat(handle.file(ref)).st_mode & 0o777 for ref in refs} == {0o664}
        assert os.stat(tmp_path / "c" / ".packs").st_mode & 0o777 == 0o775
    finally:
        os.umask(before)


def test_a_dump_that_needs_a_real_file_gets_one(tmp_path):
    def dump(value, file):
        os.write(file.fileno(), json.dumps(value).encode())

    handle = directory(tmp_path / "c", dump=dump, load=json.load)
    for small in (0, 4096):
        assert values(handle, saved(handle, small, x=[1, small])) == [[1, small]]


def test_values_between_the_picklers_blocks_and_a_large_limit_are_records(tmp_path):
    handle = directory(tmp_path / "c")
    big = ["t" * 100_000, b"u" * 100_000, list(range(1000))]
    ref, loose = saved(handle, 1 << 20, x=big, y=[*big, "v" * 999_000])
    assert type(ref) is int and type(loose) is str
    assert values(handle, [ref, loose]) == [big, [*big, "v" * 999_000]]


def test_large_values_of_the_default_dump_are_whole_where_load_is_the_user_s(tmp_path):
    value = list(range(3_000_000))  # more opcodes than are held before they are passed on
    handle = directory(tmp_path / "c", load=pickle.load)
    for small in (0, 4096):
        assert values(handle, saved(handle, small, x=value)) == [value]


def test_a_durable_chest_may_lie_behind_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "c").symlink_to("there")
    handle = directory(tmp_path / "c", durable=True)
    refs = saved(handle, 4096, x=1) + saved(handle, y=2)
    system.sync_directory(handle.path)
    assert values(handle, refs) == [1, 2]
    handle.drop(refs)
    assert files(tmp_path / "there") == []


def test_codec_is_what_it_was_given(tmp_path):
    codec = Codec()
    handle = directory(tmp_path / "c")
    assert handle.codec.same_format(codec) and handle.remote is False and handle.path == str(tmp_path / "c")
