"""A cache is a mapping: what a dict does, and what caches do beside it, with errors that say what to do."""

import gc
import os
import re
import weakref
from collections.abc import Callable, MutableMapping
from pathlib import Path

import pytest

import persistmem
from persistmem.cache import Cache
from persistmem.errors import (
    ArenaFullError,
    ArgumentError,
    BusyError,
    ClosedError,
    CorruptError,
    ExistsError,
    NotFoundError,
    SizeError,
    UnsupportedTypeError,
)
from persistmem.sizes import KIB, MIB
from persistmem.testing import new_arena
from tests.arena.support import child, pipe
from tests.descriptors import open_descriptors

from .support import MISSING, PATIENCE, cache_of, open_cache


def test_cache_does_what_a_dict_does() -> None:
    with cache_of() as cache:
        assert isinstance(cache, MutableMapping)
        assert (len(cache), list(cache), dict(cache)) == (0, [], {})
        cache["ada"] = {"born": 1815}
        cache["grace"] = {"born": 1906}
        cache["ada"] = {"born": 1815, "died": 1852}
        assert cache["ada"] == {"born": 1815, "died": 1852}
        assert cache.get("grace") == {"born": 1906}
        assert cache.get("alan") is None
        assert cache.get("alan", 5) == 5
        assert "ada" in cache
        assert "alan" not in cache
        assert len(cache) == 2
        assert sorted(cache) == ["ada", "grace"]
        assert dict(cache.items()) == {"ada": {"born": 1815, "died": 1852}, "grace": {"born": 1906}}
        del cache["ada"]
        assert "ada" not in cache
        cache.update({"alan": 1, "kurt": 2}, alonzo=3)
        assert sorted(cache.keys()) == ["alan", "alonzo", "grace", "kurt"]
        key, value = cache.popitem()
        assert key not in cache
        assert value in (1, 2, 3, {"born": 1906})
        cache.clear()
        assert (len(cache), list(cache)) == (0, [])
        with pytest.raises(KeyError):
            cache.popitem()


def test_what_is_not_there_is_a_key_error_that_names_it() -> None:
    with cache_of() as cache:
        for use in (lambda: cache["ada"], lambda: cache.pop("ada"), lambda: cache.__delitem__("ada")):
            with pytest.raises(NotFoundError, match="no item 'ada'") as caught:
                use()
            assert isinstance(caught.value, KeyError)
            assert isinstance(caught.value, persistmem.Error)
        assert not cache.delete("ada")


def test_pop_gives_a_value_once() -> None:
    with cache_of() as cache:
        cache["ada"] = 36
        assert cache.pop("ada") == 36
        assert cache.pop("ada", "gone") == "gone"
        assert cache.pop("ada", None) is None


def test_setdefault_stores_only_what_is_missing() -> None:
    with cache_of() as cache:
        assert cache.setdefault("ada", [1]) == [1]
        assert cache.setdefault("ada", [2]) == [1]
        assert cache["ada"] == [1]
        assert cache.setdefault("none") is None
        assert "none" in cache


def test_none_is_a_value_like_any_other() -> None:
    with cache_of() as cache:
        cache["nothing"] = None
        assert cache["nothing"] is None
        assert cache.get("nothing", MISSING) is None
        assert "nothing" in cache
        assert cache.get_many(["nothing", "missing"]) == {"nothing": None}
        assert not cache.add("nothing", 1)


def test_add_stores_only_what_is_new_and_replace_only_what_is_not() -> None:
    with cache_of() as cache:
        assert not cache.replace("ada", 1)
        assert "ada" not in cache
        assert cache.add("ada", 2)
        assert not cache.add("ada", 3)
        assert cache["ada"] == 2
        assert cache.replace("ada", 4)
        assert cache["ada"] == 4


def test_incr_and_decr_count() -> None:
    with cache_of() as cache:
        assert cache.incr("visits", default=0) == 1
        assert cache.incr("visits", 5) == 6
        assert cache.decr("visits", 2) == 4
        assert cache.decr("visits", 10) == -6
        assert cache["visits"] == -6
        assert cache.decr("others", default=3) == 2


def test_incr_counts_on_beyond_64_bits() -> None:
    with cache_of() as cache:
        cache["n"] = 2**63 - 1
        assert [cache.incr("n", step) for step in (1, 2**63, 2**200)] == [2**63, 2**64, 2**64 + 2**200]
        assert cache.decr("n", 2**200 + 2**64) == 0


