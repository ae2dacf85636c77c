"""The service manager of this process, spoken to as sd_notify(3) does: one datagram for one thing said.

Knows a socket and an environment; must not know what is said, nor what the descriptors beside it are.
"""

import array
import os
import select
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, Self

from persistmem.errors import CarrierError

FIRST_FD: Final = 3
"""Where the descriptors begin that a service is started with: SD_LISTEN_FDS_START."""
_FDS_MAX: Final = 1 << 16
_PATIENCE: Final = 10.0
"""Seconds in which the manager has taken note; it answers within milliseconds unless it hangs."""


class Manager:
    """The service manager on the other side of ``$NOTIFY_SOCKET``. Whom it listens to, ``NotifyAccess=`` says."""

    def __init__(self, address: str) -> None:
        """Take the address of its socket.

        Raises:
            CarrierError: it is none that can be spoken to.
        """
        if address[:1] not in ("/", "@") or not 1 < len(os.fsencode(address)) < _ADDRESS_MAX:
            raise CarrierError(
                f"$NOTIFY_SOCKET: expected a path or @NAME of at most {_ADDRESS_MAX - 1} bytes, found {address[:80]!r}"
            )
        self._address = "\0" + address[1:] if address[0] == "@" else address

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self | None:
        """Return the one that this process was started by, or None if it was not told of any.

        Raises:
            CarrierError: see above.
        """
        address = environment.get("NOTIFY_SOCKET")
        return cls(address) if address else None

    def tell(self, *assignments: str, fds: Sequence[int] = ()) -> None:
        """Say ``NAME=value`` once or more, with descriptors beside it. It may not listen; see :meth:`wait`.

        Raises:
            CarrierError: it cannot be reached.
        """
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with self._errors(), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(_PATIENCE)
            sock.connect(self._address)
            sock.sendmsg(["\n".join(assignments).encode()], rights)

    def wait(self) -> None:
        """Wait until it has read everything that this process said before (from systemd 246 on).

        Raises:
            CarrierError: it has not, in ten seconds.
        """
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                self.tell("BARRIER=1", fds=[writing])
            finally:
                os.close(writing)
            poll = select.poll()
            poll.register(reading, 0)
            if not poll.poll(_PATIENCE * 1000):
                raise CarrierError(f"the service manager did not take note of anything within {_PATIENCE:g} s")
        finally:
            os.close(reading)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            shown = self._address.replace("\0", "@", 1)
            raise CarrierError(f"the service manager cannot be told anything at {shown}: {error}") from error


_ADDRESS_MAX: Final = 108
"""Bytes of a unix(7) socket's path, with its end."""


def descriptors(environment: Mapping[str, str], pid: int) -> list[tuple[str, int]]:
    """Return name and number of each descriptor that this process was started with, as sd_listen_fds_with_names(3).

    They stay where they are, and are inherited by what this process executes until it says otherwise.

    Raises:
        CarrierError: the environment contradicts itself, or a descriptor is not there.

    >>> descriptors({"LISTEN_PID": "7", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"}, pid=8)
    []
    """
    if environment.get("LISTEN_PID") != str(pid):
        return []
    count = environment.get("LISTEN_FDS", "")
    if not (count.isascii() and count.isdecimal() and len(count) <= 5 and int(count) <= _FDS_MAX):
        raise CarrierError(f"$LISTEN_FDS: expected a number of descriptors up to {_FDS_MAX}, found {count[:20]!r}")
    numbers = range(FIRST_FD, FIRST_FD + int(count))
    given = environment.get("LISTEN_FDNAMES")
    names = given.split(":") if given is not None else ["unknown"] * len(numbers)
    if len(names) != len(numbers) and numbers:
        raise CarrierError(f"$LISTEN_FDNAMES: expected {len(numbers)} names, found {len(names)}")
    for fd in numbers:
        try:
            os.fstat(fd)
        except OSError as error:
            raise CarrierError(f"$LISTEN_FDS is {count}, but descriptor {fd} is not there: {error}") from error
    return list(zip(names, numbers, strict=False))
