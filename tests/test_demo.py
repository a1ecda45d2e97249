"""The demo: a small run of the whole thing tells the truth, answers its question and cleans up after itself."""
import os
import re
import subprocess
import sys

import pytest

from chest import cli, demo


def run(*arguments, **environment):
    return subprocess.run([sys.executable, "-m", "chest", "demo", *arguments], capture_output=True, text=True,
                          timeout=300, check=False, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What a demo of 40 MB printed, and the directory that it worked in."""
    pytest.importorskip("numpy")
    scratch = tmp_path_factory.mktemp("scratch")
    found = run("--size", "40 MB", "--budget", "8 MB", TMPDIR=str(scratch))
    assert found.stderr == ""
    assert found.returncode == 0
    return found.stdout, scratch


def amount(text, what):
    """The figure that ``what`` matches, in MB."""
    number, unit = re.search(what.replace("AMOUNT", r"([\d.]+) (kB|MB|GB)"), text).groups()
    return float(number) * {"kB": 0.001, "MB": 1, "GB": 1000}[unit]


def test_the_demo_answers_its_question(told):
    out, _ = told
    pairs = re.findall(r"^ +([\d.]+)%  (\S+\.py) and (\S+\.py)$", out, re.MULTILINE)

    assert len(pairs) == 5
    assert all(one != other for _, one, other in pairs)
    assert [float(likeness) for likeness, _, _ in pairs] == sorted((float(pair[0]) for pair in pairs), reverse=True)


def test_the_demo_spills_what_does_not_fit(told):
    out, _ = told
    everything = amount(out, "AMOUNT in all")

    assert everything - 8.6 <= amount(out, "AMOUNT were spilled") <= everything


def test_the_demo_reads_from_disk_more_than_fits(told):
    out, _ = told

    assert amount(out, "were AMOUNT from disk") > 40 - 8.6


def test_both_processes_keep_to_the_budget(told):
    out, _ = told
    idle = amount(out, "numpy alone take AMOUNT")
    own = amount(out, "own matrices AMOUNT")

    assert amount(out, "writer .* AMOUNT") < idle + 8 + 64
    assert amount(out, "reader .* AMOUNT") < idle + 8 + own + 64


def test_the_demo_cleans_up_after_itself(told):
    _, scratch = told

    assert list(scratch.iterdir()) == []


def test_without_numpy_the_demo_says_in_one_line_how_to_install_it(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    assert cli.main(["demo"]) == 2

    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "pip install 'chest[numpy]'" in told


def test_a_full_disk_is_told_beforehand(capsys, monkeypatch):
    pytest.importorskip("numpy")
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)

    assert cli.main(["demo", "--size", "40 MB", "--budget", "8 MB"]) == 2

    assert "--size" in capsys.readouterr().err


class Usage:
    """A disk with little room."""

    free = 1_000_000


@pytest.mark.parametrize("arguments", [["--budget", "1 kB"], ["--size", "much"]])
def test_sizes_that_will_not_do_are_errors(capsys, arguments):
    pytest.importorskip("numpy")

    assert cli.main(["demo", *arguments]) == 2

    assert capsys.readouterr().err.count("\n") == 1


def test_blocks_compare_each_pair_once():
    numpy = pytest.importorskip("numpy")
    compared = numpy.zeros((23, 23))

    for tall, wide in demo._blocks(23, tall=5, wide=3):
        block = compared[tall, wide]
        block += demo._once(numpy.ones_like(block), tall, wide)

    assert (compared == numpy.triu(numpy.ones((23, 23)), 1)).all()
