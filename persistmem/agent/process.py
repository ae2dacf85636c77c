"""The agent as a process: the one lock, the socket, the signals, the background. Knows processes, and no message.

SIGTERM and SIGINT end an agent that keeps nothing, and one whose carrier keeps everything without it. Another logs a
refusal and goes on, because its memory would end with it: ``persistmem agent stop --discard`` is how to say that it
may. (SIGKILL ends it anyway; then live clients hand their arenas to the next agent.)
"""

import io
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Final

from persistmem.agent.command import InBackground, Settings, environment, parse
from persistmem.agent.custodian import Owner
from persistmem.agent.kernel import LUO, KernelMachine, KernelSettings
from persistmem.agent.paths import RuntimeDirectory
from persistmem.agent.protocol import OTHER_AGENT, READY
from persistmem.agent.server import Audience, Heartbeat, Limits, Machine, Server
from persistmem.agent.simulated import ENDING_SIGNALS, SimulatedMachine
from persistmem.agent.statefile import AgentState, read_state
from persistmem.arena.locks import try_lock
from persistmem.carriers.notify import Manager, descriptors
from persistmem.carriers.unit import is_stopping
from persistmem.errors import AgentError, CarrierError, Error

_BACKLOG: Final = 512
_log = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """Run an agent as one of the commands in ``command`` says, and return its exit status."""
    settings, order = parse(arguments)
    os.environ.update(environment())
    try:
        if isinstance(order, InBackground):
            _start_in_background(settings, order.ready)
        else:
            _set_up()
            state = _read_state(settings.runtime.state)
            _serve(settings, SimulatedMachine.arrive(settings, order.lock, order.image, order.boot, state))
    except (Error, OSError) as error:
        _log.error("the agent ends: %s", error)
        return 1
    return 0


def run(settings: Settings) -> None:
    """Run an agent in the foreground until it is told to stop.

    Raises:
        AgentError: another one runs, or the runtime directory cannot be used.
    """
    os.environ.update(environment())
    settings.runtime.ensure()
    _set_up()
    lock = take_lock(settings.runtime)
    try:
        _serve(settings, SimulatedMachine.start(settings, lock, _read_state(settings.runtime.state)))
    finally:
        os.close(lock)


def run_system(settings: Settings, kernel: KernelSettings, state: Path) -> None:
    """Run an agent on the real kernel, in the foreground, until it is told to stop; the system's is for everybody.

    Started by a service manager, it takes its socket from there if it is given one, and says when it serves and that it
    is alive. ``state`` is a file on disk, in which it writes down what the next boot has to know.

    Raises:
        AgentError: another one runs, a directory cannot be used, or this is not root's to do.
        LiveUpdateError: another process holds the live-update device.
        CarrierError: the service manager keeps nothing for this process.
    """
    if os.geteuid() != 0 and kernel.carrier == LUO:
        raise AgentError("the system's agent holds the kernel's live-update device, which is root's: run it as root")
    os.environ.update(environment())
    os.umask(0o022)
    settings.runtime.ensure()
    try:
        state.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise AgentError(f"state directory {state.parent}: {error.strerror}; make it, and start again") from error
    _set_up()
    lock = take_lock(settings.runtime)
    try:
        machine = KernelMachine.start(kernel, settings.saved, state, _read_state(state))
        _serve(settings, machine, manager=Manager.of(os.environ))
    finally:
        os.close(lock)


