"""The kernel's structs, each declared once: fields to bytes and back; reads and writes no memory, calls no ioctl.

Source: Linux ``include/uapi/linux/liveupdate.h`` for the ioctls (at the end, in the machine's own byte order), and
``include/linux/kho/abi/`` (kexec_handover.h, block.h, luo.h, memfd.h) for the handover: ``kho-v4``,
``luo-v5``, ``memfd-v1`` and ``memfd-v2``. Little endian, packed, addresses physical, pages of 4096 bytes. Decoding
takes bytes that may say anything, and raises :class:`CorruptError` for what no kernel would have written.
"""

import errno
import os
import struct
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import ClassVar, NewType, Self

from persistmem.errors import CorruptError, IncompatibleKernelError, LiveUpdateError
from persistmem.liveupdate.interface import SESSION_NAME_BYTES_MAX, TOKEN_MAX, Token

PhysicalAddress = NewType("PhysicalAddress", int)
"""Byte address in physical memory; 0 is the kernel's null."""

PAGE_SIZE = 4096
KHO_NODE_LUO = "LUO"
KHO_PROP_COMPATIBLE = "compatible"
KHO_PROP_MEMORY_MAP = "preserved-memory-map"
KHO_PROP_DATA = "preserved-data"
KHO_PROP_SIZE = "blob-size"

_U64 = struct.Struct("<Q")
_LUO_FIELDS = struct.Struct("<3Q")
_COMPATIBLE_BYTES_MAX = 48
_OFFSET_MAX = (1 << 63) - 1
"""Largest file size and position (``loff_t``)."""


class MemfdAbi(Enum):
    """Versions of the serialised memfd. They differ in the seals, which ``memfd-v1`` (Linux 6.19) does not carry."""

    V1 = "memfd-v1"
    V2 = "memfd-v2"


@dataclass(frozen=True, slots=True)
class AbiVersions:
    """The compatible strings that a kernel writes, and the only ones that it reads."""

    kho: str = "kho-v4"
    luo: str = "luo-v5"
    memfd: MemfdAbi = MemfdAbi.V2


def encode_u64(value: int) -> bytes:
    """A u64 property of the device tree: the kernel writes it in native order, unlike the rest of the tree."""
    return _U64.pack(value)


def decode_u64(data: bytes, what: str) -> int:
    """A u64 property named ``what``."""
    if len(data) != _U64.size:
        raise CorruptError(f"{what}: expected {_U64.size} bytes, found {len(data)}")
    return int(_U64.unpack(data)[0])


