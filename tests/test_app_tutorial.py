"""docs/app.md does what it says: its files are written, its commands run in order, and they print what stands there."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .test_readme import commands, told

TUTORIAL = (Path(__file__).parent.parent / "docs" / "app.md").read_text(encoding="utf-8")


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
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


def printed(output: str) -> str:
    """What was told, without the moments and durations of the log's line."""
    output = re.sub(r"saved=\S+|ms=[\d.]+|in [\d.]+s$", "VARYING", output.rstrip())
    return told(re.sub(r"\.+ *\[100%\]", "", output))


def test_every_file_and_command_of_the_tutorial_does_what_it_says(environment: dict[str, str], tmp_path: Path) -> None:
    blocks = re.findall(r"^```(python|console)\n(.*?)^```$", TUTORIAL, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) > 10
    for language, block in blocks:
        if language == "python":
            name = re.match(r"# (\w+\.py)\n", block)
            if name is not None:
                (tmp_path / name[1]).write_text(block)
            continue
        for command, expected in commands(block):
            done = subprocess.run(
                ["sh", "-c", command],
                env=environment,
                cwd=tmp_path,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert printed(done.stdout + done.stderr) == printed(expected)
