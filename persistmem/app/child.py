"""Work that a forked child does with the memory as it was, while this process goes on. Knows not what the work is."""

import gc
import os
import select
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NoReturn

from persistmem.errors import Error

_OUTCOME_MAX: Final = 4096
"""Bytes that every pipe takes at once."""
_DONE: Final = "done"


class Child:
    """A child that does its work and ends. Cost here: one fork(2), some milliseconds for each GiB of this process."""

    def __init__(self, work: Callable[[], str]) -> None:
        """Fork, and have the child call ``work``."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            pid = os.fork()
        except BaseException:
            os.close(reader)
            os.close(writer)
            raise
        if pid == 0:
            _be_child(work, writer)
        os.close(writer)
        try:
            self._pidfd = os.pidfd_open(pid)
        except OSError:
            # Whoever does not see its end must not let it save: what is saved next may be newer.
            os.kill(pid, signal.SIGKILL)
            _reap(pid)
            os.close(reader)
            raise
        self._pid = pid
        self._reader = reader
        self._waiting = threading.Lock()
        self._outcome: str | Error | None = None

    def wait(self) -> str | Error:
        """Wait until it has ended, in any number of threads; return what its work returned, or why that failed."""
        with self._waiting:
            if self._outcome is None:
                self._outcome = self._read_outcome()
            return self._outcome

    def _read_outcome(self) -> str | Error:
        # Its end tells that all is said, not the pipe's: a child that the program forked meanwhile may hold that open.
        ended = select.poll()
        ended.register(self._pidfd, select.POLLIN)
        ended.poll()
        os.close(self._pidfd)
        _reap(self._pid)
        os.set_blocking(self._reader, False)
        with os.fdopen(self._reader, "rb", buffering=0) as said:
            told = said.read(_OUTCOME_MAX) or b""
        word, _, rest = told.decode(errors="replace").partition(" ")
        if word == _DONE:
            return rest
        return Error(rest or "the child that packed the state was killed; what was saved before is as it was")


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):  # of a program that has its children reaped by the kernel
        os.waitpid(pid, 0)


def _be_child(work: Callable[[], str], writer: int) -> NoReturn:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # handlers, and who they tell, are the parent's
    gc.disable()  # a collection would copy every page that this process shares with its parent
    outcome = ""
    try:
        outcome = f"{_DONE} {work()}"
    except BaseException as error:  # noqa: BLE001 - the parent tells it
        outcome = f"failed {type(error).__name__}: {error}"
    finally:
        try:
            os.write(writer, outcome.encode(errors="replace")[:_OUTCOME_MAX])
        finally:
            os._exit(0)
