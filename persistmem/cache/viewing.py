"""Looking at a cache without being one of its processes: takes no lock of the writer's, counts nothing, writes nothing.

Knows the header, the words and the counters of a cache; must not know its records.
"""

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Self

from persistmem.arena import Arena
from persistmem.cache.cache import NAMESPACE_DEFAULT
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
    small_age: float | None
    """Seconds in which the log of what is new turns over at this rate of writing: about as old as what is evicted from
    it without having been read. An estimate, for records do not keep their ages; None if nothing was written."""
    main_age: float | None
    """The same for the log of what was read again: about as old as the oldest there, since it was last moved on."""

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
            small_age=_turnover(before.small, after.small, seconds),
            main_age=_turnover(before.main, after.main, seconds),
        )


class CacheView:
    """A cache, seen from outside."""

    def __init__(self, arena: Arena, namespace: str = NAMESPACE_DEFAULT) -> None:
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
        words = self._words
        stats = read_stats(words, self._geometry, self._fd, self._place)
        return Reading(
            stats=replace(stats, processes=stats.processes - 1),  # this one is none of them
            small=LogReading(words[Word.SMALL_HEAD] - words[Word.SMALL_TAIL], words[Word.SMALL_HEAD]),
            main=LogReading(words[Word.MAIN_HEAD] - words[Word.MAIN_TAIL], words[Word.MAIN_HEAD]),
        )

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


def _turnover(before: LogReading, after: LogReading, seconds: float) -> float | None:
    written = after.written - before.written
    return after.used * seconds / written if written > 0 else None