def test_incr_of_what_is_no_int_is_refused_and_changes_nothing() -> None:
    with cache_of() as cache:
        for value in ("1", 1.0, True, None, [1]):
            cache["n"] = value
            with pytest.raises(UnsupportedTypeError, match="expected an int, found " + type(value).__name__):
                cache.incr("n")
            assert cache["n"] is value or cache["n"] == value
        with pytest.raises(NotFoundError, match="no item 'm' to add to; give a default"):
            cache.incr("m")
        assert "m" not in cache


def test_several_keys_at_once() -> None:
    with cache_of() as cache:
        cache.set_many({"a": 1, ("b", 2): [2], 3: None})
        assert cache.get_many(["a", ("b", 2), 3, "d"]) == {"a": 1, ("b", 2): [2], 3: None}
        assert cache.delete_many(["a", "d", 3]) == 2
        assert cache.get_many(["a", ("b", 2), 3]) == {("b", 2): [2]}
        assert cache.get_many([]) == {}
        cache.set_many({})
        assert cache.delete_many(iter([("b", 2)])) == 1


def test_set_many_stores_nothing_if_one_value_cannot_be_stored() -> None:
    with cache_of() as cache:
        with pytest.raises(UnsupportedTypeError):
            cache.set_many({"a": 1, "b": object()})
        with pytest.raises(UnsupportedTypeError):
            cache.set_many({"a": 1, 1.5: 2})  # type: ignore[type-var]
        assert len(cache) == 0


def test_what_is_given_out_is_the_callers_own() -> None:
    with cache_of() as cache:
        stored: dict[str, list[int]] = {"items": [1, 2]}
        cache["cart"] = stored
        stored["items"].append(3)
        for _ in range(5):
            found = cache["cart"]
            assert found == {"items": [1, 2]}
            found["items"].append(4)
            found["more"] = 1


def test_item_that_is_too_large_is_refused_and_nothing_is_lost() -> None:
    with cache_of(64 * KIB) as cache:
        cache.set_many({number: bytes(100) for number in range(50)})
        cache["large"] = "as it was"
        for use in (
            lambda: cache.set("large", bytes(20_000)),
            lambda: cache.add("new", bytes(20_000)),
            lambda: cache.replace("large", bytes(20_000)),
            lambda: cache.setdefault("new", bytes(20_000)),
            lambda: cache.set("large", bytes(1 << 20)),
        ):
            with pytest.raises(SizeError, match=r"expected an item of at most .* KiB, found .*; make the cache larger"):
                use()
        assert cache["large"] == "as it was"
        assert "new" not in cache
        assert cache.get_many(range(50)) == {number: bytes(100) for number in range(50)}
        assert cache.stats().evicted == 0


def test_largest_item_fits_and_can_be_replaced_for_ever() -> None:
    with cache_of(64 * KIB) as cache:
        low, high = 1000, 64 * KIB
        while low < high:
            middle = (low + high + 1) // 2
            try:
                cache["large"] = bytes(middle)
                low = middle
            except SizeError:
                high = middle - 1
        assert low > 8 * KIB
        for number in range(100):
            cache["large"] = bytes([number]) * low
            assert cache["large"] == bytes([number]) * low
            cache[number] = number
            assert cache[number] == number


def test_stats_count_what_was_done() -> None:
    with cache_of() as cache:
        cache["a"] = 1
        cache.set_many({"b": 2, "c": 3})
        for _ in range(10):
            cache.get("a")
        cache.get_many(["b", "missing"])
        assert "a" in cache, "looking is not reading"
        cache.incr("a")
        cache.delete("b")
        cache.delete("b")
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.sets, stats.deletes) == (11, 1, 4, 1)
        assert (stats.items, stats.evicted, stats.expired, stats.damaged, stats.cleared) == (2, 0, 0, 0, 0)
        assert stats.hit_ratio == 11 / 12
        assert stats.processes == 1
        assert 0 < stats.used < stats.size < 64 * KIB
        assert stats.slots >= 256
        cache.clear()
        assert (cache.stats().items, cache.stats().cleared, cache.stats().used) == (0, 1, 0)
        assert cache.stats().sets == 4, "what was counted stays"


