"""Getting ready to search: from the arena if the index is there, else by building it and keeping it there."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, cast

from apps.cities.index import FORMAT, Index, build_index
from apps.cities.search import CitySearch
from persistmem import Origin, attach

ARENA: Final = "cities"
SNAPSHOT: Final = "index"
ARENA_SIZE: Final = "96MiB"
"""Room for a few generations of the index, which has 23 MiB."""


@dataclass(frozen=True, slots=True)
class Start:
    """How a start went."""

    search: CitySearch
    origin: Origin
    """How the arena came to this process."""
    ready: float
    """When it could answer, in seconds by ``CLOCK_MONOTONIC``, which all processes share."""
    steps: dict[str, float]
    """What was done, and how many seconds it took, in order. "restore" is among them, or "build"."""


def start() -> Start:
    """Attach the arena, and restore or build the index: milliseconds, or seconds."""
    steps: dict[str, float] = {}

    @contextmanager
    def step(name: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        steps[name] = time.monotonic() - begun

    with step("attach"):
        arena = attach(ARENA, size=ARENA_SIZE)
    with step("restore"):
        index = cast("Index | None", arena.restore(SNAPSHOT, default=None, copy=False))
    if index is not None and index["format"] == FORMAT:
        return Start(CitySearch(index), arena.origin, time.monotonic(), steps)
    del steps["restore"]
    with step("read the gazetteer"):
        from apps.cities.gazetteer import load_cities  # noqa: PLC0415 - a warm start does without

        cities = load_cities()
    with step("build"):
        index = build_index(cities)
    ready = time.monotonic()
    with step("snapshot"):
        arena.snapshot(SNAPSHOT, index)
    return Start(CitySearch(index), arena.origin, ready, steps)
