"""Every public method and attribute of a chest once, and the commands: the least that must work on every platform.

It needs neither processes nor threads nor numpy, and runs in a browser's Python too.
"""
from __future__ import annotations

import copy
import logging
import os
import pickle

import pytest

from chest import Chest, utils
from chest.cli import main

DONE = {
    "get": lambda c: (c.get("x"), c.get("none", 5)) == ([1], 5),
    "pop": lambda c: (c.pop("x"), c.pop("x", None)) == ([1], None),
    "popitem": lambda c: len(c.popitem()) == 2 and len(c) == 2,
    "setdefault": lambda c: (c.setdefault("x", 0), c.setdefault("new", 0)) == ([1], 0),
    "clear": lambda c: (c.clear(), len(c)) == (None, 0),
    "keys": lambda c: set(c.keys()) == {"x", "y", ("a", 1)},
    "values": lambda c: [1] in c.values() and len(list(c.values())) == 3,
    "items": lambda c: dict(c.items()) == dict(c),
    "update": lambda c: (c.update(x=2), c.update({"z": 3}), c.update(Chest({"w": 4})), c["x"], c["w"])[3:] == (2, 4),
    "fromkeys": lambda c: dict(Chest.fromkeys("ab", 1)) == {"a": 1, "b": 1},
    "copy": lambda c: (dict(c.copy()), c.copy()["x"] is c["x"]) == (dict(c), False),
    "flush": lambda c: (c.flush(), len(c.inmem), c["x"]) == (None, 0, [1]),
    "sync": lambda c: (c.sync(), c["x"]) == (None, [1]),
    "rollback": lambda c: (c.sync(), c.update(x=0), c.rollback(), c["x"])[-1] == [1],
    "transaction": lambda c: transact(c) and c["x"] == "new",
    "write_keys": lambda c: c.write_keys() is None,
    "close": lambda c: (c.close(), c["x"]) == (None, [1]),
    "drop": lambda c: (c.flush(), c.drop(), os.path.exists(c.path)) == (None, None, False),
    "prefetch": lambda c: (c.flush(), c.prefetch(["x", "y"]), len(c.inmem))[2] == 2,
    "move_to_disk": lambda c: (c.move_to_disk("x"), "x" in c.inmem, c["x"]) == (None, False, [1]),
    "get_from_disk": lambda c: (c.flush(), c.get_from_disk("x")) == (None, [1]),
    "shrink": lambda c: c.shrink() is None,
    "key_to_filename": lambda c: (c.flush(), os.path.isfile(c.key_to_filename("x"))) == (None, True),
    "disk_usage": lambda c: (c.flush(), len(c.disk_usage()))[1] == 2,
    "inmem": lambda c: c.inmem["x"] == [1],
    "available_memory": lambda c: c.available_memory > 1000,
    "memory_usage": lambda c: c.memory_usage > 0,
    "lock": lambda c: c.lock.__enter__() is not None and c.lock.__exit__(None, None, None) is None,
    "stats": lambda c: c.stats.spills >= 0,
    "path": lambda c: c.path.endswith("a-chest"),
}


def transact(c):
    with c.transaction():
        c["x"] = "new"
    return True


SPECIAL = {
    "len, in, iteration": lambda c: (len(c), "x" in c, sorted(map(str, c)), len(list(reversed(c)))) == (3, True, ["('a', 1)", "x", "y"], 3),
    "delete": lambda c: (c.__delitem__("x"), "x" in c) == (None, False),
    "equal": lambda c: c == dict(c) and not c == {},
    "merge": lambda c: (dict(c | {"z": 1})["z"], c.__ior__({"w": 2})["w"]) == (1, 2),
    "copy.copy and deepcopy": lambda c: dict(copy.copy(c)) == dict(copy.deepcopy(c)) == dict(c),
    "text": lambda c: all(map(str, (str(c), repr(c), c._repr_html_()))),
    "pickled": lambda c: (c.flush(), dict(pickle.loads(pickle.dumps(c))) == dict(c))[1],
}


def test_the_list_has_all_that_is_public(path):
    public = {name for name in dir(Chest(path=path)) if not name.startswith("_")}
    hooks = {"dump", "load", "open", "mode", "on_miss", "on_overflow", "open_many"}
    assert public - hooks - DONE.keys() == set()


@pytest.mark.parametrize("small", [None, 4096], ids=["loose", "packs"])
@pytest.mark.parametrize("what", [*DONE, *SPECIAL])
def test_each_does_what_it_says(what, small, path):
    with Chest({"x": [1], "y": b"y" * 5000, ("a", 1): {"deep": None}}, path=path, min_file_size=small) as c:
        assert {**DONE, **SPECIAL}[what](c)


@pytest.mark.parametrize("command", [["ls"], ["info"], ["check"], ["get", "x"], ["rm", "x"], ["copy", "TO"]], ids=lambda line: line[0])
def test_each_command(command, path, tmp_path, capsys):
    with Chest({"x": [1], "y": 2}, path=path):
        pass
    verb, *rest = [str(tmp_path / "to") if word == "TO" else word for word in command]
    assert main.main([verb, path, *rest]) in (0, None)
    assert (verb == "rm") == ("x" not in Chest(path=path, flag="r"))


def test_a_module_of_helpers():
    assert utils.raises(KeyError, lambda: utils.raise_KeyError("x")) and not utils.raises(KeyError, str)


def test_nothing_is_warned_of_or_logged_but_a_drop(path, caplog):
    with caplog.at_level(logging.WARNING, "chest"):
        c = Chest({"x": b"x" * 400_000, "y": [1]}, path=path, available_memory=100_000)
        c.flush()
        c.prefetch(["x", "y"])
        Chest(path=path).update(c)
        c.drop()
    assert [record.getMessage() for record in caplog.records] == [f"dropped {path}"]
