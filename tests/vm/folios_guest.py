"""Arenas in huge folios, and in small ones, across a kexec; how long preserving and retrieving them takes."""

import mmap
import os
import time
from pathlib import Path

from persistmem import folios
from persistmem.arena import Arena
from persistmem.arena.memfd import create_memfd
from persistmem.carriers.luo import TOKEN
from persistmem.liveupdate.device import KernelDevice, KernelSession

from . import guest

POLICY = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
SIZE = 128 << 20
ROUNDS = 4
LEFT_TO_PRESERVE = 0
"""The round in which nobody fills the holes before they are preserved."""
REPETITIONS = 5


def huge_folios() -> int:
    """Bytes of all shared memory in huge folios: these kernels cannot say it of one memfd."""
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("ShmemHugePages:"))
    return int(line.split()[1]) << 10


def fill_holes(fd: int) -> None:
    with mmap.mmap(fd, SIZE) as mapping:
        folios.ask(mapping)
        folios.populate(mapping, 0, SIZE)


def hand_over(device: KernelDevice, policy: str) -> list[KernelSession]:
    POLICY.write_text(policy)
    kept, fill_times, preserve_times = [], [], []
    for number in range(ROUNDS):
        before = huge_folios()
        fd = create_memfd(policy, SIZE)
        Arena.format(fd, kernel="7.3.4")
        with Arena(fd, kernel="7.3.4") as arena:
            arena.snapshot("half", os.urandom(1 << 20) * (SIZE // 2 >> 20))
        taken = os.fstat(fd).st_blocks * 512
        guest.tell(f"huge with {policy}, filled by half, {number}", [huge_folios() - before, taken])
        if number != LEFT_TO_PRESERVE:
            began = time.monotonic()
            fill_holes(fd)
            fill_times.append(time.monotonic() - began)
        # Taken back and done again: the first time, the kernel waits for what its processors have just allocated.
        for repetition in range(1, REPETITIONS + 1):
            session = device.create_session(f"{policy}{number}")
            began = time.monotonic()
            session.preserve(fd, TOKEN)
            preserve_times.append(time.monotonic() - began)
            if repetition < REPETITIONS:
                session.close()
        taken = os.fstat(fd).st_blocks * 512
        guest.tell(f"huge with {policy}, preserved, {number}", [huge_folios() - before, taken])
        kept.append(session)
    guest.tell(f"fill half with {policy}", fill_times)
    guest.tell(f"preserve with {policy}", preserve_times[REPETITIONS:])
    return kept


def main() -> None:
    device = KernelDevice()
    if guest.stage() == 0:
        sessions = [session for policy in ("never", "advise") for session in hand_over(device, policy)]
        guest.tell("sessions", len(sessions))
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
