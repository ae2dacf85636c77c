"""Coroutines: what stands between two awaits is saved together, or not at all, whatever comes in between."""

import asyncio
import importlib.util
import signal
import threading

import pytest

import persistmem
from persistmem.agent.paths import RuntimeDirectory
from persistmem.attachment import simulate_reboot

from ..agent.conftest import runtime as runtime  # noqa: PLC0414 - a fixture
from .support import PATIENCE, SLOW, StartScript, generations, saved

PROGRAM = f"""
import asyncio, os, signal, sys
import persistmem

def say(*words):
    print(*words, flush=True)

def sigterm():
    os.kill(os.getpid(), signal.SIGTERM)
{SLOW}
app = persistmem.App(sys.argv[1], '1MiB', interval=0)
if sys.argv[2] == 'uvloop':
    from uvloop import run
else:
    from asyncio import run

@app.state(version=1)
class State:
    a: int = 0
    b: int = 0
    slow: object = None
"""

needs_uvloop = pytest.mark.skipif(importlib.util.find_spec("uvloop") is None, reason="needs uvloop: pip install uvloop")
LOOPS = ["asyncio", pytest.param("uvloop", marks=needs_uvloop)]


def new_app(name: str, **options: object) -> persistmem.App:
    app = persistmem.App(name, "1MiB", **options)  # type: ignore[arg-type]

    @app.state(version=1)
    class State:
        a: int = 0
        b: int = 0

    return app


def test_state_is_there_for_the_next_loop(name: str) -> None:
    app = new_app(name)

    async def count() -> int:
        async with app as entered:
            assert entered is app
            app.state.a += 1
            await asyncio.sleep(0)
            found: int = app.state.a
            return found

    assert [asyncio.run(count()) for _ in range(3)] == [1, 2, 3]


def test_intervals_come_between_two_awaits(name: str) -> None:
    app = new_app(name, interval="1ms", keep=1)

    async def change() -> None:
        async with asyncio.timeout(PATIENCE), app:
            app.save()
            while generations(name) < [8]:
                app.state.a += 1
                sum(range(30_000))
                app.state.b += 1
                await asyncio.sleep(0.001)
                state = saved(name)
                assert state["a"] == state["b"]

    asyncio.run(change())


@pytest.mark.parametrize("locked", ["pass", "await asyncio.sleep(0.01)"])
@pytest.mark.parametrize("loop", LOOPS)
def test_sigterm_comes_between_two_awaits_without_the_lock_and_the_state_is_saved(
    script: StartScript, name: str, loop: str, locked: str
) -> None:
    code = """
async def main():
    async with app:
        app.state.a = 1
        sigterm()
        with app.lock:
            sigterm()
            LOCKED
        app.state.b = 1
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        say('not reached')

run(main())
""".replace("LOCKED", locked)
    running = script(PROGRAM + code, name, loop)
    assert running.end() == 143, running.errors
    assert (saved(name)["a"], saved(name)["b"]) == (1, 1)


@pytest.mark.parametrize("loop", LOOPS)
def test_sigterm_ends_a_loop_that_waits(script: StartScript, name: str, loop: str) -> None:
    code = """
async def main():
    async with app:
        app.state.a = 1
        try:
            say('ready')
            await asyncio.Event().wait()
        finally:
            app.state.b = 1

run(main())
"""
    running = script(PROGRAM + code, name, loop)
    assert running.line() == "ready"
    running.kill(signal.SIGTERM)
    assert running.end() == 143, running.errors
    assert (saved(name)["a"], saved(name)["b"]) == (1, 1)


@pytest.mark.parametrize("loop", LOOPS)
def test_sigterm_in_the_last_save_is_heeded_after_it(script: StartScript, name: str, loop: str) -> None:
    code = """
async def main():
    async with app:
        app.state.a, app.state.slow = 1, Slow()

run(main())
"""
    running = script(PROGRAM + code, name, loop)
    assert running.line() == "packing"
    running.kill(signal.SIGTERM)
    running.say()
    assert running.end() == 143, running.errors
    assert (saved(name)["a"], saved(name)["slow"]) == (1, "slow")


