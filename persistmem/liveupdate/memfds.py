"""What the kernel's memfd handler does to a descriptor at preserve, freeze and retrieve; knows no session.

Source: Linux ``mm/memfd_luo.c``.
"""

import errno
import fcntl
import mmap
import os
import stat
from dataclasses import dataclass
from typing import Self

from persistmem.errors import LiveUpdateError
from persistmem.liveupdate.abi import AbiVersions, MemfdAbi, PhysicalAddress
from persistmem.liveupdate.available import check_available
from persistmem.liveupdate.handover_reader import read_extents, read_memfd
from persistmem.liveupdate.handover_writer import FrozenMemfd
from persistmem.liveupdate.image import Image, reopened, written_bytes
from persistmem.liveupdate.interface import Token

Inode = tuple[int, int]
"""Device and inode number: which file it is, whichever descriptor shows it."""


def inode_of(fd: int) -> Inode:
    """Which file ``fd`` is."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def can_preserve(fd: int) -> bool:
    """Whether the handler takes ``fd``: a file in shared memory, of pages that are not huge, that has no name."""
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))  # the kernel does not count it as open
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink:
        return False
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False  # Only shared memory and hugetlbfs have seals.
    return os.fstatvfs(fd).f_bsize == mmap.PAGESIZE  # hugetlbfs says the size of its pages here


@dataclass(frozen=True, slots=True)
class PreservedMemfd:
    """A memfd that waits for the kexec; ``fd`` shares the position with the descriptor that was preserved."""

    token: Token
    fd: int
    inode: Inode
    size: int
    seals: int

    @classmethod
    def preserve(cls, fd: int, token: Token) -> Self:
        """Fill the holes of ``fd``, and note its size and its seals."""
        status = os.fstat(fd)
        _fill_holes(fd, status)
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        kept = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
        return cls(token, kept, (status.st_dev, status.st_ino), status.st_size, seals)

    def freeze(self) -> FrozenMemfd:
        """What crosses the kexec.

        Raises:
            LiveUpdateError: ``EPERM``, the size changed. The kernel would have refused that to who did it; user space
                finds it only now.
        """
        size = os.fstat(self.fd).st_size
        if size != self.size:
            raise LiveUpdateError(
                errno.EPERM,
                f"the size of token {self.token} went from {self.size} to {size} bytes after it was preserved; "
                "set it back, or close its session",
            )
        return FrozenMemfd(self.token, self.fd, os.lseek(self.fd, 0, os.SEEK_CUR), self.size, self.seals)

    def written_bytes(self) -> int:
        """How much of it was ever written, and is copied at the kexec."""
        with reopened(self.fd, os.O_RDONLY) as source:
            return written_bytes(source, 0, self.size)

    def unpreserve(self) -> None:
        """Let go of it."""
        os.close(self.fd)


def _fill_holes(fd: int, status: os.stat_result) -> None:
    if not status.st_size:
        return
    check_available(status.st_size - status.st_blocks * 512, "filling the holes of a memfd")
    # The descriptor itself may be read-only; the kernel fills holes all the same.
    with reopened(fd, os.O_RDWR) as writable:
        os.posix_fallocate(writable, 0, status.st_size)


def restore(image: Image, address: PhysicalAddress, versions: AbiVersions) -> int:
    """A new memfd with the bytes, size and position that lie in ``image``, and with its seals if they were handed over.

    The image's pages are freed once all are copied. The owner is the caller, the mode 0777, the name empty.

    Raises:
        CorruptError: what lies there is no memfd.
        OSError: out of memory.
    """
    memfd = read_memfd(image, address, versions)
    extents = list(read_extents(image, memfd))
    for extent in extents:
        image.take(extent)
    check_available(sum(map(image.written, extents)), "restoring a memfd")
    # The kernel's memfd-v1 does not allow sealing here, so that such a memfd can never be sealed again.
    sealing = 0 if versions.memfd is MemfdAbi.V1 else os.MFD_ALLOW_SEALING
    fd = os.memfd_create("", os.MFD_CLOEXEC | sealing)
    try:
        os.ftruncate(fd, memfd.size)
        for extent in extents:
            image.load_file(extent, fd, memfd.size)
        os.lseek(fd, memfd.position, os.SEEK_SET)
        if memfd.seals:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, memfd.seals)
        for extent in extents:
            image.free(extent)
    except BaseException:
        os.close(fd)
        raise
    return fd
