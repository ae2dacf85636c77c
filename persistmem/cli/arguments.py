"""Arguments and options that several commands share, each declared once, and shell completion of names.

Only typer and what is as cheap to import; whatever asks the agent is imported when it is called.
"""
# ruff: noqa: PLC0415 - --help must be fast: what a function needs is imported when it runs

from pathlib import Path
from typing import Annotated, Final, NamedTuple

import typer

from persistmem.cli.formats import Format
from persistmem.errors import InvalidNameError, SizeError
from persistmem.names import split_name
from persistmem.sizes import parse_size

DEFAULT_SNAPSHOT: Final = "default"
"""What ``ARENA`` alone means where a snapshot is wanted."""


class Name(NamedTuple):
    """``ARENA`` or ``ARENA/SNAPSHOT``, as the user named it."""

    arena: str
    given: str | None
    """The snapshot, if one was named."""

    @property
    def snapshot(self) -> str:
        """The snapshot that is meant."""
        return self.given or DEFAULT_SNAPSHOT

    def __str__(self) -> str:
        return f"{self.arena}/{self.snapshot}"


def complete_name(incomplete: str) -> list[str]:
    """Return what the shell may complete ``incomplete`` to. Starts no agent; when anything is amiss, nothing."""
    from persistmem.attachment import list_arenas
    from persistmem.cli.keeper import open_arena
    from persistmem.errors import Error

    arena, slash, _ = incomplete.partition("/")
    try:
        if slash:
            with open_arena(arena) as opened:
                return [
                    name for snapshot in opened.snapshots() if (name := f"{arena}/{snapshot}").startswith(incomplete)
                ]
        return [record.name for record in list_arenas() if record.name.startswith(incomplete)]
    except (Error, OSError):
        return []


def complete_arena(incomplete: str) -> list[str]:
    """Return the arenas that the shell may complete ``incomplete`` to; never fails."""
    return [] if "/" in incomplete else complete_name(incomplete)


def _parse_name(text: str) -> Name:
    try:
        return Name(*split_name(text))
    except InvalidNameError as error:
        raise typer.BadParameter(str(error)) from error


def parse_arena(text: str) -> str:
    """Return ``text`` if it names an arena; wrong usage if not."""
    name = _parse_name(text)
    if name.given is not None:
        raise typer.BadParameter(f"expected an arena, found {text!r}; leave out the slash and what follows it")
    return name.arena


def parse_size_option(text: str) -> int:
    """Return the bytes that ``text`` says; wrong usage if it says none."""
    try:
        return parse_size(text)
    except SizeError as error:
        raise typer.BadParameter(str(error)) from error


NameArgument = Annotated[
    Name,
    typer.Argument(
        parser=_parse_name,
        metavar="NAME",
        autocompletion=complete_name,
        help="ARENA or ARENA/SNAPSHOT. The snapshot is 'default' if you name none.",
        show_default=False,
    ),
]
OptionalName = Annotated[
    Name | None,
    typer.Argument(
        parser=_parse_name,
        metavar="NAME",
        autocompletion=complete_name,
        help="ARENA or ARENA/SNAPSHOT. The snapshot is 'default' if you name none.",
        show_default=False,
    ),
]
NameOrArena = Annotated[
    Name,
    typer.Argument(
        parser=_parse_name,
        metavar="NAME",
        autocompletion=complete_name,
        help="ARENA for all that is in it, or ARENA/SNAPSHOT.",
        show_default=False,
    ),
]
ArenaArgument = Annotated[
    str, typer.Argument(parser=parse_arena, metavar="ARENA", autocompletion=complete_arena, show_default=False)
]
File = Annotated[
    Path | None, typer.Argument(metavar="FILE", help="A file, or - for standard input or output.", show_default=False)
]
FormatOption = Annotated[
    Format | None,
    typer.Option("--format", "-f", help="What FILE holds; guessed from its suffix.", show_default=False),
]
SizeOption = Annotated[
    int | None,
    typer.Option(
        "--size",
        parser=parse_size_option,
        metavar="SIZE",
        help="Size of an arena that is not there yet, such as 64MiB. Otherwise room for a few generations.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
