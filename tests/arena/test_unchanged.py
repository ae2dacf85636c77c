"""``skip_unchanged``: a state that is what was stored last is not stored again, and the arena stays as it is."""

import numpy as np
import pytest

from persistmem.arena import Arena
from persistmem.errors import ArenaFullError

from .recording import RecordingMemory
from .support import arena_of, bytes_of, open_arena

LARGE = bytes(range(256)) * 40
STATES: list[object] = [
    {"a": [1, (2, {3})], "b": None},
    {"blob": LARGE, "array": np.arange(3000.0)},
    [LARGE, LARGE],
    LARGE,
    5,
]


@pytest.mark.parametrize("number", range(len(STATES)))
def test_same_state_is_stored_once_and_not_a_byte_is_written(number: int) -> None:
    with arena_of(1 << 20) as (fd, arena), open_arena(fd, RecordingMemory) as recorded:
        first = arena.snapshot("state", STATES[number], skip_unchanged=True)
        assert first.number == 1
        before = bytes_of(fd)
        for _ in range(3):
            assert recorded.snapshot("state", STATES[number], skip_unchanged=True) == first
        assert isinstance(recorded._memory, RecordingMemory)
        assert recorded._memory.stores == []
        assert bytes_of(fd) == before
        assert arena.snapshot("state", STATES[number]).number == 2


def test_any_difference_makes_a_new_generation() -> None:
    with arena_of(1 << 20) as (_, arena):
        states: list[object] = [
            {"a": 1, "blob": LARGE},
            {"a": 2, "blob": LARGE},
            {"a": 2, "blob": LARGE[:-1] + b"!"},
            {"a": 2, "blob": LARGE[:-1] + b"!", "b": None},
            [{"a": 2, "blob": LARGE[:-1] + b"!", "b": None}],
            {"a": 1, "blob": LARGE},
        ]
        for number, state in enumerate(states, 1):
            assert arena.snapshot("state", state, keep=9, skip_unchanged=True).number == number
            assert arena.snapshot("state", state, keep=9, skip_unchanged=True).number == number
        assert [arena.restore("state", generation=number) for number in range(1, 7)] == states


def test_it_is_the_newest_that_counts_not_one_of_another_name_or_of_before() -> None:
    with arena_of() as (_, arena):
        arena.snapshot("other", [1])
        assert arena.snapshot("state", [1], skip_unchanged=True).number == 1
        arena.snapshot("state", [2])
        assert arena.snapshot("state", [1], skip_unchanged=True).number == 3
        arena.remove("state")
        assert arena.snapshot("state", [1], skip_unchanged=True).number == 1
        assert arena.history("state")[0].number == 1


@pytest.mark.parametrize("kind", ["document", "buffer"])
def test_state_that_is_damaged_in_the_arena_is_stored_again(kind: str) -> None:
    with arena_of() as (fd, arena):
        state = {"a": 1, "blob": LARGE}
        arena.snapshot("state", state)
        (piece,) = [piece for piece in arena.pieces() if piece.kind == kind]
        arena._memory.write(piece.offset + 1, b"\xff\xfe")
        assert arena.snapshot("state", state, skip_unchanged=True).number == 2
        assert arena.restore("state", generation=2) == state
        assert arena.snapshot("state", state, skip_unchanged=True).number == 2
        assert fd >= 0


def test_what_another_process_stored_is_as_good() -> None:
    with arena_of() as (fd, arena), open_arena(fd) as other:
        theirs = other.snapshot("state", {"a": 1})
        assert arena.snapshot("state", {"a": 1}, skip_unchanged=True) == theirs


def test_unchanged_state_needs_no_room() -> None:
    with arena_of() as (fd, arena):
        arena.snapshot("state", LARGE)
        fill(arena)
        before = bytes_of(fd)
        assert arena.snapshot("state", LARGE, skip_unchanged=True).number == 1
        assert bytes_of(fd) == before
        with pytest.raises(ArenaFullError):
            arena.snapshot("state", LARGE[1:], skip_unchanged=True)
        assert arena.restore("state") == LARGE


def fill(arena: Arena) -> None:
    number = 0
    for length in (5000, 500, 50):
        while True:
            try:
                arena.snapshot(f"other {number}", f"{number:0{length}}")
            except ArenaFullError:
                break
            number += 1
