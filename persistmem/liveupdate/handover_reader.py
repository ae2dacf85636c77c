"""Reads the handover tree that the last kernel left in physical memory, from its root to the last folio.

Memory is an interface, so that the tree can lie in an image, in a test's dictionary, or in a real machine's memory. It
may say anything: no page is followed twice, the memory checks every address, and work is bounded by what is there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from persistmem.errors import CorruptError
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
    check_compatible,
    decode_text,
    decode_u64,
    page_count,
)
from persistmem.liveupdate.interface import Token

_LUO_SER_BYTES_MAX = PAGE_SIZE


class PhysicalMemory(Protocol):
    """Memory to read from."""

    def read(self, address: PhysicalAddress, length: int) -> bytes:
        """Exactly ``length`` bytes from ``address`` on. CorruptError if they are not all in memory."""


@dataclass(frozen=True, slots=True)
class Handover:
    """What the last kernel handed over."""

    live_updates: int
    sessions: dict[str, dict[Token, PhysicalAddress]]
    """By name and token: where each :class:`MemfdLuoSer` lies."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes of a file that lie next to each other in memory, too. All three are multiples of the page size."""

    address: PhysicalAddress
    offset: int
    length: int


def read_handover(memory: PhysicalMemory, root: PhysicalAddress, versions: AbiVersions) -> Handover:
    """What the tree at ``root`` hands over.

    Raises:
        IncompatibleKernelError: a kernel with other versions wrote it.
        CorruptError: no kernel wrote it like that.
    """
    tree = fdt.decode(memory.read(root, fdt.total_size(memory.read(root, fdt.HEADER.size))))
    compatible = decode_text(_property(tree, KHO_PROP_COMPATIBLE), KHO_PROP_COMPATIBLE)
    check_compatible(compatible, versions.kho, "KHO tree")
    decode_u64(_property(tree, KHO_PROP_MEMORY_MAP), KHO_PROP_MEMORY_MAP)
    node = tree.subnodes.get(KHO_NODE_LUO)
    if node is None:
        raise CorruptError(f"device tree: expected a node {KHO_NODE_LUO!r}")
    address = PhysicalAddress(decode_u64(_property(node, KHO_PROP_DATA), KHO_PROP_DATA))
    size = decode_u64(_property(node, KHO_PROP_SIZE), KHO_PROP_SIZE)
    if size > _LUO_SER_BYTES_MAX:
        raise CorruptError(f"{KHO_PROP_SIZE}: expected at most {_LUO_SER_BYTES_MAX} bytes, found {size}")
    luo = LuoSer.decode(memory.read(address, size), versions.luo)
    sessions: dict[str, dict[Token, PhysicalAddress]] = {}
    seen: set[PhysicalAddress] = set()
    for entry in _read_blocks(memory, luo.sessions, LuoSessionSer.STRUCT.size, seen):
        session = LuoSessionSer.decode(entry)
        if session.name in sessions:
            raise CorruptError(f"session {session.name!r} was handed over twice")
        sessions[session.name] = _read_files(memory, session, versions, seen)
    return Handover(luo.liveupdate_num, sessions)


def read_memfd(memory: PhysicalMemory, address: PhysicalAddress, versions: AbiVersions) -> MemfdLuoSer:
    """The memfd that is described at ``address``. CorruptError if that cannot be."""
    return MemfdLuoSer.decode(memory.read(address, MemfdLuoSer.size_of(versions.memfd)), versions.memfd)


def read_extents(memory: PhysicalMemory, memfd: MemfdLuoSer) -> Iterator[Extent]:
    """Where the bytes of ``memfd`` lie, in the order of the file; what no extent covers is zeros.

    Cost: one step for each folio. CorruptError if the table does not cover the file in order.
    """
    pages = page_count(memfd.size)
    start: MemfdLuoFolioSer | None = None
    last = -1
    for folio in _read_folios(memory, memfd):
        if not last < folio.index < pages or (last < 0 < folio.index):
            raise CorruptError(f"memfd_luo_folio_ser: page {folio.index} after page {last} of {pages} cannot be")
        last = folio.index
        # A kernel of memfd-v1 hands over folios that were allocated and never written: their bytes mean nothing.
        written = folio.flags & MemfdLuoFolioSer.FLAG_UPTODATE
        if start is not None and written and folio.pfn - start.pfn == folio.index - start.index:
            continue
        if start is not None:
            yield _extent(start, folio.index)
        start = folio if written else None
    if start is not None:
        yield _extent(start, pages)


