"""A live-update session of our own: carries memfds across a kexec, for a process that stays until it.

Between two kexecs it holds them by open descriptors only; they are preserved late, when the kexec is near. Knows the
live-update device; must not know arenas.
"""

import errno
import json
import os
from typing import Final

from persistmem.errors import CorruptError, ExistsError, LiveUpdateError, NotFoundError, RefusedError
from persistmem.liveupdate.interface import Device, Session, Token

SESSION: Final = "persistmem"
INDEX: Final = Token(0)
"""The token of the index: a memfd with JSON, ``{"version": 1, "tokens": {NAME: TOKEN}}``. systemd does the same."""

_INDEX_VERSION: Final = 1
_INDEX_BYTES_MAX: Final = 4 << 20


class LuoCarrier:
    """Keeps descriptors in this process, and takes them across a kexec by a session named "persistmem".

    Making one retrieves all that the last kernel handed over (cost: one walk over its memory). The owner calls
    :meth:`finish` once it is safe; until then the kernel keeps its hand on it.

    Raises:
        CorruptError: there is a session, but its index says nothing usable; the session is left alone.
        LiveUpdateError: the device refuses.

    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._held: dict[str, int] = {}
        self._outgoing: Session | None = None
        self._incoming: Session | None = None

    def retrieve(self) -> dict[str, str]:
        """Take all that the last kernel handed over, and return what it could not give: why, by name.

        Cost: one walk over all of the memory.

        Raises:
            CorruptError: there is a session, but its index cannot be used. The session stays as it is.
            LiveUpdateError: the device refuses.
        """
        lost: dict[str, str] = {}
        try:
            self._incoming = self._device.retrieve_session(SESSION)
        except LiveUpdateError as error:
            if error.errno != errno.ENOENT:
                raise
            return lost
        for name, token in _read_index(self._incoming).items():
            try:
                self._held[name] = self._incoming.retrieve(token)
            except LiveUpdateError as error:
                lost[name] = str(error)
        return lost

    def recover(self, name: str) -> int:
        """Return a new descriptor of what is kept under ``name``; the caller closes it."""
        return os.dup(self._find(name))

    def keep(self, name: str, fd: int) -> None:
        """Hold what ``fd`` refers to until the process ends, or across a kexec if it is preserved by then."""
        self._check_not_leaving()
        if name in self._held:
            raise ExistsError(f"{name!r} is kept already; drop it first")
        self._held[name] = os.dup(fd)

    def drop(self, name: str) -> None:
        """Close what is kept under ``name``."""
        self._check_not_leaving()
        os.close(self._find(name))
        del self._held[name]

    def names(self) -> list[str]:
        """Return the names of all that is kept, sorted."""
        return sorted(self._held)

    def finish(self) -> None:
        """Take what was handed over out of the kernel's hands: only when all of it is checked and kept."""
        if self._incoming is not None:
            self._incoming.finish()
            self._incoming.close()
            self._incoming = None

    def preserve(self) -> None:
        """Mark everything to cross the next kexec. Fills holes and freezes sizes; costs a walk over all of the memory.

        Raises:
            LiveUpdateError: the device refuses; nothing stays preserved.

        """
        tokens = {name: Token(number) for number, name in enumerate(self.names(), start=INDEX + 1)}
        session = self._device.create_session(SESSION)
        try:
            index = _write_index(tokens)
            try:
                session.preserve(index, INDEX)
            finally:
                os.close(index)
            for name, token in tokens.items():
                session.preserve(self._held[name], token)
        except BaseException:
            session.close()
            raise
        self._outgoing = session

    def abort(self) -> None:
        """Take :meth:`preserve` back: nothing crosses the next kexec, and memfds can change size again."""
        if self._outgoing is not None:
            self._outgoing.close()
            self._outgoing = None

    def _find(self, name: str) -> int:
        try:
            return self._held[name]
        except KeyError:
            raise NotFoundError(f"nothing is kept under {name!r}") from None

    def _check_not_leaving(self) -> None:
        if self._outgoing is not None:
            raise RefusedError("a kexec is being prepared: what is kept cannot change now; wait, or abort it")


def _write_index(tokens: dict[str, Token]) -> int:
    index = os.memfd_create("persistmem:index", os.MFD_CLOEXEC)
    with os.fdopen(index, "w", encoding="utf-8", closefd=False) as file:
        json.dump({"version": _INDEX_VERSION, "tokens": tokens}, file)
    return index


def _read_index(session: Session) -> dict[str, Token]:
    try:
        fd = session.retrieve(INDEX)
    except LiveUpdateError as error:
        if error.errno != errno.ENOENT:
            raise
        raise CorruptError(f"session {SESSION!r}: expected an index under token {INDEX}, found nothing") from error
    with os.fdopen(fd, "rb") as file:
        content = os.pread(file.fileno(), _INDEX_BYTES_MAX + 1, 0)
    problem = CorruptError(f"session {SESSION!r}: expected an index of version {_INDEX_VERSION} under token {INDEX}")
    if len(content) > _INDEX_BYTES_MAX:
        raise problem
    try:
        index = json.loads(content)
    except ValueError as error:
        raise problem from error
    if not isinstance(index, dict) or index.keys() != {"version", "tokens"} or index["version"] != _INDEX_VERSION:
        raise problem
    tokens = index["tokens"]
    if not isinstance(tokens, dict) or not all(type(token) is int and 0 < token < 2**64 for token in tokens.values()):
        raise problem
    return {name: Token(token) for name, token in tokens.items()}
