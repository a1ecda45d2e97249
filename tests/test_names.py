"""File names: plain, collision-free, and never outside of the chest."""
import hashlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chest import Chest
from chest.names import Names, inside, key_to_filename, usable_part


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


keys = st.recursive(st.one_of(st.text(), st.integers(), st.binary(), st.none(), st.floats()),
                    lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=8)


@given(keys)
def test_any_key_has_a_name_that_stays_inside_and_that_every_platform_can_spell(key):
    name = Names().plain(key)

    assert inside(name)
    assert all(usable_part(part) for part in name.split("/"))


@pytest.mark.parametrize("name", ["", "/x", "../x", "a/../x", ".keys", "a/.b", "a//b", "x/", "x\0", None, 3])
def test_a_name_that_would_lead_outside_is_no_name(name):
    assert not inside(name)


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", ".keys", ".small", "", "a" * 256, "deep/" * 300 + "x", None])
def test_an_unusable_name_from_the_users_function_is_replaced_by_the_md5(path, name):
    with Chest(path=path, key_to_filename=lambda key: name) as c:
        c["x"] = 1
        c.flush()

        assert sorted(os.listdir(path)) == [".keys", md5("x")]
        assert c["x"] == 1
    assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]


@pytest.mark.parametrize("pair", [
    (1, "1"), ("a", ("a",)), (b"x", "b'x'"), (1.5, "1.5"), (("a", 1), ("a", "1")), (0, md5("0")),
    ("_foo", ("foo", "bar")),
    (("foo", "bar"), "_foo"), (None, "None"), ("x~1", "x"),
])
def test_two_keys_that_share_a_plain_name_keep_their_own_values(path, pair):
    one, other = pair
    with Chest(path=path) as c:
        c[one] = "one"
        c[other] = "other"
        c.flush()

        assert c[one] == "one"
        assert c[other] == "other"
    again = Chest(path=path)

    assert dict(again) == {one: "one", other: "other"}
    again.drop()


def test_many_keys_may_share_one_plain_name(path):
    c = Chest(path=path, key_to_filename=lambda key: "same")
    for i in range(20):
        c[i] = i
    c.flush()

    assert [c[i] for i in range(20)] == list(range(20))
    assert sorted(os.listdir(path)) == sorted([".keys", "same"] + [f"same~{i}" for i in range(1, 20)])


def test_a_new_value_takes_the_next_name_and_the_old_file_goes_with_the_commit(path):
    c = Chest(path=path)
    c["x"] = 1
    c.flush()
    c["x"] = 2
    c.move_to_disk("x")

    assert sorted(os.listdir(path)) == [".keys", "x", "x~1"]
    c.flush()
    assert sorted(os.listdir(path)) == [".keys", "x~1"]
    c["x"] = 3
    c.flush()
    assert sorted(os.listdir(path)) == [".keys", "x"]


@pytest.mark.parametrize(
    "make", [os.mkdir, lambda path: open(path, "w").close(), lambda path: os.symlink("/nowhere", path)])
def test_whatever_stands_in_the_directory_is_left_alone(path, make):
    c = Chest(path=path)
    make(os.path.join(path, "x"))
    c["x"] = 1
    c.flush()

    assert sorted(os.listdir(path)) == [".keys", "x", "x~1"]
    assert c["x"] == 1
    c.drop()
    assert os.listdir(path) == ["x"]


def test_a_folder_that_is_a_link_elsewhere_is_not_written_through(path, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    c = Chest(path=path)
    os.symlink(elsewhere, os.path.join(path, "_a"))
    c["a", "b"] = 1
    c.flush()

    assert list(elsewhere.iterdir()) == []
    assert c._keys["a", "b"] == "_a~1/b"


def test_the_suffix_stands_on_the_first_part_that_cannot_be_used(path):
    c = Chest(path=path)
    c["_foo"] = 1
    c.flush()
    c["foo", "bar"] = 2
    c["foo", "baz"] = 3
    c.flush()

    assert c._keys == {"_foo": "_foo", ("foo", "bar"): "_foo~1/bar", ("foo", "baz"): "_foo~1/baz"}


def test_folders_that_become_empty_are_removed(path):
    c = Chest(path=path)
    c["a", "b", "c"] = 1
    c["a", "d"] = 2
    c.flush()
    del c["a", "b", "c"]
    c.flush()

    assert sorted(os.listdir(path)) == [".keys", "_a"]
    assert os.listdir(os.path.join(path, "_a")) == ["d"]
    del c["a", "d"]
    c.flush()
    assert os.listdir(path) == [".keys"]


def test_key_to_filename_is_where_the_value_will_be_and_is_kept_for_the_key(path):
    c = Chest(path=path, key_to_filename=lambda key: "same")
    c["a"] = 1
    there = c.key_to_filename("a")
    c["b"] = 2
    other = c.key_to_filename("b")
    c.flush()

    assert (there, other) == (os.path.join(path, "same"), os.path.join(path, "same~1"))
    assert (c.key_to_filename("a"), c.key_to_filename("b")) == (there, other)


def test_key_to_filename_never_returns_the_file_of_a_superseded_or_deleted_value(path):
    c = Chest(path=path)
    c["x"] = 1
    c["y"] = 1
    c.flush()
    c["x"] = 2
    del c["y"]

    assert not os.path.exists(c.key_to_filename("x"))
    assert not os.path.exists(c.key_to_filename("y"))
    os.unlink(os.path.join(path, "x"))
    assert os.path.basename(c.key_to_filename("x")) == "x~1"


def test_the_name_of_a_file_that_somebody_removed_is_not_given_to_another_key(path):
    c = Chest(path=path, key_to_filename=lambda key: "same")
    c["a"] = "a"
    c.flush()
    os.unlink(os.path.join(path, "same"))
    c["b"] = "b"
    c.flush()

    with pytest.raises(KeyError, match="'a'.*same.*gone"):
        c["a"]
    assert c["b"] == "b"
