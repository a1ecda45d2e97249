"""What a program does with a chest, each in a folder of its own: the same on every file system.

`SCENARIOS` are all, by name.  Each takes an empty folder, has its chest in it, and is right if it raises nothing.  What a
file system may do otherwise (share files, keep the names of open files) it finds out there by itself.
"""
from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile

import chest
from chest import Chest

try:
    import numpy
except ImportError:
    numpy = None

HOME = os.path.dirname(os.path.dirname(os.path.abspath(chest.__file__)))
SCENARIOS = {}


def scenario(function):
    SCENARIOS[function.__name__] = within = lambda folder: function(os.path.join(folder, "c"))
    return within


def expect(found, expected):
    """As ``assert found == expected``, also where pytest does not see it."""
    if found != expected:
        raise AssertionError(f"{found!r:.500} is not {expected!r:.500}")


def contents(path, **settings):
    """All that whoever opens the chest now finds in it."""
    with Chest(path=path, **settings) as found:
        return dict(found)


def files(path):
    """All files below ``path``, relative; but for those that the system only hides as somebody has them open."""
    return sorted(os.path.relpath(os.path.join(folder, name), path).replace(os.sep, "/")
                  for folder, _, names in os.walk(path) for name in names
                  if not name.startswith((".fuse_hidden", ".ghost-")))


def links_are_had(folder):
    """Does the file system have hard links?"""
    names = [os.path.join(folder, "link-1"), os.path.join(folder, "link-2")]
    open(names[0], "x").close()
    with contextlib.suppress(AttributeError, OSError):
        os.link(*names)
    had = os.path.exists(names[1])
    for name in names[: 1 + had]:
        os.unlink(name)
    return had


def other_process(script, path):
    """Run ``script`` in another interpreter, which has ``Chest``, ``os`` and ``path``."""
    text = "import os, signal, sys\nfrom chest import Chest\npath = sys.argv[1]\n" + script
    return subprocess.Popen([sys.executable, "-c", text, path], env=dict(os.environ, PYTHONPATH=HOME))


def killed(script, path):
    """Run ``script``, by whose end the process has killed itself."""
    expect(other_process(script, path).wait(100), -signal.SIGKILL)


@scenario
def a_flush_leaves_plain_pickles_of_what_was_not_overwritten_or_deleted_and_the_index(path):
    c = Chest(path=path)
    for n in range(6):
        c["x"], c["a", "b"], c[3] = [n], str(n), b"t" * 100_000
        c.sync() if n % 2 else c.flush()
        expect(contents(path), {"x": [n], ("a", "b"): str(n), 3: b"t" * 100_000})
    c.flush()
    for key, value in c.items():
        with open(c.key_to_filename(key), "rb") as file:
            expect(pickle.load(file), value)
    expect(len(files(path)), 4)
    c["y"] = b"y" * 100_000
    c.move_to_disk("y")
    del c["y"], c[3]
    c.flush()
    expect(len(files(path)), 3)
    c["x"] = "never"
    c.rollback()
    expect(dict(c), {"x": [5], ("a", "b"): "5"})
    c.close()


@scenario
def values_are_spilled_and_come_back_and_what_is_changed_in_place_is_saved(path):
    c = Chest({"small": [0], "large": list(range(20_000)), "kept": {"n": 0}}, path=path, available_memory=300_000)
    c.flush()
    kept = c["kept"]
    for n in range(5):
        c["small"].append(n)
        c["large"][n] = -n
        kept["n"] = n
        c[f"other{n}"] = bytes([n]) * 200_000  # others have to leave
        expect((c.memory_usage <= 300_000, c.stats.spills > 0), (True, True))
        c.sync()
        found = contents(path)
        expect((found["small"][-1], found["large"][n], found["kept"]["n"]), (n, -n, n))
    c.prefetch(["other0", "small"])
    expect([c[f"other{n}"] for n in range(5)], [bytes([n]) * 200_000 for n in range(5)])
    c.close()
    expect(contents(path)["small"], [0, 0, 1, 2, 3, 4])


@scenario
def another_chest_is_taken_in_and_copied(path):
    folder = os.path.dirname(path)
    other = os.path.join(folder, "d")
    expected = {"list": [1, 2], ("a", 1): b"b" * 70_000, "small": 3}
    c = Chest(expected, path=path)
    d = Chest(path=other)
    d.update(c)
    expect(set(c.inmem), set(expected))  # it was saved, and not emptied
    d.flush()
    expect(contents(other), expected)
    same = os.path.samefile(c.key_to_filename("list"), d.key_to_filename("list"))
    expect(same, links_are_had(folder))
    held = c["list"]
    copied = c.copy(os.path.join(folder, "e"))
    held.append(3)
    d["list"].append(4)
    copied["list"].append(5)
    for one in (c, d, copied):
        one.flush()
    expect([contents(one.path)["list"][2:] for one in (c, d, copied)], [[3], [4], [5]])
    c.drop()
    expect(contents(other)[("a", 1)], expected[("a", 1)])
    d.close()
    copied.close()


