"""The luo carrier on a simulated kernel: the four verbs, and the way to a kexec and back."""

import errno
import os
import subprocess
import sys

import pytest

from persistmem import errors
from persistmem.agent.command import environment
from persistmem.carriers.luo import NAME_BYTES_MAX, LuoCarrier
from persistmem.liveupdate.simulator import SimulatedDevice, SimulatedKernel


@pytest.fixture
def device() -> SimulatedDevice:
    return SimulatedKernel.fresh("7.3.4").open_device()


@pytest.fixture
def carrier(device: SimulatedDevice) -> LuoCarrier:
    return LuoCarrier(device)


def memfd(content: bytes) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    os.write(fd, content)
    return fd


def content(fd: int) -> bytes:
    data = os.pread(fd, 1000, 0)
    os.close(fd)
    return data


def test_what_is_kept_outlives_the_descriptor_it_was_given_by(carrier: LuoCarrier) -> None:
    fd = memfd(b"kept")
    carrier.keep("a", fd)
    os.close(fd)
    assert carrier.names() == ["a"]
    recovered = carrier.recover("a")
    assert not os.get_inheritable(recovered)
    assert content(recovered) == b"kept"


def test_a_name_is_given_once(carrier: LuoCarrier) -> None:
    carrier.keep("a", memfd(b"first"))
    with pytest.raises(errors.ExistsError):
        carrier.keep("a", memfd(b"second"))
    assert content(carrier.recover("a")) == b"first"


def test_what_was_dropped_is_gone(carrier: LuoCarrier) -> None:
    carrier.keep("a", memfd(b""))
    carrier.drop("a")
    assert carrier.names() == []
    for verb in (carrier.recover, carrier.drop):
        with pytest.raises(errors.NotFoundError):
            verb("a")


def test_while_a_kexec_is_prepared_nothing_comes_and_nothing_goes_until_it_is_aborted(carrier: LuoCarrier) -> None:
    carrier.keep("a", memfd(b"kept"))
    carrier.preserve()
    with pytest.raises(errors.RefusedError):
        carrier.keep("b", memfd(b""))
    with pytest.raises(errors.RefusedError):
        carrier.drop("a")
    assert content(carrier.recover("a")) == b"kept"
    carrier.abort()
    carrier.drop("a")


def test_what_cannot_be_preserved_stops_the_preparation_and_leaves_nothing_prepared(
    carrier: LuoCarrier, device: SimulatedDevice
) -> None:
    carrier.keep("a", memfd(b""))
    reading, _ = os.pipe()
    carrier.keep("pipe", reading)
    with pytest.raises(errors.LiveUpdateError) as refusal:
        carrier.preserve()
    assert refusal.value.errno == errno.ENOENT
    carrier.drop("pipe")
    carrier.preserve()


# A program that is the machine: it runs the code for its first kernel, jumps, and runs the code for its second.
MACHINE = """
import os, sys
from persistmem.carriers.luo import PREFIX, TOKEN, LuoCarrier
from persistmem.errors import Error
from persistmem.liveupdate.simulator import SimulatedKernel
if len(sys.argv) == 4:
    device = SimulatedKernel.boot(int(sys.argv[3]), "7.3.4").open_device()
    carrier = LuoCarrier(device)
    def content(name):
        try:
            return os.pread(carrier.recover(name), 9, 0).decode()
        except Error as error:
            return type(error).__name__
    exec(sys.argv[2])
else:
    device = SimulatedKernel.fresh("7.2.13").open_device()
    carrier = LuoCarrier(device)
    def keep(name, content):
        fd = os.memfd_create("test")
        os.write(fd, content)
        carrier.keep(name, fd)
    exec(sys.argv[1])
    program = open("/proc/self/cmdline").read().split(chr(0))[2]
    device.kexec(lambda image: [sys.executable, "-c", program, *sys.argv[1:], str(image)])
"""


def across_kexec(before: str, after: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", MACHINE, before, after], env=environment(), capture_output=True, text=True, check=True
    )
    return done.stdout


def test_everything_that_was_preserved_is_there_in_the_next_kernel_by_its_name() -> None:
    assert (
        across_kexec(
            "keep('a', b'one'); keep('\\u00e4/2', b'two'); carrier.preserve()",
            "print(content('a'), content('\\u00e4/2'), content('b')); carrier.finish(); print(carrier.names())",
        )
        == "one two NotFoundError\n['a', 'ä/2']\n"
    )


def test_what_was_not_preserved_is_not() -> None:
    assert across_kexec("keep('a', b'one')", "print(content('a'), carrier.names())") == "NotFoundError []\n"


def test_what_was_retrieved_can_go_on_to_the_next_kernel() -> None:
    assert (
        across_kexec(
            "keep('a', b'one'); carrier.preserve()",
            "content('a'); carrier.finish(); carrier.preserve(); print('prepared')",
        )
        == "prepared\n"
    )


def test_what_nobody_asked_for_stays_with_the_kernel_when_the_rest_is_finished() -> None:
    assert (
        across_kexec(
            "keep('a', b'one'); keep('b', b'two'); carrier.preserve()",
            "content('a'); carrier.finish(); print(content('b'))",
        )
        == "two\n"
    )


def test_what_the_kernel_cannot_give_is_an_error_every_time_and_is_not_given_up() -> None:
    assert (
        across_kexec(
            "device.create_session(PREFIX + 'a')",
            "print(content('a')); carrier.finish(); print(content('a')); carrier.drop('a'); print(content('a'))",
        )
        == "LiveUpdateError\nLiveUpdateError\nNotFoundError\n"
    )


def test_preserved_eagerly_everything_crosses_a_kexec_for_which_nobody_prepared() -> None:
    assert (
        across_kexec(
            "carrier = LuoCarrier(device, 'eager'); keep('a', b'one'); keep('b', b'two'); carrier.drop('a')",
            "print(content('a'), content('b'))",
        )
        == "NotFoundError two\n"
    )


def test_what_was_taken_over_is_preserved_eagerly_as_soon_as_it_is_finished() -> None:
    assert (
        across_kexec(
            "keep('a', b'one'); carrier.preserve()",
            "carrier = LuoCarrier(device, 'eager'); fd = carrier.recover('a'); carrier.finish()\n"
            "try:\n device.create_session('other').preserve(fd, TOKEN)\nexcept Error as error:\n print(error.errno)",
        )
        == f"{errno.EBUSY}\n"
    )


def test_what_cannot_be_preserved_eagerly_is_not_kept(device: SimulatedDevice) -> None:
    carrier = LuoCarrier(device, "eager")
    reading, _ = os.pipe()
    with pytest.raises(errors.LiveUpdateError):
        carrier.keep("pipe", reading)
    assert carrier.names() == []


def test_more_holes_than_there_is_memory_are_refused_before_any_is_filled(carrier: LuoCarrier) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("a", "b"):  # neither is too large by itself
        fd = memfd(b"kept")
        os.ftruncate(fd, memory * 3 // 5)
        carrier.keep(name, fd)
        os.close(fd)
    with pytest.raises(errors.LiveUpdateError, match="preserving: filling the holes of all arenas needs") as refusal:
        carrier.preserve()
    assert refusal.value.errno == errno.ENOMEM
    carrier.drop("a")  # nothing is being prepared


def test_a_name_that_no_session_can_have_is_refused(carrier: LuoCarrier) -> None:
    carrier.keep("x" * NAME_BYTES_MAX, memfd(b""))
    with pytest.raises(errors.InvalidNameError, match="1 to 52 bytes"):
        carrier.keep("x" * (NAME_BYTES_MAX + 1), memfd(b""))
