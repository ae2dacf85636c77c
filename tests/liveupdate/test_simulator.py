"""What the simulated kernel does that a real one does otherwise or not at all: its kexec, and who refuses whom."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from persistmem.errors import CorruptError, IncompatibleKernelError, LiveUpdateError
from persistmem.liveupdate.abi import AbiVersions, MemfdAbi
from persistmem.liveupdate.interface import Token
from persistmem.liveupdate.simulator import SimulatedDevice, SimulatedKernel
from tests.descriptors import open_descriptors

from .kexec import image_of

MIB = 1 << 20
ONE, TWO = Token(1), Token(2)
SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK


@pytest.fixture
def device() -> Iterator[SimulatedDevice]:
    """The open device of a kernel after a cold boot."""
    with SimulatedKernel.fresh("7.2.13").open_device() as device:
        yield device


def memfd(content: bytes, seals: int = 0) -> int:
    fd = os.memfd_create("simulator", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.pwrite(fd, content, 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def test_the_freeze_refuses_a_memfd_whose_size_changed_and_everything_goes_on(device: SimulatedDevice) -> None:
    session = device.create_session("s")
    fd = memfd(b"before")
    session.preserve(fd, ONE)
    os.ftruncate(fd, 10)
    with pytest.raises(LiveUpdateError, match="6 to 10 bytes") as refusal:
        device.kexec(lambda _: pytest.fail("the freeze comes first"))
    assert refusal.value.errno == errno.EPERM
    os.ftruncate(fd, 6)
    next_kernel = SimulatedKernel.boot(image_of(device), "7.3.4")
    assert os.pread(next_kernel.open_device().retrieve_session("s").retrieve(ONE), 10, 0) == b"before"


def test_a_kexec_that_cannot_start_the_next_kernel_changes_nothing(device: SimulatedDevice) -> None:
    session = device.create_session("s")
    session.preserve(memfd(b"stays"), ONE)
    inheritable, other = os.pipe()
    os.set_inheritable(inheritable, True)
    before = open_descriptors()
    with pytest.raises(LiveUpdateError) as refusal:
        device.kexec(lambda _: ["/nonexistent/kernel"], keep=[other])
    assert refusal.value.errno == errno.ENOENT
    assert open_descriptors() == before
    assert (os.get_inheritable(inheritable), os.get_inheritable(other)) == (True, False)
    session.preserve(memfd(b"more"), TWO)
    with pytest.raises(LiveUpdateError) as refusal:
        device.create_session("s")
    assert refusal.value.errno == errno.EEXIST


def test_the_next_program_has_the_image_what_it_was_meant_to_keep_and_nothing_else() -> None:
    script = '''
import os, sys
from persistmem.liveupdate.simulator import SimulatedKernel
lost, kept = os.memfd_create("lost", 0), os.memfd_create("kept", os.MFD_CLOEXEC)
show = """
import json, os, sys
names = os.listdir("/proc/self/fd")
print(json.dumps([sys.argv[1:], [name for name in names if os.path.exists("/proc/self/fd/" + name)]]))
"""
with SimulatedKernel.fresh("7.2.13").open_device() as device:
    device.create_session("s").preserve(os.memfd_create("preserved"), 1)
    device.kexec(lambda fd: [sys.executable, "-c", show, str(fd), str(kept)], keep=[kept])
'''
    paths = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    told, found = json.loads(run.stdout)
    assert set(found) == {"0", "1", "2", *told}


@pytest.mark.parametrize(
    "abi",
    [AbiVersions(luo="luo-v6"), AbiVersions(kho="kho-v5"), AbiVersions(memfd=MemfdAbi.V1)],
    ids=["luo-v6", "kho-v5", "memfd-v1"],
)
def test_a_next_kernel_of_another_abi_refuses_the_state_and_boots_empty(
    device: SimulatedDevice, abi: AbiVersions
) -> None:
    device.create_session("s").preserve(memfd(b"lost"), ONE)
    kernel = SimulatedKernel.boot(image_of(device), "7.3.4-next", abi)
    assert isinstance(kernel.refused, IncompatibleKernelError)
    with kernel.open_device() as next_device:
        with pytest.raises(LiveUpdateError) as refusal:
            next_device.retrieve_session("s")
        assert refusal.value.errno == errno.ENOENT
        next_device.create_session("s").preserve(memfd(b"new"), ONE)


def test_it_refuses_even_when_no_session_was_ever_made(device: SimulatedDevice) -> None:
    kernel = SimulatedKernel.boot(image_of(device), "7.3.4-next", AbiVersions(luo="luo-v6"))
    assert isinstance(kernel.refused, IncompatibleKernelError)
    assert "luo-v5" in str(kernel.refused)


@pytest.mark.parametrize("version", list(MemfdAbi))
def test_kernels_of_the_same_abi_understand_each_other(version: MemfdAbi) -> None:
    abi = AbiVersions(memfd=version)
    with SimulatedKernel.fresh("first", abi).open_device() as device:
        device.create_session("s").preserve(memfd(b"carried", SEALS), ONE)
        kernel = SimulatedKernel.boot(image_of(device), "second", abi)
    assert kernel.refused is None
    fd = kernel.open_device().retrieve_session("s").retrieve(ONE)
    assert os.pread(fd, 10, 0) == b"carried"
    assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS == (SEALS if version is MemfdAbi.V2 else 0)


def test_an_image_that_is_none_is_refused_and_the_kernel_boots_empty() -> None:
    for fd in (os.pipe()[0], os.memfd_create("unsealable"), memfd(b""), memfd(b"\xff" * 100_000)):
        kernel = SimulatedKernel.boot(fd, "7.3.4")
        assert isinstance(kernel.refused, CorruptError)
        with pytest.raises(LiveUpdateError):
            kernel.open_device().retrieve_session("s")


def test_sessions_that_were_not_finished_do_not_cross_a_second_kexec(device: SimulatedDevice) -> None:
    device.create_session("s").preserve(memfd(b"once"), ONE)
    second = SimulatedKernel.boot(image_of(device), "second").open_device()
    second.retrieve_session("s").retrieve(ONE)
    third = SimulatedKernel.boot(image_of(second), "third")
    with pytest.raises(LiveUpdateError):
        third.open_device().retrieve_session("s")


def test_live_updates_are_counted_from_the_cold_boot_on(device: SimulatedDevice) -> None:
    second = SimulatedKernel.boot(image_of(device), "second")
    third = SimulatedKernel.boot(image_of(second.open_device()), "third")
    assert (second.live_updates, third.live_updates) == (1, 2)


def test_memory_that_was_never_written_is_not_copied(device: SimulatedDevice) -> None:
    fd = memfd(b"")
    os.ftruncate(fd, 256 * MIB)
    os.pwrite(fd, b"alone", 200 * MIB)
    device.create_session("s").preserve(fd, ONE)
    image_fd = image_of(device)
    assert os.fstat(image_fd).st_blocks * 512 < 4 * MIB
    restored = SimulatedKernel.boot(image_fd, "7.3.4").open_device().retrieve_session("s").retrieve(ONE)
    assert os.fstat(restored).st_size == 256 * MIB
    assert os.pread(restored, 7, 200 * MIB - 1) == b"\0alone\0"


def test_image_memory_is_given_back_as_memfds_are_retrieved_and_all_of_it_at_the_finish(
    device: SimulatedDevice,
) -> None:
    session = device.create_session("s")
    session.preserve(memfd(os.urandom(8 * MIB)), ONE)
    session.preserve(memfd(os.urandom(8 * MIB)), TWO)
    image_fd = image_of(device)
    watch = os.dup(image_fd)
    incoming = SimulatedKernel.boot(image_fd, "7.3.4").open_device().retrieve_session("s")
    full = os.fstat(watch).st_blocks * 512
    incoming.retrieve(ONE)
    assert os.fstat(watch).st_blocks * 512 == full - 8 * MIB
    incoming.finish()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(image_fd)


@pytest.mark.parametrize("seals", [fcntl.F_SEAL_WRITE, SEALS | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL])
def test_a_memfd_that_is_sealed_against_writing_crosses(device: SimulatedDevice, seals: int) -> None:
    device.create_session("s").preserve(memfd(b"sealed", seals), ONE)
    fd = SimulatedKernel.boot(image_of(device), "7.3.4").open_device().retrieve_session("s").retrieve(ONE)
    assert os.pread(fd, 10, 0) == b"sealed"
    assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == seals


def test_what_the_machine_has_no_memory_for_is_refused_before_it_is_filled(device: SimulatedDevice) -> None:
    fd = memfd(b"")
    os.ftruncate(fd, 1 << 50)
    with pytest.raises(LiveUpdateError, match="available") as refusal:
        device.create_session("s").preserve(fd, ONE)
    assert refusal.value.errno == errno.ENOMEM
    assert os.fstat(fd).st_blocks == 0


@pytest.mark.parametrize("name", ["with\0nul", "\ud800"])
def test_a_name_that_no_c_string_can_be_is_einval(device: SimulatedDevice, name: str) -> None:
    with pytest.raises(LiveUpdateError) as refusal:
        device.create_session(name)
    assert refusal.value.errno == errno.EINVAL


@pytest.mark.parametrize("token", [-1, 2**64])
def test_a_token_that_is_no_u64_is_einval(device: SimulatedDevice, token: int) -> None:
    with pytest.raises(LiveUpdateError) as refusal:
        device.create_session("s").preserve(memfd(b"x"), Token(token))
    assert refusal.value.errno == errno.EINVAL


def test_a_closed_device_refuses_with_ebadf_and_can_be_opened_again() -> None:
    kernel = SimulatedKernel.fresh("7.3.4")
    device = kernel.open_device()
    device.close()
    device.close()
    calls: list[Callable[[], object]] = [
        lambda: device.create_session("s"),
        lambda: device.retrieve_session("s"),
        lambda: device.kexec(lambda _: []),
    ]
    for call in calls:
        with pytest.raises(LiveUpdateError) as refusal:
            call()
        assert refusal.value.errno == errno.EBADF
    kernel.open_device().create_session("s")
