"""Records in a region: found by their keys without a lock, written and evicted under one. Knows bytes, not values.

The eviction policy is S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023) on two logs.
What is new goes to the small one. What was read there moves on to the main one when the small one's tail comes to it;
what was not is forgotten, but its ghost is remembered, and who comes back soon goes straight to the main one. In the
main log what was read is written again at the head when the tail comes. So every decision falls at a tail, where the
memory is needed, and there is no fragmentation.

A reader takes a record's bytes out, hashes them, and compares: whatever a writer does meanwhile, it is the old record,
or the new one, or no match; then it looks again. A writer writes the record, then the head, then the one word of the
index that publishes it. Whoever is killed in between leaves bytes that nobody points at.
"""

import mmap
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import xxhash

from persistmem.cache.layout import (
    FILLER,
    LENGTH_MASK,
    PLACE_BITS,
    PLACE_MASK,
    RECORD_HEADER,
    SLOT_BITS,
    WAYS,
    Geometry,
    Word,
    record_size,
)
from persistmem.cache.values import EXPIRES
from persistmem.cache.writing import Words
from persistmem.errors import SizeError
from persistmem.sizes import format_size

TIME: Final = struct.Struct("<d")
"""A record's time, if it has one, before its last byte: seconds since 1970."""

_digest = xxhash.xxh3_64_intdigest
_TAG_BITS: Final = 24
_MIX: Final = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio: spreads tags over the buckets
_TAG_BYTES: Final = tuple(bytes([byte or 1]) for byte in range(256))
_FREE: Final = b"\0"
_PIECE: Final = 1 << 20
_LOOKS_MAX: Final = 8
"""How often a reader looks at a record that changes under it, before it is called damaged."""
_REWRITES_MAX: Final = 64
"""Records that one write moves on at the most, so that none takes long; then even what was read is evicted."""
_RESERVE_SHARE: Final = 32
"""One byte in so many of a log is kept free, for records that are moved on within it; larger ones are not."""
_DEAD_SHARE: Final = 8
"""If more than one byte in so many that a tail passes is dead, nothing alive is evicted: what is dead makes room."""


class Found(NamedTuple):
    """A record that was found, checked, and is that of the key."""

    slot: int
    entry: int
    payload: bytes
    value_at: int
    """Where in the payload the value begins."""

    @property
    def kind(self) -> int:
        """How the value is to be read."""
        return self.payload[-1]

    @property
    def expires(self) -> float | None:
        """Seconds since 1970."""
        return expiry(self.payload)

    @property
    def value(self) -> bytes:
        """The value's bytes."""
        return self.payload[self.value_at : -9 if self.payload[-1] & EXPIRES else -1]


@dataclass(frozen=True, slots=True)
class _Log:
    """One of the two logs: a ring of records."""

    at: int
    size: int
    head: int
    tail: int
    passed: int
    dead: int


