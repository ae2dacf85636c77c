"""What a user would cache with instead, each reading and writing many keys, one by one, in the way that it is fastest.

Each does in its loop all that its user would have to do between a ``str`` key and a Python value: small values are
packed by msgpack, or by the store itself if it takes Python objects; bytes are stored as they are.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgpack

from persistmem import Cache
from persistmem.cache.keys import encode_key
from persistmem.cache.layout import record_size
from tests.bench.cache.hits import sized_cache
from tests.bench.cache.results import OURS
from tests.bench.cache.servers import free_port, memcached_server, missing, redis_server

Pairs = Sequence[tuple[str, Any]]


LMDB: Final = "py-lmdb"
LMDB_PACKED: Final = "py-lmdb, bytes in msgpack"
DISKCACHE: Final = "diskcache"
REDIS: Final = "Redis"
MEMCACHED: Final = "memcached"
DICT: Final = "dict of msgpack bytes"

SLOW: Final = (DISKCACHE, REDIS, MEMCACHED)
"""Whose operations take so long that fewer of them are measured."""

_WRITES_BEFORE: Final = 4


class Rival(NamedTuple):
    """A cache."""

    read: Callable[[Sequence[str]], None]
    """Get the values of keys, which are there."""
    write: Callable[[Pairs], None]
    """Set them."""


def open_all(stack: ExitStack, folder: Path, pairs: Pairs, size: int, *, packs: bool) -> dict[str, Rival]:
    """Open every cache that is installed, with ``pairs`` in it, of about ``size`` bytes. Files are in ``folder``.

    All are written to until they have got to the memory that they go on using. With ``packs``, values are Python
    objects that have to be packed; otherwise they are bytes.
    """
    pack, unpack = (msgpack.packb, msgpack.unpackb) if packs else (_same, _same)
    rivals = {OURS: _persistmem(stack, pairs), DICT: _dict(), LMDB: _lmdb(stack, folder / "lmdb", size, pack, unpack)}
    if not packs:
        packed = _lmdb(stack, folder / "packed", size, msgpack.packb, msgpack.unpackb)
        rivals[LMDB_PACKED] = packed
    rivals[DISKCACHE] = _diskcache(stack, folder / "diskcache")
    if not missing("redis-server"):
        rivals[REDIS] = _redis(stack, folder, pack, unpack)
    if not missing("memcached"):
        rivals[MEMCACHED] = _memcached(stack, folder, size, pack, unpack)
    for name, rival in rivals.items():
        for _ in range(1 if name in SLOW else _WRITES_BEFORE):
            rival.write(pairs)
    return rivals


def _same(value: Any) -> Any:
    return value


def _persistmem(stack: ExitStack, pairs: Pairs) -> Rival:
    """Made for twice as many items: so it is half full, and keeps them all."""
    key, value = pairs[0]
    packed = value if type(value) is bytes else msgpack.packb(value)
    cache = stack.enter_context(sized_cache(2 * len(pairs), record_size(len(encode_key(key)) + len(packed) + 1)))
    stack.callback(_check_kept, cache, len(pairs))

    return _with_methods(cache.get, cache.set)


def _with_methods(get: Callable[[str], object], put: Callable[[str, Any], object]) -> Rival:
    """A cache that takes Python objects."""

    def read(keys: Sequence[str]) -> None:
        for key in keys:
            get(key)

    def write(pairs: Pairs) -> None:
        for key, value in pairs:
            put(key, value)

    return Rival(read, write)


def _check_kept(cache: Cache, items: int) -> None:
    """What was measured were hits."""
    stats = cache.stats()
    if (stats.items, stats.misses, stats.evicted) != (items, 0, 0):
        sys.stderr.write(f"the cache did not keep all of {items} items: {stats}\n")


def _dict() -> Rival:
    kept: dict[str, bytes] = {}

    def read(keys: Sequence[str]) -> None:
        unpack = msgpack.unpackb
        for key in keys:
            unpack(kept[key])

    def write(pairs: Pairs) -> None:
        pack = msgpack.packb
        for key, value in pairs:
            kept[key] = pack(value)

    return Rival(read, write)


def _lmdb(
    stack: ExitStack, folder: Path, size: int, pack: Callable[[Any], bytes], unpack: Callable[[bytes], Any]
) -> Rival:
    import lmdb

    environment: Any = lmdb.open(
        str(folder), map_size=8 * size + (64 << 20), writemap=True, sync=False, metasync=False, map_async=True
    )
    stack.callback(environment.close)

    # One transaction each: a reader sees what others have written, and what is written is seen by them.
    if unpack is _same:

        def read(keys: Sequence[str]) -> None:
            begin = environment.begin
            for key in keys:
                with begin() as transaction:
                    transaction.get(key.encode())

        def write(pairs: Pairs) -> None:
            begin = environment.begin
            for key, value in pairs:
                with begin(write=True) as transaction:
                    transaction.put(key.encode(), value)

    else:

        def read(keys: Sequence[str]) -> None:
            begin = environment.begin
            for key in keys:
                with begin() as transaction:
                    unpack(transaction.get(key.encode()))

        def write(pairs: Pairs) -> None:
            begin = environment.begin
            for key, value in pairs:
                with begin(write=True) as transaction:
                    transaction.put(key.encode(), pack(value))

    return Rival(read, write)


def _diskcache(stack: ExitStack, folder: Path) -> Rival:
    import diskcache

    cache = diskcache.Cache(str(folder))
    stack.callback(cache.close)

    return _with_methods(cache.get, cache.set)


def _redis(stack: ExitStack, folder: Path, pack: Callable[[Any], bytes], unpack: Callable[[bytes], Any]) -> Rival:
    import redis

    stack.enter_context(redis_server(folder))
    client = redis.Redis(unix_socket_path=str(folder / "redis.socket"))
    stack.callback(client.close)
    return Rival(partial(_get_each, client, unpack), partial(_set_each, client, pack))


def _memcached(
    stack: ExitStack, folder: Path, size: int, pack: Callable[[Any], bytes], unpack: Callable[[bytes], Any]
) -> Rival:
    from pymemcache.client.base import Client

    port = free_port()
    stack.enter_context(memcached_server(folder, port, 64 + 4 * (size >> 20)))
    client = Client(("127.0.0.1", port), no_delay=True, default_noreply=False)
    stack.callback(client.close)
    return Rival(partial(_get_each, client, unpack), partial(_set_each, client, pack))


def _get_each(client: Any, unpack: Callable[[bytes], Any], keys: Sequence[str]) -> None:
    get = client.get
    for key in keys:
        unpack(get(key))


def _set_each(client: Any, pack: Callable[[Any], bytes], pairs: Pairs) -> None:
    put = client.set
    for key, value in pairs:
        put(key, pack(value))
