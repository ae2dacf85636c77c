"""What a cache counts: each process for itself, in a row of its own, and all together. Knows words and locks."""

import os
from dataclasses import dataclass
from typing import Final, Self

from persistmem.arena.locks import conflict, try_lock
from persistmem.cache.layout import COUNTER_ROWS, COUNTERS, Counter, Geometry, Word
from persistmem.cache.words import Words, count_up


@dataclass(frozen=True, slots=True)
class CacheStats:
    """How a cache is doing, since it was made. Threads count without a lock: a few in a million may be missing."""

    hits: int
    misses: int
    sets: int
    deletes: int
    evicted: int
    """Items that had to make room for others."""
    expired: int
    """Items whose time was up when their memory was needed; those that are only no longer given out do not count."""
    damaged: int
    """Records that failed their check; each was a miss."""
    items: int
    """Items in the cache, those whose time is up included until their memory is needed."""
    slots: int
    """Items that the index can hold."""
    used: int
    """Bytes of the logs that hold records, dead ones included."""
    size: int
    """Bytes of the logs."""
    cleared: int
    """How often it was cleared."""
    processes: int
    """Processes that have it open."""

    @property
    def hit_ratio(self) -> float:
        """Hits of all reads, 0 to 1; 0 if there were none."""
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else 0.0


class CounterRow:
    """A row of counters: the last, which any may use, or one that only this process writes to while it lives."""

    def __init__(self, fd: int, at: int, *, is_shared: bool) -> None:
        """Use :meth:`shared`."""
        self._fd = fd
        self.at = at
        """Word number of its first counter."""
        self.is_shared = is_shared

    @classmethod
    def shared(cls, fd: int, geometry: Geometry) -> Self:
        """The row of those that have none: some counts are lost there.

        ``fd`` is a description of its own, and the row's to close.
        """
        return cls(fd, geometry.counters_at + (COUNTER_ROWS - 1) * COUNTERS, is_shared=True)

    def forget_parent(self, fd: int, geometry: Geometry) -> None:
        """Be a forked child's: the shared row, with ``fd`` in place of the parent's description."""
        os.close(self._fd)
        self._fd = fd
        self.at = geometry.counters_at + (COUNTER_ROWS - 1) * COUNTERS
        self.is_shared = True

    def claim(self, place: int, words: Words, geometry: Geometry) -> None:
        """Be the first free row, if there is one, and keep what a process that is gone has counted there.

        By the one writer. ``place`` is the first of as many lockable bytes as there are rows.
        """
        for number in range(COUNTER_ROWS - 1):
            if try_lock(self._fd, place + number, 1, exclusive=True):
                self.at = geometry.counters_at + number * COUNTERS
                self.is_shared = False
                for counter in Counter.ALL:
                    count_up(words, Word.PAST + counter, words[self.at + counter])
                    words[self.at + counter] = 0
                return

    @property
    def fd(self) -> int:
        """The description that the row's lock belongs to."""
        return self._fd

    def close(self) -> None:
        """Leave the row to others; what was counted stays."""
        os.close(self._fd)


def read_stats(words: Words, geometry: Geometry, fd: int, place: int) -> CacheStats:
    """Add up what all processes have counted; ``fd`` and ``place`` as for :meth:`CounterRow.claim`."""
    rows: Final = range(COUNTER_ROWS)

    def count(counter: int) -> int:
        counted = (words[geometry.counters_at + row * COUNTERS + counter] for row in rows)
        return words[Word.PAST + counter] + sum(counted)

    used = words[Word.SMALL_HEAD] - words[Word.SMALL_TAIL] + words[Word.MAIN_HEAD] - words[Word.MAIN_TAIL]
    return CacheStats(
        hits=count(Counter.HITS),
        misses=count(Counter.MISSES),
        sets=count(Counter.SETS),
        deletes=count(Counter.DELETES),
        evicted=words[Word.EVICTED],
        expired=words[Word.EXPIRED],
        damaged=words[Word.DAMAGED],
        items=min(words[Word.ITEMS], geometry.slots),
        slots=geometry.slots,
        used=used,
        size=geometry.small_size + geometry.main_size,
        cleared=words[Word.GENERATION],
        processes=1 + sum(conflict(fd, place + row, 1) is not None for row in rows),
    )
