"""What there is to measure, read once: the agent, its arenas, their caches, the last handover. Knows no Prometheus.

Takes no lock that a writer waits for, and reads no more of an arena than its header, its newest commits and the words
in which its caches count.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import median_low
from time import monotonic
from typing import Final

from persistmem.agent.paths import RuntimeDirectory
from persistmem.agent.protocol import Status
from persistmem.agent.records import ArenaRecord, Handover
from persistmem.arena import Arena
from persistmem.arena.commits import Commits
from persistmem.arena.memory import Memory
from persistmem.arena.survey import Usage, survey_usage
from persistmem.cache.counting import CacheStats
from persistmem.cache.viewing import CacheView
from persistmem.errors import CorruptError, Error, NotFoundError
from persistmem.metrics.visit import Visit, VisitEndedError, visit

TIMEOUT: Final = 8.0
"""Seconds that an agent has for all its answers: Prometheus gives up after ten."""

_COUNTERS: Final = "hits", "misses", "sets", "deletes"


@dataclass(frozen=True, slots=True)
class CacheReading:
    """A cache in an arena."""

    name: str
    """Its namespace."""
    stats: CacheStats


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in an arena whose newest commit is sound."""

    usage: Usage
    region_size: int
    """Bytes of all regions."""
    newest: float | None
    """When the last snapshot was taken, in seconds since 1970; None if there is none."""
    caches: tuple[CacheReading, ...]


@dataclass(frozen=True, slots=True)
class ArenaReading:
    """An arena."""

    record: ArenaRecord
    damaged: bool | None
    """Whether header, commit slots or catalogues fail their check; None if nobody can say."""
    contents: Contents | None
    """None if it could not be read."""


@dataclass(frozen=True, slots=True)
class Reading:
    """All of it."""

    status: Status | None
    """None if no agent answers."""
    arenas: tuple[ArenaReading, ...]
    handover: Handover | None
    """The last one."""
    problems: tuple[str, ...]
    """What is damaged or could not be read, and why; each names what it is about."""
    seconds: float
    """How long reading took."""


def read(runtime: RuntimeDirectory, *, timeout: float = TIMEOUT, clock: Callable[[], float] = monotonic) -> Reading:
    """Read everything that the agent of ``runtime`` keeps for this user.

    Starts no agent. Raises nothing: what cannot be read is among the problems.

    Cost: half a millisecond, a third of one for each arena, and half a one for each cache, whatever their sizes.
    """
    began = clock()
    reader = _Reader()
    try:
        if (opened := visit(runtime, clock, timeout)) is not None:
            with opened:
                reader.read(opened)
    except (Error, OSError) as error:
        reader.problems.append(f"agent: {error}")
    return Reading(reader.status, tuple(reader.arenas), reader.handover, tuple(reader.problems), clock() - began)


class _Reader:
    """What was read so far: if the agent ends meanwhile, that is told."""

    def __init__(self) -> None:
        self.status: Status | None = None
        self.handover: Handover | None = None
        self.arenas: list[ArenaReading] = []
        self.problems: list[str] = []

    def read(self, opened: Visit) -> None:
        """Read everything.

        Raises:
            Error: the agent ended, or refused.
        """
        self.status = opened.status()
        if self.status.handovers:
            self.handover = opened.handover(self.status.handovers)
        for record in opened.arenas():
            with suppress(NotFoundError):  # it was dropped meanwhile
                self._read_arena(opened, record)

    def _read_arena(self, opened: Visit, record: ArenaRecord) -> None:
        damaged: bool | None = None
        contents = None
        try:
            record, fd = opened.borrow(record.name)
            try:
                contents, damage = self._look_into(fd, record.name, opened.kernel)
            finally:
                os.close(fd)
            damaged = bool(damage)
            self.problems.extend(f"arena {record.name}: {reason}" for reason in damage)
        except (VisitEndedError, NotFoundError):
            raise
        except CorruptError as error:
            damaged = True
            self.problems.append(f"arena {record.name}: {error}")
        except (Error, OSError) as error:
            self.problems.append(f"arena {record.name}: {error}")
        self.arenas.append(ArenaReading(record, damaged, contents))

    def _look_into(self, fd: int, name: str, kernel: str) -> tuple[Contents, tuple[str, ...]]:
        """Return what is in an arena, and what of it fails its check though there is a sound commit.

        Raises:
            CorruptError, NewerFormatError: it cannot be read at all.
        """
        mapped: list[Memory] = []

        def keep(fd: int, size: int) -> Memory:
            mapped.append(Memory(fd, size))
            return mapped[-1]

        with Arena(fd, kernel=kernel, memory=keep) as arena:
            (memory,) = mapped
            state = Commits(memory).read()
            catalogue = state.newest.catalogue
            newest = max((kept[0].created_ns for kept in catalogue.snapshots.values()), default=None)
            contents = Contents(
                usage=survey_usage(state, memory.size),
                region_size=sum(region.length for region in catalogue.regions.values()),
                newest=None if newest is None else newest / 1e9,
                caches=tuple(self._read_caches(arena, name, catalogue.regions)),
            )
        return contents, state.damage

    def _read_caches(self, arena: Arena, name: str, regions: Iterable[str]) -> Iterator[CacheReading]:
        for region in sorted(regions):
            try:
                with CacheView(arena, region) as view:
                    yield CacheReading(region, _steady([view.read().stats for _ in range(3)]))
            except (NotFoundError, CorruptError):
                continue  # it was removed meanwhile, or it is no cache
            except (Error, OSError) as error:
                self.problems.append(f"cache {name}/{region}: {error}")


def _steady(readings: Sequence[CacheStats]) -> CacheStats:
    """Return the last of three readings, with the middle of what they counted.

    When a process takes over the row of one that is gone, its counts are moved, and one reading may meet them twice or
    not at all. Prometheus would take a counter that goes back for one that began anew.
    """
    counted = {counter: median_low(getattr(stats, counter) for stats in readings) for counter in _COUNTERS}
    return replace(readings[-1], **counted)
