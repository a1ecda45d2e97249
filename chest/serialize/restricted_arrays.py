"""Arrays, scalars and dtypes of numpy, and sparse matrices of scipy, out of a stranger's pickle: see `restricted`.

numpy trusts the state of a pickled dtype: one that says that it has no objects, of a dtype that has, makes numpy follow
any bytes as pointers.  So a dtype is made here from its text and fields alone, and no dtype, and no array that is not
whole, is ever where BUILD could reach it.
"""
from __future__ import annotations

import math
import pickle
import re
import sys
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any, Callable

from .allowed import Global, Later, Own, State
from .bounds import Refused

numpy: Any = import_module("numpy")

_TEXT = re.compile(r"[<>=|]?(\?|[biufc]\d{1,2}|[SUV]\d{0,10}|O8?|"
                   r"[Mm]8(\[\d{0,9}(generic|[YMWDhms]|ms|us|ns|ps|fs|as)\])?)")
_MOST_FIELDS = 10_000  # of a dtype, those of its fields included
_DEEPEST = 16  # dtypes within dtypes
_NDARRAY = ("numpy", "ndarray")
_NATIVE = ("=", "|", "<" if sys.byteorder == "little" else ">")
_MEMORY = frozenset({bytes, bytearray, memoryview, pickle.PickleBuffer})


class Dtype(Own):
    """A dtype: made at once from its text, and anew from its parts by BUILD."""

    __slots__ = ("depth", "fields", "real")

    def __init__(self, real: Any) -> None:
        self.real = real
        self.fields = 1
        self.depth = 0

    def __setstate__(self, state: Any) -> None:
        try:
            if state[1] not in _NATIVE or state[2:] != (None, None, None, -1, -1, 0):  # else it changes nothing
                self._build(*state)
        except (Refused, MemoryError):
            raise
        except Exception as error:
            raise Refused(f"it has a dtype that is none: {error}") from error

    def _build(self, version: int, order: str, part: Any, names: Any, fields: Any, size: int, alignment: int,
               flags: int = 0, unit: Any = None) -> None:
        if order not in ("<", ">", "=", "|"):
            raise Refused("it has a dtype of an unknown byte order")
        real = self.real
        if real.kind in "mM" and unit is not None:
            real = _with_unit(real.kind, *unit)
        elif unit:
            raise Refused("it has a dtype with metadata")
        if part is not None:
            base, shape = part
            shape = _shape(shape)
            self._count([base])
            _judge_size(math.prod(shape) * base.real.itemsize)
            real = numpy.dtype((base.real, shape))
        elif names is not None:
            if type(names) is not tuple or not all(type(name) is str for name in names) or type(fields) is not dict:
                raise Refused("it has a dtype whose fields have no names")
            parts = [fields[name] for name in names]
            self._count([one[0] for one in parts])
            for one in parts:
                _judge_size(one[1])
                if one[1] + one[0].real.itemsize > _judge_size(size):
                    raise Refused("it has a dtype whose fields are outside of it")
            known = {"names": list(names), "formats": [one[0].real for one in parts],
                     "offsets": [one[1] for one in parts], "itemsize": size, "aligned": bool(flags & 0x80)}
            if any(len(one) > 2 for one in parts):
                known["titles"] = [one[2] if len(one) > 2 and type(one[2]) is str else None for one in parts]
            real = numpy.dtype(known)
        if real.hasobject and (part is not None or names is not None):
            raise Refused("it has a dtype with objects in its fields")
        self.real = real.newbyteorder(order) if part is None and names is None and order not in _NATIVE else real

    def _count(self, parts: Sequence[Dtype]) -> None:
        if not all(type(part) is Dtype for part in parts):
            raise Refused("it has a dtype whose fields are none")
        self.fields = 1 + sum([part.fields for part in parts])
        self.depth = 1 + max([part.depth for part in parts], default=0)
        if self.fields > _MOST_FIELDS or self.depth > _DEEPEST:
            raise Refused(f"it has a dtype of more than {_MOST_FIELDS} fields, or more than {_DEEPEST} deep")

    def finish(self, finish: Callable[[Any], Any]) -> Any:
        """See `Own`."""
        return self.real


def _with_unit(kind: str, metadata: Any, unit: Any) -> Any:
    if metadata:
        raise Refused("it has a dtype with metadata")
    name, number, divisor = unit[:3]
    name = name.decode() if type(name) is bytes else name
    if type(name) is not str or type(number) is not int or divisor != 1 or not 0 < number < 1 << 31:
        raise Refused("it has a time of an unknown unit")
    text = f"{kind}8" if name == "generic" else f"{kind}8[{number}{name}]"
    if _TEXT.fullmatch(text) is None:
        raise Refused("it has a time of an unknown unit")
    return numpy.dtype(text)


