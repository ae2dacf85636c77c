"""A lock for one key among threads and processes, for whoever computes its value. Knows a place in a file, not keys."""

import os
from typing import Self

from persistmem.arena.locks import lock, try_lock, unlock_all


class KeyLock:
    """An open file description lock on one byte; released when closed, or when the process dies."""

    def __init__(self, fd: int, place: int) -> None:
        """``fd`` is a description of its own, and the lock's to close."""
        self._fd = fd
        self._place = place

    def try_take(self) -> bool:
        """Take it if it is free."""
        return try_lock(self._fd, self._place, 1, exclusive=True)

    def take(self) -> None:
        """Wait for it."""
        lock(self._fd, self._place, 1)

    def close(self) -> None:
        """Give it back if it was taken; a child that was forked meanwhile does not keep it."""
        unlock_all(self._fd)
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
