"""The msgpack extension types of a document, and the registry of the user's own. Knows values, not memory.

Every value type beside msgpack's own has one row in a table: how it is packed, how it is read back. Reading back
runs no code but the constructors named here, and those that the user registered.
"""

import datetime as dt
import struct
from collections.abc import Callable
from decimal import Decimal
from enum import IntEnum
from typing import Generic, NamedTuple, TypeVar, cast
from uuid import UUID

import msgpack

from persistmem.errors import CorruptError, ExistsError, UnsupportedTypeError

T = TypeVar("T")


class Code(IntEnum):
    """The msgpack extension type numbers of a document (``docs/format.md``)."""

    TUPLE = 1
    SET = 2
    FROZENSET = 3
    INTEGER = 4
    DATETIME = 5
    DATE = 6
    TIME = 7
    TIMEDELTA = 8
    DECIMAL = 9
    UUID = 10
    COMPLEX = 11
    ARRAY = 12
    SCALAR = 13
    BUFFER = 14
    BUFFER_ARRAY = 15
    USER = 32


CONTAINERS: dict[type, Code] = {tuple: Code.TUPLE, set: Code.SET, frozenset: Code.FROZENSET}
"""Types that are packed as the msgpack array of their items."""


STANDS_FOR: dict[type, type] = {}
"""Subclasses of dict, list and set that are packed as what they derive from, and come back as that."""


class ValueType(NamedTuple, Generic[T]):
    """A type whose values hold no other values: its extension number and both directions."""

    code: Code
    to_bytes: Callable[[T], bytes]
    from_bytes: Callable[[bytes], T]


def _integer_to_bytes(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)


