"""The compiled records write, byte for byte, what those in Python write, and find what they find."""

import ctypes
import mmap
import os
import random
import signal
import subprocess
import sys
from typing import Any

import pytest
import xxhash

from persistmem.cache import Cache
from persistmem.cache.compiled import COMPILED, NEEDS, VARIABLE
from persistmem.cache.keys import Key, encode_key
from persistmem.cache.layout import FREQUENCY_MAX, Geometry, Word
from persistmem.cache.store import Store
from persistmem.errors import UnsupportedTypeError
from persistmem.sizes import KIB
from persistmem.testing import new_arena

from .recording import store_in
from .support import Clock, cache_of

pytestmark = pytest.mark.skipif(COMPILED is None, reason=f"pip install persistmem where there are {NEEDS}")

SEED = 0x0123456789ABCDEF


class Pair:
    """The same cache twice: in one, what is usual is compiled; in the other, nothing is."""

    def __init__(self, geometry: Geometry) -> None:
        self.clock = Clock()
        self.memories = [mmap.mmap(-1, geometry.size), mmap.mmap(-1, geometry.size)]
        fast, slow = self.memories
        self.fast = Store(geometry, fast, 0, memoryview(fast).cast("Q"), self.clock, compiled=COMPILED)
        self.slow = store_in(slow, geometry, self.clock)
        assert self.fast.compiled is not None
        self.compiled = self.fast.compiled

    def put(self, key: bytes, value: bytes, kind: int, expires: float | None) -> bool:
        """Store in both; returns whether that was compiled to the end."""
        done = self.compiled.put(key, value, kind, expires)
        if not done:
            self.fast.put(key, value, kind, expires)
        self.slow.put(key, value, kind, expires)
        return done

    def remove(self, key: bytes) -> None:
        for store in (self.fast, self.slow):
            if (found := store.find(key)) is not None:
                store.remove(found[0])

    def read(self, key: bytes) -> None:
        """As readers find it, and count that they were here."""
        found = self.slow.find(key)
        assert self.fast.find(key) == found
        if found is not None:
            for store in (self.fast, self.slow):
                at = store.frequencies_at + found[0]
                store.mapping[at] = min(store.mapping[at] + 1, FREQUENCY_MAX)

    def check(self) -> None:
        fast, slow = self.memories
        if fast[:] != slow[:]:
            differ = next(at for at in range(len(fast)) if fast[at] != slow[at])
            raise AssertionError(f"byte {differ}: {fast[differ]} compiled, {slow[differ]} in Python")


