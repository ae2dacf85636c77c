"""Memfds: what can be preserved, what comes back, and what does not."""

import errno
import fcntl
import mmap
import os
from pathlib import Path

from persistmem.liveupdate.interface import Token

from .machine import ONE, TWO, Machine, content_of, kernels_alone, memfd, refused

MIB = 1 << 20
MANY_MEMFDS = 200
PATTERN = bytes(range(256)) * 16 + b"the end"
"""A page and a little more."""

# What Python 3.11 does not name.
MFD_NOEXEC_SEAL = 0x8
F_SEAL_FUTURE_WRITE = 0x10
F_SEAL_EXEC = 0x20


def before_a_memfd_that_is_preserved_is_ebusy_in_the_same_session(machine: Machine) -> None:
    session = machine.session("preserved twice")
    fd = memfd()
    session.preserve(fd, ONE)
    with refused(errno.EBUSY):
        session.preserve(fd, TWO)


def before_a_memfd_that_is_preserved_is_ebusy_in_another_session(machine: Machine) -> None:
    fd = memfd()
    machine.session("preserved here").preserve(fd, ONE)
    other = machine.session("and there")
    with refused(errno.EBUSY):
        other.preserve(fd, ONE)


def before_a_retrieved_memfd_is_ebusy_until_its_session_is_finished(machine: Machine) -> None:
    machine.session("handed on").preserve(memfd(b"handed on"), ONE)


def after_a_retrieved_memfd_is_ebusy_until_its_session_is_finished(machine: Machine) -> None:
    incoming = machine.device.retrieve_session("handed on")
    fd = incoming.retrieve(ONE)
    outgoing = machine.session("handed on again")
    with refused(errno.EBUSY):
        outgoing.preserve(fd, ONE)
    incoming.finish()
    outgoing.preserve(fd, ONE)


def before_a_token_in_use_is_eexist(machine: Machine) -> None:
    session = machine.session("token in use")
    session.preserve(memfd(b"first"), ONE)
    with refused(errno.EEXIST):
        session.preserve(memfd(b"second"), ONE)
    with refused(errno.EEXIST):
        session.preserve(os.pipe()[0], ONE)


def after_a_token_in_use_is_eexist(machine: Machine) -> None:
    assert content_of(machine.device.retrieve_session("token in use").retrieve(ONE)) == b"first"


def before_the_least_and_the_greatest_token_cross(machine: Machine) -> None:
    session = machine.session("tokens")
    session.preserve(memfd(b"least"), Token(0))
    session.preserve(memfd(b"greatest"), Token(2**64 - 1))


def after_the_least_and_the_greatest_token_cross(machine: Machine) -> None:
    session = machine.device.retrieve_session("tokens")
    assert content_of(session.retrieve(Token(0))) == b"least"
    assert content_of(session.retrieve(Token(2**64 - 1))) == b"greatest"


@kernels_alone
def before_the_size_of_a_preserved_memfd_cannot_change(machine: Machine) -> None:
    fd = memfd(bytes(4096))
    machine.session("frozen size").preserve(fd, ONE)
    for size in (0, 8192):
        with refused(errno.EPERM, by=OSError):
            os.ftruncate(fd, size)
    with refused(errno.EPERM, by=OSError):
        os.pwrite(fd, b"past the end", 4096)


@kernels_alone
def before_a_preserved_memfd_can_give_no_memory_back(machine: Machine) -> None:
    fd = memfd(bytes(4096))
    machine.session("no holes").preserve(fd, ONE)
    with refused(errno.EPERM, by=OSError):
        mmap.mmap(fd, 4096).madvise(mmap.MADV_REMOVE)


