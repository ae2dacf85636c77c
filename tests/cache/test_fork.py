"""A forked child goes on with the caches that it has, as a process of its own."""

import os
import threading
from multiprocessing.connection import Connection

from persistmem.arena import Arena
from persistmem.cache import Cache
from tests.arena.support import child, pipe

from .support import PATIENCE, Clock, cache_of, open_cache


def count(cache: Cache, times: int) -> None:
    for _ in range(times):
        cache.incr("shared", default=0)


def use(cache: Cache, connection: Connection) -> None:
    assert cache["before"] == "the fork"
    connection.send("started")
    count(cache, 2000)
    cache["child"] = [1, 2]
    connection.send(cache.stats().processes)
    connection.recv()


def test_child_and_parent_write_at_the_same_time_and_lose_nothing() -> None:
    with cache_of(timeout=PATIENCE) as cache:
        cache["before"] = "the fork"
        for _ in range(4):
            assert cache["before"] == "the fork"
        here, there = pipe()
        with child(use, cache, there) as process:
            assert here.poll(PATIENCE)
            assert here.recv() == "started"
            count(cache, 2000)
            assert here.poll(PATIENCE)
            assert here.recv() == 2
            assert cache["child"] == [1, 2]
            here.send("end")
            process.join(PATIENCE)
            assert process.exitcode == 0
        assert cache["shared"] == 4000
        stats = cache.stats()
        assert (stats.sets, stats.processes, stats.damaged) == (1 + 4000 + 1, 1, 0)
        assert len(cache) == 3


def test_child_of_a_parent_that_keeps_the_lock_waits_for_it_and_the_parent_for_the_child() -> None:
    def work(connection: Connection) -> None:
        for number in range(500):
            cache["child"] = number
        connection.send("written")
        connection.recv()

    with cache_of(timeout=PATIENCE) as cache:
        for number in range(100):  # so that it keeps the lock
            cache["parent"] = number
        here, there = pipe()
        with child(work, there):
            for number in range(500):
                cache["parent"] = number
            assert here.poll(PATIENCE)
            assert here.recv() == "written"
            cache["parent"] = "last"
            assert cache.get_many(["parent", "child"]) == {"parent": "last", "child": 499}
            here.send("end")


def test_child_that_ends_takes_no_lock_away_from_its_parent() -> None:
    def end() -> None:
        pass

    with cache_of(timeout=PATIENCE) as cache:
        cache["a"] = 1
        with cache._lock:
            with child(end) as process:
                process.join(PATIENCE)
                assert process.exitcode == 0
            assert is_busy(cache.arena)
        cache["a"] = 2
        with open_cache(cache.arena, timeout=PATIENCE) as other:
            assert other["a"] == 2


def is_busy(arena: Arena) -> bool:
    """Whether somebody writes all the time: who opens a cache takes the lock once."""
    try:
        open_cache(arena, timeout=0.05).close()
    except TimeoutError:
        return True
    return False


def test_children_of_children_count_for_themselves() -> None:
    def descend(depth: int) -> None:
        count(cache, 50)
        if depth:
            with child(descend, depth - 1) as process:
                count(cache, 50)
                process.join(PATIENCE)
                assert process.exitcode == 0

    with cache_of(timeout=PATIENCE) as cache:
        descend(4)
        assert cache["shared"] == 5 * 50 + 4 * 50
        assert cache.stats().sets == cache["shared"]


def test_fork_while_another_thread_writes_leaves_a_cache_that_works() -> None:
    def work() -> None:
        cache["child"] = cache.get("child", 0) + 1

    def write() -> None:
        while not stop.is_set():
            cache.incr("thread", default=0)

    with cache_of(timeout=PATIENCE) as cache:
        stop = threading.Event()
        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(20):
                with child(work) as process:
                    process.join(PATIENCE)
                    assert process.exitcode == 0
        finally:
            stop.set()
            writer.join(PATIENCE)
        assert cache["child"] == 20
        assert cache["thread"] > 0
        assert len(cache) == 2
        assert cache.stats().damaged == 0


def test_forked_child_leaves_the_descriptors_of_others_alone_after_a_cache_was_closed() -> None:
    def work() -> None:
        for readable, writable in pipes:
            os.write(writable, b"x")
            assert os.read(readable, 1) == b"x"

    with cache_of() as outer:
        closed = open_cache(outer.arena)
        closed["a"] = 1
        numbers = {closed._opened.lock.fd, closed._opened.row.fd}
        closed.close()
        pipes = [os.pipe()]
        try:
            while not numbers <= {number for ends in pipes for number in ends}:
                pipes.append(os.pipe())  # until they have taken the numbers that the closed cache had
            with child(work) as process:
                process.join(PATIENCE)
                assert process.exitcode == 0
        finally:
            for ends in pipes:
                os.close(ends[0])
                os.close(ends[1])


def test_child_of_a_parent_that_closed_the_arena_may_not_write_beside_it() -> None:
    def work() -> None:
        try:
            cache["child"] = 1
        except ValueError:
            os._exit(3)

    with cache_of(timeout=PATIENCE) as cache, open_cache(cache.arena) as other:
        for number in range(100):
            cache["parent"] = number
        cache.arena.close()
        with child(work) as process:
            process.join(PATIENCE)
            assert process.exitcode == 3
        assert "child" not in other


def test_child_reads_what_expires_by_its_own_clock() -> None:
    def work() -> None:
        clock.now += 10
        assert cache.get("a") is None
        cache.set("b", 1, ttl=1)

    clock = Clock()
    with cache_of(clock=clock, timeout=PATIENCE) as cache:
        cache.set("a", 1, ttl=5)
        assert [cache["a"] for _ in range(4)] == [1] * 4
        with child(work) as process:
            process.join(PATIENCE)
            assert process.exitcode == 0
        assert cache.get_many(["a", "b"]) == {"a": 1, "b": 1}
