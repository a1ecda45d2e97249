"""File names: plain, collision-free, and never outside of the chest."""
import gzip
import hashlib
import json
import os

import pytest
from children import python
from hypothesis import given
from hypothesis import strategies as st

from chest import Chest
from chest.index.filenames import Names, inside, key_checksum, key_to_filename, usable_part


def md5(text):
    return hashlib.md5(text.encode()).hexdigest()


@pytest.mark.parametrize(("key", "name"), [
    ("x", "x"),
    ("_x9", "_x9"),
    (("a", "b"), "_a/b"),
    (("a", "b", "c"), "_a/_b/c"),
    (("a", ("b", "c"), "d"), "_a/__b/c/d"),
    (("one",), "one"),
    (1, md5("1")),
    ("1", md5("1")),
    ("1/2", md5("1/2")),
    ("", md5("")),
    ((), md5("()")),
    ("x\n", md5("x\n")),
    ("CON", md5("CON")),
    ("aux", md5("aux")),
    ("a" * 300, md5("a" * 300)),
    ("é", md5("é")),
    (b"x", md5("b'x'")),
    (None, md5("None")),
])
def test_the_plain_name_of_a_key_is_that_of_chest_0_2_3_where_that_was_safe(key, name):
    assert key_to_filename(key) == name


def test_a_key_of_bytes_has_its_name_where_python_makes_no_text_of_bytes():
    script = "from chest.index.filenames import *; print(key_to_filename(b'x'), key_to_filename(('a', b'x')))"
    assert python(script, options=["-bb"]).split() == [md5("b'x'"), "_a/" + md5("b'x'")]


keys = st.recursive(st.one_of(st.text(), st.integers(), st.binary(), st.none(), st.floats()),
                    lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=8)


@given(keys)
def test_any_key_has_a_name_that_stays_inside_and_that_every_platform_can_spell(key):
    name = Names().plain(key)
    assert inside(name)
    assert all(usable_part(part) for part in name.split("/"))


def test_equal_keys_have_one_checksum_and_keys_of_one_text_have_two():
    for one, same in (1, True), (0, 0.0), (2, 2.0), (1 << 70, float(1 << 70)), (0.0, -0.0), (("a", (1,)), ("a", (1.0,))):
        assert one == same and key_checksum(one) == key_checksum(same) > 0
    keys = [1, "1", "True", b"1", 1.5, "1.5", None, "None", (1,), ("1",), "(1,)", ("a", 1), ("a", "1"), "nan", (), "()", 0.1, -1, -2, 1 << 20_000]
    assert len(set(map(key_checksum, keys))) == len(keys)
    for unknown in frozenset({1}), ("a", 1j), float("nan"), float("inf"), type("Text", (str,), {})("x"):
        assert key_checksum(unknown) == 0


class Silent:
    """A key of which nobody can make a text."""

    def __init__(self, number):
        self.number = number

    def __hash__(self):
        return self.number

    def __eq__(self, other):
        return self.number == other.number

    def __repr__(self):
        raise RuntimeError("no text")


class Alone(Silent):
    def __reduce__(self):
        raise RuntimeError("no pickle")


@pytest.mark.parametrize("make", [lambda n: (1 << 20_000) - n, Silent, Alone, lambda n: "\ud800" * n, lambda n: ("row", Silent(n))])
def test_a_key_whose_text_cannot_be_made_has_a_name_too(make):
    one, same, other = (Names().plain(make(n)) for n in (1, 1, 2))
    assert one == same != other
    assert inside(one)
    for error in MemoryError, KeyboardInterrupt:  # which are not the key's own
        with pytest.raises(error):
            key_to_filename(type("Key", (), {"__repr__": lambda self, error=error: (_ for _ in ()).throw(error)})())


@pytest.mark.parametrize("settings", [{}, {"dump": json.dump, "load": json.load}, {"open": gzip.open}], ids=["native", "json", "gzip"])
def test_a_name_that_was_told_beforehand_is_that_of_the_value_and_of_no_other(path, settings):
    c = Chest({"x": "of no file", "y": 2}, path=path, key_to_filename=lambda key: "same", **settings)
    told = c.key_to_filename("y")
    assert told == c.key_to_filename("y") == os.path.join(path, "same")
    c.move_to_disk("x")
    assert c._keys["x"] == "same~1"
    os.unlink(c.key_to_filename("x"))
    c["z"] = 3
    c.flush()
    assert c._keys == {"x": "same~1", "y": "same", "z": "same~2"}
    assert c.key_to_filename("y") == told and (c["y"], c["z"]) == (2, 3)


class Text(str):
    def __str__(self):
        return "something else"


@pytest.mark.parametrize("settings", [{}, {"min_file_size": 0}, {"key_to_filename": lambda key: Text(f"n{len(key)}")}])
def test_keys_and_names_of_a_subclass_of_str_can_be_opened_again(settings, tmp_path):
    """As the items of an array of text are, which are numpy's own."""
    with Chest({Text("x"): 1, (Text("a"), Text("b c")): 2}, path=tmp_path, **settings) as c:
        c.flush()
        assert type(c.key_to_filename("x")) is str
    with Chest(path=tmp_path, **settings) as c:
        assert c == {"x": 1, ("a", "b c"): 2} and type(next(iter(c))) is Text
