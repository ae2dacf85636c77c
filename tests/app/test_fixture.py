"""The pytest fixture in a project of a user's own: an agent of each test's own, of which nothing is left."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import persistmem
from persistmem import testing
from persistmem.agent.command import environment
from persistmem.attachment import agent_status, attach, list_arenas

TESTS = """
import dataclasses
import os
import subprocess
import sys

import pytest

import persistmem

app = persistmem.App("board", size="1MiB")


@app.state(version=1)
class Board:
    scores: dict[str, int] = dataclasses.field(default_factory=dict)


@pytest.mark.parametrize("number", range(2))
def test_scores_survive_an_upgrade(simulated_kernel, number):
    assert persistmem.attachment.list_arenas() == []
    with app:
        app.state.scores["ada"] = number
        app.simulate_kexec()
        assert app.found.origin.kind == "carried over"
        assert app.state.scores == {"ada": number}


def test_processes_that_a_test_starts_are_on_its_kernel(simulated_kernel):
    with app:
        app.state.scores["ada"] = 5
    code = "import persistmem; print(persistmem.attach('board').restore('state')['state'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "{'scores': {'ada': 5}}\\n", done.stderr


def test_that_fails(simulated_kernel):
    app.start()
    app.state.scores["ada"] = 1
    raise LookupError


def test_that_never_uses_it(simulated_kernel):
    pass


def test_that_leaves_everything_behind(simulated_kernel):
    global left
    left = persistmem.attach("left", "1MiB")
    persistmem.before_kexec(lambda: None)


def test_without_the_fixture_it_is_the_users():
    assert [arena.name for arena in persistmem.attachment.list_arenas()] == ["users-own"]
"""


def processes_of(directory: Path) -> list[str]:
    """Command lines of those that have to do with it."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if os.fsencode(directory) in words and int(entry.name) != os.getpid():
            found.append(words.decode())
    return found


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "with xdist"])
def test_in_a_project_of_the_users_own(tmp_path: Path, workers: tuple[str, ...], simulated_kernel: None) -> None:
    with attach("users-own", "1MiB") as arena:
        arena.snapshot("x", 1)
        users = agent_status()
        project, temporary = tmp_path / "project", tmp_path / "temporary"
        project.mkdir()
        temporary.mkdir()
        (project / "test_board.py").write_text(TESTS)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *workers],
            cwd=project,
            env={**environment(), "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        # The one that was meant to fail leaves its application started; the next does not get to see that, or it.
        assert "1 failed, 6 passed" in done.stdout, done.stdout
        assert "LookupError" in done.stdout
        assert processes_of(temporary) == []
        assert [path.name for path in temporary.rglob("persistmem*")] == []
        assert [path.name for path in project.iterdir()] == ["test_board.py"]
        assert agent_status() == users
        assert [record.name for record in list_arenas()] == ["users-own"]
        assert arena.restore("x") == 1


def test_environment_is_as_before_in_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PERSISTMEM_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("PERSISTMEM_STATE_DIR")
    runtime = Path()

    def fail() -> None:
        nonlocal runtime
        with testing.simulated_kernel():
            runtime = Path(os.environ["PERSISTMEM_RUNTIME_DIR"])
            assert runtime.stat().st_mode & 0o777 == 0o700
            attach("x", "1MiB").close()
            assert processes_of(runtime) != []
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert tmp_path != runtime != Path()
    assert os.environ["PERSISTMEM_RUNTIME_DIR"] == str(tmp_path)
    assert "PERSISTMEM_STATE_DIR" not in os.environ
    assert not runtime.parent.exists()
    assert processes_of(runtime) == []


def test_one_kernel_after_the_other_knows_nothing_of_the_first() -> None:
    app = persistmem.App("board", "1MiB", interval=0)
    app.state(version=1)(dict)
    for _ in range(2):
        with testing.simulated_kernel(), app:
            assert app.found.origin.kind == "created"
            app.state["ada"] = 1