def take_lock(runtime: RuntimeDirectory) -> int:
    """Return a descriptor that holds the lock of the one agent.

    Raises:
        AgentError: another one has it.
    """
    lock = os.open(runtime.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    # An open file description lock: it crosses an exec with the descriptor, and others can see it without taking it.
    if not try_lock(lock, 0, 1, exclusive=True):
        os.close(lock)
        raise AgentError(f"another agent runs in {runtime.path}; stop it first (persistmem agent stop)")
    return lock


def _start_in_background(settings: Settings, ready: int) -> None:
    os.set_inheritable(ready, False)
    if os.fork():
        # Whoever started this waits for this process, and so is not left with a child that it does not know.
        os._exit(0)
    os.setsid()
    with os.fdopen(ready, "wb", buffering=0) as starter:
        try:
            lock = take_lock(settings.runtime)
        except AgentError:
            starter.write(OTHER_AGENT)
            return
        try:
            _set_up()
            machine = SimulatedMachine.start(settings, lock, _read_state(settings.runtime.state))
            _serve(settings, machine, starter=starter)
        except (Error, OSError) as error:
            if not starter.closed:
                starter.write(str(error).encode()[:1000])
            raise


def _set_up() -> None:
    os.umask(0o077)
    os.chdir("/")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    logging.captureWarnings(True)
    # One descriptor for each arena and each client.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(8192, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _read_state(path: Path) -> AgentState | None:
    try:
        return read_state(path)
    except ValueError as error:
        _log.warning("state file %s is not used: %s", path, error)
        return None


def _serve(
    settings: Settings, machine: Machine, *, starter: io.FileIO | None = None, manager: Manager | None = None
) -> None:
    custodian = machine.custodian
    audience = Audience(None if settings.runtime.shared else Owner(os.geteuid(), os.getegid()))
    with _signals() as wakeup, _listening(settings.runtime) as listener:
        server = Server(
            listener, machine, audience,
            saved=settings.saved, limits=Limits(idle=settings.idle), clock=monotonic, heartbeat=_heartbeat(manager),
        )  # fmt: skip
        if starter is not None:
            starter.write(READY)
            starter.close()
        if manager is not None:
            manager.tell("READY=1", f"STATUS={custodian.count()} arenas came, on kernel {custodian.boot.kernel}")
        _log.info("pid %d serves %d arenas on kernel %s", os.getpid(), custodian.count(), custodian.boot.kernel)

        def on_signal(signals: bytes) -> bool:
            names = ", ".join(signal.Signals(number).name for number in signals)
            if not custodian.is_empty and not machine.outlives_process:
                _log.warning("%s ignored: %d arenas would end with the agent", names, custodian.count())
                return False
            _log.info("ends on %s; %d arenas stay where they are", names, custodian.count())
            if not custodian.is_empty and is_stopping():
                custodian.depart(0.0)
            return True

        server.serve(wakeup, on_signal)
        if manager is not None:
            manager.tell("STOPPING=1")
    _log.info("ended")


def _heartbeat(manager: Manager | None) -> Heartbeat | None:
    """Tell the service manager that this process is alive, twice as often as it wants: sd_watchdog_enabled(3)."""
    period = os.environ.get("WATCHDOG_USEC", "")
    if manager is None or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    if not (period.isascii() and period.isdecimal() and 0 < len(period) <= 18 and int(period)):
        return None

    def beat() -> None:
        with suppress(CarrierError):  # a manager that cannot be told that we are alive will see to it itself
            manager.tell("WATCHDOG=1")

    return Heartbeat(int(period) / 2e6, beat)


@contextmanager
def _listening(runtime: RuntimeDirectory) -> Iterator[socket.socket]:
    given = [fd for name, fd in descriptors(os.environ, os.getpid()) if name == runtime.socket.name]
    if given:
        with _given_socket(given[0], runtime) as listener:
            yield listener
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        # Whoever holds the lock owns the path: what lies there is the socket of an agent that is gone.
        runtime.socket.unlink(missing_ok=True)
        with runtime.socket_address() as address:
            listener.bind(address)
            if runtime.shared:
                # Whoever connects is known by their credentials.
                Path(address).chmod(0o666)
        listener.listen(_BACKLOG)
        try:
            yield listener
        finally:
            runtime.socket.unlink(missing_ok=True)


def _given_socket(fd: int, runtime: RuntimeDirectory) -> socket.socket:
    os.set_inheritable(fd, False)
    listener = socket.socket(fileno=fd)
    kind = (listener.family, listener.type, listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    if kind != (socket.AF_UNIX, socket.SOCK_SEQPACKET, 1) or not _is_same_path(listener.getsockname(), runtime.socket):
        listener.close()
        raise AgentError(
            f"expected a socket from the service manager that listens at {runtime.socket}, found {listener}: its unit"
            f" needs ListenSequentialPacket={runtime.socket}"
        )
    return listener


def _is_same_path(address: object, path: Path) -> bool:
    return isinstance(address, str) and Path(address).resolve() == path.resolve()


@contextmanager
def _signals() -> Iterator[socket.socket]:
    """Give a socket in which the numbers of the ending signals arrive."""
    wakeup, sender = socket.socketpair()
    with wakeup, sender:
        sender.setblocking(False)
        signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        for number in ENDING_SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)
        try:
            yield wakeup
        finally:
            signal.set_wakeup_fd(-1)
            for number in ENDING_SIGNALS:
                signal.signal(number, signal.SIG_DFL)
