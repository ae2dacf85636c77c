"""SIGKILL at a writer, 200 times, with readers running beside it."""

import random
import time
from multiprocessing.connection import Connection

import xxhash

from persistmem.arena import Arena
from tests.waiting import readable

from .support import arena_of, child, pipe

KILLS = 200
NAMES = ("small", "large")
ANSWER_SECONDS = 60


def value_of(name: str, number: int) -> dict[str, object]:
    """A value that says which it is, and whether it is whole."""
    rng = random.Random(f"{name} {number}")
    length = rng.randrange(10, 200) if name == "small" else rng.randrange(4096, 30_000)
    payload, rows = rng.randbytes(length), [number] * rng.randrange(1, 500)
    return {"name": name, "number": number, "rows": rows, "payload": payload, "digest": digest(name, rows, payload)}


def digest(name: str, rows: list[int], payload: bytes | memoryview) -> str:
    return xxhash.xxh3_128_hexdigest(name.encode() + repr(rows).encode() + payload)


def check(name: str, value: dict[str, object]) -> int:
    """The number of a value, if it is whole."""
    rows, payload, number = value["rows"], value["payload"], value["number"]
    assert isinstance(rows, list)
    assert isinstance(payload, bytes | memoryview)
    assert isinstance(number, int)
    assert value["name"] == name
    assert set(rows) == {number}
    assert value["digest"] == digest(name, rows, payload)
    return number


def write_for_ever(arena: Arena, acknowledge: Connection) -> None:
    number = max(check(name, arena.restore(name)) for name in NAMES)
    while True:
        number += 1
        for name in NAMES:
            arena.snapshot(name, value_of(name, number), keep=1 + number % 3)
        if number % 7 == 0:
            arena.snapshot("passing", number)
            arena.remove("passing")
        acknowledge.send(number)


def read_until_told(arena: Arena, orders: Connection) -> None:
    """Read and check; report how often, or what was wrong."""
    last, reads = dict.fromkeys(NAMES, 0), 0
    try:
        while not orders.poll():
            for name in NAMES:
                number = check(name, arena.restore(name, copy=reads % 2 == 0))
                assert number >= last[name], f"{name} went back from {last[name]} to {number}"
                last[name] = number
                reads += 1
    except BaseException as error:
        orders.send(f"{type(error).__name__}: {error}")
        raise
    orders.send(reads)


def test_readers_and_successors_of_200_killed_writers_find_whole_states_only() -> None:
    rng = random.Random(200)
    with arena_of(512 << 10) as (_, arena):
        for name in NAMES:
            arena.snapshot(name, value_of(name, 0))
        one, orders_one = pipe()
        two, orders_two = pipe()
        with child(read_until_told, arena, orders_one), child(read_until_told, arena, orders_two):
            for _ in range(KILLS):
                acknowledged = kill_one(arena, rng.random() * 0.02)
                for name in NAMES:
                    newest = check(name, arena.restore(name))
                    assert newest >= acknowledged, "a snapshot that was taken is gone"
                    for generation in arena.history(name):
                        check(name, arena.restore(name, generation=generation.number))
                assert arena.verify().ok
                assert not readable(one, two, seconds=0), "a reader stopped"
            for reader in (one, two):
                reader.send("stop")
                assert reader.poll(ANSWER_SECONDS)
                reads = reader.recv()
                assert isinstance(reads, int), reads
                assert reads > KILLS


def kill_one(arena: Arena, seconds: float) -> int:
    """Start a writer, kill it some time after its first commit; the last number it said it had written."""
    commits, acknowledge = pipe()
    with child(write_for_ever, arena, acknowledge) as writer:
        acknowledge.close()
        assert commits.poll(ANSWER_SECONDS)
        time.sleep(seconds)  # no synchronisation: any moment will do
        writer.kill()
        writer.join()
    acknowledged = 0
    try:
        while True:
            acknowledged = commits.recv()
    except EOFError:
        commits.close()
    return acknowledged
