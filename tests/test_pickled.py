"""A handle that travels: the copy opens the same path with the same settings, and owns nothing."""
from __future__ import annotations

import concurrent.futures
import gc
import gzip
import multiprocessing
import os
import pickle
import sys

import pytest

from chest import Chest
from chest.errors import DumpError

CONTEXTS = multiprocessing.get_all_start_methods()


class Special(Chest):
    """A user's own kind of chest."""


def plain_name(key):
    return f"file_{key}"


def call(key):
    pass


FUNCTIONS = dict(key_to_filename=plain_name, on_miss=call, on_overflow=call, open=gzip.open, dump=pickle.dump,
                 load=pickle.load)


def work(c, n):
    """What a worker does with a chest that came to it."""
    c[f"worker{n}"] = c["x"] + [n]
    c.sync()
    return c.path, type(c).__name__


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("small", [0, 4096])
def test_the_copy_has_what_the_original_had_not_saved_yet(path, protocol, small):
    c = Chest({"x": [1]}, path=path, min_file_size=small)
    there = pickle.loads(pickle.dumps(c, protocol))
    assert dict(there) == {"x": [1]}
    assert c.inmem == {"x": [1]}, "it was only saved, not emptied"
    there["y"] = 2
    there.sync()
    assert ("y" in os.listdir(path)) is not bool(small)


def test_the_copy_has_the_same_class_and_settings_and_the_budget_of_now(path):
    given = dict(FUNCTIONS, writeback=False, durable=True)
    c = Special({"x": 1}, path=path, available_memory=12345.0, **given)
    c.available_memory = "1 MB"
    there = pickle.loads(pickle.dumps(c))
    assert (type(there), there.available_memory) == (Special, 1e6)
    assert there.key_to_filename("x") == os.path.join(path, "file_x")
    assert {name: getattr(there._engine.settings, name) for name in given} == given


@pytest.mark.parametrize("mode", ["c", "r"])
def test_arrays_are_mapped_there_too(path, mode):
    np = pytest.importorskip("numpy")
    there = pickle.loads(pickle.dumps(Chest({"x": np.arange(50_000)}, path=path, mmap_mode=mode)))
    assert there["x"].flags.owndata is False
    assert there["x"].flags.writeable is (mode == "c")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_setting_that_cannot_be_pickled_is_named_with_what_to_do(path, name, monkeypatch):
    monkeypatch.delitem(sys.modules, "cloudpickle", raising=False)
    c = Chest({"x": 1}, path=path, **{name: lambda *arguments, **more: FUNCTIONS[name](*arguments, **more)})
    with pytest.raises(TypeError, match=rf"cannot be pickled.*\b{name}=<function.*use a function"):
        pickle.dumps(c)
    assert c["x"] == 1


def test_what_pickle_cannot_carry_cloudpickle_can(path):
    cloudpickle = pytest.importorskip("cloudpickle")
    c = Chest({"x": 1}, path=path, key_to_filename=lambda key: f"k{key}")
    there = pickle.loads(cloudpickle.dumps(c))
    assert there["x"] == 1
    assert os.path.basename(there.key_to_filename("x")) == "kx"


def test_a_value_that_cannot_be_saved_stops_it_and_stays_here(path):
    c = Chest({"x": 1, "odd": lambda: None}, path=path)
    with pytest.raises(DumpError, match="odd"):
        pickle.dumps(c)
    assert dict(Chest(path=path)) == {"x": 1}
    assert set(c) == {"x", "odd"}
    del c["odd"]


# To other processes.


kept = []


def leave_unsaved(c, path, n):
    """What a worker does that closes neither the chest that came to it nor the one that it opens."""
    kept.append(own := Chest(path=path))
    kept.append(c)
    c["unsaved", n] = own[n] = n


def processes(how, calls, target=leave_unsaved):
    started = [multiprocessing.get_context(how).Process(target=target, args=call) for call in calls]
    for process in started:
        process.start()
    for process in started:
        process.join()
        assert process.exitcode == 0


def processes_of_a_process(how, calls):
    processes(how, [(how, calls)], processes)


def pool(how, calls):
    with multiprocessing.get_context(how).Pool(2) as workers:
        workers.starmap(leave_unsaved, calls)
        workers.close()
        workers.join()


def executor(how, calls):
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(how)) as workers:
        list(workers.map(leave_unsaved, *zip(*calls)))


@pytest.mark.parametrize("how", CONTEXTS)
@pytest.mark.parametrize("run", [processes, processes_of_a_process, pool, executor], ids=lambda run: run.__name__)
def test_what_a_worker_does_not_close_is_saved_as_it_ends(how, run, path):
    """With "fork" a process has no copy, but the parent's own handle."""
    c = Chest({"parent": 1}, path=path + "-of-the-parent")
    run(how, [(c, path, n) for n in range(3)])
    assert dict(c) == {"parent": 1, **{("unsaved", n): n for n in range(3)}}
    assert dict(Chest(path=path)) == {n: n for n in range(3)}


@pytest.mark.parametrize("how", CONTEXTS)
@pytest.mark.parametrize("temporary", [False, True])
def test_it_goes_through_a_pool_of_futures_and_a_temporary_one_is_removed_by_its_owner_only(how, temporary, path):
    c = Chest({"x": [0]}, path=None if temporary else path)
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(how)) as pool:
        assert list(pool.map(work, [c] * 3, range(3))) == [(c.path, "Chest")] * 3
    assert dict(c) == {"x": [0], **{f"worker{n}": [0, n] for n in range(3)}}
    path = c.path
    del c
    gc.collect()
    assert os.path.exists(path) is not temporary


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("backend", ["loky", "multiprocessing"])
def test_it_goes_through_joblib(path, backend):
    joblib = pytest.importorskip("joblib")
    c = Chest({"x": [0]}, path=path)
    jobs = (joblib.delayed(work)(c, n) for n in range(3))
    assert joblib.Parallel(n_jobs=2, backend=backend)(jobs) == [(path, "Chest")] * 3
    assert c["worker2"] == [0, 2]
