"""Caches in arenas that nobody keeps, a clock that tests turn, and bytes of regions."""

import faulthandler
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from persistmem.arena import Arena
from persistmem.cache import Cache
from persistmem.sizes import KIB
from persistmem.testing import new_arena

PATIENCE = 60
"""Seconds after which a test fails instead of waiting on."""
MISSING = object()


class Clock:
    """Seconds since 1970, as the test says."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@contextmanager
def cache_of(
    size: int = 64 * KIB, *, clock: Callable[[], float] | None = None, timeout: float = 10.0
) -> Iterator[Cache]:
    """A new cache of that many bytes, in an arena with room for as much again."""
    with new_arena(2 * size + 64 * KIB) as arena, open_cache(arena, size, clock=clock, timeout=timeout) as cache:
        yield cache


def open_cache(
    arena: Arena,
    size: int | None = None,
    namespace: str = "cache",
    *,
    clock: Callable[[], float] | None = None,
    timeout: float = 10.0,
) -> Cache:
    """The cache in an arena; as another process has it, with descriptors and counters of its own."""
    if clock is None:
        return Cache(arena, size, namespace=namespace, timeout=timeout)
    return Cache(arena, size, namespace=namespace, timeout=timeout, clock=clock)


@contextmanager
def no_hang(seconds: float = PATIENCE) -> Iterator[None]:
    """End the process, with a traceback, if the block takes longer: nothing else ends a loop that has no end."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
