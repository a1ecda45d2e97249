"""Loading what nobody vouches for beside loading what is trusted, and beside json.

    python benchmarks/trusted.py

For each kind of value: the time of `pickle.loads`, of a load with ``trusted=False`` as its ratio to that, and of
`json.loads` where json can hold the value.  Then the same through a chest: one `get` of a value on disk.  The three are
measured in turns by the processor time that they take, and each ratio is the median of the rounds.
"""
from __future__ import annotations

import datetime
import json
import pickle
import random
import statistics
import sys
import tempfile
import time
from typing import Any, Callable

from chest import Chest
from chest.serialize import restricted
from chest.serialize.aligned import LEAST

ROUNDS = 15
SECONDS = 0.02  # of each measurement


def values() -> dict[str, Any]:
    """What is loaded."""
    number = random.Random(1)
    found: dict[str, Any] = {
        "text of 1 MB": "abcd " * 200_000,
        "dict of 10 fields": {f"field {i}": i for i in range(10)},
        "dict of 10,000 numbers": {f"key{i}": i for i in range(10_000)},
        "list of 10,000 integers": list(range(10_000)),
        "list of 10,000 floats": [number.random() for _ in range(10_000)],
        "list of 10,000 words": ["".join(number.choices("abcdefghijklmnopqrstuvwxyz", k=8)) for _ in range(10_000)],
        "list of 10,000 records": [{"name": f"user {i}", "score": i / 2} for i in range(10_000)],
        "list of 10,000 pairs": [(i, str(i)) for i in range(10_000)],
        "list of 10,000 large integers": [2**64 + number.getrandbits(60) for _ in range(10_000)],
        "list of 10,000 dates": [datetime.datetime(2020, 1, 1) + datetime.timedelta(seconds=i) for i in range(10_000)],
        "list of 200,000 pairs": [(i, str(i)) for i in range(200_000)],
        "list of 1,000,000 floats": [number.random() for _ in range(1_000_000)],
        "300 lists of 300 floats": [[number.random() for _ in range(300)] for _ in range(300)],
    }
    try:
        import numpy
    except ImportError:
        return found
    found["array of 80 bytes"] = numpy.arange(10)
    found["array of 8 MB"] = numpy.arange(1_000_000.0)
    found["list of 10,000 numpy numbers"] = list(numpy.arange(10_000.0))
    found["dict of 100 arrays of 8 kB"] = {i: numpy.arange(1000.0) + i for i in range(100)}
    found["list of 100 matrices"] = [numpy.arange(100.0).reshape(10, 10) for _ in range(100)]
    found["dict of 10 arrays of 1 MB"] = {i: numpy.arange(125_000.0) for i in range(10)}
    found["table of 1 MB"] = numpy.zeros(1 << 16, [("a", "f8"), ("b", "i8")])
    found["array of 1 MB of truths"] = numpy.ones(1 << 20, bool)
    found["array of 1 MB of texts"] = numpy.array(["abcdefgh"] * (1 << 15))
    found["array of 10,000 objects"] = numpy.array([1, "a", None, 2.5] * 2_500, object)
    return found


def once(call: Callable[[], object]) -> float:
    """Seconds of the processor that one call takes."""
    calls = 1
    while True:
        begin = time.process_time()
        for _ in range(calls):
            call()
        took = time.process_time() - begin
        if took > SECONDS / 4:
            return took / calls
        calls *= 4


def compare(calls: list[Callable[[], object]]) -> tuple[float, list[float]]:
    """Seconds of the first, and the ratios of the others to it."""
    rounds = [[once(call) for call in calls] for _ in range(ROUNDS)]
    ratios = [statistics.median([one[at] / one[0] for one in rounds]) for at in range(1, len(calls))]
    return statistics.median([one[0] for one in rounds]), ratios


def by_functions(value: Any) -> tuple[float, list[float]]:
    """`pickle.loads`, `restricted.loads`, `json.loads`; memory of large arrays beside the pickle, as chest has it."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(value, 5, buffer_callback=lambda one: one.raw().nbytes < LEAST or buffers.append(one))
    memory = [bytearray(buffer.raw()) for buffer in buffers]
    calls: list[Callable[[], object]] = [lambda: pickle.loads(data, buffers=memory)]
    calls.append(lambda: restricted.loads(data, memory))
    try:
        text = json.dumps(value)
    except TypeError:
        return compare(calls)
    return compare([*calls, lambda: json.loads(text)])


def by_chests(value: Any, path: str) -> tuple[float, list[float]]:
    """One value that is on disk, got through a chest that is trusted and one that is not."""
    with Chest({"value": value}, path=path):
        pass
    chests = [Chest(path=path, available_memory=0, flag="r", trusted=trusted) for trusted in (True, False)]

    def get(chest: Any) -> None:
        chest.shrink()
        chest["value"]
        chest.inmem.clear()

    return compare([lambda chest=chest: get(chest) for chest in chests])  # type: ignore[misc]


def main() -> None:
    """Print the table."""
    print(f"Python {sys.version.split()[0]}; processor times of trusted loads, ratios of others to them")
    for name, value in values().items():
        seconds, ratios = by_functions(value)
        shown = f"{name:30}{seconds * 1e6:10.1f} µs   trusted=False {ratios[0]:5.2f}"
        print(shown + (f"   json {ratios[1]:5.2f}" if len(ratios) > 1 else ""), flush=True)
    for name, value in values().items():
        with tempfile.TemporaryDirectory() as folder:
            seconds, ratios = by_chests(value, folder + "/chest")
        print(f"{'chest: ' + name:37}{seconds * 1e6:10.1f} µs   trusted=False {ratios[0]:5.2f}", flush=True)


if __name__ == "__main__":
    main()
