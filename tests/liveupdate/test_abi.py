"""The structs are the kernel's, byte for byte, and bytes that no kernel writes are refused."""

import os
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persistmem.errors import CorruptError, IncompatibleKernelError
from persistmem.liveupdate.abi import (
    Ioctl,
    KhoBlockHeader,
    KhoVmalloc,
    KhoVmallocChunk,
    LuoFileSer,
    LuoSer,
    LuoSessionSer,
    MemfdAbi,
    MemfdLuoFolioSer,
    MemfdLuoSer,
    PhysicalAddress,
    block_capacity,
    decode_returned_fd,
    decode_returned_name,
    encode_fd_call,
    encode_finish_call,
    encode_name_call,
    encode_session_call,
    page_count,
)
from persistmem.liveupdate.interface import Token

BOUNDED = settings(derandomize=True, max_examples=100, database=None, deadline=None)
U64 = st.integers(0, 2**64 - 1)
ADDRESSES = U64.map(PhysicalAddress)
PAGES = st.integers(1, 2**52 - 1).map(lambda frame: PhysicalAddress(frame * 4096))

# Written out by hand from the layouts on the kernel's side; the spaces show the fields.
LUO_SER = bytes.fromhex("6c756f2d76350000 0300000000000000 0010220000000000 0000000000000000")
BLOCK_HEADER = bytes.fromhex("0070010000000000 3300000000000000")
SESSION_SER = b"cities" + bytes(58) + bytes.fromhex("0040330000000000 0200000000000000")
FILE_SER = b"memfd-v2" + bytes(40) + bytes.fromhex("0050440000000000 efcdab8967452301")
VMALLOC = bytes.fromhex("0060550000000000 03000000 0100 0000")
CHUNK = bytes.fromhex("0080660000000000 0010770000000000 0020880000000000") + bytes(4096 - 24)
MEMFD_V1 = bytes.fromhex("3930000000000000 0000300000000000 0003000000000000") + VMALLOC
MEMFD_V2 = bytes.fromhex("3930000000000000 0000300000000000 06000000 00000000 0003000000000000") + VMALLOC
FOLIO_SER = bytes.fromhex("bc9a785634123000 0807060504030201")

TABLE = KhoVmalloc(PhysicalAddress(0x556000), 3, KhoVmalloc.FLAG_ALLOC)


def test_luo_ser_is_the_kernels() -> None:
    ser = LuoSer("luo-v5", 3, PhysicalAddress(0x221000))
    assert ser.encode() == LUO_SER
    assert LuoSer.decode(LUO_SER, "luo-v5") == ser


def test_block_header_is_the_kernels() -> None:
    header = KhoBlockHeader(PhysicalAddress(0x17000), 51)
    assert header.encode() == BLOCK_HEADER
    assert KhoBlockHeader.decode(BLOCK_HEADER, len(SESSION_SER)) == header


def test_session_ser_is_the_kernels() -> None:
    ser = LuoSessionSer("cities", PhysicalAddress(0x334000), 2)
    assert ser.encode() == SESSION_SER
    assert LuoSessionSer.decode(SESSION_SER) == ser


def test_file_ser_is_the_kernels() -> None:
    ser = LuoFileSer("memfd-v2", PhysicalAddress(0x445000), Token(0x0123456789ABCDEF))
    assert ser.encode() == FILE_SER
    assert LuoFileSer.decode(FILE_SER) == ser


def test_vmalloc_is_the_kernels() -> None:
    assert TABLE.encode() == VMALLOC
    assert KhoVmalloc.decode(VMALLOC) == TABLE


def test_vmalloc_chunk_is_the_kernels() -> None:
    chunk = KhoVmallocChunk(PhysicalAddress(0x668000), (PhysicalAddress(0x771000), PhysicalAddress(0x882000)))
    assert chunk.encode() == CHUNK
    assert KhoVmallocChunk.decode(CHUNK) == chunk


