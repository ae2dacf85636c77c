"""A writer that is killed between any two stores, or within one, leaves each key its old value or its new one."""

import mmap
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest

from persistmem.cache.compiled import COMPILED, NEEDS
from persistmem.cache.keys import encode_key
from persistmem.cache.layout import FREQUENCY_MAX, HEADER_SIZE, Geometry, Word, encode_header
from persistmem.cache.store import Store
from persistmem.errors import SizeError
from persistmem.testing import new_arena

from .recording import Write, recording_store, store_in, torn
from .stepping import stores_of
from .support import Clock, no_hang, open_cache

SIZE = 32 << 10
SEED = 0x0123456789ABCDEF
KEYS = [encode_key(f"key {number}") for number in range(90)]
UNUSED = [encode_key(("after", number)) for number in range(12)]

Held = dict[bytes, bytes]
Operation = Callable[[Store], object]


def geometry() -> Geometry:
    return Geometry.plan(SIZE, None, SEED, 0)


def held(store: Store, keys: list[bytes]) -> Held:
    """What is found under each key."""
    found = ((key, store.find(key)) for key in keys)
    return {key: there[4] for key, there in found if there is not None}


def value_of(key: bytes, number: int, length: int) -> bytes:
    """A value that says whose it is, and which."""
    return (b"%b=%d;" % (key, number)).ljust(length, b"%d" % (number % 10))


@dataclass(frozen=True, slots=True)
class Step:
    """One operation, the keys that it is about, and the values that it gives them; None for none."""

    name: str
    run: Operation
    values: dict[bytes, bytes | None]


def put(key: bytes, number: int, length: int, expires: float | None = None) -> Step:
    value = value_of(key, number, length)
    return Step(f"put {number}", lambda store: store.put(key, value, 1, expires), {key: value})


def remove(key: bytes) -> Step:
    def run(store: Store) -> None:
        if (found := store.find(key)) is not None:
            store.remove(found[0])

    return Step("remove", run, {key: None})


def clear() -> Step:
    return Step("clear", Store.clear, dict.fromkeys(KEYS))


def read(store: Store, key: bytes) -> None:
    """As a reader counts that it was here."""
    if (found := store.find(key)) is not None:
        store.mapping[store.frequencies_at + found[0]] = FREQUENCY_MAX


