"""Functions whose results are kept: computed by one at a time for each key, be it thread, task or process."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import pytest

from persistmem.arena import Arena
from persistmem.cache import Cache
from persistmem.errors import ArgumentError, UnsupportedTypeError
from tests.arena.support import child, pipe

from .support import PATIENCE, Clock, cache_of, open_cache


class Counted:
    """A function that counts how often it computes what."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __call__(self, *args: Any) -> Any:
        self.calls.append(args)
        return list(args)

    def of_one(self, number: int) -> Any:
        return self(number)

    def of_none(self) -> Any:
        return self()


def test_result_is_computed_once_and_then_kept() -> None:
    with cache_of() as cache:
        calls = []

        @cache.memoize()
        def square(number: int) -> int:
            """Multiply a number with itself."""
            calls.append(number)
            return number * number

        assert [square(3), square(3), square(4), square(3)] == [9, 9, 16, 9]
        assert calls == [3, 4]
        assert (square.__name__, square.__doc__) == ("square", "Multiply a number with itself.")


def test_results_of_all_kinds_are_kept_nothing_included() -> None:
    with cache_of() as cache:
        results: list[Any] = [None, 0, (1, 2), {"a": {1}}, b"x" * 5000, [[]], 2**70]
        calls = []

        @cache.memoize()
        def give(number: int) -> Any:
            calls.append(number)
            return results[number]

        for _ in range(4):
            assert [give(number) for number in range(len(results))] == results
        assert calls == list(range(len(results)))


def test_calls_are_told_apart_by_their_arguments() -> None:
    with cache_of(256 << 10) as cache:
        calls = []

        @cache.memoize()
        def call(*args: Any, **kwargs: Any) -> int:
            calls.append((args, kwargs))
            return len(calls)

        different: list[Callable[[], int]] = [
            call, lambda: call(1), lambda: call(2), lambda: call("1"), lambda: call(1, 2), lambda: call(1, b=2),
            lambda: call(1, "b", 2), lambda: call((1, 2)), lambda: call([1, 2]), lambda: call(None), lambda: call(a=1),
            lambda: call(a=1, b=2), lambda: call("a", 1), lambda: call(b"1"), lambda: call({"a": 1}), lambda: call(1.5),
            lambda: call(2**80), lambda: call(np.arange(3)), lambda: call({1, 2}),
        ]  # fmt: skip
        for _ in range(3):
            assert [each() for each in different] == list(range(1, len(different) + 1))
        assert call(b=2, a=1) == call(a=1, b=2)


def test_numbers_that_are_equal_are_the_same_argument_unless_types_count() -> None:
    with cache_of() as cache:
        loose, strict = Counted(), Counted()

        @cache.memoize()
        def plain(number: float) -> Any:
            return loose(number)

        @cache.memoize(typed=True)
        def typed(number: float) -> Any:
            return strict(number)

        for number in (3, 3.0, 1, True, 1.0, 0, False, -0.0, 2.5):
            plain(number)
            typed(number)
        assert [args[0] for args in loose.calls] == [3, 1, 0, 2.5]
        assert len(strict.calls) == 9


def test_functions_do_not_share_results_and_processes_do() -> None:
    with cache_of() as cache:

        @cache.memoize()
        def one(number: int) -> str:
            return f"one {number}"

        @cache.memoize()
        def two(number: int) -> str:
            return f"two {number}"

        assert [one(1), two(1), one(1)] == ["one 1", "two 1", "one 1"]
        with open_cache(cache.arena) as other:
            counted = Counted()
            counted.__module__, counted.__qualname__ = one.__module__, one.__qualname__  # type: ignore[attr-defined]
            again = other.memoize()(counted)
            assert again(1) == "one 1"
            assert counted.calls == []


def test_key_can_be_made_by_the_caller() -> None:
    with cache_of() as cache:
        counted = Counted()

        @cache.memoize(key=lambda user, request: ("render", user))
        def render(user: str, request: object) -> Any:
            return counted(user)

        assert render("ada", object()) == render("ada", object()) == ["ada"]
        assert len(counted.calls) == 1
        assert ("render", "ada") in cache


