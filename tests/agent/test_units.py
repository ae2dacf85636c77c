"""The agent's units: what systemd itself thinks of them, and that they are put there and taken away whole.

What is judged by systemd is judged by the one that is installed; nothing here talks to one that runs.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import persistmem
from persistmem.agent.client import PATIENCE as CLIENT_PATIENCE
from persistmem.agent.install import Place, find_program, install, main_process, stored, systemd_version, uninstall
from persistmem.agent.paths import RuntimeDirectory
from persistmem.agent.units import PREPARE, SERVICE, SOCKET, Carrier, Program, Situation, caveats, units
from persistmem.errors import AgentError, ArgumentError, RefusedError

PATIENCE = 30.0
PROGRAM = Program(Path(sys.executable), None, [Path(sys.prefix), Path("/usr/lib")])
LINKS = {f"sockets.target.wants/{SOCKET}", f"multi-user.target.wants/{SERVICE}", f"multi-user.target.wants/{PREPARE}"}


def run(*command: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=PATIENCE, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.fixture(scope="session")
def version() -> int:
    """The version of the systemd that is installed."""
    for program in ("systemctl", "systemd-analyze"):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program}: install systemd")
    return systemd_version(lambda *arguments: run("systemctl", *arguments).stdout)


def texts(
    version: int = 262, carrier: Carrier = "systemd", *, of_user: bool = False, program: Program = PROGRAM
) -> dict[str, str]:
    return units(Situation(program, version, carrier, of_user))


def write(directory: Path, units: Mapping[str, str]) -> list[Path]:
    for name, text in units.items():
        (directory / name).write_text(text)
    return [directory / name for name in units]


def settings(text: str) -> list[tuple[str, str]]:
    """The settings of a unit, in order."""
    pairs = [line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith("#")]
    return [(key, value) for key, _, value in pairs]


@pytest.mark.parametrize(("carrier", "of_user"), [("systemd", False), ("luo", False), ("systemd", True)])
def test_systemd_understands_every_line(tmp_path: Path, version: int, carrier: Carrier, of_user: bool) -> None:
    files = write(tmp_path, texts(version, carrier, of_user=of_user))
    options = ["--user"] if of_user else []
    done = run(
        "systemd-analyze", *options, "verify", "--recursive-errors=no", "--man=no", *files,
        XDG_RUNTIME_DIR=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if "persistmem" in line] == []


def test_systemd_finds_an_interpreter_that_is_oddly_named(tmp_path: Path, version: int) -> None:
    python = tmp_path / "100% sure; $HOME %h"
    python.symlink_to(sys.executable)
    files = write(tmp_path, texts(version, program=Program(python, "/a b:/50%:/it's \"\\n", [])))
    done = run("systemd-analyze", "verify", "--recursive-errors=no", "--man=no", *files)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "persistmem" in line]) == (0, [])
    python.unlink()
    done = run("systemd-analyze", "verify", "--recursive-errors=no", "--man=no", *files)
    assert f"Command {python} is not executable" in done.stderr


@pytest.mark.parametrize("path", ["/opt/a\nUser=nobody/python", "/opt/it's/python", '/opt/"/python', "/opt/\\/python"])
def test_an_interpreter_that_systemd_would_not_run_is_refused(path: str) -> None:
    with pytest.raises(ArgumentError, match="without"):
        texts(program=Program(Path(path), None, []))


@pytest.mark.parametrize(
    ("carrier", "unit", "exposure"),
    [("systemd", SERVICE, 15), ("luo", SERVICE, 17), ("systemd", PREPARE, 10), ("luo", PREPARE, 10)],
)
def test_systemd_rates_the_exposure_low(
    tmp_path: Path, version: int, carrier: Carrier, unit: str, exposure: int
) -> None:
    installed = Program(Path("/usr/bin/python3"), None, [])  # one in /tmp or a home could not be kept from there
    (tmp_path / unit).write_text(texts(version, carrier, program=installed)[unit])
    done = run("systemd-analyze", "security", "--offline=yes", f"--threshold={exposure}", tmp_path / unit)
    assert done.returncode == 0, done.stdout[-200:]


@pytest.mark.parametrize(
    ("line", "carrier", "since"),
    [("FileDescriptorStorePreserve=yes", "systemd", 254), ("SurviveFinalKillSignal=yes", "luo", 255)],
)
def test_no_systemd_is_given_a_line_that_it_does_not_know(line: str, carrier: Carrier, since: int) -> None:
    assert line in texts(since, carrier)[SERVICE].splitlines()
    assert line not in texts(since - 1, carrier)[SERVICE].splitlines()


def test_where_a_stop_would_lose_arenas_it_is_refused() -> None:
    refuses = ("RefuseManualStop", "yes")
    assert refuses in settings(texts(262, "luo")[SERVICE])
    assert refuses in settings(texts(253, "systemd")[SERVICE])
    assert refuses in settings(texts(253, "systemd", of_user=True)[SERVICE])
    assert refuses not in settings(texts(254, "systemd")[SERVICE])


def test_nothing_ends_an_agent_that_holds_the_device_before_the_kexec() -> None:
    for unit in (SERVICE, SOCKET):
        found = settings(texts(262, "luo")[unit])
        assert ("DefaultDependencies", "no") in found
        assert ("IgnoreOnIsolate", "yes") in found
        ended_by = [word for key, value in found if key == "Conflicts" for word in value.split()]
        assert not {"shutdown.target", "kexec.target", "soft-reboot.target", "umount.target"} & {*ended_by}
    needs = {key for key, _ in settings(texts(262, "luo")[SERVICE])}
    assert not {"Requires", "BindsTo", "RequiresMountsFor", "StateDirectory", "PrivateTmp"} & needs


@pytest.mark.parametrize("carrier", ["systemd", "luo"])
def test_applications_are_told_before_anything_else_stops_and_for_no_longer_than_is_said(carrier: Carrier) -> None:
    found = dict(settings(texts(262, carrier)[PREPARE]))
    assert {SOCKET, SERVICE, "multi-user.target", "graphical.target"} <= {*found["After"].split()}
    deadline = int(found["ExecStop"].rpartition(" ")[2])
    assert found["ExecStop"].startswith("-")
    assert deadline < int(found["TimeoutStopSec"].removesuffix("s")) <= deadline + (15 if carrier == "systemd" else 315)
    # An agent that does not answer at the start makes the command fail, which is ignored; a time limit would not be.
    assert int(found["TimeoutStartSec"].removesuffix("s")) >= 2 * CLIENT_PATIENCE


def test_an_interpreter_in_a_home_or_a_temporary_directory_stays_visible() -> None:
    for places, home, temporary in (
        ([Path("/usr/lib/python3")], "yes", "yes"),
        ([Path("/root/venv/lib")], "read-only", "yes"),
        ([Path("/usr/lib/python3"), Path("/home/ada/.local/lib")], "read-only", "yes"),
        ([Path("/tmp/venv"), Path("/home/ada/venv")], "read-only", None),
        ([Path("/var/tmp/checkout")], "yes", None),
    ):
        for unit in (SERVICE, PREPARE):
            found = dict(settings(texts(program=Program(Path("/usr/bin/python3"), None, places))[unit]))
            assert (found["ProtectHome"], found.get("PrivateTmp")) == (home, temporary)


def test_a_user_has_no_device() -> None:
    with pytest.raises(ArgumentError, match="the live-update device is root's"):
        texts(carrier="luo", of_user=True)


@pytest.mark.parametrize(
    ("version", "carrier", "of_user", "said"),
    [
        (262, "systemd", False, []),
        (257, "systemd", False, ["takes no arenas to the next kernel"]),
        (252, "systemd", False, ["systemctl kill persistmem.service", "takes no arenas to the next kernel"]),
        (252, "systemd", True, ["systemctl --user kill persistmem.service", "enable-linger"]),
        (257, "luo", False, ["refuses to stop it"]),
        (254, "luo", False, ["refuses to stop it", "not by 'systemctl kexec'"]),
    ],
)
def test_an_administrator_is_told_what_this_systemd_cannot_do(
    version: int, carrier: Carrier, of_user: bool, said: list[str]
) -> None:
    found = [*caveats(Situation(PROGRAM, version, carrier, of_user))]
    assert len(found) == len(said)
    assert all(part in line for part, line in zip(said, found, strict=True))


class Manager:
    """Stands in for a service manager that runs: knows which units are up, and remembers what it was told.

    What is enabled is enabled by the real systemctl, in the file system below ``root``.
    """

    def __init__(self, root: Path) -> None:
        self.place = Place(root / "etc/systemd/system", RuntimeDirectory(root / "run/persistmem", shared=True), False)
        self.root = root
        self.told: list[str] = []
        self.said: list[str] = []
        self.ended = 0
        self.hangs = self.refuses = False
        self.last_made = 0
        self.up: set[str] = set()
        self.descriptors = 0
        self.fails: Callable[[str], bool] = lambda _: False

    def __call__(self, *arguments: str) -> str:
        told = " ".join(arguments)
        if arguments[0] == "show":
            return self._show(*arguments[1:]) + "\n"
        self.told.append(told)
        if self.fails(told):
            raise AgentError(f"systemctl {told}: exit status 1: no")
        names = [word for word in arguments[1:] if not word.startswith("--")]
        if arguments[0] in ("enable", "disable"):
            done = run("systemctl", f"--root={self.root}", arguments[0], *names)
            assert done.returncode == 0, done.stderr
        if "--now" in arguments:
            if SERVICE in self.up and SOCKET not in self.up:
                raise AgentError("Socket service persistmem.service already active, refusing.")
            self.up |= {*names}
            self.place.runtime.path.mkdir(parents=True, exist_ok=True)
        if arguments[0] == "stop":
            assert SERVICE not in names or ("RefuseManualStop", "yes") not in settings(self.text(SERVICE))
            assert PREPARE not in names or not (self.place.directory / PREPARE).exists()
            self.up -= {*names}
        if arguments[0] == "clean":
            self.descriptors = 0
        return ""

    def _show(self, what: str, value: str, unit: str) -> str:
        assert value == "--value"
        match what:
            case "--property=ActiveState":
                return "active" if unit in self.up else "inactive"
            case "--property=NFileDescriptorStore":
                return str(self.descriptors)
            case "--property=MainPID":
                return "7" if SERVICE in self.up else "0"
        raise AssertionError(what)

    def text(self, unit: str) -> str:
        return (self.place.directory / unit).read_text()

    def files(self) -> dict[str, Any]:
        """Everything below the directory of units: links and files."""
        return {
            str(path.relative_to(self.place.directory)): path.readlink() if path.is_symlink() else path.read_text()
            for path in self.place.directory.rglob("*")
            if not path.is_dir()
        }

    def install(self, **what: Any) -> None:
        install(self.place, texts(**what), self, self.said.append)

    def uninstall(self, *, discard: bool = False) -> None:
        uninstall(self.place, self, self.said.append, self.end, discard=discard)

    def end(self) -> None:
        """What the agent does when it is told to end."""
        assert "Restart" not in dict(settings(self.text(SERVICE)))
        if self.refuses:
            raise RefusedError("the agent keeps 1 arenas, which end with it; drop them, or stop with --discard")
        self.ended += 1
        self.descriptors += self.last_made
        if not self.hangs:
            self.up.discard(SERVICE)


@pytest.fixture
def manager(tmp_path: Path, version: int) -> Manager:
    found = Manager(tmp_path)
    found.place.directory.mkdir(parents=True)
    (found.place.directory / "sshd.service").write_text("[Service]\nExecStart=/usr/sbin/sshd\n")
    return found


def test_install_writes_the_units_and_has_them_started_now_and_at_every_boot(manager: Manager, own_umask: None) -> None:
    manager.install()
    assert manager.told == ["daemon-reload", f"enable --now {SOCKET} {SERVICE} {PREPARE}"]
    assert {name: manager.text(name) for name in texts()} == texts()
    assert {name for name, found in manager.files().items() if isinstance(found, Path)} == LINKS
    assert all((manager.place.directory / name).stat().st_mode & 0o777 == 0o644 for name in texts())
    assert manager.said == [
        *(f"wrote {manager.place.directory / name}" for name in (SOCKET, SERVICE, PREPARE)),
        *(f"ran systemctl {told}" for told in manager.told),
    ]


@pytest.fixture
def own_umask() -> Iterator[None]:
    """An administrator's that lets nobody read what root makes."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_install_again_changes_nothing(manager: Manager) -> None:
    manager.install()
    before, when = manager.files(), (manager.place.directory / SERVICE).stat()
    del manager.told[:]
    manager.install()
    assert manager.files() == before
    assert (manager.place.directory / SERVICE).stat().st_ino == when.st_ino
    assert manager.told == [f"enable --now {SOCKET} {SERVICE} {PREPARE}"]
    assert "as they should be" in manager.said[-2]


