"""A chest from a stranger: the command runs none of its code, does not hang, and prints nothing that a terminal obeys."""
import datetime
import decimal
import gzip
import json
import os
import pathlib
import pickle
import re
import shutil
import struct
import subprocess
import sys
import uuid

import pytest
from children import chest_command

from chest import Chest
from chest.cli.main import main
from chest.errors import ChestError

try:
    import numpy  # opens libraries of the system
except ImportError:
    numpy = None

ESCAPE = "\x1b]0;owned\x07\x1b[2J\u202e\u009b\x7f"


class Code:
    """What runs code when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def make(path, index, **contents):
    os.makedirs(path, exist_ok=True)
    for name, data in {".keys": index if isinstance(index, bytes) else json.dumps(index).encode(), **contents}.items():
        pathlib.Path(path, name).write_bytes(data)


@pytest.fixture
def mark(tmp_path):
    return str(tmp_path / "mark")


@pytest.mark.parametrize("where", ["key", "compressed key", "value", "ref"])
@pytest.mark.parametrize("command", ["ls", "info", "check", "get", "rm", "copy"])
def test_no_code_of_a_chest_is_run(capsys, path, mark, where, command):
    code = Code(mark)
    index = {"key": pickle.dumps([(code, "x")]), "compressed key": gzip.compress(pickle.dumps([(code, "x")])),
             "value": pickle.dumps([("x", "x")]), "ref": pickle.dumps([("x", code)])}[where]
    make(path, index, x=pickle.dumps(code if where == "value" else 1))
    status = main([command, path, *{"get": ["x"], "rm": ["x"], "copy": [path + "-copy"]}.get(command, [])])
    assert not os.path.exists(mark)
    if where != "value":
        assert status == 2
        assert "--trust" in capsys.readouterr().err


def test_what_is_refused_needs_trust_and_is_no_damage_unless_its_checksum_says_so(capsys, path, mark):
    with Chest(path=path) as chest:
        chest["code"] = Code(mark)
        chest["list"] = [1, 2]
    assert main(["ls", path]) == main(["info", path]) == 0
    assert main(["check", path, "--repair", "--yes"]) == 0
    out = capsys.readouterr().out
    assert "'code': code: not loaded without --trust: " in out
    assert "2 keys, 0 damaged, 1 not loaded without --trust; 0 leftovers" in out
    assert main(["get", path, "code"]) == 2
    assert "--trust" in capsys.readouterr().err
    assert not os.path.exists(mark)
    assert main(["check", "--trust", path]) == 0
    assert os.path.exists(mark)
    place = pathlib.Path(path, "code")
    data = bytearray(place.read_bytes())
    data[15] ^= 1
    place.write_bytes(data)
    assert main(["check", path]) == 1
    assert "2 keys, 1 damaged; 0 leftovers" in capsys.readouterr().out


NPY = b"\x93NUMPY\x01\x00" + struct.pack("<H", 60) + b"{'descr': '\x1b[31mX', 'shape': '\x1b[2J'}".ljust(60)
TEXT = b"X" + struct.pack("<I", len(ESCAPE.encode())) + ESCAPE.encode()


@pytest.mark.parametrize(("index", "contents"), [
    ([[ESCAPE, "x"]], {"x": pickle.dumps(1)}),
    ([[ESCAPE, "y" + ESCAPE]], {}),
    ([["x", "../" + ESCAPE]], {}),
    ([["x", "x"]], {"x": b"c\x1b]0;owned\x07\nname\x1b[2J\n."}),
    ([["x", "x"]], {"x": b"\x80\x04" + TEXT + TEXT + b"\x93)R."}),
    ([["x", "x"]], {"x": NPY}),
    ([["x", "x"]], {"x": pickle.dumps(1), "left\x1b[31mover\nfake line: all is well": b""}),
    (pickle.dumps([(ESCAPE, 1.5)]), {}),
    (b"c\x1b]0;owned\x07\nname\n.", {}),
])
def test_nothing_that_a_terminal_obeys_is_printed(tmp_path, index, contents):
    path = str(tmp_path / "a\x1b[31m path")
    make(path, index, **contents)
    for arguments in (["ls", path], ["info", path], ["check", path], ["ls", "--json", path], ["get", path, "x"],
                      ["ls", "--sort", "key", path], ["check", "--trust", path], ["check", "--repair", "--yes", path]):
        found = chest_command(*arguments, stdin=subprocess.DEVNULL)
        out = found.stdout + found.stderr
        assert all(character.isprintable() or character in "\n\t" for character in out)
        assert "\nfake line" not in out
        assert "Traceback" not in out
        assert found.returncode in (0, 1, 2)


@pytest.mark.parametrize("index", [
    [["x", ESCAPE]], [["x", "../" + ESCAPE]], [["x", "gone" + ESCAPE]], b"\x80\x05C\x15chest-keys 9 1.0\x1b[31m" + b"0."])
@pytest.mark.parametrize("trusted", [True, False])
def test_nothing_that_a_terminal_obeys_is_in_an_error_of_a_program(path, index, trusted):
    make(path, pickle.dumps(index) if isinstance(index, list) else index, **{ESCAPE: pickle.dumps("cut off")[:-3]})
    with pytest.raises((ChestError, KeyError)) as caught:
        Chest(path=path, trusted=trusted)["x"]
    assert str(caught.value).isprintable()


def test_a_text_goes_to_a_terminal_escaped_and_to_a_pipe_as_it_is(capsys, path, monkeypatch):
    with Chest(path=path) as chest:
        chest["x"] = "two\nlines\x1b[31m"
    assert main(["get", path, "x"]) == 0
    assert capsys.readouterr().out == "two\nlines\x1b[31m\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["get", path, "x"]) == 0
    assert capsys.readouterr().out == "two\nlines\\x1b[31m\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
@pytest.mark.parametrize("what", ["pipe", "endless link", "pipe as index", "link as index"])
def test_pipes_and_endless_files_are_refused_quickly(path, what):
    make(path, [["x", "x"]])
    name = os.path.join(path, ".keys" if "index" in what else "x")
    if "index" in what:
        os.remove(name)
    os.mkfifo(name) if "pipe" in what else os.symlink("/dev/zero", name)
    for arguments in (["ls", path], ["info", path], ["check", path], ["get", path, "x"], ["copy", path, path + "-copy"],
                      ["check", "--repair", "--leftovers", "--yes", path]):
        found = chest_command(*arguments, stdin=subprocess.DEVNULL)
        assert found.returncode in ((2,) if "index" in what or arguments[0] in ("get", "copy") else (0, 1))
        assert "Traceback" not in found.stderr
        assert found.stderr.count("\n") <= 1
    assert os.path.lexists(name)


@pytest.mark.parametrize("content", ['{"token": "secret"}', ""])
def test_nothing_is_removed_through_a_folder_that_is_a_link(path, tmp_path, content):
    secret = tmp_path / "outside" / "secret.json"
    secret.parent.mkdir()
    secret.write_text(content)
    make(path, [["x", "_a/secret.json"]])
    os.symlink(secret.parent, os.path.join(path, "_a"))
    for more in ["check", "--repair", "--yes"], ["check", "--repair", "--leftovers", "--yes"], ["rm", "x"]:
        main([more[0], path, *more[1:]])
        assert secret.read_text() == content
        make(path, [["x", "_a/secret.json"]])


@pytest.mark.parametrize("what", ["index", "value"])
def test_what_unpacks_to_far_more_than_it_is_is_not_unpacked(capsys, path, what):
    bomb = gzip.compress(b"\x80\x04B" + struct.pack("<I", 200_000_000) + bytes(200_000_000) + b".")
    make(path, gzip.compress(pickle.dumps([("x", "x"), ("y", "y")])) if what == "value" else bomb, x=bomb, y=gzip.compress(pickle.dumps(7)))
    right = 0 if what == "value" else 2
    assert (main(["check", path]), main(["get", path, "x"]), main(["get", path, "y"])) == (right, 2, right)
    assert "more than 100 times its size" in "".join(capsys.readouterr())
    if what == "value":
        assert main(["check", "--trust", path]) == 0


def test_keys_of_any_size_and_depth_are_listed(capsys, path):
    mask = (1 << 20_000) - 1
    with Chest(path=path) as chest:
        chest.update({mask: 1, ("row", mask): 2, "plain": 3})
    for command in ("ls", "info", "check"):
        assert main([command, path]) == 0
    assert main(["get", path, hex(mask)]) == 0
    assert capsys.readouterr().out.endswith("\n1\n")


def test_too_little_memory_is_no_damage(path):
    pytest.importorskip("resource")
    pytest.importorskip("numpy")
    with Chest(path=path) as chest:
        chest["big"], chest["small"] = numpy.ones(60_000_000), [1]
    limited = ("import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_AS, (420_000_000,) * 2); "
               "sys.argv = ['chest', 'check', sys.argv[1], '--repair', '--yes']; "
               "runpy.run_module('chest', run_name='__main__')")
    subprocess.run([sys.executable, "-c", limited, path], capture_output=True, check=False,
                   env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    assert sorted(Chest(path=path)) == ["big", "small"]


def attacks(outside):
    """Pickles that would run a program, or open a file outside of their chest."""
    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    for module, name, argument in (
            ("os", "system", f"touch {outside}"), ("posix", "system", f"touch {outside}"), ("os", "listdir", outside),
            ("subprocess", "run", ["touch", outside]), ("builtins", "open", outside), ("io", "open", outside),
            ("builtins", "exec", f"open({outside!r})"), ("pathlib", "Path.read_bytes", outside), ("os", "stat", outside),
            ("numpy", "load", outside), ("numpy", "memmap", outside), ("chest", "load", outside), ("shutil", "rmtree", outside),
            ("zoneinfo", "ZoneInfo._unpickle", "../../../../../../" + outside), ("zoneinfo", "ZoneInfo", outside),
            ("importlib", "import_module", "antigravity"), ("socket", "create_connection", ("127.0.0.1", 9)),
            ("linecache", "getlines", outside), ("chest.core", "Chest", outside), ("mmap", "mmap", -1)):
        yield b"\x80\x04" + text(module) + text(name) + b"\x93" + pickle.dumps((argument,), 2)[2:-1] + b"R."
    yield b"c" + outside.encode() + b"\nname\n."


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
@pytest.mark.parametrize("where", ["values", "keys", "compressed values", "names", "links"])
def test_nothing_is_run_or_opened_outside_of_the_chest_and_of_python(tmp_path, where):
    """What a tracer sees of `ls`, `info` and `check`; Python's own is what they open for a chest of no harm, and modules."""
    secret, harmless, hostile = tmp_path / "outside" / "secret", tmp_path / "harmless", tmp_path / "hostile"
    secret.parent.mkdir()
    secret.write_bytes(pickle.dumps("a secret"))
    found = dict(enumerate(attacks(str(secret))))
    if where == "keys":  # the index is one of them, or has all behind one that is good
        indices = [*found.values(), pickle.dumps([("x", "x")]) + b"".join(found.values())]
        chests = [(data, {"x": pickle.dumps(1)}) for data in indices[:6] + indices[-1:]]
    elif where in ("values", "compressed values"):
        pack = gzip.compress if "compressed" in where else bytes
        chests = [(pack(pickle.dumps([(key, f"v{key}") for key in found])), {f"v{key}": pack(data) for key, data in found.items()})]
    else:
        names = ["../outside/secret", str(secret), "_a/secret", "_a/../../outside/secret", "link", "x"]
        chests = [(pickle.dumps(list(enumerate(names))), {"x": pickle.dumps(1)}), ([*enumerate(names)], {"x": b"1"})]
    with Chest(path=harmless) as chest:
        chest.update({"x": numpy.arange(3) if numpy else 1,
                      "y": [uuid.UUID(int=1), decimal.Decimal(1), datetime.date(1, 1, 1), pathlib.PurePath("x")]})
    known = set().union(*[trace(tmp_path, command, harmless) for command in ("ls", "info", "check")])
    own = tuple({os.path.realpath(folder) + os.sep for folder in (sys.prefix, sys.base_prefix, *filter(os.path.isdir, sys.path))
                 if not str(tmp_path).startswith(os.path.realpath(folder))})
    for number, (index, contents) in enumerate(chests):
        path = f"{hostile}{number}"
        make(path, index, **contents)
        if where == "links":
            os.symlink(secret.parent, os.path.join(path, "_a"))
            os.symlink(secret, os.path.join(path, "link"))
            os.symlink(secret.parent, os.path.join(path, ".packs"))
        for command in "ls", "info", "check":
            opened = trace(tmp_path, command, path)
            assert [one for one in opened - known if not one.startswith((path + os.sep, *own)) and one != path] == []
    assert os.listdir(secret.parent) == ["secret"] and secret.read_bytes() == pickle.dumps("a secret")


