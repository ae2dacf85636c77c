"""The moment of the simulated kexec: this process becomes another program, which inherits next to nothing."""

import errno
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NoReturn

_STANDARD = frozenset({0, 1, 2})


def become(command: Sequence[str], inherit: Collection[int]) -> NoReturn:
    """Replace this process by ``command``, which gets standard input, output, error and the ``inherit`` descriptors.

    The environment stays; what Python has not flushed is lost. Returns only by raising the OSError that says why
    ``command`` could not be started, and then every descriptor is as it was.
    """
    before: dict[int, bool] = {}
    wanted = _STANDARD.union(inherit)
    try:
        for fd in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
            inheritable = _is_inheritable(fd)
            if inheritable is not None and inheritable != (fd in wanted):
                before[fd] = inheritable
                os.set_inheritable(fd, not inheritable)
        os.execv(command[0], list(command))  # noqa: S606 - no shell is wanted
    finally:
        for fd, inheritable in before.items():
            os.set_inheritable(fd, inheritable)


def _is_inheritable(fd: int) -> bool | None:
    try:
        return os.get_inheritable(fd)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        return None  # the descriptor that listed the directory
