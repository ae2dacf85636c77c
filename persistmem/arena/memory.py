"""A memfd as memory: bulk writes, single 8-byte stores, reads. Knows no format.

Every byte that an arena writes goes through :class:`Memory`, so that a test can record the stores and stop after any.
"""

import errno
import mmap
import os
import weakref
from contextlib import suppress

from persistmem import folios
from persistmem.arena.memfd import reopen

_PIECE = 1 << 20


class Memory:
    """A writable mapping of a whole memfd, through a file description of its own."""

    def __init__(self, fd: int, size: int) -> None:
        self.size = size
        self._fd = reopen(fd, os.O_RDWR)
        self._close_fd = weakref.finalize(self, os.close, self._fd)
        self._close_fd.atexit = False  # the process's end closes it anyway, after everybody who may still use it
        self._mapping = mmap.mmap(self._fd, size)
        self._huge = size >= folios.HUGE and folios.are_given()
        if self._huge:
            folios.ask(self._mapping)
        self._bytes = memoryview(self._mapping)
        self._read_only = self._bytes.toreadonly()
        self._words = self._bytes.cast("Q")

    @property
    def fd(self) -> int:
        """The descriptor beneath; closed with the memory."""
        return self._fd

    @property
    def whole(self) -> memoryview:
        """All of it, read-only."""
        return self._read_only

    def read(self, offset: int, length: int) -> memoryview:
        """A read-only view; copies nothing."""
        return self._read_only[offset : offset + length]

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Copy ``data`` to ``offset``. Not atomic.

        Raises:
            OSError: ``ENOSPC`` or ``ENOMEM``: the machine is out of memory.
        """
        # Into a hole, pwrite spares the zeroing and the page faults (0.43 s against 0.72 s per GiB), and reports a
        # machine out of memory as an error instead of a SIGBUS. But it takes small folios, which cost more at a kexec.
        if not self._is_hole(offset, len(data)):
            self._bytes[offset : offset + len(data)] = data
        elif self._huge:
            folios.populate(self._mapping, offset, len(data))
            self._bytes[offset : offset + len(data)] = data
        else:
            view = memoryview(data)
            while view:
                written = os.pwrite(self._fd, view, offset)
                offset, view = offset + written, view[written:]

    def store(self, offset: int, word: int) -> None:
        """Write 8 bytes at ``offset``, a multiple of 8, in one aligned store."""
        self._words[offset >> 3] = word

    def clear(self, offset: int, length: int) -> None:
        """Make ``length`` bytes from ``offset`` zero. Holes stay holes."""
        for start in range(offset, offset + length, _PIECE):
            size = min(_PIECE, offset + length - start)
            if not self._is_hole(start, size):
                self.write(start, bytes(size))

    def close(self) -> None:
        """Unmap. Views given out by :meth:`read` keep the mapping until they are gone."""
        for view in (self._words, self._read_only, self._bytes):
            view.release()
        with suppress(BufferError):  # a view is still in use: the mapping goes with the last one
            self._mapping.close()
        self._close_fd()

    def _is_hole(self, offset: int, length: int) -> bool:
        try:
            return os.lseek(self._fd, offset, os.SEEK_DATA) >= offset + length
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return True
            raise
