"""Records in a region: found by their keys without a lock, written and evicted under one. Knows bytes, not values.

The eviction policy is S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023) on two logs.
What is new goes to the small one. What was read twice there moves on to the main one when the small one's tail comes;
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
from types import NotImplementedType
from typing import TYPE_CHECKING, Final

import xxhash

from persistmem.cache.compiled import COMPILED
from persistmem.cache.keys import KEY_BYTES_MIN, encode_key, key_end
from persistmem.cache.layout import (
    FILLER,
    GHOSTS,
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
from persistmem.cache.values import EXPIRES, unpack
from persistmem.cache.words import Words, count_up
from persistmem.errors import SizeError
from persistmem.sizes import format_size

if TYPE_CHECKING:
    from persistmem.cache._compiled import Records

TIME: Final = struct.Struct("<d")
"""A record's time, if it has one, between key and value: seconds since 1970."""

_digest = xxhash.xxh3_64_intdigest
_TAG_BITS: Final = 24
_MIX: Final = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio: spreads tags over the buckets
_KIND_BYTES: Final = tuple(bytes([kind]) for kind in range(256))
_TAG_BYTES: Final = tuple(bytes([byte or 1]) for byte in range(256))
_FREE: Final = b"\0"
_PIECE: Final = 1 << 20
_ROOM_MIN: Final = 4
"""Free slots in a new key's first bucket under which its second one is looked at."""
_HEAD_MAX: Final = 1 << 62  # four exabytes: what claims to have written more was scribbled in
_LOOKS_MAX: Final = 8
"""How often a reader looks at a record that changes under it, before it is called damaged."""
_REWRITES_MAX: Final = 512
"""Records that one write moves on at the most, so that none takes long; then even what was read is evicted."""
_RESERVE_SHARE: Final = 128
_RESERVE_MIN: Final = 128 << 10
_RESERVE_SHARE_MAX: Final = 32
"""What is kept free of a log, for records that are moved on within it: one byte in 128, but no less than 128 KiB unless
that were more than one in 32. Larger records than half of it are not always moved on.
"""
_DEAD_SHARE: Final = 8
"""If more than one byte in so many of a log is dead, nothing alive is evicted: what is dead makes room."""


Found = tuple[int, int, int, float | None, bytes, int]
"""A record that was found and checked: its slot, its entry, how its value is to be read, when its time is up (None for
never), the value, and where in the mapping that begins. A plain tuple, which is made at each read.
"""


@dataclass(frozen=True, slots=True)
class _Log:
    """One of the two logs: a ring of records."""

    at: int
    size: int
    limit: int
    """Bytes of it that new records may take: the rest is for records that are moved on within it."""
    head: int
    tail: int
    dead: int


