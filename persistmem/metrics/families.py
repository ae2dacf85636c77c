"""Every metric in one table: its name, type, labels, what it means, and where in a reading it is. Knows no exposition.

Names follow Prometheus: base units, _total for counters, _info for facts that are labels. Label values come from memory
that somebody else wrote; whoever exposes them escapes them.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from persistmem.agent.records import ArenaRecord, Handover
from persistmem.cache.counting import CacheStats
from persistmem.metrics.reading import Contents, Reading

Sample = tuple[tuple[str, ...], float]
"""Label values, in the order of the labels, and the value."""

_Number = float | int | None


@dataclass(frozen=True, slots=True)
class Family:
    """One metric."""

    name: str
    """As it is exposed, suffix included."""
    kind: Literal["gauge", "counter", "info"]
    labels: tuple[str, ...]
    help: str
    read: Callable[[Reading], Iterable[Sample]]
    """Its samples; none if nobody can say."""


def _one(read: Callable[[Reading], _Number]) -> Callable[[Reading], Iterator[Sample]]:
    def samples(reading: Reading) -> Iterator[Sample]:
        if (value := read(reading)) is not None:
            yield (), value

    return samples


def _arenas(read: Callable[[ArenaRecord], float]) -> Callable[[Reading], Iterator[Sample]]:
    """Of what the agent says of each arena."""
    return lambda reading: (((arena.record.name,), read(arena.record)) for arena in reading.arenas)


def _contents(read: Callable[[Contents], _Number]) -> Callable[[Reading], Iterator[Sample]]:
    """Of what is in each arena that can be read."""

    def samples(reading: Reading) -> Iterator[Sample]:
        for arena in reading.arenas:
            if arena.contents is not None and (value := read(arena.contents)) is not None:
                yield (arena.record.name,), value

    return samples


def _caches(read: Callable[[CacheStats], float]) -> Callable[[Reading], Iterator[Sample]]:
    return lambda reading: (
        ((arena.record.name, cache.name), read(cache.stats))
        for arena in reading.arenas
        if arena.contents is not None
        for cache in arena.contents.caches
    )


def _agent_info(reading: Reading) -> Iterator[Sample]:
    if reading.status is not None:
        yield (reading.status.carrier, reading.status.kernel), 1


def _arena_info(reading: Reading) -> Iterator[Sample]:
    for record in (arena.record for arena in reading.arenas):
        origin = "created" if record.kernel_from is None else "carried over"
        yield (record.name, str(record.uuid), origin, record.kernel_from or ""), 1


def _damaged(reading: Reading) -> Iterator[Sample]:
    return (((arena.record.name,), arena.damaged) for arena in reading.arenas if arena.damaged is not None)


def _handover_info(reading: Reading) -> Iterator[Sample]:
    if (handover := reading.handover) is not None:
        yield (handover.kernel_from, handover.kernel_to), 1


def _handover(read: Callable[[Handover], _Number]) -> Callable[[Reading], Iterator[Sample]]:
    return _one(lambda reading: None if reading.handover is None else read(reading.handover))


def _handover_parts(reading: Reading) -> Iterator[Sample]:
    """The parts that make up its time: they add up."""
    handover = reading.handover
    if handover is None or handover.left is None:
        return
    yield ("preserve",), handover.preserve
    yield ("kexec",), max(0.0, handover.dark - handover.boot - handover.retrieve)
    yield ("boot",), handover.boot
    yield ("retrieve",), handover.retrieve


def _handover_arenas(reading: Reading) -> Iterator[Sample]:
    if (handover := reading.handover) is not None:
        yield ("memory",), handover.arenas - handover.saved
        yield ("disk",), handover.saved
        yield ("lost",), handover.lost_count


_ARENA: Final = ("arena",)
_CACHE: Final = ("arena", "cache")

FAMILIES: Final = (
    Family(
        "persistmem_agent_up",
        "gauge",
        (),
        "Whether an agent runs and answers, 1 or 0.",
        _one(lambda reading: reading.status is not None),
    ),
    Family(
        "persistmem_agent_info",
        "info",
        ("carrier", "kernel"),
        "What carries the arenas to the next kernel, and the release of this one.",
        _agent_info,
    ),
    Family(
        "persistmem_arenas",
        "gauge",
        (),
        "Arenas of this user that the agent keeps.",
        _one(lambda reading: None if reading.status is None else len(reading.arenas)),
    ),
    Family(
        "persistmem_missing_arenas",
        "gauge",
        (),
        "Arenas that a killed agent kept, and that no process has handed back yet.",
        _one(lambda reading: None if reading.status is None else reading.status.missing),
    ),
    Family(
        "persistmem_arena_info",
        "info",
        ("arena", "uuid", "origin", "kernel_from"),
        "Whether an arena was created in this kernel or carried over, and from which one.",
        _arena_info,
    ),
    Family(
        "persistmem_arena_created_timestamp_seconds",
        "gauge",
        _ARENA,
        "When an arena was made, since 1970.",
        _arenas(lambda record: record.created.timestamp()),
    ),
    Family(
        "persistmem_arena_size_bytes",
        "gauge",
        _ARENA,
        "Size of an arena.",
        _arenas(lambda record: record.size),
    ),
    Family(
        "persistmem_arena_used_bytes",
        "gauge",
        _ARENA,
        "What is in use of an arena: snapshots, regions and their catalogue.",
        _contents(lambda contents: contents.usage.live),
    ),
    Family(
        "persistmem_arena_region_bytes",
        "gauge",
        _ARENA,
        "What regions take of the used bytes. Caches are regions: in use from the beginning, however many items.",
        _contents(lambda contents: contents.region_size),
    ),
    Family(
        "persistmem_arena_reusable_bytes",
        "gauge",
        _ARENA,
        "What only the commit before the newest one points at: given up when room is needed.",
        _contents(lambda contents: contents.usage.reusable),
    ),
    Family(
        "persistmem_arena_snapshots",
        "gauge",
        _ARENA,
        "Snapshots in an arena.",
        _contents(lambda contents: contents.usage.snapshots),
    ),
    Family(
        "persistmem_arena_generations",
        "gauge",
        _ARENA,
        "Generations of all snapshots in an arena.",
        _contents(lambda contents: contents.usage.generations),
    ),
    Family(
        "persistmem_arena_last_snapshot_timestamp_seconds",
        "gauge",
        _ARENA,
        "When the newest generation in an arena was stored, since 1970.",
        _contents(lambda contents: contents.newest),
    ),
    Family(
        "persistmem_arena_damaged",
        "gauge",
        _ARENA,
        "Whether header, commit slots or catalogue of an arena fail their check, 1 or 0. Documents are not read.",
        _damaged,
    ),
    Family(
        "persistmem_cache_hits_total",
        "counter",
        _CACHE,
        "Reads of a cache that found something.",
        _caches(lambda stats: stats.hits),
    ),
    Family(
        "persistmem_cache_misses_total",
        "counter",
        _CACHE,
        "Reads of a cache that found nothing.",
        _caches(lambda stats: stats.misses),
    ),
    Family(
        "persistmem_cache_sets_total",
        "counter",
        _CACHE,
        "Items stored in a cache.",
        _caches(lambda stats: stats.sets),
    ),
    Family(
        "persistmem_cache_deletes_total",
        "counter",
        _CACHE,
        "Items that were removed because somebody said so.",
        _caches(lambda stats: stats.deletes),
    ),
    Family(
        "persistmem_cache_evictions_total",
        "counter",
        _CACHE,
        "Items that had to make room for others.",
        _caches(lambda stats: stats.evicted),
    ),
    Family(
        "persistmem_cache_expirations_total",
        "counter",
        _CACHE,
        "Items whose time was up when their memory was needed.",
        _caches(lambda stats: stats.expired),
    ),
    Family(
        "persistmem_cache_damaged_records_total",
        "counter",
        _CACHE,
        "Records that failed their check; each was a miss.",
        _caches(lambda stats: stats.damaged),
    ),
    Family(
        "persistmem_cache_clears_total",
        "counter",
        _CACHE,
        "How often a cache was cleared.",
        _caches(lambda stats: stats.cleared),
    ),
    Family(
        "persistmem_cache_items",
        "gauge",
        _CACHE,
        "Items in a cache, those included whose time is up.",
        _caches(lambda stats: stats.items),
    ),
    Family(
        "persistmem_cache_slots",
        "gauge",
        _CACHE,
        "Items that the index of a cache has room for.",
        _caches(lambda stats: stats.slots),
    ),
    Family(
        "persistmem_cache_used_bytes",
        "gauge",
        _CACHE,
        "What is in use of a cache's logs, dead records included.",
        _caches(lambda stats: stats.used),
    ),
    Family(
        "persistmem_cache_size_bytes",
        "gauge",
        _CACHE,
        "Size of a cache's logs.",
        _caches(lambda stats: stats.size),
    ),
    Family(
        "persistmem_cache_processes",
        "gauge",
        _CACHE,
        "Processes that have a cache open.",
        _caches(lambda stats: stats.processes),
    ),
    Family(
        "persistmem_handovers_total",
        "counter",
        (),
        "Handovers between kernels that the agent's memory knows of.",
        _one(lambda reading: None if reading.status is None else reading.status.handovers),
    ),
    Family(
        "persistmem_last_handover_info",
        "info",
        ("kernel_from", "kernel_to"),
        "Between which kernels the last handover was.",
        _handover_info,
    ),
    Family(
        "persistmem_last_handover_timestamp_seconds",
        "gauge",
        (),
        "When the last kernel was left, since 1970; nothing if it did not say.",
        _handover(lambda handover: None if handover.left is None else handover.left.timestamp()),
    ),
    Family(
        "persistmem_last_handover_duration_seconds",
        "gauge",
        ("part",),
        "How long the parts of the last handover took: preserve, while arenas were served; kexec, boot and retrieve,"
        " while they were not.",
        _handover_parts,
    ),
    Family(
        "persistmem_last_handover_arenas",
        "gauge",
        ("outcome",),
        "Arenas that came through memory, by the disk, or were lost in the last handover.",
        _handover_arenas,
    ),
    Family(
        "persistmem_last_handover_size_bytes",
        "gauge",
        (),
        "Size of the arenas that arrived in the last handover.",
        _handover(lambda handover: handover.size),
    ),
    Family(
        "persistmem_scrape_duration_seconds",
        "gauge",
        (),
        "How long reading all this took.",
        _one(lambda reading: reading.seconds),
    ),
    Family(
        "persistmem_scrape_errors",
        "gauge",
        (),
        "What was damaged or could not be read this time. The log of 'persistmem metrics' names each.",
        _one(lambda reading: len(reading.problems)),
    ),
)
"""In the order in which they are exposed."""
