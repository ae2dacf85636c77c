"""The kernel's live-update device, by ioctl: what it hands out, and what its refusals mean here.

Knows the calls, the structs being ``abi``'s; must not know who preserves what. Needs Linux 7.2 or later with
CONFIG_LIVEUPDATE, and root to open the device; a session's descriptor works for whoever has it.
"""

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Final, NoReturn, Self

from persistmem.errors import LiveUpdateError
from persistmem.folios import fill
from persistmem.liveupdate.abi import (
    Ioctl,
    decode_returned_fd,
    decode_returned_name,
    encode_fd_call,
    encode_finish_call,
    encode_name_call,
    encode_session_call,
)
from persistmem.liveupdate.available import check_available
from persistmem.liveupdate.interface import Token

DEVICE: Final = Path("/dev/liveupdate")

_OPEN_REFUSALS: Final = {
    errno.ENOENT: "this kernel was built without CONFIG_LIVEUPDATE, or booted without liveupdate=on or with kho=off",
    errno.EBUSY: "{holders} holds {device}: stop it, or if it is an agent, go through that",
    errno.EACCES: "only root may open it; ask an agent that runs as root",
}
_REFUSALS: Final = {
    Ioctl.CREATE_SESSION: {
        errno.EEXIST: "this kernel has an outgoing session of that name; close it, or choose another name",
    },
    Ioctl.RETRIEVE_SESSION: {
        errno.ENOENT: "the last kernel handed none of that name over, or it was retrieved and closed",
        errno.EINVAL: "it was retrieved already; use the descriptor from then",
    },
    Ioctl.PRESERVE_FD: {
        errno.ENOENT: "it is no memfd of normal pages, and the kernel carries nothing else",
        errno.EBUSY: "a session has it already: preserved, or retrieved from one that is not finished",
        errno.EEXIST: "the token is in use in this session",
        errno.EINVAL: "the session came in from the last kernel, or is on its way out; create one of this kernel",
        errno.EBADF: "there is no such descriptor",
        errno.ENOMEM: "there is no memory to list its folios",
        errno.EOPNOTSUPP: "it has a seal that this kernel cannot carry",
    },
    Ioctl.RETRIEVE_FD: {
        errno.ENOENT: "nothing was preserved under this token, or the session is finished",
        errno.EINVAL: "the session is of this kernel; tokens are retrieved after the kexec",
    },
    Ioctl.FINISH: {
        errno.EINVAL: "the session is of this kernel; it is finished after the kexec, or closed to give it up",
    },
    Ioctl.GET_NAME: {},
}
_UNKNOWN_CALL: Final = "this is no live-update device or session, or its kernel, older than 7.2, lacks the call"


