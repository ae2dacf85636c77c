"""Puts the agent's units where the service manager looks for them, and takes them away again, saying each step.

Knows files, and systemctl, which is passed in; must not know what is in a unit, nor what the agent keeps.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, Self

import persistmem
from persistmem.agent.command import environment
from persistmem.agent.paths import RuntimeDirectory
from persistmem.agent.units import PREPARE, SERVICE, SOCKET, Program, is_ours, stoppable
from persistmem.errors import AgentError, RefusedError

_NAMES: Final = (SOCKET, SERVICE, PREPARE)
_PROBE: Final = """
import json, sys
try:
    import persistmem.agent.process
    found = persistmem.__file__
except ImportError:
    found = None
print(json.dumps([found, [sys.prefix, sys.base_prefix, *sys.path]]))
"""
_FILE_MAX: Final = 1 << 16
_DOWN: Final = frozenset({"inactive", "failed"})


class Systemctl(Protocol):
    """Runs systemctl for one service manager, and returns what it prints."""

    def __call__(self, *arguments: str) -> str:
        """Run it.

        Raises:
            AgentError: there is none, or it fails.
        """


@dataclass(frozen=True, slots=True)
class Place:
    """Where a service manager looks for units that its administrator made, and where its agent is."""

    directory: Path
    runtime: RuntimeDirectory
    of_user: bool
    """Whether it is one user's, not the system's."""

    @classmethod
    def choose(cls, *, of_user: bool, uid: int, booted: bool, environment: Mapping[str, str]) -> Self:
        """Return where this user installs it.

        Args:
            of_user: for themselves, not for everybody.
            uid: who they are.
            booted: whether systemd runs this machine.
            environment: of this process.

        Raises:
            RefusedError: it is not theirs to do.
            AgentError: the service manager is not there.
        """
        if of_user and uid == 0:
            raise RefusedError(
                "root's agent is the system's: leave out --user, or run this as the user whose it is to be"
            )
        if not of_user and uid != 0:
            raise RefusedError("only root installs the system's agent; --user installs one of your own")
        if not booted:
            raise AgentError(
                "systemd does not run this machine (there is no /run/systemd/system), so there is nothing to install"
                " into: have what does run it run 'persistmem agent run'"
            )
        if not of_user:
            return cls(Path("/etc/systemd/system"), RuntimeDirectory.of_system(), of_user)
        runtime = environment.get("XDG_RUNTIME_DIR")
        if not runtime:
            raise AgentError(
                "XDG_RUNTIME_DIR is not set, so no service manager of yours can be found: log in as this user (by ssh,"
                " or 'machinectl shell USER@'), not by su or sudo"
            )
        home = environment.get("XDG_CONFIG_HOME") or Path.home() / ".config"
        directory = Path(home).absolute() / "systemd/user"
        return cls(directory, RuntimeDirectory(Path(runtime).absolute() / "persistmem"), of_user)


def find_program() -> Program:
    """Find out how a service manager runs this persistmem with this interpreter. Cost: starts it once or twice."""
    package = Path(persistmem.__file__).resolve()
    # The system's service manager sets no HOME either, where Python would look for modules, too.
    clean = {name: value for name, value in os.environ.items() if name != "HOME" and not name.startswith("PYTHON")}
    found, places = _probe(clean)
    module_path = None
    if found != package:
        module_path = environment()["PYTHONPATH"]
        found, places = _probe({**clean, "PYTHONPATH": module_path})
        if found != package:
            raise AgentError(f"{sys.executable} finds persistmem in {found}, not in {package}: install it there")
    python = Path(sys.executable)
    places = [python.parent, python.resolve().parent, package.parents[1], *places]
    return Program(python, module_path, [*dict.fromkeys([*places, *(place.resolve() for place in places)])])


def systemctl_of(place: Place) -> Systemctl:
    """Return what runs systemctl for the service manager of that place."""

    def run(*arguments: str) -> str:
        command = ["systemctl", *(["--user"] if place.of_user else []), *arguments]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
            )
        except OSError as error:
            raise AgentError(f"{' '.join(command)}: {error.strerror}; this takes a machine with systemd") from error
        if done.returncode:
            said = "; ".join(line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip())
            raise AgentError(f"{' '.join(command)}: exit status {done.returncode}: {said[:1000]}")
        return done.stdout

    return run


def systemd_version(systemctl: Systemctl) -> int:
    """Return the version of the systemd that is installed.

    Raises:
        AgentError: there is none, or it does not say.
    """
    said = systemctl("--version")
    found = re.match(r"systemd (\d{1,4})", said, re.ASCII)
    if found is None:
        raise AgentError(f"systemctl --version: expected 'systemd' and a number, found {said[:80]!r}")
    return int(found[1])


def install(place: Place, units: Mapping[str, str], systemctl: Systemctl, say: Callable[[str], None]) -> None:
    """Write units, have them started now and at every boot, and say each step. What is so already stays.

    Raises:
        RefusedError: a file is in the way that is not ours.
        AgentError: a file cannot be written, or systemctl fails; what was done by then stays, and can be done again.
    """
    before = {name: _read(place.directory / name) for name in units}
    changed = [name for name, text in units.items() if before[name] != text]
    running = _state(SERVICE, systemctl) == "active"
    for name in changed:
        path = place.directory / name
        _write(path, units[name])
        say(f"wrote {path}" if before[name] is None else f"wrote {path} anew")
    if changed:
        _run(systemctl, say, "daemon-reload")
    else:
        say(f"the units in {place.directory} are as they should be")
    _run(systemctl, say, "enable", "--now", *units)
    if running and SERVICE in changed:
        say(f"{SERVICE} runs on as it was; what is new in it counts from its next start on")


def uninstall(
    place: Place, systemctl: Systemctl, say: Callable[[str], None], end: Callable[[], None], *, discard: bool
) -> None:
    """Undo :func:`install`, and say each step.

    Args:
        place: where the units are.
        systemctl: runs it.
        say: is told each step.
        end: ends the agent, which runs.
        discard: whether the service manager may let go of what it keeps for the agent.

    Raises:
        RefusedError: a unit of that name is not ours, or the service manager keeps arenas.
        AgentError: a file cannot be removed, or systemctl fails. What was done by then stays; this does the rest when
            it is called again, and :func:`install` takes it back.
    """
    found = {name: text for name in _NAMES if (text := _read(place.directory / name)) is not None}
    if not found and all(_state(name, systemctl) == "inactive" for name in _NAMES):
        say(f"there are no units of ours in {place.directory}")
        return
    _refuse_to_lose(systemctl, discard=discard)
    if found:
        _run(systemctl, say, "disable", *found)
    if SERVICE in found:
        _write(place.directory / SERVICE, stoppable(found[SERVICE]))
        say(f"wrote {place.directory / SERVICE} anew, so that it may be stopped, and stays so")
        _run(systemctl, say, "daemon-reload")
    if _state(SERVICE, systemctl) == "active":
        end()
        say("ended the agent")
    # Both at once: whoever connects has the agent started again, and no socket can be started while its service runs.
    states = {name: _state(name, systemctl) for name in (SOCKET, SERVICE)}
    if not _DOWN.issuperset(states.values()):
        _run(systemctl, say, "stop", *(name for name in states if name in found or states[name] not in _DOWN))
    if SERVICE in found:
        _refuse_to_lose(systemctl, discard=discard)
        _empty_store(systemctl, say)
    for name in found:
        _remove(place.directory / name)
        say(f"removed {place.directory / name}")
    _run(systemctl, say, "daemon-reload")
    # Only now, when it has nothing to do as it stops.
    if _state(PREPARE, systemctl) not in _DOWN:
        _run(systemctl, say, "stop", PREPARE)
    if failed := [name for name in _NAMES if _state(name, systemctl) == "failed"]:
        _run(systemctl, say, "reset-failed", *failed)
    if place.runtime.path.is_dir():
        # While it is there, it is where everybody looks for an agent.
        shutil.rmtree(place.runtime.path)
        say(f"removed {place.runtime.path}")


def stored(systemctl: Systemctl) -> int:
    """Return how many arenas the service manager keeps for the agent."""
    return max(0, _descriptors(systemctl) - 1)  # its registry is no arena


def main_process(systemctl: Systemctl) -> int:
    """Return the process of the agent that the service manager runs; 0 if it runs none."""
    return _number("MainPID", systemctl)


def _descriptors(systemctl: Systemctl) -> int:
    return _number("NFileDescriptorStore", systemctl)


def _number(name: str, systemctl: Systemctl) -> int:
    said = systemctl("show", f"--property={name}", "--value", SERVICE).strip()
    return int(said) if said.isascii() and said.isdecimal() else 0


def _refuse_to_lose(systemctl: Systemctl, *, discard: bool) -> None:
    if not discard and (count := stored(systemctl)):
        raise RefusedError(
            f"systemd keeps {count} arenas for the agent: 'persistmem agent install' puts everything back, and"
            " 'persistmem save' takes them along; or uninstall with --discard"
        )


def _empty_store(systemctl: Systemctl, say: Callable[[str], None]) -> None:
    if not _descriptors(systemctl):
        return
    try:
        _run(systemctl, say, "clean", "--what=fdstore", SERVICE)
    except AgentError as error:
        if stored(systemctl):
            raise
        say(f"what the agent wrote down stays in systemd's memory, a few KiB: {error}")


def _probe(given: Mapping[str, str]) -> tuple[Path | None, list[Path]]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", _PROBE],
        cwd="/", env=given, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise AgentError(f"{sys.executable} does not run: {done.stderr.strip()[-500:]}")
    found, places = json.loads(done.stdout)
    return Path(found).resolve() if found else None, [Path(place) for place in places if place]


def _state(name: str, systemctl: Systemctl) -> str:
    return systemctl("show", "--property=ActiveState", "--value", name).strip()


def _run(systemctl: Systemctl, say: Callable[[str], None], *arguments: str) -> None:
    systemctl(*arguments)
    say(f"ran systemctl {' '.join(arguments)}")


def _read(path: Path) -> str | None:
    """Return a unit's text; None if there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RefusedError(f"{path} cannot be read ({error.strerror}), so it is not ours: {_MOVE}") from error
    with os.fdopen(fd, encoding="utf-8", errors="replace") as file:
        text = file.read(_FILE_MAX)
    if not is_ours(text):
        raise RefusedError(f"{path} was not made by 'persistmem agent install': {_MOVE}")
    return text


_MOVE: Final = "look at it, and move it out of the way"


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.unlink(missing_ok=True)
        with open(draft, "x", encoding="utf-8", opener=_for_all_to_read) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise AgentError(f"{path} cannot be written: {error.strerror}; see that its file system is writable") from error


def _for_all_to_read(path: str, flags: int) -> int:
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    os.fchmod(fd, 0o644)
    return fd


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
        _sync(path.parent)
    except OSError as error:
        raise AgentError(f"{path} cannot be removed: {error.strerror}") from error


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