def trace(folder, command, path):
    """What a command opens of a chest, as the system resolves it; it must run, remove, make and reach nothing."""
    log = folder / "trace.log"
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(["strace", "-f", "-y", "-s", "4096", "-o", log, "-e", "trace=%file,%network,%process", sys.executable, "-m",
                           "chest", command, path], capture_output=True, check=False, env=environment, timeout=300)
    lines = log.read_text(errors="replace").splitlines()
    if b"ptrace" in done.stderr or not any("exited with" in line for line in lines):
        pytest.skip("strace cannot trace here")
    assert done.returncode in (0, 1, 2) and b"Traceback" not in done.stderr
    assert sum("execve(" in line for line in lines) == 1  # Python itself
    changes = re.compile(r"^\d+ +(fork|unlink(at)?|rename(at2?)?|link(at)?|symlink(at)?|mkdir(at)?|rmdir|f?chmod(at2?)?|l?chown|truncate|"
                         r"connect|bind|sendto)\(.* = [0-9]|O_(WRONLY|RDWR|CREAT).* = [0-9]")
    assert [line for line in lines if changes.search(line) and "/dev/" not in line] == []
    return {re.sub(r"^/proc/\d+/", "/proc/self/", found[1]) for found in (re.search(r"open(?:at2?)?\(.* = \d+<(.*)>$", line) for line in lines) if found}
