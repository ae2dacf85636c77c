"""``persistmem ls`` and ``history``: what there is. Reads; changes nothing."""
# ruff: noqa: PLC0415 - --help must be fast: what a function needs is imported when it runs

from typing import TYPE_CHECKING, Annotated, Final

import typer

from persistmem.cli.arguments import JsonOption, OptionalName, complete_arena, parse_arena

if TYPE_CHECKING:
    from persistmem.agent.records import ArenaRecord
    from persistmem.arena import Generation
    from persistmem.cli.output import Json


_ARENA_HEADING: Final = ("ARENA", "SIZE", "CREATED", "CARRIED FROM")
_HANDOVER_NUMBERS: Final = (
    *("number", "kernel_from", "kernel_to", "arenas", "saved", "size", "preserve", "dark", "boot", "retrieve"),
    "lost_count",
)


def ls(
    arena: Annotated[
        str | None,
        typer.Argument(
            parser=parse_arena,
            metavar="ARENA",
            autocompletion=complete_arena,
            help="List what is in this arena.",
            show_default=False,
        ),
    ] = None,
    all_users: Annotated[
        bool, typer.Option("--all-users", help="Everybody's arenas, as the one who administers the agent.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the arenas, or what is in one.

    --json prints a list of objects. Arenas have the keys arena, uuid, size, created
    and carried_from (a kernel release, or null), and with --all-users uid. What is in
    an arena has name, kind (snapshot or region) and size; snapshots have generations
    too, as 'history' prints them. Sizes are in bytes, times in ISO 8601.
    """
    if arena is not None and all_users:
        raise typer.BadParameter("--all-users lists arenas: leave out ARENA")
    if arena is not None:
        _list_contents(arena, as_json=as_json)
    elif all_users:
        _list_all_arenas(as_json=as_json)
    else:
        _list_arenas(as_json=as_json)


def history(name: OptionalName = None, as_json: JsonOption = False) -> None:
    """List the generations of a snapshot, newest first; without NAME, how the arenas went from kernel to kernel.

    --json prints a list of objects with the keys generation, created, kernel, size
    (bytes; generations may share them) and buffers. Without NAME they are handovers,
    with the keys number, kernel_from, kernel_to, left, arenas, saved (how many came by
    the disk), size, preserve, dark, boot, retrieve (seconds), lost and lost_count.
    """
    from persistmem.cli.keeper import open_arena
    from persistmem.cli.output import moment, say_json, say_table
    from persistmem.sizes import format_size

    if name is None:
        _list_handovers(as_json=as_json)
        return
    with open_arena(name.arena) as arena:
        generations = arena.history(name.snapshot)
    if as_json:
        say_json([generation_json(generation) for generation in generations])
        return
    say_table(
        ["GENERATION", "CREATED", "SIZE", "KERNEL"],
        [[str(g.number), moment(g.created), format_size(g.size), g.kernel] for g in generations],
    )


def _list_handovers(*, as_json: bool) -> None:
    from persistmem.attachment import agent_status, list_handovers
    from persistmem.cli.output import note, say, say_json
    from persistmem.cli.telling import tell_handover

    handovers, status = list_handovers(), agent_status()
    simulated = status is not None and "simulated" in status.carrier
    if as_json:
        say_json(
            [
                {
                    **{field: getattr(handover, field) for field in _HANDOVER_NUMBERS},
                    "left": handover.left.isoformat() if handover.left else None,
                    "lost": [{"arena": loss.name, "uid": loss.uid, "why": loss.why} for loss in handover.lost],
                }
                for handover in handovers
            ]
        )
    elif not handovers:
        note("no handovers: the arenas have been in one kernel all the time")
    for position, handover in enumerate(() if as_json else reversed(handovers)):
        if position:
            say()
        tell_handover(handover, simulated=simulated)


def generation_json(generation: "Generation") -> "Json":
    """Return one generation for scripts."""
    return {
        "generation": generation.number,
        "created": generation.created.isoformat(),
        "kernel": generation.kernel,
        "size": generation.size,
        "buffers": generation.buffers,
    }


def _list_arenas(*, as_json: bool) -> None:
    from persistmem.attachment import list_arenas
    from persistmem.cli.output import note, say_json, say_table

    records = list_arenas()
    if as_json:
        say_json([_arena_json(record) for record in records])
    elif records:
        say_table([*_ARENA_HEADING], [_arena_row(record) for record in records])
    else:
        note("no arenas; 'persistmem snapshot NAME FILE' makes one")


def _list_all_arenas(*, as_json: bool) -> None:
    from persistmem.administration import list_all_arenas
    from persistmem.cli.output import note, say_json, say_table

    records = list_all_arenas()
    if as_json:
        say_json([{"uid": record.uid, **_arena_json(record)} for record in records])
    elif records:
        say_table(["USER", *_ARENA_HEADING], [[_user(record.uid), *_arena_row(record)] for record in records])
    else:
        note("no arenas of anybody")


def _arena_json(record: "ArenaRecord") -> "Json":
    return {
        "arena": record.name,
        "uuid": str(record.uuid),
        "size": record.size,
        "created": record.created.isoformat(),
        "carried_from": record.kernel_from,
    }


def _arena_row(record: "ArenaRecord") -> list[str]:
    from persistmem.cli.output import moment
    from persistmem.sizes import format_size

    return [record.name, format_size(record.size), moment(record.created), record.kernel_from or "-"]


def _user(uid: int) -> str:
    from pwd import getpwuid

    try:
        return getpwuid(uid).pw_name
    except KeyError:  # it has none, or no longer
        return str(uid)


def _list_contents(name: str, *, as_json: bool) -> None:
    from persistmem.cli.keeper import open_arena
    from persistmem.cli.output import moment, note, say_json, say_table
    from persistmem.sizes import format_size

    with open_arena(name) as arena:
        snapshots = {snapshot: arena.history(snapshot) for snapshot in arena.snapshots()}
        regions = arena.regions()
    if as_json:
        say_json(
            [
                {
                    "name": snapshot,
                    "kind": "snapshot",
                    "size": kept[0].size,
                    "generations": [generation_json(generation) for generation in kept],
                }
                for snapshot, kept in snapshots.items()
            ]
            + [{"name": region, "kind": "region", "size": size} for region, size in regions.items()]
        )
    elif snapshots or regions:
        say_table(
            ["NAME", "KIND", "SIZE", "GENERATIONS", "NEWEST"],
            [
                [
                    snapshot,
                    "snapshot",
                    format_size(kept[0].size),
                    ", ".join(str(generation.number) for generation in kept),
                    moment(kept[0].created),
                ]
                for snapshot, kept in snapshots.items()
            ]
            + [[region, "region", format_size(size), "-", "-"] for region, size in regions.items()],
        )
    else:
        note(f"arena {name} is empty")
