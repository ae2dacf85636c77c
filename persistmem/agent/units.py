"""The text of the agent's units, as a function of what was found out about the machine.

Knows systemd's settings, and which version has them; must not know systemctl, nor look at anything itself. "Source" is
systemd.service(5), systemd.exec(5) or systemd-soft-reboot.service(8) of systemd 262; "seen" is what was tried.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from persistmem.agent.paths import SYSTEM
from persistmem.carriers.unit import KEXEC_VERSION, PRESERVE_VERSION
from persistmem.errors import ArgumentError

Carrier = Literal["systemd", "luo"]
"""What takes the arenas of a service's agent to the next kernel; see ``KernelSettings``."""

SOCKET: Final = "persistmem.socket"
SERVICE: Final = "persistmem.service"
PREPARE: Final = "persistmem-prepare.service"

MARKER: Final = "# Made by 'persistmem agent install'"
"""How a file begins that is ours to replace and to remove."""

SURVIVE_VERSION: Final = 255
"""The first systemd that can spare a service when it kills what is left at the end of a shutdown."""

DEADLINE: Final = 30
"""Seconds in which applications take their last snapshots when the machine is shut down."""

_STORE_MAX: Final = "1024"
"""Descriptors: ARENAS_MAX, the registry, and some to spare."""
_START_AND_ASK: Final = 15
"""Seconds in which the command line starts, and the agent answers."""
_GIVE_UP: Final = 60
"""Seconds in which the command line starts, and gives up on an agent that does not answer. A unit that takes longer to
start than it may has failed, even if its command may fail, and its ExecStop= is not run in the end (seen)."""
_PRESERVE: Final = 300
"""Seconds that preserving may take: it walks over all of the memory."""

_HOMES: Final = (Path("/home"), Path("/root"), Path("/run/user"))
_TEMPORARY: Final = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - nothing is put there

_SECCOMP: Final = (
    ("NoNewPrivileges", "yes"),
    ("LockPersonality", "yes"),
    ("MemoryDenyWriteExecute", "yes"),
    ("RestrictAddressFamilies", "AF_UNIX"),
    ("RestrictNamespaces", "yes"),
    ("RestrictRealtime", "yes"),
    ("RestrictSUIDSGID", "yes"),
    ("SystemCallArchitectures", "native"),
    ("SystemCallErrorNumber", "EPERM"),
    ("SystemCallFilter", "@system-service"),
    ("SystemCallFilter", "~@privileged @resources"),
    ("UMask", "0077"),
)
"""What a user's manager can do as well as the system's."""

_NAMESPACES: Final = (
    ("IPAddressDeny", "any"),
    ("PrivateMounts", "yes"),
    ("PrivateNetwork", "yes"),
    ("ProtectClock", "yes"),
    ("ProtectControlGroups", "yes"),
    ("ProtectHostname", "yes"),
    ("ProtectKernelLogs", "yes"),
    ("ProtectKernelModules", "yes"),
    ("ProtectKernelTunables", "yes"),
)
"""What only the system's manager can do, and what is well even for a process that stays when file systems go."""

