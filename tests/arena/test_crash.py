"""A writer that is killed between any two stores, or within one, leaves the state before its operation: whole."""

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import pytest

from persistmem.arena import Arena
from persistmem.arena.memfd import create_memfd
from persistmem.errors import CorruptError
from persistmem.sizes import KIB
from tests.descriptors import open_descriptors

from .recording import RecordingMemory, Store, replay, torn
from .support import KERNEL, START_NS, UUID_FIXED, Contents, arena_of, bytes_of, contents, new_memfd, open_arena

Operation = Callable[[Arena], object]


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def nothing(arena: Arena) -> None: ...


def two_snapshots(arena: Arena) -> None:
    arena.snapshot("carts", {"ada": [1, 2, 3], "big": noise(1, 4100)})
    arena.snapshot("carts", {"ada": [1, 2, 3, 4], "big": noise(1, 4100)})
    arena.snapshot("users", {"ada": (36, "London")})


def two_snapshots_and_a_region(arena: Arena) -> None:
    two_snapshots(arena)
    write_region(arena, "ring", noise(2, 5000))


def dirty_and_free(arena: Arena) -> None:
    """Room is free again everywhere, and full of what was there before."""
    for seed in range(3):
        arena.snapshot("old", noise(seed, 18_000), keep=1)
    arena.remove("old")
    two_snapshots(arena)


def nearly_full(arena: Arena) -> None:
    """The older catalogue's buffer is in the way of a third one."""
    arena.snapshot("state", noise(1, 20_400), keep=1)
    arena.snapshot("state", noise(2, 20_400), keep=1)


def write_region(arena: Arena, name: str, data: bytes) -> None:
    with arena.region(name, len(data)) as region, region.view() as view:
        view[:] = data


OPERATIONS: dict[str, tuple[Operation, Operation]] = {
    "first snapshot": (nothing, lambda arena: arena.snapshot("users", {"ada": (36, "London")})),
    "first snapshot with large buffers": (
        nothing,
        lambda arena: arena.snapshot("images", [noise(7, 4096), "between", noise(8, 4097)]),
    ),
    "another snapshot": (two_snapshots, lambda arena: arena.snapshot("new", {"x": 2**70})),
    "replace with another buffer": (
        two_snapshots,
        lambda arena: arena.snapshot("carts", {"ada": [], "big": noise(3, 4100)}),
    ),
    "replace and share the buffer": (
        two_snapshots,
        lambda arena: arena.snapshot("carts", {"ada": [5], "big": noise(1, 4100), "twice": noise(1, 4100)}),
    ),
    "replace and keep one": (two_snapshots, lambda arena: arena.snapshot("carts", "only", keep=1)),
    "replace over what was there": (dirty_and_free, lambda arena: arena.snapshot("carts", noise(4, 4200))),
    "remove": (two_snapshots, lambda arena: arena.remove("carts")),
    "create a region": (two_snapshots, lambda arena: arena.region("ring", 4500).close()),
    "create a region over what was there": (dirty_and_free, lambda arena: arena.region("ring", 20_000).close()),
    "grow a region": (two_snapshots_and_a_region, lambda arena: arena.resize_region("ring", 9000)),
    "shrink a region": (two_snapshots_and_a_region, lambda arena: arena.resize_region("ring", 100)),
    "remove a region": (two_snapshots_and_a_region, lambda arena: arena.remove("ring")),
    "snapshot out of room, giving up the older catalogue": (
        nearly_full,
        lambda arena: arena.snapshot("state", noise(3, 20_400), keep=1),
    ),
}


@dataclass(frozen=True, slots=True)
class Recorded:
    base: bytes
    old: Contents
    stores: list[Store]
    final: bytes
    new: Contents


def record(prepare: Operation, operate: Operation) -> Recorded:
    """Run ``prepare`` unseen, then ``operate`` with every store recorded."""
    with arena_of() as (fd, arena):
        prepare(arena)
        base, old = bytes_of(fd), contents(arena)
        with open_arena(fd, RecordingMemory) as recorded:
            operate(recorded)
            stores = cast("RecordingMemory", recorded._memory).stores
        return Recorded(base, old, stores, bytes_of(fd), contents(arena))


@pytest.fixture
def scratch() -> Iterator[int]:
    fd = create_memfd("tests", 64 * KIB)
    yield fd
    os.close(fd)


def recovered(fd: int) -> Contents:
    with open_arena(fd) as arena:
        assert arena.verify().ok
        return contents(arena)


def check_writable(fd: int, expected: Contents) -> None:
    """After the crash the arena can be written again, and what was there is still there."""
    with open_arena(fd) as arena:
        arena.snapshot("after", "the crash")
        assert contents(arena) == {**expected, "after generation 1": "the crash"}
        arena.remove("after")
        assert contents(arena) == expected


