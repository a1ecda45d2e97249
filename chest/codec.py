"""How a value becomes a file and comes back: the user's ``dump``, ``load``, ``open`` and ``mode``, or chest's own."""
from __future__ import annotations

import builtins
import io
import os
from typing import IO, Any, Callable, NamedTuple, cast

from chest import arrays

__all__ = ["Codec"]


class _Encoding(io.BufferedWriter):
    """A binary file that takes text as well, so that ``dump=json.dump`` works without ``mode='t'``."""

    def write(self, data: Any) -> int:
        return super().write(data.encode("utf-8") if isinstance(data, str) else data)


class Codec(NamedTuple):
    """The four settings, and what follows from them.

    ``native`` says that they are chest's own, so that arrays can be mapped and the index can be appended to;
    ``local`` that files are opened with the built-in ``open``.
    """

    dump: Callable[[Any, Any], Any] = arrays.dump
    load: Callable[[Any], Any] = arrays.load
    open: Callable[..., Any] = builtins.open
    mode: str = "b"
    mmap_mode: str | None = None

    def check(self) -> Codec:
        """This codec itself, if its settings are such as there are; `ValueError` if not."""
        if self.mode not in ("b", "t"):
            raise ValueError(f"mode is 'b' for binary or 't' for text files, not {self.mode!r}")
        if self.mmap_mode not in (None, "c", "r"):
            raise ValueError(f"mmap_mode is None, 'c' (copy on write) or 'r' (read only), not {self.mmap_mode!r}")
        return self

    @property
    def local(self) -> bool:
        return self.open is builtins.open

    @property
    def native(self) -> bool:
        return self.local and self.dump is arrays.dump and self.load is arrays.load and self.mode == "b"

    def same_format(self, other: Codec) -> bool:
        """Do files of ``other`` mean the same here?"""
        mine, theirs = ((c.dump, c.load, c.open, c.mode) for c in (self, other))
        return mine == theirs

    def create(self, path: str) -> IO[Any]:
        """Make a new file and open it for writing; `FileExistsError` if anything at all stands at ``path``."""
        if not self.local:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666))
            try:
                return self._other("w", path)
            except BaseException:
                os.unlink(path)
                raise
        if self.mode == "t":
            return builtins.open(path, "x", encoding="utf-8")
        raw = builtins.open(path, "xb", buffering=0)
        return raw if self.dump is arrays.dump else _Encoding(raw)

    def reader(self, path: str) -> IO[Any]:
        """Open ``path`` for ``load``."""
        if not self.local:
            return self._other("r", path)
        if self.mode == "t":
            return builtins.open(path, encoding="utf-8")
        return cast(Any, io.FileIO(path)) if self.load is arrays.load else builtins.open(path, "rb")

    def _other(self, direction: str, path: str) -> IO[Any]:
        file: IO[Any] = self.open(path, mode=direction + self.mode)
        return file

    def read(self, file: IO[Any], status: os.stat_result | None = None) -> Any:
        """The value in ``file``, of which the system says ``status``; mapped where that was asked for and can be."""
        return arrays.load(file, self.mmap_mode, status=status) if self.native else self.load(file)

    def dumped(self, value: Any) -> bytes:
        """What ``dump`` makes of ``value``, in memory: for small values, and to compare."""
        if self.mode == "t":
            text = io.StringIO()
            self.dump(value, text)
            return text.getvalue().encode("utf-8")
        raw = io.BytesIO()
        if self.dump is arrays.dump:
            self.dump(value, raw)
        else:
            encoding = _Encoding(cast(Any, raw))  # any object that takes bytes will do
            self.dump(value, encoding)
            encoding.flush()
        return raw.getvalue()

    def loaded(self, data: bytes | memoryview) -> Any:
        """The value in ``data``, which `dumped` made."""
        if self.mode == "t":
            return self.load(io.StringIO(bytes(data).decode("utf-8")))
        return self.load(io.BytesIO(data))

    def same(self, value: Any, file: IO[Any]) -> bool:
        """Does ``file`` hold just what ``dump`` would write for ``value`` now?"""
        if self.dump is arrays.dump:
            return arrays.same(value, file)
        data = self.dumped(value)
        content = file.read()
        return data == (content.encode("utf-8") if isinstance(content, str) else content)