_Settings = Iterable[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Program:
    """How persistmem is run by a service manager."""

    python: Path
    """The interpreter, absolute; not resolved, for that is how it knows its virtual environment."""
    module_path: str | None
    """What ``$PYTHONPATH`` has to be; None if the interpreter finds persistmem without."""
    places: Sequence[Path]
    """What it reads: directories, absolute, and what they are links to."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What the units depend on."""

    program: Program
    version: int
    """systemd's."""
    carrier: Carrier
    of_user: bool
    """Whether they are for one user's manager, not the system's."""

    def __post_init__(self) -> None:
        if self.of_user and self.carrier == "luo":
            raise ArgumentError("the live-update device is root's: a user's agent keeps arenas in systemd's store")


def units(situation: Situation) -> dict[str, str]:
    """Return each unit's text by its name, in the order in which they are to be started.

    Raises:
        ArgumentError: a path has a character that no unit can have.
    """
    if situation.of_user:
        return {SOCKET: _user_socket(), SERVICE: _user_service(situation)}
    return {SOCKET: _socket(situation), SERVICE: _service(situation), PREPARE: _prepare(situation)}


def default_carrier(version: int, *, has_device: bool) -> Carrier:
    """Return what carries best: systemd's store where it crosses a kexec; else the live-update device, if it is there.

    Where nothing crosses a kexec, systemd's store is still the better one: it outlives the agent.

    >>> default_carrier(262, has_device=True), default_carrier(257, has_device=True)
    ('systemd', 'luo')
    """
    return "luo" if has_device and version < KEXEC_VERSION else "systemd"


def caveats(situation: Situation) -> Iterator[str]:
    """Say what an administrator has to know of what this systemd cannot do."""
    version = f"systemd {situation.version}"
    if situation.carrier == "luo":
        yield f"what {SERVICE} keeps ends with it, so systemctl refuses to stop it; 'persistmem agent stop' asks it"
        if situation.version < SURVIVE_VERSION:
            yield (
                f"{version} kills it at the end of a shutdown: go to the next kernel by 'persistmem reboot --kexec',"
                " not by 'systemctl kexec'"
            )
        return
    if situation.version < PRESERVE_VERSION:
        yield (
            f"{version} keeps arenas when {SERVICE} is restarted, and not when it is stopped, which it refuses: to"
            f" restart it, 'systemctl {'--user ' if situation.of_user else ''}kill {SERVICE}'"
        )
    if situation.of_user:
        yield (
            "what it keeps ends with your service manager, and that with your last session, unless you run 'loginctl"
            " enable-linger'"
        )
    elif situation.version < KEXEC_VERSION:
        yield f"{version} takes no arenas to the next kernel: 'persistmem reboot --kexec' takes them by the disk"


def is_ours(text: str) -> bool:
    """Whether a unit of this text is one that was made here."""
    return text.startswith(MARKER)


def stoppable(service: str) -> str:
    r"""Return the text of an agent's service so that it may be stopped by hand, and stays down when it ends.

    >>> stoppable("[Unit]\nRefuseManualStop=yes\n[Service]\nRestart=always\nRestartSec=1s\n")
    '[Unit]\n[Service]\nRestartSec=1s\n'
    """
    return "".join(
        line for line in service.splitlines(keepends=True) if not line.startswith(("RefuseManualStop=", "Restart="))
    )


def quote(word: str) -> str:
    r"""Return a word as it is to stand in a command line, or an assignment, of a unit.

    Raises:
        ArgumentError: no unit can have it.

    >>> print(quote("/opt/100% sure/bin/python"))
    "/opt/100%% sure/bin/python"
    """
    if not word.isprintable():
        raise ArgumentError(f"expected a path that a unit can have, found {word!r}: use one without control characters")
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return escaped if escaped == word and not set(word) & set(" '$;") else f'"{escaped}"'


def _socket(situation: Situation) -> str:
    unit = [("Description", "Where the agent of persistmem listens")]
    if situation.carrier == "luo":
        # It stays open over a soft reboot, as the agent does, which has it from the beginning (source).
        unit += [
            ("DefaultDependencies", "no"),
            ("IgnoreOnIsolate", "yes"),
            ("After", "sysinit.target"),
            ("Before", "sockets.target"),
        ]
    return _text(
        Unit=unit,
        Socket=[
            ("ListenSequentialPacket", f"{SYSTEM}/agent.socket"),
            ("FileDescriptorName", "agent.socket"),
            ("SocketMode", "0666"),
            ("DirectoryMode", "0755"),
            ("Backlog", "512"),
            ("RemoveOnStop", "yes"),
        ],
        Install=[("WantedBy", "sockets.target")],
    )


def _service(situation: Situation) -> str:
    luo = situation.carrier == "luo"
    return _text(
        Unit=[
            ("Description", "Keeps arenas in memory for applications (persistmem)"),
            ("Wants", SOCKET),
            ("After", SOCKET),
            *(_surviving(situation) if luo else ()),
            *_refusing_stop(situation),
            # Restarts by hand count, too; and at a limit the socket would fail with it.
            ("StartLimitIntervalSec", "0"),
        ],
        Service=[
            *_agent(situation),
            *(() if luo else _store(situation)),
            ("OOMScoreAdjust", "-900"),
            ("OOMPolicy", "continue"),
            ("RuntimeDirectoryMode", "0755"),
            *(() if luo else [("StateDirectory", "persistmem"), ("StateDirectoryMode", "0700")]),
            # It gives memfds to their owners, and opens them again; see Custodian.
            ("CapabilityBoundingSet", "CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER"),
            *_SECCOMP,
            ("SystemCallFilter", "fchown"),
            *_NAMESPACES,
            *(_places_surviving() if luo else _places(situation.program)),
        ],
        Install=[("WantedBy", "multi-user.target")],
    )


def _prepare(situation: Situation) -> str:
    patience = DEADLINE + _START_AND_ASK + (_PRESERVE if situation.carrier == "luo" else 0)
    command = _command(situation.program)
    return _text(
        Unit=[
            ("Description", "Has applications take their last snapshots before the machine goes down (persistmem)"),
            # What is started last is stopped first: before the targets, and so before all that they wanted.
            ("After", f"{SOCKET} {SERVICE} multi-user.target graphical.target"),
        ],
        Service=[
            ("Type", "oneshot"),
            ("RemainAfterExit", "yes"),
            # Over a soft reboot an agent may have stayed prepared. Failing is no reason to stop.
            ("ExecStart", f"-{command} abort"),
            ("ExecStop", f"-{command} prepare --deadline {DEADLINE}"),
            ("TimeoutStartSec", f"{_GIVE_UP}s"),
            ("TimeoutStopSec", f"{patience}s"),
            ("SyslogIdentifier", "persistmem-prepare"),
            *_environment(situation.program),
            ("CapabilityBoundingSet", "CAP_DAC_READ_SEARCH" if _reads(situation.program, _HOMES) else ""),
            *_SECCOMP,
            *_NAMESPACES,
            *_places(situation.program),
        ],
        Install=[("WantedBy", "multi-user.target")],
    )


def _user_socket() -> str:
    return _text(
        Unit=[("Description", "Where the user's agent of persistmem listens")],
        Socket=[
            ("ListenSequentialPacket", "%t/persistmem/agent.socket"),
            ("FileDescriptorName", "agent.socket"),
            ("SocketMode", "0600"),
            ("DirectoryMode", "0700"),
            ("Backlog", "512"),
            ("RemoveOnStop", "yes"),
        ],
        Install=[("WantedBy", "sockets.target")],
    )


def _user_service(situation: Situation) -> str:
    return _text(
        Unit=[
            ("Description", "Keeps arenas in memory for the user's applications (persistmem)"),
            ("Wants", SOCKET),
            ("After", SOCKET),
            *_refusing_stop(situation),
            # Restarts by hand count, too; and at a limit the socket would fail with it.
            ("StartLimitIntervalSec", "0"),
        ],
        Service=[
            *_agent(situation),
            # Not the system's, if there is one.
            ("Environment", "PERSISTMEM_RUNTIME_DIR=%t/persistmem"),
            *_store(situation),
            ("RuntimeDirectoryMode", "0700"),
            *_SECCOMP,
        ],
        Install=[("WantedBy", "default.target")],
    )


def _agent(situation: Situation) -> Iterator[tuple[str, str]]:
    yield "Type", "notify"
    yield "NotifyAccess", "main"
    yield "ExecStart", f"{_command(situation.program)} agent run --carrier {situation.carrier}"
    yield "Restart", "always"
    yield "RestartSec", "1s"
    # It takes in what was saved on disk before it serves, which takes as long as the disk does.
    yield "TimeoutStartSec", "infinity"
    yield "TimeoutStopSec", "5s" if situation.carrier == "luo" else "30s"
    # Longer than preserving may take, which is one step.
    yield "WatchdogSec", f"{2 * _PRESERVE}s" if situation.carrier == "luo" else "3min"
    yield "LimitNOFILE", "8192"
    yield "SyslogIdentifier", "persistmem"
    yield from _environment(situation.program)
    yield "RuntimeDirectory", "persistmem"
    yield "RuntimeDirectoryPreserve", "yes"


def _store(situation: Situation) -> Iterator[tuple[str, str]]:
    yield "FileDescriptorStoreMax", _STORE_MAX
    if situation.version >= PRESERVE_VERSION:
        yield "FileDescriptorStorePreserve", "yes"
    else:
        # From that version on systemd says so itself.
        yield "Environment", f"FDSTORE={_STORE_MAX}"


def _surviving(situation: Situation) -> Iterator[tuple[str, str]]:
    """What keeps an agent alive until the kexec, or over a soft reboot (source)."""
    yield "DefaultDependencies", "no"
    yield "IgnoreOnIsolate", "yes"
    if situation.version >= SURVIVE_VERSION:
        yield "SurviveFinalKillSignal", "yes"
    yield "After", "basic.target"
    # Not kexec.target, for it holds the memory until the jump; not rescue.target, for that is no reason to lose it.
    yield "Conflicts", "reboot.target poweroff.target halt.target"
    yield "Before", "shutdown.target"


def _refusing_stop(situation: Situation) -> Iterator[tuple[str, str]]:
    """Where stopping it by hand would lose what it keeps: 'persistmem agent stop' asks first."""
    if situation.carrier == "luo" or situation.version < PRESERVE_VERSION:
        yield "RefuseManualStop", "yes"


def _places(program: Program) -> Iterator[tuple[str, str]]:
    yield "ProtectSystem", "strict"
    yield "ProtectHome", "read-only" if _reads(program, _HOMES) else "yes"
    if not _reads(program, _TEMPORARY):
        yield "PrivateTmp", "yes"
    yield "PrivateDevices", "yes"


def _places_surviving() -> Iterator[tuple[str, str]]:
    """As :func:`_places`, for a process that stays when file systems are unmounted.

    Nothing may be mounted over another file system than the root's, nor required of one: a mount on a mount keeps the
    latter busy (seen), and a service that requires one is stopped with it. So no StateDirectory=, no PrivateTmp=.
    """
    yield "ProtectSystem", "full"
    yield "ProtectHome", "read-only"
    yield "DevicePolicy", "closed"
    yield "DeviceAllow", "/dev/liveupdate rw"


def _reads(program: Program, directories: Iterable[Path]) -> bool:
    return any(place.is_relative_to(directory) for place in program.places for directory in directories)


def _command(program: Program) -> str:
    if set(str(program.python)) & set("\"'\\"):
        raise ArgumentError(f"systemd runs no {program.python}: use an interpreter without quotes or backslashes")
    return f"{quote(str(program.python))} -P -m persistmem"


def _environment(program: Program) -> Iterator[tuple[str, str]]:
    if program.module_path is not None:
        yield "Environment", quote(f"PYTHONPATH={program.module_path}")


def _text(**sections: _Settings) -> str:
    lines = [
        f"{MARKER}, and removed by 'persistmem agent uninstall'.",
        "# Put changes into a drop-in (systemctl edit): what is changed here is lost when it is installed again.",
    ]
    for name, settings in sections.items():
        lines += ["", f"[{name}]", *(f"{key}={value}" for key, value in settings)]
    return "\n".join(lines) + "\n"
