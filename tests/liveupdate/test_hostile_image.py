"""Whatever an image says, the kernel that boots from it refuses it or lives with it: no crash, no hang, no flood."""

import contextlib
import errno
import os
import random
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from persistmem.errors import LiveUpdateError
from persistmem.liveupdate.interface import Token
from persistmem.liveupdate.simulator import SimulatedKernel

from .kexec import image_of

PAGE = 4096
ZEROS = bytes(PAGE)
MIB = 1 << 20
ROUNDS = 1500
CONTENT = b"\xaa" * 10_000
SESSIONS = {"first": {Token(0): 10_000, Token(1): 0}, "second": {Token(0): 3 * MIB}}


@pytest.fixture(scope="module")
def image() -> Iterator[bytes]:
    """A sound image."""
    with SimulatedKernel.fresh("7.2.13").open_device() as device:
        for name, files in SESSIONS.items():
            session = device.create_session(name)
            for token, size in files.items():
                fd = os.memfd_create("hostile")
                os.ftruncate(fd, size)
                os.pwrite(fd, CONTENT[:size], 0)
                session.preserve(fd, token)
                os.close(fd)
        fd = image_of(device)
    yield os.pread(fd, os.fstat(fd).st_size, 0)
    os.close(fd)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """This process may map 256 MiB more than it does now."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 256 * MIB, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def boot_and_retrieve_all(image: bytes, size: int) -> int:
    """Boot from the image, made ``size`` bytes long; returns how much memory all that could be retrieved takes."""
    fd = os.memfd_create("image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    for at in range(0, len(image), PAGE):
        if image[at : at + PAGE] != ZEROS:
            os.pwrite(fd, image[at : at + PAGE], at)
    os.ftruncate(fd, size)
    taken = 0
    with SimulatedKernel.boot(fd, "7.3.4").open_device() as device:
        for name, files in SESSIONS.items():
            with contextlib.suppress(LiveUpdateError), device.retrieve_session(name) as session:
                for token in files:
                    with contextlib.suppress(LiveUpdateError):
                        retrieved = session.retrieve(token)
                        taken += os.fstat(retrieved).st_blocks * 512
                        os.close(retrieved)
    return taken


def restored_memfds() -> set[Path]:
    """Descriptors that were handed out or are still held; restored memfds have no name."""
    descriptors = [entry for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    return {entry for entry in descriptors if entry.is_symlink() and entry.readlink().name == "memfd: (deleted)"}


def words_of_structs(image: bytes) -> dict[int, list[int]]:
    """By page: offsets of all 8-byte words that are neither zero nor a file's content."""
    found: dict[int, list[int]] = {}
    for at in range(0, len(image), 8):
        if image[at : at + 8] not in (bytes(8), CONTENT[:8]):
            found.setdefault(at // PAGE * PAGE, []).append(at)
    return found


def test_the_sound_image_gives_everything_back(image: bytes) -> None:
    assert boot_and_retrieve_all(image, len(image)) == 2 * 3 * PAGE


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("size", [None, 1 << 50], ids=["of its own size", "of a petabyte"])
def test_damaged_structs_are_refused_or_harmless(image: bytes, size: int | None) -> None:
    chance = random.Random(1)
    words = words_of_structs(image)
    pages = sorted(words)
    before = restored_memfds()
    for _ in range(ROUNDS):
        damaged = bytearray(image)
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            at = chance.choice(words[chance.choice(pages)]) + chance.choice((0, 0, 0, 8))
            old = int.from_bytes(damaged[at : at + 8], "little")
            near = (old + 1, old - 1, old ^ 1 << chance.randrange(64), chance.choice(pages), len(image))
            new = chance.choice((*near, 0, 1, 1 << 40, 1 << 62, 2**63 - 1, 2**64 - 1, chance.getrandbits(64)))
            damaged[at : at + 8] = (new % 2**64).to_bytes(8, "little")
        # Each page can be given out once, so what comes back is not larger than what is there.
        assert boot_and_retrieve_all(bytes(damaged), size or len(image)) <= 2 * len(image)
    assert restored_memfds() == before


def test_an_image_cut_short_anywhere_is_refused_or_harmless(image: bytes) -> None:
    for size in range(0, len(image), 4 * PAGE + 777):
        assert boot_and_retrieve_all(image[:size], size) <= 2 * len(image)


@pytest.mark.usefixtures("little_memory")
def test_two_memfds_that_claim_the_same_pages_do_not_both_get_them(image: bytes) -> None:
    # The entries of "first" point at two descriptions; let both point at the larger one.
    entries = [at for at in range(0, len(image), 8) if image[at : at + 9] == b"memfd-v2\0"]
    damaged = bytearray(image)
    damaged[entries[1] + 48 : entries[1] + 56] = damaged[entries[0] + 48 : entries[0] + 56]
    fd = os.memfd_create("image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.pwrite(fd, damaged, 0)
    with SimulatedKernel.boot(fd, "7.3.4").open_device() as device, device.retrieve_session("first") as session:
        assert os.pread(session.retrieve(Token(0)), 20_000, 0) == CONTENT
        for _ in range(2):
            with pytest.raises(LiveUpdateError, match="given out before") as refusal:
                session.retrieve(Token(1))
            assert refusal.value.errno == errno.EIO
