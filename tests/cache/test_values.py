"""Values are everything that a snapshot takes, and come back as what they were."""

import datetime as dt
import os
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from persistmem.arena.types import TypeRegistry
from persistmem.cache import Cache
from persistmem.cache.keys import Key
from persistmem.errors import UnsupportedTypeError
from persistmem.testing import new_arena

from .support import cache_of, open_cache

BERLIN = ZoneInfo("Europe/Berlin")

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**63, 2**64 - 1, -(2**63), 2**64, -(2**70), 0.0, -1.5, 1e300, float("inf"),
    "", "text", "☃" * 5000, b"", b"bytes", bytes(range(256)) * 40, [], [1, [2, [3]]], {}, {"a": {"b": [1]}},
    (), (1, "a"), [(1,), (2, (3,))], set(), {1, "a"}, frozenset({1, 2}), {"s": {1}, "t": (1, 2)},
    {1: "int", "a": "text", (1, 2): "tuple", b"b": "bytes", None: "none", 1.5: "float"}, {frozenset({1}): 1},
    dt.datetime(2026, 1, 2, 3, 4, 5, 6), dt.datetime(2026, 7, 1, tzinfo=dt.UTC),
    dt.datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=BERLIN), dt.date(2026, 1, 1), dt.time(1, 2, 3),
    dt.timedelta(days=-1, microseconds=5), Decimal("1.10"), UUID(int=5), 1 + 2j, [b"x" * 5000, b"y" * 100],
    {"nested": [(dt.date(2026, 1, 1), {1, 2}), {"k": (Decimal(1),)}]},
]  # fmt: skip

ARRAYS: dict[str, Any] = {
    "small": np.arange(10),
    "large": np.arange(10_000, dtype="<f8"),
    "two dimensions, in Fortran's order": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "empty": np.zeros((0, 3)),
    "no dimensions": np.array(5),
    "strided": np.arange(100)[::7],
    "of text": np.array(["a", "bc"]),
    "of times": np.array(["2026-01-01"], dtype="<M8[s]"),
    "of records": np.array([(1, 2.5)], dtype=[("a", "<i4"), ("b", "<f8")]),
    "of truth": np.array([True, False]),
    "big-endian": np.arange(5, dtype=">i4"),
}


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_value_comes_back_equal_and_of_the_same_type(value: Any) -> None:
    with cache_of(512 << 10) as cache:
        cache["key"] = value
        with open_cache(cache.arena) as other:
            for each in (cache, other, cache, other, cache, other):
                found = each["key"]
                assert found == value
                assert type(found) is type(value)
                assert repr(found) == repr(value) or isinstance(value, set | frozenset | dict)


@pytest.mark.parametrize("name", ARRAYS)
def test_array_comes_back_as_it_was_and_writable(name: str) -> None:
    array = ARRAYS[name]
    with cache_of(1 << 20) as cache:
        cache["key"] = {"array": array, "again": [array]}
        for _ in range(4):
            found = cache["key"]["array"]
            assert isinstance(found, np.ndarray)
            assert (found.dtype, found.shape) == (array.dtype, array.shape)
            assert np.array_equal(found, array)
            assert found.flags.writeable
            found[...] = np.zeros((), dtype=found.dtype)


def test_scalars_of_numpy_keep_their_types() -> None:
    with cache_of() as cache:
        for value in (np.float32(1.5), np.int8(-3), np.bool_(True), np.datetime64("2026-01-01")):
            cache["key"] = value
            assert cache["key"] == value
            assert type(cache["key"]) is type(value)


def test_bytes_likes_come_back_as_bytes() -> None:
    with cache_of() as cache:
        for value in (bytearray(b"abc"), memoryview(b"abc"), bytearray(b"x" * 5000)):
            cache["key"] = value
            assert cache["key"] == bytes(value)
            cache["key"] = {"inside": [value]}
            assert cache["key"] == {"inside": [bytes(value)]}


@dataclass(frozen=True)
class Money:
    cents: int


def money() -> TypeRegistry:
    types = TypeRegistry()
    types.register(Money, "money", lambda value: value.cents, lambda cents: Money(int(str(cents))))
    return types


