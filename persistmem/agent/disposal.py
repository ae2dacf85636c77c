"""Closes what others gave the agent, where nobody waits for it: in a thread for each user who gave something.

Closing the last descriptor of a socket that lingers, or any of a file on FUSE, takes as long as whoever made it likes
(an hour, seen on 6.18). Knows descriptors; must not know messages.
"""

import os
import threading
from collections import deque
from collections.abc import Iterable
from contextlib import suppress

from persistmem.agent.datagrams import close_all
from persistmem.arena.memfd import is_memfd
from persistmem.threads import start_deaf


class Disposal:
    """Closes descriptors without waiting. Those of one user wait for each other, and for nobody else."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: dict[int, deque[int]] = {}
        """For each uid what is not closed yet; a thread is at it as long as there is a queue."""

    def close(self, uid: int, fds: Iterable[int]) -> None:
        """Close these soon; memfds, which make nobody wait, at once."""
        slow = []
        for fd in fds:
            if is_memfd(fd):
                os.close(fd)
            else:
                slow.append(fd)
        if not slow:
            return
        with self._lock:
            if uid in self._queues:
                self._queues[uid].extend(slow)
                return
            self._queues[uid] = deque(slow)
        try:
            start_deaf(threading.Thread(target=self._run, args=(uid,), name=f"persistmem-close-{uid}", daemon=True))
        except RuntimeError:
            # The system has no thread left for this. To wait for one user is better than to end for all.
            with self._lock:
                close_all(self._queues.pop(uid))

    def pending(self, uid: int) -> int:
        """Return how many descriptors that this user gave are not closed yet."""
        with self._lock:
            return len(self._queues.get(uid, ()))

    def _run(self, uid: int) -> None:
        queue = self._queues[uid]
        while True:
            with self._lock:
                if not queue:
                    del self._queues[uid]
                    return
            with suppress(OSError):  # whatever close(2) says, the descriptor is gone, and its data is not ours
                os.close(queue[0])
            with self._lock:
                queue.popleft()
