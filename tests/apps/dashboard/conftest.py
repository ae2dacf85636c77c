"""Agents of their own, processes that attach, and dashboards: one for a module's tests, and any number for one test."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from persistmem.attachment import agent_status, stop_agent
from tests.agent.support import Program, StartProgram, wait_for_exit
from tests.cli.conftest import cli
from tests.cli.support import CommandLine

from .support import Dashboard, StartDashboard

__all__ = ["cli"]


@pytest.fixture(scope="module")
def shared_cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A command line with an agent that serves all of a module's tests, each of which has arenas of its own."""
    runtime = Path(tempfile.mkdtemp(prefix="persistmem-test-"))
    directory = tmp_path_factory.mktemp("dashboard")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSISTMEM_RUNTIME_DIR", str(runtime))
        patch.setenv("PERSISTMEM_STATE_DIR", str(directory))
        yield CommandLine(directory, runtime)
        status = agent_status()
        if status is not None:
            stop_agent(discard=True)
            wait_for_exit(status.pid)
    shutil.rmtree(runtime)


@pytest.fixture(scope="module")
def shared(shared_cli: CommandLine) -> Iterator[Dashboard]:
    """A dashboard with buttons, of that agent."""
    dashboard = Dashboard("--allow-actions")
    yield dashboard
    dashboard.end()


@pytest.fixture
def start(cli: CommandLine) -> Iterator[StartDashboard]:
    """Starts dashboards of an agent that no other test has, and ends them."""
    dashboards: list[Dashboard] = []

    def start(*arguments: str) -> Dashboard:
        dashboards.append(Dashboard(*arguments))
        return dashboards[-1]

    yield start
    for each in dashboards:
        if each.process.poll() is None:
            each.end()


@pytest.fixture
def program() -> Iterator[StartProgram]:
    """Starts processes that can attach what the dashboards show, and ends them."""
    programs: list[Program] = []

    def start() -> Program:
        programs.append(Program())
        return programs[-1]

    yield start
    for each in programs:
        each.end()
