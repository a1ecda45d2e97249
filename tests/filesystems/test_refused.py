"""Each scenario where the system can do less: it refuses something, or is another one.  In a process of its own."""
from __future__ import annotations

import os

import emulations
import pytest
from children import python

SCRIPT = emulations.__file__


@pytest.mark.parametrize("emulated", [*emulations.REFUSALS, *emulations.SYSTEMS], ids=lambda emulated: emulated.__name__)
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="what is in use is told by /proc")
def test_every_promise_is_kept_where_the_system_has_no_more_to_offer(emulated, tmp_path):
    lines = python(SCRIPT, emulated.__name__, tmp_path).splitlines()
    assert [line for line in lines if not line.endswith(": right")] == []
    assert len(lines) >= 12


OPENING = """
import os, sys
sys.path[:0] = [sys.argv[2]]
import emulations
getattr(emulations, sys.argv[1])()
from chest import Chest
for name, flag in (("new", "c"), ("c", "c"), ("c", "r")):
    try:
        with Chest(path=os.path.join(sys.argv[3], name), flag=flag) as c:
            print(flag, dict(c))
    except OSError as error:
        print(flag, error)
"""


@pytest.mark.parametrize("emulated", emulations.REFUSED_AT_OPENING, ids=lambda emulated: emulated.__name__)
def test_a_promise_that_cannot_be_kept_is_said_at_opening(emulated, tmp_path):
    """Who only reads needs no lock; whether a name is a link has to be told always."""
    import chest

    with chest.Chest({"x": 1}, path=tmp_path / "c"):
        pass
    new, made, read = python(OPENING, emulated.__name__, os.path.dirname(SCRIPT), tmp_path).splitlines()
    word = emulations.REFUSED_AT_OPENING[emulated]
    assert new.startswith("c [Errno") and word in new and str(tmp_path / "new") in new
    assert made.startswith("c [Errno") and word in made and str(tmp_path / "c") in made
    assert os.listdir(tmp_path) == ["c"]
    assert read == "r {'x': 1}" if word == "cannot lock" else word in read
