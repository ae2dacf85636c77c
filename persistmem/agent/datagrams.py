"""One datagram with its file descriptors, out of a socket and into it. Knows sendmsg(2), not messages."""

import array
import os
import socket
from collections.abc import Sequence

from persistmem.agent.protocol import FDS_MAX, MESSAGE_BYTES_MAX
from persistmem.errors import ProtocolError

_FD_BYTES = array.array("i").itemsize


def send(sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """Send one datagram whole, or raise the socket's OSError."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Return the next datagram, empty at the end, and descriptors (``FD_CLOEXEC`` set) that the caller closes.

    Raises:
        ProtocolError: it is longer than a message, or has more descriptors; all of them are closed.
    """
    data, ancillary, flags, _ = sock.recvmsg(
        MESSAGE_BYTES_MAX, socket.CMSG_SPACE(FDS_MAX * _FD_BYTES), socket.MSG_CMSG_CLOEXEC
    )
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % _FD_BYTES])
    # The kernel has closed the descriptors that found no room.
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(fds) > FDS_MAX:
        close_all(fds)
        raise ProtocolError(f"expected at most {MESSAGE_BYTES_MAX} bytes and {FDS_MAX} file descriptor, found more")
    return data, list(fds)


def close_all(fds: Sequence[int]) -> None:
    """Close every descriptor."""
    for fd in fds:
        os.close(fd)
