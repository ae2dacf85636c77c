"""``persistmem top``: what goes on in caches, as it goes on. Reads; changes nothing, and is not counted."""
# ruff: noqa: PLC0415 - --help must be fast: what a function needs is imported when it runs

import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

from persistmem.cli.arguments import JsonOption, Name
from persistmem.cli.cache import complete_cache, full_name, open_cache, parse_cache, percent

if TYPE_CHECKING:
    from types import FrameType

    from rich.table import Table

    from persistmem.arena import Arena
    from persistmem.cache.viewing import Activity, CacheView, Reading
    from persistmem.cli.output import Json

INTERVAL_DEFAULT: Final = 1.0

_HEADING: Final = (
    *("CACHE", "HITS", "OVERALL", "READS/S", "WRITES/S", "EVICTED/S", "FILL", "SIZE", "ITEMS", "NEW TURN", "KEPT TURN"),
    "OPEN IN",
)
_DISPENSABLE: Final = "OPEN IN", "SIZE", "ITEMS", "KEPT TURN", "WRITES/S", "NEW TURN", "OVERALL", "FILL", "EVICTED/S"
"""What a narrow terminal does not show, first to last."""
_ABOUT_TURNS: Final = (
    "NEW TURN, KEPT TURN: estimates, for items do not keep their ages: the time in which the log of what is new, and"
    " that of what was read again, would be written anew at the present rate. An item that nobody reads is evicted at"
    " about that age."
)
_UNKNOWN: Final = "-"


class Line(NamedTuple):
    """One cache in one interval."""

    cache: str
    reading: "Reading"
    activity: "Activity"


