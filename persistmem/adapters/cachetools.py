"""A cache for the decorators of cachetools, which every process shares. Knows cachetools' interface and keys."""

import datetime as dt
from collections.abc import Hashable, Iterator
from contextlib import suppress
from decimal import Decimal
from typing import Any, Final, NoReturn, cast
from uuid import UUID

import cachetools
from cachetools.keys import hashkey

from persistmem.adapters.shared import SharedCache
from persistmem.arena.types import registry
from persistmem.cache import Cache, CacheStats
from persistmem.cache.values import DOCUMENT, Values
from persistmem.durations import Duration, seconds
from persistmem.errors import CorruptError, Error, UnsupportedTypeError

_MISSING: Final = object()
_KEYWORDS: Final = hashkey(x=0)[0]
"""What stands in a key between positional and keyword arguments: a class, which means nothing outside the process."""
_TYPES: Final[dict[str, type]] = {
    kind.__name__: kind
    for kind in (
        *(bool, int, float, complex, str, bytes, tuple, frozenset, type(None)),
        *(Decimal, UUID, dt.datetime, dt.date, dt.time, dt.timedelta),
    )
}
"""Types that a typed key may name."""

_values: Final = Values(registry)


class PersistmemCache(cachetools.Cache[Hashable, Any]):
    """A :class:`persistmem.Cache` as cachetools has them: for ``cached`` and ``cachedmethod``, and a mapping.

    Sizes are bytes. Values are what a snapshot takes, and what comes back is the caller's own, never the same object.
    Keys are what cachetools makes of arguments that are text, bytes, numbers, None, times, Decimals, UUIDs, tuples,
    frozensets, and types that are registered. As in any cache of cachetools, a function's name is not part of its
    keys: give each function a namespace, or a key.

    It may be used from any number of threads without ``lock=``. ``persistmem.Cache.memoize`` does more: it computes
    once at a time among all processes.

    Cost: two or three microseconds more than the cache's own calls, for the key.

    >>> import persistmem.testing
    >>> squares = PersistmemCache(Cache(persistmem.testing.new_arena("1MiB"), "512KiB"), ttl="1h")
    >>> @cachetools.cached(squares)
    ... def square(number):
    ...     print("computing")
    ...     return number * number
    >>> square(3), square(3)
    computing
    (9, 9)
    """

    def __init__(
        self,
        where: str | Cache,
        maxsize: int | str | None = None,
        *,
        ttl: Duration | None = None,
        **options: Any,  # noqa: ANN401 - each has a type of its own
    ) -> None:
        """Name the cache; it is opened when it is first used.

        Args:
            where: the name of an arena; or a cache that is open.
            maxsize: of the arena, or of the cache in its namespace: bytes, or text such as ``"256MiB"``; None if it is
                there already. An item may take a quarter of it.
            ttl: how long each item lives, seconds or text such as ``"20m"``; None for ever.
            options: namespace, items, timeout and clock, as :class:`persistmem.Cache` takes them.

        Raises:
            ArgumentError: another option, or a ttl that cannot be read.
        """
        if maxsize is not None:
            options["size"] = maxsize
        self._ttl = None if ttl is None else seconds(ttl)
        self._shared = SharedCache(where, **options)

    def __getitem__(self, key: Hashable) -> Any:  # noqa: ANN401 - a value is what the caller stored
        """Return the value of ``key``, or what a subclass's ``__missing__`` returns.

        Raises:
            KeyError: there is none.
            UnsupportedTypeError: the key holds what cannot be stored.
        """
        value = self._get(key)
        return self.__missing__(key) if value is _MISSING else value

    def __setitem__(self, key: Hashable, value: object) -> None:
        """Store a value.

        Raises:
            UnsupportedTypeError: the key or the value cannot be stored; the message says why.
            SizeError: it is too large; a ValueError, which cachetools' decorators pass over.
            BusyError: another process was writing all the time.
        """
        name = encode_key(key)
        self._shared.use(lambda cache: cache.set(name, value, self._ttl))

    def __delitem__(self, key: Hashable) -> None:
        """Remove ``key``. KeyError if it is not there."""
        name = encode_key(key)
        if not self._shared.use(lambda cache: cache.delete(name)):
            raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        """Tell whether there is a value that has not expired."""
        name = encode_key(key)
        return self._shared.use(lambda cache: name in cache)

    def __iter__(self) -> Iterator[Hashable]:
        """Give the keys there are, in no order; equal to what was given, numbers and named tuples perhaps plainer."""
        for name in self._shared.use(iter):
            if isinstance(name, bytes):
                with suppress(CorruptError):  # something else uses this cache, too
                    yield decode_key(name)

    def __len__(self) -> int:
        """Return how many items there are, those that have expired included until their memory is needed."""
        return self._shared.use(len)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(maxsize={self.maxsize}, currsize={self.currsize}, ttl={self._ttl})"

    def __copy__(self) -> NoReturn:
        """Refuse: two objects for one cache would look like two caches."""
        raise TypeError("the cache is in shared memory: use it, or copy its items into a dict")

    def get(self, key: Hashable, default: Any = None) -> Any:  # noqa: ANN401 - a value is what the caller stored
        """Return the value of ``key``, or ``default``."""
        value = self._get(key)
        return default if value is _MISSING else value

    def pop(self, key: Hashable, default: Any = _MISSING) -> Any:  # noqa: ANN401 - a value is what the caller stored
        """Remove ``key`` and return its value, or ``default``; KeyError without one. Atomic."""
        name = encode_key(key)
        value = self._shared.use(lambda cache: cache.pop(name, _MISSING))
        if value is not _MISSING:
            return value
        if default is _MISSING:
            raise KeyError(key)
        return default

    def setdefault(self, key: Hashable, default: Any = None) -> Any:  # noqa: ANN401 - a value is what the caller stored
        """Return the value of ``key``; store ``default`` first if there is none. Of many callers one stores."""
        value = self._get(key)
        if value is not _MISSING:
            return value
        name = encode_key(key)
        if self._shared.use(lambda cache: cache.add(name, default, self._ttl)):
            return default
        return self.get(key, default)

    def popitem(self) -> tuple[Hashable, Any]:
        """Remove any item, and return its key and value. KeyError if there is none."""
        for key in self:
            value = self.pop(key, _MISSING)
            if value is not _MISSING:
                return key, value
        raise KeyError("the cache is empty")

    def clear(self) -> None:
        """Remove everything, for all processes. Cost: writes the index, a tenth of the cache."""
        self._shared.use(lambda cache: cache.clear())

    def close(self) -> None:
        """Let go of the cache in this process; it stays in its arena, and the next use opens it again."""
        self._shared.close()

    @property
    def maxsize(self) -> float:
        """Bytes that there are for items: less than was asked for, by the index."""
        return self.stats().size

    @property
    def currsize(self) -> float:
        """Bytes of these that hold items, or have until their memory is needed."""
        return self.stats().used

    @property
    def ttl(self) -> float | None:
        """Seconds that an item lives; None for ever."""
        return self._ttl

    @staticmethod
    def getsizeof(value: object) -> float:
        """Return the bytes that a value takes, its key and 40 bytes or less not counted."""
        return len(_values.encode(value)[0])

    def stats(self) -> CacheStats:
        """Return what all processes together have counted, and how full it is."""
        return self._shared.use(lambda cache: cache.stats())

    def _get(self, key: Hashable) -> object:
        name = encode_key(key)
        return self._shared.use(lambda cache: cache.get(name, _MISSING))


