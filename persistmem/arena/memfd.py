"""Making the memfds that arenas live in, and checking those that others made. Knows nothing of what is inside."""

import errno
import fcntl
import os
from typing import Final

from persistmem.arena.layout import check_arena_size
from persistmem.errors import CorruptError, SizeError

_MFD_EXEC: Final = 0x10  # include/uapi/linux/memfd.h

SEALS: Final = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
"""What an arena's memfd must be sealed against: a size that changes under a mapping is a SIGBUS."""

_SEALS_AGAINST_WRITING: Final = fcntl.F_SEAL_WRITE | 0x10  # F_SEAL_FUTURE_WRITE, which Python 3.11 does not name


def create_memfd(label: str, size: int) -> int:
    """A new, sealed memfd of ``size`` bytes, which the caller closes. It takes memory as it is written.

    ``label`` is what ``/proc/PID/maps`` shows. ``F_SEAL_SEAL`` is set too: no holder can seal it against writing.

    Raises:
        SizeError: an arena cannot have this size.
    """
    check_arena_size(size)
    fd = _new_memfd(f"persistmem:{label}"[:200])
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _new_memfd(name: str) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        # With vm.memfd_noexec=1 a memfd gets F_SEAL_EXEC otherwise, and a kernel that retrieves such a one seals it
        # against writing (seen on 7.3.4).
        return os.memfd_create(name, flags | _MFD_EXEC)
    except OSError as error:
        # A kernel before 6.3 does not know the flag; vm.memfd_noexec=2 forbids it.
        if error.errno not in (errno.EINVAL, errno.EACCES):
            raise
        return os.memfd_create(name, flags)


def check_memfd(fd: int) -> int:
    """The size of a memfd that came from outside, after checking that it cannot change.

    Raises:
        CorruptError: it is not a memfd, it lacks a seal, or no arena has its size.
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise CorruptError(f"expected a memfd, found a file without seals ({error.strerror})") from error
    if seals & SEALS != SEALS:
        raise CorruptError(f"expected a memfd sealed against growing and shrinking, found seals {seals:#x}")
    if seals & _SEALS_AGAINST_WRITING:
        raise CorruptError(f"expected a memfd that can be written and mapped, found seals {seals:#x}")
    try:
        return check_arena_size(os.fstat(fd).st_size)
    except SizeError as error:
        raise CorruptError(str(error)) from error


def reopen(fd: int, flags: int) -> int:
    """Open ``fd``'s file once more: with locks and a position of its own, which a passed or inherited fd shares."""
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)
