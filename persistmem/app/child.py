"""Work that a forked child does with the memory as it was, while this process goes on. Knows not what the work is."""

import gc
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NoReturn

from persistmem.errors import Error

_OUTCOME_MAX: Final = 64 << 10
_DONE: Final = "done"


class Child:
    """A child that does its work and ends. Cost here: one fork(2), some milliseconds for each GiB of this process."""

    def __init__(self, work: Callable[[], int]) -> None:
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
        self._pid = pid
        self._reader = reader
        self._waiting = threading.Lock()
        self._outcome: int | Error | None = None

    def wait(self) -> int | Error:
        """Wait until it has ended, in any number of threads; return what its work returned, or why that failed."""
        with self._waiting:
            if self._outcome is None:
                self._outcome = self._read_outcome()
            return self._outcome

    def _read_outcome(self) -> int | Error:
        told = b""
        try:
            while len(told) < _OUTCOME_MAX and (more := os.read(self._reader, _OUTCOME_MAX - len(told))):
                told += more
        finally:
            os.close(self._reader)
            with suppress(ChildProcessError):  # of a program that has its children reaped by the kernel
                os.waitpid(self._pid, 0)
        word, _, rest = told.decode(errors="replace").partition(" ")
        if word == _DONE:
            return int(rest)
        return Error(rest or "the child that packed the state was killed; what was saved before is as it was")


def _be_child(work: Callable[[], int], writer: int) -> NoReturn:
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
