"""Values live as long as they were given, by the wall clock, wherever that jumps; and no longer."""

from datetime import timedelta
from typing import Any

import pytest

from persistmem.errors import ArgumentError, NotFoundError

from .support import MISSING, Clock, cache_of, open_cache

HOUR = 3600.0


def test_value_is_gone_when_its_time_is_up_and_not_before() -> None:
    clock = Clock()
    with cache_of(clock=clock) as cache, open_cache(cache.arena, clock=clock) as other:
        cache.set("a", 1, ttl=10)
        cache.set("for ever", 2)
        for each in (cache, other):
            for _ in range(4):
                assert (each.get("a"), each.get("for ever")) == (1, 2)
        clock.now += 9.999
        for each in (cache, other):
            assert (each.get("a"), "a" in each, sorted(each)) == (1, True, ["a", "for ever"])
        clock.now += 0.001
        for each in (cache, other):
            for _ in range(4):
                assert (each.get("a", MISSING), "a" in each, list(each)) == (MISSING, False, ["for ever"])
            with pytest.raises(NotFoundError):
                each["a"]
            assert each.get_many(["a", "for ever"]) == {"for ever": 2}


@pytest.mark.parametrize(
    ("ttl", "lives"),
    [
        (90, 90.0), (1.5, 1.5), ("90s", 90.0), ("1.5h", 5400.0), ("250ms", 0.25), ("2m", 120.0), ("2min", 120.0),
        ("7d", 604_800.0), ("1w", 604_800.0), (" 3 h ", 3 * HOUR), (timedelta(minutes=3), 180.0),
    ],
    ids=repr,
)  # fmt: skip
def test_durations_are_read_as_people_write_them(ttl: Any, lives: float) -> None:
    clock = Clock(0.0)
    with cache_of(clock=clock) as cache:
        cache.set("a", 1, ttl=ttl)
        clock.now = lives - 0.001
        assert cache["a"] == 1
        clock.now = lives
        assert "a" not in cache


@pytest.mark.parametrize(
    "ttl", [-1, "-1s", "5", "1y", "", "s", "1.2.3s", float("nan"), float("inf"), 1e12, "1e3s", "٣s"]
)
def test_durations_that_make_no_sense_are_refused_and_nothing_is_stored(ttl: Any) -> None:
    with cache_of() as cache:
        for use in (
            lambda: cache.set("a", 1, ttl=ttl), lambda: cache.add("a", 1, ttl=ttl),
            lambda: cache.set_many({"a": 1}, ttl=ttl), lambda: cache.incr("a", default=1, ttl=ttl),
            lambda: cache.touch("a", ttl=ttl),
        ):  # fmt: skip
            with pytest.raises(ArgumentError, match="duration"):
                use()
        assert len(cache) == 0


def test_time_of_nothing_is_over_at_once() -> None:
    clock = Clock()
    with cache_of(clock=clock) as cache:
        cache["a"] = 1
        cache.set("a", 2, ttl=0)
        assert "a" not in cache
        assert cache.get("a") is None


def test_setting_anew_gives_a_new_time_or_none() -> None:
    clock = Clock()
    with cache_of(clock=clock) as cache:
        cache.set("a", 1, ttl=10)
        clock.now += 5
        cache.set("a", 2, ttl=10)
        clock.now += 9
        assert cache["a"] == 2
        cache["a"] = 3
        clock.now += 1000 * HOUR
        assert cache["a"] == 3


def test_touch_gives_a_new_time_and_keeps_the_value() -> None:
    clock = Clock()
    with cache_of(clock=clock) as cache:
        cache.set("a", {"v": (1, 2)}, ttl=10)
        cache.set("b", b"raw")
        clock.now += 9
        assert cache.touch("a", ttl=10)
        assert cache.touch("b", ttl=10)
        clock.now += 9
        assert (cache["a"], cache["b"]) == ({"v": (1, 2)}, b"raw")
        assert cache.touch("a")
        clock.now += 1
        assert (cache["a"], cache.get("b")) == ({"v": (1, 2)}, None)
        clock.now += HOUR
        assert cache["a"] == {"v": (1, 2)}
        assert not cache.touch("b", ttl=10), "what is gone is not brought back"
        assert not cache.touch("c")


