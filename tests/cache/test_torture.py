"""Eight processes read, write and evict, and are killed: every value is that of its key, and none goes back."""

import random
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess

import xxhash

from persistmem.arena import Arena
from persistmem.cache import Cache
from persistmem.cache.keys import Key
from tests.arena.support import child, pipe
from tests.waiting import readable

from .support import MISSING, PATIENCE, cache_of, open_cache

PROCESSES = 8
KILLS = 80
KEYS_EACH = 60
SIZE = 96 << 10

Value = dict[str, object]


def value_of(owner: int, key: int, number: int) -> Value:
    """A value that says whose it is, which, and whether it is whole."""
    rng = random.Random(f"{owner} {key} {number}")
    payload = rng.randbytes(rng.choice([0, 10, 100, 300, 1000, 3000]))
    return {
        "owner": owner,
        "key": key,
        "number": number,
        "payload": payload,
        "digest": digest(owner, key, number, payload),
    }


def digest(owner: int, key: int, number: int, payload: bytes) -> int:
    return xxhash.xxh3_64_intdigest(b"%d %d %d %b" % (owner, key, number, payload))


def check(owner: int, key: int, value: Value) -> int:
    """The number of a value, if it is that of the key, and whole."""
    number, payload = value["number"], value["payload"]
    assert isinstance(number, int)
    assert isinstance(payload, bytes)
    assert (value["owner"], value["key"]) == (owner, key)
    assert value["digest"] == digest(owner, key, number, payload)
    return number


def torment(arena: Arena, owner: int, life: int, orders: Connection) -> None:
    """Write keys of one's own, each with ever higher numbers; read those of all; tell what was wrong."""
    rng = random.Random(f"{owner} {life}")
    number = life << 32
    last: dict[tuple[int, int], int] = {}
    deeds = 0
    try:
        with open_cache(arena, timeout=PATIENCE) as cache:
            orders.send("ready")
            while not orders.poll():
                number += 1
                do_one(cache, owner, number, rng, last)
                deeds += 1
    except BaseException as error:
        orders.send(f"{type(error).__name__}: {error}")
        raise
    orders.send(deeds)


def do_one(cache: Cache, owner: int, number: int, rng: random.Random, last: dict[tuple[int, int], int]) -> None:
    key = rng.randrange(KEYS_EACH)
    match rng.randrange(12):
        case 0 | 1 | 2:
            cache.set((owner, key), value_of(owner, key, number), ttl=rng.choice([None, 60]))
            last[owner, key] = number
        case 3:
            keys = rng.sample(range(KEYS_EACH), 4)
            cache.set_many({(owner, each): value_of(owner, each, number) for each in keys})
            last |= {(owner, each): number for each in keys}
        case 4:
            cache.pop((owner, key), None)
            assert cache.get((owner, key), MISSING) is MISSING, "what its only writer removed"
        case 5:
            cache.incr("counter", default=0)
        case 6 if rng.random() < 0.02:
            cache.clear()
        case 7 if rng.random() < 0.1:
            for name, value in cache.items():
                if isinstance(name, tuple):
                    see(*whose_and_which(name), value, last)
        case _:
            whose = rng.randrange(PROCESSES)
            for _ in range(3):
                value = cache.get((whose, key), MISSING)
                if value is not MISSING:
                    see(whose, key, value, last)


def whose_and_which(name: Key) -> tuple[int, int]:
    assert isinstance(name, tuple)
    whose, which = name
    assert isinstance(whose, int)
    assert isinstance(which, int)
    return whose, which


def see(owner: int, key: int, value: Value, last: dict[tuple[int, int], int]) -> None:
    found = check(owner, key, value)
    assert found >= last.get((owner, key), 0), f"{owner}, {key} went back from {last[owner, key]} to {found}"
    last[owner, key] = found


@dataclass(frozen=True, slots=True)
class Running:
    """A process that was started, and what it says."""

    context: AbstractContextManager[ForkProcess]
    process: ForkProcess
    here: Connection


def start(arena: Arena, owner: int, life: int) -> Running:
    here, there = pipe()
    context = child(torment, arena, owner, life, there)
    process = context.__enter__()
    there.close()
    assert here.poll(PATIENCE)
    assert here.recv() == "ready"
    return Running(context, process, here)


def test_eight_processes_that_are_killed_leave_each_other_right_values_only() -> None:
    rng = random.Random(8)
    with cache_of(SIZE, timeout=PATIENCE) as cache:
        running = [start(cache.arena, owner, 0) for owner in range(PROCESSES)]
        try:
            for kill in range(KILLS):
                owner = rng.randrange(PROCESSES)
                time.sleep(rng.random() * 0.02)  # no synchronisation: any moment will do
                running[owner].context.__exit__(None, None, None)
                for key in range(KEYS_EACH):
                    value = cache.get((owner, key), MISSING)
                    assert value is MISSING or check(owner, key, value)
                running[owner] = start(cache.arena, owner, kill + 1)
                stopped = readable(*(each.here for each in running), seconds=0)
                assert not stopped, stopped[0].recv()
            for each in running:
                each.here.send("stop")
            for each in running:
                assert each.here.poll(PATIENCE)
                deeds = each.here.recv()
                assert isinstance(deeds, int), deeds
        finally:
            for each in running:
                each.context.__exit__(None, None, None)
        stats = cache.stats()
        assert (stats.damaged, stats.processes) == (0, 1)
        assert stats.evicted > 100
        for name, value in cache.items():
            assert name == "counter" or check(*whose_and_which(name), value)
        cache["last"] = 1  # by which what a writer that died left half done is made right
        keys = list(cache)
        assert len(keys) == len(set(keys)) == len(cache)
