"""Finds room for new extents. Knows spans of bytes, not what they hold; writes nothing.

The free memory of an arena is not recorded anywhere: it is what neither commit slot's catalogue points at.
"""

from collections.abc import Callable, Iterable, Iterator

from persistmem.arena.layout import DATA_OFFSET, EXTENT_ALIGNMENT, Offset, align

Claim = Callable[[int, int], int | None]
"""Asked before a span (offset, length) is given out: None to agree, or the end of what is in the way."""


class Allocator:
    """First fit over the gaps between used spans. Making one costs O(n log n) in the number of spans."""

    def __init__(self, arena_size: int, used: Iterable[tuple[int, int]], claim: Claim) -> None:
        self._claim = claim
        self._gaps = list(_gaps(arena_size, used))

    @property
    def free(self) -> int:
        """Bytes in all gaps together."""
        return sum(end - start for start, end in self._gaps)

    @property
    def largest(self) -> int:
        """Bytes in the largest gap."""
        return max((end - start for start, end in self._gaps), default=0)

    def allocate(self, length: int, alignment: int) -> Offset | None:
        """Room for ``length`` bytes at a multiple of ``alignment``, or None if there is none."""
        for index, (start, end) in enumerate(self._gaps):
            offset = align(start, alignment)
            while offset + length <= end:
                blocked_until = self._claim(offset, length)
                if blocked_until is None:
                    after = align(offset + length, EXTENT_ALIGNMENT)
                    self._gaps[index : index + 1] = [(s, e) for s, e in ((start, offset), (after, end)) if s < e]
                    return Offset(offset)
                offset = align(blocked_until, alignment)
        return None


def _gaps(arena_size: int, used: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    end = int(DATA_OFFSET)
    for start, stop in sorted(used):
        if start > end:
            yield end, start
        end = max(end, align(stop, EXTENT_ALIGNMENT))
    if end < arena_size:
        yield end, arena_size
