"""The command line: what each command tells, and that none loads, makes or removes more than it must."""
import bz2
import gzip
import json
import lzma
import os
import pickle
import subprocess
import sys
import types
from pathlib import Path

import pytest
from children import chest_command, python

from chest import Chest, __version__
from chest.cli.main import main

OK, DAMAGED, ERROR = 0, 1, 2


@pytest.fixture
def filled(path):
    """A chest with values of several kinds, saved."""
    with Chest(path=path) as chest:
        chest["text"] = "some text"
        chest[1] = list(range(1000))
        chest["1"] = {"a": 1}
        chest[("a", "b")] = b"\x00\xff"
        chest["nothing"] = None
    return path


@pytest.fixture
def damaged(filled):
    """One file is gone, one is torn, one is empty; one holds something that is not chest's."""
    os.remove(os.path.join(filled, "text"))
    for name, size in (("nothing", 0), ("c4ca4238a0b923820dcc509a6f75849b", 100)):
        os.truncate(os.path.join(filled, name), size)
    Path(filled, "_a", "b").write_bytes(b"something else")
    return filled


@pytest.fixture
def run(capsys):
    """Run the command: its exit status and what it printed; ``error=True``: the one line that is said of an error."""
    def run(*arguments, error=False):
        status = main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        if not error:
            assert status != ERROR, told.err
            return status, told.out
        assert (status, told.out, told.err.count("\n"), told.err[:7]) == (ERROR, "", 1, "chest: ")
        return told.err

    return run


def listed(run, path, *arguments):
    return json.loads(run("ls", "--json", path, *arguments)[1])


def files(path):
    return {name: os.stat(os.path.join(path, name)).st_mtime_ns for name in os.listdir(path)}


# ls and info


def test_ls_shows_key_kind_and_size_of_each_value_as_inserted_or_sorted(run, filled):
    status, out = run("ls", filled)
    assert status == OK
    assert {line[42:]: line[12:40].strip() for line in out.splitlines()} == {
        "'text'": "str 9", "1": "list 1000", "'1'": "dict 1", "('a', 'b')": "bytes 2", "'nothing'": "None"}
    assert out.splitlines()[0].split()[:2] == [str(os.path.getsize(os.path.join(filled, "text"))), "bytes"]
    entries = listed(run, filled)
    assert [entry["key"] for entry in entries] == ["'text'", "1", "'1'", "('a', 'b')", "'nothing'"]
    assert all(entry["bytes"] == os.path.getsize(os.path.join(filled, entry["file"])) for entry in entries)
    sizes = [entry["bytes"] for entry in listed(run, filled, "--sort", "size")]
    assert sizes == sorted(sizes, reverse=True)
    assert len(listed(run, filled, "--sort", "key")) == len(listed(run, filled, "--sort", "kind")) == 5


def test_ls_tells_dtype_and_shape_of_arrays_and_knows_small_values(run, path):
    numpy = pytest.importorskip("numpy")
    with Chest(path=path, min_file_size=4096) as chest:
        chest["large"] = numpy.zeros((256, 300))
        chest["small"] = numpy.zeros((2, 3), "f4")
        chest["flags"] = numpy.zeros(70_000, bool)
        chest["pair"] = (numpy.zeros(20_000), 1)
        chest["list"] = [1, 2, 3]
    found = {entry["kind"]: entry["file"].startswith(".packs/") for entry in listed(run, path)}
    assert found == {"ndarray float64 (256, 300)": False, "ndarray float32 (2, 3)": True,
                     "ndarray bool (70000,)": False, "tuple 2": False, "list 3": True}
    about = json.loads(run("info", path, "--json")[1])
    assert (about["files"], about["records"], about["leftovers"]) == (3, 2, 0)


@pytest.mark.parametrize("opener", [gzip, bz2, lzma, open])
@pytest.mark.parametrize("format", ["json", "pickle"])
def test_a_chest_of_json_or_pickle_is_read_with_the_open_that_its_bytes_tell(run, path, opener, format):
    module = json if format == "json" else pickle
    with Chest(path=path, dump=module.dump, load=module.load, open=getattr(opener, "open", open),
               mode="t" if format == "json" else "b") as chest:
        chest["x"] = [1, 2, 3]
    assert listed(run, path)[0]["kind"].replace("json ", "").startswith("list 3")
    assert run("get", path, "x") == (OK, "[1, 2, 3]\n")
    assert run("check", path)[0] == OK
    assert run("rm", path, "x") == (OK, "")
    assert listed(run, path) == []


def test_info_counts_keys_and_bytes_and_names_the_writer(run, filled):
    told = {name: text.strip() for name, text in (line.split(":", 1) for line in run("info", filled)[1].splitlines())}
    assert (told["path"], told["keys"], told["files"], told["records"], told["leftovers"]) == (filled, "5", "5", "0", "0")
    index_bytes = os.path.getsize(os.path.join(filled, ".keys"))
    assert told["index bytes"] == f"{index_bytes} bytes"
    assert f"chest {__version__} (format " in told["writer"]
    Path(filled, "notes.txt").write_text("mine")
    about = json.loads(run("info", "--json", filled)[1])
    assert (about["bytes"], about["index_bytes"]) == (sum(entry["bytes"] for entry in listed(run, filled)), index_bytes)
    assert (about["path"], about["keys"], about["leftovers"], about["leftover_bytes"]) == (filled, 5, 1, 4)


# get, rm and copy


@pytest.mark.parametrize(("key", "printed"), [
    ("text", "some text\n"), ("'text'", "some text\n"), ("'1'", "{'a': 1}\n"), ("nothing", "None\n"), ("2", "literal\n"),
    ("frozenset({'a'})", "no literal\n")])
def test_get_prints_a_value_whose_key_is_a_literal_or_a_text_or_as_ls_shows_it(run, filled, key, printed):
    with Chest(path=filled) as chest:
        chest.update({2: "literal", "2": "text", frozenset(["a"]): "no literal"})
    assert run("get", filled, key) == (OK, printed)


def test_get_writes_bytes_as_they_are(capfdbinary, filled):
    assert main(["get", filled, "('a', 'b')"]) == OK
    assert capfdbinary.readouterr().out == b"\x00\xff"


def test_rm_removes_keys_and_their_files_or_nothing_if_one_is_unknown(run, filled):
    assert "unknown" in run("rm", filled, "text", "unknown", error=True)
    assert "text" in Chest(path=filled)
    assert run("rm", filled, "text", "('a', 'b')") == (OK, "")
    assert sorted(map(repr, Chest(path=filled))) == ["'1'", "'nothing'", "1"]
    assert not os.path.exists(os.path.join(filled, "text"))


@pytest.mark.parametrize(("settings", "target"), [
    ({}, "{}/copy"), ({"min_file_size": 4096}, "{}/copy"), ({"dump": json.dump, "load": json.load}, "{}/copy"),
    ({}, "file://{}/copy")])
def test_copy_makes_another_chest_and_overwrites_none_at_a_url_too(run, path, tmp_path, settings, target):
    if "//" in target:
        pytest.importorskip("fsspec")
    target = target.format(tmp_path)
    assert "is not a chest" in run("ls", target, error=True)
    with Chest(path=path, **settings) as chest:
        chest.update(x=[1], y="two")
    assert run("copy", path, target) == (OK, "")
    assert "is a chest already" in run("copy", path, target, error=True)
    assert [entry["kind"] for entry in listed(run, target)] == [entry["kind"] for entry in listed(run, path)]
    assert run("rm", path, "x")[0] == OK
    assert run("get", target, "x") == (OK, "[1]\n")
    assert json.loads(run("info", "--json", target)[1])["keys"] == 2
    assert run("check", target) == (OK, "2 keys, 0 damaged; 0 leftovers\n")


# check


def test_check_lists_what_cannot_be_read_and_repair_drops_what_is_lost_if_told_so(run, damaged, monkeypatch):
    before, asked = files(damaged), []
    status, out = run("check", damaged, "--trust")
    assert status == DAMAGED
    assert [line.partition(":")[0] for line in out.splitlines()[:-1]] == ["'text'", "1", "('a', 'b')", "'nothing'"]
    assert "'text': text: damaged: its file is gone" in out
    assert "5 keys, 3 damaged, 1 unreadable here; 0 leftovers" in out
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "n")
    assert run("check", damaged, "--repair")[0] == DAMAGED
    assert "'text'" in asked[0]
    found = chest_command("check", damaged, "--repair", stdin=subprocess.DEVNULL)  # there is nobody to ask
    assert found.returncode == ERROR and "--yes" in found.stderr
    assert files(damaged) == before
    status, out = run("check", damaged, "--repair", "--yes", "--trust")
    assert status == DAMAGED  # one is left, as another load may read it
    assert "dropped 3 keys" in out
    assert sorted(map(repr, Chest(path=damaged))) == ["'1'", "('a', 'b')"]
    assert os.path.exists(os.path.join(damaged, "_a", "b"))


def test_a_flipped_bit_is_damage_in_a_file_and_in_a_pack_and_so_is_a_file_of_another_key(run, path, filled):
    with Chest(path=filled) as chest:
        os.replace(chest.key_to_filename("1"), chest.key_to_filename(1))
    status, out = run("check", filled)
    assert status == DAMAGED and "c4ca4238a0b923820dcc509a6f75849b: damaged: the file is another key's\n" in out
    for size, name in ((0, "x"), (4096, ".packs")):
        with Chest({"x": list(range(100))}, path=path + name, min_file_size=size) as chest:
            chest.sync()
            place = Path(chest.key_to_filename("x"))
        data = bytearray(place.read_bytes())
        data[60] ^= 1
        place.write_bytes(data)
        assert "1 key, 1 damaged" in run("check", path + name)[1]
        status, out = run("check", path + name, "--repair", "--yes")
        assert (status, out.splitlines()[-1]) == (OK, "dropped 1 key")
        assert run("check", path + name)[1].startswith("0 keys, 0 damaged")


@pytest.mark.parametrize("error", [
    "ImportError('no such library')", "AttributeError('gone')", "ValueError('incompatible')", "KeyError('level')",
    "TypeError('b is missing')", "MemoryError()", "EOFError()", "OSError('no device')", "FileNotFoundError(2, 'data')",
    "__import__('pickle').UnpicklingError('x')", "__import__('chest').errors.DamagedError('of another chest')"])
def test_nothing_is_dropped_for_an_error_that_its_class_raises(run, path, monkeypatch, error):
    movedon = types.ModuleType("movedon")
    monkeypatch.setitem(sys.modules, "movedon", movedon)
    exec("class Model: pass", vars(movedon))
    with Chest(path=path) as chest:
        chest["x"] = movedon.Model()
        chest["x"].level = 1
    exec(f"class Model:\n def __setstate__(self, state): raise {error}", vars(movedon))
    for more in ([], ["--trust"]):
        status, out = run("check", path, "--repair", "--yes", *more)
        assert status == (DAMAGED if more else OK)
        assert "1 key, 0 damaged, 1 " in out
        assert "x" in Chest(path=path)


def test_nothing_is_dropped_that_a_dump_of_ones_own_wrote_and_that_ends_in_zeros(run, path):
    """As numpy.save of integers does; nobody said with which load= it is read."""
    with Chest(path=path, dump=lambda value, file: file.write(b"\x93NUMPY" + value)) as chest:
        chest["x"] = bytes((1, 0, 0, 0))
    status, out = run("check", path, "--repair", "--yes")
    assert status == DAMAGED and "1 key, 0 damaged, 1 unreadable here" in out
    assert "x" in Chest(path=path)


def test_what_a_killed_writer_left_is_removed_and_nobody_elses_files_are(run, filled):
    killed = """if True:
        import os, sys
        from chest import Chest
        chest = Chest(path=sys.argv[1], min_file_size=100)
        chest["small"], chest["large"], chest["in", "a folder"] = 1, bytes(1000), bytes(1000)
        for key in list(chest):
            chest.move_to_disk(key)
        os._exit(0)"""
    python(killed, filled)
    marked, mine, link = (os.path.join(filled, name) for name in ("marked", "mine", "link"))
    with open(marked, "wb") as file, open(mine, "wb") as other:
        Chest().dump("kept", file)
        pickle.dump("kept", other)
    os.symlink(mine, link)
    status, out = run("check", filled, "--leftovers")
    assert (status, "7 leftovers" in out) == (OK, True)
    assert not os.path.exists(os.path.join(filled, "_in"))
    assert "5 keys, 0 damaged; 3 leftovers\n" in run("check", filled)[1]
    assert all(map(os.path.lexists, (marked, mine, link)))
    living = Chest(path=filled, min_file_size=100)
    living["y"], living["z"] = 2, bytes(1000)  # not committed
    living.move_to_disk("y")
    living.move_to_disk("z")
    assert "5 keys, 0 damaged; 4 leftovers\n" in run("check", filled, "--repair", "--leftovers", "--yes")[1]
    living.close()
    assert len(dict(Chest(path=filled))) == 7 and Chest(path=filled)["z"] == bytes(1000)


def test_a_key_that_was_given_a_new_value_meanwhile_is_not_dropped(run, damaged):
    from chest.cli.inspect import Inspection

    inspection = Inspection(damaged, trusted=False)
    lost = [key for key, _, verdict, _ in inspection.faults() if verdict == "damaged"]
    with Chest(path=damaged) as other:
        other["text"] = "anew"
    assert inspection.drop(lost) == len(lost) - 1
    inspection.handle.close()
    assert Chest(path=damaged)["text"] == "anew"


# Errors


def test_what_is_no_chest_an_unknown_key_and_a_damaged_index_are_errors(run, filled, tmp_path):
    for place in (tmp_path / "nowhere", tmp_path):
        for command in (["ls"], ["info"], ["check"], ["get", "x"], ["rm", "x"], ["copy", tmp_path / "new"]):
            assert "is not a chest" in run(command[0], place, *command[1:], error=True)
    assert os.listdir(tmp_path) == ["a-chest"]
    assert "there is no key zz" in run("get", filled, "zz", error=True)
    os.truncate(os.path.join(filled, ".keys"), 20)
    for command in ("ls", "info", "check"):
        assert ".keys" in run(command, filled, error=True)


def test_a_chest_of_an_unknown_format_asks_for_its_load(run, path, monkeypatch):
    shifted = types.ModuleType("shifted")
    shifted.load = lambda file: pickle.loads(bytes(255 - byte for byte in file.read()))
    shifted.dump = lambda value, file: file.write(bytes(255 - byte for byte in pickle.dumps(value)))
    monkeypatch.setitem(sys.modules, "shifted", shifted)
    with Chest(path=path, dump=shifted.dump, load=shifted.load) as chest:
        chest["x"] = "value"
    assert "--load" in run("ls", path, error=True)
    assert run("get", path, "x", "--load", "shifted:load") == (OK, "value\n")
    assert "is not a function" in run("ls", path, "--load", "shifted:nothing", error=True)
    assert "no_such_module" in run("ls", path, "--load", "no_such_module:load", error=True)


@pytest.mark.parametrize("error", [RecursionError("too deep"), MemoryError(), RuntimeError("two\nlines\x1b[31m")])
def test_an_unexpected_error_is_one_line_and_no_damage(run, filled, monkeypatch, error):
    monkeypatch.setattr("chest.cli.inspect.Inspection.faults", lambda self: (_ for _ in ()).throw(error))
    told = run("check", filled, error=True)
    assert type(error).__name__ in told
    assert "\x1b" not in told


# As a command


def test_an_ascii_terminal_shows_every_key(path):
    with Chest(path=path) as chest:
        chest["größe"] = "µ"
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for command in (["ls", path], ["info", path], ["check", path], ["get", path, "größe"]):
        found = chest_command(*command, env=ascii_only)
        assert (found.returncode, found.stderr) == (OK, "")
    assert "gr\\xf6\\xdfe" in chest_command("ls", path, env=ascii_only).stdout


def test_a_pipe_that_closes_early_is_no_error(path):
    with Chest(path=path, min_file_size=4096) as chest:
        chest.update(dict.fromkeys(range(5000)))
    command = subprocess.Popen([sys.executable, "-m", "chest", "ls", path], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    command.stdout.readline()
    command.stdout.close()
    assert command.stderr.read() == b""
    assert command.wait(60) == OK
    command.stderr.close()
