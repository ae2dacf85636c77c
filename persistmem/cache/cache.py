"""``persistmem.Cache``: a mapping that is still warm after the process, or the kernel, was replaced.

Puts keys, values, records and the writer's lock together; must not know how records lie or which are evicted.
"""

import os
import secrets
import time
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, Final, NamedTuple, Self, TypeVar

import xxhash

from persistmem.arena import Arena
from persistmem.arena.types import TypeRegistry, registry
from persistmem.attachment import attach
from persistmem.cache.counting import CacheStats, CounterRow, read_stats
from persistmem.cache.durations import Duration, seconds
from persistmem.cache.keylock import KeyLock
from persistmem.cache.keys import Key, decode_key, encode_key
from persistmem.cache.layout import (
    FREQUENCY_MAX,
    HEADER_SIZE,
    PLACE_MASK,
    Counter,
    Geometry,
    Word,
    decode_header,
    encode_header,
)
from persistmem.cache.memoize import memoize
from persistmem.cache.store import Found, Store, expiry
from persistmem.cache.values import EXPIRES, Values
from persistmem.cache.writing import WriterLock
from persistmem.errors import NotFoundError, UnsupportedTypeError
from persistmem.sizes import parse_size

F = TypeVar("F", bound=Callable[..., Any])

TIMEOUT_DEFAULT: Final = 10.0
"""Seconds to wait for another writer."""

NAMESPACE_DEFAULT: Final = "cache"
"""The region of a cache that has an arena for itself."""

_ARENA_OVERHEAD: Final = 32 << 10
"""Bytes of an arena that its one cache leaves for header and catalogues."""
_LOCKS_AT: Final = 1 << 62
_KEY_LOCKS_AT: Final = 1 << 61
_SHORTCUTS_MAX: Final = 1 << 15
_MISSING: Final = object()

_digest = xxhash.xxh3_64_intdigest


class _Shortcut(NamedTuple):
    """Where this process found a key last, and what it found there.

    Valid as long as the index's word is the same and the bytes there have the same checksum: then they are the very
    record that was compared with the key.
    """

    word: int
    entry: int
    lowest: int
    end: int
    checksum: int
    frequency_at: int
    value_at: int
    value_end: int
    expires: float | None
    decode: Callable[[bytes], object]


