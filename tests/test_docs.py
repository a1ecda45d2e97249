"""What the pages say is so: their examples run, the file format is as described, and the pages build."""
import doctest
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import independent_reader
import pytest

import chest
from chest import Chest, cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.rst", *sorted((ROOT / "docs").glob("*.rst"))]
NEEDED = {"numpy": ">>> import numpy", "pandas": ">>> import pandas", "fsspec": '="memory://',
          "dask": ">>> import dask"}
SPOKEN_OF = r"<([\w./-]+\.(?:rst|txt))>|image:: (\S+)|literalinclude:: (\S+)"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_example_of_the_page_is_true(page):
    for library, sign in NEEDED.items():
        if sign in page.read_text(encoding="utf-8"):
            pytest.importorskip(library)

    failures, _ = doctest.testfile(str(page), module_relative=False, optionflags=FLAGS, encoding="utf-8")

    assert failures == 0


def test_the_readme_has_examples_and_stays_a_front_page():
    text = (ROOT / "README.rst").read_text(encoding="utf-8")

    assert text.count(">>> ") > 30
    assert len(text.splitlines()) < 300


def test_the_pool_of_the_page_on_processes_works(tmp_path):
    found = subprocess.run([sys.executable, ROOT / "docs" / "pool.py"], capture_output=True, text=True, timeout=120,
                           check=True, cwd=tmp_path)

    assert found.stdout == "40\n"


def test_files_that_the_pages_speak_of_are_there():
    for page in PAGES:
        for target in re.findall(SPOKEN_OF, page.read_text(encoding="utf-8")):
            name = next(filter(None, target))

            assert (page.parent / name).is_file(), f"{page.name} speaks of {name}"


def test_what_is_exported_is_on_the_api_page():
    text = (ROOT / "docs" / "api.rst").read_text(encoding="utf-8")

    for name in (*chest.__all__, *chest.core.__all__, *chest.errors.__all__[:3]):
        assert name in text


def test_the_pages_build_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")

    found = subprocess.run([sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", ROOT / "docs", tmp_path / "html"],
                           capture_output=True, text=True, timeout=300, check=False)

    assert found.stderr == ""
    assert found.returncode == 0


def test_breaking_a_commit_as_the_page_for_contributors_says_leaves_the_last_one(tmp_path):
    page = (ROOT / "CONTRIBUTING.rst").read_text(encoding="utf-8")
    script = textwrap.dedent(re.search(r"python - <<'END'\n(.*?)    END", page, re.DOTALL)[1])

    broken = subprocess.run([sys.executable, "-c", script], timeout=60, check=False, cwd=tmp_path)

    assert broken.returncode == 9
    assert dict(Chest(path="broken")) == {"x": 1}
    assert cli.main(["check", "broken", "--repair", "--leftovers", "--yes"]) == 0
    assert sorted(os.listdir("broken")) == [".keys", "x"]


# The format


def test_an_independent_reader_reads_an_index_with_records(path):
    writer = Chest(path=path)
    writer.update({"a": 1, ("b", 2): 2, 3: 3, "gone": 4})
    writer.flush()
    writer["a"] = "new"
    writer.sync()
    del writer["gone"]
    writer["last"] = None
    writer.sync()
    with open(os.path.join(path, ".keys"), "ab") as file:
        file.write(b"+chs\x99\0\0")

    names = independent_reader.read_index(path)
    values = {key: independent_reader.read_value(path, name) for key, name in names.items()}

    assert list(values.items()) == [("a", "new"), (("b", 2), 2), (3, 3), ("last", None)]


def test_an_independent_reader_reads_small_values(path):
    with Chest(path=path, min_file_size=4096) as writer:
        writer.update({"small": [1, 2], "large": bytes(5000)})

    names = independent_reader.read_index(path)

    assert isinstance(names["small"], int)
    assert independent_reader.read_value(path, names["small"]) == [1, 2]
    assert independent_reader.read_value(path, names["large"]) == bytes(5000)


def test_an_independent_reader_finds_the_bytes_of_arrays(path):
    numpy = pytest.importorskip("numpy")
    arrays = [numpy.arange(n, dtype="f8") for n in (10_000, 8192, 70_001, 12_345)]
    arrays[2].flags.writeable = False
    for pad in range(70):  # so that all gaps come up
        with Chest(path=path) as writer:
            writer["x"] = ["p" * pad, *arrays, numpy.arange(10)]
        name = independent_reader.read_index(path)["x"]
        data = Path(path, name).read_bytes()

        places = independent_reader.array_places(data)

        assert [size for _, size in places] == [array.nbytes for array in arrays]
        for (begin, size), array in zip(places, arrays):
            assert begin % 64 == 0
            assert data[begin : begin + size] == array.tobytes()


def test_a_chest_of_json_names_its_files_in_json(path):
    json = pytest.importorskip("json")
    with Chest(path=path, dump=json.dump, load=json.load) as writer:
        writer.update({"a": 1, ("b", 2): [2]})

    with open(os.path.join(path, ".keys")) as file:
        assert json.load(file) == [["a", "a"], [["b", 2], f"_b/{chest.core.key_to_filename(2)}"]]
