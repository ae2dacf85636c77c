"""Keys to bytes and back. Two keys have the same bytes if and only if a dict takes them for the same."""

import mmap
import operator
from collections.abc import Callable, Hashable
from typing import Final

import msgpack

from persistmem.arena.documents import DocumentDecoder, DocumentEncoder
from persistmem.arena.types import TypeRegistry
from persistmem.cache.layout import KEY_BYTES_MAX
from persistmem.errors import CorruptError, SizeError, UnsupportedTypeError

Key = str | bytes | int | tuple["Key", ...]

KEY_BYTES_MIN: Final = 4
"""Bytes of the shortest key: those of the empty text."""

_TEXT, _BYTES, _PACKED = range(3)
_NO_TYPES: Final = TypeRegistry()
_HEAD_SIZE: Final = 4


_pack_int: Callable[[int], bytes] = msgpack.Packer().pack
_encoders: list[DocumentEncoder] = []


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
        try:
            plain = _checked(key)
        except RecursionError as error:
            raise UnsupportedTypeError("key: tuples nested too deep; flatten it") from error
        if type(plain) in (str, bytes):
            return encode_key(plain)
        kind, body = _PACKED, _pack(plain)
    if len(body) > KEY_BYTES_MAX:
        raise SizeError(f"key {shown(key)}: expected at most {KEY_BYTES_MAX} bytes, found {len(body)}")
    return _head(kind, len(body)) + body


def decode_key(data: bytes) -> Key:
    """Return the key that :func:`encode_key` made these bytes of.

    Raises:
        CorruptError: it made no such bytes.
    """
    kind, body = data[0] & 3, data[_HEAD_SIZE:]
    if kind == _BYTES:
        return body
    try:
        return body.decode() if kind == _TEXT else _unpack(body)
    except UnicodeDecodeError as error:
        raise CorruptError(f"cache: expected a key of UTF-8, found {error.reason}") from error


def key_end(memory: mmap.mmap, start: int) -> int:
    """Return where the key that begins at ``start`` ends. Unchecked: the record's checksum says whether it is one."""
    return start + _HEAD_SIZE + (int.from_bytes(memory[start : start + _HEAD_SIZE], "little") >> 2)


def shown(key: object) -> str:
    """Return a key as messages show it."""
    try:
        return f"{key!r:.200}"
    except ValueError:
        return "that is, or holds, a very large int"


def _checked(key: object) -> object:
    """The key in the types that are stored: what is equal to one of them, and hashes alike, is made one."""
    if isinstance(key, tuple):
        return tuple(_checked(part) for part in key)
    if isinstance(key, str):
        return str.__str__(key)
    if isinstance(key, bytes):
        return bytes(key)
    if isinstance(key, float) and key.is_integer():
        return int(key)
    if hasattr(key, "__index__"):  # ints, bools, and numpy's
        return operator.index(key)
    kind = f"{type(key).__module__}.{type(key).__qualname__}"
    raise UnsupportedTypeError(f"key: expected str, bytes, int or a tuple of these, found {kind}; convert it")


def _pack(key: object) -> bytes:
    if type(key) is int and -(1 << 63) <= key < 1 << 64:
        return _pack_int(key)
    try:
        encoder = _encoders.pop()
    except IndexError:  # all are in use, by other threads
        encoder = DocumentEncoder(_NO_TYPES, inline=True)
    packed = encoder.pack(key)[0]
    _encoders.append(encoder)
    return packed


def _unpack(body: bytes) -> Key:
    key: Key = DocumentDecoder(_NO_TYPES, (), copy=True).decode(memoryview(body))  # type: ignore[assignment]
    return key