@pytest.mark.parametrize("loop", LOOPS)
def test_handler_of_the_loops_own_is_left_alone(script: StartScript, name: str, loop: str) -> None:
    code = """
async def main():
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with app:
        say('ready')
        await ended.wait()
        app.state.a = 1

run(main())
"""
    running = script(PROGRAM + code, name, loop)
    assert running.line() == "ready"
    running.kill(signal.SIGTERM)
    assert running.end() == 0, running.errors
    assert saved(name)["a"] == 1


PREPARED = """
import threading

@app.on_prepare
def prepare():
    assert threading.current_thread() is threading.main_thread()
    assert app.state.a == app.state.b
    say('preparing')

async def main():
    async with app:
        app.state.a = app.state.b = 1
        app.save()
        say('ready')
        await asyncio.to_thread(sys.stdin.readline)
        app.state.a = 2
        BLOCK
        app.state.b = 2
        say('changed')
        await asyncio.to_thread(sys.stdin.readline)
        app.state.a = app.state.b = 3

run(main())
"""


@pytest.mark.parametrize("loop", LOOPS)
def test_upgrade_that_is_prepared_while_the_loop_runs_takes_the_newest_along(
    script: StartScript, runtime: RuntimeDirectory, loop: str
) -> None:
    running = script(PROGRAM + PREPARED.replace("BLOCK", "pass"), "counters", loop)
    assert running.line() == "ready"
    running.say()
    assert running.line() == "changed"
    assert saved("counters")["a"] == 1
    simulate_reboot()
    assert running.line() == "preparing"
    assert (saved("counters")["a"], saved("counters")["b"]) == (2, 2)
    running.say()
    assert running.end() == 0, running.errors
    assert (saved("counters")["a"], saved("counters")["b"]) == (3, 3)


@pytest.mark.parametrize("loop", LOOPS)
def test_upgrade_does_not_wait_longer_than_its_deadline_for_a_loop_that_is_blocked(
    script: StartScript, runtime: RuntimeDirectory, loop: str
) -> None:
    blocked = PREPARED.replace("BLOCK", "say('blocked'); sys.stdin.readline()")
    running = script(PROGRAM + blocked, "counters", loop)
    assert running.line() == "ready"
    running.say()
    assert running.line() == "blocked"
    simulate_reboot(deadline=0.2)
    assert (saved("counters")["a"], saved("counters")["b"]) == (1, 1)
    running.say()
    assert running.line() == "changed"
    assert running.line() == "preparing"
    running.say()
    assert running.end() == 0, running.errors
    assert (saved("counters")["a"], saved("counters")["b"]) == (3, 3)


def test_loop_that_goes_on_afterwards_is_rid_of_it(name: str) -> None:
    app = new_app(name, interval="1ms")

    async def change() -> None:
        async with app:
            assert "persistmem-app" in {task.get_name() for task in asyncio.all_tasks()}
        await asyncio.sleep(0)
        assert "persistmem-app" not in {task.get_name() for task in asyncio.all_tasks()}

    asyncio.run(change())


def test_loops_in_other_threads_are_no_different(name: str) -> None:
    app = new_app(name, interval="1ms")

    async def change() -> None:
        async with asyncio.timeout(PATIENCE), app:
            app.state.a = 1
            while not generations(name):
                await asyncio.sleep(0.001)
            app.state.b = 1

    thread = threading.Thread(target=lambda: asyncio.run(change()))
    thread.start()
    thread.join()
    assert saved(name) == {"a": 1, "b": 1}


def test_kernel_can_be_replaced_in_a_test_with_coroutines(simulated_kernel: None) -> None:
    app = new_app("counters")

    async def change() -> None:
        async with app:
            app.state.a = 1
            app.simulate_kexec("7.3.4")
            assert (app.found.origin.kind, app.found.origin.kernel_to) == ("carried over", "7.3.4")
            assert app.state.a == 1
            app.state.a = 2
        assert saved("counters")["a"] == 2

    asyncio.run(change())
