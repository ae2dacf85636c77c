"""Sizes as people write them; knows nothing of what is that large."""

import re

from persistmem.errors import SizeError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

_UNITS = {"": 1, "b": 1, "k": KIB, "kib": KIB, "m": MIB, "mib": MIB, "g": GIB, "gib": GIB, "t": 1 << 40, "tib": 1 << 40}
_SIZE = re.compile(r"\s*(\d{1,18}(?:\.\d{1,6})?)\s*([a-zA-Z]*)\s*", re.ASCII)


def parse_size(size: int | str) -> int:
    """Bytes of a size: an int, or a string such as ``"64 KiB"``, ``"1.5GiB"``, ``"256M"`` (binary units).

    Raises:
        SizeError: it cannot be read, is not a whole number of bytes, or is not positive.

    >>> parse_size("1.5 KiB")
    1536
    """
    if isinstance(size, str):
        match = _SIZE.fullmatch(size)
        unit = _UNITS.get(match[2].lower()) if match else None
        if match is None or unit is None:
            raise SizeError(
                f"size {size[:40]!r}: expected a number with an optional KiB, MiB, GiB or TiB, as in 256MiB"
            )
        whole, _, fraction = match[1].partition(".")
        scale: int = 10 ** len(fraction)
        count, rest = divmod(int(whole + fraction) * unit, scale)
        if rest:
            raise SizeError(f"size {size!r}: it is not a whole number of bytes")
    else:
        count = size
    if count <= 0:
        raise SizeError(f"size {size!r}: expected more than 0 bytes")
    return count


def format_size(count: int) -> str:
    """``count`` bytes for people, in binary units.

    >>> format_size(1536), format_size(64 * KIB)
    ('1.5 KiB', '64 KiB')
    """
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f}".removesuffix(".0") + f" {unit}"


def check_same_size(name: str, found: int, wanted: int | None) -> None:
    """Refuse to attach arena ``name`` of ``found`` bytes as one of another size.

    Raises:
        SizeError: ``wanted`` is given, and differs: nobody can tell which was meant.
    """
    if wanted is not None and wanted != found:
        raise SizeError(
            f"arena {name!r}: it has {format_size(found)} ({found} bytes), asked for were {format_size(wanted)}"
            f" ({wanted} bytes); attach it without a size, or drop it first"
        )
