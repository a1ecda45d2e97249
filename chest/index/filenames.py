"""Names of loose files: a key's plain name, and the next name that is free.

A name is relative to the chest's directory, its parts joined by ``/`` on every platform.
"""
from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Callable, Union
from zlib import crc32

from chest.errors import of_the_process

__all__ = ["Names", "Ref", "digest", "inside", "key_checksum", "key_to_filename", "names_of", "usable_part"]


Ref = Union[str, int]  # where a value lies: a loose file's relative name, with "/" between its parts; or a record

LONGEST = 240  # bytes of one part: file systems allow 255, and a `~n` may follow
DEEPEST = 1000  # characters of a whole name: systems allow paths of about 4,000 bytes
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$",
            *(port + digit for port in ("com", "lpt") for digit in "0123456789")}  # Windows keeps these for itself


def key_to_filename(key: object) -> str:
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
    if (isinstance(key, str) and key.isascii() and key.isidentifier() and len(key) <= LONGEST
            and key.lower() not in _DEVICES):  # as `usable_part` says
        return str.__str__(key)  # of a str of numpy's, too
    return digest(key)


def digest(key: object) -> str:
    """The md5 of the text of ``key``; of its hash where it has no text, as an integer of more than 4,300 digits."""
    import hashlib

    try:
        text = repr(key) if type(key) is bytes else str(key)  # under ``-bb`` bytes have no `str`
    except Exception as error:
        if of_the_process(error):
            raise
        text = f"{type(key).__qualname__} {hash(key)}"
    return hashlib.md5(text.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()


def key_checksum(key: Any) -> int:
    """What a loose file says of its key, as two keys may want one name: never 0, and the same for equal keys.

    0, which says nothing, for all but text, bytes, `None`, finite real numbers of Python's own, and tuples of these.
    """
    kind, text = type(key), ""
    if kind in (str, bytes, type(None)):
        text = ascii(key)
    elif kind is int:
        text = "%x/1" % key
    elif kind in (bool, float) and key - key == 0:
        text = "%x/%x" % key.as_integer_ratio()
    elif kind is tuple and 0 not in (parts := [key_checksum(part) for part in key]):
        text = str(parts)
    return crc32(bytes(text, "ascii")) or 1 if text else 0


def usable_part(part: str) -> bool:
    """Can ``part`` name a file or folder on every platform, with room for a ``~n`` behind it?"""
    try:
        return 0 < len(part.encode("utf-8")) <= LONGEST and part.lower() not in _DEVICES
    except UnicodeEncodeError:
        return False


def inside(name: object) -> bool:
    """Does ``name`` stay inside the chest's directory, and out of what chest keeps there for itself?

    >>> inside('_a/b'), inside('../b'), inside('/etc/passwd'), inside('.keys')
    (True, False, False, False)
    """
    if not isinstance(name, str) or "\0" in name or (os.name == "nt" and ("\\" in name or ":" in name)):
        return False
    return all(part and not part.startswith(".") for part in name.split("/"))


def names_of(refs: Iterable[Ref | None]) -> list[str]:
    """The names of loose files among ``refs``, but for those that lead out of the directory."""
    return [ref for ref in refs if isinstance(ref, str) and inside(ref)]


class Names:
    """Which names of loose files are taken, and which is next for a key.

    A name is taken while an index gives it to a key, or would after a failed commit, and while it is ``reserved`` for
    one; also if somebody removed its file, as the key would then show another key's value.  ``source`` gives all refs
    of the index; it is asked when a name is needed first, so that opening a chest does not pay for it.
    """

    def __init__(self, plain: Callable[[Any], str] = key_to_filename):
        self._plain = plain
        self.source: Callable[[], Iterable[Ref]] = list
        self.noted: set[Ref | None] = set()  # names that came since; all that are taken, once `_complete`
        self.reserved: dict[Any, str] = {}
        self._complete = False

    def renew(self) -> None:
        """Find out anew which names are taken, when somebody asks again."""
        self._complete = False
        self.noted.clear()

    def plain(self, key: object) -> str:
        """What the user's ``key_to_filename`` makes of ``key``, or the md5 name where that will not do."""
        name = self._plain(key)
        if self._plain is key_to_filename and "/" not in name:
            return name
        if inside(name) and len(name) <= DEEPEST and all(map(usable_part, name.split("/"))):
            return str.__str__(name)
        return digest(key)

    def is_free(self, key: object, name: str) -> bool:
        """May ``key`` have this name, as far as indexes tell?  Cost: O(keys) when asked first, or after `renew`."""
        if not self._complete:
            self.noted.update(ref for ref in self.source() if type(ref) is str)
            self.noted.update(self.reserved.values())
            self._complete = True  # last, as another thread may ask meanwhile
        return name not in self.noted or self.reserved.get(key) == name

    def next_free(self, key: object, usable: Callable[[str], bool], plain: str = "") -> str:
        """The ``plain`` name (or the key's) if it is usable, else the first of ``name~1``, ``name~2``, … that is."""
        plain = plain or self.plain(key)
        name, n = plain, 0
        while not (self.is_free(key, name) and usable(name)):
            n += 1
            name = f"{plain}~{n}"
        return name

    def reserve(self, key: object, choose: Callable[[], str]) -> str:
        """The name that is kept for ``key`` until its value is written or it is deleted: chosen now if none is yet."""
        if key not in self.reserved:
            name = self.reserved[key] = choose()
            self.noted.add(name)
        return self.reserved[key]

    def release(self, key: object) -> None:
        """Give up what was reserved for ``key``, if anything was."""
        if key in self.reserved:
            self.noted.discard(self.reserved.pop(key))
