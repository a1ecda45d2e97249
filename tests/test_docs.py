"""What the pages say is so: their examples run, the file format is as described, and the pages build."""
import doctest
import importlib.metadata
import json
import os
import re
import textwrap
from pathlib import Path

import independent_reader
import pytest
from children import python

import chest
from chest import Chest
from chest.cli.main import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.rst", *sorted((ROOT / "docs").glob("*.rst"))]
NEEDED = {"numpy": ">>> import numpy", "pandas": ">>> import pandas", "fsspec": '="memory://'}
SPOKEN_OF = r"<([\w./-]+\.(?:rst|txt|md))>|image:: (\S+)|literalinclude:: (\S+)"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Runner(doctest.DocTestRunner):
    """Lets a page skip what follows, for want of a library, as pytest's own runner does."""

    def report_unexpected_exception(self, out, test, example, exc_info):
        if isinstance(exc_info[1], pytest.skip.Exception):
            raise exc_info[1]
        super().report_unexpected_exception(out, test, example, exc_info)


def text_of(*places):
    return (ROOT / Path(*places)).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_example_of_the_page_is_true(page):
    text = page.read_text(encoding="utf-8")
    for library, sign in NEEDED.items():
        if sign in text:
            pytest.importorskip(library)
    runner = Runner(optionflags=FLAGS)
    runner.run(doctest.DocTestParser().get_doctest(text, {"__name__": "__main__"}, page.name, str(page), 0))
    assert runner.failures == 0


@pytest.mark.parametrize("script, printed", [("pool.py", "40\n"), ("terminated.py", "3 of 3 values saved\n")])
def test_the_scripts_of_the_pages_work(script, printed):
    if script == "terminated.py" and os.name == "nt":
        pytest.skip("SIGTERM cannot be handled on Windows")
    assert python(str(ROOT / "docs" / script), timeout=300) == printed


def test_files_that_the_pages_speak_of_are_there():
    for page in PAGES:
        for target in re.findall(SPOKEN_OF, page.read_text(encoding="utf-8")):
            name = next(filter(None, target))
            assert (page.parent / name).is_file(), f"{page.name} speaks of {name}"


def test_the_front_page_of_the_package_index_has_no_link_that_needs_the_repository():
    """As the installed package has it; an editable one as it was when it was installed."""
    try:
        metadata = importlib.metadata.metadata("chest")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is not installed")
    page = metadata["Description"] or metadata.get_payload()
    targets = [next(filter(None, found)) for found in re.findall(SPOKEN_OF, page)]
    assert not [target for target in targets if not target.startswith("https://")]
    for target in re.findall(r"/HEAD/(\S+?)(?:>|\n)", page):
        assert (ROOT / target).is_file(), target
    assert {"Documentation", "Source"} <= {url.split(",")[0] for url in metadata.get_all("Project-URL")}


def test_every_picture_is_one_that_the_command_for_pictures_makes():
    scripts = text_of("benchmarks", "pictures.py") + text_of("benchmarks", "compare_pictures.py")
    pictures = {Path(name) for page in PAGES for name in re.findall("image:: (\\S+)", page.read_text(encoding="utf-8"))}
    for picture in pictures:
        assert f'"{picture.name}"' in scripts or f'"{picture.stem}": [' in scripts, picture
    assert len(pictures) >= 6


def test_the_benchmark_of_peers_measures_chest_where_it_is_not_installed(tmp_path):
    pytest.importorskip("numpy")
    script = str(ROOT / "benchmarks" / "compare.py")
    found = python(script, "--one", "small", "chest", tmp_path / "store", stderr=None, timeout=300, PYTHONPATH="")
    assert json.loads(found).keys() == {"set", "get"}


def test_every_exported_name_keyword_and_method_of_a_chest_is_on_a_page():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    api = text_of("docs", "api.rst")
    for name in (*chest.__all__, *chest.core.__all__, *chest.errors.__all__[:4]):
        assert name in api
    for name in Chest.__init__.__annotations__.keys() - {"data", "path", "return"}:
        assert name in text, name
    for name in vars(Chest):
        assert name.startswith("_") or re.search(rf"\b{name}\b", api), name


def test_the_pages_build_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    python("import runpy; runpy.run_module('sphinx', run_name='__main__')",
           "-W", "-q", "-b", "html", ROOT / "docs", tmp_path / "html", timeout=300)


def test_breaking_a_commit_as_the_page_for_contributors_says_leaves_the_last_one():
    script = textwrap.dedent(re.search(r"python - <<'END'\n(.*?)    END", text_of("CONTRIBUTING.rst"), re.DOTALL)[1])
    python(script, code=9, timeout=300)
    assert dict(Chest(path="broken", flag="r")) == {"x": 1}
    assert main(["check", "broken", "--repair", "--leftovers", "--yes"]) == 0
    assert sorted(os.listdir("broken")) == [".keys", ".keys~", "x"]
    Chest({"y": 3}, path="broken").close()
    assert sorted(os.listdir("broken")) == [".keys", "x", "y"]


def read(path):
    """All that an independent reader finds."""
    return {key: independent_reader.read_value(path, ref) for key, ref in independent_reader.read_index(path).items()}


def test_an_independent_reader_reads_an_index_with_records_and_packs(path):
    writer = Chest(path=path, min_file_size=4096)
    writer.update({"a": 1, ("b", 2): 2, 3: 3, "gone": 4, "large": bytes(5000)})
    writer.flush()
    writer["a"] = "new"
    writer.sync()
    del writer["gone"]
    writer["last"] = None
    writer.sync()
    with open(os.path.join(path, ".keys"), "ab") as file:
        file.write(b"+chs\x99\0\0")  # torn
    assert [type(independent_reader.read_index(path)[key]) for key in ("a", "large")] == [int, str]
    assert list(read(path).items()) == [("a", "new"), (("b", 2), 2), (3, 3), ("large", bytes(5000)), ("last", None)]


def test_an_independent_reader_finds_the_bytes_of_arrays(path):
    numpy = pytest.importorskip("numpy")
    arrays = [numpy.arange(n, dtype="f8") for n in (10_000, 8192, 70_001, 12_345)]
    arrays[2].flags.writeable = False
    for pad in range(70):  # so that all gaps come up
        with Chest(path=path, durable=pad % 2 == 0) as writer:
            writer["x"] = ["p" * pad, *arrays, numpy.arange(10)]
        data = Path(path, independent_reader.read_index(path)["x"]).read_bytes()
        _, places = independent_reader.read_note(data)
        assert [size for _, size in places] == [array.nbytes for array in arrays]
        for (begin, size), array in zip(places, arrays):
            assert data[begin : begin + size] == array.tobytes()
    Chest({"x": numpy.arange(100_000.0).reshape(100, 1000)}, path=path).close()
    assert (read(path)["x"] == numpy.arange(100_000.0).reshape(100, 1000)).all()