def encode_key(key: object) -> bytes:
    """Return the bytes of one of cachetools' keys: the same for keys that are equal, with few exceptions.

    The exceptions: Decimals, and times in zones, that are written differently are different keys.

    Raises:
        UnsupportedTypeError: it holds what cannot be stored; the message says what.

    >>> decode_key(encode_key(hashkey("ada", 1815.0, None)))
    ('ada', 1815, None)
    """
    try:
        # In a list, so that no key is bytes alone. Lists stand for what is none of a document's types: no key has any.
        return _values.encode([_plain(key)])[0]
    except UnsupportedTypeError as error:
        raise UnsupportedTypeError(
            f"cachetools key {key!r:.200}: {error}; or give the decorator a key= that makes text of it"
        ) from error


def decode_key(name: bytes) -> Hashable:
    """Return the key whose bytes they are.

    Raises:
        CorruptError: they are no key's.
    """
    try:
        [plain] = cast("list[object]", _values.decode(name, DOCUMENT))
        return _key(plain)
    except Error:
        raise
    except (TypeError, ValueError, LookupError) as error:
        raise CorruptError(f"cachetools key {name!r:.80}: it is none; was it set by something else?") from error


def _plain(part: object) -> object:
    """What a document can hold of a part of a key."""
    if isinstance(part, tuple):
        return tuple(_plain(item) for item in part)
    if isinstance(part, bool) or (isinstance(part, float) and part.is_integer()):
        return int(part)
    if part is _KEYWORDS:
        return ["keywords"]
    if isinstance(part, type):
        if _TYPES.get(part.__name__) is not part:
            raise UnsupportedTypeError(f"type {part.__qualname__}: a typed key may only name {', '.join(_TYPES)}")
        return ["type", part.__name__]
    if isinstance(part, frozenset):
        return ["frozenset", sorted(encode_key(item) for item in part)]
    return part


def _key(plain: object) -> Hashable:
    match plain:
        case tuple():
            return tuple(_key(item) for item in plain)
        case ["keywords"]:
            return _KEYWORDS
        case ["type", str(name)]:
            return _TYPES[name]
        case ["frozenset", list(items)]:
            return frozenset(decode_key(item) for item in items)
        case Hashable():
            return plain
    raise ValueError(plain)