@pytest.mark.parametrize(("version", "golden", "seals"), [(MemfdAbi.V1, MEMFD_V1, 0), (MemfdAbi.V2, MEMFD_V2, 6)])
def test_memfd_ser_is_the_kernels(version: MemfdAbi, golden: bytes, seals: int) -> None:
    ser = MemfdLuoSer(position=12345, size=3 << 20, seals=seals, nr_folios=768, folios=TABLE)
    assert ser.encode(version) == golden
    assert MemfdLuoSer.decode(golden, version) == ser
    assert MemfdLuoSer.size_of(version) == len(golden)


def test_memfd_v1_has_no_room_for_seals() -> None:
    sealed = MemfdLuoSer(position=12345, size=3 << 20, seals=6, nr_folios=768, folios=TABLE)
    assert sealed.encode(MemfdAbi.V1) == MEMFD_V1


def test_folio_ser_is_the_kernels() -> None:
    ser = MemfdLuoFolioSer(pfn=0x0123456789ABC, flags=3, index=0x0102030405060708)
    assert ser.encode() == FOLIO_SER
    assert MemfdLuoFolioSer.decode(FOLIO_SER) == ser


def test_a_block_holds_51_sessions_or_63_files() -> None:
    assert block_capacity(len(SESSION_SER)) == 51
    assert block_capacity(len(FILE_SER)) == 63


@BOUNDED
@given(U64, ADDRESSES, ADDRESSES, st.integers(1, 10**9))
def test_luo_ser_comes_back(number: int, sessions: PhysicalAddress, flbs: PhysicalAddress, version: int) -> None:
    ser = LuoSer(f"luo-v{version}", number, sessions, flbs)
    assert LuoSer.decode(ser.encode(), ser.compatible) == ser


@BOUNDED
@given(st.binary(min_size=1, max_size=63).filter(lambda name: b"\0" not in name), PAGES, st.integers(1, 2**64 - 1))
def test_sessions_of_any_name_come_back(name: bytes, files: PhysicalAddress, count: int) -> None:
    ser = LuoSessionSer(os.fsdecode(name), files, count)
    assert LuoSessionSer.decode(ser.encode()) == ser


@BOUNDED
@given(ADDRESSES, U64)
def test_files_come_back(data: PhysicalAddress, token: int) -> None:
    ser = LuoFileSer("memfd-v1", data, Token(token))
    assert LuoFileSer.decode(ser.encode()) == ser


@BOUNDED
@given(ADDRESSES, st.lists(PAGES, max_size=511))
def test_vmalloc_chunks_come_back(following: PhysicalAddress, phys: list[PhysicalAddress]) -> None:
    chunk = KhoVmallocChunk(following, tuple(phys))
    assert KhoVmallocChunk.decode(chunk.encode()) == chunk


@BOUNDED
@given(st.integers(0, 2**63 - 1), st.integers(1, 2**40), st.integers(0, 0x3F), PAGES)
def test_memfds_come_back(position: int, size: int, seals: int, first: PhysicalAddress) -> None:
    folios = page_count(size)
    ser = MemfdLuoSer(position, size, seals, folios, KhoVmalloc(first, page_count(folios * 16)))
    assert MemfdLuoSer.decode(ser.encode(MemfdAbi.V2), MemfdAbi.V2) == ser


@BOUNDED
@given(st.integers(1, 2**52 - 1), st.integers(0, 3), U64)
def test_folios_come_back(pfn: int, flags: int, index: int) -> None:
    ser = MemfdLuoFolioSer(pfn, flags, index)
    assert MemfdLuoFolioSer.decode(ser.encode()) == ser


@pytest.mark.parametrize("found", ["luo-v6", "luo-v4", "luo-v10", "luo-v5x"])
def test_another_luo_version_is_incompatible_and_not_corrupt(found: str) -> None:
    with pytest.raises(IncompatibleKernelError, match=found):
        LuoSer.decode(LuoSer(found, 0, PhysicalAddress(0)).encode(), "luo-v5")


@pytest.mark.parametrize(
    "data",
    [b"", b"luo-v5", LUO_SER[:-1], LUO_SER + bytes(8), b"x" * 32, bytes(32)],
    ids=["empty", "no fields", "short", "long", "no NUL", "no text"],
)
def test_a_luo_ser_of_another_shape_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptError):
        LuoSer.decode(data, "luo-v5")


def test_a_block_that_says_more_than_fits_is_corrupt() -> None:
    with pytest.raises(CorruptError, match="52"):
        KhoBlockHeader.decode(KhoBlockHeader(PhysicalAddress(0), 52).encode(), len(SESSION_SER))


@pytest.mark.parametrize(
    "data",
    [b"n" * 64 + SESSION_SER[64:], bytes(64) + SESSION_SER[64:], SESSION_SER[:64] + bytes(8) + SESSION_SER[72:]],
    ids=["name without NUL", "no name", "files at null"],
)
def test_a_session_that_cannot_be_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptError):
        LuoSessionSer.decode(data)


def test_a_file_without_nul_in_its_handler_is_corrupt() -> None:
    with pytest.raises(CorruptError):
        LuoFileSer.decode(b"m" * 48 + FILE_SER[48:])


@pytest.mark.parametrize(
    "data",
    [
        VMALLOC[:12] + b"\4\0" + VMALLOC[14:],
        VMALLOC[:14] + b"\1\0",
        VMALLOC[:14] + b"\xff\xff",
        bytes(8) + VMALLOC[8:],
        VMALLOC[:8] + bytes(8),
    ],
    ids=["unknown flag", "half a large page", "huge order", "pages at null", "no pages"],
)
def test_a_vmalloc_that_cannot_be_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptError):
        KhoVmalloc.decode(data)


def test_a_chunk_with_an_address_inside_a_page_is_corrupt() -> None:
    with pytest.raises(CorruptError):
        KhoVmallocChunk.decode(CHUNK[:8] + b"\1" + CHUNK[9:])


@pytest.mark.parametrize(
    ("at", "data"),
    [
        (0, b"\xff" * 8),
        (8, b"\xff" * 8),
        (8, bytes(8)),
        (16, b"\x40\0\0\0"),
        (20, b"\1\0\0\0"),
        (24, b"\1\3" + bytes(6)),
        (24, bytes(8)),
        (40, b"\2\0\0\0"),
    ],
    ids=[
        "position too large",
        "size too large",
        "folios of an empty file",
        "unknown seal",
        "reserved flag",
        "more folios than pages",
        "no folios",
        "table too short",
    ],
)
def test_a_memfd_that_cannot_be_is_corrupt(at: int, data: bytes) -> None:
    with pytest.raises(CorruptError):
        MemfdLuoSer.decode(MEMFD_V2[:at] + data + MEMFD_V2[at + len(data) :], MemfdAbi.V2)


@pytest.mark.parametrize("first", [b"\0\0\0\0\0\0\x30\0", b"\1\0\0\0\0\0\x40\0"], ids=["frame 0", "unknown flag"])
def test_a_folio_that_cannot_be_is_corrupt(first: bytes) -> None:
    with pytest.raises(CorruptError):
        MemfdLuoFolioSer.decode(first + bytes(8))


@pytest.mark.skipif(sys.byteorder != "little", reason="the bytes are written out for little endian")
def test_what_the_ioctls_take_and_give_is_the_kernels() -> None:
    assert encode_session_call("cities") == bytes.fromhex("48000000 ffffffff") + b"cities" + bytes(58)
    assert encode_fd_call(Token(0x0123456789ABCDEF), 7) == bytes.fromhex("10000000 07000000 efcdab8967452301")
    assert encode_fd_call(Token(1)) == bytes.fromhex("10000000 ffffffff 0100000000000000")
    assert encode_finish_call() == bytes.fromhex("08000000 00000000")
    assert encode_name_call() == bytes.fromhex("48000000 00000000") + bytes(64)
    assert decode_returned_fd(bytearray.fromhex("10000000 2a000000 0100000000000000")) == 42
    assert decode_returned_name(bytearray.fromhex("48000000 00000000") + b"cities" + bytes(58)) == "cities"


def test_the_ioctls_are_numbered_as_the_kernels() -> None:
    assert [request - (0xBA << 8) for request in Ioctl] == [0x00, 0x01, 0x40, 0x41, 0x42, 0x43]
