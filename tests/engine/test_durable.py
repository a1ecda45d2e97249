"""``durable=True`` as the system sees it: what a commit names is on the disk before the commit is, and then that is too."""
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
from children import HOME

pytestmark = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")

CALL = re.compile(r"(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)")
BEGIN = """if True:
    import os, sys
    from chest import Chest
    path, durable = sys.argv[1], sys.argv[2] == 'True'
    c = Chest({'a': 'a' * 5000, ('b', 'c'): 'bc' * 5000, 'small': 1}, path=path, durable=durable, **SETTINGS)
    c.flush()
    c['a'] = 'other'
    c['new', 'folder', 'x'] = 'x' * 5000
    del c['b', 'c']
    os.access('/commit', os.F_OK)
    COMMIT
    os.access('/end', os.F_OK)
    os._exit(0)
"""


def trace(tmp_path, commit, durable, settings="{}"):
    """The events of a commit, in order: ``(what, path)`` of each file that is created, written, synced, renamed, removed."""
    script = BEGIN.replace("SETTINGS", settings).replace("COMMIT", commit)
    log, path = str(tmp_path / "strace.log"), str(tmp_path / "chest")
    traced = "trace=" + ",".join("?" + call for call in (
        "open openat creat mkdir mkdirat close write pwrite64 writev fsync fdatasync rename renameat renameat2 unlink "
        "unlinkat access faccessat faccessat2 link linkat").split())
    done = subprocess.run(["strace", "-f", "-o", log, "-s", "4096", "-e", traced, sys.executable, "-c", script, path,
                           str(durable)], capture_output=True, text=True, timeout=120,
                          env=dict(os.environ, PYTHONPATH=HOME))
    if "PTRACE" in done.stderr:
        pytest.skip("strace cannot trace a process here")
    assert done.returncode == 0, done.stderr
    with open(log) as file:
        return events([match.groups() for line in file if (match := CALL.match(line))], path)


def last(seen, event):
    return len(seen) - 1 - seen[::-1].index(event)


PATH = re.compile(r'(?:(AT_FDCWD|\d+), )?"([^"]*)"')


def events(calls, path):
    opened, found, inside = {}, [], False
    for call, arguments, result in calls:
        paths = [os.path.join(opened.get(folder, "/"), name) for folder, name in PATH.findall(arguments)]
        fd = arguments.split(",")[0]
        if "access" in call and paths[:1] in (["/commit"], ["/end"]):
            inside = paths == ["/commit"]
        if int(result) < 0:
            continue
        if call.startswith("open"):
            opened[result] = paths[0]
            if inside and "O_CREAT" in arguments:
                found.append(("create", paths[0]))
        elif call.startswith(("write", "pwrite", "fsync", "fdatasync")) and inside:
            found.append(("sync" if "sync" in call else "write", opened.get(fd, "?")))
        elif call.startswith(("rename", "unlink", "mkdir", "link")):
            if inside:
                found.append((re.match("rename|unlink|mkdir|link", call)[0], paths[-1]))
            if call.startswith("rename"):
                opened.update({fd: paths[1] for fd, name in opened.items() if name == paths[0]})
    return [(what, os.path.relpath(where, path)) for what, where in found if where.startswith(path)
            and not where.endswith(".new")]  # a journal is of no use after a loss of power


def test_values_and_their_folders_are_synced_before_the_index_is_replaced_and_the_directory_after(tmp_path):
    seen = trace(tmp_path, "c.flush()", True)
    commit = seen.index(("rename", ".keys"))
    before, after = seen[:commit], seen[commit + 1:]
    created = [where for what, where in before if what == "create"]
    made = [where for what, where in before if (what, where) != ("mkdir", ".packs") and what == "mkdir"]
    assert {"a~1", "_new/_folder/x", ".keys~"} <= set(created)
    assert set(made) == {"_new", "_new/_folder"}
    for where in created:
        assert_synced(before, where, "write")
        if where != ".keys~":
            folder = os.path.dirname(where) or "."
            assert before.index(("create", where)) < last(before, ("sync", folder))
    for where in made:
        assert before.index(("mkdir", where)) < last(before, ("sync", os.path.dirname(where) or "."))
    assert ("sync", ".") in after
    removed = [i for i, (what, _) in enumerate(after) if what == "unlink"]
    assert after.index(("sync", ".")) < min(removed), "a file of the old index goes only when the new one is safe"


def assert_synced(seen, where, written):
    """The last write to a file comes before its sync."""
    assert last(seen, (written, where)) < last(seen, ("sync", where)), seen


def test_an_index_that_is_appended_to_is_synced_after_its_values(tmp_path):
    seen = trace(tmp_path, "c.sync()", True)
    append = last(seen, ("write", ".keys"))
    assert ("rename", ".keys") not in seen
    for where in [where for what, where in seen if what == "create"]:
        assert_synced(seen[:append], where, "write")
    assert ("sync", ".keys") in seen[append:]


ANOTHER = """
    new = Chest({'x': 1}, path=path, durable=True, min_file_size=1000)
    new.sync()"""


@pytest.mark.parametrize("commit", ["c.flush()", "c.sync()", ANOTHER], ids=["flush", "sync", "another handle"])
def test_packs_of_small_values_are_synced_before_the_index_and_their_folder_too(tmp_path, commit):
    seen = trace(tmp_path, commit, True, "{'min_file_size': 1000}")
    committed = next(event for event in [("rename", ".keys"), ("write", ".keys")] if event in seen)
    before = seen[: last(seen, committed)]
    (pack,) = {where for what, where in before if what == "write" and where.startswith(".packs/")}
    assert_synced(before, pack, "write")
    assert (("create", pack) in before) == (commit is ANOTHER)
    if commit is ANOTHER:
        assert before.index(("create", pack)) < last(before, ("sync", ".packs"))
        assert ("sync", ".") in before[before.index(("sync", ".packs")):]


def test_links_of_an_update_are_synced_before_the_index(tmp_path):
    other = tmp_path / "other"
    seen = trace(tmp_path, f"""
    other = Chest({{'linked': 1}}, path={str(other)!r})
    c.update(other)
    c.flush()""", True)
    before = seen[: seen.index(("rename", ".keys"))]
    assert before.index(("link", "linked")) < last(before, ("sync", "."))
    assert ("sync", "linked") in before


def test_without_durable_nothing_is_synced(tmp_path):
    seen = trace(tmp_path, "c.flush()", False)
    assert ("rename", ".keys") in seen
    assert [where for what, where in seen if what == "sync"] == []


def test_a_new_directory_is_synced_into_its_parent_as_are_those_above_it(tmp_path):
    """Else a loss of power could take the whole chest, with all that was committed in it."""
    seen = trace(tmp_path, f"""
    new = Chest({{'x': 1}}, path={str(tmp_path / 'chest' / 'far' / 'away')!r}, durable=True)
    new.flush()""", True)
    commit = seen.index(("rename", "far/away/.keys"))
    for made, parent in (("far", "."), ("far/away", "far")):
        assert seen.index(("mkdir", made)) < last(seen[:commit], ("sync", parent))
