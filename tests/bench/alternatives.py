"""Storing a state, and having it back in a new process: persistmem against what a user would pick instead.

All are kept on tmpfs, where they are fastest. After a kernel upgrade nothing of that tmpfs would be left; an arena is.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tests.bench.arrays import make_array
from tests.bench.harness import Row, Samples, Sizes, Work, interleave, timed
from tests.bench.records import Changing
from tests.bench.stores import STORES, RedisServer, Store

GROUP = "alternatives"
ARRAY_BYTES = 64 << 20
_NOT_FOR = {"records": {"npy"}, "array": {"JSON"}}


def measure(sizes: Sizes) -> Iterator[Row]:
    """The rows of this group; wants an agent that nobody else uses."""
    changing = Changing(sizes.records)
    array = make_array(min(ARRAY_BYTES, sizes.array_bytes))
    clock = itertools.count(1)

    def changed_array() -> object:
        array[-1] = next(clock)
        return array

    rounds = min(5, sizes.rounds)
    yield from _state(f"{sizes.records:,} records", _NOT_FOR["records"], changing.next, rounds)
    yield from _state(f"{array.nbytes >> 20} MiB array", _NOT_FOR["array"], changed_array, rounds)


def _state(what: str, not_for: set[str], fresh: Callable[[], object], rounds: int) -> Iterator[Row]:
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm", prefix="persistmem-bench-")))
        folders = {name: base / f"{name}-{what.replace(' ', '-')}" for name in STORES if name not in not_for}
        for folder in folders.values():
            folder.mkdir()
        server = RedisServer(folders["Redis"]) if RedisServer.installed() else None
        if server is None:
            sys.stderr.write("redis-server is not installed: its rows are left out\n")
            del folders["Redis"]
        else:
            server.start()
            stack.callback(server.stop)
        yield from _stored(what, {name: STORES[name](folder) for name, folder in folders.items()}, fresh, rounds)
        yield from _had_back(what, folders, server, rounds)


def _stored(what: str, stores: dict[str, Store], fresh: Callable[[], object], rounds: int) -> Iterator[Row]:
    def put(store: Store) -> float:
        state = fresh()
        return timed(lambda: store.put(state))

    samples = interleave({name: partial(put, store) for name, store in stores.items()}, "persistmem", rounds)
    for store in stores.values():
        store.close()
    yield from _compared(f"store {what}", samples, "")


def _had_back(what: str, folders: dict[str, Path], server: RedisServer | None, rounds: int) -> Iterator[Row]:
    def start(name: str) -> Work:
        return lambda: _read(name, folders[name], time.monotonic())

    works = {name: start(name) for name in folders}
    if server is not None:

        def server_first() -> float:
            server.stop()
            begun = time.monotonic()
            server.start()
            return _read("Redis", folders["Redis"], begun)

        works["Redis, restarted too"] = server_first
    samples = interleave(works, "persistmem", rounds)
    yield from _compared(f"have {what} back in a new process", samples, "from its start, imports and all; ")


def _read(name: str, folder: Path, begun: float) -> float:
    command = [sys.executable, "-m", "tests.bench.reader", name, str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    return float(json.loads(done.stdout)["ready"]) - begun


def _compared(what: str, samples: Samples, note: str) -> Iterator[Row]:
    for name in samples.seconds:
        if name.startswith("persistmem"):
            continue
        times = f"{samples.median(name) * 1e3:.0f} ms / {samples.median('persistmem') * 1e3:.0f} ms"
        yield Row(GROUP, f"{what}: {name} / persistmem", samples.ratio(name), "x", None, samples.noise(), note + times)
