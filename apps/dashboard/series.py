"""What caches did over time: their readings, looked at again and again, as hit ratios and rates. Bounded; no I/O."""

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import UUID

from persistmem.cache.viewing import Activity, Reading

SAMPLES_MAX: Final = 300
"""Samples that are kept of a cache."""


class CacheKey(NamedTuple):
    """Which cache: the arena's identity outlives its kernel, and no name is used twice by mistake."""

    arena: UUID
    namespace: str


@dataclass(frozen=True, slots=True)
class Sample:
    """What a cache did since the look before."""

    at: float
    """Seconds since 1970."""
    activity: Activity


@dataclass(slots=True)
class _Watched:
    last: Reading
    last_seen: float
    samples: deque[Sample]


class Series:
    """The last samples of every cache. Safe to use from several threads."""

    def __init__(self, shortest: float) -> None:
        """Take samples of at least ``shortest`` seconds: a rate of much less says nothing."""
        self._shortest = shortest
        self._caches: dict[CacheKey, _Watched] = {}
        self._lock = threading.Lock()

    def add(self, readings: Iterable[tuple[CacheKey, Reading]], *, at: float, monotonic: float, keep: float) -> None:
        """Take in one look.

        Args:
            readings: of all caches that there are now.
            at: seconds since 1970, for people.
            monotonic: seconds by a clock that is never set, to divide by.
            keep: seconds for which a cache that is not there is remembered: it may be on its way to another kernel.
        """
        with self._lock:
            for key, reading in readings:
                watched = self._caches.get(key)
                if watched is None:
                    self._caches[key] = _Watched(reading, monotonic, deque(maxlen=SAMPLES_MAX))
                elif monotonic - watched.last_seen >= self._shortest:
                    activity = Activity.between(watched.last, reading, monotonic - watched.last_seen)
                    watched.samples.append(Sample(at, activity))
                    watched.last, watched.last_seen = reading, monotonic
            for key in [key for key, watched in self._caches.items() if monotonic - watched.last_seen > keep]:
                del self._caches[key]

    def of(self, key: CacheKey) -> tuple[Sample, ...]:
        """Return the samples of a cache, oldest first; none if it was seen once, or never."""
        with self._lock:
            watched = self._caches.get(key)
            return tuple(watched.samples) if watched is not None else ()
