"""What a check of the doctor looks at, and what it finds. Knows files below a root; changes nothing there."""

import gzip
import os
import re
import shutil
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

from persistmem.agent.paths import RuntimeDirectory
from persistmem.agent.protocol import Status
from persistmem.liveupdate.kernel_image import options_of

_PROGRAMS: Final = ("usr/bin", "bin", "run/current-system/sw/bin")
_PATIENCE: Final = 10.0


@dataclass(frozen=True)
class Machine:
    """Where to look."""

    root: Path
    """What ``/`` is."""
    runtime: RuntimeDirectory
    agent: Status | None
    """What the agent in there says of itself; None if none runs."""
    has_compiled_cache: bool
    """Whether this persistmem's cache is compiled where that makes it faster."""

    def read(self, path: str) -> str:
        """Return the text of a file; empty if it cannot be read."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    @cached_property
    def release(self) -> str:
        """The kernel's."""
        return self.read("proc/sys/kernel/osrelease").strip()

    @cached_property
    def command_line(self) -> list[str]:
        """The kernel's, in words."""
        return self.read("proc/cmdline").split()

    @cached_property
    def options(self) -> dict[str, str] | None:
        """The kernel's configuration, without the prefix; None if it cannot be found."""
        try:
            with gzip.open(self.root / "proc/config.gz", "rt", encoding="utf-8", errors="replace") as file:
                return options_of(file.read())
        except (OSError, EOFError, zlib.error):
            pass  # most distributions put it on disk instead
        for path in (f"boot/config-{self.release}", f"lib/modules/{self.release}/config"):
            if text := self.read(path):
                return options_of(text)
        return None

    @cached_property
    def systemd(self) -> int | None:
        """The version of systemd; None if that is not the init system, or does not say."""
        program = shutil.which("systemctl", path=os.pathsep.join(str(self.root / place) for place in _PROGRAMS))
        if program is None or not (self.root / "run/systemd/system").is_dir():
            return None
        try:
            said = subprocess.run(
                [program, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE, check=True
            ).stdout
        except (OSError, subprocess.SubprocessError):
            return None
        found = re.match(rb"systemd (\d{1,4})", said)
        return int(found[1]) if found else None

    def memory(self, field: str) -> int | None:
        """Return bytes of ``/proc/meminfo``; None if it does not say."""
        for line in self.read("proc/meminfo").splitlines():
            name, _, value = line.partition(":")
            words = value.split()
            if name == field and words and words[0].isdecimal():
                return int(words[0]) << 10
        return None


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    ok: bool
    found: str
    needed: str
    mend: str
    """What to do if it is not ok."""


Need = Literal[
    "everything", "kexec", "kexec through an agent", "kexec without an agent", "an agent from boot on", "speed"
]
"""What does not work without it."""


@dataclass(frozen=True, slots=True)
class Check:
    """A row of the table."""

    name: str
    needed_for: Need
    look: Callable[[Machine], Finding]
