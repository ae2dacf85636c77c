"""A service's own arenas, in its service manager's file descriptor store: no agent has anything to do with them.

Brings arenas and the systemd carrier together; must not know agents' messages, nor sd_notify(3).
"""

import os
import stat
import threading
import time
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from persistmem.agent.records import ArenaRecord
from persistmem.arena import Arena
from persistmem.arena.memfd import check_memfd, create_memfd
from persistmem.carriers.systemd import SystemdCarrier, missing_preservation
from persistmem.carriers.unit import Unit
from persistmem.errors import (
    CorruptError,
    DamageWarning,
    NewerFormatError,
    NotFoundError,
    StaleArenaError,
    UnpreservedWarning,
)
from persistmem.origin import Origin
from persistmem.sizes import check_same_size


@dataclass(slots=True, eq=False)
class Stored:
    """One arena that this process attached."""

    name: str
    fd: int
    """Ours to close."""
    origin: Origin
    gone: str | None = None
    """Why it must not be used any more."""

    def check(self) -> None:
        """Raise if it must not be used. Cost: none.

        Raises:
            StaleArenaError: it was dropped.
        """
        if self.gone is not None:
            raise StaleArenaError(self.gone)


class ServiceStore:
    """The arenas of the service that this process is the main one of. Safe to use from several threads."""

    def __init__(self, carrier: SystemdCarrier, kernel: str) -> None:
        """Take the store, and the release of the running kernel."""
        self.kernel = kernel
        self.carrier = carrier
        self._lock = threading.RLock()
        self._attached: set[Stored] = set()

    def attach(self, name: str, size: int | None) -> Stored:
        """Give the arena ``name``, and make it if there is none and ``size``, in bytes, is given.

        Raises:
            NotFoundError: there is none, and no size.
            SizeError: it has another size, or no arena can have this one.
            CarrierError: the service manager does not keep it.
            CorruptError, NewerFormatError: what is stored under this name is no arena that can be used.
        """
        with self._lock:
            try:
                stored = self._reattach(name, size)
            except NotFoundError:
                if size is None:
                    raise NotFoundError(
                        f"there is no arena {name!r} in this service's store; give a size to make it"
                    ) from None
                stored = self._make(name, size)
            self._attached.add(stored)
            return stored

    def release(self, stored: Stored) -> None:
        """Hold it no longer."""
        self._attached.discard(stored)
        os.close(stored.fd)

    def drop(self, name: str) -> None:
        """Have the service manager forget an arena. Where it is attached in this process, it is stale from here on.

        Raises:
            NotFoundError: there is none.
            CarrierError: the service manager cannot be told.
        """
        with self._lock:
            self.carrier.drop(name)
            for stored in list(self._attached):
                if stored.name == name:
                    stored.gone = f"arena {name!r} was dropped: attach again to make a new one"

    def records(self) -> list[ArenaRecord]:
        """Return what is stored, by name; what is no sound arena is left out, with a DamageWarning."""
        found: list[ArenaRecord] = []
        for name in self.carrier.names():
            try:
                stored = self._reattach(name, None)
            except (CorruptError, NewerFormatError) as error:
                warnings.warn(f"arena {name!r} in this service's store: {error}", DamageWarning, stacklevel=3)
                continue
            try:
                with Arena(stored.fd, kernel=self.kernel) as arena:
                    about = os.fstat(stored.fd)
                    mode = stat.S_IMODE(about.st_mode)
                    came_from = stored.origin.kernel_from
                    record = ArenaRecord(
                        name, about.st_uid, about.st_gid, mode, arena.size, arena.uuid, arena.created, came_from
                    )
                    found.append(record)
            finally:
                os.close(stored.fd)
        return found

    def unit(self) -> Unit | None:
        """Return what the service manager says of this service; None if it cannot be asked. Cost: about 10 ms."""
        return Unit.of_process()

    def _reattach(self, name: str, size: int | None) -> Stored:
        fd = self.carrier.recover(name)
        try:
            check_same_size(name, check_memfd(fd), size)
            with Arena(fd, kernel=self.kernel) as arena:
                when, kernel = arena.last_change()
        except BaseException:
            os.close(fd)
            raise
        came = kernel != self.kernel or when < _boot_time()
        origin = Origin("carried over", kernel, self.kernel) if came else Origin("reattached", None, self.kernel)
        return Stored(name, fd, origin)

    def _make(self, name: str, size: int) -> Stored:
        fd = create_memfd(name, size)
        try:
            Arena.format(fd, kernel=self.kernel)
            self.carrier.keep(name, fd)
        except BaseException:
            os.close(fd)
            raise
        unit = self.unit()
        if unit is not None and (missing := missing_preservation(unit)) is not None:
            warnings.warn(f"arena {name!r}: {missing}", UnpreservedWarning, stacklevel=_TO_THE_USER)
        return Stored(name, fd, Origin.created(self.kernel))


def store_of_process() -> ServiceStore:
    """Return the store of the service that this process is the main one of.

    Raises:
        CarrierError: it is none's, or not the main one.
    """
    global _store  # noqa: PLW0603 - a process is given its descriptors once
    with _store_lock:
        if _store is None:
            _store = ServiceStore(SystemdCarrier.of_process(os.environ), os.uname().release)
        return _store


_store: ServiceStore | None = None
_store_lock: Final = threading.Lock()

_TO_THE_USER: Final = 4
"""Frames from the one that makes an arena to the one that called :func:`persistmem.attach`."""


def _boot_time() -> datetime:
    """When this kernel began, by the clock as it is now."""
    return datetime.now(UTC) - timedelta(seconds=time.clock_gettime(time.CLOCK_BOOTTIME))
