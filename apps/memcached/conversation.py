"""One connection without its socket: bytes in, bytes out. Knows when there is enough of a reply to be sent.

Must not know how bytes come and go.
"""

from typing import Final

from apps.memcached.answers import REPLY_MAX, Answers
from apps.memcached.commands import Get, Say
from apps.memcached.protocol import Parser

_COMMANDS_MAX: Final = 1000
"""Commands of one connection that are done before others have their turn."""


class Conversation:
    """What one client says, and what it is told."""

    def __init__(self, parser: Parser, answers: Answers) -> None:
        self._parser = parser
        self._answers = answers
        self._unfinished: Get | None = None
        self.is_over = False
        """Whether the connection is to be closed, once everything is sent."""

    def hear(self, data: bytes) -> None:
        """Take what the client sent."""
        self._parser.feed(data)

    def reply(self) -> tuple[bytes, bool]:
        """Do what was said, for a while; return the replies, and whether there may be more to do.

        There are at most some 256 KiB of replies, and one item.
        """
        replies: list[bytes] = []
        size = 0
        for _ in range(_COMMANDS_MAX):
            command = self._unfinished or self._parser.next_command()
            if command is None:
                return b"".join(replies), False
            reply = self._answers.answer(command)
            replies.append(reply)
            size += len(reply)
            self._unfinished = command if isinstance(command, Get) and command.keys else None
            if isinstance(command, Say) and command.closes:
                self.is_over = True
                return b"".join(replies), False
            if size > REPLY_MAX:
                break
        return b"".join(replies), True