class KernelSession:
    """A session of the kernel's own; outgoing or incoming. Closing it has consequences: see :meth:`close`."""

    def __init__(self, fd: int, name: str) -> None:
        """Use :meth:`KernelDevice.create_session` or :meth:`KernelDevice.retrieve_session`."""
        self._fd: int | None = fd
        self._name = name

    @property
    def name(self) -> str:
        """The session's name, as the kernel has it. LiveUpdateError ``ENOTTY`` on kernels before 7.2."""
        answer = encode_name_call()
        _call(self.fileno(), Ioctl.GET_NAME, answer, f"session {self._name!r}: get its name")
        return decode_returned_name(answer)

    def fileno(self) -> int:
        """The session's own descriptor. ``EBADF`` if it was closed."""
        if self._fd is None:
            raise LiveUpdateError(errno.EBADF, f"session {self._name!r} was closed")
        return self._fd

    def preserve(self, fd: int, token: Token) -> None:
        """Let ``fd`` cross the next kexec under ``token``: fills its holes, freezes its size, notes its seals.

        Cost: one step for each folio; 50 times cheaper where they are huge.

        Raises:
            LiveUpdateError: as in :class:`persistmem.liveupdate.interface.Session`, and ``ENOMEM``.
        """
        what = f"session {self._name!r}: preserve descriptor {fd} under token {token}"
        _fill_holes(fd, what)
        _call(self.fileno(), Ioctl.PRESERVE_FD, encode_fd_call(token, fd), what)

    def retrieve(self, token: Token) -> int:
        """A new descriptor of the memfd, ``FD_CLOEXEC`` set, the same open file each time.

        Cost: the first time, one step for each folio.

        Raises:
            LiveUpdateError: as in :class:`persistmem.liveupdate.interface.Session`, and ``ENOMEM``.
        """
        answer = encode_fd_call(token)
        _call(self.fileno(), Ioctl.RETRIEVE_FD, answer, f"session {self._name!r}: retrieve token {token}")
        fd = decode_returned_fd(answer)
        os.set_inheritable(fd, False)  # Linux 7.2.13 and 7.3.4 do so themselves; their documentation leaves it to us.
        return fd

    def finish(self) -> None:
        """Take what was retrieved out of the kernel's hands, and free what was not. Incoming only; twice is fine."""
        _call(self.fileno(), Ioctl.FINISH, encode_finish_call(), f"session {self._name!r}: finish")

    def close(self) -> None:
        """Close it; twice is fine. Outgoing: unpreserves everything. Incoming: finishes it.

        That is so once no process has a descriptor of it any more: a copy, or a forked child, keeps it open.
        """
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class KernelDevice:
    """``/dev/liveupdate``, open; no other process can open it meanwhile."""

    def __init__(self, path: Path = DEVICE) -> None:
        """Open the device.

        Raises:
            LiveUpdateError: ``ENOENT`` on a kernel without live update, ``EBUSY`` while it is open elsewhere,
                ``EACCES`` for all but root.
        """
        try:
            self._fd: int | None = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            meaning = _OPEN_REFUSALS.get(error.errno or 0, "").format(device=path, holders=_named(holders(path)))
            raise _refusal(error, f"open {path}", meaning) from error

    def create_session(self, name: str) -> KernelSession:
        """A new outgoing session.

        Raises:
            LiveUpdateError: ``EEXIST`` if there is one of that name, ``EINVAL`` if the name is empty, longer than 63
                bytes, or has a NUL.
        """
        return self._session(Ioctl.CREATE_SESSION, name, f"create session {name!r}")

    def retrieve_session(self, name: str) -> KernelSession:
        """The incoming session of that name.

        Raises:
            LiveUpdateError: ``ENOENT`` if none was handed over, ``EINVAL`` if it was retrieved.
        """
        return self._session(Ioctl.RETRIEVE_SESSION, name, f"retrieve session {name!r}")

    def close(self) -> None:
        """Close the device; its sessions stay open. Twice is fine."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _session(self, request: Ioctl, name: str, what: str) -> KernelSession:
        if self._fd is None:
            raise LiveUpdateError(errno.EBADF, f"{what}: the live-update device was closed")
        answer = encode_session_call(name)
        _call(self._fd, request, answer, what)
        return KernelSession(decode_returned_fd(answer), name)


class AbsentDevice:
    """The live-update device of a kernel that has none: nothing was handed over, and nothing can be."""

    def __init__(self, why: LiveUpdateError) -> None:
        """``why`` there is none is what every call raises: an ``ENOENT``."""
        self._why = why

    def create_session(self, name: str) -> NoReturn:
        """Raise."""
        raise LiveUpdateError(self._why.errno, f"create session {name!r}: {self._why.strerror}")

    def retrieve_session(self, name: str) -> NoReturn:
        """Raise."""
        raise LiveUpdateError(self._why.errno, f"retrieve session {name!r}: {self._why.strerror}")

    def close(self) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


def holders(device: Path = DEVICE) -> list[int]:
    """Ids of the processes that have the device open, in order; to anyone but root, only one's own show theirs."""
    return sorted(int(process.name) for process in Path("/proc").glob("[0-9]*") if _holds(process, device))


def _holds(process: Path, device: Path) -> bool:
    try:
        return any(str(descriptor.readlink()) == str(device) for descriptor in (process / "fd").iterdir())
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False  # it ended, or closed something, just now; or it is another user's


def _named(processes: list[int]) -> str:
    if not processes:
        return "another process"
    return "this process" if os.getpid() in processes else f"process {processes[0]}"


def _fill_holes(fd: int, what: str) -> None:
    """Fill holes before the kernel does, which would drive the machine out of memory, and take small folios."""
    try:
        status = os.fstat(fd)
    except OSError as error:
        raise _refusal(error, what, _REFUSALS[Ioctl.PRESERVE_FD].get(error.errno or 0, "")) from error
    check_available(status.st_size - status.st_blocks * 512, f"{what}: filling its holes")
    if stat.S_ISREG(status.st_mode):
        try:
            fill(fd)
        except OSError as error:
            raise _refusal(error, f"{what}: filling its holes", "") from error


def _call(fd: int, request: Ioctl, argument: bytearray, what: str) -> None:
    try:
        fcntl.ioctl(fd, request, argument)
    except OSError as error:
        meaning = _UNKNOWN_CALL if error.errno == errno.ENOTTY else _REFUSALS[request].get(error.errno or 0, "")
        raise _refusal(error, what, meaning) from error


def _refusal(error: OSError, what: str, meaning: str) -> LiveUpdateError:
    name = errno.errorcode.get(error.errno or 0, "unknown")
    return LiveUpdateError(error.errno, f"{what}: {error.strerror} ({name})" + (f": {meaning}" if meaning else ""))
