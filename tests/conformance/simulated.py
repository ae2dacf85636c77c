"""A program that runs the suite on a simulated machine, across its kexec; prints a line of JSON for each case.

Standard output goes on across the kexec, as a console does.
"""

import json
import sys

from persistmem.liveupdate.abi import AbiVersions, MemfdAbi
from persistmem.liveupdate.simulator import SimulatedKernel

from . import memfd_cases, session_cases
from .machine import STAGES, Machine, Stage, cases, run_stage


def main(memfd_abi: MemfdAbi, image_fd: int | None = None) -> None:
    abi = AbiVersions(memfd=memfd_abi)
    if image_fd is None:
        kernel, stage = SimulatedKernel.fresh("first", abi), STAGES[0]
    else:
        kernel, stage = SimulatedKernel.boot(image_fd, "second", abi), STAGES[1]
    machine = Machine(kernel.open_device(), kernel.open_device, carries_seals=memfd_abi is MemfdAbi.V2, enforces=False)
    run_stage(machine, cases(stage, session_cases, memfd_cases), lambda name, error: _report(stage, name, error))
    if stage == "before":
        program = [sys.executable, "-m", f"{__spec__.parent}.simulated", memfd_abi.value]
        machine.device.close()
        kernel.open_device().kexec(lambda fd: [*program, str(fd)])


def _report(stage: Stage, name: str, error: str | None) -> None:
    print(json.dumps([stage, name, error]), flush=True)


if __name__ == "__main__":
    main(MemfdAbi(sys.argv[1]), *map(int, sys.argv[2:]))