@scenario
def small_values_go_into_packs_that_are_compacted(path):
    with Chest(path=path, min_file_size=4096, available_memory=100_000) as c:
        for n in range(3000):
            c[n] = "v" * 300 + str(n)
        c.flush()
        expect({n: c[n] for n in range(3000)}, {n: "v" * 300 + str(n) for n in range(3000)})
    def size():
        return sum(os.path.getsize(os.path.join(path, ".packs", name)) for name in os.listdir(os.path.join(path, ".packs")))

    before = size()
    expect(before > 900_000, True)
    with Chest(path=path, min_file_size=4096) as c:
        for n in range(2700):
            del c[n]
        c.flush()
        c["more"] = 1
        c.flush()
        expect({n: c[n] for n in range(2700, 3000)}, {n: "v" * 300 + str(n) for n in range(2700, 3000)})
    expect(len(contents(path)), 301)
    expect(size() < before / 2, True)


@scenario
def two_handles_see_each_others_commits(path):
    one, two = Chest(path=path), Chest(path=path)
    for n in range(4):
        one[f"one{n}"] = [n]
        one.flush()
        expect(two[f"one{n}"], [n])
        two[f"two{n}"] = b"t" * 70_000
        two["both"] = n
        two.sync()
        expect((one[f"two{n}"], one["both"]), (b"t" * 70_000, n))  # a miss takes over what others committed
        one["both"] = -n
        one.flush()
        expect((len(two), two["both"]), (2 * n + 3, -n))
    del two["one0"]
    two.flush()
    expect((len(one), "one0" in one), (8, False))
    one.close()
    two.close()
    expect(len(contents(path)), 8)


@scenario
def two_processes_lose_nothing_of_each_other(path):
    other = other_process("for n in range(20):\n c = Chest(path=path)\n c['their', n] = [n]\n c.flush()\n c.close()", path)
    for n in range(20):
        c = Chest(path=path)
        c["our", n] = b"o" * n
        c.flush()
        c.close()
    expect(other.wait(100), 0)
    expect(contents(path), {**{("their", n): [n] for n in range(20)}, **{("our", n): b"o" * n for n in range(20)}})


@scenario
def a_process_that_is_killed_leaves_its_last_commit_and_no_rubbish(path):
    killed("""
c = Chest({'x': 1, 'y': [2]}, path=path)
c.flush()
c['x'] = b'x' * 100_000
c['z'] = 'z'
c['n'] = 'n' * 5000
c.move_to_disk('x')
c.move_to_disk('n')
os.kill(os.getpid(), signal.SIGKILL)
""", path)
    expect(contents(path), {"x": 1, "y": [2]})
    with Chest(path=path) as c:
        c["w"] = 3
        c.flush()
    expect(contents(path), {"x": 1, "y": [2], "w": 3})
    expect([name.partition("~")[0] for name in files(path)], [".keys", "w", "x", "y"])


@scenario
def a_drop_leaves_nothing(path):
    for other_is_open in (False, True):
        c = Chest({"x": 1, ("a", "b", "c"): b"2" * 100_000, "z": "z"}, path=path, min_file_size=1000)
        c.flush()
        c["y"] = [3]
        c.move_to_disk("y")
        other = Chest(path=path) if other_is_open else None
        if other is not None:
            expect((other["x"], other["z"]), (1, "z"))
        try:
            c.drop()
        except PermissionError:  # where files in use cannot be removed: they can be when nobody uses them any more
            other.close()
            expect(contents(path), {})
            Chest(path=path).drop()
        if other is not None:
            expect((files(path) if os.path.exists(path) else []), [])
            other.close()
        else:
            expect(os.path.exists(path), False)


@scenario
def a_temporary_chest_goes_with_its_handle(path):
    folder = os.path.dirname(path)
    before, tempfile.tempdir = tempfile.tempdir, folder
    try:
        c = Chest({"x": [1], "y": b"y" * 300_000}, available_memory=100_000)
        c.flush()
        expect(c["x"], [1])
        expect(os.listdir(folder), [os.path.basename(c.path)])
        c.close()
    finally:
        tempfile.tempdir = before
    expect(os.listdir(folder), [])


@scenario
def a_durable_chest_commits(path):
    path, other, expected = os.path.join(path, "new"), path + "-copy", {}
    with Chest(path=path, durable=True, min_file_size=2000) as c:
        for n in range(5):
            expected.update({f"k{n}": list(range(n * 1000)), ("deep", n): n})
            c.update(expected)
            c.sync() if n % 2 else c.flush()
            expect(contents(path), expected)
        del c["k0"]
        c.flush()
        c.copy(other).close()
    del expected["k0"]
    expect(contents(path, durable=True), expected)
    expect(contents(other), expected)
    Chest(path=path, durable=True).drop()
    expect(os.path.exists(path), False)


