"""Each system call of each operation fails in turn: nothing is lost, the error says where, and the next commit works.

After each fault every value reads as it was before the operation or as it is behind it, changes in place included; the
next flush works; the chest that is reopened agrees; no descriptor and no thread is left.
"""
from __future__ import annotations

import copy
import gc
import os
import shutil
import sys
import warnings

import faults as injection
import pytest
from children import open_files
from invariants import check

from chest import Chest
from chest.cli.inspect import Inspection
from chest.errors import ChestError

np = pytest.importorskip("numpy")
STRESS = bool(os.environ.get("CHEST_STRESS"))
pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open descriptors cannot be seen here")

VARIANTS = {"loose": dict(min_file_size=0), "packed": dict(min_file_size=4096), "copied": dict(mmap_mode=None),
            "durable": dict(durable=True, min_file_size=4096)}
BUDGET = 300_000

tried = {}


def plain(value):
    """Something to compare values by."""
    return value.tobytes() if isinstance(value, np.ndarray) else copy.deepcopy(value)


def plain_all(pairs):
    return {key: plain(value) for key, value in pairs.items()}


def committed():
    arrays = {("array", n): np.full(10_000, float(n)) for n in range(3)}  # 80 kB: mapped, where that is so
    return {**arrays, **{f"list{n}": [n] * 10 for n in range(3)}}


def prepared(path, settings):
    """A chest with saved values, spilled ones, new ones and changes in place, and what it must give."""
    c, model = Chest(committed(), path=path, available_memory=BUDGET, **settings), committed()
    c.flush()
    for each in (c, model):
        for n in range(2):
            each["array", n][0] = 100 + n
            each[f"list{n}"].append("changed")
        each["new"] = {"a": [1]}
    return c, plain_all(model)


def change_in_a_loop(c, path, after):
    for key, value in c.items():
        value[0 if key != "new" else "a"] = 77.0
        after[key] = plain(value)


def link_another(c, path, after):
    c.update(Chest(path=path + "-other", flag="r"))


def reopen(c, path, after):
    len(Chest(path=path, flag="r"))


def transact(c, path, after):
    with c.transaction():
        c["one"], c["two"] = 1, 2


def repair(c, path, after):
    inspected = Inspection(path, True)
    list(inspected.faults())
    inspected.drop(["list2"])


def rolled_back(model):
    model.clear()
    model.update(plain_all(committed()))


LINKED = {"linked": [5] * 3, ("linked", 1): np.full(10_000, 2.0)}

# name: (the operation, what the model becomes by it)
OPERATIONS = {
    "set that spills": (lambda c, p, a: c.update(big=np.ones(30_000)), lambda m: m.update(big=plain(np.ones(30_000)))),
    "set": (lambda c, p, a: c.__setitem__("list0", "new"), lambda m: m.update(list0="new")),
    "get that spills": (lambda c, p, a: c["array", 2], lambda m: None),
    "get": (lambda c, p, a: c["list2"], lambda m: None),
    "flush": (lambda c, p, a: c.flush(), lambda m: None),
    "sync": (lambda c, p, a: c.sync(), lambda m: None),
    "close": (lambda c, p, a: c.close(), lambda m: None),
    "delete": (lambda c, p, a: c.__delitem__("list1"), lambda m: m.pop("list1")),
    "pop": (lambda c, p, a: c.pop(("array", 0)), lambda m: m.pop(("array", 0))),
    "move_to_disk": (lambda c, p, a: c.move_to_disk("list1"), lambda m: None),
    "prefetch": (lambda c, p, a: c.prefetch(["list2", ("array", 2)]), lambda m: None),
    "update by link": (link_another, lambda m: m.update(plain_all(LINKED))),
    "iterate with changes": (change_in_a_loop, lambda m: None),
    "write_keys": (lambda c, p, a: c.write_keys(), lambda m: None),
    "transaction": (transact, lambda m: m.update(one=1, two=2)),
    "rollback": (lambda c, p, a: c.rollback(), rolled_back),
    "copy": (lambda c, p, a: c.copy(p + "-copy").drop(), lambda m: None),
    "repair": (repair, lambda m: m.pop("list2")),
    "open": (reopen, lambda m: None),
    "drop": (lambda c, p, a: c.drop(), lambda m: m.clear()),
}


def everything_holds(c, path, before, after, error, what):
    """Everything that must hold behind a fault."""
    got = {key: plain(c[key]) for key in list(c)}
    if what.startswith("update"):  # key by key
        assert got.keys() >= before.keys() and all(got[key] == after[key] for key in got)
    elif what.startswith("iterate"):  # each value is changed or not: those that the loop reached are
        assert got == after
    else:
        assert got in (before, after), what
    c.flush()
    check(c)
    with Chest(path=path) as again:
        assert plain_all(again) == got
    if error is not None:
        assert isinstance(error, (OSError, ChestError, KeyError)), repr(error)


@pytest.fixture
def little_garbage():
    """The collector looks at what the test makes alone: it is asked behind each fault."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("little_garbage")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_system_call_that_fails_loses_nothing(operation, variant, tmp_path, monkeypatch):
    work, change = OPERATIONS[operation]
    faults = injection.install(monkeypatch)
    warnings.simplefilter("ignore")
    injected = 0
    Chest(LINKED, path=str(tmp_path / "template-other")).close()
    errors = [*injection.ERRORS, injection.SHORT]
    for n in range(1, 400):
        for error in errors if STRESS else [errors[n % len(errors)]]:
            path = str(tmp_path / f"{n}-{error}")
            if operation.startswith("update"):
                shutil.copytree(str(tmp_path / "template-other"), path + "-other")
            files = open_files()
            c, before = prepared(path, VARIANTS[variant])
            after = copy.deepcopy(before)
            change(after)
            raised = None
            with faults(n, error):
                try:
                    work(c, path, after)
                except Exception as found:
                    raised = found
            if faults.what:
                injected += 1
            try:
                everything_holds(c, path, before, after, raised, operation)
            except BaseException:
                print(f"call {n}, {faults.what}, {error}: {raised!r}", file=sys.stderr)
                raise
            c.drop()
            del c, raised  # its frames refer to arrays, and so to maps, which keep a descriptor before Python 3.13
            gc.collect()
            assert set(open_files()) <= set(files), f"descriptors left behind call {n}, {faults.what}"
            for made in (path, path + "-other", path + "-copy"):
                shutil.rmtree(made, ignore_errors=True)
        if not faults.what:
            break
    assert injected >= (0 if operation in ("set", "delete", "pop") else 1)
    tried[operation, variant] = injected


def test_a_removal_that_is_interrupted_was_done_for_good_or_was_not(tmp_path, monkeypatch):
    """The key was not there at first, and came back behind the next operation."""
    faults = injection.install(monkeypatch)
    for asks in (lambda c: "a" in c), len:
        c = Chest({"a": [1]}, path=str(tmp_path))
        with faults(1, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            c.pop("a")
        there = asks(c)
        check(c)
        assert dict(c) == ({"a": [1]} if there else {})
        c.drop()


def test_many_faults_were_injected(capsys):
    """The last test of this file: it counts what those above did."""
    with capsys.disabled():
        print(f"\n{sum(tried.values())} faults at system calls, in {len(tried)} runs")
    assert sum(tried.values()) > 10 * len(tried)
