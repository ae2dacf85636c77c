"""What this machine lacks to carry arenas across a kexec. One check is one function in the table :data:`CHECKS`."""

from collections.abc import Sequence
from typing import Final

from persistmem.cli.doctor import here, keepers, kernel, memory
from persistmem.cli.doctor.machine import Check, Finding, Machine, Need

CHECKS: Final = (
    Check("memfd", "everything", here.memfd),
    Check("runtime directory", "everything", here.runtime_directory),
    Check("kernel", "kexec", kernel.version),
    Check("kernel options", "kexec", kernel.options),
    Check("boot parameters", "kexec", kernel.parameters),
    Check("kexec", "kexec", kernel.kexec),
    Check("memfd mode", "kexec", kernel.memfd_mode),
    Check("scratch", "kexec", memory.scratch),
    Check("device", "kexec", kernel.device),
    Check("memory", "kexec", memory.preservable),
    Check("systemd", "kexec without an agent", keepers.systemd),
    Check("agent", "kexec through an agent", keepers.agent),
    Check("units", "an agent from boot on", keepers.units),
    Check("huge folios", "speed", memory.huge_folios),
    Check("compiled cache", "speed", here.compiled_cache),
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
    """Whether arenas cross a kexec of this machine, as it is now: through an agent, or in systemd's own hands."""
    carried = _all_ok(results, "kexec through an agent") or _all_ok(results, "kexec without an agent")
    return works(results) and _all_ok(results, "kexec") and carried


def _all_ok(results: Results, need: Need) -> bool:
    return all(finding.ok for check, finding in results if check.needed_for == need)
