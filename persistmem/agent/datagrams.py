"""One datagram with its file descriptors, out of a socket and into it. Knows sendmsg(2), not messages."""

import array
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from persistmem.agent.protocol import FDS_MAX, MESSAGE_BYTES_MAX
from persistmem.errors import ProtocolError

_FD_BYTES: Final = array.array("i").itemsize
_FDS_PASSED_MAX: Final = 253
"""``SCM_MAX_FD``: most descriptors that can come with one datagram."""


def send(sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """Send one datagram whole, or raise the socket's OSError."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)


def close_all(fds: Iterable[int]) -> None:
    """Close every descriptor."""
    for fd in fds:
        os.close(fd)


def receive(sock: socket.socket, discard: Callable[[Sequence[int]], None] = close_all) -> tuple[bytes, list[int]]:
    """Return the next datagram, empty at the end, and descriptors (``FD_CLOEXEC`` set) that the caller closes.

    ``discard`` closes those that no message has. There is room for all of them: the kernel would close the rest here,
    and that can take as long as the sender likes.

    Raises:
        ProtocolError: it is longer than a message, or has more descriptors; all of them are discarded.
    """
    data, ancillary, flags, _ = sock.recvmsg(
        MESSAGE_BYTES_MAX, socket.CMSG_SPACE(_FDS_PASSED_MAX * _FD_BYTES), socket.MSG_CMSG_CLOEXEC
    )
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % _FD_BYTES])
    # Cut short, too, if this process can have no more descriptors.
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(fds) > FDS_MAX:
        discard(fds)
        raise ProtocolError(f"expected at most {MESSAGE_BYTES_MAX} bytes and {FDS_MAX} file descriptor, found more")
    return data, list(fds)
