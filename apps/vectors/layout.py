"""Every byte of the region: header, directory, records, matrix. Knows offsets and checksums; reads and writes nothing.

All numbers are little-endian. A slot is a place for one text: a record, and a row of the matrix.
"""

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
import xxhash

from persistmem.errors import ArgumentError, CorruptError, NewerFormatError, SizeError

MAGIC: Final = b"PMVECTOR"
FORMAT: Final = 1

_HEADER = struct.Struct("<8sIIII32sQQ")  # magic, format, dimensions, entries, slots, model, created_ns, checksum
HEADER_SIZE: Final = _HEADER.size
_PAGE: Final = 4096

WORD: Final = 8
EMPTY: Final = 0x7465_6B61_6E5F_6F6E
"""The word of an entry that has no text. Neither zeros nor ones, so that memory that was wiped is told from it."""
SLOT_BITS: Final = 32
SLOT_MASK: Final = (1 << SLOT_BITS) - 1

RECORD_SIZE: Final = 320
RECORD: Final = np.dtype(
    [
        ("checksum", "<u8"),  # XXH3-64 of all that follows, text included; its low half is the tag in the entry's word
        ("vector_checksum", "<u8"),  # XXH3-64 of the row of the matrix
        ("name_hash", "<u8"),  # XXH3-64 of the name
        ("written_ns", "<u8"),  # since 1970
        ("entry", "<u4"),
        ("name_size", "<u2"),
        ("text_size", "<u2"),
        ("name_and_text", f"S{RECORD_SIZE - 40}"),
    ]
)
_HEAD = struct.Struct("<QQQQIHH")
TEXT_MAX: Final = RECORD_SIZE - _HEAD.size
"""Most bytes of UTF-8 that a name and its text have together."""

SPARE: Final = 1
"""Slots beyond what there are entries: a text is replaced by writing the new one elsewhere."""
_DIMENSIONS_MAX: Final = 1 << 16
_ENTRIES_MAX: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a table was made for, from which every offset follows."""

    dimensions: int
    entries: int
    """How many texts there can be."""
    model: str
    """What made the vectors; up to 32 bytes of ASCII."""
    created_ns: int

    @property
    def slots(self) -> int:
        """Places for texts."""
        return self.entries + SPARE

    @property
    def directory_at(self) -> int:
        """One word for each entry: the slot in the low half, the tag of its record in the high half; or EMPTY."""
        return _PAGE

    @property
    def records_at(self) -> int:
        """One record for each slot."""
        return self.directory_at + _pages(self.entries * WORD)

    @property
    def matrix_at(self) -> int:
        """One row of float32 for each slot."""
        return self.records_at + _pages(self.slots * RECORD_SIZE)

    @property
    def row_size(self) -> int:
        """Bytes of a row of the matrix."""
        return 4 * self.dimensions

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        return self.matrix_at + _pages(self.slots * self.row_size)


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a text, its vector apart."""

    entry: int
    name: str
    text: str
    written_ns: int
    vector_checksum: int


def encode_header(geometry: Geometry) -> bytes:
    """Pack the header; its last word makes it valid.

    Raises:
        SizeError: there can be no such table.
    """
    if not 0 < geometry.dimensions <= _DIMENSIONS_MAX or not 0 < geometry.entries <= _ENTRIES_MAX:
        raise SizeError(f"a table of {geometry.entries} texts x {geometry.dimensions} dimensions cannot be")
    fields = (geometry.dimensions, geometry.entries, geometry.slots, geometry.model.encode("ascii"))
    unsummed = _HEADER.pack(MAGIC, FORMAT, *fields, geometry.created_ns, 0)[:-WORD]
    return unsummed + xxhash.xxh3_64_intdigest(unsummed).to_bytes(WORD, "little")


def decode_header(data: bytes, size: int) -> Geometry | None:
    """Check and unpack the header of a region of ``size`` bytes; None if there is none yet.

    Raises:
        CorruptError: it is damaged, or of something else.
        NewerFormatError: it is of a newer release.
    """
    if not any(data[-WORD:]):
        return None
    magic, version, dimensions, entries, slots, model, created, checksum = _HEADER.unpack(data)
    if magic != MAGIC or xxhash.xxh3_64_intdigest(data[:-WORD]) != checksum:
        raise CorruptError("vectors: expected a table's header, found something else; remove the arena and build anew")
    if version != FORMAT:
        raise NewerFormatError(f"vectors: expected format {FORMAT}, found {version}; use the release that wrote it")
    geometry = Geometry(dimensions, entries, model.rstrip(b"\0").decode("ascii", "replace"), created)
    is_possible = 0 < dimensions <= _DIMENSIONS_MAX and 0 < entries <= _ENTRIES_MAX
    if not is_possible or slots != geometry.slots or geometry.size != size:
        raise CorruptError(f"vectors: the header does not fit a region of {size} bytes; remove the arena")
    return geometry


def encode_record(record: Record) -> bytes:
    """Pack a record.

    Raises:
        SizeError: name or text is empty, or they are too long.
        ArgumentError: they are not printable.
    """
    name, text = record.name.encode(), record.text.encode()
    if not name or not text or len(name) + len(text) > TEXT_MAX:
        raise SizeError(
            f"{record.name[:40]!r}: name and text have {len(name)} and {len(text)} bytes; "
            f"neither may be empty, and together they may have {TEXT_MAX}"
        )
    if not (record.name.isprintable() and record.text.isprintable()):
        raise ArgumentError(f"{record.name[:40]!r}: name or text has a control character; use one line of plain text")
    sizes = (len(name), len(text))
    unsummed = _HEAD.pack(0, record.vector_checksum, name_hash(name), record.written_ns, record.entry, *sizes)[WORD:]
    body = unsummed + name + text
    return xxhash.xxh3_64_intdigest(body).to_bytes(WORD, "little") + body


def decode_record(data: bytes | memoryview, entry: int, tag: int) -> Record:
    """Check and unpack the record of ``entry``, whose word has ``tag``.

    Raises:
        CorruptError: it is not what was written for it.
    """
    checksum, vector_checksum, _, written_ns, found, name_size, text_size = _HEAD.unpack_from(data)
    end = _HEAD.size + name_size + text_size
    if end > RECORD_SIZE or checksum & SLOT_MASK != tag or xxhash.xxh3_64_intdigest(data[WORD:end]) != checksum:
        raise CorruptError("its record does not match its checksum")
    try:
        name, text = (str(data[start:stop], "utf-8") for start, stop in _spans(name_size, end))
    except UnicodeDecodeError as error:
        raise CorruptError(f"its text is not UTF-8 ({error.reason})") from error
    if found != entry or not (name.isprintable() and text.isprintable()):
        raise CorruptError("its record is another's, or holds control characters")
    return Record(entry, name, text, written_ns, vector_checksum)


def name_hash(name: bytes) -> int:
    """What tells names apart."""
    return xxhash.xxh3_64_intdigest(name)


def vector_checksum(row: bytes | memoryview) -> int:
    """The checksum of a row of the matrix."""
    return xxhash.xxh3_64_intdigest(row)


def word_of(slot: int, record: bytes) -> int:
    """The directory's word that publishes a packed record in ``slot``."""
    return slot | int.from_bytes(record[:4], "little") << SLOT_BITS


def _spans(name_size: int, end: int) -> tuple[tuple[int, int], tuple[int, int]]:
    middle = _HEAD.size + name_size
    return (_HEAD.size, middle), (middle, end)


def _pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE
