"""The agent's command line: written here by whoever starts one, and read here by the one that was started.

Knows strings and environments; must stay cheap to import, because whoever starts an agent waits for it.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

from persistmem.agent.paths import RuntimeDirectory
from persistmem.agent.statefile import Boot, machine_boot

# -P: what lies in the current directory is not ours to import.
_PROGRAM: Final = (sys.executable, "-P", "-m", "persistmem.agent")


@dataclass(frozen=True, slots=True)
class Settings:
    """What every agent is told, and tells its successor."""

    runtime: RuntimeDirectory
    idle: float
    """Seconds with nothing kept until it ends by itself."""
    saved: Path
    """From where it takes in what was saved before the machine's last reboot."""


@dataclass(frozen=True, slots=True)
class InBackground:
    """Start, and then run in the background."""

    ready: int
    """Descriptor of a pipe to say in how the start went."""


@dataclass(frozen=True, slots=True)
class AfterKexec:
    """Go on where the last kernel's agent left."""

    boot: Boot
    image: int
    """Descriptor of all that the last kernel handed over."""
    lock: int
    """Descriptor that holds the lock of the one agent."""


def start_command(settings: Settings, order: InBackground) -> list[str]:
    """Return the command of an agent in the background."""
    return [*_command(settings), f"--ready={order.ready}"]


def successor_command(settings: Settings, order: AfterKexec) -> list[str]:
    """Return the command of the next kernel's agent."""
    return [
        *_command(settings),
        f"--image={order.image}",
        f"--lock={order.lock}",
        f"--boot={order.boot.id}",
        f"--kernel={order.boot.kernel}",
        f"--luo={order.boot.luo}",
    ]


def parse(arguments: Sequence[str]) -> tuple[Settings, InBackground | AfterKexec]:
    """Read what one of the functions above wrote; on anything else, end with status 2."""
    import argparse  # noqa: PLC0415 - only agents read; who starts one imports this module to write

    parser = argparse.ArgumentParser(prog="persistmem.agent", allow_abbrev=False)
    parser.add_argument("--runtime-dir", type=Path, required=True)
    parser.add_argument("--idle", type=float, required=True)
    parser.add_argument("--saved", type=Path, required=True)
    parser.add_argument("--ready", type=int)
    parser.add_argument("--image", type=int)
    parser.add_argument("--lock", type=int)
    parser.add_argument("--boot", type=UUID)
    parser.add_argument("--kernel")
    parser.add_argument("--luo")
    found = parser.parse_args(arguments)
    settings = Settings(RuntimeDirectory(found.runtime_dir), found.idle, found.saved)
    if found.ready is not None:
        return settings, InBackground(found.ready)
    if None in (found.image, found.lock, found.boot, found.kernel, found.luo):
        parser.error("expected --ready, or all of --image, --lock, --boot, --kernel and --luo")
    boot = Boot(machine_boot(), found.boot, found.kernel, found.luo)
    return settings, AfterKexec(boot, found.image, found.lock)


def environment() -> dict[str, str]:
    """Return the environment in which an agent finds the modules that this process runs, wherever it starts."""
    package = str(Path(__file__).resolve().parents[2])
    inherited = [str(Path(entry).absolute()) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys([package, *inherited]))}


def _command(settings: Settings) -> list[str]:
    runtime, saved = settings.runtime.path, settings.saved
    return [*_PROGRAM, f"--runtime-dir={runtime}", f"--idle={settings.idle}", f"--saved={saved}"]
