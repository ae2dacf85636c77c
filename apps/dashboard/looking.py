"""Looking at the agent, the arenas and what is in them: reads, writes nothing, and holds nothing afterwards.

Knows the library; must not know the web. What cannot be looked at says why, and keeps nothing else from being seen.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from persistmem import Arena, Error, Generation, NotFoundError, Origin, Usage
from persistmem.agent.protocol import Status
from persistmem.agent.records import ArenaRecord, Handover
from persistmem.attachment import agent_status, list_arenas, list_handovers
from persistmem.cache.viewing import CacheView, Reading, find_caches
from persistmem.cli.keeper import open_arena
from persistmem.cli.map import Map, draw

SNAPSHOTS_AT_A_GLANCE: Final = 4
SNAPSHOTS_IN_DETAIL: Final = 200
"""How many snapshots, and regions, of one arena are shown; the rest is counted."""
CACHES_MAX: Final = 20
"""How many caches of one arena are watched."""
MAP_WIDTH: Final = 140
"""Columns, offsets included."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot and what is kept of it."""

    name: str
    generations: tuple[Generation, ...]
    """Newest first."""


@dataclass(frozen=True, slots=True)
class SeenCache:
    """A cache, and how it stood."""

    namespace: str
    reading: Reading


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in an arena."""

    usage: Usage
    snapshots: tuple[Snapshot, ...]
    """The first of them, by name."""
    caches: tuple[SeenCache, ...]


@dataclass(frozen=True, slots=True)
class SeenArena:
    """An arena that the agent keeps."""

    record: ArenaRecord
    contents: Contents | None
    trouble: str = ""
    """Why it cannot be looked into."""


@dataclass(frozen=True, slots=True)
class Picture:
    """Everything at one moment, or nearly."""

    taken: datetime
    agent: Status | None
    arenas: tuple[SeenArena, ...] = ()
    handovers: tuple[Handover, ...] = ()
    """Oldest first."""
    trouble: str = ""
    """Why the agent could not be asked."""

    def find(self, uuid: UUID) -> SeenArena | None:
        """Return the arena that has this identity."""
        return next((arena for arena in self.arenas if arena.record.uuid == uuid), None)

    @property
    def is_simulated(self) -> bool:
        """Whether the kernel that the agent runs on can be upgraded without the machine."""
        return self.agent is not None and "simulated" in self.agent.carrier


@dataclass(frozen=True, slots=True)
class Details:
    """All that one arena shows."""

    contents: Contents
    regions: tuple[tuple[str, int], ...]
    """Names and bytes; the first of them, by name."""
    created: datetime
    created_by: str
    origin: Origin
    huge: int | None
    """Bytes in huge folios; None if the kernel does not say."""
    map: Map


def look(now: Callable[[], datetime]) -> Picture:
    """Look at everything. Costs half a millisecond for each arena, and starts no agent where none ever ran.

    Whatever cannot be had is missing in the picture, with the reason.
    """
    agent = None
    try:
        agent = agent_status()
        arenas = [_look_into(record) for record in list_arenas()] if agent else []
        return Picture(now(), agent, tuple(arenas), tuple(list_handovers()))
    except (Error, OSError) as error:
        return Picture(now(), agent, trouble=str(error))


def look_closely(record: ArenaRecord) -> Details:
    """Look at one arena.

    Raises:
        NotFoundError: it is not there any more.
        CorruptError, NewerFormatError: it cannot be read.
        AgentError: the agent does not answer.
    """
    with open_same(record) as arena:
        regions = arena.regions()
        return Details(
            contents=_contents(arena, SNAPSHOTS_IN_DETAIL),
            regions=tuple(regions.items())[:SNAPSHOTS_IN_DETAIL],
            created=arena.created,
            created_by=arena.created_by,
            origin=arena.origin,
            huge=arena.huge_bytes(),
            map=draw(arena.pieces(), arena.size, MAP_WIDTH),
        )


def open_same(record: ArenaRecord) -> Arena:
    """Attach an arena that was seen; never another that has its name by now.

    Raises:
        NotFoundError: it is not there any more.
        CorruptError, NewerFormatError: it cannot be read.
        AgentError: the agent does not answer.
    """
    with ExitStack() as stack:
        arena = stack.enter_context(open_arena(record.name))
        if arena.uuid != record.uuid:
            raise NotFoundError(f"arena {record.name!r} was removed, and another one has its name now; look at that")
        stack.pop_all()
        return arena


def snapshots_of(arena: Arena, names: Sequence[str]) -> tuple[Snapshot, ...]:
    """Return the snapshots of these names that are there."""
    found = []
    for name in names:
        try:
            found.append(Snapshot(name, tuple(arena.history(name))))
        except NotFoundError:  # removed since it was listed
            continue
    return tuple(found)


def _look_into(record: ArenaRecord) -> SeenArena:
    try:
        with open_same(record) as arena:
            return SeenArena(record, _contents(arena, SNAPSHOTS_AT_A_GLANCE))
    except (Error, OSError) as error:
        return SeenArena(record, None, str(error))


def _contents(arena: Arena, most: int) -> Contents:
    caches = []
    for namespace in find_caches(arena)[:CACHES_MAX]:
        try:
            with CacheView(arena, namespace) as view:
                caches.append(SeenCache(namespace, view.read()))
        except NotFoundError:
            continue
    return Contents(arena.usage(), snapshots_of(arena, arena.snapshots()[:most]), tuple(caches))
