"""Attaching an arena by its name, and asking the agent who keeps it about itself: what an application and the CLI use.

Brings carriers and arenas together; must not know messages' bytes, nor what is in a memfd.
"""

import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from persistmem.agent.client import PATIENCE
from persistmem.agent.holder import Holder, holder_of
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
from persistmem.choice import CarrierName, choose
from persistmem.errors import AgentError, NotFoundError
from persistmem.names import check_name
from persistmem.origin import Origin
from persistmem.sizes import parse_size
from persistmem.termination import LastCall

if TYPE_CHECKING:
    from persistmem.store import ServiceStore

DEADLINE: Final = 10.0
"""Seconds in which applications take their last snapshots before a kexec."""

REBOOT_TIMEOUT: Final = 300.0
"""Seconds in which a simulated kernel upgrade is over: it copies every arena twice."""


class _AttachedArena(Arena):
    """An arena that is guarded, and held until it is closed or forgotten."""

    def __init__(
        self, fd: int, kernel: str, origin: Origin, guard: Callable[[], None], release: Callable[[], None]
    ) -> None:
        # Neither of the two may refer to this object, which could never be forgotten then.
        super().__init__(fd, kernel=kernel, origin=origin, guard=guard)
        self._release = weakref.finalize(self, release)
        self._release.atexit = False
        self._last_call: LastCall | None = None
        self._stop_watching: Callable[[], None] | None = None

    def call_last(self, callback: Callable[[Arena], object], holder: Holder | None) -> None:
        """Call it before this process ends, or lets go of the arena, or the agent's kernel is left."""
        self._last_call = LastCall(partial(callback, self))
        if holder is not None:
            watched = partial(callback, self)
            holder.before_kexec(watched)
            self._stop_watching = partial(holder.forget, watched)

    def close(self) -> None:
        try:
            if self._last_call is not None:
                self._last_call()
        finally:
            if self._stop_watching is not None:
                self._stop_watching()
            super().close()
            self._release()


def attach(
    name: str,
    size: int | str | None = None,
    *,
    carrier: CarrierName | None = None,
    on_stop: Callable[[Arena], object] | None = None,
) -> Arena:
    """Give the arena ``name``: the one that is kept under this name, or a new one of ``size``.

    What keeps it when this process ends, its carrier, is chosen by :func:`persistmem.choice.choose`:

    - In a systemd service with ``FileDescriptorStoreMax=``, the service manager. Then it is this service's alone, and
      only the service's main process may attach it.
    - Otherwise an agent: the system's if there is one, else one of this user's, started if there is none. Any number of
      processes may attach the same arena, and whoever comes first makes it. If the agent is killed, every process that
      has the arena attached hands it back to the next. After a kernel upgrade every later operation raises
      :class:`persistmem.StaleArenaError`: attach again then.

    Closing the arena, or forgetting it, lets go of it here and nowhere else.

    Cost: with an agent running, two milliseconds the first time in a process and a third of one after, whatever the
    size; in a service's store, one and a part that grows with the number of snapshots, and 30 ms for a new one. A new
    arena takes memory as it is written.

    Args:
        name: 1 to 200 bytes of UTF-8, no slash; see :func:`persistmem.names.check_name`.
        size: bytes, or a string such as ``"256MiB"``, from 64 KiB up; None if the arena is there already. If it is
            there and has another size, that is an error, because nobody can tell which was meant.
        carrier: "systemd" for the service's store, "system" or "user" for an agent; None for ``$PERSISTMEM_CARRIER``,
            or what there is.
        on_stop: takes the last snapshots; called with the arena before this process ends or lets go of it, once: at
            SIGTERM (in a thread of its own, after which SystemExit is raised in the main thread; if the arena was
            attached there, and the program does not handle SIGTERM itself), at the end of a ``with``, in ``close``, or
            at the interpreter's exit. With an agent it is also called each time a kernel upgrade is being prepared; see
            :func:`before_kexec`. The arena stays attached until it is closed.

    Raises:
        NotFoundError: there is no arena of this name, and no size.
        SizeError: it has another size, or no arena can have this one.
        InvalidNameError: no arena can be called that.
        AgentError: there is no agent, and none can be started.
        RefusedError: the agent keeps as many arenas, or as much of yours, as it can.
        CarrierError: the service manager does not keep it; the message says which line of the unit to change.
        CorruptError, NewerFormatError: it is there, but this persistmem cannot use it.
    """
    wanted = parse_size(size) if size is not None else None
    check_name(name)
    choice = choose(carrier)
    holder = None if choice.carrier == "systemd" else holder_of(choice.runtime())
    arena = _attach_stored(name, wanted) if holder is None else _attach_held(holder, name, wanted)
    if on_stop is not None:
        arena.call_last(on_stop, holder)
    return arena


