"""Simulated sessions: what each call on an outgoing and on an incoming one does, errno for errno. Knows no kernel.

Source: Linux ``kernel/liveupdate/luo_session.c`` and ``luo_file.c``.
"""

import errno
import fcntl
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from persistmem.errors import CorruptError, LiveUpdateError
from persistmem.liveupdate.abi import AbiVersions, PhysicalAddress, check_token
from persistmem.liveupdate.handover_writer import FrozenSession
from persistmem.liveupdate.image import Image
from persistmem.liveupdate.interface import Token
from persistmem.liveupdate.memfds import Inode, PreservedMemfd, can_preserve, inode_of, restore


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn the operating system's refusals into the device's."""
    try:
        yield
    except LiveUpdateError:
        raise
    except OSError as error:
        raise LiveUpdateError(error.errno, f"{what}: {error.strerror}") from error


class SimulatedSession(ABC):
    """What outgoing and incoming sessions share: a name, and a descriptor that can be closed."""

    def __init__(self, name: str) -> None:
        self._name = name
        # It stands for the kernel's anonymous inode: a descriptor that occupies a place and cannot be preserved.
        self._fd: int | None = os.eventfd(0, os.EFD_CLOEXEC)

    @property
    def name(self) -> str:
        """The session's name."""
        return self._name

    def fileno(self) -> int:
        """The session's own descriptor. ``EBADF`` if it was closed."""
        if self._fd is None:
            raise LiveUpdateError(errno.EBADF, f"session {self._name!r} was closed")
        return self._fd

    @abstractmethod
    def preserve(self, fd: int, token: Token) -> None:
        """See :class:`persistmem.liveupdate.interface.Session`."""

    @abstractmethod
    def retrieve(self, token: Token) -> int:
        """See :class:`persistmem.liveupdate.interface.Session`."""

    @abstractmethod
    def finish(self) -> None:
        """See :class:`persistmem.liveupdate.interface.Session`."""

    def close(self) -> None:
        """Close it; twice is fine."""
        if self._fd is not None:
            self._release()
            os.close(self._fd)
            self._fd = None

    @abstractmethod
    def _release(self) -> None:
        """What closing means."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _refusal(self, number: int, reason: str) -> LiveUpdateError:
        return LiveUpdateError(number, f"session {self._name!r}: {reason}")


class OutgoingSession(SimulatedSession):
    """A session that was created in this kernel."""

    def __init__(self, name: str, owned: set[Inode], closed: Callable[[], object]) -> None:
        super().__init__(name)
        self._memfds: dict[Token, PreservedMemfd] = {}
        self._owned = owned
        self._closed = closed

    def preserve(self, fd: int, token: Token) -> None:
        """Let ``fd`` cross the next kexec: fills its holes, notes its size and seals.

        Raises:
            LiveUpdateError: ``EEXIST`` for a token in use, ``ENOENT`` for what is not a memfd of normal pages,
                ``EBUSY`` for a file that is in a session already, ``ENOMEM``.
        """
        self.fileno()
        check_token(token)
        if token in self._memfds:
            raise self._refusal(errno.EEXIST, f"token {token} is in use")
        with refusing(f"session {self._name!r}: preserve descriptor {fd}"):
            if not can_preserve(fd):
                raise self._refusal(errno.ENOENT, f"descriptor {fd} is not a memfd of normal pages")
            if inode_of(fd) in self._owned:
                raise self._refusal(errno.EBUSY, f"descriptor {fd} is preserved already, or its session not finished")
            memfd = PreservedMemfd.preserve(fd, token)
        self._owned.add(memfd.inode)
        self._memfds[token] = memfd

    def retrieve(self, token: Token) -> int:
        """Refused: nothing came in here."""
        self.fileno()
        raise self._refusal(errno.EINVAL, f"token {token} cannot be retrieved before the kexec")

    def finish(self) -> None:
        """Refused: nothing came in here."""
        self.fileno()
        raise self._refusal(errno.EINVAL, "it is finished after the kexec, not before; close it to give it up")

    def written_bytes(self) -> int:
        """How much memory its copy takes."""
        with refusing(f"session {self._name!r}: measure"):
            return sum(memfd.written_bytes() for memfd in self._memfds.values())

    def freeze(self) -> FrozenSession:
        """What crosses the kexec. LiveUpdateError if a memfd's size changed."""
        try:
            return FrozenSession(self._name, [memfd.freeze() for memfd in self._memfds.values()])
        except LiveUpdateError as error:
            raise self._refusal(error.errno or errno.EPERM, str(error.strerror)) from error

    def _release(self) -> None:
        for memfd in self._memfds.values():
            self._owned.discard(memfd.inode)
            memfd.unpreserve()
        self._memfds.clear()
        self._closed()


class IncomingSession(SimulatedSession):
    """A session that the last kernel handed over."""

    def __init__(
        self,
        name: str,
        files: dict[Token, PhysicalAddress],
        *,
        image: Image,
        versions: AbiVersions,
        owned: set[Inode],
        finished: Callable[[], None],
        closed: Callable[[], object],
    ) -> None:
        super().__init__(name)
        self._files = files
        self._image = image
        self._versions = versions
        self._retrieved: dict[Token, int] = {}
        self._failed: dict[Token, LiveUpdateError] = {}
        self._owned = owned
        self._finished = finished
        self._closed = closed
        self._is_finished = False

    def preserve(self, fd: int, token: Token) -> None:
        """Refused: this session came in."""
        self.fileno()
        raise self._refusal(errno.EINVAL, f"descriptor {fd} as token {token}: create a session of this kernel for it")

    def retrieve(self, token: Token) -> int:
        """A new descriptor of the memfd; the same open file each time.

        Raises:
            LiveUpdateError: ``ENOENT`` for an unknown token, or after finish; ``EIO`` for bytes that make no memfd;
                ``ENOMEM``. As in the kernel, what failed once stays lost.
        """
        self.fileno()
        if token not in self._files:
            raise self._refusal(errno.ENOENT, f"it has no token {token}")
        if token in self._failed:
            raise self._failed[token]
        if token not in self._retrieved:
            fd = self._restore(token)
            self._retrieved[token] = fd
            self._owned.add(inode_of(fd))
        with refusing(f"session {self._name!r}: retrieve token {token}"):
            return fcntl.fcntl(self._retrieved[token], fcntl.F_DUPFD_CLOEXEC, 0)

    def finish(self) -> None:
        """Let go of what was retrieved, and lose what was not; twice is fine."""
        self.fileno()
        if self._is_finished:
            return
        for fd in self._retrieved.values():
            self._owned.discard(inode_of(fd))
            os.close(fd)
        self._retrieved.clear()
        self._files.clear()
        self._is_finished = True
        self._finished()

    def _restore(self, token: Token) -> int:
        try:
            with refusing(f"session {self._name!r}: retrieve token {token}"):
                return restore(self._image, self._files[token], self._versions)
        except LiveUpdateError as error:
            self._failed[token] = error
            raise
        except CorruptError as error:
            self._failed[token] = self._refusal(errno.EIO, f"token {token}: {error}")
            raise self._failed[token] from error

    def _release(self) -> None:
        self.finish()
        self._closed()
