"""What this machine lacks to carry arenas across a kexec. One check is one function in the table :data:`CHECKS`.

A check looks at a :class:`Machine`, whose files may lie anywhere, and changes nothing there.
"""

import gzip
import os
import re
import shutil
import subprocess
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from persistmem.agent.paths import RuntimeDirectory
from persistmem.arena.layout import ARENA_SIZE_MIN
from persistmem.arena.memfd import create_memfd
from persistmem.errors import Error

KERNEL_NEEDED: Final = (6, 19)
SYSTEMD_NEEDED: Final = 261
OPTIONS_NEEDED: Final = ("CONFIG_KEXEC_HANDOVER", "CONFIG_LIVEUPDATE", "CONFIG_LIVEUPDATE_MEMFD")
PARAMETERS_NEEDED: Final = ("kho=on", "liveupdate=on")


@dataclass(frozen=True, slots=True)
class Machine:
    """Where to look."""

    root: Path
    """What ``/`` is."""
    runtime: RuntimeDirectory

    def read(self, path: str) -> str:
        """Return the text of a file; empty if it cannot be read."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    @property
    def release(self) -> str:
        """The kernel's."""
        return self.read("proc/sys/kernel/osrelease").strip()


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    ok: bool
    found: str
    needed: str
    mend: str
    """What to do if it is not ok."""


Need = Literal["everything", "kexec", "kexec without an agent"]
"""What does not work without it."""


@dataclass(frozen=True, slots=True)
class Check:
    """A row of the table."""

    name: str
    needed_for: Need
    look: Callable[[Machine], Finding]


def _memfd(_: Machine) -> Finding:
    needed, mend = "memfd_create, and seals", "allow memfd_create: look at vm.memfd_noexec and at seccomp filters"
    try:
        os.close(create_memfd("doctor", ARENA_SIZE_MIN))
    except OSError as error:
        return Finding(False, error.strerror or str(error), needed, mend)
    return Finding(True, "works", needed, mend)


def _runtime_directory(machine: Machine) -> Finding:
    path = machine.runtime.path
    needed, mend = (
        "a directory of yours, mode 0700",
        "set XDG_RUNTIME_DIR or PERSISTMEM_RUNTIME_DIR to a directory of yours",
    )
    try:
        machine.runtime.ensure()
    except Error as error:
        return Finding(False, str(error), needed, mend)
    return Finding(True, str(path), needed, mend)


def _kernel(machine: Machine) -> Finding:
    least = ".".join(map(str, KERNEL_NEEDED))
    version = re.match(r"(\d{1,4})\.(\d{1,4})", machine.release)
    ok = version is not None and (int(version[1]), int(version[2])) >= KERNEL_NEEDED
    return Finding(ok, machine.release or "unknown", f"{least} or later", f"boot a kernel of {least} or later")


def _options(machine: Machine) -> Finding:
    needed, mend = ", ".join(OPTIONS_NEEDED), "build a kernel with these options; distributions may leave them off"
    config = _kernel_config(machine)
    if config is None:
        return Finding(False, "no kernel configuration to look at", needed, mend)
    lacking = [option for option in OPTIONS_NEEDED if f"{option}=y" not in config]
    return Finding(not lacking, f"not set: {', '.join(lacking)}" if lacking else "all set", needed, mend)


def _kernel_config(machine: Machine) -> frozenset[str] | None:
    try:
        with gzip.open(machine.root / "proc/config.gz", "rt", encoding="utf-8") as lines:
            return frozenset(map(str.strip, lines))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        pass  # most distributions put it on disk instead
    for path in (f"boot/config-{machine.release}", f"lib/modules/{machine.release}/config"):
        if text := machine.read(path):
            return frozenset(text.split("\n"))
    return None


def _parameters(machine: Machine) -> Finding:
    given = machine.read("proc/cmdline").split()
    lacking = [parameter for parameter in PARAMETERS_NEEDED if parameter not in given]
    return Finding(
        not lacking,
        f"not given: {' '.join(lacking)}" if lacking else "given",
        " ".join(PARAMETERS_NEEDED),
        "add them to the kernel's command line in the boot loader, and reboot",
    )


def _device(machine: Machine) -> Finding:
    device = machine.root / "dev/liveupdate"
    needed, mend = (
        "/dev/liveupdate, to read and write",
        "mend the above; then run the agent as root, for the device is root's",
    )
    if not device.exists():
        return Finding(False, "not there", needed, mend)
    ok = os.access(device, os.R_OK | os.W_OK)
    return Finding(ok, "there" if ok else "there, but not for this user", needed, mend)


def _systemd(machine: Machine) -> Finding:
    needed = f"systemd {SYSTEMD_NEEDED} or later, for its file descriptor store to cross a kexec"
    mend = "upgrade systemd, or do without: the agent can hold the device itself"
    program = shutil.which("systemctl")
    if program is None or not (machine.root / "run/systemd/system").is_dir():
        return Finding(False, "not the init system", needed, mend)
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=10).stdout
    version = re.match(r"systemd (\d{1,6})", answer)
    return Finding(version is not None and int(version[1]) >= SYSTEMD_NEEDED, answer.partition("\n")[0], needed, mend)


CHECKS: Final = (
    Check("memfd", "everything", _memfd),
    Check("runtime directory", "everything", _runtime_directory),
    Check("kernel", "kexec", _kernel),
    Check("kernel options", "kexec", _options),
    Check("boot parameters", "kexec", _parameters),
    Check("device", "kexec", _device),
    Check("systemd", "kexec without an agent", _systemd),
)
"""From what everything needs to what only the last step needs."""


Results = Sequence[tuple[Check, Finding]]


def examine(machine: Machine) -> Results:
    """Run every check. Takes a fraction of a second."""
    return [(check, check.look(machine)) for check in CHECKS]


def works(results: Results) -> bool:
    """Whether arenas can be kept at all: by the simulator, if by nothing else."""
    return _all_ok(results, "everything")


def survives_kexec(results: Results) -> bool:
    """Whether a live-update session can carry arenas across a kexec of this machine."""
    return works(results) and _all_ok(results, "kexec")


def _all_ok(results: Results, need: Need) -> bool:
    return all(finding.ok for check, finding in results if check.needed_for == need)
