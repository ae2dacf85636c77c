"""A command line with a runtime directory and an agent of its own; every command is a process."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from persistmem.attachment import agent_status, stop_agent
from tests.waiting import readable

from .support import PATIENCE, CommandLine


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CommandLine]:
    """``persistmem``, run in ``tmp_path``; what its agent keeps is discarded in the end."""
    # Not tmp_path: a socket's path has 107 bytes at most.
    runtime = Path(tempfile.mkdtemp(prefix="persistmem-test-"))
    monkeypatch.setenv("PERSISTMEM_RUNTIME_DIR", str(runtime))
    yield CommandLine(tmp_path, runtime)
    status = agent_status()
    if status is not None:
        process = os.pidfd_open(status.pid)
        assert stop_agent(discard=True)
        assert readable(process, seconds=PATIENCE), "the agent does not end"
        os.close(process)
    shutil.rmtree(runtime)
