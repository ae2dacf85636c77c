"""``python -m apps.memcached.fleet``: a rolling kernel upgrade of two fleets, with persistmem and on plain memcached.

The command line: options, signals, exit status, and what is printed. The rest is in the modules named ``fleet_*``.
"""
# ruff: noqa: PLC0415 - what wants a package that may be missing is imported when it is known to be there

import argparse
import importlib.util
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import Final

from rich.console import Console

import persistmem

_PLOT: Final = Path("build/fleet.png")
_LEAST_SECONDS: Final = 4.0
_MOST_NODES: Final = 9
_LATE: Final = 1.0
_SUFFIXES: Final = (".png", ".svg", ".pdf")


def main() -> int:
    """Exit status 1 if something failed or an answer was wrong, 128 and the signal's number if a signal stopped it."""
    parser = argparse.ArgumentParser(
        prog="python -m apps.memcached.fleet",
        description="A rolling kernel upgrade (simulated) of a fleet of cache servers under a Zipf workload: with"
        " persistmem, and on plain memcached beside it.",
    )
    parser.add_argument("--seconds", type=_seconds, default=80.0, help="how long visitors ask (80)")
    parser.add_argument("--nodes", type=_nodes, default=3, help=f"of each fleet: 1 to {_MOST_NODES} (3)")
    parser.add_argument("--seed", type=int, default=1, help="another number, other requests (1)")
    parser.add_argument("--plot", type=_picture, metavar="FILE", help=f"the picture: PNG, SVG or PDF ({_PLOT})")
    arguments = parser.parse_args()
    if importlib.util.find_spec("pymemcache") is None:
        return _fail("pymemcache is not installed, and the visitors need it: pip install pymemcache")
    plot: Path | None = arguments.plot or _PLOT
    if importlib.util.find_spec("matplotlib") is None:
        if arguments.plot:
            return _fail("matplotlib is not installed, and --plot needs it: pip install matplotlib")
        _note("matplotlib is not installed (pip install matplotlib): there will be no picture")
        plot = None
    signals: list[int] = []
    stop: SimpleQueue[None] = SimpleQueue()  # no Event: this thread may be waiting for it, and hold its lock

    def on_signal(number: int, _: FrameType | None) -> None:
        signals.append(number)
        stop.put(None)

    # Not an exception: what is being started or stopped gets there, and is known to whoever cleans up.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, on_signal)
    try:
        good = _show(arguments.nodes, arguments.seconds, arguments.seed, plot, stop)
    except (persistmem.Error, OSError) as error:
        return _fail(str(error))
    if good is None:
        _note("stopped; nothing of the fleets is left")
        return 128 + signals[0]
    return 0 if good else 1


def _show(nodes: int, seconds: float, seed: int, plot: Path | None, stop: SimpleQueue[None]) -> bool | None:
    """Whether all answers were right; None if it was stopped."""
    from apps.memcached.fleet_display import Display
    from apps.memcached.fleet_load import PAGES, RATE
    from apps.memcached.fleet_plot import draw
    from apps.memcached.fleet_report import MEMCACHED, PERSISTMEM, meaning, summarise, table
    from apps.memcached.fleet_upgrade import Operator

    if plot is not None:
        plot.parent.mkdir(parents=True, exist_ok=True)
    fleets = [PERSISTMEM, MEMCACHED]
    if shutil.which("memcached") is None:
        _note("memcached is not installed (Debian: apt install memcached): the fleet with persistmem is shown alone")
        fleets.remove(MEMCACHED)
    of_each = f"{nodes} nodes" if nodes > 1 else "1 node"
    _note(f"{of_each} in each fleet, warm with {PAGES:,} pages; {RATE:,} requests per second to each, Zipf")
    operator = Operator(Display(Console(stderr=True), seconds), stop, nodes, seconds, seed)
    with tempfile.TemporaryDirectory(prefix="persistmem-fleet-") as folder:
        outcome = operator.run(fleets, Path(folder))
    if outcome is None:
        return None
    summaries = {fleet: summarise(steps, outcome.upgrades) for fleet, steps in outcome.steps.items()}
    _say(f"\n{table(summaries, outcome.upgrades)}\n\n{meaning(summaries)}")
    if plot is not None:
        draw(outcome.steps, summaries, outcome.upgrades, plot)
        _say(f"picture: {plot}")
    for fleet, late in outcome.late.items():
        if late > _LATE:
            _note(f"{fleet}: this machine was too busy to show much; its visitors came up to {late:.1f} s late")
    for fleet, count in outcome.wrong.items():
        if count:
            _note(f"{fleet}: {count:,} answers were not what had been stored")
    return not any(outcome.wrong.values())


def _seconds(text: str) -> float:
    seconds = float(text)
    if not _LEAST_SECONDS <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"expected {_LEAST_SECONDS:.0f} to 3600 seconds, found {text}")
    return seconds


def _nodes(text: str) -> int:
    nodes = int(text)
    if not 1 <= nodes <= _MOST_NODES:
        raise argparse.ArgumentTypeError(f"expected 1 to {_MOST_NODES} nodes, found {text}")
    return nodes


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix not in _SUFFIXES:
        raise argparse.ArgumentTypeError(f"expected a name that ends with one of {', '.join(_SUFFIXES)}, found {text}")
    return path


def _fail(why: str) -> int:
    _note(why)
    return 1


def _note(line: str) -> None:
    sys.stderr.write(f"fleet: {line}\n")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
