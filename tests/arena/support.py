"""Arenas with a fixed kernel and clock, children that can be killed, and what an arena says it holds."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from multiprocessing.context import ForkProcess
from uuid import UUID

from persistmem.arena import Arena
from persistmem.arena.memfd import create_memfd
from persistmem.arena.memory import Memory
from persistmem.sizes import KIB

KERNEL = "7.3.4-test"
UUID_FIXED = UUID("00112233-4455-6677-8899-aabbccddeeff")
START_NS = 1_700_000_000_000_000_000

Contents = dict[str, object]
"""Every generation of every snapshot, and the bytes of every region."""


def ticking_clock() -> Callable[[], int]:
    """A clock that moves one second at each look."""
    ticks = count(START_NS, 10**9)
    return lambda: next(ticks)


def new_memfd(size: int = 64 * KIB) -> int:
    """A memfd with an empty arena, always with the same bytes."""
    fd = create_memfd("tests", size)
    Arena.format(fd, kernel=KERNEL, clock=lambda: START_NS, new_uuid=lambda: UUID_FIXED)
    return fd


def open_arena(fd: int, memory: Callable[[int, int], Memory] = Memory) -> Arena:
    """The arena in ``fd``."""
    return Arena(fd, kernel=KERNEL, clock=ticking_clock(), memory=memory)


@contextmanager
def arena_of(size: int = 64 * KIB) -> Iterator[tuple[int, Arena]]:
    """A new arena and the descriptor it is in."""
    fd = new_memfd(size)
    try:
        with open_arena(fd) as arena:
            yield fd, arena
    finally:
        os.close(fd)


def bytes_of(fd: int) -> bytes:
    """Everything in a memfd."""
    return os.pread(fd, os.fstat(fd).st_size, 0)


def contents(arena: Arena) -> Contents:
    """All that the arena holds, read as a user reads it."""
    held: Contents = {
        f"{name} generation {generation.number}": arena.restore(name, generation=generation.number)
        for name in arena.snapshots()
        for generation in arena.history(name)
    }
    for name in arena.regions():
        with arena.region(name) as region:
            held[f"region {name}"] = bytes(region.view())
    return held


_FORK = multiprocessing.get_context("fork")


@contextmanager
def child(target: Callable[..., None], *arguments: object) -> Iterator[ForkProcess]:
    """A forked process that runs ``target``; killed at the end if it still runs."""
    process = _FORK.Process(target=target, args=arguments)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()
        process.close()


pipe = _FORK.Pipe
