"""The logger ``chest``: silent until asked, then a line for what a chest does by itself."""
import logging
import os

import pytest
from children import python

from chest import Chest
from chest.index import KEYS


@pytest.fixture
def told(caplog):
    """The lines of the logger ``chest``, as pairs of level and text."""
    caplog.set_level(logging.DEBUG, logger="chest")
    return lambda: [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "chest"]


def test_a_commit_is_a_line_that_names_the_path(told, path):
    chest = Chest(path=path)
    chest["x"] = 1
    before = len(told())
    chest.sync()
    commits = [text for level, text in told()[before:] if level == "DEBUG" and "commit" in text]
    assert commits == [f"committed {path}; keys: 1"]


def test_a_spill_is_a_line(told, path):
    chest = Chest(path=path, available_memory=1500)
    chest["x"] = bytes(1000)
    chest["y"] = bytes(1000)
    chest["z"] = bytes(1000)
    spills = [text for level, text in told() if level == "DEBUG" and "spill" in text]
    assert spills[0] == f"spilled 1 of {path}, 'x' first; wrote 1, {os.stat(chest.key_to_filename('x')).st_size} bytes"


def test_a_torn_commit_of_a_process_that_died_is_a_line(told, path):
    chest = Chest(path=path)
    chest["x"] = 1
    chest.flush()
    chest["y"] = 2
    chest.sync()
    with open(os.path.join(path, KEYS), "ab") as file:
        file.write(b"+chs torn")
    assert dict(Chest(path=path)) == {"x": 1, "y": 2}
    assert any(level == "DEBUG" and "torn record" in text and path in text for level, text in told())


def test_a_leftover_in_the_way_is_a_warning_that_names_it(told, path):
    chest = Chest(path=path)
    with open(os.path.join(path, "x"), "w") as file:
        file.write("somebody's")
    chest["x"] = 1
    chest.sync()
    warnings = [text for level, text in told() if level == "WARNING"]
    assert len(warnings) == 1
    assert os.path.join(path, "x") in warnings[0]


def test_a_temporary_chest_ends_without_a_warning(told):
    with Chest({"x": 1}, available_memory=10) as chest:
        chest.flush()
    assert [text for level, text in told() if level == "WARNING"] == []


@pytest.mark.parametrize("first", ["", "import logging"])
def test_nothing_is_printed_unless_asked(path, first):
    script = f"""
{first}
from chest import Chest
c = Chest({{"x": 1, "y": bytes(1000)}}, path={path!r}, available_memory=500)
open(c.path + "/z", "w").close()
c["z"] = 1
c.flush()
c.drop()
"""
    assert python(script) == ""
