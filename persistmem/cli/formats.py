"""Documents as files hold them: JSON, msgpack or raw bytes. Knows values and bytes; neither files nor arenas.

Files and standard input are hostile: decoding builds plain values and runs no code.
"""
# ruff: noqa: PLC0415 - --help must be fast: what a function needs is imported when it runs

import math
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, cast

from persistmem.errors import ArgumentError, CorruptError, UnsupportedTypeError

if TYPE_CHECKING:
    import numpy as np


class Format(StrEnum):
    """What a file holds."""

    JSON = "json"
    """JSON in UTF-8."""
    MSGPACK = "msgpack"
    """One msgpack document, with persistmem's extension types: everything that a snapshot can hold, exactly."""
    RAW = "raw"
    """Bytes: the snapshot holds them as they are."""


SUFFIXES: Final = {".json": Format.JSON, ".msgpack": Format.MSGPACK}


def format_of(file: Path | None) -> Format | None:
    """Return what the name of ``file`` says that it holds; None if it says nothing.

    >>> format_of(Path("carts.JSON"))
    <Format.JSON: 'json'>
    """
    return None if file is None else SUFFIXES.get(file.suffix.lower())


def natural_format(document: object) -> Format:
    """Return how a document is written when neither the user nor a file's name says so."""
    return Format.RAW if isinstance(document, bytes | memoryview) else Format.JSON


def parse(data: memoryview, form: Format) -> object:
    """Return the document in ``data``.

    Raises:
        ArgumentError: there is none of that format.
    """
    match form:
        case Format.RAW:
            return data
        case Format.JSON:
            return _parse_json(data)
        case Format.MSGPACK:
            return _parse_msgpack(data)


def write(document: object, form: Format) -> bytes | memoryview:
    """Return ``document`` as the bytes of a file.

    JSON turns tuples into arrays and numbers that are keys into strings, as Python's :mod:`json` does; all else that it
    cannot say is refused rather than bent.

    Raises:
        UnsupportedTypeError: the format has no word for a value; the message says where it is, and which format has.
    """
    match form:
        case Format.RAW:
            if isinstance(document, bytes | memoryview):
                return document
            better = Format.JSON if _find_unfit(document) is None else Format.MSGPACK
            raise UnsupportedTypeError(
                f"it holds a document ({type(document).__name__}), not bytes; use --format {better}"
            )
        case Format.JSON:
            return _write_json(document)
        case Format.MSGPACK:
            return _write_msgpack(document)


def _parse_json(data: memoryview) -> object:
    import json

    try:
        return json.loads(bytes(data), parse_constant=_refuse_constant)
    except RecursionError:
        raise ArgumentError("expected JSON, found arrays or objects nested too deep") from None
    except ValueError as error:
        raise ArgumentError(f"expected JSON, found something else: {error}") from error


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON; msgpack has it")


def _write_json(document: object) -> bytes:
    import json

    unfit = _find_unfit(document)
    if unfit is not None:
        better = Format.RAW if natural_format(document) is Format.RAW else Format.MSGPACK
        raise UnsupportedTypeError(f"document{unfit.path}: JSON has no {unfit.what}; use --format {better}")
    return json.dumps(document, ensure_ascii=False).encode() + b"\n"


class _Unfit(NamedTuple):
    """The first thing in a document that JSON cannot say."""

    what: str
    path: str = ""

    def inside(self, key: object) -> "_Unfit":
        return _Unfit(self.what, f"[{key!r:.60}]{self.path}")


def _find_unfit(document: object) -> _Unfit | None:
    try:
        return _unfit(document)
    except RecursionError:
        return _Unfit("document that is nested so deep")


def _unfit(value: object) -> _Unfit | None:
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return None
    if kind is float:
        return None if math.isfinite(cast("float", value)) else _Unfit(f"number {value}")
    if kind is dict:
        members = cast("dict[object, object]", value)
        return _unfit_key(members) or _first(members.items())
    if kind is list or kind is tuple:
        return _first(enumerate(cast("list[object]", value)))
    return _Unfit("bytes" if kind is memoryview else kind.__name__)


def _first(items: Iterable[tuple[object, object]]) -> _Unfit | None:
    for key, item in items:
        if (found := _unfit(item)) is not None:
            return found.inside(key)
    return None


def _unfit_key(members: dict[object, object]) -> _Unfit | None:
    if all(type(key) is str for key in members):
        return None
    for key in members:
        if type(key) not in (str, int):
            return _Unfit(f"key of type {type(key).__name__}").inside(key)
    if len({str(key) for key in members}) < len(members):
        return _Unfit("object with a number and the same number as text for keys")
    return None


def _parse_msgpack(data: memoryview) -> object:
    from persistmem.arena.documents import DocumentDecoder
    from persistmem.arena.types import registry

    try:
        return DocumentDecoder(registry, [], copy=True).decode(data)
    except CorruptError as error:
        raise ArgumentError(f"expected one msgpack document, found something else: {error}") from error


def _write_msgpack(document: object) -> bytes:
    import msgpack

    from persistmem.arena.arrays import describe_array, is_array
    from persistmem.arena.documents import DocumentEncoder
    from persistmem.arena.types import CONTAINERS, Code, registry

    encoder = DocumentEncoder(registry)

    def extension(value: object) -> msgpack.ExtType:
        """What the arena's own encoder makes of a value, except that nothing stands outside the document."""
        if (container := CONTAINERS.get(type(value))) is not None:
            return msgpack.ExtType(container, pack(list(cast("list[object]", value))))
        if is_array(value):
            return msgpack.ExtType(Code.ARRAY, pack(list(describe_array(cast("np.ndarray", value)))))
        with encoder.encode(value) as encoded:
            return cast("msgpack.ExtType", msgpack.unpackb(encoded.packed))

    def pack(value: object) -> bytes:
        return cast("bytes", msgpack.packb(value, default=extension, strict_types=True))

    try:
        return pack(document)
    except (ValueError, OverflowError) as error:
        raise UnsupportedTypeError(f"document: too large for msgpack ({error}), which ends at 4 GiB a value") from error
