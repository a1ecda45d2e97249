"""The pictures of `compare.py`: for each figure a bar for each peer."""
from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any


def draw(results: dict[str, Any], folder: Path) -> None:
    """The three pictures: for each figure a bar for each peer, the best on top, and chest in colour."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "chest", "font.size": 9,
                                "font.family": "sans-serif"})
    pictures = {
        "arrays": [("arrays", "write", "Write an array of 8 MB (ms)"), ("arrays", "read", "Read it and add it up (ms)"),
                   ("maps", "map", "Map it and read one number (ms)")],
        "budget": [("budget", "reads", "Read 1 MB and add it up; half of all fits in memory (ms)"),
                   ("hits", "hit", "Read a value that is in memory (ns)")],
        "small": [("small", "set", "Set a small value (µs)"), ("small", "get", "Get a small value (µs)")],
    }
    for name, panels in pictures.items():
        draw_one(folder / f"{name}.svg", panels, results)


def draw_one(path: Path, panels: Iterable[tuple[str, str, str]], results: dict[str, Any]) -> None:
    from matplotlib import pyplot

    panels = list(panels)
    figure, axes = pyplot.subplots(1, len(panels), figsize=(10, 2.9))
    for axis, (work, figure_name, title) in zip(axes, panels):
        medians = results["medians"][work]
        bars = sorted(((figures[figure_name], peer) for peer, figures in medians.items()), reverse=True)
        values = [value for value, _ in bars]
        colours = [colour(peer) for _, peer in bars]
        axis.barh([peer for _, peer in bars], values, color=colours)
        for place, value in enumerate(values):
            axis.text(value, place, f" {figure_of(value)}", va="center")
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xlim(0, max(values) * 1.2)
        axis.xaxis.set_visible(False)
        axis.tick_params(left=False)
        axis.spines[:].set_visible(False)
    about = results["machine"]
    told = (f"Medians of {results['rounds']} rounds{', processor time' * results['processor']}.  Shorter is better.  "
            f"{about['cores']} cores, Python {about['python']}, {about['date']}")
    figure.text(0.995, 0.01, told, ha="right", fontsize=7, color="#59636e")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def figure_of(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.001 else "0"


def colour(peer: str) -> str:
    """chest in blue; what keeps to no budget, or to no dictionary, in light grey: it is no peer, but a measure."""
    if peer.startswith("chest"):
        return "#2f81f7"
    return "#d8dee4" if peer == "system calls" or peer.split()[0] == "dict" else "#9aa4af"
