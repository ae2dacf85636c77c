"""The bytes of an arena, written out by hand from the format page; and what is refused, untouched."""

import fcntl
import os
import struct
import tempfile
from uuid import UUID

import msgpack
import pytest
import xxhash

from persistmem.arena import Arena
from persistmem.arena.memfd import create_memfd
from persistmem.errors import ArgumentError, CorruptError, ExistsError, NewerFormatError, SizeError

from .support import arena_of, bytes_of, new_memfd, open_arena

GOLDEN_UUID = UUID("a1b2c3d4-e5f6-4711-8899-aabbccddeeff")
CREATED_NS = 1_767_225_600_123_456_789
TAKEN_NS = 1_767_225_601_000_000_000
SIZE = 64 << 10

GOLDEN_HEADER_FIELDS = bytes.fromhex(
    "50455253 4953544d"  # "PERSISTM"
    "01000000 00010000"  # version 1, a header of 256 bytes
    "00000000 00000000"  # features
    "00000100 00000000"  # arena size 65536
    "a1b2c3d4 e5f64711 8899aabb ccddeeff"  # uuid
    "15cd55f5 51728618" + b"7.3.4".ljust(64, b"\0").hex() + bytes(128).hex()  # created: 1767225600123456789
)


def xxh3(data: bytes) -> int:
    return xxhash.xxh3_64_intdigest(data, seed=0)


def with_checksum(fields: bytes) -> bytes:
    return fields + struct.pack("<Q", xxh3(fields))


def slot(sequence: int, offset: int, catalogue: bytes) -> bytes:
    return with_checksum(struct.pack("<QQQQ", sequence, offset, len(catalogue), xxh3(catalogue)) + bytes(24))


def golden_memfd() -> int:
    fd = create_memfd("golden", SIZE)
    Arena.format(fd, kernel="7.3.4", clock=lambda: CREATED_NS, new_uuid=lambda: GOLDEN_UUID)
    return fd


def expect(memory: bytes, pieces: dict[int, bytes]) -> None:
    """The memory is these pieces, and zeros."""
    expected = bytearray(SIZE)
    for offset, piece in pieces.items():
        expected[offset : offset + len(piece)] = piece
    differing = [at for at in range(SIZE) if memory[at] != expected[at]]
    assert not differing, f"{len(differing)} bytes differ, the first at {differing[0]}"


def test_empty_arena_has_the_bytes_of_the_format_page() -> None:
    fd = golden_memfd()
    assert struct.unpack_from("<Q", GOLDEN_HEADER_FIELDS, 48) == (CREATED_NS,)
    empty = bytes.fromhex("92 80 80")  # [{}, {}]
    expect(bytes_of(fd), {0: with_checksum(GOLDEN_HEADER_FIELDS), 320: slot(1, 4096, empty), 4096: empty})
    os.close(fd)


def test_snapshot_with_a_buffer_and_a_region_has_the_bytes_of_the_format_page() -> None:
    fd = golden_memfd()
    with Arena(fd, kernel="7.4", clock=lambda: TAKEN_NS) as arena:
        arena.snapshot("s", {"b": b"\xab" * 5000, "t": (1,)})
        arena.region("r", 100).close()
    document = bytes.fromhex(
        "82"  # a map of two
        "a162 d40e00"  # "b": extension 14, buffer 0
        "a174 d5019101"  # "t": extension 1, a tuple: [1]
    )
    buffer = b"\xab" * 5000
    # The first catalogue stands at 4096; the document after it, the buffer at the next page, the catalogue in between.
    first = msgpack.packb(
        [{"s": [[1, TAKEN_NS, "7.4", [4160, 12, struct.pack("<Q", xxh3(document))],
                 [[8192, 5000, struct.pack("<Q", xxh3(buffer))]]]]}, {}]
    )  # fmt: skip
    second = msgpack.packb([msgpack.unpackb(first)[0], {"r": [16384, 100, TAKEN_NS, "7.4"]}])
    assert len(document) == 12
    first_at, second_at = 4224, 4288
    memory = bytes_of(fd)
    assert memory[first_at : first_at + len(first)] == first
    expect(
        memory,
        {
            0: with_checksum(GOLDEN_HEADER_FIELDS),
            256: slot(2, first_at, first),
            320: slot(3, second_at, second),
            4096: bytes.fromhex("92 80 80"),
            4160: document,
            first_at: first,
            second_at: second,
            8192: buffer,
        },
    )
    os.close(fd)