def top(
    names: Annotated[
        list[Name] | None,
        typer.Argument(
            parser=parse_cache,
            metavar="[NAME]...",
            autocompletion=complete_cache,
            help="ARENA for all caches in it, or ARENA/NAMESPACE. All of yours if you name none.",
            show_default=False,
        ),
    ] = None,
    interval: Annotated[
        float, typer.Option("--interval", "-i", min=0.1, max=3600, metavar="SECONDS", help="How often to look.")
    ] = INTERVAL_DEFAULT,
    once: Annotated[bool, typer.Option("--once", help="Print one interval, and end.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Watch caches: how often they hit, how busy and how full they are, what they evict.

    It goes on until you press q or Ctrl-C, also when the output is no terminal. HITS and
    the rates are of the last interval, OVERALL is since the cache was made. Looking takes
    no lock, and is not counted.

    --json prints, for each interval, a list of objects on a line of its own, with the keys
    cache, seconds (of the interval), hit_ratio (in it; null without reads),
    hit_ratio_overall, reads, writes and evicted (a second), fill (used of size), items,
    used, size (bytes), new_turnover_estimate and kept_turnover_estimate (seconds in which
    the log of what is new, and that of what was read again, would be written anew at the
    present rate: about the age of what is evicted; null if nothing was written) and
    processes (that have it open).
    """
    from persistmem.cli.output import note

    with suppress(KeyboardInterrupt), ExitStack() as stack:
        for name in names or ():
            _check_there(name)
        watch = stack.enter_context(Watch(names or None))
        if not once and not as_json and sys.stdout.isatty():
            _show_live(watch, interval)
            return
        if not watch.look():
            note("no caches; persistmem.Cache(NAME, SIZE) makes one")
            if once and not as_json:
                return
        for number in _count(1 if once else None):
            time.sleep(interval)
            lines = watch.look()
            if as_json:
                _print_json(lines)
            else:
                _print_table(lines, apart=number > 0)


class Watch:
    """Looks at caches again and again: at those that are named, or at all; at new ones too, and not at what is gone."""

    def __init__(self, names: Sequence[Name] | None) -> None:
        """Watch ``names``, or everything."""
        self._names = names
        self._arenas: dict[str, Arena] = {}
        self._views: dict[str, CacheView] = {}
        self._last: dict[str, tuple[float, Reading]] = {}

    def look(self) -> list[Line]:
        """Return what went on since the last look. A cache that is seen for the first time has done nothing yet."""
        from persistmem.cache.viewing import Activity
        from persistmem.errors import Error

        self._find()
        lines = []
        for cache, view in list(self._views.items()):
            try:
                reading = view.read()
            except Error:  # its kernel is gone, or it was dropped: the next look finds what came after it
                self._forget(cache.partition("/")[0])
                continue
            now = time.monotonic()
            before, earlier = self._last.get(cache, (now - 1, reading))
            lines.append(Line(cache, reading, Activity.between(earlier, reading, now - before)))
            self._last[cache] = now, reading
        return lines

    def _find(self) -> None:
        """Open what there is now, and close what is gone."""
        from persistmem.attachment import attach, list_arenas
        from persistmem.cache.viewing import CacheView, find_caches
        from persistmem.errors import Error

        there = {record.name for record in list_arenas()}
        wanted = there if self._names is None else there.intersection(name.arena for name in self._names)
        for arena in [arena for arena in self._arenas if arena not in wanted]:
            self._forget(arena)
        for name in sorted(wanted):
            try:
                if name not in self._arenas:
                    self._arenas[name] = attach(name)
                opened = self._arenas[name]
                caches = {f"{name}/{cache}": cache for cache in find_caches(opened)}
                for cache in self._chosen(caches):
                    if cache not in self._views:
                        self._views[cache] = CacheView(opened, caches[cache])
                for cache in [cache for cache in self._views if _is_of(cache, name) and cache not in caches]:
                    self._close(cache)
            except Error:
                self._forget(name)
        self._views = dict(sorted(self._views.items()))

    def _chosen(self, caches: Mapping[str, str]) -> list[str]:
        if self._names is None:
            return list(caches)
        return [
            cache
            for cache in caches
            if any(cache == full_name(name) if name.given else _is_of(cache, name.arena) for name in self._names)
        ]

    def _forget(self, arena: str) -> None:
        for cache in [cache for cache in self._views if _is_of(cache, arena)]:
            self._close(cache)
        if (opened := self._arenas.pop(arena, None)) is not None:
            opened.close()

    def _close(self, cache: str) -> None:
        self._views.pop(cache).close()
        self._last.pop(cache, None)

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        for arena in list(self._arenas):
            self._forget(arena)


def _is_of(cache: str, arena: str) -> bool:
    return cache.startswith(f"{arena}/")


def _check_there(name: Name) -> None:
    """Raise if what the user names is not there."""
    from persistmem.cli.keeper import open_arena

    if name.given is not None:
        with open_cache(name):
            return
    open_arena(name.arena).close()


def _count(end: int | None) -> Iterator[int]:
    number = 0
    while end is None or number < end:
        yield number
        number += 1


def _cells(line: Line) -> list[str]:
    from persistmem.sizes import format_size

    stats, activity = line.reading.stats, line.activity
    return [
        line.cache,
        _UNKNOWN if activity.hit_ratio is None else percent(activity.hit_ratio),
        percent(stats.hit_ratio) if stats.hits + stats.misses else _UNKNOWN,
        _rate(activity.reads),
        _rate(activity.writes),
        _rate(activity.evicted),
        percent(stats.used / stats.size),
        format_size(stats.size),
        f"{stats.items:,}",
        _age(activity.small_turnover),
        _age(activity.main_turnover),
        f"{stats.processes:,}",
    ]


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 or rate == 0 else f"{rate:.1f}"


def _age(seconds: float | None) -> str:
    """An estimate for people, of two digits at the most.

    >>> _age(0.4), _age(95), _age(7000), _age(3e5), _age(None)
    ('~0.4 s', '~95 s', '~1.9 h', '~3.5 d', '-')
    """
    if seconds is None:
        return _UNKNOWN
    for unit, length, limit in (("s", 1, 120), ("min", 60, 5400), ("h", 3600, 172800)):
        if seconds < limit:
            return f"~{seconds / length:.{int(seconds < 10 * length)}f} {unit}"
    return f"~{seconds / 86400:.{int(seconds < 864000)}f} d" if seconds < 864e5 else "years"


def _line_json(line: Line) -> "Json":
    stats, activity = line.reading.stats, line.activity
    return {
        "cache": line.cache,
        "seconds": activity.seconds,
        "hit_ratio": activity.hit_ratio,
        "hit_ratio_overall": stats.hit_ratio if stats.hits + stats.misses else None,
        "reads": activity.reads,
        "writes": activity.writes,
        "evicted": activity.evicted,
        "fill": stats.used / stats.size,
        "items": stats.items,
        "used": stats.used,
        "size": stats.size,
        "new_turnover_estimate": activity.small_turnover,
        "kept_turnover_estimate": activity.main_turnover,
        "processes": stats.processes,
    }


def _print_json(lines: Sequence[Line]) -> None:
    import json

    print(json.dumps([_line_json(line) for line in lines]), flush=True)


def _print_table(lines: Sequence[Line], *, apart: bool) -> None:
    from persistmem.cli.output import say, say_table

    if apart:
        say()
    say_table(_HEADING, [_cells(line) for line in lines])
    sys.stdout.flush()


def _show_live(watch: Watch, interval: float) -> None:
    """Draw on the terminal until the person has seen enough; leaves it as it was."""
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    with _keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        lines = watch.look()
        live.update(_table(lines, interval, console.width), refresh=True)
        due = time.monotonic() + min(interval, 1.0)
        while True:
            while (left := due - time.monotonic()) > 0:
                if keys.pressed(left) in ("q", "Q"):
                    return
            live.update(_table(watch.look(), interval, console.width), refresh=True)
            due = time.monotonic() + interval


def _table(lines: Sequence[Line], interval: float, width: int) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from persistmem.cli.output import printable

    rows = [[printable(cell) for cell in _cells(line)] for line in lines]
    shown = _columns([_HEADING, *rows], width)
    turns = _HEADING.index("NEW TURN") in shown
    caption = (_ABOUT_TURNS if turns else None) if lines else "No caches; persistmem.Cache(NAME, SIZE) makes one."
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"persistmem top: every {interval:g} s, at {time.strftime('%H:%M:%S')}; q ends it",
        title_justify="left",
        caption=caption,
        caption_justify="left",
        padding=(0, 1, 0, 0),
    )
    for column in shown:
        table.add_column(_HEADING[column], justify="right" if column else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(row[column]) for column in shown))
    return table


def _columns(rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """Numbers of the columns that there is room for."""
    from rich.cells import cell_len

    widths = [2 + max(cell_len(row[column]) for row in rows) for column in range(len(_HEADING))]
    shown = list(range(len(_HEADING)))
    for heading in _DISPENSABLE:
        if sum(widths[column] for column in shown) + 1 > width:
            shown.remove(_HEADING.index(heading))
    return shown


class _Keys:
    """What the person presses."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def pressed(self, seconds: float) -> str:
        """Wait for a key that long; empty if there was none."""
        if self._fd is None or not select.select([self._fd], [], [], seconds)[0]:
            if self._fd is None:
                time.sleep(seconds)
            return ""
        data = os.read(self._fd, 1)
        if not data:
            self._fd = None  # the terminal has hung up
        return data.decode("ascii", "replace")


@contextmanager
def _keys() -> Iterator[_Keys]:
    """Take keys one by one, without echo, where standard input is a terminal; then have it as it was.

    A signal that ends the process does so by an exception meanwhile, so that the terminal is restored then, too.
    """
    import termios
    import tty

    def leave(number: int, _: "FrameType | None") -> None:
        raise SystemExit(128 + number)

    previous = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    previous[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    fd = sys.stdin.fileno() if sys.stdin.isatty() else None
    before = termios.tcgetattr(fd) if fd is not None else None
    try:
        if fd is not None:
            tty.setcbreak(fd)
        yield _Keys(fd)
    finally:
        if fd is not None and before is not None:
            termios.tcsetattr(fd, termios.TCSADRAIN, before)
        for number, handler in previous.items():
            signal.signal(number, handler)
