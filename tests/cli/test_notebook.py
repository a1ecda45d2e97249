"""What a notebook shows: the right figures, escaped, and right whatever the page's own stylesheet says of tables."""
import html as escaping
import re
import shutil
import subprocess

import pytest

from chest import Chest
from chest.cli import notebook

# What JupyterLab 4 and notebook 7 say of tables in an output; the last is nbconvert's classic template.
JUPYTER = """
.jp-RenderedHTMLCommon table { border-collapse: collapse; border: none; margin-left: auto; margin-right: auto;
  table-layout: fixed; font-size: 12px; }
.jp-RenderedHTMLCommon td, .jp-RenderedHTMLCommon th, .jp-RenderedHTMLCommon tr { text-align: right;
  vertical-align: middle; padding: 0.5em; line-height: normal; white-space: normal; max-width: none; border: none; }
.jp-RenderedHTMLCommon:not(.jp-RenderedMarkdown) td, .jp-RenderedHTMLCommon:not(.jp-RenderedMarkdown) th {
  text-align: right; }
.jp-RenderedHTMLCommon tbody tr:nth-child(odd) { background: rgb(250, 0, 0); }
.jp-RenderedHTMLCommon tbody tr:nth-child(even) { background: rgb(245, 0, 0); }
.rendered_html tr, .rendered_html th, .rendered_html td { text-align: right; }
"""
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--host-resolver-rules=MAP * ~NOTFOUND"]  # nothing is fetched
SEEN = """[["", "color"], ["td", "textAlign"], ["th", "textAlign"], [".number", "textAlign"],
  ["tr:nth-child(2)", "backgroundColor"], ["tr:nth-child(1)", "backgroundColor"]].map(([place, what]) =>
  getComputedStyle(document.querySelector(".chest-view " + place))[what]).join("; ")"""
PAGE = """<!doctype html><meta charset="utf-8"><title></title><style>{style}</style>
<body style="background: {paper}" data-jp-theme-light="{light}">
<div class="jp-RenderedHTMLCommon jp-RenderedHTML rendered_html">{view}</div><script>document.title = {seen}</script>"""
THEMES = {"light": "rgb(31, 35, 40)", "dark": "rgb(230, 237, 243)"}  # and the colour of the ink


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


def test_a_view_tells_keys_memory_hits_and_the_bytes_on_disk_and_loads_nothing(chest):
    shown = text_of(chest._repr_html_())
    assert chest.path in shown
    assert f"11 keys, {len(chest.inmem)} in memory, " in shown
    assert f"{chest.memory_usage / 1000:.1f} kB of 85.0 kB" in shown
    assert "100% from memory (1 of 1)" in shown
    chest.flush()
    assert f"disk {sum(chest.disk_usage()) / 1000:.1f} kB" in text_of(notebook.table(chest))
    assert (chest.stats.misses, len(chest.inmem)) == (0, 0)


def test_a_view_shows_the_largest_keys_first_and_as_text(path):
    evil = "<script>alert('x') & more</script>\x1b\u202e"
    with Chest({"small": b"1", evil: bytes(5000), "middle": bytes(50), 1 << 20_000: 0}, path=path) as chest:
        shown = notebook.table(chest)
    assert shown.index("alert") < shown.index("middle") < shown.index("small")
    assert "&lt;script&gt;" in shown
    assert not any(unwanted in shown for unwanted in ("<script", "\x1b", "\u202e"))


def test_a_chest_that_is_empty_full_or_has_very_many_keys_has_a_view(monkeypatch):
    monkeypatch.setattr(notebook, "MOST", 2)
    with Chest() as chest:
        assert "0 keys" in text_of(notebook.table(chest))
        assert "(temporary)" in text_of(notebook.table(chest))
        chest.update({n: bytes(5000) for n in range(3)})
        chest.sync()
        chest._engine.state.available = 100
        assert 'class=over style="width: 100.0%"' in notebook.table(chest)
        assert "not counted: over 2 keys" in text_of(notebook.table(chest))


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
@pytest.mark.parametrize("theme", THEMES)
def test_a_browser_shows_the_view_in_the_colours_of_its_theme(chest, theme, tmp_path):
    light, page = theme == "light", tmp_path / "page.html"
    page.write_text(PAGE.format(style=JUPYTER, paper="white" if light else "#111111", light=str(light).lower(),
                                view=notebook.table(chest), seen=SEEN), encoding="utf-8")
    command = ["chromium", *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    document = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search("<title>(.*?)</title>", document)[1].split("; ")
    assert found == [THEMES[theme], "left", "left", "right", *["rgba(0, 0, 0, 0)"] * 2]
    assert text_of(notebook.table(chest)) in text_of(document)
