"""The way of this machine to its next kernel, for whoever administers it: prepare, save, leave, and undo.

Brings agent, saved arenas and kexec together; must not know messages' bytes, nor what is in a memfd.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from persistmem.administration import every_arena
from persistmem.agent.client import Connection
from persistmem.agent.holder import holder_of_user
from persistmem.agent.kernel import LUO, SYSTEMD
from persistmem.agent.protocol import (
    Abort,
    Aborted,
    AskStatus,
    Attached,
    Depart,
    Departing,
    Lend,
    Prepare,
    Prepared,
    Status,
)
from persistmem.agent.saved import Saved, SavedArenas
from persistmem.arena import TIMEOUT_DEFAULT, Arena, freeze
from persistmem.carriers.unit import systemctl
from persistmem.errors import AgentError, BusyError, CorruptError, NewerFormatError, RefusedError
from persistmem.liveupdate import kexec

PRESERVE_TIMEOUT: Final = 300.0
"""Seconds that preserving may take: it fills every hole, and walks over all of the memory."""


_NAMED: Final = 10
"""How many arenas that are busy an error names."""


@dataclass(frozen=True, slots=True)
class NextKernel:
    """What to start."""

    image: Path
    initrd: Path | None
    command_line: str


@dataclass(frozen=True, slots=True)
class SavedArena:
    """One arena that was saved."""

    saved: Saved
    damage: str
    """What in it fails its check, and was saved as it is; empty if nothing does."""


class Observer:
    """Is told how far things are. This one says nothing."""

    def prepared(self, prepared: Prepared, *, through_memory: bool) -> None:
        """Applications have taken their last snapshots; if memory is to cross, it is preserved."""

    def memory_refused(self, why: RefusedError) -> None:
        """Memory cannot cross, so the arenas go by the disk."""

    def saving(self, total: int) -> None:
        """So many bytes are to be saved."""

    def progress(self, count: int) -> None:
        """So many more bytes are saved."""

    def saved(self, arenas: list[SavedArena]) -> None:
        """These are on disk."""


def prepare(deadline: float) -> Prepared:
    """Have applications take their last snapshots, and mark every arena to cross the next kexec, until :func:`abort`.

    Late writes cross, too; until then no arena can be made or dropped. The kexec comes by other means then, and soon:
    the next kernel counts the time in which nobody was served from here on.

    Args:
        deadline: seconds in which applications get ready; those that do not are no reason to stop.

    Raises:
        AgentError: no agent runs.
        RefusedError: there is too little memory, this kernel has no live update, or it is not yours to decide.
    """
    connection = _need_connection()
    prepared = _prepare(connection, deadline, preserve=True, lasting=True)
    connection.ask(Depart(), Departing)
    return prepared


def abort() -> bool:
    """Take :func:`prepare` back, and return whether anything was prepared.

    Raises:
        AgentError: no agent runs.
        RefusedError: it is not yours to decide.
    """
    return _need_connection().ask(Abort(), Aborted)[0].prepared


def save(directory: Path | None = None, observer: Observer | None = None) -> list[SavedArena]:
    """Write every arena of every user to disk, from where the machine's next boot takes them in again.

    Each is checked, and frozen while it is written; damaged ones are saved as they are.

    Args:
        directory: where to; None for where the agent looks for them.
        observer: is told how far it is.

    Raises:
        AgentError: no agent runs.
        BusyError: somebody is writing to an arena, and does not finish. All others are saved.
        StorageError: the disk refuses. Arenas that were saved by then are saved.
        RefusedError: it is not yours to save.
    """
    connection = _need_connection()
    return [*_save(connection, directory, observer or Observer(), lambda fd: freeze(fd, TIMEOUT_DEFAULT))]


def leave(
    following: NextKernel, *, deadline: float, through_memory: bool, or_by_disk: bool, observer: Observer
) -> None:
    """Go to the next kernel, and take every arena along: through memory, or by the disk.

    Loads the kernel, prepares, saves if it is to be by the disk, and jumps; whatever fails, what was done before is
    undone, and this kernel and every arena go on. It stops no service and unmounts nothing, but it calls sync(2).

    Where the service manager carries the memory, it is what leaves, after it has stopped all services: this returns
    when it has begun to.

    Args:
        following: the kernel, and how to start it.
        deadline: seconds in which applications take their last snapshots.
        through_memory: whether the next kernel can take memory over.
        or_by_disk: whether to go by the disk if memory cannot cross.
        observer: is told how far it is.

    Raises:
        KexecError: the kernel cannot be loaded, or refuses to jump.
        RefusedError: memory cannot cross, and was not to go by the disk; or it is not yours to decide.
        BusyError, StorageError: see :func:`save`.
    """
    connection = holder_of_user().connection(start=False)
    with ExitStack() as undo:
        kexec.load(following.image, following.initrd, following.command_line)
        undo.callback(kexec.unload)
        if connection is not None:
            undo.callback(_undo_preparation, connection)
            if not (through_memory and _through_memory(connection, deadline, observer, or_by_disk=or_by_disk)):
                prepared = _prepare(connection, deadline, preserve=False, lasting=False)
                observer.prepared(prepared, through_memory=False)
                # Frozen until the jump: what a writer was told is stored must not be lost between save and jump.
                kept = [*_save(connection, None, observer, lambda fd: _held(undo, fd))]
                observer.saved(kept)
            elif connection.welcome.carrier == SYSTEMD:
                _have_manager_leave()
                undo.pop_all()
                return
        os.sync()
        if connection is not None:
            connection.ask(Depart(), Departing)
        kexec.jump()


def _through_memory(connection: Connection, deadline: float, observer: Observer, *, or_by_disk: bool) -> bool:
    try:
        if connection.welcome.carrier not in (LUO, SYSTEMD):
            raise RefusedError(f"the agent's carrier is {connection.welcome.carrier}: its memory ends with this kernel")
        prepared = _prepare(connection, deadline, preserve=True, lasting=False)
    except RefusedError as error:
        if not or_by_disk:
            raise
        observer.memory_refused(error)
        return False
    observer.prepared(prepared, through_memory=True)
    return True


def _have_manager_leave() -> None:
    if systemctl("kexec") is None:
        raise RefusedError("the service manager does not leave this kernel; run 'systemctl kexec' to see why")


@contextmanager
def _held(stack: ExitStack, fd: int) -> Iterator[None]:
    stack.enter_context(freeze(fd, TIMEOUT_DEFAULT))
    yield


def _save(
    connection: Connection,
    directory: Path | None,
    observer: Observer,
    frozen: Callable[[int], AbstractContextManager[None]],
) -> Iterator[SavedArena]:
    status, _ = connection.ask(AskStatus(), Status)
    store = SavedArenas((directory or Path(status.saved)).absolute())
    arenas = [*every_arena(connection)]
    observer.saving(sum(arena.size for arena in arenas))
    busy: list[str] = []
    for arena in arenas:
        _, (fd,) = connection.ask(Lend(arena.uid, arena.name), Attached)
        try:
            with frozen(fd):
                saved = store.save(
                    arena,
                    fd,
                    kernel=status.kernel,
                    boot=status.boot,
                    when=datetime.now(UTC),
                    progress=observer.progress,
                )
                yield SavedArena(saved, _damage(fd, status.kernel))
        except BusyError as error:
            # Whoever does not let go of theirs does not decide about the others'.
            busy.append(f"{arena.name!r} of uid {arena.uid} ({error})")
        finally:
            os.close(fd)
    if busy:
        raise BusyError(
            f"{len(busy)} of {len(arenas)} arenas are not saved, the others are: {'; '.join(busy[:_NAMED])}: have their"
            " owners let go, or remove them with 'persistmem rm NAME --of USER'"
        )


def _damage(fd: int, kernel: str) -> str:
    try:
        with Arena(fd, kernel=kernel) as arena:
            return "; ".join(str(damage) for damage in arena.verify().damaged)
    except (CorruptError, NewerFormatError) as error:
        return str(error)


def _need_connection() -> Connection:
    connection = holder_of_user().connection(start=False)
    if connection is None:
        raise AgentError("no agent runs, so there is nothing to carry; 'persistmem status' says where it would be")
    return connection


def _prepare(connection: Connection, deadline: float, *, preserve: bool, lasting: bool) -> Prepared:
    timeout = deadline + PRESERVE_TIMEOUT
    return connection.ask(Prepare(deadline, preserve, lasting), Prepared, timeout=timeout)[0]


def _undo_preparation(connection: Connection) -> None:
    with suppress(AgentError, RefusedError):  # an agent that ended has undone it; one that refused had nothing to undo
        connection.ask(Abort(), Aborted)
