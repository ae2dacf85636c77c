"""Shared locks that keep what is being read, or viewed, from being reused. Knows spans, not what is in them."""

import mmap
import os
from collections.abc import Iterable, Sequence
from typing import Self

from persistmem import folios
from persistmem.arena.catalogue import Extent
from persistmem.arena.layout import BUFFER_ALIGNMENT, EXTENT_ALIGNMENT, align
from persistmem.arena.locks import try_lock
from persistmem.arena.memfd import reopen
from persistmem.arena.views import ViewMapping, map_views


class Hold:
    """Shared locks on some spans, through a file description of their own."""

    def __init__(self, fd: int, *, writable: bool = False) -> None:
        self._fd = reopen(fd, os.O_RDWR if writable else os.O_RDONLY)

    def take(self, spans: Iterable[tuple[int, int]]) -> bool:
        """Lock them all; False if a writer is reusing one of them at this moment."""
        wanted = sorted(spans)
        # Buffers stand a page apart at the most: the few bytes between them are worth less than a lock for each. But
        # a writer may be using those.
        return self._take(_merge(wanted, BUFFER_ALIGNMENT)) or self._take(_merge(wanted, EXTENT_ALIGNMENT))

    # A mapping refers to the description that holds the locks: they last until the last view of it is gone, in this
    # process and in those forked from it, whatever happens to this object.

    def map_views(self, size: int, extents: Sequence[Extent]) -> ViewMapping:
        """The whole arena, read-only, for views into ``extents``."""
        return map_views(self._fd, size, extents)

    def map_writable(self, size: int) -> mmap.mmap:
        """The whole arena, for a hold that was made writable."""
        mapping = mmap.mmap(self._fd, size)
        if size >= folios.HUGE and folios.are_given():
            folios.ask(mapping)
        return mapping

    def close(self) -> None:
        """Let go, unless a mapping still holds on."""
        os.close(self._fd)

    def _take(self, spans: Iterable[tuple[int, int]]) -> bool:
        return all(try_lock(self._fd, start, end - start, exclusive=False) for start, end in spans)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _merge(spans: Iterable[tuple[int, int]], alignment: int) -> list[tuple[int, int]]:
    """Sorted spans, those made one that only ``alignment`` keeps apart."""
    merged: list[tuple[int, int]] = []
    for start, end in spans:
        if merged and start <= align(merged[-1][1], alignment):
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged
