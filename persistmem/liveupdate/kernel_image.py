"""What a kernel image says of itself: its release, its live-update ABI, its configuration. Reads, and starts nothing.

Knows bzImage, vmlinux, arm64's images and how they are compressed; must not know what this machine runs. The image is
hostile until checked: whatever it claims, little more than :data:`IMAGE_BYTES_MAX` are unpacked.

Source: Linux ``Documentation/arch/x86/boot.rst``; ``drivers/firmware/efi/libstub/zboot-header.S``; ``kernel/configs.c``
for the configuration inside.
"""

import bz2
import lzma
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from persistmem.errors import CorruptError, KernelImageError, MissingLibraryError
from persistmem.sizes import format_size

IMAGE_BYTES_MAX: Final = 512 << 20
"""Most bytes of an image, packed or not; Linux kernels have 10 to 100 MiB."""

_CONFIG_BYTES_MAX: Final = 4 << 20
_XZ_MEMORY_MAX: Final = 256 << 20
_LZ4_BLOCK: Final = 8 << 20  # the legacy format's only block size
_ZSTD_PIECE: Final = 1 << 8  # unpacks to 8 MiB at most: 128 KiB for each 4 bytes

_BOOT_SIGNATURE: Final = b"HdrS"
_BOOT_HEADER: Final = struct.Struct("<4sH")
_BOOT_HEADER_OFFSET: Final = 0x202
_SETUP_SECTORS_OFFSET: Final = 0x1F1
_PAYLOAD: Final = struct.Struct("<II")
_PAYLOAD_OFFSET: Final = 0x248
_PROTOCOL_WITH_PAYLOAD: Final = 0x208
_ZBOOT: Final = b"MZ\0\0zimg"
_SECTOR: Final = 512
_U32: Final = struct.Struct("<I")
_ELF: Final = b"\x7fELF"

_RELEASE: Final = re.compile(rb"Linux version ([!-~]{1,65}) ")
_ABI: Final = re.compile(rb"(?<![\w-])(kho|luo|memfd)-v(\d{1,4})\0")
_CONFIG_START: Final = b"IKCFG_ST"
_CONFIG_END: Final = b"IKCFG_ED"
_OPTION: Final = re.compile(r"(CONFIG_\w+)=(.*)")


class Abi(NamedTuple):
    """Versions of what one kernel hands to the next; None for what it does not have."""

    kho: str | None
    """Kexec handover, such as "kho-v4"."""
    luo: str | None
    """The live update orchestrator, such as "luo-v5"."""
    memfd: str | None
    """Memfds in its sessions, such as "memfd-v2"."""


@dataclass(frozen=True, slots=True)
class KernelImage:
    """What an image says."""

    release: str
    """As ``uname -r`` will say; empty if it does not say."""
    abi: Abi
    options: Mapping[str, str] | None
    """Its configuration without the prefix ``CONFIG_``; None if it carries none."""
    compression: str
    """Such as "zstd"; "none"."""


def read_kernel_image(path: Path) -> KernelImage:
    """Read an image: a bzImage, a vmlinux, arm64's Image or vmlinuz.efi, or one of these compressed as a whole.

    Cost: unpacks it, a tenth of a second to a few.

    Raises:
        KernelImageError: it cannot be read, or it is no Linux kernel.
        MissingLibraryError: it is compressed in a way that takes a library which is not installed.
    """
    try:
        with path.open("rb") as file:
            data = file.read(IMAGE_BYTES_MAX + 1)
    except OSError as error:
        raise KernelImageError(f"kernel image {path}: {error.strerror}") from error
    if len(data) > IMAGE_BYTES_MAX:
        raise KernelImageError(f"kernel image {path}: expected at most {format_size(IMAGE_BYTES_MAX)}, found more")
    try:
        return _read(data)
    except CorruptError as error:
        raise KernelImageError(f"kernel image {path}: {error}") from error


def options_of(config: str) -> dict[str, str]:
    r"""Return what a configuration file sets, without the prefix.

    >>> options_of("CONFIG_KEXEC=y\n# CONFIG_KEXEC_SIG is not set\n")
    {'KEXEC': 'y'}
    """
    return {
        found[1].removeprefix("CONFIG_"): found[2] for line in config.splitlines() if (found := _OPTION.match(line))
    }


def _read(data: bytes) -> KernelImage:
    kernel, compression = _unpack(_payload(data))
    if compression != "none":
        payload = _payload(kernel)
        if payload is not kernel:
            kernel, compression = _unpack(payload)
    release = _RELEASE.search(kernel)
    if release is None:
        raise CorruptError("expected a Linux kernel, found none in it, or one that is packed in a way not known here")
    return KernelImage(release[1].decode("ascii"), abi_in(kernel), _options(kernel), compression)


def _payload(data: bytes) -> bytes:
    """What an image that unpacks itself unpacks; the image itself if it is none of these."""
    try:
        if data.startswith(_ZBOOT):
            start, length = _PAYLOAD.unpack_from(data, len(_ZBOOT))
        elif data[_BOOT_HEADER_OFFSET : _BOOT_HEADER_OFFSET + len(_BOOT_SIGNATURE)] == _BOOT_SIGNATURE:
            _, protocol = _BOOT_HEADER.unpack_from(data, _BOOT_HEADER_OFFSET)
            if protocol < _PROTOCOL_WITH_PAYLOAD:
                raise CorruptError(f"expected boot protocol 2.08 or later, found {protocol >> 8}.{protocol & 0xFF:02d}")
            offset, length = _PAYLOAD.unpack_from(data, _PAYLOAD_OFFSET)
            # Zero stands for four, as it was in the beginning.
            start = ((data[_SETUP_SECTORS_OFFSET] or 4) + 1) * _SECTOR + offset
        else:
            return data
    except struct.error as error:
        raise CorruptError("expected a boot header, found the end of the file") from error
    if start + length > len(data):
        raise CorruptError(f"expected a payload up to byte {start + length}, found {len(data)} bytes; it is cut off")
    return data[start : start + length]