def steps(seed: int, count: int, clock: Clock) -> list[Step]:
    """Puts of all sizes, overwritten, expiring and removed; now and then all is cleared."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        key = rng.choice(KEYS[:8]) if rng.random() < 0.3 else rng.choice(KEYS)
        match rng.randrange(10):
            case 0:
                made.append(remove(key))
            case 1:
                made.append(put(key, number, rng.randrange(300), clock.now + rng.choice([-5.0, 5.0])))
            case 2:
                made.append(put(key, number, rng.choice([900, 2000, 3000])))
            case _:
                made.append(put(key, number, rng.choice([1, 60, 61, 240, 260, 300])))
    made.insert(count * 3 // 4, clear())
    return made


class Crash:
    """The memory that is left, again and again."""

    def __init__(self, clock: Clock) -> None:
        self.memory = mmap.mmap(-1, SIZE)
        self.words = memoryview(self.memory).cast("Q")
        self.clock = clock
        self.count = 0

    def store_after(self, left: bytes | bytearray) -> Store:
        """The store, as the next writer has it."""
        self.count += 1
        self.memory[:] = bytes(left)
        store = store_in(self.memory, geometry(), self.clock)
        store.recover()
        return store


def check(store: Store, step: Step, before: Held, after: Held, evicts: bool) -> Held:
    """What is found is what was there, or what the step left; only what it evicts may be missing already."""
    found = held(store, KEYS)
    for key in KEYS:
        value = found.get(key)
        if key in step.values:
            may_be = {before.get(key), step.values[key]}
            if evicts:
                may_be.add(None)  # its old value made room for its new one
            assert value in may_be, f"{key!r} has {value!r}"
        elif key in after:
            assert value == before[key], f"{key!r} has {value!r}, and was not touched"
        else:
            assert value in (before.get(key), None), f"{key!r} has {value!r}"
    assert store.words[Word.ITEMS] == len(found) == sum(1 for _ in store.slots())
    assert store.words[Word.DAMAGED] == 0
    return found


def go_on(store: Store, found: Held, rng: random.Random, count: int = 50) -> None:
    """Whatever is done from here on is as it should be."""
    model = dict(found)
    lost = store.words[Word.EVICTED] + store.words[Word.EXPIRED]
    keys = KEYS[::3] + UNUSED
    for number in range(count):
        key = rng.choice(keys)
        if rng.random() < 0.15:
            remove(key).run(store)
            model.pop(key, None)
            assert store.find(key) is None
        else:
            value = value_of(key, -number, rng.choice([5, 60, 250, 1000]))
            store.put(key, value, 1, None)
            model[key] = value
            there = store.find(key)
            assert there is not None
            assert there[4] == value
    found = held(store, KEYS + UNUSED)
    assert found.items() <= model.items()
    gone = store.words[Word.EVICTED] + store.words[Word.EXPIRED] - lost
    assert len(model) - len(found) <= gone
    assert store.words[Word.ITEMS] == len(found)
    assert store.words[Word.DAMAGED] == 0


def replay(memory: bytearray, write: Write) -> None:
    memory[write.offset : write.offset + len(write.data)] = write.data


def enumerate_crashes(
    made: list[Step], store: Store, memory: mmap.mmap, record: Callable[[Step], list[Write]], clock: Clock
) -> int:
    """Kill the writer of these steps at every store, and within every slice; returns how often that was.

    ``record`` takes a step in the ``store``, which is all of ``memory``, and returns what it writes.
    """
    rng = random.Random(len(made))
    for key in KEYS:  # so that the log is full, and what is read is moved on
        store.put(key, value_of(key, 0, 250), 1, None)
    for key in KEYS[:8]:
        read(store, key)
    crash = Crash(clock)
    for step in made:
        if rng.random() < 0.5:
            read(store, rng.choice(KEYS[:20]))
        base = bytearray(bytes(memory))
        before = held(store, KEYS)
        writes = record(step)
        after = held(store, KEYS)
        kill_at_every_store(crash, base, writes, step, before, after, rng)
        assert bytes(base) == bytes(memory), "the recording misses a store"
    assert store.words[Word.DAMAGED] == 0
    return crash.count


def kill_at_every_store(
    crash: Crash,
    base: bytearray,
    writes: list[Write],
    step: Step,
    before: Held,
    after: Held,
    rng: random.Random,
) -> None:
    evicts = False
    index = range(geometry().entries_at, geometry().small_at)
    for number, write in enumerate(writes):
        evicts = evicts or (write.offset in index and not any(write.data))
        if not write.atomic:
            start, end = write.offset, write.offset + len(write.data)
            old = bytes(base[start:end])
            for half_written in torn(old, write.data, write.offset):
                base[start:end] = half_written
                torn_store = crash.store_after(base)
                found = check(torn_store, step, before, after, evicts)
                if rng.random() < 0.05:
                    go_on(torn_store, found, rng)
            base[start:end] = old
        replay(base, write)
        left = crash.store_after(base)
        try:
            found = check(left, step, before, after, evicts)
        except AssertionError as error:
            raise AssertionError(f"{step.name}, killed after store {number + 1} of {len(writes)}") from error
        go_on(left, found, rng)


@pytest.mark.parametrize("seed", range(4))
def test_writer_killed_at_any_store_leaves_old_values_or_new_ones(seed: int) -> None:
    clock = Clock()
    store, memory = recording_store(geometry(), clock)

    def record(step: Step) -> list[Write]:
        del memory.writes[:]
        step.run(store)
        return list(memory.writes)

    with no_hang():
        assert enumerate_crashes(steps(seed, 60, clock), store, memory, record, clock) > 3000


@pytest.mark.skipif(COMPILED is None, reason=f"pip install persistmem where there are {NEEDS}")
@pytest.mark.parametrize("seed", range(2))
def test_compiled_writer_killed_at_any_instruction_leaves_old_values_or_new_ones(seed: int) -> None:
    clock, memory = Clock(), mmap.mmap(-1, SIZE)
    store = Store(geometry(), memory, 0, memoryview(memory).cast("Q"), clock, compiled=COMPILED)
    # What is longer is copied byte by byte here, and each byte is a store.
    puts = [
        step for step in steps(seed, 60, clock) if all(value and len(value) <= 2000 for value in step.values.values())
    ]

    def record(step: Step) -> list[Write]:
        return stores_of(memory, partial(step.run, store))

    with no_hang():
        assert enumerate_crashes(puts[:16], store, memory, record, clock) > 200


def test_writer_killed_while_it_clears_leaves_what_was_there_or_nothing() -> None:
    with no_hang():
        clock = Clock()
        store, memory = recording_store(geometry(), clock)
        for key in KEYS:
            store.put(key, value_of(key, 1, 250), 1, None)
        before = held(store, KEYS)
        base = bytearray(bytes(memory))
        del memory.writes[:]
        store.clear()
        assert held(store, KEYS) == {}
        crash, rng = Crash(clock), random.Random(1)
        for write in memory.writes:
            start, end = write.offset, write.offset + len(write.data)
            old = bytes(base[start:end])
            for half_written in [] if write.atomic else torn(old, write.data, write.offset):
                base[start:end] = half_written
                left = crash.store_after(base)
                found = held(left, KEYS)
                assert found.items() <= before.items()
                assert len(found) <= left.words[Word.ITEMS] == sum(1 for _ in left.slots())
            replay(base, write)
            left = crash.store_after(base)
            found = held(left, KEYS)
            assert found.items() <= before.items()
            go_on(left, found, rng)
        assert held(crash.store_after(base), KEYS) == {}


def test_killed_writers_after_each_other_leave_no_wrong_value() -> None:
    rng = random.Random(5)
    with no_hang():
        clock = Clock()
        store, memory = recording_store(geometry(), clock)
        may_be: dict[bytes, set[bytes | None]] = {key: {None} for key in KEYS}
        for number in range(600):
            key = rng.choice(KEYS)
            step = put(key, number, rng.choice([5, 100, 250, 1500]))
            base = bytearray(bytes(memory))
            del memory.writes[:]
            step.run(store)
            writes = list(memory.writes)
            for write in writes[: rng.randrange(len(writes) + 1)]:
                replay(base, write)
            memory[:] = bytes(base)
            store.recover()
            may_be[key].add(step.values[key])
            for other, value in held(store, KEYS).items():
                assert value in may_be[other]
                may_be[other] = {value, None}
            assert store.words[Word.DAMAGED] == 0
            assert store.words[Word.ITEMS] == len(held(store, KEYS))


def test_item_that_is_too_large_writes_nothing() -> None:
    clock = Clock()
    store, memory = recording_store(geometry(), clock)
    store.put(KEYS[0], b"value", 1, None)
    del memory.writes[:]
    with pytest.raises(SizeError):
        store.put(KEYS[0], bytes(SIZE), 1, None)
    assert memory.writes == []


def test_finding_writes_nothing() -> None:
    store, memory = recording_store(geometry(), Clock())
    for key in KEYS:
        store.put(key, value_of(key, 1, 100), 1, None)
    del memory.writes[:]
    for key in KEYS + UNUSED:
        store.find(key)
    for slot in store.slots():
        store.peek(slot)
    assert memory.writes == []


def test_what_publishes_an_item_is_one_store_of_eight_bytes_after_all_others() -> None:
    store, memory = recording_store(geometry(), Clock())
    for number, key in enumerate([*KEYS, *KEYS]):
        del memory.writes[:]
        value = value_of(key, number, 250)
        store.put(key, value, 1, None)
        published = [write for write in memory.writes if write.offset >= geometry().entries_at][-1]
        assert published.atomic
        assert len(published.data) == 8
        assert published.offset % 8 == 0
        after = memory.writes[memory.writes.index(published) + 1 :]
        assert [write.offset for write in after] in ([], [Word.ITEMS * 8], [Word.SMALL_DEAD * 8], [Word.MAIN_DEAD * 8])


def test_cache_whose_maker_was_killed_is_made_anew() -> None:
    for count in range(0, HEADER_SIZE, 8):
        with new_arena("128KiB") as arena:
            with arena.region("cache", SIZE) as region, region.view() as view:
                view[:count] = encode_header(geometry())[:count]
            with open_cache(arena) as cache:
                cache["a"] = 1
                with open_cache(arena) as other:
                    assert dict(other.items()) == {"a": 1}
