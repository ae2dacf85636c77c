"""Verifying extents against their checksums, in one thread or several. Reads memory; knows no names."""

from collections.abc import Callable, Iterable, Iterator

from persistmem.arena.catalogue import CHECKSUM_SIZE, Extent
from persistmem.arena.layout import CHUNK_SIZE, Checksum, checksum

Progress = Callable[[int], None]
"""Told how many more bytes were done."""

_CHUNKS_EACH = 16
"""Fewer are hashed before another thread has started."""

_Chunk = tuple[int, int, Checksum]


def packed_checksums(data: memoryview) -> bytes:
    """XXH3-64 of each MiB of ``data``, as an extent keeps them."""
    sums = (checksum(data[start : start + CHUNK_SIZE]) for start in range(0, len(data), CHUNK_SIZE))
    return b"".join(value.to_bytes(CHECKSUM_SIZE, "little") for value in sums)


def find_damage(
    arena: memoryview, extents: Iterable[Extent], *, threads: int = 1, progress: Progress | None = None
) -> int | None:
    """Offset of the first damaged chunk of ``extents`` in ``arena``, or None if all match.

    Reads every byte once, and copies none. The hash releases the interpreter lock, so ``threads`` work side by side.
    """
    chunks = [chunk for extent in extents for chunk in _chunks(extent)]

    def check(some: list[_Chunk]) -> int | None:
        for offset, length, expected in some:
            if checksum(arena[offset : offset + length]) != expected:
                return offset
            if progress:
                progress(length)
        return None

    workers = min(threads, len(chunks) // _CHUNKS_EACH)
    if workers < 2:
        return check(chunks)
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - slow to import, and rarely needed

    share = -(-len(chunks) // workers)
    parts = [chunks[start : start + share] for start in range(0, len(chunks), share)]
    with ThreadPoolExecutor(workers) as pool:
        return min((offset for offset in pool.map(check, parts) if offset is not None), default=None)


def _chunks(extent: Extent) -> Iterator[_Chunk]:
    for index, start in enumerate(range(0, extent.length, CHUNK_SIZE)):
        yield extent.offset + start, min(CHUNK_SIZE, extent.length - start), extent.checksum(index)
