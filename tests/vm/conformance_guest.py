"""Runs the conformance suite on the kernel's own device, across a kexec; reports stage, name, outcome of each case.

The first report of each stage is the kernel's release, as ``kernel``.
"""

import os

from persistmem.liveupdate.device import KernelDevice
from tests.conformance import memfd_cases, session_cases
from tests.conformance.machine import STAGES, Machine, cases, run_stage

from . import guest


def main() -> None:
    stage = STAGES[guest.stage()]
    guest.report(stage, "kernel", os.uname().release)
    machine = Machine(KernelDevice(), KernelDevice, carries_seals=True, enforces=True)
    found = cases(stage, session_cases, memfd_cases)
    run_stage(machine, found, lambda name, error: guest.report(stage, name, error))
    if stage == "before":
        guest.load_next()
        guest.kexec()


if __name__ == "__main__":
    main()
