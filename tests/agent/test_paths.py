"""Where the agent lives: only where nobody else can reach."""

import os
import tempfile
from pathlib import Path

import pytest

from persistmem import errors
from persistmem.agent.paths import RuntimeDirectory


def test_the_environment_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    monkeypatch.setenv("PERSISTMEM_RUNTIME_DIR", "/somewhere")
    assert RuntimeDirectory.of_user().path == Path("/somewhere")
    monkeypatch.delenv("PERSISTMEM_RUNTIME_DIR")
    assert RuntimeDirectory.of_user().path == Path("/run/user/1000/persistmem")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert RuntimeDirectory.of_user().path == Path(tempfile.gettempdir()) / f"persistmem-{os.geteuid()}"


def test_it_is_made_for_its_user_alone(tmp_path: Path) -> None:
    runtime = RuntimeDirectory(tmp_path / "runtime")
    runtime.ensure()
    runtime.ensure()
    assert runtime.path.stat().st_mode & 0o7777 == 0o700


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_one_that_others_can_enter_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "runtime"
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(errors.AgentError, match=f"mode 0700, found {mode:04o}"):
        RuntimeDirectory(path).ensure()


@pytest.mark.parametrize("kind", ["link", "file"])
def test_what_is_no_directory_of_its_own_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    if kind == "link":
        (tmp_path / "runtime").symlink_to(tmp_path / "elsewhere")
    else:
        (tmp_path / "runtime").touch()
    with pytest.raises(errors.AgentError, match="expected a directory, found something else; remove it"):
        RuntimeDirectory(tmp_path / "runtime").ensure()


def test_another_users_directory_is_refused_unless_root_looks_in() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as path:
        runtime = RuntimeDirectory(Path(path))
        os.seteuid(65534)
        try:
            with pytest.raises(errors.AgentError, match="expected it to belong to uid 65534, found uid 0"):
                runtime.ensure()
        finally:
            os.seteuid(0)
        os.chown(path, 65534, 65534)
        runtime.ensure()


def test_a_directory_that_cannot_be_made_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(errors.AgentError, match="No such file or directory"):
        RuntimeDirectory(tmp_path / "missing" / "runtime").ensure()
