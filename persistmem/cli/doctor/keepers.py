"""Checks of who keeps arenas: the service manager, the system's agent, and whether the one runs the other."""

import os
import re
from pathlib import Path
from typing import Final

from persistmem.agent.kernel import LUO, SYSTEMD
from persistmem.agent.paths import RuntimeDirectory
from persistmem.agent.units import SERVICE, SOCKET
from persistmem.carriers.unit import KEXEC_VERSION, PRESERVE_VERSION
from persistmem.cli.doctor.machine import Finding, Machine

_UNITS: Final = ("etc/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")
_USERS_UNITS: Final = (".config/systemd/user",)
_LISTENING: Final = 0x10000
"""Among the flags of a socket in /proc/net/unix: __SO_ACCEPTCON."""


def systemd(machine: Machine) -> Finding:
    """Look whether the service manager carries arenas by itself, and how far."""
    needed = f"systemd {KEXEC_VERSION} or later, for its file descriptor store to cross a kexec"
    mend = "upgrade systemd, or do without: 'persistmem agent install' has an agent hold the device itself"
    version = machine.systemd
    if version is None:
        return Finding(False, "not the init system", needed, mend)
    if version >= KEXEC_VERSION:
        how_far = "crosses a kexec"
    elif version >= PRESERVE_VERSION:
        how_far = "outlives a service that is stopped, and a soft reboot, but no kexec"
    else:
        how_far = "outlives a service that is restarted, but none that is stopped, and no kexec"
    return Finding(version >= KEXEC_VERSION, f"{version}: its store {how_far}", needed, mend)


def agent(machine: Machine) -> Finding:
    """Look whether arenas are in the hands of an agent that takes them across a kexec."""
    needed = "the system's agent, in systemd's store or on the kernel's device"
    mend = "run 'persistmem agent install' as root"
    if machine.agent is None:
        return Finding(False, "none runs", needed, mend)
    carrier = machine.agent.carrier
    return Finding(carrier in (LUO, SYSTEMD), f"process {machine.agent.pid}, carrier {carrier}", needed, mend)


def units(machine: Machine) -> Finding:
    """Look whether the service manager starts an agent when somebody needs it."""
    needed = f"{SOCKET} and {SERVICE}, and that the socket listens"
    if machine.systemd is None:
        mend = "have what runs this machine run 'persistmem agent run', from boot to shutdown"
        return Finding(False, "there is no systemd", needed, mend)
    home = str(Path.home()).lstrip("/")
    for directories, runtime in (
        (_UNITS, RuntimeDirectory.of_system()),
        ([f"{home}/{place}" for place in _USERS_UNITS], machine.runtime),
    ):
        for directory in directories:
            if all((machine.root / directory / name).is_file() for name in (SOCKET, SERVICE)):
                ok = _listens(machine, runtime.socket)
                return Finding(
                    ok,
                    f"in /{directory}; {runtime.socket} {'listens' if ok else 'does not listen'}",
                    needed,
                    f"systemctl start {SOCKET}; 'systemctl status {SERVICE}' says why it may have ended",
                )
    mend = "'persistmem agent install' as root, for everybody; or with --user, for yourself"
    return Finding(False, "not installed", needed, mend)


def _listens(machine: Machine, socket: Path) -> bool:
    # Num: RefCount Protocol Flags Type St Inode Path
    line = rf"^\S+: \S+ \S+ ([0-9A-Fa-f]{{8}}) \S+ \S+ +\d+ {re.escape(os.fspath(socket))}$"
    return any(int(flags, 16) & _LISTENING for flags in re.findall(line, machine.read("proc/net/unix"), re.MULTILINE))
