"""A few seconds of `benchmarks/chaos.py`: processes that share a chest and are killed at random lose nothing."""
from __future__ import annotations

import os
import re

import pytest
from children import HOME, python

SCRIPT = os.path.join(HOME, "benchmarks", "chaos.py")
SECONDS = 60 if os.environ.get("CHEST_STRESS") else 5

pytestmark = pytest.mark.skipif(not hasattr(os, "fork") or not os.path.exists(SCRIPT), reason="needs POSIX, a checkout")


def test_processes_that_are_killed_at_random_lose_nothing_that_was_committed():
    for longer in 1, 5, 20:  # on a slow machine it takes its time until the first process is killed
        told = python(SCRIPT, "--seconds", longer * SECONDS, "--processes", 4, options=("-W", "ignore"), stderr=None)
        commits, _, _, kills, violations, _ = map(int, re.findall(r"\d+", told.splitlines()[-1]))
        assert violations == 0, told
        if commits and kills:
            break
    assert commits > 0
    assert kills > 0
