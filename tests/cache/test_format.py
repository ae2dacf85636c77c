"""The bytes of a cache, written out by hand from the format page."""

import os
import struct
from collections import Counter

import pytest
import xxhash

from persistmem.cache import Cache
from persistmem.cache.layout import Geometry, encode_header
from persistmem.cache.opening import OpenCache
from persistmem.errors import NewerFormatError
from persistmem.testing import new_arena

from .support import Clock, cache_of, open_cache

SIZE = 32 << 10
BUCKETS, SLOTS = 16, 256
TAGS, FREQUENCIES, GHOSTS, ENTRIES = 12_288, 12_544, 12_800, 13_312
SMALL, SMALL_SIZE = 16_384, 1632
MAIN, MAIN_SIZE = 18_016, 14_752
ITEMS, MAIN_HEAD, MAIN_DEAD = 4112, 4192, 4208

GOLDEN_HEADER = bytes.fromhex(
    "504d4341 43484500"  # "PMCACHE", NUL
    "01000000 00000000"  # version 1, zero
    "00800000 00000000"  # region of 32768 bytes
    "10000000 00000000"  # 16 buckets
    "60060000 00000000"  # small log of 1632 bytes
    "a0390000 00000000"  # main log of 14752 bytes
    "efcdab89 67452301"  # seed
    "15cd55f5 51728618"  # created: 1767225600123456789
)


def xxh3(data: bytes, seed: int = 0) -> int:
    return xxhash.xxh3_64_intdigest(data, seed=seed)


def region_of(cache: Cache) -> bytes:
    opened: OpenCache = cache._opened
    record = opened._region.record
    return opened.mapping[record.offset : record.offset + record.length]


def words(region: bytes, at: int, count: int = 1) -> list[int]:
    return list(struct.unpack_from(f"<{count}Q", region, at))


