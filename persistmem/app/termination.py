"""SIGTERM as an exception, so that a program that is told to end comes by its ``with``; never amid a save."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

EXIT_CODE: Final = 128 + signal.SIGTERM


class Termination:
    """Raises SystemExit(143) in the main thread at SIGTERM, where nobody else handles that."""

    def __init__(self) -> None:
        self._is_installed = False
        self._deferring = 0
        self._came = False

    def install(self) -> None:
        """Handle SIGTERM, unless the program does itself, or this is not the main thread."""
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._handle)
            self._is_installed = True

    def uninstall(self) -> None:
        """Leave SIGTERM to the kernel again; raise if it came while it was deferred."""
        if self._is_installed and threading.current_thread() is threading.main_thread():
            self._is_installed = False
            if signal.getsignal(signal.SIGTERM) == self._handle:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._raise_if_it_came()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let what is inside finish first."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._deferring += 1
        try:
            yield
        finally:
            self._deferring -= 1
        self._raise_if_it_came()

    def _raise_if_it_came(self) -> None:
        if self._came and not self._deferring:
            self._came = False
            raise SystemExit(EXIT_CODE)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self._came = True
        self._raise_if_it_came()
