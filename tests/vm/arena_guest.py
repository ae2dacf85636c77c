"""Takes an arena through a row of kernels with the luo carrier; reports what it is like in each.

In every kernel a new generation is written after the arena was preserved: late writes have to cross, too.
"""

import os

from persistmem.arena import Arena
from persistmem.arena.memfd import create_memfd
from persistmem.carriers.luo import LuoCarrier
from persistmem.liveupdate.device import KernelDevice

from . import guest

NAME = "cities"
SIZE = 16 << 20
KERNELS_MAX = 8


def document(stage: int) -> dict[str, object]:
    """What is stored in the kernel after ``stage`` kexecs."""
    return {
        "stage": stage,
        "names": [f"city {number}" for number in range(1000)],
        "large": bytes([stage + 1]) * (1 << 20),
    }


def main() -> None:
    stage, kernel = guest.stage(), os.uname().release
    carrier = LuoCarrier(KernelDevice())
    if stage == 0:
        fd = create_memfd(NAME, SIZE)
        Arena.format(fd, kernel=kernel)
        carrier.keep(NAME, fd)
    with Arena(carrier.recover(NAME), kernel=kernel) as arena:
        checked = arena.verify()
        numbers = {} if stage == 0 else {record.number: record.kernel for record in arena.history(NAME)}
        equal = [arena.restore(NAME, generation=number) == document(number - 1) for number in sorted(numbers)]
        carrier.finish()
        guest.report(stage, kernel, str(arena.uuid), checked.ok, [*sorted(numbers.items())], equal)
        if stage + 1 < guest.kernels():
            # Loaded first, as an administrator would: whatever is preserved afterwards crosses all the same.
            guest.load_next()
            carrier.preserve()
            arena.snapshot(NAME, document(stage), keep=KERNELS_MAX)
            guest.kexec()


if __name__ == "__main__":
    main()
