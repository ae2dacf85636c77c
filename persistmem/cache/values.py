"""Values to bytes and back, with a byte that says how. Knows msgpack and documents, and no memory."""

from collections.abc import Callable
from typing import Final

import msgpack

from persistmem.arena.documents import DocumentDecoder, DocumentEncoder
from persistmem.arena.types import TypeRegistry

PLAIN: Final = 0
"""msgpack of what it holds by itself."""
RAW: Final = 1
"""Bytes as they are."""
DOCUMENT: Final = 2
"""msgpack with extensions: everything else that a snapshot takes."""
EXPIRES: Final = 0x80
"""Set beside one of these where the record ends with a time."""

_unpack = msgpack.unpackb


class Values:
    """Packs and unpacks, in any number of threads."""

    def __init__(self, types: TypeRegistry) -> None:
        self._types = types
        self._encoders: list[DocumentEncoder] = []

    def encode(self, value: object) -> tuple[bytes, int]:
        """Return the bytes of ``value``, and how they are to be read.

        Raises:
            UnsupportedTypeError: it holds what cannot be stored; the message says where.
        """
        if type(value) is bytes:
            return value, RAW
        try:
            encoder = self._encoders.pop()
        except IndexError:  # all are in use, by other threads
            encoder = DocumentEncoder(self._types, inline=True)
        packed, extended = encoder.pack(value)
        self._encoders.append(encoder)
        return packed, DOCUMENT if extended else PLAIN

    def decode(self, data: bytes, kind: int) -> object:
        """Return the value; ``kind`` without :data:`EXPIRES`.

        Raises:
            CorruptError: it is none.
            UnsupportedTypeError: it holds a type that is not registered in this process.
        """
        return self.decode_with(data, kind)[0]

    def decode_with(self, data: bytes, kind: int) -> tuple[object, Callable[[bytes], object] | None]:
        """Return the value, and what may decode the same bytes again without asking; None if nothing may."""
        if kind == PLAIN:
            try:
                return _unpack(data), _unpack
            except ValueError:
                pass  # maps with keys that are no text are read below
        elif kind == RAW:
            return data, bytes
        return DocumentDecoder(self._types, (), copy=True).decode(memoryview(data)), None
