"""A full cache takes what is new, keeps what is read, and never fails: what was not read lately makes room."""

import random

from persistmem.cache import Cache

from .support import cache_of, open_cache

READ = [("read", number) for number in range(60)]


def fill(cache: Cache, name: str, count: int, length: int = 200) -> None:
    for number in range(count):
        cache[name, number] = bytes(length)


def test_full_cache_takes_what_is_new_and_never_fails() -> None:
    with cache_of(32 << 10) as cache:
        for number in range(5000):
            cache[number] = {"number": number}
            assert cache[number] == {"number": number}
        stats = cache.stats()
        assert stats.evicted == 5000 - stats.items > 4000
        assert stats.items == len(cache) == len(list(cache)) > 50
        assert stats.damaged == 0


def test_items_of_all_sizes_go_in_and_out() -> None:
    rng = random.Random(1)
    with cache_of(64 << 10) as cache:
        for number in range(5000):
            length = rng.choice([0, 1, 7, 8, 9, 100, 1000, 1250, 5000, 10_000])
            key = rng.randrange(100)
            value = bytes([number & 0xFF]) * length
            cache[key] = value
            assert cache[key] == value
            if rng.random() < 0.2:
                del cache[key]
                assert key not in cache
        for value in cache.values():
            assert len(set(value)) <= 1
        stats = cache.stats()
        assert 0 < stats.used <= stats.size
        assert stats.damaged == 0


def test_small_items_and_long_keys_go_in_and_out() -> None:
    with cache_of(64 << 10) as cache:
        for number in range(3000):
            key = "k" * (number % 3000) + str(number)
            cache[key] = number
            assert cache[key] == number


def test_what_is_read_often_outlives_a_scan_of_many_times_the_cache() -> None:
    with cache_of(64 << 10) as cache:
        for key in READ:
            cache[key] = str(key)
        for scanned in range(20_000):
            cache["scanned", scanned] = bytes(100)
            cache.get(READ[scanned % len(READ)])
        assert cache.get_many(READ) == {key: str(key) for key in READ}
        assert cache.stats().evicted > 19_000


def test_what_was_read_often_outlives_a_scan_that_goes_on_without_it() -> None:
    with cache_of(64 << 10) as cache:
        for _ in range(3):
            for key in READ:
                if cache.get(key) is None:
                    cache[key] = str(key)
        fill(cache, "before", 300)
        for _ in range(3):
            cache.get_many(READ)
        # Of what comes once, and is never asked for again, none is kept in place of what was asked for before.
        fill(cache, "scanned", 3000)
        assert cache.get_many(READ) == {key: str(key) for key in READ}


def test_reading_in_one_process_keeps_items_for_all() -> None:
    with cache_of(64 << 10) as writer, open_cache(writer.arena) as reader:
        for key in READ:
            writer[key] = str(key)
        for scanned in range(10_000):
            writer["scanned", scanned] = bytes(100)
            reader.get(READ[scanned % len(READ)])
        assert reader.get_many(READ) == {key: str(key) for key in READ}


def test_counter_that_is_overwritten_100_000_times_evicts_nothing_else() -> None:
    with cache_of(64 << 10) as cache:
        fill(cache, "beside", 100)
        for _ in range(100_000):
            cache.incr("counter", default=0)
        assert cache["counter"] == 100_000
        assert len(cache.get_many([("beside", number) for number in range(100)])) == 100
        assert cache.stats().evicted == 0


def test_counters_that_are_overwritten_in_a_full_cache_evict_only_to_begin_with() -> None:
    with cache_of(64 << 10) as cache:
        fill(cache, "beside", 1000)
        for _ in range(2000):
            for number in range(5):
                cache.incr(number, default=0)
        before = cache.stats().evicted
        for _ in range(4000):
            for number in range(5):
                cache.incr(number, default=0)
        assert cache.get_many(range(5)) == dict.fromkeys(range(5), 6000)
        assert cache.stats().evicted - before <= 5


def test_what_comes_back_soon_after_it_was_evicted_is_kept_longer() -> None:
    with cache_of(64 << 10) as cache:
        fill(cache, "first", 1000)
        returning = [("returning", number) for number in range(5)]
        for key in returning:
            cache[key] = 1
        fill(cache, "scanned", 60)
        gone = [key for key in returning if key not in cache]
        assert len(gone) > 1, "what came once is evicted first"
        for key in gone:
            cache[key] = 2
        fill(cache, "scanned again", 150)
        kept = [key for key in gone if cache.get(key) == 2]
        assert len(kept) >= len(gone) - 1, "one may have been forgotten for others of its bucket"


def test_what_was_removed_makes_room_for_what_is_new() -> None:
    with cache_of(256 << 10) as cache:
        fill(cache, "old", 2000)
        held = len(cache)
        assert cache.delete_many(list(cache)) == held
        assert len(cache) == 0
        evicted = cache.stats().evicted
        fill(cache, "new", held // 2)
        assert len(cache) >= held // 2 - 10
        assert cache.stats().evicted - evicted <= 10


def test_cleared_cache_holds_as_much_as_a_new_one() -> None:
    with cache_of(64 << 10) as new:
        fill(new, "x", 1000)
        held = len(new)
    with cache_of(64 << 10) as cache:
        fill(cache, "x", 3000)
        cache.clear()
        assert len(cache) == 0
        fill(cache, "y", held // 2)
        assert len(cache) == held // 2
        fill(cache, "x", 1000)
        assert len(cache) >= held - 20


def test_large_cache_is_cleared_as_a_whole() -> None:
    with cache_of(32 << 20) as cache:
        cache.set_many(dict.fromkeys(range(30_000), 1))
        assert len(cache) > 29_990
        cache.clear()
        assert len(cache) == len(list(cache)) == 0
        assert not any(number in cache for number in range(30_000))


def test_most_of_the_memory_is_used_for_items() -> None:
    with cache_of(256 << 10) as cache:
        fill(cache, "x", 5000)
        # A record is some 240 bytes with its key; index, counters and header take their part.
        assert len(cache) * 240 > 0.75 * (256 << 10)


def test_large_items_leave_small_ones_that_are_read() -> None:
    with cache_of(256 << 10) as cache:
        for key in READ:
            cache[key] = str(key)
        for number in range(300):
            cache["large", number] = bytes(40_000)
            assert len(cache["large", number]) == 40_000
            cache.get_many(READ)
        assert len(cache.get_many(READ)) == len(READ)
