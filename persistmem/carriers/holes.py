"""What crossing a kexec costs memory: the kernel fills every hole of a memfd that it preserves. Knows no carrier."""

import os
from collections.abc import Iterable

from persistmem.liveupdate.available import check_available


def check_room_for_holes(fds: Iterable[int]) -> None:
    """Raise unless there is memory for the holes of all of these memfds together.

    Each would be refused by itself; but the kernel does not refuse the sum, it kills processes.

    Raises:
        LiveUpdateError: there is not.
    """
    check_available(sum(map(_holes, fds)), "preserving: filling the holes of all arenas")


def _holes(fd: int) -> int:
    status = os.fstat(fd)
    return max(0, status.st_size - status.st_blocks * 512)
