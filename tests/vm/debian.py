"""Debian's own cloud kernel, which has no kexec handover: fetched from Debian's archive, and not installed."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from .requirements import MissingError, kernel_cache

NAME = "debian-cloud"
"""What a job calls it among its kernels."""
METAPACKAGE = "linux-image-cloud-amd64"
MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "overlay",
)
"""What a machine's disks need, in the order in which they are to be loaded."""


def fetch() -> Path:
    """The root of the unpacked package, in the user's cache. MissingError if it cannot be had."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise MissingError(f"a kernel without handover: needs apt-get, to fetch Debian's {METAPACKAGE}")
    if (package := _package()) is None and os.geteuid() == 0:
        subprocess.run(["apt-get", "update", "-qq"], capture_output=True, check=False, timeout=300)
        package = _package()
    if package is None:
        raise MissingError(f"a kernel without handover: apt-get knows no {METAPACKAGE}; it is in Debian's archive")
    cache = kernel_cache()
    unpacked = cache / package
    if not unpacked.is_dir():
        draft = cache / f"{package}.new"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        done = subprocess.run(
            ["apt-get", "download", "-qq", package], cwd=draft, capture_output=True, text=True, check=False, timeout=300
        )
        if done.returncode:
            raise MissingError(f"apt-get download {package}: {done.stderr.strip()}")
        (archive,) = draft.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", str(archive), str(draft)], check=True, timeout=300)
        archive.unlink()
        draft.rename(unpacked)
    return unpacked


def image() -> Path:
    """Its kernel image."""
    (found,) = (fetch() / "boot").glob("vmlinuz-*")
    return found


def modules() -> list[Path]:
    """The modules that are to be loaded, in order."""
    return [next((fetch() / "lib/modules").rglob(f"{name}.ko*")) for name in MODULES]


def _package() -> str | None:
    said = subprocess.run(["apt-cache", "depends", METAPACKAGE], capture_output=True, text=True, check=False).stdout
    found = re.search(r"Depends: (linux-image-\S+)", said)
    return found[1] if found else None
