"""The memcached app beside memcached: requests for each second of the server's processor, and restarts.

The client takes as long for a request as a fast server does, so requests a second would measure the client. What a
server can do at most is what one second of its own processor does.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

from tests.bench import load
from tests.bench.cache.servers import Server, free_port, memcached_server, missing, redis_server
from tests.bench.harness import FULL, Bound, Row, Sizes, interleave

GROUP: Final = "memcached app"

_OURS: Final = "apps.memcached"
_MEMCACHED: Final = "memcached -t 1"
_SECONDS: Final = 2.0
_TICK: Final = os.sysconf("SC_CLK_TCK")
_ITEMS: Final = 10_000
_REST: Final = 2.0
"""Seconds that a server stays down: memcached takes back no memory that it left in the same second."""


def measure(sizes: Sizes) -> Iterator[Row]:
    """The rows of this group; wants an agent that nobody else uses."""
    if missing("memcached"):
        return
    full = sizes is FULL
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="persistmem-bench-")))
        servers = {_OURS: _ours(folder, "bench-serving", "64MiB"), _MEMCACHED: _memcached(folder)}
        pids = {}
        for name, (server, port) in servers.items():
            stack.enter_context(server)
            pids[name] = server.pid
            _fill(port, _ITEMS)
        for what, keys, limit in (("GET hits", 1, 1 / 5), ("multi-get of 100 keys", 100, 1 / 3)):
            works = {name: partial(_cost, pids[name], port, keys) for name, (_, port) in servers.items()}
            samples = interleave(works, _OURS, 5 if full else 2)
            note = " / ".join(f"{1 / samples.median(name) * keys:,.0f}" for name in (_OURS, _MEMCACHED))
            yield Row(
                GROUP, f"{what}, 50 connections: {_OURS} / {_MEMCACHED}", 1 / samples.ratio(_OURS, _MEMCACHED), "x",
                Bound(">=", limit), samples.noise(), f"keys for a second of processor: {note}", samples.seconds,
            )  # fmt: skip
    yield from _restarts(1_000_000 if full else 20_000)


def _restarts(items: int) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="persistmem-bench-") as name:
        folder = Path(name)
        port = free_port()
        memory = 64 + items // 4000
        stores: dict[str, tuple[Server, Callable[[], object], Callable[[], bytes | str]]] = {}
        ours, our_port = _ours(folder, "bench-restart", f"{memory}MiB")
        stores[_OURS] = ours, partial(_fill, our_port, items), partial(_get, our_port, items // 2)
        theirs = memcached_server(folder, port, memory, restartable=True)
        stores["memcached -e"] = theirs, partial(_fill, port, items), partial(_get, port, items // 2)
        if not missing("redis-server"):
            stores["Redis, RDB"] = (
                redis_server(folder),
                partial(_fill_redis, folder, items),
                partial(_get_redis, folder, items // 2),
            )
        seconds: dict[str, list[float]] = {}
        for store, (server, fill, get) in stores.items():
            with server:
                fill()
            seconds[store] = []
            for _ in range(3):
                time.sleep(_REST)
                start = time.perf_counter()
                with server:
                    if load.VALUE not in get():
                        raise RuntimeError(f"{store}: the item is not there after a restart")
                    seconds[store].append(time.perf_counter() - start)
        best = min(sorted(times)[1] for store, times in seconds.items() if store != _OURS)
        for store, times in seconds.items():
            bound = Bound("<=", best * 1e3) if store == _OURS else None
            work = f"{items:,} items, started again, to the first hit: {store}"
            yield Row(GROUP, work, sorted(times)[1] * 1e3, "ms", bound, None, "from starting the process", seconds)


def _ours(folder: Path, name: str, size: str) -> tuple[Server, int]:
    port = free_port()
    command = [sys.executable, "-m", "apps.memcached", "--name", name, "--size", size, "--listen", f"127.0.0.1:{port}"]
    return Server(command, partial(_version, port), folder, signal.SIGTERM), port


def _memcached(folder: Path) -> tuple[Server, int]:
    port = free_port()
    command = ["memcached", "-l", "127.0.0.1", "-p", str(port), "-U", "0", "-m", "64", "-t", "1", "-u", "root"]
    return Server(command, partial(_version, port), folder, signal.SIGTERM), port


def _ask(port: int, request: bytes, end: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(request)
        reply = b""
        while not reply.endswith(end):
            piece = connection.recv(1 << 16)
            if not piece:
                raise ConnectionError("the server has closed the connection")
            reply += piece
        return reply


def _version(port: int) -> bytes:
    return _ask(port, b"version\r\n", b"\r\n")


def _get(port: int, number: int) -> bytes:
    return _ask(port, b"get %b\r\n" % load.key(number), b"END\r\n")


def _fill(port: int, items: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for start in range(0, items, 1000):
            numbers = range(start, min(start + 1000, items))
            sets = (
                b"set %b 0 0 %d noreply\r\n%b\r\n" % (load.key(number), len(load.VALUE), load.VALUE)
                for number in numbers
            )
            connection.sendall(b"".join(sets))
        connection.sendall(b"version\r\n")
        while not connection.recv(1 << 16).endswith(b"\r\n"):
            pass


def _fill_redis(folder: Path, items: int) -> None:
    import redis

    client = redis.Redis(unix_socket_path=str(folder / "redis.socket"))
    for start in range(0, items, 1000):
        client.mset({load.key(number): load.VALUE for number in range(start, min(start + 1000, items))})
    client.save()


def _get_redis(folder: Path, number: int) -> bytes | str:
    import redis

    client = redis.Redis(unix_socket_path=str(folder / "redis.socket"))
    return client.get(load.key(number)) or b""


def _cost(pid: int, port: int, keys: int) -> float:
    """Seconds of the server's processor for a request."""
    before = _processor(pid)
    command = [sys.executable, "-m", "tests.bench.load", str(port), str(_ITEMS), str(keys), str(_SECONDS)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return (_processor(pid) - before) / int(done.stdout)


def _processor(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK
