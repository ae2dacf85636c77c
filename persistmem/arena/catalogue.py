"""The catalogue: which snapshots and regions an arena holds, and where. Immutable values, and their msgpack encoding.

Reads and writes no memory. What it decodes is hostile: every length, offset and name is checked here, so that
nobody after has to.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import NamedTuple, Self, TypeVar

import msgpack

from persistmem.arena.layout import (
    CHUNK_SIZE,
    DATA_OFFSET,
    EXTENT_ALIGNMENT,
    KERNEL_BYTES_MAX,
    Checksum,
    Offset,
    align,
)
from persistmem.errors import CorruptError, InvalidNameError
from persistmem.names import check_name

CHECKSUM_SIZE = 8
GENERATION_MAX = (1 << 63) - 1


class Extent(NamedTuple):
    """Immutable bytes in the arena, with the XXH3-64 of each of their chunks of 1 MiB (the last may be shorter)."""

    offset: Offset
    length: int
    checksums: bytes

    @property
    def end(self) -> int:
        """First byte after it."""
        return self.offset + self.length

    def checksum(self, chunk: int) -> Checksum:
        """The checksum of its chunk number ``chunk``."""
        at = chunk * CHECKSUM_SIZE
        return Checksum(int.from_bytes(self.checksums[at : at + CHECKSUM_SIZE], "little"))


class GenerationRecord(NamedTuple):
    """One generation of a snapshot: a document, and the buffers that stand outside it."""

    number: int
    created_ns: int
    kernel: str
    document: Extent
    buffers: tuple[Extent, ...]

    def extents(self) -> Iterator[Extent]:
        """All that it holds."""
        yield self.document
        yield from self.buffers


class RegionRecord(NamedTuple):
    """A named extent of raw memory that keeps its own integrity, so it has no checksum here."""

    offset: Offset
    length: int
    created_ns: int
    kernel: str


class Catalogue(NamedTuple):
    """What one commit published. Generations stand newest first."""

    snapshots: Mapping[str, tuple[GenerationRecord, ...]] = MappingProxyType({})
    regions: Mapping[str, RegionRecord] = MappingProxyType({})

    def next_number(self, name: str) -> int:
        """Number of the next generation of ``name``.

        Raises:
            CorruptError: the last one's number is so large that no application can have reached it.
        """
        kept = self.snapshots.get(name, ())
        last = kept[0].number if kept else 0
        if last == GENERATION_MAX:
            raise CorruptError(f"snapshot {name!r}: no number follows generation {last}; remove it, and take it anew")
        return last + 1

    def with_generation(self, name: str, record: GenerationRecord, keep: int) -> Self:
        """The same with a new generation of ``name``, and only its ``keep`` newest."""
        kept = (record, *self.snapshots.get(name, ()))[:keep]
        return self._replace(snapshots={**self.snapshots, name: kept})

    def with_region(self, name: str, record: RegionRecord) -> Self:
        """The same with region ``name`` put in or replaced."""
        return self._replace(regions={**self.regions, name: record})

    def without(self, name: str) -> Self:
        """The same without the snapshot ``name`` and without the region ``name``."""
        return self._replace(
            snapshots={n: s for n, s in self.snapshots.items() if n != name},
            regions={n: r for n, r in self.regions.items() if n != name},
        )

    def extents(self) -> Iterator[Extent]:
        """Every extent that it points at; one that generations share comes more than once."""
        for generations in self.snapshots.values():
            for generation in generations:
                yield from generation.extents()

    def spans(self) -> Iterator[tuple[int, int]]:
        """Start and end of everything that it points at; shared extents come more than once."""
        for extent in self.extents():
            yield extent.offset, extent.end
        for region in self.regions.values():
            yield region.offset, region.offset + region.length


def encode_catalogue(catalogue: Catalogue) -> bytes:
    """The catalogue as the msgpack document of ``docs/format.md``."""
    packed: bytes = msgpack.packb(
        [
            {name: [_encode_generation(g) for g in kept] for name, kept in catalogue.snapshots.items()},
            {name: [r.offset, r.length, r.created_ns, r.kernel] for name, r in catalogue.regions.items()},
        ]
    )
    return packed


def decode_catalogue(packed: bytes, arena_size: int) -> Catalogue:
    """Read a catalogue; everything in it lies inside an arena of ``arena_size`` bytes, aligned and apart.

    Raises:
        CorruptError: it is not one.
    """
    try:
        # skip() walks the whole structure before anything is built: an array header that promises more than the bytes
        # hold would otherwise reserve that much memory, once for each level of nesting.
        probe = msgpack.Unpacker(max_buffer_size=len(packed) + 1)
        probe.feed(packed)
        probe.skip()
        document = msgpack.unpackb(packed)
    except (ValueError, msgpack.UnpackException, RecursionError, MemoryError) as error:
        raise CorruptError(f"catalogue: not a msgpack document ({error})") from error
    decoder = _Decoder(arena_size)
    snapshots, regions = decoder.items(document, 2)
    catalogue = Catalogue(
        {
            decoder.name(name, "snapshot"): decoder.generations(name, entries)
            for name, entries in decoder.table(snapshots)
        },
        {decoder.name(name, "region"): decoder.region(entry) for name, entry in decoder.table(regions)},
    )
    _check_apart(catalogue)
    return catalogue


def _encode_generation(record: GenerationRecord) -> list[object]:
    return [
        record.number, record.created_ns, record.kernel,
        _encode_extent(record.document), [_encode_extent(extent) for extent in record.buffers],
    ]  # fmt: skip


def _encode_extent(extent: Extent) -> list[object]:
    return [extent.offset, extent.length, extent.checksums]


_T = TypeVar("_T")


class _Decoder:
    """Turns plain msgpack values into records, and refuses what cannot be."""

    def __init__(self, arena_size: int) -> None:
        self._arena_size = arena_size

    def items(self, value: object, count: int) -> list[object]:
        entries = self._typed(value, list)
        if len(entries) != count:
            raise CorruptError(f"catalogue: expected {count} fields, found {len(entries)}")
        return entries

    def table(self, value: object) -> list[tuple[object, object]]:
        return list(self._typed(value, dict).items())

    def name(self, value: object, what: str) -> str:
        try:
            return check_name(self._typed(value, str), what)
        except InvalidNameError as error:
            raise CorruptError(f"catalogue: {error}") from error

    def generations(self, name: object, value: object) -> tuple[GenerationRecord, ...]:
        records = tuple(self._generation(entry) for entry in self._typed(value, list))
        numbers = [record.number for record in records]
        if not numbers or any(newer <= older for newer, older in pairwise(numbers)):
            raise CorruptError(f"catalogue: generations {numbers} of {name!r} do not descend")
        return records

    def region(self, value: object) -> RegionRecord:
        offset, length, created_ns, kernel = self.items(value, 4)
        checked_offset, checked_length = self._span(offset, length)
        return RegionRecord(checked_offset, checked_length, self._number(created_ns), self._kernel(kernel))

    def _generation(self, value: object) -> GenerationRecord:
        number, created_ns, kernel, document, buffers = self.items(value, 5)
        return GenerationRecord(
            self._number(number, 1),
            self._number(created_ns),
            self._kernel(kernel),
            self._extent(document),
            tuple(self._extent(entry) for entry in self._typed(buffers, list)),
        )

    def _extent(self, value: object) -> Extent:
        offset, length, checksums = self.items(value, 3)
        checked_offset, checked_length = self._span(offset, length)
        checked = self._typed(checksums, bytes)
        chunks = -(-checked_length // CHUNK_SIZE)
        if len(checked) != chunks * CHECKSUM_SIZE:
            raise CorruptError(f"catalogue: {len(checked)} bytes of checksums for {chunks} chunks")
        return Extent(checked_offset, checked_length, checked)

    def _span(self, offset: object, length: object) -> tuple[Offset, int]:
        start, size = self._number(offset, DATA_OFFSET), self._number(length, 1)
        if start % EXTENT_ALIGNMENT or start + size > self._arena_size:
            raise CorruptError(f"catalogue: an extent of {size} bytes at {start}, in {self._arena_size} bytes")
        return Offset(start), size

    def _kernel(self, value: object) -> str:
        release = self._typed(value, str)
        if len(release.encode()) > KERNEL_BYTES_MAX:
            raise CorruptError(f"catalogue: a kernel release of {len(release)} characters")
        return release

    def _number(self, value: object, least: int = 0) -> int:
        number = self._typed(value, int)
        if not least <= number <= GENERATION_MAX:
            raise CorruptError(f"catalogue: expected a number from {least}, found {number}")
        return number

    @staticmethod
    def _typed(value: object, kind: type[_T]) -> _T:
        if type(value) is not kind:
            raise CorruptError(f"catalogue: expected {kind.__name__}, found {type(value).__name__}")
        return value


def _check_apart(catalogue: Catalogue) -> None:
    """Generations may share an extent whole; nothing else may overlap."""
    shared = {(extent.offset, extent.end) for extent in catalogue.extents()}
    regions = [(r.offset, r.offset + r.length) for r in catalogue.regions.values()]
    end = 0
    for start, stop in sorted([*shared, *regions]):
        if start < end:
            raise CorruptError(f"catalogue: extents overlap at {start}")
        end = align(stop, EXTENT_ALIGNMENT)
