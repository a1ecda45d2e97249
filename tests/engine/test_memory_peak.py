"""What streams through a chest never takes more memory than its budget, the value at hand and 64 MB."""
import json
import os

import pytest
from children import python

from chest import Chest

pytest.importorskip("numpy", reason="streams arrays")
pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no VmHWM on this system")

MB = 10**6
BUDGET, VALUE, COUNT, SLACK = 100 * MB, 8 * MB, 125, 64 * MB  # 1 GB in all

# VmHWM, as the peak that getrusage tells begins with that of the process that started this one.
STREAM = """
import json, sys
import numpy as np
from chest import Chest

path, mode, works, budget, value, count = sys.argv[1], sys.argv[2] or None, sys.argv[3].split(), *map(int, sys.argv[4:])

def peak():
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))

def set_all():
    for n in range(count):
        c[n] = np.full(value // 8, float(n))

def get_all():
    for n in range(count):
        assert c[n][-1] == n

def iterate():
    for n, array in enumerate(c.values()):
        assert array.sum() == n * (value // 8)

def prefetch():
    c.prefetch(range(count))
    assert c.inmem

def change():
    for n in range(count):
        c[n][0] = -1

def flush():
    c.flush()

def grow():  # nobody sets these values, nor need any leave for another
    for turn in range(12):
        for n in range(25):
            [c.__getitem__, c.get, c.setdefault][turn % 3](("list", n)).append(np.full(value // 64, float(turn)))
    assert [len(c["list", n]) for n in range(25)] == [12] * 25 and c.stats.spills

packs = mode == "packs"
c = Chest(path=path, available_memory=budget, mmap_mode=None if packs else mode, min_file_size=packs << 30)
if "grow" in works:
    c.update({("list", n): [] for n in range(25)})
np.full(value // 8, 1.0).sum()
start, peaks = peak(), {}
for work in works:
    globals()[work]()
    peaks[work] = peak() - start
assert "change" not in works or [c[n][0] for n in range(count)] == [-1] * count
print(json.dumps(peaks))
"""


@pytest.mark.parametrize(("mode", "works"), [
    ("", "set_all get_all iterate change flush"), ("c", "set_all get_all iterate change flush"),
    ("packs", "set_all get_all iterate change flush"), ("", "set_all flush prefetch flush change flush"), ("", "grow")],
    ids=["loaded", "mapped", "packed", "used again", "grown in place"])
def test_a_gigabyte_streams_through_a_small_budget_in_little_memory(path, mode, works):
    """The peaks are the most bytes that each of ``works`` and those before it took.

    The C library gives the memory of each array back when it is freed.  Otherwise it keeps all of it as soon as a small
    thing stands behind them: the interpreter's table of names, say, if it happens to grow as the first values are set.
    """
    peaks = json.loads(python(STREAM, path, mode, works, BUDGET, VALUE, COUNT, MALLOC_MMAP_THRESHOLD_="1000000"))
    assert BUDGET / 2 < peaks[works.split()[0]]  # else this would measure nothing
    assert {work: peak for work, peak in peaks.items() if peak > BUDGET + VALUE + SLACK} == {}


def test_each_hit_counts_once_also_where_the_system_is_asked_for_memory_in_between():
    c = Chest({"x": [1]})
    for n in range(20_000):
        assert (c["x"] if n % 2 else c.get("x")) == [1]
    assert c.stats.hits == 20_000
