"""What a program in a virtual machine has: which of its kernels it is in, a way to the next one, a line to the host.

Knows nothing of the host but what ``machine`` passes in the environment.
"""

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import termios
from pathlib import Path
from typing import NoReturn

KERNELS = "VM_KERNELS"
"""Paths of all kernels, in the order in which they are booted, with a colon between them."""
INITRD = "VM_INITRD"
REPORT = "VM_REPORT"
"""The serial line that the host reads."""
STAGE = "VM_STAGE"
"""How many kernels came before this one."""

_KEXEC_FILE_LOAD = 320
_REBOOT_KEXEC = 0x45584543
_LIBC = ctypes.CDLL(None, use_errno=True)


def stage() -> int:
    """How many kernels came before this one."""
    return int(os.environ[STAGE])


def kernels() -> int:
    """How many kernels there are to boot, one after the other."""
    return len(os.environ[KERNELS].split(":"))


def report(*values: object) -> None:
    """Tell the host: one line of JSON. Returns when it is on its way, whatever happens to this kernel."""
    line = os.open(os.environ[REPORT], os.O_WRONLY | os.O_NOCTTY)
    try:
        os.write(line, json.dumps(values).encode() + b"\n")
        termios.tcdrain(line)
    finally:
        os.close(line)


def tell(what: str, value: object) -> None:
    """Report something of this stage, for ``Run.said``."""
    report(stage(), what, value)


def tell_command(what: str, done: subprocess.CompletedProcess[str]) -> None:
    """Report how a command went: exit status, standard output, standard error."""
    tell(what, [done.returncode, done.stdout, done.stderr])


def tell_history() -> None:
    """Report the handovers that the agent remembers."""
    tell("history", json.loads(persistmem("history", "--json").stdout))


def kernel() -> Path:
    """The image of this kernel."""
    return Path(os.environ[KERNELS].split(":")[stage()])


def next_kernel() -> Path:
    """The image of the kernel after this one."""
    return Path(os.environ[KERNELS].split(":")[stage() + 1])


def initrd() -> Path:
    """The initrd of every kernel."""
    return Path(os.environ[INITRD])


def load_next() -> None:
    """Load the next kernel, with this one's command line."""
    arguments = Path("/proc/cmdline").read_bytes().strip() + b"\0"
    kernel = os.open(next_kernel(), os.O_RDONLY)
    disk = os.open(initrd(), os.O_RDONLY)
    length, flags = ctypes.c_ulong(len(arguments)), ctypes.c_ulong(0)
    if _LIBC.syscall(ctypes.c_long(_KEXEC_FILE_LOAD), kernel, disk, length, arguments, flags):
        raise OSError(ctypes.get_errno(), f"kexec_file_load: {os.strerror(ctypes.get_errno())}")
    os.close(kernel)
    os.close(disk)


def kexec() -> NoReturn:
    """Jump into the kernel that was loaded."""
    os.sync()
    _LIBC.reboot(ctypes.c_int(_REBOOT_KEXEC))
    raise OSError(ctypes.get_errno(), f"reboot into the loaded kernel: {os.strerror(ctypes.get_errno())}")


def run(*command: str, uid: int = 0, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command of this tree as that user, who has nothing but what everybody has."""
    done = subprocess.run(
        [sys.executable, *command],
        user=uid,
        group=uid,
        extra_groups=[],
        cwd=tempfile.gettempdir(),
        capture_output=True,
        text=True,
        check=False,
    )
    if check and done.returncode:
        raise AssertionError(f"{command} as uid {uid}: exit status {done.returncode}: {done.stderr}")
    return done


def persistmem(*arguments: str, uid: int = 0, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command line as that user."""
    return run("-m", "persistmem", *arguments, uid=uid, check=check)


def reboot(*options: str) -> subprocess.CompletedProcess[str]:
    """Go to the next kernel as an administrator would; what is returned says why not."""
    return persistmem(
        *("reboot", "--kexec", str(next_kernel()), "--initrd", str(initrd()), "--reuse-cmdline"),
        *("--running", str(kernel()), *options),
        check=False,
    )


class SystemAgent:
    """``persistmem agent run --carrier luo``, as a service manager would run it; its log goes to the console."""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "persistmem", "agent", "run", "--carrier", "luo", *options],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        """What it said until it served, or ended."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            print(line, end="", file=sys.stderr, flush=True)
            self.log.append(line)
            if " serves " in line:
                break
        self.serves = bool(self.log) and " serves " in self.log[-1]

    def kill(self) -> None:
        """Kill it, as the kernel would when memory is short."""
        self.process.kill()
        self.process.wait()
