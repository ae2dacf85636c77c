"""Writes the handover tree into physical memory for the next kernel: device tree, sessions, memfds, folio tables.

Knows how one struct points at the next; what lies inside each is in ``abi``. Memory is an interface, so that the tree
can be written into an image or into a test's dictionary.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from persistmem.liveupdate import fdt
from persistmem.liveupdate.abi import (
    KHO_NODE_LUO,
    KHO_PROP_COMPATIBLE,
    KHO_PROP_DATA,
    KHO_PROP_MEMORY_MAP,
    KHO_PROP_SIZE,
    PAGE_SIZE,
    AbiVersions,
    KhoBlockHeader,
    KhoVmalloc,
    KhoVmallocChunk,
    LuoFileSer,
    LuoSer,
    LuoSessionSer,
    MemfdLuoFolioSer,
    MemfdLuoSer,
    PhysicalAddress,
    block_capacity,
    encode_u64,
    page_count,
)
from persistmem.liveupdate.interface import Token

HUGE_FOLIO_PAGES = 512
"""Pages of a huge folio, 2 MiB: what a large memfd is stored in, so that tables stay short."""
_NULL = PhysicalAddress(0)
_Item = TypeVar("_Item")


class WritableMemory(Protocol):
    """Memory to write to; all of it crosses the kexec."""

    def allocate(self, pages: int, *, align: int = 1) -> PhysicalAddress:
        """Zeroed contiguous pages whose frame number is a multiple of ``align``."""

    def write(self, address: PhysicalAddress, data: bytes) -> None:
        """Store ``data`` in allocated pages."""

    def store_file(self, address: PhysicalAddress, fd: int, size: int) -> None:
        """Store the first ``size`` bytes of a file in allocated pages."""


@dataclass(frozen=True, slots=True)
class FrozenMemfd:
    """A preserved memfd at the moment of the kexec."""

    token: Token
    fd: int
    position: int
    size: int
    seals: int


@dataclass(frozen=True, slots=True)
class FrozenSession:
    """An outgoing session at the moment of the kexec."""

    name: str
    memfds: Sequence[FrozenMemfd]


def write_handover(
    memory: WritableMemory, sessions: Iterable[FrozenSession], versions: AbiVersions, live_updates: int
) -> PhysicalAddress:
    """Write the whole tree, and return where its root is: the first page that was allocated."""
    root = memory.allocate(page_count(fdt.SIZE_MAX))
    entries = [_write_session(memory, session, versions) for session in sessions]
    luo = LuoSer(versions.luo, live_updates, _write_blocks(memory, entries)).encode()
    luo_at = memory.allocate(page_count(len(luo)))
    memory.write(luo_at, luo)
    tree = fdt.Node(
        {
            KHO_PROP_COMPATIBLE: versions.kho.encode("ascii") + b"\0",
            # The kernel's map tells memory to keep from memory to reuse. Here all of it is kept, and no map is needed.
            KHO_PROP_MEMORY_MAP: encode_u64(_NULL),
        },
        {KHO_NODE_LUO: fdt.Node({KHO_PROP_DATA: encode_u64(luo_at), KHO_PROP_SIZE: encode_u64(len(luo))})},
    )
    memory.write(root, fdt.encode(tree))
    return root


def write_vmalloc(memory: WritableMemory, data: bytes) -> KhoVmalloc:
    """Store ``data`` as the kernel hands over vmalloc memory: pages, and chunks of 511 addresses that list them."""
    pages = page_count(len(data))
    if not pages:
        return KhoVmalloc(_NULL, 0)
    address = memory.allocate(pages)
    memory.write(address, data)
    listed = [PhysicalAddress(address + page * PAGE_SIZE) for page in range(pages)]
    first = _write_chain(
        memory,
        [listed[at : at + KhoVmallocChunk.CAPACITY] for at in range(0, pages, KhoVmallocChunk.CAPACITY)],
        lambda following, phys: KhoVmallocChunk(following, tuple(phys)).encode(),
    )
    return KhoVmalloc(first, pages, KhoVmalloc.FLAG_ALLOC)


def _write_session(memory: WritableMemory, session: FrozenSession, versions: AbiVersions) -> bytes:
    files = [
        LuoFileSer(versions.memfd.value, _write_memfd(memory, memfd, versions), memfd.token).encode()
        for memfd in session.memfds
    ]
    return LuoSessionSer(session.name, _write_blocks(memory, files), len(files)).encode()


def _write_memfd(memory: WritableMemory, memfd: FrozenMemfd, versions: AbiVersions) -> PhysicalAddress:
    pages = page_count(memfd.size)
    folios: list[MemfdLuoFolioSer] = []
    if pages:
        address = memory.allocate(pages, align=HUGE_FOLIO_PAGES if pages >= HUGE_FOLIO_PAGES else 1)
        memory.store_file(address, memfd.fd, memfd.size)
        frame, flags = address // PAGE_SIZE, MemfdLuoFolioSer.FLAG_DIRTY | MemfdLuoFolioSer.FLAG_UPTODATE
        small_from = pages - pages % HUGE_FOLIO_PAGES
        indexes = [*range(0, small_from, HUGE_FOLIO_PAGES), *range(small_from, pages)]
        folios = [MemfdLuoFolioSer(frame + index, flags, index) for index in indexes]
    table = write_vmalloc(memory, b"".join(folio.encode() for folio in folios))
    ser = MemfdLuoSer(memfd.position, memfd.size, memfd.seals, len(folios), table).encode(versions.memfd)
    ser_at = memory.allocate(1)
    memory.write(ser_at, ser)
    return ser_at


def _write_blocks(memory: WritableMemory, entries: Sequence[bytes]) -> PhysicalAddress:
    if not entries:
        return _NULL
    capacity = block_capacity(len(entries[0]))
    return _write_chain(
        memory,
        [entries[at : at + capacity] for at in range(0, len(entries), capacity)],
        lambda following, block: KhoBlockHeader(following, len(block)).encode() + b"".join(block),
    )


def _write_chain(
    memory: WritableMemory,
    groups: Sequence[Sequence[_Item]],
    encode: Callable[[PhysicalAddress, Sequence[_Item]], bytes],
) -> PhysicalAddress:
    """A list of pages, one for each group; ``encode`` is given the address of the next page. Returns the first."""
    addresses = [memory.allocate(1) for _ in groups]
    for address, following, group in zip(addresses, [*addresses[1:], _NULL], groups, strict=True):
        memory.write(address, encode(following, group))
    return addresses[0]
