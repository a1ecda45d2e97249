"""``durable=True`` as the system sees it: what a commit names is on the disk before the commit, and then that is too.

`storage.test_powerloss` has what is left of appended indices, packs, links and all else that a commit may be.
"""
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
from children import HOME

pytestmark = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")

SCRIPT = """if True:
    import os, sys
    from chest import Chest
    c = Chest({'a': 'a' * 5000, ('b', 'c'): 'bc' * 5000}, path=sys.argv[1], durable=True)
    c.flush()
    c['a'] = 'other'
    c['new', 'folder', 'x'] = 'x' * 5000
    del c['b', 'c']
    c.flush()
    os._exit(0)
"""
CALLS = ("open openat creat mkdir mkdirat write pwrite64 writev fsync fdatasync rename renameat renameat2 unlink "
         "unlinkat").split()
CALL = re.compile(r"(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)")
PATH = re.compile(r'(?:(AT_FDCWD|\d+), )?"([^"]*)"')


def events(calls, root):
    """``(what, path)`` of each file below ``root`` that is created, written, synced, renamed or removed, in order."""
    opened, found = {}, []
    for call, arguments, result in calls:
        paths = [os.path.join(opened.get(folder, "/"), name) for folder, name in PATH.findall(arguments)]
        fd = arguments.split(",")[0]
        if int(result) < 0:
            continue
        if call.startswith("open"):
            opened[result] = paths[0]
            if "O_CREAT" in arguments:
                found.append(("create", paths[0]))
        elif call.startswith(("rename", "unlink", "mkdir")):
            found.append((re.match("rename|unlink|mkdir", call)[0], paths[-1]))
        else:
            found.append(("sync" if "sync" in call else "write", opened.get(fd, "?")))
    return [(what, os.path.relpath(where, root)) for what, where in found if where.startswith(root)
            and not where.endswith(".new")]  # a journal is of no use after a loss of power


def last(seen, event):
    return len(seen) - 1 - seen[::-1].index(event)


def test_values_and_all_folders_are_synced_before_the_index_is_replaced_and_the_directory_after(tmp_path):
    log, path = str(tmp_path / "strace.log"), str(tmp_path / "far" / "away")
    done = subprocess.run(["strace", "-f", "-o", log, "-s", "4096", "-e", "trace=?" + ",?".join(CALLS), sys.executable,
                           "-c", SCRIPT, path], capture_output=True, text=True, timeout=120,
                          env=dict(os.environ, PYTHONPATH=HOME))
    if "PTRACE" in done.stderr:
        pytest.skip("strace cannot trace a process here")
    assert done.returncode == 0, done.stderr
    with open(log) as file:
        seen = events([match.groups() for line in file if (match := CALL.match(line))], str(tmp_path))
    keys, spare = "far/away/.keys", "far/away/.keys~"
    first, second = (place for place, event in enumerate(seen) if event == ("rename", keys))
    assert {"far", "far/away", "far/away/_b"} <= {where for what, where in seen[:first] if what == "mkdir"}
    assert {"far/away/a~1", "far/away/_new/_folder/x", spare} <= {
        where for what, where in seen[first:second] if what == "create"}
    for before, after in (seen[:first], seen[first:second]), (seen[first:second], seen[second:]):
        for what, where in before:
            folder = os.path.dirname(where) or "."
            if what == "create":
                assert last(before, ("write", where)) < last(before, ("sync", where)), where
            if what in ("create", "mkdir") and where not in (spare, "far/away/.packs"):
                assert before.index((what, where)) < last(before, ("sync", folder)), where
        assert ("sync", "far/away") in after
    removed = [place for place, (what, _) in enumerate(after) if what == "unlink"]
    assert after.index(("sync", "far/away")) < min(removed), "a file of the old index goes when the new one is safe"
