"""What the standard library asks of a mapping, asked of a chest.

Its own tests run here over `Chest`, but for construction from keywords (they are the settings of a chest) and for
`repr` (a chest may be far too large to be printed).
"""
from __future__ import annotations

import contextlib
import gc
import pickle
import unittest

import pytest
from children import another_thread
from invariants import check

from chest import Chest
from chest.memory.cache import ABSENT

mapping_tests = pytest.importorskip("test.mapping_tests", reason="this Python comes without its own tests")

LEFT_OUT = {
    "test_constructor": "its second half constructs from keywords",
    "test_repr": "a chest is not printed whole",
    "test_repr_deep": "nor its values",
}


class Roomy(Chest):
    """A chest with memory enough."""

    settings: dict = {}

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **{**self.settings, **settings})


class Spilling(Roomy):
    """A chest that has room for a value or two at a time, but not for what is in them."""

    settings = dict(available_memory=100)


class Small(Roomy):
    """The same, and all values share one file."""

    settings = dict(available_memory=100, min_file_size=4096)


def cases():
    for basic in (mapping_tests.BasicTestMappingProtocol, mapping_tests.TestMappingProtocol,
                  mapping_tests.TestHashMappingProtocol):
        for chest in (Roomy, Spilling, Small):
            yield type(f"{basic.__name__}{chest.__name__}", (basic,), {"type2test": chest})


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.__name__)
def test_a_chest_passes_the_tests_of_the_standard_library(case):
    names = [name for name in unittest.TestLoader().getTestCaseNames(case)
             if name not in LEFT_OUT and name in vars(case.__base__)]  # what it inherits is run for its base
    if case.type2test is not Roomy and "test_popitem" in names:
        names.remove("test_popitem")  # of sixteen thousand files, one by one; `test_model` has fewer
    result = unittest.TestResult()
    unittest.TestSuite(map(case, names)).run(result)
    assert [trace for _, trace in [*result.errors, *result.failures]] == []
    assert result.testsRun == len(names) >= 2


def test_what_is_left_out_is_there():
    """Else this list would hide a test that has another name by now."""
    assert set(LEFT_OUT) <= set(dir(mapping_tests.TestHashMappingProtocol))
    assert Chest({"x": 1}) == {"x": 1}
    with pytest.raises(TypeError):
        Chest(x=1)


@pytest.mark.parametrize("make", [Roomy, Spilling, Small])
class TestWhatADictDoes:
    """Promises beyond the protocol, but for the order, which `test_model` has: equality, operators, views."""

    def test_equality_is_that_of_dicts(self, make):
        c = make({"x": [1], "y": None})
        assert c == {"y": None, "x": [1]}
        assert c == make({"y": None, "x": [1]})
        for other in {"x": [1]}, {"x": [1], "y": 0}, {"x": [1], "z": None}, [("x", [1]), ("y", None)]:
            assert c != other

    def test_union_makes_a_new_chest_with_the_values_on_the_right_and_leaves_both_as_they_are(self, make):
        c = make({"x": 1, "y": 2})
        both = c | {"y": 3, "z": 4}
        assert (dict(both), dict(c)) == ({"x": 1, "y": 3, "z": 4}, {"x": 1, "y": 2})
        assert isinstance(both, Chest)
        c |= {"z": 5}
        c |= [("w", 6)]
        assert dict(c) == {"x": 1, "y": 2, "z": 5, "w": 6}
        with pytest.raises(TypeError):
            c | [("v", 7)]
        both = {"z": 1, "x": 2} | make({"x": 3, "y": 4})
        assert list(both.items()) == [("z", 1), ("x", 3), ("y", 4)]
        assert isinstance(both, Chest)
        with pytest.raises(TypeError):
            [("v", 7)] | c

    def test_views_are_live_go_backwards_and_have_a_mapping_that_is_read_only(self, make):
        c = make({"x": 1})
        keys, values, items = c.keys(), c.values(), c.items()
        c["y"] = 2
        for view, content in (keys, ["x", "y"]), (values, [1, 2]), (items, [("x", 1), ("y", 2)]):
            assert (list(view), list(reversed(view)), len(view)) == (content, content[::-1], 2)
            assert content[1] in view
            assert view.mapping["y"] == 2
            with pytest.raises(TypeError):
                view.mapping["y"] = 3
        assert keys & {"x", "z"} == {"x"}
        assert items ^ {("x", 1)} == {("y", 2)}
        for odd in (3, "xy", ("x",), ("x", 1, 1), ["x", 1], ("z", 1), ("y", 3)):
            assert odd not in items

    def test_equal_keys_are_one_key_and_keep_their_first_form(self, make):
        c, nan = make(), float("nan")
        c[1] = "int"
        c[1.0] = "float"
        c[True] = "bool"
        c[nan] = "itself"
        for _ in range(2):
            assert list(c.items()) == [(1, "bool"), (nan, "itself")]
            assert type(next(iter(c))) is int
            assert (c[nan], c.get(float("nan"))) == ("itself", None)
            c.flush()

    def test_unhashable_keys_are_type_errors(self, make):
        c = make()
        for use in (lambda: c[[]], lambda: c.get([]), lambda: c.pop([], 1), lambda: [] in c, lambda: c.setdefault([], 1),
                    lambda: c.update({"x": 1}) or c.__setitem__([], 1), lambda: c.__delitem__([])):
            with pytest.raises(TypeError):
                use()
        assert dict(c) == {"x": 1}

    def test_none_is_a_value_and_a_key(self, make):
        c = make({None: None})
        assert c[None] is None
        assert c.get(None, 1) is None
        assert (c.pop(None, 1), c.pop(None, 1)) == (None, 1)

    @pytest.mark.parametrize("use", [Chest.move_to_disk, Chest.get_from_disk])  # for others see `test_contract`
    def test_a_missing_key_is_named(self, make, use):
        with pytest.raises(KeyError, match="gone"):
            use(make(), "gone")