@dataclass(frozen=True, slots=True)
class LuoSer:
    """``luo_ser``: the root of all live-update state."""

    compatible: str
    liveupdate_num: int
    """How many live updates led to the next kernel."""
    sessions: PhysicalAddress
    """First block of :class:`LuoSessionSer`, or 0."""
    flbs: PhysicalAddress = PhysicalAddress(0)
    """File-lifecycle-bound objects; 0, for memfds have none."""

    def encode(self) -> bytes:
        """The struct; its length depends on the compatible string, as in the kernel."""
        text = self.compatible.encode("ascii") + b"\0"
        return text + bytes(-len(text) % 8) + _LUO_FIELDS.pack(self.liveupdate_num, self.sessions, self.flbs)

    @classmethod
    def decode(cls, data: bytes, compatible: str) -> Self:
        """The struct in ``data``.

        Raises:
            IncompatibleKernelError: it was written by a kernel that speaks another version than ``compatible``.
        """
        check_compatible(decode_text(data[:_COMPATIBLE_BYTES_MAX], "luo_ser.compatible"), compatible, "LUO state")
        fields_at = -(-(len(compatible) + 1) // 8) * 8
        if len(data) != fields_at + _LUO_FIELDS.size:
            raise CorruptError(f"luo_ser: expected {fields_at + _LUO_FIELDS.size} bytes, found {len(data)}")
        number, sessions, flbs = _LUO_FIELDS.unpack_from(data, fields_at)
        return cls(compatible, number, PhysicalAddress(sessions), PhysicalAddress(flbs))


@dataclass(frozen=True, slots=True)
class KhoBlockHeader:
    """``kho_block_header_ser``: begins a page of entries; the pages form a list."""

    next: PhysicalAddress
    count: int
    """Entries in this page, right after the header."""

    STRUCT: ClassVar = struct.Struct("<2Q")

    def encode(self) -> bytes:
        """The 16 bytes of the header."""
        return self.STRUCT.pack(self.next, self.count)

    @classmethod
    def decode(cls, data: bytes, entry_size: int) -> Self:
        """The header at the beginning of a page of entries of ``entry_size`` bytes."""
        next_block, count = cls.STRUCT.unpack_from(data)
        if count > block_capacity(entry_size):
            raise CorruptError(f"kho block: it says {count} entries, but {block_capacity(entry_size)} fit")
        return cls(PhysicalAddress(next_block), count)


def block_capacity(entry_size: int) -> int:
    """Entries of ``entry_size`` bytes that fit into one block: 51 sessions or 63 files."""
    return (PAGE_SIZE - KhoBlockHeader.STRUCT.size) // entry_size


@dataclass(frozen=True, slots=True)
class LuoSessionSer:
    """``luo_session_ser``: one session."""

    name: str
    files: PhysicalAddress
    """First block of :class:`LuoFileSer`, or 0."""
    count: int

    STRUCT: ClassVar = struct.Struct("<64s2Q")

    def encode(self) -> bytes:
        """The 80 bytes of the entry."""
        return self.STRUCT.pack(os.fsencode(self.name), self.files, self.count)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The entry in ``data``."""
        name, files, count = cls.STRUCT.unpack(data)
        if bool(files) != bool(count):
            raise CorruptError(f"luo_session_ser: {count} files at address {files:#x} cannot be")
        return cls(decode_text(name, "luo_session_ser.name"), PhysicalAddress(files), count)


@dataclass(frozen=True, slots=True)
class LuoFileSer:
    """``luo_file_ser``: one preserved file and who can restore it."""

    compatible: str
    data: PhysicalAddress
    """What the file's handler wrote; for a memfd, :class:`MemfdLuoSer`."""
    token: Token

    STRUCT: ClassVar = struct.Struct("<48s2Q")

    def encode(self) -> bytes:
        """The 64 bytes of the entry."""
        return self.STRUCT.pack(self.compatible.encode("ascii"), self.data, self.token)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The entry in ``data``."""
        compatible, address, token = cls.STRUCT.unpack(data)
        text = decode_text(compatible, "luo_file_ser.compatible")
        return cls(text, PhysicalAddress(address), Token(token))


@dataclass(frozen=True, slots=True)
class KhoVmalloc:
    """``kho_vmalloc``: memory that is contiguous only virtually, as a list of the pages behind it."""

    first: PhysicalAddress
    """First :class:`KhoVmallocChunk`, or 0."""
    total_pages: int
    """In pages of 4096 bytes, whatever ``order`` is."""
    flags: int = 0
    order: int = 0
    """Each address in the chunks is that of ``1 << order`` pages."""

    STRUCT: ClassVar = struct.Struct("<QI2H")
    FLAG_ALLOC: ClassVar = 1
    """Made by ``vmalloc`` itself."""
    FLAG_HUGE: ClassVar = 2
    """May be mapped with huge pages."""
    ORDER_MAX: ClassVar = 18
    """1 GiB, the largest page that x86-64 and arm64 map."""

    def encode(self) -> bytes:
        """The 16 bytes of the struct."""
        return self.STRUCT.pack(self.first, self.total_pages, self.flags, self.order)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The struct in ``data``."""
        first, total_pages, flags, order = cls.STRUCT.unpack(data)
        if flags & ~(cls.FLAG_ALLOC | cls.FLAG_HUGE):
            raise CorruptError(f"kho_vmalloc: unknown flags {flags:#x}")
        if order > cls.ORDER_MAX or total_pages % (1 << order):
            raise CorruptError(f"kho_vmalloc: {total_pages} pages of order {order} cannot be")
        if bool(first) != bool(total_pages):
            raise CorruptError(f"kho_vmalloc: {total_pages} pages listed at address {first:#x} cannot be")
        return cls(PhysicalAddress(first), total_pages, flags, order)


@dataclass(frozen=True, slots=True)
class KhoVmallocChunk:
    """``kho_vmalloc_chunk``: one page of page addresses; the chunks form a list."""

    next: PhysicalAddress
    phys: tuple[PhysicalAddress, ...]
    """At most 511, none of them 0."""

    CAPACITY: ClassVar = PAGE_SIZE // _U64.size - 1
    _WORDS: ClassVar = struct.Struct(f"<{CAPACITY + 1}Q")

    def encode(self) -> bytes:
        """The page: a list that is not full ends with a zero."""
        return self._WORDS.pack(self.next, *self.phys, *[0] * (self.CAPACITY - len(self.phys)))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The chunk in the page ``data``."""
        following, *phys = cls._WORDS.unpack(data)
        used = phys.index(0) if 0 in phys else len(phys)
        if any(address % PAGE_SIZE for address in phys[:used]):
            raise CorruptError("kho_vmalloc_chunk: an address is not that of a page")
        return cls(PhysicalAddress(following), tuple(map(PhysicalAddress, phys[:used])))


@dataclass(frozen=True, slots=True)
class MemfdLuoSer:
    """``memfd_luo_ser``: what a memfd was, but for its bytes."""

    position: int
    size: int
    seals: int
    """``F_SEAL_*`` bits; always 0 in ``memfd-v1``."""
    nr_folios: int
    folios: KhoVmalloc
    """The table of :class:`MemfdLuoFolioSer`."""

    _V1: ClassVar = struct.Struct("<3Q16s")
    _V2: ClassVar = struct.Struct("<2Q2IQ16s")
    _KNOWN_SEALS: ClassVar = 0x3F
    """SEAL, SHRINK, GROW, WRITE, FUTURE_WRITE, EXEC."""

    @classmethod
    def size_of(cls, version: MemfdAbi) -> int:
        """Bytes of the struct in that version: 40 or 48."""
        return (cls._V1 if version is MemfdAbi.V1 else cls._V2).size

    def encode(self, version: MemfdAbi) -> bytes:
        """The struct in that version."""
        if version is MemfdAbi.V1:
            return self._V1.pack(self.position, self.size, self.nr_folios, self.folios.encode())
        return self._V2.pack(self.position, self.size, self.seals, 0, self.nr_folios, self.folios.encode())

    @classmethod
    def decode(cls, data: bytes, version: MemfdAbi) -> Self:
        """The struct in ``data``, which was written in that version."""
        seals = flags = 0
        if version is MemfdAbi.V1:
            position, size, nr_folios, folios = cls._V1.unpack(data)
        else:
            position, size, seals, flags, nr_folios, folios = cls._V2.unpack(data)
        if position > _OFFSET_MAX or size > _OFFSET_MAX:
            raise CorruptError(f"memfd_luo_ser: position {position} or size {size} is larger than a file can be")
        if flags or seals & ~cls._KNOWN_SEALS:
            raise CorruptError(f"memfd_luo_ser: unknown flags {flags:#x} or seals {seals:#x}")
        if nr_folios > page_count(size) or bool(nr_folios) != bool(size):
            raise CorruptError(f"memfd_luo_ser: {nr_folios} folios cannot hold {size} bytes")
        table = KhoVmalloc.decode(folios)
        if nr_folios * MemfdLuoFolioSer.STRUCT.size > table.total_pages * PAGE_SIZE:
            raise CorruptError(f"memfd_luo_ser: {table.total_pages} pages cannot describe {nr_folios} folios")
        return cls(position, size, seals, nr_folios, table)


@dataclass(frozen=True, slots=True)
class MemfdLuoFolioSer:
    """``memfd_luo_folio_ser``: where one folio of a memfd lies. It reaches to the next one: preserving fills holes."""

    pfn: int
    """Page frame number: the physical address in pages."""
    flags: int
    index: int
    """Offset in the file, in pages."""

    STRUCT: ClassVar = struct.Struct("<2Q")
    FLAG_DIRTY: ClassVar = 1
    """Holds user data. A kernel of ``memfd-v2`` sets both flags on every folio."""
    FLAG_UPTODATE: ClassVar = 2
    """Was zeroed or written; otherwise its bytes mean nothing, and the next kernel has to zero it."""
    _PFN_BITS: ClassVar = 52

    def encode(self) -> bytes:
        """The 16 bytes of the entry."""
        return self.STRUCT.pack(self.flags << self._PFN_BITS | self.pfn, self.index)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The entry in ``data``."""
        word, index = cls.STRUCT.unpack(data)
        pfn, flags = word & (1 << cls._PFN_BITS) - 1, word >> cls._PFN_BITS
        if pfn == 0 or flags & ~(cls.FLAG_DIRTY | cls.FLAG_UPTODATE):
            raise CorruptError(f"memfd_luo_folio_ser: frame {pfn} with flags {flags:#x} cannot be")
        return cls(pfn, flags, index)


def page_count(size: int) -> int:
    """Pages that hold ``size`` bytes.

    >>> page_count(0), page_count(4096), page_count(4097)
    (0, 1, 2)
    """
    return -(-size // PAGE_SIZE)


def decode_text(data: bytes, what: str) -> str:
    """The text before the first NUL of ``data``, which must be there; as in file names, any bytes are text."""
    text, end, _ = data.partition(b"\0")
    if not end or not text:
        raise CorruptError(f"{what}: expected text that ends with a NUL within {len(data)} bytes")
    return os.fsdecode(text)


def check_compatible(found: str, expected: str, what: str) -> None:
    """Refuse what a kernel of another version wrote."""
    if found != expected:
        raise IncompatibleKernelError(
            f"the last kernel's {what} is of version {found!r}, this kernel reads only {expected!r}; "
            "boot a kernel that reads it, or start without the state"
        )


class Ioctl(IntEnum):
    """The calls, on the device and on a session: ``_IO(0xBA, number)``."""

    CREATE_SESSION = 0xBA00
    RETRIEVE_SESSION = 0xBA01
    PRESERVE_FD = 0xBA40
    RETRIEVE_FD = 0xBA41
    FINISH = 0xBA42
    GET_NAME = 0xBA43


_SESSION_CALL = struct.Struct(f"=Ii{SESSION_NAME_BYTES_MAX + 1}s")
_FD_CALL = struct.Struct("=IiQ")
_FINISH_CALL = struct.Struct("=2I")
_NAME_CALL = struct.Struct(f"=2I{SESSION_NAME_BYTES_MAX + 1}s")
_RETURNED_FD = struct.Struct("=4xi")
_NO_FD = -1


def encode_session_call(name: str) -> bytearray:
    """What creating and retrieving a session take; LiveUpdateError ``EINVAL`` if no session can have that name."""
    return bytearray(_SESSION_CALL.pack(_SESSION_CALL.size, _NO_FD, encode_session_name(name)))


def encode_fd_call(token: Token, fd: int = _NO_FD) -> bytearray:
    """What preserving ``fd`` and retrieving take; LiveUpdateError ``EINVAL`` if ``token`` is no u64."""
    check_token(token)
    return bytearray(_FD_CALL.pack(_FD_CALL.size, fd, token))


def encode_finish_call() -> bytearray:
    """What finishing a session takes."""
    return bytearray(_FINISH_CALL.pack(_FINISH_CALL.size, 0))


def encode_name_call() -> bytearray:
    """What asking for a session's name takes."""
    return bytearray(_NAME_CALL.pack(_NAME_CALL.size, 0, b""))


def decode_returned_fd(answer: bytearray) -> int:
    """The descriptor in the answer to creating or retrieving."""
    return int(_RETURNED_FD.unpack_from(answer)[0])


def decode_returned_name(answer: bytearray) -> str:
    """The name in the answer to asking for it."""
    return decode_text(_NAME_CALL.unpack(answer)[2], "session name")


def encode_session_name(name: str) -> bytes:
    """The name as the kernel's bytes; LiveUpdateError ``EINVAL`` if no session can have it.

    >>> encode_session_name("documents")
    b'documents'
    """
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError as error:
        raise LiveUpdateError(errno.EINVAL, f"session name {name!r:.80} cannot be encoded") from error
    if not 0 < len(encoded) <= SESSION_NAME_BYTES_MAX or b"\0" in encoded:
        raise LiveUpdateError(
            errno.EINVAL, f"session name {name!r:.80}: expected 1 to {SESSION_NAME_BYTES_MAX} bytes without a NUL"
        )
    return encoded


def check_token(token: Token) -> None:
    """LiveUpdateError ``EINVAL`` if ``token`` is no u64."""
    if not 0 <= token <= TOKEN_MAX:
        raise LiveUpdateError(errno.EINVAL, f"token {token}: expected 0 to {TOKEN_MAX}")
