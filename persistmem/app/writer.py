"""Which process saves an application's state: the one that holds a lock in the arena's memfd, until it ends."""

import os
import time
from typing import Final

from persistmem.arena import Arena
from persistmem.arena.locks import try_lock, unlock_all

_LOCK_AT: Final = 1 << 60
"""The byte that the writer locks: far beyond every arena's end."""
_WAIT_FIRST: Final = 0.001
_WAIT_MAX: Final = 0.1


class WriterClaim:
    """The claim to be the one process that saves. A forked child shares it as long as it keeps the descriptor."""

    def __init__(self, arena: Arena) -> None:
        """Claim nothing yet; see :meth:`take`."""
        self.arena = arena
        self.held = False
        """Whether this process is the writer."""
        self._fd: int | None = arena.descriptor()

    def take(self, timeout: float) -> bool:
        """Be the writer, and return whether that is so: another process may be, and not end within ``timeout`` s."""
        if self._fd is None:
            return False
        deadline = time.monotonic() + timeout
        wait = _WAIT_FIRST
        while not try_lock(self._fd, _LOCK_AT, 1, exclusive=True):
            if time.monotonic() >= deadline:
                return False
            time.sleep(wait)
            wait = min(2 * wait, _WAIT_MAX)
        self.held = True
        return True

    def put_back(self) -> None:
        """Let another process be the writer, until it is taken again."""
        if self._fd is not None:
            unlock_all(self._fd)
        self.held = False

    def give_up(self) -> None:
        """Let another process be the writer, for good; or, in a forked child, have no part in it. Twice is fine."""
        if self._fd is not None:
            os.close(self._fd)
        self._fd = None
        self.held = False
