"""Is a value in memory as its bytes are?  Maps, copies, hashes; what was changed is noticed, what was used is not."""
from __future__ import annotations

import mmap
import os
import pickle
import sys

import pytest
from children import forked, python

from chest.serialize import Codec, aligned, arrays, compare
from chest.serialize.compare import can_change

np = pytest.importorskip("numpy")

N = 100_000  # items of eight bytes: enough to be mapped
linux = pytest.mark.skipif(not compare.tells(), reason="this system does not tell which pages were written")
posix = pytest.mark.skipif(not hasattr(os, "preadv"), reason="files are not mapped on this system")
MODES = ("auto", "c", "r", None)


class File:
    """A value's file, and the codec that reads it."""

    def __init__(self, path, value, mode="auto"):
        self.codec = Codec(mmap_mode=mode)
        encoded = self.codec.encode(value)
        path.unlink(missing_ok=True)
        path.write_bytes(b"".join([*encoded.pieces, encoded.note()]))
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY)
        self.status = os.fstat(self.descriptor)

    def load(self):
        return self.codec.load_file(self.descriptor, self.status)

    def same(self, value):
        return self.codec.same_file(value, self.descriptor, self.status)

    def unchanged(self, value, stamp):
        """What the engine makes of it."""
        told = self.codec.unchanged(value, stamp)
        return told if told else self.same(value)

    def unchanged_behind(self, use):
        """The same of what is loaded, once ``use(value)`` is through."""
        value, stamp = self.load()
        use(value)
        return self.unchanged(value, stamp)


@pytest.fixture
def file(tmp_path):
    made = []

    def make(value, mode="auto"):
        made.append(File(tmp_path / f"value{len(made)}", value, mode))
        return made[-1]

    yield make
    for each in made:
        os.close(each.descriptor)


def first_array(value):
    while not isinstance(value, np.ndarray):
        value = next(iter(value.values())) if isinstance(value, dict) else value[0]
    return value