def test_arena_tells_what_its_header_says() -> None:
    fd = golden_memfd()
    with Arena(fd, kernel="7.4") as arena:
        assert (arena.uuid, arena.size, arena.created_by) == (GOLDEN_UUID, SIZE, "7.3.4")
        assert arena.created.isoformat(timespec="milliseconds") == "2026-01-01T00:00:00.123+00:00"
        assert str(arena.origin) == "reattached on kernel 7.4"
    os.close(fd)


@pytest.mark.parametrize(
    ("at", "value"),
    [(8, struct.pack("<I", 2)), (8, struct.pack("<I", 2**32 - 1)), (16, struct.pack("<Q", 1)), (23, b"\x80")],
    ids=["next version", "last version", "first feature", "last feature"],
)
def test_arena_of_a_newer_format_is_refused_and_not_touched(at: int, value: bytes) -> None:
    fd = golden_memfd()
    fields = bytearray(GOLDEN_HEADER_FIELDS)
    fields[at : at + len(value)] = value
    os.pwrite(fd, with_checksum(bytes(fields)), 0)
    before = bytes_of(fd)
    with pytest.raises(NewerFormatError, match=r"format version .* was not touched; use the persistmem that wrote it"):
        Arena(fd, kernel="7.4")
    with pytest.raises(ExistsError):
        Arena.format(fd, kernel="7.4")
    assert bytes_of(fd) == before
    os.close(fd)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, b"persistm", "magic"),
        (8, struct.pack("<I", 0), "never existed"),
        (12, struct.pack("<I", 512), "never existed"),
        (24, struct.pack("<Q", SIZE * 2), "the memory has 65536"),
        (24, struct.pack("<Q", 0), "the memory has 65536"),
        (56, b"\xff", "UTF-8"),
    ],
)
def test_sound_checksum_does_not_make_a_wrong_header_right(at: int, value: bytes, message: str) -> None:
    fd = golden_memfd()
    fields = bytearray(GOLDEN_HEADER_FIELDS)
    fields[at : at + len(value)] = value
    os.pwrite(fd, with_checksum(bytes(fields)), 0)
    with pytest.raises(CorruptError, match=message):
        Arena(fd, kernel="7.4")
    os.close(fd)


def hostile_slot(sequence: int, offset: int, length: int, checksum: int) -> bytes:
    return with_checksum(struct.pack("<QQQQ", sequence, offset, length, checksum) + bytes(24))


EMPTY = bytes.fromhex("928080")


@pytest.mark.parametrize(
    "fields",
    [
        (2, 4096, 3, xxh3(EMPTY)),  # an even sequence in the odd slot
        (3, 0, 3, xxh3(EMPTY)),  # over the header
        (3, 4097, 3, xxh3(EMPTY)),  # not aligned
        (3, SIZE - 64, 65, 0),  # over the end
        (3, 2**64 - 64, 3, 0),
        (3, 4096, 2**64 - 1, 0),
        (2**64 - 1, 4096, 3, xxh3(EMPTY)),  # no next sequence
    ],
)
def test_sound_checksum_does_not_make_a_wrong_slot_right(fields: tuple[int, int, int, int]) -> None:
    fd = golden_memfd()
    os.pwrite(fd, hostile_slot(*fields), 320)
    with Arena(fd, kernel="7.4") as arena:
        with pytest.raises(CorruptError, match="no sound commit"):
            arena.snapshots()
        with pytest.raises(CorruptError, match="no sound commit"):
            arena.snapshot("s", 1)
    os.close(fd)


def put_catalogue(fd: int, catalogue: bytes) -> None:
    os.pwrite(fd, catalogue, 4096)
    os.pwrite(fd, slot(1, 4096, catalogue), 320)


