"""What virtual machines need from this machine: programs, which are installed where that is allowed, and kernels."""

import os
import shutil
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path

PACKAGES: Mapping[str, str] = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "cpio": "cpio",
    "mkfs.ext4": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
}
"""Debian's package of each program."""

KERNELS_VARIABLE = "PERSISTMEM_KERNELS"
CHECKOUT = Path(__file__).resolve().parents[2]
BUILD_KERNEL = Path(__file__).with_name("build-kernel")


class MissingError(Exception):
    """Virtual machines cannot be had here; the message says what to do."""


def install_programs() -> None:
    """See to it that all programs are there: as root on Debian install them, else MissingError."""
    missing = [package for program, package in PACKAGES.items() if shutil.which(program) is None]
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise MissingError(f"virtual machines need {', '.join(missing)}: apt-get install {' '.join(missing)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *missing]):
        done = subprocess.run(
            ["apt-get", *arguments], env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        if done.returncode:
            raise MissingError(f"apt-get {' '.join(arguments)}: {done.stderr.strip()}")


def find_kernel(version: str) -> Path:
    """The kernel image of that version; built, which takes minutes, if there is none. MissingError if it cannot be."""
    directories = [CHECKOUT.parent / "shared/kernel/kernels"]
    if KERNELS_VARIABLE in os.environ:
        directories.append(Path(os.environ[KERNELS_VARIABLE]))
    directories.append(kernel_cache())
    for directory in directories:
        image = directory / f"bzImage-{version}"
        if image.is_file():
            return image.resolve()
    with _BUILDING:
        return _build_kernel(version, directories[-1])


def kernel_cache() -> Path:
    """The directory for kernels that were built or fetched."""
    return cache("kernels")


def cache(kind: str) -> Path:
    """The directory for what takes long to make, and is kept for the next run."""
    directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "persistmem" / kind
    directory.mkdir(parents=True, exist_ok=True)
    return directory


_BUILDING = threading.Lock()  # one build keeps all cores busy


def _build_kernel(version: str, directory: Path) -> Path:
    image = directory / f"bzImage-{version}"
    if not image.is_file():  # else another thread has built it by now
        done = subprocess.run([BUILD_KERNEL, version, directory], capture_output=True, text=True, check=False)
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["it did not say why"])[-1]
            raise MissingError(f"no kernel bzImage-{version} (set {KERNELS_VARIABLE} to a directory with one): {why}")
    return image
