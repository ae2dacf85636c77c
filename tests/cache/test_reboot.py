"""A cache is still warm in the next kernel, and what its clock says there decides what has expired."""

import numpy as np
import pytest

from persistmem.agent.paths import RuntimeDirectory
from persistmem.attachment import attach, simulate_reboot
from persistmem.cache import Cache
from persistmem.errors import NotFoundError
from tests.agent.support import StartProgram, kill_agent

from .support import Clock

HOUR = 3600.0


def test_cache_is_warm_in_the_next_kernel_with_its_values_and_its_counts(runtime: RuntimeDirectory) -> None:
    with Cache("thumbnails", "2MiB") as cache:
        for number in range(3000):
            cache["page", number] = {"number": number, "tags": (number,)}
        cache["array"] = np.arange(1000)
        cache.incr("visits", 41, default=0)
        assert cache["page", 7] == {"number": 7, "tags": (7,)}
    simulate_reboot()
    with Cache("thumbnails") as cache:
        assert cache.arena.origin.kind == "carried over"
        assert all(cache["page", number] == {"number": number, "tags": (number,)} for number in range(3000))
        assert np.array_equal(cache["array"], np.arange(1000))
        assert cache.incr("visits") == 42
        stats = cache.stats()
        assert (stats.items, stats.sets, stats.hits, stats.damaged, stats.evicted) == (3002, 3003, 3002, 0, 0)
        assert stats.processes == 1
    simulate_reboot()
    with Cache("thumbnails") as cache:
        assert cache["visits"] == 42
        assert len(cache) == 3002


def test_caches_and_snapshots_of_one_arena_cross_together(runtime: RuntimeDirectory) -> None:
    with attach("shop", size="2MiB") as arena:
        arena.snapshot("config", {"x": 1})
        for name in ("users", "pages"):
            with Cache(arena, "256KiB", namespace=name) as cache:
                cache["of"] = name
    simulate_reboot()
    with attach("shop") as arena:
        assert arena.restore("config") == {"x": 1}
        for name in ("users", "pages"):
            with Cache(arena, namespace=name) as cache:
                assert dict(cache.items()) == {"of": name}
    with Cache("shop", namespace="users") as cache:
        assert cache["of"] == "users"


def test_values_expire_by_the_wall_clock_of_the_next_kernel(runtime: RuntimeDirectory) -> None:
    before = Clock()
    with Cache("sessions", "1MiB", clock=before) as cache:
        cache.set("a minute", 1, ttl=60)
        cache.set("an hour", 2, ttl="1h")
        cache["for ever"] = 3
    simulate_reboot()
    # It took two minutes to come up, by its clock: what that passed is gone, and nothing else.
    with Cache("sessions", clock=Clock(before.now + 120)) as cache:
        assert cache.get_many(["a minute", "an hour", "for ever"]) == {"an hour": 2, "for ever": 3}
        assert cache.expire() == 1
    simulate_reboot()
    # It came up with its clock far ahead: what that passed is gone for this kernel...
    with Cache("sessions", clock=Clock(before.now + 1000 * HOUR)) as cache:
        assert cache.get_many(["an hour", "for ever"]) == {"for ever": 3}
    simulate_reboot()
    # ... and there again where the clock is right, as long as its memory was not needed, and lives until its own time.
    with Cache("sessions", clock=Clock(before.now + HOUR - 1)) as cache:
        assert cache.get_many(["an hour", "for ever"]) == {"an hour": 2, "for ever": 3}
    simulate_reboot()
    # With the clock back in 1970, as without a battery, everything lives longer by as much.
    with Cache("sessions", clock=Clock(0.0)) as cache:
        assert cache.get_many(["an hour", "for ever"]) == {"an hour": 2, "for ever": 3}
        cache.set("new", 4, ttl=60)
    with Cache("sessions", clock=Clock(before.now)) as cache:
        assert cache.get_many(["an hour", "for ever", "new"]) == {"an hour": 2, "for ever": 3}


def test_process_that_lived_through_it_is_told_to_open_the_cache_again(
    runtime: RuntimeDirectory, program: StartProgram
) -> None:
    survivor = program()
    survivor.run("cache = persistmem.Cache('carts', '1MiB')")
    survivor.run("cache.set('a', 1)")
    simulate_reboot()
    for use in ("cache.set('a', 2)", "cache['missing']", "len(cache)", "list(cache)", "cache.delete('a')"):
        told = survivor.run(use)
        assert str(told).startswith("StaleArenaError"), f"{use} gave {told}"
        assert "attach again" in told
    with Cache("carts") as cache:
        assert cache["a"] == 1, "nothing of what it tried is here"
    assert survivor.run("persistmem.Cache('carts')['a']") == 1


def test_writer_that_died_with_its_kernel_leaves_a_sound_cache(
    runtime: RuntimeDirectory, program: StartProgram
) -> None:
    writer = program()
    writer.run("cache = persistmem.Cache('carts', '1MiB')")
    writer.run("[cache.set(number, 'x' * number) for number in range(500)] and None")
    writer.run("cache._lock.__enter__()")
    writer.run("cache._words.__setitem__(cache._store.entries_at + next(iter(cache._store.slots())), 0)")
    writer.process.kill()
    writer.process.wait()
    simulate_reboot()
    with Cache("carts") as cache:
        assert len(cache) == len(list(cache)) == 499
        cache["after"] = 1
        assert len(cache) == 500
        assert cache.stats().damaged == 0


def test_cache_outlives_its_agent(runtime: RuntimeDirectory) -> None:
    with Cache("carts", "1MiB") as cache:
        cache["a"] = 1
        kill_agent()
        cache["b"] = 2
        assert cache["a"] == 1
        with Cache("carts") as again:
            assert dict(again.items()) == {"a": 1, "b": 2}


def test_cache_is_not_there_when_the_next_kernel_takes_no_memory(runtime: RuntimeDirectory) -> None:
    Cache("carts", "1MiB").close()
    simulate_reboot(compatible=False)
    with pytest.raises(NotFoundError):
        Cache("carts")
    with Cache("carts", "1MiB") as cache:
        assert dict(cache) == {}
