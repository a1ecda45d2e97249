"""Memory maps of value files: what they show, what they cost, and how a write to one is noticed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Callable

import pytest
from arrayvalues import LARGE, MODES, Result, frame, is_same, linux, map_of, np, posix, read, run, write

from chest import maps, pages


@posix
def test_arrays_deep_inside_a_value_are_maps_of_its_file(tmp_path: Path) -> None:
    path = write(tmp_path / "value", Result("r", {"deep": (np.arange(LARGE), [np.ones(LARGE)])}))
    deep = read(path, "c").data["deep"]
    assert map_of(deep[0]) is map_of(deep[1][0]) is not None
    assert map_of(read(path).data["deep"][0]) is None


@posix
def test_numeric_blocks_of_a_frame_are_mapped(tmp_path: Path) -> None:
    loaded = read(write(tmp_path / "value", frame()), "r")
    assert map_of(loaded["a"].to_numpy()) is not None


@posix
def test_what_is_written_to_a_map_stays_out_of_the_file_and_a_read_only_map_takes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "value", np.zeros(LARGE))
    before = path.read_bytes()
    mapped = read(path, "c")
    mapped[:] = 7
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="read-only"):
        read(path, "r")[0] = 1


@posix
def test_a_map_outlives_the_name_of_its_file_and_another_file_of_that_name(tmp_path: Path) -> None:
    path = write(tmp_path / "value", np.arange(LARGE))
    kept, fixed = read(path, "c"), read(path, "r")
    write(tmp_path / "other", np.zeros(LARGE, int))
    os.replace(tmp_path / "other", path)
    assert (kept == np.arange(LARGE)).all()
    assert not is_same(kept, path)
    assert not is_same(fixed, path)
    path.unlink()
    assert (kept == np.arange(LARGE)).all()


@posix
@pytest.mark.parametrize("mode", ["c", "r"])
def test_a_map_is_the_same_as_a_copy_of_its_file_and_as_another_name_of_it(mode: str, tmp_path: Path) -> None:
    path = write(tmp_path / "value", np.arange(LARGE))
    os.link(path, tmp_path / "link")
    mapped = read(path, mode)
    assert is_same(mapped, tmp_path / "link")
    (tmp_path / "copy").write_bytes(path.read_bytes())
    assert is_same(mapped, tmp_path / "copy")


@posix
@pytest.mark.parametrize("change", ["dtype", "shape", "flag", "part", "fields"])
def test_a_map_that_looks_different_now_is_not_the_same_though_no_byte_changed(change: str, tmp_path: Path) -> None:
    path = write(tmp_path / "value", np.zeros(LARGE, [("a", "i8")] if change == "fields" else "i8"))
    value = read(path, "c")
    if change == "dtype":
        value = value.view("f8")
    elif change == "shape":
        value = value.reshape(2, -1)
    elif change == "flag":
        value.flags.writeable = False
    elif change == "part":
        value = value[1:]
    else:
        value.dtype.names = ("b",)
    assert not is_same(value, path)


def page_map_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_tells", lambda way: False)


def page_map_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Any:
        raise PermissionError("hidden")

    monkeypatch.setattr(pages, "_scanned", fail)
    monkeypatch.setattr(pages, "_read", fail)
    monkeypatch.setattr(pages, "_tells", lambda way: True)


def page_map_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pages.written(np.ones(1).__array_interface__["data"][0], 8) or not sys.platform.startswith("linux")


def page_map_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a kernel that cannot be asked for written pages."""
    monkeypatch.setattr(pages, "_SCAN", 0)
    monkeypatch.setattr(pages, "_tells", pages._tells.__wrapped__)


