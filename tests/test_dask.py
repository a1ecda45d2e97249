"""dask with a chest: as the cache of a local scheduler, shared by the processes of a cluster, as a worker's memory."""
from __future__ import annotations

import pytest

from chest import Chest
from chest.core import nbytes

dask = pytest.importorskip("dask", reason="these are tests with dask")
numpy = pytest.importorskip("numpy", reason="dask's arrays are numpy's")

pytestmark = pytest.mark.filterwarnings("ignore")  # dask and distributed warn of things that are not ours


class Watched(Chest):
    """A chest that notes the most that it ever had in memory, besides a value that is larger than the budget."""

    most = 0

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        size = nbytes(value)
        self.most = max(self.most, self.memory_usage - (size if size > self.available_memory else 0))


def test_intermediates_larger_than_the_budget_pass_through_the_chest():
    array = pytest.importorskip("dask.array")
    x = array.random.RandomState(1).random_sample((1000, 1000), chunks=(100, 100))
    centred = (x - x.mean(axis=0)).T  # all of x is needed twice: before and after the mean is known
    expected = centred.compute(scheduler="sync")
    with Watched(available_memory=1e6) as cache, dask.config.set(cache=cache):
        result = dask.compute(centred, scheduler="threads")[0]
        assert cache.stats.spills > 50
        assert cache.most <= 1e6
    assert numpy.array_equal(result, expected)


def test_frames_pass_through_the_chest():
    pandas = pytest.importorskip("pandas")
    dataframe = pytest.importorskip("dask.dataframe")
    frame = pandas.DataFrame({"group": numpy.arange(50_000) % 7, "x": numpy.arange(50_000) * 0.5})
    parts = dataframe.from_pandas(frame, npartitions=20)
    shifted = parts.assign(x=parts.x - parts.x.mean())
    with Chest(available_memory=2e5) as cache:
        result = shifted.compute(scheduler="threads", cache=cache)
        assert cache.stats.spills > 5
        means = parts.groupby("group").x.mean().compute(scheduler="threads", cache=cache)
    pandas.testing.assert_frame_equal(result, frame.assign(x=frame.x - frame.x.mean()))
    pandas.testing.assert_series_equal(means.sort_index(), frame.groupby("group").x.mean())


@pytest.fixture(scope="module")
def client():
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None)
    with cluster, distributed.Client(cluster) as client:
        yield client


def square(chest, n):
    """Runs on a worker."""
    chest["square", n] = chest["number", n] ** 2
    chest.flush()
    return chest.path


def test_worker_processes_share_a_chest_by_its_path(client, path):
    chest = Chest({("number", n): numpy.full(1000, n) for n in range(20)}, path=path)
    futures = [client.submit(square, chest, n, pure=False) for n in range(20)]
    assert set(client.gather(futures)) == {chest.path}
    assert len(chest) == 40
    assert all((chest["square", n] == n**2).all() for n in range(20))


def test_workers_read_a_chest_in_a_store(client, tmp_path):
    pytest.importorskip("fsspec", reason="a chest at a URL needs fsspec")
    with Chest({n: [n] * 1000 for n in range(20)}, path=f"file://{tmp_path}/a-chest") as chest:
        futures = [client.submit(lambda chest, n: sum(chest[n]), chest, n) for n in range(20)]
        assert client.gather(futures) == [1000 * n for n in range(20)]


def test_a_chest_is_a_workers_memory():
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None,
                                       data=(Chest, {"available_memory": 3e5}))
    with cluster, distributed.Client(cluster) as client:
        pieces = client.map(lambda n: numpy.full(10_000, n), range(40))
        totals = client.map(lambda piece: int(piece.sum()), pieces)
        assert client.gather(totals) == [10_000 * n for n in range(40)]
        (worker,) = cluster.workers.values()
        assert isinstance(worker.data, Chest)
        assert worker.data.stats.spills > 20
        assert worker.data.memory_usage <= 3e5
        assert (client.gather(pieces[7]) == 7).all()