def test_key_of_a_call_leads_to_its_result() -> None:
    with cache_of() as cache:
        counted = Counted()

        @cache.memoize()
        def load(number: int, *, deep: bool = False) -> Any:
            return counted(number, deep)

        load(3)
        load(3, deep=True)
        del cache[load.cache_key(3)]  # type: ignore[attr-defined]
        load(3)
        load(3, deep=True)
        assert counted.calls == [(3, False), (3, True), (3, False)]


def test_arguments_and_results_that_cannot_be_stored_are_named() -> None:
    with cache_of() as cache:

        @cache.memoize()
        def give(value: object) -> object:
            return object()

        with pytest.raises(UnsupportedTypeError, match=r"builtins\.object"):
            give(object())
        with pytest.raises(UnsupportedTypeError, match=r"builtins\.object"):
            give(1)
        assert len(cache) == 0


def test_result_lives_for_its_time() -> None:
    clock = Clock()
    with cache_of(clock=clock) as cache:
        counted = Counted()
        load = cache.memoize(ttl="1h")(counted.of_one)
        load(1)
        clock.now += 3599
        load(1)
        assert len(counted.calls) == 1
        clock.now += 1
        load(1)
        load(1)
        assert len(counted.calls) == 2


def test_what_is_raised_is_raised_to_each_caller_and_not_kept() -> None:
    with cache_of() as cache:
        outcomes: list[Any] = [ValueError("first"), KeyError("second"), "third"]

        @cache.memoize()
        def fail() -> Any:
            outcome = outcomes.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        with pytest.raises(ValueError, match="first"):
            fail()
        with pytest.raises(KeyError, match="second"):
            fail()
        assert (fail(), fail()) == ("third", "third")


def test_function_may_call_itself() -> None:
    with cache_of() as cache:
        calls = []

        @cache.memoize()
        def fibonacci(number: int) -> int:
            calls.append(number)
            return number if number < 2 else fibonacci(number - 1) + fibonacci(number - 2)

        assert fibonacci(40) == 102_334_155
        assert len(calls) == 41


def test_of_many_threads_one_computes_and_all_get_its_result() -> None:
    with cache_of() as cache, ThreadPoolExecutor(8) as pool:
        began, finish = threading.Event(), threading.Event()
        calls = []

        @cache.memoize()
        def compute(number: int) -> list[int]:
            calls.append(number)
            began.set()
            assert finish.wait(PATIENCE)
            return [number, len(calls)]

        first = pool.submit(compute, 1)
        assert began.wait(PATIENCE)
        others = [pool.submit(compute, 1) for _ in range(7)]
        finish.set()
        assert [each.result(PATIENCE) for each in (first, *others)] == [[1, 1]] * 8
        assert calls == [1]


def test_other_keys_are_computed_meanwhile() -> None:
    with cache_of() as cache, ThreadPoolExecutor(1) as pool:
        began, finish = threading.Event(), threading.Event()

        @cache.memoize()
        def compute(number: int) -> int:
            if number == 1:
                began.set()
                assert finish.wait(PATIENCE)
            return number

        first = pool.submit(compute, 1)
        assert began.wait(PATIENCE)
        assert [compute(number) for number in range(2, 50)] == list(range(2, 50))
        cache["beside"] = "written"
        finish.set()
        assert first.result(PATIENCE) == 1


def test_thread_that_fails_lets_the_next_one_compute() -> None:
    with cache_of() as cache, ThreadPoolExecutor(4) as pool:
        began, finish = threading.Event(), threading.Event()
        calls = []

        @cache.memoize()
        def compute() -> int:
            calls.append(1)
            began.set()
            assert finish.wait(PATIENCE)
            if len(calls) == 1:
                raise ValueError("first")
            return len(calls)

        first = pool.submit(compute)
        assert began.wait(PATIENCE)
        others = [pool.submit(compute) for _ in range(3)]
        finish.set()
        with pytest.raises(ValueError, match="first"):
            first.result(PATIENCE)
        assert [each.result(PATIENCE) for each in others] == [2, 2, 2]


