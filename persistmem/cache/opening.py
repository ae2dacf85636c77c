"""A cache's region, open in this process: its records, its writer's lock, its row of counters; and what a fork does.

Knows arenas and regions; must not know keys or values.
"""

import os
import time
import weakref
from collections.abc import Callable
from typing import Final

import xxhash

from persistmem.arena import Arena
from persistmem.cache.counting import CacheStats, CounterRow, read_stats
from persistmem.cache.keylock import KeyLock
from persistmem.cache.layout import (
    HEADER_SIZE,
    ROWS_AFTER_LOCK,
    Geometry,
    decode_header,
    encode_header,
    writer_lock_at,
)
from persistmem.cache.store import Store
from persistmem.cache.writing import WriterLock
from persistmem.errors import ClosedError, Error

_KEY_LOCKS_AT: Final = 1 << 61


class OpenCache:
    """Everything that a cache has of the system, until it is closed."""

    def __init__(
        self,
        arena: Arena,
        namespace: str,
        size: int | None,
        *,
        items: int | None,
        timeout: float,
        clock: Callable[[], float],
    ) -> None:
        """Open the region ``namespace``, or make a cache of ``size`` bytes in it."""
        self.arena = arena
        self.is_closed = False
        self._clock = clock
        self._region = arena.region(namespace, size)
        record = self._region.record
        self.mapping = self._region.mapping
        self.words = memoryview(self.mapping)[record.offset : record.offset + (record.length & ~7)].cast("Q")
        self._lock_at = writer_lock_at(record.offset)
        self.lock = WriterLock(arena.descriptor(), self._lock_at, self.words, timeout=timeout, on_take=self._on_take)
        self._store: Store | None = None
        try:
            self._store = self.store = Store(self._geometry(items), self.mapping, record.offset, self.words, clock)
            self.row = CounterRow.shared(arena.descriptor(), self.store.geometry)
            self._count_in_row()
            try:
                with self.lock:
                    pass  # which claims a row
            except BaseException:
                self.row.close()
                raise
        except BaseException:
            self.lock.close()
            raise
        _open_caches.add(self)

    def check(self) -> None:
        """Raise if it must not be used any more.

        Raises:
            ClosedError, StaleArenaError: it was closed; its kernel is gone.
        """
        if self.is_closed:
            raise ClosedError("the cache was closed in this process; open it again")
        self.arena.check()

    def stats(self) -> CacheStats:
        """Add up what all processes have counted."""
        self.check()
        return read_stats(self.words, self.store.geometry, self.row.fd, self._lock_at + ROWS_AFTER_LOCK)

    def key_lock(self, name: bytes) -> KeyLock:
        """Return the lock of a key; not taken yet."""
        self.check()
        return KeyLock(self.arena.descriptor(), _KEY_LOCKS_AT | xxhash.xxh3_64_intdigest(name, self._lock_at) >> 3)

    def close(self) -> None:
        """Let go of it. Twice is fine."""
        if not self.is_closed:
            self.is_closed = True
            _open_caches.discard(self)
            self.lock.close()
            self.row.close()

    def be_forked(self) -> None:
        """Be in a forked child: what the parent holds, this does not."""
        try:
            self.lock.forget_parent(self.arena.descriptor())
            self.row.forget_parent(self.arena.descriptor(), self.store.geometry)
            self._count_in_row()
        except Error:
            self.lock.abandon()
            self.is_closed = True  # the arena was closed, or its kernel is gone: nothing of it may be used here

    def _geometry(self, items: int | None) -> Geometry:
        geometry = self._read_header()
        if geometry is None:
            with self.lock:
                geometry = self._read_header()
                if geometry is None:
                    record = self._region.record
                    seed = int.from_bytes(os.urandom(8), "little")
                    geometry = Geometry.plan(record.length & ~7, items, seed, time.time_ns())
                    header = encode_header(geometry)
                    self.mapping[record.offset : record.offset + HEADER_SIZE - 8] = header[:-8]
                    self.words[HEADER_SIZE // 8 - 1] = int.from_bytes(header[-8:], "little")
        return geometry

    def _read_header(self) -> Geometry | None:
        record = self._region.record
        return decode_header(self.mapping[record.offset : record.offset + HEADER_SIZE], record.length & ~7)

    def _on_take(self, died: bool) -> None:
        self.check()
        if self._store is None:
            return
        if died:
            self._store.recover()
        if self.row.is_shared:
            self.row.claim(self._lock_at + ROWS_AFTER_LOCK, self.words, self._store.geometry)
            self._count_in_row()

    def _count_in_row(self) -> None:
        if self.store.compiled is not None:
            self.store.compiled.row = self.row.at


_open_caches: "weakref.WeakSet[OpenCache]" = weakref.WeakSet()
"""Of this process: a forked child shares the parent's file descriptions, and must not share what they lock."""


def _after_fork() -> None:
    for opened in list(_open_caches):
        opened.be_forked()


os.register_at_fork(after_in_child=_after_fork)
