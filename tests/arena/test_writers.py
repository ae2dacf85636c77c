"""Many writers: one at a time, each in turn, across threads and processes; and an owner that may forbid all."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

import pytest

from persistmem.arena import Arena
from persistmem.arena.transaction import Transaction
from persistmem.errors import (
    ArgumentError,
    BusyError,
    ClosedError,
    ExistsError,
    InvalidNameError,
    NotFoundError,
    StaleArenaError,
)

from .support import KERNEL, START_NS, arena_of, child, new_memfd, open_arena, pipe

PROCESSES = 10
OPERATIONS = 500
ANSWER_SECONDS = 120


def payload(process: int, number: int) -> dict[str, object]:
    rng = random.Random(f"{process} {number}")
    return {"process": process, "number": number, "data": rng.randbytes(rng.choice([20, 5000, 9000]))}


def is_whole(value: dict[str, object]) -> bool:
    process, number = value["process"], value["number"]
    assert isinstance(process, int)
    assert isinstance(number, int)
    return value == payload(process, number)


def race(fd: int, process: int, connection: Connection) -> None:
    """Read, write and remove at random; report how often the shared snapshot was written."""
    rng = random.Random(process)
    shared, last_shared, mine = 0, 0, f"of {process}"
    views: list[dict[str, object] | None] = []
    try:
        with open_arena(fd) as arena:
            connection.send("ready")
            connection.recv()
            arena.snapshot(mine, payload(process, 0), timeout=60)
            for number in range(1, OPERATIONS):
                match rng.randrange(6):
                    case 0 | 1:
                        arena.snapshot("shared", payload(process, number), timeout=60)
                        shared += 1
                    case 2:
                        arena.snapshot(mine, payload(process, number), keep=1, timeout=60)
                    case 3:
                        assert arena.history(mine)
                        assert is_whole(arena.restore(mine))
                    case 4:
                        value = arena.restore("shared", default=None, copy=False)
                        assert value is None or is_whole(value)
                        views = [*views[-2:], value]
                        newest = arena.history("shared")[0].number if value else 0
                        assert newest >= last_shared
                        last_shared = newest
                    case _:
                        name = f"passing {process}"
                        arena.snapshot(name, number, timeout=60)
                        assert arena.restore(name) == number
                        arena.remove(name, timeout=60)
                        assert arena.restore(name, default=None) is None
                assert all(value is None or is_whole(value) for value in views)
    except BaseException as error:
        connection.send(f"{type(error).__name__}: {error}")
        raise
    connection.send(shared)
    connection.recv()


def test_ten_processes_on_one_arena_lose_nothing_and_mix_nothing() -> None:
    with arena_of(2 << 20) as (fd, arena):
        ends = [pipe() for _ in range(PROCESSES)]
        children = [child(race, fd, process, there) for process, (_, there) in enumerate(ends)]
        for context in children:
            context.__enter__()
        try:
            for here, _ in ends:
                assert here.poll(ANSWER_SECONDS)
                assert here.recv() == "ready"
            for here, _ in ends:
                here.send("go")
            written = 0
            for here, _ in ends:
                assert here.poll(ANSWER_SECONDS)
                count = here.recv()
                assert isinstance(count, int), count
                written += count
        finally:
            for context in children:
                context.__exit__(None, None, None)
        assert written > PROCESSES
        assert arena.history("shared")[0].number == written, "every snapshot got a number of its own"
        assert arena.snapshots() == sorted(["shared", *(f"of {process}" for process in range(PROCESSES))])
        assert all(is_whole(arena.restore(name)) for name in arena.snapshots())
        assert arena.verify().ok
        assert not any(piece.held for piece in arena.pieces())


def test_threads_share_one_arena_object() -> None:
    def work(thread: int) -> int:
        for number in range(40):
            arena.snapshot(f"of {thread}", payload(thread, number), timeout=60)
            assert arena.restore(f"of {thread}") == payload(thread, number)
            arena.snapshot("shared", payload(thread, number), timeout=60)
            assert is_whole(arena.restore("shared", copy=number % 2 == 0))
        return 40

    with arena_of(2 << 20) as (_, arena), ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 320
        assert arena.history("shared")[0].number == 320
        assert arena.verify().ok


def test_writer_waits_for_the_one_before_it() -> None:
    with arena_of() as (_, arena):
        waiting = threading.Event()

        def write() -> int:
            waiting.set()
            return arena.snapshot("state", "second", timeout=60).number

        with ThreadPoolExecutor(1) as pool:
            with Transaction(arena._memory, arena._commits, 1.0):
                second = pool.submit(write)
                waiting.wait()
                with pytest.raises(BusyError):
                    arena.snapshot("state", "impatient", timeout=0)
                assert not second.done()
            assert second.result() == 1
        assert arena.restore("state") == "second"


def test_generation_tells_when_under_which_kernel_and_how_large() -> None:
    fd = new_memfd()
    ticks = iter([START_NS, START_NS + 10**9])
    with Arena(fd, kernel="7.9", clock=lambda: next(ticks)) as arena:
        first = arena.snapshot("state", b"x" * 5000)
        second = arena.snapshot("state", "small")
        assert arena.history("state") == [second, first]
        assert (first.number, first.kernel, first.buffers, second.buffers) == (1, "7.9", 1, 0)
        assert (second.created - first.created).total_seconds() == 1
        assert first.created.isoformat() == "2023-11-14T22:13:20+00:00"
        assert (first.size, second.size) == (5000 + 3, 6)


def test_what_is_not_there_is_named_beside_what_is() -> None:
    with arena_of() as (_, arena):
        arena.snapshot("carts", 1)
        for use in (
            lambda: arena.restore("users"),
            lambda: arena.history("users"),
            lambda: arena.remove("users"),
            lambda: arena.restore("users", generation=1),
        ):
            with pytest.raises(NotFoundError, match="no snapshot 'users' in this arena; there are: carts"):
                use()
        with pytest.raises(KeyError, match="has no generation 7; it keeps 1"):
            arena.restore("carts", generation=7)
        with pytest.raises(NotFoundError, match="give a size"):
            arena.region("ring")
        assert arena.restore("users", default=None) is None


def test_impossible_arguments_are_refused_and_nothing_is_written() -> None:
    with arena_of() as (_, arena):
        arena.snapshot("carts", 1)
        arena.region("ring", 10).close()
        for name in ("", "-x", " x", "x" * 201, "a\nb", "\ud800"):
            with pytest.raises(InvalidNameError):
                arena.snapshot(name, 1)
            with pytest.raises(InvalidNameError):
                arena.region(name, 1)
        with pytest.raises(ArgumentError, match="keep"):
            arena.snapshot("carts", 1, keep=0)
        with pytest.raises(ArgumentError, match="size"):
            arena.region("new", 0)
        with pytest.raises(ArgumentError, match="size"):
            arena.resize_region("ring", 0)
        with pytest.raises(ExistsError, match="is a region"):
            arena.snapshot("ring", 1)
        with pytest.raises(ExistsError, match="is a snapshot"):
            arena.region("carts", 10)
        assert arena.snapshots() == ["carts"]
        assert arena.regions() == {"ring": 10}


def test_guard_stops_every_operation() -> None:
    stale = False

    def guard() -> None:
        if stale:
            raise StaleArenaError("attach again")

    fd = new_memfd()
    with Arena(fd, kernel=KERNEL, guard=guard) as arena:
        arena.snapshot("state", b"x" * 5000)
        view = arena.restore("state", copy=False)
        stale = True
        for use in (
            lambda: arena.snapshot("state", 2), lambda: arena.restore("state", default=0),
            lambda: arena.history("state"), arena.snapshots, arena.regions, lambda: arena.region("ring", 10),
            lambda: arena.resize_region("ring", 10), lambda: arena.remove("state"), arena.verify, arena.usage,
            arena.pieces,
        ):  # fmt: skip
            with pytest.raises(StaleArenaError):
                use()
        assert view == b"x" * 5000
        stale = False
        assert arena.restore("state") == b"x" * 5000


def test_closed_arena_says_so_and_closing_twice_does_no_harm() -> None:
    with arena_of() as (_, arena):
        arena.snapshot("state", 1)
        arena.close()
        arena.close()
        for use in (arena.snapshots, lambda: arena.restore("state"), lambda: arena.snapshot("state", 2)):
            with pytest.raises(ClosedError):
                use()