def test_a_newer_unit_replaces_an_older_one_and_the_agent_runs_on(manager: Manager) -> None:
    manager.install(version=257)
    del manager.said[:]
    manager.install(version=257, carrier="luo")
    assert manager.text(SERVICE) == texts(257, "luo")[SERVICE]
    assert SERVICE in manager.up
    assert f"{SERVICE} runs on as it was; what is new in it counts from its next start on" in manager.said


def by_hand(path: Path) -> None:
    path.write_text("[Unit]\n")


def masked(path: Path) -> None:
    path.symlink_to("/dev/null")


def linked(path: Path) -> None:
    path.with_name("elsewhere").write_text(texts()[path.name])
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("make", [by_hand, masked, linked])
@pytest.mark.parametrize("what", [Manager.install, Manager.uninstall])
def test_a_unit_that_is_not_ours_is_neither_replaced_nor_removed(
    manager: Manager, make: Callable[[Path], object], what: Callable[[Manager], None]
) -> None:
    make(manager.place.directory / PREPARE)
    before = manager.files()
    with pytest.raises(RefusedError, match=PREPARE):
        what(manager)
    assert (manager.files(), manager.told, manager.said) == (before, [], [])


def test_what_cannot_be_written_is_named(manager: Manager) -> None:
    (manager.place.directory / f".{SOCKET}.new").mkdir()
    with pytest.raises(AgentError, match=f"{SOCKET} cannot be written"):
        manager.install()
    assert [*manager.files()] == ["sshd.service"]