def make_dtype(state: State, text: Any, align: Any = False, copy: Any = False) -> Dtype:
    """`numpy.dtype`."""
    if type(text) is Dtype:  # as numpy.dtype takes a dtype
        made = Dtype(text.real)
        made.fields, made.depth = text.fields, text.depth
    else:
        if type(text) is not str:
            raise Refused("it has a dtype of an unknown kind")
        made = Dtype(_of_text(text))
    state.made.append(made)
    return made


@lru_cache(1_000)
def _of_text(text: str) -> Any:
    if _TEXT.fullmatch(text) is None:
        raise Refused("it has a dtype of an unknown kind")
    if text.lstrip("<>=|")[0] in "SUV":  # older versions of numpy do not notice that a size is none
        _judge_size(4 * int(text.lstrip("<>=|SUV") or 0))
    return numpy.dtype(text)


def _judge_size(size: Any) -> int:
    if type(size) is not int or not 0 <= size < 1 << 31:
        raise Refused("it has a dtype of an impossible size")
    return size


def _shape(shape: Any) -> tuple[int, ...]:
    found = (shape,) if type(shape) is int else shape
    if type(found) is not tuple or len(found) > 64 or not all(type(axis) is int and axis >= 0 for axis in found):
        raise Refused("it has an array of an impossible shape")
    return found


def _real(dtype: Any) -> Any:
    if type(dtype) is not Dtype:
        raise Refused("it has an array without a dtype")
    return dtype.real


def from_buffer(state: State, buffer: Any, dtype: Any, shape: Any, order: str, axes: Any = None) -> Any:
    """`numpy._core.numeric._frombuffer`: an array over memory."""
    if axes is None and type(dtype) is Dtype and dtype.real.kind in "biufc?mM" and type(buffer) in _MEMORY and buffer:
        made = numpy.frombuffer(buffer, dtype.real)
        if made.shape == shape:  # most arrays have one dimension, or are quickly made again
            return _sealed(state, made)
    made = _sealed(state, _over(buffer, _real(dtype), _shape(shape), "C" if axes is not None else order))
    return made if axes is None else _sealed(state, made.transpose(_shape(axes)), made)


def over_memory(
    state: State, shape: Any, dtype: Any, buffer: Any, offset: int = 0, strides: None = None, order: str = "C"
) -> Any:
    """`numpy.ndarray`, as chest itself writes plain arrays."""
    if offset != 0 or strides is not None:
        raise Refused("it has an array over a part of other memory")
    return _sealed(state, _over(buffer, _real(dtype), _shape(shape), order))


def _sealed(state: State, made: Any, base: Any = None) -> Any:
    """``made`` without a way for SETITEM to write to it, until all is loaded."""
    flags = made.flags
    if flags.writeable or (base is not None and state.arrays and base is state.arrays[-1]):
        flags.writeable = False
        state.arrays.append(made)
    return made


def _over(buffer: Any, real: Any, shape: tuple[int, ...], order: str) -> Any:
    if type(buffer) not in _MEMORY or order not in ("C", "F"):
        raise Refused("it has an array over what is no memory")
    if real.hasobject:
        raise Refused("it has an array of pointers")
    size = math.prod(shape) * real.itemsize
    if size != memoryview(buffer).nbytes:
        raise Refused("it has an array that is not as long as its memory")
    made = numpy.ndarray(shape, real, buffer, 0, None, order) if size else numpy.empty(shape, real, order)
    if real.kind in "UV":
        _judge_text(made)
    return made


def _judge_text(values: Any) -> None:
    """A text of a code point that does not exist is none: Python would make it, and break on it."""
    if values.dtype.names is not None:
        for name in values.dtype.names:
            _judge_text(values[name])
    elif values.dtype.kind == "U" and values.nbytes:
        codes = numpy.ascontiguousarray(values).reshape(-1).view(values.dtype.str[0] + "u4")
        if int(codes.max()) > 0x10FFFF:
            raise Refused("it has an array of text with impossible characters")


