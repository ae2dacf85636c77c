"""SIGTERM as an exception, so that a program that is told to end comes by its ``with``; never amid a save.

A process has one handler, whatever number of applications there is in it. Knows not what they save.
"""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Final

EXIT_CODE: Final = 128 + signal.SIGTERM

Call = Callable[[Callable[[], None]], object]
"""Calls something where an exception may be raised: here and now, or in an event loop between two steps."""


class _Handler:
    """What came, and what it waits for."""

    def __init__(self) -> None:
        self.calls: dict[object, Call] = {}
        """How it is raised for each application that is to end by it."""
        self._deferring = 0
        self._came = False
        self._main_thread = threading.main_thread().ident

    def handle(self, _number: int, _frame: FrameType | None) -> None:
        self._came = True
        self._tell()

    def defer(self) -> None:
        self._deferring += 1

    def resume(self) -> None:
        self._deferring -= 1
        self._tell()

    def raise_if_it_came(self) -> None:
        if self._came and not self._deferring:
            self._came = False
            raise SystemExit(EXIT_CODE)

    def be_forked(self) -> None:
        """In a forked child nothing is saved: leave SIGTERM to the kernel there."""
        self.calls.clear()
        self._came = False
        if self._main_thread != threading.get_ident():  # this thread is it now, and was inside of nothing
            self._main_thread = threading.get_ident()
            self._deferring = 0
        self.give_back()

    def give_back(self) -> None:
        if signal.getsignal(signal.SIGTERM) == self.handle:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _tell(self) -> None:
        if self._came and not self._deferring:
            *_, call = self.calls.values() or (_now,)
            call(self.raise_if_it_came)


def _now(function: Callable[[], None]) -> None:
    function()


def _in_main_thread() -> bool:
    return threading.get_ident() == threading.main_thread().ident


_handler: Final = _Handler()
os.register_at_fork(after_in_child=_handler.be_forked)


class Termination:
    """Raises SystemExit(143) in the main thread at SIGTERM, where nobody else handles that."""

    def install(self, call: Call) -> None:
        """Handle SIGTERM, unless the program does itself, or this is not the main thread; ``call`` raises it."""
        if _in_main_thread() and (_handler.calls or signal.getsignal(signal.SIGTERM) is signal.SIG_DFL):
            if not _handler.calls:
                signal.signal(signal.SIGTERM, _handler.handle)
            _handler.calls[self] = call

    def uninstall(self) -> None:
        """Leave SIGTERM to the kernel again, if no other application needs it; raise if it came and had to wait."""
        _handler.calls.pop(self, None)
        if _in_main_thread():
            if not _handler.calls:
                _handler.give_back()
            _handler.raise_if_it_came()


class StateLock:
    """A reentrant lock. SIGTERM waits until the main thread has let go of it; what is changed inside is not halved."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take it, and return whether that is so. As for :class:`threading.RLock`."""
        if not _in_main_thread():
            return self._lock.acquire(blocking, timeout)
        _handler.defer()
        taken = False
        try:
            taken = self._lock.acquire(blocking, timeout)
        finally:
            if not taken:
                _handler.resume()
        return taken

    def release(self) -> None:
        """Let go of it."""
        self._lock.release()
        if _in_main_thread():
            _handler.resume()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()
