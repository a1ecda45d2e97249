"""The command line: ``chest ls``, ``info``, ``check``, ``get``, ``rm`` and ``demo``.

Exit status: 0 when all is well, 1 when ``check`` found damage, 2 for an error, which is one line.
"""
from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import os
import pprint
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from chest import __version__
from chest.codec import Codec
from chest.core import Chest
from chest.errors import ChestError
from chest.human import amount, plural
from chest.names import Name, shown
from chest.survey import Entry, Fault, Leftover, Survey, codec_of

__all__ = ["main"]

OK, DAMAGED, ERROR = 0, 1, 2

ABOUT = """\
Look into a chest: a directory that chest.Chest(path=...) keeps.  To read its index is to unpickle the keys, and `get`
and `check` unpickle values too, and unpickling runs code: use this on chests that you trust."""

KEY = "a Python literal such as 1 or \"('a', 2)\" if there is such a key, else the text itself"


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status.

    >>> main(["get", "/nowhere", "x"])
    2
    """
    arguments = _parser().parse_args(argv)
    try:
        with _survivable_pipe():
            status: int = arguments.run(arguments)
            sys.stdout.flush()
            return status
    except (ChestError, OSError, KeyError, ValueError, ImportError) as error:
        print(f"chest: {_sentence(error)}", file=sys.stderr)
        return ERROR
    except KeyboardInterrupt:
        print("chest: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


@contextlib.contextmanager
def _survivable_pipe() -> Iterator[None]:
    """Let ``chest ls | head`` end quietly: nobody reads on, so nothing is to be written any more."""
    try:
        yield
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        raise SystemExit(OK) from None


def _sentence(error: Exception) -> str:
    """What an error says, in one line."""
    if isinstance(error, KeyError) and error.args:
        text = str(error.args[0])
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror + (f": {error.filename}" if error.filename else "")
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())


# The words.


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chest", description=ABOUT)
    parser.add_argument("--version", action="version", version=f"chest {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[Any], int], about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
        sub.set_defaults(run=run)
        return sub

    ls = command("ls", _ls, "list the keys, with the size on disk and the kind of each value; loads no value")
    ls.add_argument("path")
    ls.add_argument("--sort", choices=("key", "size", "kind"), help="size: the largest first; default: as inserted")
    ls.add_argument("--json", action="store_true", help="one JSON list of objects, sizes in bytes")
    info = command("info", _info, "tell how many keys and bytes there are, who wrote them, and what is left over")
    info.add_argument("path")
    check = command("check", _check, "load every value and list those that cannot be; exit status 1 if there are any")
    check.add_argument("path")
    check.add_argument("--repair", action="store_true", help="drop the keys whose values are lost")
    check.add_argument("--leftovers", action="store_true",
                       help="with --repair: remove files that no index names and that are provably chest's own; no "
                            "other process may have the chest open")
    check.add_argument("--yes", action="store_true", help="do not ask")
    get = command("get", _get, "print one value; text and bytes as they are")
    rm = command("rm", _rm, "remove keys")
    for sub, many in ((get, None), (rm, "+")):
        sub.add_argument("path")
        sub.add_argument("key", nargs=many, help=KEY)
    for sub in (ls, info, check, get, rm):
        sub.add_argument("--load", metavar="MODULE:NAME", help="the load= that the chest was written with")
        sub.add_argument("--open", metavar="MODULE:NAME", help="the open= that the chest was written with")
    demo = command("demo", _demo, "put a gigabyte of arrays through a chest of 100 MB; needs numpy")
    demo.add_argument("--size", default="1 GB", help="of all arrays together (default: 1 GB)")
    demo.add_argument("--budget", default="100 MB", help="the chest's available_memory (default: 100 MB)")
    return parser


# What they do.


@contextlib.contextmanager
def _survey(arguments: Any) -> Iterator[Survey]:
    survey = Survey(arguments.path, _codec(arguments) if arguments.load or arguments.open else None)
    try:
        yield survey
    finally:
        survey.close()


def _codec(arguments: Any) -> Codec:
    found = codec_of(arguments.path)
    loader = _imported(arguments.load) if arguments.load else found.load
    opener = _imported(arguments.open) if arguments.open else found.open
    return found._replace(load=loader, open=opener)


def _imported(text: str) -> Callable[..., Any]:
    module, _, name = text.partition(":")
    found: Any = getattr(importlib.import_module(module), name, None) if module and name else None
    if not callable(found):
        raise ValueError(f"{text!r} is not a function; give MODULE:NAME, such as json:load or gzip:open")
    function: Callable[..., Any] = found
    return function


def _ls(arguments: Any) -> int:
    with _survey(arguments) as survey:
        entries = survey.entries()
        if arguments.sort:
            entries = iter(sorted(entries, key=_ORDERS[arguments.sort]))
        if arguments.json:
            print(json.dumps([_as_json(entry) for entry in entries], indent=1))
            return OK
        for entry in entries:
            print(f"{amount(entry.nbytes):>10}  {entry.kind:<28}  {entry.key!r}")
    return OK


_ORDERS: dict[str, Callable[[Entry], Any]] = {
    "key": lambda entry: (type(entry.key).__name__, repr(entry.key)),
    "size": lambda entry: -entry.nbytes,
    "kind": lambda entry: entry.kind,
}


def _as_json(entry: Entry) -> dict[str, Any]:
    return {"key": repr(entry.key), "kind": entry.kind, "bytes": entry.nbytes, "file": shown(entry.name)}


def _info(arguments: Any) -> int:
    with _survey(arguments) as survey:
        entries = list(survey.entries(kinds=False))
        rows = sum(isinstance(entry.name, int) for entry in entries)
        left = list(survey.leftovers())
        ours = [one for one in left if one.ours]
        lines = [
            ("path", survey.path),
            ("keys", f"{len(entries):,}"),
            ("values", f"{amount(sum(entry.nbytes for entry in entries))} in {plural(len(entries) - rows, 'file')}"
                       + (f" and {plural(rows, 'row')} of .small" if rows else "")),
            ("index", f"{amount(os.path.getsize(os.path.join(survey.path, '.keys')))}, written by {survey.version()}"),
            ("leftovers", f"{plural(len(ours), 'file')} ({amount(sum(one.nbytes for one in ours))}) of chest's own"
                          if ours else "none"),
            ("strangers", plural(len(left) - len(ours), "file") if len(left) > len(ours) else "none"),
            ("free disk", amount(shutil.disk_usage(survey.path).free)),
        ]
    for name, text in lines:
        print(f"{name + ':':<11}{text}")
    return OK


def _get(arguments: Any) -> int:
    with _survey(arguments) as survey:
        value = survey.load(survey.names[_key(arguments.key, survey)])
    if isinstance(value, (bytes, bytearray)):
        sys.stdout.buffer.write(value)
    else:
        print(value if isinstance(value, str) else pprint.pformat(value, width=120))
    return OK


def _rm(arguments: Any) -> int:
    with _survey(arguments) as survey:
        keys = [_key(text, survey) for text in arguments.key]
        _drop(survey, {key: survey.names[key] for key in keys})
    return OK


def _key(text: str, survey: Survey) -> Any:
    """The key that ``text`` means: a literal, the text itself, or what `ls` shows."""
    with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        literal = ast.literal_eval(text)
        if literal in survey.names:
            return next(key for key in survey.names if key == literal)
    if text in survey.names:
        return text
    for key in survey.names:
        if repr(key) == text:
            return key
    raise KeyError(f"there is no key {text} in {survey.path}")


def _drop(survey: Survey, names: dict[Any, Name]) -> None:
    """Delete keys, but for those that another process gave a new value meanwhile."""
    codec = survey.codec
    chest: Chest[Any, Any] = Chest(path=survey.path, dump=codec.dump, load=codec.load, open=codec.open, mode=codec.mode)
    with chest:
        for key, name in names.items():
            if key in chest and chest._keys[key] == shown(name):
                del chest[key]


def _check(arguments: Any) -> int:
    if arguments.leftovers and not arguments.repair:
        raise ValueError("--leftovers says what --repair may remove; give both")
    with _survey(arguments) as survey:
        faults = [fault for key, name in survey.names.items() if (fault := survey.check(name, key))]
        for fault in faults:
            print(f"{fault.key!r}: {shown(fault.name)}: {fault.why}{'' if fault.lost else _ELSEWHERE}")
        left = list(survey.leftovers())
        for one in left:
            stranger = "" if one.ours else ", and not written by chest"
            print(f"{shown(one.name)}: {amount(one.nbytes)}, no key's{stranger}")
        print(f"{plural(len(survey.names), 'key')}, {len(faults)} damaged; {plural(len(left), 'leftover')}")
        if not arguments.repair:
            return DAMAGED if faults else OK
        remaining = len(faults) - _repaired(survey, [fault for fault in faults if fault.lost], arguments.yes)
        if arguments.leftovers and any(one.ours for one in left):
            _clear(survey, left, arguments.yes)
    return DAMAGED if remaining else OK


_ELSEWHERE = " (not dropped: a missing library or another load= may read it; see --load)"


def _repaired(survey: Survey, lost: list[Fault], yes: bool) -> int:
    """Drop the keys of values that are lost, if the user agrees; how many were."""
    if not lost or not _agreed(f"Drop {plural(len(lost), 'key')} ({', '.join(repr(one.key) for one in lost)})", yes):
        return 0
    _drop(survey, {fault.key: fault.name for fault in lost})
    print(f"dropped {plural(len(lost), 'key')}")
    return len(lost)


def _clear(survey: Survey, left: list[Leftover], yes: bool) -> None:
    """Remove what is left over and provably chest's own, if the user agrees."""
    ours = plural(sum(one.ours for one in left), "leftover")
    if _agreed(f"Remove {ours} of chest's own? No other process may have the chest open", yes):
        print(f"removed {plural(len(survey.remove(left)), 'leftover')}")


def _agreed(question: str, yes: bool) -> bool:
    if yes:
        return True
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        raise ChestError("nobody is here to ask; --yes agrees beforehand") from None


def _demo(arguments: Any) -> int:
    from chest import demo

    return demo.run(arguments.size, arguments.budget)