def _integer_from_bytes(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


_MICROSECOND = dt.timedelta(microseconds=1)
_ZoneFields = None | str | list[int | str | None]


def _zone_fields(zone: dt.tzinfo | None) -> _ZoneFields:
    if zone is None:
        return None
    if isinstance(zone, dt.timezone):
        offset = zone.utcoffset(None)
        name = zone.tzname(None)
        return [offset // _MICROSECOND, None if name == dt.timezone(offset).tzname(None) else name]
    from zoneinfo import ZoneInfo  # noqa: PLC0415 - slow to import, and most times are UTC's

    if isinstance(zone, ZoneInfo) and zone.key:
        return zone.key
    kind = f"{type(zone).__module__}.{type(zone).__qualname__}"
    raise UnsupportedTypeError(f"a time zone of type {kind}; use zoneinfo.ZoneInfo or datetime.timezone")


def _zone(fields: _ZoneFields) -> dt.tzinfo | None:
    if isinstance(fields, str):
        from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # noqa: PLC0415 - as above

        try:
            return ZoneInfo(fields)
        except (ZoneInfoNotFoundError, OSError) as error:
            raise CorruptError(f"time zone {fields[:80]!r} is not known on this machine; install tzdata") from error
    if fields is None:
        return None
    offset, name = cast("tuple[int, str | None]", fields)
    return dt.timezone(offset * _MICROSECOND) if name is None else dt.timezone(offset * _MICROSECOND, name)


def _moment_to_bytes(value: dt.datetime | dt.time) -> bytes:
    packed: bytes = msgpack.packb([value.replace(tzinfo=None).isoformat(), value.fold, _zone_fields(value.tzinfo)])
    return packed


def _moment_fields(data: bytes) -> tuple[str, int, _ZoneFields]:
    # The limits keep array headers that promise more than they have from reserving memory for it.
    text, fold, zone = msgpack.unpackb(data, max_array_len=3, max_map_len=0)
    return text, fold, zone


def _datetime_from_bytes(data: bytes) -> dt.datetime:
    text, fold, zone = _moment_fields(data)
    return dt.datetime.fromisoformat(text).replace(fold=fold, tzinfo=_zone(zone))


def _time_from_bytes(data: bytes) -> dt.time:
    text, fold, zone = _moment_fields(data)
    return dt.time.fromisoformat(text).replace(fold=fold, tzinfo=_zone(zone))


def _date_from_bytes(data: bytes) -> dt.date:
    return dt.date.fromisoformat(data.decode())


_TIMEDELTA = struct.Struct("<iii")
_COMPLEX = struct.Struct("<dd")

VALUE_TYPES: dict[type, ValueType[object]] = cast(
    "dict[type, ValueType[object]]",
    {
        int: ValueType(Code.INTEGER, _integer_to_bytes, _integer_from_bytes),
        dt.datetime: ValueType(Code.DATETIME, _moment_to_bytes, _datetime_from_bytes),
        dt.date: ValueType(Code.DATE, lambda value: value.isoformat().encode(), _date_from_bytes),
        dt.time: ValueType(Code.TIME, _moment_to_bytes, _time_from_bytes),
        dt.timedelta: ValueType(
            Code.TIMEDELTA,
            lambda value: _TIMEDELTA.pack(value.days, value.seconds, value.microseconds),
            lambda data: dt.timedelta(*_TIMEDELTA.unpack(data)),
        ),
        Decimal: ValueType(Code.DECIMAL, lambda value: str(value).encode(), lambda data: Decimal(data.decode())),
        UUID: ValueType(Code.UUID, lambda value: value.bytes, lambda data: UUID(bytes=data)),
        complex: ValueType(
            Code.COMPLEX,
            lambda value: _COMPLEX.pack(value.real, value.imag),
            lambda data: complex(*_COMPLEX.unpack(data)),
        ),
    },
)
"""Types whose values hold no other values. An int comes here only beyond 64 bits."""

READERS: dict[int, Callable[[bytes], object]] = {row.code: row.from_bytes for row in VALUE_TYPES.values()}
"""The same, by extension number, for reading back."""


class UserType(NamedTuple):
    """A type of the user's own: its tag in documents, and both directions."""

    tag: str
    pack: Callable[[object], object]
    unpack: Callable[[object], object]


class TypeRegistry:
    """The user's own types, by class for packing and by tag for reading back."""

    def __init__(self) -> None:
        self._by_class: dict[type, UserType] = {}
        self._by_tag: dict[str, UserType] = {}

    def register(self, cls: type[T], tag: str, pack: Callable[[T], object], unpack: Callable[[object], T]) -> None:
        """Let documents hold instances of exactly ``cls``.

        Args:
            cls: the class; subclasses need an entry of their own.
            tag: what stands in the arena for the class; keep it when the class is renamed.
            pack: from an instance to anything a document can hold.
            unpack: from that back to an instance. It gets what an arena holds: check it.

        Raises:
            ExistsError: the class or the tag is registered already, or the class is one that documents hold anyway.
        """
        if cls in self._by_class or cls in VALUE_TYPES or cls in CONTAINERS:
            raise ExistsError(f"type {cls.__qualname__}: documents can hold it already")
        if tag in self._by_tag:
            raise ExistsError(f"tag {tag!r}: it stands for another registered type; choose another")
        entry = UserType(tag, cast("Callable[[object], object]", pack), unpack)
        self._by_class[cls] = self._by_tag[tag] = entry

    def of(self, cls: type) -> UserType | None:
        """The entry for a class, if there is one."""
        return self._by_class.get(cls)

    def tagged(self, tag: object) -> UserType:
        """The entry for a tag.

        Raises:
            UnsupportedTypeError: there is none in this process.
        """
        entry = self._by_tag.get(tag) if isinstance(tag, str) else None
        if entry is None:
            raise UnsupportedTypeError(
                f"the document holds a {tag!r}; call persistmem.register_type for it, then restore"
            )
        return entry


registry = TypeRegistry()
"""The process's registry: what a class means is a fact of the program, as its imports are."""

register_type = registry.register
