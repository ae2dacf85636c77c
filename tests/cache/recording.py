"""A region that records every store, and what a writer leaves behind when it is killed between or inside them."""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from persistmem.cache.layout import Geometry
from persistmem.cache.store import Store
from persistmem.cache.words import Words

from .support import Clock

WORD = 8


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes that were written; an atomic store cannot be torn."""

    offset: int
    data: bytes
    atomic: bool


class RecordingMapping(mmap.mmap):
    """Memory that tells what was written to it, in order, by bytes and slices."""

    writes: list[Write]

    def __setitem__(self, at: Any, value: Any) -> None:
        if isinstance(at, slice):
            assert at.step is None
            self.writes.append(Write(at.start, bytes(value), atomic=False))
        else:
            self.writes.append(Write(at, bytes([value]), atomic=True))
        super().__setitem__(at, value)


class RecordingWords:
    """The same memory as words, which tell of each store, too."""

    def __init__(self, words: memoryview, writes: list[Write]) -> None:
        self._words = words
        self._writes = writes

    def __getitem__(self, number: int) -> int:
        word: int = self._words[number]
        return word

    def __setitem__(self, number: int, value: int) -> None:
        self._writes.append(Write(number * WORD, value.to_bytes(WORD, "little"), atomic=True))
        self._words[number] = value


def store_in(memory: mmap.mmap, geometry: Geometry, clock: Clock, words: Words | None = None) -> Store:
    """The store whose region is all of ``memory``; nothing of it is compiled."""
    return Store(geometry, memory, 0, words or memoryview(memory).cast("Q"), clock, compiled=None)


def recording_store(geometry: Geometry, clock: Clock) -> tuple[Store, RecordingMapping]:
    """A new store all of whose writes are recorded in the mapping's ``writes``."""
    memory = RecordingMapping(-1, geometry.size)
    memory.writes = []
    words = RecordingWords(memoryview(memory).cast("Q"), memory.writes)
    return store_in(memory, geometry, clock, words), memory


def torn(old: bytes, new: bytes, offset: int) -> Iterator[bytes]:
    """What a write of several words may leave behind: what is new up to some word of the memory, or from there on."""
    first = WORD - offset % WORD
    for cut in range(first, len(new), WORD):
        yield new[:cut] + old[cut:]
        yield old[:cut] + new[cut:]
