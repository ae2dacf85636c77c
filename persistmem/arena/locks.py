"""Open file description locks on byte ranges of a memfd (``fcntl_locking(2)``). Knows nothing of what the ranges mean.

They belong to the open file description, so the kernel releases them when its last descriptor, or mapping made from it,
is closed: a dead process holds nothing.
"""

import errno
import fcntl
import struct

_OFFSET_MAX = (1 << 63) - 1

# struct flock on 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid
_FLOCK = struct.Struct("@hhqqi4x")


def try_lock(fd: int, start: int, length: int, *, exclusive: bool) -> bool:
    """Lock ``length`` bytes from ``start`` for ``fd``'s description without waiting; False if another is in the way."""
    kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, 0, start, length, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def lock(fd: int, start: int, length: int) -> None:
    """Lock exclusively as :func:`try_lock` does, and wait for that; other threads run meanwhile, and signals end it."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _FLOCK.pack(fcntl.F_WRLCK, 0, start, length, 0))


def conflict(fd: int, start: int, length: int) -> tuple[int, int] | None:
    """Start and end of a lock that keeps ``fd``'s description from locking this range exclusively, or None."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, start, length, 0))
    kind, _, held_start, held_length, _ = _FLOCK.unpack(answer)
    if kind == fcntl.F_UNLCK:
        return None
    return held_start, held_start + held_length if held_length else _OFFSET_MAX  # 0 is "to the end, wherever that is"


def unlock_all(fd: int) -> None:
    """Release every lock of ``fd``'s description, for every descriptor that shares it."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, 0, 0, 0, 0))
