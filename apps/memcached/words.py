"""One word of a client's line: a number, a key, or a mistake. Knows the protocol's limits, and no command."""

import re
from typing import Final

KEY_MAX: Final = 250
"""Bytes of the longest key."""
INT32_MAX: Final = (1 << 31) - 1
UINT32_MAX: Final = (1 << 32) - 1
UINT64_MAX: Final = (1 << 64) - 1

BAD_FORMAT: Final = b"CLIENT_ERROR bad command line format\r\n"

_UNPRINTABLE: Final = re.compile(rb"[\x00-\x20\x7f]")
_DIGITS_MAX: Final = 20


class ClientError(Exception):
    """A line says nothing that can be done; this is the reply."""

    def __init__(self, reply: bytes = BAD_FORMAT) -> None:
        super().__init__(reply)
        self.reply = reply


def unsigned(word: bytes, most: int = UINT64_MAX, reply: bytes = BAD_FORMAT) -> int:
    """Return the number that a word is, 0 to ``most``.

    Raises:
        ClientError: it is none; ``reply`` says so.
    """
    if not word.isdigit() or len(word) > _DIGITS_MAX or (number := int(word)) > most:
        raise ClientError(reply)
    return number


def signed(word: bytes, reply: bytes = BAD_FORMAT) -> int:
    """Return the number that a word is, which may be negative: an expiration time.

    Raises:
        ClientError: it is none; ``reply`` says so.
    """
    if word.startswith(b"-"):
        return -unsigned(word[1:], UINT64_MAX, reply)
    return unsigned(word, UINT64_MAX, reply)


def data_length(word: bytes) -> int:
    """Return the length of the data block that follows, without its line end.

    Raises:
        ClientError: it is none, or one that no server takes.
    """
    return unsigned(word, INT32_MAX - 2)


def key(word: bytes) -> bytes:
    """Return a word that may be looked for.

    Raises:
        ClientError: it is too long.
    """
    if len(word) > KEY_MAX:
        raise ClientError
    return word


def new_key(word: bytes) -> bytes:
    """Return a word that something may be stored under, and which replies may then hold.

    Raises:
        ClientError: it is too long, or holds control characters.
    """
    if _UNPRINTABLE.search(word):
        raise ClientError
    return key(word)
