"""Physical memory as a dictionary of pages; a stand-in for a machine's, which anybody may scribble in."""

import os

from persistmem.errors import CorruptError
from persistmem.liveupdate.abi import PAGE_SIZE, PhysicalAddress


class FakeMemory:
    """Readable and writable."""

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self._free_from = 1

    def allocate(self, pages: int, *, align: int = 1) -> PhysicalAddress:
        frame = -(-self._free_from // align) * align
        self._free_from = frame + pages
        self.pages.update((number, bytearray(PAGE_SIZE)) for number in range(frame, self._free_from))
        return PhysicalAddress(frame * PAGE_SIZE)

    def write(self, address: PhysicalAddress, data: bytes) -> None:
        while data:
            frame, offset = divmod(address, PAGE_SIZE)
            piece, data = data[: PAGE_SIZE - offset], data[PAGE_SIZE - offset :]
            self.pages[frame][offset : offset + len(piece)] = piece
            address = PhysicalAddress(address + len(piece))

    def store_file(self, address: PhysicalAddress, fd: int, size: int) -> None:
        self.write(address, os.pread(fd, size, 0))

    def read(self, address: PhysicalAddress, length: int) -> bytes:
        frames = range(address // PAGE_SIZE, -(-(address + length) // PAGE_SIZE))
        if any(frame not in self.pages for frame in frames):
            raise CorruptError(f"{address:#x} is not in memory")
        start = address % PAGE_SIZE
        return b"".join(self.pages[frame] for frame in frames)[start : start + length]
