"""What a notebook shows: the right figures, escaped, readable in both themes; seen in a real browser."""
import html as escaping
import re
import shutil
import subprocess

import pytest

from chest import Chest, html

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]
PAGE = """<!doctype html><meta charset="utf-8"><title></title><body style="background: {}" {}>{}
<script>document.title = getComputedStyle(document.querySelector(".chest-view")).color</script>"""


@pytest.fixture
def chest(path):
    """Eight of ten values fit into memory."""
    with Chest(path=path, available_memory=85_000) as filled:
        for n in range(10):
            filled[f"x{n}"] = bytes(10_000 - n)
        assert filled["x9"]
        filled["<script>alert(1)</script>"] = b""
        yield filled


def text_of(markup):
    """The words of a page, without its tags and style."""
    body = re.sub(r"<style>.*?</style>", " ", markup, flags=re.DOTALL)
    return " ".join(escaping.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def test_a_view_tells_keys_memory_disk_and_hits(chest):
    shown = text_of(html.table(chest))

    assert chest.path in shown
    assert f"11 keys, {len(chest.inmem)} in memory, " in shown
    assert f"{chest.memory_usage / 1000:.1f} kB of 85.0 kB" in shown
    assert "100% from memory (1 of 1)" in shown


def test_a_view_tells_the_bytes_on_disk(path):
    chest = Chest({"x": bytes(123_000)}, path=path)
    chest.flush()

    assert "disk 123.0 kB" in text_of(html.table(chest))


def test_a_notebook_asks_for_this_view(chest):
    assert chest._repr_html_() == html.table(chest)


def test_a_view_shows_the_largest_keys_first(path):
    chest = Chest({"small": b"1", "large": bytes(5000), "middle": bytes(50)}, path=path)

    shown = text_of(html.table(chest))

    assert shown.index("'large'") < shown.index("'middle'") < shown.index("'small'")


def test_a_view_shows_text_as_text(path):
    evil = "<script>alert('x') & more</script>"
    chest = Chest({evil: 1}, path=path)

    shown = html.table(chest)

    assert "<script" not in shown
    assert "&lt;script&gt;" in shown


def test_a_view_loads_no_value_and_counts_no_read(path):
    chest = Chest({"x": [1]}, path=path)
    chest.flush()

    html.table(chest)

    assert (chest.stats.hits, chest.stats.misses, len(chest.inmem)) == (0, 0, 0)


def test_an_empty_chest_has_a_view(path):
    assert "0 keys" in text_of(html.table(Chest(path=path)))


def test_a_bar_never_leaves_its_frame(path):
    chest = Chest({"x": bytes(5000)}, path=path)
    chest._life.available = 100

    assert 'class="over" style="width: 100.0%"' in html.table(chest)


def test_a_chest_of_very_many_files_is_not_counted_to_be_looked_at(path, monkeypatch):
    monkeypatch.setattr(html, "MOST", 2)
    chest = Chest({n: n for n in range(3)}, path=path)
    chest.flush()

    assert "not counted: over 2 files" in text_of(html.table(chest))


@pytest.fixture(scope="module")
def chromium():
    """Debian's browser."""
    found = shutil.which("chromium")
    if not found:
        pytest.skip("chromium is not installed")
    return found


def browse(chromium, page, folder, *what):
    """What the browser says of a page."""
    command = [chromium, *FLAGS, f"--user-data-dir={folder / 'profile'}", *what, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.parametrize(("background", "attribute", "ink"), [
    ("white", 'data-jp-theme-light="true"', "rgb(31, 35, 40)"),
    ("#111111", 'data-jp-theme-light="false"', "rgb(230, 237, 243)"),
], ids=["light", "dark"])
def test_a_browser_shows_the_view_in_the_colours_of_its_theme(chromium, chest, tmp_path, background, attribute, ink):
    page = tmp_path / "view.html"
    page.write_text(PAGE.format(background, attribute, html.table(chest)), encoding="utf-8")
    picture = tmp_path / "view.png"

    browse(chromium, page, tmp_path, "--window-size=640,360", f"--screenshot={picture}")
    document = browse(chromium, page, tmp_path, "--dump-dom")

    assert picture.stat().st_size > 5000  # an empty page of this size makes 1500 bytes
    assert text_of(html.table(chest)) in text_of(document)
    assert f"<title>{ink}</title>" in document
    assert "<script>alert" not in document
