"""Names of value files: a key's plain name, and the next name that is free.

A name is relative to the chest's directory, its parts joined by ``/`` on every platform.  A row of small values is
named by its id, a number; where people see that, it is a text like all names: ``.small/<id>``.
"""
from __future__ import annotations

import itertools
import os
import re
from collections.abc import Hashable
from typing import Any, Callable, Generic, TypeVar, Union

__all__ = ["Name", "Names", "inside", "key_to_filename", "shown"]

K = TypeVar("K", bound=Hashable)

Name = Union[str, int]  # of a file, or the id of a row

LONGEST = 240  # bytes of one part: file systems allow 255, and a `~n` may follow
DEEPEST = 1000  # characters of a whole name: systems allow paths of about 4,000 bytes
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d|conin\$|conout\$)\Z", re.IGNORECASE)  # Windows keeps these


def key_to_filename(key: Any) -> str:
    """The plain file name of ``key``, relative to a chest's directory.

    A string that is an identifier is its own name, a tuple is a path of its parts, and anything else is the md5 of
    its text.  Two keys may share a plain name; a chest gives the second one the next free name (``x~1``).
    Cost: O(length of the key's text).

    >>> key_to_filename('x')
    'x'
    >>> key_to_filename(('a', 'b', 'c'))
    '_a/_b/c'
    >>> key_to_filename('1/2')
    '975ca8804565c1a569450d61090b2743'
    """
    if isinstance(key, tuple) and key:
        *folders, last = map(key_to_filename, key)
        return "".join(f"_{folder}/" for folder in folders) + last
    if isinstance(key, str) and _IDENTIFIER.match(key) and usable_part(key):
        return key
    return digest(key)


def digest(key: Any) -> str:
    """The md5 of the text of ``key``: a name for what has no name of its own."""
    import hashlib

    return hashlib.md5(str(key).encode("utf-8", "surrogatepass")).hexdigest()


def usable_part(part: str) -> bool:
    """Can ``part`` name a file or folder on every platform, with room for a ``~n`` behind it?"""
    try:
        size = len(part.encode("utf-8"))
    except UnicodeEncodeError:
        return False
    return 0 < size <= LONGEST and not _DEVICE.match(part)


def inside(name: Any) -> bool:
    """Does ``name`` stay inside the chest's directory, and out of what chest keeps there for itself?

    >>> inside('_a/b'), inside('../b'), inside('/etc/passwd'), inside('.keys')
    (True, False, False, False)
    """
    if not isinstance(name, str) or "\0" in name or (os.name == "nt" and re.search(r"[\\:]", name)):
        return False
    return all(part and not part.startswith(".") for part in name.split("/"))


def shown(name: Name) -> str:
    """``name`` as people see it.

    >>> shown('x'), shown(7)
    ('x', '.small/7')
    """
    return name if isinstance(name, str) else f".small/{name}"


class Names(Generic[K]):
    """Which names are taken, and which is next for a key.

    ``taken`` holds every name that an index gives to a key, that a pending commit will free, or that is reserved, so
    that a name whose file somebody removed is not given to another key: the first key would then show the second
    one's value.
    """

    def __init__(self, plain: Callable[[K], str] = key_to_filename):
        self._plain = plain
        self.taken: set[str] = set()
        self.reserved: dict[K, str] = {}

    def plain(self, key: K) -> str:
        """What the user's ``key_to_filename`` makes of ``key``, or the md5 name where that will not do."""
        name = self._plain(key)
        if self._plain is key_to_filename and "/" not in name:
            return name
        if inside(name) and len(name) <= DEEPEST and all(map(usable_part, name.split("/"))):
            return name
        return digest(key)

    def next_free(self, key: K, usable: Callable[[str, bool], bool]) -> str:
        """The plain name of ``key`` if it is usable, else the first of ``name~1``, ``name~2``, … that is.

        ``usable(path, last)`` says whether a leading part of the path can be a folder, or the whole path the file.
        The ``~n`` goes on the first part that cannot be used.
        """
        done = ""
        parts = self.plain(key).split("/")
        for depth, part in enumerate(parts, 1):
            last = depth == len(parts)
            for n in itertools.count():
                path = f"{done}{part}~{n}" if n else done + part
                if usable(path, last) and not (last and path in self.taken):
                    break
            done = path + "/"
        return path

    def reserve(self, key: K, name: str) -> None:
        """Keep ``name`` for ``key`` until the key's value is written or the key is deleted."""
        self.release(key)
        self.reserved[key] = name
        self.taken.add(name)

    def release(self, key: K) -> None:
        """Give up what was reserved for ``key``, if anything was."""
        if key in self.reserved:
            self.taken.discard(self.reserved.pop(key))
