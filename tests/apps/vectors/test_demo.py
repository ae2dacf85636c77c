"""``demo`` shows what it says: one copy in memory, an update that everybody sees, the same answers after."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .support import App, many_texts

ROOT = Path(__file__).parents[3]


def test_demo_shares_memory_crosses_an_upgrade_and_leaves_nothing_behind(app: App, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install matplotlib")
    texts, temporary, plots = app.file(many_texts(8000)), tmp_path / "tmp", tmp_path / "plots"
    temporary.mkdir()
    plots.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "apps.vectors", "demo", str(texts), "--plots", str(plots)],
        cwd=ROOT, env=app.environment | {"TMPDIR": str(temporary)}, capture_output=True, encoding="utf-8",
        timeout=120, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    memory = dict(re.findall(r"^   (\S.+?) +\d+ MiB +\d+ MiB +(\d+) MiB$", done.stdout, re.MULTILINE))
    assert int(memory["attach the arena"]) < int(memory["np.load, a copy each"]) - 3 * 12
    assert "found at the next query by 4 of 4 processes" in done.stdout
    assert "lost       nothing" in done.stdout
    assert "8,000 texts checked" in done.stdout
    assert "The same queries, before and after:" in done.stdout
    assert {plot.name for plot in plots.iterdir()} == {"vectors-start.png", "vectors-memory.png"}
    assert all(plot.read_bytes().startswith(b"\x89PNG") for plot in plots.iterdir())
    assert list(temporary.iterdir()) == []
