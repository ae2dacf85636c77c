"""A kernel image says the same however it is packed, and whatever it claims, reading it fails in one line at worst."""

import contextlib
import random
import re
import resource
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from persistmem.errors import KernelImageError, MissingLibraryError
from persistmem.liveupdate import kernel_image
from persistmem.liveupdate.kernel_image import Abi, KernelImage, read_kernel_image

from .images import (
    ABI,
    CONFIG,
    LZ4_BLOCK,
    PACKERS,
    RELEASE,
    arm64_image,
    bzimage,
    ikconfig,
    lz4_legacy,
    packed_bzimage,
    vmlinux,
    with_length,
    zboot,
)

MIB = 1 << 20
FLIPS = 2000
PREFIXES = 40
KERNEL = vmlinux(config=ikconfig(CONFIG))
OPTIONS = {"LOCALVERSION": '"-generic"', "KEXEC_HANDOVER": "y", "LIVEUPDATE": "y"}
IMAGES = {
    **{f"bzImage {name}": packed_bzimage(name, KERNEL) for name in (*PACKERS, "none")},
    **{f"vmlinux {name}": packer(KERNEL) for name, packer in PACKERS.items()},
    "bzImage zstd, gzip": PACKERS["gzip"](packed_bzimage("zstd", KERNEL)),
    "vmlinuz.efi": zboot(PACKERS["gzip"](arm64_image()), "gzip"),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "image"


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A kernel may have one MiB, and this process 64 MiB more than it has now."""
    monkeypatch.setattr(kernel_image, "IMAGE_BYTES_MAX", MIB)
    before = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 64 * MIB, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def read(file: Path, image: bytes) -> KernelImage:
    file.write_bytes(image)
    return read_kernel_image(file)


@pytest.mark.parametrize("compression", [*PACKERS, "none"])
def test_a_bzimage_says_what_it_is_however_it_is_compressed(file: Path, compression: str) -> None:
    found = read(file, packed_bzimage(compression, KERNEL))
    assert found == KernelImage(RELEASE, Abi("kho-v4", "luo-v5", "memfd-v2"), OPTIONS, compression)


@pytest.mark.parametrize("compression", PACKERS)
def test_a_vmlinux_says_what_it_is_however_it_is_compressed(file: Path, compression: str) -> None:
    expected = KernelImage(RELEASE, Abi("kho-v4", "luo-v5", "memfd-v2"), OPTIONS, compression)
    assert read(file, PACKERS[compression](KERNEL)) == expected
    assert read(file, with_length(PACKERS[compression](KERNEL), KERNEL)) == expected


def test_a_vmlinux_and_a_compressed_bzimage_are_kernels_too(file: Path) -> None:
    assert read(file, KERNEL).compression == "none"
    twice = read(file, PACKERS["gzip"](packed_bzimage("zstd", KERNEL)))
    assert (twice.release, twice.options, twice.compression) == (RELEASE, OPTIONS, "zstd")


def test_the_images_of_arm64_are_kernels_too(file: Path) -> None:
    kernel = arm64_image()
    for image, compression in (
        (kernel, "none"),
        (PACKERS["gzip"](kernel), "gzip"),
        (zboot(PACKERS["gzip"](kernel), "gzip"), "gzip"),
        (zboot(PACKERS["zstd"](kernel), "zstd22"), "zstd"),
    ):
        assert read(file, image) == KernelImage(RELEASE, Abi("kho-v4", "luo-v5", "memfd-v2"), None, compression)


@pytest.mark.parametrize("size", [LZ4_BLOCK - 1, LZ4_BLOCK, LZ4_BLOCK + 1])
def test_an_lz4_kernel_may_have_several_blocks(file: Path, size: int) -> None:
    kernel = vmlinux().rjust(size, b"\0")
    assert read(file, with_length(lz4_legacy(kernel), kernel)).release == RELEASE


def test_an_lz4_kernel_that_is_cut_off_between_two_blocks_is_refused(file: Path) -> None:
    kernel = vmlinux().ljust(LZ4_BLOCK, b"\0")
    first = lz4_legacy(kernel)
    with pytest.raises(KernelImageError, match="lz4 data cannot be unpacked: it is cut off"):
        read(file, first)
    with pytest.raises(KernelImageError, match="lz4 data cannot be unpacked: it is cut off"):
        read(file, with_length(first, kernel + kernel))
    with pytest.raises(KernelImageError, match="lz4 data cannot be unpacked: a block before the last is not full"):
        read(file, lz4_legacy(kernel[:-1]) + first[4:])


def test_a_setup_of_zero_sectors_has_four(file: Path) -> None:
    assert read(file, bzimage(PACKERS["gzip"](KERNEL), setup_sectors=0)).release == RELEASE


def test_a_kernel_without_live_update_names_no_version(file: Path) -> None:
    assert read(file, vmlinux("6.12.1", ())) == KernelImage("6.12.1", Abi(None, None, None), None, "none")
    assert read(file, vmlinux("6.17.1", ("kho-v1",))).abi == Abi("kho-v1", None, None)


def test_a_version_is_a_word_of_its_own(file: Path) -> None:
    words = (*ABI, *ABI, "the-luo-v9", "xluo-v9", "luo-v9a", "luo-v", "luo-v99999", "kho-v8 kho")
    assert read(file, vmlinux(abi=words)).abi == Abi("kho-v4", "luo-v5", "memfd-v2")


def test_two_versions_of_one_abi_are_no_answer(file: Path) -> None:
    with pytest.raises(KernelImageError, match="expected one version of luo, found luo-v5, luo-v6"):
        read(file, vmlinux(abi=(*ABI, "luo-v6")))


@pytest.mark.parametrize(
    "config",
    [
        b"",
        ikconfig(CONFIG)[:-8],
        ikconfig(CONFIG)[:-60] + b"IKCFG_ED",
        ikconfig(CONFIG)[:30] + b"\xff\xff" + ikconfig(CONFIG)[32:],
        b"IKCFG_ED IKCFG_ST",
        b"IKCFG_STIKCFG_ED",
    ],
    ids=["none", "without an end", "cut off", "damaged", "the wrong way round", "empty"],
)
def test_a_configuration_that_is_not_all_there_is_none(file: Path, config: bytes) -> None:
    found = read(file, vmlinux(config=config))
    assert (found.release, found.options) == (RELEASE, None)


def test_many_beginnings_of_a_configuration_take_no_time(file: Path) -> None:
    before = time.process_time()
    assert read(file, vmlinux(config=b"IKCFG_ST" * 65536)).options is None
    assert time.process_time() - before < 2


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_an_image_that_is_cut_off_is_refused_wherever_it_is_cut(file: Path, image: bytes) -> None:
    assert read(file, image).release == RELEASE
    near = {*range(9), *range(len(image) - 9, len(image))}
    for length in sorted(near | set(range(9, len(image), len(image) // PREFIXES))):
        with pytest.raises(KernelImageError, match=re.escape(f"kernel image {file}: ")):
            read(file, image[:length])


@pytest.mark.parametrize("compression", PACKERS)
def test_a_large_kernel_is_refused_when_only_its_end_is_cut_off(file: Path, compression: str) -> None:
    # Much of it can be unpacked all the same, with its release and without what stands behind.
    packed = PACKERS[compression](vmlinux(more=random.Random(1).randbytes(MIB // 2)))
    assert read(file, packed).release == RELEASE
    for image in (packed[: len(packed) // 2], packed[:-1]):
        with pytest.raises(KernelImageError, match=f"its {compression} data cannot be unpacked: it is cut off"):
            read(file, image)


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_a_damaged_image_is_read_or_refused(file: Path, image: bytes) -> None:
    chance = random.Random(1)
    rounds = FLIPS // len(IMAGES) + 1
    read_all_the_same = 0
    for _ in range(rounds):
        damaged = bytearray(image)
        for _ in range(chance.choice((1, 1, 2, 8))):
            # What is read first is small, and decides most.
            at = chance.choice((chance.randrange(len(image)), chance.randrange(0x1F0, 0x250), chance.randrange(64)))
            damaged[at % len(image)] ^= 1 << chance.randrange(8)
        with contextlib.suppress(KernelImageError):
            read(file, bytes(damaged))
            read_all_the_same += 1
    assert read_all_the_same < rounds


@pytest.mark.parametrize("compression", PACKERS)
def test_a_kernel_that_unpacks_to_too_much_is_refused_before_it_is_there(
    file: Path, compression: str, request: pytest.FixtureRequest
) -> None:
    bomb = PACKERS[compression](bytes(128 * MIB))
    assert len(bomb) < MIB
    request.getfixturevalue("little_memory")
    for image in (bomb, bzimage(bomb)):
        with pytest.raises(KernelImageError, match="expected at most 1 MiB unpacked, found more"):
            read(file, image)


def test_a_configuration_that_unpacks_to_too_much_is_none(file: Path, request: pytest.FixtureRequest) -> None:
    kernel = vmlinux(config=ikconfig("CONFIG_KEXEC=y\n" + "#" * (128 * MIB)))
    request.getfixturevalue("little_memory")
    assert read(file, kernel).options is None


@pytest.mark.usefixtures("little_memory")
def test_a_file_that_is_too_large_is_refused_without_reading_it_all(file: Path) -> None:
    with file.open("wb") as image:
        image.truncate(1 << 40)
    with pytest.raises(KernelImageError, match=re.escape(f"kernel image {file}: expected at most 1 MiB, found more")):
        read_kernel_image(file)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(
    "packed",
    [b"\x5d\0\0\0\x80" + b"\xff" * 8 + bytes(64), b"\x28\xb5\x2f\xfd\0\xa8" + struct.pack("<I", 1 << 3 | 3)],
    ids=["lzma", "zstd"],
)
def test_a_window_of_two_gigabytes_is_refused(file: Path, packed: bytes) -> None:
    with pytest.raises(KernelImageError, match=r"cannot be unpacked: .*[Mm]emory"):
        read(file, packed)


@pytest.mark.parametrize(("compression", "module"), [("zstd", "zstandard"), ("lz4", "lz4.block")])
def test_a_library_that_is_not_installed_is_named_with_its_extra(
    file: Path, compression: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingLibraryError, match=rf"compressed with {compression}: install persistmem\[preflight\]"):
        read(file, packed_bzimage(compression, KERNEL))


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (b"", "expected a Linux kernel, found none"),
        (b"#!/bin/sh\necho Linux version\n", "expected a Linux kernel, found none"),
        (bzimage(b"\x89LZO\0\r\n\x1a\n" + bytes(99)), "packed in a way not known here"),
        (bzimage(KERNEL, protocol=0x207), "expected boot protocol 2.08 or later, found 2.07"),
        (bzimage(KERNEL)[:0x20A], "expected a boot header, found the end of the file"),
        (bzimage(KERNEL)[:-1], "it is cut off"),
        (zboot(KERNEL, "gzip")[:-1], "it is cut off"),
        (bzimage(b"\x1f\x8b\x08" + b"\xff" * 99), ": its gzip data cannot be unpacked: "),
        (b"\x28\xb5\x2f\xfd" + b"\xff" * 99, ": its zstd data cannot be unpacked: "),
        (b"\x02\x21\x4c\x18\x09\0\0\0" + b"\xff" * 99, ": its lz4 data cannot be unpacked: "),
    ],
)
def test_what_is_no_kernel_is_told_in_one_line(file: Path, image: bytes, said: str) -> None:
    with pytest.raises(KernelImageError, match=re.escape(f"kernel image {file}: ")) as refusal:
        read(file, image)
    assert str(refusal.value).count(said) == 1
    assert "\n" not in str(refusal.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(KernelImageError, match=re.escape(f"kernel image {tmp_path}/none: No such file or directory")):
        read_kernel_image(tmp_path / "none")
    with pytest.raises(KernelImageError, match=re.escape(f"kernel image {tmp_path}: Is a directory")):
        read_kernel_image(tmp_path)
