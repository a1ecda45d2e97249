"""Arrays, scalars and dtypes of numpy out of a stranger's pickle: see `restricted`.

numpy trusts the state of a pickled dtype: one that hides that it has objects makes numpy follow any bytes as pointers.
So a dtype is made here from its text and fields alone, and no dtype, and no array that is not whole, is ever where
BUILD could reach it.
"""
from __future__ import annotations

import re
import sys
from functools import lru_cache, partial
from importlib import import_module
from typing import Any

from .bounds import Refused
from .restricted import Load, Named, Own, allow, finish, only

numpy: Any = import_module("numpy")

_TEXT = re.compile(r"[<>=|]?(\?|[biufc]\d{1,2}|[SUV]\d{0,10}|O8?|"
                   r"[Mm]8(\[\d{0,9}(generic|[YMWDhms]|ms|us|ns|ps|fs|as)\])?)")
_MOST_FIELDS = 10_000  # of a dtype, those of its fields included
_DEEPEST = 16  # dtypes within dtypes
_FIELD = 16  # bytes that a field of a dtype counts
_NATIVE = ("=", "|", "<" if sys.byteorder == "little" else ">")
_MEMORY = frozenset({bytes, bytearray, memoryview})
_SWAPPED = numpy.dtype("u4").newbyteorder()


class Dtype(Own):
    """A dtype: made at once from its text, and anew from its parts by BUILD."""

    def __init__(self, load: Load, real: Any) -> None:
        super().__init__(load)
        self.real, self.fields, self.depth = real, 1, 0

    def __setstate__(self, state: Any) -> None:
        self.load.spend(_FIELD * self.fields)
        _, order, part, names, fields, size = state[:6]
        if order not in ("<", ">", "=", "|"):
            raise Refused("it has a dtype of an unknown byte order")
        if part is not None:
            base, shape = part
            self._count(base)
            size = base.real.itemsize
            for axis in shape:
                size = _size(_size(axis) * size)
            self.real = numpy.dtype((base.real, shape))
        elif names is not None:
            only(dict, fields)
            only(str, *names)
            self.load.spend(_FIELD * len(names))
            parts = [fields[name] for name in names]
            self._count(*[one[0] for one in parts])
            if any(_size(offset) + field.real.itemsize > _size(size) for field, offset in parts):
                raise Refused("it has a dtype whose fields are outside of it")
            self.real = numpy.dtype({"names": list(names), "formats": [field.real for field, _ in parts],
                                     "offsets": [offset for _, offset in parts], "itemsize": size,
                                     "aligned": bool(state[7] & 0x80)})
        else:
            if len(state) > 8 and self.real.kind in "mM":
                metadata, (name, number, divisor, *_) = state[8]
                name = name.decode() if type(name) is bytes else name
                if metadata or type(number) is not int or divisor != 1 or not 0 < number < 1 << 31:
                    raise Refused("it has a time of an unknown unit")
                kind = self.real.kind
                self.real = _of_text(f"{kind}8" if name == "generic" else f"{kind}8[{number}{name}]")
            elif len(state) > 8 and state[8]:
                raise Refused("it has a dtype with metadata")
            self.real = self.real if order in _NATIVE else self.real.newbyteorder(order)

    def _count(self, *parts: Any) -> None:
        only(Dtype, *parts)
        self.fields = 1 + sum([part.fields for part in parts])
        self.depth = 1 + max([part.depth for part in parts], default=0)
        if self.fields > _MOST_FIELDS or self.depth > _DEEPEST:
            raise Refused(f"it has a dtype of more than {_MOST_FIELDS} fields, or more than {_DEEPEST} deep")
        if any(part.real.hasobject for part in parts):
            raise Refused("it has a dtype with objects in its fields")

    def finish(self, done: dict[int, tuple[Any, Any]]) -> Any:
        return self.real


@allow("numpy.dtype")
def _dtype(self: Named, text: Any, align: Any = False, copy: Any = False) -> Dtype:
    only(str, text)
    return Dtype(self.load, _of_text(text))


@lru_cache(1_000)
def _of_text(text: str) -> Any:
    if _TEXT.fullmatch(text) is None:
        raise Refused("it has a dtype of an unknown kind")
    if text.lstrip("<>=|")[0] in "SUV":  # older versions of numpy do not notice that a size is none
        _size(4 * int(text.lstrip("<>=|SUV") or 0))
    return numpy.dtype(text)


def _size(size: Any) -> int:
    if type(size) is not int or not 0 <= size < 1 << 31:
        raise Refused("it has a dtype of an impossible size")
    return size


