"""Values and other garbage whose finalisers use the chest: the garbage collector may run them at nearly any line."""
from __future__ import annotations

import gc
import random

import pytest
from children import assert_the_books_agree

from chest import Chest, memory
from chest.alone import alone
from chest.memory import Memory

N = 500


@pytest.fixture
def often():
    """The garbage collector comes often."""
    before = gc.get_threshold()
    gc.set_threshold(20)
    yield
    gc.set_threshold(*before)


@pytest.mark.parametrize("settings", [{}, {"min_file_size": 4096}], ids=["files", "rows"])
def test_finalisers_that_read_disturb_nobody(path, often, settings):
    chance, errors = random.Random(1), []
    c = Chest({i: [i] * 20 for i in range(N)}, path=path, available_memory=40_000, **settings)
    c.flush()

    class Reads:
        def __init__(self):
            self.cycle = self

        def __del__(self):
            key = chance.randrange(N)
            try:
                assert c[key] == [key] * 20
            except Exception as error:
                errors.append(error)

    for turn in range(4 * N):
        Reads()
        key = chance.randrange(N)
        assert c[key] == [key] * 20
        assert c.get(key, "absent") == [key] * 20
        if turn % 50 == 0:
            c.sync() if turn % 100 else c.flush()
    gc.collect()
    assert not errors
    c.sync()
    assert_the_books_agree(c._life.memory)


def test_sizes_that_are_found_out_twice_count_once(monkeypatch):
    """A finaliser that asks for the usage while sizes are being found out."""
    m = Memory(True, 4096)
    m.put_light({"a": [1], "b": [2]}, 1000)
    measure, nested = memory.nbytes, []

    def nbytes(value):
        if not nested:
            nested.append(m.usage)
            m.put("a", [1], measure([1]), True)
        return measure(value)

    monkeypatch.setattr(memory, "nbytes", nbytes)
    assert m.usage == 2 * measure([1])
    assert nested
    m._check()


def test_a_crowd_of_which_nothing_is_left_takes_no_room():
    """Two threads prefetch the same keys: the second one finds that all are there."""
    m = Memory(True, 4096)
    m.put_light({}, 1000)
    assert m.room(1500, 1500) == 1500
    assert m.within(100)


def test_what_was_taken_away_just_now_is_not_alone():
    assert not alone({}, "x")
