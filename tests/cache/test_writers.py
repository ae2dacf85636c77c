"""One writer at a time, among threads and processes; who is killed or stopped keeps nobody from writing for ever."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

import pytest

from persistmem.arena import Arena
from persistmem.cache import Cache
from persistmem.cache.layout import Word
from persistmem.errors import BusyError
from tests.arena.support import child, pipe

from .support import PATIENCE, cache_of, open_cache

PROCESSES = 4


def test_threads_count_together_and_lose_nothing() -> None:
    def work(thread: int) -> None:
        for number in range(500):
            cache.incr("shared", default=0)
            cache[thread, number % 20] = (thread, number)
            assert cache[thread, number % 20] == (thread, number)

    with cache_of(256 << 10) as cache, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [None] * 8
        assert cache["shared"] == 4000
        assert len(cache) == 1 + 8 * 20
        assert cache.stats().damaged == 0


def count_and_store(arena: Arena, process: int, connection: Connection) -> None:
    with open_cache(arena, timeout=PATIENCE) as cache:
        connection.send("ready")
        connection.recv()
        for number in range(1500):
            cache.incr("shared", default=0)
            cache[process, number % 50] = (process, number)
        assert all(cache[process, number] == (process, 1450 + number) for number in range(50))
    connection.send("done")


def test_processes_count_together_and_lose_nothing() -> None:
    with cache_of(256 << 10) as cache:
        ends = [pipe() for _ in range(PROCESSES)]
        children = [child(count_and_store, cache.arena, number, there) for number, (_, there) in enumerate(ends)]
        for each in children:
            each.__enter__()
        try:
            for said in ("ready", "go", "done"):
                for here, _ in ends:
                    if said == "go":
                        here.send(said)
                    else:
                        assert here.poll(PATIENCE)
                        assert here.recv() == said
        finally:
            for each in children:
                each.__exit__(None, None, None)
        assert cache["shared"] == PROCESSES * 1500
        assert len(cache) == 1 + PROCESSES * 50
        stats = cache.stats()
        assert (stats.sets, stats.hits, stats.damaged) == (PROCESSES * 3000, PROCESSES * 50 + 1, 0)


def race_to_pop(arena: Arena, connection: Connection) -> None:
    with open_cache(arena, timeout=PATIENCE) as cache:
        connection.send("ready")
        connection.recv()
        connection.send([key for key in range(300) if cache.pop(key, None) is not None])


def test_of_many_who_pop_a_key_one_gets_it() -> None:
    with cache_of(256 << 10) as cache:
        cache.set_many(dict.fromkeys(range(300), "prize"))
        one, there_one = pipe()
        two, there_two = pipe()
        with child(race_to_pop, cache.arena, there_one), child(race_to_pop, cache.arena, there_two):
            for here in (one, two):
                assert here.poll(PATIENCE)
                assert here.recv() == "ready"
            for here in (one, two):
                here.send("go")
            won = []
            for here in (one, two):
                assert here.poll(PATIENCE)
                won += here.recv()
        assert sorted(won) == list(range(300))
        assert len(cache) == 0


def die_while_writing(arena: Arena) -> None:
    """Half of a removal: the item is gone, and not yet counted."""
    cache = open_cache(arena)
    cache["mine"] = 1
    cache["other"] = 2
    cache._lock.__enter__()
    slot = next(iter(cache._store.slots()))
    cache._words[cache._store.entries_at + slot] = 0
    os.kill(os.getpid(), signal.SIGKILL)


def test_next_writer_goes_on_after_one_that_was_killed_while_it_wrote_and_counts_right() -> None:
    with cache_of(timeout=PATIENCE) as cache:
        cache.set_many({number: number for number in range(20)})
        with child(die_while_writing, cache.arena) as writer:
            writer.join(PATIENCE)
            assert writer.exitcode == -signal.SIGKILL
        cache["after"] = "the kill"
        assert len(cache) == len(list(cache)) == 22
        for key, value in cache.items():
            assert cache[key] == value
        assert cache.stats().damaged == 0


def die_while_it_keeps_the_lock(arena: Arena) -> None:
    cache = open_cache(arena)
    for number in range(100):
        cache["kept"] = number
    os.kill(os.getpid(), signal.SIGKILL)


def test_lock_that_a_killed_process_kept_is_free() -> None:
    with cache_of(timeout=PATIENCE) as cache:
        for _ in range(10):
            with child(die_while_it_keeps_the_lock, cache.arena) as writer:
                writer.join(PATIENCE)
            cache.incr("after", default=0)
        assert cache.get_many(["kept", "after"]) == {"kept": 99, "after": 10}
        assert len(cache) == 2


def keep_the_lock(arena: Arena, connection: Connection) -> None:
    with open_cache(arena) as cache:
        for number in range(200):
            cache["theirs"] = number
        connection.send("written")
        connection.recv()
        cache["theirs"] = "and again"
        connection.send("written")
        connection.recv()


def test_lock_that_is_kept_is_given_up_for_another_process() -> None:
    with cache_of(timeout=PATIENCE) as cache:
        here, there = pipe()
        with child(keep_the_lock, cache.arena, there):
            for said in (199, "and again"):
                assert here.poll(PATIENCE)
                assert here.recv() == "written"
                for number in range(200):
                    cache["mine"] = number
                assert cache.get_many(["mine", "theirs"]) == {"mine": 199, "theirs": said}
                here.send("go on")


def stop_while_writing(arena: Arena, connection: Connection) -> None:
    with open_cache(arena) as cache:
        cache["theirs"] = "before"
        with cache._lock:
            os.kill(os.getpid(), signal.SIGSTOP)
        cache["theirs"] = "after"
        connection.send("done")
        connection.recv()


def test_writer_that_is_stopped_holds_others_up_until_their_timeout_which_says_so() -> None:
    with cache_of(timeout=0.05) as cache:
        cache["mine"] = 1
        here, there = pipe()
        with child(stop_while_writing, cache.arena, there) as writer:
            assert writer.pid is not None
            assert os.WIFSTOPPED(os.waitpid(writer.pid, os.WUNTRACED)[1])
            for use in (lambda: cache.set("mine", 2), lambda: cache.delete("mine"), cache.clear, cache.expire):
                with pytest.raises(
                    BusyError, match=r"another process is writing, and did not finish within 0.05 s"
                ) as told:
                    use()
                assert isinstance(told.value, TimeoutError)
            assert cache.get_many(["mine", "theirs"]) == {"mine": 1, "theirs": "before"}, "readers do not wait"
            assert (len(cache), sorted(cache)) == (2, ["mine", "theirs"])
            os.kill(writer.pid, signal.SIGCONT)
            assert here.poll(PATIENCE)
            assert here.recv() == "done"
            with open_cache(cache.arena, timeout=PATIENCE) as patient:
                patient["mine"] = 3
            assert cache.get_many(["mine", "theirs"]) == {"mine": 3, "theirs": "after"}


def test_thread_that_writes_on_and_on_holds_others_up_until_their_timeout_which_says_so() -> None:
    with cache_of(timeout=0.05) as cache, ThreadPoolExecutor(1) as pool:
        cache["mine"] = 1
        writing, finish = threading.Event(), threading.Event()

        def write() -> None:
            with cache._lock:
                writing.set()
                assert finish.wait(PATIENCE)

        writer = pool.submit(write)
        assert writing.wait(PATIENCE)
        with pytest.raises(BusyError, match="another thread of this process is writing"):
            cache["mine"] = 2
        assert cache["mine"] == 1
        finish.set()
        writer.result(PATIENCE)
        cache["mine"] = 3
        assert cache["mine"] == 3


def break_off(cache: Cache) -> None:
    with cache._lock:
        cache._words[Word.ITEMS] = 77
        raise KeyboardInterrupt


def test_error_while_writing_leaves_the_cache_usable() -> None:
    with cache_of() as cache:
        cache["a"] = 1
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                break_off(cache)
            assert cache.incr("a") > 1
            assert len(cache) == 1


def test_two_openings_in_one_thread_take_turns() -> None:
    with cache_of(timeout=PATIENCE) as cache, open_cache(cache.arena, timeout=PATIENCE) as other:
        for number in range(300):
            cache["a"] = number
            other["b"] = number
            assert cache.get_many(["a", "b"]) == other.get_many(["a", "b"]) == {"a": number, "b": number}


def write_at_exit(cache: Cache) -> None:
    for number in range(100):
        cache[number] = number
    print(len(cache.get_many(range(100))))


def test_cache_can_be_written_while_the_program_ends() -> None:
    code = """
import atexit
from tests.cache.test_writers import write_at_exit
from persistmem.cache import Cache
from persistmem.testing import new_arena
atexit.register(write_at_exit, Cache(new_arena("256KiB"), "64KiB"))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert (ended.stdout, ended.stderr) == ("100\n", "")