VALUES = {
    "array": lambda: np.arange(N, dtype="f8"),
    "columns first": lambda: np.asfortranarray(np.arange(N, dtype="f8").reshape(100, -1)),
    "dates": lambda: np.arange(N).astype("M8[s]"),
    "dates within": lambda: [np.asfortranarray(np.arange(N).reshape(100, -1).astype(">m8[s]"))],
    "fields": lambda: np.zeros(N, [("a", "f8"), ("b", "i2")]),
    "dict": lambda: {"x": np.arange(N, dtype="f8"), "y": [np.ones(N), "text"]},
    "not contiguous": lambda: np.arange(2 * N, dtype="f8")[::2],
    "small": lambda: [np.arange(10.0), "text"],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", VALUES)
def test_what_was_not_changed_is_the_same_and_one_changed_item_is_not(name, mode, file):
    value = VALUES[name]()
    saved = file(value, mode)
    assert saved.same(value)
    loaded, stamp = saved.load()
    assert saved.unchanged(loaded, stamp) and saved.same(loaded)
    array = first_array(loaded)
    if not array.flags.writeable:
        assert mode == "r"
        return
    for index in (0, array.size // 2, array.size - 1):
        kept = array.flat[index].copy()
        array.flat[index] = array.flat[index - 7]
        if kept.tobytes() != array.flat[index].tobytes():
            assert not saved.unchanged(loaded, stamp)
        array.flat[index] = kept
    assert saved.unchanged(loaded, stamp)


@posix
@pytest.mark.parametrize("wrap", [lambda array: array, lambda array: [array]], ids=["array", "inside"])
def test_an_untouched_map_of_another_file_is_compared_as_a_whole(wrap, file):
    value = np.arange(N, dtype="f8")
    one, twin = file(wrap(value), "c"), file(wrap(value), "c")
    value[N // 2] = 0
    other = file(wrap(value), "c")
    loaded, _ = one.load()
    assert one.same(loaded) and twin.same(loaded) and not other.same(loaded)


@posix
@pytest.mark.parametrize("mode", ["c", "r"])
@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")
def test_how_an_array_looks_counts_beside_its_bytes(mode, file):
    saved = file(np.arange(N, dtype="f8"), mode)
    for change in ("shape", "dtype", "flag"):
        loaded, stamp = saved.load()
        assert saved.codec.unchanged(loaded, stamp) is not False
        if change == "shape":
            loaded.shape = (100, -1)
        elif change == "dtype":
            loaded.dtype = "i8"
        elif mode == "c":
            loaded.flags.writeable = False
        else:
            continue
        assert saved.codec.unchanged(loaded, stamp) is False
        assert not saved.same(loaded)
        assert mode == "c" or can_change(loaded)


@linux
def test_written_maps_are_told_without_the_file_in_a_child_too_whose_own_pages_do_not_count_in_the_parent(file):
    saved = file(np.arange(N, dtype="f8"), "c")
    written, stamp = saved.load()
    clean, clean_stamp = saved.load()
    assert isinstance(clean.base, mmap.mmap) and clean_stamp is clean.base
    np.asarray(written)[5:].reshape(5, -1)[1, 0] = -1
    assert clean.sum() > 0  # so its pages are present
    assert pickle.loads(saved.path.read_bytes()).sum() != written.sum()

    def child():
        assert saved.codec.unchanged(written, stamp) is False and not saved.same(written)
        assert saved.codec.unchanged(clean, clean_stamp) is True
        clean[3] = -1
        assert saved.codec.unchanged(clean, clean_stamp) is False

    assert forked(child) == 0
    assert saved.codec.unchanged(clean, clean_stamp) is True and saved.codec.unchanged(written, stamp) is False


@linux
def test_a_page_map_of_zeros_is_not_believed(monkeypatch):
    monkeypatch.setattr(os, "pread", lambda descriptor, size, at: bytes(size))
    assert not compare.tells.__wrapped__()


# --- when arrays are mapped -------------------------------------------------------------------------------------------


def mapped(value):
    return aligned.map_under(value) is not None


@linux
def test_auto_maps_what_is_large_local_and_watched_and_copies_all_else(file, monkeypatch):
    large = file(np.zeros(N))
    assert mapped(large.load()[0]) and mapped(file({"x": np.zeros(N)}).load()[0]["x"])
    assert not mapped(file(np.zeros(10_000)).load()[0])
    assert mapped(file(np.zeros(10_000), "c").load()[0])
    def refuse(*arguments, **keywords):
        raise OSError("no map")

    for module, name, instead in (
            (arrays, "is_local", lambda device: False), (compare, "tells", lambda: False), (arrays, "Map", refuse)):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, instead)
            loaded, stamp = large.load()
            assert not mapped(loaded) and loaded.flags.owndata and stamp is None
            assert large.unchanged(loaded, stamp)
            loaded[-1] = 1
            assert not large.unchanged(loaded, stamp)


@pytest.mark.parametrize("kind, local", [("ext4", True), ("btrfs", True), ("nfs4", False), ("cifs", False), ("9p", False),
                                         ("fuse.sshfs", False), ("fuseblk", False), ("virtiofs", False), ("", True)])
def test_a_file_system_is_local_by_the_type_of_its_mount(kind, local, monkeypatch, tmp_path):
    line = f"27 1 8:1 / / rw shared:1 - ext4 /dev/sda rw\n36 35 98:7 / /mnt rw,noatime master:1 - {kind} host:/x rw\n"
    (tmp_path / "mounts").write_text(line if kind else line.splitlines()[0] + "\n")
    arrays.is_local.cache_clear()
    monkeypatch.setattr(arrays, "open", lambda path, **keywords: open(tmp_path / "mounts", **keywords), raising=False)
    assert arrays.is_local(os.makedev(98, 7)) is local
    (tmp_path / "mounts").unlink()
    assert arrays.is_local(os.makedev(98, 7)) is local  # asked once
    assert not arrays.is_local(os.makedev(98, 8))  # nobody tells
    arrays.is_local.cache_clear()


@posix
def test_three_thousand_mapped_arrays_live_with_a_thousand_descriptors(file):
    script = """if True:
        import os, resource, sys
        from chest.serialize import Codec
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        kept, codec = [], Codec(mmap_mode="c")
        descriptor = os.open(sys.argv[1], os.O_RDONLY)
        for _ in range(3000):
            kept.append(codec.load_file(descriptor, os.fstat(descriptor))[0])
        assert all(array[8191] == 8191 for array in kept)
        mapped = sum(not array.flags.owndata for array in kept)
        left = [os.open(sys.argv[1], os.O_RDONLY) for _ in range(500)]
        del kept
        again = not codec.load_file(descriptor, os.fstat(descriptor))[0].flags.owndata
        print(mapped, again)
    """
    number, again = python(script, file(np.arange(8192.0)).path).split()
    assert int(number) == 3000 if sys.version_info >= (3, 13) else int(number) >= 100
    assert again == "True"


# --- values that are compared as they are loaded ----------------------------------------------------------------------


def test_what_cannot_be_loaded_is_not_the_same_but_want_of_memory_comes_out():
    def raising(error):
        def load():
            raise error

        return load

    codec = Codec()
    assert not codec.same(1, b"no pickle")
    with pytest.raises(MemoryError):
        compare.same_as_loaded(1, raising(MemoryError()), codec.encode)
    for error in (ValueError(), ConnectionRefusedError(111, "nobody listens")):  # of the value's own code
        assert not compare.same_as_loaded(1, raising(error), codec.encode)


def test_a_frame_that_was_only_used_is_the_same_and_a_changed_one_is_not(file, monkeypatch):
    pd = pytest.importorskip("pandas")
    rows = 10_000  # each column a buffer of its own
    frame = pd.DataFrame({"a": np.arange(rows, dtype="f8"), "b": np.arange(rows), "s": ["x", "yy"] * (rows // 2),
                          "c": pd.Categorical(["u", "v"] * (rows // 2)), "d": pd.date_range("2020", periods=rows, freq="s")})
    frame["e"] = 1.5
    for mode in ("c", None):
        saved = file(frame, mode)
        pd.testing.assert_frame_equal(saved.load()[0], frame)
        for use in (lambda f: f.loc[5], lambda f: f.values, lambda f: f.T, lambda f: f.describe(), lambda f: f["d"].dt.day,
                    lambda f: f.groupby("c", observed=True)["a"].mean(), repr):
            with monkeypatch.context() as patch:
                if "str" in map(str, frame.dtypes):  # as pandas 3 has it; objects are one, or are not
                    patch.setattr(compare, "same_as_loaded", None)  # its bytes alone tell it, it is not loaded again
                assert saved.unchanged_behind(use)
            assert file({"within": frame}, mode).unchanged_behind(lambda held, use=use: use(held["within"]))
        for change in (lambda f: f.__setitem__("z", 1), lambda f: setattr(f, "columns", [*"ABSCDE"]),
                       lambda f: f.loc.__setitem__((5, "a"), -1.0), lambda f: f.attrs.update(x=1),
                       lambda f: f.loc.__setitem__((7, "s"), "z"), lambda f: f.loc.__setitem__((7, "d"), f["d"][8])):
            assert not saved.unchanged_behind(change)
    dates = pd.date_range("2020", periods=rows, freq="h", tz="UTC")  # whose array caches something
    for value in (pd.DataFrame({"t": dates}), pd.DataFrame({"x": 1.0}, index=dates), pd.Series(dates - dates[0])):
        assert file(value, "c").unchanged_behind(lambda f: (repr(f), f.loc[f.index[5]]))


def test_a_frame_of_arrows_columns_that_was_only_used_is_the_same_and_a_changed_one_is_not(file):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    rows = 10_000
    frame = pd.DataFrame({"a": np.arange(rows) * 0.5, "g": np.arange(rows) % 7, "s": ["x", "yy"] * (rows // 2)})
    saved = file(frame.convert_dtypes(dtype_backend="pyarrow"), "c")
    for use in lambda f: f.groupby("g")["a"].mean(), lambda f: f["a"].value_counts(), lambda f: f["s"].unique(), repr:
        assert saved.unchanged_behind(use)  # the types of its columns cache something
    for change in lambda f: f.loc.__setitem__((5, "a"), -1.0), lambda f: f.attrs.update(x=1):
        assert not saved.unchanged_behind(change)


# --- what can never be changed ----------------------------------------------------------------------------------------


class Text(str):
    pass


def test_plain_things_cannot_be_changed_and_all_else_might_be():
    for value in (1, 2.5, "x", b"x", None, True, 3j, range(3), (1, ("a", frozenset((b"b",)))), np.float64(2),
                  np.datetime64("2020"), np.bool_(True)):
        assert not can_change(value), value
    for value in ([], {}, bytearray(), ([],), Text("x"), object(), ((((((1,),),),),),), np.zeros(1, "i4,i4")[0],
                  np.arange(3), np.frombuffer(b"abcd", "u1")):
        assert can_change(value), value


@posix
def test_a_read_only_map_cannot_be_changed_a_read_only_copy_can_and_mode_r_is_not_saved(file):
    saved = file(np.arange(N), "r")
    loaded, stamp = saved.load()
    assert not can_change(loaded) and saved.codec.unchanged(loaded, stamp)
    with pytest.raises(ValueError):
        loaded.flags.writeable = True
    assert file(loaded, "c").load()[0].flags.writeable
    inside, _ = file({"x": np.arange(N), "y": 1}, "r").load()
    inside["y"] = 2
    assert file(inside, "c").load()[0]["x"].flags.writeable
    value = np.arange(N)
    value.flags.writeable = False
    saved = file(value, None)
    loaded, stamp = saved.load()
    assert not loaded.flags.writeable and can_change(loaded) and saved.unchanged(loaded, stamp)
    loaded.flags.writeable = True
    loaded[5] = 0
    assert not saved.unchanged(loaded, stamp)