def memoized(cache: Cache, say: Connection) -> Callable[[int], list[int]]:
    """A function that tells that it computes, and waits until it is told to go on."""

    @cache.memoize()
    def compute(number: int) -> list[int]:
        say.send("computing")
        assert say.recv() == "go on"
        return [number, cache.incr("computed", default=0)]

    return compute


def call(arena: Arena, say: Connection) -> None:
    with open_cache(arena, timeout=PATIENCE) as cache:
        compute = memoized(cache, say)
        say.send("calling")
        say.send(compute(1))
        say.recv()


def test_of_many_processes_one_computes_and_all_get_its_result() -> None:
    with cache_of(timeout=PATIENCE) as cache:
        ends = [pipe() for _ in range(4)]
        children = [child(call, cache.arena, there) for _, there in ends]
        for each in children:
            each.__enter__()
        try:
            heard: list[list[Any]] = [[] for _ in ends]

            def hear(number: int) -> Any:
                here = ends[number][0]
                assert here.poll(PATIENCE)
                heard[number].append(here.recv())
                return heard[number][-1]

            assert [hear(number) for number in range(4)] == ["calling"] * 4
            computing = wait_for_one([here for here, _ in ends])
            assert hear(computing) == "computing"
            ends[computing][0].send("go on")
            assert [hear(number) for number in range(4)] == [[1, 1]] * 4
        finally:
            for each in children:
                each.__exit__(None, None, None)
        assert cache["computed"] == 1


def wait_for_one(ends: list[Connection]) -> int:
    """The number of the one that says something."""
    (ready,) = wait(ends, PATIENCE)
    return next(number for number, each in enumerate(ends) if each is ready)


def test_process_that_is_killed_while_it_computes_blocks_nobody() -> None:
    with cache_of(timeout=PATIENCE) as cache:
        here, there = pipe()
        with child(call, cache.arena, there) as process:
            for said in ("calling", "computing"):
                assert here.poll(PATIENCE)
                assert here.recv() == said
            ours, theirs = pipe()
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(memoized(cache, theirs), 1)
                process.kill()
                process.join(PATIENCE)
                assert ours.poll(PATIENCE)
                assert ours.recv() == "computing"
                ours.send("go on")
                assert waiting.result(PATIENCE) == [1, 1]


def test_child_that_was_forked_while_a_value_was_computed_blocks_nobody_later() -> None:
    def live(say: Connection) -> None:
        say.recv()

    with cache_of(timeout=PATIENCE) as cache, ThreadPoolExecutor(1) as pool:
        here, there = pipe()
        ours, theirs = pipe()
        compute = memoized(cache, theirs)
        first = pool.submit(compute, 1)
        assert ours.poll(PATIENCE)
        assert ours.recv() == "computing"
        with child(live, there):
            ours.send("go on")
            assert first.result(PATIENCE) == [1, 1]
            cache.delete(compute.cache_key(1))  # type: ignore[attr-defined]
            ours.send("go on")
            second = pool.submit(compute, 1)
            assert ours.poll(PATIENCE), "the child has the lock"
            assert ours.recv() == "computing"
            assert second.result(PATIENCE) == [1, 2]
            here.send("end")


def test_of_many_coroutines_one_computes_and_all_get_its_result() -> None:
    async def run() -> None:
        calls = []

        @cache.memoize()
        async def compute(number: int) -> list[int]:
            calls.append(number)
            await asyncio.sleep(0)
            return [number, len(calls)]

        assert await asyncio.gather(*(compute(1) for _ in range(20))) == [[1, 1]] * 20
        assert await compute(1) == [1, 1]
        assert await asyncio.gather(*(compute(number) for number in range(5))) == [
            [0, 5],
            [1, 1],
            [2, 5],
            [3, 5],
            [4, 5],
        ]

    with cache_of() as cache:
        asyncio.run(run())


