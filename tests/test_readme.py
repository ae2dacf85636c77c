"""What README tells a newcomer to type does what it prints."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def commands(block: str) -> Iterator[tuple[str, str]]:
    """Each command of a console block with the output below it."""
    for part in block.split("$ ")[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def told(output: str) -> str:
    """The output without what differs from day to day and machine to machine: kernels, moments, durations, spacing."""
    for varying, name in (
        (r"\S+\+sim", "KERNEL+sim"),
        (r"[\d-]{10} [\d:]{8}", "MOMENT"),
        (r"[\d.]+ m?s\b", "DURATION"),
    ):
        output = re.sub(varying, name, output)
    return " ".join(output.split())


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    scripts = tmp_path / "bin"
    scripts.mkdir()
    (scripts / "persistmem").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m persistmem "$@"\n')
    (scripts / "persistmem").chmod(0o755)
    root = Path(__file__).parent.parent
    found = os.environ | {
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "PYTHONPATH": str(root),
        "PERSISTMEM_RUNTIME_DIR": str(tmp_path / "run"),
        "COLUMNS": "100",
    }
    yield found
    subprocess.run(["persistmem", "agent", "stop", "--discard"], env=found, capture_output=True, check=False)


def test_your_own_file_goes_through_the_upgrade_as_printed(environment: dict[str, str], tmp_path: Path) -> None:
    [block] = [block for block in blocks("console") if "persistmem snapshot" in block]
    for command, expected in commands(block):
        if "activate" in command:
            continue
        done = subprocess.run(
            ["sh", "-c", command], env=environment, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False
        )
        assert done.returncode == 0, done.stderr
        assert told(done.stdout + done.stderr) == told(expected)


def test_the_library_example_runs(environment: dict[str, str]) -> None:
    [code] = [block for block in blocks("python") if "persistmem.attach" in block]
    check = 'assert arena.history("profiles")[0].number == 1\nassert arena.restore("profiles") == profiles\n'
    done = subprocess.run([sys.executable, "-c", code + check], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