def _unpack(data: bytes) -> tuple[bytes, str]:
    if data.startswith(_ELF):
        return data, "none"
    for magic, name, unpack in _COMPRESSIONS:
        if data.startswith(magic):
            try:
                kernel = unpack(data)
            except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
                raise CorruptError(f"its {name} data cannot be unpacked: {error}") from error
            if len(kernel) > IMAGE_BYTES_MAX:
                raise CorruptError(f"expected at most {format_size(IMAGE_BYTES_MAX)} unpacked, found more")
            return kernel, name
    return data, "none"


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _whole(decompressor: _Decompressor, data: bytes) -> bytes:
    kernel = decompressor.decompress(data, IMAGE_BYTES_MAX + 1)
    if len(kernel) <= IMAGE_BYTES_MAX and not decompressor.eof:
        raise EOFError(_CUT_OFF)
    return kernel


def _gunzip(data: bytes) -> bytes:
    return _whole(zlib.decompressobj(wbits=31), data)


def _unxz(data: bytes) -> bytes:
    return _whole(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_MAX), data)


def _unlzma(data: bytes) -> bytes:
    return _whole(lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_XZ_MEMORY_MAX), data)


def _bunzip2(data: bytes) -> bytes:
    return _whole(bz2.BZ2Decompressor(), data)


def _unzstd(data: bytes) -> bytes:
    try:
        import zstandard  # noqa: PLC0415 - an extra, for images that need it
    except ImportError as error:
        raise MissingLibraryError("the image is compressed with zstd: install persistmem[preflight]") from error
    kernel, decompressor = bytearray(), zstandard.ZstdDecompressor().decompressobj()
    try:
        for position in range(0, len(data), _ZSTD_PIECE):
            kernel += decompressor.decompress(data[position : position + _ZSTD_PIECE])
            if decompressor.eof or len(kernel) > IMAGE_BYTES_MAX:
                return bytes(kernel)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    raise EOFError(_CUT_OFF)


def _unlz4(data: bytes) -> bytes:
    try:
        import lz4.block  # noqa: PLC0415 - an extra, for images that need it
    except ImportError as error:
        raise MissingLibraryError("the image is compressed with lz4: install persistmem[preflight]") from error
    kernel = bytearray()
    position = len(_LZ4_MAGIC)
    # Behind the last block may stand the kernel's length, which the kernel's build appends.
    while position + _U32.size < len(data):
        if len(kernel) % _LZ4_BLOCK:
            raise ValueError("a block before the last is not full")
        (length,) = _U32.unpack_from(data, position)
        position += _U32.size
        block = data[position : position + length]
        if len(block) != length:
            raise EOFError(_CUT_OFF)
        try:
            kernel += lz4.block.decompress(block, uncompressed_size=_LZ4_BLOCK)
        except lz4.block.LZ4BlockError as error:
            raise ValueError(str(error)) from error
        if len(kernel) > IMAGE_BYTES_MAX:
            return bytes(kernel)
        position += length
    # Only a last block that is full does not show that it is the last.
    if len(kernel) % _LZ4_BLOCK == 0 and data[position:] != _U32.pack(len(kernel)):
        raise EOFError(_CUT_OFF)
    return bytes(kernel)


_CUT_OFF: Final = "it is cut off"
_LZ4_MAGIC: Final = b"\x02\x21\x4c\x18"
_COMPRESSIONS: Final[tuple[tuple[bytes, str, Callable[[bytes], bytes]], ...]] = (
    (b"\x1f\x8b", "gzip", _gunzip),
    (b"\xfd7zXZ\0", "xz", _unxz),
    (b"\x28\xb5\x2f\xfd", "zstd", _unzstd),
    (_LZ4_MAGIC, "lz4", _unlz4),
    (b"BZh", "bzip2", _bunzip2),
    (b"\x5d\0\0", "lzma", _unlzma),
)


def abi_in(kernel: bytes) -> Abi:
    """Return the versions that stand in a kernel's memory.

    Raises:
        CorruptError: there are several of one.
    """
    found: dict[str, set[str]] = {"kho": set(), "luo": set(), "memfd": set()}
    for match in _ABI.finditer(kernel):
        found[match[1].decode()].add(f"{match[1].decode()}-v{int(match[2])}")
    for name, versions in found.items():
        if len(versions) > 1:
            raise CorruptError(f"expected one version of {name}, found {', '.join(sorted(versions))}")
    return Abi(**{name: versions.pop() if versions else None for name, versions in found.items()})


def _options(kernel: bytes) -> dict[str, str] | None:
    start = kernel.find(_CONFIG_START) + len(_CONFIG_START)
    end = kernel.find(_CONFIG_END, start)
    if start < len(_CONFIG_START) or end < 0:
        return None
    decompressor = zlib.decompressobj(wbits=31)
    try:
        text = decompressor.decompress(kernel[start:end], _CONFIG_BYTES_MAX)
    except zlib.error:
        return None  # two words that happen to stand in it
    return options_of(text.decode("utf-8", "replace")) if decompressor.eof else None