def extent(offset: int, data: bytes) -> list[object]:
    return [offset, len(data), struct.pack("<Q", xxh3(data))]


def test_generation_number_that_has_no_next_is_an_error_before_anything_is_written() -> None:
    fd = golden_memfd()
    os.pwrite(fd, b"\x01", 8192)
    last = [2**63 - 1, CREATED_NS, "7.3.4", extent(8192, b"\x01"), []]
    put_catalogue(fd, msgpack.packb([{"s": [last]}, {}]))
    with Arena(fd, kernel="7.4") as arena:
        assert arena.restore("s") == 1
        with pytest.raises(CorruptError, match="'s'"):
            arena.snapshot("s", 2)
        assert arena.restore("s") == 1
    os.close(fd)


@pytest.mark.parametrize("size", [0, 4096, (64 << 10) - 4096, (64 << 10) + 1, 1 << 47])
def test_sizes_that_no_arena_has_are_refused(size: int) -> None:
    with pytest.raises(SizeError):
        create_memfd("tests", size)


def memfd_with(seals: int, size: int = SIZE, flags: int = os.MFD_ALLOW_SEALING) -> int:
    fd = os.memfd_create("tests", os.MFD_CLOEXEC | flags)
    os.ftruncate(fd, size)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


@pytest.mark.parametrize(
    ("seals", "size", "message"),
    [
        (0, SIZE, "sealed against growing and shrinking"),
        (fcntl.F_SEAL_GROW, SIZE, "sealed against growing and shrinking"),
        (fcntl.F_SEAL_SHRINK, SIZE, "sealed against growing and shrinking"),
        (fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE, SIZE, "can be written"),
        (fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | 0x10, SIZE, "can be written"),  # F_SEAL_FUTURE_WRITE
        (fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK, SIZE - 4096, "expected 64 KiB"),
        (fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK, SIZE + 1, "multiple of 4096"),
        (fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK, 0, "expected 64 KiB"),
    ],
)
def test_memfd_that_can_change_its_size_or_cannot_be_written_is_refused(seals: int, size: int, message: str) -> None:
    fd = memfd_with(seals, size)
    for use in (lambda: Arena(fd, kernel="7.4"), lambda: Arena.format(fd, kernel="7.4")):
        with pytest.raises(CorruptError, match=message):
            use()
    os.close(fd)


def test_memfd_sealed_against_execution_is_an_arena_like_any_other() -> None:
    """So are all memfds where the administrator set vm.memfd_noexec."""
    no_exec = 0x8
    fd = memfd_with(fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL, flags=no_exec)
    Arena.format(fd, kernel="7.3.4")
    with open_arena(fd) as arena:
        assert arena.snapshot("s", 1).number == 1
    os.close(fd)


def test_files_that_are_no_memfd_are_refused() -> None:
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as file, open("/dev/null", "rb") as null:  # noqa: PTH123 - a device, not a path
        file.truncate(SIZE)
        for fd in (file.fileno(), null.fileno(), reading):
            with pytest.raises(CorruptError, match="expected a memfd"):
                Arena(fd, kernel="7.4")
    os.close(reading)
    os.close(writing)
    with pytest.raises(CorruptError, match="Bad file descriptor"):
        Arena(reading, kernel="7.4")


def test_formatting_what_holds_an_arena_is_refused() -> None:
    with arena_of() as (fd, arena):
        arena.snapshot("s", 1)
        with pytest.raises(ExistsError, match="not empty"):
            Arena.format(fd, kernel="7.4")
        assert arena.restore("s") == 1


def test_empty_memfd_is_no_arena() -> None:
    fd = create_memfd("tests", SIZE)
    with pytest.raises(CorruptError, match="magic"):
        Arena(fd, kernel="7.4")
    os.close(fd)


@pytest.mark.parametrize("release", ["7" * 65, "é" * 33, "7\0"])
def test_kernel_release_that_does_not_fit_is_refused_before_it_is_recorded(release: str) -> None:
    fd = new_memfd()
    before = bytes_of(fd)
    with pytest.raises(ArgumentError, match="kernel release"):
        Arena(fd, kernel=release)
    assert bytes_of(fd) == before
    os.close(fd)