def test_coroutine_that_fails_or_is_cancelled_lets_the_next_one_compute() -> None:
    async def run() -> None:
        began = asyncio.Event()
        calls = []

        @cache.memoize()
        async def compute() -> int:
            calls.append(1)
            if len(calls) == 1:
                began.set()
                await asyncio.Event().wait()  # until it is cancelled
            if len(calls) == 2:
                raise ValueError("second")
            return len(calls)

        first = asyncio.ensure_future(compute())
        await began.wait()
        second, third = asyncio.ensure_future(compute()), asyncio.ensure_future(compute())
        first.cancel()
        results = await asyncio.gather(first, second, third, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert sorted(map(str, results[1:])) == ["3", "second"]

    with cache_of() as cache:
        asyncio.run(asyncio.wait_for(run(), PATIENCE))


def test_coroutine_waits_for_whoever_computes_and_others_run_meanwhile() -> None:
    async def run() -> None:
        @cache.memoize()
        async def compute(number: int) -> Any:
            raise AssertionError("somebody else computes this")

        lock = cache.key_lock(compute.cache_key(1))  # type: ignore[attr-defined]
        lock.take()
        waiting = asyncio.ensure_future(compute(1))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not waiting.done()
        cache[compute.cache_key(1)] = ["from elsewhere", 0.0, float("inf")]  # type: ignore[attr-defined]
        lock.close()
        assert await waiting == "from elsewhere"

    with cache_of() as cache:
        asyncio.run(asyncio.wait_for(run(), PATIENCE))


def test_result_is_computed_anew_in_the_background_before_its_time_is_up() -> None:
    clock = Clock()
    with cache_of(clock=clock) as cache:
        calls: list[int] = []
        again = threading.Event()

        @cache.memoize(ttl="1h", early=1e15)  # all its life is early
        def load(number: int) -> int:
            calls.append(number)
            if len(calls) > 1:
                again.set()
            return len(calls)

        assert load(7) == 1
        assert load(7) == 1, "who asks gets what there is"
        assert again.wait(PATIENCE)
        with cache.key_lock(load.cache_key(7)) as lock:  # type: ignore[attr-defined]
            lock.take()  # when it is stored
        assert cache.get(load.cache_key(7))[0] >= 2  # type: ignore[attr-defined]


def test_coroutine_is_computed_anew_in_the_background_before_its_time_is_up() -> None:
    async def run() -> None:
        calls: list[int] = []
        again = asyncio.Event()

        @cache.memoize(ttl="1h", early=1e15)
        async def load(number: int) -> int:
            calls.append(number)
            if len(calls) > 1:
                again.set()
            return len(calls)

        assert await load(7) == 1
        assert await load(7) == 1
        await again.wait()

    with cache_of() as cache:
        asyncio.run(asyncio.wait_for(run(), PATIENCE))


def test_result_is_not_computed_before_its_time_unless_that_is_asked_for() -> None:
    clock = Clock()
    with cache_of(clock=clock) as cache:
        counted = Counted()
        load = cache.memoize(ttl=10)(counted.of_none)
        for _ in range(1000):
            load()
            clock.now += 0.009
        assert len(counted.calls) == 1


def test_time_to_be_early_of_is_needed() -> None:
    with cache_of() as cache:
        with pytest.raises(ArgumentError, match="a ttl for it to be early of"):
            cache.memoize(early=1)
        with pytest.raises(ArgumentError, match="early=-1"):
            cache.memoize(ttl=5, early=-1)
        with pytest.raises(ArgumentError, match="duration"):
            cache.memoize(ttl="soon")


def test_result_that_was_evicted_is_computed_again() -> None:
    with cache_of(32 << 10) as cache:
        counted = Counted()
        load = cache.memoize()(counted.of_one)
        for _ in range(2):
            for number in range(2000):
                assert load(number) == [number]
        assert len(counted.calls) > 3000


def test_result_that_is_too_large_is_returned_and_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    with cache_of(64 << 10) as cache:
        calls: list[int] = []

        @cache.memoize()
        def large(number: int) -> bytes:
            calls.append(number)
            return bytes(64 << 10)

        assert large(1) == large(1) == bytes(64 << 10)
        assert calls == [1, 1]
        assert "its result is not kept" in caplog.text
