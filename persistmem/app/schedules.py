"""When a running application saves by itself: in a thread of its own, or in its event loop. Knows not what is done."""

import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

from persistmem.threads import start_deaf

R = TypeVar("R")

Tick = Callable[[], Callable[[], object] | None]
"""What is done at each interval; returns what is left to do in any thread, if anything is."""


class Schedule(Protocol):
    """Calls something at intervals, and on behalf of other threads, wherever that may be done."""

    def call(self, function: Callable[[], R]) -> R:
        """Call ``function`` where the state may be looked at, from any thread, and return what it returns."""
        ...

    def call_soon(self, function: Callable[[], None]) -> None:
        """Call ``function`` where it may raise, from a signal handler or in the main thread."""
        ...

    def stop(self) -> None:
        """Call nothing any more."""
        ...


class ThreadSchedule:
    """For programs with threads, or with just one."""

    def __init__(self, interval: float, tick: Tick) -> None:
        """Call ``tick`` every ``interval`` seconds, in a thread of its own; never if that is 0."""
        self._stopped = threading.Event()
        self._interval = interval
        self._tick = tick
        if interval:
            start_deaf(threading.Thread(target=self._run, name="persistmem-app", daemon=True))

    def call(self, function: Callable[[], R]) -> R:
        """Call ``function`` here; it takes the lock of the state."""
        return function()

    def call_soon(self, function: Callable[[], None]) -> None:
        """Call ``function`` here."""
        function()

    def stop(self) -> None:
        """Let the thread end."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval):
            if (rest := self._tick()) is not None:
                rest()


class LoopSchedule:
    """For coroutines: everything happens in the event loop, between two awaits of theirs."""

    def __init__(self, interval: float, tick: Tick) -> None:
        """Call ``tick`` every ``interval`` seconds in the running loop; never if that is 0."""
        import asyncio  # noqa: PLC0415 - it takes longer to import than an application to start; here it is

        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._task: asyncio.Task[None] | None = None
        if interval:
            self._task = self._loop.create_task(self._run(interval, tick), name="persistmem-app")

    def call(self, function: Callable[[], R]) -> R:
        """Call ``function`` in the loop, and wait for it."""
        if threading.get_ident() == self._thread:
            return function()
        import asyncio  # noqa: PLC0415 - as above

        async def run() -> R:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def call_soon(self, function: Callable[[], None]) -> None:
        """Have the loop call ``function``, amid no step of a coroutine, and raise what that does."""
        if self._loop.is_running():
            self._loop.call_soon_threadsafe(function)
        else:
            function()

    def stop(self) -> None:
        """Cancel the task."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self, interval: float, tick: Tick) -> None:
        import asyncio  # noqa: PLC0415 - as above

        while True:
            await asyncio.sleep(interval)
            if (rest := tick()) is not None:
                await asyncio.to_thread(rest)
