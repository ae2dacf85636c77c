"""The tree in memory: what is written is found again, and a tree that runs in circles or lies is refused."""

import os

import pytest

from persistmem.errors import CorruptError, IncompatibleKernelError
from persistmem.liveupdate.abi import (
    AbiVersions,
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
)
from persistmem.liveupdate.fdt import Node, encode
from persistmem.liveupdate.handover_reader import Extent, Handover, read_extents, read_handover, read_memfd
from persistmem.liveupdate.handover_writer import FrozenMemfd, FrozenSession, write_handover, write_vmalloc
from persistmem.liveupdate.interface import Token

from .fake_memory import FakeMemory

ABI = AbiVersions()
PAGE = 4096
UPTODATE, DIRTY = 2, 1
NUMBERS = (*range(8), 62, 63, 64, 126, 127, 130)


def table(memory: FakeMemory, folios: list[tuple[int, int, int]], size: int) -> MemfdLuoSer:
    """A memfd of ``size`` bytes whose table has those folios: frame, flags, index."""
    area = write_vmalloc(memory, b"".join(MemfdLuoFolioSer(*folio).encode() for folio in folios))
    return MemfdLuoSer(0, size, 0, len(folios), area)


def handed_over(memory: FakeMemory, sessions: bytes = b"", luo: str = "luo-v5", kho: bytes = b"kho-v4\0") -> Handover:
    """What is read of a tree that was laid out by hand, with that first block of sessions."""
    at = memory.allocate(1)
    memory.write(at, sessions)
    blob = LuoSer(luo, 7, at if sessions else PhysicalAddress(0)).encode()
    blob_at = memory.allocate(1)
    memory.write(blob_at, blob)
    node = Node({"preserved-data": blob_at.to_bytes(8, "little"), "blob-size": len(blob).to_bytes(8, "little")})
    root = memory.allocate(1)
    memory.write(root, encode(Node({"compatible": kho, "preserved-memory-map": bytes(8)}, {"LUO": node})))
    return read_handover(memory, root, ABI)


def block(*entries: bytes, following: int = 0) -> bytes:
    return KhoBlockHeader(PhysicalAddress(following), len(entries)).encode() + b"".join(entries)


def test_sessions_and_files_are_found_under_their_names_and_tokens() -> None:
    fd = os.memfd_create("frozen")
    os.pwrite(fd, b"x" * 5000, 0)
    memory = FakeMemory()
    sessions = [
        FrozenSession(f"session {number}", [FrozenMemfd(Token(token), fd, 17, 5000, 6) for token in range(number)])
        for number in NUMBERS
    ]
    root = write_handover(memory, sessions, ABI, live_updates=3)
    found = read_handover(memory, root, ABI)
    os.close(fd)
    assert found.live_updates == 3
    assert {name: sorted(files) for name, files in found.sessions.items()} == {
        f"session {number}": list(range(number)) for number in NUMBERS
    }
    memfd = read_memfd(memory, found.sessions["session 130"][Token(129)], ABI)
    assert (memfd.position, memfd.size, memfd.seals) == (17, 5000, 6)
    [extent] = read_extents(memory, memfd)
    assert memory.read(extent.address, 5000) == b"x" * 5000


def test_sessions_of_several_blocks_are_found() -> None:
    memory = FakeMemory()
    root = write_handover(memory, [FrozenSession(f"session {number}", []) for number in range(103)], ABI, 1)
    assert read_handover(memory, root, ABI).sessions == {f"session {number}": {} for number in range(103)}


def test_no_sessions_are_a_handover_too() -> None:
    memory = FakeMemory()
    root = write_handover(memory, [], ABI, live_updates=1)
    assert read_handover(memory, root, ABI) == Handover(1, {})


