"""The command line: what each command tells, and that none loads, makes or removes more than it must."""
import gzip
import json
import os
import pickle
import subprocess
import sys

import pytest

from chest import Chest, __version__, cli

OK, DAMAGED, ERROR = 0, 1, 2


class Bomb:
    """A value that nobody may unpickle."""

    def __reduce__(self):
        return os._exit, (99,)


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


def run(capsys, *arguments):
    """The exit status and what was printed."""
    status = cli.main([str(argument) for argument in arguments])
    return status, capsys.readouterr().out


def fails(capsys, *arguments):
    """The one line that is said of an error."""
    assert cli.main([str(argument) for argument in arguments]) == ERROR
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("chest: ")
    assert told.err.count("\n") == 1
    return told.err


def files(path):
    return {name: os.stat(os.path.join(path, name)).st_mtime_ns for name in os.listdir(path)}


# ls


def test_ls_shows_key_kind_and_size_of_each_value(capsys, filled):
    status, out = run(capsys, "ls", filled)

    assert status == OK
    kinds = {line[42:]: line[12:40].strip() for line in out.splitlines()}
    assert kinds["'text'"] == "str 9"
    assert kinds["1"] == "list 1000"
    assert kinds["'1'"] == "dict 1"
    assert kinds["('a', 'b')"] == "bytes 2"
    assert kinds["'nothing'"] == "None"
    assert out.splitlines()[0].split()[:2] == [str(os.path.getsize(os.path.join(filled, "text"))), "bytes"]


def test_ls_json_tells_bytes_and_files(capsys, filled):
    _, out = run(capsys, "ls", "--json", filled)
    entries = json.loads(out)

    assert [entry["key"] for entry in entries] == ["'text'", "1", "'1'", "('a', 'b')", "'nothing'"]
    for entry in entries:
        assert entry["bytes"] == os.path.getsize(os.path.join(filled, entry["file"]))


def test_ls_sorts_by_size_the_largest_first(capsys, filled):
    _, out = run(capsys, "ls", "--json", "--sort", "size", filled)

    sizes = [entry["bytes"] for entry in json.loads(out)]

    assert sizes == sorted(sizes, reverse=True)


def test_ls_sorts_by_key_and_by_kind_whatever_the_types(capsys, filled):
    for order in ("key", "kind"):
        status, out = run(capsys, "ls", "--sort", order, filled)

        assert status == OK
        assert len(out.splitlines()) == 5


def test_ls_and_info_unpickle_no_value(capsys, path):
    with Chest(path=path) as chest:
        chest["bomb"] = Bomb()
        chest["list"] = [Bomb()]

    assert run(capsys, "ls", path)[0] == OK
    assert run(capsys, "info", path)[0] == OK


def test_ls_tells_dtype_and_shape_of_arrays(capsys, path):
    numpy = pytest.importorskip("numpy")
    with Chest(path=path) as chest:
        chest["large"] = numpy.zeros((256, 300))
        chest["small"] = numpy.zeros((2, 3), "f4")
        chest["flags"] = numpy.zeros(70_000, bool)
        chest["objects"] = numpy.array([None, 1], object)
        chest["pair"] = (numpy.zeros(20_000), 1)

    _, out = run(capsys, "ls", "--json", path)
    kinds = {entry["key"]: entry["kind"] for entry in json.loads(out)}

    assert kinds == {"'large'": "ndarray float64 (256, 300)", "'small'": "ndarray float32 (2, 3)",
                     "'flags'": "ndarray bool (70000,)", "'objects'": "ndarray object (2,)", "'pair'": "tuple 2"}


@pytest.mark.parametrize("protocol", range(6))
def test_ls_knows_the_pickles_of_others(capsys, path, protocol):
    numpy = pytest.importorskip("numpy")
    values = {"array": numpy.arange(30_000.0), "text": "abc", "list": [1, 2], "number": 3}
    with Chest(path=path, dump=lambda value, file: pickle.dump(value, file, protocol), load=pickle.load) as chest:
        chest.update(values)

    _, out = run(capsys, "ls", "--json", path)
    kinds = [entry["kind"] for entry in json.loads(out)]

    assert kinds[0].startswith("ndarray")
    assert kinds[1:] == ["str 3", "list 2", "int"]


def test_ls_reads_a_chest_of_json_and_gzip(capsys, path):
    with Chest(path=path, dump=json.dump, load=json.load, open=gzip.open, mode="t") as chest:
        chest["x"] = [1, 2, 3]

    assert "'x'" in run(capsys, "ls", path)[1]
    assert run(capsys, "get", path, "x") == (OK, "[1, 2, 3]\n")
    assert run(capsys, "check", path)[0] == OK


