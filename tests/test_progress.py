"""``progress=``: any wrapper of an iterable with a ``total``, told of as much work as there is, while it is done."""
import os

import pytest

from chest import Chest


class Progress:
    """Stands in for tqdm: notes each total, and at each step what ``look()`` gives."""

    def __init__(self, look=lambda: None):
        self.look = look
        self.totals = []
        self.seen = []
        self.done = 0

    def __call__(self, items, total):
        self.totals.append(total)
        for item in items:
            self.seen.append(self.look())
            yield item
            self.done += 1


class Undumpable:
    def __reduce__(self):
        raise TypeError("no way")


@pytest.fixture
def chest(path):
    """Five values, none on disk."""
    return Chest({n: [n] for n in range(5)}, path=path)


def files(path):
    return len([name for name in os.listdir(path) if not name.startswith(".")])


@pytest.mark.parametrize("method", ["flush", "sync", "close"])
def test_saving_tells_of_each_value_that_is_to_be_written(chest, method):
    progress = Progress()

    getattr(chest, method)(progress=progress)

    assert progress.totals == [5]
    assert progress.done == 5
    assert dict(chest) == {n: [n] for n in range(5)}


def test_saving_goes_on_while_it_is_told_of(chest):
    progress = Progress(lambda: files(chest.path))

    chest.sync(progress=progress)

    assert progress.seen[0] == 0
    assert progress.seen[-1] > 0, "all steps were told of before the first file was written"


def test_saving_what_is_saved_already_tells_of_nothing(chest):
    chest.flush()
    progress = Progress()

    chest.flush(progress=progress)

    assert progress.totals == [0]


def test_loading_tells_of_each_value_that_is_to_be_loaded(chest):
    chest.flush()
    assert chest[0]
    progress = Progress()

    chest.prefetch([0, 1, 2, 3, 3], progress=progress)

    assert progress.totals == [3]
    assert progress.done == 3
    assert sorted(chest.inmem) == [0, 1, 2, 3]


def test_loading_stops_at_the_budget_with_no_error(path):
    Chest({n: bytes(1000) for n in range(50)}, path=path).close()
    chest = Chest(path=path, available_memory=5000)
    progress = Progress()

    chest.prefetch(range(50), progress=progress)

    assert progress.totals == [50]
    assert chest.memory_usage <= 5000


@pytest.mark.parametrize("other", [
    lambda values: values,
    lambda values: Chest(values),
    lambda values: Chest(values, dump=_dump, load=_load),
], ids=["dict", "chest", "chest in another format"])
def test_taking_in_tells_of_each_key(path, other):
    chest = Chest(path=path)
    progress = Progress()

    chest.update(other({n: n for n in range(7)}), progress=progress)

    assert progress.totals == [7]
    assert progress.done == 7
    assert dict(chest) == {n: n for n in range(7)}


def _dump(value, file):
    file.write(str(value).encode())


def _load(file):
    return eval(file.read())


def test_a_value_that_cannot_be_saved_does_not_stop_the_others(chest):
    chest["bad"] = Undumpable()
    progress = Progress()

    with pytest.raises(Exception, match="'bad'"):
        chest.sync(progress=progress)

    assert progress.totals == [6]
    assert dict(Chest(path=chest.path)) == {n: [n] for n in range(5)}
    del chest["bad"]


def test_a_progress_that_raises_harms_nothing(chest):
    def broken(items, total):
        yield next(iter(items))
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        chest.sync(progress=broken)

    assert dict(chest) == {n: [n] for n in range(5)}
    chest.sync()
    assert dict(Chest(path=chest.path)) == {n: [n] for n in range(5)}


def test_tqdm_will_do(chest):
    tqdm = pytest.importorskip("tqdm").tqdm

    chest.flush(progress=tqdm)
    chest.prefetch(range(5), progress=tqdm)

    assert sorted(chest.inmem) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("method", ["flush", "sync", "close"])
def test_what_is_no_wrapper_is_an_error_that_names_one_and_nothing_is_done(chest, method):
    with pytest.raises(TypeError, match="such as tqdm, not True"):
        getattr(chest, method)(progress=True)

    assert files(chest.path) == 0
