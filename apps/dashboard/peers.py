"""Which user is at the other end of a loopback connection: the kernel knows. Knows /proc/net, and no HTTP."""

import ipaddress
import struct
from pathlib import Path
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Endpoint = tuple[str, int]
"""An address, and a port."""

_WORD: Final = struct.Struct("=I")
_MAPPED: Final = bytes(10) + b"\xff\xff"


def uid_of_peer(peer: Endpoint, ours: Endpoint, tables: Path = Path("/proc/net")) -> int | None:
    """Return who owns the socket at the other end of a connection of this machine, or None if nobody does any more.

    A socket that was closed has no owner, whatever the table says: it is not the user that the table names then.
    Cost: the kernel writes a line for each TCP socket of the machine, about a microsecond each.

    Args:
        peer: the other end, as accept(2) gave it.
        ours: this end.
        tables: where ``tcp`` and ``tcp6`` are.
    """
    ends = [(ipaddress.ip_address(host).packed, port) for host, port in (peer, ours)]
    found = None
    if all(len(packed) == 4 for packed, _ in ends):
        found = _look_up(tables / "tcp", ends)
        ends = [(_MAPPED + packed, port) for packed, port in ends]  # a program may speak IPv4 through an IPv6 socket
    return found if found is not None else _look_up(tables / "tcp6", ends)


def _look_up(table: Path, ends: list[tuple[bytes, int]]) -> int | None:
    """Find the line of the socket between two ends; the fields are those of proc_pid_net(5)."""
    wanted = " ".join(f"{_in_words(packed)}:{port:04X}" for packed, port in ends)
    try:
        text = table.read_text("ascii")
    except FileNotFoundError:  # no IPv6 here
        return None
    at = text.find(f": {wanted} ")
    if at < 0:
        return None
    _, _, _, _, _, _, uid, _, inode, *_ = text[at + 1 : text.find("\n", at)].split()
    return int(uid) if inode != "0" else None


def _in_words(packed: bytes) -> str:
    """Return an address as the kernel prints it: word by word, each as this machine reads it."""
    return "".join(f"{word:08X}" for (word,) in _WORD.iter_unpack(packed))
