"""Checks of what every agent needs, and of this persistmem itself."""

import os

from persistmem.arena.layout import ARENA_SIZE_MIN
from persistmem.arena.memfd import create_memfd
from persistmem.cache.compiled import NEEDS, VARIABLE
from persistmem.cli.doctor.machine import Finding, Machine
from persistmem.errors import Error


def memfd(_: Machine) -> Finding:
    """Look whether an arena can be made."""
    needed, mend = "memfd_create, and seals", "allow memfd_create: look at vm.memfd_noexec and at seccomp filters"
    try:
        os.close(create_memfd("doctor", ARENA_SIZE_MIN))
    except OSError as error:
        return Finding(False, error.strerror or str(error), needed, mend)
    return Finding(True, "works", needed, mend)


def runtime_directory(machine: Machine) -> Finding:
    """Look whether an agent has a place."""
    needed = "root's, for everybody" if machine.runtime.shared else "a directory of yours, mode 0700"
    mend = "set XDG_RUNTIME_DIR or PERSISTMEM_RUNTIME_DIR to a directory of yours"
    try:
        machine.runtime.ensure()
    except Error as error:
        return Finding(False, str(error), needed, mend)
    return Finding(True, str(machine.runtime.path), needed, mend)


def compiled_cache(machine: Machine) -> Finding:
    """Look whether the cache is as fast as it can be."""
    return Finding(
        machine.has_compiled_cache,
        "built" if machine.has_compiled_cache else f"not built, or {VARIABLE} is 0",
        "reads and writes of a cache take a third of the time",
        f"pip install --force-reinstall --no-cache-dir persistmem, where there are {NEEDS}",
    )
