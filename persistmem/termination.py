"""SIGTERM as an exception, so that a program that is told to end comes by its ``with``; never amid a save.

A process has one handler, whatever number of applications there is in it, and what is to be called before the end is
called first. Knows not what anybody saves.
"""

import atexit
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Final, Literal

from persistmem.threads import start_deaf

_AGAIN: Final = 0.02
"""Seconds after which the main thread is told again."""

Call = Callable[[Callable[[], None]], object]
"""Calls something where an exception may be raised: here and now, or in an event loop between two steps."""


class _Handler:
    """What came, and what it waits for."""

    def __init__(self) -> None:
        self.calls: dict[object, Call] = {}
        """How it is raised for each application that is to end by it."""
        self.last_calls: list[LastCall] = []
        """What is called before that."""
        self._last_calls_are: Literal["due", "being made", "made"] = "due"
        self._deferring = 0
        self._came = False
        self._main_thread = threading.main_thread().ident

    def handle(self, _number: int, _frame: FrameType | None) -> None:
        if self._last_calls_are == "due" and self.last_calls:
            self._last_calls_are = "being made"
            # Not here: the main thread may be amid a save of the very arena that they write to.
            start_deaf(threading.Thread(target=self._make_last_calls, name="persistmem-on-stop", daemon=True))
        elif self._last_calls_are != "being made":
            self._last_calls_are = "due"
            self._came = True
            self._tell()

    def _make_last_calls(self) -> None:
        try:
            make_last_calls()
        finally:
            self._last_calls_are = "made"
            # A signal that comes just before the main thread goes back to sleep is not seen until it wakes up.
            while self._last_calls_are == "made":
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                time.sleep(_AGAIN)

    def defer(self) -> None:
        self._deferring += 1

    def resume(self) -> None:
        self._deferring -= 1
        self._tell()

    def raise_if_it_came(self) -> None:
        if self._came and not self._deferring:
            self._came = False
            raise SystemExit(_exit_status())

    def be_forked(self) -> None:
        """In a forked child nothing is saved: leave SIGTERM to the kernel there."""
        self.calls.clear()
        self.last_calls.clear()
        self._last_calls_are = "due"
        self._came = False
        if self._main_thread != threading.get_ident():  # this thread is it now, and was inside of nothing
            self._main_thread = threading.get_ident()
            self._deferring = 0
        self.give_back()

    def take(self) -> bool:
        """Handle SIGTERM, unless the program does itself, or this is not the main thread; return whether that is so."""
        if not _in_main_thread():
            return False
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self.handle)
        return signal.getsignal(signal.SIGTERM) == self.handle

    def give_back_if_unused(self) -> None:
        if not self.calls and not self.last_calls and self._last_calls_are == "due" and _in_main_thread():
            self.give_back()

    def give_back(self) -> None:
        if signal.getsignal(signal.SIGTERM) == self.handle:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _tell(self) -> None:
        if self._came and not self._deferring:
            *_, call = self.calls.values() or (_now,)
            call(self.raise_if_it_came)


def _exit_status() -> int:
    """What a shell expects of a program that SIGTERM ended; but systemd takes that for the failure of a service."""
    return 0 if os.environ.get("SYSTEMD_EXEC_PID") == str(os.getpid()) else 128 + signal.SIGTERM


def _now(function: Callable[[], None]) -> None:
    function()


def _in_main_thread() -> bool:
    return threading.get_ident() == threading.main_thread().ident


_handler: Final = _Handler()
os.register_at_fork(after_in_child=_handler.be_forked)


class Termination:
    """Raises SystemExit in the main thread at SIGTERM, where nobody else handles that.

    Its status is 143; or 0 in the main process of a systemd service.
    """

    def install(self, call: Call) -> None:
        """Handle SIGTERM, unless the program does itself, or this is not the main thread; ``call`` raises it."""
        if _handler.take():
            _handler.calls[self] = call

    def uninstall(self) -> None:
        """Leave SIGTERM to the kernel again, if no other application needs it; raise if it came and had to wait."""
        _handler.calls.pop(self, None)
        _handler.give_back_if_unused()
        if _in_main_thread():
            _handler.raise_if_it_came()


class LastCall:
    """Calls something once before this process ends: at SIGTERM, when it is made, or at the interpreter's exit.

    At SIGTERM it is called in a thread of its own, and SystemExit is raised in the main thread after it, where nobody
    else handles that signal; so it must not wait for the main thread to end.
    """

    def __init__(self, callback: Callable[[], object]) -> None:
        self._callback = callback
        self._lock = threading.RLock()
        self._pid = os.getpid()
        _handler.take()
        _handler.last_calls.append(self)

    def __call__(self) -> None:
        """Call it, unless it was called, or this is a forked child; if another thread is at it, wait for that."""
        with self._lock:
            if self in _handler.last_calls and self._pid == os.getpid():
                try:
                    self._callback()
                finally:
                    self.cancel()

    def cancel(self) -> None:
        """Never call it."""
        if self in _handler.last_calls:
            _handler.last_calls.remove(self)
        _handler.give_back_if_unused()


def make_last_calls() -> None:
    """Call what is to be called before the end, whatever one of them raises; that goes to threading.excepthook."""
    while _handler.last_calls:
        try:
            _handler.last_calls[0]()
        except Exception as error:  # noqa: BLE001 - each is somebody's last word, and the others have theirs
            threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, None)))


atexit.register(make_last_calls)


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
