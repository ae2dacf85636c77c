"""The machine under the system's agent: the running kernel, and its live-update device. Knows no socket, no message."""

import errno
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final, Literal, NoReturn, Self

from persistmem.agent.custodian import Arrival, Custodian, Quota, utc_now
from persistmem.agent.saved import SavedArenas
from persistmem.agent.statefile import AgentState, Boot, machine_boot
from persistmem.carriers.environment import store_max
from persistmem.carriers.interface import KexecCarrier
from persistmem.carriers.luo import LuoCarrier, Preserving
from persistmem.carriers.systemd import SystemdCarrier
from persistmem.carriers.unit import KEXEC_VERSION, systemd_version
from persistmem.errors import CarrierError, LiveUpdateError, RefusedError
from persistmem.liveupdate.device import AbsentDevice, KernelDevice
from persistmem.liveupdate.interface import Device

LUO: Final = "luo"
SYSTEMD: Final = "systemd"
"""What an agent's carrier is called that takes arenas across a real kexec."""
_ARENAS_PER_USER_MAX: Final = 100
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KernelSettings:
    """How a service's agent carries arenas."""

    carrier: Literal["luo", "systemd"]
    """Through sessions of its own on the live-update device, or in its service manager's file descriptor store."""
    preserving: Preserving
    """With "luo": when."""
    quota: int
    """Bytes of arenas that one user other than root can have, the holes included."""


class KernelMachine:
    """The running kernel, and the arenas that cross the next kexec with it.

    On a kernel without live update it keeps arenas all the same; they go to the next one by the disk.
    """

    def __init__(self, carrier: str, custodian: Custodian, *, outlives_process: bool) -> None:
        """Use :meth:`start`."""
        self.carrier = carrier
        self.custodian = custodian
        self.outlives_process = outlives_process

    @classmethod
    def start(
        cls,
        settings: KernelSettings,
        saved: Path,
        state_path: Path,
        state: AgentState | None,
        *,
        environment: Mapping[str, str] = os.environ,
        open_device: Callable[[], Device] = KernelDevice,
    ) -> Self:
        """Take over what the last kernel handed over, or go on where an agent of this boot was killed.

        Raises:
            LiveUpdateError: the device is held by another process, or is not for us.
            CarrierError: the service manager keeps nothing for this process.
        """
        began, since_boot = utc_now(), time.clock_gettime(time.CLOCK_BOOTTIME)
        boot_id = machine_boot()
        boot = Boot(boot_id, boot_id, os.uname().release, "")
        same_boot = state is not None and state.boot.machine == boot_id
        carrier: KexecCarrier
        if settings.carrier == "systemd":
            carrier, name = _open_store(environment), SYSTEMD if crosses_kexec() else f"{SYSTEMD} (no kexec)"
        else:
            device, name = _open(open_device)
            carrier = LuoCarrier(device, settings.preserving)
        quota = Quota(_ARENAS_PER_USER_MAX, settings.quota)
        before = state.registry if state is not None and same_boot else None
        custodian = Custodian(carrier, boot, state_path, SavedArenas(saved), before=before, quota=quota, discreet=True)
        if before is not None:
            custodian.resume()
        else:
            departed = state.registry if state is not None else None
            custodian.arrive(Arrival(began, timedelta(seconds=since_boot), departed))
        carrier.finish()
        return cls(name, custodian, outlives_process=carrier.outlives_process)

    def next_boot(self, release: str | None, *, compatible: bool) -> NoReturn:
        """Refuse to simulate: RefusedError."""
        del release, compatible
        raise RefusedError(
            "this agent carries arenas through the real kernel, which is not simulated; the way to another is"
            " 'persistmem reboot --kexec KERNEL'"
        )

    def kexec(self, successor: Boot, preserve: float) -> NoReturn:
        """Refuse: whoever prepares a kexec does it, not the agent."""
        del preserve
        raise RefusedError(f"the agent does not go to kernel {successor.kernel} by itself")


def crosses_kexec() -> bool:
    """Whether the service manager takes its stores to the next kernel: it is new enough, and so is this kernel."""
    version = systemd_version()
    if version is None or version < KEXEC_VERSION or os.geteuid() != 0:
        return False
    # A sandboxed service does not see the device itself.
    misc = Path("/proc/misc").read_text(encoding="ascii")
    return any(line.split()[1:] == ["liveupdate"] for line in misc.splitlines())


def half_of_memory() -> int:
    """Return half of the machine's memory, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _open_store(environment: Mapping[str, str]) -> SystemdCarrier:
    if not store_max(environment):
        raise CarrierError(
            "the agent is not run as a service with a file descriptor store; 'persistmem agent install' makes it one"
        )
    return SystemdCarrier.of_process(environment, alone=True)


def _open(open_device: Callable[[], Device]) -> tuple[Device, str]:
    try:
        return open_device(), LUO
    except LiveUpdateError as error:
        if error.errno != errno.ENOENT:
            raise
        _log.warning("arenas end with this kernel unless they are saved: %s", error)
        return AbsentDevice(error), f"{LUO} (no device)"
