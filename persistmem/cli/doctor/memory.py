"""Checks of the memory: whether the next kernel has room to start in, and arenas to be preserved in."""

import re
from typing import Final

from persistmem.cli.doctor.machine import Finding, Machine
from persistmem.sizes import format_size

_PAGE_DATA: Final = 64
"""One byte in so many describes memory (struct page, 64 bytes for 4 KiB): a kernel needs it before anything else."""
_KERNEL: Final = 64 << 20
"""Bytes for a kernel, its initrd and what it allocates while it starts, without modules. A guess, on the safe side."""
_SCRATCH_SIZES: Final = re.compile(r"kho_scratch=(\d+[KMG]?),(\d+[KMG]?),(\d+[KMG]?)", re.ASCII | re.IGNORECASE)
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def scratch(machine: Machine) -> Finding:
    """Look whether the next kernel has room: until it has found what was preserved, scratch is all that it may use.

    Source: Linux ``Documentation/admin-guide/mm/kho.rst``: sizes for low memory, anywhere, and each node; or a share of
    what this kernel took while it booted, 200 % if nobody says.
    """
    total = machine.memory("MemTotal")
    needed = _KERNEL + (total or 0) // _PAGE_DATA
    says = f"{format_size(needed)}: this machine's page descriptors, a kernel and its initrd"
    mend = f"start the kernel with kho_scratch={needed >> 20}M,{needed >> 21}M,{needed >> 21}M, or more; or without it"
    given = next((word for word in reversed(machine.command_line) if word.startswith("kho_scratch=")), None)
    if given is None or given.endswith("%"):
        share = given.partition("=")[2] if given else "200%"
        return Finding(True, f"{share} of what this kernel took while it booted", says, mend)
    sizes = _SCRATCH_SIZES.fullmatch(given)
    if sizes is None:
        return Finding(False, f"{given}, which the kernel does not understand", says, mend)
    have = sum(_bytes(size) for size in sizes.groups())
    return Finding(have >= needed, f"{format_size(have)}, by {given}", says, mend)


def preservable(machine: Machine) -> Finding:
    """Look whether arenas fit into memory with all holes filled and pinned, as preserving does."""
    available, shared = machine.memory("MemAvailable"), machine.memory("Shmem")
    needed = machine.agent.size if machine.agent is not None else 0
    says = f"{format_size(needed)} for the arenas there are: preserving fills their holes, and pins them"
    mend = "drop arenas, or make them smaller; 'persistmem reboot --kexec' takes them by the disk as it is"
    if available is None or shared is None:
        return Finding(False, "/proc/meminfo does not say", says, mend)
    return Finding(
        needed <= available + shared, f"{format_size(available + shared)} free or in shared memory", says, mend
    )


def huge_folios(machine: Machine) -> Finding:
    """Look whether arenas get huge folios, which preserve and retrieve much faster."""
    found = re.search(r"\[(\w+)\]", machine.read("sys/kernel/mm/transparent_hugepage/shmem_enabled"))
    mode = found[1] if found is not None else "not there"
    return Finding(
        mode in ("always", "within_size", "advise", "force"),
        f"transparent huge pages for shared memory: {mode}",
        "advise: an arena in huge folios is preserved and retrieved tens of times faster",
        "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled, before arenas are made; for every boot put"
        " transparent_hugepage_shmem=advise on the kernel's command line",
    )


def _bytes(size: str) -> int:
    unit = size[-1].upper() if size[-1].isalpha() else ""
    return int(size.rstrip("KMGkmg")) * _UNITS[unit]
