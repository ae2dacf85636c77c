"""``make demo`` shows what it says: the app starts from memory under the next kernel, with the same answers."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_demo_crosses_a_kernel_upgrade_and_leaves_nothing_behind(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    environment = os.environ | {"PERSISTMEM_RUNTIME_DIR": str(theirs), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "apps.cities.demo"],
        cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", timeout=120, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert re.search(r"kernel (\S+) -> (?!\1;)\S+; arena carried over; answers identical", done.stdout)
    assert "Tokyo, Japan" in done.stdout
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []
