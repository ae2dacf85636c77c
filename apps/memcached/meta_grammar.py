"""How meta commands are said: a key, and flags of one letter each, of which some have a value.

Knows letters and what may follow them; must not know what they do.
"""

import base64
import binascii
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from apps.memcached.commands import Meta
from apps.memcached.words import UINT32_MAX, ClientError, data_length, new_key, signed, unsigned

_WORDS_MAX: Final = 19
_BAD_TOKEN: Final = b"CLIENT_ERROR bad token in command line format\r\n"


_NOTHING: Final = "bcfkqstuvIxLP"
"""Flags that mean something by being there; L and P mean something to a proxy in between."""
_NUMBERS: Final[Mapping[str, Callable[[bytes], int]]] = {
    **dict.fromkeys("NRT", partial(signed, reply=_BAD_TOKEN)),
    **dict.fromkeys("CE", partial(unsigned, reply=_BAD_TOKEN)),
    "D": partial(unsigned, reply=b"CLIENT_ERROR invalid numeric delta value\r\n"),
    "F": partial(unsigned, most=UINT32_MAX),
    "J": partial(unsigned, reply=b"CLIENT_ERROR invalid numeric initial value\r\n"),
}
"""Flags that are numbers, and what reads them."""
_LENGTHS: Final[Mapping[str, tuple[range, bytes]]] = {
    "M": (range(1, 2), b"CLIENT_ERROR incorrect length for M token\r\n"),
    "O": (range(32), b"CLIENT_ERROR opaque token too long\r\n"),
}
"""Flags that are words, how long those may be, and what is said of others. All there are but h and l, which ask when an
item was read last: that is not noted down.
"""


def parse_get(words: list[bytes]) -> Meta:
    """``mg``."""
    new_key(words[1])
    if len(words) > _WORDS_MAX:
        raise ClientError(b"CLIENT_ERROR options flags are too long\r\n")
    return _parse(words, words[2:])


def parse_set(words: list[bytes]) -> Meta:
    """``ms``."""
    new_key(words[1])
    if len(words) == 2:
        raise ClientError
    length = data_length(words[2])
    _check_number(words)
    found = _parse(words, words[3:])
    found.length = length
    return found


def parse_change(words: list[bytes]) -> Meta:
    """``md`` and ``ma``, which say the same of every wrong flag."""
    new_key(words[1])
    _check_number(words)
    try:
        return _parse(words, words[2:])
    except ClientError as error:
        raise ClientError(b"CLIENT_ERROR invalid or duplicate flag\r\n") from error


def parse_debug(words: list[bytes]) -> Meta:
    """``me``, whose one flag is ``b``."""
    if len(words) < 2:
        raise ClientError
    new_key(words[1])
    return _parse(words, words[2:3] if words[2:3] == [b"b"] else [])


def _check_number(words: list[bytes]) -> None:
    if len(words) > _WORDS_MAX:
        raise ClientError(b"CLIENT_ERROR options flags too long\r\n")


def _parse(words: list[bytes], tokens: list[bytes]) -> Meta:
    flags: dict[str, bytes] = {}
    numbers: dict[str, int] = {}
    for token in tokens:
        flag, value = chr(token[0]), token[1:]
        if flag in flags:
            raise ClientError(b"CLIENT_ERROR duplicate flag\r\n")
        if flag in _NUMBERS:
            numbers[flag] = _NUMBERS[flag](value)
        elif flag in _LENGTHS:
            allowed, reply = _LENGTHS[flag]
            if len(value) not in allowed:
                raise ClientError(reply)
        elif flag not in _NOTHING:
            raise ClientError(b"CLIENT_ERROR invalid flag\r\n")
        flags[flag] = value
    return Meta(words[0], _decode(words[1]) if "b" in flags else words[1], flags, numbers)


def _decode(word: bytes) -> bytes:
    try:
        decoded = base64.b64decode(word, validate=True)
    except binascii.Error:
        decoded = b""
    if not decoded:
        raise ClientError(b"CLIENT_ERROR error decoding key\r\n")
    return decoded
