"""A runtime directory of its own for each test, and real processes to attach from."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from persistmem import attachment
from persistmem.agent.paths import RuntimeDirectory

from .support import Program, StartProgram, wait_for_exit


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[RuntimeDirectory]:
    """An empty runtime directory that everything uses; its agent is stopped in the end."""
    # Not tmp_path, which other users cannot reach; and longer than the 107 bytes that the path of a socket may have.
    path = Path(tempfile.mkdtemp(prefix="persistmem-test-".ljust(120, "-")))
    monkeypatch.setenv("PERSISTMEM_RUNTIME_DIR", str(path))
    yield RuntimeDirectory(path)
    status = attachment.agent_status()
    if status is not None:
        attachment.stop_agent(discard=True)
        wait_for_exit(status.pid)
    shutil.rmtree(path)


@pytest.fixture
def program(runtime: RuntimeDirectory) -> Iterator[StartProgram]:
    """Starts processes that can attach, and ends them."""
    programs: list[Program] = []

    def start() -> Program:
        programs.append(Program())
        return programs[-1]

    yield start
    for each in programs:
        each.end()
