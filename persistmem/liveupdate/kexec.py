"""Loading the next kernel and jumping into it: kexec_file_load(2) and reboot(2). Knows nothing of what is preserved.

Needs root. Only kexec_file_load(2) takes preserved memory along, kexec_load(2) does not (seen).
"""

import ctypes
import errno
import os
import platform
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NoReturn

from persistmem.errors import KexecError

_KEXEC_FILE_LOAD: Final = {"x86_64": 320, "aarch64": 294}
_UNLOAD: Final = 0x1  # KEXEC_FILE_UNLOAD, include/uapi/linux/kexec.h
_NO_INITRD: Final = 0x4  # KEXEC_FILE_NO_INITRAMFS
_REBOOT_KEXEC: Final = 0x45584543  # LINUX_REBOOT_CMD_KEXEC, include/uapi/linux/reboot.h

_REFUSALS: Final = {
    errno.EPERM: "only root may, and only while kexec is allowed: look at kernel.kexec_load_disabled and at lockdown",
    errno.ENOEXEC: "it is no kernel image that this kernel can start",
    errno.EKEYREJECTED: "its signature is not accepted, and this kernel insists on one",
    errno.ENOKEY: "it is not signed with a key that this kernel knows, and it insists on one",
    errno.EBADMSG: "its signature is damaged",
    errno.EBUSY: "another process is loading a kernel at this moment",
    errno.ENOMEM: "there is too little memory to load it",
    errno.EADDRNOTAVAIL: "there is no room for it in memory where the next kernel can start",
    errno.EINVAL: "the command line is too long for it, or the image says something that cannot be",
    errno.ENOSYS: "this kernel was built without CONFIG_KEXEC_FILE",
}


def load(kernel: Path, initrd: Path | None, command_line: str) -> None:
    """Load the next kernel, in place of one that may have been loaded. Cost: reads both files.

    Raises:
        KexecError: it cannot be loaded; the message says why.
    """
    what = f"load kernel {kernel}"
    with ExitStack() as files:
        image = _open(kernel, what, files)
        disk = -1 if initrd is None else _open(initrd, what, files)
        _file_load(image, disk, os.fsencode(command_line) + b"\0", _NO_INITRD if initrd is None else 0, what)


def unload() -> None:
    """Unload what :func:`load` loaded; nothing if nothing is.

    Raises:
        KexecError: the kernel refuses.
    """
    _file_load(-1, -1, b"", _UNLOAD, "unload the next kernel")


def jump() -> NoReturn:
    """Jump into the kernel that was loaded. Stops no service and unmounts nothing: write to disk what has to be there.

    Raises:
        KexecError: this kernel goes on, for instance because none is loaded, or because something cannot be preserved.
    """
    _libc().reboot(ctypes.c_int(_REBOOT_KEXEC))
    raise _error("kexec", ctypes.get_errno())


def _open(file: Path, what: str, files: ExitStack) -> int:
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KexecError(error.errno, f"{what}: {file}: {error.strerror}") from error
    files.callback(os.close, fd)
    return fd


def _file_load(kernel: int, initrd: int, command_line: bytes, flags: int, what: str) -> None:
    number = _KEXEC_FILE_LOAD.get(platform.machine())
    if number is None:
        raise KexecError(errno.ENOSYS, f"{what}: expected x86-64 or arm64, found {platform.machine()}")
    length, c_flags = ctypes.c_ulong(len(command_line)), ctypes.c_ulong(flags)
    if _libc().syscall(ctypes.c_long(number), kernel, initrd, length, command_line, c_flags):
        raise _error(what, ctypes.get_errno())


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _error(what: str, number: int) -> KexecError:
    meaning = _REFUSALS.get(number, "")
    name = errno.errorcode.get(number, "unknown")
    return KexecError(number, f"{what}: {os.strerror(number)} ({name})" + (f": {meaning}" if meaning else ""))
