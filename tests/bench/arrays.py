"""A 1 GiB numpy array: snapshot against one copy and one hash pass, unchanged, lazy, and with two threads."""

import itertools
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import xxhash

from persistmem import Arena
from persistmem.arena.layout import SLOT_OFFSETS
from persistmem.arena.memfd import create_memfd
from persistmem.arena.memory import Memory
from persistmem.testing import new_arena
from tests.bench.harness import Bound, Row, Sizes, interleave, timed

GROUP = "large array"
MARGIN = 1 << 20
"""Bytes an arena has beyond the arrays in it."""


def make_array(size: int) -> np.ndarray:
    """Random float64 of ``size`` bytes."""
    return np.random.default_rng(1).random(size // 8)


def measure(sizes: Sizes) -> Iterator[Row]:
    """The rows of this group."""
    array = make_array(sizes.array_bytes)
    yield from _fresh(array, sizes.rounds_array)
    yield from _warm(array, sizes.rounds_array)
    yield from _unchanged_and_restored(array, sizes)
    yield _peak(sizes.array_bytes)


def _fresh(array: np.ndarray, rounds: int) -> Iterator[Row]:
    data = array.view("u1").data

    def snapshot() -> float:
        with new_arena(array.nbytes + MARGIN) as arena:
            return timed(lambda: arena.snapshot("array", array))

    def into_new_memfd(copy_and_hash: Callable[[int], None]) -> float:
        fd = os.memfd_create("reference", os.MFD_CLOEXEC)
        os.ftruncate(fd, array.nbytes)
        try:
            return timed(lambda: copy_and_hash(fd))
        finally:
            os.close(fd)

    def written(fd: int) -> None:
        _write_all(fd, data)
        xxhash.xxh3_64_intdigest(data)

    def mapped(fd: int) -> None:
        with mmap.mmap(fd, array.nbytes) as mapping:
            mapping[:] = data
            xxhash.xxh3_64_intdigest(mapping)

    reference = "pwrite + XXH3"
    works = {
        "snapshot": snapshot,
        reference: lambda: into_new_memfd(written),
        "copy through a mapping + XXH3": lambda: into_new_memfd(mapped),
        "pwrite alone": lambda: into_new_memfd(lambda fd: _write_all(fd, data)),
        "XXH3 alone": lambda: timed(lambda: xxhash.xxh3_64_intdigest(data)),
    }
    samples = interleave(works, reference, rounds)
    rate = array.nbytes / samples.median("snapshot") / 2**30
    yield Row(
        GROUP, "snapshot rate / (one copy into a fresh memfd + one hash pass)", 1 / samples.ratio("snapshot"), "x",
        Bound(">=", 0.8), samples.noise(), f"the copy by pwrite, the faster way; {rate:.2f} GiB/s", samples.seconds,
    )  # fmt: skip


def _write_all(fd: int, data: memoryview) -> None:
    at = 0
    while at < len(data):
        at += os.pwrite(fd, data[at:], at)


def _warm(array: np.ndarray, rounds: int) -> Iterator[Row]:
    clock = itertools.count(1)
    memory = mmap.mmap(-1, array.nbytes)
    data = array.view("u1").data

    def reference() -> None:
        memory[:] = data
        xxhash.xxh3_64_intdigest(memory)

    with new_arena(2 * array.nbytes + MARGIN) as arena:

        def changed(at: int) -> float:
            array[at] = next(clock)
            return timed(lambda: arena.snapshot("array", array, keep=1))

        works = {
            "snapshot, changed at the start": lambda: changed(0),
            "snapshot, changed at the end": lambda: changed(-1),
            "copy + XXH3": lambda: timed(reference),
        }
        samples = interleave(works, "copy + XXH3", rounds)
    memory.close()
    for work in ("snapshot, changed at the start", "snapshot, changed at the end"):
        yield Row(
            GROUP, f"{work}, into warm memory: rate / (one copy + one hash pass)", 1 / samples.ratio(work), "x",
            None, samples.noise(), f"{array.nbytes / samples.median(work) / 2**30:.2f} GiB/s", samples.seconds,
        )  # fmt: skip


class CountingMemory(Memory):
    """Remembers where how many bytes were written."""

    def __init__(self, fd: int, size: int) -> None:
        super().__init__(fd, size)
        self.written: list[tuple[int, int]] = []

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self.written.append((offset, len(data)))
        super().write(offset, data)


def _unchanged_and_restored(array: np.ndarray, sizes: Sizes) -> Iterator[Row]:
    kernel = os.uname().release
    memories: list[CountingMemory] = []

    def counting(fd: int, size: int) -> CountingMemory:
        memories.append(CountingMemory(fd, size))
        return memories[-1]

    fd = create_memfd("bench", array.nbytes + MARGIN)
    Arena.format(fd, kernel=kernel)
    with Arena(fd, kernel=kernel, memory=counting) as arena:
        os.close(fd)
        arena.snapshot("array", array)
        yield _unchanged(arena, memories[0], array)
        yield _lazy(arena, sizes.rounds)
        yield _threads(arena, array, sizes.rounds_array)


def _unchanged(arena: Arena, memory: CountingMemory, array: np.ndarray) -> Row:
    memory.written.clear()
    seconds = timed(lambda: arena.snapshot("array", array))
    starts = {piece.offset for piece in arena.pieces() if piece.kind in ("catalogue", "header")}
    starts |= {int(offset) for offset in SLOT_OFFSETS}
    total = sum(length for _, length in memory.written)
    of_array = sum(length for offset, length in memory.written if offset not in starts)
    note = f"{total} with the new catalogue and commit slot; {seconds * 1e3:.0f} ms, most of it hashing"
    return Row(
        GROUP, "the same array again, unchanged: bytes of it written", of_array, "bytes", Bound("<=", 0), None, note
    )


def _lazy(arena: Arena, rounds: int) -> Row:
    def lazy() -> float:
        return timed(lambda: arena.restore("array", copy=False, verify="lazy"))

    samples = interleave({"lazy": lazy}, "lazy", 10 * rounds)
    return Row(
        GROUP, "restore(copy=False, verify='lazy')", samples.median("lazy") * 1e3, "ms", Bound("<", 1),
        samples.noise(), "", samples.seconds,
    )  # fmt: skip


def _threads(arena: Arena, array: np.ndarray, rounds: int) -> Row:
    data = array.view("u1").data
    half = len(data) // 2

    def restore(threads: int) -> float:
        return timed(lambda: arena.restore("array", copy=False, threads=threads))

    def hash_halves() -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(xxhash.xxh3_64_intdigest, (data[:half], data[half:])))

    works = {
        "1 thread": lambda: restore(1),
        "2 threads": lambda: restore(2),
        "XXH3, 1 thread": lambda: timed(lambda: xxhash.xxh3_64_intdigest(data)),
        "XXH3, 2 threads": lambda: timed(hash_halves),
        "restore(copy=True)": lambda: timed(lambda: arena.restore("array")),
    }
    samples = interleave(works, "1 thread", rounds)
    machine = samples.ratio("XXH3, 1 thread", "XXH3, 2 threads")
    return Row(
        GROUP, "restore(copy=False), eager: 2 threads' rate / 1 thread's", samples.ratio("1 thread", "2 threads"), "x",
        Bound(">=", 1.6), samples.noise(),
        f"XXH3 alone, no memory to map: {machine:.2f}; {samples.median('1 thread') * 1e3:.0f} ms -> "
        f"{samples.median('2 threads') * 1e3:.0f} ms", samples.seconds,
    )  # fmt: skip


def _peak(size: int) -> Row:
    """Peak RSS of a process that makes an array and takes a snapshot of it, less what it was after a small one."""
    command = [sys.executable, "-m", "tests.bench.peak", str(size)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    beyond = int(output) / 2**20
    note = "peak RSS of a process, less the array, its place in the arena, and the same with a small array"
    return Row(GROUP, "snapshot: memory beyond array and arena", beyond, "MiB", Bound("<=", 16), None, note)