def test_stats_of_a_cache_that_nobody_read_has_no_ratio_to_divide() -> None:
    with cache_of() as cache:
        assert cache.stats().hit_ratio == 0.0


def test_stats_add_up_what_others_count_and_have_counted() -> None:
    with cache_of() as cache, open_cache(cache.arena) as other:
        cache["a"] = 1
        other["b"] = 2
        assert [cache.get("b"), other.get("a"), other.get("c")] == [2, 1, None]
        for each in (cache, other):
            stats = each.stats()
            assert (stats.hits, stats.misses, stats.sets, stats.processes) == (2, 1, 2, 2)
        other.close()
        for _ in range(5):
            with open_cache(cache.arena) as passing:
                passing["a"] = passing["a"] + 1
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.sets, stats.processes) == (7, 1, 7, 1)


def test_more_users_than_there_are_rows_of_counters_are_served() -> None:
    with cache_of() as cache:
        others = [open_cache(cache.arena) for _ in range(70)]
        for number, other in enumerate(others):
            other[number] = number
        assert all(cache[number] == number for number in range(70))
        for other in others:
            other.close()
        assert cache.stats().processes == 1


def test_what_is_stored_through_one_opening_is_there_for_another() -> None:
    with cache_of() as cache:
        cache.set_many({number: str(number) for number in range(100)})
        with open_cache(cache.arena) as other:
            assert {key: other[key] for key in other} == {number: str(number) for number in range(100)}
            other[5] = "new"
            del other[6]
            assert cache[5] == "new"
            assert 6 not in cache
            # And again, now that both have read it before.
            for number in range(10):
                cache[5] = number
                assert (cache[5], other[5], cache[5], other[5]) == (number,) * 4


def test_several_caches_and_snapshots_live_in_one_arena() -> None:
    with new_arena("1MiB") as arena:
        arena.snapshot("config", {"x": 1})
        with (
            Cache(arena, "64KiB", namespace="users") as users,
            Cache(arena, "128KiB", namespace="pages") as pages,
            Cache(arena, "64KiB") as default,
        ):
            for number in range(3000):
                pages[number] = bytes(200)
            for cache, value in ((users, "user"), (pages, "page"), (default, "other")):
                cache["same key"] = value
            users.clear()
            users["ada"] = 1
            assert (dict(users), pages["same key"], default["same key"]) == ({"ada": 1}, "page", "other")
            assert arena.regions().keys() == {"users", "pages", "cache"}
            assert arena.restore("config") == {"x": 1}
            assert arena.verify().ok
            arena.snapshot("config", {"x": 2})
            assert pages["same key"] == "page"


def test_cache_that_is_not_there_or_cannot_be_made_says_so() -> None:
    with new_arena("1MiB") as arena:
        with pytest.raises(NotFoundError, match="give a size"):
            Cache(arena)
        with pytest.raises(SizeError, match="expected 32 KiB to"):
            Cache(arena, "16KiB")
        with pytest.raises(ArenaFullError):
            Cache(arena, "2MiB", namespace="huge")
        with pytest.raises(SizeError, match=r"index for 1000000 items leaves less than half"):
            Cache(arena, "64KiB", namespace="many", items=1_000_000)
        arena.snapshot("taken", 1)
        with pytest.raises(ExistsError):
            Cache(arena, "64KiB", namespace="taken")
        Cache(arena, "64KiB", namespace="one").close()
        with pytest.raises(ArgumentError, match="has 65536 bytes, not 131072"):
            Cache(arena, "128KiB", namespace="one")
        with Cache(arena, namespace="one") as cache:
            assert len(cache) == 0


def test_region_of_something_else_is_refused_and_not_touched() -> None:
    with new_arena("1MiB") as arena:
        content = os.urandom(64 * KIB)
        with arena.region("ring", 64 * KIB) as region, region.view() as view:
            view[:] = content
        for _ in range(2):
            with pytest.raises(CorruptError, match="remove the region"):
                Cache(arena, namespace="ring")
        with arena.region("ring") as region, region.view() as view:
            assert bytes(view) == content


