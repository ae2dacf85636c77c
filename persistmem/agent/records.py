"""What the agent remembers of arenas and of handovers between kernels; declared once for socket, registry and disk."""

from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from persistmem.agent.fields import (
    COUNT,
    INSTANT,
    KERNEL,
    NAME,
    SECONDS,
    UUID_TEXT,
    integer,
    listing,
    optional,
    record,
    text,
)

ARENAS_MAX: Final = 1000
"""Most arenas that one agent keeps: each costs it one file descriptor."""

HANDOVERS_MAX: Final = 32
"""How many handovers the registry remembers; older ones are forgotten."""

LOSSES_MAX: Final = 32
"""How many losses one handover names; it counts the rest."""


class ArenaRecord(NamedTuple):
    """One arena that the agent keeps."""

    name: str
    uid: int
    gid: int
    mode: int
    """Permission bits of the memfd; a kernel that retrieves it forgets them."""
    size: int
    """Bytes of the memfd."""
    uuid: UUID
    created: datetime
    kernel_from: str | None
    """The kernel that handed it over to this one; None if it was made on this one."""


class Loss(NamedTuple):
    """An arena that did not arrive."""

    name: str
    uid: int
    why: str


class Handover(NamedTuple):
    """How the arenas went from one kernel to the next."""

    number: int
    """1 for the first that this agent's memory knows of."""
    kernel_from: str
    kernel_to: str
    left: datetime | None
    """When the old kernel was left (UTC); None if it did not say that it was: nothing was prepared."""
    arenas: int
    """How many arrived."""
    saved: int
    """How many of these came by way of the disk, and not through memory."""
    size: int
    """Bytes of those that arrived, the holes included."""
    preserve: float
    """Seconds that preserving took; arenas were still served and writable."""
    dark: float
    """Seconds in which nobody was served: from when the old kernel was left to when the next one's agent could serve.

    By the machine's clock: a real kexec sets it from the hardware's, which counts whole seconds. 0 if ``left`` is None.
    """
    boot: float
    """Seconds of the dark time from the next kernel's first to its agent's first; 0 in a simulation."""
    retrieve: float
    """Seconds of the dark time that went into retrieving and checking."""
    lost: tuple[Loss, ...]
    """What did not arrive: the first 32."""
    lost_count: int
    """How many did not arrive."""


class Departure(NamedTuple):
    """What the old kernel's agent wrote down when it left."""

    left: datetime
    preserve: float
    """Seconds."""


class RegistryDocument(NamedTuple):
    """All that the agent remembers."""

    kernel: str
    """Release of the kernel in which this was written."""
    arenas: tuple[ArenaRecord, ...]
    handovers: tuple[Handover, ...]
    departure: Departure | None
    """There while the agent leaves for the next kernel."""


UID: Final = integer(0, 2**32 - 2)
"""A uid or a gid."""

ARENA: Final = record(
    ArenaRecord,
    name=NAME,
    uid=UID,
    gid=UID,
    mode=integer(0, 0o777),
    size=COUNT,
    uuid=UUID_TEXT,
    created=INSTANT,
    kernel_from=optional(KERNEL),
)
HANDOVER: Final = record(
    Handover,
    number=integer(1, 2**31),
    kernel_from=KERNEL,
    kernel_to=KERNEL,
    left=optional(INSTANT),
    arenas=COUNT,
    saved=COUNT,
    size=COUNT,
    preserve=SECONDS,
    dark=SECONDS,
    boot=SECONDS,
    retrieve=SECONDS,
    lost=listing(record(Loss, name=text(200), uid=UID, why=text(300)), LOSSES_MAX),
    lost_count=COUNT,
)
REGISTRY: Final = record(
    RegistryDocument,
    kernel=KERNEL,
    arenas=listing(ARENA, ARENAS_MAX),
    handovers=listing(HANDOVER, HANDOVERS_MAX),
    departure=optional(record(Departure, left=INSTANT, preserve=SECONDS)),
)
