"""The logger ``chest``: silent until asked, then a line for what a chest does by itself."""
import logging
import os
import pathlib

import pytest
from children import python, thread

from chest import Chest


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.DEBUG, logger="chest")
    return lambda level: [record.getMessage() for record in caplog.records
                          if (record.name, record.levelname) == ("chest", level)]


def test_a_commit_is_a_line_that_names_the_path_and_a_leftover_in_its_way_is_a_warning(told, path):
    chest = Chest({"x": 1}, path=path)
    pathlib.Path(path, "x").write_text("somebody's")
    chest.sync()
    assert [text for text in told("DEBUG") if "commit" in text] == [f"committed {path}; keys: 1"]
    (warning,) = told("WARNING")
    assert os.path.join(path, "x") in warning


def test_a_spill_is_a_line(told, path):
    chest = Chest({key: bytes(1000) for key in "xyz"}, path=path, available_memory=1500)
    spills = [text for text in told("DEBUG") if "spill" in text]
    assert spills[0] == f"spilled 1 of {path}; wrote 1, {os.stat(chest.key_to_filename('x')).st_size} bytes"


def test_a_lock_of_loggings_that_ctrl_c_left_taken_keeps_no_thread_from_spilling(path):
    chest = Chest(path=path, available_memory=1500)
    chest.update({key: bytes(1000) for key in "ab"})
    with logging._lock:  # of this thread
        with thread(chest.update, {key: bytes(1000) for key in "cd"}):
            pass
    assert len(chest) == 4


@pytest.mark.parametrize("key", [1 << 20_000, ("\x1b[31m", 1 << 20_000), "\x1b[31m\ud800"],
                         ids=["integer", "tuple", "text"])
def test_a_key_and_a_path_are_told_so_that_any_terminal_and_file_takes_them(told, tmp_path, key):
    """An integer of more digits than Python turns into text made the handler print an error of its own."""
    path = str(tmp_path / "a\x1b[31m path")
    with Chest({key: [1]}, path=path) as chest:
        chest.move_to_disk(key)
    assert any("spill" in text for text in told("DEBUG"))
    assert all(text.isprintable() for text in told("DEBUG"))


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
