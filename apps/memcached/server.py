"""Connections: sockets' bytes to conversations and back, in turn, and only as fast as a client reads.

Knows asyncio; must not know what is said.
"""

import asyncio
from typing import Final, cast

from apps.memcached.conversation import Conversation
from apps.memcached.counts import Counts

_FULL: Final = b"ERROR Too many open connections\r\n"


class Connection(asyncio.Protocol):
    """One client."""

    _transport: asyncio.Transport

    def __init__(self, conversation: Conversation, counts: Counts) -> None:
        self._conversation = conversation
        self._counts = counts
        self._waits_for_peer = False
        self._has_turn = False
        """Whether :meth:`_go_on` is going to be called by the loop."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; or refuse, if there are as many connections as there may be."""
        self._transport = cast("asyncio.Transport", transport)
        counts = self._counts
        counts.curr_connections += 1
        counts.total_connections += 1
        if counts.curr_connections > counts.max_connections:
            counts.rejected_connections += 1
            self._transport.write(_FULL)
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - it is the loop's to tell
        """Forget it."""
        self._counts.curr_connections -= 1

    def data_received(self, data: bytes) -> None:
        """Answer what the client sent."""
        self._counts.bytes_read += len(data)
        self._conversation.hear(data)
        if not (self._has_turn or self._waits_for_peer):
            self._go_on()

    def pause_writing(self) -> None:
        """Read nothing more while the client does not read."""
        self._waits_for_peer = True

    def resume_writing(self) -> None:
        """Go on: the client reads."""
        self._waits_for_peer = False
        if not self._has_turn:
            self._go_on()

    def _go_on(self) -> None:
        self._has_turn = False
        transport = self._transport
        if transport.is_closing():
            return
        replies, is_more = self._conversation.reply()
        if replies:
            self._counts.bytes_written += len(replies)
            transport.write(replies)
        if self._conversation.is_over:
            transport.close()
        elif self._waits_for_peer:
            transport.pause_reading()
        elif is_more:
            transport.pause_reading()
            self._has_turn = True
            asyncio.get_running_loop().call_soon(self._go_on)
        else:
            transport.resume_reading()