def record(slot: int, kind: int, key: bytes, value: bytes, expires: float | None = None) -> bytes:
    """A record as it lies in a log, padded."""
    head = bytes([kind]) + key + (b"" if expires is None else struct.pack("<d", expires))
    body = head + value
    return (struct.pack("<II", len(body), slot) + struct.pack("<Q", xxh3(value, xxh3(head))) + body).ljust(
        16 + -(-len(body) // 8) * 8, b"\0"
    )


def text_key(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<I", len(encoded) << 2 | 0) + encoded


def first_slot(key: bytes, seed: int) -> tuple[int, int]:
    """The first slot of a key in an empty cache, and its tag: the upper 24 bits of its hash."""
    hashed = xxh3(key, seed)
    return hashed % BUCKETS * 16, hashed >> 40


def test_header_has_the_bytes_of_the_format_page() -> None:
    geometry = Geometry.plan(SIZE, None, 0x0123456789ABCDEF, 1_767_225_600_123_456_789)
    assert encode_header(geometry) == GOLDEN_HEADER + struct.pack("<Q", xxh3(GOLDEN_HEADER))


def test_new_cache_is_a_header_and_zeros_but_that_it_is_being_written() -> None:
    with cache_of(SIZE) as cache:
        region = region_of(cache)
        assert region[:16] == GOLDEN_HEADER[:16]
        assert region[16:48] == GOLDEN_HEADER[16:48]
        assert words(region, 64) == [xxh3(region[:64])]
        rest = bytearray(region[72:])
        rest[4104 - 72 : 4112 - 72] = bytes(8)  # the word WRITING
        assert not any(rest)


def test_item_has_the_bytes_of_the_format_page() -> None:
    with cache_of(SIZE) as cache:
        cache["ada"] = 36
        region = region_of(cache)
        (seed,) = words(region, 48)
        key = bytes.fromhex("0c000000 616461")  # length 3, shifted by 2; kind 0: text; "ada"
        slot, tag = first_slot(key, seed)
        assert region[TAGS : TAGS + SLOTS] == bytes(slot) + bytes([tag & 0xFF or 1]) + bytes(SLOTS - slot - 1)
        assert region[FREQUENCIES : FREQUENCIES + SLOTS] == bytes(SLOTS)
        assert words(region, ENTRIES + 8 * slot) == [tag << 40 | MAIN // 8]
        body = bytes.fromhex("00 0c000000 616461 24")  # kind 0: msgpack; the key; 36
        expected = struct.pack("<II", 9, slot) + struct.pack("<Q", xxh3(b"\x24", xxh3(body[:8]))) + body + bytes(7)
        assert region[MAIN : MAIN + 32] == expected
        assert not any(region[MAIN + 32 : MAIN + MAIN_SIZE])
        assert not any(region[SMALL:MAIN])
        assert words(region, ITEMS) == [1]
        assert words(region, MAIN_HEAD, 3) == [32, 0, 0]


def test_records_of_all_kinds_follow_each_other_in_the_log() -> None:
    clock = Clock(1_700_000_000.0)
    with cache_of(SIZE, clock=clock) as cache:
        cache["ada"] = 36
        cache[b"raw"] = b"bytes"
        cache[5] = (1, "a")
        cache.set("passing", None, ttl=60)
        cache[True, "x"] = {"k": [1]}
        region = region_of(cache)
        (seed,) = words(region, 48)
        keys = [
            text_key("ada"),
            struct.pack("<I", 3 << 2 | 1) + b"raw",
            struct.pack("<I", 1 << 2 | 2) + b"\x05",
            text_key("passing"),
            struct.pack("<I", 6 << 2 | 2) + bytes.fromhex("d6 01 92 01 a178"),  # extension 1, a tuple: [1, "x"]
        ]
        values = [
            (0, b"\x24", None),
            (1, b"bytes", None),
            (2, bytes.fromhex("d6 01 92 01 a161"), None),
            (0x80, b"\xc0", 1_700_000_060.0),
            (0, bytes.fromhex("81 a16b 91 01"), None),
        ]
        log, at = b"", MAIN // 8
        taken: Counter[int] = Counter()
        for key, (kind, value, expires) in zip(keys, values, strict=True):
            hashed = xxh3(key, seed)
            candidates = [
                slot for slot in range(SLOTS) if words(region, ENTRIES + 8 * slot) == [hashed >> 40 << 40 | at]
            ]
            assert len(candidates) == 1
            assert candidates[0] // 16 == bucket_for(hashed, taken)
            log += record(candidates[0], kind, key, value, expires)
            at = (MAIN + len(log)) // 8
        assert region[MAIN : MAIN + len(log)] == log
        assert words(region, ITEMS) == [5]
        assert words(region, MAIN_HEAD, 3) == [len(log), 0, 0]


def test_item_that_is_replaced_is_dead_where_it_was_and_keeps_its_slot() -> None:
    with cache_of(SIZE) as cache:
        cache["ada"] = 36
        before = region_of(cache)
        cache["ada"] = "older"
        region = region_of(cache)
        (seed,) = words(region, 48)
        slot, tag = first_slot(text_key("ada"), seed)
        assert region[MAIN : MAIN + 32] == before[MAIN : MAIN + 32]
        assert region[MAIN + 32 : MAIN + 64] == record(slot, 0, text_key("ada"), b"\xa5older")
        assert words(region, ENTRIES + 8 * slot) == [tag << 40 | (MAIN + 32) // 8]
        assert words(region, MAIN_HEAD, 3) == [64, 0, 32]
        assert words(region, ITEMS) == [1]
        del cache["ada"]
        region = region_of(cache)
        assert words(region, ENTRIES + 8 * slot) == [0]
        assert region[TAGS + slot] == 0
        assert words(region, MAIN_HEAD, 3) == [64, 0, 64]
        assert words(region, ITEMS) == [0]


def buckets_of(hashed: int) -> tuple[int, int]:
    """A key's first and second bucket."""
    first = hashed % BUCKETS
    return first, ((hashed >> 40) * 0x9E3779B97F4A7C15 - first) % BUCKETS


def bucket_for(hashed: int, taken: Counter[int]) -> int:
    """Where a new key goes, given how many slots of each bucket are taken; that one is taken too now."""
    first, second = buckets_of(hashed)
    chosen = second if taken[first] > 12 and taken[second] < taken[first] else first
    taken[chosen] += 1
    return chosen


def test_new_key_goes_to_its_first_bucket_and_to_the_emptier_one_when_that_gets_full() -> None:
    with cache_of(SIZE) as cache:
        (seed,) = words(region_of(cache), 48)
        keys = {str(number): xxh3(text_key(str(number)), seed) for number in range(20_000)}
        keys = dict([(key, hashed) for key, hashed in keys.items() if buckets_of(hashed)[0] == 3][:20])
        taken: Counter[int] = Counter()
        for key, hashed in keys.items():
            cache[key] = 1
            region = region_of(cache)
            entries = [words(region, ENTRIES + 8 * slot)[0] >> 40 for slot in range(SLOTS)]
            assert entries.index(hashed >> 40) // 16 == bucket_for(hashed, taken)
        assert all(cache[key] == 1 for key in keys)


def test_reads_are_counted_in_the_slot_and_in_the_row_of_the_process() -> None:
    with cache_of(SIZE) as cache:
        cache["ada"] = 36
        (seed,) = words(region_of(cache), 48)
        slot, _ = first_slot(text_key("ada"), seed)
        seen = []
        for _ in range(5):
            cache.get("ada")
            seen.append(region_of(cache)[FREQUENCIES + slot])
        assert seen == [1, 2, 3, 3, 3]
        cache["ada"] = 37
        assert region_of(cache)[FREQUENCIES + slot] == 3
        cache.get("missing")
        cache.delete("ada")
        with open_cache(cache.arena) as other:
            other.get("missing")
            assert words(region_of(cache), 8192, 4) == [5, 1, 2, 1]  # hits, misses, sets, deletes
            assert words(region_of(cache), 8192 + 64, 4) == [0, 1, 0, 0]
        cache["ada"] = 38
        assert region_of(cache)[FREQUENCIES + slot] == 0, "who is new in a slot was not read yet"


def test_log_that_has_no_room_before_its_end_is_filled_up() -> None:
    with cache_of(SIZE) as cache:
        for number in range(8):
            cache["x"] = bytes([number]) * 3000
        region = region_of(cache)
        size = 16 + -(-(1 + 5 + 3000) // 8) * 8
        in_a_lap = MAIN_SIZE // size
        filler = MAIN + in_a_lap * size
        length = MAIN + MAIN_SIZE - filler
        assert words(region, filler) == [0xFFFFFFFF << 32 | length]
        (head,) = words(region, MAIN_HEAD)
        assert head == 8 * size + length * ((8 - 1) // in_a_lap)


@pytest.mark.parametrize("version", [0, 2, 2**32 - 1])
def test_cache_of_another_format_is_refused_and_not_touched(version: int) -> None:
    header = GOLDEN_HEADER[:8] + struct.pack("<I", version) + GOLDEN_HEADER[12:]
    content = (header + struct.pack("<Q", xxh3(header))).ljust(SIZE, b"\xa5")
    with new_arena("128KiB") as arena:
        with arena.region("cache", SIZE) as region, region.view() as view:
            view[:] = content
        with pytest.raises(NewerFormatError, match="upgrade persistmem"):
            Cache(arena)
        with arena.region("cache") as region, region.view() as view:
            assert bytes(view) == content


def test_cache_written_by_hand_from_the_format_page_is_read() -> None:
    seed = 0x0123456789ABCDEF
    region = bytearray(SIZE)
    region[:72] = GOLDEN_HEADER + struct.pack("<Q", xxh3(GOLDEN_HEADER))
    at, items = MAIN, {f"key {number}": number for number in range(100)}
    for text, number in items.items():
        key = text_key(text)
        hashed = xxh3(key, seed)
        buckets = hashed % BUCKETS, ((hashed >> 40) * 0x9E3779B97F4A7C15 - hashed % BUCKETS) % BUCKETS
        slot = next(
            each for bucket in buckets for each in range(bucket * 16, bucket * 16 + 16) if not region[TAGS + each]
        )
        written = record(slot, 0, key, struct.pack("B", number))
        region[at : at + len(written)] = written
        region[TAGS + slot] = hashed >> 40 & 0xFF or 1
        struct.pack_into("<Q", region, ENTRIES + 8 * slot, hashed >> 40 << 40 | at // 8)
        at += len(written)
    struct.pack_into("<Q", region, ITEMS, len(items))
    struct.pack_into("<Q", region, MAIN_HEAD, at - MAIN)
    with new_arena("128KiB") as arena:
        with arena.region("cache", SIZE) as opened, opened.view() as view:
            view[:] = region
        with Cache(arena) as cache:
            assert len(cache) == 100
            assert dict(cache.items()) == items
            assert cache.get_many(items) == items
            cache["more"] = os.urandom(100)
            assert cache.stats().damaged == 0