def test_registered_types_come_back_and_are_named_where_they_are_not_registered() -> None:
    with new_arena() as arena, Cache(arena, "256KiB", types=money()) as cache:
        cache["price"] = Money(5)
        cache["prices"] = [Money(1), {"k": (Money(2),)}]
        for _ in range(4):
            assert cache["price"] == Money(5)
            assert cache["prices"] == [Money(1), {"k": (Money(2),)}]
        with Cache(arena, types=TypeRegistry()) as stranger:
            for _ in range(4):
                with pytest.raises(UnsupportedTypeError, match="money"):
                    stranger.get("price")
            with pytest.raises(UnsupportedTypeError):
                stranger["price"] = Money(6)
            assert "price" in stranger
            assert cache["price"] == Money(5)


class Plain:
    pass


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (object(), "document: a value of type builtins.object"),
        ({"a": [1, Plain()]}, r"document\['a'\]\[1\]: a value of type .*Plain"),
        (OrderedDict(a=1), "OrderedDict"),
        ("\ud800", "surrogates"),
        ({"a": "\ud800"}, "surrogates"),
        (memoryview(b"abcdef")[::2], "document"),
        ([memoryview(b"abcdef")[::2]], r"document\[0\]"),
        (np.array([object()]), "document"),
        (len, "builtin_function_or_method"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else None,
)
def test_value_that_cannot_be_stored_is_named_and_nothing_is_changed(value: Any, where: str) -> None:
    with cache_of() as cache:
        cache["key"] = "as it was"
        for use in (
            lambda: cache.set("key", value), lambda: cache.replace("key", value), lambda: cache.add("new", value),
            lambda: cache.setdefault("new", value), lambda: cache.set_many({"key": value}),
        ):  # fmt: skip
            with pytest.raises(UnsupportedTypeError, match=where):
                use()
        assert dict(cache) == {"key": "as it was"}
        cache["key"] = "and still usable"
        assert cache["key"] == "and still usable"


def test_value_that_contains_itself_is_refused() -> None:
    with cache_of() as cache:
        endless: list[Any] = []
        endless.append(endless)
        for value in (endless, {"a": endless}, (endless,)):
            with pytest.raises(UnsupportedTypeError, match="contains itself, or is nested too deep"):
                cache["key"] = value


_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
    | st.binary(max_size=20) | st.dates() | st.timedeltas() | st.decimals(allow_nan=False) | st.uuids(),
    lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=3).map(tuple)
    | st.dictionaries(st.text(max_size=4) | st.integers() | st.tuples(st.integers()), inner, max_size=3),
    max_leaves=15,
)  # fmt: skip


@settings(max_examples=400)
@given(_plain)
def test_any_value_comes_back(value: Any) -> None:
    for _ in range(3):
        _SHARED["key"] = value
        found = _SHARED["key"]
        assert found == value
        assert type(found) is type(value)


_SHARED = Cache(new_arena("512KiB"), "256KiB")


def test_threads_pack_and_unpack_side_by_side() -> None:
    def work(thread: int) -> None:
        for number in range(150):
            value: dict[str, Any] = {
                "thread": thread,
                "list": [number] * 50,
                "set": {thread, number},
                "array": np.full(40, number),
            }
            cache[thread, number % 5] = value
            found = cache[thread, number % 5]
            assert np.array_equal(found.pop("array"), value.pop("array"))
            assert found == value
            plain = [thread, number, "x" * number]
            cache[thread] = plain
            assert cache[thread] == plain

    with cache_of(512 << 10) as cache, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [None] * 8


def test_large_values_are_kept_beside_small_ones() -> None:
    with cache_of(1 << 20) as cache:
        large: dict[Key, bytes] = {number: os.urandom(50_000) for number in range(5)}
        cache.set_many(large)
        cache.set_many({("small", number): number for number in range(500)})
        assert cache.get_many(large) == large
        assert cache[("small", 77)] == 77


def test_value_that_cannot_be_read_here_is_not_lost_when_it_is_popped() -> None:
    with new_arena("256KiB") as arena:
        with Cache(arena, "64KiB", namespace="cache", types=money()) as cache:
            cache["price"] = Money(5)
        with Cache(arena, namespace="cache", types=TypeRegistry()) as elsewhere:
            with pytest.raises(UnsupportedTypeError, match="money"):
                elsewhere.pop("price")
            assert "price" in elsewhere
