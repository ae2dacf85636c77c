"""Keys are the same when a dict takes them for the same, and come back as they were; what is no key is refused."""

from collections import namedtuple
from collections.abc import Hashable
from enum import IntEnum, StrEnum
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from persistmem.cache.keys import Key, decode_key, encode_key
from persistmem.errors import NotFoundError, SizeError, UnsupportedTypeError

from .support import MISSING, cache_of


class Colour(StrEnum):
    RED = "red"


class Number(IntEnum):
    ONE = 1


Point = namedtuple("Point", "x y")

KEYS: list[Key] = [
    "", "a", "ä", "☃" * 100, "a" * 255, "a" * 256, "a" * 32_768, "\0", "a\0",
    b"", b"a", "ä".encode(), b"\0", b"\0" * 300, b"\xff\xfe",
    0, 1, -1, 127, 128, -32, -33, 255, 256, 65_535, 65_536, 2**31, 2**32, 2**63, 2**64 - 1, 2**64, -(2**63),
    -(2**63) - 1, 2**1000, -(2**1000),
    (), ("a",), (b"a",), (1,), ("",), (b"",), (0,), ((),), (((),),), ((), ()), ("a", "b"), ("ab",), ("a", ("b",)),
    (("a", "b"),), (("a",), "b"), (1, 2, 3), ("user", 2**70, b"\0"), tuple(range(100)), (1, (2, (3, (4, ())))),
]  # fmt: skip

_atoms = st.text(max_size=5) | st.binary(max_size=5) | st.integers() | st.booleans()
keys = st.recursive(_atoms, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6)


def test_keys_that_differ_are_kept_apart_and_come_back() -> None:
    with cache_of(512 << 10) as cache:
        for number, key in enumerate(KEYS):
            cache[key] = number
        assert len(cache) == len(KEYS)
        for _ in range(4):
            for number, key in enumerate(KEYS):
                assert cache[key] == number
        assert set(cache) == set(KEYS)
        by_type = {(type(key), key) for key in cache}
        assert by_type == {(type(key), key) for key in KEYS}


@settings(max_examples=500)
@given(keys, keys)
def test_keys_have_the_same_bytes_if_and_only_if_they_are_equal(one: Key, other: Key) -> None:
    assert (encode_key(one) == encode_key(other)) == (one == other)
    assert decode_key(encode_key(one)) == one


@settings(max_examples=300)
@given(keys, keys)
def test_no_keys_bytes_begin_as_anothers(one: Key, other: Key) -> None:
    assert one == other or not encode_key(one).startswith(encode_key(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (True, 1), (False, 0), (("a", True), ("a", 1)), (((False,),), ((0,),)), (1.0, 1), (("a", -0.0), ("a", 0)),
        (np.int64(5), 5), (np.str_("red"), "red"),
        (Colour.RED, "red"), (Number.ONE, 1), (Point(1, "y"), (1, "y")), ((Colour.RED, Number.ONE), ("red", 1)),
    ],
    ids=repr,
)  # fmt: skip
def test_keys_that_a_dict_takes_for_the_same_are_the_same(one: Any, other: Any) -> None:
    assert {one: "value"}[other] == "value", "a dict does"
    for first, second in ((one, other), (other, one)):
        with cache_of() as cache:
            cache[first] = "old"
            cache[second] = "value"
            assert len(cache) == 1
            for _ in range(4):
                assert (cache[first], cache[second]) == ("value", "value")
                assert first in cache
            assert list(cache) == [other]
            assert cache.delete(first)
            assert second not in cache


@pytest.mark.parametrize(
    ("one", "other"),
    [("1", 1), ("a", b"a"), ("", b""), ((), ""), (("a",), "a"), (-1, 2**64 - 1), ("\u00e4", "a\u0308")],
)
def test_keys_that_look_alike_are_kept_apart(one: Key, other: Key) -> None:
    with cache_of() as cache:
        cache[one] = "one"
        assert other not in cache
        cache[other] = "other"
        for _ in range(4):
            assert (cache[one], cache[other]) == ("one", "other")


