"""The usual case of the records, compiled, where that was built; must not know how it works.

Without it all works as it does with it, at a third of the speed.
"""

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from persistmem.cache._compiled import Records

NEEDS: Final = "a C compiler and Python's headers (on Debian gcc and python3-dev)"
"""What it takes to build it when persistmem is installed from source."""

VARIABLE: Final = "PERSISTMEM_COMPILED"
"""Environment variable: with 0 the cache does without."""


def _built() -> "type[Records] | None":
    try:
        from persistmem.cache._compiled import Records  # noqa: PLC0415 - it may not have been built
    except ImportError:
        return None
    return Records


COMPILED: Final = None if os.environ.get(VARIABLE) == "0" else _built()
"""The class; None if there is none, or the user wants none."""
