"""``persistmem status`` and ``doctor``: who carries the arenas, and through what."""
# ruff: noqa: PLC0415 - --help must be fast: what a function needs is imported when it runs

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from persistmem.cli.arguments import JsonOption

if TYPE_CHECKING:
    from persistmem.agent.protocol import Status

_PHASES: Final = {
    "serving": "no kexec is prepared",
    "preparing": "a kexec is being prepared",
    "prepared": "prepared: everything crosses the next kexec; 'persistmem abort' takes that back",
}


def status(as_json: JsonOption = False) -> None:
    """Say who keeps the arenas, and why it is that one. Starts no agent.

    --json prints an object with the keys chosen (systemd, system or user), why, running
    (whether an agent runs) and runtime_dir. If an agent is chosen, and runs, there are
    pid, boot, kernel, carrier, phase (serving, preparing or prepared), saved (a
    directory), arenas, size (bytes), huge (bytes of your arenas in huge folios, or
    null), missing, connections and handovers. In a service whose manager keeps its
    arenas there are unit, store_max, stored and preserve (null where the manager cannot
    be asked), kernel, arenas, size and huge.
    """
    from persistmem.attachment import agent_status
    from persistmem.choice import choose
    from persistmem.cli.output import say, say_json

    choice = choose()
    about: dict[str, object]
    if choice.carrier == "systemd":
        running, about, lines = False, *_service_status()
    else:
        found = agent_status()
        running = found is not None
        about, lines = _agent_status(found) if found is not None else ({}, _NO_AGENT)
    runtime = str(choice.runtime().path)
    if as_json:
        say_json({"chosen": choice.carrier, "why": choice.why, "running": running, "runtime_dir": runtime, **about})
    else:
        say(f"chosen     {choice.carrier}: {choice.why}")
        if choice.carrier != "systemd":
            say(f"in         {runtime}")
        for line in lines:
            say(line)


_NO_AGENT: Final = ["agent      none runs; the first snapshot starts one"]


def _agent_status(found: "Status") -> tuple[dict[str, object], list[str]]:
    from persistmem.sizes import format_size

    huge = _huge_bytes()
    about: dict[str, object] = {
        "pid": found.pid,
        "boot": str(found.boot),
        "kernel": found.kernel,
        "carrier": found.carrier,
        "phase": found.phase,
        "saved": found.saved,
        "arenas": found.arenas,
        "size": found.size,
        "huge": huge,
        "missing": found.missing,
        "connections": found.connections,
        "handovers": found.handovers,
    }
    missing = f"; {found.missing} not handed back after an agent was killed" if found.missing else ""
    return about, [
        f"agent      pid {found.pid}",
        f"carrier    {found.carrier}, {_PHASES[found.phase]}",
        f"kernel     {found.kernel}, boot {found.boot}",
        f"arenas     {found.arenas}, {format_size(found.size)}{missing}",
        _huge_line(huge),
        f"handovers  {found.handovers}",
    ]


def _service_status() -> tuple[dict[str, object], list[str]]:
    from persistmem.attachment import list_arenas
    from persistmem.carriers.systemd import missing_preservation
    from persistmem.carriers.unit import Unit
    from persistmem.sizes import format_size

    unit, arenas, huge = Unit.of_process(), list_arenas(), _huge_bytes()
    size, kernel = sum(record.size for record in arenas), os.uname().release
    about: dict[str, object] = {
        "unit": unit and unit.name,
        "store_max": unit and unit.store_max,
        "stored": unit and unit.stored,
        "preserve": unit and unit.preserve,
        "kernel": kernel,
        "arenas": len(arenas),
        "size": size,
        "huge": huge,
    }
    store = ["unit       not known: systemctl does not say"]
    if unit is not None:
        kept = missing_preservation(unit) or "kept while the service is stopped, and over a kexec if systemd can (v261)"
        store = [f"unit       {unit.name}", f"store      {unit.stored} of {unit.store_max} in use; {kept}"]
    return about, [
        *store,
        f"kernel     {kernel}",
        f"arenas     {len(arenas)}, {format_size(size)}",
        _huge_line(huge),
    ]


def _huge_line(huge: int | None) -> str:
    from persistmem.sizes import format_size

    how_many = "this kernel does not say how much of yours is" if huge is None else f"{format_size(huge)} of yours"
    return f"folios     {how_many} in huge ones"


def _huge_bytes() -> int | None:
    """Return how much of the user's arenas lies in huge folios; None if the kernel does not say."""
    from persistmem.attachment import attach, list_arenas
    from persistmem.errors import CorruptError, NewerFormatError, NotFoundError

    total = 0
    for record in list_arenas():
        # It may have been dropped just now; and what is damaged is for 'persistmem verify' to tell.
        with suppress(NotFoundError, CorruptError, NewerFormatError), attach(record.name) as arena:
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
    from persistmem.cache.compiled import COMPILED
    from persistmem.cli.doctor import examine, survives_kexec, works
    from persistmem.cli.doctor.machine import Machine
    from persistmem.cli.output import say, say_json
    from persistmem.errors import Error

    runtime = RuntimeDirectory.of_user()
    try:
        agent = agent_status()
    except Error:
        agent = None  # whatever ails it, a check says so
    results = examine(Machine(Path("/"), runtime, agent, COMPILED is not None))
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
