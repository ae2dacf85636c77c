"""Huge folios for shared memory: whether the machine gives them, asking for them, and whether one got them.

A kexec walks over an arena folio by folio, so 2 MiB instead of 4 KiB makes preserving and retrieving tens of times
cheaper. Knows memfds and mappings, and ``/sys/kernel/mm/transparent_hugepage``; must not know what is in them.
"""

import errno
import mmap
import os
import re
from pathlib import Path
from typing import Final

HUGE: Final = 2 << 20
"""Bytes of a huge folio, on x86-64 and on arm64 with 4 KiB pages."""

_POLICY: Final = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
_GIVING: Final = frozenset({"always", "within_size", "advise", "force"})
_POPULATE_READ: Final = 22  # Linux 5.14, include/uapi/asm-generic/mman-common.h; Python names neither
_POPULATE_WRITE: Final = 23
_PMD_MAPPED: Final = re.compile(r"^ShmemPmdMapped:\s*(\d+) kB$", re.MULTILINE)


def are_given(policy: Path = _POLICY) -> bool:
    """Whether the administrator lets memfds that ask for them have huge folios. Cost: reads one file of sysfs."""
    try:
        chosen = re.search(r"\[(\w+)\]", policy.read_text("ascii"))
    except OSError:
        return False  # a kernel without transparent huge pages
    return chosen is not None and chosen[1] in _GIVING


def ask(mapping: mmap.mmap) -> None:
    """Have what is not yet written in ``mapping`` written into huge folios, where the machine gives them."""
    try:
        mapping.madvise(mmap.MADV_HUGEPAGE)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a kernel without transparent huge pages
            raise


def populate(mapping: mmap.mmap, offset: int, length: int) -> None:
    """Give memory to the holes in this span of a mapping.

    write(2) does not know what was asked for with madvise(2), and takes 4 KiB folios; a page fault takes huge ones, but
    where there is no memory it is a SIGBUS. This takes huge ones, and raises.

    Raises:
        OSError: ``ENOMEM``: the machine is out of memory.
    """
    start = offset // mmap.PAGESIZE * mmap.PAGESIZE
    try:
        mapping.madvise(_POPULATE_WRITE, start, offset + length - start)
    except OSError as error:
        if error.errno == errno.EFAULT:  # what would have been a SIGBUS
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error
        raise


def fill(fd: int) -> None:
    """Fill the holes of a memfd with huge folios where the machine gives them, else leave them.

    Preserving fills them anyway, but with 4 KiB folios. Cost: one page fault for each huge folio.

    Raises:
        OSError: ``ENOMEM``: the machine is out of memory.
    """
    size = os.fstat(fd).st_size
    if size < HUGE or not are_given():
        return
    with mmap.mmap(fd, size) as mapping:
        ask(mapping)
        for start, end in _spans(fd, size, os.SEEK_HOLE, os.SEEK_DATA):
            populate(mapping, start, end - start)


def huge_bytes(fd: int) -> int | None:
    """How many bytes of a memfd lie in huge folios; None on a kernel without CONFIG_PROC_PAGE_MONITOR.

    Cost: maps it, and a page table entry for each folio.
    """
    import ctypes  # noqa: PLC0415 - slow to import, and only who looks at an arena asks this

    size = os.fstat(fd).st_size
    with mmap.mmap(fd, size) as mapping:
        for start, end in _spans(fd, size, os.SEEK_DATA, os.SEEK_HOLE):
            mapping.madvise(_POPULATE_READ, start, end - start)
        anchor = ctypes.c_char.from_buffer(mapping)
        address = ctypes.addressof(anchor)
        del anchor
        try:
            smaps = Path("/proc/self/smaps").read_text("utf-8", "replace")
        except FileNotFoundError:
            return None
    _, _, entry = smaps.partition(f"\n{address:x}-")
    found = _PMD_MAPPED.search(entry)
    return int(found[1]) << 10 if found is not None else 0


def _spans(fd: int, size: int, of: int, until: int) -> list[tuple[int, int]]:
    """Start and end of each span of data, or of holes, in pages."""
    spans = []
    start = 0
    while start < size:
        try:
            start = os.lseek(fd, start, of)
            end = os.lseek(fd, start, until) if start < size else size
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            # No more data: a hole up to the end, or nothing.
            if of == os.SEEK_HOLE and start < size:
                spans.append((start, size))
            break
        if start < end:
            spans.append((start, end))
        start = end
    return spans
