"""``persistmem agent start``, ``stop`` and ``run``: the process that keeps the arenas."""
# ruff: noqa: PLC0415 - --help must be fast: what a function needs is imported when it runs

import math
from typing import Annotated

import typer


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


def run() -> None:
    """Run the agent in the foreground, logging to stderr.

    For a service manager. It does not end by itself; it ends on SIGTERM, unless it
    keeps arenas.
    """
    from persistmem.agent.command import Settings
    from persistmem.agent.paths import RuntimeDirectory
    from persistmem.agent.process import run as run_agent

    run_agent(Settings(RuntimeDirectory.of_user(), idle=math.inf))
