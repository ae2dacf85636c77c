"""systemd's file descriptor store: memfds that the service manager keeps for a service, and gives back at its start.

It keeps them when the service is restarted; with ``FileDescriptorStorePreserve=yes`` from systemd 254 on while it is
stopped, and over a soft reboot; from 261 on over a kexec. Knows sd_notify(3); must not know arenas.
"""

import fcntl
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from time import monotonic, sleep
from typing import Final, Self

from persistmem.carriers.environment import store_max
from persistmem.carriers.fdnames import from_fdname, to_fdname
from persistmem.carriers.holes import check_room_for_holes
from persistmem.carriers.notify import Manager, descriptors
from persistmem.carriers.unit import PRESERVE_VERSION, Unit
from persistmem.errors import BusyError, CarrierError, ExistsError, NotFoundError

STORE_SETTINGS: Final = "FileDescriptorStoreMax=16 and FileDescriptorStorePreserve=yes"
"""What the ``[Service]`` section of a unit needs."""
_CLOSING: Final = 0.1
"""Seconds in which a manager has closed what it does not keep: it leaves closing to a helper of its own."""


class SystemdCarrier:
    """Keeps descriptors in the store of the service that this process is the main one of. Safe to use from threads."""

    outlives_process = True

    def __init__(
        self,
        manager: Manager,
        stored: Iterable[tuple[str, int]],
        most: int | None,
        ask_unit: Callable[[], Unit | None] | None,
    ) -> None:
        """Take over what was in the store when this process was started.

        Args:
            manager: who keeps it.
            stored: what this process was started with; what is not ours is left alone. Descriptors of ours are not
                inherited by other programs from here on.
            most: how many descriptors the manager keeps; None if it does not say.
            ask_unit: asks for the unit's settings, which is done before something is stored; None if it need not be,
                because nothing else stores anything for this service.
        """
        self.most = most
        self._manager = manager
        self._ask_unit = ask_unit
        self._lock = threading.RLock()
        self._held: dict[str, int] = {}
        self._twice: set[str] = set()
        for fdname, fd in stored:
            if (name := from_fdname(fdname)) is not None:
                os.set_inheritable(fd, False)
                if name in self._held:
                    self._twice.add(name)
                self._held[name] = fd

    @classmethod
    def of_process(cls, environment: Mapping[str, str], *, alone: bool = False) -> Self:
        """Take over this process's own store; ``alone`` if nothing else in the service stores anything.

        Raises:
            CarrierError: no service manager started this process, or not as its service's main one.
        """
        manager = Manager.of(environment)
        if manager is None:
            raise CarrierError(
                "no service manager keeps anything for this process ($NOTIFY_SOCKET is not set): run it as a systemd"
                f" service with {STORE_SETTINGS}, or choose another carrier"
            )
        pid = os.getpid()
        main = environment.get("LISTEN_PID") or environment.get("SYSTEMD_EXEC_PID")
        if main not in (None, str(pid)):
            raise CarrierError(
                f"process {pid} is not the main one of its service, which is {main[:10]}: only that one is given what"
                " its store keeps. Attach there, before it forks or starts others ('exec' in a shell script that starts"
                " it), or choose another carrier here: carrier='system'"
            )
        ask_unit = None if alone else Unit.of_process
        return cls(manager, descriptors(environment, pid), store_max(environment), ask_unit)

    def recover(self, name: str) -> int:
        """Return a new descriptor of what is stored under ``name``; the caller closes it.

        Raises:
            NotFoundError: nothing is.
            CarrierError: two things are.
        """
        with self._lock:
            if name in self._twice:
                raise CarrierError(
                    f"the store has {name!r} twice, and nobody can tell which is meant: drop it, or stop the service"
                    " and run 'systemctl clean --what=fdstore' on it"
                )
            if name not in self._held:
                raise NotFoundError(f"nothing is kept under {name!r}")
            return os.dup(self._held[name])

    def keep(self, name: str, fd: int) -> None:
        """Store what ``fd`` refers to; the caller may close ``fd``.

        When this returns, the manager has it: that is seen by a flock(2) of the description that it was sent.

        Raises:
            ExistsError: something is kept under this name.
            CarrierError: the manager does not keep it, and this is what to change.
        """
        fdname = to_fdname(name)
        with self._lock:
            if name in self._held:
                raise ExistsError(f"{name!r} is kept already; drop it first")
            unit = self._ask_unit() if self._ask_unit is not None else None
            self._check_room(unit)
            held = os.dup(fd)
            try:
                self._push(fdname, fd, unit)
            except BaseException:
                os.close(held)
                raise
            self._held[name] = held

    def drop(self, name: str) -> None:
        """Have the manager close what is kept under ``name``.

        Raises:
            NotFoundError: nothing is.
            CarrierError: it cannot be told to.
        """
        with self._lock:
            if name not in self._held:
                raise NotFoundError(f"nothing is kept under {name!r}")
            self._manager.tell("FDSTOREREMOVE=1", f"FDNAME={to_fdname(name)}")
            self._manager.wait()
            os.close(self._held.pop(name))
            self._twice.discard(name)

    def names(self) -> list[str]:
        """Return the names of all that is kept, sorted."""
        return sorted(self._held)

    def preserve(self) -> None:
        """Check that there is memory for crossing a kexec; the service manager does the rest as it leaves.

        Raises:
            LiveUpdateError: there is not.
        """
        check_room_for_holes(self._held.values())

    def abort(self) -> None:
        """Nothing was done that could be taken back."""

    def finish(self) -> None:
        """The service manager has done so."""

    def _check_room(self, unit: Unit | None) -> None:
        if unit is not None and not unit.store_max:
            raise CarrierError(
                f"{unit.name} has no file descriptor store: add {STORE_SETTINGS} to its [Service] section, then"
                " 'systemctl daemon-reload', and start it again"
            )
        most = unit.store_max if unit is not None else self.most
        stored = unit.stored if unit is not None else len(self._held)
        if most is not None and stored >= most:
            raise CarrierError(
                f"the file descriptor store of {unit.name if unit else 'this service'} is full ({stored} of {most}):"
                " raise FileDescriptorStoreMax= in its [Service] section and run 'systemctl daemon-reload', or drop an"
                " arena"
            )

    def _push(self, fdname: str, fd: int, unit: Unit | None) -> None:
        sent = _reopen(fd)
        try:
            try:
                fcntl.flock(sent, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ExistsError("it is kept already, under another name") from error
            self._manager.tell("FDSTORE=1", f"FDNAME={fdname}", "FDPOLL=0", fds=[sent])
            self._manager.wait()
        finally:
            os.close(sent)
        known_to_fit = unit is not None or self._ask_unit is None
        deadline = monotonic() + _CLOSING
        while _is_locked(fd):
            if known_to_fit or monotonic() >= deadline:
                return
            sleep(0.01)
        mend = f"{STORE_SETTINGS} to the unit's [Service] section, with room for one more"
        if unit is not None:
            mend = f"NotifyAccess=all to the [Service] section of {unit.name}, or attach in its main process"
        raise CarrierError(f"the service manager does not keep what process {os.getpid()} gave it: add {mend}")


def missing_preservation(unit: Unit) -> str | None:
    """Return what to change so that a stop, and a kexec, do not empty the store; None if all is well."""
    if unit.preserve == "yes":
        return None
    if not unit.preserve:
        return (
            f"this systemd empties the store of {unit.name} when it is stopped; from systemd {PRESERVE_VERSION} on"
            " FileDescriptorStorePreserve=yes keeps it"
        )
    return (
        f"the store of {unit.name} is emptied when it is stopped, and at a kexec: add FileDescriptorStorePreserve=yes"
        " to its [Service] section, then 'systemctl daemon-reload'"
    )


def _reopen(fd: int) -> int:
    # O_NONBLOCK: who has a lease on it, fcntl(F_SETLEASE), would have this wait for 45 seconds.
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except BlockingIOError as error:
        raise BusyError("somebody holds a lease on this memfd; try again") from error


def _is_locked(fd: int) -> bool:
    """Whether somebody has the description that was locked before it was sent away."""
    probe = _reopen(fd)
    try:
        fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(probe)
    return False
