"""How commands speak: data to stdout, everything else to stderr, JSON for scripts, progress for whoever waits.

Knows terminals; must not know arenas. Whatever it prints for people is stripped of control characters first, for names
and releases can come from memory that somebody else wrote.
"""
# ruff: noqa: PLC0415 - --help must be fast: what a function needs is imported when it runs

import json
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from persistmem.threads import start_deaf

if TYPE_CHECKING:
    from rich.progress import Progress

PATIENCE: Final = 1.0
"""Seconds that work may take before it shows a progress bar."""


def note(message: str) -> None:
    """Say something to the person, on stderr, in one line."""
    print(f"persistmem: {printable(message)}", file=sys.stderr)


def say(line: str = "") -> None:
    """Print one line of data for people."""
    print(printable(line))


def say_json(value: object) -> None:
    """Print data for scripts."""
    print(json.dumps(value, indent=2))


def say_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print left-aligned columns, never shortened; nothing but the rows if that is all there is to say.

    >>> say_table(["NAME", "SIZE"], [["carts", "1 MiB"], ["products", "64 KiB"]])
    NAME      SIZE
    carts     1 MiB
    products  64 KiB
    """
    from rich.cells import cell_len

    table = [[printable(cell) for cell in row] for row in (heading, *rows)]
    widths = [max(cell_len(row[column]) for row in table) for column in range(len(heading))]
    for row in table:
        print(
            "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def printable(text: str) -> str:
    r"""Return ``text`` with what is not printable replaced.

    >>> printable("7.3.4\x1b[2J")
    '7.3.4�[2J'
    """
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def moment(when: datetime) -> str:
    """Return a point in time for people, in UTC.

    >>> moment(datetime(2026, 7, 1, 12, 30, 5, tzinfo=UTC))
    '2026-07-01 12:30:05 UTC'
    """
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def counted(count: int, noun: str) -> str:
    """Return how many there are of something.

    >>> counted(1, "arena"), counted(2, "arena")
    ('1 arena', '2 arenas')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def duration(seconds: float) -> str:
    """Return a time span for people.

    >>> duration(0.0123), duration(2.5)
    ('12.3 ms', '2.50 s')
    """
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


class Work:
    """Work in progress, which tells how many bytes are done."""

    def __init__(self, what: str, total: int | None) -> None:
        """``total`` in bytes; None if nobody knows."""
        self._what = what
        self._total = total
        self._done = 0
        self._ended = False
        self._lock = threading.Lock()
        self._shown: Progress | None = None

    def advance(self, count: int) -> None:
        """So many more bytes are done. Any thread may call it."""
        with self._lock:
            self._done += count
            if self._shown is not None:
                self._shown.update(self._shown.task_ids[0], completed=self._done)

    def show(self) -> None:
        """Draw a bar on stderr from now on."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        known = (DownloadColumn(binary_units=True), TimeRemainingColumn())
        counted = known if self._total else (TimeElapsedColumn(),)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), *counted)
        shown = Progress(*columns, console=Console(stderr=True), transient=True)
        with self._lock:
            if self._ended:
                return
            shown.add_task(self._what, total=self._total, completed=self._done)
            shown.start()
            self._shown = shown

    def end(self) -> None:
        """Remove the bar, if there is one."""
        with self._lock:
            self._ended = True
            if self._shown is not None:
                self._shown.stop()


@contextmanager
def working(what: str, total: int | None = None) -> Iterator[Work]:
    """Show a progress bar while the block runs, if it runs for over a second and stderr is a terminal."""
    work = Work(what, total)
    timer = threading.Timer(PATIENCE, work.show)
    timer.daemon = True
    if sys.stderr.isatty():
        start_deaf(timer)
    try:
        yield work
    finally:
        timer.cancel()
        work.end()


Json = Mapping[str, object]
"""One JSON object of a command's output; its keys are part of the command line's promise."""
