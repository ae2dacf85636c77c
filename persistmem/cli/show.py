"""``persistmem show``: an arena as a map that a person can read. What the map looks like is ``map``'s concern."""
# ruff: noqa: PLC0415 - --help must be fast: what a function needs is imported when it runs

from typing import TYPE_CHECKING

from persistmem.cli.arguments import ArenaArgument, JsonOption

if TYPE_CHECKING:
    from persistmem.arena import Arena
    from persistmem.cli.output import Json


def show(arena: ArenaArgument, as_json: JsonOption = False) -> None:
    """Draw an arena as a map: what is where, and how full it is.

    Each letter is a snapshot's generations that share memory, or a region; on a
    terminal the newest are filled in. A capital letter is memory that a reader, or
    a view, holds at this moment.

    --json prints an object with the keys arena, uuid, size, created, kernel, origin
    (kind, kernel_from, kernel_to), huge (bytes in huge folios, or null), usage (live, reusable, free, snapshots,
    generations, regions) and pieces: a list of objects, in order, with offset,
    length, kind, name, generations and held. Sizes are in bytes.
    """
    from persistmem.cli.keeper import open_arena
    from persistmem.cli.output import say_json

    with open_arena(arena) as opened:
        if as_json:
            say_json(_as_json(arena, opened))
        else:
            _draw(arena, opened)


def _as_json(name: str, arena: "Arena") -> "Json":
    usage = arena.usage()
    return {
        "arena": name,
        "uuid": str(arena.uuid),
        "size": arena.size,
        "created": arena.created.isoformat(),
        "kernel": arena.created_by,
        "origin": {
            "kind": arena.origin.kind,
            "kernel_from": arena.origin.kernel_from,
            "kernel_to": arena.origin.kernel_to,
        },
        "usage": {
            "live": usage.live,
            "reusable": usage.reusable,
            "free": usage.free,
            "snapshots": usage.snapshots,
            "generations": usage.generations,
            "regions": usage.regions,
        },
        "huge": arena.huge_bytes(),
        "pieces": [
            {
                "offset": piece.offset,
                "length": piece.length,
                "kind": piece.kind,
                "name": piece.name,
                "generations": list(piece.generations),
                "held": piece.held,
            }
            for piece in arena.pieces()
        ],
    }


def _draw(name: str, arena: "Arena") -> None:
    from rich.console import Console
    from rich.text import Text

    from persistmem.cli.map import draw
    from persistmem.cli.output import moment, printable, say
    from persistmem.sizes import format_size

    console = Console(highlight=False, soft_wrap=True)
    usage, drawing = arena.usage(), draw(arena.pieces(), arena.size, console.width)
    full = 100 * (usage.size - usage.free) // usage.size
    say(f"{name}: {format_size(arena.size)}, {full} % full, {arena.origin}")
    say(f"made {moment(arena.created)} on kernel {arena.created_by}")
    if (huge := arena.huge_bytes()) is not None:
        say(f"{format_size(huge)} in huge folios")
    say()
    for offset, cells in drawing.rows:
        row = Text(f"{format_size(offset):>10} ")
        for cell in cells:
            row.append(cell.symbol, cell.style)
        console.print(row)
    say()
    width = max(len(entry.mark.what) for entry in drawing.legend)
    for entry in drawing.legend:
        line = Text.assemble((entry.mark.symbol, entry.mark.style), "  ")
        line.append(f"{printable(entry.mark.what):<{width}}  {format_size(entry.size):>10}")
        if entry.mark.generations:
            line.append(f"  generation{'s' * (', ' in entry.mark.generations)} {entry.mark.generations}")
        if entry.held:
            line.append(f"  {format_size(entry.held)} held by readers")
        console.print(line)
    say(f"One character is about {format_size(drawing.cell_size)}.")
