"""``persistmem preflight``: look before the jump into another kernel. Needs no agent, no root and no arenas."""
# ruff: noqa: PLC0415 - --help must be fast: what a function needs is imported when it runs

from pathlib import Path
from typing import Annotated, Final

import typer

from persistmem.cli.arguments import JsonOption

EXIT_STATUS: Final = {"survives": 0, "lost": 3, "panic": 4, "unknown": 5}

_SAYS: Final = {
    "survives": "State survives.",
    "lost": "State is lost; the machine comes up.",
    "panic": "THE MACHINE WILL PANIC.",
    "unknown": "Unknown: it may survive, or be lost, or the machine may panic.",
}

RunningOption = Annotated[
    Path | None,
    typer.Option(
        "--running",
        metavar="IMAGE",
        help="The image of the kernel that runs now, if it is not in /boot.",
        show_default=False,
    ),
]


def preflight(
    kernel_image: Annotated[Path, typer.Argument(metavar="KERNEL_IMAGE", show_default=False)],
    command_line: Annotated[
        str | None,
        typer.Option(
            "--command-line",
            metavar="TEXT",
            help="The next kernel's command line; this kernel's, if you do not say.",
            show_default=False,
        ),
    ] = None,
    running: RunningOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what happens if this machine kexecs into this kernel.

    A kernel with another live-update ABI panics while it boots, even if nothing was
    preserved: this looks before the jump. It reads a bzImage or a vmlinux, compares it
    with the running kernel, and changes nothing.

    The exit status is 0 if state survives, 3 if it is lost and the machine comes up, 4
    if the machine will panic, 5 if that is not known, 1 if KERNEL_IMAGE is none.

    --json prints an object with the keys verdict (survives, lost, panic or unknown),
    why, advice, kernel_from, kernel_to, abi_from and abi_to.
    """
    from persistmem.cli.output import say, say_json
    from persistmem.liveupdate.preflight import RunningKernel, judge, read_following, reuse

    following = read_following(kernel_image)
    here = RunningKernel.read(Path("/"), running)
    if command_line is None:
        command_line = reuse(Path("/proc/cmdline").read_text("ascii", "replace"))
    found = judge(here, following, command_line)
    if as_json:
        say_json(
            {
                "verdict": found.verdict.value,
                "why": found.why,
                "advice": found.advice,
                "kernel_from": here.release,
                "kernel_to": following.release,
                "abi_from": here.abi and here.abi._asdict(),
                "abi_to": following.abi._asdict(),
            }
        )
    else:
        say(_SAYS[found.verdict.value])
        say(f"from       {here.release}, {_abi_text(here.abi)}{'' if here.live else ', live update off'}")
        say(f"to         {following.release}, {_abi_text(following.abi)}")
        say(f"because    {found.why}")
        if found.advice:
            say(f"what to do {found.advice}")
    raise typer.Exit(EXIT_STATUS[found.verdict.value])


def _abi_text(abi: "tuple[str | None, ...] | None") -> str:
    if abi is None:
        return "ABI not known"
    return ", ".join(filter(None, abi)) or "no live update"
