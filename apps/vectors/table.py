"""Texts with their vectors in a region, changed one by one while others read. Knows nothing of arenas or models.

A text is written to a slot that nobody refers to; one aligned 8-byte store, of its entry's word in the directory, then
publishes it, in place of the old one if there was one. The directory is all that says what is there: no list of free
slots and no index could disagree with it, and a writer that dies leaves nothing to clean up.
"""

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from apps.vectors.layout import (
    EMPTY,
    HEADER_SIZE,
    RECORD,
    RECORD_SIZE,
    SLOT_BITS,
    SLOT_MASK,
    WORD,
    Geometry,
    Record,
    decode_record,
    encode_header,
    encode_record,
    name_hash,
    vector_checksum,
    word_of,
)
from persistmem.errors import ArenaFullError, BusyError, CorruptError, SizeError

if TYPE_CHECKING:
    from persistmem.cache.words import Words

Vector = npt.NDArray[np.float32]
Directory = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.intp]

_PRODUCT_MAX: Final = 1.01
_TRIES: Final = 1000


@dataclass(frozen=True, slots=True)
class Row:
    """A text and its vector, copied out and checked."""

    record: Record
    vector: Vector


@dataclass(frozen=True, slots=True)
class Damage:
    """An entry that fails its check."""

    entry: int
    record: Record | None
    """The text, if that is sound: the vector can be computed from it again."""
    reason: str

    def __str__(self) -> str:
        name = f"entry {self.entry}" if self.record is None else f"{self.record.name!r} (entry {self.entry})"
        return f"{name}: {self.reason}"


