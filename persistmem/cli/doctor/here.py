"""Checks of what is around the kernel: what every agent needs, the system's agent, and systemd."""

import os
import re
import shutil
import subprocess
from typing import Final

from persistmem.arena.layout import ARENA_SIZE_MIN
from persistmem.arena.memfd import create_memfd
from persistmem.cli.doctor.machine import Finding, Machine
from persistmem.errors import Error

SYSTEMD_NEEDED: Final = 261


def memfd(_: Machine) -> Finding:
    """Look whether an arena can be made."""
    needed, mend = "memfd_create, and seals", "allow memfd_create: look at vm.memfd_noexec and at seccomp filters"
    try:
        os.close(create_memfd("doctor", ARENA_SIZE_MIN))
    except OSError as error:
        return Finding(False, error.strerror or str(error), needed, mend)
    return Finding(True, "works", needed, mend)


def runtime_directory(machine: Machine) -> Finding:
    """Look whether an agent has a place."""
    needed = "root's, for everybody" if machine.runtime.shared else "a directory of yours, mode 0700"
    mend = "set XDG_RUNTIME_DIR or PERSISTMEM_RUNTIME_DIR to a directory of yours"
    try:
        machine.runtime.ensure()
    except Error as error:
        return Finding(False, str(error), needed, mend)
    return Finding(True, str(machine.runtime.path), needed, mend)


def agent(machine: Machine) -> Finding:
    """Look whether arenas are in the hands of an agent that takes them across a kexec."""
    needed = "the system's agent, on the kernel's device"
    mend = "run 'persistmem agent run --carrier luo' as root, from boot to reboot"
    if machine.agent is None:
        return Finding(False, "none runs", needed, mend)
    carrier = machine.agent.carrier
    return Finding(carrier == "luo", f"process {machine.agent.pid}, carrier {carrier}", needed, mend)


def systemd(machine: Machine) -> Finding:
    """Look whether the service manager could carry arenas by itself."""
    needed = f"systemd {SYSTEMD_NEEDED} or later, for its file descriptor store to cross a kexec"
    mend = "upgrade systemd, or do without: the agent can hold the device itself"
    program = shutil.which("systemctl")
    if program is None or not (machine.root / "run/systemd/system").is_dir():
        return Finding(False, "not the init system", needed, mend)
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=10).stdout
    version = re.match(r"systemd (\d{1,6})", answer)
    return Finding(version is not None and int(version[1]) >= SYSTEMD_NEEDED, answer.partition("\n")[0], needed, mend)
