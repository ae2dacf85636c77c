"""A process that takes a snapshot of an array and prints by how many bytes its peak RSS exceeds array and arena.

Run by :mod:`tests.bench.arrays`, because a peak is a process's own and never falls.
"""

import re
import sys
from pathlib import Path

from persistmem.testing import new_arena
from tests.bench.arrays import MARGIN, make_array


def main() -> None:
    """Take a small one first, so that only what grows with the array is counted."""
    size = int(sys.argv[1])
    with new_arena("2MiB") as arena:
        arena.snapshot("array", make_array(1 << 20))
    before = _peak()
    array = make_array(size)
    with new_arena(size + MARGIN) as arena:
        arena.snapshot("array", array)
    sys.stdout.write(f"{_peak() - before - 2 * size}\n")


def _peak() -> int:
    # getrusage would give the peak of the parent that forked this process, if that is larger
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) << 10


if __name__ == "__main__":
    main()
