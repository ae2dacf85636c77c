"""Boots a program of this source tree on real kernels under Debian's own systemd, where the program runs at each boot.

The root file system and a second disk, with this tree and the kernels, are the machine's for as long as QEMU runs.
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import guest
from .machine import REPORT_LINE, Job
from .requirements import CHECKOUT
from .systemd_guest import PROGRAM
from .systemd_image import MOUNT, system_image

COMMAND_LINE = (
    "console=ttyS0 panic=-1 quiet loglevel=4 root=/dev/vda rw rootfstype=ext4 TERM=dumb systemd.show_status=error"
    " kho_scratch=128M,64M,64M"
)
_DISK_BYTES = 256 << 20
_WITHOUT_CACHES = shutil.ignore_patterns("__pycache__")


@dataclass(frozen=True, slots=True)
class SystemdJob(Job):
    """A program that :mod:`tests.vm.systemd_guest` runs at each boot of user space; it decides on what comes next."""

    suite: str = "forky"
    """Debian's, whose systemd it is."""

    @property
    def seconds_max(self) -> int:
        """When it is stopped; 160 to 300 s were seen."""
        return 900

    def prepare(self, work: Path) -> list[str]:
        """Make what the machine needs in ``work``, and return QEMU's arguments for it. MissingError if it cannot be."""
        root, kernels = system_image(self.suite), self.images()
        disk = work / "disk"
        _make_disk(disk, work / "staging", self.program, kernels)
        drives = [f"file={file},format=raw,if=virtio,snapshot=on" for file in (root, disk)]
        return [
            *["-kernel", str(kernels[0]), "-append", f"{COMMAND_LINE} {self.switches}"],
            *[argument for drive in drives for argument in ("-drive", drive)],
        ]


def _make_disk(disk: Path, staging: Path, program: str, kernels: list[Path]) -> None:
    for part in ("persistmem", "apps", "tests"):
        shutil.copytree(CHECKOUT / part, staging / part, ignore=_WITHOUT_CACHES)
    (staging / "kernels").mkdir()
    for kernel in set(kernels):
        shutil.copy(kernel, staging / "kernels")
    environment = {
        PROGRAM: program,
        guest.KERNELS: ":".join(f"{MOUNT}/kernels/{kernel.name}" for kernel in kernels),
        guest.REPORT: REPORT_LINE,
    }
    (staging / "environment").write_text("".join(f"{name}={value}\n" for name, value in environment.items()))
    for path in staging.rglob("*"):
        path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o444))
    with disk.open("wb") as file:
        file.truncate(_DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-d", str(staging), str(disk)], check=True)
