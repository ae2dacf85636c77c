"""A memory that records every store, and the memory a writer leaves behind when it is killed between or inside them."""

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from persistmem.arena.memory import Memory

WORD = 8
EXHAUSTIVE_WORDS_MAX = 1024
"""Longer stores are torn at a seeded sample of their words."""
SUBSETS = 32


@dataclass(frozen=True, slots=True)
class Store:
    """Bytes that were written; an atomic store cannot be torn."""

    offset: int
    data: bytes
    atomic: bool


class RecordingMemory(Memory):
    """A memory that tells what was written to it, in order."""

    def __init__(self, fd: int, size: int) -> None:
        super().__init__(fd, size)
        self.stores: list[Store] = []

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self.stores.append(Store(offset, bytes(data), atomic=False))
        super().write(offset, data)

    def store(self, offset: int, word: int) -> None:
        self.stores.append(Store(offset, word.to_bytes(WORD, "little"), atomic=True))
        super().store(offset, word)


def torn(old: bytes, new: bytes, rng: random.Random) -> Iterator[bytes]:
    """What a store may leave behind: each word of it old or new.

    Every prefix and suffix of the words, each word alone, each word missing, and some random subsets.
    """
    words = -(-len(new) // WORD)
    at = range(words) if words <= EXHAUSTIVE_WORDS_MAX else sorted(rng.sample(range(words), EXHAUSTIVE_WORDS_MAX // 4))
    for word in at:
        start, end = word * WORD, (word + 1) * WORD
        yield new[:start] + old[start:]
        yield old[:start] + new[start:]
        yield old[:start] + new[start:end] + old[end:]
        yield new[:start] + old[start:end] + new[end:]
    for _ in range(SUBSETS):
        chosen = rng.getrandbits(words)
        yield b"".join((new if chosen >> word & 1 else old)[word * WORD : (word + 1) * WORD] for word in range(words))


def replay(fd: int, base: bytes, stores: Sequence[Store]) -> None:
    """Make ``fd`` hold ``base`` after ``stores``."""
    os.pwrite(fd, base, 0)
    for store in stores:
        os.pwrite(fd, store.data, store.offset)
