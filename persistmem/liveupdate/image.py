"""Physical memory as a sparse memfd: the offset of a byte is its physical address. Knows pages, and no kernel struct.

It is all that crosses a simulated kexec.
"""

import bisect
import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

from persistmem.errors import CorruptError, LiveUpdateError
from persistmem.liveupdate.abi import PAGE_SIZE, PhysicalAddress
from persistmem.liveupdate.handover_reader import Extent

ROOT = PhysicalAddress(PAGE_SIZE)
"""Where the handover tree begins: the first page after the null page. A boot loader would tell the next kernel."""
_PIECE = 8 << 20
"""Bytes moved by one system call, at most."""


class ImageWriter:
    """Memory to fill before the kexec; pages are given out from low to high."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("physical-memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._free_from = ROOT // PAGE_SIZE

    def allocate(self, pages: int, *, align: int = 1) -> PhysicalAddress:
        """Zeroed contiguous pages whose frame number is a multiple of ``align``."""
        frame = -(-self._free_from // align) * align
        self._free_from = frame + pages
        os.ftruncate(self.fd, self._free_from * PAGE_SIZE)
        return PhysicalAddress(frame * PAGE_SIZE)

    def write(self, address: PhysicalAddress, data: bytes) -> None:
        """Store ``data`` in allocated pages."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self.fd, view, address)
            address, view = PhysicalAddress(address + written), view[written:]

    def store_file(self, address: PhysicalAddress, fd: int, size: int) -> None:
        """Store the first ``size`` bytes of a file in allocated pages; its holes stay holes."""
        with reopened(fd, os.O_RDONLY) as source:
            _copy(source, 0, self.fd, address, size)

    def close(self) -> None:
        """Give the memory back."""
        os.close(self.fd)


class Image:
    """Memory that came from the last kernel; it is sealed, so that nobody can cut it short under a mapping."""

    def __init__(self, fd: int) -> None:
        try:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        except OSError as error:
            raise CorruptError(f"image: expected a memfd that can be sealed, found descriptor {fd}") from error
        self._fd = fd
        self._size = os.fstat(fd).st_size
        self._given_out: list[tuple[int, int]] = []
        """Frames that became a file's, as sorted ranges that do not overlap."""

    def read(self, address: PhysicalAddress, length: int) -> bytes:
        """Exactly ``length`` bytes. CorruptError if they are not all in memory."""
        if address < PAGE_SIZE or address + length > self._size:
            raise CorruptError(f"image: {length} bytes at {address:#x} are not within its {self._size} bytes")
        data = os.pread(self._fd, length, address)
        if len(data) != length:
            raise CorruptError(f"image: expected {length} bytes at {address:#x}, found {len(data)}")
        return data

    def written(self, extent: Extent) -> int:
        """Bytes of the extent that are not holes."""
        return written_bytes(self._fd, extent.address, extent.address + extent.length)

    def take(self, extent: Extent) -> None:
        """Claim the extent's pages. CorruptError if they are not in memory, or were claimed before."""
        first, end = extent.address // PAGE_SIZE, (extent.address + extent.length) // PAGE_SIZE
        at = bisect.bisect(self._given_out, (first, end))
        before = self._given_out[at - 1] if at else (0, 1)
        after = self._given_out[at] if at < len(self._given_out) else (self._size // PAGE_SIZE, 0)
        if first < before[1] or end > after[0]:
            raise CorruptError(f"image: pages {first} to {end} are not there, or were given out before")
        self._given_out.insert(at, (first, end))

    def load_file(self, extent: Extent, fd: int, size: int) -> None:
        """Copy the extent's bytes to their offset in a file of ``size`` bytes."""
        _copy(self._fd, extent.address, fd, extent.offset, min(extent.length, size - extent.offset))

    def free(self, extent: Extent) -> None:
        """Give the extent's memory back to the system, as far as the machine's own pages allow."""
        unit = mmap.ALLOCATIONGRANULARITY
        start, end = -(-extent.address // unit) * unit, (extent.address + extent.length) // unit * unit
        if start < end:
            with mmap.mmap(self._fd, end - start, offset=start) as pages:
                pages.madvise(mmap.MADV_REMOVE)

    def close(self) -> None:
        """Give all of the memory back."""
        os.close(self._fd)


@contextmanager
def reopened(fd: int, flags: int) -> Iterator[int]:
    """Another open file description of the same file, with a position and access of its own."""
    description = os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)
    try:
        yield description
    finally:
        os.close(description)


def written_bytes(fd: int, start: int, end: int) -> int:
    """How much between two offsets was ever written. Moves the position of ``fd``."""
    return sum(data_end - data_start for data_start, data_end in _written(fd, start, end))


def _copy(source: int, source_at: int, target: int, target_at: int, length: int) -> None:
    """Copy what was ever written, inside the kernel; holes stay holes."""
    for start, end in _written(source, source_at, source_at + length):
        at = start
        while at < end:
            os.lseek(target, target_at + at - source_at, os.SEEK_SET)
            copied = os.sendfile(target, source, at, min(_PIECE, end - at))
            if not copied:
                raise LiveUpdateError(errno.EIO, "a file became shorter while it was copied")
            at += copied


def _written(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The ranges that are no holes. On shared memory a page that was allocated and never written is a hole, too."""
    at = start
    while at < end:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return
        if at < end:
            data_end = min(end, os.lseek(fd, at, os.SEEK_HOLE))
            yield at, data_end
            at = data_end
