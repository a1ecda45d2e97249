"""All pictures of the documentation, made anew: ``docs/figures`` and ``docs/notebook*.png``.

    python -m pip install -r benchmarks/requirements.txt        # and a chromium, for the notebook
    python benchmarks/pictures.py                               # a quarter of an hour, on a machine that is idle
    python benchmarks/pictures.py --only spill-order notebook   # some of them
    python benchmarks/compare.py --processor                    # where the machine is busy, and says so in the pictures

``compare.py`` measures and draws three, ``spill_order.py`` counts and draws one, and the pictures of the notebook show
a live page of JupyterLab.
"""
from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

CELLS = ["""import numpy as np
from chest import Chest

results = Chest(path="results", available_memory="100 MB")
for n in range(25):
    results["run", n] = np.full((1024, 1000), n)""", """for epoch in range(4):
    total = sum(array.sum() for array in results.values())
results"""]


def compare() -> None:
    run("compare.py")


def spill_order() -> None:
    run("spill_order.py", "--draw", str(ROOT / "docs" / "figures" / "spill-order.svg"))


def notebook() -> None:
    """The view of a chest in JupyterLab, light and dark."""
    import lab

    for theme, picture in ("light", "notebook.png"), ("dark", "notebook-dark.png"):
        with tempfile.TemporaryDirectory(prefix="chest-") as folder:
            lab.look(folder, CELLS, theme, "!!document.querySelector('.chest-view')", ROOT / "docs" / picture)


def run(script: str, *arguments: str) -> None:
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    subprocess.run([sys.executable, Path(__file__).with_name(script), *arguments], check=True,
                   env={**os.environ, "PYTHONPATH": paths})


PICTURES = {"compare": compare, "spill-order": spill_order, "notebook": notebook}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PICTURES, default=PICTURES, help="default: all")
    for name in parser.parse_args().only:
        PICTURES[name]()


if __name__ == "__main__":
    main()
