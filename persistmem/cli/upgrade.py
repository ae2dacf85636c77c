"""``persistmem reboot``, ``prepare``, ``abort`` and ``save``: the way to the next kernel, and back from it."""
# ruff: noqa: PLC0415 - --help must be fast: what a function needs is imported when it runs

from pathlib import Path
from typing import Annotated, Final

import typer

from persistmem.cli.arguments import JsonOption
from persistmem.cli.preflight import RunningOption

_DEADLINE: Final = 10.0

DeadlineOption = Annotated[
    float,
    typer.Option(
        "--deadline",
        min=0,
        max=3600,
        metavar="SECONDS",
        help="How long applications may take for their last snapshots.",
    ),
]


def reboot(
    *,
    simulate: Annotated[bool, typer.Option("--simulate", help="Simulate it: the machine goes on running.")] = False,
    kexec: Annotated[
        Path | None,
        typer.Option("--kexec", metavar="KERNEL", help="Kexec into this kernel image.", show_default=False),
    ] = None,
    initrd: Annotated[
        Path | None, typer.Option("--initrd", metavar="FILE", help="With --kexec: its initrd.", show_default=False)
    ] = None,
    reuse_cmdline: Annotated[
        bool, typer.Option("--reuse-cmdline", help="With --kexec: start it with this kernel's command line.")
    ] = False,
    command_line: Annotated[
        str | None,
        typer.Option(
            "--command-line", metavar="TEXT", help="With --kexec: start it with this command line.", show_default=False
        ),
    ] = None,
    running: RunningOption = None,
    memory_only: Annotated[
        bool, typer.Option("--memory-only", help="With --kexec: refuse if arenas would have to go by the disk.")
    ] = False,
    deadline: DeadlineOption = _DEADLINE,
    release: Annotated[
        str | None,
        typer.Option(
            "--release",
            help="With --simulate: what the next kernel is called; made up if you do not say.",
            show_default=False,
        ),
    ] = None,
    incompatible: Annotated[
        bool,
        typer.Option(
            "--incompatible", help="With --simulate: to a kernel with another live-update ABI, which takes nothing."
        ),
    ] = False,
) -> None:
    """Go to the next kernel, and take every arena along.

    With --kexec it looks before it jumps, as 'persistmem preflight' does. Applications
    take their last snapshots; then memory is preserved. Where it would not survive,
    arenas are saved on disk and come back from there, and a kernel that would panic is
    started with kho=off. Whatever fails, everything done before is undone, and this
    kernel goes on. It stops no service, and unmounts nothing.

    With --simulate the agent's process is replaced, and the arenas' memory crosses as it
    would cross a kexec. Who had an arena attached has to attach it again. The exit status
    is 1 if something was lost.
    """
    if simulate == (kexec is not None):
        raise typer.BadParameter("say one of --simulate and --kexec KERNEL")
    for given, option, wants in (
        (initrd is not None, "--initrd", not simulate),
        (reuse_cmdline, "--reuse-cmdline", not simulate),
        (command_line is not None, "--command-line", not simulate),
        (running is not None, "--running", not simulate),
        (memory_only, "--memory-only", not simulate),
        (release is not None, "--release", simulate),
        (incompatible, "--incompatible", simulate),
    ):
        if given and not wants:
            raise typer.BadParameter(f"{option} is for {'--kexec' if simulate else '--simulate'}")
    if kexec is None:
        _simulate(release, deadline, compatible=not incompatible)
        return
    if reuse_cmdline == (command_line is not None):
        raise typer.BadParameter("say how to start it: one of --reuse-cmdline and --command-line TEXT")
    _kexec(kexec, initrd, command_line, running, deadline, memory_only=memory_only)


