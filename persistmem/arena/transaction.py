"""One writer's work on an arena: lock, write what nobody reads yet, publish. Knows extents, not documents."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from persistmem.arena.allocator import Allocator
from persistmem.arena.catalogue import CHECKSUM_SIZE, Catalogue, Extent, encode_catalogue
from persistmem.arena.checks import find_damage, packed_checksums
from persistmem.arena.commits import Commits, State
from persistmem.arena.layout import BUFFER_ALIGNMENT, CHUNK_SIZE, EXTENT_ALIGNMENT, Checksum, Offset, checksum
from persistmem.arena.locks import conflict, try_lock, unlock_all
from persistmem.arena.memfd import reopen
from persistmem.arena.memory import Memory
from persistmem.errors import ArenaFullError, BusyError
from persistmem.sizes import format_size

WRITER_LOCK = 0
"""The byte whose exclusive lock makes its holder the arena's one writer."""

_WAIT_FIRST, _WAIT_MAX = 0.0005, 0.05


@contextmanager
def freeze(fd: int, timeout: float) -> Iterator[None]:
    """Be the one writer of the arena in ``fd``, and write nothing: snapshots do not change meanwhile; regions may.

    Raises:
        BusyError: another process is writing, and did not finish within ``timeout`` seconds.
    """
    own = reopen(fd, os.O_RDWR)
    try:
        _lock_writer(own, timeout)
        yield
    finally:
        unlock_all(own)
        os.close(own)