@kernels_alone
def before_a_preserved_memfd_cannot_be_sealed_against_writing(machine: Machine) -> None:
    fd = memfd()
    machine.session("seals too late").preserve(fd, ONE)
    with refused(errno.EBUSY, by=OSError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def before_writes_after_preserve_cross(machine: Machine) -> None:
    fd = memfd(bytes(2 * 4096))
    mapping = mmap.mmap(fd, 2 * 4096)
    machine.session("late writes").preserve(fd, ONE)
    os.pwrite(fd, b"by write", 0)
    mapping[4096:4103] = b"by mmap"
    assert os.pread(fd, 8, 0) == mapping[:8] == b"by write"


def after_writes_after_preserve_cross(machine: Machine) -> None:
    content = content_of(machine.device.retrieve_session("late writes").retrieve(ONE))
    assert content == b"by write".ljust(4096, b"\0") + b"by mmap".ljust(4096, b"\0")


def before_an_empty_memfd_crosses(machine: Machine) -> None:
    machine.session("empty").preserve(memfd(b""), ONE)


def after_an_empty_memfd_crosses(machine: Machine) -> None:
    assert content_of(machine.device.retrieve_session("empty").retrieve(ONE)) == b""


def before_a_nameless_file_on_tmpfs_crosses(machine: Machine) -> None:
    fd = os.open(machine.tmpfs, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.pwrite(fd, PATTERN, 0)
    machine.session("nameless").preserve(fd, ONE)


def after_a_nameless_file_on_tmpfs_crosses(machine: Machine) -> None:
    assert content_of(machine.device.retrieve_session("nameless").retrieve(ONE)) == PATTERN


def before_a_memfd_that_was_opened_read_only_crosses(machine: Machine) -> None:
    fd = os.open(f"/proc/self/fd/{memfd(PATTERN)}", os.O_RDONLY)
    machine.session("read-only").preserve(fd, ONE)


def after_a_memfd_that_was_opened_read_only_crosses(machine: Machine) -> None:
    fd = machine.device.retrieve_session("read-only").retrieve(ONE)
    assert content_of(fd) == PATTERN
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR


def before_a_hugetlb_memfd_is_enoent(machine: Machine) -> None:
    session = machine.session("refuses hugetlb")
    with refused(errno.ENOENT):
        session.preserve(os.memfd_create("huge", os.MFD_HUGETLB), ONE)


def before_a_file_with_a_name_on_tmpfs_is_enoent(machine: Machine) -> None:
    session = machine.session("refuses named files")
    path = machine.tmpfs / f"conformance-{os.getpid()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with refused(errno.ENOENT):
            session.preserve(fd, ONE)
    finally:
        path.unlink()


def before_a_pipe_is_enoent(machine: Machine) -> None:
    session = machine.session("refuses pipes")
    with refused(errno.ENOENT):
        session.preserve(os.pipe()[0], ONE)


def before_a_session_is_enoent(machine: Machine) -> None:
    session = machine.session("refuses sessions")
    with refused(errno.ENOENT):
        session.preserve(machine.session("refused").fileno(), ONE)


def before_a_descriptor_that_is_not_open_is_ebadf(machine: Machine) -> None:
    session = machine.session("refuses closed descriptors")
    fd = memfd()
    os.close(fd)
    with refused(errno.EBADF):
        session.preserve(fd, ONE)
    with refused(errno.EBADF):
        session.preserve(os.open(machine.tmpfs, os.O_PATH), ONE)


def before_preserving_a_sparse_memfd_fills_its_holes(machine: Machine) -> None:
    fd = memfd(b"")
    os.ftruncate(fd, 64 * MIB)
    os.pwrite(fd, b"in the middle", 40 * MIB)
    machine.session("sparse").preserve(fd, ONE)
    assert os.fstat(fd).st_blocks * 512 == 64 * MIB


def after_preserving_a_sparse_memfd_fills_its_holes(machine: Machine) -> None:
    content = content_of(machine.device.retrieve_session("sparse").retrieve(ONE))
    assert content == b"in the middle".rjust(40 * MIB + 13, b"\0").ljust(64 * MIB, b"\0")


def before_holes_that_memory_cannot_fill_are_enomem(machine: Machine) -> None:
    # The kernel by itself would run out of memory on the way and kill processes, its caller among them.
    fd = memfd()
    os.ftruncate(fd, 1 << 43)
    session = machine.session("too sparse")
    with refused(errno.ENOMEM):
        session.preserve(fd, ONE)
    assert os.fstat(fd).st_blocks * 512 == mmap.PAGESIZE
    os.ftruncate(fd, 1)
    session.preserve(fd, ONE)


@kernels_alone  # The simulator could, but it copies: what was never written stays free, and costs no time.
def before_what_was_a_hole_takes_memory_ever_after(machine: Machine) -> None:
    fd = memfd(b"")
    os.ftruncate(fd, MIB)
    machine.session("filled").preserve(fd, ONE)


@kernels_alone
def after_what_was_a_hole_takes_memory_ever_after(machine: Machine) -> None:
    session = machine.device.retrieve_session("filled")
    fd = session.retrieve(ONE)
    session.finish()
    assert os.fstat(fd).st_blocks * 512 == MIB


def before_retrieving_a_token_twice_gives_the_same_open_file(machine: Machine) -> None:
    machine.session("token twice").preserve(memfd(PATTERN), ONE)


def after_retrieving_a_token_twice_gives_the_same_open_file(machine: Machine) -> None:
    session = machine.device.retrieve_session("token twice")
    first, second = session.retrieve(ONE), session.retrieve(ONE)
    os.lseek(first, 99, os.SEEK_SET)
    assert first != second
    assert os.lseek(second, 0, os.SEEK_CUR) == 99
    assert os.path.sameopenfile(first, second)


def before_retrieving_an_unknown_token_is_enoent(machine: Machine) -> None:
    machine.session("unknown token").preserve(memfd(), ONE)


def after_retrieving_an_unknown_token_is_enoent(machine: Machine) -> None:
    session = machine.device.retrieve_session("unknown token")
    with refused(errno.ENOENT):
        session.retrieve(TWO)


def before_contents_and_size_come_back(machine: Machine) -> None:
    session = machine.session("contents")
    session.preserve(memfd(PATTERN), ONE)
    fd = memfd(PATTERN)
    for at in range(0, 5 * MIB, MIB):
        os.pwrite(fd, at.to_bytes(8, "little"), at + 4090)
    session.preserve(fd, TWO)


def after_contents_and_size_come_back(machine: Machine) -> None:
    session = machine.device.retrieve_session("contents")
    assert content_of(session.retrieve(ONE)) == PATTERN
    large = session.retrieve(TWO)
    assert os.fstat(large).st_size == 4 * MIB + 4098
    for at in range(0, 5 * MIB, MIB):
        assert os.pread(large, 8, at + 4090) == at.to_bytes(8, "little")


def before_the_position_comes_back_as_it_was_at_the_kexec(machine: Machine) -> None:
    fd = memfd(PATTERN)
    os.lseek(fd, 11, os.SEEK_SET)
    machine.session("position").preserve(fd, ONE)
    os.lseek(fd, 12345, os.SEEK_SET)


def after_the_position_comes_back_as_it_was_at_the_kexec(machine: Machine) -> None:
    assert os.lseek(machine.device.retrieve_session("position").retrieve(ONE), 0, os.SEEK_CUR) == 12345


def before_the_seals_of_preserve_time_come_back_from_a_kernel_of_memfd_v2(machine: Machine) -> None:
    fd = memfd(PATTERN)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    machine.session("seals").preserve(fd, ONE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)


def after_the_seals_of_preserve_time_come_back_from_a_kernel_of_memfd_v2(machine: Machine) -> None:
    seals = fcntl.fcntl(machine.device.retrieve_session("seals").retrieve(ONE), fcntl.F_GET_SEALS)
    assert seals & (fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK) == (fcntl.F_SEAL_GROW if machine.carries_seals else 0)


def before_a_memfd_sealed_against_execution_comes_back_sealed_against_everything(machine: Machine) -> None:
    # It arrives executable, mode 0777, and adding F_SEAL_EXEC to an executable file adds the other seals.
    fd = os.memfd_create("conformance", os.MFD_CLOEXEC | MFD_NOEXEC_SEAL)
    os.pwrite(fd, PATTERN, 0)
    assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == F_SEAL_EXEC
    machine.session("not executable").preserve(fd, ONE)


def after_a_memfd_sealed_against_execution_comes_back_sealed_against_everything(machine: Machine) -> None:
    fd = machine.device.retrieve_session("not executable").retrieve(ONE)
    assert content_of(fd) == PATTERN
    everything = F_SEAL_EXEC | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | F_SEAL_FUTURE_WRITE
    if machine.carries_seals:
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == everything
        with refused(errno.EPERM, by=OSError):
            os.pwrite(fd, b"x", 0)
        with refused(errno.EPERM, by=OSError):
            os.fchmod(fd, 0o600)


def before_name_owner_and_mode_do_not_come_back(machine: Machine) -> None:
    fd = memfd(PATTERN)
    os.fchmod(fd, 0o640)
    machine.session("attributes").preserve(fd, ONE)


def after_name_owner_and_mode_do_not_come_back(machine: Machine) -> None:
    fd = machine.device.retrieve_session("attributes").retrieve(ONE)
    status = os.fstat(fd)
    assert "conformance" not in Path(f"/proc/self/fd/{fd}").readlink().name
    assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())
    assert status.st_mode & 0o7777 == 0o777


def before_a_retrieved_descriptor_closes_on_exec(machine: Machine) -> None:
    machine.session("close on exec").preserve(memfd(), ONE)


def after_a_retrieved_descriptor_closes_on_exec(machine: Machine) -> None:
    session = machine.device.retrieve_session("close on exec")
    assert not os.get_inheritable(session.retrieve(ONE))
    assert not os.get_inheritable(session.retrieve(ONE))


def before_200_memfds_cross_in_one_session(machine: Machine) -> None:
    session = machine.session("many memfds")
    for number in range(MANY_MEMFDS):
        fd = memfd(number.to_bytes(4, "little"))
        session.preserve(fd, Token(number))
        os.close(fd)


def after_200_memfds_cross_in_one_session(machine: Machine) -> None:
    with machine.device.retrieve_session("many memfds") as session:
        for number in range(MANY_MEMFDS):
            fd = session.retrieve(Token(number))
            assert content_of(fd) == number.to_bytes(4, "little")
            os.close(fd)
