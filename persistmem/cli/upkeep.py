"""``persistmem verify`` and ``rm``: whether it is sound, and being rid of it."""
# ruff: noqa: PLC0415 - --help must be fast: what a function needs is imported when it runs

from typing import Annotated

import typer

from persistmem.cli.arguments import JsonOption, NameOrArena


def verify(name: NameOrArena, as_json: JsonOption = False) -> None:
    """Check every byte against its checksum.

    Regions keep their own integrity and are not checked. The exit status is 1 if
    something is damaged.

    --json prints an object with the keys name, ok, bytes_checked and damaged: a list
    of objects with snapshot and generation (null for what belongs to all) and reason.
    """
    from persistmem.cli.keeper import THREADS, open_arena
    from persistmem.cli.output import say, say_json, working
    from persistmem.sizes import format_size

    shown = name.arena if name.given is None else str(name)
    with open_arena(name.arena) as arena:
        total = sum(
            piece.length
            for piece in arena.pieces()
            if piece.kind in ("document", "buffer") and name.given in (None, piece.name)
        )
        with working(f"verifying {shown}", total) as work:
            report = arena.verify(name.given, threads=THREADS, progress=work.advance)
    if as_json:
        say_json(
            {
                "name": shown,
                "ok": report.ok,
                "bytes_checked": report.bytes_checked,
                "damaged": [
                    {"snapshot": damage.snapshot, "generation": damage.generation, "reason": damage.reason}
                    for damage in report.damaged
                ],
            }
        )
    else:
        for damage in report.damaged:
            where = "arena" if damage.snapshot is None else f"{damage.snapshot}, generation {damage.generation}"
            say(f"{shown}: damaged: {where}: {damage.reason}")
        if report.ok:
            say(f"{shown}: sound, {format_size(report.bytes_checked)} checked")
    if not report.ok:
        raise typer.Exit(1)


def _parse_user(text: str) -> int:
    from pwd import getpwnam

    if text.isascii() and text.isdigit() and int(text) < (1 << 32) - 1:
        return int(text)
    try:
        return getpwnam(text).pw_uid
    except (KeyError, ValueError) as error:
        raise typer.BadParameter(f"expected a user's name or number, found {text!r}") from error


def rm(
    name: NameOrArena,
    of: Annotated[
        int | None,
        typer.Option(
            "--of",
            parser=_parse_user,
            metavar="USER",
            help="Remove an arena of this user, as the one who administers the agent.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Remove an arena, or a snapshot or region of one.

    Whoever still reads a removed snapshot keeps what is being read.
    """
    from persistmem.administration import evict_arena
    from persistmem.attachment import drop_arena
    from persistmem.cli.keeper import open_arena
    from persistmem.cli.output import note

    if of is not None:
        if name.given is not None:
            raise typer.BadParameter("--of removes whole arenas: leave out the slash and what follows it")
        evict_arena(of, name.arena)
        note(f"removed arena {name.arena} of uid {of} and everything in it")
        return
    if name.given is None:
        drop_arena(name.arena)
        note(f"removed arena {name.arena} and everything in it")
        return
    with open_arena(name.arena) as arena:
        arena.remove(name.given)
    note(f"removed {name}")
