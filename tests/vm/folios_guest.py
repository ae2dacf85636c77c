"""An arena in huge folios, and one in small ones, across a kexec; how long preserving and retrieving them takes.

First it takes what the last kernel handed over; then it makes as much again. Reports are told as (what, value).
"""

import os
import time
from pathlib import Path

from persistmem import folios
from persistmem.arena import Arena
from persistmem.arena.memfd import create_memfd
from persistmem.carriers.luo import TOKEN
from persistmem.liveupdate.device import KernelDevice

from . import guest

POLICY = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
SIZE = 128 << 20
ROUNDS = 3


def huge_folios() -> int:
    """Bytes of all shared memory in huge folios: these kernels cannot say it of one memfd."""
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("ShmemHugePages:"))
    return int(line.split()[1]) << 10


def main() -> None:
    device = KernelDevice()
    if guest.stage() == 0:
        kept = []
        for policy in ("never", "advise"):
            POLICY.write_text(policy)
            times = []
            for number in range(ROUNDS):
                before = huge_folios()
                fd = create_memfd(policy, SIZE)
                Arena.format(fd, kernel="7.3.4")
                with Arena(fd, kernel="7.3.4") as arena:
                    arena.snapshot("half", os.urandom(1 << 20) * (SIZE // 2 >> 20))
                guest.tell(
                    f"huge with {policy}, filled by half, {number}",
                    [huge_folios() - before, os.fstat(fd).st_blocks * 512],
                )
                folios.fill(fd)
                guest.tell(
                    f"huge with {policy}, filled, {number}", [huge_folios() - before, os.fstat(fd).st_blocks * 512]
                )
                session = device.create_session(f"{policy}{number}")
                began = time.monotonic()
                session.preserve(fd, TOKEN)
                times.append(time.monotonic() - began)
                kept.append(session)
            guest.tell(f"preserve with {policy}", times)
        guest.load_next()
        guest.kexec()
    for policy in ("never", "advise"):
        times = []
        for number in range(ROUNDS):
            before = huge_folios()
            session = device.retrieve_session(f"{policy}{number}")
            began = time.monotonic()
            fd = session.retrieve(TOKEN)
            times.append(time.monotonic() - began)
            guest.tell(f"huge with {policy}, {number}", huge_folios() - before)
            with Arena(fd, kernel="7.3.4") as arena:
                guest.tell(f"sound with {policy}, {number}", arena.verify().ok)
        guest.tell(f"retrieve with {policy}", times)


if __name__ == "__main__":
    main()