def test_an_installation_that_failed_is_completed_by_the_next_one(manager: Manager) -> None:
    manager.fails = lambda told: told.startswith("enable")
    with pytest.raises(AgentError, match="exit status 1"):
        manager.install()
    manager.fails = lambda _: False
    manager.install()
    assert manager.up == {SOCKET, SERVICE, PREPARE}


@pytest.mark.parametrize(("carrier", "version"), [("systemd", 262), ("systemd", 252), ("luo", 257)])
def test_uninstall_leaves_what_was_there_before(manager: Manager, carrier: Carrier, version: int) -> None:
    before = manager.files()
    manager.install(carrier=carrier, version=version)
    manager.descriptors = 1
    del manager.said[:], manager.told[:]
    manager.uninstall()
    assert manager.files() == before
    assert (manager.up, manager.ended, manager.descriptors) == (set(), 1, 0)
    assert not manager.place.runtime.path.exists()
    assert [line for line in manager.said if line.startswith("ran ")] == [f"ran systemctl {t}" for t in manager.told]
    assert [line for line in manager.said if line.startswith("removed ")] == [
        f"removed {path}" for path in (*(manager.place.directory / n for n in texts()), manager.place.runtime.path)
    ]


@pytest.mark.parametrize("hangs", [True, False])
@pytest.mark.parametrize("carrier", ["systemd", "luo"])
def test_an_agent_that_hangs_or_that_a_client_has_started_again_is_stopped_by_systemd(
    manager: Manager, carrier: Carrier, hangs: bool
) -> None:
    manager.install(carrier=carrier, version=257)
    manager.hangs = hangs
    manager.uninstall(discard=True)
    assert f"stop {SOCKET} {SERVICE}" in manager.told
    assert manager.up == set()


