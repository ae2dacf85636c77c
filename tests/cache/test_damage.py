"""Memory that was damaged: never a wrong value, no error but ours, each damaged record counted, and usable after."""

import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from persistmem.cache import Cache
from persistmem.cache.keys import Key, decode_key
from persistmem.cache.layout import HEADER_SIZE, PLACE_MASK, Word
from persistmem.errors import CorruptError, Error, NewerFormatError
from persistmem.testing import new_arena

from .support import MISSING, Clock, no_hang, open_cache

SIZE = 32 << 10

VALUES: dict[Key, object] = {
    **{f"item {number}": {"number": number, "text": "x" * number} for number in range(20)},
    **{b"raw %d" % number: b"\x07" * (50 * number) for number in range(1, 9)},
    ("tuple", 1): (1, "document"),
    2**70: 2**70,
}
TEMPORARY: dict[Key, object] = {b"passing %d" % number: [number, None] for number in range(10)}


class Damaged:
    """A full cache whose bytes are damaged and mended again."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.arena = new_arena("256KiB")
        self.cache = open_cache(self.arena, SIZE, clock=self.clock)
        self.values: dict[Key, object] = {**VALUES, **TEMPORARY}
        self.cache.set_many(VALUES)
        self.cache.set_many(TEMPORARY, ttl=1000)
        for number in range(300):  # so that there is something everywhere
            self.cache.get_many(self.values)
            self.cache[f"filler {number}"] = bytes(80)
        with self.arena.region("cache") as region:
            self.base = region.record.offset
        self.memory = self.cache._mapping
        self.words = self.cache._words
        self.sound = self.region()
        self.held = self.cache.get_many(self.values)
        assert len(self.held) > 35
        assert self.cache.stats().damaged == 0

    def region(self) -> bytes:
        return self.memory[self.base : self.base + SIZE]

    def mend(self) -> None:
        self.memory[self.base : self.base + SIZE] = self.sound

    def write(self, at: int, data: bytes) -> None:
        self.memory[self.base + at : self.base + at + len(data)] = data

    def reopened(self) -> Cache:
        return open_cache(self.arena, clock=self.clock)

    def records(self) -> Iterator[tuple[int, Key, int, int]]:
        """Each record's slot, its key, its first byte and its length, read from the region by the format page."""
        buckets = struct.unpack_from("<Q", self.sound, 24)[0]
        for slot in range(16 * buckets):
            entry = struct.unpack_from("<Q", self.sound, 12_288 + 4 * 16 * buckets + 8 * slot)[0]
            if entry:
                at = (entry & PLACE_MASK) * 8
                found = self.cache._store.peek(slot)
                assert found is not None
                yield slot, decode_key(found[0]), at, 16 + (struct.unpack_from("<Q", self.sound, at)[0] & 0xFFFFFFFF)


@contextmanager
def damaged_cache() -> Iterator[Damaged]:
    damaged = Damaged()
    with no_hang(), damaged.arena, damaged.cache:
        yield damaged


def check_reads(cache: Cache, values: dict[Key, object]) -> None:
    """Every read gives what was stored, or nothing."""
    for key, value in values.items():
        found = cache.get(key, MISSING)
        assert found is MISSING or found == value, f"{key!r} gives {found!r:.80}"


def check_never_wrong(cache: Cache, values: dict[Key, object]) -> None:
    """Nor does it find anything else when it is walked."""
    check_reads(cache, values)
    for key, found in cache.items():
        assert key not in values or found == values[key], f"{key!r} gives {found!r:.80}"
        assert key in values or str(key).startswith(("filler", "after"))


def check_usable(cache: Cache, values: dict[Key, object], rng: random.Random) -> None:
    """What is stored now is there, and all else is right still."""
    model = dict(values)
    for number in range(12):
        key = f"after {number}" if number % 2 else rng.choice(list(values))
        model[key] = value = {"new": number, "pad": "y" * rng.choice([5, 50, 500])}
        cache[key] = value
        assert cache.get(key) == value
        if number % 5 == 4:
            gone = rng.choice(list(model))
            cache.delete(gone)
            del model[gone]
            assert gone not in cache
    check_never_wrong(cache, model | {key: MISSING for key in values if key not in model})
    assert 0 <= len(cache) <= cache.stats().slots
    assert len(list(cache)) <= cache.stats().slots


