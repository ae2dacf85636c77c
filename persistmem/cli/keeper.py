"""Opening arenas as commands want them: one that is there, or an error. Starts no agent to learn that there is none."""

import os
from typing import Final

from persistmem.arena import Arena
from persistmem.attachment import agent_status, attach
from persistmem.choice import choose
from persistmem.errors import NotFoundError

THREADS: Final = min(4, len(os.sched_getaffinity(0)))
"""How many threads verify; a few saturate the memory."""


def open_arena(name: str) -> Arena:
    """Attach an arena that is there.

    Raises:
        NotFoundError: it is not.
    """
    if choose().carrier != "systemd" and agent_status() is None:
        raise NotFoundError(f"there is no arena {name!r}, for no agent runs; 'persistmem snapshot' makes one")
    return attach(name)
