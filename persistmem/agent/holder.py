"""What this process holds through the agent: handed back when that is killed, stale when its kernel goes.

It is no Carrier: the agent makes memfds itself, so that they are genuine, and takes none but those back. Knows the
connection and its messages; must not know what is inside a memfd.
"""

import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Final, TypeVar
from uuid import UUID

from persistmem.agent.client import PATIENCE, Connection, connect
from persistmem.agent.paths import RuntimeDirectory
from persistmem.agent.protocol import (
    Attach,
    Attached,
    Gone,
    Handback,
    Kept,
    Noted,
    Notice,
    Ready,
    Request,
    Watch,
    Watching,
)
from persistmem.agent.records import ArenaRecord
from persistmem.errors import AgentError, Error, StaleArenaError
from persistmem.origin import Origin
from persistmem.threads import start_deaf

_SETTLE: Final = 15.0
"""Seconds in which a thread of ours reads what the agent said."""
_TRIES: Final = 5
_PAUSE_MAX: Final = 1.0
R = TypeVar("R")


@dataclass(slots=True, eq=False)
class Held:
    """One arena that this process attached."""

    name: str
    uuid: UUID
    fd: int
    """The memfd, to be handed back; ours to close."""
    kernel: str
    origin: Origin
    gone: str | None = None
    """Why it must not be used any more."""