class Store:
    """The records of one cache. Finding takes no lock; everything that writes is called by the one writer."""

    def __init__(
        self, geometry: Geometry, mapping: mmap.mmap, base: int, words: Words, clock: Callable[[], float]
    ) -> None:
        """Use the region that begins at byte ``base`` of ``mapping``; ``words`` are its own, ``clock`` is the time."""
        self.geometry = geometry
        self._clock = clock
        self.mapping = mapping
        self.words = words
        self.base = base
        self.payload_at = base + RECORD_HEADER
        self._seed = geometry.seed
        self._buckets = geometry.buckets
        self.tags_at = base + geometry.tags_at
        self.frequencies_at = base + geometry.frequencies_at
        self._ghosts_at = base + geometry.ghosts_at
        self.entries_at = geometry.entries_at >> 3
        self._main_place = geometry.main_at >> 3
        self._find_byte = mapping.find
        self._small = _Log(
            geometry.small_at, geometry.small_size, Word.SMALL_HEAD, Word.SMALL_TAIL, Word.SMALL_PASSED, Word.SMALL_DEAD
        )
        self._main = _Log(
            geometry.main_at, geometry.main_size, Word.MAIN_HEAD, Word.MAIN_TAIL, Word.MAIN_PASSED, Word.MAIN_DEAD
        )

    def find(self, key: bytes) -> Found | None:
        """The record of ``key``, checked, whether its time is up or not; None if there is none.

        Cost: a microsecond, and a copy of it.
        """
        hashed = _digest(key, self._seed)
        tag = hashed >> PLACE_BITS
        byte, words, find = _TAG_BYTES[tag & 0xFF], self.words, self._find_byte
        bucket = hashed % self._buckets
        for _ in range(2):
            start = self.tags_at + bucket * WAYS
            at = find(byte, start, start + WAYS)
            while at >= 0:
                slot = at - self.tags_at
                entry = words[self.entries_at + slot]
                if entry >> PLACE_BITS == tag and entry:
                    place = entry & PLACE_MASK
                    try:
                        lowest = (place << 3) + self.payload_at
                        payload = self.mapping[lowest : lowest + (words[place] & LENGTH_MASK)]
                        sound = _digest(payload) == words[place + 1]
                    except IndexError:
                        sound = False
                    if not sound:
                        entry, payload = self._look_again(slot)
                    if payload.startswith(key):
                        return Found(slot, entry, payload, len(key))
                at = find(byte, at + 1, start + WAYS)
            bucket = (tag * _MIX - bucket) % self._buckets
        return None

    def payload_of(self, slot: int) -> bytes:
        """The payload of whatever is in a slot, checked; empty if there is nothing, or nothing sound."""
        return self._look_again(slot)[1]

    def slots(self) -> Iterator[int]:
        """The slots that are taken, in no order."""
        words, start = self.words, self.entries_at
        return (slot for slot in range(self.geometry.slots) if words[start + slot])

    def put(self, key: bytes, value: bytes, kind: int, expires: float | None) -> None:
        """Write a record in place of the key's old one, if there is one, and let others make room.

        Raises:
            SizeError: it is too large for this cache.
        """
        old = self.find(key)
        payload = (
            b"%b%b%c" % (key, value, kind)
            if expires is None
            else b"%b%b%b%c" % (key, value, TIME.pack(expires), kind | EXPIRES)
        )
        length = len(payload)
        size = record_size(length)
        if size > self.geometry.item_max:
            raise SizeError(
                f"cache: expected an item of at most {format_size(self.geometry.item_max)}, found {format_size(size)};"
                " make the cache larger, or store less"
            )
        words = self.words
        hashed = _digest(key, self._seed)
        tag = hashed >> PLACE_BITS
        if old is not None:
            slot = old.slot
            hot = old.entry & PLACE_MASK >= self._main_place or self.mapping[self.frequencies_at + slot] > 1
        else:
            slot = self._free_slot(hashed, tag)
            hot = self._forget_ghost(hashed, tag) or not words[Word.FULL]
        log = self._main if hot or size > self._small.size // 4 else self._small
        head, place = self._make_room(log, size)
        words[place] = slot << SLOT_BITS | length
        words[place + 1] = _digest(payload)
        lowest = (place << 3) + self.payload_at
        self.mapping[lowest : lowest + length] = payload
        words[log.head] = head + size
        entry = self.entries_at + slot
        if words[entry]:
            words[entry] = tag << PLACE_BITS | place
        else:
            self.mapping[self.tags_at + slot] = tag & 0xFF or 1
            self.mapping[self.frequencies_at + slot] = 0
            words[entry] = tag << PLACE_BITS | place
            words[Word.ITEMS] += 1

    def remove(self, slot: int) -> None:
        """Remove what is in a slot."""
        if self.words[self.entries_at + slot]:
            self.words[self.entries_at + slot] = 0
            self.mapping[self.tags_at + slot] = 0
            self.words[Word.ITEMS] -= 1

    def clear(self) -> None:
        """Remove everything. Cost: writes the index."""
        words = self.words
        first, last = self.entries_at << 3, (self.entries_at + self.geometry.slots) << 3
        for start, end in ((self.base + first, self.base + last), (self.tags_at, self.base + first)):
            for piece in range(start, end, _PIECE):
                length = min(_PIECE, end - piece)
                self.mapping[piece : piece + length] = bytes(length)
        for log in (self._small, self._main):
            words[log.tail] = words[log.head]
            words[log.passed] = words[log.dead] = 0
        words[Word.FULL] = words[Word.ITEMS] = 0
        words[Word.GENERATION] += 1

    def recover(self) -> None:
        """Make right what a writer that died may have left half done. Cost: a look at every slot, 20 ns each."""
        words = self.words
        for log in (self._small, self._main):
            if not 0 <= words[log.head] - words[log.tail] <= log.size or (words[log.head] | words[log.tail]) & 7:
                words[log.tail] = words[log.head] = 0
                self.clear()
                return
        words[Word.ITEMS] = sum(1 for _ in self.slots())

    def _look_again(self, slot: int) -> tuple[int, bytes]:
        """The entry and the payload in a slot that somebody may be writing to; empty if there is nothing sound."""
        words = self.words
        entry = 0
        for _ in range(_LOOKS_MAX):
            entry = words[self.entries_at + slot]
            if not entry:
                return 0, b""
            place = entry & PLACE_MASK
            try:
                lowest = (place << 3) + self.payload_at
                payload = self.mapping[lowest : lowest + (words[place] & LENGTH_MASK)]
                if _digest(payload) == words[place + 1]:
                    return entry, payload
            except IndexError:
                break
        words[Word.DAMAGED] += 1
        return entry, b""

    def _free_slot(self, hashed: int, tag: int) -> int:
        """A slot for a new key, in one of its two buckets; evicts what was read least if both are full."""
        first = hashed % self._buckets
        second = (tag * _MIX - first) % self._buckets
        for bucket in (first, second):
            start = self.tags_at + bucket * WAYS
            at = self._find_byte(_FREE, start, start + WAYS)
            if at >= 0:
                return at - self.tags_at
        candidates = [bucket * WAYS + way for bucket in (first, second) for way in range(WAYS)]
        slot = min(candidates, key=self._worth)
        if self.words[self.entries_at + slot]:
            self._evict(slot)
        return slot

    def _worth(self, slot: int) -> tuple[int, int]:
        """How much there is to lose in a slot."""
        entry = self.words[self.entries_at + slot]
        if not entry:
            return -1, 0
        return self.mapping[self.frequencies_at + slot], int(entry & PLACE_MASK >= self._main_place)

    def _evict(self, slot: int) -> None:
        entry = self.words[self.entries_at + slot]
        self.remove(slot)
        self.words[Word.EVICTED] += 1
        if entry & PLACE_MASK < self._main_place:
            self._remember_ghost(slot, entry >> PLACE_BITS)

    def _remember_ghost(self, slot: int, tag: int) -> None:
        bucket = slot // WAYS
        bucket = min(bucket, (tag * _MIX - bucket) % self._buckets)
        cursor = self.words[Word.GHOST_CURSOR]
        self.words[Word.GHOST_CURSOR] = cursor + 1 & LENGTH_MASK
        at = self._ghosts_at + (bucket * WAYS + cursor % WAYS) * 2
        self.mapping[at : at + 2] = (tag >> 8).to_bytes(2, "little")

    def _forget_ghost(self, hashed: int, tag: int) -> bool:
        """Whether the small log has lost this key lately."""
        bucket = hashed % self._buckets
        bucket = min(bucket, (tag * _MIX - bucket) % self._buckets)
        start = self._ghosts_at + bucket * WAYS * 2
        at = self._find_byte((tag >> 8).to_bytes(2, "little"), start, start + WAYS * 2)
        if at < 0 or (at - start) & 1 or not tag >> 8:
            return False
        self.mapping[at : at + 2] = bytes(2)
        return True

    def _make_room(self, log: _Log, size: int) -> tuple[int, int]:
        """The log's head, and the number of the word there, with room for ``size`` bytes in one piece."""
        words = self.words
        rewrites = _REWRITES_MAX
        spare = log.size // _RESERVE_SHARE & ~7
        while (found := self._fit(log, size, spare)) is None:
            if log is self._main:
                words[Word.FULL] = 1
            rewrites -= self._pass(log, may_rewrite=rewrites > 0)
        return found

    def _fit(self, log: _Log, size: int, spare: int) -> tuple[int, int] | None:
        """The head, if there is room at it with ``spare`` bytes left; fills up the log's end if it is in the way."""
        words = self.words
        head = words[log.head]
        free = log.size - head + words[log.tail] - spare
        to_end = log.size - head % log.size
        if size <= to_end:
            return (head, (log.at + log.size - to_end) >> 3) if size <= free else None
        if to_end + size > free:
            return None
        words[(log.at + log.size - to_end) >> 3] = FILLER | to_end
        words[log.head] = head + to_end
        return head + to_end, log.at >> 3

    def _pass(self, log: _Log, *, may_rewrite: bool) -> int:
        """Move the tail past one record, and the record on if it is worth it; returns how many were moved on."""
        words = self.words
        tail = words[log.tail]
        place = (log.at + tail % log.size) >> 3
        first = words[place]
        size = first & LENGTH_MASK if first >= FILLER else record_size(first & LENGTH_MASK)
        if not 0 < size <= min(words[log.head] - tail, log.size - tail % log.size):
            self.clear()  # a log that cannot be walked cannot be kept
            return 0
        dead = moved = 0
        if first < FILLER:
            slot = first >> SLOT_BITS
            entry = words[self.entries_at + slot] if slot < self.geometry.slots else 0
            if not entry or entry & PLACE_MASK != place or self._is_over(place):
                dead = size
                if entry & PLACE_MASK == place:
                    self.remove(slot)
                    words[Word.EXPIRED] += 1
            elif may_rewrite and (target := self._target(log, slot)) is not None:
                moved = self._move_on(log, target, slot, size)
            else:
                self._evict(slot)
        if words[log.tail] != tail:
            return moved  # the other log could not be walked, and everything was cleared
        words[log.passed] += size
        words[log.dead] += dead
        if words[log.passed] > log.size >> 2:
            words[log.passed] >>= 1
            words[log.dead] >>= 1
        words[log.tail] = tail + size
        return moved

    def _is_over(self, place: int) -> bool:
        """Whether the time of the record at a place is up."""
        end = (place << 3) + self.payload_at + (self.words[place] & LENGTH_MASK)
        if not self.mapping[end - 1] & EXPIRES:
            return False
        return bool(TIME.unpack_from(self.mapping, end - 9)[0] <= self._clock())

    def _target(self, log: _Log, slot: int) -> _Log | None:
        """Which log the record of a slot goes to when the tail of ``log`` comes to it; None if it is evicted."""
        if self.mapping[self.frequencies_at + slot]:
            return self._main
        # A log that is full of what was written over makes room by that alone.
        return log if self.words[log.dead] * _DEAD_SHARE > self.words[log.passed] else None

    def _move_on(self, log: _Log, target: _Log, slot: int, size: int) -> int:
        """Copy the record of a slot to the head of ``target``, or evict it if there is no room; how many were moved."""
        words, mapping = self.words, self.mapping
        entry = words[self.entries_at + slot]
        if target is not log:
            found: tuple[int, int] | None = self._make_room(target, size)
            if words[self.entries_at + slot] != entry:
                return 0
        else:
            found = self._fit(target, size, 0) if size <= target.size // _RESERVE_SHARE else None
        if found is None:
            self._evict(slot)
            return 0
        head, place = found
        source, lowest = self.base + ((entry & PLACE_MASK) << 3), self.base + (place << 3)
        mapping[lowest : lowest + size] = mapping[source : source + size]
        words[target.head] = head + size
        at = self.frequencies_at + slot
        mapping[at] = max(0, mapping[at] - 1) if target is log else 0
        words[self.entries_at + slot] = entry >> PLACE_BITS << PLACE_BITS | place
        return 1


def expiry(payload: bytes) -> float | None:
    """When the time of a record is up, in seconds since 1970; None for never."""
    if payload[-1] & EXPIRES:
        expires: float = TIME.unpack_from(payload, len(payload) - 9)[0]
        return expires
    return None