@scenario
def arrays_are_mapped_or_read_and_their_changes_saved(path):
    if numpy is None:
        return
    for mode in ("auto", None, "c"):
        c = Chest(path=path, mmap_mode=mode, available_memory=3_000_000)
        for n in range(6):
            c[n] = numpy.full(150_000, n, "f8")
        c["pair"] = {"a": numpy.arange(100_000), "b": numpy.arange(50_000.0)}
        c.flush()
        for n in range(6):
            expect(float(c[n].sum()), 150_000.0 * n)
            c[n][7] = -1.0
        c["pair"]["b"][:] = 5
        c.flush()
        found = contents(path)
        expect([(float(found[n][7]), float(found[n][8])) for n in range(6)], [(-1.0, float(n)) for n in range(6)])
        expect((int(found["pair"]["a"].sum()), float(found["pair"]["b"].sum())), (4_999_950_000, 250_000.0))
        with Chest(path=path, mmap_mode="r", flag="r") as read:
            expect(float(read[2][7]), -1.0)
        c.close()
        del found
        Chest(path=path).drop()
        expect(os.path.exists(path), False)


KEYS = ["A", "a", "aA", "Aa", "", ".", "..", "con", "NUL", "a/b", "a\\b", "a:b", "a b ", "dot.", "é", "e\u0301", "k" * 239,
        "k" * 300, "é" * 500, "\0", "\udc80", 1, 1.5, None, b"x", ("A", "b"), ("a", "b"), ("a", "B"), ("", 1),
        tuple("abcdefghijkl"), ("k" * 200,) * 12, frozenset([1]), "a~1", "_a", "lock", "packs"]


NAMES = ["plain", "a:b", "what?", "x*", "<y>", "tab\t", "dot.", "blank ", "ÄÖ", "ä" * 60, "n" * 200, "Plain"]


@scenario
def long_and_odd_keys_and_names_of_the_users_own_are_kept_apart(path):
    named = {"key_to_filename": lambda key: f"{key}/{key}" if key in ("what?", "dot.") else key}
    for keys, settings in (KEYS, {}), (NAMES, named):
        expected = {key: [place] for place, key in enumerate(keys)}
        c = Chest(path=path, **settings)
        for key in keys:
            c[key] = list(expected[key])
            c.move_to_disk(key)
        c.flush()
        expect(contents(path), expected)
        expect(len({os.stat(c.key_to_filename(key)).st_ino for key in keys}), len(keys))
        for key in keys[::2]:
            del c[key]
        c.sync()
        for key in keys:
            c[key] = expected[key] = [repr(key)]
        c.flush()
        expect(contents(path), expected)
        expect(len(files(path)), len(keys) + 1)
        c.close()
        Chest(path=path).drop()
        expect(os.path.exists(path), False)


@scenario
def a_change_in_place_is_kept_though_files_get_other_numbers(path):
    """On many FUSE mounts a file has another inode number after the system was short of memory."""
    one, two = Chest({"x": [0] * 5000, "y": 1, "z": b"z" * 100_000}, path=path), Chest(path=path)
    one.flush()
    changed = one["x"]
    expect(one["y"], 1)
    changed.append("changed")
    two["new"] = 2
    two.flush()
    with contextlib.suppress(OSError), open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("2")  # the system forgets the numbers; where it does not, the test is as good as it lets it be
    one["w"] = 3
    one.flush()
    expect(contents(path)["x"][-1], "changed")
    one.close()
    two.close()


@scenario
def a_value_that_others_replaced_is_not_kept(path):
    """The name of its file may have been free, and be that of a file of the same size, in between."""
    one, two, three = Chest({"x": [0]}, path=path), Chest(path=path), Chest(path=path)
    one.flush()
    for n in range(1, 60):
        expect((len(one), one["x"]), (1, [n - 1]))
        for _ in range(2):  # x~1, and x again
            two["x"] = [n]
            two.flush()
            two, three = three, two
    for each in (one, two, three):
        each.close()


@scenario
def no_name_of_one_key_is_given_to_one_that_differs_in_case_alone(path):
    """Of two keys that want one file on a disk without case, also where one handle made and dropped one before."""
    killed("""
c = Chest({'q': 1}, path=path)
c.flush()
c['A'] = [1]
c.move_to_disk('A')
del c['A']
c['a'] = [2]
real = os.unlink
os.ftruncate = lambda *any: os.kill(os.getpid(), signal.SIGKILL)
os.unlink = lambda path, **more: os.kill(os.getpid(), 9) if path.endswith('.new') else real(path, **more)
c.sync()
os.kill(os.getpid(), signal.SIGKILL)
""", path)
    expect(contents(path), {"q": 1, "a": [2]})
    with Chest(path=path) as c:
        c["w"] = 1
        c.flush()
    expect(contents(path), {"q": 1, "a": [2], "w": 1})


NEEDS_PROCESSES = {two_processes_lose_nothing_of_each_other,
                   a_process_that_is_killed_leaves_its_last_commit_and_no_rubbish,
                   no_name_of_one_key_is_given_to_one_that_differs_in_case_alone}
