"""The command line: ``chest ls``, ``info``, ``check``, ``get``, ``rm``, ``copy`` and ``demo``.

Exit status: 0 when all is well, 1 when ``check`` found values that cannot be read, 2 for an error, which is one line.
Whatever was read from a chest is printed escaped.
"""
from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import os
import pkgutil
import pprint
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from chest._version import __version__
from chest.cli.inspect import Inspection, refused
from chest.cli.text import amount, key_text, plural, printable
from chest.errors import ChestError

__all__ = ["main"]

OK, DAMAGED, ERROR = 0, 1, 2

ABOUT = """\
Look into a chest: a directory, or a URL, that chest.Chest(path=...) keeps.  Every chest counts as a stranger's: no code
that it names is run unless --trust is given, and what cannot be told without says so."""
KEY = "a Python literal such as 1 or \"('a', 2)\" if there is such a key, else the text itself, or what ls shows"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    >>> main(["get", "/nowhere", "x"])
    2
    """
    arguments = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what an ascii terminal cannot show is escaped
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: _say(f"warning: {message}")
            status = _run(arguments)
            sys.stdout.flush()
            return status or OK
    except BrokenPipeError:  # of `chest ls | head`: nobody reads on, and at exit nothing is to be written any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        _say("interrupted")
        return 128 + signal.SIGINT
    except Exception as error:  # code of the user's runs here, too: that of --load, and of classes
        needs_trust = not getattr(arguments, "trust", True) and refused(error)
        _say(_sentence(error) + (". Give --trust if the code that it names may run" if needs_trust else ""))
        return ERROR


def _function(name: str | None) -> Any:
    """What MODULE:NAME means."""
    if not name:
        return None
    try:
        return pkgutil.resolve_name(name)
    except (AttributeError, ValueError):
        raise ValueError(f"{name!r} is not a function; give MODULE:NAME, such as json:load or gzip:open") from None


def _run(arguments: Any) -> int | None:
    if arguments.run is None:
        from chest.cli import demo

        demo.run(arguments.size, arguments.budget)
        return OK
    load, opener = map(_function, (arguments.load, arguments.open))
    with contextlib.closing(Inspection(arguments.path, arguments.trust, load, opener)) as chest:
        status: int | None = arguments.run(chest, arguments)
        return status


def _say(text: str) -> None:
    print(f"chest: {printable(' '.join(text.split()), most=1000)}", file=sys.stderr)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return text if text and isinstance(error, (ChestError, OSError, KeyError, ValueError)) else repr(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chest", description=ABOUT)
    parser.add_argument("--version", action="version", version=f"chest {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(run: Callable[..., int | None], about: str, path: str = "path") -> Callable[..., argparse.Action]:
        sub = commands.add_parser(run.__name__.strip("_"), help=about, description=about[0].upper() + about[1:] + ".")
        sub.set_defaults(run=run)
        sub.add_argument("path", metavar=path)
        sub.add_argument("--trust", action="store_true", help="load also what runs code that the chest names")
        for word in ("load", "open"):
            sub.add_argument(f"--{word}", metavar="MODULE:NAME", help=f"the {word}= that it was written with")
        return sub.add_argument

    ls = command(_ls, "list the keys, with the size on disk and the kind of each value; loads no value")
    ls("--sort", choices=("key", "size", "kind"), help="size: the largest first; default: as inserted")
    info = command(_info, "tell how many keys and bytes there are, who wrote them, and what is left over")
    for add in (ls, info):
        add("--json", action="store_true", help="the same for programs, sizes in bytes")
    check = command(_check, "load every value and list those that cannot be; exit status 1 if there are any")
    check("--repair", action="store_true", help="drop the keys whose values are proven to be lost")
    check("--leftovers", action="store_true", help="with --repair: remove files that no index names and that are "
          "provably chest's own; no other process may have the chest open")
    check("--yes", action="store_true", help="do not ask")
    command(_get, "print one value; text and bytes as they are, but not to a terminal")("key", help=KEY)
    command(_rm, "remove keys")("key", nargs="+", help=KEY)
    target = "a path or URL where there is no chest yet"
    command(_copy, "copy a chest; by hard links where that can be", "source")("target", help=target)
    demo = commands.add_parser("demo", help="put a gigabyte of arrays through a chest of 100 MB; needs numpy")
    demo.set_defaults(run=None)
    demo.add_argument("--size", default="1 GB", help="of all arrays together (default: 1 GB)")
    demo.add_argument("--budget", default="100 MB", help="the chest's available_memory (default: 100 MB)")
    return parser


def _ls(chest: Inspection, arguments: Any) -> None:
    entries = ((key, chest.kind(ref), chest.size(ref), chest.file(ref)) for key, ref in chest.refs.items())
    orders: dict[str, Callable[[Any], Any]] = {
        "key": lambda entry: (type(entry[0]).__name__, key_text(entry[0])),
        "kind": lambda entry: entry[1], "size": lambda entry: -entry[2]}
    listed = sorted(entries, key=orders[arguments.sort]) if arguments.sort else entries
    if arguments.json:
        print(json.dumps([{"key": key_text(key), "kind": kind, "bytes": nbytes, "file": file}
                          for key, kind, nbytes, file in listed], indent=1))
    else:
        for key, kind, nbytes, _ in listed:
            print(f"{amount(nbytes):>10}  {kind:<28}  {key_text(key, most=200)}")


def _info(chest: Inspection, arguments: Any) -> None:
    refs, left = set(chest.refs.values()), list(chest.leftovers())
    ours = [nbytes for _, nbytes, ours in left if ours]
    index_bytes, writer = chest.index()
    about: dict[str, Any] = {
        "path": chest.path, "keys": len(chest.refs), "bytes": sum(map(chest.size, chest.refs.values())),
        "files": sum(isinstance(ref, str) for ref in refs), "records": sum(isinstance(ref, int) for ref in refs),
        "index_bytes": index_bytes, "writer": writer, "leftovers": len(ours), "leftover_bytes": sum(ours),
        "strangers": len(left) - len(ours), "free": None if chest.url else shutil.disk_usage(chest.path).free}
    if arguments.json:
        print(json.dumps(about, indent=1))
        return
    records = f" and {plural(about['records'], 'record')} in packs" if about["records"] else ""
    told = {
        "path": chest.path, "keys": f"{about['keys']:,}",
        "values": f"{amount(about['bytes'])} in {plural(about['files'], 'file')}{records}",
        "index": f"{amount(index_bytes)}, written by {writer}",
        "leftovers": f"{plural(len(ours), 'file')} ({amount(sum(ours))}) of its own" if ours else "none",
        "strangers": plural(about["strangers"], "file") if about["strangers"] else "none",
        "free disk": "unknown" if chest.url else amount(about["free"])}
    for name, text in told.items():
        print(f"{name + ':':<11}{printable(text)}")


def _get(chest: Inspection, arguments: Any) -> None:
    value = chest.chest[_key(arguments.key, chest)]
    terminal = sys.stdout.isatty()  # which obeys what a program that reads on does not
    if isinstance(value, (bytes, bytearray)) and not terminal:
        sys.stdout.buffer.write(value)
    elif isinstance(value, str):
        print(printable(value, keep="\n\t") if terminal else value)
    else:
        print(printable(pprint.pformat(value, width=120), keep="\n"))


def _rm(chest: Inspection, arguments: Any) -> None:
    chest.drop([_key(text, chest) for text in arguments.key])


def _copy(chest: Inspection, arguments: Any) -> None:
    chest.chest.copy(arguments.target).close()


def _key(text: str, chest: Inspection) -> Hashable:
    """The key that ``text`` means: a literal, the text itself, or what `ls` shows."""
    with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        literal: Hashable = ast.literal_eval(text)
        if literal in chest.refs:
            return literal
    keys: list[Hashable] = [text] if text in chest.refs else [key for key in chest.refs if key_text(key) == text]
    if not keys:
        raise KeyError(f"there is no key {text} in {chest.path}")
    return keys[0]


def _check(chest: Inspection, arguments: Any) -> int:
    if arguments.leftovers and not arguments.repair:
        raise ValueError("--leftovers says what --repair may remove; give both")
    faults = []
    elsewhere = " (not dropped: a missing library or another load= may read it; see --load)"
    for one in chest.faults():
        faults.append(one)
        print(f"{key_text(one.key, most=200)}: {printable(one.file)}: {printable(one.why, most=300)}"
              f"{'' if one.lost or one.refused else elsewhere}")
    left = list(chest.leftovers())
    for name, nbytes, ours in left:
        print(f"{printable(name)}: {amount(nbytes)}, no key's{'' if ours else ', and not by chest'}")
    lost, untrusted = [one.key for one in faults if one.lost], sum(one.refused for one in faults)
    bad = len(faults) - untrusted
    more = f", {bad - len(lost)} unreadable here" if bad > len(lost) else ""
    more += f", {untrusted} not loaded without --trust" if untrusted else ""
    print(f"{plural(len(chest.refs), 'key')}, {len(lost)} damaged{more}; {plural(len(left), 'leftover')}")
    names = ", ".join(key_text(key, most=60) for key in lost)
    if arguments.repair and lost and _agreed(f"Drop {plural(len(lost), 'key')} ({names})", arguments.yes):
        dropped = chest.drop(lost)
        bad -= dropped
        print(f"dropped {plural(dropped, 'key')}")
    own = [name for name, _, ours in left if ours]
    question = f"Remove {plural(len(own), 'leftover')} of chest's own? No other process may have the chest open"
    if arguments.leftovers and own and _agreed(question, arguments.yes):
        print(f"removed {plural(chest.remove(own), 'leftover')}")
    return DAMAGED if bad else OK


def _agreed(question: str, yes: bool) -> bool:
    try:
        return yes or input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        raise ChestError("nobody is here to ask; --yes agrees beforehand") from None
