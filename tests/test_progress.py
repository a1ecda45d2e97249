"""``progress=``: any wrapper of an iterable with a ``total``, told of as much work as there is, while it is done."""
import json
import os

import pytest

from chest import Chest
from chest.errors import DumpError


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


@pytest.fixture
def chest(path):
    """Five values, none on disk."""
    return Chest({n: [n] for n in range(5)}, path=path)


def files(path):
    return len([name for name in os.listdir(path) if not name.startswith(".")])


@pytest.mark.parametrize("method", ["flush", "sync", "close"])
def test_saving_tells_of_each_value_that_is_to_be_written_as_it_goes_on(chest, method):
    progress = Progress(lambda: files(chest.path))
    getattr(chest, method)(progress=progress)
    assert progress.totals == [5]
    assert progress.done == 5
    assert progress.seen[0] == 0 < progress.seen[-1], "all steps were told of before the first file was written"
    assert dict(chest) == {n: [n] for n in range(5)}
    chest.flush()
    chest.flush(progress=progress)
    assert progress.totals == [5, 0]


def test_loading_tells_of_each_value_that_is_to_be_loaded(chest):
    chest.flush()
    assert chest[0]
    progress = Progress()
    chest.prefetch([0, 1, 2, 3, 3], progress=progress)
    assert progress.totals == [3]
    assert progress.done == 3
    assert sorted(chest.inmem) == [0, 1, 2, 3]


@pytest.mark.parametrize("other", [
    lambda values: values,
    lambda values: Chest(values),
    lambda values: Chest(values, dump=json.dump, load=json.load),
], ids=["dict", "chest", "chest in another format"])
def test_taking_in_tells_of_each_key(path, other):
    chest = Chest(path=path)
    progress = Progress()
    chest.update(other({n: n for n in range(7)}), progress=progress)
    assert progress.totals == [7]
    assert progress.done == 7
    assert dict(chest) == {n: n for n in range(7)}


def test_what_cannot_be_saved_and_a_progress_that_raises_harm_nothing(chest):
    def broken(items, total):
        yield next(iter(items))
        raise RuntimeError("stop here")

    chest["bad"] = lambda: None
    progress = Progress()
    with pytest.raises(DumpError, match="'bad'"):
        chest.sync(progress=progress)
    assert progress.totals == [6]
    assert dict(Chest(path=chest.path)) == {n: [n] for n in range(5)}
    chest["bad"] = "good"
    with pytest.raises(RuntimeError, match="stop here"):
        chest.sync(progress=broken)
    assert dict(chest) == {**{n: [n] for n in range(5)}, "bad": "good"}
    chest.sync()
    assert dict(Chest(path=chest.path)) == dict(chest)


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
