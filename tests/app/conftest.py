"""A simulated kernel that the tests of a worker share, each with applications of its own; and programs."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from persistmem import attachment

from ..agent.support import Program, StartProgram, wait_for_exit
from .support import Script, StartScript

_numbers = count()


@pytest.fixture(scope="session")
def machine() -> Iterator[Path]:
    """Runtime directory of an agent that no test upgrades or kills."""
    path = Path(tempfile.mkdtemp(prefix="persistmem-test-"))
    yield path
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSISTMEM_RUNTIME_DIR", str(path))
        if (status := attachment.agent_status()) is not None:
            attachment.stop_agent(discard=True)
            wait_for_exit(status.pid)
    shutil.rmtree(path)


@pytest.fixture
def name(machine: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of an application that nobody started yet, on the shared kernel."""
    monkeypatch.setenv("PERSISTMEM_RUNTIME_DIR", str(machine))
    return f"app-{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def script() -> Iterator[StartScript]:
    """Starts programs, and ends them."""
    scripts: list[Script] = []

    def start(code: str, *arguments: str, **environment: str) -> Script:
        scripts.append(Script(code, *arguments, **environment))
        return scripts[-1]

    yield start
    for each in scripts:
        each.close()


@pytest.fixture
def program() -> Iterator[StartProgram]:
    """Starts processes that do what they are told, line by line, and ends them."""
    programs: list[Program] = []

    def start() -> Program:
        programs.append(Program())
        return programs[-1]

    yield start
    for each in programs:
        each.end()
