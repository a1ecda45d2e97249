"""Values that are written with those that leave memory, so that rows lie in the order in which values were set."""
from __future__ import annotations

import errno
import pickle

import pytest

from chest import Chest, database


@pytest.fixture(autouse=True)
def ids_from_one(monkeypatch):
    monkeypatch.setattr(database, "START", 1)


def mixed(i):
    """Values of very different worth, so that they leave memory at different times."""
    return {"i": i, "parts": [i, str(i)]} if i % 3 else str(i)


def rows_of(path, keys):
    """The rows of keys as an index tells that was just read."""
    return [Chest(path=path)._life.index.names[key] for key in keys]


def test_rows_lie_in_the_order_in_which_their_values_were_set(path):
    c = Chest(path=path, min_file_size=1000, available_memory=30_000)
    for i in range(3000):
        c[i] = mixed(i)
    c.sync()
    assert rows_of(path, range(3000)) == list(range(1, 3001))
    assert dict(Chest(path=path)) == {i: mixed(i) for i in range(3000)}


def test_what_is_written_with_others_stays_in_memory_and_is_no_spill(path):
    overflowed = []
    c = Chest(path=path, min_file_size=1000, available_memory=30_000, on_overflow=overflowed.append)
    i = 0
    while not overflowed:
        c[i] = mixed(i)
        i += 1
    written = [key for key, name in c._keys.items() if name is not None]
    assert set(overflowed) < set(written)
    assert set(written) - set(overflowed) <= c.inmem.keys()
    assert set(overflowed).isdisjoint(c.inmem)
    assert c.stats.spills == len(overflowed)
    c._life.memory._check()


def test_what_was_written_with_others_may_be_set_anew_changed_or_deleted(path):
    c = Chest(path=path, min_file_size=1000, available_memory=30_000)
    wanted = {i: mixed(i) for i in range(300)}
    for key, value in wanted.items():
        c[key] = [value] if key % 2 else value
    along = [key for key, name in c._keys.items() if name is not None and key in c.inmem]
    assert len(along) > 10
    for key in along[::3]:
        c[key] = wanted[key] = "another"
    for key in along[1::3]:
        del c[key], wanted[key]
    for key in along[2::3]:
        if isinstance(c.inmem[key], list):
            c[key].append("changed")
            wanted[key] = ("changed", wanted[key])
    c.close()
    found = {key: value[0] if isinstance(value, list) and len(value) == 1 else
             ("changed", value[0]) if isinstance(value, list) else value for key, value in Chest(path=path).items()}
    assert found == wanted


def test_values_that_are_set_again_and_again_are_not_written_each_time(path):
    c = Chest(path=path, min_file_size=1000, available_memory=60_000)
    total = 0
    for i in range(6000):
        c["counter", i % 50] = i
        c[i] = mixed(i)
        total += len(pickle.dumps(mixed(i), 5))
    assert c.stats.bytes_written < 1.1 * total


def test_a_full_disk_keeps_those_in_memory_that_were_to_be_written_with_others(path, monkeypatch):
    c = Chest(path=path, min_file_size=1000, available_memory=30_000)

    def insert(data, spent=()):
        raise OSError(errno.ENOSPC, "no space", path)

    c.sync()
    with monkeypatch.context() as patched:
        patched.setattr(c._life.store._rows, "insert", insert)
        with pytest.raises(OSError, match="no space"):
            for i in range(1000):
                c[i] = mixed(i)
    assert len(c.inmem) == len(c) > 10
    c._life.memory._check()
    c.sync()
    assert dict(Chest(path=path)) == {i: mixed(i) for i in c}


def test_a_key_that_is_deleted_and_set_again_and_again_is_written_once(path):
    c = Chest(path=path, min_file_size=1000, available_memory=60_000)
    for i in range(2000):
        c["x"] = i
        del c["x"]
    c["x"] = "the last"
    for i in range(2000):
        c[i] = mixed(i)
    assert c.stats.bytes_written < 1.1 * sum(len(pickle.dumps(mixed(i), 5)) for i in range(2000))
    assert c["x"] == "the last"


def test_without_small_values_no_key_is_remembered_for_company(path):
    c = Chest({i: i for i in range(100)}, path=path)
    assert not c._life.memory._order._arrived
