"""``persistmem metrics``: what Prometheus is told, once, over HTTP, or in a file. Reads; changes nothing."""
# ruff: noqa: PLC0415 - --help must be fast: what a function needs is imported when it runs

import signal
import sys
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import typer

from persistmem.durations import seconds
from persistmem.errors import ArgumentError

_HOST: Final = "127.0.0.1"
_INTERVAL_MIN: Final = 0.1
_ENDING: Final = (signal.SIGINT, signal.SIGTERM)


class Address(NamedTuple):
    """Where to listen."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _parse_address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise typer.BadParameter(f"expected ADDRESS:PORT or a port, found {text!r}")
    return Address(host.removeprefix("[").removesuffix("]") or _HOST, int(port))


def _parse_interval(text: str) -> float:
    try:
        interval = seconds(text)
    except ArgumentError as error:
        raise typer.BadParameter(str(error)) from error
    if interval < _INTERVAL_MIN:
        raise typer.BadParameter(f"expected at least {_INTERVAL_MIN:g} seconds, found {text!r}")
    return interval


def metrics(
    listen: Annotated[
        Address | None,
        typer.Option(
            "--listen",
            parser=_parse_address,
            metavar="[ADDRESS:]PORT",
            help=f"Serve them over HTTP, as /metrics, until told to stop. On {_HOST} if you name no address.",
            show_default=False,
        ),
    ] = None,
    textfile: Annotated[
        Path | None,
        typer.Option(
            "--textfile",
            metavar="FILE.prom",
            help="Write them into a file for node_exporter's textfile collector, and end.",
            show_default=False,
        ),
    ] = None,
    every: Annotated[
        float | None,
        typer.Option(
            "--every",
            parser=_parse_interval,
            metavar="TIME",
            help="Write the file again and again, such as each 15s, until told to stop.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Tell Prometheus how arenas, caches and handovers are; on standard output if you do not say where.

    Reading starts no agent, takes no lock that a writer waits for, and reads no
    documents: 'persistmem verify' checks those. An arena that is damaged is counted,
    and named on stderr; the others are reported all the same.
    """
    if listen is not None and textfile is not None:
        raise typer.BadParameter("choose --listen or --textfile")
    if every is not None and textfile is None:
        raise typer.BadParameter("--every is for --textfile")
    if textfile is not None and textfile.suffix != ".prom":
        raise typer.BadParameter(f"expected a file that ends in .prom, for node_exporter reads no other: {textfile}")

    from persistmem.agent.paths import RuntimeDirectory
    from persistmem.cli.output import note
    from persistmem.metrics import exposing
    from persistmem.metrics.reading import read

    found = exposing.registry(lambda: read(RuntimeDirectory.of_user()), note)
    if listen is None and every is None:
        if textfile is not None:
            exposing.write(found, textfile)
        else:
            sys.stdout.buffer.write(exposing.text(found))
        return
    # Taken when there is nothing else to do, so that no file is left half written; threads inherit it.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    if listen is not None:
        note(f"serves http://{listen._replace(port=exposing.serve(found, *listen))}/metrics")
        signal.sigwait(_ENDING)
    elif textfile is not None and every is not None:
        exposing.write(found, textfile)
        while signal.sigtimedwait(_ENDING, every) is None:
            exposing.write(found, textfile)
