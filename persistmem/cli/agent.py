"""``persistmem agent start``, ``stop``, ``run``, ``install`` and ``uninstall``: the process that keeps the arenas."""
# ruff: noqa: PLC0415 - --help must be fast: what a function needs is imported when it runs

import enum
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from persistmem.cli.arguments import parse_size_option

if TYPE_CHECKING:
    from persistmem.agent.client import Connection
    from persistmem.agent.install import Place, Systemctl
    from persistmem.agent.paths import RuntimeDirectory
    from persistmem.agent.units import Carrier as ServiceCarrier


class Carrier(enum.Enum):
    """What ``agent run --carrier`` takes."""

    SIMULATED = "simulated"
    LUO = "luo"
    SYSTEMD = "systemd"


class InstalledCarrier(enum.Enum):
    """What ``agent install --carrier`` takes."""

    LUO = "luo"
    SYSTEMD = "systemd"


class When(enum.Enum):
    """What ``agent run --preserve`` takes."""

    LATE = "late"
    EAGER = "eager"


def start() -> None:
    """Start an agent in the background, if none runs.

    Commands that need one do so by themselves. It ends when it has kept nothing for
    ten minutes.
    """
    from persistmem.attachment import start_agent
    from persistmem.cli.output import counted, note

    status = start_agent()
    note(f"the agent runs: pid {status.pid}, kernel {status.kernel}, {counted(status.arenas, 'arena')}")


def stop(
    discard: Annotated[bool, typer.Option("--discard", help="Even if it keeps arenas. They are lost.")] = False,
) -> None:
    """Stop the agent. It refuses while it keeps arenas that would end with it.

    One that systemd runs is started again at once; 'persistmem agent uninstall' ends
    that.
    """
    from persistmem.attachment import stop_agent
    from persistmem.cli.output import note

    note("the agent has ended" if stop_agent(discard=discard) else "no agent runs")


