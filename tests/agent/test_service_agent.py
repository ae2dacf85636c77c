"""An agent that is a service, and keeps everybody's arenas in its manager's store: it can be ended at any time.

The agent is a real process, its manager a real socket with a real store; only systemd itself is not there.
"""

import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from persistmem import attach, attachment, errors
from persistmem.agent.paths import RuntimeDirectory
from persistmem.testing import new_arena
from tests.carriers.manager import PATIENCE, Manager, end

from .support import StartProgram, running_agent

RUN = """
import math, os
from pathlib import Path
from persistmem.agent.command import Settings
from persistmem.agent.kernel import KernelSettings
from persistmem.agent.paths import RuntimeDirectory, state_directory
from persistmem.agent.process import run_system
runtime = RuntimeDirectory.of_user()
run_system(
    Settings(runtime, math.inf, state_directory() / "saved"), KernelSettings("systemd", "late", {quota}),
    state_directory() / "agent.state",
)
"""


class Service:
    """The agent's unit, and its socket's."""

    def __init__(self, manager: Manager, runtime: RuntimeDirectory) -> None:
        self.manager = manager
        self.runtime = runtime
        self.process: subprocess.Popen[str] | None = None
        self.variables: dict[str, str] = {}
        self.quota = 1 << 40
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(runtime.socket))
            listener.listen()
            manager.sockets.append((runtime.socket.name, os.dup(listener.fileno())))

    def start(self) -> None:
        said = len(self.manager.said)
        self.process = self.manager.start(
            RUN.format(quota=self.quota), PERSISTMEM_RUNTIME_DIR=str(self.runtime.path), **self.variables
        )
        assert self.manager.hears("READY=1", said), end(self.process)

    def stop(self) -> str:
        """End it as a manager does, and return its log."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        _, log = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, log
        return log

    def kill(self) -> None:
        assert self.process is not None
        end(self.process)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[RuntimeDirectory]:
    """An empty runtime directory whose socket's path is short enough for bind(2)."""
    with tempfile.TemporaryDirectory(prefix="persistmem-") as path:
        monkeypatch.setenv("PERSISTMEM_RUNTIME_DIR", path)
        yield RuntimeDirectory(Path(path))


@pytest.fixture
def service(runtime: RuntimeDirectory) -> Iterator[Service]:
    with Manager(most=40) as manager:
        one = Service(manager, runtime)
        one.start()
        yield one
        one.kill()


def test_a_restarted_agent_has_everything_and_nobody_had_to_hold_it(service: Service, program: StartProgram) -> None:
    one = program()
    one.run("attach('shop', '1MiB').snapshot('cart', [1, 2])")
    one.end()
    log = service.stop()
    assert "1 arenas stay where they are" in log
    service.start()
    assert attach("shop").restore("cart") == [1, 2]
    assert attach("shop").origin.kind == "reattached"
    assert [record.name for record in attachment.list_arenas()] == ["shop"]
    assert running_agent().missing == 0


def test_a_killed_agent_has_everything(service: Service, program: StartProgram) -> None:
    one = program()
    one.run("attach('shop', '1MiB').snapshot('cart', [1, 2])")
    one.end()
    service.kill()
    service.start()
    assert attach("shop").restore("cart") == [1, 2]


def test_who_has_an_arena_attached_goes_on_while_the_agent_is_restarted(service: Service) -> None:
    with attach("shop", "1MiB") as arena:
        for count in range(3):
            arena.snapshot("count", count)
            service.stop()
            service.start()
            assert arena.restore("count") == count
        assert arena.uuid == attachment.list_arenas()[0].uuid


def test_what_was_dropped_is_out_of_the_store(service: Service) -> None:
    attach("shop", "1MiB").close()
    assert len(service.manager.store) == 2
    attachment.drop_arena("shop")
    assert service.manager.names() == ["pm.registry"]
    service.stop()
    service.start()
    assert attachment.list_arenas() == []


def test_what_was_kept_but_not_written_down_does_not_fill_the_store(service: Service) -> None:
    attach("shop", "1MiB").close()
    service.stop()
    # As an agent would leave it that is killed before it has written down what it made.

    with new_arena("64KiB") as unborn:
        service.manager.store.append((f"pm.{unborn.uuid}", os.dup(unborn.descriptor())))
    service.start()
    assert len(service.manager.store) == 2
    assert [record.name for record in attachment.list_arenas()] == ["shop"]


def test_what_nothing_is_known_of_is_not_thrown_away_if_there_is_something_in_it(
    service: Service, state_directory: Path
) -> None:
    with attach("shop", "1MiB") as arena:
        arena.snapshot("cart", 1)
    service.stop()
    (state_directory / "agent.state").unlink()
    service.manager.store = [entry for entry in service.manager.store if entry[0] != "pm.registry"]
    service.start()
    assert attachment.list_arenas() == []
    assert len(service.manager.store) == 2


def test_without_its_file_on_disk_the_registry_in_the_store_is_enough(service: Service, state_directory: Path) -> None:
    with attach("shop", "1MiB") as arena:
        arena.snapshot("cart", 1)
    service.stop()
    (state_directory / "agent.state").unlink()
    service.start()
    assert attach("shop").restore("cart") == 1


def test_a_damaged_arena_is_not_given_out_and_the_others_are(service: Service) -> None:
    for name in ("shop", "other"):
        attach(name, "1MiB").close()
    service.stop()
    damaged = dict(service.manager.store)[service.manager.names()[0]]
    os.pwrite(damaged, b"\xff" * 64, 0)
    service.start()
    names = [record.name for record in attachment.list_arenas()]
    assert len(names) == 1
    (lost,) = {"shop", "other"} - set(names)
    with pytest.raises(errors.CorruptError, match="arrived damaged"):
        attach(lost)


def test_a_full_store_is_an_error_for_who_wants_a_new_arena(runtime: RuntimeDirectory) -> None:
    with Manager(most=2) as manager:
        service = Service(manager, runtime)
        service.start()
        attach("first", "1MiB").close()
        with pytest.raises(errors.CarrierError, match=r"is full \(2 of 2\)"):
            attach("second", "1MiB")
        assert [record.name for record in attachment.list_arenas()] == ["first"]
        service.kill()


def test_the_agent_says_that_it_is_alive_as_often_as_its_manager_wants(service: Service) -> None:
    service.stop()
    service.variables = {"WATCHDOG_USEC": "40000"}
    service.start()
    for _ in range(3):
        assert service.manager.hears("WATCHDOG=1", len(service.manager.said))


def test_the_socket_is_the_managers_and_stays_when_the_agent_ends(service: Service) -> None:
    service.stop()
    assert service.runtime.socket.exists()
    service.start()
    assert attachment.list_arenas() == []


def test_a_socket_that_is_not_the_agents_is_not_served(runtime: RuntimeDirectory) -> None:
    with Manager() as manager:
        service = Service(manager, runtime)
        runtime.socket.rename(runtime.path / "elsewhere")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
            other.bind(str(runtime.path / "other"))
            other.listen()
            manager.sockets[0] = (runtime.socket.name, os.dup(other.fileno()))
            said = manager.fail(RUN.format(quota=1), PERSISTMEM_RUNTIME_DIR=str(runtime.path))
        assert f"expected a socket from the service manager that listens at {runtime.socket}" in said
        assert service.process is None
