"""Keys to bytes and back. Two keys have the same bytes if and only if a dict takes them for the same."""

from collections.abc import Hashable
from typing import Final

from persistmem.arena.documents import DocumentDecoder, DocumentEncoder
from persistmem.arena.types import TypeRegistry
from persistmem.cache.layout import KEY_BYTES_MAX
from persistmem.errors import SizeError, UnsupportedTypeError

Key = str | bytes | int | tuple["Key", ...]

_TEXT, _BYTES, _PACKED = range(3)
_NO_TYPES: Final = TypeRegistry()
_HEAD_SIZE: Final = 4


def _head(kind: int, length: int) -> bytes:
    return (length << 2 | kind).to_bytes(_HEAD_SIZE, "little")


# What stands before the key's own bytes says where they end, so that no record's beginning is another one's.
_TEXT_HEADS: Final = tuple(_head(_TEXT, length) for length in range(256))


def encode_key(key: Hashable) -> bytes:
    """Return the bytes of a key, self-delimiting.

    Raises:
        UnsupportedTypeError: it is no str, bytes, int, or tuple of these.
        SizeError: it is longer than 32 KiB.
    """
    if type(key) is str:
        try:
            body = key.encode()
        except UnicodeEncodeError as error:
            raise UnsupportedTypeError(f"key {key[:80]!r}: {error.reason}; give text that UTF-8 can hold") from error
        length = len(body)
        if length < 256:
            return _TEXT_HEADS[length] + body
        kind = _TEXT
    elif type(key) is bytes:
        kind, body = _BYTES, key
    else:
        kind, body = _PACKED, _pack(_checked(key))
    if len(body) > KEY_BYTES_MAX:
        raise SizeError(f"key {key!r:.80}: expected at most {KEY_BYTES_MAX} bytes, found {len(body)}")
    return _head(kind, len(body)) + body


def decode_key(record: bytes) -> tuple[Key, int]:
    """Return the key at the start of a record, and where it ends there."""
    head = int.from_bytes(record[:_HEAD_SIZE], "little")
    end = _HEAD_SIZE + (head >> 2)
    body = record[_HEAD_SIZE:end]
    if head & 3 == _TEXT:
        return body.decode(), end
    if head & 3 == _BYTES:
        return body, end
    return _unpack(body), end


def _checked(key: object) -> object:
    """The key, a bool in it made the int that it equals."""
    if isinstance(key, bool):
        return int(key)
    if type(key) is tuple:
        return tuple(_checked(part) for part in key)
    if type(key) in (str, bytes, int):
        return key
    kind = f"{type(key).__module__}.{type(key).__qualname__}"
    raise UnsupportedTypeError(f"key: expected str, bytes, int or a tuple of these, found {kind}; convert it")


def _pack(key: object) -> bytes:
    return DocumentEncoder(_NO_TYPES, inline=True).pack(key)[0]


def _unpack(body: bytes) -> Key:
    key: Key = DocumentDecoder(_NO_TYPES, (), copy=True).decode(memoryview(body))  # type: ignore[assignment]
    return key
