"""What a client may ask for. Knows neither how it is said, nor how it is done."""

from dataclasses import dataclass, field
from enum import Enum


class Mode(Enum):
    """What a storage command does with what is there, by its name."""

    SET = b"set"
    ADD = b"add"
    REPLACE = b"replace"
    APPEND = b"append"
    PREPEND = b"prepend"
    CAS = b"cas"


@dataclass(slots=True)
class Get:
    """``get``, ``gets``, ``gat`` and ``gats``: as many items as there are, and ``END``."""

    keys: list[bytes]
    """However long: none that is too long is found."""
    with_cas: bool = False
    exptime: int | None = None
    """When they are to expire from now on, as the client said it; None to leave it."""


@dataclass(slots=True)
class _OneReply:
    """What has one reply."""

    noreply: bool = field(default=False, kw_only=True)
    """Whether the client does not want it."""


@dataclass(slots=True)
class Store(_OneReply):
    """``set``, ``add``, ``replace``, ``append``, ``prepend`` and ``cas``."""

    mode: Mode
    key: bytes
    flags: int
    exptime: int
    length: int
    """Bytes of the data that follow the line."""
    cas: int
    data: bytes = b""
    """Those, once they are here."""


@dataclass(slots=True)
class TooLarge(_OneReply):
    """A storage command whose data is longer than any item may be, and was not read."""

    key: bytes
    drops: bool
    """Whether what is stored there must go: nobody is to read what was to be overwritten."""


@dataclass(slots=True)
class Delete(_OneReply):
    """``delete``."""

    key: bytes


@dataclass(slots=True)
class Count(_OneReply):
    """``incr`` and ``decr``."""

    key: bytes
    delta: int
    down: bool


@dataclass(slots=True)
class Touch(_OneReply):
    """``touch``."""

    key: bytes
    exptime: int


@dataclass(slots=True)
class FlushAll(_OneReply):
    """``flush_all``, now or after ``delay``, which is said as an expiration time."""

    delay: int


@dataclass(slots=True)
class Stats(_OneReply):
    """``stats``."""

    topic: bytes


@dataclass(slots=True)
class Say(_OneReply):
    """What is answered in the same words whatever is stored: ``version``, ``mn``, ``quit``, every mistake."""

    reply: bytes
    closes: bool = False
    """Whether the connection ends with it."""
    skips: int = 0
    """Bytes after the line that belong to it: the data of a storage command that cannot be done."""


@dataclass(slots=True)
class Meta(_OneReply):
    """``mg``, ``ms``, ``md``, ``ma`` and ``me``."""

    verb: bytes
    key: bytes
    flags: dict[str, bytes]
    """By their letters, in the client's order, what follows the letter."""
    numbers: dict[str, int]
    """By their letters, those that are numbers."""
    length: int = 0
    data: bytes = b""


OneReply = Store | TooLarge | Delete | Count | Touch | FlushAll | Stats | Say | Meta
Command = Get | OneReply
