"""The memcached app beside memcached, under the same load; and how long a restart takes it, memcached and Redis.

The load comes from this process: an epoll loop that sends requests made before, and counts the bytes of replies. How
busy each server was is said beside its speed: if it was not, the client was measured.
"""

import random
import select
import shlex
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from persistmem.attachment import drop_arena
from tests.bench.cache.servers import Server, free_port, missing
from tests.bench.harness import FULL, Bound, Row, Samples, Sizes, interleave

GROUP: Final = "memcached"
APP: Final = "this app"
MEMCACHED: Final = "memcached"
REDIS: Final = "Redis"

_HOST: Final = "127.0.0.1"
_ARENA: Final = "bench-memcached"
_CONNECTIONS: Final = 50
_KEYS: Final = 10_000
_DATA: Final = bytes(100)
_MANY: Final = 100
_BATCH: Final = 1000
_PATIENCE: Final = 300.0
_REST: Final = 2.0
"""Seconds that memcached stays down, which do not count: it takes back no memory that it left in the same second."""


@dataclass(slots=True)
class _Place:
    """A server, where it listens, and what it is asked to see whether it answers."""

    command: str
    folder: Path
    stop: signal.Signals
    port: int = field(default_factory=free_port)
    question: bytes = b"version\r\n"
    answer: bytes = b"VERSION"

    def server(self) -> Server:
        """Return the server; its start is over when it answers."""
        command = shlex.split(self.command.format(host=_HOST, port=self.port, folder=self.folder))
        return Server(command, self._ask, self.folder, self.stop)

    def connect(self) -> socket.socket:
        """Return a connection."""
        connection = socket.create_connection((_HOST, self.port), _PATIENCE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _ask(self) -> None:
        with self.connect() as connection:
            connection.sendall(self.question)
            if not connection.recv(1 << 16).startswith(self.answer):
                raise ConnectionError


@dataclass(frozen=True, slots=True)
class _Load:
    """Requests, each of which has a reply of so many bytes; and how many are sent."""

    requests: Sequence[bytes]
    reply: int
    number: int


def measure(sizes: Sizes) -> Iterator[Row]:
    """The rows of this group; wants an agent that nobody else uses."""
    if missing("memcached"):
        return
    yield from _speed(sizes)
    yield from _restarts(1_000_000 if sizes == FULL else 100_000, 5 if sizes == FULL else 1)


def _app(folder: Path, size: str) -> _Place:
    command = f"{sys.executable} -m apps.memcached --name {_ARENA} --size {size} --listen {{host}}:{{port}}"
    return _Place(command, folder, signal.SIGTERM)


def _memcached(folder: Path, options: str, stop: signal.Signals) -> _Place:
    return _Place(f"memcached -l {{host}} -p {{port}} -U 0 -t 1 -u root {options}", folder, stop)


# Speed


def _speed(sizes: Sizes) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="persistmem-bench-") as name:
        folder = Path(name)
        places = {APP: _app(folder, "64MiB"), MEMCACHED: _memcached(folder, "-m 64", signal.SIGTERM)}
        with places[APP].server(), places[MEMCACHED].server():
            for place in places.values():
                _fill(place, _KEYS)
            number = 100_000 if sizes == FULL else 2_000
            for what, load, least in (
                (f"GET hits, {_CONNECTIONS} connections", _singles(number), 1 / 5),
                (f"GET hits of {_MANY} keys each, {_CONNECTIONS} connections", _multiples(number // 10), 1 / 3),
            ):
                busy: dict[str, list[float]] = {name: [] for name in places}
                works = {name: partial(_run, place, load, busy[name]) for name, place in places.items()}
                samples = interleave(works, MEMCACHED, sizes.rounds)
                yield Row(
                    GROUP, f"{what}: speed of memcached -t 1", 1 / samples.ratio(APP), "x", Bound(">=", least),
                    samples.noise(), _told(samples, load, busy), samples.seconds,
                )  # fmt: skip
        drop_arena(_ARENA)


def _told(samples: Samples, load: _Load, busy: dict[str, list[float]]) -> str:
    speeds = [
        f"{name} {load.number / samples.median(name):,.0f} a second, busy {statistics.median(busy[name]):.0%} of a core"
        for name in busy
    ]
    return "; ".join(speeds)


def _key(number: int) -> bytes:
    return b"key:%07d" % number


def _value(number: int) -> bytes:
    return b"VALUE %b 0 %d\r\n%b\r\n" % (_key(number), len(_DATA), _DATA)


def _singles(number: int) -> _Load:
    chosen = random.Random(1).choices(range(_KEYS), k=_KEYS)
    return _Load([b"get %b\r\n" % _key(each) for each in chosen], len(_value(0)) + 5, number)


def _multiples(number: int) -> _Load:
    chosen = random.Random(2)
    lines = [b" ".join(map(_key, chosen.choices(range(_KEYS), k=_MANY))) for _ in range(_KEYS // 10)]
    return _Load([b"get %b\r\n" % line for line in lines], _MANY * len(_value(0)) + 5, number)


def _run(place: _Place, load: _Load, busy: list[float]) -> float:
    """Send a load, each connection one request at a time; seconds until all is answered."""
    before = _cpu(place)
    connections = [place.connect() for _ in range(_CONNECTIONS)]
    waiting = select.epoll()
    got = {connection.fileno(): 0 for connection in connections}
    by_number = {connection.fileno(): connection for connection in connections}
    for number in got:
        waiting.register(number, select.EPOLLIN)
    room, requests, reply = bytearray(1 << 18), load.requests, load.reply
    start = time.perf_counter()
    for sent, connection in enumerate(connections):
        connection.send(requests[sent % len(requests)])
    answered, sent = 0, len(connections)
    while answered < load.number:
        for number, _ in waiting.poll():
            connection = by_number[number]
            got[number] += connection.recv_into(room)
            if got[number] >= reply:
                got[number] = 0
                answered += 1
                if sent < load.number:
                    connection.send(requests[sent % len(requests)])
                    sent += 1
    taken = time.perf_counter() - start
    waiting.close()
    for connection in connections:
        connection.close()
    busy.append((_cpu(place) - before) / taken)
    return taken


def _cpu(place: _Place) -> float:
    """Seconds of processor time that a server has taken."""
    with place.connect() as connection, connection.makefile("rwb") as file:
        file.write(b"stats\r\n")
        file.flush()
        stats = dict(line.split()[1:3] for line in iter(file.readline, b"END\r\n"))
    return float(stats[b"rusage_user"]) + float(stats[b"rusage_system"])


# Restarts


def _restarts(items: int, rounds: int) -> Iterator[Row]:
    taken: dict[str, list[float]] = {}
    memory = 64 + items * 250 // 1_000_000
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="persistmem-bench-") as name:
        folder = Path(name)
        app = _app(folder, f"{memory}MiB")
        restartable = _memcached(folder, f"-m {memory} -e {{folder}}/memory", signal.SIGUSR1)
        redis = _Place(
            "redis-server --bind {host} --port {port} --dir {folder} --save '3600 1' --rdbcompression no",
            folder, signal.SIGTERM, question=b"PING\r\n", answer=b"+PONG",
        )  # fmt: skip
        for store, place in ((APP, app), (MEMCACHED, restartable), (REDIS, redis)):
            if store == REDIS and missing("redis-server"):
                continue
            stops, starts = _restart(store, place, items, rounds)
            taken[store] = [stop + start for stop, start in zip(stops, starts, strict=True)]
            note = f"stop {statistics.median(stops) * 1e3:,.0f} ms, start {statistics.median(starts) * 1e3:,.0f} ms"
            yield Row(
                GROUP, f"{items:,} items, stopped and started, to the first hit: {_KINDS[store]}",
                statistics.median(taken[store]) * 1e3, "ms", None, None, note, {"stop": stops, "start": starts},
            )  # fmt: skip
    drop_arena(_ARENA)
    fastest = min(statistics.median(seconds) for store, seconds in taken.items() if store != APP)
    yield Row(
        GROUP, f"{items:,} items, stopped and started, to the first hit: the others' time over this app's",
        fastest / statistics.median(taken[APP]), "x", Bound(">=", 1), None, "the fastest of the others", taken,
    )  # fmt: skip


_KINDS: Final = {APP: APP, MEMCACHED: "memcached -e", REDIS: "Redis, RDB"}


def _restart(store: str, place: _Place, items: int, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds from the signal to the end, and from the start to the first hit, round by round."""
    sys.stderr.write(f"{store}: {items:,} items ...\n")
    stops, starts = [], []
    with place.server() as server:
        if store == REDIS:
            _fill_redis(place, items)
            place.question, place.answer = b"GET %b\r\n" % _key(items // 2), b"$%d\r\n" % len(_DATA)
        else:
            _fill(place, items)
            place.question, place.answer = b"get %b\r\n" % _key(items // 2), b"VALUE "
        for number in range(rounds + 1):
            begun = time.perf_counter()
            server.stop()
            ended = time.perf_counter()
            time.sleep(_REST if store == MEMCACHED else 0)
            restarted = time.perf_counter()
            server.start()
            if number:
                stops.append(ended - begun)
                starts.append(time.perf_counter() - restarted)
    return stops, starts


def _fill(place: _Place, items: int) -> None:
    with place.connect() as connection:
        for first in range(0, items, _BATCH):
            keys = map(_key, range(first, min(first + _BATCH, items)))
            lines = [b"set %b 0 0 %d noreply\r\n%b\r\n" % (key, len(_DATA), _DATA) for key in keys]
            connection.sendall(b"".join(lines))
        connection.sendall(b"get %b\r\n" % _key(items - 1))
        if not connection.recv(6) == b"VALUE ":
            raise RuntimeError("the last item is not there")


def _fill_redis(place: _Place, items: int) -> None:
    with place.connect() as connection:
        connection.sendall(b"CLIENT REPLY OFF\r\n")
        for first in range(0, items, _BATCH):
            keys = map(_key, range(first, min(first + _BATCH, items)))
            connection.sendall(
                b"".join(
                    b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(key), key, len(_DATA), _DATA)
                    for key in keys
                )
            )
        connection.sendall(b"CLIENT REPLY ON\r\n")
        if not connection.recv(5) == b"+OK\r\n":
            raise RuntimeError("the items are not there")
