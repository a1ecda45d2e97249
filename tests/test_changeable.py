"""Which values are never compared with their files, because nobody can change them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from arrayvalues import LARGE, MODES, np, posix, read, write

from chest import arrays


class Number(float):
    """A number that can hold attributes."""


def read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


CANNOT = [1, 1.5, 2j, True, None, "s", b"b", ..., (), (1, ("a", (None,))), frozenset([1, "a"])]
CANNOT += [np.float64(1), np.int8(1), np.bool_(True), np.datetime64(1, "s"), np.str_("a")]
CANNOT += [read_only(np.zeros(3)), read_only(np.zeros(3))[1:], np.frombuffer(b"12345678"), (read_only(np.ones(2)),)]
CAN: list[Any] = [[], {}, set(), bytearray(), object(), Number(1), (1, []), (((((1,),),),),), np.zeros(3), np.zeros(())]
CAN += [read_only(np.zeros(3)[:]), read_only(np.array([[]], dtype=object)), (np.zeros(2),), np.zeros(1, "i4,f4")[0]]
CAN += [read_only(np.frombuffer(bytearray(8))), np.ma.masked_array([1]), tuple(range(1000))]


@pytest.mark.parametrize("value", CANNOT, ids=repr)
def test_what_cannot_change_in_place_is_known(value: Any) -> None:
    assert arrays.can_change(value) is False


@pytest.mark.parametrize("value", CAN, ids=lambda value: repr(value)[:30])
def test_whatever_else_can_change(value: Any) -> None:
    assert arrays.can_change(value) is True


@posix
def test_a_loaded_array_can_change_unless_it_is_read_only(tmp_path: Path) -> None:
    path = write(tmp_path / "value", np.zeros(LARGE))
    assert [arrays.can_change(read(path, mode)) for mode in MODES] == [True, True, False]
    path = write(tmp_path / "fixed", read_only(np.zeros(LARGE)))
    assert [arrays.can_change(read(path, mode)) for mode in MODES] == [False, False, False]
