"""What memory a process has, as the kernel counts it (``proc_pid_smaps(5)``)."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes."""

    rss: int
    """Resident: every page that the process has mapped and that is there, whoever else has it, too."""
    pss: int
    """The process's share: of a page that N processes have mapped, an Nth. Shares add up to what is really taken."""


def memory_of(pid: int) -> Memory:
    """What a process has at this moment.

    Raises:
        OSError: there is no such process, or it is another user's.
    """
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:])
    kib = {fields[0].rstrip(":"): int(fields[1]) for fields in lines}
    return Memory(kib["Rss"] << 10, kib["Pss"] << 10)
