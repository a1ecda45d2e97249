"""Values with arrays in them, and how they are written and read, for the tests of arrays and of maps."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, Callable

import pytest

np = pytest.importorskip("numpy", reason="these are tests of arrays")
hypothesis = pytest.importorskip("hypothesis", reason="these tests draw arrays")

from hypothesis import strategies as st  # noqa: E402

from chest import aligned, arrays, maps  # noqa: E402

LARGE = 20_000  # items: with eight bytes each well over the size from which on arrays are mapped
MODES = (None, "c", "r")
posix = pytest.mark.skipif(not hasattr(os, "preadv"), reason="files are not mapped on this system")
linux = pytest.mark.skipif(not os.path.exists("/proc/self/pagemap"), reason="no page map on this system")
quick = hypothesis.settings(max_examples=60, deadline=None)


def write(path: Path, value: object) -> Path:
    path.unlink(missing_ok=True)
    with open(path, "xb", buffering=0) as file:
        arrays.dump(value, file)
    return path


def read(path: Path, mode: str | None = None) -> Any:
    with open(path, "rb", buffering=0) as file:
        return arrays.load(file, mode)


def is_same(value: object, path: Path) -> bool:
    with open(path, "rb", buffering=0) as file:
        return arrays.same(value, file)


def notes(path: Path) -> list[aligned.Note]:
    with open(path, "rb") as file:
        layout = aligned.read_layout(file)
    return list(layout.notes) if layout else []


def map_of(array: Any) -> Any:
    place = maps.place(array)
    return place and place.under


def equal(one: Any, other: Any) -> bool:
    """Equal in every way that shows, flags of memory apart."""
    if type(one) is not type(other) or one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.dtype.hasobject:
        return bool(one.tolist() == other.tolist())
    masks = np.ma.getmaskarray(one).tobytes() == np.ma.getmaskarray(other).tobytes()
    return masks and bool(np.asarray(one).tobytes() == np.asarray(other).tobytes())


DTYPES = ["?", "i1", "<i4", ">i8", "u8", "f2", "f4", "<f8", ">f8", "c16", "S3", "U2", "M8[s]", "m8[ns]", "V5"]
DTYPES += ["i4,f8", [("x", "f8"), ("y", "S3", (2,))], "O"]  # type: ignore[list-item]
VIEWS: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda a: a,
    "Fortran": np.asfortranarray,
    "transposed": lambda a: a.T,
    "axes swapped": lambda a: a.swapaxes(0, -1) if a.ndim else a,
    "every other": lambda a: a[::2] if a.ndim else a,
    "backwards": lambda a: a[::-1] if a.ndim else a,
    "part": lambda a: a[1:] if a.ndim else a,
    "masked": lambda a: np.ma.masked_array(a, mask=np.arange(a.size).reshape(a.shape) % 3 == 0),
    "record": lambda a: a.view(np.recarray) if a.dtype.names else a,
    "broadcast": lambda a: np.broadcast_to(a, (2, *a.shape)),
}


@st.composite
def drawn_arrays(draw: Any) -> Any:
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    large = 70_000 // dtype.itemsize + 1
    small_shapes = [(), (0,), (3, 0), (1,), (5,), (2, 3, 4)]
    shape = draw(st.sampled_from([*small_shapes, (large,), (2, large // 2 + 1), (large, 1, 2)]))
    size = int(np.prod(shape, dtype=int))
    if dtype.hasobject:
        made = np.array([None, "text", 7] * (size // 3 + 1), dtype=object)[:size].reshape(shape)
    else:
        seed = draw(st.binary(min_size=1, max_size=40))
        made = np.resize(np.frombuffer(seed, "u1") & 1, size * dtype.itemsize).view(dtype).reshape(shape).copy()
    made = VIEWS[draw(st.sampled_from(sorted(VIEWS)))](made)
    if draw(st.booleans()):
        made.flags.writeable = False
    return made


def run(script: str, *arguments: object) -> str:
    """What a script prints in a process of its own."""
    head = "import sys\nimport numpy as np\nfrom chest import arrays, maps\n"
    root = str(Path(arrays.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return done.stdout.strip()


@dataclasses.dataclass
class Result:
    name: str
    data: Any


class Plain:
    """An instance whose values repeat the names of its attributes: interning changes how it pickles."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self.title = "".join(["ti", "tle"])


def frame() -> Any:
    pandas = pytest.importorskip("pandas", reason="a value of this test is a frame")
    numbers = np.arange(4.0 * LARGE).reshape(LARGE, 4)
    made = pandas.DataFrame(numbers, columns=list("abcd"))
    made["text"] = "x"
    made["whole"] = np.arange(LARGE)
    return made


def shared() -> Any:
    one = np.arange(LARGE, dtype="f8")
    fixed = one.copy()
    fixed.flags.writeable = False
    return {"first": one, "again": one, "view": one[3:], "fixed": fixed, "both": (fixed, one)}


VALUES: dict[str, Callable[[], Any]] = {
    "dict": lambda: {"x": np.ones(LARGE), "y": [np.zeros(LARGE, "f4"), np.zeros(3)], "n": 1},
    "shared": shared,
    "dataclass": lambda: Result("r", {"deep": [Result("s", np.arange(LARGE))]}),
    "instances": lambda: [Plain(np.ones(LARGE)), Plain(np.zeros(LARGE)), {"data", "title", frozenset([1])}],
    "frame": frame,
    "series": lambda: frame()["whole"].copy(),
    "one dtype": lambda: [np.zeros(LARGE, d) for d in [np.dtype([("a", "f8")])] * 3],
    "masked": lambda: np.ma.masked_array(np.arange(LARGE), mask=False),
    "bytes": lambda: [b"x" * 100_000, bytearray(100_000), "é" * 100_000, np.ones(LARGE)],
    "long stream": lambda: [np.ones(LARGE), [f"{i:>20}" for i in range(100_000)], b"x" * 100_000, np.zeros(LARGE)],
}
MAPPED = {"dict", "shared", "dataclass", "instances", "frame", "series", "one dtype", "bytes", "long stream"}
