"""Views: read-only, without a copy, and their bytes stay as they are for as long as anybody holds one."""

import os
import random
from multiprocessing.connection import Connection

import numpy as np
import pytest

from persistmem.arena import Arena, verified
from persistmem.arena.locks import conflict
from persistmem.errors import ArenaFullError, ArgumentError, BusyError, ClosedError

from .support import arena_of, child, contents, open_arena, pipe

ANSWER_SECONDS = 30
ROOM = 256 << 10


def noise(seed: int, length: int = 20_000) -> bytes:
    return random.Random(seed).randbytes(length)


def churn(arena: Arena, rounds: int = 30) -> int:
    """Replace snapshots again and again, through all the room there is; how often that went well."""
    done = 0
    for seed in range(1000, 1000 + rounds):
        try:
            arena.snapshot("state", noise(seed), keep=1)
            done += 1
        except ArenaFullError:
            arena.remove("state")
    return done


def test_views_are_read_only_and_lie_in_the_arena() -> None:
    with arena_of(ROOM) as (_, arena):
        arena.snapshot("state", {"bytes": noise(1), "array": np.arange(5000), "small": b"x" * 4095})
        found = arena.restore("state", copy=False)
        assert isinstance(found["bytes"], memoryview)
        assert found["bytes"].readonly
        with pytest.raises(TypeError):
            found["bytes"][0] = 1
        with pytest.raises(ValueError, match="read-only"):
            found["array"][0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            found["array"].flags.writeable = True
        assert found["bytes"] == noise(1)
        assert (found["array"] == np.arange(5000)).all()
        assert type(found["small"]) is bytes


def test_copies_are_the_callers_own() -> None:
    with arena_of(ROOM) as (_, arena):
        arena.snapshot("state", {"bytes": noise(1), "array": np.arange(5000)})
        found = arena.restore("state")
        assert type(found["bytes"]) is bytes
        found["array"][:] = 0
        assert (arena.restore("state")["array"] == np.arange(5000)).all()
        assert not any(piece.held for piece in arena.pieces())


def test_view_keeps_its_bytes_through_any_number_of_replacements() -> None:
    with arena_of(ROOM) as (_, arena):
        arena.snapshot("state", {"bytes": noise(1), "array": np.frombuffer(noise(2), "u1")})
        view = arena.restore("state", copy=False)
        assert churn(arena) > 20
        assert view["bytes"] == noise(1)
        assert view["array"].tobytes() == noise(2)


def test_any_part_of_a_view_holds_it_and_the_last_one_lets_go() -> None:
    with arena_of(ROOM) as (fd, arena):
        arena.snapshot("state", {"array": np.frombuffer(noise(2), "u1"), "bytes": noise(1)})
        spans = [(piece.offset, piece.length) for piece in arena.pieces() if piece.kind == "buffer"]
        assert len(spans) == 2
        part = arena.restore("state", copy=False)["array"][100:200:7]
        arena.remove("state")
        assert churn(arena) > 20
        assert part.tobytes() == noise(2)[100:200:7]
        assert all(conflict(fd, *span) for span in spans)
        del part
        assert not any(conflict(fd, *span) for span in spans)


def test_views_outlive_the_arena_object_and_its_descriptor() -> None:
    with arena_of(ROOM) as (fd, arena):
        with open_arena(os.dup(fd)) as other:
            other.snapshot("state", noise(1))
            view = other.restore("state", copy=False, verify="lazy")
        with pytest.raises(ClosedError, match="attach it again"):
            other.snapshots()
        assert churn(arena) > 20
        assert verified(view) == noise(1)


def hold_view(arena: Arena, connection: Connection) -> None:
    view = arena.restore("state", copy=False)
    connection.send("holding")
    connection.recv()
    connection.send(view == noise(1))
    connection.recv()


def test_view_of_another_process_keeps_its_bytes_until_that_process_is_gone() -> None:
    with arena_of(ROOM) as (_, arena):
        arena.snapshot("state", noise(1))
        here, there = pipe()
        with child(hold_view, arena, there):
            assert here.poll(ANSWER_SECONDS)
            here.recv()
            (piece,) = [piece for piece in arena.pieces() if piece.kind == "buffer"]
            assert piece.held
            assert churn(arena) > 20
            here.send("compare")
            assert here.poll(ANSWER_SECONDS)
            assert here.recv() is True
            # All the room but what the other process holds.
            with pytest.raises(ArenaFullError):
                arena.region("all", ROOM - 4096 - 3 * 4096)
        arena.remove("state")
        arena.region("all", ROOM - 4096 - 3 * 4096).close()


def keep_inherited_view(view: memoryview, connection: Connection) -> None:
    connection.send("running")
    connection.recv()
    connection.send(view == noise(1))
    connection.recv()


def test_forked_child_keeps_a_view_that_its_parent_dropped() -> None:
    with arena_of(ROOM) as (_, arena):
        arena.snapshot("state", noise(1))
        view = arena.restore("state", copy=False)
        here, there = pipe()
        with child(keep_inherited_view, view, there) as process:
            assert here.poll(ANSWER_SECONDS)
            here.recv()
            process._args = ()  # type: ignore[attr-defined]  # the parent's last reference, apart from the next
            del view
            assert churn(arena) > 20
            here.send("compare")
            assert here.poll(ANSWER_SECONDS)
            assert here.recv() is True
            with pytest.raises(ArenaFullError):
                arena.region("all", ROOM - 4096 - 3 * 4096)
        arena.remove("state")
        arena.region("all", ROOM - 4096 - 3 * 4096).close()


def test_forked_child_can_use_the_arena_of_its_parent() -> None:
    def write(arena: Arena, connection: Connection) -> None:
        connection.send((arena.restore("state"), arena.snapshot("state", "child's").number))
        connection.recv()

    with arena_of(ROOM) as (_, arena):
        arena.snapshot("state", "parent's")
        here, there = pipe()
        with child(write, arena, there):
            assert here.poll(ANSWER_SECONDS)
            assert here.recv() == ("parent's", 2)
            assert arena.restore("state") == "child's"
            assert arena.snapshot("state", "again").number == 3


def test_lazy_needs_views_and_verified_needs_one() -> None:
    with arena_of(ROOM) as (_, arena):
        arena.snapshot("state", [noise(1), np.zeros(1000)])
        with pytest.raises(ArgumentError, match="copy=False"):
            arena.restore("state", verify="lazy")
        copies = arena.restore("state")
        for value in (memoryview(copies[0]), copies[1], copies[0]):
            with pytest.raises(ArgumentError, match="expected a view of an arena"):
                verified(value)
        views = arena.restore("state", copy=False, verify="lazy")
        assert verified(views[1][::-2]).size == 500
        assert verified(views[1][:0]).size == 0
        assert verified(views[0][5:5]).nbytes == 0
        assert verified(views[1].view("u1").reshape(80, 100).T).shape == (100, 80)


def test_region_is_the_same_memory_for_every_process_and_is_not_reused_while_it_is_open() -> None:
    def count_up(arena: Arena, connection: Connection) -> None:
        with arena.region("counter") as region, region.view() as view:
            view[0] += 1
            connection.send(bytes(view[:2]))
            connection.recv()

    with arena_of(ROOM) as (_, arena), arena.region("counter", 4096) as region, region.view() as view:
        assert bytes(view) == bytes(4096)
        view[:2] = b"\x05\x07"
        here, there = pipe()
        with child(count_up, arena, there):
            assert here.poll(ANSWER_SECONDS)
            assert here.recv() == b"\x06\x07"
        assert bytes(view[:2]) == b"\x06\x07"
        with pytest.raises(BusyError, match="is open, here or in another process"):
            arena.resize_region("counter", 8192)
        with pytest.raises(BusyError, match="view of it is still in use"):
            region.close()
        arena.remove("counter")
        assert churn(arena) > 20
        assert bytes(view[:2]) == b"\x06\x07"


def test_resized_region_keeps_its_contents_and_its_new_bytes_are_zero() -> None:
    with arena_of(ROOM) as (_, arena):
        for seed in range(8):
            arena.snapshot("dirt", noise(seed, 25_000))
        arena.remove("dirt")
        with arena.region("ring", 5000) as region:
            region.view()[:] = noise(1, 5000)
        for size in (9000, 30_000, 4999, 5, 70_000):
            arena.resize_region("ring", size)
            assert arena.regions() == {"ring": size}
        assert contents(arena) == {"region ring": noise(1, 5000)[:5] + bytes(69_995)}
        with pytest.raises(ArgumentError, match=r"70000 bytes, not 5; see Arena.resize_region"):
            arena.region("ring", 5)
