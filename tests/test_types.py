"""What type checkers say of code that uses a chest: they read `typed`."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

import chest

HERE = os.path.dirname(os.path.abspath(__file__))
HOME = os.path.dirname(os.path.dirname(os.path.abspath(chest.__file__)))


def said(*command):
    known = {} if "site-packages" in HOME else {"MYPYPATH": HOME}  # an installed package is found by itself
    done = subprocess.run([sys.executable, "-m", *command, os.path.join(HERE, "typed.py")],
                          capture_output=True, text=True, env={**os.environ, **known}, timeout=300)
    return done.returncode, done.stdout + done.stderr


def test_mypy_knows_a_chest_as_a_dict():
    pytest.importorskip("mypy")
    code, told = said("mypy", "--strict", "--follow-imports=silent", "--cache-dir", os.devnull)
    assert code == 0, told


@pytest.mark.skipif(shutil.which("pyright") is None, reason="there is no pyright")
def test_pyright_knows_a_chest_as_a_dict():
    done = subprocess.run(["pyright", "--pythonpath", sys.executable, os.path.join(HERE, "typed.py")],
                          capture_output=True, text=True, cwd=HOME, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