def test_index_holds_as_many_items_as_were_asked_for() -> None:
    with new_arena("4MiB") as arena, Cache(arena, "2MiB", items=20_000) as cache:
        cache.set_many(dict.fromkeys(range(20_000), 1))
        # A few in ten thousand find both of their buckets full.
        assert len(cache) + cache.stats().evicted == 20_000
        assert cache.stats().evicted < 20
    with new_arena("4MiB") as arena, Cache(arena, "2MiB", items=10) as few:
        few["large"] = bytes(400_000)
        assert few["large"] == bytes(400_000)
        few.set_many(dict.fromkeys(range(1000), 1))
        assert 10 <= len(few) <= few.stats().slots < 1000


def test_region_of_any_length_is_used() -> None:
    for length in range(50_000, 50_020):
        with new_arena("1MiB") as arena, Cache(arena, length) as cache:
            cache.set_many(dict.fromkeys(range(1000), b"x" * 90))
            assert cache[999] == b"x" * 90


@pytest.mark.parametrize(
    "use",
    [
        lambda cache: cache.get("a"),
        lambda cache: cache["missing"],
        lambda cache: cache.set("b", 2),
        lambda cache: cache.delete("a"),
        lambda cache: cache.incr("n", default=0),
        lambda cache: cache.clear(),
        lambda cache: cache.stats(),
        list,
        len,
    ],
)
def test_closed_cache_says_so(use: Callable[[Cache], object]) -> None:
    with cache_of() as outer, open_cache(outer.arena) as cache:
        cache["a"] = 1
        for _ in range(4):
            assert cache["a"] == 1
        cache.close()
        cache.close()
        with pytest.raises(ClosedError):
            use(cache)
        assert outer["a"] == 1


def test_cache_in_a_closed_arena_says_so() -> None:
    with cache_of() as cache:
        cache["a"] = 1
        cache.arena.close()
        for use in (lambda: cache.get("missing"), lambda: len(cache), lambda: list(cache), cache.stats):
            with pytest.raises(ClosedError):
                use()


def test_forgotten_cache_gives_back_its_descriptors_and_its_counters() -> None:
    with cache_of() as cache:
        before = open_descriptors()
        forgotten = open_cache(cache.arena)
        forgotten["a"] = 1
        forgotten["b"] = 2
        assert cache.stats().processes == 2
        gone = weakref.ref(forgotten)
        del forgotten
        gc.collect()
        assert gone() is None
        assert cache.stats().processes == 1
        assert open_descriptors() == before
        assert cache.stats().sets == 2


def test_cache_that_could_not_be_opened_leaves_no_descriptor_behind() -> None:
    with cache_of() as cache, cache._lock:
        before = open_descriptors()
        with pytest.raises(BusyError):
            open_cache(cache.arena, timeout=0.05)
        assert open_descriptors() == before


def test_closed_cache_lets_go_of_its_memory_at_once() -> None:
    with new_arena() as arena:
        gc.disable()
        try:
            before = len(list(Path("/proc/self/fd").iterdir()))
            with open_cache(arena, 64 * KIB) as cache:
                cache["a"] = 1
            del cache
            assert len(list(Path("/proc/self/fd").iterdir())) == before
        finally:
            gc.enable()


def resident(mapped: str) -> int:
    """Bytes of the mappings of a memfd that this process has touched."""
    text = Path("/proc/self/smaps").read_text()
    pieces = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", text, flags=re.MULTILINE)
    return sum(
        int(match[1]) * 1024 for piece in pieces if mapped in piece and (match := re.search(r"Rss: *(\d+)", piece))
    )


def test_opening_a_full_cache_touches_no_more_memory_than_opening_an_empty_one() -> None:
    def report_touched(namespace: str) -> None:
        before = resident("memfd:")
        with open_cache(arena, None, namespace) as cache:
            there.send((resident("memfd:") - before, len(cache)))

    here, there = pipe()
    touched: dict[str, int] = {}
    with new_arena("34MiB") as arena:
        open_cache(arena, MIB, "empty").close()
        with open_cache(arena, 32 * MIB, "full") as full:
            full.set_many({number: number.to_bytes(4, "little") * 50 for number in range(100_000)})
        for namespace, items in (("empty", 0), ("full", 100_000)):
            with child(report_touched, namespace):
                assert here.poll(PATIENCE)
                touched[namespace], count = here.recv()
                assert count == items
    # The kernel maps up to 64 KiB around each page that is touched, if it is there.
    assert touched["full"] <= touched["empty"] + 256 * KIB
    assert touched["full"] < 512 * KIB
