"""The system's agent under a systemd that takes no store to the next kernel: it holds the device, and stays to the end.

Otherwise as ``systemd_agent_guest``, but that nobody stops it.
"""

import json

from . import guest
from .guest import persistmem
from .systemd_agent_guest import (
    AGENT_UNITS,
    APPLICATIONS,
    CLOSING,
    keep,
    start_applications,
    tell_kept,
    tell_status,
    wait_for_applications,
)
from .systemd_guest import journal, kexec, power_off, prop, run_stage, soft_reboot, systemctl
from .systemd_image import GEOGRAPHER


def before_the_soft_reboot() -> None:
    guest.tell_command("install", persistmem("agent", "install", check=False))
    guest.tell("installed", {unit: prop(unit, "ActiveState") for unit in AGENT_UNITS})
    keep()
    tell_status()
    tell_kept("start")
    guest.tell("may be stopped", systemctl("stop", "persistmem.service", check=False).returncode == 0)
    guest.tell("agent", prop("persistmem.service", "MainPID"))
    soft_reboot()


def between_soft_reboot_and_kexec() -> None:
    tell_kept("soft-reboot")
    guest.tell("agent", prop("persistmem.service", "MainPID"))
    start_applications()
    wait_for_applications()
    guest.tell("applications", {name: int(prop(name, "MainPID")) for name in APPLICATIONS})
    kexec()


def after_the_kexec() -> None:
    tell_kept("kexec")
    guest.tell("closing", json.loads(persistmem("restore", f"{CLOSING}/last", uid=GEOGRAPHER).stdout))
    guest.tell("unready", [line for line in journal("persistmem.service") if "was not ready" in line])
    guest.tell_history()
    tell_status()
    guest.tell_command("uninstall", persistmem("agent", "uninstall", "--discard", check=False))
    guest.tell("uninstalled", {unit: prop(unit, "LoadState") for unit in AGENT_UNITS})
    power_off()


if __name__ == "__main__":
    run_stage([before_the_soft_reboot, between_soft_reboot_and_kexec, after_the_kexec])