class NeverEqual:
    """As NaN; an array's ``==`` is not even a bool."""

    def __eq__(self, other):
        return False

    __hash__ = None


def test_equality_looks_at_identity_first_as_a_dict_does():
    value, other = NeverEqual(), NeverEqual()
    c = Chest({"x": value})
    assert c == {"x": value}
    assert ("x", value) in c.items()
    assert c != {"x": other}
    assert ("x", other) not in c.items()


def test_a_subclass_may_say_what_a_missing_key_is():
    class Lists(Chest):
        def __missing__(self, key):
            self[key] = []
            return self[key]

    c = Lists({"x": [1]})
    c["x"].append(2)
    c["y"].append(3)
    c.flush()
    assert (c["x"], c["y"], "z" in c, c.get("z")) == ([1, 2], [3], False, None)


def test_who_iterates_over_a_temporary_chest_keeps_it():
    pairs, values = iter(Chest({"x": [1], "y": 2}).items()), iter(Chest({"x": [1], "y": 2}).copy().values())
    gc.collect()
    assert dict(pairs) == {"x": [1], "y": 2}
    assert list(values) == [[1], 2]


@pytest.mark.parametrize("use", [
    lambda c: c.setdefault("x", 2) == 1, lambda c: c.popitem() == ("x", 1), lambda c: list(c.items()) == [],
    lambda c: Chest(c, dump=pickle.dump) is not None], ids=["setdefault", "popitem", "items", "update"])
def test_a_key_that_was_away_for_a_moment_is_no_error(use, monkeypatch):
    """Another thread deleted it just before it was read, and set it again just after."""
    c = Chest({"x": 1})
    c.flush()
    real, away = c._engine.get, ["x"]

    def get(key):
        return ABSENT if away and away.pop() else real(key)

    monkeypatch.setattr(c._engine, "get", get)
    monkeypatch.setattr(c._engine.loader, "get", get)
    assert use(c)


class Single:
    """A key that equals none of the same hash, but raises."""

    def __init__(self, hash=77):
        self.hash = hash

    def __hash__(self):
        if self.hash is None:
            raise ValueError("no hash")
        return self.hash

    def __eq__(self, other):
        raise ZeroDivisionError("cannot be compared")


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("hash", [77, None])
def test_a_key_whose_own_code_raises_is_the_error_of_that_one_operation(tmp_path, hash, threads):
    c, key, wrong = Chest(path=tmp_path / "c", available_memory=200), Single(), Single(hash)
    c[key] = "x"
    with pytest.raises((ZeroDivisionError, ValueError)):
        c[wrong]
    with another_thread() if threads else contextlib.nullcontext():
        for n in range(9):
            c[n] = bytes(100)
            for use in (c.get, c.__getitem__, c.__contains__, c.pop, c.setdefault):
                with pytest.raises((ZeroDivisionError, ValueError)):
                    use(wrong)
        check(c)
        assert (list(c), c[key]) == ([key, *range(9)], "x")
        with pytest.raises((ZeroDivisionError, ValueError)):
            c[wrong]
        c[0]
        c.flush()
        assert len(Chest(path=tmp_path / "c")) == 10
