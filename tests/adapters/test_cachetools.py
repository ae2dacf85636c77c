"""cachetools' decorators on a cache in an arena, and the mapping that they use."""

import copy
import inspect
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from datetime import date
from decimal import Decimal
from typing import NamedTuple

import cachetools
import hypothesis.strategies as st
import pytest
from cachetools.keys import hashkey, methodkey, typedkey
from hypothesis import given

from persistmem import Cache, CorruptError, SizeError, UnsupportedTypeError
from persistmem.adapters.cachetools import PersistmemCache, decode_key, encode_key
from persistmem.testing import new_arena

from .clock import Clock


def new_cache(clock: Callable[[], float] = time.time) -> Cache:
    return Cache(new_arena("1MiB"), "512KiB", clock=clock)


@pytest.fixture
def cache() -> Iterator[PersistmemCache]:
    inner = new_cache()
    yield PersistmemCache(inner)
    inner.close()


def test_a_cached_function_computes_each_result_once(cache: PersistmemCache) -> None:
    calls: list[tuple[int, int]] = []

    @cachetools.cached(cache, info=True)
    def add(left: int, right: int = 0) -> int:
        calls.append((left, right))
        return left + right

    assert [add(1, 2), add(1, 2), add(1, right=2), add(1, right=2), add(1.0, 2)] == [3, 3, 3, 3, 3]  # type: ignore[arg-type]
    assert calls == [(1, 2), (1, 2)], "positional and keyword arguments are different calls, as in cachetools"
    info = add.cache_info()
    assert (info.hits, info.misses, info.maxsize, info.currsize) == (3, 2, cache.maxsize, cache.currsize)
    add.cache_clear()
    assert len(cache) == 0


