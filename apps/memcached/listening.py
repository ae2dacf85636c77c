"""Where a server listens: addresses as people write them, and Unix sockets that only their owner may connect to.

Must not know who connects, nor what is said.
"""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Self

from persistmem.errors import ArgumentError, Error


class ListenError(Error, OSError):
    """Nobody can listen there, or somebody does."""


class Address(NamedTuple):
    """A TCP port, and at which of the machine's addresses."""

    host: str
    port: int
    """0 for one that is free."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what ``HOST:PORT`` says; an IPv6 address has brackets around it.

        Raises:
            ArgumentError: it cannot be read.

        >>> Address.parse("localhost:11211"), Address.parse("[::1]:0")
        (Address(host='localhost', port=11211), Address(host='::1', port=0))
        """
        host, _, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            host = ""
        if not (host and port.isascii() and port.isdigit() and int(port) < 1 << 16):
            raise ArgumentError(f"address {text[:80]!r}: expected HOST:PORT, as in 127.0.0.1:11211 or [::1]:11211")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@contextmanager
def saying_where(where: Address | Path) -> Iterator[None]:
    """Have what goes wrong within say where it is that one cannot listen.

    Raises:
        ListenError: for an OSError.
    """
    try:
        yield
    except OSError as error:
        raise ListenError(f"cannot listen at {where}: {error.strerror or error}; choose another place") from error


def bind_unix(path: Path) -> socket.socket:
    """Return a socket at ``path`` that only this user may connect to; one that nobody listens at any more makes way.

    Raises:
        OSError: there is something else, or somebody listens there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            try:
                sock.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
            else:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), str(path))
        before = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(before)
    except BaseException:
        sock.close()
        raise
    return sock