def changed(byte: int, rng: random.Random) -> int:
    """Another value for a byte: one bit or all of them flipped, nothing, everything, or anything."""
    new = rng.choice([byte ^ 1 << rng.randrange(8), byte ^ 0xFF, 0, 0xFF, byte ^ rng.randrange(1, 256)])
    return new if new != byte else byte ^ 0x10


@pytest.mark.parametrize("part", range(4))
def test_every_byte_of_a_cache_changed_gives_right_values_or_misses(part: int) -> None:
    with damaged_cache() as damaged:
        rng = random.Random(part)
        logs_at = damaged.cache._store.geometry.small_at
        for at in range(part, SIZE, 4):
            damaged.write(at, bytes([changed(damaged.sound[at], rng)]))
            check_reads(damaged.cache, damaged.held)
            if rng.random() < (0.06 if at >= logs_at else 0.2):
                check_never_wrong(damaged.cache, damaged.held)
                check_usable(damaged.cache, damaged.held, rng)
            damaged.mend()


@pytest.mark.parametrize("seed", range(2))
def test_many_bytes_changed_at_once_give_right_values_or_misses(seed: int) -> None:
    with damaged_cache() as damaged:
        rng = random.Random(seed)
        for _ in range(300):
            start = rng.choice([0, 4096, 8192, 12_288, 16_384])
            for _ in range(rng.choice([2, 10, 100, 1000])):
                at = rng.randrange(start, SIZE)
                damaged.write(at, bytes([changed(damaged.region()[at], rng)]))
            check_never_wrong(damaged.cache, damaged.held)
            check_usable(damaged.cache, damaged.held, rng)
            damaged.mend()


def test_every_byte_of_every_record_changed_is_a_miss_and_counted() -> None:
    with damaged_cache() as damaged:
        rng = random.Random(1)
        for _, key, start, length in list(damaged.records()):
            for at in range(start, start + length) if key in damaged.held else ():
                damaged.write(at, bytes([changed(damaged.sound[at], rng)]))
                before = damaged.words[Word.DAMAGED]
                assert key not in damaged.cache, f"byte {at - start} of the record of {key!r}"
                assert damaged.words[Word.DAMAGED] == before + 1, f"byte {at - start} of the record of {key!r}"
                damaged.mend()
                assert key in damaged.cache


def test_damage_to_one_record_leaves_all_others() -> None:
    with damaged_cache() as damaged:
        for _, key, start, _ in list(damaged.records()):
            damaged.write(start + 8, b"\xff\x00\xff")
            found = {other for other in damaged.held if other in damaged.cache}
            assert found == damaged.held.keys() - {key}
            assert {other: value for other, value in damaged.cache.items() if other in damaged.held} == {
                other: value for other, value in damaged.held.items() if other != key
            }
            damaged.mend()


def test_value_that_is_stored_over_a_damaged_one_is_the_one_that_all_processes_read() -> None:
    with damaged_cache() as damaged, damaged.reopened() as other:
        for slot, key, start, length in list(damaged.records()):
            tag_at = damaged.cache._store.tags_at - damaged.base + slot
            for at in (*range(start, start + 24), start + length - 1, tag_at):
                for _ in range(4):  # both know the way to it now
                    damaged.cache.get(key)
                    other.get(key)
                damaged.write(at, bytes([damaged.sound[at] ^ 0x55]))
                damaged.cache[key] = "new"
                assert (damaged.cache[key], other[key]) == ("new", "new"), f"byte {at - start} of {key!r}"
                damaged.mend()
                for _ in range(4):
                    damaged.cache.get(key)
                    other.get(key)
                damaged.write(at, bytes([damaged.sound[at] ^ 0xAA]))
                damaged.cache.delete(key)
                assert (damaged.cache.get(key), other.get(key)) == (None, None), f"byte {at - start} of {key!r}"
                damaged.mend()


