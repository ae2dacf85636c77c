"""The command line, ``python -m apps.memcached``. Knows its options; must not know how a server works."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from apps.memcached.listening import Address
from apps.memcached.service import Service, Settings
from persistmem.cli.arguments import parse_size_option
from persistmem.errors import ArgumentError, Error

try:
    import uvloop
except ImportError:
    uvloop = None  # type: ignore[assignment]

_ADDRESS_DEFAULT: Final = Address("127.0.0.1", 11211)
_ITEM_SIZE_MAX_DEFAULT: Final = 1 << 20
_ITEM_SIZE_MAX_MAX: Final = 1 << 30
_HELP: Final = (
    "Serve a cache to memcached's clients. It is still warm after a restart, and after a kernel upgrade.\n\n"
    "It speaks memcached's text protocol, classic and meta commands, until SIGTERM or Ctrl-C. There are no passwords:"
    " who can connect can read and change everything."
)
_EXAMPLE: Final = "Example: python -m apps.memcached --name shop --size 256MiB --listen 127.0.0.1:11211"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


def _parse_address(text: str) -> Address:
    try:
        return Address.parse(text)
    except ArgumentError as error:
        raise typer.BadParameter(str(error)) from error


def _parse_item_size(text: str) -> int:
    size = parse_size_option(text)
    if not 0 < size <= _ITEM_SIZE_MAX_MAX:
        raise typer.BadParameter(f"expected up to 1GiB, found {text}")
    return size


@app.command(help=_HELP, epilog=_EXAMPLE)
def serve(  # noqa: PLR0917 - they are options
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="The cache, which this server alone serves.")],
    size: Annotated[
        int | None,
        typer.Option(
            "--size",
            parser=parse_size_option,
            metavar="SIZE",
            help="Of the cache, if there is none of this name yet. 64MiB if you do not say.",
            show_default=False,
        ),
    ] = None,
    listen: Annotated[
        list[Address] | None,
        typer.Option(
            "--listen",
            parser=_parse_address,
            metavar="HOST:PORT",
            help=f"Where to listen; may be given again. Port 0 is one that is free. {_ADDRESS_DEFAULT} if you name"
            " neither this nor a Unix socket.",
            show_default=False,
        ),
    ] = None,
    unix: Annotated[
        list[Path] | None,
        typer.Option(
            "--unix",
            metavar="PATH",
            help="A Unix socket to listen at, for this user alone; may be given again.",
            show_default=False,
        ),
    ] = None,
    connections: Annotated[
        int, typer.Option("--connections", min=1, max=1 << 20, metavar="NUMBER", help="Most clients at a time.")
    ] = 1024,
    item_size_max: Annotated[
        int,
        typer.Option(
            "--item-size-max",
            parser=_parse_item_size,
            metavar="SIZE",
            help="Most bytes of a value. 1MiB if you do not say.",
            show_default=False,
        ),
    ] = _ITEM_SIZE_MAX_DEFAULT,
) -> None:
    """Serve until a signal says to stop."""
    addresses = listen or ([] if unix else [_ADDRESS_DEFAULT])
    service = Service(Settings(name, size, addresses, unix or [], connections, item_size_max))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop if uvloop else None) as runner:
            runner.run(service.serve(lambda where: _say(f"listening on {where}")))
    finally:
        service.close()


def main() -> None:
    """Run the command that the process's arguments say, and exit: 0, 1 (failed) or 2 (wrong usage)."""
    try:
        app(prog_name="python -m apps.memcached")
    except Error as error:
        _fail(str(error))


def _fail(reason: str) -> None:
    _say(f"memcached: error: {reason}")
    sys.exit(1)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
