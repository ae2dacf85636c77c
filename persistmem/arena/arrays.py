"""numpy arrays and scalars as plain description and bytes. The only module that touches numpy, once it is used.

Descriptions are those of the ``.npy`` format (:func:`numpy.lib.format.dtype_to_descr`). Types that hold objects are
refused.
"""

import math
import re
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Literal, cast

from persistmem.errors import CorruptError, UnsupportedTypeError

if TYPE_CHECKING:
    import numpy as np

_KINDS = frozenset("biufcmMSUV")
_PLAIN = re.compile(r"[<>|](?P<kind>[biufcSUV])(?P<size>\d{1,10})|[<>][mM]8(\[\d{0,9}[a-zA-Z]{1,2}\])?", re.ASCII)
_ITEM_BYTES_MAX = (1 << 31) - 1
_DIMENSIONS_MAX = 32

Order = Literal["C", "F"]
Description = list[object]
"""Data type description, shape, and order ("C" or "F") of an array; the description alone for a scalar."""


def is_array(value: object) -> bool:
    """Whether it is exactly a numpy array. Never imports numpy: without it, nothing is."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) is numpy.ndarray


def is_scalar(value: object) -> bool:
    """Whether it is a numpy scalar."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.generic)


def describe_array(array: "np.ndarray") -> tuple[Description, memoryview]:
    """Its description, and its bytes: without a copy if it is contiguous in either order.

    Raises:
        UnsupportedTypeError: its elements are not plain bytes.
    """
    descr = _describe_dtype(array.dtype)
    order: Order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    data = array.ravel(order=order).view("u1").data if array.nbytes else memoryview(b"")
    return [descr, list(array.shape), order], data.toreadonly()


def build_array(description: object, data: bytes | memoryview) -> "np.ndarray":
    """A read-only array on ``data``, which it keeps alive.

    Raises:
        CorruptError: the description and the data do not fit, or describe nothing plain.
    """
    numpy = _numpy()
    descr, shape, order = _fields(description, 3)
    dtype = _dtype(numpy, descr)
    if not isinstance(shape, list) or len(shape) > _DIMENSIONS_MAX or any(type(n) is not int or n < 0 for n in shape):
        raise CorruptError(f"numpy array: shape {shape!r:.80} cannot be")
    size = dtype.itemsize
    for extent in shape:
        size *= extent
    if size != len(data) or order not in ("C", "F"):
        raise CorruptError(f"numpy array: {dtype} x {shape} is {size} bytes, {len(data)} are there")
    array: np.ndarray = numpy.ndarray(shape, dtype=dtype, buffer=data, order=order)
    array.flags.writeable = False
    return array


def describe_scalar(scalar: "np.generic") -> tuple[object, bytes]:
    """Its data type's description and its bytes.

    Raises:
        UnsupportedTypeError: it is not plain bytes.
    """
    array = _numpy().asarray(scalar)  # an empty str_ says it has no bytes, and gives four; its array agrees with itself
    return _describe_dtype(array.dtype), array.tobytes()


def build_scalar(descr: object, data: bytes) -> object:
    """The numpy scalar of that type and bytes.

    Raises:
        CorruptError: they do not fit.
    """
    return build_array([descr, [], "C"], data)[()]


def _describe_dtype(dtype: "np.dtype") -> object:
    numpy = _numpy()
    if not dtype.hasobject and dtype.itemsize and dtype.kind in _KINDS:
        descr = numpy.lib.format.dtype_to_descr(dtype)
        # Types of other packages, such as bfloat16, describe themselves as raw bytes.
        if dtype.kind != "V" or _dtype(numpy, descr) == dtype:
            return descr
    raise UnsupportedTypeError(
        f"numpy data of type {dtype}; only numbers, times, fixed-length strings and records of them"
    )


def _dtype(numpy: ModuleType, descr: object) -> "np.dtype":
    try:
        # numpy reads many more notations than it writes, warns about some, and trusts the sizes in them.
        if not 0 < _item_size(descr) <= _ITEM_BYTES_MAX:
            raise ValueError("its items have no size, or an impossible one")
        dtype = numpy.lib.format.descr_to_dtype(descr)
    except (TypeError, ValueError, KeyError, SyntaxError, OverflowError) as error:
        raise CorruptError(f"numpy array: data type {descr!r:.80} cannot be ({error})") from error
    return cast("np.dtype", dtype)


def _item_size(descr: object) -> int:
    """Bytes of an item of a type so described, at least; ValueError if that is no description of plain bytes."""
    if isinstance(descr, list):
        return sum(_field_size(field) for field in descr)
    match = _PLAIN.fullmatch(descr) if isinstance(descr, str) else None
    if match is None:
        raise ValueError("not the notation of the .npy format, or not of plain bytes")
    return int(match["size"] or 8) * (4 if match["kind"] == "U" else 1)


def _field_size(field: object) -> int:
    if not isinstance(field, tuple) or len(field) not in (2, 3):
        raise ValueError("a field is a name, a type and perhaps a shape")
    shape = field[2] if len(field) == 3 else ()
    if not isinstance(shape, tuple) or any(type(extent) is not int or extent < 0 for extent in shape):
        raise ValueError("a field's shape is a tuple of lengths")
    return _item_size(field[1]) * math.prod(shape)


def _fields(value: object, count: int) -> list[object]:
    if not isinstance(value, list) or len(value) != count:
        raise CorruptError(f"numpy array: expected {count} fields, found {value!r:.80}")
    return value


def _numpy() -> ModuleType:
    try:
        import numpy.lib.format  # noqa: PLC0415 - numpy is optional, and slow to import
    except ImportError as error:
        raise UnsupportedTypeError(
            "the document holds numpy values, and numpy is not installed: pip install numpy"
        ) from error
    return numpy