@pytest.mark.parametrize("name", OPERATIONS)
def test_crash_at_any_store_leaves_the_old_state_until_the_last_one(name: str, scratch: int) -> None:
    recorded = record(*OPERATIONS[name])
    replay(scratch, recorded.base, recorded.stores)
    assert bytes_of(scratch) == recorded.final, "the recording misses a store"
    assert recorded.old != recorded.new

    for count in range(len(recorded.stores) + 1):
        replay(scratch, recorded.base, recorded.stores[:count])
        expected = recorded.new if count == len(recorded.stores) else recorded.old
        assert recovered(scratch) == expected, f"after {count} of {len(recorded.stores)} stores"
        check_writable(scratch, expected)


@pytest.mark.parametrize("name", OPERATIONS)
def test_crash_within_any_store_leaves_the_old_state(name: str, scratch: int) -> None:
    recorded = record(*OPERATIONS[name])
    rng = random.Random(name)
    for count, store in enumerate(recorded.stores):
        if store.atomic:
            continue
        replay(scratch, recorded.base, recorded.stores[:count])
        before = os.pread(scratch, len(store.data), store.offset)
        for variant, half_written in enumerate(torn(before, store.data, rng)):
            os.pwrite(scratch, half_written, store.offset)
            assert recovered(scratch) == recorded.old, f"store {count} torn as variant {variant}"
        check_writable(scratch, recorded.old)


def test_publishing_is_one_aligned_store_of_eight_bytes() -> None:
    for prepare, operate in OPERATIONS.values():
        last = record(prepare, operate).stores[-1]
        assert last.atomic
        assert last.offset % 8 == 0
        assert last.offset in (256 + 56, 320 + 56)


def test_nothing_that_either_commit_points_at_is_written() -> None:
    for prepare, operate in OPERATIONS.values():
        recorded = record(prepare, operate)
        with arena_of() as (_, arena):
            prepare(arena)
            published = [piece for piece in arena.pieces() if piece.kind not in ("header", "free")]
        gave_up_older = sum(store.atomic for store in recorded.stores) > 2
        kept = [piece for piece in published if not (gave_up_older and piece.kind == "reusable")]
        for store in recorded.stores:
            for piece in kept:
                end = store.offset + len(store.data)
                assert end <= piece.offset or piece.offset + piece.length <= store.offset, (store.offset, piece)


@pytest.mark.parametrize("name", ["replace with another buffer", "snapshot out of room, giving up the older catalogue"])
def test_crash_after_crash_after_crash_leaves_the_old_state(name: str, scratch: int) -> None:
    prepare, operate = OPERATIONS[name]
    first = record(prepare, operate)
    for count in range(len(first.stores)):
        replay(scratch, first.base, first.stores[:count])
        base = bytes_of(scratch)
        with open_arena(scratch, RecordingMemory) as arena:
            operate(arena)
            stores = cast("RecordingMemory", arena._memory).stores
        for again in range(len(stores)):
            replay(scratch, base, stores[:again])
            assert recovered(scratch) == first.old
            with open_arena(scratch) as arena:
                operate(arena)
            assert recovered(scratch).keys() == first.new.keys()


def test_failed_snapshot_out_of_room_leaves_the_old_state_at_every_store(scratch: int) -> None:
    def too_large(arena: Arena) -> None:
        with pytest.raises(OSError, match="full"):
            arena.snapshot("state", noise(3, 61_000), keep=1)

    recorded = record(nearly_full, too_large)
    assert recorded.old == recorded.new
    for count in range(len(recorded.stores) + 1):
        replay(scratch, recorded.base, recorded.stores[:count])
        assert recovered(scratch) == recorded.old
        check_writable(scratch, recorded.old)


def test_crash_while_an_arena_is_made_leaves_no_arena_or_an_empty_one(scratch: int) -> None:
    made: list[RecordingMemory] = []

    def recording(fd: int, size: int) -> RecordingMemory:
        made.append(RecordingMemory(fd, size))
        return made[-1]

    Arena.format(scratch, kernel=KERNEL, clock=lambda: START_NS, new_uuid=lambda: UUID_FIXED, memory=recording)
    stores, empty = made[0].stores, bytes(64 * KIB)
    for count in range(len(stores)):
        replay(scratch, empty, stores[:count])
        before = os.pread(scratch, len(stores[count].data), stores[count].offset)
        for half_written in (before, *torn(before, stores[count].data, random.Random(count))):
            os.pwrite(scratch, half_written, stores[count].offset)
            try:
                assert recovered(scratch) == {}
            except CorruptError:
                continue
    replay(scratch, empty, stores)
    assert recovered(scratch) == {}


def test_leak_of_descriptors_after_crashes_is_none() -> None:
    before = open_descriptors()
    for _ in range(3):
        record(two_snapshots, lambda arena: arena.snapshot("carts", noise(9, 9000)))
    fd = new_memfd()
    os.close(fd)
    assert open_descriptors() == before
