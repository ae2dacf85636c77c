"""Flattened device trees, version 17: bytes to nodes and back; knows nothing of what a tree says.

Source: the Devicetree Specification, chapter 5. Everything in it is big endian but the property values, which are
bytes. Decoding trusts nothing: every offset and length is checked before it is used.
"""

import struct
from dataclasses import dataclass, field

from persistmem.errors import CorruptError

MAGIC = 0xD00DFEED
VERSION, LAST_COMPATIBLE_VERSION = 17, 16
SIZE_MAX = 64 << 10
"""Largest tree that is read or written, in bytes. The kernel's handover tree fits into one page."""
DEPTH_MAX = 8
"""Deepest nesting that is read; the handover tree has two levels."""

HEADER = struct.Struct(">10I")
"""magic, totalsize, off_dt_struct, off_dt_strings, off_mem_rsvmap, version, last_comp_version, boot_cpuid_phys,
size_dt_strings, size_dt_struct."""
_RESERVATIONS_END = bytes(16)
_TOKEN = struct.Struct(">I")
_PROPERTY = struct.Struct(">2I")
_BEGIN_NODE, _END_NODE, _PROP, _NOP, _END = 1, 2, 3, 4, 9


@dataclass(frozen=True, slots=True)
class Node:
    """One node: its properties as raw bytes, and its subnodes."""

    properties: dict[str, bytes] = field(default_factory=dict)
    subnodes: dict[str, "Node"] = field(default_factory=dict)


def encode(root: Node) -> bytes:
    """The tree as bytes: header, an empty memory reservation block, structure block, strings block.

    >>> decode(encode(Node({"compatible": b"kho-v4"}))).properties
    {'compatible': b'kho-v4'}
    """
    strings: dict[str, int] = {}
    structure = _encode_node("", root, strings) + _TOKEN.pack(_END)
    names = b"".join(name.encode("ascii") + b"\0" for name in strings)
    structure_at = HEADER.size + len(_RESERVATIONS_END)
    strings_at = structure_at + len(structure)
    header = HEADER.pack(
        MAGIC,
        strings_at + len(names),
        structure_at,
        strings_at,
        HEADER.size,
        VERSION,
        LAST_COMPATIBLE_VERSION,
        0,
        len(names),
        len(structure),
    )
    return header + _RESERVATIONS_END + structure + names


def total_size(header: bytes) -> int:
    """Bytes of the whole tree, after its first ``HEADER.size`` bytes.

    Raises:
        CorruptError: it is no device tree, or larger than ``SIZE_MAX``.
    """
    if len(header) < HEADER.size:
        raise CorruptError(f"device tree: expected a header of {HEADER.size} bytes, found {len(header)}")
    magic, size = struct.unpack_from(">2I", header)
    if magic != MAGIC:
        raise CorruptError(f"device tree: expected the magic number {MAGIC:#x}, found {magic:#x}")
    if not HEADER.size <= size <= SIZE_MAX:
        raise CorruptError(f"device tree: expected {HEADER.size} to {SIZE_MAX} bytes, found {size}")
    return int(size)


def decode(blob: bytes) -> Node:
    """The tree in ``blob``, which may have bytes after it.

    Raises:
        CorruptError: it is no device tree, or one that contradicts itself.
    """
    size = total_size(blob)
    if size > len(blob):
        raise CorruptError(f"device tree: it says {size} bytes, but {len(blob)} are there")
    (_, _, structure_at, strings_at, _, version, last_compatible, _, strings_size, structure_size) = HEADER.unpack_from(
        blob
    )
    if version < VERSION or last_compatible > VERSION:
        raise CorruptError(f"device tree: expected version {VERSION}, found {version} (readable as {last_compatible})")
    if structure_at % 4 or structure_at + structure_size > size or strings_at + strings_size > size:
        raise CorruptError("device tree: a block lies outside of the tree")
    structure = blob[structure_at : structure_at + structure_size]
    strings = blob[strings_at : strings_at + strings_size]
    return _Reader(structure, strings).tree()


def _encode_node(name: str, node: Node, strings: dict[str, int]) -> bytes:
    parts = [_TOKEN.pack(_BEGIN_NODE), _padded(name.encode("ascii") + b"\0")]
    for key, value in node.properties.items():
        at = strings.setdefault(key, sum(len(known) + 1 for known in strings))
        parts.append(_TOKEN.pack(_PROP) + _PROPERTY.pack(len(value), at) + _padded(value))
    parts.extend(_encode_node(key, subnode, strings) for key, subnode in node.subnodes.items())
    parts.append(_TOKEN.pack(_END_NODE))
    return b"".join(parts)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


class _Reader:
    """Reads one structure block from front to back; each step consumes bytes, so it ends."""

    def __init__(self, structure: bytes, strings: bytes) -> None:
        self._structure = structure
        self._strings = strings
        self._at = 0

    def tree(self) -> Node:
        if self._token() != _BEGIN_NODE or self._name(self._structure, self._at) != "":
            raise CorruptError("device tree: expected the root node first")
        self._skip(1)
        root = self._node(depth=1)
        if self._token() != _END:
            raise CorruptError("device tree: expected its end after the root node")
        return root

    def _node(self, depth: int) -> Node:
        if depth > DEPTH_MAX:
            raise CorruptError(f"device tree: nodes are nested more than {DEPTH_MAX} deep")
        node = Node()
        while (token := self._token()) != _END_NODE:
            if token == _PROP:
                length, name_at = _PROPERTY.unpack(self._take(_PROPERTY.size))
                name = self._name(self._strings, name_at)
                self._refuse_twice(name, node)
                node.properties[name] = self._take(length)
                self._align()
            elif token == _BEGIN_NODE:
                name = self._name(self._structure, self._at)
                self._skip(len(name) + 1)
                self._refuse_twice(name, node)
                node.subnodes[name] = self._node(depth + 1)
            else:
                raise CorruptError(f"device tree: token {token} has no place inside a node")
        return node

    def _token(self) -> int:
        while (token := _TOKEN.unpack(self._take(_TOKEN.size))[0]) == _NOP:
            pass
        return int(token)

    def _take(self, length: int) -> bytes:
        end = self._at + length
        if end > len(self._structure):
            raise CorruptError(f"device tree: {length} bytes at {self._at} lie outside of the structure block")
        data = self._structure[self._at : end]
        self._at = end
        return data

    def _skip(self, length: int) -> None:
        self._take(length)
        self._align()

    def _align(self) -> None:
        self._at += -self._at % 4

    @staticmethod
    def _name(block: bytes, at: int) -> str:
        end = block.find(b"\0", at)
        if at >= len(block) or end < 0:
            raise CorruptError(f"device tree: the name at {at} does not end inside its block")
        try:
            return block[at:end].decode("ascii")
        except UnicodeDecodeError as error:
            raise CorruptError(f"device tree: the name at {at} is not ASCII") from error

    @staticmethod
    def _refuse_twice(name: str, node: Node) -> None:
        if name in node.properties or name in node.subnodes:
            raise CorruptError(f"device tree: {name[:40]!r} is there twice in one node")