def test_uninstall_removes_no_arena_that_systemd_keeps_unless_it_is_told_to(manager: Manager) -> None:
    manager.install()
    manager.descriptors = 3
    with pytest.raises(RefusedError, match="systemd keeps 2 arenas for the agent"):
        manager.uninstall()
    assert (manager.descriptors, stored(manager), manager.up) == (3, 2, {SOCKET, SERVICE, PREPARE})
    manager.uninstall(discard=True)
    assert (manager.descriptors, SERVICE in manager.files()) == (0, False)


def test_an_arena_that_is_made_at_the_last_moment_is_not_lost_and_all_can_be_put_back(manager: Manager) -> None:
    manager.install()
    manager.descriptors = 1
    manager.last_made = 1
    with pytest.raises(RefusedError, match="systemd keeps 1 arenas for the agent"):
        manager.uninstall()
    assert (manager.descriptors, SERVICE in manager.files()) == (2, True)
    manager.install()
    assert manager.text(SERVICE) == texts()[SERVICE]
    assert manager.up == {SOCKET, SERVICE, PREPARE}


def test_an_agent_that_refuses_to_end_runs_on_and_all_can_be_put_back(manager: Manager) -> None:
    manager.install(carrier="luo", version=257)
    manager.refuses = True
    with pytest.raises(RefusedError, match="drop them"):
        manager.uninstall()
    manager.install(carrier="luo", version=257)
    assert manager.text(SERVICE) == texts(257, "luo")[SERVICE]
    assert manager.up == {SOCKET, SERVICE, PREPARE}


