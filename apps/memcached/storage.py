"""Items by key, in a ``persistmem.Cache``: what expires when, numbers that no two stores share, and flushing.

Knows the cache and items; must not know how a client speaks. One server has a cache at a time, in one thread: so what
reads an item and stores it anew is atomic.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

import persistmem
from apps.memcached.items import Item, is_record

SIZE_DEFAULT: Final = "64MiB"
_MONTH: Final = 60 * 60 * 24 * 30
_FOREVER: Final = (1 << 32) - 1
_PAST: Final = 1
"""A second that is over."""
_SNAPSHOT: Final = "memcached"
_SERVER: Final = ("memcached", "server")
"""The key whose lock the one server holds: no client can name it."""
_COUNT_BITS: Final = 32
_PATIENCE: Final = 1.0
"""Seconds to wait for another program that writes to the cache: no client is served meanwhile."""


class ServedError(persistmem.Error, OSError):
    """Another server has this cache."""


class Storage:
    """The items of one cache, which is opened when this is made, and made if it is not there."""

    def __init__(self, name: str, size: int | str | None = None, *, clock: Callable[[], float] = time.time) -> None:
        """Open the cache ``name``.

        Args:
            name: that of its arena.
            size: of the arena, if it is made; None for that of the one there is, or else 64 MiB.
            clock: seconds since 1970.

        Raises:
            ServedError: another server has it.
            and what :class:`persistmem.Cache` raises.
        """
        self._name = name
        self._size = size
        self._clock = clock
        self._opened = ExitStack()
        self._open()

    def _open(self) -> None:
        try:
            self._cache = persistmem.Cache(self._name, self._size, clock=self._clock, timeout=_PATIENCE)
        except persistmem.NotFoundError:
            self._cache = persistmem.Cache(self._name, SIZE_DEFAULT, clock=self._clock, timeout=_PATIENCE)
        server_lock = self._cache.key_lock(_SERVER)
        for close in (self._cache.arena.close, self._cache.close, server_lock.close):
            self._opened.callback(close)
        if not server_lock.try_take():
            self.close()
            raise ServedError(
                f"cache {self._name!r}: another server has it; stop that one, or give this one a cache of its own"
            )
        epoch, self._flush_at = self._recall()
        self._begin_epoch(epoch + 1)
        self.flush_if_due()

    def reopen(self) -> None:
        """Open the cache anew, after the kernel was replaced under it.

        Raises:
            as when it was opened first; then it is closed.
        """
        self.close()
        self._open()

    def close(self) -> None:
        """Let go of the cache, which stays. Twice is fine."""
        self._opened.close()

    # Items

    @property
    def get(self) -> Callable[[bytes], object]:
        """The cache's own get, half a microsecond for what is read often: a record, or None, or another program's."""
        return self._cache.get

    def find(self, key: bytes) -> Item | None:
        """Return an item that has not expired."""
        value = self._cache.get(key)
        return Item.decode(value) if is_record(value) else None

    def put(self, key: bytes, item: Item) -> None:
        """Store an item, with the cas unique that it has; one whose time is over is gone then.

        Raises:
            SizeError: it is larger than a quarter of the cache. What was there is there still.
        """
        self._cache.arena.check()  # who writes all the time keeps the cache's lock, and would never be told
        if not item.expires:
            self._cache.set(key, item.encode())
        elif (ttl := item.expires - self._clock()) > 0:
            self._cache.set(key, item.encode(), ttl)
        else:
            self._cache.delete(key)

    def delete(self, key: bytes) -> bool:
        """Remove an item; tell whether it was there."""
        self._cache.arena.check()
        return self._cache.delete(key)

    def next_cas(self) -> int:
        """Return a cas unique that no item has or had."""
        self._cas += 1
        if not self._cas & (1 << _COUNT_BITS) - 1:
            self._begin_epoch(self._cas >> _COUNT_BITS)
        return self._cas

    # Time

    def now(self) -> int:
        """Return the second it is, since 1970."""
        return int(self._clock())

    def expiry(self, exptime: int) -> int:
        """Return when that is which clients call ``exptime``: seconds since 1970, or 0 for never.

        Up to 30 days count from now, more than that from 1970; negative ones are over.
        """
        if exptime <= 0:
            return _PAST if exptime else 0
        return min(_FOREVER, exptime if exptime > _MONTH else self.now() + exptime)

    # Flushing

    def flush(self, delay: int = 0) -> None:
        """Remove all items, now or at the time that clients call ``delay``: then it is done even after a restart.

        Cost: writes the index, a tenth of the cache: 2 ms for 64 MiB.
        """
        self._flush_at = self.expiry(delay) if delay > 0 else self.now()
        if self._flush_at > self.now():
            self._remember()
        self.flush_if_due()

    def flush_if_due(self) -> None:
        """Remove all items if the time has come for it; to be called before anything else is done."""
        if self._flush_at and self._flush_at <= self.now():
            self._cache.clear()  # first: who dies here does it again, and stored nothing in between
            self._flush_at = 0
            self._remember()

    # About it

    def stats(self) -> persistmem.CacheStats:
        """Return what the cache has counted since it was made."""
        return self._cache.stats()

    @property
    def size(self) -> int:
        """Bytes of the arena."""
        return self._cache.arena.size

    def check(self) -> None:
        """Look whether the cache is still that of the kernel that runs, and open it anew if not."""
        try:
            self._cache.arena.check()
        except (persistmem.StaleArenaError, persistmem.ClosedError):
            self.reopen()

    # Cas uniques: a count of those given out since the cache was opened, and before it how often that was, or the
    # minutes since 1970 if they are more: so losing the snapshot repeats none, and neither does a clock that goes back.

    def _begin_epoch(self, least: int) -> None:
        self._cas = max(least, self.now() // 60) << _COUNT_BITS
        self._remember()

    def _remember(self) -> None:
        self._cache.arena.snapshot(_SNAPSHOT, [self._cas >> _COUNT_BITS, self._flush_at])

    def _recall(self) -> tuple[int, int]:
        try:
            found = self._cache.arena.restore(_SNAPSHOT, default=None)
        except persistmem.CorruptError:
            found = None
        match found:
            case [int(epoch), int(flush_at)]:
                return epoch, flush_at
        return 0, 0
