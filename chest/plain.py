"""Plain arrays without the unpickler: what the opcodes around one say is learnt once, and remembered.

The arrays of a chest are much alike, and all that is in their files beside their bytes is a type, a shape and an order.
To make an array of these takes numpy a tenth of the time that the unpickler needs to find the functions named in the
opcodes, and to build the type anew.
"""
from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["loads"]

_LONGEST = 1024  # bytes of opcodes worth remembering: a plain array has about 200
_MOST = 256  # kinds of arrays remembered; then all are forgotten
_MAKERS = ({("numpy._core.numeric", "_frombuffer"), ("numpy", "dtype")},
           {("numpy.core.numeric", "_frombuffer"), ("numpy", "dtype")})

_known: dict[bytes, tuple[Any, tuple[int, ...], str]] = {}


class _Watched(pickle.Unpickler):
    """An unpickler that notes what it imports."""

    def __init__(self, opcodes: bytes, buffers: Iterator[memoryview]) -> None:
        super().__init__(io.BytesIO(opcodes), buffers=buffers)
        self.found: set[tuple[str, str]] = set()

    def find_class(self, module: str, name: str) -> Any:
        self.found.add((module, name))
        return super().find_class(module, name)


def loads(opcodes: bytes, buffers: Iterator[memoryview], size: int) -> Any:
    """What `pickle.loads` makes of these opcodes, and of one buffer of `size` bytes."""
    known = _known.get(opcodes)
    if known is not None:
        dtype, shape, order = known
        return sys.modules["numpy"].frombuffer(next(buffers), dtype).reshape(shape, order=order)
    if len(opcodes) > _LONGEST:
        return pickle.loads(opcodes, buffers=buffers)
    unpickler = _Watched(opcodes, buffers)
    value = unpickler.load()
    if unpickler.found in _MAKERS and type(value) is sys.modules["numpy"].ndarray and value.nbytes == size:
        _remember(opcodes, value)
    return value


def _remember(opcodes: bytes, value: Any) -> None:
    """Note how to make an array like this one, unless its type could be changed in place or its layout is peculiar."""
    if value.dtype.names or value.dtype.metadata or value.dtype.subdtype:
        return
    for order in "CF":
        if value.flags[f"{order}_CONTIGUOUS"]:
            if value.reshape(-1, order=order).reshape(value.shape, order=order).strides == value.strides:
                if len(_known) >= _MOST:
                    _known.clear()
                _known[opcodes] = value.dtype, value.shape, order
                return
