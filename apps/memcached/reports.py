"""What ``stats`` says. Knows the counts of the server and of the cache, and the names that clients know them by."""

import os
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Final

from apps.memcached.counts import Counts
from apps.memcached.grammar import VERSION
from apps.memcached.storage import Storage

_Value = int | str


class Reports:
    """The topics of ``stats``."""

    def __init__(self, storage: Storage, counts: Counts, settings: Mapping[str, _Value]) -> None:
        """``settings`` is what ``stats settings`` says, and nothing else."""
        self._storage = storage
        self._counts = counts
        self._started = storage.now()
        self._before = storage.stats()
        self._topics: Final[Mapping[bytes, Callable[[], Mapping[str, _Value]]]] = {
            b"": self._general,
            b"settings": lambda: settings,
            b"items": self._items,
        }

    def report(self, topic: bytes) -> bytes:
        """Return the reply to ``stats`` with a topic. Cost: a fraction of a millisecond."""
        read = self._topics.get(topic)
        if read is None:
            return b"ERROR\r\n"
        return "".join(f"STAT {name} {value}\r\n" for name, value in read().items()).encode() + b"END\r\n"

    def _general(self) -> Mapping[str, _Value]:
        now, cache, usage = self._storage.now(), self._storage.stats(), resource.getrusage(resource.RUSAGE_SELF)
        return {
            "pid": os.getpid(),
            "uptime": now - self._started,
            "time": now,
            "version": VERSION.decode(),
            "pointer_size": sys.maxsize.bit_length() + 1,
            "rusage_user": f"{usage.ru_utime:.6f}",
            "rusage_system": f"{usage.ru_stime:.6f}",
            **asdict(self._counts),
            "limit_maxbytes": self._storage.size,
            "accepting_conns": 1,
            "threads": 1,
            "bytes": cache.used,
            "curr_items": cache.items,
            "total_items": cache.sets - self._before.sets,
            "evictions": cache.evicted - self._before.evicted,
            "reclaimed": cache.expired - self._before.expired,
        }

    def _items(self) -> Mapping[str, _Value]:
        cache = self._storage.stats()
        evicted = cache.evicted - self._before.evicted
        return {"items:1:number": cache.items, "items:1:evicted": evicted} if cache.items else {}
