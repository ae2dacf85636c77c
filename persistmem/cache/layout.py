"""The cache's bytes in its region: header, words, index, logs (``docs/cache-format.md``).

The only module that knows an offset. It turns bytes into checked values and back; it neither reads nor writes memory.
All offsets are from the region's start, in bytes unless they are called a word's number.
"""

import struct
from dataclasses import dataclass
from typing import Final, Self

import xxhash

from persistmem.errors import CorruptError, NewerFormatError, SizeError
from persistmem.sizes import format_size

MAGIC: Final = b"PMCACHE\0"
FORMAT_VERSION: Final = 1

WAYS: Final = 16
"""Slots in a bucket."""
GHOSTS: Final = 9
"""Ghosts that a bucket remembers: about as many as it has items."""
SIZE_MIN: Final = 32 << 10
SIZE_MAX: Final = 1 << 42
KEY_BYTES_MAX: Final = 32 << 10
RECORD_HEADER: Final = 16
"""Bytes before each record's body: the word with slot and length, and the checksum."""

FREQUENCY_MAX: Final = 3
COUNTER_ROWS: Final = 64
"""Processes that count their operations each for itself."""
COUNTERS: Final = 8
"""Words in such a row."""


class Word:
    """Numbers of the words that change, each by one aligned 8-byte store."""

    WANTED: Final = 512
    """Another process waits for the writer's lock, which this one keeps."""
    WRITING: Final = 513
    """Set while somebody may be writing; still set when the lock is free, its holder died."""
    ITEMS: Final = 514
    FULL: Final = 515
    """Whether the main log was full since the cache was cleared: then what is new goes through the small one."""
    SMALL_HEAD: Final = 520
    """Bytes ever written to the log; its place there is this modulo its size."""
    SMALL_TAIL: Final = 521
    SMALL_DEAD: Final = 522
    """Bytes of the log that hold records of no item any more: a count that a killed writer may leave a little low."""
    MAIN_HEAD: Final = 524
    MAIN_TAIL: Final = 525
    MAIN_DEAD: Final = 526
    EVICTED: Final = 530
    """Items that had to make room, ever."""
    EXPIRED: Final = 531
    """Items whose time was up when their memory was needed, ever."""
    DAMAGED: Final = 532
    """Records that failed their check, ever."""
    GENERATION: Final = 533
    """How often it was cleared."""
    PAST: Final = 536
    """First of the row of counters of processes that are gone."""


class Counter:
    """Places in a row of counters."""

    HITS: Final = 0
    MISSES: Final = 1
    SETS: Final = 2
    DELETES: Final = 3
    ALL: Final = (HITS, MISSES, SETS, DELETES)


_COUNTERS_AT: Final = 8192
_INDEX_AT: Final = _COUNTERS_AT + COUNTER_ROWS * COUNTERS * 8
_PAGE: Final = 4096
_SMALL_SHARE: Final = 10
"""The small log's part of both: one in ten, as S3-FIFO has it (Yang et al., SOSP 2023)."""
_BYTES_PER_SLOT: Final = 128
_BUCKETS_MAX: Final = (1 << 28) - 1
"""A slot's number has 32 bits."""
_LOAD: Final = 0.6
"""Part of the slots that are taken when there are as many items as were asked for."""

# magic, format version, 0, region size, buckets, small log's size, main log's size, hash seed, created (ns), checksum
_HEADER: Final = struct.Struct("<8sIIQQQQQQQ")
HEADER_SIZE: Final = _HEADER.size


