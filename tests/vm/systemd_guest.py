"""What a program in a virtual machine with systemd has beside :mod:`tests.vm.guest`: its boots, and ways to the next.

It is run anew at each boot of user space, by a service that comes after all others. Counts boots in a file on the disk.
"""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import persistmem

from . import guest

PROGRAM = "VM_PROGRAM"
"""The module that is run."""
UNITS = Path("/etc/systemd/system")
_STAGE = Path("/var/lib/vm-stage")


def systemctl(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Ask the service manager."""
    return command("systemctl", *arguments, check=check)


def command(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a program of the system's, as root."""
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(arguments)}: exit status {done.returncode}: {done.stderr}")
    return done


def prop(unit: str, name: str) -> str:
    """The value of a unit's property."""
    return systemctl("show", "--value", f"--property={name}", unit).stdout.strip()


def journal(unit: str) -> list[str]:
    """What a unit's processes, and systemd of it, logged in all kernels."""
    return command("journalctl", f"--unit={unit}", "--output=cat").stdout.splitlines()


def soft_reboot() -> None:
    """Start user space anew in this kernel."""
    systemctl("soft-reboot", "--no-block")


def kexec() -> None:
    """Go to the last of the machine's kernels, as an administrator would who does not know of persistmem."""
    kernel = os.environ[guest.KERNELS].split(":")[-1]
    command("kexec", "--load", "--kexec-file-syscall", "--reuse-cmdline", kernel)
    systemctl("kexec", "--no-block")


def power_off() -> None:
    """End the machine."""
    systemctl("poweroff", "--no-block")


def run_stage(stages: Sequence[Callable[[], None]]) -> None:
    """Run the part of this boot, which is to end with one of the ways to the next; report the kernel.

    A failure ends the machine, and is told to its console, with the log before it.
    """
    stage = int(_STAGE.read_text()) if _STAGE.exists() else 0
    if stage == 0:
        # Who is not root could not write the result down, and would do it anew at each start.
        command(sys.executable, "-m", "compileall", "-q", *persistmem.__path__)
    _STAGE.write_text(str(stage + 1))
    os.environ[guest.STAGE] = str(stage)
    guest.tell("kernel", os.uname().release)
    try:
        stages[stage]()
    except BaseException:
        with Path("/dev/console").open("w") as console:
            subprocess.run(["journalctl", "--boot", "--output=short-monotonic"], stdout=console, check=False)
            console.write(traceback.format_exc())
        power_off()
        raise


def last_line(file: Path) -> dict[str, object]:
    """The last line of JSON in a file."""
    found = json.loads(file.read_text().splitlines()[-1])
    assert isinstance(found, dict)
    return found
