"""When a running application saves by itself: in a thread of its own, or in its event loop. Knows not what is done."""

import threading
from collections.abc import Callable
from typing import Protocol

from persistmem.threads import start_deaf

Tick = Callable[[], Callable[[], object] | None]
"""What is done at each interval; returns what is left to do in any thread, if anything is."""


class Schedule(Protocol):
    """Calls something at intervals, and on behalf of other threads, wherever that may be done."""

    def call(self, function: Callable[[], object]) -> None:
        """Call ``function`` where the state may be looked at, and wait until it has returned; from another thread."""
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

    def call(self, function: Callable[[], object]) -> None:
        """Call ``function`` here; it takes the lock of the state."""
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

    def call(self, function: Callable[[], object]) -> None:
        """Call ``function`` in the loop, and wait for it."""
        if threading.get_ident() == self._thread:
            function()
            return
        import asyncio  # noqa: PLC0415 - as above

        async def run() -> None:
            function()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result()

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
