"""What streams through a chest never takes more memory than its budget, the value at hand and 64 MB."""
import json
import os

import pytest
from children import python

pytest.importorskip("numpy", reason="streams arrays")
pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no VmHWM on this system")

MB = 10**6
BUDGET, VALUE, COUNT, SLACK = 100 * MB, 8 * MB, 125, 64 * MB  # 1 GB in all

# VmHWM, as the peak that getrusage tells begins with that of the process that started this one.
STREAM = """
import json, sys
import numpy as np
from chest import Chest

path, mode, budget, value, count = sys.argv[1], sys.argv[2] or None, *map(int, sys.argv[3:])

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

c = Chest(path=path, available_memory=budget, mmap_mode=mode)
np.full(value // 8, 1.0).sum()
start, peaks = peak(), {}
for work in set_all, get_all, iterate, c.flush, prefetch, c.flush, change, c.flush:
    work()
    peaks[work.__name__] = peak() - start
assert [c[n][0] for n in range(count)] == [-1] * count
print(json.dumps(peaks))
"""


@pytest.mark.parametrize("mode", ["", "c"], ids=["loaded", "mapped"])
def test_a_gigabyte_streams_through_a_small_budget_in_little_memory(path, mode):
    peaks = json.loads(python(STREAM, path, mode, BUDGET, VALUE, COUNT))

    assert BUDGET / 2 < peaks["set_all"]  # else this would measure nothing
    assert {work: peak for work, peak in peaks.items() if peak > BUDGET + VALUE + SLACK} == {}