def test_arenas_of_an_agent_that_does_not_run_are_not_lost_either(manager: Manager) -> None:
    manager.install()
    manager.up, manager.descriptors = set(), 2
    with pytest.raises(RefusedError, match="systemd keeps 1 arenas"):
        manager.uninstall()
    assert SERVICE in manager.files()


def test_a_store_that_cannot_be_emptied_is_in_the_way_only_if_it_keeps_arenas(manager: Manager) -> None:
    # systemctl clean needs a message bus, which users may not have.
    manager.install()
    manager.up, manager.descriptors, manager.fails = set(), 2, lambda told: told.startswith("clean")
    with pytest.raises(AgentError, match="clean"):
        manager.uninstall(discard=True)
    assert SERVICE in manager.files()
    manager.descriptors = 1
    manager.uninstall()
    assert SERVICE not in manager.files()
    assert any("stays in systemd's memory" in line for line in manager.said)


def test_uninstall_that_failed_is_completed_by_the_next_one(manager: Manager) -> None:
    before = manager.files()
    for step in ("disable", "daemon-reload", f"stop {SOCKET}"):
        manager.install()
        manager.fails = lambda told, step=step: told.startswith(step)  # type: ignore[misc]
        with pytest.raises(AgentError):
            manager.uninstall()
        manager.fails = lambda _: False
        manager.uninstall()
        assert (manager.files(), manager.up) == (before, set())


def test_nothing_is_undone_where_nothing_was_installed(manager: Manager) -> None:
    manager.place.runtime.path.mkdir(parents=True)
    manager.uninstall()
    assert manager.said == [f"there are no units of ours in {manager.place.directory}"]
    assert manager.told == []
    assert manager.place.runtime.path.is_dir()


def test_the_agent_that_systemd_runs_is_known(manager: Manager) -> None:
    assert main_process(manager) == 0
    manager.install()
    assert main_process(manager) == 7


@pytest.mark.parametrize(
    ("of_user", "uid", "booted", "environment", "error", "said"),
    [
        (False, 1000, True, {}, RefusedError, "only root"),
        (True, 0, True, {"XDG_RUNTIME_DIR": "/run/user/0"}, RefusedError, "leave out --user"),
        (False, 0, False, {}, AgentError, "systemd does not run this machine"),
        (True, 1000, True, {}, AgentError, "XDG_RUNTIME_DIR is not set"),
    ],
)
def test_who_cannot_install_is_told_why(
    of_user: bool, uid: int, booted: bool, environment: dict[str, str], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        Place.choose(of_user=of_user, uid=uid, booted=booted, environment=environment)


def test_a_user_installs_among_their_own_units() -> None:
    environment = {"XDG_RUNTIME_DIR": "/run/user/7", "XDG_CONFIG_HOME": "/home/ada/.config"}
    found = Place.choose(of_user=True, uid=7, booted=True, environment=environment)
    assert found.directory == Path("/home/ada/.config/systemd/user")
    assert found.runtime == RuntimeDirectory(Path("/run/user/7/persistmem"))


def test_a_service_manager_can_run_what_was_found_to_run_from_a_source_checkout(tmp_path: Path) -> None:
    # The interpreter without its virtual environment finds nothing by itself.
    base = getattr(sys, "_base_executable", sys.executable)
    given = [str(Path(persistmem.__file__).parents[1]), *(path for path in sys.path if path.endswith("-packages"))]
    code = "from persistmem.agent.install import *; p = find_program(); print(p.python, p.module_path, sep='\\n')"
    done = run(base, "-c", code, PYTHONPATH=os.pathsep.join(given))
    assert done.returncode == 0, done.stderr
    python, module_path = done.stdout.splitlines()
    command = [python, "-P", "-m", "persistmem", "agent", "run", "--help"]
    subprocess.run(command, env={"PYTHONPATH": module_path}, cwd=tmp_path, capture_output=True, check=True)


def test_this_interpreter_needs_no_more_than_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nonexistent")
    program = find_program()
    assert program.python == Path(sys.executable)
    assert {Path(sys.base_prefix), Path(sys.executable).parent} <= {*program.places}
    assert all(place.resolve() in program.places for place in [Path(sys.executable).parent, *program.places])
    assert Path(sys.executable).resolve().parent in program.places
    assert Path(persistmem.__file__).resolve().parents[1] in program.places
