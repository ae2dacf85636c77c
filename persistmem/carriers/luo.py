"""Live-update sessions of our own: carry memfds across a kexec, for a process that stays until it.

Each name has a session of its own, so that one can be dropped, or lost, without the others. Knows the live-update
device; must not know arenas.
"""

import errno
import os
from typing import Final, Literal

from persistmem.carriers.holes import check_room_for_holes
from persistmem.errors import ExistsError, InvalidNameError, LiveUpdateError, NotFoundError, RefusedError
from persistmem.liveupdate.interface import SESSION_NAME_BYTES_MAX, Device, Session, Token

PREFIX: Final = "persistmem/"
"""What the session of every name is called, before the name."""
TOKEN: Final = Token(0)
"""Where each session has its memfd."""
NAME_BYTES_MAX: Final = SESSION_NAME_BYTES_MAX - len(PREFIX)

Preserving = Literal["late", "eager"]
"""When: as a kexec comes near, or as soon as something is kept."""


class LuoCarrier:
    """Keeps descriptors in this process, and takes them across a kexec in sessions that are called persistmem/NAME.

    What the last kernel handed over is found by its name, for the kernel cannot list it; :meth:`recover` retrieves it
    (cost: one walk over its memory), and the owner calls :meth:`finish` once all of it is safe.

    Preserved late, memory costs nothing until :meth:`preserve`, and nothing crosses a kexec before which nobody called
    that. Preserved eagerly, everything that is kept crosses whatever kexec comes as long as this process lives; but
    holes are filled at once.
    """

    outlives_process = False

    def __init__(self, device: Device, preserving: Preserving = "late") -> None:
        self._device = device
        self._eager = preserving == "eager"
        self._held: dict[str, int] = {}
        self._incoming: dict[str, Session] = {}
        """Sessions that the last kernel handed over, and that are not finished."""
        self._outgoing: dict[str, Session] = {}
        self._leaving = False

    def recover(self, name: str) -> int:
        """Return a new descriptor of what is kept under ``name``, or was handed over; the caller closes it.

        Raises:
            NotFoundError: neither.
            LiveUpdateError: it was handed over, and the kernel cannot give it. Its session stays as it is.
        """
        if name not in self._held:
            self._held[name] = self._retrieve(name)
        return os.dup(self._held[name])

    def keep(self, name: str, fd: int) -> None:
        """Hold what ``fd`` refers to until the process ends, or across a kexec if it is preserved by then.

        Raises:
            ExistsError: something is kept under this name.
            RefusedError: a kexec is being prepared.
            LiveUpdateError: it was to be preserved at once, and the kernel refuses.
        """
        self._check_not_leaving()
        if name in self._held:
            raise ExistsError(f"{name!r} is kept already; drop it first")
        _session_name(name)
        self._held[name] = os.dup(fd)
        if self._eager:
            try:
                self._outgoing[name] = self._preserve(name)
            except BaseException:
                os.close(self._held.pop(name))
                raise

    def drop(self, name: str) -> None:
        """Close what is kept under ``name``; then it does not cross, either.

        Raises:
            NotFoundError: nothing is.
            RefusedError: a kexec is being prepared.
        """
        self._check_not_leaving()
        if name not in self._held and name not in self._incoming:
            raise NotFoundError(f"nothing is kept under {name!r}")
        for sessions in (self._outgoing, self._incoming):
            if (session := sessions.pop(name, None)) is not None:
                session.close()
        if (fd := self._held.pop(name, None)) is not None:
            os.close(fd)

    def names(self) -> list[str]:
        """Return the names of all that is kept, sorted. What was handed over is among them once it was recovered."""
        return sorted(self._held)

    def finish(self) -> None:
        """Take what was recovered out of the kernel's hands: only when all of it is checked and kept.

        Sessions whose memory the kernel could not give stay open: it is not given up.
        """
        for name in self._held.keys() & self._incoming.keys():
            self._incoming[name].finish()
            self._incoming.pop(name).close()
        if self._eager:
            self._outgoing.update(self._preserve_rest())

    def preserve(self) -> None:
        """Mark everything to cross the next kexec; until :meth:`abort` nothing can be kept or dropped.

        Cost: fills holes, and walks over all of the memory.

        Raises:
            LiveUpdateError: the device refuses, or there is too little memory; all is as before.
        """
        self._outgoing.update(self._preserve_rest())
        self._leaving = True

    def abort(self) -> None:
        """Take :meth:`preserve` back; what is preserved eagerly stays so."""
        self._leaving = False
        if not self._eager:
            _close_all(self._outgoing)

    def _retrieve(self, name: str) -> int:
        session = self._incoming.get(name)
        if session is None:
            try:
                session = self._incoming[name] = self._device.retrieve_session(_session_name(name))
            except LiveUpdateError as error:
                if error.errno != errno.ENOENT:
                    raise
                raise NotFoundError(f"nothing is kept under {name!r}, and nothing was handed over") from error
        return session.retrieve(TOKEN)

    def _preserve_rest(self) -> dict[str, Session]:
        rest = [name for name in self.names() if name not in self._outgoing]
        check_room_for_holes(self._held[name] for name in rest)
        sessions: dict[str, Session] = {}
        try:
            for name in rest:
                sessions[name] = self._preserve(name)
        except BaseException:
            _close_all(sessions)
            raise
        return sessions

    def _preserve(self, name: str) -> Session:
        session = self._device.create_session(_session_name(name))
        try:
            session.preserve(self._held[name], TOKEN)
        except BaseException:
            session.close()
            raise
        return session

    def _check_not_leaving(self) -> None:
        if self._leaving:
            raise RefusedError("a kexec is being prepared: what is kept cannot change now; wait, or abort it")


def _session_name(name: str) -> str:
    if not 0 < len(name.encode()) <= NAME_BYTES_MAX:
        raise InvalidNameError(f"expected a name of 1 to {NAME_BYTES_MAX} bytes, found {name[:80]!r}")
    return PREFIX + name


def _close_all(sessions: dict[str, Session]) -> None:
    while sessions:
        sessions.popitem()[1].close()
