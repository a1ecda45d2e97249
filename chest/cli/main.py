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
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from chest._version import __version__
from chest.cli import amount, plural
from chest.cli.inspect import LOST, UNREADABLE, UNTRUSTED, Inspection, refused
from chest.errors import ChestError, LoadError, printable, shown
from chest.storage.base import file_of

__all__ = ["main"]

OK, DAMAGED, ERROR = 0, 1, 2

ABOUT = """\
Look into a chest: a directory, or a URL, that chest.Chest(path=...) keeps.  No code that the chest names is run unless
--trust is given; what cannot be read without it is said."""
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
            status: int | None = _run(arguments)
            sys.stdout.flush()
            return status or OK
    except BrokenPipeError:  # of `chest ls | head`: nobody reads on, and at exit nothing is to be written any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        _say("interrupted")
        return 128 + signal.SIGINT
    except Exception as error:  # code of the user's runs here, too: that of --load, and of classes
        text = str(error) if isinstance(error, (ChestError, ImportError, OSError, ValueError)) else repr(error)
        if refused(error):
            text += ". Give --trust if the code that it names may run"
        elif isinstance(error, LoadError):
            text += " (see --load and --open)"
        _say(text)
        return ERROR


def _say(text: str) -> None:
    print(f"chest: {printable(' '.join(text.split()), most=1000)}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chest", description=ABOUT)
    parser.add_argument("--version", action="version", version=f"chest {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(run: Callable[..., int | None] | None, about: str) -> Callable[..., object]:
        sub = commands.add_parser(run.__name__[1:] if run else "demo", help=about, description=about)
        sub.set_defaults(run=run)
        if run:
            sub.add_argument("path")
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
    check("--leftovers", action="store_true", help="remove what writers that were killed left")
    check("--yes", action="store_true", help="do not ask")
    command(_get, "print one value; text and bytes as they are, but not to a terminal")("key", help=KEY)
    command(_rm, "remove keys")("key", nargs="+", help=KEY)
    command(_copy, "copy a chest; by hard links where that can be")("target", help="a path or URL without a chest")
    demo = command(None, "put a gigabyte of arrays through a chest of 100 MB; needs numpy")
    demo("--size", default="1 GB", help="of all arrays together (default: 1 GB)")
    demo("--budget", default="100 MB", help="the chest's available_memory (default: 100 MB)")
    return parser


def _run(arguments: Any) -> Any:
    if arguments.run is None:
        from chest.cli import demo

        return demo.run(arguments.size, arguments.budget)
    named = []
    for name in (arguments.load, arguments.open):
        try:
            named.append(pkgutil.resolve_name(name) if name else None)
        except (AttributeError, ValueError):
            raise ValueError(f"{name!r} is not a function; give MODULE:NAME, such as json:load or gzip:open") from None
    inspection = Inspection(arguments.path, arguments.trust, *named)
    with inspection.handle:
        return arguments.run(inspection, arguments)


def _ls(chest: Inspection, arguments: Any) -> None:
    listed: Iterable[dict[str, Any]] = (
        {"key": shown(key, most=0), "kind": chest.kind(ref), "bytes": chest.size(ref), "file": file_of(ref)}
        for key, ref in chest.refs.items())
    if arguments.sort:
        listed = sorted(listed, key=lambda one: -one["bytes"] if arguments.sort == "size" else one[arguments.sort])
    if arguments.json:
        print(json.dumps(list(listed), indent=1))
        return
    for one in listed:
        print(f"{amount(one['bytes']):>10}  {one['kind']:<28}  {printable(one['key'], most=200)}")


def _info(chest: Inspection, arguments: Any) -> None:
    refs, left, (index_bytes, writer) = set(chest.refs.values()), list(chest.leftovers()), chest.index()
    about: dict[str, Any] = {
        "path": chest.handle.path, "keys": len(chest.refs), "bytes": sum(map(chest.size, chest.refs.values())),
        "files": sum(isinstance(ref, str) for ref in refs), "records": sum(isinstance(ref, int) for ref in refs),
        "index_bytes": index_bytes, "writer": writer,
        "leftovers": len(left), "leftover_bytes": sum(nbytes for _, nbytes in left)}
    if not chest.url:
        about["free_bytes"] = shutil.disk_usage(chest.handle.path).free
    if arguments.json:
        print(json.dumps(about, indent=1))
        return
    for name, told in about.items():
        if isinstance(told, int):
            told = amount(told) if name.endswith("bytes") else f"{told:,}"
        print(f"{name.replace('_', ' ') + ':':<16}{printable(told)}")


def _get(chest: Inspection, arguments: Any) -> None:
    value = chest.handle[_key(arguments.key, chest)]
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
    chest.handle.copy(arguments.target).close()


def _key(text: str, chest: Inspection) -> Hashable:
    """The key that ``text`` means: a literal, the text itself, or what `ls` shows."""
    with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        literal: Hashable = ast.literal_eval(text)
        if literal in chest.refs:
            return literal
    for key in [text] if text in chest.refs else chest.refs:
        if key == text or shown(key, most=0) == text:
            return key
    raise ChestError(f"there is no key {text} in {chest.handle.path}")


def _check(chest: Inspection, arguments: Any) -> int:
    found: dict[str, list[Hashable]] = {LOST: [], UNREADABLE: [], UNTRUSTED: []}
    for key, file, verdict, why in chest.faults():
        found[verdict].append(key)
        print(f"{shown(key)}: {printable(file)}: {verdict}: {printable(why, most=400)}")
    left = list(chest.leftovers())
    for name, nbytes in left:
        print(f"{printable(name)}: {amount(nbytes)}, no key's")
    lost = found.pop(LOST)
    others = "".join(f", {len(keys)} {verdict}" for verdict, keys in found.items() if keys)
    print(f"{plural(len(chest.refs), 'key')}, {len(lost)} {LOST}{others}; {plural(len(left), 'leftover')}")
    bad = len(lost) + len(found[UNREADABLE])
    if not arguments.repair:
        lost = []
    elif lost and not arguments.yes:
        names = ", ".join(shown(key, most=60) for key in lost)
        try:
            agreed = input(f"Drop {plural(len(lost), 'key')} ({names}) [y/N] ").strip().lower() in ("y", "yes")
        except EOFError:
            raise ChestError("there is no input to ask; give --yes to agree without being asked") from None
        lost = lost if agreed else []
    if arguments.leftovers or lost:
        dropped = chest.drop(lost)
        bad -= dropped
        print(f"dropped {plural(dropped, 'key')}")
    return DAMAGED if bad else OK