@dataclass(frozen=True, slots=True)
class Geometry:
    """What lies where; fixed when the cache is made."""

    size: int
    buckets: int
    small_size: int
    main_size: int
    seed: int
    """For hashing keys: so that nobody can choose keys that share a bucket."""
    created_ns: int

    @classmethod
    def plan(cls, size: int, items: int | None, seed: int, created_ns: int) -> Self:
        """Lay out ``size`` bytes for that many items; by default for items of some 80 bytes and up.

        Raises:
            SizeError: it is too small, or too large, or leaves less than half for the items themselves.
        """
        if not SIZE_MIN <= size <= SIZE_MAX:
            raise SizeError(
                f"cache: expected {format_size(SIZE_MIN)} to {format_size(SIZE_MAX)}, found {format_size(size)}"
            )
        slots = int(items / _LOAD) if items is not None else size // _BYTES_PER_SLOT
        buckets = min(max(4, -(-slots // WAYS)), _BUCKETS_MAX)
        if size - _logs_at(buckets) < size // 2:
            raise SizeError(
                f"cache: an index for {items} items leaves less than half of {format_size(size)} for the items; make it"
                " larger, or for fewer"
            )
        return cls(size, buckets, *_logs(size, buckets), seed, created_ns)

    @property
    def slots(self) -> int:
        """How many items the index can hold."""
        return self.buckets * WAYS

    @property
    def counters_at(self) -> int:
        """Word number of the first row of counters."""
        return _COUNTERS_AT // 8

    @property
    def tags_at(self) -> int:
        """One byte for each slot: part of its key's hash, and 0 if it was never used."""
        return _INDEX_AT

    @property
    def frequencies_at(self) -> int:
        """One byte for each slot: how often it was read lately, up to 3."""
        return _INDEX_AT + self.slots

    @property
    def ghosts_at(self) -> int:
        """Two bytes for each slot, but each bucket uses 18: parts of hashes of keys that the small log has lost."""
        return _INDEX_AT + 2 * self.slots

    @property
    def entries_at(self) -> int:
        """One word for each slot: its key's tag, and the word number of its record; 0 if it is empty."""
        return _INDEX_AT + 4 * self.slots

    @property
    def small_at(self) -> int:
        """The small log, for what is new."""
        return _logs_at(self.buckets)

    @property
    def main_at(self) -> int:
        """The main log, for what was read again."""
        return self.small_at + self.small_size

    @property
    def item_max(self) -> int:
        """Most bytes of one record, its header included."""
        return min(self.main_size // 4, LENGTH_MASK)


def _logs(size: int, buckets: int) -> tuple[int, int]:
    """Sizes of the small and of the main log."""
    room = (size - _logs_at(buckets)) // 8
    small = room // _SMALL_SHARE
    return small * 8, (room - small) * 8


def _logs_at(buckets: int) -> int:
    return -(-(_INDEX_AT + buckets * WAYS * 12) // _PAGE) * _PAGE


ROWS_AFTER_LOCK: Final = 1
"""How far after the writer's lock the locks of the counters' rows begin."""


def writer_lock_at(region: int) -> int:
    """Return the byte that the writer of the cache at this offset of an arena locks: far beyond every arena's end."""
    return (1 << 62) + region


def encode_header(geometry: Geometry) -> bytes:
    """Pack the header."""
    fields = (
        *(MAGIC, FORMAT_VERSION, 0, geometry.size, geometry.buckets, geometry.small_size, geometry.main_size),
        *(geometry.seed, geometry.created_ns),
    )
    unsummed = _HEADER.pack(*fields, 0)[:-8]
    return unsummed + xxhash.xxh3_64_intdigest(unsummed).to_bytes(8, "little")


def decode_header(data: bytes, size: int) -> Geometry | None:
    """Check and unpack the header of a region of ``size`` bytes; None if there is none yet.

    Raises:
        CorruptError: it is damaged, or of something else.
        NewerFormatError: it is of a newer persistmem.
    """
    if not any(data[-8:]):
        return None
    magic, version, _, found_size, buckets, small, main, seed, created, checksum = _HEADER.unpack(data)
    if magic != MAGIC or xxhash.xxh3_64_intdigest(data[:-8]) != checksum:
        raise CorruptError("cache: expected a cache's header, found something else; remove the region to make it anew")
    if version != FORMAT_VERSION:
        raise NewerFormatError(f"cache: expected format {FORMAT_VERSION}, found {version}; upgrade persistmem")
    geometry = Geometry(size, buckets, small, main, seed, created)
    is_possible = 4 <= buckets <= _BUCKETS_MAX and _logs_at(buckets) < size
    if found_size != size or not is_possible or (small, main) != _logs(size, buckets):
        raise CorruptError(f"cache: its header does not fit a region of {size} bytes; remove the region")
    return geometry


# An entry: the tag in the upper 24 bits, the number of the record's first word in the lower 40.
PLACE_BITS: Final = 40
PLACE_MASK: Final = (1 << PLACE_BITS) - 1
# A record's first word: its slot in the upper 32 bits, its body's length in the lower 32. Its second: the checksum,
# which is the XXH3-64 of the value, with that of what stands before the value as its seed.
LENGTH_MASK: Final = (1 << 32) - 1
SLOT_BITS: Final = 32
FILLER: Final = LENGTH_MASK << SLOT_BITS
"""First word, but for the length, of what fills a log's end where no record fits; the length is all of it."""


def record_size(length: int) -> int:
    """Bytes that a record takes in a log, with header and padding."""
    return RECORD_HEADER + (length + 7 & ~7)