REFUSED: list[Any] = [
    1.5,
    None,
    1j,
    float("nan"),
    frozenset(),
    frozenset({1}),
    ("a", None),
    ("a", (1.5,)),
    object,
    Ellipsis,
]


@pytest.mark.parametrize("key", REFUSED, ids=lambda key: type(key).__name__)
def test_what_is_no_key_is_refused_with_its_type(key: Any) -> None:
    with cache_of() as cache:
        for use in (
            lambda: cache.set(key, 1), lambda: cache.get(key), lambda: cache[key], lambda: cache.delete(key),
            lambda: key in cache, lambda: cache.add(key, 1), lambda: cache.pop(key, None), lambda: cache.touch(key),
            lambda: cache.incr(key, default=0), lambda: cache.setdefault(key, 1), lambda: cache.get_many([key]),
            lambda: cache.set_many({key: 1}), lambda: cache.delete_many([key]), lambda: cache.key_lock(key),
        ):  # fmt: skip
            with pytest.raises(UnsupportedTypeError, match="key: expected str, bytes, int or a tuple of these, found"):
                use()
        assert len(cache) == 0


@pytest.mark.parametrize("key", [[1], {}, bytearray(b"a"), ("a", [1])], ids=repr)
def test_key_that_cannot_be_hashed_is_refused_like_others(key: Any) -> None:
    with cache_of() as cache:
        for use in (lambda: cache.set(key, 1), lambda: cache.get(key), lambda: cache[key], lambda: key in cache):
            with pytest.raises(UnsupportedTypeError, match="found builtins"):
                use()
        assert len(cache) == 0


def test_text_that_is_no_unicode_is_refused() -> None:
    with cache_of() as cache:
        for key in ("\ud800", ("a", "\udfff")):
            with pytest.raises(UnsupportedTypeError, match="surrogates"):
                cache[key] = 1
            with pytest.raises(UnsupportedTypeError, match="surrogates"):
                cache.get(key)


def test_key_nested_without_end_is_refused() -> None:
    with cache_of() as cache:
        key: Hashable = ()
        for _ in range(90):
            key = (key,)
        cache[key] = "deep"  # type: ignore[index]
        assert cache[key] == "deep"
        for _ in range(5000):
            key = (key,)
        for use in (lambda: cache.set(key, 1), lambda: cache.get(key), lambda: key in cache):  # type: ignore[arg-type]
            with pytest.raises(UnsupportedTypeError, match="nested"):
                use()


def test_key_longer_than_32_kib_is_refused() -> None:
    with cache_of(512 << 10) as cache:
        for key in ("a" * 32_769, b"a" * 32_769, tuple(range(32_769)), 2 ** (8 * 32_769), ("a" * 33_000,)):
            for use in (lambda key=key: cache.set(key, 1), lambda key=key: cache.get(key, MISSING)):
                with pytest.raises(SizeError, match="expected at most 32768 bytes"):
                    use()
        for key in (10**5000, ("a", 10**5000)):
            with pytest.raises(NotFoundError, match="very large int"):
                cache[key]
        cache["a" * 32_768] = 1
        assert cache["a" * 32_768] == 1


def test_keys_with_one_hash_are_told_apart() -> None:
    # Many keys in two buckets of 16: each has the tag of some other, in a cache of few buckets and many keys.
    with cache_of(32 << 10) as cache:
        for number in range(20_000):
            cache[number] = number
            assert cache.get(number) == number
            assert cache.get(number - 3, number - 3) == number - 3


def test_what_is_an_int_but_has_no_hash_is_a_key_however_often_it_is_read() -> None:
    with cache_of() as cache:
        cache.update({1: "small", 2: bytes(5000)})
        for key, value in ((1, "small"), (2, bytes(5000))):
            for _ in range(5):
                unhashable: Any = np.array(key)
                assert cache.get(unhashable) == value