class Store:
    """The records of one cache. Finding takes no lock; everything that writes is called by the one writer."""

    def __init__(
        self,
        geometry: Geometry,
        mapping: mmap.mmap,
        base: int,
        words: Words,
        clock: Callable[[], float],
        *,
        compiled: "type[Records] | None" = COMPILED,
    ) -> None:
        """Use the region that begins at byte ``base`` of ``mapping``; ``words`` are its own, ``clock`` is the time."""
        self.geometry = geometry
        self._clock = clock
        self.mapping = mapping
        self.words = words
        self.base = base
        self.body_at = base + RECORD_HEADER
        self._seed = geometry.seed
        self._buckets = geometry.buckets
        self.tags_at = base + geometry.tags_at
        self.frequencies_at = base + geometry.frequencies_at
        self._ghosts_at = base + geometry.ghosts_at
        self.entries_at = geometry.entries_at >> 3
        self._places = geometry.size >> 3
        self._word_at = self.entries_at - self.tags_at
        self._main_place = geometry.main_at >> 3
        self._find_byte = mapping.find
        self._item_max = geometry.item_max
        small, main = geometry.small_size, geometry.main_size
        self._small = _Log(
            *(geometry.small_at, small, small - _reserve(small)),
            *(Word.SMALL_HEAD, Word.SMALL_TAIL, Word.SMALL_DEAD),
        )
        self._small_item_max = self._small.limit // 2
        self._main = _Log(
            *(geometry.main_at, main, main - _reserve(main)),
            *(Word.MAIN_HEAD, Word.MAIN_TAIL, Word.MAIN_DEAD),
        )
        self.compiled = None if compiled is None else self._usual_case(compiled)
        """Does the usual case of what is done here, and leaves the rest to it; None if all is done here."""

    def _usual_case(self, compiled: "type[Records]") -> "Records":
        geometry, small, main = self.geometry, self._small, self._main
        return compiled(
            mapping=self.mapping,
            base=self.base,
            size=geometry.size,
            buckets=geometry.buckets,
            seed=geometry.seed,
            tags_at=geometry.tags_at,
            frequencies_at=geometry.frequencies_at,
            ghosts_at=geometry.ghosts_at,
            entries_at=geometry.entries_at,
            item_max=geometry.item_max,
            small=(small.at, small.size, small.limit),
            main=(main.at, main.size, main.limit),
            clock=self._clock,
            encode_key=encode_key,
            unpack=unpack,
            digest=_digest,
        )

    def find(self, key: bytes) -> Found | None:
        """The record of ``key``, checked, whether its time is up or not; None if there is none.

        Cost: one to two microseconds, compiled a quarter of one; and a copy of the value.
        """
        if self.compiled is not None:
            found = self.compiled.find(key)
            if not isinstance(found, NotImplementedType):
                return found
        hashed = _digest(key, self._seed)
        start = self.tags_at + hashed % self._buckets * WAYS
        at = self._find_byte(_TAG_BYTES[hashed >> PLACE_BITS & 0xFF], start, start + WAYS)
        if at >= 0:
            # Most are the first with this byte, in their first bucket, and have no time. All others are found below.
            words, mapping = self.words, self.mapping
            entry = words[at + self._word_at]
            place = entry & PLACE_MASK
            body = (place << 3) + self.body_at
            value_at = body + 1 + len(key)
            head = mapping[body:value_at]
            if head.endswith(key) and head[0] < EXPIRES and entry:
                try:
                    first, slot = words[place], at - self.tags_at
                    value = mapping[value_at : body + (first & LENGTH_MASK)]
                    if _digest(value, _digest(head)) == words[place + 1] and first >> SLOT_BITS == slot:
                        return slot, entry, head[0], None, value, value_at
                except IndexError:
                    pass
        return self._find_anywhere(key, hashed)

    def _find_anywhere(self, key: bytes, hashed: int) -> Found | None:
        tag = hashed >> PLACE_BITS
        byte = _TAG_BYTES[tag & 0xFF]
        bucket = hashed % self._buckets
        for bucket_now in {bucket, (tag * _MIX - bucket) % self._buckets}:
            start = self.tags_at + bucket_now * WAYS
            at = self._find_byte(byte, start, start + WAYS)
            while at >= 0:
                slot = at - self.tags_at
                if (found := self._look(slot, key)) is not None:
                    return found
                if self.words[self.entries_at + slot] >> PLACE_BITS == tag:
                    # By all odds it is this key's, and damaged: peek counts it then.
                    self.peek(slot)
                at = self._find_byte(byte, at + 1, start + WAYS)
        return None

    def peek(self, slot: int) -> tuple[bytes, Found] | None:
        """The key and the record in a slot, checked; None if there is nothing, or nothing sound."""
        entry = self.words[self.entries_at + slot]
        if not entry:
            return None
        body = ((entry & PLACE_MASK) << 3) + self.body_at
        key = self.mapping[body + 1 : key_end(self.mapping, body + 1)]
        if len(key) < KEY_BYTES_MIN:
            count_up(self.words, Word.DAMAGED)
            return None
        found = self._look(slot, key)
        # Where nobody finds it, its key may be in another slot by now.
        if found is not None and self._leads_to(slot, found[1] >> PLACE_BITS, key):
            return key, found
        if self.words[self.entries_at + slot] == entry:
            count_up(self.words, Word.DAMAGED)
        return None

    def _leads_to(self, slot: int, tag: int, key: bytes) -> bool:
        """Whether who looks for a key comes to a slot whose entry has this tag."""
        hashed = _digest(key, self._seed)
        bucket = hashed % self._buckets
        buckets = bucket, (tag * _MIX - bucket) % self._buckets
        byte = self.mapping[self.tags_at + slot]
        return hashed >> PLACE_BITS == tag and byte == (tag & 0xFF or 1) and slot // WAYS in buckets

    def slots(self) -> Iterator[int]:
        """The slots that are taken, in no order."""
        words, start = self.words, self.entries_at
        return (slot for slot in range(self.geometry.slots) if words[start + slot])

    def put(self, key: bytes, value: bytes, kind: int, expires: float | None) -> None:
        """Write a record in place of the key's old one, if there is one, and let others make room.

        Raises:
            SizeError: it is too large for this cache.
        """
        if self.compiled is not None and self.compiled.put(key, value, kind, expires):
            return
        head = _KIND_BYTES[kind] + key if expires is None else _KIND_BYTES[kind | EXPIRES] + key + TIME.pack(expires)
        length = len(head) + len(value)
        size = RECORD_HEADER + (length + 7 & ~7)
        if size > self._item_max:
            raise SizeError(
                f"cache: expected an item of at most {format_size(self._item_max)}, found {format_size(size)};"
                " make the cache larger, or store less"
            )
        words, mapping = self.words, self.mapping
        hashed = _digest(key, self._seed)
        slot = self._slot_of(key, hashed)
        if slot is not None:
            place = words[self.entries_at + slot] & PLACE_MASK
            hot = place >= self._main_place or mapping[self.frequencies_at + slot] > 1
        else:
            self._forget(hashed)
            slot = self._free_slot(hashed)
            hot = not words[Word.FULL] or self._is_much_dead(self._main) or self._forget_ghost(hashed)
        log = self._main if hot or size > self._small_item_max else self._small
        log_head = words[log.head]
        at = log_head % log.size
        if at + size <= log.size and 0 <= log_head - words[log.tail] <= log.limit - size:
            place = (log.at + at) >> 3
        else:
            log_head, place = self._make_room(log, size)
        body = (place << 3) + self.body_at
        value_at = body + len(head)
        words[place] = slot << SLOT_BITS | length
        words[place + 1] = _digest(value, _digest(head))
        mapping[body:value_at] = head
        mapping[value_at : body + length] = value
        words[log.head] = log_head + size
        word = self.entries_at + slot
        entry = hashed >> PLACE_BITS << PLACE_BITS | place
        if old := words[word]:
            words[word] = entry
            self._count_dead(old & PLACE_MASK)
        else:
            mapping[self.tags_at + slot] = hashed >> PLACE_BITS & 0xFF or 1
            mapping[self.frequencies_at + slot] = 0
            words[word] = entry
            count_up(words, Word.ITEMS)

    def remove(self, slot: int) -> None:
        """Remove what is in a slot."""
        if entry := self.words[self.entries_at + slot]:
            self._drop(slot)
            self._count_dead(entry & PLACE_MASK)

    def _drop(self, slot: int) -> None:
        """Empty a slot that is taken. Its record does not count as dead: a tail is just passing it."""
        self.words[self.entries_at + slot] = 0
        self.mapping[self.tags_at + slot] = 0
        self.words[Word.ITEMS] = max(0, self.words[Word.ITEMS] - 1)

    def forget(self, key: bytes) -> None:
        """Remove what was this key's, and was damaged so that it is not found any more.

        A process may still know the way to its value, and must not go there when the key is stored anew, or removed.
        """
        self._forget(_digest(key, self._seed))

    def _forget(self, hashed: int) -> None:
        tag = hashed >> PLACE_BITS
        first = hashed % self._buckets
        for bucket in (first, (tag * _MIX - first) % self._buckets):
            start = self.base + (self.entries_at + bucket * WAYS << 3)
            end = start + WAYS * 8
            at = self._find_byte(tag.to_bytes(3, "little"), start, end)
            while at >= 0:
                slot = bucket * WAYS + (at - start >> 3)
                if (at - start) & 7 == 5 and self.words[self.entries_at + slot] and self.peek(slot) is None:
                    self.remove(slot)
                at = self._find_byte(tag.to_bytes(3, "little"), at + 1, end)

    def clear(self) -> None:
        """Remove everything. Cost: writes the index."""
        words = self.words
        first, last = self.entries_at << 3, (self.entries_at + self.geometry.slots) << 3
        for start, end in ((self.base + first, self.base + last), (self.tags_at, self.base + first)):
            for piece in range(start, end, _PIECE):
                length = min(_PIECE, end - piece)
                self.mapping[piece : piece + length] = bytes(length)
        for log in (self._small, self._main):
            if not self._is_sane(log):
                words[log.head] = 0
            words[log.tail] = words[log.head]
            words[log.dead] = 0
        words[Word.FULL] = words[Word.ITEMS] = 0
        count_up(words, Word.GENERATION)

    def recover(self) -> None:
        """Make right what a writer that died may have left half done. Cost: a look at every slot, 20 ns each."""
        words = self.words
        if not (self._is_sane(self._small) and self._is_sane(self._main)):
            self.clear()
        words[Word.ITEMS] = sum(1 for _ in self.slots())

    def _is_sane(self, log: _Log) -> bool:
        """Whether head and tail can be those of the log."""
        head, tail = self.words[log.head], self.words[log.tail]
        return 0 <= head - tail <= log.size and not (head | tail) & 7 and head < _HEAD_MAX

    def _look(self, slot: int, key: bytes) -> Found | None:
        """The record in a slot that somebody may be writing to, if it is that of ``key``."""
        words, mapping = self.words, self.mapping
        word = self.entries_at + slot
        for _ in range(_LOOKS_MAX):
            entry = words[word]
            if not entry:
                return None
            place = entry & PLACE_MASK
            body = (place << 3) + self.body_at
            value_at = body + 1 + len(key)
            head = mapping[body:value_at]
            if not head.endswith(key):
                if words[word] == entry:
                    return None
                continue
            expires = None
            if head[0] & EXPIRES:
                value_at += TIME.size
                head = mapping[body:value_at]
                expires = TIME.unpack_from(head.ljust(TIME.size), -TIME.size)[0]
            try:
                first = words[place]
                value = mapping[value_at : body + (first & LENGTH_MASK)]
                if _digest(value, _digest(head)) == words[place + 1] and first >> SLOT_BITS == slot:
                    return slot, entry, head[0] & ~EXPIRES, expires, value, value_at
            except IndexError:
                break
        return None

    def _slot_of(self, key: bytes, hashed: int) -> int | None:
        """The slot whose record is the key's, sound or not. By the one writer."""
        tag = hashed >> PLACE_BITS
        byte, find_byte, words, mapping = _TAG_BYTES[tag & 0xFF], self._find_byte, self.words, self.mapping
        bucket = hashed % self._buckets
        start = self.tags_at + bucket * WAYS
        length = len(key) + 1
        while True:
            at = find_byte(byte, start, start + WAYS)
            while at >= 0:
                place = words[at + self._word_at] & PLACE_MASK
                body = (place << 3) + self.body_at
                if mapping[body : body + length].endswith(key) and 0 < place < self._places:
                    # A damaged entry may point to what is another slot's: that one is found then, or nothing.
                    slot = at - self.tags_at
                    if words[place] >> SLOT_BITS == slot:
                        return slot
                at = find_byte(byte, at + 1, start + WAYS)
            second = self.tags_at + (tag * _MIX - bucket) % self._buckets * WAYS
            if start == second:
                return None
            start = second

    def _free_slot(self, hashed: int) -> int:
        """A slot for a new key, in one of its two buckets; evicts what was read least if both are full."""
        tag = hashed >> PLACE_BITS
        first = hashed % self._buckets
        second = (tag * _MIX - first) % self._buckets
        # The first, where readers look first; the emptier one, where that gets full: so hardly any are before all are.
        start, other = self.tags_at + first * WAYS, self.tags_at + second * WAYS
        room = self.mapping[start : start + WAYS].count(_FREE)
        if room < _ROOM_MIN and room < self.mapping[other : other + WAYS].count(_FREE):
            start = other
        at = self._find_byte(_FREE, start, start + WAYS)
        if at >= 0:
            self.remove(at - self.tags_at)  # what has lost its tag cannot be found any more
            return at - self.tags_at
        candidates = [bucket * WAYS + way for bucket in (first, second) for way in range(WAYS)]
        slot = min(candidates, key=self._worth)
        if entry := self.words[self.entries_at + slot]:
            self._evict(slot)
            self._count_dead(entry & PLACE_MASK)
        return slot

    def _worth(self, slot: int) -> tuple[int, int]:
        """How much there is to lose in a slot."""
        entry = self.words[self.entries_at + slot]
        if not entry:
            return -1, 0
        return self.mapping[self.frequencies_at + slot], int(entry & PLACE_MASK >= self._main_place)

    def _evict(self, slot: int) -> None:
        """Let what is in a slot make room, as a tail passes it."""
        entry = self.words[self.entries_at + slot]
        self._drop(slot)
        count_up(self.words, Word.EVICTED)
        if entry & PLACE_MASK < self._main_place:
            self._remember_ghost(slot, entry >> PLACE_BITS)

    def _remember_ghost(self, slot: int, tag: int) -> None:
        """Put a key that the small log loses before its bucket's other ghosts; the oldest makes room."""
        start = self._ghosts_of(slot // WAYS, tag)
        end = start + 2 * GHOSTS
        self.mapping[start + 2 : end] = self.mapping[start : end - 2]
        self.mapping[start : start + 2] = (tag >> 8).to_bytes(2, "little")

    def _forget_ghost(self, hashed: int) -> bool:
        """Whether the small log has lost this key lately."""
        tag = hashed >> PLACE_BITS
        start = self._ghosts_of(hashed % self._buckets, tag)
        at = self._find_byte((tag >> 8).to_bytes(2, "little"), start, start + 2 * GHOSTS)
        if at < 0 or (at - start) & 1 or not tag >> 8:
            return False
        self.mapping[at : at + 2] = bytes(2)
        return True

    def _ghosts_of(self, bucket: int, tag: int) -> int:
        """Where the ghosts of a key are, whichever of its two buckets this is."""
        return self._ghosts_at + min(bucket, (tag * _MIX - bucket) % self._buckets) * WAYS * 2

    def _make_room(self, log: _Log, size: int) -> tuple[int, int]:
        """The log's head, and the number of the word there, with room for ``size`` bytes in one piece."""
        words = self.words
        if not self._is_sane(log):
            self.clear()
        rewrites = _REWRITES_MAX
        while (found := self._fit(log, size, log.limit)) is None:
            if log is self._main:
                words[Word.FULL] = 1
            while words[log.head] + 2 * size - words[log.tail] > log.limit:  # twice: its end may be in the way
                rewrites -= self._pass(log, may_rewrite=rewrites > 0)
        return found

    def _fit(self, log: _Log, size: int, limit: int) -> tuple[int, int] | None:
        """The head, if there is room at it within ``limit``; fills up the log's end if it is in the way."""
        words = self.words
        head = words[log.head]
        free = limit - head + words[log.tail]
        at = head % log.size
        to_end = log.size - at
        if size <= to_end:
            return (head, (log.at + at) >> 3) if size <= free <= limit else None
        if not to_end + size <= free <= limit:
            return None
        words[(log.at + at) >> 3] = FILLER | to_end
        words[log.head] = head + to_end
        return head + to_end, log.at >> 3

    def _pass(self, log: _Log, *, may_rewrite: bool) -> int:
        """Move the tail past one record, and the record on if it is worth it; returns how many were moved on."""
        words = self.words
        tail = words[log.tail]
        at = tail % log.size
        place = (log.at + at) >> 3
        first = words[place]
        size = first & LENGTH_MASK if first >= FILLER else RECORD_HEADER + ((first & LENGTH_MASK) + 7 & ~7)
        if not 0 < size <= min(words[log.head] - tail, log.size - at):
            self.clear()  # a log that cannot be walked cannot be kept
            return 0
        moved = 0
        if first < FILLER:
            slot = first >> SLOT_BITS
            if self._is_dead(place, first):
                words[log.dead] = max(0, words[log.dead] - size)
            elif self._is_over(place):
                self._drop(slot)
                count_up(words, Word.EXPIRED)
            elif may_rewrite and (target := self._target(log, slot)) is not None:
                moved = self._move_on(log, target, slot, size)
            else:
                self._evict(slot)
        if words[log.tail] == tail:  # else the other log could not be walked, and everything was cleared
            words[log.tail] = tail + size
        return moved

    def _is_dead(self, place: int, first: int) -> bool:
        """Whether the record at a place, whose first word is given, is that of no item any more."""
        slot = first >> SLOT_BITS
        return slot >= self.geometry.slots or self.words[self.entries_at + slot] & PLACE_MASK != place

    def _is_over(self, place: int) -> bool:
        """Whether the time of the record at a place is up."""
        body = (place << 3) + self.body_at
        try:
            if not self.mapping[body] & EXPIRES:
                return False
            return bool(TIME.unpack_from(self.mapping, key_end(self.mapping, body + 1))[0] <= self._clock())
        except (struct.error, IndexError):
            return True  # it is damaged, and has no time

    def _count_dead(self, place: int) -> None:
        """Take notice that the record at a place is that of no item any more."""
        log = self._main if place >= self._main_place else self._small
        try:
            size = record_size(self.words[place] & LENGTH_MASK)
        except IndexError:
            return  # a damaged entry, which pointed nowhere
        self.words[log.dead] = min(self.words[log.dead] + size, log.size)

    def _is_much_dead(self, log: _Log) -> bool:
        """Whether a log makes room by what is dead in it, so that nothing alive need be evicted."""
        return self.words[log.dead] * _DEAD_SHARE > log.size

    def _has_free_tail(self, log: _Log) -> bool:
        """Whether what stands at a log's tail is of no use to anybody."""
        tail = self.words[log.tail]
        if tail == self.words[log.head]:
            return True
        place = (log.at + tail % log.size) >> 3
        first = self.words[place]
        return first >= FILLER or self._is_dead(place, first) or self._is_over(place)

    def _target(self, log: _Log, slot: int) -> _Log | None:
        """Which log the record of a slot goes to when the tail of ``log`` comes to it; None if it is evicted."""
        if self.mapping[self.frequencies_at + slot] > (1 if log is self._small else 0):
            return self._main
        if log is self._small and (self._is_much_dead(self._main) or self._has_free_tail(self._main)):
            return self._main
        return log if self._is_much_dead(log) else None

    def _move_on(self, log: _Log, target: _Log, slot: int, size: int) -> int:
        """Copy the record of a slot to the head of ``target``, or evict it if there is no room; how many were moved."""
        words, mapping = self.words, self.mapping
        entry = words[self.entries_at + slot]
        if target is not log:
            found: tuple[int, int] | None = self._make_room(target, size)
            if words[self.entries_at + slot] != entry:
                return 0
        else:
            found = self._fit(target, size, target.size) if size <= target.size - target.limit else None
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


def _reserve(size: int) -> int:
    """Bytes of a log of this size that are kept free."""
    return max(size // _RESERVE_SHARE, min(size // _RESERVE_SHARE_MAX, _RESERVE_MIN)) & ~7
