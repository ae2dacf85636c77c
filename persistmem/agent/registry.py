"""The registry: a snapshot of what the agent remembers, in an arena of its own that travels like any other.

Knows arenas and carriers; must not know what the records are about.
"""

import os
from contextlib import suppress
from typing import Final

from persistmem.agent.records import REGISTRY, RegistryDocument
from persistmem.arena import Arena
from persistmem.arena.memfd import check_memfd, create_memfd
from persistmem.carriers.interface import Carrier
from persistmem.errors import CorruptError, NotFoundError

KEY: Final = "registry"
"""Its name at the carrier. No user's arena has it: theirs are UUIDs."""

_SNAPSHOT: Final = "registry"
_SIZE: Final = 8 << 20
"""Room for three generations of the longest registry: 1000 arenas and 32 handovers are about 1.5 MB."""


class Registry:
    """The registry's arena, open."""

    def __init__(self, fd: int, *, kernel: str) -> None:
        """Open the arena in ``fd``; the caller closes ``fd``."""
        check_memfd(fd)
        self._arena = Arena(fd, kernel=kernel)

    @classmethod
    def create(cls, carrier: Carrier, *, kernel: str) -> "Registry":
        """Make an empty one, and give it to the carrier in place of what it may have."""
        with suppress(NotFoundError):
            carrier.drop(KEY)
        fd = create_memfd("registry", _SIZE)
        try:
            Arena.format(fd, kernel=kernel)
            carrier.keep(KEY, fd)
            return cls(fd, kernel=kernel)
        finally:
            os.close(fd)

    @classmethod
    def recover(cls, carrier: Carrier, *, kernel: str) -> "Registry":
        """Open the one that the carrier has.

        Raises:
            NotFoundError: it has none.
            CorruptError: what it has is no arena.
        """
        fd = carrier.recover(KEY)
        try:
            return cls(fd, kernel=kernel)
        finally:
            os.close(fd)

    def store(self, document: RegistryDocument) -> None:
        """Take a snapshot of ``document``."""
        self._arena.snapshot(_SNAPSHOT, REGISTRY.pack(document))

    def load(self) -> RegistryDocument:
        """Return the newest sound snapshot.

        Raises:
            CorruptError, NotFoundError: there is none.
        """
        try:
            return REGISTRY.unpack(self._arena.restore(_SNAPSHOT))
        except CorruptError:
            raise
        except ValueError as error:
            raise CorruptError(f"registry: {error}") from error
