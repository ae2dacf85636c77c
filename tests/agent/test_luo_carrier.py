"""The luo carrier on a simulated kernel: the four verbs, and the way to a kexec and back."""

import errno
import os
import subprocess
import sys

import pytest

from persistmem import errors
from persistmem.agent.command import environment
from persistmem.carriers.luo import INDEX, SESSION, LuoCarrier
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
from persistmem.carriers.luo import INDEX, SESSION, LuoCarrier
from persistmem.errors import CorruptError
from persistmem.liveupdate.simulator import SimulatedKernel
if len(sys.argv) == 4:
    device = SimulatedKernel.boot(int(sys.argv[3]), "7.3.4").open_device()
    carrier = LuoCarrier(device)
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


def test_everything_that_was_preserved_is_there_in_the_next_kernel() -> None:
    assert (
        across_kexec(
            "keep('a', b'one'); keep('\\u00e4/2', b'two'); carrier.preserve()",
            "lost = carrier.retrieve(); carrier.finish();"
            "print(lost, {name: os.pread(carrier.recover(name), 9, 0) for name in carrier.names()})",
        )
        == "{} {'a': b'one', 'ä/2': b'two'}\n"
    )


def test_what_was_not_preserved_is_not() -> None:
    assert across_kexec("keep('a', b'one')", "print(carrier.retrieve(), carrier.names())") == "{} []\n"


def test_what_was_retrieved_can_go_on_to_the_next_kernel() -> None:
    assert (
        across_kexec(
            "keep('a', b'one'); carrier.preserve()",
            "carrier.retrieve(); carrier.finish(); carrier.preserve(); print('prepared')",
        )
        == "prepared\n"
    )


@pytest.mark.parametrize(
    "index", ["", "[]", "{}", '{"version": 2, "tokens": {}}', '{"version": 1, "tokens": {"a": -1}}']
)
def test_an_index_that_says_nothing_usable_is_an_error_and_frees_nothing(index: str) -> None:
    assert across_kexec(
        f"s = device.create_session(SESSION); fd = os.memfd_create('x'); os.write(fd, {index.encode()!r});"
        "s.preserve(fd, INDEX)",
        "try:\n carrier.retrieve()\nexcept CorruptError as error:\n print(error, carrier.names())",
    ).startswith(f"session {SESSION!r}: expected an index")


def test_what_the_kernel_cannot_give_is_named() -> None:
    assert (
        across_kexec(
            "s = device.create_session(SESSION); fd = os.memfd_create('x');"
            'os.write(fd, b\'{"version": 1, "tokens": {"a": 7}}\'); s.preserve(fd, INDEX)',
            "print(sorted(carrier.retrieve()), carrier.names())",
        )
        == "['a'] []\n"
    )
    assert INDEX == 0
