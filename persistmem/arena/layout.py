"""The arena's fixed part: header and commit slots, byte for byte (``docs/format.md``).

The only module that knows an offset. It turns bytes into checked values and back; it neither reads nor writes memory.
"""

import struct
import sys
from typing import NamedTuple, NewType
from uuid import UUID

import xxhash

from persistmem.errors import ArgumentError, CorruptError, NewerFormatError, SizeError
from persistmem.sizes import format_size

Offset = NewType("Offset", int)
"""A place in an arena, in bytes from its start."""

Checksum = NewType("Checksum", int)
"""XXH3-64 (seed 0) of some bytes."""

MAGIC = b"PERSISTM"
FORMAT_VERSION = 1
KNOWN_FEATURES = 0

HEADER_OFFSET = Offset(0)
HEADER_SIZE = 256
SLOT_OFFSETS = (Offset(256), Offset(320))
SLOT_SIZE = 64
SLOT_CHECKSUM_AT = 56
"""Where in a slot its last word is: the 8-byte store to it publishes the slot."""
DATA_OFFSET = Offset(4096)
"""First byte that extents may use."""

EXTENT_ALIGNMENT = 64
BUFFER_ALIGNMENT = 4096
CHUNK_SIZE = 1 << 20
"""An extent has one checksum for each of its chunks."""

ARENA_SIZE_MIN = 64 << 10
ARENA_SIZE_MAX = 1 << 46
KERNEL_BYTES_MAX = 64
"""Longest kernel release, in bytes: what ``uname`` can return."""

SEQUENCE_MAX = (1 << 63) - 1
"""Last commit that there can be; at one each nanosecond, after 292 years."""

EMPTY_SLOT = Checksum(0)
"""The last word of a slot that is empty, or being written."""

# magic, format version, header size, features, arena size, uuid, created (ns since 1970), kernel release
_HEADER = struct.Struct("<8sIIQQ16sQ64s128x")
# sequence, catalogue offset, catalogue length, catalogue checksum
_SLOT = struct.Struct("<QQQQ24x")
_WORD = struct.Struct("<Q")

if sys.byteorder != "little":
    raise ImportError("persistmem: arenas are little-endian, and this machine is not (x86-64 and arm64 are supported)")


class Header(NamedTuple):
    """What is written once, when the arena is made."""

    size: int
    uuid: UUID
    created_ns: int
    kernel: str


class Slot(NamedTuple):
    """One commit: which catalogue was published, as the how-manieth."""

    sequence: int
    catalogue_offset: Offset
    catalogue_length: int
    catalogue_checksum: Checksum

    @property
    def parity(self) -> int:
        """Which of the two slots this commit lives in: 0 or 1."""
        return self.sequence & 1


def checksum(data: bytes | bytearray | memoryview) -> Checksum:
    """XXH3-64 of ``data``."""
    return Checksum(xxhash.xxh3_64_intdigest(data))


def align(offset: int, alignment: int) -> int:
    """``offset`` rounded up to a multiple of ``alignment``, a power of two."""
    return (offset + alignment - 1) & -alignment


def check_arena_size(size: int) -> int:
    """Return ``size`` if an arena can have it.

    Raises:
        SizeError: it is below 64 KiB, above 64 TiB, or not a multiple of the page size.
    """
    if not ARENA_SIZE_MIN <= size <= ARENA_SIZE_MAX:
        least, most = format_size(ARENA_SIZE_MIN), format_size(ARENA_SIZE_MAX)
        raise SizeError(f"arena size: expected {least} to {most}, found {format_size(size)}")
    if size % BUFFER_ALIGNMENT:
        raise SizeError(
            f"arena size: expected a multiple of {BUFFER_ALIGNMENT} bytes, found {size}; "
            f"{align(size, BUFFER_ALIGNMENT)} is the next"
        )
    return size


def check_kernel(release: str) -> str:
    """Return ``release`` if it fits where an arena records a kernel.

    Raises:
        ArgumentError: it has more than 64 bytes, or a NUL.
    """
    if len(release.encode()) > KERNEL_BYTES_MAX or "\0" in release:
        raise ArgumentError(f"kernel release {release[:80]!r}: expected at most {KERNEL_BYTES_MAX} bytes, no NUL")
    return release


