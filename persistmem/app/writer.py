"""Which process saves an application's state: the one that holds a lock in the arena's memfd, until it ends."""

import os
import time
from typing import Final

from persistmem.arena import Arena
from persistmem.arena.locks import try_lock

_LOCK_AT: Final = 1 << 60
"""The byte that the writer locks: far beyond every arena's end."""
_WAIT_FIRST: Final = 0.001
_WAIT_MAX: Final = 0.1


class WriterClaim:
    """The claim to be the one process that saves. A forked child shares it as long as it keeps the descriptor."""

    def __init__(self, fd: int) -> None:
        """Use :meth:`take`. ``fd`` holds the lock, and is this object's to close."""
        self._fd: int | None = fd

    @classmethod
    def take(cls, arena: Arena, timeout: float) -> "WriterClaim | None":
        """Return the claim, or None if another process has it and does not end within ``timeout`` seconds."""
        fd = arena.descriptor()
        deadline = time.monotonic() + timeout
        wait = _WAIT_FIRST
        while not try_lock(fd, _LOCK_AT, 1, exclusive=True):
            if time.monotonic() >= deadline:
                os.close(fd)
                return None
            time.sleep(wait)
            wait = min(2 * wait, _WAIT_MAX)
        return cls(fd)

    def give_up(self) -> None:
        """Let another process be the writer, or, in a forked child, have no part in it. Twice is fine."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
