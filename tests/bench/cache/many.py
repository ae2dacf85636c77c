"""Stores of millions of items: filled by one process, and asked for one item by another, which was started for that.

``python -m tests.bench.cache.many fill STORE FOLDER ITEMS`` fills one. With ``first`` in place of ``fill`` the process
says when it has imported everything, waits for a line, and prints the seconds from opening the store to having a value.
"""

import pickle
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol

import msgpack

from persistmem import Cache
from persistmem.cache.keys import Key, encode_key
from persistmem.cache.layout import Geometry, record_size
from tests.bench.cache.results import OURS
from tests.bench.cache.rivals import LMDB, MEMCACHED, REDIS
from tests.bench.cache.speed import make_key, make_value

PICKLE: Final = "pickle of a dict"
ARENA: Final = "bench-many"

_BATCH: Final = 10_000
_TOLD_EVERY: Final = 1_000_000


class Store(Protocol):
    """Small dicts by their keys. What it needs is imported when it is made."""

    def fill(self, items: int) -> None:
        """Store so many."""

    def first(self, key: str) -> object:
        """Open it, and get a value."""


class Persistmem:
    """A cache in an arena that the agent of the environment keeps."""

    def __init__(self, folder: Path) -> None:
        pass

    def fill(self, items: int) -> None:
        with Cache(ARENA, size_for(items), items=items) as cache:
            for batch in _batches(items):
                cache.set_many(batch)

    def first(self, key: str) -> object:
        return Cache(ARENA).get(key)


class Lmdb:
    """One database, filled in the order of its keys."""

    def __init__(self, folder: Path) -> None:
        import lmdb

        self._open: Callable[[], Any] = lambda: lmdb.open(
            str(folder / "lmdb"), map_size=64 << 30, writemap=True, sync=False
        )

    def fill(self, items: int) -> None:
        with self._open() as environment:
            for batch in _batches(items):
                with environment.begin(write=True) as transaction:
                    packed = [(str(key).encode(), msgpack.packb(value)) for key, value in batch.items()]
                    transaction.cursor().putmulti(packed, append=True)

    def first(self, key: str) -> object:
        with self._open().begin() as transaction:
            found: object = msgpack.unpackb(transaction.get(key.encode()))
            return found


class Pickle:
    """A dict of msgpack bytes: one of dicts would take several times the memory."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "dict.pickle"

    def fill(self, items: int) -> None:
        kept: dict[str, bytes] = {}
        for batch in _batches(items):
            kept.update((str(key), msgpack.packb(value)) for key, value in batch.items())
        with self._file.open("wb") as file:
            pickle.dump(kept, file, protocol=pickle.HIGHEST_PROTOCOL)

    def first(self, key: str) -> object:
        with self._file.open("rb") as file:
            found: object = msgpack.unpackb(pickle.load(file)[key])
            return found


class Redis:
    """The server of the folder, which runs."""

    def __init__(self, folder: Path) -> None:
        import redis

        self._open: Callable[[], Any] = lambda: redis.Redis(
            unix_socket_path=str(folder / "redis.socket"), socket_timeout=None
        )

    def fill(self, items: int) -> None:
        client = self._open()
        for batch in _batches(items):
            client.mset({key: msgpack.packb(value) for key, value in batch.items()})
        client.save()

    def first(self, key: str) -> object:
        found: object = msgpack.unpackb(self._open().get(key))
        return found


class Memcached:
    """The server at the port that a file of the folder names; it runs."""

    def __init__(self, folder: Path) -> None:
        from pymemcache.client.base import Client

        port = int((folder / "port").read_text())
        self._open: Callable[[], Any] = lambda: Client(("127.0.0.1", port), no_delay=True)

    def fill(self, items: int) -> None:
        client = self._open()
        for batch in _batches(items):
            client.set_many({key: msgpack.packb(value) for key, value in batch.items()}, noreply=True)
        client.get(make_key(0))  # it has done everything before

    def first(self, key: str) -> object:
        found: object = msgpack.unpackb(self._open().get(key))
        return found


STORES: Final[dict[str, Any]] = {
    OURS: Persistmem,
    LMDB: Lmdb,
    MEMCACHED: Memcached,
    REDIS: Redis,
    PICKLE: Pickle,
}


def size_for(items: int) -> int:
    """Bytes of an arena whose cache holds so many, with a third to spare: whole pages."""
    key, value = make_key(items), make_value(items)
    record = record_size(len(encode_key(key)) + len(msgpack.packb(value)) + 1)
    size = Geometry.plan(1 << 40, items, 0, 0).small_at + record * items * 4 // 3 + (1 << 20)
    return size & ~4095


def payload(items: int) -> int:
    """Bytes of all keys and values themselves."""
    packed = msgpack.packb
    batches = _batches(items, tell=False)
    return sum(len(str(key)) + len(packed(value)) for batch in batches for key, value in batch.items())


def _batches(items: int, *, tell: bool = True) -> Iterator[dict[Key, Any]]:
    start = time.monotonic()
    for first in range(0, items, _BATCH):
        yield {make_key(number): make_value(number) for number in range(first, min(items, first + _BATCH))}
        done = first + _BATCH
        if tell and done % _TOLD_EVERY == 0:
            sys.stderr.write(f"  {done:,} of {items:,} after {time.monotonic() - start:.0f} s\n")


def main() -> None:
    """Fill, or get the first."""
    verb, name, folder, items = sys.argv[1:]
    store: Store = STORES[name](Path(folder))
    if verb == "fill":
        store.fill(int(items))
        return
    number = int(items) // 2
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    value = store.first(make_key(number))
    taken = time.perf_counter() - start
    assert value == make_value(number)
    print(taken)


if __name__ == "__main__":
    main()
