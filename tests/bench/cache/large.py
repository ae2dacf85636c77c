"""Ten million items: what they take beside themselves, and how soon a new process has one of them.

The others keep theirs on tmpfs, where they are fastest; after a kernel upgrade nothing of that would be left.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Final

from persistmem import Cache
from persistmem.attachment import drop_arena
from tests.bench.cache.many import ARENA, PICKLE, payload
from tests.bench.cache.plots import plot_reattached
from tests.bench.cache.results import OURS, Reattached
from tests.bench.cache.rivals import LMDB, MEMCACHED, REDIS
from tests.bench.cache.servers import Server, free_port, memcached_server, missing, redis_server
from tests.bench.cache.sizes import CacheSizes
from tests.bench.harness import Bound, Row, Sizes

GROUP: Final = "cache: many items"

_MEMCACHED_MIB_PER_MILLION: Final = 250
_ROUNDS_SLOW: Final = 3
_REST: Final = 2.0
"""Seconds that a server stays down: memcached takes back no memory that it left in the same second."""


def measure_large(sizes: Sizes, folder: Path) -> Iterator[Row]:
    """The rows of this group; wants an agent that nobody else uses."""
    chosen = CacheSizes.of(sizes)
    results = []
    ours, overhead = _ours(chosen)
    yield overhead
    for found in (ours, *_others(chosen)):
        results.append(found)
        bound = Bound("<", 5) if found.store == OURS else None
        yield Row(
            GROUP, f"first hit after reattaching {found.items:,} items: {found.store}",
            sorted(found.seconds)[len(found.seconds) // 2] * 1e3, "ms", bound, None, found.note,
            {found.store: found.seconds},
        )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    plot_reattached(results, folder / "first-hit.png")
    sys.stdout.write(f"{folder}/first-hit.png\n")


def _ours(sizes: CacheSizes) -> tuple[Reattached, Row]:
    items = sizes.many
    seconds = _fill(OURS, Path(), items)
    with Cache(ARENA) as cache:
        stats = cache.stats()
        region = cache.arena.regions()["cache"]
    beside = (region - stats.size + stats.used - payload(items)) / items
    note = f"index and logs, less keys and values; {stats.items:,} items, {stats.evicted} evicted, in {seconds:.0f} s"
    row = Row(
        GROUP, f"memory of {items:,} items beside key and value, each", beside, "bytes", Bound("<=", 48), None, note
    )
    found = Reattached(
        OURS, items, [_first(OURS, Path(), items) for _ in range(sizes.rounds_process)], "attached from the agent"
    )
    drop_arena(ARENA)
    return found, row


def _others(sizes: CacheSizes) -> Iterator[Reattached]:
    items = sizes.many
    yield _measured(LMDB, sizes, "opened", lambda _: None, sizes.rounds_process)
    yield _measured(PICKLE, sizes, "loaded, its values packed", lambda _: None, _ROUNDS_SLOW)
    if not missing("redis-server"):
        yield _measured(REDIS, sizes, "server started, RDB file loaded", redis_server, _ROUNDS_SLOW)
    if not missing("memcached"):

        def server(folder: Path) -> Server:
            port = free_port()
            (folder / "port").write_text(str(port))
            memory = 64 + items * _MEMCACHED_MIB_PER_MILLION // 1_000_000
            return memcached_server(folder, port, memory, restartable=True)

        yield _measured(MEMCACHED, sizes, "server restarted on its memory file", server, _ROUNDS_SLOW)


def _measured(
    store: str, sizes: CacheSizes, note: str, make_server: Callable[[Path], Server | None], rounds: int
) -> Reattached:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="persistmem-bench-") as name:
        folder = Path(name)
        server = make_server(folder)
        with server or nullcontext():
            _fill(store, folder, sizes.many)
        return Reattached(store, sizes.many, [_first(store, folder, sizes.many, server) for _ in range(rounds)], note)


def _fill(store: str, folder: Path, items: int) -> float:
    sys.stderr.write(f"{store}: {items:,} items ...\n")
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "tests.bench.cache.many", "fill", store, str(folder), str(items)], check=True)
    return time.monotonic() - start


def _first(store: str, folder: Path, items: int, server: Server | None = None) -> float:
    """Seconds from opening it, or from starting its server, to a value, in a process that has imported everything."""
    command = [sys.executable, "-m", "tests.bench.cache.many", "first", store, str(folder), str(items)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if server:
            time.sleep(_REST)
        start = time.perf_counter()
        with server or nullcontext():
            started = time.perf_counter() - start if server else 0.0
            return started + float(process.communicate("go\n")[0])
