"""A writer that is killed between any two stores, or within one, leaves each text the old one, the new one, or none."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pytest

from apps.vectors.layout import HEADER_SIZE, WORD, Geometry, decode_header
from apps.vectors.table import Table, Vector
from persistmem.errors import ArenaFullError, SizeError
from tests.cache.recording import RecordingMapping, RecordingWords, Write, torn

from .support import rows_of, table_in

GEOMETRY = Geometry(6, 10, "test", 1)
NAMES = [f"name {number}" for number in range(10)]

Held = Mapping[str, tuple[str, bytes]]


def held(table: Table) -> dict[str, tuple[str, bytes]]:
    return {name: (row.record.text, row.vector.tobytes()) for name, row in rows_of(table).items()}


def new_text(name: str, number: int) -> tuple[str, str, Vector]:
    """A text of some length, and a vector that belongs to no other."""
    text = f"{name}, version {number}, " + "x" * (number * 37 % 200)
    return name, text, np.random.default_rng(number).random(GEOMETRY.dimensions, np.float32)


@dataclass(frozen=True, slots=True)
class Step:
    run: Callable[[Table], object]
    values: dict[str, tuple[str, bytes] | None]


def put(*rows: tuple[str, str, Vector]) -> Step:
    values: dict[str, tuple[str, bytes] | None] = {name: (text, vector.tobytes()) for name, text, vector in rows}
    return Step(lambda table: table.put(rows, 1), values)


def remove(name: str) -> Step:
    return Step(lambda table: table.remove(name), {name: None})


def steps(seed: int, count: int) -> list[Step]:
    rng = random.Random(seed)
    made = []
    for number in range(count):
        names = rng.sample(NAMES, rng.choice([1, 1, 1, 3]))
        made.append(remove(names[0]) if rng.random() < 0.3 else put(*(new_text(name, number) for name in names)))
    return made


def recording_table() -> tuple[Table, RecordingMapping]:
    memory = RecordingMapping(-1, GEOMETRY.size)
    memory.writes = []
    words = RecordingWords(memoryview(memory).cast("Q"), memory.writes)
    return Table(GEOMETRY, memory, 0, words), memory


def replay(memory: bytearray, write: Write) -> None:
    memory[write.offset : write.offset + len(write.data)] = write.data


class Left:
    """The memory that a killed writer leaves, as the next process has it."""

    def __init__(self) -> None:
        self.memory = RecordingMapping(-1, GEOMETRY.size)
        self.memory.writes = []
        self.count = 0

    def by(self, memory: bytearray) -> Table:
        self.count += 1
        self.memory[:] = bytes(memory)
        del self.memory.writes[:]
        return table_in(self.memory, GEOMETRY)


def check(table: Table, step: Step, before: Held) -> None:
    found = held(table)
    for name in NAMES:
        may_be = {before.get(name)} | ({step.values[name]} if name in step.values else set())
        assert found.get(name) in may_be, f"{name} has {found.get(name)}"


def go_on(table: Table, rng: random.Random) -> None:
    """Whatever is done from here on is as it should be."""
    model = held(table)
    for number in range(8):
        name = rng.choice(NAMES)
        step = remove(name) if rng.random() < 0.3 else put(new_text(name, 1000 + number))
        step.run(table)
        for name, value in step.values.items():
            model.pop(name, None)
            if value is not None:
                model[name] = value
    assert held(table) == model


@pytest.mark.parametrize("seed", range(2))
def test_writer_killed_at_any_store_leaves_each_text_old_or_new(seed: int) -> None:
    table, memory = recording_table()
    table.format()
    left, rng = Left(), random.Random(seed)
    for step in steps(seed, 120):
        base = bytearray(bytes(memory))
        before = held(table)
        del memory.writes[:]
        step.run(table)
        for write in memory.writes:
            start, end = write.offset, write.offset + len(write.data)
            old = bytes(base[start:end])
            for half_written in [] if write.atomic else torn(old, write.data, write.offset):
                base[start:end] = half_written
                check(left.by(base), step, before)
            base[start:end] = old
            replay(base, write)
            reopened = left.by(base)
            check(reopened, step, before)
            go_on(reopened, rng)
        assert bytes(base) == bytes(memory), "the recording misses a store"
        assert {name: held(table).get(name) for name in step.values} == step.values
    assert left.count > 5000


def test_what_publishes_a_text_is_one_store_of_eight_bytes_after_all_others() -> None:
    table, memory = recording_table()
    table.format()
    for number, name in enumerate([*NAMES, *NAMES]):
        del memory.writes[:]
        put(new_text(name, number)).run(table)
        *others, published = memory.writes
        assert published.atomic
        assert len(published.data) == WORD
        assert published.offset % WORD == 0
        directory = range(GEOMETRY.directory_at, GEOMETRY.records_at)
        assert published.offset in directory
        assert not [write for write in others if write.offset in directory]


def test_no_store_touches_what_a_text_that_is_there_consists_of() -> None:
    table, memory = recording_table()
    table.format()
    put(*(new_text(name, 1) for name in NAMES)).run(table)
    for number in range(200):
        base = bytearray(bytes(memory))
        del memory.writes[:]
        put(new_text(NAMES[number % 10], number)).run(table)
        for write in memory.writes[:-1]:
            base[write.offset : write.offset + len(write.data)] = b"\xee" * len(write.data)
        before = Left().by(base)
        assert len(held(before)) == 10


def test_table_whose_maker_was_killed_is_none_yet() -> None:
    table, memory = recording_table()
    table.format()
    left, base = Left(), bytearray(GEOMETRY.size)
    for write in memory.writes[:-1]:
        for half_written in torn(bytes(len(write.data)), write.data, write.offset):
            memory_left = bytearray(base)
            replay(memory_left, Write(write.offset, half_written, atomic=False))
            assert decode_header(bytes(memory_left[:HEADER_SIZE]), GEOMETRY.size) is None
        replay(base, write)
        assert decode_header(bytes(base[:HEADER_SIZE]), GEOMETRY.size) is None
    replay(base, memory.writes[-1])
    assert decode_header(bytes(base[:HEADER_SIZE]), GEOMETRY.size) == GEOMETRY
    assert held(left.by(base)) == {}


@pytest.mark.parametrize("text", ["", "x" * 300])
def test_text_that_cannot_be_kept_writes_nothing_and_neither_do_those_beside_it(text: str) -> None:
    table, memory = recording_table()
    table.format()
    del memory.writes[:]
    vector = np.zeros(GEOMETRY.dimensions, np.float32)
    with pytest.raises(SizeError):
        table.put([("fine", "text", vector), ("name", text, vector)], 1)
    assert memory.writes == []


def test_full_table_takes_replacements_and_refuses_what_is_new() -> None:
    table, memory = recording_table()
    table.format()
    put(*(new_text(name, 1) for name in NAMES)).run(table)
    put(*(new_text(name, 2) for name in NAMES)).run(table)
    before = held(table)
    del memory.writes[:]
    with pytest.raises(ArenaFullError, match="room for 0 more texts, not for 1"):
        put(new_text(NAMES[0], 3), new_text("another", 3)).run(table)
    assert memory.writes == []
    assert held(table) == before