def test_ls_knows_small_values(capsys, path):
    with Chest(path=path, min_file_size=4096) as chest:
        chest["x"] = [1, 2, 3]

    (entry,) = json.loads(run(capsys, "ls", "--json", path)[1])

    assert entry["kind"] == "list 3"
    assert entry["file"].startswith(".small/")
    assert entry["bytes"] > 0


# info


def test_info_counts_keys_and_bytes_and_names_the_writer(capsys, filled):
    status, out = run(capsys, "info", filled)
    told = dict(line.split(":", 1) for line in out.splitlines())

    assert status == OK
    assert told["keys"].strip() == "5"
    assert told["values"].strip().endswith("in 5 files")
    assert f"chest {__version__} (format 1)" in told["index"]
    assert told["leftovers"].strip() == told["strangers"].strip() == "none"


def test_info_tells_leftovers_from_strangers(capsys, filled):
    with open(os.path.join(filled, "leftover"), "wb") as file:
        Chest().dump("lost", file)
    with open(os.path.join(filled, "notes.txt"), "w") as file:
        file.write("mine")

    _, out = run(capsys, "info", filled)
    told = dict(line.split(":", 1) for line in out.splitlines())

    assert told["leftovers"].strip().startswith("1 file (")
    assert told["strangers"].strip() == "1 file"


# get and rm


@pytest.mark.parametrize(("key", "printed"), [
    ("text", "some text\n"), ("'text'", "some text\n"), ("'1'", "{'a': 1}\n"), ("nothing", "None\n")])
def test_get_prints_a_value(capsys, filled, key, printed):
    assert run(capsys, "get", filled, key) == (OK, printed)


def test_get_takes_a_literal_before_a_text(capsys, filled):
    assert run(capsys, "get", filled, "1")[1].startswith("[0,")


def test_get_writes_bytes_as_they_are(capfdbinary, filled):
    assert cli.main(["get", filled, "('a', 'b')"]) == OK

    sys.stdout.flush()
    assert capfdbinary.readouterr().out == b"\x00\xff"


def test_a_key_that_is_no_literal_is_given_as_ls_shows_it(capsys, path):
    with Chest(path=path) as chest:
        chest[frozenset(["a"])] = "found"

    assert run(capsys, "get", path, "frozenset({'a'})") == (OK, "found\n")


def test_rm_removes_keys_and_their_files(capsys, filled):
    assert run(capsys, "rm", filled, "text", "('a', 'b')") == (OK, "")

    assert sorted(map(repr, Chest(path=filled))) == ["'1'", "'nothing'", "1"]
    assert not os.path.exists(os.path.join(filled, "text"))


def test_rm_removes_nothing_if_one_key_is_unknown(capsys, filled):
    assert "unknown" in fails(capsys, "rm", filled, "text", "unknown")

    assert "text" in Chest(path=filled)


def test_rm_keeps_the_format_of_the_chest(capsys, path):
    settings = {"path": path, "dump": json.dump, "load": json.load}
    with Chest(**settings) as chest:
        chest.update(x=1, y=2)

    run(capsys, "rm", path, "x")

    with open(os.path.join(path, ".keys")) as file:
        assert json.load(file) == [["y", "y"]]


# check


def test_check_of_a_sound_chest_is_silent_about_keys(capsys, filled):
    assert run(capsys, "check", filled) == (OK, "5 keys, 0 damaged; 0 leftovers\n")


@pytest.fixture
def damaged(filled):
    """One file is gone, one is torn, one is empty; one holds something that is not chest's."""
    os.remove(os.path.join(filled, "text"))
    for name, size in (("nothing", 0), ("c4ca4238a0b923820dcc509a6f75849b", 100)):
        os.truncate(os.path.join(filled, name), size)
    with open(os.path.join(filled, "_a", "b"), "wb") as file:
        file.write(b"something else")
    return filled


def test_check_lists_what_cannot_be_read(capsys, damaged):
    status, out = run(capsys, "check", damaged)

    assert status == DAMAGED
    assert [line.partition(":")[0] for line in out.splitlines()[:-1]] == ["'text'", "1", "('a', 'b')", "'nothing'"]
    assert "'text': text: its file is gone" in out
    assert "5 keys, 4 damaged" in out


def test_check_alone_changes_nothing(capsys, damaged):
    before = files(damaged)

    run(capsys, "check", damaged)

    assert files(damaged) == before


def test_repair_drops_what_is_lost_and_keeps_what_another_load_may_read(capsys, damaged):
    status, out = run(capsys, "check", damaged, "--repair", "--yes")

    assert status == DAMAGED  # one is left
    assert "dropped 3 keys" in out
    assert sorted(map(repr, Chest(path=damaged))) == ["'1'", "('a', 'b')"]
    assert os.path.exists(os.path.join(damaged, "_a", "b"))


def test_a_missing_library_is_no_damage_to_repair(capsys, path):
    with Chest(path=path) as chest:
        chest["x"] = {"a": 1}
    with open(os.path.join(path, "x"), "r+b") as file:
        mark = file.read(10)
        file.seek(0)
        file.write(mark + b"cno_such_library\nThing\n.")
        file.truncate()

    status, out = run(capsys, "check", path, "--repair", "--yes")

    assert status == DAMAGED
    assert "no_such_library" in out
    assert "x" in Chest(path=path)


def test_repair_asks_and_takes_no_for_an_answer(capsys, damaged, monkeypatch):
    asked = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "n")

    status, _ = run(capsys, "check", damaged, "--repair")

    assert status == DAMAGED
    assert "'text'" in asked[0]
    assert len(Chest(path=damaged)) == 5


def test_repair_of_a_whole_chest_ends_well_once_everything_is_dropped(capsys, filled):
    os.remove(os.path.join(filled, "text"))

    assert run(capsys, "check", filled, "--repair", "--yes")[0] == OK
    assert run(capsys, "check", filled)[0] == OK


def test_leftovers_of_chest_are_removed_and_strangers_files_are_not(capsys, filled):
    ours, mine = os.path.join(filled, "leftover"), os.path.join(filled, "mine")
    with open(ours, "wb") as file:
        Chest().dump("lost", file)
    with open(mine, "wb") as file:
        pickle.dump("kept", file)
    os.symlink(ours, os.path.join(filled, "link"))
    open(os.path.join(filled, ".keys~"), "wb").close()

    status, out = run(capsys, "check", filled, "--repair", "--leftovers", "--yes")

    assert status == OK
    assert "removed 2 leftovers" in out
    assert not os.path.lexists(ours)
    assert os.path.lexists(mine)
    assert os.path.lexists(os.path.join(filled, "link"))
    assert len(dict(Chest(path=filled))) == 5


def test_leftovers_alone_say_that_they_need_repair(capsys, filled):
    assert "--repair" in fails(capsys, "check", filled, "--leftovers")


def test_a_leftover_that_was_committed_meanwhile_stays(filled):
    from chest.survey import Survey

    other = Chest(path=filled)
    other["late"] = "value"
    other.move_to_disk("late")
    survey = Survey(filled)
    left = list(survey.leftovers())
    assert [one.name for one in left] == ["late"]
    other.close()

    assert survey.remove(left) == []
    assert Chest(path=filled)["late"] == "value"


# Errors


def test_what_is_not_a_chest_is_an_error_and_is_not_made_one(capsys, tmp_path):
    for place in (tmp_path / "nowhere", tmp_path):
        for command in (["ls"], ["info"], ["check"], ["get", "x"], ["rm", "x"]):
            assert "is not a chest" in fails(capsys, command[0], place, *command[1:])

    assert list(tmp_path.iterdir()) == []


def test_an_unknown_key_is_an_error(capsys, filled):
    assert "there is no key zz" in fails(capsys, "get", filled, "zz")


def test_a_damaged_index_is_an_error(capsys, filled):
    with open(os.path.join(filled, ".keys"), "r+b") as file:
        file.truncate(20)

    for command in ("ls", "info", "check"):
        assert ".keys" in fails(capsys, command, filled)


def test_a_chest_of_an_unknown_format_asks_for_its_load(capsys, path, monkeypatch):
    with Chest(path=path, dump=dump_shifted, load=load_shifted) as chest:
        chest["x"] = "value"
    monkeypatch.setitem(sys.modules, "shifted", sys.modules[__name__])

    assert "cannot be read" in fails(capsys, "ls", path)
    assert run(capsys, "get", path, "x", "--load", "shifted:load_shifted") == (OK, "value\n")
    assert "is not a function" in fails(capsys, "ls", path, "--load", "shifted:nothing")


def dump_shifted(value, file):
    file.write(bytes(255 - byte for byte in pickle.dumps(value)))


def load_shifted(file):
    return pickle.loads(bytes(255 - byte for byte in file.read()))


# As a command


def chest_command(*arguments, **settings):
    return subprocess.run([sys.executable, "-m", "chest", *arguments], capture_output=True, text=True, timeout=60,
                          check=False, **settings)


def test_the_module_is_the_command(filled):
    found = chest_command("get", filled, "text")

    assert (found.returncode, found.stdout, found.stderr) == (OK, "some text\n", "")


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


def test_repair_with_nobody_to_ask_is_an_error(damaged):
    found = chest_command("check", damaged, "--repair", stdin=subprocess.DEVNULL)

    assert found.returncode == ERROR
    assert "--yes" in found.stderr
    assert len(Chest(path=damaged)) == 5
