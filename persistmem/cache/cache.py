"""``persistmem.Cache``: a mapping that is still warm after the process, or the kernel, was replaced.

Puts keys, values, records and the writer's lock together; must not know how records lie or which are evicted.
"""

import time
import weakref
from collections.abc import Callable, Hashable, ItemsView, Iterable, Iterator, Mapping, MutableMapping, ValuesView
from typing import Any, Final, Never, Self, TypeVar, cast

import xxhash

from persistmem.arena import Arena
from persistmem.arena.types import TypeRegistry, registry
from persistmem.attachment import attach
from persistmem.cache.counting import CacheStats
from persistmem.cache.keylock import KeyLock
from persistmem.cache.keys import Key, decode_key, encode_key, shown
from persistmem.cache.layout import FREQUENCY_MAX, Counter, Word
from persistmem.cache.memoize import memoize
from persistmem.cache.opening import OpenCache
from persistmem.cache.shortcuts import SHORTCUTS_DEFAULT, Shortcuts
from persistmem.cache.store import Found, Store
from persistmem.cache.values import PLAIN, RAW, Values, unpack
from persistmem.cache.words import WORD_MAX, count_up
from persistmem.durations import Duration, seconds
from persistmem.errors import ClosedError, CorruptError, NotFoundError, UnsupportedTypeError
from persistmem.sizes import parse_size

F = TypeVar("F", bound=Callable[..., Any])
K = TypeVar("K", bound=Key)

TIMEOUT_DEFAULT: Final = 10.0
"""Seconds to wait for another writer."""

NAMESPACE_DEFAULT: Final = "cache"
"""The region of a cache that has an arena for itself."""

_ARENA_OVERHEAD: Final = 32 << 10
"""Bytes of an arena that its one cache leaves for header and catalogues."""
_MISSING: Final = object()

_DECODERS: Final[Mapping[int, Callable[[bytes], object] | None]] = {PLAIN: unpack, RAW: None}
_digest = xxhash.xxh3_64_intdigest


