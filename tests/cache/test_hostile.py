"""A region written by an enemy: reads and writes give a value, a miss or an error of ours, and write nowhere else."""

import random
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import xxhash

from persistmem.cache import Cache
from persistmem.cache.keys import encode_key
from persistmem.cache.layout import HEADER_SIZE, Geometry, Word
from persistmem.cache.values import DOCUMENT, EXPIRES, PLAIN, RAW
from persistmem.errors import CorruptError, Error, NewerFormatError
from persistmem.testing import new_arena

from .support import Clock, no_hang, open_cache

SIZE = 32 << 10
KEYS: list[Any] = ["a", "b", b"c", 4, ("e", 5), 2**70, *(f"item {number}" for number in range(20))]


class Besieged:
    """A cache between other things in its arena, which nobody but their owners may touch."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.arena = new_arena("256KiB")
        self.arena.snapshot("state", {"x": b"y" * 5000})
        for name in ("before", "cache", "after"):
            if name == "cache":
                self.cache = open_cache(self.arena, SIZE, clock=self.clock)
            else:
                with self.arena.region(name, 16_384) as region, region.view() as view:
                    view[:] = b"\xa5" * 16_384
        with self.arena.region("cache") as region:
            self.base, self.memory = region.record.offset, self.cache._mapping
        for number, key in enumerate([*range(150), *KEYS]):
            self.cache.set(key, [number, "x" * 60], ttl=None if number % 3 else 500)
            self.cache.get_many(KEYS)
        self.words = self.cache._words
        self.sound = self.memory[self.base : self.base + SIZE]
        self.outside = self.memory[: self.base], self.memory[self.base + SIZE :]

    def mend(self) -> None:
        self.memory[self.base : self.base + SIZE] = self.sound

    def write(self, at: int, data: bytes) -> None:
        assert 0 <= at <= at + len(data) <= SIZE
        self.memory[self.base + at : self.base + at + len(data)] = data

    def check_outside(self) -> None:
        assert self.memory[: self.base] == self.outside[0]
        assert self.memory[self.base + SIZE :] == self.outside[1]

    def reopened(self) -> Cache:
        return open_cache(self.arena, clock=self.clock)

    def forge(self, key: bytes, value: bytes, kind: int, *, body: bytes | None = None) -> None:
        """Make the first record with this key one with this body, and a checksum that is right."""
        found = self.cache._store.find(key)
        assert found is not None
        place = found[1] & (1 << 40) - 1
        head = bytes([kind]) + key
        if body is None:
            body = head + value
        checksum = xxhash.xxh3_64_intdigest(value, xxhash.xxh3_64_intdigest(head))
        self.write(place * 8, struct.pack("<QQ", found[0] << 32 | len(body), checksum) + body)


@contextmanager
def besieged() -> Iterator[Besieged]:
    with ExitStack() as stack:
        stack.enter_context(no_hang())
        each = Besieged()
        stack.enter_context(each.arena)
        stack.enter_context(each.cache)
        yield each
        each.check_outside()


USES: list[Callable[[Cache, Any], object]] = [
    lambda cache, key: cache.get(key),
    lambda cache, key: key in cache,
    lambda cache, key: cache.get_many(KEYS),
    lambda cache, key: cache.set(key, [1, "new"], ttl=5),
    lambda cache, key: cache.set(key, "y" * 2000),
    lambda cache, key: cache.set_many({("many", number): b"z" * 100 for number in range(20)}),
    lambda cache, key: cache.add(key, 1),
    lambda cache, key: cache.replace(key, 2),
    lambda cache, key: cache.touch(key, 5),
    lambda cache, key: cache.incr(("count", key), default=0),
    lambda cache, key: cache.pop(key, None),
    lambda cache, key: cache.delete(key),
    lambda cache, key: cache.setdefault(key, 3),
    lambda cache, key: len(cache),
    lambda cache, key: list(cache),
    lambda cache, key: dict(cache.items()),
    lambda cache, key: cache.expire(),
    lambda cache, key: cache.stats(),
]


def use_everything(cache: Cache, rng: random.Random, count: int = 25) -> None:
    """Any value is right, and any error that is ours."""
    for _ in range(count):
        use, key = rng.choice(USES), rng.choice(KEYS)
        try:
            use(cache, key)
        except Error:
            continue


def check_usable(cache: Cache, rng: random.Random) -> None:
    """When all is cleared it is a cache again."""
    cache.clear()
    assert dict(cache) == {}
    for number in range(30):
        cache["new", number] = number
        assert cache["new", number] == number
    use_everything(cache, rng, 5)


def with_checksum(header: bytes) -> bytes:
    return header[:-8] + struct.pack("<Q", xxhash.xxh3_64_intdigest(header[:-8]))


@pytest.mark.parametrize("seed", range(3))
def test_noise_anywhere_gives_values_misses_or_errors_of_ours(seed: int) -> None:
    with besieged() as each:
        rng = random.Random(seed)
        for _ in range(120):
            start = rng.choice([0, 4096, 8192, 12_288, 14_000, 16_384, 20_000])
            length = min(rng.choice([1, 8, 64, 1000, 20_000]), SIZE - start)
            at = rng.randrange(start, SIZE - length + 1)
            each.write(at, rng.choice([rng.randbytes(length), bytes(length), b"\xff" * length]))
            use_everything(each.cache, rng)
            try:
                with each.reopened() as other:
                    use_everything(other, rng)
                    check_usable(other, rng)
            except (CorruptError, NewerFormatError):
                assert at < HEADER_SIZE
            each.check_outside()
            each.mend()


@pytest.mark.parametrize("seed", range(2))
def test_hostile_index_gives_values_misses_or_errors_of_ours(seed: int) -> None:
    with besieged() as each:
        rng = random.Random(seed)
        store = each.cache._store
        for _ in range(120):
            for _ in range(rng.choice([1, 10, 200])):
                slot = rng.randrange(store.geometry.slots)
                word = store.entries_at + slot
                match rng.randrange(4):
                    case 0:  # to somewhere inside or outside of the region, or of the arena
                        each.words[word] = each.words[word] >> 40 << 40 | rng.choice(
                            [
                                rng.randrange(SIZE // 8),
                                SIZE // 8 - 1,
                                SIZE // 8,
                                1 << 15,
                                rng.getrandbits(40),
                                2**40 - 1,
                            ]
                        )
                    case 1:
                        each.words[word] = rng.getrandbits(64)
                    case 2:
                        each.write(store.tags_at - each.base + slot, rng.randbytes(1))
                    case 3:
                        other = rng.randrange(store.geometry.slots)
                        each.words[word] = each.words[store.entries_at + other]
            use_everything(each.cache, rng, 40)
            each.check_outside()
            check_usable(each.cache, rng)
            each.mend()


@pytest.mark.parametrize("seed", range(2))
def test_hostile_records_give_values_misses_or_errors_of_ours(seed: int) -> None:
    with besieged() as each:
        rng = random.Random(seed)
        store = each.cache._store
        for _ in range(150):
            for slot in rng.sample(list(store.slots()), 20):
                at = (each.words[store.entries_at + slot] & (1 << 40) - 1) * 8
                length = rng.choice([0, 1, 5, 15, 2**16, 2**31, 2**32 - 1, rng.randrange(2**32)])
                owner = rng.choice([slot, slot, rng.randrange(256), 2**32 - 1, 2**32 - 2, rng.randrange(2**32)])
                each.write(at, struct.pack("<Q", owner << 32 | length))
                if rng.random() < 0.5:
                    each.write(at + 16, rng.choice([rng.randbytes(5), b"\xff" * 5, b"\x80\xff\xff\xff\xff"]))
            use_everything(each.cache, rng, 40)
            each.check_outside()
            check_usable(each.cache, rng)
            each.mend()


@pytest.mark.parametrize("seed", range(2))
def test_hostile_control_words_give_values_misses_or_errors_of_ours(seed: int) -> None:
    with besieged() as each:
        rng = random.Random(seed)
        named = [value for name, value in vars(Word).items() if name.isupper()]
        sizes = [0, 1, 7, 8, 15, 16, 4096, SIZE, SIZE * 3 // 8, 2**32, 2**62 - 8, 2**62, 2**63, 2**64 - 8, 2**64 - 1]
        for _ in range(250):
            for number in rng.sample(named, rng.choice([1, 2, 5, len(named)])):
                each.words[number] = rng.choice([*sizes, rng.getrandbits(64), each.words[number] + 8 & 2**64 - 1])
            use_everything(each.cache, rng, 40)
            each.check_outside()
            check_usable(each.cache, rng)
            with each.reopened() as other:
                check_usable(other, rng)
            each.mend()


def test_header_that_lies_with_a_right_checksum_is_refused() -> None:
    with besieged() as each:
        sound = each.sound[:HEADER_SIZE]
        size, buckets, small, main = struct.unpack_from("<QQQQ", sound, 16)
        assert with_checksum(sound) == sound
        lies = [
            (size * 2, buckets, small, main), (size, 0, small, main), (size, 1, small, main),
            (size, 2**63, small, main), (size, buckets * 2, small, main), (size, buckets, 0, main),
            (size, buckets, small, 0),
            (size, buckets, small + 8, main), (size, buckets, small, main + 8), (size, buckets, small, main - 8),
            (size, buckets, small + 8, main - 8), (size, buckets, main, small), (size, buckets, small + main - 64, 64),
            (size, buckets, 2**64 - 1, 2**64 - 1), (0, 0, 0, 0),
            (size, 2**28, small, main), (size, 2**60, 2**64 - 8, 2**64 - 8), (2**64 - 1, buckets, small, main),
        ]  # fmt: skip
        for fields in lies:
            each.write(0, with_checksum(sound[:16] + struct.pack("<QQQQ", *fields) + sound[48:]))
            with pytest.raises(CorruptError):
                each.reopened()
        for version in (0, 2, 2**32 - 1):
            each.write(0, with_checksum(sound[:8] + struct.pack("<I", version) + sound[12:]))
            with pytest.raises(NewerFormatError):
                each.reopened()
        for at in (0, 7, HEADER_SIZE - 1):
            each.write(0, sound)
            each.write(at, bytes([sound[at] ^ 1]))
            with pytest.raises(CorruptError):
                each.reopened()
        each.mend()


def test_random_headers_with_right_checksums_are_refused_or_harmless() -> None:
    with besieged() as each:
        rng = random.Random(4)
        for _ in range(500):
            header = bytearray(each.sound[:HEADER_SIZE])
            at = rng.randrange(16, HEADER_SIZE - 8)
            header[at] = rng.randrange(256)
            each.write(0, with_checksum(bytes(header)))
            try:
                with each.reopened() as cache:
                    use_everything(cache, rng)
            except CorruptError:
                pass
            each.check_outside()
            each.mend()


BOMB = b"\xdd" + struct.pack(">I", 2**32 - 1)
HOSTILE_VALUES: list[tuple[bytes, int]] = [
    (b"", PLAIN), (b"\xc1", PLAIN), (b"\xc0\xc0", PLAIN), (b"\x91", PLAIN), (b"\xc7\x00\x01", PLAIN), (BOMB, PLAIN),
    (BOMB * 400, PLAIN), (b"\x81\x90\xc0", PLAIN), (b"\x81\x01\x02", PLAIN), (b"\xd6\xff\x00\x00\x00\x00", PLAIN),
    (b"\xa2\xff\xfe", PLAIN), (b"\x91" * 3000 + b"\xc0", PLAIN), (b"", DOCUMENT), (b"\xd5\x01\x91\x91", DOCUMENT),
    (b"\xd4\x0e\x00", DOCUMENT), (BOMB * 400, DOCUMENT), (b"\xd4\x63\x00", DOCUMENT), (b"\xc1", DOCUMENT),
    (b"anything", RAW), (b"anything", 3), (b"\xc0", 0x40), (b"\xc0", 0x7F), (b"\x01", PLAIN | EXPIRES),
    (b"", RAW | EXPIRES), (b"\x00" * 7, RAW | EXPIRES), (b"\xff" * 8 + b"x", RAW | EXPIRES),
    (struct.pack("<d", float("nan")) + b"\x01", PLAIN | EXPIRES), (struct.pack("<d", float("inf")), PLAIN | EXPIRES),
    (struct.pack("<d", -1e308), RAW | EXPIRES),
]  # fmt: skip


@pytest.mark.parametrize(("value", "kind"), HOSTILE_VALUES, ids=lambda part: repr(part)[:24])
def test_forged_value_with_a_right_checksum_is_a_value_a_miss_or_an_error_of_ours(value: bytes, kind: int) -> None:
    with besieged() as each:
        name = encode_key("a")
        each.cache["a"] = "x" * 3000
        if kind & EXPIRES:  # the time is part of what the checksum's seed is made of
            found = each.cache._store.find(name)
            assert found is not None
            head = bytes([kind]) + name + value[:8]
            checksum = xxhash.xxh3_64_intdigest(value[8:], xxhash.xxh3_64_intdigest(head))
            body = head + value[8:]
            each.write((found[1] & (1 << 40) - 1) * 8, struct.pack("<QQ", found[0] << 32 | len(body), checksum) + body)
        else:
            each.forge(name, value, kind)
        rng = random.Random(1)
        for _ in range(4):
            for use in (each.cache.get, each.cache.touch, each.cache.incr, each.cache.__contains__):
                try:
                    use("a")
                except Error:
                    continue
        use_everything(each.cache, rng, 60)
        each.cache["a"] = "sound again"
        assert each.cache["a"] == "sound again"


@pytest.mark.parametrize(
    "name",
    [
        b"\x08\x00\x00\x00\xff\xfe", b"\x0a\x00\x00\x00\xc1\xc0", b"\x06\x00\x00\x00\x90", b"\x06\x00\x00\x00\x80",
        b"\x02\x00\x00\x00", b"\x07\x00\x00\x00\x01", b"\x03\x00\x00\x00",
    ],
    ids=repr,
)  # fmt: skip
def test_forged_key_that_is_none_is_left_out(name: bytes) -> None:
    with besieged() as each:
        each.cache.clear()
        each.cache["sound"] = 1
        each.cache._store.put(name, b"\x01", PLAIN, None)
        for _ in range(3):
            try:
                assert "sound" in list(each.cache)
                assert each.cache.items() >= {("sound", 1)}
            except Error:
                continue
        assert each.cache["sound"] == 1


def test_promise_of_many_items_takes_no_memory() -> None:
    arrays = (b"\xdd" + struct.pack(">I", 60_000)) * 500
    bomb = arrays.ljust(60_000, b"\xc0")
    with new_arena("1MiB") as arena, open_cache(arena, 512 << 10) as cache, no_hang():
        cache["bomb"] = "x" * 60_000
        name = encode_key("bomb")
        cache._store.put(name, bomb, PLAIN, None)
        tracemalloc.start()
        try:
            for _ in range(6):
                with pytest.raises(CorruptError):
                    cache.get("bomb")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 5_000_000


def test_log_that_cannot_be_walked_is_cleared_and_nothing_else_happens() -> None:
    with besieged() as each:
        store = each.cache._store
        for log_at in (store.geometry.small_at, store.geometry.main_at):
            for word in (0, 1, 2**32 - 1, 2**31, (2**32 - 1) << 32, (2**32 - 1) << 32 | 7, 2**64 - 1):
                for at in range(log_at, log_at + 1600, 8):
                    each.write(at, struct.pack("<Q", word))
                for number in range(400):
                    each.cache["new", number] = "x" * 50
                    assert each.cache["new", number] == "x" * 50
                each.check_outside()
                each.mend()


def test_records_can_name_every_slot_and_length_of_the_largest_caches() -> None:
    for size in (1 << 34, 1 << 36, 1 << 39, 1 << 42):
        for items in (None, size // 64):
            geometry = Geometry.plan(size, items, 0, 0)
            assert geometry.slots < 2**32 - 1
            assert geometry.item_max < 2**32
            assert (geometry.main_at + geometry.main_size) // 8 < 2**40
    with new_arena("18GiB") as arena, open_cache(arena, 17 << 30) as cache:
        for number in range(100):
            cache[number] = b"x" * 1000
        assert len(cache.get_many(range(100))) == 100