@pytest.mark.parametrize("guard", ["lock", "condition"])
def test_a_cached_function_works_with_a_lock_among_threads(cache: PersistmemCache, guard: str) -> None:
    if guard not in inspect.signature(cachetools.cached).parameters:
        pytest.skip("this cachetools has no conditions")
    primitive = threading.Lock() if guard == "lock" else threading.Condition()

    @cachetools.cached(cache, **{guard: primitive})  # type: ignore[call-overload, untyped-decorator]
    def double(number: int) -> int:
        return 2 * number

    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.extend(map(double, range(50)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == sorted([2 * number for number in range(50)] * 4)


def test_a_cached_method_keeps_results_in_the_cache_that_its_object_names(cache: PersistmemCache) -> None:
    class Shop:
        computed = 0

        def __init__(self) -> None:
            self.cache = cache

        @cachetools.cachedmethod(lambda self: self.cache, key=methodkey)
        def price(self, product: str) -> Decimal:
            self.computed += 1
            return Decimal("9.99")

    shop = Shop()
    assert shop.price("pears") == shop.price("pears") == Decimal("9.99")
    assert shop.computed == 1


def test_typed_keys_keep_equal_numbers_of_different_types_apart(cache: PersistmemCache) -> None:
    @cachetools.cached(cache, key=typedkey)
    def name(number: object, *, other: object = None) -> str:
        return f"{type(number).__name__} {type(other).__name__}"

    assert [name(3), name(3.0), name(True), name(1), name(None), name(3, other=3.0)] == [
        *("int NoneType", "float NoneType", "bool NoneType", "int NoneType", "NoneType NoneType", "int float"),
    ]
    assert len(cache) == 6


def test_a_typed_key_that_names_a_class_of_the_users_is_refused_with_its_name(cache: PersistmemCache) -> None:
    class Custom:
        pass

    with pytest.raises(UnsupportedTypeError, match=r"type .*Custom: a typed key may only name bool, int"):
        cache[typedkey(Custom())] = 1


def test_an_argument_that_no_snapshot_takes_is_refused_with_what_to_do(cache: PersistmemCache) -> None:
    with pytest.raises(UnsupportedTypeError, match=r"builtins\.object.*key="):
        cache.get(hashkey(object()))


def test_a_value_that_no_snapshot_takes_is_refused(cache: PersistmemCache) -> None:
    with pytest.raises(UnsupportedTypeError, match=r"builtins\.object"):
        cache["key"] = object()


def test_a_value_too_large_to_keep_is_computed_each_time(cache: PersistmemCache) -> None:
    calls = []

    @cachetools.cached(cache)
    def large() -> bytes:
        calls.append(1)
        return bytes(1 << 20)

    assert large() == large() == bytes(1 << 20)
    assert len(calls) == 2
    with pytest.raises(SizeError, match="at most"):
        cache["large"] = bytes(1 << 20)


def test_items_live_for_the_ttl() -> None:
    clock = Clock()
    cache = PersistmemCache(new_cache(clock), ttl="20m")
    cache["set"] = 1
    cache.setdefault("default", 2)
    clock.advance(1199)
    assert (cache.ttl, cache["set"], cache.get("default")) == (1200.0, 1, 2)
    clock.advance(1)
    assert "set" not in cache
    assert list(cache) == []
    with pytest.raises(KeyError):
        cache["set"]
    assert cache.setdefault("default", 3) == 3


def test_it_is_a_mapping_as_a_dict_is(cache: PersistmemCache) -> None:
    cache.update({"ada": 1815, ("a", 1): None, b"bytes": [1]})
    assert dict(cache) == {"ada": 1815, ("a", 1): None, b"bytes": [1]}
    assert cache.setdefault("ada", 0) == 1815
    assert cache.setdefault("new", {"x": 1}) == {"x": 1}
    assert cache.pop("new") == {"x": 1}
    assert cache.pop("new", "gone") == "gone"
    del cache["ada"]
    for forget in (lambda: cache["ada"], lambda: cache.pop("ada"), lambda: cache.__delitem__("ada")):
        with pytest.raises(KeyError, match="ada"):
            forget()
    assert {cache.popitem()[0], cache.popitem()[0]} == {("a", 1), b"bytes"}
    with pytest.raises(KeyError, match="empty"):
        cache.popitem()


def test_it_is_one_of_cachetools_caches(cache: PersistmemCache) -> None:
    assert isinstance(cache, cachetools.Cache)


def test_a_subclass_may_make_what_is_missing() -> None:
    class Squares(PersistmemCache):
        def __missing__(self, key: Hashable) -> object:
            self[key] = value = key**2  # type: ignore[operator]
            return value

    squares = Squares(new_cache())
    assert (squares[12], squares.get(12), squares.get(13)) == (144, 144, None)


def test_sizes_are_bytes(cache: PersistmemCache) -> None:
    assert 400_000 < cache.maxsize < 512 << 10
    assert cache.currsize == 0
    cache["thousand"] = bytes(1000)
    assert cache.getsizeof(bytes(1000)) == 1000
    assert 1000 < cache.currsize < 1100
    assert "maxsize=" in repr(cache)


def test_copying_is_refused_because_it_would_be_the_same_cache(cache: PersistmemCache) -> None:
    with pytest.raises(TypeError, match="shared memory"):
        copy.copy(cache)


def test_keys_that_something_else_stored_are_not_given() -> None:
    inner = new_cache()
    cache = PersistmemCache(inner)
    inner.set_many({"plain": 1, b"bytes": 2, b"\x91\x91\xc0": 3})
    cache["own"] = 4
    assert list(cache) == ["own"]


def test_results_are_there_in_another_process(agent: None) -> None:
    cache = PersistmemCache("cachetools-processes", "1MiB", ttl="1h")
    cache[hashkey("slow", depth=3)] = {"computed": ("here",)}
    code = (
        "from cachetools import cached\n"
        "from persistmem.adapters.cachetools import PersistmemCache\n"
        "@cached(PersistmemCache('cachetools-processes'))\n"
        "def f(name, *, depth): raise AssertionError\n"
        "print(f('slow', depth=3))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"{'computed': ('here',)}\n"
    cache.close()
    assert cache[hashkey("slow", depth=3)] == {"computed": ("here",)}
    cache.close()


class Point(NamedTuple):
    x: int
    y: int


def test_a_named_tuple_is_the_key_that_its_tuple_is(cache: PersistmemCache) -> None:
    cache[Point(1, 2)] = "here"
    assert cache[1, 2] == "here"


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.dates()
arguments = st.recursive(leaves, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=5)
keys = st.builds(
    lambda make, args, kwargs: make(*args, **kwargs),
    st.sampled_from([hashkey, typedkey]),
    st.lists(arguments, max_size=3),
    st.dictionaries(st.sampled_from("abc"), arguments, max_size=2),
)


@given(keys, keys)
def test_keys_are_the_same_if_and_only_if_a_dict_takes_them_for_the_same(first: Hashable, second: Hashable) -> None:
    assert (encode_key(first) == encode_key(second)) is (first == second)


@given(keys)
def test_a_key_comes_back_equal(key: Hashable) -> None:
    assert decode_key(encode_key(key)) == key
    assert hash(decode_key(encode_key(key))) == hash(key)


@pytest.mark.parametrize("name", [b"", b"x", b"\x90", b"\x91\x91\xc0", b"\x91\x92\xa4type\xa1x", b"\x91\x80"])
def test_bytes_that_are_no_key_are_an_error(name: bytes) -> None:
    with pytest.raises(CorruptError):
        decode_key(name)


def test_times_in_keys_come_back() -> None:
    assert decode_key(encode_key((date(1815, 12, 10), Decimal("1.5"), 1.5))) == (
        date(1815, 12, 10),
        Decimal("1.5"),
        1.5,
    )