def test_damaged_item_can_be_stored_anew() -> None:
    with damaged_cache() as damaged:
        for _, key, start, length in list(damaged.records()):
            for at in (start, start + 3, start + 4, start + 8, start + 16, start + 17, start + 21, start + length - 1):
                damaged.write(at, bytes([damaged.sound[at] ^ 0xFF]))
                damaged.cache.get(key)
                damaged.cache[key] = "new"
                for _ in range(3):
                    assert damaged.cache[key] == "new"
                assert list(damaged.cache).count(key) == 1
                damaged.mend()


@pytest.mark.parametrize("part", range(2))
def test_every_byte_of_header_words_and_counters_changed_and_opened_anew_is_refused_or_right(part: int) -> None:
    with damaged_cache() as damaged:
        rng = random.Random(part)
        places = [*range(HEADER_SIZE), *range(4096, 4096 + 8 * 40), *range(8192, 8192 + 200)]
        for at in places[part::2]:
            damaged.write(at, bytes([changed(damaged.sound[at], rng)]))
            try:
                cache = damaged.reopened()
            except (CorruptError, NewerFormatError):
                assert at < HEADER_SIZE
            else:
                assert at >= HEADER_SIZE
                with cache:
                    check_never_wrong(cache, damaged.held)
                    check_usable(cache, damaged.held, rng)
            damaged.mend()


def test_any_control_word_may_hold_anything() -> None:
    with damaged_cache() as damaged:
        rng = random.Random(3)
        words = [value for name, value in vars(Word).items() if name.isupper()]
        sizes = [1, 7, 8, 4096, SIZE, 2**31, 2**32, 2**40, 2**62, 2**63 - 8, 2**63, 2**64 - 8, 2**64 - 1]
        for number in words:
            for value in sizes:
                damaged.words[number] = value
                check_never_wrong(damaged.cache, damaged.held)
                check_usable(damaged.cache, damaged.held, rng)
                assert 0 <= len(damaged.cache) <= damaged.cache.stats().slots
                damaged.cache.expire()
                damaged.cache.clear()
                damaged.cache["x"] = 1
                assert dict(damaged.cache) == {"x": 1}
                damaged.mend()


def test_counters_may_hold_anything() -> None:
    with damaged_cache() as damaged:
        for value in (1, 2**63, 2**64 - 1):
            for number in range(1024, 1024 + 64 * 8):
                damaged.words[number] = value
            for key, expected in damaged.held.items():
                assert damaged.cache[key] == expected
            damaged.cache.get("missing")
            damaged.cache["x"] = 1
            damaged.cache.delete("x")
            assert damaged.cache.stats().hits >= 0
            damaged.reopened().close()
            damaged.mend()


def test_entry_that_was_damaged_gives_no_old_value_when_its_place_is_used_again() -> None:
    with new_arena("256KiB") as arena, open_cache(arena, SIZE) as cache, no_hang():
        tried = 0
        for seed in range(60):
            rng = random.Random(seed)
            cache.clear()
            number = 0
            cache["key"] = value = number, "x" * 100
            slot = next(iter(cache._store.slots()))
            word = cache._store.entries_at + slot
            # The entry dangles: it points to where the key's records will come to lie, and be written over.
            entry = cache._words[word]
            cache._words[word] = entry & ~PLACE_MASK | (entry & PLACE_MASK) + rng.randrange(2000)
            for _ in range(400):
                number += 1
                value = number, "x" * 100
                cache["key"] = value
                found = cache.get("key", MISSING)
                assert found in (value, MISSING), f"an old value: {found!r:.20} instead of {value!r:.20}"
            tried += 1
        assert tried == 60


def test_region_of_zeros_is_a_new_cache_and_one_of_noise_is_refused() -> None:
    with damaged_cache() as damaged:
        damaged.write(0, bytes(SIZE))
        with damaged.reopened() as cache:
            assert dict(cache) == {}
            cache["a"] = 1
        for seed in range(20):
            damaged.write(0, random.Random(seed).randbytes(SIZE))
            with pytest.raises(Error):
                damaged.reopened()
