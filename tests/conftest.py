"""What every test shares.

Hypothesis draws the same examples in every run, and keeps no database of them. Agents leave what outlives them in a
directory of the test, not in the user's.
"""

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