@posix
@pytest.mark.parametrize("system", [page_map_seen, page_map_read, page_map_hidden, page_map_fails])
@pytest.mark.parametrize("index", [0, 1, LARGE // 2, LARGE - 1])
def test_a_write_to_a_map_is_noticed_whatever_the_system_tells(
    system: Callable[[pytest.MonkeyPatch], None], index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system(monkeypatch)
    for wrap in (lambda array: array, lambda array: {"a": np.ones(LARGE), "x": array}):
        path = write(tmp_path / "value", wrap(np.zeros(LARGE)))
        loaded = read(path, "c")
        assert is_same(loaded, path)
        array = loaded if isinstance(loaded, np.ndarray) else loaded["x"]
        array[index] = 1
        assert not is_same(loaded, path)
        array[index] = 0
        assert is_same(loaded, path)


@linux
def test_an_unwritten_map_is_known_to_be_the_same_without_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "value", [np.zeros(LARGE), np.ones(LARGE)])
    loaded = read(path, "c")
    assert loaded[0].sum() == 0  # looked at, so its pages are present
    compared: list[int] = []
    compare = maps.equal

    def counting(one: memoryview, other: memoryview) -> bool:
        compared.append(one.nbytes)
        return compare(one, other)

    monkeypatch.setattr(maps, "equal", counting)
    assert is_same(loaded, path)
    assert not compared
    loaded[1][5] = 1
    assert is_same(loaded, path)
    assert 0 < sum(compared) <= maps.mmap.PAGESIZE


@posix
def test_an_array_longer_than_the_part_of_a_file_that_is_mapped_at_a_time_is_compared_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maps, "_WINDOW", maps.mmap.ALLOCATIONGRANULARITY * 3 + 1000)
    value = [np.arange(LARGE), np.arange(LARGE)]
    path = write(tmp_path / "value", value)
    for index in (0, LARGE // 2, LARGE - 1):
        assert is_same(value, path)
        value[1][index] += 1
        assert not is_same(value, path)
        value[1][index] -= 1


@posix
def test_files_that_cannot_be_mapped_are_read_and_compared_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **keywords: Any) -> Any:
        raise OSError("no map")

    path = write(tmp_path / "value", {"x": np.zeros(LARGE)})
    monkeypatch.setattr(maps, "Map", type("Refused", (maps.Map,), {"__new__": refuse}))
    monkeypatch.setattr(maps.mmap, "mmap", refuse)
    for mode in MODES:
        loaded = read(path, mode)
        assert map_of(loaded["x"]) is None
        assert is_same(loaded, path)
        loaded["x"][-1] = 1
        assert not is_same(loaded, path)


@linux
def test_a_page_map_of_zeros_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pages._tells.__wrapped__(pages._read)
    monkeypatch.setattr(pages, "_flags", lambda descriptor, page, count: bytes(count))
    assert not pages._tells.__wrapped__(pages._read)


@linux
@pytest.mark.parametrize("size", [1, 8191, 100_000, 3_000_000])
def test_both_ways_to_ask_find_the_same_pages(size: int, tmp_path: Path) -> None:
    if not pages._tells(pages._scanned):
        pytest.skip("this kernel cannot be asked for written pages")
    array = read(write(tmp_path / "value", np.zeros(4_000_000, "u1")), "c")[777:][:size]
    chance = np.random.default_rng(size)
    array[chance.integers(size, size=size // 5000 + 1)] = 1
    array[::50_000].sum()
    address = array.__array_interface__["data"][0]
    found = list(pages._runs(pages._scanned, address, size))
    assert found == list(pages._runs(pages._read, address, size)) != []
    for at in np.flatnonzero(array):
        assert any(start <= at < stop for start, stop in found)


@linux
def test_a_forked_child_sees_its_own_writes_and_the_parent_does_not(tmp_path: Path) -> None:
    path = write(tmp_path / "value", np.zeros(LARGE))
    mapped = read(path, "c")
    assert is_same(mapped, path)
    child = os.fork()
    if not child:
        code = 1
        try:
            before = is_same(mapped, path)
            mapped[3] = 1
            code = 0 if before and not is_same(mapped, path) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert is_same(mapped, path)


@posix
def test_three_thousand_mapped_arrays_live_with_a_thousand_descriptors(tmp_path: Path) -> None:
    path = write(tmp_path / "value", np.arange(8192.0))
    script = """
        import os, resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        kept = []
        for _ in range(3000):
            with open(sys.argv[1], "rb", buffering=0) as file:
                kept.append(arrays.load(file, "c"))
        assert all(array[8191] == 8191 for array in kept)
        mapped = sum(maps.place(array) is not None for array in kept)
        left = [os.open(sys.argv[1], os.O_RDONLY) for _ in range(500)]
        del kept
        with open(sys.argv[1], "rb", buffering=0) as file:
            again = maps.place(arrays.load(file, "c")) is not None
        print(mapped, again)
    """
    mapped, again = run(script, path).split()
    assert int(mapped) == 3000 if sys.version_info >= (3, 13) else int(mapped) >= 100
    assert again == "True"
