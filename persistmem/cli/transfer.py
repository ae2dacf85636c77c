"""``persistmem snapshot`` and ``restore``: between the user's files and an arena. Knows formats and arenas' API."""
# ruff: noqa: PLC0415 - --help must be fast: what a function needs is imported when it runs

import warnings
from typing import TYPE_CHECKING, Annotated, Final

import typer

from persistmem.cli.arguments import File, FormatOption, Name, NameArgument, SizeOption
from persistmem.cli.formats import Format, format_of, natural_format, parse, write
from persistmem.errors import ArgumentError, DamageWarning, NotFoundError, SizeError, UnsupportedTypeError

if TYPE_CHECKING:
    from persistmem.arena import Arena

KEEP_DEFAULT: Final = 2
"""The library's default; importing it from there would make --help wait for all of the arena."""

GENERATIONS_PLANNED: Final = 4
"""How many generations of its first document a new arena has room for, at least."""


def snapshot(
    name: NameArgument,
    file: File = None,
    form: FormatOption = None,
    size: SizeOption = None,
    keep: Annotated[int, typer.Option("--keep", min=1, help="Generations to keep, this one included.")] = KEEP_DEFAULT,
) -> None:
    """Store FILE as a new generation of NAME.

    FILE is JSON if it ends in .json, msgpack if it ends in .msgpack, and raw bytes
    otherwise; so is standard input, for contents are never guessed at. An arena
    that is not there is made.
    """
    from persistmem.cli.files import read_file
    from persistmem.cli.output import note, working
    from persistmem.sizes import format_size

    data = read_file(file)
    try:
        document = parse(data, form or format_of(file) or Format.RAW)
    except ArgumentError as error:
        raise ArgumentError(f"{file or 'standard input'}: {error}; --format says what it is") from error
    with working(f"storing {name}"), _open_or_make(name, document, size, keep) as arena:
        generation = arena.snapshot(name.snapshot, document, keep=keep)
    made = f", in a new arena of {format_size(arena.size)}" if arena.origin.kind == "created" else ""
    note(f"{name}: generation {generation.number}, {format_size(generation.size)}{made}")


def restore(
    name: NameArgument,
    file: File = None,
    generation: Annotated[
        int | None,
        typer.Option(
            "--generation", "-g", help="One that 'history' lists; the newest if you name none.", show_default=False
        ),
    ] = None,
    form: FormatOption = None,
) -> None:
    """Give back what NAME holds, verified.

    It goes to FILE or standard output. Without --format, and when FILE's suffix says nothing, bytes come out as they
    are and everything else as JSON. JSON has tuples as arrays and numbers that are
    keys as strings; a document with anything else that JSON lacks needs --format
    msgpack, which is exact. FILE is replaced whole, or not at all.

    If the newest generation is damaged, the next older one is given, stderr says
    so, and the exit status is 1.
    """
    from persistmem.cli.files import write_file
    from persistmem.cli.keeper import THREADS, open_arena
    from persistmem.cli.output import note, working

    with open_arena(name.arena) as arena:
        with warnings.catch_warnings(record=True) as damage, working(f"verifying {name}"):
            warnings.simplefilter("always", DamageWarning)
            # Views: large data goes from the arena to the file without a copy in between.
            document = arena.restore(name.snapshot, generation=generation, copy=False, threads=THREADS)
        for warning in damage:
            note(f"warning: {warning.message}")
        try:
            data = write(document, form or format_of(file) or natural_format(document))
        except UnsupportedTypeError as error:
            raise UnsupportedTypeError(f"{name}: {error}") from error
        write_file(file, data)
    if damage:
        raise typer.Exit(1)


def _open_or_make(name: Name, document: object, size: int | None, keep: int) -> "Arena":
    from persistmem.attachment import attach
    from persistmem.cli.keeper import open_arena

    if size is not None:
        return attach(name.arena, size)
    try:
        return open_arena(name.arena)
    except NotFoundError:
        pass
    try:
        return attach(name.arena, room_for(document, max(GENERATIONS_PLANNED, keep + 2)))
    except SizeError:
        # Somebody else has just made it, with room for another document.
        return open_arena(name.arena)


def room_for(document: object, generations: int) -> int:
    """Return the size of an arena, in bytes, that holds so many generations of ``document``: whole MiB, one at least.

    Raises:
        UnsupportedTypeError: no arena can hold it.

    >>> room_for({"ada": 36}, 4) == 1 << 20
    True
    """
    from persistmem.arena.documents import DocumentEncoder
    from persistmem.arena.layout import BUFFER_ALIGNMENT, CHUNK_SIZE, align
    from persistmem.arena.types import registry
    from persistmem.sizes import KIB, MIB

    with DocumentEncoder(registry).encode(document) as encoded:
        lengths = [len(encoded.packed), *(buffer.nbytes for buffer in encoded.buffers)]
    # Three catalogues may be there at a time, in each some 30 bytes for an extent, and 8 for each of its checksums.
    listed = sum(3 * (30 + 8 * -(-length // CHUNK_SIZE)) for length in lengths)
    stored = sum(align(length, BUFFER_ALIGNMENT) for length in lengths)
    return align(64 * KIB + generations * (stored + listed), MIB)
