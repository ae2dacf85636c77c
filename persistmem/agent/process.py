"""The agent as a process: the one lock, the socket, the signals, the background. Knows processes, and no message.

SIGTERM and SIGINT end an agent that keeps nothing. One that keeps arenas logs a refusal and goes on, because its memory
would end with it: ``persistmem agent stop --discard`` is how to say that it may. (SIGKILL ends it anyway; then live
clients hand their arenas to the next agent.)
"""

import io
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Final

from persistmem.agent.command import InBackground, Settings, environment, parse
from persistmem.agent.custodian import Owner
from persistmem.agent.kernel import KernelMachine, KernelSettings
from persistmem.agent.paths import RuntimeDirectory
from persistmem.agent.protocol import OTHER_AGENT, READY
from persistmem.agent.server import Audience, Limits, Machine, Server
from persistmem.agent.simulated import ENDING_SIGNALS, SimulatedMachine
from persistmem.agent.statefile import AgentState, read_state
from persistmem.arena.locks import try_lock
from persistmem.errors import AgentError, Error

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
    """Run the system's agent on the real kernel, in the foreground, until it is told to stop; for everybody.

    ``state`` is a file on disk, in which it writes down what the next boot has to know.

    Raises:
        AgentError: another one runs, or a directory cannot be used.
        LiveUpdateError: another process holds the live-update device.
    """
    if os.geteuid() != 0:
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
        _serve(settings, KernelMachine.start(kernel, settings.saved, state, _read_state(state)))
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
            _serve(settings, machine, starter)
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


def _serve(settings: Settings, machine: Machine, starter: io.FileIO | None = None) -> None:
    custodian = machine.custodian
    audience = Audience(None if settings.runtime.shared else Owner(os.geteuid(), os.getegid()))
    with _signals() as wakeup, _listening(settings.runtime) as listener:
        limits = Limits(idle=settings.idle)
        server = Server(listener, machine, audience, saved=settings.saved, limits=limits, clock=monotonic)
        if starter is not None:
            starter.write(READY)
            starter.close()
        _log.info("pid %d serves %d arenas on kernel %s", os.getpid(), custodian.count(), custodian.boot.kernel)

        def on_signal(signals: bytes) -> bool:
            names = ", ".join(signal.Signals(number).name for number in signals)
            if custodian.is_empty:
                _log.info("ends on %s", names)
                return True
            _log.warning("%s ignored: %d arenas would end with the agent", names, custodian.count())
            return False

        server.serve(wakeup, on_signal)
    _log.info("ended")


@contextmanager
def _listening(runtime: RuntimeDirectory) -> Iterator[socket.socket]:
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
