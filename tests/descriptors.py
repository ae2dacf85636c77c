"""What this process has open, for tests that promise to leave it so."""

import gc
from pathlib import Path


def open_descriptors() -> set[tuple[str, str]]:
    """Number and link of each, but for the one that lists them.

    What earlier tests left to the garbage collector is closed first, so that it is not closed between two looks.
    """
    gc.collect()
    entries = [entry for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    return {(entry.name, str(entry.readlink())) for entry in entries if entry.is_symlink()}
