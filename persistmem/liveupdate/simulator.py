"""A kernel with live update, simulated in one process: it refuses, loses and carries what the kernel's own would.

Knows which sessions there are and how to reach the next kernel; what a session does is in ``sessions``, what crosses
the kexec in ``handover_writer`` and ``image``. Nothing here is thread-safe: one owner calls it.
"""

import errno
import os
from collections.abc import Callable, Collection, Sequence
from typing import NoReturn, Self

from persistmem.errors import CorruptError, IncompatibleKernelError, LiveUpdateError
from persistmem.liveupdate.abi import AbiVersions, encode_session_name
from persistmem.liveupdate.available import check_available
from persistmem.liveupdate.handover_reader import Handover, read_handover
from persistmem.liveupdate.handover_writer import write_handover
from persistmem.liveupdate.image import ROOT, Image, ImageWriter
from persistmem.liveupdate.interface import Session
from persistmem.liveupdate.memfds import Inode
from persistmem.liveupdate.sessions import IncomingSession, OutgoingSession, refusing
from persistmem.liveupdate.successor import become

CURRENT_ABI = AbiVersions()
"""What Linux 7.2 and 7.3 speak."""


class SimulatedKernel:
    """The kernel that is booted in this process.

    >>> kernel = SimulatedKernel.fresh("7.3.4")
    >>> with kernel.open_device() as device, device.create_session("documents") as session:
    ...     session.name
    'documents'
    """

    def __init__(self, release: str, abi: AbiVersions, handover: Handover, image: Image | None) -> None:
        """Use :meth:`fresh` or :meth:`boot`."""
        self.release = release
        """What ``uname -r`` would say. The next kernel is not told."""
        self.abi = abi
        self.live_updates = handover.live_updates
        """How many live updates in a row led to this kernel."""
        self.refused: IncompatibleKernelError | CorruptError | None = None
        """Why the last kernel's state was not taken over. In its place a real kernel would have panicked."""
        self._incoming = handover.sessions
        self._retrieved: set[str] = set()
        self._unfinished = set(handover.sessions)
        self._image = image
        self._outgoing: dict[str, OutgoingSession] = {}
        self._owned: set[Inode] = set()
        """Files in a session's hands: preserved, or retrieved and not finished."""
        self._device_is_open = False

    @classmethod
    def fresh(cls, release: str, abi: AbiVersions = CURRENT_ABI) -> Self:
        """A kernel after a cold boot."""
        return cls(release, abi, Handover(0, {}), None)

    @classmethod
    def boot(cls, image_fd: int, release: str, abi: AbiVersions = CURRENT_ABI) -> Self:
        """A kernel after a kexec, which takes over ``image_fd`` and the sessions in it.

        What it cannot read it frees; it then boots empty, and ``refused`` says why.
        """
        os.set_inheritable(image_fd, False)
        try:
            image = Image(image_fd)
            kernel = cls(release, abi, read_handover(image, ROOT, abi), image)
        except (IncompatibleKernelError, CorruptError) as error:
            os.close(image_fd)
            kernel = cls.fresh(release, abi)
            kernel.refused = error
        else:
            kernel._free_image_if_finished()
        return kernel

    def open_device(self) -> "SimulatedDevice":
        """Open ``/dev/liveupdate``. ``EBUSY`` while it is open."""
        if self._device_is_open:
            raise LiveUpdateError(errno.EBUSY, "the live-update device is open already; close it first")
        self._device_is_open = True
        return SimulatedDevice(self)

    def close_device(self) -> None:
        """The device was closed."""
        self._device_is_open = False

    def create_session(self, name: str) -> Session:
        """See :meth:`SimulatedDevice.create_session`."""
        encode_session_name(name)
        if name in self._outgoing:
            raise LiveUpdateError(errno.EEXIST, f"session {name!r} exists already")
        with refusing(f"create session {name!r}"):
            session = OutgoingSession(name, self._owned, lambda: self._outgoing.pop(name))
        self._outgoing[name] = session
        return session

    def retrieve_session(self, name: str) -> Session:
        """See :meth:`SimulatedDevice.retrieve_session`."""
        encode_session_name(name)
        if name in self._retrieved:
            raise LiveUpdateError(errno.EINVAL, f"session {name!r} was retrieved already")
        if name not in self._incoming or self._image is None:
            raise LiveUpdateError(errno.ENOENT, f"no session {name!r} was handed over")
        with refusing(f"retrieve session {name!r}"):
            session = IncomingSession(
                name,
                self._incoming[name],
                image=self._image,
                versions=self.abi,
                owned=self._owned,
                finished=lambda: self._finished(name),
                closed=lambda: self._closed(name),
            )
        self._retrieved.add(name)
        return session

    def kexec(self, command: Callable[[int], Sequence[str]], keep: Collection[int]) -> NoReturn:
        """See :meth:`SimulatedDevice.kexec`."""
        sessions = [session.freeze() for session in self._outgoing.values()]
        needed = sum(session.written_bytes() for session in self._outgoing.values())
        with refusing("kexec"):
            check_available(needed, "the image of the kexec")
            image = ImageWriter()
            try:
                write_handover(image, sessions, self.abi, (self.live_updates + 1) % (1 << 64))
                become(command(image.fd), [*keep, image.fd])
            finally:
                image.close()

    def _finished(self, name: str) -> None:
        self._unfinished.discard(name)
        self._free_image_if_finished()

    def _closed(self, name: str) -> None:
        del self._incoming[name]
        self._retrieved.discard(name)

    def _free_image_if_finished(self) -> None:
        if self._image is not None and not self._unfinished:
            self._image.close()
            self._image = None


class SimulatedDevice:
    """An open live-update device of a simulated kernel."""

    def __init__(self, kernel: SimulatedKernel) -> None:
        self._kernel = kernel
        self._is_open = True

    def create_session(self, name: str) -> Session:
        """A new outgoing session.

        Raises:
            LiveUpdateError: ``EEXIST`` if there is one of that name, ``EINVAL`` if the name is empty, longer than 63
                bytes, or has a NUL.
        """
        self._check_open()
        return self._kernel.create_session(name)

    def retrieve_session(self, name: str) -> Session:
        """The incoming session of that name.

        Raises:
            LiveUpdateError: ``ENOENT`` if none was handed over or it was closed, ``EINVAL`` if it was retrieved.
        """
        self._check_open()
        return self._kernel.retrieve_session(name)

    def kexec(self, command: Callable[[int], Sequence[str]], *, keep: Collection[int] = ()) -> NoReturn:
        """Jump to the next kernel: this process becomes ``command(image_fd)``, and open sessions cross in the image.

        The new program calls :meth:`SimulatedKernel.boot` with the descriptor it was told. Of all others it has only
        standard input, output and error, and those in ``keep``; the environment stays. Flush what must be written
        before. Cost: one copy of every preserved page that was ever written, and memory for that copy.

        Raises:
            LiveUpdateError: it did not happen, and everything is as it was: ``EPERM`` if a memfd's size changed after
                it was preserved, ``ENOMEM``, or why ``command`` could not be started.
        """
        self._check_open()
        self._kernel.kexec(command, keep)

    def close(self) -> None:
        """Close the device; its sessions stay open. Twice is fine."""
        if self._is_open:
            self._is_open = False
            self._kernel.close_device()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if not self._is_open:
            raise LiveUpdateError(errno.EBADF, "the live-update device was closed")
