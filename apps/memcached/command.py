"""The command line, ``python -m apps.memcached``. Knows its options; must not know how a server works."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from apps.memcached.listening import Address
from apps.memcached.service import Service, Settings
from persistmem.errors import ArgumentError, Error, SizeError
from persistmem.sizes import parse_size

try:
    import uvloop
except ImportError:
    uvloop = None  # type: ignore[assignment]

T = TypeVar("T")

_ADDRESS_DEFAULT: Final = Address("127.0.0.1", 11211)
_CONNECTIONS_DEFAULT: Final = 1024
_CONNECTIONS_MAX: Final = 1 << 20
_ITEM_SIZE_MAX_DEFAULT: Final = 1 << 20
_ITEM_SIZE_MAX_MAX: Final = 1 << 30
_HELP: Final = (
    "Serve a cache to memcached's clients. It is still warm after a restart, and after a kernel upgrade."
    " It speaks memcached's text protocol, classic and meta commands, until SIGTERM or Ctrl-C. There are no passwords:"
    " who can connect can read and change everything."
)
_EXAMPLE: Final = "Example: python -m apps.memcached --name shop --size 256MiB --listen 127.0.0.1:11211"


def main() -> None:
    """Run the command that the process's arguments say, and exit: 0, 1 (failed) or 2 (wrong usage)."""
    settings = _settings(sys.argv[1:])
    try:
        _serve(settings)
    except Error as error:
        _say(f"memcached: error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:  # before it serves; then it stops in good order
        sys.exit(130)


def _settings(arguments: Sequence[str]) -> Settings:
    """Read the command line. By argparse: typer, and what it imports, take as long as all the rest of a start."""
    parser = argparse.ArgumentParser(
        prog="python -m apps.memcached", description=_HELP, epilog=_EXAMPLE, allow_abbrev=False
    )
    parser.add_argument("--name", required=True, help="the cache, which this server alone serves")
    parser.add_argument(
        "--size",
        type=_reading(parse_size),
        help="of the cache, if there is none of this name yet; 64MiB if you do not say",
    )
    parser.add_argument(
        "--listen",
        type=_reading(Address.parse),
        action="append",
        default=[],
        metavar="HOST:PORT",
        help=f"where to listen; may be given again. Port 0 is one that is free. {_ADDRESS_DEFAULT} if you name neither"
        " this nor a Unix socket",
    )
    parser.add_argument(
        "--unix",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="a Unix socket to listen at, for this user alone; may be given again",
    )
    parser.add_argument(
        "--connections",
        type=_reading(_parse_connections),
        default=_CONNECTIONS_DEFAULT,
        metavar="NUMBER",
        help=f"most clients at a time ({_CONNECTIONS_DEFAULT})",
    )
    parser.add_argument(
        "--item-size-max",
        type=_reading(_parse_item_size),
        default=_ITEM_SIZE_MAX_DEFAULT,
        metavar="SIZE",
        help="most bytes of a value; 1MiB if you do not say",
    )
    found = parser.parse_args(arguments)
    addresses = found.listen or ([] if found.unix else [_ADDRESS_DEFAULT])
    return Settings(found.name, found.size, addresses, found.unix, found.connections, found.item_size_max)


def _reading(parse: Callable[[str], T]) -> Callable[[str], T]:
    """The same, whose errors argparse tells as they are."""

    def read(text: str) -> T:
        try:
            return parse(text)
        except Error as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def _parse_connections(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 7 and 1 <= int(text) <= _CONNECTIONS_MAX):
        raise ArgumentError(f"expected a number from 1 to {_CONNECTIONS_MAX}, found {text[:40]!r}")
    return int(text)


def _parse_item_size(text: str) -> int:
    if (size := parse_size(text)) > _ITEM_SIZE_MAX_MAX:
        raise SizeError(f"expected up to 1GiB, found {text[:40]}")
    return size


def _serve(settings: Settings) -> None:
    """Serve until a signal says to stop."""
    service = Service(settings)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop if uvloop else None) as runner:
            runner.run(service.serve(lambda where: _say(f"listening on {where}")))
    finally:
        service.close()


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
