"""Preserves memfds, finds what the kernel wrote about them in physical memory, and reads them through it.

Reports for each: its name; position, size, seals and digest as they are in the file; the same as decoded with ``abi``
and ``handover_reader``; and how many folios, pages of folio table, and chunks there were.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

from persistmem.arena import Arena
from persistmem.arena.memfd import create_memfd
from persistmem.errors import CorruptError
from persistmem.liveupdate.abi import (
    PAGE_SIZE,
    AbiVersions,
    KhoVmalloc,
    KhoVmallocChunk,
    MemfdLuoSer,
    PhysicalAddress,
)
from persistmem.liveupdate.device import KernelDevice
from persistmem.liveupdate.handover_reader import read_extents, read_memfd
from persistmem.liveupdate.interface import Token

from . import guest

MIB = 1 << 20
PIECE = 4 * MIB
VERSIONS = AbiVersions()
SHMEM_HUGE = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


class DevMem:
    """This machine's own physical memory."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/mem", os.O_RDONLY)

    def read(self, address: PhysicalAddress, length: int) -> bytes:
        data = os.pread(self._fd, length, address)
        if len(data) != length:
            raise CorruptError(f"{length} bytes at {address:#x} are not in memory")
        return data

    def pieces(self) -> Iterator[tuple[PhysicalAddress, bytes]]:
        """All of the memory that is mapped, whole pages at a time; the kernel unmaps some of its own image."""
        for line in Path("/proc/iomem").read_text("ascii").splitlines():
            ram = re.fullmatch(r"([0-9a-f]+)-([0-9a-f]+) : System RAM", line)
            if ram:
                start, end = int(ram[1], 16), int(ram[2], 16) + 1
                yield from self._mapped(-(-start // PAGE_SIZE) * PAGE_SIZE, end // PAGE_SIZE * PAGE_SIZE, PIECE)

    def _mapped(self, start: int, end: int, step: int) -> Iterator[tuple[PhysicalAddress, bytes]]:
        for at in range(start, end, step):
            try:
                piece = self.read(PhysicalAddress(at), min(step, end - at))
            except OSError as error:
                if error.errno != errno.EFAULT:
                    raise
                if step > PAGE_SIZE:
                    yield from self._mapped(at, min(at + step, end), PAGE_SIZE)
            else:
                yield PhysicalAddress(at), piece


@dataclass(frozen=True, slots=True)
class Preserved:
    name: str
    fd: int

    def words(self) -> tuple[int, int, int]:
        """Position, size, seals."""
        position = os.lseek(self.fd, 0, os.SEEK_CUR)
        return position, os.fstat(self.fd).st_size, fcntl.fcntl(self.fd, fcntl.F_GET_SEALS)

    def pattern(self) -> bytes:
        """How ``memfd_luo_ser`` begins: position, size, seals, flags."""
        return struct.pack("<2Q2I", *self.words(), 0)

    def digest(self) -> str:
        size = os.fstat(self.fd).st_size
        return digest(os.pread(self.fd, min(PIECE, size - at), at) for at in range(0, size, PIECE))


def digest(pieces: Iterable[bytes]) -> str:
    hashed = xxhash.xxh3_64()
    for piece in pieces:
        hashed.update(piece)
    return hashed.hexdigest()


def small() -> int:
    """768 folios, a hole, seals, a position."""
    fd = os.memfd_create("small", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 3 * MIB)
    os.pwrite(fd, os.urandom(MIB), 0)
    os.pwrite(fd, os.urandom(MIB - 1), 2 * MIB)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    os.lseek(fd, 1234567, os.SEEK_SET)
    return fd


def arena() -> int:
    fd = create_memfd("arena", 8 * MIB)
    Arena.format(fd, kernel=os.uname().release)
    with Arena(fd, kernel=os.uname().release) as opened:
        opened.snapshot("document", {"large": os.urandom(2 * MIB), "small": list(range(1000))})
    os.lseek(fd, 2345678, os.SEEK_SET)
    return fd


def huge() -> int:
    """Of folios of 2 MiB."""
    SHMEM_HUGE.write_text("advise")
    fd = os.memfd_create("huge")
    os.ftruncate(fd, 8 * MIB)
    with mmap.mmap(fd, 8 * MIB) as mapping:
        mapping.madvise(mmap.MADV_HUGEPAGE)
        mapping.write(os.urandom(8 * MIB))
    SHMEM_HUGE.write_text("never")
    os.lseek(fd, 3456789, os.SEEK_SET)
    return fd


def several_chunks() -> int:
    """More folios than one chunk of table pages can list: 511 x 256."""
    fd = os.memfd_create("several chunks")
    for at in range(0, 512 * MIB, PIECE):
        os.pwrite(fd, at.to_bytes(8, "little") * (PIECE // 8), at)
    os.lseek(fd, 4567890, os.SEEK_SET)
    return fd


def through_folios(memory: DevMem, memfd: MemfdLuoSer) -> Iterator[bytes]:
    for extent in read_extents(memory, memfd):
        end = min(extent.length, memfd.size - extent.offset)
        for at in range(0, end, PIECE):
            yield memory.read(PhysicalAddress(extent.address + at), min(PIECE, end - at))


def chunks(memory: DevMem, table: KhoVmalloc) -> int:
    number, address = 0, table.first
    while address:
        number, address = number + 1, KhoVmallocChunk.decode(memory.read(address, PAGE_SIZE)).next
    return number


def read_back(memory: DevMem, at: PhysicalAddress, preserved: Preserved) -> None:
    """Report what lies there. CorruptError if it cannot be read as a memfd at all."""
    memfd = read_memfd(memory, at, VERSIONS)
    shape = [memfd.nr_folios, memfd.folios.total_pages, chunks(memory, memfd.folios)]
    decoded = [memfd.position, memfd.size, memfd.seals, digest(through_folios(memory, memfd))]
    guest.report(preserved.name, [*preserved.words(), preserved.digest()], decoded, shape)


def main() -> None:
    every = [Preserved(make.__name__, make()) for make in (small, arena, huge, several_chunks)]
    session = KernelDevice().create_session("physical")
    for token, preserved in enumerate(every):
        session.preserve(preserved.fd, Token(token))
    memory = DevMem()
    sought = {preserved.pattern(): preserved for preserved in every}
    for start, piece in memory.pieces():
        for pattern, preserved in list(sought.items()):
            # The kernel gives the struct pages of its own. Elsewhere it is this program's memory that was found.
            at = piece.find(pattern)
            while at % PAGE_SIZE and at != -1:
                at = piece.find(pattern, at + 1)
            if at != -1:
                with contextlib.suppress(CorruptError):
                    read_back(memory, PhysicalAddress(start + at), preserved)
                    del sought[pattern]


if __name__ == "__main__":
    main()
