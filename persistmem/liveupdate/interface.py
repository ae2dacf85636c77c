"""The live-update device as the kernel models it; both implementations have this shape. Knows nothing but types.

Source: Linux ``include/uapi/linux/liveupdate.h``. Refusals are :class:`persistmem.errors.LiveUpdateError` with the
kernel's errno.
"""

from typing import NewType, Protocol, Self

Token = NewType("Token", int)
"""What a session files a descriptor under: any u64, chosen by user space."""

TOKEN_MAX = (1 << 64) - 1

SESSION_NAME_BYTES_MAX = 63
"""Longest session name in bytes; the kernel's buffer holds 64 with the NUL."""


class Session(Protocol):
    """A named set of preserved descriptors: outgoing (created here) or incoming (handed over by the last kernel)."""

    @property
    def name(self) -> str:
        """The session's name."""

    def fileno(self) -> int:
        """The session's own descriptor."""

    def preserve(self, fd: int, token: Token) -> None:
        """Let ``fd`` cross the next kexec under ``token``: fills its holes, freezes its size, notes its seals.

        ``EEXIST`` for a token in use; ``ENOENT`` for what is no memfd of normal pages; ``EBUSY`` for a file that a
        session has: preserved already, or retrieved from a session that is not finished; ``EINVAL`` if incoming.
        """

    def retrieve(self, token: Token) -> int:
        """A new descriptor, ``FD_CLOEXEC`` set, of what was preserved under ``token``.

        ``ENOENT`` if there is no such token, or the session is finished; ``EINVAL`` if the session is outgoing.
        """

    def finish(self) -> None:
        """Take what was retrieved out of the kernel's hands, and free what was not. Incoming only; twice is fine."""

    def close(self) -> None:
        """Close it. Outgoing: unpreserves everything. Incoming: finishes it, so what was not retrieved is lost."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


class Device(Protocol):
    """An open live-update device. One process can have it open at a time (``EBUSY``)."""

    def create_session(self, name: str) -> Session:
        """A new outgoing session. ``EEXIST`` if there is one, ``EINVAL`` if the name is empty or too long."""

    def retrieve_session(self, name: str) -> Session:
        """An incoming session. ``ENOENT`` if none of that name was handed over, ``EINVAL`` if it was retrieved."""

    def close(self) -> None:
        """Close the device. Its sessions stay open."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
