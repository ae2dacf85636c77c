"""Plain values and records as they travel: over the socket, into the registry's arena, onto the disk.

A Kind turns a checked Python value into what msgpack and JSON both have, and back; what comes back was written by
nobody knows whom, so every type, range and length is checked. Knows nothing of messages, arenas or files.
"""

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Generic, NamedTuple, TypeVar
from uuid import UUID

from persistmem.errors import InvalidNameError
from persistmem.names import check_name

T = TypeVar("T")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Kind(NamedTuple, Generic[T]):
    """One type of value: ``pack`` makes it plain; ``unpack`` checks (``ValueError``) and makes it again."""

    pack: Callable[[T], object]
    unpack: Callable[[object], T]


def integer(low: int, high: int) -> Kind[int]:
    """Take an int from ``low`` to ``high``."""

    def unpack(value: object) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"expected an int from {low} to {high}, found {_brief(value)}")
        return value

    return Kind(int, unpack)


def text(longest: int) -> Kind[str]:
    """Take a string of at most ``longest`` characters; packing cuts it there, because it is for people."""

    def unpack(value: object) -> str:
        if not isinstance(value, str) or len(value) > longest:
            raise ValueError(f"expected a string of at most {longest} characters, found {_brief(value)}")
        value.encode()  # half of a surrogate pair is no text, and a ValueError
        return value

    return Kind(lambda value: value[:longest], unpack)


def choice(*values: str) -> Kind[str]:
    """Take one of these strings."""

    def unpack(value: object) -> str:
        if not isinstance(value, str) or value not in values:
            raise ValueError(f"expected one of {', '.join(values)}, found {_brief(value)}")
        return value

    return Kind(str, unpack)


def optional(kind: Kind[T]) -> Kind[T | None]:
    """Take that kind, or None."""
    return Kind(
        lambda value: None if value is None else kind.pack(value),
        lambda value: None if value is None else kind.unpack(value),
    )


def listing(kind: Kind[T], most: int) -> Kind[tuple[T, ...]]:
    """Take at most ``most`` values of that kind."""

    def unpack(value: object) -> tuple[T, ...]:
        if not isinstance(value, list | tuple) or len(value) > most:
            raise ValueError(f"expected a list of at most {most} items, found {_brief(value)}")
        return tuple(kind.unpack(item) for item in value)

    return Kind(lambda values: [kind.pack(value) for value in values], unpack)


def record(cls: Callable[..., T], **kinds: Kind[Any]) -> Kind[T]:  # the kinds of its fields differ
    """Take a dataclass whose fields are exactly these; it travels as a map."""

    def unpack(value: object) -> T:
        if not isinstance(value, dict) or value.keys() != kinds.keys():
            raise ValueError(f"expected a map of {', '.join(kinds) or 'nothing'}, found {_brief(value)}")
        found = {}
        for field, kind in kinds.items():
            try:
                found[field] = kind.unpack(value[field])
            except ValueError as error:
                raise ValueError(f"{field}: {error}") from error
        return cls(**found)

    return Kind(lambda value: {field: kind.pack(getattr(value, field)) for field, kind in kinds.items()}, unpack)


def _unpack_flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, found {_brief(value)}")
    return value


def _unpack_uuid(value: object) -> UUID:
    if not isinstance(value, str) or len(value) != 36 or str(found := UUID(value)) != value:
        raise ValueError(f"expected a UUID in its canonical form, found {_brief(value)}")
    return found


def _unpack_instant(value: object) -> datetime:
    return _EPOCH + timedelta(microseconds=_MICROSECONDS.unpack(value))


def _unpack_seconds(value: object) -> float:
    if not isinstance(value, float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"expected a number of seconds, found {_brief(value)}")
    return value


def _unpack_name(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected an arena's name, found {_brief(value)}")
    try:
        return check_name(value)
    except InvalidNameError as error:
        raise ValueError(str(error)) from error


def _brief(value: object) -> str:
    if isinstance(value, str | bytes):
        return f"{type(value).__name__} {value[:40]!r}"
    return f"{type(value).__name__} {value!r}"[:60] if isinstance(value, int | float | None) else type(value).__name__


_MICROSECONDS: Final = integer(0, int((datetime(9999, 1, 1, tzinfo=UTC) - _EPOCH) / timedelta(microseconds=1)))

FLAG: Final = Kind(bool, _unpack_flag)
NAME: Final = Kind(str, _unpack_name)
UUID_TEXT: Final[Kind[UUID]] = Kind(str, _unpack_uuid)
COUNT: Final = integer(0, 2**63 - 1)
INSTANT: Final[Kind[datetime]] = Kind(lambda when: (when - _EPOCH) // timedelta(microseconds=1), _unpack_instant)
"""A moment (UTC), as microseconds since 1970."""
SECONDS: Final = Kind(float, _unpack_seconds)
KERNEL: Final = text(100)
"""A kernel's release, as uname(2) gives it (at most 65 bytes) or the simulator makes it."""
