"""A full arena says so, stays as it was, and can be emptied; unchanged buffers take no room."""

import random

import numpy as np
import pytest

from persistmem.arena import Arena
from persistmem.errors import ArenaFullError

from .recording import RecordingMemory
from .support import arena_of, contents, open_arena


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def test_full_arena_says_what_is_needed_free_and_who_holds_the_rest_and_stays_as_it_was() -> None:
    with arena_of() as (_, arena):
        arena.snapshot("models", noise(1, 20_000))
        arena.region("ring", 12_000).close()
        before, history = contents(arena), arena.history("models")
        for refused in (
            lambda: arena.snapshot("models", noise(2, 40_000)),
            lambda: arena.snapshot("new", noise(2, 40_000)),
            lambda: arena.region("new", 40_000),
            lambda: arena.resize_region("ring", 40_000),
        ):
            with pytest.raises(ArenaFullError) as caught:
                refused()
            message = str(caught.value)
            assert "39.1 KiB needed" in message
            assert "KiB free of 64 KiB" in message
            assert "models 19.5 KiB" in message
            assert "ring 11.7 KiB" in message
            assert "Nothing was changed" in message
            assert isinstance(caught.value, OSError)
            assert contents(arena) == before
            assert arena.history("models") == history
        assert arena.verify().ok


def fill(arena: Arena) -> int:
    """Take snapshots until not even the smallest fits."""
    count = 0
    for length in (3000, 300, 30, 0):
        while True:
            try:
                arena.snapshot(f"s{count}", noise(count, length))
            except ArenaFullError:
                break
            count += 1
    return count


def test_arena_that_is_full_to_the_brim_can_be_emptied_one_by_one() -> None:
    for reverse in (False, True):
        with arena_of() as (_, arena):
            count = fill(arena)
            assert count > 15
            before = contents(arena)
            for name in sorted(arena.snapshots(), reverse=reverse):
                arena.remove(name)
                del before[f"{name} generation 1"]
                assert contents(arena) == before
            assert arena.snapshots() == []
            assert arena.snapshot("large", noise(1, 50_000)).number == 1


def test_room_that_was_given_up_can_be_used_again_for_ever() -> None:
    with arena_of() as (_, arena):
        for number in range(1, 300):
            length = random.Random(number).randrange(1, 19_000)
            assert arena.snapshot("state", noise(number, length), keep=1).number == number
            assert arena.restore("state") == noise(number, length)


def test_keep_says_how_many_generations_there_are() -> None:
    with arena_of() as (_, arena):
        for keep, numbers in ((1, [1]), (2, [2, 1]), (3, [3, 2, 1]), (3, [4, 3, 2]), (2, [5, 4]), (1, [6])):
            arena.snapshot("state", numbers[0], keep=keep)
            assert [generation.number for generation in arena.history("state")] == numbers
            assert [arena.restore("state", generation=number) for number in numbers] == numbers


def written(arena: Arena) -> int:
    memory = arena._memory
    assert isinstance(memory, RecordingMemory)
    count = sum(len(store.data) for store in memory.stores)
    memory.stores.clear()
    return count


def test_unchanged_buffers_are_not_written_again() -> None:
    large = 3 << 20
    with arena_of(16 << 20) as (fd, _), open_arena(fd, RecordingMemory) as arena:
        state = {"model": noise(1, large), "matrix": np.frombuffer(noise(2, large), "f8"), "count": 1}
        arena.snapshot("state", state)
        assert written(arena) > 2 * large
        live = arena.usage().live
        arena.snapshot("state", {**state, "count": 2}, keep=5)
        arena.snapshot("elsewhere", [state["model"]])
        assert written(arena) < 2000
        assert arena.usage().live < live + 2000
        assert arena.restore("state", generation=1)["count"] == 1
        assert arena.restore("state")["count"] == 2

        one_more = noise(1, large)[:-1] + b"!"
        arena.snapshot("state", {**state, "model": one_more}, keep=5)
        assert large < written(arena) < large + 2000
        assert arena.restore("state")["model"] == one_more
        assert arena.restore("elsewhere") == [state["model"]]


def test_buffer_that_comes_twice_in_a_document_is_kept_once() -> None:
    with arena_of(1 << 20) as (_, arena):
        buffer = noise(1, 300_000)
        arena.snapshot("state", [buffer, {"again": bytearray(buffer)}, np.frombuffer(buffer, "u1")])
        assert arena.usage().live < 310_000
        found = arena.restore("state")
        assert found[0] == found[1]["again"] == found[2].tobytes() == buffer


def test_pieces_cover_the_arena_without_gap_or_overlap_and_add_up() -> None:
    with arena_of() as (_, arena):
        arena.snapshot("a", noise(1, 5000))
        arena.snapshot("a", [noise(1, 5000), 2])
        arena.region("r", 700).close()
        end = 0
        for piece in arena.pieces():
            assert end <= piece.offset < end + 64
            end = piece.offset + piece.length
        assert end == arena.size
        (shared,) = [piece for piece in arena.pieces() if piece.kind == "buffer"]
        assert shared.generations == (2, 1)
        usage = arena.usage()
        assert usage.live + usage.reusable + usage.free == arena.size - 4096
        assert (usage.snapshots, usage.generations, usage.regions) == (1, 2, 1)