def run(
    carrier: Annotated[
        Carrier,
        typer.Option(
            "--carrier",
            help="What takes arenas to the next kernel: a simulated kernel, for one user; the live-update device of the"
            " real one, as root, for everybody; or systemd's file descriptor store, for a service.",
        ),
    ] = Carrier.SIMULATED,
    preserve: Annotated[
        When,
        typer.Option(
            "--preserve",
            help="late: when a kexec is prepared, which takes a walk over all of the memory. eager: as soon as an"
            " arena is made, which fills its holes at once; then it crosses even a kexec that nobody prepared.",
        ),
    ] = When.LATE,
    quota: Annotated[
        int | None,
        typer.Option(
            "--quota",
            parser=parse_size_option,
            metavar="SIZE",
            help="The most that the arenas of one user other than root may have. Half of the memory, if you do not"
            " say.",
            show_default=False,
        ),
    ] = None,
    saved: Annotated[
        Path | None,
        typer.Option(
            "--saved",
            metavar="DIR",
            help="From where to take in what was saved before the last reboot. Otherwise from where 'persistmem save'"
            " puts it.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run the agent in the foreground, logging to stderr.

    For a service manager; 'persistmem agent install' has systemd run it. It does not end
    by itself; it ends on SIGTERM, unless it keeps arenas that would end with it.

    With --carrier luo it is the system's: it runs as root, holds /dev/liveupdate,
    and serves every user in /run/persistmem. With --carrier systemd it is the system's
    if root runs it, otherwise the user's; the service manager keeps the arenas. When it
    starts it takes over what the last kernel handed over, and what was saved on disk.
    """
    from persistmem.agent.command import Settings
    from persistmem.agent.kernel import KernelSettings, half_of_memory
    from persistmem.agent.paths import RuntimeDirectory, state_directory
    from persistmem.agent.process import run as run_agent
    from persistmem.agent.process import run_system

    if carrier is not Carrier.LUO and preserve is When.EAGER:
        raise typer.BadParameter("--preserve is for --carrier luo")
    if carrier is Carrier.SIMULATED and quota is not None:
        raise typer.BadParameter("--quota is for --carrier luo and systemd")
    saved = saved.absolute() if saved else state_directory() / "saved"
    if carrier is Carrier.SIMULATED:
        run_agent(Settings(RuntimeDirectory.of_user(), math.inf, saved))
        return
    if carrier is Carrier.LUO or os.geteuid() == 0:
        runtime, state = RuntimeDirectory.of_system(), state_directory() / "agent.state"
    else:
        runtime = RuntimeDirectory.of_own()
        state = runtime.state
    settings = KernelSettings("luo" if carrier is Carrier.LUO else "systemd", preserve.value, quota or half_of_memory())
    run_system(Settings(runtime, math.inf, saved), settings, state)


UserOption = Annotated[
    bool, typer.Option("--user", help="An agent of your own, run by your own service manager; not the system's.")
]


def install(
    user: UserOption = False,
    carrier: Annotated[
        InstalledCarrier | None,
        typer.Option(
            "--carrier",
            help="What takes arenas to the next kernel: systemd's file descriptor store, or the live-update device. The"
            " store from systemd 261 on, if you do not say; before that the device, if there is one.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Have systemd run the agent, now and from every boot on.

    Writes persistmem.socket, persistmem.service and persistmem-prepare.service to
    /etc/systemd/system (with --user the first two, to ~/.config/systemd/user), starts
    them, and says each step. The last has applications take their last snapshots before
    the machine goes down. Files that it did not write itself it leaves alone.

    Run it again after an upgrade of persistmem or of systemd.
    """
    from persistmem.agent.install import find_program, systemd_version
    from persistmem.agent.install import install as install_units
    from persistmem.agent.units import Situation, caveats, default_carrier, units
    from persistmem.cli.output import note

    if user and carrier is InstalledCarrier.LUO:
        raise typer.BadParameter("--carrier luo is for the system's agent: the live-update device is root's")
    place, systemctl = _place(user=user)
    version = systemd_version(systemctl)
    chosen: ServiceCarrier
    if carrier is not None:
        chosen = "luo" if carrier is InstalledCarrier.LUO else "systemd"
    else:
        chosen = default_carrier(version, has_device=not user and _DEVICE.exists())
    situation = Situation(find_program(), version, chosen, user)
    connection = _connection(place, systemctl)
    if connection is not None:
        _refuse_to_change(connection, chosen)
    install_units(place, units(situation), systemctl, note)
    for caveat in caveats(situation):
        note(caveat)


def uninstall(
    user: UserOption = False,
    discard: Annotated[bool, typer.Option("--discard", help="Even if it keeps arenas. They are lost.")] = False,
) -> None:
    """Undo 'persistmem agent install'.

    Stops the agent, removes the units, and says each step. It refuses while the agent
    keeps arenas, for they end with its service. What was saved on disk stays there.
    """
    from persistmem.agent.install import uninstall as uninstall_units
    from persistmem.agent.protocol import Stop, Stopping
    from persistmem.cli.output import note
    from persistmem.errors import AgentError

    place, systemctl = _place(user=user)
    try:
        connection = _connection(place, systemctl)
        if not discard:
            _refuse_to_lose(connection, systemctl)
    except AgentError:
        if not discard:
            raise
        connection = None

    def end() -> None:
        if connection is not None:
            with suppress(AgentError):  # then systemctl stops it
                connection.ask(Stop(discard), Stopping)

    uninstall_units(place, systemctl, note, end, discard=discard)


_DEVICE: Final = Path("/dev/liveupdate")
_BOOTED: Final = Path("/run/systemd/system")


def _place(*, user: bool) -> "tuple[Place, Systemctl]":
    from persistmem.agent.install import Place, systemctl_of

    place = Place.choose(of_user=user, uid=os.geteuid(), booted=_BOOTED.is_dir(), environment=os.environ)
    return place, systemctl_of(place)


def _connection(place: "Place", systemctl: "Systemctl") -> "Connection | None":
    """Return a connection to the agent there, which the service manager runs; None if there is none."""
    from persistmem.agent.holder import holder_of
    from persistmem.agent.install import main_process
    from persistmem.errors import RefusedError

    if not _listens(place.runtime):
        return None
    connection = holder_of(place.runtime).connection(start=False)
    if connection is not None and connection.welcome.pid != main_process(systemctl):
        raise RefusedError(
            f"an agent runs in {place.runtime.path} that systemd did not start, process {connection.welcome.pid}: end"
            " it first ('persistmem agent stop'); 'persistmem save' takes its arenas along"
        )
    return connection


def _refuse_to_change(connection: "Connection", carrier: str) -> None:
    from persistmem.agent.protocol import AskStatus, Status
    from persistmem.cli.output import counted
    from persistmem.errors import RefusedError

    status, _ = connection.ask(AskStatus(), Status)
    if status.arenas and not status.carrier.startswith(carrier):
        raise RefusedError(
            f"the agent keeps {counted(status.arenas, 'arena')} by its carrier {status.carrier}, and its next start"
            f" would lose them under {carrier}. Take them along by 'persistmem save', then 'persistmem agent uninstall"
            f" --discard', and install it again; or stay with --carrier {status.carrier.partition(' ')[0]}"
        )


def _refuse_to_lose(connection: "Connection | None", systemctl: "Systemctl") -> None:
    from persistmem.agent.install import stored
    from persistmem.agent.protocol import AskStatus, Status
    from persistmem.cli.output import counted
    from persistmem.errors import RefusedError

    if connection is not None and (count := connection.ask(AskStatus(), Status)[0].arenas):
        raise RefusedError(
            f"the agent keeps {counted(count, 'arena')}, which would end with its service; take them along by"
            " 'persistmem save', drop them, or uninstall with --discard"
        )
    if count := stored(systemctl):
        raise RefusedError(
            f"systemd keeps {counted(count, 'arena')} for the agent, which gives out none of them: 'systemctl start"
            " persistmem.socket' if it does not run, 'systemctl status persistmem.service' for why; or uninstall with"
            " --discard"
        )


def _listens(runtime: "RuntimeDirectory") -> bool:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            with runtime.socket_address() as address:
                probe.connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True
