"""What is taken for an arena's memory can neither change its size nor be missing; all else is refused, at once."""

import ctypes
import fcntl
import mmap
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from persistmem.arena import Arena
from persistmem.arena.memfd import SEALS, check_memfd, create_memfd, reopen
from persistmem.errors import BusyError, CorruptError

SIZE = 1 << 20
_SYS_memfd_secret = 447


def hugetlb() -> int:
    try:
        fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
    except OSError as error:
        pytest.skip(f"this kernel has no huge pages (hugetlb): {error.strerror}")
    os.ftruncate(fd, os.fstat(fd).st_blksize)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    return fd


def secret() -> int:
    fd = int(ctypes.CDLL(None, use_errno=True).syscall(_SYS_memfd_secret, os.O_CLOEXEC))
    if fd < 0:
        pytest.skip(f"this kernel has no memfd_secret(2): {os.strerror(ctypes.get_errno())}")
    os.ftruncate(fd, SIZE)
    return fd


def path_only() -> int:
    fd = create_memfd("test", SIZE)
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_PATH | os.O_CLOEXEC)
    finally:
        os.close(fd)


def sized_file(directory: str) -> int:
    if not Path(directory).is_dir():
        pytest.skip(f"this machine has no {directory}")
    fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    os.ftruncate(fd, SIZE)
    return fd


def shared_anonymous() -> int:
    """The file that the kernel makes for a shared anonymous mapping: on the same device as memfds."""
    mapping = mmap.mmap(-1, SIZE)
    lines = Path("/proc/self/maps").read_text().splitlines()
    where = next(line.split()[0] for line in lines if "/dev/zero" in line)
    try:
        return os.open(f"/proc/self/map_files/{where}", os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        pytest.skip("only root can open what it maps")
    finally:
        mapping.close()


def pipe() -> int:
    reading, writing = os.pipe()
    os.close(writing)
    return reading


def unix_socket() -> int:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).detach()


def opened(path: str, flags: int = os.O_RDONLY) -> Callable[[], int]:
    return lambda: os.open(path, flags | os.O_CLOEXEC)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        pytest.param(hugetlb, "ordinary pages", id="hugetlb"),
        pytest.param(secret, "without seals", id="memfd_secret"),
        pytest.param(path_only, "without seals", id="O_PATH"),
        pytest.param(lambda: sized_file("/dev/shm"), "found seals", id="tmpfs"),
        pytest.param(lambda: sized_file("/tmp"), "found", id="file"),
        pytest.param(shared_anonymous, "found seals", id="shared anonymous memory"),
        pytest.param(pipe, "without seals", id="pipe"),
        pytest.param(unix_socket, "without seals", id="socket"),
        pytest.param(opened("/dev/zero", os.O_RDWR), "without seals", id="device"),
        pytest.param(opened("/proc/self/mem", os.O_RDWR), "without seals", id="memory of a process"),
        pytest.param(opened("/proc/self/maps"), "without seals", id="proc"),
        pytest.param(opened("/"), "without seals", id="directory"),
        pytest.param(lambda: os.pidfd_open(os.getpid()), "without seals", id="process"),
        pytest.param(lambda: os.eventfd(0), "without seals", id="eventfd"),
    ],
)
def test_what_can_change_or_is_no_memory_is_refused_by_what_it_is(make: Callable[[], int], found: str) -> None:
    fd = make()
    try:
        for use in (lambda: check_memfd(fd), lambda: Arena.format(fd, kernel="7.3.4"), lambda: Arena(fd, kernel="7")):
            with pytest.raises(CorruptError, match=found):
                use()
    finally:
        os.close(fd)


@pytest.fixture
def arena_fd() -> Iterator[int]:
    fd = create_memfd("test", SIZE)
    Arena.format(fd, kernel="7.3.4")
    yield fd
    os.close(fd)


def test_a_descriptor_that_only_reads_serves_as_well_as_any(arena_fd: int) -> None:
    reading = os.open(f"/proc/self/fd/{arena_fd}", os.O_RDONLY | os.O_CLOEXEC)
    with Arena(reading, kernel="7.3.4") as arena:
        arena.snapshot("x", 1)
    os.close(reading)
    with Arena(arena_fd, kernel="7.3.4") as arena:
        assert arena.restore("x") == 1


def test_flags_that_another_holder_sets_on_a_shared_descriptor_change_nothing(arena_fd: int) -> None:
    shared = os.dup(arena_fd)
    fcntl.fcntl(shared, fcntl.F_SETFL, os.O_APPEND | os.O_NONBLOCK)
    os.lseek(shared, 0, os.SEEK_END)
    with Arena(arena_fd, kernel="7.3.4") as arena:
        arena.snapshot("x", bytes(100_000))
        assert arena.verify().ok
    os.close(shared)


def test_a_lease_on_it_makes_nobody_wait(arena_fd: int) -> None:
    """An open(2) that waits for a lease to be given back waits for 45 seconds."""
    with ExitStack() as leased:
        holder = os.open(f"/proc/self/fd/{arena_fd}", os.O_RDONLY | os.O_CLOEXEC)
        leased.callback(os.close, holder)
        before = signal.signal(signal.SIGIO, signal.SIG_IGN)
        leased.callback(signal.signal, signal.SIGIO, before)
        try:
            fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError as error:
            pytest.skip(f"this kernel gives no lease on a memfd: {error.strerror}")
        with pytest.raises(BusyError, match="lease"):
            Arena(arena_fd, kernel="7.3.4")
        with pytest.raises(BusyError, match="lease"):
            reopen(arena_fd, os.O_RDWR)
    with Arena(arena_fd, kernel="7.3.4") as arena:
        assert arena.snapshot("x", 1).number == 1