def scalar(state: State, dtype: Any, data: Any = b"") -> Any:
    """`numpy._core.multiarray.scalar`."""
    real = _real(dtype)
    if type(data) is str:
        data = data.encode("latin1")
    if type(data) is not bytes or real.subdtype is not None:
        raise Refused("it has a number of numpy that is none")
    state.spend(len(data))
    if real.kind in "?biufMm" and len(data) == real.itemsize:
        return numpy.frombuffer(data, real)[0]
    if not real.itemsize and real.names is None and not data:
        return real.type()
    if real.kind == "V":
        return Later(state, lambda: _over(data, real, (), "C").copy()[()])  # later: SETITEM could write to it
    made = _over(data, real, (), "C")[()]
    return state.distinct(made) if real.kind == "c" else made


class Array(Own):
    """An array that is made empty, and then given its state."""

    __slots__ = ("known", "state")

    def __init__(self, state: State) -> None:
        state.made.append(self)
        self.state = state
        self.known: tuple[Any, ...] | None = None

    def __setstate__(self, known: Any) -> None:
        if self.known is not None or type(known) is not tuple or len(known) < 5:
            raise Refused("it has an array without a state of its own")
        self.known = known

    def finish(self, finish: Callable[[Any], Any]) -> Any:
        """See `Own`."""
        if self.known is None:
            raise Refused("it has an array without a state")
        _, shape, dtype, fortran, content = self.known[:5]
        return self.make(shape, dtype, fortran, content, finish)

    def make(self, shape: Any, dtype: Any, fortran: Any, content: Any, finish: Callable[[Any], Any]) -> Any:
        """The array, in memory of its own."""
        real, shape, order = _real(dtype), _shape(shape), "F" if fortran else "C"
        if not real.hasobject:
            content = content.encode("latin1") if type(content) is str else content
            self.state.spend(len(content))
            return _over(bytearray(content), real, shape, order)  # memory that can be written
        if type(content) is not list or len(content) != math.prod(shape):
            raise Refused("it has an array of objects without objects")
        self.state.spend(len(content))
        made = numpy.empty(len(content), object)
        for place, part in enumerate(content):
            made[place] = finish(part)
        return numpy.asarray(made.reshape(shape), order=order)


class Masked(Array):
    """A masked array."""

    __slots__ = ()

    def finish(self, finish: Callable[[Any], Any]) -> Any:
        """See `Own`."""
        values = super().finish(finish)
        assert self.known is not None
        mask, fill = self.known[5:7]
        mask_dtype = numpy.ma.make_mask_descr(values.dtype)
        mask = self.make(values.shape, Dtype(mask_dtype), self.known[3], mask, finish)
        fill = finish(fill)
        made = numpy.ma.MaskedArray(values, mask, keep_mask=False)
        if fill is not None:
            made.fill_value = fill
        return made


def reconstruct(state: State, kind: Any, shape: Any, code: Any) -> Array:
    """`numpy._core.multiarray._reconstruct`."""
    if type(kind) is not Global or kind.name != _NDARRAY:
        raise Refused("it has an array of a class of its own")
    return Array(state)


def reconstruct_masked(state: State, kind: Any, base: Any, shape: Any, code: Any) -> Masked:
    """`numpy.ma.core._mareconstruct`."""
    if type(kind) is not Global or type(base) is not Global or kind.name[1] != "MaskedArray" or base.name != _NDARRAY:
        raise Refused("it has a masked array of a class of its own")
    return Masked(state)


class Sparse(Own):
    """A sparse matrix or array of scipy, which is made without arguments and then given its attributes."""

    __slots__ = ("known",)
    name = ""

    def __setstate__(self, known: Any) -> None:
        if type(known) is not dict:
            raise Refused("it has a sparse matrix without attributes")
        self.known = known

    def finish(self, finish: Callable[[Any], Any]) -> Any:
        """See `Own`."""
        scipy: Any = import_module("scipy.sparse")
        known = {name: finish(part) for name, part in self.known.items()}
        shape = known["_shape"]
        if type(shape) is not tuple or not all(type(axis) is int and axis >= 0 for axis in shape):
            raise Refused("it has a sparse matrix of an impossible shape")
        make = getattr(scipy, self.name)
        if self.name.startswith("coo"):
            made = make((known["data"], known["coords"] if "coords" in known else (known["row"], known["col"])), shape)
        else:
            made = make((known["data"], known["indices"], known["indptr"]), shape)
            made.check_format(full_check=True)
        return made


def sparse(name: str) -> type[Sparse]:
    """The class that stands for one of scipy's; NEWOBJ asks for a class."""
    return type(name, (Sparse,), {"__slots__": (), "name": name})
