"""``persistmem status`` and ``doctor``: who carries the arenas, and through what."""
# ruff: noqa: PLC0415 - --help must be fast: what a function needs is imported when it runs

from contextlib import suppress
from pathlib import Path
from typing import Final

import typer

from persistmem.cli.arguments import JsonOption

_PHASES: Final = {
    "serving": "no kexec is prepared",
    "preparing": "a kexec is being prepared",
    "prepared": "prepared: everything crosses the next kexec; 'persistmem abort' takes that back",
}


def status(as_json: JsonOption = False) -> None:
    """Say who keeps the arenas, if an agent runs. Starts none.

    --json prints an object with the keys running and runtime_dir, and, if one runs,
    pid, boot, kernel, carrier, phase (serving, preparing or prepared), saved (a
    directory), arenas, size (bytes), huge (bytes of your arenas in huge folios, or null), missing,
    connections and handovers.
    """
    from persistmem.agent.paths import RuntimeDirectory
    from persistmem.attachment import agent_status
    from persistmem.cli.output import say, say_json
    from persistmem.sizes import format_size

    found, runtime = agent_status(), str(RuntimeDirectory.of_user().path)
    if as_json:
        about = {} if found is None else {
            "pid": found.pid,
            "boot": str(found.boot),
            "kernel": found.kernel,
            "carrier": found.carrier,
            "phase": found.phase,
            "saved": found.saved,
            "arenas": found.arenas,
            "size": found.size,
            "huge": _huge_bytes(),
            "missing": found.missing,
            "connections": found.connections,
            "handovers": found.handovers,
        }  # fmt: skip
        say_json({"running": found is not None, "runtime_dir": runtime, **about})
    elif found is None:
        say("agent      none runs; the first snapshot starts one")
        say(f"in         {runtime}")
    else:
        say(f"agent      pid {found.pid}")
        say(f"in         {runtime}")
        say(f"carrier    {found.carrier}, {_PHASES[found.phase]}")
        say(f"kernel     {found.kernel}, boot {found.boot}")
        missing = f"; {found.missing} not handed back after an agent was killed" if found.missing else ""
        say(f"arenas     {found.arenas}, {format_size(found.size)}{missing}")
        huge = _huge_bytes()
        how_many = "this kernel does not say how much of yours is" if huge is None else f"{format_size(huge)} of yours"
        say(f"folios     {how_many} in huge ones")
        say(f"handovers  {found.handovers}")


def _huge_bytes() -> int | None:
    """Return how much of the user's arenas lies in huge folios; None if the kernel does not say."""
    from persistmem.attachment import attach, list_arenas
    from persistmem.errors import NotFoundError

    total = 0
    for record in list_arenas():
        with suppress(NotFoundError), attach(record.name) as arena:  # it may have been dropped just now
            if (huge := arena.huge_bytes()) is None:
                return None
            total += huge
    return total


def doctor(as_json: JsonOption = False) -> None:
    """Say what this machine lacks to survive a kexec.

    The exit status is 1 only if arenas cannot be kept here at all. Where the kernel
    has no live update, the simulator is used: arenas outlive processes and
    simulated kernel upgrades, and end with the machine's next reboot.

    --json prints an object with the keys ok, survives_kexec and checks: a list of
    objects with name, ok, needed_for (what lacks without it), found, needed and
    mend.
    """
    from persistmem.agent.paths import RuntimeDirectory
    from persistmem.attachment import agent_status
    from persistmem.cli.doctor import examine, survives_kexec, works
    from persistmem.cli.doctor.machine import Machine
    from persistmem.cli.output import say, say_json
    from persistmem.errors import Error

    runtime = RuntimeDirectory.of_user()
    try:
        agent = agent_status()
    except Error:
        agent = None  # whatever ails it, a check says so
    results = examine(Machine(Path("/"), runtime, agent))
    if as_json:
        say_json(
            {
                "ok": works(results),
                "survives_kexec": survives_kexec(results),
                "checks": [
                    {
                        "name": check.name,
                        "ok": finding.ok,
                        "needed_for": check.needed_for,
                        "found": finding.found,
                        "needed": finding.needed,
                        "mend": None if finding.ok else finding.mend,
                    }
                    for check, finding in results
                ],
            }
        )
    else:
        for check, finding in results:
            level = "ok  " if finding.ok else "slow" if check.needed_for == "speed" else "lack"
            say(f"{level}  {check.name}: {finding.found}")
            if not finding.ok:
                say(f"      needed: {finding.needed}")
                say(f"      to mend it: {finding.mend}")
        say()
        say(_verdict(works=works(results), survives=survives_kexec(results)))
    if not works(results):
        raise typer.Exit(1)


def _verdict(*, works: bool, survives: bool) -> str:
    if not works:
        return "Arenas cannot be kept on this machine as it is."
    if survives:
        return "This machine has what it takes to carry arenas across a kexec."
    return (
        "Arenas work here, through a simulated kernel: they outlive processes and 'persistmem reboot --simulate',"
        " and end when the machine reboots."
    )
