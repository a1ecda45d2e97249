"""What type checkers say of code that uses a chest: they read `typed`."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from children import HOME

HERE = os.path.dirname(os.path.abspath(__file__))


def test_mypy_knows_a_chest_as_a_dict():
    pytest.importorskip("mypy")
    known = {} if "site-packages" in HOME else {"MYPYPATH": HOME}  # an installed package is found by itself
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir", os.devnull]
    done = subprocess.run([*command, os.path.join(HERE, "typed.py")], capture_output=True, text=True,
                          env={**os.environ, **known}, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_pyright_knows_a_chest_as_a_dict(tmp_path):
    places = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    command = shutil.which("pyright", path=places) or shutil.which("basedpyright", path=places)  # that one is all in a wheel
    if command is None:
        pytest.skip("there is no pyright")
    settings = {"include": [os.path.join(HERE, "typed.py")], "extraPaths": [HOME], "typeCheckingMode": "standard",
                "enableTypeIgnoreComments": True, "reportUnnecessaryTypeIgnoreComment": "error"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run([command, "--pythonpath", sys.executable, "--project", tmp_path],
                          capture_output=True, text=True, timeout=300)
    assert "0 errors" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