def encode_header(header: Header) -> bytes:
    """The header's 256 bytes."""
    fields = _HEADER.pack(
        MAGIC, FORMAT_VERSION, HEADER_SIZE, KNOWN_FEATURES, header.size, header.uuid.bytes, header.created_ns,
        header.kernel.encode(),
    )  # fmt: skip
    return fields + _WORD.pack(checksum(fields))


def decode_header(data: bytes, memory_size: int) -> Header:
    """Read a header from the first 256 bytes of a memory of ``memory_size`` bytes.

    Its place, its length, its first 24 bytes and its checksum stay the same in every version of the format.

    Raises:
        NewerFormatError: a sound header of a version, or with a feature, that this code does not know.
        CorruptError: anything else that is not a sound header.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise CorruptError("not an arena: its first 8 bytes are not the magic number")
    magic_to_kernel, (stored,) = data[: _HEADER.size], _WORD.unpack_from(data, _HEADER.size)
    if checksum(magic_to_kernel) != stored:
        raise CorruptError("arena header: its checksum does not match; the arena cannot be trusted")
    _, version, header_size, features, size, uuid, created_ns, kernel = _HEADER.unpack(magic_to_kernel)
    if version > FORMAT_VERSION or features & ~KNOWN_FEATURES:
        raise NewerFormatError(
            f"the arena has format version {version}, features {features:#x}; this persistmem knows version up to "
            f"{FORMAT_VERSION}, features {KNOWN_FEATURES:#x}. It was not touched; use the persistmem that wrote it"
        )
    if version != FORMAT_VERSION or header_size != HEADER_SIZE:
        raise CorruptError(f"arena header: version {version} with a header of {header_size} bytes never existed")
    if size != memory_size:
        raise CorruptError(f"arena header: it says {size} bytes, the memory has {memory_size}")
    try:
        release = kernel.rstrip(b"\0").decode()
    except UnicodeDecodeError as error:
        raise CorruptError("arena header: the kernel release is not UTF-8") from error
    return Header(size, UUID(bytes=uuid), created_ns, release)


def encode_slot(slot: Slot) -> tuple[bytes, Checksum]:
    """A slot's bytes up to its last word, and that word, which publishes it.

    Raises:
        CorruptError: no commit can follow the one before it.
    """
    if slot.sequence > SEQUENCE_MAX:
        raise CorruptError(f"commit slots: no commit follows number {SEQUENCE_MAX}, which no application can reach")
    body = _SLOT.pack(slot.sequence, slot.catalogue_offset, slot.catalogue_length, slot.catalogue_checksum)
    return body, _slot_checksum(body)


def decode_slot(data: bytes, index: int, memory_size: int) -> Slot | None:
    """Read slot ``index`` from its 64 bytes; None if it is empty or was being written when its writer died.

    Raises:
        CorruptError: it is neither that nor a sound slot.
    """
    body, (stored,) = data[:SLOT_CHECKSUM_AT], _WORD.unpack_from(data, SLOT_CHECKSUM_AT)
    if stored == EMPTY_SLOT:
        return None
    if _slot_checksum(body) != stored:
        raise CorruptError(f"commit slot {index}: its checksum does not match")
    sequence, offset, length, catalogue_checksum = _SLOT.unpack(body)
    slot = Slot(sequence, Offset(offset), length, Checksum(catalogue_checksum))
    placed = offset % EXTENT_ALIGNMENT == 0 and DATA_OFFSET <= offset <= offset + length <= memory_size
    if not placed or slot.parity != index or sequence > SEQUENCE_MAX:
        raise CorruptError(f"commit slot {index}: sequence {sequence} at {offset}, {length} bytes, is impossible")
    return slot


def _slot_checksum(body: bytes) -> Checksum:
    # Zero means "empty": the one hash in 2**64 that is zero is stored as one.
    return Checksum(checksum(body) or 1)
