"""Bytes in, commands out: the lines of a connection, and the data that follow them. Does no I/O.

Knows where lines and data end, and how long they may be; must not know what the words of a line mean.
"""

from typing import Final

from apps.memcached.commands import Command, Get, Meta, Mode, Say, Store, TooLarge
from apps.memcached.grammar import BINARY_REQUEST, NOT_BINARY, parse

LINE_MAX: Final = 2048
"""Bytes of a line, up to its line feed."""
KEYS_MAX: Final = 64 << 10
"""Bytes of one that asks for many keys."""
_LISTS_KEYS: Final = (b"get ", b"gets ", b"gat ", b"gats ")
_LINE_END: Final = b"\r\n"
_CARRIAGE_RETURN: Final = 0x0D

_TOO_LONG: Final = b"CLIENT_ERROR line too long\r\n"
_BAD_DATA: Final = b"CLIENT_ERROR bad data chunk\r\n"


class Parser:
    """The commands of one connection.

    Holds what came and was not asked for yet; and of a command that has not come as a whole, no more than it may have.
    """

    def __init__(self, item_size_max: int) -> None:
        """Data may have ``item_size_max`` bytes."""
        self._item_size_max = item_size_max
        self._data = b""
        self._at = 0
        """Where in it the next command begins."""
        self._part = bytearray()
        """The beginning of a line, or of data, whose end has not come."""
        self._part_size = 0
        """Bytes it has when it is whole; 0 for a line, whose end has to be found."""
        self._skips = 0
        self._storing: Store | Meta | None = None
        """What waits for its data."""
        self._closed = False

    def feed(self, data: bytes) -> None:
        """Take what the peer sent. Cost: a copy of it if it does not end where a command does."""
        if self._closed:
            return
        part = self._part
        if part:
            looked = len(part)
            part += data
            if self._part_size > len(part):
                return
            if not self._part_size and part.find(b"\n", looked) < 0 and len(part) <= LINE_MAX:
                return
            data = bytes(part)
            part.clear()
        elif self._at < len(self._data):
            data = self._data[self._at :] + data
        self._data, self._at = data, 0

    def next_command(self) -> Command | None:
        """Return the next command, or None if it has not come as a whole."""
        if self._skips and not self._skip():
            return None
        if self._storing is not None:
            return self._take_data(self._storing)
        data, at = self._data, self._at
        end = data.find(b"\n", at)
        if end - at > LINE_MAX or end < 0:
            if refusal := self._refusal(len(data) - at if end < 0 else end - at):
                return self._close(Say(refusal, closes=True))
            if end < 0:
                self._wait_for()
                return None
        self._at = end + 1
        command = parse(_words(data[at : end - 1 if data[end - 1] == _CARRIAGE_RETURN and end > at else end]))
        if type(command) is Get:
            return command
        if isinstance(command, Say):
            self._skips = command.skips
            return self._close(command) if command.closes else command
        if isinstance(command, Store) or (isinstance(command, Meta) and command.verb == b"ms"):
            return self._expect_data(command)
        return command

    def _expect_data(self, command: Store | Meta) -> Command | None:
        if command.length > self._item_size_max:
            self._skips = command.length + len(_LINE_END)
            drops = not isinstance(command, Store) or command.mode is Mode.SET
            return TooLarge(command.key, drops, noreply=command.noreply)
        self._storing = command
        return self._take_data(command)

    def _take_data(self, command: Store | Meta) -> Command | None:
        start, end = self._at, self._at + command.length
        if len(self._data) < end + len(_LINE_END):
            self._wait_for(command.length + len(_LINE_END))
            return None
        self._storing = None
        self._at = end + len(_LINE_END)
        if self._data[end : self._at] != _LINE_END:
            return Say(_BAD_DATA, noreply=command.noreply)
        command.data = self._data[start:end]
        return command

    def _skip(self) -> bool:
        """Pass over what is to be skipped, and say whether that was all."""
        there = min(self._skips, len(self._data) - self._at)
        self._at += there
        self._skips -= there
        return not self._skips

    def _wait_for(self, size: int = 0) -> None:
        """Keep what is there until there are ``size`` bytes; or the end of a line, if it is 0."""
        self._part += self._data[self._at :]
        self._part_size = size
        self._data, self._at = b"", 0

    def _refusal(self, length: int) -> bytes:
        """What is said to a line that has so many bytes as yet, and goes no further; nothing to one that may."""
        data, at = self._data, self._at
        if data[at : at + 1] == BINARY_REQUEST:
            return NOT_BINARY
        return _TOO_LONG if length > (KEYS_MAX if data.startswith(_LISTS_KEYS, at) else LINE_MAX) else b""

    def _close(self, last: Say) -> Say:
        """Listen to nothing that comes after this."""
        self._closed = True
        self._data, self._at, self._skips = b"", 0, 0
        return last


def _words(line: bytes) -> list[bytes]:
    words = line.split(b" ")
    if b"  " in line or not words[0] or not words[-1]:
        words = [word for word in words if word] or [b""]
    return words
