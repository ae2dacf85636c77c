"""Making the memfds that arenas live in, and checking those that others made. Knows nothing of what is inside."""

import errno
import fcntl
import os
from functools import cache
from typing import Final

from persistmem.arena.layout import check_arena_size
from persistmem.errors import BusyError, CorruptError, SizeError

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


def is_memfd(fd: int) -> bool:
    """Whether it can have seals. Answered at once, whatever it is: not even its file system is asked."""
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True


def check_memfd(fd: int) -> int:
    """The size of a memfd that came from outside, after checking that it cannot change, and that its memory is there.

    Raises:
        CorruptError: it is not a memfd, it is one of huge pages, it lacks a seal, or no arena has its size.
    """
    try:
        # Before fstat(2), which waits for a file system that anybody may have made up.
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise CorruptError(f"expected a memfd, found a file without seals ({error.strerror})") from error
    if seals & SEALS != SEALS:
        raise CorruptError(f"expected a memfd sealed against growing and shrinking, found seals {seals:#x}")
    if seals & _SEALS_AGAINST_WRITING:
        raise CorruptError(f"expected a memfd that can be written and mapped, found seals {seals:#x}")
    found = os.fstat(fd)
    if found.st_dev != _device_of_memfds():
        # A page of hugetlb that the pool does not have is a SIGBUS, and any process can empty the pool.
        raise CorruptError(f"expected a memfd of ordinary pages, found one of {found.st_blksize} bytes each (hugetlb)")
    try:
        return check_arena_size(found.st_size)
    except SizeError as error:
        raise CorruptError(str(error)) from error


@cache
def _device_of_memfds() -> int:
    """Where this kernel has them all, but for those of huge pages."""
    fd = _new_memfd("persistmem:device")
    try:
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)


def reopen(fd: int, flags: int) -> int:
    """Open ``fd``'s file once more: with locks and a position of its own, which a passed or inherited fd shares.

    Raises:
        BusyError: its owner has a lease on it, for which an open(2) that waits would wait 45 seconds.
    """
    try:
        return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC | os.O_NONBLOCK)
    except BlockingIOError as error:
        raise BusyError(
            "a process of the arena's owner has a lease on its memfd (F_SETLEASE); end that process, and try again"
        ) from error