class Cache(MutableMapping[Key, Any]):
    """A cache in an arena: bounded, shared by threads and processes, and there again after a restart or an upgrade.

    Keys are str, bytes, int, and tuples of these. Values are everything a snapshot takes; what comes back is the
    caller's own. Readers take no lock; writers take turns. When it is full, what was not read lately makes room: no
    call fails because of that. A value that fails its check is a miss, and is counted.

    It is shared memory, so copies of one key in two processes are never different. Expiry goes by the wall clock
    (``clock``): if that jumps ahead, what it passed is gone; if it goes back, values live longer by as much.

    Cost: reading a small value takes half a microsecond to one, and writing one about one; opening a cache takes the
    same for ten items and for ten million.

    >>> import persistmem.testing
    >>> cache = Cache(persistmem.testing.new_arena("1MiB"), "512KiB")
    >>> cache["ada"] = {"born": 1815, "tags": ("math", "poetry")}
    >>> cache["ada"]
    {'born': 1815, 'tags': ('math', 'poetry')}
    >>> cache.set("session", b"...", ttl="20m")
    >>> cache.incr("visits", default=0), cache.incr("visits")
    (1, 2)
    """

    def __init__(
        self,
        where: str | Arena,
        size: int | str | None = None,
        *,
        namespace: str | None = None,
        items: int | None = None,
        timeout: float = TIMEOUT_DEFAULT,
        clock: Callable[[], float] = time.time,
        types: TypeRegistry = registry,
    ) -> None:
        """Open the cache, or make it.

        Args:
            where: the name of an arena for this cache alone, or, with a namespace, of one that holds others, too; or
                an arena that is attached already.
            size: of that arena; with a namespace or an arena, of this cache in it. None if it is there already.
            namespace: what this cache is called in its arena: the name of a region.
            items: how many the index is to have room for, if it is made now; by default for items of 80 bytes and up.
            timeout: seconds to wait for another writer before :class:`persistmem.BusyError`.
            clock: seconds since 1970, for expiry.
            types: the user's own types.

        Raises:
            NotFoundError: there is none, and no size.
            SizeError, ArgumentError: it is there with another size, or no cache can have this one.
            ArenaFullError: the arena has no room for it.
            CorruptError: the region holds something else.
            and what :func:`persistmem.attach` raises.
        """
        self._values = Values(types)
        self._clock = clock
        self._shortcuts: dict[Hashable, _Shortcut] = {}
        alone = isinstance(where, str) and namespace is None
        self._arena = where if isinstance(where, Arena) else attach(where, size if alone else None)
        room = self._arena.size - _ARENA_OVERHEAD if alone else (parse_size(size) if size is not None else None)
        self._region = self._arena.region(namespace or NAMESPACE_DEFAULT, room)
        record = self._region.record
        self._mapping = self._region.mapping
        self._words = memoryview(self._mapping)[record.offset : record.offset + (record.length & ~7)].cast("Q")
        self._lock_at = _LOCKS_AT + record.offset
        self._lock = WriterLock(
            self._arena.descriptor(), self._lock_at, self._words, timeout=timeout, on_take=self._on_take
        )
        try:
            self._store = self._open(items)
            self._use_row(self._claim_row())
        except BaseException:
            self._lock.close()
            raise
        _open_caches.add(self)

    # Reading

    def get(self, key: Hashable, default: Any = None) -> Any:  # noqa: ANN401 - a value is what the caller stored
        """Return the value of ``key``, checked, or ``default``.

        Raises:
            UnsupportedTypeError: no key is of this type; or the value holds a type that is not registered.
            StaleArenaError: the kernel was replaced under this process; open the cache again.
        """
        shortcut = self._shortcuts.get(key)
        if shortcut is not None:
            word, entry, lowest, end, checksum, frequency_at, value_at, value_end, expires, decode = shortcut
            words, mapping = self._words, self._mapping
            if words[word] == entry:
                payload = mapping[lowest:end]
                if _digest(payload) == checksum and (expires is None or expires > self._clock()):
                    if mapping[frequency_at] < FREQUENCY_MAX:
                        mapping[frequency_at] += 1
                    words[self._hits] += 1
                    return decode(payload[value_at:value_end])
        value = self._read(key)
        return default if value is _MISSING else value

    def __getitem__(self, key: Hashable) -> Any:  # noqa: ANN401 - a value is what the caller stored
        """Return the value of ``key``. NotFoundError, a KeyError, if there is none."""
        value = self.get(key, _MISSING)
        if value is _MISSING:
            raise NotFoundError(f"cache: there is no item {key!r:.200}; it may never have been set, or made room")
        return value

    def get_many(self, keys: Iterable[Key]) -> dict[Key, Any]:
        """Return those of ``keys`` that are there, with their values."""
        found = ((key, self.get(key, _MISSING)) for key in keys)
        return {key: value for key, value in found if value is not _MISSING}

    def __contains__(self, key: object) -> bool:
        """Tell whether there is a value that has not expired. Does not count as reading it."""
        return self._find(encode_key(key)) is not None

    def __len__(self) -> int:
        """Return how many items there are, those that have expired included until their memory is needed."""
        self._arena.check()
        return self._store.words[Word.ITEMS]

    def __iter__(self) -> Iterator[Key]:
        """Give the keys there are, in no order. What is set or evicted meanwhile may be among them or not.

        Cost: a look at every slot of the index.
        """
        self._arena.check()
        for slot in self._store.slots():
            payload = self._store.payload_of(slot)
            if payload and not self._is_over(payload):
                yield decode_key(payload)[0]

    # Writing

    def set(self, key: Key, value: object, ttl: Duration | None = None) -> None:
        """Store ``value`` under ``key``, in place of what is there, and for ``ttl`` if that is given.

        Raises:
            UnsupportedTypeError: no key is of this type, or the value cannot be stored; the message says why.
            SizeError: the item is larger than a quarter of the cache, or the key than 32 KiB.
            BusyError: another process was writing all the time.
        """
        packed, kind = self._values.encode(value)
        name, expires = encode_key(key), self._expiry(ttl)
        with self._lock:
            self._store.put(name, packed, kind, expires)
            self._words[self._sets] += 1

    def __setitem__(self, key: Key, value: object) -> None:
        """Store a value that does not expire."""
        self.set(key, value)

    def set_many(self, items: Mapping[Key, object], ttl: Duration | None = None) -> None:
        """Store several values at once, which is a third cheaper than one by one. Each is atomic, all together are not.

        Raises:
            as :meth:`set`; then none is stored, unless an item is too large: then those before it are.
        """
        packed = [(encode_key(key), *self._values.encode(value)) for key, value in items.items()]
        expires = self._expiry(ttl)
        with self._lock:
            for name, value, kind in packed:
                self._store.put(name, value, kind, expires)
                self._words[self._sets] += 1

    def add(self, key: Key, value: object, ttl: Duration | None = None) -> bool:
        """Store ``value`` if there is none, and return whether it was."""
        return self._set_if(key, value, ttl, present=False)

    def replace(self, key: Key, value: object, ttl: Duration | None = None) -> bool:
        """Store ``value`` if there is one already, and return whether it was."""
        return self._set_if(key, value, ttl, present=True)

    def setdefault(self, key: Key, default: Any = None) -> Any:  # noqa: ANN401 - a value is what the caller stored
        """Return the value of ``key``; store ``default`` first if there is none. Atomic."""
        with self._lock:
            found = self._find(encode_key(key))
            if found is None:
                packed, kind = self._values.encode(default)
                self._store.put(encode_key(key), packed, kind, None)
                self._words[self._sets] += 1
                return default
            return self._value(found)

    def touch(self, key: Key, ttl: Duration | None = None) -> bool:
        """Let the value of ``key`` live for ``ttl`` from now, or for ever; return whether there is one."""
        name, expires = encode_key(key), self._expiry(ttl)
        with self._lock:
            found = self._find(name)
            if found is not None:
                self._store.put(name, found.value, found.kind & ~EXPIRES, expires)
        return found is not None

    def incr(self, key: Key, delta: int = 1, *, default: int | None = None, ttl: Duration | None = None) -> int:
        """Add ``delta`` to the int under ``key``, and return the sum. Atomic among threads and processes.

        Args:
            key: its key.
            delta: what to add; may be negative.
            default: what to start from if there is none.
            ttl: how long it lives if it is made; one that is there keeps its time.

        Raises:
            NotFoundError: there is none, and no default.
            UnsupportedTypeError: it is no int.
        """
        name, fresh = encode_key(key), self._expiry(ttl)
        with self._lock:
            found = self._find(name)
            if found is None and default is None:
                raise NotFoundError(f"cache: there is no item {key!r:.200} to add to; give a default to make it")
            before = self._value(found) if found is not None else default
            if type(before) is not int:
                raise UnsupportedTypeError(f"cache: item {key!r:.200}: expected an int, found {type(before).__name__}")
            packed, kind = self._values.encode(before + delta)
            self._store.put(name, packed, kind, found.expires if found is not None else fresh)
            self._words[self._sets] += 1
        return before + delta

    def decr(self, key: Key, delta: int = 1, *, default: int | None = None, ttl: Duration | None = None) -> int:
        """Subtract ``delta``; as :meth:`incr`."""
        return self.incr(key, -delta, default=default, ttl=ttl)

    # Removing

    def delete(self, key: Hashable) -> bool:
        """Remove ``key``, and return whether it was there."""
        name = encode_key(key)
        with self._lock:
            return self._remove(name) is not None

    def __delitem__(self, key: Hashable) -> None:
        """Remove ``key``. NotFoundError, a KeyError, if it is not there."""
        if not self.delete(key):
            raise NotFoundError(f"cache: there is no item {key!r:.200} to remove")

    def delete_many(self, keys: Iterable[Key]) -> int:
        """Remove several keys, and return how many were there."""
        names = [encode_key(key) for key in keys]
        with self._lock:
            return sum(self._remove(name) is not None for name in names)

    def pop(self, key: Key, default: Any = _MISSING) -> Any:  # noqa: ANN401 - a value is what the caller stored
        """Remove ``key`` and return its value, or ``default``. Atomic: one of many callers gets it.

        Raises:
            NotFoundError: there is none, and no default.
        """
        name = encode_key(key)
        with self._lock:
            found = self._remove(name)
        if found is not None:
            return self._value(found)
        if default is _MISSING:
            raise NotFoundError(f"cache: there is no item {key!r:.200} to remove")
        return default

    def clear(self) -> None:
        """Remove everything. Cost: writes the index, a tenth of the cache."""
        with self._lock:
            self._store.clear()

    def expire(self) -> int:
        """Remove what has expired now, and return how many that were. It is not given out anyway, and makes room first.

        Cost: a look at every item.
        """
        removed = 0
        with self._lock:
            for slot in self._store.slots():
                payload = self._store.payload_of(slot)
                if payload and self._is_over(payload):
                    self._store.remove(slot)
                    removed += 1
        return removed

    # About it

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def arena(self) -> Arena:
        """The arena that it is in."""
        return self._arena

    def stats(self) -> CacheStats:
        """Return what all processes together have counted, and how full it is."""
        self._arena.check()
        return read_stats(self._words, self._store.geometry, self._row.fd, self._lock_at + 1)

    def now(self) -> float:
        """Return the time by the cache's clock."""
        return self._clock()

    def pack(self, value: object) -> bytes:
        """Return a value's bytes, as they would be stored; the same for equal values of the same types."""
        return self._values.encode(value)[0]

    def key_lock(self, key: Key) -> KeyLock:
        """Return the lock of one key, among threads and processes, for who computes its value; it is not taken yet.

        It keeps nobody from reading or writing the key. The caller closes it; the kernel releases a dead process's.
        """
        place = _KEY_LOCKS_AT | _digest(encode_key(key), self._lock_at) >> 3
        return KeyLock(self._arena.descriptor(), place)

    def memoize(
        self,
        ttl: Duration | None = None,
        *,
        typed: bool = False,
        key: Callable[..., Key] | None = None,
        early: float = 0.0,
    ) -> Callable[[F], F]:
        """Return a decorator that keeps the results of a function, or of a coroutine function, here.

        One call for each key computes at a time, among all threads, tasks and processes; the others wait for its
        result. If its process dies, one of them computes. What it raises is raised, and not kept.

        Args:
            ttl: how long a result lives.
            typed: whether arguments that are equal but of different types, 3, 3.0 and True, have results of their own.
            key: makes the key from the arguments; without it the function's name and all arguments are the key, and
                they have to be what a snapshot takes.
            early: how eagerly a result is computed anew, in the background, before its time is up, so that nobody has
                to wait: 0 is never, 1 is about as long before as computing takes, more is earlier (Vattani et al.,
                "Optimal probabilistic cache stampede prevention", VLDB 2015).

        The function gets an attribute ``cache_key``, which returns the key of a call: ``del cache[f.cache_key(3)]``.

        >>> import persistmem.testing
        >>> cache = Cache(persistmem.testing.new_arena("1MiB"), "512KiB")
        >>> @cache.memoize(ttl="1h")
        ... def square(number):
        ...     print("computing")
        ...     return number * number
        >>> square(3), square(3)
        computing
        (9, 9)
        """
        return memoize(self, ttl, typed=typed, key=key, early=early)

    def close(self) -> None:
        """Let go of it in this process. The cache stays in its arena."""
        self._finalize()
        self._shortcuts.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Inside

    def _open(self, items: int | None) -> Store:
        record = self._region.record
        geometry = self._read_header()
        if geometry is None:
            with self._lock:
                geometry = self._read_header()
                if geometry is None:
                    geometry = Geometry.plan(record.length & ~7, items, secrets.randbits(64), time.time_ns())
                    self._mapping[record.offset : record.offset + HEADER_SIZE - 8] = encode_header(geometry)[:-8]
                    self._words[HEADER_SIZE // 8 - 1] = int.from_bytes(encode_header(geometry)[-8:], "little")
        return Store(geometry, self._mapping, record.offset, self._words, self._clock)

    def _read_header(self) -> Geometry | None:
        record = self._region.record
        return decode_header(self._mapping[record.offset : record.offset + HEADER_SIZE], record.length & ~7)

    def _use_row(self, row: CounterRow) -> None:
        self._row = row
        self._hits, self._misses = row.at + Counter.HITS, row.at + Counter.MISSES
        self._sets, self._deletes = row.at + Counter.SETS, row.at + Counter.DELETES
        self._finalize = weakref.finalize(self, _close, self._lock, row)

    def be_forked(self) -> None:
        """Be in a forked child: what the parent holds, this does not."""
        self._lock.forget_parent(self._arena.descriptor())
        self._row.close()
        self._finalize.detach()
        self._use_row(self._claim_row())

    def _claim_row(self) -> CounterRow:
        with self._lock:
            return CounterRow.claim(self._arena.descriptor(), self._lock_at + 1, self._words, self._store.geometry)

    def _on_take(self, died: bool) -> None:
        self._arena.check()
        if died and hasattr(self, "_store"):
            self._store.recover()

    def _expiry(self, ttl: Duration | None) -> float | None:
        return None if ttl is None else self._clock() + seconds(ttl)

    def _is_over(self, payload: bytes) -> bool:
        expires = expiry(payload)
        return expires is not None and expires <= self._clock()

    def _find(self, name: bytes) -> Found | None:
        found = self._store.find(name)
        return None if found is None or self._is_over(found.payload) else found

    def _remove(self, name: bytes) -> Found | None:
        found = self._store.find(name)
        if found is None:
            return None
        self._store.remove(found.slot)
        if self._is_over(found.payload):
            return None
        self._words[self._deletes] += 1
        return found

    def _set_if(self, key: Key, value: object, ttl: Duration | None, *, present: bool) -> bool:
        packed, kind = self._values.encode(value)
        name, expires = encode_key(key), self._expiry(ttl)
        with self._lock:
            if (self._find(name) is not None) is not present:
                return False
            self._store.put(name, packed, kind, expires)
            self._words[self._sets] += 1
        return True

    def _value(self, found: Found) -> Any:  # noqa: ANN401 - a value is what the caller stored
        return self._values.decode(found.value, found.kind & ~EXPIRES)

    def _read(self, key: Hashable) -> Any:  # noqa: ANN401 - a value is what the caller stored
        """The value, and a shortcut to it for the next time."""
        found = self._find(encode_key(key))
        if found is None:
            self._arena.check()
            self._words[self._misses] += 1
            return _MISSING
        self._words[self._hits] += 1
        slot, entry, payload, value_at = found
        frequency_at = self._store.frequencies_at + slot
        if self._mapping[frequency_at] < FREQUENCY_MAX:
            self._mapping[frequency_at] += 1
        value, decode = self._values.decode_with(found.value, found.kind & ~EXPIRES)
        if decode is not None:
            if len(self._shortcuts) >= _SHORTCUTS_MAX:
                self._shortcuts.clear()
            lowest = ((entry & PLACE_MASK) << 3) + self._store.payload_at
            self._shortcuts[key] = _Shortcut(
                self._store.entries_at + slot,
                entry,
                lowest,
                lowest + len(payload),
                _digest(payload),
                frequency_at,
                value_at,
                -9 if found.kind & EXPIRES else -1,
                found.expires,
                decode,
            )
        return value


def _close(lock: WriterLock, row: CounterRow) -> None:
    lock.close()
    row.close()


_open_caches: "weakref.WeakSet[Cache]" = weakref.WeakSet()
"""Of this process: a forked child shares the parent's file descriptions, and must not share what they lock."""


def _after_fork() -> None:
    for cache in list(_open_caches):
        cache.be_forked()


os.register_at_fork(after_in_child=_after_fork)
