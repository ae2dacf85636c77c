"""Kernel images of a few kilobytes, packed as the builds of Linux and of distributions pack theirs."""

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable, Mapping

import lz4.block
import zstandard

RELEASE = "7.3.4-generic"
ABI = ("kho-v4", "luo-v5", "memfd-v2")
NEXT_ABI = ("kho-v4", "luo-v6", "memfd-v2")
CONFIG = 'CONFIG_LOCALVERSION="-generic"\nCONFIG_KEXEC_HANDOVER=y\nCONFIG_LIVEUPDATE=y\n# CONFIG_KEXEC_SIG is not set\n'

LZ4_BLOCK = 8 << 20
XZ_FILTERS = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 0}]


def vmlinux(release: str = RELEASE, abi: tuple[str, ...] = ABI, config: bytes = b"", more: bytes = b"") -> bytes:
    """An ELF file with what a kernel says of itself."""
    elf = struct.pack("<4sBBB9xHHI", b"\x7fELF", 2, 1, 1, 2, 62, 1)
    return elf + _memory(release, abi, config, more)


def arm64_image(release: str = RELEASE, abi: tuple[str, ...] = ABI) -> bytes:
    """An ``Image``, which is no ELF file."""
    return struct.pack("<2sHIQQQ24x4sI", b"MZ", 0, 0x14000000, 0, 1 << 20, 0, b"ARM\x64", 0x40) + _memory(release, abi)


def ikconfig(text: str) -> bytes:
    """A configuration as it stands in a kernel."""
    return b"IKCFG_ST" + gzip.compress(text.encode(), mtime=0) + b"IKCFG_ED"


def bzimage(payload: bytes, *, setup_sectors: int = 3, protocol: int = 0x20F) -> bytes:
    """A bzImage that carries a payload; zero setup sectors stand for four."""
    setup = bytearray(((setup_sectors or 4) + 1) * 512)
    setup[0x1F1] = setup_sectors
    struct.pack_into("<4sH", setup, 0x202, b"HdrS", protocol)
    unpacker = b"\x90" * 700
    struct.pack_into("<II", setup, 0x248, len(unpacker), len(payload))
    return bytes(setup) + unpacker + payload


def zboot(payload: bytes, compression: str) -> bytes:
    """A ``vmlinuz.efi`` that carries a payload."""
    header = struct.pack("<2s2x4sIIII32s", b"MZ", b"zimg", 4096, len(payload), 0, 0, compression.encode())
    return header.ljust(4096, b"\0") + payload


def with_length(packed: bytes, kernel: bytes) -> bytes:
    """As the build of a bzImage does to all that gzip did not pack."""
    return packed + struct.pack("<I", len(kernel))


def lz4_legacy(kernel: bytes) -> bytes:
    """As ``lz4 -l`` does."""
    packed = struct.pack("<I", 0x184C2102)
    for at in range(0, len(kernel), LZ4_BLOCK):
        block = lz4.block.compress(kernel[at : at + LZ4_BLOCK], store_size=False)
        packed += struct.pack("<I", len(block)) + block
    return packed


PACKERS: Mapping[str, Callable[[bytes], bytes]] = {
    "gzip": lambda kernel: gzip.compress(kernel, mtime=0),
    "xz": lambda kernel: lzma.compress(kernel, check=lzma.CHECK_CRC32, filters=XZ_FILTERS),
    "zstd": lambda kernel: zstandard.ZstdCompressor(write_content_size=False).compress(kernel),
    "lz4": lz4_legacy,
    "bzip2": bz2.compress,
    "lzma": lambda kernel: lzma.compress(kernel, lzma.FORMAT_ALONE, preset=0),
}
"""By name, what packs a file."""


def packed_bzimage(compression: str, kernel: bytes) -> bytes:
    """A bzImage as the build makes it; "none" is a way to compress too."""
    if compression == "none":
        return bzimage(with_length(kernel, kernel))
    packed = PACKERS[compression](kernel)
    return bzimage(packed if compression == "gzip" else with_length(packed, kernel))


def _memory(release: str, abi: tuple[str, ...], config: bytes = b"", more: bytes = b"") -> bytes:
    banner = f"Linux version {release} (builder@example) (gcc 14.2.0) #1 SMP PREEMPT_DYNAMIC\n".encode()
    code = bytes(number * number % 251 for number in range(3000))
    words = b"".join(word.encode() + b"\0" for word in abi)
    return code + b"\0%s version %s\0" + banner + b"\0" + words + config + b"\0" + more + code
