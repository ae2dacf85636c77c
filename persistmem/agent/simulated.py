"""The machine under a user's agent: a simulated kernel, and the way to the next one. Knows no socket and no message."""

import os
import re
import signal
from dataclasses import replace
from datetime import timedelta
from typing import Final, NoReturn, Self
from uuid import uuid4

from persistmem.agent.command import AfterKexec, Settings, successor_command
from persistmem.agent.custodian import Arrival, Custodian, utc_now
from persistmem.agent.records import RegistryDocument
from persistmem.agent.saved import SavedArenas
from persistmem.agent.statefile import AgentState, Boot, machine_boot
from persistmem.carriers.luo import LuoCarrier
from persistmem.errors import Error, RefusedError
from persistmem.liveupdate.abi import AbiVersions
from persistmem.liveupdate.simulator import CURRENT_ABI, SimulatedKernel

ENDING_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_SIMULATED: Final = re.compile(r"(.*)\+sim(\d{1,9})", re.ASCII | re.DOTALL)
_LUO: Final = re.compile(r"luo-v(\d{1,4})", re.ASCII)
_RELEASE: Final = re.compile(r"[!-~]{1,65}", re.ASCII)
"""What uname(2) can say: ``__NEW_UTS_LEN`` is 64."""


def first_boot(release: str) -> Boot:
    """Return the identity of a simulated kernel that nobody handed anything to, on a machine that runs ``release``."""
    return Boot(machine_boot(), uuid4(), f"{release[:50]}+sim1", CURRENT_ABI.luo)


def next_boot(boot: Boot, release: str | None, *, compatible: bool) -> Boot:
    """Return the identity of the kernel after ``boot``.

    Raises:
        RefusedError: no kernel is called ``release``.

    >>> from uuid import uuid4
    >>> after = next_boot(Boot(uuid4(), uuid4(), "7.2.13+sim1", "luo-v5"), None, compatible=False)
    >>> after.kernel, after.luo
    ('7.2.13+sim2', 'luo-v6')
    """
    if release is None:
        simulated = _SIMULATED.fullmatch(boot.kernel)
        stem, number = (simulated[1], int(simulated[2])) if simulated else (boot.kernel[:50], 0)
        release = f"{stem}+sim{number + 1}"
    if not _RELEASE.fullmatch(release):
        raise RefusedError(f"kernel release {release!r:.80}: expected 1 to 65 printable characters without spaces")
    return Boot(boot.machine, uuid4(), release, boot.luo if compatible else _next_luo(boot.luo))


class SimulatedMachine:
    """One simulated kernel, its live-update device, and the arenas that are carried by it."""

    def __init__(
        self, kernel: SimulatedKernel, boot: Boot, settings: Settings, lock: int, before: RegistryDocument | None
    ) -> None:
        """Use :meth:`start` or :meth:`arrive`. ``lock`` is the descriptor that the next kernel's agent inherits."""
        self.carrier = "luo (simulated)"
        self.outlives_process = False
        self._settings = settings
        self._lock = lock
        self._device = kernel.open_device()
        self._carrier = LuoCarrier(self._device)
        self.custodian = Custodian(
            self._carrier, boot, settings.runtime.state, SavedArenas(settings.saved), before=before
        )

    @classmethod
    def start(cls, settings: Settings, lock: int, state: AgentState | None) -> Self:
        """Return a machine in the boot that ``state`` was written in, or in a first one."""
        began = utc_now()
        if state is None or state.boot.machine != machine_boot():
            boot = first_boot(os.uname().release)
            machine = cls(SimulatedKernel.fresh(boot.kernel, _abi(boot)), boot, settings, lock, None)
            machine.custodian.arrive(Arrival(began, timedelta(), state.registry if state else None))
        else:
            boot = state.boot
            machine = cls(SimulatedKernel.fresh(boot.kernel, _abi(boot)), boot, settings, lock, state.registry)
            machine.custodian.resume()
        return machine

    @classmethod
    def arrive(cls, settings: Settings, lock: int, image: int, boot: Boot, departed: AgentState | None) -> Self:
        """Return a machine after a kexec, with all that is in ``image``, which it takes over."""
        began = utc_now()
        kernel = SimulatedKernel.boot(image, boot.kernel, _abi(boot))
        machine = cls(kernel, boot, settings, lock, None)
        refused = str(kernel.refused) if kernel.refused else None
        machine.custodian.arrive(Arrival(began, timedelta(), departed.registry if departed else None, refused))
        machine._carrier.finish()
        return machine

    def next_boot(self, release: str | None, *, compatible: bool) -> Boot:
        """Return the kernel that a reboot would lead to. RefusedError if there can be none like that."""
        return next_boot(self.custodian.boot, release, compatible=compatible)

    def kexec(self, successor: Boot, preserve: float) -> NoReturn:
        """Take every arena to the next kernel, after so many seconds of preserving: this process becomes its agent.

        Raises:
            RefusedError: it did not happen; everything is as before.
        """
        # Blocked signals stay blocked over an exec: one that comes before the successor handles it must not end it.
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
        try:
            self.custodian.depart(preserve)
            self._device.kexec(
                lambda image: successor_command(self._settings, AfterKexec(successor, image, self._lock)),
                keep=[self._lock],
            )
        except (Error, OSError) as error:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)
            raise RefusedError(f"the kexec to {successor.kernel} was refused, nothing has changed: {error}") from error


def _abi(boot: Boot) -> AbiVersions:
    return replace(CURRENT_ABI, luo=boot.luo)


def _next_luo(luo: str) -> str:
    version = _LUO.fullmatch(luo)
    return f"luo-v{int(version[1]) + 1 if version else 0}"