def _extent(start: MemfdLuoFolioSer, end_index: int) -> Extent:
    pages = end_index - start.index
    return Extent(PhysicalAddress(start.pfn * PAGE_SIZE), start.index * PAGE_SIZE, pages * PAGE_SIZE)


def _property(node: fdt.Node, name: str) -> bytes:
    if name not in node.properties:
        raise CorruptError(f"device tree: expected a property {name!r}")
    return node.properties[name]


def _read_files(
    memory: PhysicalMemory, session: LuoSessionSer, versions: AbiVersions, seen: set[PhysicalAddress]
) -> dict[Token, PhysicalAddress]:
    files: dict[Token, PhysicalAddress] = {}
    for entry in _read_blocks(memory, session.files, LuoFileSer.STRUCT.size, seen):
        file = LuoFileSer.decode(entry)
        check_compatible(file.compatible, versions.memfd.value, f"file in session {session.name!r}")
        if file.token in files:
            raise CorruptError(f"session {session.name!r}: token {file.token} was handed over twice")
        files[file.token] = file.data
    if len(files) != session.count:
        raise CorruptError(f"session {session.name!r}: it says {session.count} files, but {len(files)} are there")
    return files


def _read_blocks(
    memory: PhysicalMemory, first: PhysicalAddress, entry_size: int, seen: set[PhysicalAddress]
) -> Iterator[bytes]:
    """The entries of a list of blocks, none of which was seen before in this tree."""
    address = first
    while address:
        _refuse_again(address, seen)
        block = memory.read(address, PAGE_SIZE)
        header = KhoBlockHeader.decode(block, entry_size)
        for at in range(KhoBlockHeader.STRUCT.size, KhoBlockHeader.STRUCT.size + header.count * entry_size, entry_size):
            yield block[at : at + entry_size]
        address = header.next


def _read_vmalloc(memory: PhysicalMemory, area: KhoVmalloc) -> Iterator[PhysicalAddress]:
    """The address of each page behind ``area``."""
    seen: set[PhysicalAddress] = set()
    address, left = area.first, area.total_pages >> area.order
    while address:
        _refuse_again(address, seen)
        chunk = KhoVmallocChunk.decode(memory.read(address, PAGE_SIZE))
        left -= len(chunk.phys)
        if left < 0 or (chunk.next and not chunk.phys):
            break
        for block in chunk.phys:
            _refuse_again(block, seen)
            yield from (PhysicalAddress(block + page * PAGE_SIZE) for page in range(1 << area.order))
        address = chunk.next
    if left:
        raise CorruptError(f"kho_vmalloc: its chunks do not list the {area.total_pages} pages that it says")


def _read_folios(memory: PhysicalMemory, memfd: MemfdLuoSer) -> Iterator[MemfdLuoFolioSer]:
    left = memfd.nr_folios * MemfdLuoFolioSer.STRUCT.size
    for page in _read_vmalloc(memory, memfd.folios):
        table = memory.read(page, min(left, PAGE_SIZE))
        for at in range(0, len(table), MemfdLuoFolioSer.STRUCT.size):
            yield MemfdLuoFolioSer.decode(table[at : at + MemfdLuoFolioSer.STRUCT.size])
        left -= len(table)
        if not left:
            return


def _refuse_again(address: PhysicalAddress, seen: set[PhysicalAddress]) -> None:
    if address in seen:
        raise CorruptError(f"physical address {address:#x} is in a list twice")
    seen.add(address)
