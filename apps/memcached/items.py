"""An item as it lies in the cache: as a client gets it, and its numbers after that, so that reading copies and no more.

Turns items into bytes and back; knows neither keys, nor the cache.
"""

import struct
from dataclasses import dataclass
from typing import Final, Self

MARK: Final = b"\xa5mc1"
"""Ends every record: what does not end so was stored by another program."""
_NUMBERS: Final = struct.Struct("<QIB")  # cas unique, when it expires, state
_END: Final = b"\r\n"
_TAIL: Final = _NUMBERS.size + len(MARK)
SHOWN: Final = slice(-_TAIL)
"""What of a record follows the key where an item is given to a client."""
MARKED: Final = slice(-len(MARK), None)
"""What of a value is the mark, if it is a record."""

STALE: Final = 1
"""It was invalidated (``md I``): whoever gets it is told so."""
WON: Final = 2
"""Some client was told to make it anew; all others are told that."""
BINARY: Final = 4
"""Its key came in base64, and goes out in base64."""


@dataclass(slots=True)
class Item:
    """What is stored under a key."""

    data: bytes
    flags: int = 0
    """The client's own, 32 bits."""
    expires: int = 0
    """Seconds since 1970, 32 bits; 0 for never."""
    cas: int = 0
    """Its cas unique, 64 bits."""
    state: int = 0

    def encode(self) -> bytes:
        """Return its record: ``b" FLAGS LENGTH"``, its data, each with their line end, and its numbers."""
        numbers = _NUMBERS.pack(self.cas, self.expires, self.state)
        return b" %d %d\r\n%b\r\n%b%b" % (self.flags, len(self.data), self.data, numbers, MARK)

    def shown_with_cas(self) -> bytes:
        """Return what follows the key where an item is given to a client with its cas unique."""
        return b" %d %d %d\r\n%b\r\n" % (self.flags, len(self.data), self.cas, self.data)

    @classmethod
    def decode(cls, record: bytes) -> Self | None:
        """Return the item of a record; None if it is none of ours."""
        first, end, rest = record.partition(_END)
        words = first.split()
        if not end or len(words) != 2 or not all(word.isdigit() for word in words) or not is_record(record):
            return None
        flags, length = map(int, words)
        if len(rest) != length + len(_END) + _TAIL:
            return None
        cas, expires, state = _NUMBERS.unpack_from(rest, length + len(_END))
        return cls(rest[:length], flags, expires, cas, state)


def is_record(value: object) -> bool:
    """Tell whether a cache's value is a record; it may be anything, if another program stored it."""
    return type(value) is bytes and value[MARKED] == MARK
