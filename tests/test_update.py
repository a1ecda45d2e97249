"""`update`, `copy` and `|`: files are linked between chests, everything else is set value by value."""
import os

import pytest

from chest import Chest
from chest.memory.changes import COUNTED


@pytest.mark.parametrize("pairs", [Chest.items, lambda chest: zip(chest, chest.values())], ids=["items", "iterator"])
def test_pairs_that_are_not_in_memory_are_taken_one_after_another(pairs):
    taken = []
    a, b = Chest(), Chest({n: bytes(1000) for n in range(9)}, available_memory=0, on_miss=lambda key: taken.append(len(a)))
    b.flush()
    a.update(pairs(b))
    assert taken == list(range(9))


def test_with_overwrite_false_keys_that_are_here_stay():
    a, b = Chest({"x": 1}), Chest({"x": 2, "y": 3})
    a.update(b, overwrite=False)
    a.update({"x": 4, "z": 5}, overwrite=False)
    a.update([("w", 6), ("w", 7)], overwrite=False)
    assert dict(a) == {"x": 1, "y": 3, "z": 5, "w": 6}


def test_a_chest_may_be_updated_with_another_handle_of_itself(path):
    c = Chest({"x": [1]}, path=path)
    c.flush()
    c.update(Chest(path=path))
    c.flush()
    assert dict(Chest(path=path)) == {"x": [1]}


@pytest.mark.skipif(not COUNTED, reason="a list that left memory is found again only where references are counted")
def test_what_changed_behind_its_leaving_memory_is_copied_as_it_is_within_a_transaction(path):
    c = Chest({"x": [1]}, path=path)
    with c.transaction():
        held = c["x"]
        c.move_to_disk("x")
        held.append(2)
        assert dict(c.copy()) == {"x": [1, 2]}


def test_a_source_file_that_is_gone_is_an_error_that_names_it():
    a, b = Chest(), Chest({"x": 1})
    b.flush()
    os.unlink(b.key_to_filename("x"))
    with pytest.raises(KeyError, match="'x'"):
        a.update(b)


def test_a_copy_is_a_chest_of_its_own_whose_values_nobody_else_has(path):
    held = [1]
    c, e = Chest({"x": held}, path=path, available_memory=1000), Chest()
    d = c.copy()
    e.update(c)
    held.append(2)
    c["y"] = 3
    d.flush()
    assert (dict(c), dict(d), dict(e)) == ({"x": [1, 2], "y": 3}, {"x": [1]}, {"x": [1]})
    assert (type(d), d.available_memory, d.path != c.path) == (Chest, 1000, True)
