"""When an agent ends: by itself, told to, by a signal; and when it does not."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from persistmem import errors
from persistmem.agent.command import environment
from persistmem.agent.paths import RuntimeDirectory
from persistmem.attachment import agent_status, attach, list_arenas, start_agent, stop_agent

from .support import PATIENCE, StartProgram, running_agent, wait_for_exit

FOREGROUND = """
import sys
from pathlib import Path
from persistmem.agent.command import Settings
from persistmem.agent.paths import RuntimeDirectory, state_directory
from persistmem.agent.process import run
from persistmem.errors import Error
try:
    run(Settings(RuntimeDirectory.of_user(), idle=float(sys.argv[1]), saved=state_directory() / "saved"))
except Error as error:
    sys.exit(f"refused: {error}")
"""


StartAgent = Callable[[float], subprocess.Popen[str]]


@pytest.fixture
def foreground(runtime: RuntimeDirectory) -> Iterator[StartAgent]:
    """Starts agents in the foreground, with their idle time in seconds."""
    agents: list[subprocess.Popen[str]] = []

    def start(idle: float) -> subprocess.Popen[str]:
        agents.append(
            subprocess.Popen(
                [sys.executable, "-c", FOREGROUND, str(idle)], env=environment(), stderr=subprocess.PIPE, text=True
            )
        )
        return agents[-1]

    yield start
    if agent_status() is not None:
        stop_agent(discard=True)
    for agent in agents:
        with agent:
            agent.wait(PATIENCE)


def wait_for_agent(agent: subprocess.Popen[str]) -> None:
    assert agent.stderr
    for line in agent.stderr:
        if "serves" in line:
            return
    pytest.fail("the agent did not start")


def test_an_agent_that_keeps_arenas_refuses_to_stop(runtime: RuntimeDirectory) -> None:
    attach("carts", size="1MiB").close()
    with pytest.raises(errors.RefusedError, match="keeps 1 arena"):
        stop_agent()
    assert [record.name for record in list_arenas()] == ["carts"]


def test_told_to_discard_it_stops_and_who_had_an_arena_is_told(
    runtime: RuntimeDirectory, program: StartProgram
) -> None:
    holder = program()
    holder.run("arena = attach('carts', size='1MiB')")
    assert stop_agent(discard=True)
    assert agent_status() is None
    assert "discard" in holder.run("arena.snapshots()")
    assert list_arenas() == []


def test_what_was_discarded_starts_no_agent_not_even_in_a_forked_child(
    runtime: RuntimeDirectory, program: StartProgram
) -> None:
    holder = program()
    holder.run("arena = attach('carts', size='1MiB')")
    stop_agent(discard=True)
    assert "discard" in holder.run("arena.snapshots()")
    holder.run(
        """
child = os.fork()
if child == 0:
    try:
        arena.snapshots()
    finally:
        os._exit(0)
os.waitpid(child, 0)
"""
    )
    assert agent_status() is None


def test_an_agent_that_keeps_nothing_stops_when_told(runtime: RuntimeDirectory) -> None:
    pid = start_agent().pid
    assert stop_agent()
    wait_for_exit(pid)
    assert agent_status() is None
    assert not stop_agent()


def test_an_agent_that_keeps_nothing_ends_by_itself_after_a_while(foreground: StartAgent) -> None:
    agent = foreground(0.05)
    assert agent.wait(PATIENCE) == 0
    assert agent_status() is None


def test_an_agent_that_keeps_something_stays(foreground: StartAgent) -> None:
    idle = 3.0  # time enough to attach
    agent = foreground(idle)
    wait_for_agent(agent)
    attach("carts", size="1MiB").close()
    with pytest.raises(subprocess.TimeoutExpired):
        agent.wait(idle + 0.5)
    assert running_agent().pid == agent.pid


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_agent_that_keeps_nothing(foreground: StartAgent, number: signal.Signals) -> None:
    agent = foreground(600)
    wait_for_agent(agent)
    agent.send_signal(number)
    assert agent.wait(PATIENCE) == 0


def test_a_signal_does_not_throw_arenas_away(foreground: StartAgent) -> None:
    agent = foreground(600)
    wait_for_agent(agent)
    with attach("carts", size="1MiB") as arena:
        agent.send_signal(signal.SIGTERM)
        assert agent.stderr
        assert "SIGTERM ignored: 1 arena" in agent.stderr.readline()
        assert arena.snapshots() == []
        assert running_agent().pid == agent.pid


def test_a_second_agent_for_the_same_directory_is_refused(foreground: StartAgent) -> None:
    first = foreground(600)
    wait_for_agent(first)
    second = foreground(600)
    assert second.wait(PATIENCE) == 1
    assert second.stderr
    assert "another agent runs" in second.stderr.read()
    assert running_agent().pid == first.pid


@pytest.mark.parametrize("obstacle", ["agent.lock", "agent.state", "agent.log", "agent.socket"])
def test_an_agent_that_cannot_start_says_why(runtime: RuntimeDirectory, obstacle: str) -> None:
    (runtime.path / obstacle).mkdir()
    with pytest.raises(errors.AgentError, match="directory"):
        start_agent()
    (runtime.path / obstacle).rmdir()


def test_the_agent_in_the_background_has_no_terminal_and_holds_no_directory(runtime: RuntimeDirectory) -> None:
    pid = start_agent().pid
    assert os.getsid(pid) != os.getsid(0)
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    assert Path(f"/proc/{pid}/fd/0").readlink() == Path("/dev/null")
