"""Checks of the kernel: its version, how it was built and started, and whether another one can be started from it."""

import os
import re
from typing import Final

from persistmem.agent.kernel import LUO
from persistmem.carriers.unit import KEXEC_VERSION
from persistmem.cli.doctor.machine import Finding, Machine
from persistmem.liveupdate.device import holders

VERSION_NEEDED: Final = (7, 2)
OPTIONS_NEEDED: Final = ("KEXEC_FILE", "KEXEC_HANDOVER", "LIVEUPDATE", "LIVEUPDATE_MEMFD")
_OFF: Final = frozenset({"0", "n", "N", "f", "F", "off", "no"})
_ON: Final = frozenset({"1", "y", "Y", "t", "T", "on"})


def version(machine: Machine) -> Finding:
    """Look whether it is one whose live update is known to bring memfds back as they were, seals and all."""
    least = ".".join(map(str, VERSION_NEEDED))
    found = re.match(r"(\d{1,4})\.(\d{1,4})", machine.release)
    ok = found is not None and (int(found[1]), int(found[2])) >= VERSION_NEEDED
    return Finding(ok, machine.release or "unknown", f"{least} or later", f"boot a kernel of {least} or later")


def options(machine: Machine) -> Finding:
    """Look whether live update is built in."""
    needed = ", ".join(f"CONFIG_{option}" for option in OPTIONS_NEEDED)
    mend = "build a kernel with these options; distributions may leave them off"
    if machine.options is None:
        return Finding(False, "no kernel configuration to look at", needed, mend)
    lacking = [f"CONFIG_{option}" for option in OPTIONS_NEEDED if machine.options.get(option) != "y"]
    return Finding(not lacking, f"not set: {', '.join(lacking)}" if lacking else "all set", needed, mend)


def parameters(machine: Machine) -> Finding:
    """Look whether live update was switched on at boot."""
    on_by_default = machine.options is not None and machine.options.get("KEXEC_HANDOVER_ENABLE_DEFAULT") == "y"
    lacking = []
    for name, default in (("kho", on_by_default), ("liveupdate", False)):
        given = [word.partition("=")[2] for word in machine.command_line if word.startswith(f"{name}=")]
        if not (given[-1] in _ON if given else default):
            lacking.append(f"{name}=on")
    return Finding(
        not lacking,
        f"not given: {' '.join(lacking)}" if lacking else "given",
        "kho=on liveupdate=on",
        "add them to the kernel's command line in the boot loader, and reboot",
    )


def kexec(machine: Machine) -> Finding:
    """Look whether another kernel may be started from this one."""
    needed = "that root may load any kernel (kexec_file_load)"
    if machine.read("proc/sys/kernel/kexec_load_disabled").strip() == "1":
        mend = "do not set kernel.kexec_load_disabled, and reboot: it cannot be taken back"
        return Finding(False, "kernel.kexec_load_disabled is 1", needed, mend)
    lockdown = re.search(r"\[(\w+)\]", machine.read("sys/kernel/security/lockdown"))
    if lockdown is not None and lockdown[1] != "none":
        mend = "sign the kernels that you kexec into with a key that this kernel has, or start it without lockdown"
        return Finding(False, f"lockdown is {lockdown[1]}: unsigned kernels are refused", needed, mend)
    if machine.options is not None and machine.options.get("KEXEC_SIG_FORCE") == "y":
        mend = "sign the kernels that you kexec into with a key that this kernel has"
        return Finding(False, "CONFIG_KEXEC_SIG_FORCE is set: unsigned kernels are refused", needed, mend)
    loaded = machine.read("sys/kernel/kexec_loaded").strip() == "1"
    return Finding(True, "allowed; a kernel is loaded" if loaded else "allowed", needed, "")


def device(machine: Machine) -> Finding:
    """Look whether the device is there, and free or in the right hands."""
    path = machine.root / "dev/liveupdate"
    needed = "/dev/liveupdate, free, or held by the system's agent"
    if not path.exists():
        return Finding(False, "not there", needed, "mend the above; the device comes with live update")
    if machine.agent is not None and machine.agent.carrier == LUO:
        return Finding(True, f"held by the system's agent, process {machine.agent.pid}", needed, "")
    if held := holders(path):
        who = ", ".join(f"{pid} ({machine.read(f'proc/{pid}/comm').strip() or 'unknown'})" for pid in held)
        return Finding(False, f"held by process {who}", needed, "stop that, or let it alone carry what it carries")
    # From that version on systemd opens it, at the end of a shutdown.
    ok = os.access(path, os.R_OK | os.W_OK) or (machine.systemd or 0) >= KEXEC_VERSION
    return Finding(ok, "free" if ok else "there, but not for this user", needed, "run the agent as root")


def memfd_mode(machine: Machine) -> Finding:
    """Look whether memfds come back writable: those with F_SEAL_EXEC come back sealed (seen on 7.3.4)."""
    mode = machine.read("proc/sys/vm/memfd_noexec").strip()
    return Finding(
        mode != "2",
        f"vm.memfd_noexec is {mode or 'not there'}",
        "0 or 1: under 2 every memfd is sealed against executing, and such a one comes back sealed against writing",
        "set vm.memfd_noexec to 1 (sysctl) before arenas are made",
    )
