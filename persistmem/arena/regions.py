"""A region: a named piece of raw, writable memory in an arena, for a structure that keeps its own integrity."""

import mmap
from typing import Self

from persistmem.arena.catalogue import RegionRecord
from persistmem.arena.holds import Hold
from persistmem.errors import BusyError, ClosedError


class Region:
    """A region held open by this process. While any process holds it, its memory is not reused.

    What is written here is neither checksummed nor kept in generations: it is the memory, at once, for every process.
    """

    def __init__(self, name: str, record: RegionRecord, hold: Hold, arena_size: int) -> None:
        self.name = name
        self._record = record
        self._mapping: mmap.mmap | None = hold.map_writable(arena_size)

    @property
    def size(self) -> int:
        """Bytes."""
        return self._record.length

    @property
    def record(self) -> RegionRecord:
        """Where it lies."""
        return self._record

    @property
    def mapping(self) -> mmap.mmap:
        """The whole arena, writable, for who needs more of it than a view can do; the region is at ``record.offset``.

        Raises:
            ClosedError: the region was closed.
        """
        if self._mapping is None:
            raise ClosedError(f"region {self.name!r} was closed; open it again with arena.region()")
        return self._mapping

    def view(self) -> memoryview:
        """The memory itself, writable. Any number of views may be out; the region stays held until the last is gone.

        Raises:
            ClosedError: the region was closed.
        """
        return memoryview(self.mapping)[self._record.offset : self._record.offset + self._record.length]

    def close(self) -> None:
        """Let go of it.

        Raises:
            BusyError: a view of it is still in use in this process.
        """
        if self._mapping is not None:
            try:
                self._mapping.close()
            except BufferError as error:
                raise BusyError(f"region {self.name!r}: a view of it is still in use; release it first") from error
            self._mapping = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
