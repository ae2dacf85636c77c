"""The commands, in the order in which ``--help`` shows them. Knows their names, and nothing of what they do."""

from collections.abc import Callable
from inspect import cleandoc
from typing import Final

import typer

from persistmem.cli.agent import install, run, start, stop, uninstall
from persistmem.cli.cache import clear, stats
from persistmem.cli.listing import history, ls
from persistmem.cli.machine import doctor, status
from persistmem.cli.metrics import metrics
from persistmem.cli.preflight import preflight
from persistmem.cli.show import show
from persistmem.cli.top import top
from persistmem.cli.transfer import restore, snapshot
from persistmem.cli.upgrade import abort, prepare, reboot, save
from persistmem.cli.upkeep import rm, verify

HELP = """Keep an application's hot state in memory that survives the process and the kernel.

NAME is ARENA or ARENA/SNAPSHOT. An arena is a stretch of memory that an agent keeps: the first snapshot makes it, and
it is there until you remove it.

Data goes to stdout, everything else to stderr. The exit status is 0, 1 if it failed (a line on stderr says why), or 2
if it was used wrongly.
"""

_DATA: Final = "Snapshots"
_KEEP: Final = "Arenas"
_CACHES: Final = "Caches"
_MACHINE: Final = "Agent and machine"
_UPGRADE: Final = "The next kernel"


def _paragraphs(text: str) -> str:
    """Each paragraph on one line, for the terminal to break."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in cleandoc(text).split("\n\n"))


def _add(to: typer.Typer, command: Callable[..., None], example: str, panel: str | None = None) -> None:
    to.command(help=_paragraphs(command.__doc__ or ""), epilog=f"Example: {example}", rich_help_panel=panel)(command)


app = typer.Typer(
    help=_paragraphs(HELP),
    epilog="Example: persistmem snapshot shop/carts carts.json",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
agent = typer.Typer(
    help="Start, stop or run the agent that keeps the arenas, or have systemd run it.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
cache = typer.Typer(help="See what a cache has counted, or empty it.", no_args_is_help=True, rich_markup_mode="rich")

for panel, command, example in (
    (_DATA, snapshot, "persistmem snapshot shop/carts carts.json"),
    (_DATA, restore, "persistmem restore shop/carts carts.json"),
    (_DATA, history, "persistmem history shop/carts"),
    (_KEEP, ls, "persistmem ls"),
    (_KEEP, show, "persistmem show shop"),
    (_KEEP, verify, "persistmem verify shop"),
    (_KEEP, rm, "persistmem rm shop/carts"),
    (_CACHES, top, "persistmem top shop --interval 5"),
    (_MACHINE, status, "persistmem status"),
    (_MACHINE, doctor, "persistmem doctor"),
    (_MACHINE, metrics, "persistmem metrics --listen 127.0.0.1:9876"),
    (_UPGRADE, preflight, "persistmem preflight /boot/vmlinuz-7.3.4"),
    (_UPGRADE, reboot, "persistmem reboot --kexec /boot/vmlinuz-7.3.4 --initrd /boot/initrd.img-7.3.4 --reuse-cmdline"),
    (_UPGRADE, prepare, "persistmem prepare --deadline 30"),
    (_UPGRADE, abort, "persistmem abort"),
    (_UPGRADE, save, "persistmem save"),
):
    _add(app, command, example, panel)
for verb in (start, stop, run, install, uninstall):
    _add(agent, verb, f"persistmem agent {verb.__name__}")
_add(cache, stats, "persistmem cache stats shop")
_add(cache, clear, "persistmem cache clear shop")
app.add_typer(cache, name="cache", rich_help_panel=_CACHES)
app.add_typer(agent, name="agent", rich_help_panel=_MACHINE)
