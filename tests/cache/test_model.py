"""The cache beside a dict with expiry: whatever is done in whatever order, both say the same."""

from contextlib import ExitStack

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from persistmem.cache import Cache
from persistmem.cache.keys import Key
from persistmem.errors import NotFoundError, SizeError, UnsupportedTypeError
from persistmem.testing import new_arena

from .support import MISSING, Clock, open_cache

KEYS: st.SearchStrategy[Key] = st.sampled_from(["a", "b", "", b"a", 0, 1, -1, 2**70, ("a", 1), ("a", (1, b""))])
VALUES = st.one_of(
    st.none(),
    st.integers(-5, 5),
    st.integers(),
    st.text(max_size=5),
    st.binary(max_size=300),
    st.tuples(st.integers(), st.text(max_size=3)),
    st.dictionaries(st.integers(0, 3), st.booleans(), max_size=2),
    st.integers(400, 1500).map(bytes),
)
TTLS = st.sampled_from([None, 1, 10, 3600])
STEPS = st.sampled_from([0.5, 1, 5, 10, 4000, -1, -5, -4000])


class Model:
    """A dict whose values may expire."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.held: dict[Key, tuple[object, float | None]] = {}

    def living(self) -> dict[Key, object]:
        now = self.clock()
        return {key: value for key, (value, until) in self.held.items() if until is None or now < until}

    def get(self, key: Key) -> object:
        return self.living().get(key, MISSING)

    def set(self, key: Key, value: object, ttl: float | None) -> None:
        self.held[key] = value, None if ttl is None else self.clock() + ttl

    def until(self, key: Key) -> float | None:
        return self.held[key][1]

    def pop(self, key: Key) -> object:
        """Also what is over is gone now, wherever the clock goes."""
        value = self.get(key)
        self.held.pop(key, None)
        return value


class CacheBesideDict(RuleBasedStateMachine):
    """With room for all: nothing is ever missing."""

    size = 128 << 10

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.stack = ExitStack()
        self.arena = self.stack.enter_context(new_arena("1MiB"))
        self.cache = self.opened()
        self.other = self.opened()
        self.model = Model(self.clock)

    def opened(self) -> Cache:
        return open_cache(self.arena, self.size, clock=self.clock)

    def expected(self, key: Key) -> object:
        """What the cache must have under ``key``; here all that the model has."""
        return self.model.get(key)

    @rule(key=KEYS, value=VALUES, ttl=TTLS)
    def store(self, key: Key, value: object, ttl: float | None) -> None:
        self.cache.set(key, value, ttl)
        self.model.set(key, value, ttl)
        assert self.cache[key] == value

    @rule(items=st.dictionaries(KEYS, VALUES, max_size=6), ttl=TTLS)
    def set_many(self, items: dict[Key, object], ttl: float | None) -> None:
        self.cache.set_many(items, ttl)
        for key, value in items.items():
            self.model.set(key, value, ttl)

    @rule(key=KEYS, times=st.integers(1, 4))
    def get(self, key: Key, times: int) -> None:
        for _ in range(times):
            for each in (self.cache, self.other):
                assert each.get(key, MISSING) == self.expected(key)

    @rule(keys=st.lists(KEYS, max_size=8))
    def get_many(self, keys: list[Key]) -> None:
        expected = {key: self.expected(key) for key in keys}
        found = self.other.get_many(keys)
        assert found == {key: value for key, value in expected.items() if value is not MISSING}

    @rule(key=KEYS, value=VALUES, ttl=TTLS)
    def add(self, key: Key, value: object, ttl: float | None) -> None:
        is_new = self.expected(key) is MISSING
        assert self.cache.add(key, value, ttl) == is_new
        if is_new:
            self.model.set(key, value, ttl)

    @rule(key=KEYS, value=VALUES, ttl=TTLS)
    def replace(self, key: Key, value: object, ttl: float | None) -> None:
        is_there = self.expected(key) is not MISSING
        assert self.cache.replace(key, value, ttl) == is_there
        if is_there:
            self.model.set(key, value, ttl)

    @rule(key=KEYS, value=VALUES)
    def setdefault(self, key: Key, value: object) -> None:
        expected = self.expected(key)
        assert self.cache.setdefault(key, value) == (value if expected is MISSING else expected)
        if expected is MISSING:
            self.model.set(key, value, None)

    @rule(key=KEYS, ttl=TTLS)
    def touch(self, key: Key, ttl: float | None) -> None:
        value = self.expected(key)
        assert self.cache.touch(key, ttl) == (value is not MISSING)
        if value is not MISSING:
            self.model.set(key, value, ttl)

    @rule(key=KEYS, delta=st.integers(-3, 3) | st.integers(), default=st.none() | st.integers(), ttl=TTLS)
    def incr(self, key: Key, delta: int, default: int | None, ttl: float | None) -> None:
        value = self.expected(key)
        before = default if value is MISSING else value
        try:
            after = self.cache.incr(key, delta, default=default, ttl=ttl)
        except NotFoundError:
            assert value is MISSING
            assert default is None
        except UnsupportedTypeError:
            assert type(before) is not int
        else:
            assert isinstance(before, int)
            assert after == before + delta
            if value is MISSING:
                self.model.set(key, after, ttl)
            else:
                self.model.held[key] = after, self.model.until(key)

    @rule(key=KEYS)
    def pop(self, key: Key) -> None:
        expected = self.expected(key)
        assert self.cache.pop(key, MISSING) == expected
        self.model.pop(key)

    @rule(key=KEYS)
    def delete(self, key: Key) -> None:
        expected = self.expected(key)
        assert self.cache.delete(key) == (expected is not MISSING)
        self.model.pop(key)

    @rule(keys=st.sets(KEYS, max_size=5))
    def delete_many(self, keys: set[Key]) -> None:
        there = sum(self.expected(key) is not MISSING for key in keys)
        assert self.cache.delete_many(keys) == there
        for key in keys:
            self.model.pop(key)

    @rule(length=st.sampled_from([40_000, 200_000]), key=KEYS)
    def set_too_large(self, length: int, key: Key) -> None:
        before = self.expected(key)
        try:
            self.cache.set(key, bytes(length))
        except SizeError:
            assert self.expected(key) == before
            return
        raise AssertionError("an item larger than a quarter of the cache was taken")

    @rule(seconds=STEPS)
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def expire(self) -> None:
        over = self.model.held.keys() - self.model.living().keys()
        assert self.cache.expire() == len(over)
        for key in over:
            del self.model.held[key]

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.model.held.clear()

    @rule()
    def open_again(self) -> None:
        self.cache.close()
        self.cache = self.opened()

    @rule()
    def change_roles(self) -> None:
        self.cache, self.other = self.other, self.cache

    @invariant()
    def holds_what_the_dict_holds(self) -> None:
        for each in (self.cache, self.other):
            found = dict(each.items())
            assert found == self.model.living()
            assert set(each) == found.keys()
            assert all(key in each for key in found)

    @invariant()
    def counts_what_it_holds(self) -> None:
        assert len(self.cache) == len(self.model.held)
        stats = self.cache.stats()
        assert (stats.damaged, stats.evicted) == (0, 0)

    def teardown(self) -> None:
        self.cache.close()
        self.other.close()
        self.stack.close()


class FullCacheBesideDict(RuleBasedStateMachine):
    """With room for a few: anything may be missing, but nothing is ever wrong, and each that is missing is counted."""

    keys = st.integers(0, 200)

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.arena = new_arena("1MiB")
        self.cache = open_cache(self.arena, 32 << 10, clock=self.clock)
        self.other = open_cache(self.arena, clock=self.clock)
        self.model = Model(self.clock)
        self.removed = 0

    def check(self, key: Key, found: object) -> None:
        """What was found is what the dict has, or nothing."""
        assert found is MISSING or found == self.model.get(key)

    @rule(key=keys, count=st.integers(1, 60), length=st.integers(0, 400), ttl=TTLS)
    def set_some(self, key: int, count: int, length: int, ttl: float | None) -> None:
        for number in range(key, key + count):
            value = (number, b"x" * length)
            self.cache.set(number, value, ttl)
            self.model.set(number, value, ttl)
            assert self.cache[number] == value

    @rule(key=keys, length=st.integers(400, 3600))
    def set_large(self, key: int, length: int) -> None:
        self.cache[key] = bytes(length)
        self.model.set(key, bytes(length), None)
        assert self.other[key] == bytes(length)

    @rule(key=keys, count=st.integers(1, 60))
    def get_some(self, key: int, count: int) -> None:
        for number in range(key, key + count):
            self.check(number, self.cache.get(number, MISSING))
            self.check(number, self.other.get(number, MISSING))

    @rule(key=keys)
    def read_often(self, key: int) -> None:
        for _ in range(5):
            self.check(key, self.other.get(key, MISSING))

    @rule(key=keys, ttl=TTLS)
    def touch(self, key: int, ttl: float | None) -> None:
        value = self.model.get(key)
        if self.cache.touch(key, ttl):
            assert value is not MISSING
            self.model.set(key, value, ttl)

    @rule(key=keys, count=st.integers(1, 40))
    def count_up(self, key: int, count: int) -> None:
        self.cache["counter", key] = 0
        for number in range(1, count + 1):
            assert self.cache.incr(("counter", key)) == number
        self.model.set(("counter", key), count, None)

    @rule(key=keys, count=st.integers(1, 20))
    def pop_some(self, key: int, count: int) -> None:
        for number in range(key, key + count):
            self.check(number, self.cache.pop(number, MISSING))
            self.model.pop(number)
            assert number not in self.other

    @rule(seconds=STEPS)
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.model.held.clear()
        assert list(self.other) == []

    @rule()
    def change_roles(self) -> None:
        self.cache, self.other = self.other, self.cache

    @invariant()
    def gives_nothing_wrong(self) -> None:
        keys = list(self.other)
        assert len(keys) == len(set(keys))
        for key, value in self.other.items():
            self.check(key, value)
        assert len(keys) <= len(self.cache)
        stats = self.other.stats()
        assert stats.damaged == 0
        assert 0 <= stats.used <= stats.size

    def teardown(self) -> None:
        self.cache.close()
        self.other.close()
        self.arena.close()


TestCacheBesideDict = CacheBesideDict.TestCase
TestCacheBesideDict.settings = settings(max_examples=40, stateful_step_count=40)
TestFullCacheBesideDict = FullCacheBesideDict.TestCase
TestFullCacheBesideDict.settings = settings(max_examples=40, stateful_step_count=25)
