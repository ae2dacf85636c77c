"""``persistmem cache stats`` and ``clear``, and how commands name and open caches."""
# ruff: noqa: PLC0415 - --help must be fast: what a function needs is imported when it runs

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Final

import typer

from persistmem.cli.arguments import JsonOption, Name, complete_name
from persistmem.errors import InvalidNameError
from persistmem.names import split_name

if TYPE_CHECKING:
    from persistmem.cache import CacheStats
    from persistmem.cache.viewing import CacheView
    from persistmem.cli.output import Json

DEFAULT_CACHE: Final = "cache"
"""What ``ARENA`` alone means where a cache is wanted: what ``persistmem.Cache(ARENA)`` calls its region."""


def complete_cache(incomplete: str) -> list[str]:
    """Return the caches, or the arenas, that the shell may complete ``incomplete`` to; never fails."""
    if "/" not in incomplete:
        return complete_name(incomplete)
    from persistmem.cache.viewing import find_caches
    from persistmem.cli.keeper import open_arena
    from persistmem.errors import Error

    arena, _, _ = incomplete.partition("/")
    try:
        with open_arena(arena) as opened:
            return [name for cache in find_caches(opened) if (name := f"{arena}/{cache}").startswith(incomplete)]
    except (Error, OSError):
        return []


def parse_cache(text: str) -> Name:
    """Return what ``text`` names; wrong usage if nothing can have that name."""
    try:
        return Name(*split_name(text))
    except InvalidNameError as error:
        raise typer.BadParameter(str(error)) from error


CacheArgument = Annotated[
    Name,
    typer.Argument(
        parser=parse_cache,
        metavar="NAME",
        autocompletion=complete_cache,
        help="ARENA or ARENA/NAMESPACE. The namespace is 'cache' if you name none.",
        show_default=False,
    ),
]


def stats(name: CacheArgument, as_json: JsonOption = False) -> None:
    """Say what all processes have counted, and how full a cache is.

    Looking takes no lock, and is not counted.

    --json prints an object with the keys cache, hits, misses, hit_ratio (0 to 1, or null
    without reads), sets, deletes, evicted (items that made room), expired, damaged
    (records that failed their check: each was a miss), items, slots (items that the index
    can hold), used and size (bytes of the logs), cleared (how often) and processes (that
    have it open).
    """
    from persistmem.cli.output import counted, say, say_json
    from persistmem.sizes import format_size

    with open_cache(name) as view:
        found = view.read().stats
    if as_json:
        say_json({"cache": full_name(name), **stats_json(found)})
        return
    reads = found.hits + found.misses
    ratio = f": {percent(found.hit_ratio)} hits" if reads else ""
    say(f"cache      {full_name(name)}, open in {_processes(found.processes)}")
    say(f"reads      {reads:,}{ratio}, {found.misses:,} misses")
    say(f"writes     {found.sets:,} sets, {found.deletes:,} deletes")
    say(f"items      {found.items:,}; the index has room for {found.slots:,}")
    say(f"memory     {format_size(found.used)} of {format_size(found.size)}, {percent(found.used / found.size)}")
    say(f"gone       {found.evicted:,} evicted, {found.expired:,} expired, {found.damaged:,} damaged")
    if found.cleared:
        say(f"cleared    {counted(found.cleared, 'time')}")


def clear(name: CacheArgument) -> None:
    """Remove everything from a cache. Processes go on using it."""
    from persistmem.cache import Cache
    from persistmem.cli.keeper import open_arena
    from persistmem.cli.output import counted, note

    with open_cache(name) as view:  # who opens what is no cache by name would make it one
        items = view.read().stats.items
    with open_arena(name.arena) as arena, Cache(arena, namespace=name.given or DEFAULT_CACHE) as cache:
        cache.clear()
    note(f"cleared {full_name(name)}: removed {counted(items, 'item')}")


def full_name(name: Name) -> str:
    """Return what the cache is called in full."""
    return f"{name.arena}/{name.given or DEFAULT_CACHE}"


@contextmanager
def open_cache(name: Name) -> Iterator["CacheView"]:
    """Open a cache that is there, for looking at it.

    Raises:
        NotFoundError: it is not there.
        CorruptError: it is no cache.
    """
    from persistmem.cache.viewing import CacheView, find_caches
    from persistmem.cli.keeper import open_arena
    from persistmem.errors import CorruptError, NotFoundError

    namespace = name.given or DEFAULT_CACHE
    with open_arena(name.arena) as arena:
        try:
            view = CacheView(arena, namespace)
        except NotFoundError as error:
            there = ", ".join(f"{name.arena}/{cache}" for cache in find_caches(arena)[:10]) or "none"
            raise NotFoundError(f"there is no cache {full_name(name)}; in this arena there are: {there}") from error
        except CorruptError as error:
            raise CorruptError(f"{full_name(name)}: {error}") from error
        with view:
            yield view


def stats_json(found: "CacheStats") -> "Json":
    """Return a cache's counters for scripts."""
    from dataclasses import asdict

    reads = found.hits + found.misses
    return {**asdict(found), "hit_ratio": found.hit_ratio if reads else None}


def percent(part: float) -> str:
    """Return a part of 1 for people; nothing is called all, or none, that is not quite.

    >>> percent(0.5), percent(0.99999), percent(1), percent(0.00001)
    ('50.0 %', '> 99.9 %', '100 %', '< 0.1 %')
    """
    if part in (0, 1):
        return f"{part:.0%}".replace("%", " %")
    if round(part, 3) == 1:
        return "> 99.9 %"
    return "< 0.1 %" if round(part, 3) == 0 else f"{100 * part:.1f} %"


def _processes(count: int) -> str:
    return "no process" if count == 0 else "1 process" if count == 1 else f"{count:,} processes"
