"""``persistmem agent start``, ``stop`` and ``run``: the process that keeps the arenas."""
# ruff: noqa: PLC0415 - --help must be fast: what a function needs is imported when it runs

import enum
import math
from pathlib import Path
from typing import Annotated

import typer

from persistmem.cli.arguments import parse_size_option


class Carrier(enum.Enum):
    """What ``agent run --carrier`` takes."""

    SIMULATED = "simulated"
    LUO = "luo"


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
    """Stop the agent. It refuses while it keeps arenas."""
    from persistmem.attachment import stop_agent
    from persistmem.cli.output import note

    note("the agent has ended" if stop_agent(discard=discard) else "no agent runs")


def run(
    carrier: Annotated[
        Carrier,
        typer.Option(
            "--carrier",
            help="What takes arenas to the next kernel: a simulated kernel, for one user; or the live-update device of"
            " the real one, as root, for everybody.",
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

    For a service manager. It does not end by itself; it ends on SIGTERM, unless it
    keeps arenas.

    With --carrier luo it is the system's: it runs as root, holds /dev/liveupdate,
    and serves every user in /run/persistmem. When it starts it takes over what the
    last kernel handed over, and what was saved on disk.
    """
    from persistmem.agent.command import Settings
    from persistmem.agent.kernel import KernelSettings, half_of_memory
    from persistmem.agent.paths import RuntimeDirectory, state_directory
    from persistmem.agent.process import run as run_agent
    from persistmem.agent.process import run_system

    saved = saved.absolute() if saved else state_directory() / "saved"
    if carrier is Carrier.LUO:
        settings = KernelSettings("luo", preserve.value, quota or half_of_memory())
        run_system(Settings(RuntimeDirectory.of_system(), math.inf, saved), settings, state_directory() / "agent.state")
    elif preserve is When.EAGER or quota is not None:
        raise typer.BadParameter("--preserve and --quota are for --carrier luo")
    else:
        run_agent(Settings(RuntimeDirectory.of_user(), math.inf, saved))
