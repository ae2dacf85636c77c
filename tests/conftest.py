"""What every test shares.

Hypothesis draws the same examples in every run, and keeps no database of them. Agents leave what outlives them in a
directory of the test, not in the user's.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the test's agents look for saved arenas."""
    path = tmp_path / "state"
    monkeypatch.setenv("PERSISTMEM_STATE_DIR", str(path))
    return path


@pytest.fixture
def tutorial_environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """What a tutorial's commands run in: ``python`` and ``persistmem`` are these, and the agent is the test's."""
    scripts = tmp_path / "bin"
    scripts.mkdir()
    for name, command in (("persistmem", "-m persistmem "), ("python", "")):
        (scripts / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {command}"$@"\n')
        (scripts / name).chmod(0o755)
    found = os.environ | {
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "PERSISTMEM_RUNTIME_DIR": str(tmp_path / "run"),
        "COLUMNS": "100",
    }
    yield found
    subprocess.run(["persistmem", "agent", "stop", "--discard"], env=found, capture_output=True, check=False)