class Holder:
    """What this process holds through the agent of one runtime directory. Safe to use from several threads.

    A forked child has a connection of its own from its first use of an arena on.
    """

    def __init__(self, runtime: RuntimeDirectory) -> None:
        self._runtime = runtime
        self._before_kexec: list[Callable[[], object]] = []
        self._boot: UUID | None = None
        self._kernel = ""
        self._held: set[Held] = set()
        self._connection: Connection | None = None
        self._opening = threading.Lock()
        after_fork = weakref.WeakMethod(self._after_fork_in_child)
        os.register_at_fork(after_in_child=lambda: (method := after_fork()) is not None and method())

    def attach(self, name: str, size: int | None) -> Held:
        """Hold the arena ``name``; the agent makes it if there is none and ``size`` is given.

        Raises:
            NotFoundError, SizeError, RefusedError, CorruptError: see ``Custodian.attach``.
            AgentError: there is no agent, and none can be started.
        """
        answer, fds = self.ask(Attach(name, size), Attached)
        held = Held(name, answer.arena.uuid, fds[0], self._kernel, _origin(answer.arena, self._kernel, answer.made))
        self._held.add(held)
        return held

    def before_kexec(self, callback: Callable[[], object]) -> None:
        """Have ``callback`` called, in a thread of its own, when a kexec is being prepared.

        Raises:
            AgentError: there is no agent, and none can be started.
        """
        self._before_kexec.append(callback)
        self.ask(Watch(), Watching)

    def forget(self, callback: Callable[[], object]) -> None:
        """Have a callback given to :meth:`before_kexec` called no more."""
        with suppress(ValueError):
            self._before_kexec.remove(callback)

    def release(self, held: Held) -> None:
        """Hold it no longer."""
        self._held.discard(held)
        os.close(held.fd)

    def check(self, held: Held) -> None:
        """Raise if ``held`` must not be used. Cost: one poll(2), unless the agent has said something or ended.

        Raises:
            StaleArenaError: it was dropped, or it belongs to a kernel that is gone.
            AgentError: the agent ended, and no other could be started to say which of the two it is.
        """
        connection = self._connection
        if held.gone is None and connection is not None:
            if not connection.has_news():
                return
            connection.settle(_SETTLE)
        if held.gone is None:  # no agent is started for what the last one said was gone before it ended
            self.connection()
        if held.gone is not None:
            raise StaleArenaError(held.gone)

    def ask(self, request: Request, expected: type[R], *, timeout: float = PATIENCE) -> tuple[R, list[int]]:
        """Ask the agent what can be asked twice, starting one if there is none; again if it ends meanwhile."""
        answer = self._ask(request, expected, start=True, timeout=timeout)
        assert answer is not None
        return answer

    def ask_if_there(self, request: Request, expected: type[R]) -> tuple[R, list[int]] | None:
        """Ask the agent what can be asked twice, again if it ends meanwhile; None if there is none."""
        return self._ask(request, expected, start=False, timeout=PATIENCE)

    def _ask(self, request: Request, expected: type[R], *, start: bool, timeout: float) -> tuple[R, list[int]] | None:
        for left in reversed(range(_TRIES)):
            connection = self.connection(start=start, timeout=timeout)
            if connection is None:
                return None
            try:
                return connection.ask(request, expected, timeout=timeout)
            except AgentError:
                if connection.alive or not left:
                    raise
        raise AssertionError

    def connection(self, *, start: bool = True, timeout: float = PATIENCE) -> Connection | None:
        """Return the connection; a new one if the last has ended, None if there is no agent and none is to be started.

        What is held is handed back, or known to be stale, when this returns.
        """
        with self._opening:
            if self._connection is not None:
                self._connection.settle(_SETTLE)
            if self._connection is None or not self._connection.alive:
                self._connection = self._open(start=start, timeout=timeout)
            return self._connection

    def _open(self, *, start: bool, timeout: float) -> Connection | None:
        for _ in range(_TRIES):
            living = [held for held in list(self._held) if held.gone is None]
            connection = connect(
                self._runtime,
                self._boot if living else None,
                start=start,
                timeout=timeout,
                on_notice=self._on_notice,
                on_end=self._on_end,
            )
            if connection is None:
                return None
            if self._boot != connection.welcome.boot:
                for held in living:
                    held.gone = (
                        f"arena {held.name!r} belongs to a kernel that is gone ({self._kernel}; this is"
                        f" {connection.welcome.kernel}): attach again"
                    )
                living = []
            self._boot, self._kernel = connection.welcome.boot, connection.welcome.kernel
            if all(self._hand_back(connection, held) for held in living) and self._watch(connection):
                return connection
        raise AgentError(f"the agent in {self._runtime.path} ends again and again; see {self._runtime.log.name} there")

    def _hand_back(self, connection: Connection, held: Held) -> bool:
        """Return whether the agent could still decide about it."""
        try:
            connection.ask(Handback(held.name, held.uuid), Kept, held.fd)
        except AgentError:
            return False
        except Error as error:
            held.gone = str(error)
        return True

    def _watch(self, connection: Connection) -> bool:
        """Return whether the agent is still there."""
        if self._before_kexec:
            try:
                connection.ask(Watch(), Watching)
            except AgentError:
                return False
        return connection.alive

    def _on_notice(self, notice: Notice) -> None:
        if isinstance(notice, Gone):
            for held in list(self._held):
                if held.uuid == notice.uuid:
                    held.gone = notice.why
        else:
            # The thread that reads is needed while the callbacks use their arenas.
            start_deaf(threading.Thread(target=self._get_ready, name="persistmem-before-kexec", daemon=True))

    def _get_ready(self) -> None:
        done = False
        try:
            for callback in list(self._before_kexec):
                callback()
            done = True
        finally:
            # What a callback raises goes to threading.excepthook; the agent need not wait any longer.
            with suppress(AgentError):
                self.ask(Ready(done), Noted)

    def _on_end(self, connection: Connection) -> None:
        """Find another agent at once if something is held: it is kept by this process alone now.

        Who only wants to be told of a kexec waits until somebody else has started one.
        """
        with self._opening:
            if self._connection is not connection:
                return
        pause = 0.01
        while (holds := any(held.gone is None for held in list(self._held))) or self._before_kexec:
            # Who uses an arena meanwhile is told what the error was; this thread only has to go on trying.
            with suppress(Error):
                if self.connection(start=holds) is not None:
                    return
            sleep(pause)
            pause = min(2 * pause, _PAUSE_MAX)

    def _after_fork_in_child(self) -> None:
        if self._connection is not None:
            self._connection.abandon()
        self._connection = None
        self._opening = threading.Lock()


_holders: dict[Path, Holder] = {}
"""One for each agent that this process is connected to."""
_holders_lock = threading.Lock()


def holder_of_user() -> Holder:
    """Return what this process holds through the agent that its user has now."""
    return holder_of(RuntimeDirectory.of_user())


def holder_of(runtime: RuntimeDirectory) -> Holder:
    """Return what this process holds through that agent."""
    with _holders_lock:
        if runtime.path not in _holders:
            _holders[runtime.path] = Holder(runtime)
        return _holders[runtime.path]


def _origin(record: ArenaRecord, kernel: str, made: bool) -> Origin:
    if made:
        return Origin.created(kernel)
    if record.kernel_from is None:
        return Origin("reattached", None, kernel)
    return Origin("carried over", record.kernel_from, kernel)
