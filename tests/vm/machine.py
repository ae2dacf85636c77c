"""Boots a program of this source tree on a row of real kernels under QEMU, and collects what it reports.

The host's root file system is the guest's, so that the guest runs this very interpreter and this very tree; what the
guest writes to it stays in its memory. /var/lib/persistmem is a disk of the job's own, which outlives its kernels.
"""

import gzip
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import debian, guest
from .requirements import CHECKOUT, find_kernel
from .root_image import make_root_image

COMMAND_LINE = "console=ttyS0 panic=-1 quiet loglevel=4 kho_scratch=128M,64M,64M"
DISK_MIB = 2048
REPORT = "report"
"""The file that a job's program reports into, a line of JSON each."""
TRANSLATED_MIB = 256
"""How much of what was translated QEMU keeps. With 1 GiB, as it would, the next kernel boots in 18 s where 3 s will do:
most pages that it writes to have code of the last one, which is then forgotten piece by piece (seen with QEMU 7.2)."""
SECONDS_PER_KERNEL_MAX = 240
"""A kernel boots, runs its part and jumps within 10 to 40 s on an idle machine."""

# The report goes over a serial line of its own: on the console, the kernel may speak in the middle of a line.
REPORT_LINE = "/dev/ttyS1"

_INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
if ! $b mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,ro,cache=loose host /host 2>/dev/null; then
    for module in /modules/*; do $b insmod $module; done
    $b mount -t ext4 -o ro /dev/vdb /host
fi
$b mount -t tmpfs cover /cover
$b mkdir /cover/upper /cover/work
$b mount -t overlay -o lowerdir=/host,upperdir=/cover/upper,workdir=/cover/work root /sysroot
$b chmod o+rx {private}
$b mount -t proc proc /sysroot/proc
$b mount -t sysfs sys /sysroot/sys
$b mount -t debugfs debug /sysroot/sys/kernel/debug
$b mount -t devtmpfs dev /sysroot/dev
$b mkdir /sysroot/dev/shm
$b mount -t tmpfs shm /sysroot/dev/shm
$b mount -t tmpfs run /sysroot/run
$b mkdir -p /sysroot/run/tmp /sysroot/var/lib/persistmem
$b chmod 1777 /sysroot/run/tmp
$b mount -t ext4 /sysroot/dev/vda /sysroot/var/lib/persistmem
stage=$($b cat /sysroot/var/lib/persistmem/.stage 2>/dev/null)
$b echo $(($stage + 1)) > /sysroot/var/lib/persistmem/.stage
$b sync
export {stage}=${{stage:-0}} {environment}
$b chroot /sysroot {command}
$b umount /sysroot/var/lib/persistmem
$b sync
$b poweroff -f
"""


@dataclass(frozen=True, slots=True)
class Job:
    """A program of this tree, and the kernels that it runs on, one after the other."""

    program: str
    """A module, run as ``python -m``; it calls :mod:`tests.vm.guest`."""
    kernels: tuple[str, ...]
    switches: str = "kho=on liveupdate=on"
    """On the command line of the first kernel; the next ones' comes from the program."""
    memory: int = 2048
    """MiB."""

    @property
    def seconds_max(self) -> int:
        """When it is stopped."""
        return SECONDS_PER_KERNEL_MAX * len(self.kernels)

    def images(self) -> list[Path]:
        """Where the kernels are. MissingError if one is not to be found."""
        return [debian.image() if kernel == debian.NAME else find_kernel(kernel) for kernel in self.kernels]

    def prepare(self, work: Path) -> list[str]:
        """Make what the machine needs in ``work``, and return QEMU's arguments for it. MissingError if it cannot be."""
        kernels = self.images()
        initrd, disk = work / "initrd", work / "disk"
        foreign = debian.NAME in self.kernels
        _make_initrd(initrd, work / "root", _init(self.program, kernels, initrd), debian.modules() if foreign else [])
        _make_disk(disk)
        disks = [disk]
        if foreign:
            disks.append(work / "root-image")
            make_root_image(disks[-1], work / "staging", [*kernels, initrd])
        return [
            *["-kernel", str(kernels[0]), "-initrd", str(initrd), "-append", f"{COMMAND_LINE} {self.switches}"],
            *["-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"],
            *["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"],
            *[argument for file in disks for argument in ("-drive", f"file={file},format=raw,if=virtio")],
        ]


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a job."""

    reports: list[list[object]]
    """What the program reported, in order; the values of each report."""
    console: str

    def said(self, stage: int, what: str) -> Any:
        """What the program told in the kernel after ``stage`` kexecs; AssertionError if it did not."""
        values = [report[2] for report in self.reports if report[:2] == [stage, what]]
        assert len(values) == 1, f"expected {what!r} of kernel {stage} once, found it {len(values)} times"
        return values[0]


def boot(job: Job, work: Path) -> Run:
    """Run ``job`` to its end, or to the time limit; ``work`` is an empty directory for its files.

    Needs the programs that ``requirements`` names. MissingError if there is no such kernel.
    """
    report, console = work / REPORT, work / "console"
    command = [
        *["qemu-system-x86_64", "-machine", "q35", "-accel", f"tcg,tb-size={TRANSLATED_MIB}", "-cpu", "max"],
        *["-smp", "2", "-m", str(job.memory)],
        *["-display", "none", "-nodefaults", "-no-reboot", "-device", "virtio-rng-pci"],
        *["-serial", f"file:{console}", "-serial", f"file:{report}"],
        *job.prepare(work),
    ]
    try:
        end = subprocess.run(command, capture_output=True, text=True, timeout=job.seconds_max, check=False).stderr
    except subprocess.TimeoutExpired:
        end = f"the machine was stopped after {job.seconds_max} seconds"
    # A machine that was stopped, or that died, may have been in the middle of a line.
    lines = [line for line in _text_of(report).splitlines(keepends=True) if line.endswith("\n")]
    return Run([json.loads(line) for line in lines], _text_of(console) + end)


def _text_of(file: Path) -> str:
    return file.read_text("utf-8", "replace") if file.exists() else ""


def _init(program: str, kernels: list[Path], initrd: Path) -> str:
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/run/tmp",
        "TMPDIR": "/run/tmp",
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(CHECKOUT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        guest.KERNELS: ":".join(map(str, kernels)),
        guest.INITRD: str(initrd),
        guest.REPORT: REPORT_LINE,
    }
    return _INIT.format(
        environment=" ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items()),
        stage=guest.STAGE,
        command=shlex.join([sys.executable, "-m", program]),
        private=shlex.join(f"/sysroot{directory}" for directory in ["/", *_private_directories()]),
    )


def _make_disk(disk: Path) -> None:
    with disk.open("wb") as file:
        file.truncate(DISK_MIB << 20)
    subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=1", str(disk)], check=True)


def _private_directories() -> list[Path]:
    """What keeps the guest's other users from this interpreter and this tree, on the host."""
    needed = {Path(sys.executable), Path(sys.executable).resolve(), Path(sys.base_prefix), CHECKOUT / "tests"}
    parents = sorted({parent for path in needed for parent in path.parents})
    return [parent for parent in parents if parent.stat().st_mode & 0o005 != 0o005]


def _make_initrd(initrd: Path, root: Path, init: str, modules: list[Path]) -> None:
    for directory in ("bin", "dev", "proc", "host", "cover", "sysroot", "modules"):
        (root / directory).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, root / "bin/busybox")
    (root / "init").write_text(init)
    (root / "init").chmod(0o755)
    for number, module in enumerate(modules):
        shutil.copy(module, root / f"modules/{number}-{module.name}")
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    command = ["cpio", "--create", "--format=newc", "--quiet", "--owner=0:0"]
    archive = subprocess.run(command, cwd=root, input=os.fsencode(names), capture_output=True, check=True).stdout
    initrd.write_bytes(gzip.compress(archive, 1))