class Transaction:
    """The arena's one writer, for the length of a ``with``. Without :meth:`commit`, nothing has happened."""

    def __init__(self, memory: Memory, commits: Commits, timeout: float) -> None:
        self._memory = memory
        self._commits = commits
        self._fd = reopen(memory.fd, os.O_RDWR)
        try:
            self._room_fd = reopen(memory.fd, os.O_RDWR)
        except OSError:
            os.close(self._fd)
            raise
        try:
            _lock_writer(self._fd, timeout)
            self._state = commits.read()
        except BaseException:
            self._release()
            raise
        self._taken: set[tuple[int, int]] = set()
        self._allocator: Allocator | None = None
        self._by_length: dict[int, dict[Checksum, list[Extent]]] | None = None

    @property
    def state(self) -> State:
        """What is published while this transaction runs."""
        return self._state

    @property
    def catalogue(self) -> Catalogue:
        """The newest catalogue."""
        return self._state.newest.catalogue

    def put(self, data: memoryview) -> Extent:
        """An extent that holds ``data``: one that holds the same already, or a new one.

        A new one is written once and hashed where it stands, MiB by MiB, while the caches still have it.

        Raises:
            ArenaFullError: there is no room.
        """
        return self._find(data) or self._write(data)

    def reserve(self, length: int) -> Offset:
        """Room of ``length`` bytes for a region, all zero.

        Raises:
            ArenaFullError: there is no room.
        """
        offset = self._allocate(length, BUFFER_ALIGNMENT)
        self._memory.clear(offset, length)
        return offset

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy ``length`` bytes within the arena, into what this transaction reserved."""
        for start in range(0, length, CHUNK_SIZE):
            self._memory.write(target + start, self._memory.read(source + start, min(CHUNK_SIZE, length - start)))

    def claim(self, start: int, length: int) -> bool:
        """Whether nobody holds this span; if so nobody can, until the transaction is over."""
        return try_lock(self._fd, start, length, exclusive=True)

    def commit(self, catalogue: Catalogue, *, leave_room: bool = True) -> None:
        """Publish ``catalogue``.

        ``leave_room`` keeps enough free to publish another of the same size, so that a full arena can be emptied.
        """
        packed = encode_catalogue(catalogue)
        offset = self._allocate(len(packed), EXTENT_ALIGNMENT)
        if leave_room:
            self._allocate(len(packed), EXTENT_ALIGNMENT)
        self._memory.write(offset, packed)
        self._publish(offset, len(packed), checksum(packed))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def _release(self) -> None:
        # A forked child may have inherited the descriptions: unlocking frees them for both, closing would not.
        for fd in (self._room_fd, self._fd):
            unlock_all(fd)
            os.close(fd)

    def _write(self, data: memoryview) -> Extent:
        offset = self._allocate(len(data), BUFFER_ALIGNMENT if len(data) >= BUFFER_ALIGNMENT else EXTENT_ALIGNMENT)
        sums = bytearray()
        for start in range(0, len(data), CHUNK_SIZE):
            chunk = data[start : start + CHUNK_SIZE]
            self._memory.write(offset + start, chunk)
            sums += checksum(self._memory.read(offset + start, len(chunk))).to_bytes(CHECKSUM_SIZE, "little")
        extent = Extent(offset, len(data), bytes(sums))
        self._candidates(extent.length).setdefault(extent.checksum(0), []).append(extent)
        return extent

    def _find(self, data: memoryview) -> Extent | None:
        """An extent that holds ``data``, and still does: its bytes are hashed again, so damage does not spread."""
        candidates = self._candidates(len(data))
        if not candidates:
            return None
        alike = candidates.get(checksum(data[:CHUNK_SIZE]), ())
        if not alike:
            return None
        sums = packed_checksums(data)
        sound = (e for e in alike if e.checksums == sums and find_damage(self._memory.whole, [e]) is None)
        return next(sound, None)

    def _candidates(self, length: int) -> dict[Checksum, list[Extent]]:
        """The extents of ``length`` bytes, by the checksum of their first chunk."""
        if self._by_length is None:
            self._by_length = {}
            for extent in self.catalogue.extents():
                self._by_length.setdefault(extent.length, {}).setdefault(extent.checksum(0), []).append(extent)
        return self._by_length.setdefault(length, {})

    def _allocate(self, length: int, alignment: int) -> Offset:
        if self._allocator is None:
            self._allocator = self._new_allocator()
        offset = self._allocator.allocate(length, alignment)
        if offset is None and self._forget_older():
            self._allocator = self._new_allocator()
            offset = self._allocator.allocate(length, alignment)
        if offset is None:
            raise ArenaFullError(self._why_full(length, self._allocator))
        self._taken.add((offset, offset + length))
        return offset

    def _new_allocator(self) -> Allocator:
        return Allocator(self._memory.size, self._state.spans() | self._taken, self._obstacle)

    def _obstacle(self, start: int, length: int) -> int | None:
        if try_lock(self._room_fd, start, length, exclusive=True):
            return None
        held = conflict(self._room_fd, start, length)
        return start + 1 if held is None else held[1]

    def _forget_older(self) -> bool:
        """Publish the newest catalogue in both slots, so that what only the older one pointed at becomes free."""
        newest, older = self._state.newest, self._state.older
        if older is None or older.catalogue == newest.catalogue:
            return False
        self._publish(newest.slot.catalogue_offset, newest.slot.catalogue_length, newest.slot.catalogue_checksum)
        return True

    def _publish(self, offset: Offset, length: int, packed_checksum: Checksum) -> None:
        # From here on readers look for what was written, and must not wait until this process has let go of it.
        unlock_all(self._room_fd)
        self._commits.publish(self._state.newest.slot.sequence + 1, offset, length, packed_checksum)
        self._state = self._commits.read()

    def _why_full(self, length: int, allocator: Allocator) -> str:
        sizes = {name: region.length for name, region in self.catalogue.regions.items()}
        for name, kept in self.catalogue.snapshots.items():
            sizes[name] = sum(size for _, size in {(e.offset, e.length) for record in kept for e in record.extents()})
        largest = sorted(sizes.items(), key=lambda item: -item[1])[:5]
        held = ", ".join(f"{name} {format_size(size)}" for name, size in largest) or "nothing"
        free, largest_free = format_size(allocator.free), format_size(allocator.largest)
        return (
            f"the arena is full: {format_size(length)} needed in one piece, {free} free of "
            f"{format_size(self._memory.size)} (largest piece {largest_free}; readers may hold some). The rest is "
            f"held by {held}. Nothing was changed. Keep fewer generations, remove something, or make a larger arena"
        )


def _lock_writer(fd: int, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    wait = _WAIT_FIRST
    while not try_lock(fd, WRITER_LOCK, 1, exclusive=True):
        if time.monotonic() >= deadline:
            raise BusyError(
                f"another process is writing to this arena, and did not finish within {timeout:g} s; try again"
            )
        time.sleep(wait)
        wait = min(2 * wait, _WAIT_MAX)
