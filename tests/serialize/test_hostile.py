"""Strangers' pickles that mean harm, in child processes: refused, in bounded time and memory, and nothing is called.

`hostile.py` has the attacks and the limits.  A child may neither crash nor be killed.
"""
from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from chest.serialize import bounds, restricted

CHILD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "hostile.py")
FUZZED = 20_000  # mutated pickles of each of two children


def child(*arguments):
    """The lines that a child prints; its end must be its own."""
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, CHILD, *arguments], capture_output=True, text=True, env=environment, timeout=1200)
    last = ascii(Path("last.pickle").read_bytes()) if os.path.exists("last.pickle") else ""
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-3000:]} {done.stdout[-500:]} {last}"
    return done.stdout.splitlines()


def test_every_attack_is_refused_or_harmless():
    lines = child("corpus")
    assert len(lines) > 800 and [line for line in lines if not line.startswith("RIGHT")] == []
    assert sorted(os.listdir()) == []


@pytest.mark.parametrize("seed", [1, 2])
def test_no_mutated_pickle_crashes_or_calls_anything(seed):
    lines = child("fuzz", str(seed), str(FUZZED))
    assert lines[:-1] == [] and lines[-1].startswith(f"DONE {FUZZED} ")
    assert os.listdir() == ["last.pickle"]


def test_the_error_says_what_is_wrong_without_characters_of_the_pickle():
    with pytest.raises(restricted.Refused) as caught:
        restricted.loads(b"c\x1b[31mos\nsys\x07tem\n.")
    assert str(caught.value).isprintable() and r"\x1b[31mos.sys\x07tem" in str(caught.value)


def test_where_memory_runs_out_for_another_reason_the_error_is_not_hidden(monkeypatch):
    class Full(restricted._Fast):
        def load(self):
            raise MemoryError

    monkeypatch.setattr(restricted, "_Fast", Full)
    monkeypatch.setattr(restricted, "_Slow", Full)
    with pytest.raises(MemoryError):
        restricted.loads(b"\x80\x04]\x94(K\x01K\x02e.")
    with pytest.raises(restricted.Refused):
        restricted.loads(b"\x80\x04B\xff\xff\xff\xff.")


def test_large_indices_into_the_memo_are_seen_behind_texts_and_arrays():
    if not bounds._fills_memo():
        pytest.skip("this unpickler does not fill its memo")
    bomb = b"Nr\x00\x00\x00\x08"
    for front in b"", b"]" * 10, b"\x8c\x04user" * 20, b"B\x00\x00\x10\x00" + b"r" * (1 << 20), b"L7L\nI5\nVabc\nS'x'\n":
        with pytest.raises(restricted.Refused, match="memory"):
            restricted.loads(front + bomb + b".")
    with pytest.raises(restricted.Refused, match="memory"):
        restricted.loads(b"Np+1_000_000_000\n.")
    value = ["user", b"r" * 300, 114, 7.3e-22, "Np9999999999\n"] * 20
    assert restricted.loads(pickle.dumps(value)) == value
