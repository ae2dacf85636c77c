"""The one writer: a lock among threads and processes, which who writes alone keeps for a while. Knows no record.

A system call for each write would cost more than the write. So a process that writes twice within a millisecond keeps
the lock, an OFD lock on one byte, until another one sets the word WANTED, or until it has not written for some
milliseconds. The kernel releases the lock of a process that dies; the word WRITING then says that it may have been in
the middle of something.
"""

import os
import threading
import weakref
from collections.abc import Callable
from time import monotonic, sleep
from typing import Final

from persistmem.arena.locks import try_lock, unlock_all
from persistmem.cache.layout import Word
from persistmem.cache.words import Words
from persistmem.errors import BusyError, ClosedError, Error
from persistmem.threads import start_deaf

KEEP: Final = 0.002
"""Seconds without a write after which the lock is given back."""
_BURST: Final = 0.001
_SHARED: Final = 0.05
"""Seconds for which it is not kept after another process wanted it."""
_WAIT_FIRST: Final = 20e-6
_WAIT_MAX: Final = 1e-3
_NO_WORDS: Final = memoryview(bytearray())


class WriterLock:
    """Held by one thread of one process; ``with`` takes it and gives it back, or keeps it for the process."""

    def __init__(self, fd: int, place: int, words: Words, *, timeout: float, on_take: Callable[[bool], None]) -> None:
        """Use the byte at ``place`` of ``fd``, a description of its own, which is the lock's to close.

        ``on_take`` is told, with the lock held, whether somebody died who held it. It may raise.
        """
        self._fd = fd
        self._place = place
        self._words = words
        self._timeout = timeout
        self._on_take = on_take
        self._thread_lock = threading.Lock()
        self._kept = False
        self._used = False
        self._given_at = 0.0
        self._shared_until = 0.0
        self._watched = threading.Event()
        self._watcher: threading.Thread | None = None
        self._closed = False

    def __enter__(self) -> None:
        if not self._thread_lock.acquire(False) and not self._thread_lock.acquire(timeout=self._timeout):
            raise self._busy("thread of this process")
        if self._kept:
            self._used = True
            return
        try:
            self._take()
        except BaseException:
            self._thread_lock.release()
            raise

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._kept and kind is None and not self._words[Word.WANTED]:
            self._thread_lock.release()
            return
        try:
            # Our own errors are raised before anything is written.
            self._leave(broken=kind is not None and not issubclass(kind, Error))
        finally:
            self._thread_lock.release()

    @property
    def is_closed(self) -> bool:
        """Whether it was given back for good."""
        return self._closed

    def close(self) -> None:
        """Give it back for good."""
        with self._thread_lock:
            if not self._closed:
                if self._kept:
                    self._give(broken=False)
                self._closed = True
                self._on_take, self._words = _let_go, _NO_WORDS  # they hold the memory, and a watcher may hold this
                os.close(self._fd)
        self._watched.set()

    def forget_parent(self, fd: int) -> None:
        """Be a forked child, with ``fd`` in place of the parent's description: what the parent holds, this does not."""
        os.close(self._fd)
        self._fd = fd
        self._thread_lock = threading.Lock()
        self._kept = False
        self._watcher = None
        self._watched = threading.Event()

    def abandon(self) -> None:
        """Be a forked child that may not write: every later use raises ClosedError."""
        self._kept = False
        self._closed = True
        self._thread_lock = threading.Lock()

    @property
    def fd(self) -> int:
        """The description that the lock belongs to."""
        return self._fd

    def _take(self) -> None:
        if self._closed:
            raise ClosedError("cache: it was closed in this process; open it again")
        deadline = 0.0
        wait = _WAIT_FIRST
        while not try_lock(self._fd, self._place, 1, exclusive=True):
            self._words[Word.WANTED] = 1
            now = monotonic()
            deadline = deadline or now + self._timeout
            if now >= deadline:
                raise self._busy("process")
            sleep(wait)
            wait = min(2 * wait, _WAIT_MAX)
            self._shared_until = now + _SHARED
        died = bool(self._words[Word.WRITING])
        self._words[Word.WRITING] = 1
        try:
            self._on_take(died)
        except BaseException:
            self._give(broken=died)
            raise

    def _leave(self, *, broken: bool) -> None:
        now = monotonic()
        wanted = self._words[Word.WANTED]
        if wanted:
            self._shared_until = now + _SHARED
        if broken or wanted or now < self._shared_until or now - self._given_at > _BURST:
            self._given_at = now
            self._give(broken=broken)
            return
        self._kept = self._used = True
        if self._watcher is None:
            self._watcher = threading.Thread(
                target=_watch, args=(weakref.ref(self), self._watched), name="persistmem-cache", daemon=True
            )
            start_deaf(self._watcher)
            weakref.finalize(self, self._watched.set)
        self._watched.set()

    def _give(self, *, broken: bool) -> None:
        """Unlock; ``broken`` leaves word that something may be half done."""
        self._kept = False
        self._watched.clear()
        self._words[Word.WANTED] = 0
        if not broken:
            self._words[Word.WRITING] = 0
        unlock_all(self._fd)

    def give_back_if_unused(self) -> None:
        """Give the lock back unless it was used since this was called last."""
        with self._thread_lock:
            if self._kept:
                if self._used and not self._words[Word.WANTED]:
                    self._used = False
                else:
                    self._give(broken=False)

    def _busy(self, who: str) -> BusyError:
        return BusyError(f"cache: another {who} is writing, and did not finish within {self._timeout:g} s; try again")


def _let_go(_: bool) -> None:
    """In place of a closed lock's ``on_take``."""


def _watch(lock: "weakref.ref[WriterLock]", kept: threading.Event) -> None:
    while True:
        kept.wait()
        sleep(KEEP)
        if (found := lock()) is None or found.is_closed:
            return
        found.give_back_if_unused()
        del found
