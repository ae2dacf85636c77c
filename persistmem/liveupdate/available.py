"""Whether the machine has memory for what is about to be asked of it. Knows ``/proc/meminfo``, and no device."""

import errno
from pathlib import Path

from persistmem.errors import LiveUpdateError
from persistmem.sizes import format_size


def check_available(needed: int, what: str) -> None:
    """Refuse with ``ENOMEM`` what would drive the machine out of memory, as things are now."""
    for line in Path("/proc/meminfo").read_text("ascii").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) << 10
            if needed > available:
                raise LiveUpdateError(
                    errno.ENOMEM, f"{what} needs {format_size(needed)}, but {format_size(available)} are available"
                )