def save(
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            metavar="DIR",
            help="Where to; otherwise to where the next boot's agent takes them in again.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Save every arena on disk: for a full reboot, or one that memory does not survive.

    Each is checked, and written as a whole or not at all. The next boot's agent takes
    them in before it serves, once; never in place of one that came through memory. What
    was written to DIR is taken in by an agent that runs with --saved DIR.

    --json prints a list of objects with the keys arena, uid, uuid, size, written (bytes
    on disk) and damage (what in it fails its check, or an empty string).
    """
    from persistmem.cli.output import say_json
    from persistmem.cli.telling import Progress, tell_saved
    from persistmem.upgrade import save as save_arenas

    with Progress() as progress:
        arenas = save_arenas(to, progress)
    if as_json:
        say_json(
            [
                {
                    "arena": arena.saved.record.name,
                    "uid": arena.saved.record.uid,
                    "uuid": str(arena.saved.record.uuid),
                    "size": arena.saved.record.size,
                    "written": arena.saved.written,
                    "damage": arena.damage,
                }
                for arena in arenas
            ]
        )
    else:
        tell_saved(arenas)


def prepare(deadline: DeadlineOption = _DEADLINE, as_json: JsonOption = False) -> None:
    """Make every arena ready to cross a kexec that comes by other means.

    Applications take their last snapshots; then all memory is preserved. Arenas stay
    readable and writable, and what is written still crosses; none can be made or
    removed until 'persistmem abort'. The agent must run until the kexec, unless its
    service manager carries the arenas; 'persistmem history' counts from here on.

    --json prints an object with the keys arenas, size (bytes), applications (how many
    were told), unready (how many of them failed, or took too long), waited and preserve
    (seconds).
    """
    from persistmem.cli.output import say_json, working
    from persistmem.cli.telling import tell_prepared
    from persistmem.upgrade import prepare as prepare_arenas

    with working("preparing"):
        prepared = prepare_arenas(deadline)
    if as_json:
        say_json(prepared._asdict())
    else:
        tell_prepared(prepared, through_memory=True)


def abort() -> None:
    """Take 'persistmem prepare' back: nothing crosses the next kexec.

    What an agent with --preserve eager preserves stays preserved.
    """
    from persistmem.cli.output import note
    from persistmem.upgrade import abort as abort_preparation

    note("nothing is prepared any more" if abort_preparation() else "nothing was prepared")


def _simulate(release: str | None, deadline: float, *, compatible: bool) -> None:
    from persistmem.attachment import simulate_reboot
    from persistmem.cli.output import working
    from persistmem.cli.telling import tell_handover

    with working("rebooting"):
        handover = simulate_reboot(release, compatible=compatible, deadline=deadline)
    tell_handover(handover, simulated=True)
    if handover.lost_count:
        raise typer.Exit(1)


def _kexec(
    kernel: Path,
    initrd: Path | None,
    command_line: str | None,
    running: Path | None,
    deadline: float,
    *,
    memory_only: bool,
) -> None:
    from persistmem.cli.output import say
    from persistmem.cli.telling import Progress
    from persistmem.errors import RefusedError
    from persistmem.liveupdate.preflight import (
        RunningKernel,
        Verdict,
        judge,
        read_following,
        reuse,
        without_handover,
    )
    from persistmem.upgrade import NextKernel, leave

    if command_line is None:
        command_line = reuse(Path("/proc/cmdline").read_text("ascii", "replace"))
    here, following = RunningKernel.read(Path("/"), running), read_following(kernel)
    found = judge(here, following, command_line)
    survives = found.verdict is Verdict.SURVIVES
    if memory_only and not survives:
        raise RefusedError(f"{following.release}: {found.why}; without --memory-only arenas go by the disk")
    say(f"kernel     {here.release} -> {following.release}: state {'survives' if survives else 'goes by the disk'}")
    if not survives:
        say(f"because    {found.why}")
    if found.verdict in (Verdict.PANIC, Verdict.UNKNOWN):
        command_line = without_handover(command_line)
        say("so         it is started with kho=off")
    with Progress() as progress:
        leave(
            NextKernel(kernel, initrd, command_line),
            deadline=deadline,
            through_memory=survives,
            or_by_disk=not memory_only,
            observer=progress,
        )
