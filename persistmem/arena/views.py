"""Views of an arena that are checked as they are read, not when they are given out.

Knows mappings, extents and addresses; neither names nor documents.
"""

import mmap
import sys
from bisect import bisect_right
from collections.abc import Sequence
from typing import TypeVar

from persistmem.arena.catalogue import Extent
from persistmem.arena.layout import CHUNK_SIZE, checksum
from persistmem.errors import ArgumentError, CorruptError

V = TypeVar("V")


class ViewMapping(mmap.mmap):
    """A read-only mapping of an arena that knows the extents its views lie in, and which chunks were checked."""

    extents: Sequence[Extent] = ()
    checked: set[tuple[int, int]]

    def check(self, start: int, stop: int) -> None:
        """Verify every chunk that bytes ``start`` to ``stop`` of the arena lie in, once.

        Raises:
            CorruptError: one does not match.
        """
        at = bisect_right(self.extents, start, key=lambda extent: extent.offset) - 1
        extent = self.extents[at]
        for chunk in range((start - extent.offset) // CHUNK_SIZE, -(-(stop - extent.offset) // CHUNK_SIZE)):
            if (at, chunk) in self.checked:
                continue
            begin = extent.offset + chunk * CHUNK_SIZE
            with memoryview(self) as whole, whole[begin : min(begin + CHUNK_SIZE, extent.end)] as part:
                if checksum(part) != extent.checksum(chunk):
                    raise CorruptError(
                        f"view: checksum mismatch at byte {begin} of the arena; restore another generation"
                    )
            self.checked.add((at, chunk))


def map_views(fd: int, size: int, extents: Sequence[Extent]) -> ViewMapping:
    """Map an arena for views into ``extents``."""
    mapping = ViewMapping(fd, size, prot=mmap.PROT_READ)
    mapping.extents = sorted(extents, key=lambda extent: extent.offset)
    mapping.checked = set()
    return mapping


def verified(view: V) -> V:
    """Return ``view`` after verifying the bytes it shows.

    For what :meth:`Arena.restore` gave out with ``copy=False, verify="lazy"``, and for slices of that: only the chunks
    of 1 MiB that the slice touches are read, and each only the first time.

    Args:
        view: a memoryview, or a numpy array, on an arena.

    Raises:
        CorruptError: its bytes do not match their checksum.
        ArgumentError: it is no view of an arena: a copy, perhaps.

    >>> import persistmem.testing
    >>> arena = persistmem.testing.new_arena("64KiB")
    >>> _ = arena.snapshot("model", {"weights": bytes(8192)})
    >>> model = arena.restore("model", copy=False, verify="lazy")
    >>> verified(model["weights"][:4]).tolist()
    [0, 0, 0, 0]
    """
    mapping, start, stop = _place(view)
    if stop > start:
        mapping.check(start, stop)
    return view


def _place(view: object) -> tuple[ViewMapping, int, int]:
    """The mapping beneath a view, and which bytes of it the view spans."""
    numpy = sys.modules.get("numpy")
    owner: object = view
    if numpy is not None and isinstance(view, numpy.ndarray):
        low, high = numpy.lib.array_utils.byte_bounds(view)
        while isinstance(owner, numpy.ndarray):
            owner = owner.base
    elif isinstance(view, memoryview):
        low = _address(view)
        high = low + view.nbytes
    if isinstance(owner, memoryview):
        owner = owner.obj
    if not isinstance(owner, ViewMapping):
        raise ArgumentError(f"expected a view of an arena, found a {type(view).__name__} of its own memory")
    with memoryview(owner) as whole:
        base = _address(whole)
    return owner, low - base, high - base


def _address(view: memoryview) -> int:
    import ctypes  # noqa: PLC0415 - slow to import, and only lazy views need it

    # The start of the stable ABI's Py_buffer; ctypes' own from_buffer() refuses read-only memory.
    buffer = (ctypes.c_void_p * 16)()
    get, release = ctypes.pythonapi.PyObject_GetBuffer, ctypes.pythonapi.PyBuffer_Release
    strided_read_only = 0x18
    get(ctypes.py_object(view), buffer, strided_read_only)
    try:
        return int(buffer[0] or 0)
    finally:
        release(buffer)