@pytest.mark.parametrize("pages", [1, 511, 512, 1022, 1023])
def test_a_table_of_many_pages_is_chained_in_chunks_of_511(pages: int) -> None:
    memory = FakeMemory()
    # Frames run backwards, so that no two folios are neighbours.
    count = pages * PAGE // 16
    memfd = table(memory, [(count - index, DIRTY | UPTODATE, index) for index in range(count)], count * PAGE)
    chunks, at = [], memfd.folios.first
    while at:
        chunks.append(KhoVmallocChunk.decode(memory.read(at, PAGE)))
        at = chunks[-1].next
    assert [len(chunk.phys) for chunk in chunks] == [511] * (pages // 511) + [pages % 511] * bool(pages % 511)
    extents = list(read_extents(memory, memfd))
    assert [extent.address // PAGE for extent in extents] == list(range(count, 0, -1))
    assert [extent.offset // PAGE for extent in extents] == list(range(count))


def test_folios_of_all_sizes_are_read_and_neighbours_are_joined() -> None:
    memory = FakeMemory()
    memfd = table(memory, [(512, 3, 0), (1024, 3, 512), (9, 3, 1024), (11, 3, 1025)], 1026 * PAGE - 100)
    assert list(read_extents(memory, memfd)) == [
        Extent(PhysicalAddress(512 * PAGE), 0, 1024 * PAGE),
        Extent(PhysicalAddress(9 * PAGE), 1024 * PAGE, PAGE),
        Extent(PhysicalAddress(11 * PAGE), 1025 * PAGE, PAGE),
    ]


def test_folios_that_were_never_written_are_zeros_whatever_lies_there() -> None:
    memory = FakeMemory()
    memfd = table(memory, [(20, 0, 0), (21, 3, 1), (22, DIRTY, 2), (23, UPTODATE, 3)], 4 * PAGE)
    assert list(read_extents(memory, memfd)) == [
        Extent(PhysicalAddress(21 * PAGE), PAGE, PAGE),
        Extent(PhysicalAddress(23 * PAGE), 3 * PAGE, PAGE),
    ]


def test_vmalloc_of_large_pages_is_read_page_by_page() -> None:
    memory = FakeMemory()
    entries = b"".join(MemfdLuoFolioSer(5000 - index, 3, index).encode() for index in range(1024))
    data, chunk = memory.allocate(4, align=4), memory.allocate(1)
    memory.write(data, entries)
    memory.write(chunk, KhoVmallocChunk(PhysicalAddress(0), (data,)).encode())
    memfd = MemfdLuoSer(0, 1024 * PAGE, 0, 1024, KhoVmalloc(chunk, 4, order=2))
    assert [extent.address // PAGE for extent in read_extents(memory, memfd)] == list(range(5000, 3976, -1))


@pytest.mark.parametrize(
    "folios",
    [[(9, 3, 1)], [(9, 3, 0), (10, 3, 0)], [(9, 3, 0), (10, 3, 2), (11, 3, 1)], [(9, 3, 0), (10, 3, 4)]],
    ids=["gap at the beginning", "repeat", "out of order", "past the end"],
)
def test_a_table_that_does_not_cover_the_file_in_order_is_corrupt(folios: list[tuple[int, int, int]]) -> None:
    memory = FakeMemory()
    with pytest.raises(CorruptError):
        list(read_extents(memory, table(memory, folios, 4 * PAGE)))


def test_chunks_in_a_circle_are_corrupt() -> None:
    memory = FakeMemory()
    page, chunk = memory.allocate(1), memory.allocate(1)
    memory.write(page, MemfdLuoFolioSer(9, 3, 0).encode())
    memory.write(chunk, KhoVmallocChunk(chunk, (page,)).encode())
    memfd = MemfdLuoSer(0, 2**40, 0, 2**28, KhoVmalloc(chunk, 2**20))
    with pytest.raises(CorruptError):
        list(read_extents(memory, memfd))


@pytest.mark.parametrize("listed", [1, 3])
def test_chunks_that_list_more_or_fewer_pages_than_promised_are_corrupt(listed: int) -> None:
    memory = FakeMemory()
    pages = [memory.allocate(1) for _ in range(listed)]
    chunk = memory.allocate(1)
    for number, page in enumerate(pages):
        memory.write(page, b"".join(MemfdLuoFolioSer(9, 3, number * 256 + index).encode() for index in range(256)))
    memory.write(chunk, KhoVmallocChunk(PhysicalAddress(0), tuple(pages)).encode())
    with pytest.raises(CorruptError):
        list(read_extents(memory, MemfdLuoSer(0, 512 * PAGE, 0, 512, KhoVmalloc(chunk, 2))))


def test_a_page_that_is_listed_twice_is_corrupt() -> None:
    memory = FakeMemory()
    page, chunk = memory.allocate(1), memory.allocate(1)
    memory.write(page, b"".join(MemfdLuoFolioSer(9, 0, index).encode() for index in range(256)))
    memory.write(chunk, KhoVmallocChunk(PhysicalAddress(0), (page, page)).encode())
    with pytest.raises(CorruptError, match="twice"):
        list(read_extents(memory, MemfdLuoSer(0, 512 * PAGE, 0, 512, KhoVmalloc(chunk, 2))))


def test_session_blocks_in_a_circle_are_corrupt() -> None:
    memory = FakeMemory()
    first = memory.allocate(1)
    memory.write(first, block(following=first))
    with pytest.raises(CorruptError, match="twice"):
        handed_over(memory, block(following=first))


def test_sessions_that_share_a_block_of_files_are_corrupt() -> None:
    memory = FakeMemory()
    files = memory.allocate(1)
    memory.write(files, block(LuoFileSer("memfd-v2", PhysicalAddress(PAGE), Token(1)).encode()))
    with pytest.raises(CorruptError, match="twice"):
        handed_over(memory, block(LuoSessionSer("a", files, 1).encode(), LuoSessionSer("b", files, 1).encode()))


def test_a_session_name_that_is_there_twice_is_corrupt() -> None:
    entry = LuoSessionSer("twin", PhysicalAddress(0), 0).encode()
    with pytest.raises(CorruptError, match="twin"):
        handed_over(FakeMemory(), block(entry, entry))


@pytest.mark.parametrize(("tokens", "count"), [([1, 1], 2), ([1, 2], 1), ([1, 2], 3)])
def test_files_that_are_not_those_of_the_session_are_corrupt(tokens: list[int], count: int) -> None:
    memory = FakeMemory()
    files = memory.allocate(1)
    entries = [LuoFileSer("memfd-v2", PhysicalAddress(PAGE), Token(token)).encode() for token in tokens]
    memory.write(files, block(*entries))
    with pytest.raises(CorruptError):
        handed_over(memory, block(LuoSessionSer("s", files, count).encode()))


def test_a_tree_laid_out_by_hand_is_read() -> None:
    memory = FakeMemory()
    second = memory.allocate(1)
    memory.write(second, block(LuoSessionSer("b", PhysicalAddress(0), 0).encode()))
    first = block(LuoSessionSer("a", PhysicalAddress(0), 0).encode(), following=second)
    assert handed_over(memory, first) == Handover(7, {"a": {}, "b": {}})


@pytest.mark.parametrize("versions", [{"luo": "luo-v6"}, {"kho": b"kho-v5\0"}])
def test_another_version_of_the_tree_is_incompatible(versions: dict[str, str]) -> None:
    with pytest.raises(IncompatibleKernelError):
        handed_over(FakeMemory(), **versions)  # type: ignore[arg-type] # one of them is bytes


def test_another_version_of_the_memfd_is_incompatible() -> None:
    fd = os.memfd_create("frozen")
    memory = FakeMemory()
    sessions = [FrozenSession("s", [FrozenMemfd(Token(1), fd, 0, 0, 0)])]
    root = write_handover(memory, sessions, AbiVersions(memfd=MemfdAbi.V1), live_updates=1)
    os.close(fd)
    with pytest.raises(IncompatibleKernelError, match="memfd-v1"):
        read_handover(memory, root, ABI)
