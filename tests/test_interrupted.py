"""Ctrl-C at any line of what is done with values: none is lost, nor a later change, and the budget holds again."""
from __future__ import annotations

import gc
import itertools
import os

import pytest
from children import Interruption, assert_the_books_agree

from chest import Chest

N = 24
BUDGET = 3000  # of some 5,000 bytes
STRESS = bool(os.environ.get("CHEST_STRESS"))


def sets(c):
    c["new"] = ["new"]


def replaces(c):
    c[0] = ["new"]
    c[N - 1] = ["new"]


def sets_a_large_one(c):
    c["new"] = "new" * 1000


def shrinks(c):
    c._life.available = BUDGET / 3
    c.shrink()
    c._life.available = BUDGET


def gets(c):
    for key in range(0, N, 5):
        c[key]


def iterates(c):
    for _ in c.items():
        pass


def updates(c):
    c.update({key: ["new"] for key in range(N - 3, N + 3)})


def prefetches(c):
    c.move_to_disk(N - 1)
    c.move_to_disk(N - 2)
    c.prefetch([0, 1, N - 1, N - 2])


def deletes(c):
    del c[0]
    del c[N - 1]


ACTIONS = [sets, replaces, sets_a_large_one, shrinks, gets, iterates, updates, prefetches, deletes]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # files let go
@pytest.mark.parametrize("settings", [{}, {"min_file_size": 1000}], ids=["files", "rows"])
@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.__name__)
def test_ctrl_c_at_any_line_loses_nothing(tmp_path, action, settings):
    steps = 0
    for n in itertools.count(1, 1 if STRESS else 29):
        before = {key: [key] * 10 for key in range(N)}
        c = Chest(before, path=str(tmp_path / str(n)), available_memory=BUDGET, **settings)
        c.sync()
        interrupted = Interruption(n).during(lambda c=c: action(c))
        c._life.available = BUDGET
        found = changed_in_place(c, {} if action is deletes else before, before)
        for key in range(100, 100 + N):
            c[key] = [key] * 10
        assert c.memory_usage <= BUDGET, n
        c.sync()
        assert_the_books_agree(c._life.memory)
        with Chest(path=c.path) as again:
            assert dict(again) == {**found, **{key: [key] * 10 for key in range(100, 100 + N)}}, n
        c.drop()
        steps += 1
        if not interrupted:
            break
    del c
    gc.collect()  # what was let go is warned of here, and not in another test
    assert steps > 1


def changed_in_place(c, certain, before):
    """What ``c`` holds, when each value was changed in place just behind the interrupt; none of ``certain`` is gone."""
    found = {}
    for key in list(c):
        try:
            value = c[key]
        except KeyError:
            assert key not in certain
            continue
        if key == "new" and isinstance(value, str):
            found[key] = value
            continue
        assert value in (before.get(key), ["new"])
        value.append("changed")
        found[key] = list(value)
    assert len(found) >= N - 2
    return found


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # files let go
@pytest.mark.parametrize("method", ["sync", "flush"])  # which append to the list, and replace it
@pytest.mark.parametrize("settings", [{}, {"min_file_size": 1000}], ids=["files", "rows"])
def test_ctrl_c_while_others_changes_are_taken_over_loses_none_of_them(tmp_path, method, settings):
    steps = 0
    for n in itertools.count(1, 1 if STRESS else 3):
        path = str(tmp_path / str(n))
        c = Chest({key: [key] for key in range(10)}, path=path, **settings)
        c.sync()
        c["mine"], c[1] = "new", "new"
        del c[2]
        with Chest(path=path, **settings) as other:
            other["theirs"], other[3] = "theirs", "theirs"
            del other[4]
            getattr(other, method)()
        interrupted = Interruption(n).during(lambda c=c: len(c))
        expected = {0: [0], 1: "new", 3: "theirs", **{key: [key] for key in range(5, 10)}, "theirs": "theirs",
                    "mine": "new"}
        assert dict(c) == expected, n
        c.sync()
        with Chest(path=path) as again:
            assert dict(again) == expected, n
        c.drop()
        steps += 1
        if not interrupted:
            break
    del c
    gc.collect()
    assert steps > 1
