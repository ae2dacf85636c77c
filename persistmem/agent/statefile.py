"""What an agent writes on disk for the next one: which boot it is in, and what it kept. Never the memory itself.

It tells a next agent after a kill which arenas to wait for, and after a kexec what should have arrived. Knows records
and one file; must not know arenas, carriers or sockets.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

from persistmem.agent.fields import KERNEL, UUID_TEXT, integer, optional, record, text
from persistmem.agent.records import DEPARTURE, REGISTRY, Departure, RegistryDocument

FORMAT: Final = 1
_BYTES_MAX: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class Boot:
    """Which kernel this is."""

    machine: UUID
    """The machine's own boot: what was written in another one is about memory that is long gone."""
    id: UUID
    """The (simulated) kernel's boot."""
    kernel: str
    """Its release."""
    luo: str
    """The version of its live-update ABI, such as "luo-v5"."""


@dataclass(frozen=True, slots=True)
class AgentState:
    """All that is in the file."""

    format: int
    boot: Boot
    """The boot that its agent is in."""
    registry: RegistryDocument
    departure: Departure | None
    """There while the agent leaves for the next kernel."""


_STATE: Final = record(
    AgentState,
    format=integer(FORMAT, FORMAT),
    boot=record(Boot, machine=UUID_TEXT, id=UUID_TEXT, kernel=KERNEL, luo=text(20)),
    registry=REGISTRY,
    departure=optional(DEPARTURE),
)


def machine_boot() -> UUID:
    """Return the identity of the running kernel's boot."""
    return UUID(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())


def write_state(path: Path, state: AgentState) -> None:
    """Replace the file atomically. It need not survive a power cut, for the memory does not either: no fsync."""
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(_STATE.pack(state)), encoding="utf-8")
    draft.replace(path)


def read_state(path: Path) -> AgentState | None:
    """Return what the last agent wrote, or None if there is nothing from this boot of the machine.

    Raises:
        ValueError: the file holds something else.
        OSError: it cannot be read.

    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, encoding="utf-8") as file:
        content = file.read(_BYTES_MAX + 1)
    if len(content) > _BYTES_MAX:
        raise ValueError(f"expected at most {_BYTES_MAX} characters, found more")
    state = _STATE.unpack(json.loads(content))
    return state if state.boot.machine == machine_boot() else None