class Cache(MutableMapping[Key, Any]):
    """A cache in an arena: bounded, shared by threads and processes, and there again after a restart or an upgrade.

    Keys are str, bytes, int, and tuples of these. Values are everything a snapshot takes; what comes back is the
    caller's own. Readers take no lock; writers take turns. When it is full, what was not read lately makes room: no
    call fails because of that. A value that fails its check is a miss, and is counted.

    It is shared memory, so copies of one key in two processes are never different. Expiry goes by the wall clock
    (``clock``): if that jumps ahead, what it passed is gone; if it goes back, values live longer by as much.

    Cost: reading a small value takes half a microsecond to one, writing one takes one or two; where nothing of
    persistmem is compiled (``persistmem doctor`` says so), three times as long. Opening a cache takes the same for ten
    items and for ten million.

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
        shortcuts: int = SHORTCUTS_DEFAULT,
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
            shortcuts: of how many keys, most, this process remembers where they are once they were read three times,
                where that is faster: if nothing is compiled, and for large values. 400 bytes each; 0 for none.
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
        self._shortcuts = Shortcuts(shortcuts)
        alone = isinstance(where, str) and namespace is None
        arena = where if isinstance(where, Arena) else attach(where, size if alone else None)
        room = arena.size - _ARENA_OVERHEAD if alone else (parse_size(size) if size is not None else None)
        opened = OpenCache(arena, namespace or NAMESPACE_DEFAULT, room, items=items, timeout=timeout, clock=clock)
        self._opened, self._row = opened, opened.row
        self._store, self._mapping, self._words, self._lock = opened.store, opened.mapping, opened.words, opened.lock
        self._compiled = opened.store.compiled
        self._frequencies_at = opened.store.frequencies_at
        self._finalize = weakref.finalize(self, opened.close)

    # Reading

    def get(self, key: Hashable, default: Any = None) -> Any:  # noqa: ANN401 - a value is what the caller stored
        """Return the value of ``key``, checked, or ``default``.

        Raises:
            UnsupportedTypeError: no key is of this type; or the value holds a type that is not registered.
            StaleArenaError: the kernel was replaced under this process; open the cache again.
        """
        compiled = self._compiled
        if compiled is not None:
            value = compiled.get(key)
            if value is not NotImplemented:
                return value
        value = self._get_by_shortcut(key)
        return self._get_anywhere(key, default) if value is _MISSING else value

    def _get_by_shortcut(self, key: Hashable) -> object:
        """The value where this process found it before; or _MISSING."""
        try:
            shortcut = self._shortcuts.get(key)
        except TypeError:
            return _MISSING  # it has no hash, and no bytes either
        if shortcut is None:
            return _MISSING
        word, entry, span, checksum, expires, decode = shortcut
        value, words = self._mapping[span], self._words
        if words[word] != entry or _digest(value) != checksum:
            self._shortcuts.pop(key, None)  # another thread may have done so
            return _MISSING
        if expires is not None and expires <= self._clock():
            return _MISSING
        try:
            words[self._row.at] += 1
        except ValueError:  # somebody has scribbled in it
            words[self._row.at] = 0
        if decode is None:
            return value
        try:
            return decode(value)
        except ValueError:  # maps with keys that are no text
            return self._values.decode(value, PLAIN)

    def _get_anywhere(self, key: Hashable, default: object) -> object:
        found = self._store.find(encode_key(key))
        if found is None:
            return self._miss(default)
        slot, entry, kind, expires, packed, value_at = found
        if expires is not None and expires <= self._clock():
            return self._miss(default)
        self._count(Counter.HITS)
        decoded = self._values.decode(packed, kind)  # first: what is no value gets no shortcut
        frequency_at = self._frequencies_at + slot
        frequency = self._mapping[frequency_at] + 1
        if frequency < FREQUENCY_MAX:
            self._mapping[frequency_at] = frequency
            return decoded
        # Who comes by a shortcut is not counted: it counts as often as it can by now. When its time to be evicted comes
        # it is moved on, and the shortcut ends.
        self._mapping[frequency_at] = FREQUENCY_MAX
        if kind in _DECODERS:
            span = slice(value_at, value_at + len(packed))
            word = self._store.entries_at + slot
            self._shortcuts.add(key, (word, entry, span, _digest(packed), expires, _DECODERS[kind]))
        return decoded

    def __getitem__(self, key: Hashable) -> Any:  # noqa: ANN401 - a value is what the caller stored
        """Return the value of ``key``. NotFoundError, a KeyError, if there is none."""
        value = self.get(key, _MISSING)
        if value is _MISSING:
            raise NotFoundError(f"cache: there is no item {shown(key)}; it may never have been set, or made room")
        return value

    def get_many(self, keys: Iterable[Key]) -> dict[Key, Any]:
        """Return those of ``keys`` that are there, with their values."""
        return {key: value for key in keys if (value := self.get(key, _MISSING)) is not _MISSING}

    def __contains__(self, key: object) -> bool:
        """Tell whether there is a value that has not expired. Does not count as reading it."""
        return self._find(encode_key(key)) is not None

    def __len__(self) -> int:
        """Return how many items there are, those that have expired included until their memory is needed."""
        self._opened.check()
        return min(self._words[Word.ITEMS], self._store.geometry.slots)

    def __iter__(self) -> Iterator[Key]:
        """Give the keys there are, in no order. What is set or evicted meanwhile may be among them or not.

        Cost: a look at every slot of the index.
        """
        return (key for key, _ in self.living())

    def items(self) -> ItemsView[Key, Any]:
        """Return the keys and their values; what is evicted while it is walked is left out."""
        return _Items(self)

    def values(self) -> ValuesView[Any]:
        """Return the values; what is evicted while it is walked is left out."""
        return _Values(self)

    def living(self) -> Iterator[tuple[Key, Found]]:
        """Give the keys and records that are sound, and whose time is not up."""
        self._opened.check()
        for slot in self._store.slots():
            there = self._store.peek(slot)
            if there is None or self._is_over(there[1]):
                continue
            try:
                yield decode_key(there[0]), there[1]
            except CorruptError:
                count_up(self._words, Word.DAMAGED)

    def value_of(self, found: Found) -> Any:  # noqa: ANN401 - a value is what the caller stored
        """Return the value of a record."""
        _, _, kind, _, value, *_ = found
        return self._values.decode(value, kind)

    # Writing

    def set(self, key: Key, value: object, ttl: Duration | None = None) -> None:
        """Store ``value`` under ``key``, in place of what is there, and for ``ttl`` if that is given.

        Raises:
            UnsupportedTypeError: no key is of this type, or the value cannot be stored; the message says why.
            SizeError: the item is larger than a quarter of the cache, or the key than 32 KiB.
            BusyError: another process was writing all the time.
        """
        packed, kind = self._values.encode(value)
        expires = None if ttl is None else self._expiry(ttl)
        with self._lock:
            compiled = self._compiled
            if compiled is None or not compiled.set(key, packed, kind, expires):
                self._store.put(encode_key(key), packed, kind, expires)
                self._count(Counter.SETS)

    def __setitem__(self, key: Key, value: object) -> None:
        """Store a value that does not expire."""
        self.set(key, value)

    def set_many(self, items: Mapping[K, object], ttl: Duration | None = None) -> None:
        """Store several values at once, which is a fifth cheaper than one by one. Each is atomic, all together are not.

        Raises:
            as :meth:`set`; then none is stored, unless an item is too large: then those before it are.
        """
        packed = [(encode_key(key), *self._values.encode(value)) for key, value in items.items()]
        expires = self._expiry(ttl)
        with self._lock:
            for name, value, kind in packed:
                self._store.put(name, value, kind, expires)
                self._count(Counter.SETS)

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
                self._count(Counter.SETS)
                return default
            return self.value_of(found)

    def touch(self, key: Key, ttl: Duration | None = None) -> bool:
        """Let the value of ``key`` live for ``ttl`` from now, or for ever; return whether there is one."""
        name, expires = encode_key(key), self._expiry(ttl)
        with self._lock:
            found = self._find(name)
            if found is not None:
                _, _, kind, _, value, *_ = found
                self._store.put(name, value, kind, expires)
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
                raise NotFoundError(f"cache: there is no item {shown(key)} to add to; give a default to make it")
            before = self.value_of(found) if found is not None else default
            if type(before) is not int:
                raise UnsupportedTypeError(f"cache: item {shown(key)}: expected an int, found {type(before).__name__}")
            packed, kind = self._values.encode(before + delta)
            self._store.put(name, packed, kind, found[3] if found is not None else fresh)
            self._count(Counter.SETS)
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
            raise NotFoundError(f"cache: there is no item {shown(key)} to remove")

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
            found = self._find(name)
            if found is not None:
                value = self.value_of(found)  # first: what cannot be read is not lost
                self._remove(name)
                return value
        if default is _MISSING:
            raise NotFoundError(f"cache: there is no item {shown(key)} to remove")
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
                if (there := self._store.peek(slot)) is not None and self._is_over(there[1]):
                    self._store.remove(slot)
                    removed += 1
        return removed

    # About it

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def arena(self) -> Arena:
        """The arena that it is in."""
        return self._opened.arena

    def stats(self) -> CacheStats:
        """Return what all processes together have counted, and how full it is."""
        return self._opened.stats()

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
        return self._opened.key_lock(encode_key(key))

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
        self._store = cast("Store", _ClosedStore())
        self._compiled = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Inside

    def _count(self, counter: int) -> None:
        number = self._opened.row.at + counter
        self._words[number] = self._words[number] + 1 & WORD_MAX

    def _expiry(self, ttl: Duration | None) -> float | None:
        return None if ttl is None else self._clock() + seconds(ttl)

    def _is_over(self, found: Found) -> bool:
        expires = found[3]
        return expires is not None and expires <= self._clock()

    def _find(self, name: bytes) -> Found | None:
        found = self._store.find(name)
        return None if found is None or self._is_over(found) else found

    def _remove(self, name: bytes) -> Found | None:
        found = self._store.find(name)
        if found is None:
            self._store.forget(name)
            return None
        self._store.remove(found[0])
        if self._is_over(found):
            return None
        self._count(Counter.DELETES)
        return found

    def _set_if(self, key: Key, value: object, ttl: Duration | None, *, present: bool) -> bool:
        packed, kind = self._values.encode(value)
        name, expires = encode_key(key), self._expiry(ttl)
        with self._lock:
            if (self._find(name) is not None) is not present:
                return False
            self._store.put(name, packed, kind, expires)
            self._count(Counter.SETS)
        return True

    def _miss(self, default: object) -> object:
        self._opened.check()
        self._count(Counter.MISSES)
        return default


class _Items(ItemsView[Key, Any]):
    """Items whose values are taken as they are found: one that is evicted meanwhile is no error."""

    _mapping: Cache

    def __iter__(self) -> Iterator[tuple[Key, Any]]:
        return ((key, self._mapping.value_of(found)) for key, found in self._mapping.living())


class _Values(ValuesView[Any]):
    """The same for values alone."""

    _mapping: Cache

    def __iter__(self) -> Iterator[Any]:
        return (self._mapping.value_of(found) for _, found in self._mapping.living())


class _ClosedStore:
    """The store of a cache that was closed."""

    def __getattr__(self, name: str) -> Never:
        raise ClosedError("the cache was closed in this process; open it again")
