"""Values to bytes and back, with a byte that says how. Knows msgpack and documents, and no memory."""

from collections.abc import Callable
from typing import Final, NoReturn

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
"""Set beside one of these where a time stands before the value."""

unpack: Callable[[bytes], object] = msgpack.unpackb
"""Reads what is plain; ValueError for maps with keys that are no text, which :meth:`Values.decode` reads, too."""


_UNCHECKED_MAX: Final = 4096
"""Bytes up to which msgpack cannot take much memory, whatever they promise; more are looked through first."""


class Values:
    """Packs and unpacks, in any number of threads."""

    def __init__(self, types: TypeRegistry) -> None:
        self._types = types
        self._encoders: list[DocumentEncoder] = []
        # msgpack alone holds on to the interpreter until it is done, so threads can share one packer.
        self._pack: Callable[[object], bytes] = msgpack.Packer(default=_refuse, strict_types=True).pack

    def encode(self, value: object) -> tuple[bytes, int]:
        """Return the bytes of ``value``, and how they are to be read.

        Raises:
            UnsupportedTypeError: it holds what cannot be stored; the message says where.
        """
        if type(value) is bytes:
            return value, RAW
        try:
            return self._pack(value), PLAIN
        except (_NotPlainError, ValueError, OverflowError, BufferError):
            pass  # what msgpack does not hold by itself, or what is an error: then the encoder says where
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
        if kind == PLAIN and len(data) <= _UNCHECKED_MAX:
            try:
                return unpack(data)
            except ValueError:
                pass  # maps with keys that are no text are read below
        elif kind == RAW:
            return data
        return DocumentDecoder(self._types, (), copy=True).decode(memoryview(data))


class _NotPlainError(Exception):
    """A value is none that msgpack holds by itself."""


def _refuse(_: object) -> NoReturn:
    raise _NotPlainError
