"""What an agent writes on disk for the next one: which boot it is in, and what it kept. Never the memory itself.

It tells a next agent after a kill which arenas to wait for, and after a reboot what should have arrived. Knows records
and one file; must not know arenas, carriers or sockets.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

from persistmem.agent.fields import KERNEL, UUID_TEXT, integer, record, text
from persistmem.agent.records import REGISTRY, RegistryDocument

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
    """A simulated kernel's live-update ABI, such as "luo-v5"; empty for a real one, which does not say."""


@dataclass(frozen=True, slots=True)
class AgentState:
    """All that is in the file."""

    format: int
    boot: Boot
    """The boot that its agent is in."""
    registry: RegistryDocument


_STATE: Final = record(
    AgentState,
    format=integer(FORMAT, FORMAT),
    boot=record(Boot, machine=UUID_TEXT, id=UUID_TEXT, kernel=KERNEL, luo=text(20)),
    registry=REGISTRY,
)


def machine_boot() -> UUID:
    """Return the identity of the running kernel's boot."""
    return UUID(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())


def write_state(path: Path, state: AgentState) -> None:
    """Replace the file atomically. It is on disk when this returns: after a power cut it says what was lost."""
    draft = path.with_suffix(".new")
    with draft.open("w", encoding="utf-8") as file:
        file.write(json.dumps(_STATE.pack(state)))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read_state(path: Path) -> AgentState | None:
    """Return what the last agent wrote, in whichever boot of the machine; None if none did.

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
    try:
        return _STATE.unpack(json.loads(content))
    except RecursionError as error:
        raise ValueError("expected what an agent wrote, found JSON that is nested too deep") from error
