"""Looking at a cache without being one of its processes: takes no lock of the writer's, counts nothing, writes nothing.

Knows the header, the words and the counters of a cache; must not know its records.
"""

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Self

from persistmem.arena import Arena
from persistmem.cache.counting import CacheStats, read_stats
from persistmem.cache.layout import (
    HEADER_SIZE,
    ROWS_AFTER_LOCK,
    SIZE_MIN,
    Geometry,
    Word,
    decode_header,
    writer_lock_at,
)
from persistmem.errors import CorruptError, NewerFormatError, NotFoundError


@dataclass(frozen=True, slots=True)
class LogReading:
    """How one of the two logs stands."""

    size: int
    """Bytes."""
    used: int
    """Bytes from its tail to its head."""
    written: int
    """Bytes ever written to it, those that were moved on within it included."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A cache at one moment. What processes write meanwhile may be in some of the numbers and not in others."""

    stats: CacheStats
    small: LogReading
    """The log of what is new."""
    main: LogReading
    """The log of what was read again."""


@dataclass(frozen=True, slots=True)
class Activity:
    """What went on between two readings."""

    seconds: float
    hit_ratio: float | None
    """Of the reads between them; None if there were none."""
    reads: float
    """A second."""
    writes: float
    """Sets and deletes a second."""
    evicted: float
    """Items a second that had to make room."""
    small_turnover: float | None
    """Seconds in which the whole log of what is new is written anew at this rate: about how old an item is that is
    evicted from it. An estimate, for records do not keep their ages; None if nothing was written."""
    main_turnover: float | None
    """The same for the log of what was read again: about how long an item stays there without being read."""

    @classmethod
    def between(cls, before: Reading, after: Reading, seconds: float) -> Self:
        """Compare two readings that were taken ``seconds`` apart."""
        old, new = before.stats, after.stats
        # A process that ends has its counters moved: a reading may meet them twice, or not at all.
        hits, misses = max(0, new.hits - old.hits), max(0, new.misses - old.misses)
        written = max(0, new.sets - old.sets) + max(0, new.deletes - old.deletes)
        return cls(
            seconds=seconds,
            hit_ratio=hits / (hits + misses) if hits + misses else None,
            reads=(hits + misses) / seconds,
            writes=written / seconds,
            evicted=max(0, new.evicted - old.evicted) / seconds,
            small_turnover=_turnover(before.small, after.small, seconds),
            main_turnover=_turnover(before.main, after.main, seconds),
        )


class CacheView:
    """A cache, seen from outside."""

    def __init__(self, arena: Arena, namespace: str) -> None:
        """Open it for looking. Keeps its memory from being reused until it is closed.

        Raises:
            NotFoundError: there is no such region.
            CorruptError: the region is no cache.
            NewerFormatError: it is one of a newer persistmem.
        """
        self._arena = arena
        self._region = arena.region(namespace)
        self._view = self._region.view().toreadonly()
        try:
            self._geometry = _read_geometry(self._view)
        except BaseException:
            self._let_go()
            raise
        self._words = self._view[: len(self._view) & ~7].cast("Q")
        self._place = writer_lock_at(self._region.record.offset) + ROWS_AFTER_LOCK
        self._fd = arena.descriptor()
        self._closed = False

    def read(self) -> Reading:
        """Look at it.

        Raises:
            ClosedError, StaleArenaError: the arena must not be used any more.
        """
        self._arena.check()
        words, geometry = self._words, self._geometry
        stats = read_stats(words, geometry, self._fd, self._place)
        small = _read_log(words[Word.SMALL_HEAD], words[Word.SMALL_TAIL], geometry.small_size)
        main = _read_log(words[Word.MAIN_HEAD], words[Word.MAIN_TAIL], geometry.main_size)
        # The processes are those that have it open for use, of which this is none.
        return Reading(replace(stats, processes=stats.processes - 1, used=small.used + main.used), small, main)

    def close(self) -> None:
        """Let go of it."""
        if not self._closed:
            self._closed = True
            self._words.release()
            self._let_go()
            os.close(self._fd)

    def _let_go(self) -> None:
        self._view.release()
        self._region.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def find_caches(arena: Arena) -> list[str]:
    """Return the regions of an arena that are caches which this persistmem can read, by name."""
    found = []
    for name, size in arena.regions().items():
        if size >= SIZE_MIN:
            with suppress(NotFoundError, CorruptError, NewerFormatError), CacheView(arena, name):
                found.append(name)
    return found


def _read_geometry(view: memoryview) -> Geometry:
    geometry = decode_header(bytes(view[:HEADER_SIZE]), len(view) & ~7) if len(view) >= SIZE_MIN else None
    if geometry is None:
        raise CorruptError("the region is no cache; 'persistmem show' says what is in the arena")
    return geometry


def _read_log(head: int, tail: int, size: int) -> LogReading:
    return LogReading(size, max(0, min(head - tail, size)), head)  # the writer may have moved one of them in between


def _turnover(before: LogReading, after: LogReading, seconds: float) -> float | None:
    written = after.written - before.written
    return after.size * seconds / written if written > 0 else None
