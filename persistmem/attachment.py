"""Attaching an arena by its name, and asking the agent who keeps it about itself: what an application and the CLI use.

Brings agent and arena together; must not know messages' bytes, nor what is in a memfd.
"""

import weakref
from collections.abc import Callable
from functools import partial
from typing import Final

from persistmem.agent.client import PATIENCE
from persistmem.agent.holder import Held, Holder, holder_of_user
from persistmem.agent.protocol import (
    Arenas,
    AskHandover,
    AskStatus,
    Drop,
    Dropped,
    HandoverAnswer,
    List,
    Reboot,
    Rebooting,
    Status,
    Stop,
    Stopping,
)
from persistmem.agent.records import ArenaRecord, Handover
from persistmem.arena import Arena
from persistmem.errors import AgentError, NotFoundError
from persistmem.names import check_name
from persistmem.sizes import parse_size

DEADLINE: Final = 10.0
"""Seconds in which applications take their last snapshots before a kexec."""

REBOOT_TIMEOUT: Final = 300.0
"""Seconds in which a simulated kernel upgrade is over: it copies every arena twice."""


class _AttachedArena(Arena):
    """An arena that is guarded, and held until it is closed or forgotten."""

    def __init__(self, holder: Holder, held: Held) -> None:
        # The guard refers to what is held, not to this object, which could never be forgotten then.
        super().__init__(held.fd, kernel=held.kernel, origin=held.origin, guard=partial(holder.check, held))
        self._release = weakref.finalize(self, holder.release, held)
        self._release.atexit = False

    def close(self) -> None:
        super().close()
        self._release()


def attach(name: str, size: int | str | None = None) -> Arena:
    """Give the arena ``name``: the one that is kept under this name, or a new one of ``size``.

    Any number of processes may attach the same arena, and whoever comes first makes it. It is kept by an agent, started
    if there is none, when this process ends; if the agent is killed, every process that has the arena attached hands
    it back to the next. After a kernel upgrade every later operation raises :class:`persistmem.StaleArenaError`:
    attach again then. Closing the arena, or forgetting it, lets go of it here and nowhere else.

    Cost: with an agent running, two milliseconds the first time in a process and a third of one after, whatever the
    size; a new arena takes memory as it is written.

    Args:
        name: 1 to 200 bytes of UTF-8, no slash; see :func:`persistmem.names.check_name`.
        size: bytes, or a string such as ``"256MiB"``, from 64 KiB up; None if the arena is there already. If it is
            there and has another size, that is an error, because nobody can tell which was meant.

    Raises:
        NotFoundError: there is no arena of this name, and no size.
        SizeError: it has another size, or no arena can have this one.
        InvalidNameError: no arena can be called that.
        AgentError: there is no agent, and none can be started.
        RefusedError: the agent keeps as many arenas as it can.
        CorruptError, NewerFormatError: it is there, but this persistmem cannot use it.
    """
    wanted = parse_size(size) if size is not None else None
    holder = holder_of_user()
    held = holder.attach(check_name(name), wanted)
    try:
        return _AttachedArena(holder, held)
    except BaseException:
        holder.release(held)
        raise


def before_kexec(callback: Callable[[], object]) -> Callable[[], object]:
    """Have ``callback`` called when a kernel upgrade is being prepared, to take this process's last snapshots.

    It is called in a thread of its own, every time; whoever prepares the upgrade waits until it returns, up to their
    deadline. What it raises goes to :func:`threading.excepthook`, and they are told that it failed. Arenas stay
    attached and writable until the kernel is left: what is written after it still crosses. Connects to the agent, as
    :func:`attach` does.

    It returns ``callback``, so that it can be used as a decorator::

        @persistmem.before_kexec
        def last_snapshots() -> None:
            arena.snapshot("profiles", profiles)

    Raises:
        AgentError: there is no agent, and none can be started.
    """
    watch_kexec(callback)
    return callback


def watch_kexec(callback: Callable[[], object]) -> Callable[[], None]:
    """As :func:`before_kexec`, but return what ends it."""
    holder = holder_of_user()
    holder.before_kexec(callback)
    return partial(holder.forget, callback)


def list_arenas() -> list[ArenaRecord]:
    """Return what the agent keeps for this user, by name; nothing if there is no agent."""
    connection = holder_of_user().connection(start=False)
    if connection is None:
        return []
    found: list[ArenaRecord] = []
    more = True
    while more:
        page, _ = connection.ask(List(found[-1].name if found else None), Arenas)
        found.extend(page.arenas)
        more = page.more
    return found


def drop_arena(name: str) -> None:
    """Let go of an arena. Processes that have it attached are told at their next operation on it.

    Raises:
        NotFoundError: there is none of this name.
    """
    check_name(name)
    connection = holder_of_user().connection(start=False)
    if connection is None:
        raise NotFoundError(f"there is no arena {name!r}, for no agent runs")
    connection.ask(Drop(name), Dropped)


def agent_status() -> Status | None:
    """Return what the agent is and has, or None if none runs."""
    connection = holder_of_user().connection(start=False)
    return connection.ask(AskStatus(), Status)[0] if connection is not None else None


def list_handovers() -> list[Handover]:
    """Return the handovers between kernels that the agent remembers, oldest first; at most 32."""
    connection = holder_of_user().connection(start=False)
    if connection is None:
        return []
    status, _ = connection.ask(AskStatus(), Status)
    numbers = range(status.handovers_from, status.handovers + 1) if status.handovers else ()
    return [connection.ask(AskHandover(number), HandoverAnswer)[0].handover for number in numbers]


def start_agent() -> Status:
    """Return what the agent is and has, after starting one if none runs."""
    return holder_of_user().ask(AskStatus(), Status)[0]


def stop_agent(*, discard: bool = False) -> bool:
    """End the agent; False if none runs.

    Args:
        discard: end it even if it keeps arenas, which are lost then.

    Raises:
        RefusedError: it keeps arenas.
    """
    connection = holder_of_user().connection(start=False)
    if connection is None:
        return False
    connection.ask(Stop(discard), Stopping)
    connection.wait_for_end(PATIENCE)
    return True


def simulate_reboot(
    release: str | None = None, *, compatible: bool = True, deadline: float = DEADLINE, timeout: float = REBOOT_TIMEOUT
) -> Handover:
    """Simulate a kernel upgrade, starting an agent if none runs, and return how the arenas got to the next kernel.

    Every arena that was attached before is stale afterwards, in every process.

    Args:
        release: of the next kernel, as ``uname -r`` would say; made up if None.
        compatible: False for a kernel whose live-update ABI is another: it boots, and takes nothing.
        deadline: seconds in which applications take their last snapshots; see :func:`before_kexec`.
        timeout: seconds in which the next kernel's agent answers, the deadline not counted.

    Raises:
        RefusedError: the kernel refused; everything is as before.
        AgentError: the next kernel's agent did not answer in time.
    """
    holder = holder_of_user()
    connection = holder.connection()
    assert connection is not None
    connection.ask(Reboot(deadline, release, compatible), Rebooting, timeout=deadline + timeout)
    connection.wait_for_end(timeout)
    status = holder.ask(AskStatus(), Status, timeout=timeout)[0]
    if status.boot == connection.welcome.boot:
        raise AgentError("the agent ended while it left for the next kernel; see its log, and attach again")
    return holder.ask(AskHandover(status.handovers), HandoverAnswer)[0].handover