def _over(load: Load, memory: Any, dtype: Any, shape: Any, order: str) -> Any:
    """An array over memory."""
    if type(dtype) is not Dtype or type(memory) not in _MEMORY or order not in ("C", "F") or dtype.real.hasobject:
        raise Refused("it has an array without a dtype, of pointers, or over what is no memory")
    real = dtype.real
    made = numpy.ndarray(shape, real, memory, 0, None, order)
    if made.nbytes != len(memory) or made.shape != (shape if type(shape) is tuple else (shape,)):  # of -1 it makes 0
        raise Refused("it has an array that is not as long as its memory")
    if real.kind in "bUV":
        load.spend(dtype.fields)
        load.last.append(partial(judge, made))
    return made


def judge(values: Any) -> None:
    """`Refused` for bytes that are no value, which Python and numpy would break on.

    That is text of a code point that does not exist, and a truth that is neither 0 nor 1.
    """
    kind = values.dtype.kind
    if values.dtype.names is not None:
        for name in values.dtype.names:
            judge(values[name])
    elif kind in "bU" and values.nbytes:
        codes = values.ravel("K").view("u1" if kind == "b" else "u4" if values.dtype.isnative else _SWAPPED)
        if codes.max() > (1 if kind == "b" else sys.maxunicode):
            raise Refused("it has an array with impossible " + ("truths" if kind == "b" else "characters"))


@allow("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")
def _from_buffer(self: Named, buffer: Any, dtype: Any, shape: Any, order: str, axes: Any = None) -> Any:
    """An array over memory, which SETITEM cannot write to until all is loaded."""
    order = order if axes is None else "C"
    made = _over(self.load, buffer, dtype, shape, order)
    if axes is not None:
        made = made.transpose(axes)
    if type(buffer) is bytearray or made.flags.writeable:
        made.setflags(False)
        self.load.last.append(partial(made.setflags, True))
    return made


@allow("numpy.ndarray")
def _ndarray(self: Named, shape: Any, dtype: Any, buffer: Any, offset: int = 0, strides: Any = None,
             order: str = "C") -> Any:
    """As chest itself writes plain arrays."""
    if offset != 0 or strides is not None:
        raise Refused("it has an array over a part of other memory")
    return _from_buffer(self, buffer, dtype, shape, order)


@allow("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
def _scalar(self: Named, dtype: Any, data: Any = b"") -> Any:
    only(Dtype, dtype)
    real = dtype.real
    data = data.encode("latin1") if type(data) is str else data
    if type(data) is bytes and real.kind in "iufmM" and len(data) == real.itemsize:
        return numpy.frombuffer(data, real)[0]
    only(bytes, data)
    self.load.spend(len(data))
    made = _over(self.load, data, dtype, (), "C")
    if real.kind == "V":
        return Own(self.load, lambda: made.copy()[()])  # SETITEM could write to it
    judge(made)
    return self.load.distinct(made[()]) if real.kind == "c" else made[()]


class Array(Own):
    """An array that is made empty, and then given its state."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        if self.state is not None:
            raise Refused("it has an array with two states")
        self.state = state

    def finish(self, done: dict[int, tuple[Any, Any]]) -> Any:
        _, shape, dtype, fortran, content, *masked = self.state
        values = self._make(shape, dtype, fortran, content, done)
        if not masked:
            return values
        mask, fill_value = masked
        self.load.spend(dtype.fields + values.itemsize)  # for the dtype of the mask, and the fill value
        masks = Dtype(self.load, numpy.ma.make_mask_descr(values.dtype))
        masks.fields = dtype.fields
        mask = self._make(values.shape, masks, fortran, mask, done)
        made = numpy.ma.MaskedArray(values, mask, keep_mask=False)
        if fill_value is not None:
            made.fill_value = finish(fill_value, done)
        return made

    def _make(self, shape: Any, dtype: Any, fortran: Any, content: Any, done: dict[int, tuple[Any, Any]]) -> Any:
        only(Dtype, dtype)
        order = "F" if fortran else "C"
        if not dtype.real.hasobject:
            content = content.encode("latin1") if type(content) is str else content
            self.load.spend(len(content))
            return _over(self.load, bytearray(content), dtype, shape, order)  # memory that can be written
        only(list, content)
        self.load.spend(len(content))
        made = numpy.empty(len(content), object)
        for place, part in enumerate(finish(content, done)):
            made[place] = part
        return numpy.asarray(made.reshape(shape), order=order)


@allow("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct", "numpy.ma._mareconstruct",
       "numpy.ma.core._mareconstruct")
def _reconstruct(self: Named, kind: Any, *more: Any) -> Array:
    names = ("MaskedArray", "ndarray") if self.name[1] == "_mareconstruct" else ("ndarray",)
    for one, name in zip((kind, *more), names):
        if not isinstance(one, Named) or one.name[1] != name:
            raise Refused("it has an array of a class of its own")
    return Array(self.load)