def _attach_stored(name: str, size: int | None) -> _AttachedArena:
    store = _store()
    stored = store.attach(name, size)
    try:
        return _AttachedArena(
            stored.fd, store.kernel, stored.origin, guard=stored.check, release=partial(store.release, stored)
        )
    except BaseException:
        store.release(stored)
        raise


def _attach_held(holder: Holder, name: str, size: int | None) -> _AttachedArena:
    held = holder.attach(name, size)
    try:
        return _AttachedArena(
            held.fd, held.kernel, held.origin, guard=partial(holder.check, held), release=partial(holder.release, held)
        )
    except BaseException:
        holder.release(held)
        raise


def _store() -> "ServiceStore":
    from persistmem.store import store_of_process  # noqa: PLC0415 - most processes are no service's

    return store_of_process()


def _agent() -> Holder:
    return holder_of(choose().runtime())


def before_kexec(callback: Callable[[], object]) -> Callable[[], object]:
    """Have ``callback`` called when a kernel upgrade is being prepared, to take this process's last snapshots.

    It is called in a thread of its own, every time; whoever prepares the upgrade waits until it returns, up to their
    deadline. What it raises goes to :func:`threading.excepthook`, and they are told that it failed. Arenas stay
    attached and writable until the kernel is left: what is written after it still crosses. Connects to the agent, as
    :func:`attach` does. In a service whose manager keeps its arenas, nobody prepares anything: the service is stopped,
    and ``callback`` is called at SIGTERM, as ``on_stop`` of :func:`attach` is.

    It returns ``callback``, so that it can be used as a decorator::

        @persistmem.before_kexec
        def last_snapshots() -> None:
            arena.snapshot("profiles", profiles)

    Raises:
        AgentError: there is no agent, and none can be started.
    """
    if choose().carrier == "systemd":
        LastCall(callback)
    else:
        watch_kexec(callback)
    return callback


def watch_kexec(callback: Callable[[], object]) -> Callable[[], None]:
    """As :func:`before_kexec`, but return what ends it. Where there is no agent it does nothing: SIGTERM comes."""
    choice = choose()
    if choice.carrier == "systemd":
        return lambda: None
    holder = holder_of(choice.runtime())
    holder.before_kexec(callback)
    return partial(holder.forget, callback)


def list_arenas() -> list[ArenaRecord]:
    """Return what is kept for this user, or this service, by name; nothing if there is no agent."""
    if choose().carrier == "systemd":
        return _store().records()
    agent = _agent()
    found: list[ArenaRecord] = []
    more = True
    while more:
        answer = agent.ask_if_there(List(found[-1].name if found else None), Arenas)
        if answer is None:
            return []
        found.extend(answer[0].arenas)
        more = answer[0].more
    return found


def drop_arena(name: str) -> None:
    """Let go of an arena. Processes that have it attached are told at their next operation on it.

    Raises:
        NotFoundError: there is none of this name.
    """
    check_name(name)
    if choose().carrier == "systemd":
        _store().drop(name)
        return
    connection = _agent().connection(start=False)
    if connection is None:
        raise NotFoundError(f"there is no arena {name!r}, for no agent runs")
    connection.ask(Drop(name), Dropped)


def agent_status() -> Status | None:
    """Return what the agent is and has, or None if none runs."""
    answer = _agent().ask_if_there(AskStatus(), Status)
    return answer[0] if answer is not None else None


def list_handovers() -> list[Handover]:
    """Return the handovers between kernels that the agent remembers, oldest first; at most 32."""
    status = agent_status()
    if status is None or not status.handovers:
        return []
    numbers = range(status.handovers_from, status.handovers + 1)
    answers = (_agent().ask_if_there(AskHandover(number), HandoverAnswer) for number in numbers)
    return [answer[0].handover for answer in answers if answer is not None]


def start_agent() -> Status:
    """Return what the agent is and has, after starting one if none runs."""
    return _agent().ask(AskStatus(), Status)[0]


def stop_agent(*, discard: bool = False) -> bool:
    """End the agent; False if none runs.

    Args:
        discard: end it even if it keeps arenas, which are lost then.

    Raises:
        RefusedError: it keeps arenas.
    """
    connection = _agent().connection(start=False)
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
    holder = _agent()
    connection = holder.connection()
    assert connection is not None
    connection.ask(Reboot(deadline, release, compatible), Rebooting, timeout=deadline + timeout)
    connection.wait_for_end(timeout)
    status = holder.ask(AskStatus(), Status, timeout=timeout)[0]
    if status.boot == connection.welcome.boot:
        raise AgentError("the agent ended while it left for the next kernel; see its log, and attach again")
    return holder.ask(AskHandover(status.handovers), HandoverAnswer)[0].handover
