"""The unit that this process is the service of, as its service manager sees it. Runs systemctl, and only reads.

Knows systemd's properties; must not know descriptors.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

_UNIT: Final = re.compile(r"[A-Za-z0-9:_.\\@-]{1,251}\.service", re.ASCII)
_PROPERTIES: Final = ("FileDescriptorStoreMax", "NFileDescriptorStore", "FileDescriptorStorePreserve", "NotifyAccess")
_PATIENCE: Final = 10.0
_OUTPUT_MAX: Final = 4096

PRESERVE_VERSION: Final = 254
"""The first systemd that keeps a stopped service's descriptors, if it is told to."""
KEXEC_VERSION: Final = 261
"""The first systemd that takes them to the next kernel."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A service's settings, and what of its store is in use."""

    name: str
    store_max: int
    stored: int
    preserve: str
    """``yes``, ``no`` or ``restart``; empty if this systemd does not know the setting."""
    notify_access: str

    @classmethod
    def of_process(cls) -> Self | None:
        """Ask about the service that this process belongs to; None if it belongs to none, or nobody answers.

        Cost: runs systemctl, about 10 ms.
        """
        found = _unit_of(Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="replace"))
        if found is None:
            return None
        name, options = found
        said = systemctl(*options, "show", *(f"--property={key}" for key in _PROPERTIES), "--", name)
        if said is None:
            return None
        values = dict(line.partition("=")[::2] for line in said.splitlines())
        return cls(
            name,
            _number(values.get("FileDescriptorStoreMax", "")),
            _number(values.get("NFileDescriptorStore", "")),
            values.get("FileDescriptorStorePreserve", ""),
            values.get("NotifyAccess", ""),
        )


def systemd_version(*options: str) -> int | None:
    """Return the running service manager's version; None if nobody answers. Cost: runs systemctl, about 10 ms.

    With the option ``--user`` it is the user's own manager that is asked.
    """
    said = systemctl(*options, "show", "--property=Version")
    found = re.match(r"Version=(?:v|systemd )?(\d{1,4})", said or "", re.ASCII)
    return int(found[1]) if found else None


def is_stopping() -> bool:
    """Whether the machine is being shut down, or on its way to another kernel."""
    # Its exit status says no more than that the answer is not "running".
    return (systemctl("is-system-running", check=False) or "").strip() == "stopping"


def systemctl(*arguments: str, check: bool = True) -> str | None:
    """Return what systemctl says; None if there is none, or it fails (unless its exit status is not to be checked)."""
    import subprocess  # noqa: PLC0415 - slow to import, and only a new arena in a service's store needs it

    try:
        done = subprocess.run(
            ["systemctl", "--no-pager", *arguments],  # noqa: S607 - wherever this machine has it
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_PATIENCE, check=check,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout[:_OUTPUT_MAX]


def _unit_of(cgroups: str) -> tuple[str, tuple[str, ...]] | None:
    """The service, and how to reach its manager, from /proc/PID/cgroup.

    >>> _unit_of("0::/system.slice/shop.service")
    ('shop.service', ())
    >>> _unit_of("0::/user.slice/user-7.slice/user@7.service/app.slice/shop.service/worker")
    ('shop.service', ('--user',))
    """
    for line in cgroups.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" or controllers == "name=systemd":
            services = [part for part in path.split("/") if _UNIT.fullmatch(part)]
            if services:
                of_user = len(services) > 1 and services[0].startswith("user@")
                return services[1 if of_user else 0], ("--user",) if of_user else ()
    return None


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 10 else 0