def test_what_has_expired_is_as_if_it_had_never_been() -> None:
    clock = Clock()
    with cache_of(clock=clock) as cache:

        def expired() -> None:
            cache.set("a", 5, ttl=1)
            assert cache["a"] == 5
            clock.now += 1

        expired()
        assert cache.add("a", 1)
        expired()
        assert not cache.replace("a", 1)
        assert cache.setdefault("a", 7) == 7
        expired()
        assert cache.pop("a", MISSING) is MISSING
        expired()
        assert not cache.delete("a")
        expired()
        assert cache.delete_many(["a"]) == 0
        expired()
        with pytest.raises(NotFoundError):
            cache.incr("a")
        assert cache.incr("a", default=10) == 11
        expired()
        assert dict(cache.items()) == {}


def test_counter_keeps_its_time_while_it_counts() -> None:
    clock = Clock()
    with cache_of(clock=clock) as cache:
        assert cache.incr("visits", default=0, ttl=60) == 1
        for second in range(1, 60):
            clock.now += 1
            assert cache.incr("visits", default=0, ttl=60) == 1 + second
        clock.now += 1
        assert cache.incr("visits", default=0, ttl=60) == 1


def test_expire_removes_what_is_over_and_says_how_much() -> None:
    clock = Clock()
    with cache_of(clock=clock) as cache:
        for number in range(50):
            cache.set(number, number, ttl=number + 1)
        cache["for ever"] = 1
        assert cache.expire() == 0
        clock.now += 20
        assert len(cache) == 51
        assert cache.expire() == 20
        assert len(cache) == 31
        assert cache.expire() == 0
        assert sorted(key for key in cache if isinstance(key, int)) == list(range(20, 50))


def test_what_has_expired_makes_room_before_anything_that_lives() -> None:
    clock = Clock()
    with cache_of(256 << 10, clock=clock) as cache:
        cache.set_many({("old", number): bytes(200) for number in range(2000)}, ttl=10)
        assert cache.stats().evicted > 500, "it is full"
        evicted = cache.stats().evicted
        clock.now += 10
        cache.set_many({number: bytes(200) for number in range(400)})
        assert len(cache.get_many(range(400))) >= 390
        assert cache.stats().evicted <= evicted + 10
        assert cache.stats().expired >= 300


def test_clock_that_goes_back_lets_values_live_longer_by_as_much() -> None:
    clock = Clock()
    with cache_of(clock=clock) as cache:
        cache.set("a", 1, ttl=10)
        assert cache["a"] == 1
        clock.now -= HOUR
        assert cache["a"] == 1
        cache.set("b", 2, ttl=10)
        clock.now += HOUR
        assert (cache.get("a"), cache.get("b")) == (1, None)
        clock.now += 10
        assert cache.get("a") is None
        # What was over is there again, unless its memory was needed meanwhile: nobody ever said that it was removed.
        clock.now -= 10
        assert cache.get("a") == 1


def test_clock_that_goes_back_brings_nothing_back_that_was_removed() -> None:
    clock = Clock()
    with cache_of(clock=clock) as cache:
        cache.set("a", 1, ttl=10)
        cache.set("b", 1, ttl=10)
        clock.now += 10
        assert cache.expire() == 2
        clock.now -= 10
        assert dict(cache) == {}


def test_clock_that_jumps_ahead_ends_what_it_passed_and_nothing_else() -> None:
    clock = Clock()
    with cache_of(clock=clock) as cache:
        cache.set("an hour", 1, ttl="1h")
        cache.set("a week", 2, ttl="1w")
        cache["for ever"] = 3
        clock.now += 24 * HOUR
        assert cache.get_many(["an hour", "a week", "for ever"]) == {"a week": 2, "for ever": 3}
        clock.now += 365 * 24 * HOUR
        assert cache.get_many(["an hour", "a week", "for ever"]) == {"for ever": 3}


@pytest.mark.parametrize("now", [0.0, -5.0, 1e11, -1e300, 1e300])
def test_clock_that_is_far_off_breaks_nothing(now: float) -> None:
    clock = Clock()
    with cache_of(32 << 10, clock=clock) as cache:
        cache.set("a", 1, ttl=10)
        clock.now = now
        for number in range(500):
            cache.set(("passing", number), number, ttl=5)
            cache.get("a")
            is_there = ("passing", number) in cache
            assert is_there or abs(now) == 1e300, "five seconds more are no more there"
            cache[number] = number
            assert cache[number] == number
        assert cache.stats().damaged == 0
