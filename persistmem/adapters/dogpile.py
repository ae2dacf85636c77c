"""A backend for dogpile.cache, with a mutex for each key that other processes respect. Knows dogpile's interface.

::

    region = dogpile.cache.make_region().configure(
        "persistmem", expiration_time=3600, arguments={"arena": "thumbnails", "size": "1GiB"}
    )
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from dogpile.cache.api import NO_VALUE, BackendFormatted, BackendSetType, CacheBackend, CachedValue, CacheMutex

from persistmem.adapters.shared import OPTIONS, SharedCache
from persistmem.cache import Cache
from persistmem.cache.keylock import KeyLock
from persistmem.cache.keys import Key
from persistmem.durations import Duration, seconds
from persistmem.errors import ArgumentError

_MISSING: Final = object()
_NUMBERS: Final[Mapping[str, type]] = {"items": int, "timeout": float}
"""Arguments that are text in a configuration file."""


class PersistmemBackend(CacheBackend):
    """dogpile's values in a :class:`persistmem.Cache`, with their metadata; plain, or as the region serializes them.

    A region without a serializer keeps what a snapshot takes. What that is not, raises
    :class:`persistmem.UnsupportedTypeError`, a TypeError: convert it, call ``persistmem.register_type``, or give the
    region a serializer. Reading runs no code but that serializer's.

    dogpile looks at a value's age itself, and removes nothing; with ``ttl`` memory is free again after that time.

    Cost: a microsecond or two more than the cache's own calls.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        """Name the cache; it is opened when it is first used.

        Args:
            arguments: ``arena``, its name, or ``cache``, a cache that is open; ``ttl``, the longest that a value
                lives, seconds or text such as ``"1d"``; and size, namespace, items, timeout, clock and types as
                :class:`persistmem.Cache` takes them. Others are ignored, as dogpile's own backends do.

        Raises:
            ArgumentError: neither an arena nor a cache, or a ttl that cannot be read.
        """
        where = arguments.get("cache", arguments.get("arena"))
        if not isinstance(where, str | Cache):
            raise ArgumentError('arguments: expected "arena", a name, or "cache", a persistmem.Cache; found neither')
        options = {name: arguments[name] for name in OPTIONS & arguments.keys()}
        for name, number in _NUMBERS.items():
            if isinstance(options.get(name), str):
                options[name] = number(options[name])
        ttl = arguments.get("ttl")
        self._ttl = None if ttl is None else seconds(_as_duration(ttl))
        self._shared = SharedCache(where, **options)

    def get(self, key: str) -> BackendFormatted:
        """Return what was set, or NO_VALUE."""
        return _restored(self._shared.use(lambda cache: cache.get(key, _MISSING)))

    def get_multi(self, keys: Iterable[str]) -> Sequence[BackendFormatted]:
        """Return what was set for each, or NO_VALUE, in order."""
        wanted = list(keys)
        return self._shared.use(lambda cache: [_restored(cache.get(key, _MISSING)) for key in wanted])

    def set(self, key: str, value: BackendSetType) -> None:
        """Store a value and its metadata, or bytes that the region serialized.

        Raises:
            UnsupportedTypeError: it is not what a snapshot takes.
            SizeError: it is larger than a quarter of the cache.
            BusyError: another process was writing all the time.
        """
        stored = _stored(value)
        self._shared.use(lambda cache: cache.set(key, stored, self._ttl))

    def set_multi(self, mapping: Mapping[str, BackendSetType]) -> None:
        """Store several, which is cheaper than one by one; raises as :meth:`set`."""
        stored: dict[Key, object] = {key: _stored(value) for key, value in mapping.items()}
        self._shared.use(lambda cache: cache.set_many(stored, self._ttl))

    def delete(self, key: str) -> None:
        """Remove a key, if it is there."""
        self._shared.use(lambda cache: cache.delete(key))

    def delete_multi(self, keys: Iterable[str]) -> None:
        """Remove those that are there."""
        names = list(keys)
        self._shared.use(lambda cache: cache.delete_many(names))

    def get_mutex(self, key: str) -> "KeyMutex":
        """Return the lock under which a value is made: one at a time among the threads of all processes."""
        return KeyMutex(self._shared, key)


class KeyMutex(CacheMutex):
    """The lock of one key among threads and processes. If the process that has it dies, the kernel releases it."""

    def __init__(self, shared: SharedCache, key: str) -> None:
        """Use :meth:`PersistmemBackend.get_mutex`."""
        self._shared = shared
        self._key = key
        self._held: KeyLock | None = None

    def acquire(self, wait: bool = True) -> bool:
        """Take it; wait for it, or return False if somebody has it, this thread included."""
        lock = self._shared.use(lambda cache: cache.key_lock(self._key))
        try:
            if wait:
                lock.take()
            elif not lock.try_take():
                lock.close()
                return False
        except BaseException:
            lock.close()
            raise
        self._held = lock
        return True

    def release(self) -> None:
        """Give it back."""
        held, self._held = self._held, None
        if held is not None:
            held.close()

    def locked(self) -> bool:
        """Tell whether somebody has it, in any process. It is tried for that: who tries at the same time may fail."""
        with self._shared.use(lambda cache: cache.key_lock(self._key)) as lock:
            return not lock.try_take()


def _stored(value: BackendSetType) -> object:
    """What the cache takes; a CachedValue is a named tuple, which it would not."""
    return value if isinstance(value, bytes) else [value.payload, dict(value.metadata)]


def _restored(stored: object) -> BackendFormatted:
    """What was set; NO_VALUE for nothing, and for what this backend did not write."""
    if isinstance(stored, bytes):
        return stored
    match stored:
        case [payload, dict(metadata)]:
            return CachedValue(payload, metadata)
    return NO_VALUE


def _as_duration(ttl: object) -> Duration:
    """A number in a configuration file is text, too."""
    try:
        return float(ttl)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ttl  # type: ignore[return-value]
