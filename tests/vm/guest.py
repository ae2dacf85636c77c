"""What a program in a virtual machine has: which of its kernels it is in, a way to the next one, a line to the host.

Knows nothing of the host but what ``machine`` passes in the environment.
"""

import ctypes
import json
import os
import termios
from pathlib import Path
from typing import NoReturn

KERNELS = "VM_KERNELS"
"""Paths of all kernels, in the order in which they are booted, with a colon between them."""
INITRD = "VM_INITRD"
REPORT = "VM_REPORT"
"""The serial line that the host reads."""
STAGE = "vm.stage="
"""On the kernel's command line: how many kexecs led here."""

_KEXEC_FILE_LOAD = 320
_REBOOT_KEXEC = 0x45584543
_LIBC = ctypes.CDLL(None, use_errno=True)


def stage() -> int:
    """How many kexecs led to this kernel."""
    words = Path("/proc/cmdline").read_text("ascii").split()
    return sum(int(word.removeprefix(STAGE)) for word in words if word.startswith(STAGE))


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


def load_next() -> None:
    """Load the next kernel, with the same command line but for the stage."""
    now = stage()
    words = [word for word in Path("/proc/cmdline").read_text("ascii").split() if not word.startswith(STAGE)]
    arguments = " ".join([*words, f"{STAGE}{now + 1}"]).encode() + b"\0"
    kernel = os.open(os.environ[KERNELS].split(":")[now + 1], os.O_RDONLY)
    initrd = os.open(os.environ[INITRD], os.O_RDONLY)
    length, flags = ctypes.c_ulong(len(arguments)), ctypes.c_ulong(0)
    if _LIBC.syscall(ctypes.c_long(_KEXEC_FILE_LOAD), kernel, initrd, length, arguments, flags):
        raise OSError(ctypes.get_errno(), f"kexec_file_load: {os.strerror(ctypes.get_errno())}")
    os.close(kernel)
    os.close(initrd)


def kexec() -> NoReturn:
    """Jump into the kernel that was loaded."""
    _LIBC.reboot(ctypes.c_int(_REBOOT_KEXEC))
    raise OSError(ctypes.get_errno(), f"reboot into the loaded kernel: {os.strerror(ctypes.get_errno())}")