class Table:
    """The texts of one region. Any number may read; who writes holds a lock that keeps other writers out."""

    def __init__(self, geometry: Geometry, mapping: mmap.mmap, base: int, words: "Words") -> None:
        """Use the region at byte ``base`` of ``mapping``; ``words`` are the same memory, from its first byte on."""
        self.geometry = geometry
        self._mapping = mapping
        self._base = base
        self._words = words
        self._first_word = geometry.directory_at // WORD
        self._shared: Directory = np.frombuffer(mapping, "<u8", geometry.entries, base + geometry.directory_at)
        self._records = np.frombuffer(mapping, RECORD, geometry.slots, base + geometry.records_at)
        floats = np.frombuffer(mapping, "<f4", geometry.slots * geometry.dimensions, base + geometry.matrix_at)
        self.matrix: Vector = floats.reshape(geometry.slots, geometry.dimensions)
        """A row for each slot, where it lies: nothing is copied."""
        for view in (self._shared, self._records, self.matrix):
            view.flags.writeable = False

    def format(self) -> None:
        """Make it an empty table, in memory that nobody uses yet; the last store makes it one."""
        self._write(self.geometry.directory_at, EMPTY.to_bytes(WORD, "little") * self.geometry.entries)
        header = encode_header(self.geometry)
        self._write(0, header[:-WORD])
        self._words[HEADER_SIZE // WORD - 1] = int.from_bytes(header[-WORD:], "little")

    def directory(self) -> Directory:
        """All words of the directory, as they are at this moment."""
        return self._shared.copy()

    def __len__(self) -> int:
        return int(np.count_nonzero(self._shared != EMPTY))

    def put(self, rows: Sequence[tuple[str, str, Vector]], now_ns: int) -> list[bool]:
        """Add texts by name, or replace those of the same name; each of them is there, whole, or not yet.

        Cost: one look at every name, and then some microseconds for each text.

        Args:
            rows: names, texts and vectors.
            now_ns: since 1970.

        Returns:
            For each text whether it replaced one that was there.

        Raises:
            SizeError, ArgumentError: a text is too long, or not printable; a vector has another length.
            ArenaFullError: there is no room for all of them.
            Nothing was written then.
        """
        directory = self.directory()
        hashes = [name_hash(name.encode()) for name, _, _ in rows]
        entry_of = self._entries_of(directory, hashes)
        replaced = [hashed in entry_of for hashed in hashes]
        missing = dict.fromkeys(hashed for hashed in hashes if hashed not in entry_of)
        empty = np.flatnonzero(directory == EMPTY)
        if len(missing) > len(empty):
            raise ArenaFullError(
                f"vectors: there is room for {len(empty):,} more texts, not for {len(missing):,}; remove some, or "
                f"remove the arena and build it with a larger --capacity than {self.geometry.entries:,}"
            )
        entry_of.update(zip(missing, empty.tolist(), strict=False))
        packed = [
            self._pack(entry_of[hashed], name, text, vector, now_ns)
            for hashed, (name, text, vector) in zip(hashes, rows, strict=True)
        ]
        free = self._free_slots(directory)
        for entry, record, row in packed:
            slot = free.pop()
            self._write(self.geometry.records_at + slot * RECORD_SIZE, record)
            self._write(self.geometry.matrix_at + slot * self.geometry.row_size, row)
            old = int(directory[entry])
            word = word_of(slot, record)
            self._words[self._first_word + entry] = word
            directory[entry] = word
            if (freed := old & SLOT_MASK) < self.geometry.slots:
                free.append(freed)
        return replaced

    def remove(self, name: str) -> bool:
        """Remove a text; False if there is none of that name."""
        found = self._entries_of(self.directory(), [name_hash(name.encode())])
        for entry in found.values():
            self.clear(entry)
        return bool(found)

    def clear(self, entry: int) -> None:
        """Make an entry empty."""
        self._words[self._first_word + entry] = EMPTY

    def read(self, entry: int) -> Row | Damage | None:
        """Copy out and check what an entry has at this moment; None if it is empty.

        Raises:
            BusyError: it is replaced faster than it can be read.
        """
        for _ in range(_TRIES):
            word = int(self._shared[entry])
            if word == EMPTY:
                return None
            found = self._check(entry, word)
            # As long as a word stands, nobody writes to the slot it names.
            if not isinstance(found, Damage) or int(self._shared[entry]) == word:
                return found
        raise BusyError(f"vectors: entry {entry} is replaced faster than it can be read; try again")

    def entries(self) -> Iterator[Row | Damage]:
        """Every text, copied out and checked, one after the other."""
        for entry in np.flatnonzero(self._shared != EMPTY).tolist():
            if (found := self.read(entry)) is not None:
                yield found

    def scores(self, directory: Directory, query: Vector) -> Vector:
        """The product of each entry's vector and ``query``; -inf for an empty entry.

        What lies in the slots is taken as it is. What cannot be the product of vectors of length 1 is inf instead, so
        that it is looked at.
        """
        scores = np.full(len(directory), -np.inf, np.float32)
        live = np.flatnonzero(directory != EMPTY)
        slots = directory[live] & np.uint64(SLOT_MASK)
        possible = slots < self.geometry.slots
        scores[live[~possible]] = np.inf
        live, slots = live[possible], slots[possible].astype(np.intp)
        with np.errstate(invalid="ignore", over="ignore"):  # damage may be any float
            if 2 * len(slots) > (end := int(slots.max(initial=-1)) + 1):
                found = (self.matrix[:end] @ query)[slots]  # in one pass over the memory, where it lies
            else:
                found = self.matrix[slots] @ query
            scores[live] = np.where(np.abs(found) <= _PRODUCT_MAX, found, np.inf)
        return scores

    def _check(self, entry: int, word: int) -> Row | Damage:
        slot = word & SLOT_MASK
        if slot >= self.geometry.slots:
            return Damage(entry, None, "its entry in the directory names no slot; its text is lost")
        start = self._base + self.geometry.records_at + slot * RECORD_SIZE
        row = self._base + self.geometry.matrix_at + slot * self.geometry.row_size
        data = self._mapping[row : row + self.geometry.row_size]
        try:
            record = decode_record(self._mapping[start : start + RECORD_SIZE], entry, word >> SLOT_BITS)
        except CorruptError as error:
            return Damage(entry, None, f"{error}; its text is lost")
        if vector_checksum(data) != record.vector_checksum:
            return Damage(entry, record, "its vector does not match its checksum; it can be computed again")
        return Row(record, np.frombuffer(data, "<f4"))

    def _pack(self, entry: int, name: str, text: str, vector: Vector, now_ns: int) -> tuple[int, bytes, bytes]:
        row = np.ascontiguousarray(vector, "<f4").tobytes()
        if len(row) != self.geometry.row_size:
            raise SizeError(f"{name[:40]!r}: expected a vector of {self.geometry.dimensions}, found {vector.shape}")
        return entry, encode_record(Record(entry, name, text, now_ns, vector_checksum(row))), row

    def _entries_of(self, directory: Directory, hashes: Sequence[int]) -> dict[int, int]:
        """The entries of the names that are there, by their hashes."""
        live, slots = self._live(directory)
        found = self._records["name_hash"][slots]
        # A word that is damaged may name another's slot.
        same = np.isin(found, np.array(hashes, np.uint64)) & (self._records["entry"][slots] == live)
        return {int(found[at]): int(live[at]) for at in np.flatnonzero(same)}

    def _free_slots(self, directory: Directory) -> list[int]:
        """Slots that no entry names, the lowest last."""
        free = np.ones(self.geometry.slots, bool)
        free[self._live(directory)[1]] = False
        return np.flatnonzero(free)[::-1].tolist()  # type: ignore[no-any-return]

    def _live(self, directory: Directory) -> tuple[Numbers, Numbers]:
        """Entries that name a slot, and those slots."""
        slots = directory & np.uint64(SLOT_MASK)  # EMPTY names none
        live = np.flatnonzero(slots < self.geometry.slots)
        return live, slots[live].astype(np.intp)

    def _write(self, at: int, data: bytes) -> None:
        self._mapping[self._base + at : self._base + at + len(data)] = data
