"""Values dumped in memory, as long as they are small."""
from __future__ import annotations

import io
import pickle
from collections.abc import Iterable
from typing import Any

from chest.codec import Codec

__all__ = ["Dumper"]


class _Full(Exception):
    """There is more to write than was wanted."""


class Dumper:
    """Dumps values one after another as a `Codec` does, and gives up on one as soon as it has ``limit`` bytes."""

    def __init__(self, codec: Codec, limit: int):
        self._codec = codec
        self._native = codec.native
        self._pieces = _Pieces()
        self._pickler = pickle.Pickler(self._pieces, 5, buffer_callback=self._pieces.in_line)
        self.limit = limit

    def dumped(self, value: Any) -> bytes | None:
        """The bytes of ``value``, or `None` if it is not small."""
        if not self._native:
            data = self._by_user(value)
            return data if data is not None and len(data) < self.limit else None
        kind = type(value)
        if kind is str or kind is bytes:
            data = pickle.dumps(value, 5) if len(value) < self.limit else None
            return data if data is not None and len(data) < self.limit else None
        if kind.__module__ == "numpy" and getattr(value, "nbytes", 0) >= self.limit:
            return None  # numpy would copy one that is not contiguous before any byte is written
        return self._pickled(value)

    def dumped_together(self, values: Iterable[Any]) -> list[bytes | None]:
        """The bytes of each value, `None` for one that is not small or cannot be dumped."""
        found: list[bytes | None] = []
        for value in values:
            try:
                found.append(self.dumped(value))
            except Exception:
                found.append(None)
        return found

    def _pickled(self, value: Any) -> bytes | None:
        pieces = self._pieces
        pieces.room = self.limit
        try:
            self._pickler.dump(value)
            return pieces.all[0] if len(pieces.all) == 1 else b"".join(pieces.all)
        except _Full:
            return None
        finally:
            pieces.all.clear()
            self._pickler.clear_memo()

    def _by_user(self, value: Any) -> bytes | None:
        file: Any = _Text(self.limit) if self._codec.mode == "t" else _Bytes(self.limit)
        try:
            self._codec.dump(value, file)
        except Exception:
            if file.full:
                return None
            raise
        if file.full:  # it took the error for one of its own
            return None
        data = file.getvalue()
        return data.encode("utf-8") if isinstance(data, str) else bytes(data)


class _Pieces:
    """The file of a pickler: takes its bytes up to a limit."""

    def __init__(self) -> None:
        self.room = 0
        self.all: list[bytes] = []

    def write(self, data: Any) -> None:
        self.room -= len(data)
        if self.room <= 0:
            raise _Full
        self.all.append(data)

    def in_line(self, buffer: Any) -> bool:
        """Leaves the memory of an array in the pickle, unless that alone is too much: then it is not even copied."""
        if memoryview(buffer).nbytes >= self.room:
            raise _Full
        return True


class _Bytes(io.BytesIO):
    """A binary file in memory, up to a limit, that takes text as well, as all of chest's do."""

    def __init__(self, limit: int):
        super().__init__()
        self._limit = limit
        self.full = False

    def write(self, data: Any) -> int:
        data = data.encode("utf-8") if isinstance(data, str) else data
        if self.tell() + memoryview(data).nbytes >= self._limit:
            self.full = True
            raise _Full
        return super().write(data)


class _Text(io.StringIO):
    """A text file in memory, up to a limit."""

    def __init__(self, limit: int):
        super().__init__()
        self._limit = limit
        self.full = False

    def write(self, text: str) -> int:
        if self.tell() + len(text) >= self._limit:
            self.full = True
            raise _Full
        return super().write(text)
