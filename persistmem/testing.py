"""Arenas for tests and examples: no agent, no carrier, gone with the process."""

import os

from persistmem.arena import Arena, Origin
from persistmem.arena.layout import BUFFER_ALIGNMENT, align
from persistmem.arena.memfd import create_memfd
from persistmem.sizes import parse_size


def new_arena(size: int | str = "1MiB") -> Arena:
    """A new, empty arena that nobody keeps.

    >>> new_arena("64KiB").snapshots()
    []
    """
    kernel = os.uname().release
    fd = create_memfd("testing", align(parse_size(size), BUFFER_ALIGNMENT))
    try:
        Arena.format(fd, kernel=kernel)
        return Arena(fd, kernel=kernel, origin=Origin.created(kernel))
    finally:
        os.close(fd)
