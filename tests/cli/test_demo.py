"""The demo: a small run of the whole thing tells the truth, answers its question and cleans up after itself."""
import os
import re

import pytest
from children import chest_command

from chest.cli.main import main


def megabytes(text, what):
    return float(re.search(what.replace("AMOUNT", r"([\d.]+) MB"), text)[1])


def test_a_small_demo_tells_the_truth_answers_its_question_and_leaves_nothing(tmp_path):
    pytest.importorskip("numpy")
    found = chest_command("demo", "--size", "40 MB", "--budget", "8 MB", env={**os.environ, "TMPDIR": str(tmp_path)})
    assert (found.returncode, found.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []
    told = found.stdout
    chosen = re.search(r"^Most like (\S+\.py):$", told, re.MULTILINE)[1]
    others = re.findall(r"^ +([\d.]+)%  (\S+\.py)$", told, re.MULTILINE)
    assert len({name for _, name in others} - {chosen}) == 5
    assert [float(likeness) for likeness, _ in others] == sorted((float(likeness) for likeness, _ in others), reverse=True)
    everything = megabytes(told, "AMOUNT in all")
    assert everything - 8.6 <= megabytes(told, "AMOUNT were spilled") <= everything
    assert megabytes(told, "  AMOUNT from disk") >= everything - 0.1
    peaks = re.findall(r"([\d.]+) MB of memory at the peak, of which Python and numpy alone take ([\d.]+) MB", told)
    assert len(peaks) == 2
    assert all(float(peak) < float(idle) + 8 + 64 for peak, idle in peaks)


@pytest.mark.parametrize("arguments", [["--budget", "much"], ["--size", "much"], ["--size", "900000 TB"]])
def test_sizes_that_will_not_do_and_no_numpy_are_errors_of_one_line(capsys, monkeypatch, arguments):
    with monkeypatch.context() as without:
        without.setattr("importlib.util.find_spec", lambda name: None)
        assert main(["demo"]) == 2
    assert re.fullmatch(r"chest: .*pip install 'chest\[numpy\]'\n", capsys.readouterr().err)
    pytest.importorskip("numpy")
    assert main(["demo", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1