@pytest.mark.parametrize(
    ("size", "items", "keys"),
    [(32 * KIB, None, 90), (32 * KIB, 20, 300), (128 * KIB, None, 700), (128 * KIB, 300, 1500)],
    ids=["small", "few slots", "larger", "larger, few slots"],
)
def test_both_write_the_same_bytes(size: int, items: int | None, keys: int) -> None:
    pair = Pair(Geometry.plan(size, items, SEED, 0))
    rng = random.Random(keys)
    compiled = 0
    for number in range(6000):
        key = encode_key(f"key {int(keys * rng.random() ** 2)}")
        match rng.randrange(20):
            case 0:
                pair.remove(key)
            case 1:
                pair.clock.now += 1
            case 2 | 3 | 4 | 5 | 6 | 7:
                pair.read(key)
            case 8:
                value = rng.randbytes(rng.choice([1000, 2000, 4000]) * size // (128 * KIB) + 1)
                compiled += pair.put(key, value, 1, None)
            case 9 | 10:
                compiled += pair.put(key, b"%d" % number, 0, pair.clock.now + rng.choice([-1, 3, 50]))
            case _:
                compiled += pair.put(key, rng.randbytes(rng.choice([0, 1, 7, 8, 9, 40, 100, 300])), 1, None)
        pair.check()
    words = pair.slow.words
    assert words[Word.EVICTED] > 50
    assert words[Word.EXPIRED] > 10
    assert words[Word.FULL]
    assert compiled > 3000


@pytest.mark.parametrize("seed", range(4))
def test_both_share_one_memory_and_whatever_is_scribbled_in_it_no_key_gets_what_was_never_its_value(seed: int) -> None:
    geometry, clock, memory = Geometry.plan(32 * KIB, None, SEED, 0), Clock(), mmap.mmap(-1, 32 * KIB)
    slow = store_in(memory, geometry, clock)
    stores = [slow, Store(geometry, memory, 0, memoryview(memory).cast("Q"), clock, compiled=COMPILED)]
    rng = random.Random(seed)
    values: dict[bytes, set[bytes]] = {encode_key(f"key {number}"): set() for number in range(90)}
    keys = list(values)
    for number in range(5000):
        key, store = rng.choice(keys), rng.choice(stores)
        if rng.random() < 0.05:
            start, end = rng.choice([(4096, 4096 + 8 * 40), (geometry.tags_at, 32 * KIB)])
            memory[rng.randrange(start, end)] = rng.randrange(256)
        value = b"%b=%d " % (key, number) * rng.randrange(30)
        store.put(key, value, 1, None)
        values[key].add(value)
        found = rng.choice(stores).find(key)
        assert found is None or found[4] == value
        other = rng.choice(keys)
        found = rng.choice(stores).find(other)
        assert found is None or found[4] in values[other]


@pytest.mark.parametrize("compiled", ["0", "1"])
def test_processes_with_and_without_it_read_what_each_other_wrote(compiled: str) -> None:
    keys: list[Key] = ["text", "\u00fc" * 40, b"bytes", 7, -1, 1 << 80, ("a", 1), "k" * 300, "", b""]
    values = [None, True, 3, -1.5, "text", b"bytes", [1, "a"], {"k": [1]}, {1: "no text"}, {2, 3}, "x" * 5000, 1 << 70]
    arena = new_arena("1MiB")
    with arena, Cache(arena, "256KiB") as cache:
        for number, value in enumerate(values):
            for key in keys:
                cache[(key, number)] = value
        for key, value in zip(keys, values, strict=False):
            cache.set(key, value, ttl=1000)
        program = """
import sys
from persistmem.arena import Arena
from persistmem.cache import Cache
from persistmem.cache.compiled import COMPILED
from persistmem.origin import Origin
assert (COMPILED is not None) == bool(int(sys.argv[2]))
with Arena(int(sys.argv[1]), kernel="k", origin=Origin.created("k")) as arena, Cache(arena) as cache:
    for key, value in list(cache.items()):
        assert cache[key] == value
        if type(key) is tuple and len(key) == 2:
            cache[key[0], -1 - key[1]] = value
    print(cache.stats().hits)
"""
        fd = arena.descriptor()
        printed = subprocess.run(
            [sys.executable, "-c", program, str(fd), compiled],
            env=os.environ | {VARIABLE: compiled},
            pass_fds=[fd],
            capture_output=True,
            check=True,
            text=True,
        )
        os.close(fd)
        assert int(printed.stdout) >= len(keys) * (len(values) + 1)
        for number, value in enumerate(values):
            for key in keys:
                assert cache[(key, -1 - number)] == value
                assert type(cache[(key, -1 - number)]) is type(value)


def test_what_no_key_can_be_is_the_same_error() -> None:
    with cache_of() as cache:
        unfit: list[Any] = ["\ud800", 1.5, [], None]
        for key in unfit:
            with pytest.raises(UnsupportedTypeError):
                cache.get(key)
            with pytest.raises(UnsupportedTypeError):
                cache.set(key, 1)
        assert cache.stats().sets == 0


def described(memory: mmap.mmap, geometry: Geometry) -> dict[str, Any]:
    """What the compiled records are told of a region that begins with the memory."""
    return {
        "mapping": memory,
        "base": 0,
        "size": geometry.size,
        "buckets": geometry.buckets,
        "seed": geometry.seed,
        "tags_at": geometry.tags_at,
        "frequencies_at": geometry.frequencies_at,
        "ghosts_at": geometry.ghosts_at,
        "entries_at": geometry.entries_at,
        "item_max": geometry.item_max,
        "small": (geometry.small_at, geometry.small_size, geometry.small_size),
        "main": (geometry.main_at, geometry.main_size, geometry.main_size),
        "clock": Clock(),
        "encode_key": encode_key,
        "unpack": bytes,
        "digest": xxhash.xxh3_64_intdigest,
    }


def test_what_is_said_of_the_memory_is_checked() -> None:
    sound = described(mmap.mmap(-1, 32 * KIB), Geometry.plan(32 * KIB, None, SEED, 0))
    assert COMPILED is not None
    COMPILED(**sound)
    for name in ("base", "size", "buckets", "tags_at", "frequencies_at", "ghosts_at", "entries_at"):
        for value in (33 * KIB, 1 << 40, (1 << 64) - 8):
            with pytest.raises(ValueError, match="not within the memory"):
                COMPILED(**sound | {name: value})
    for name in ("small", "main"):
        for log in ((33 * KIB, 8, 8), (0, 33 * KIB, 8), (0, 64, 72), (4, 64, 64), (0, 0, 0), (1 << 63, 1 << 63, 8)):
            with pytest.raises(ValueError, match="not within the memory"):
                COMPILED(**sound | {name: log})
    for mapping in (bytes(32 * KIB), 5):
        with pytest.raises((BufferError, TypeError)):
            COMPILED(**sound | {"mapping": mapping})


def test_nothing_is_counted_before_it_is_said_where() -> None:
    memory = mmap.mmap(-1, 32 * KIB)
    assert COMPILED is not None
    records = COMPILED(**described(memory, Geometry.plan(32 * KIB, None, SEED, 0)))
    assert records.set("a", b"value", 1, None)
    assert records.get("a") == b"value"
    assert not any(memory[:4096])


def test_nothing_is_written_outside_while_another_process_scribbles_in_the_logs_heads() -> None:
    """Both logs end where the memory does, before a page that may not be touched."""
    geometry, page = Geometry.plan(64 * KIB, None, SEED, 0), mmap.PAGESIZE
    memory = mmap.mmap(-1, geometry.size + page)
    at = ctypes.addressof(ctypes.c_char.from_buffer(memory, geometry.size))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(at), ctypes.c_size_t(page), 0) == 0
    assert COMPILED is not None
    records = COMPILED(**described(memory, geometry))
    words = memoryview(memory)[: geometry.size].cast("Q")
    key, value = encode_key("a"), bytes(6000)
    scribbler = os.fork()
    if scribbler == 0:
        while True:  # until it is killed
            words[Word.MAIN_TAIL] = words[Word.MAIN_HEAD] = 0
            words[Word.MAIN_HEAD] = geometry.main_size - 16
    writer = os.fork()
    if writer == 0:
        for _ in range(1_000_000):
            records.put(key, value, 1, None)
        os._exit(0)
    try:
        _, status = os.waitpid(writer, 0)
    finally:
        os.kill(scribbler, signal.SIGKILL)
        os.waitpid(scribbler, 0)
    assert status == 0
