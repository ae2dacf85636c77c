"""A root file system with Debian's systemd, for virtual machines; built once, and kept in the user's cache.

Knows Debian's packages, and what of a system a test does without; must not know what the tests run there.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from .requirements import MissingError, cache

PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "udev",
    "libseccomp2",  # systemd loads it when a unit filters system calls
    "kexec-tools",
    "kmod",
    "procps",
    "util-linux",
    "python3",
    "python3-msgpack",
    "python3-xxhash",
    "python3-typer",
)
"""Debian's packages that are installed beside the essential ones."""

WHEELS = {"trixie": ("3.13", "typer>=0.29")}
"""By suite, for which version of Python what is installed beside Debian's packages, which are too old there."""

MOUNT = "/opt/persistmem"
"""Where the second disk is mounted, and Python looks for modules."""
GEOGRAPHER, PHYSICIST = 1001, 1002
"""The uids, and gids, of two users."""
USERS = {GEOGRAPHER: "geographer", PHYSICIST: "physicist"}

MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer"),
    *("systemd-tmpfiles-clean.timer", "getty.target", "systemd-logind.service", "systemd-logind-varlink.socket"),
    *("systemd-ask-password-wall.path", "systemd-ask-password-console.path", "remote-fs.target"),
    *("systemd-firstboot.service", "systemd-sysusers.service", "systemd-machine-id-commit.service"),
    *("systemd-hwdb-update.service", "systemd-journal-catalog-update.service", "systemd-update-done.service"),
    *("ldconfig.service", "systemd-modules-load.service", "systemd-random-seed.service", "systemd-pstore.service"),
    *("systemd-hibernate-clear.service", "systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount"),
    *("sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-kernel-config.mount"),
    *("sys-fs-fuse-connections.mount", "dev-mqueue.mount", "dev-hugepages.mount"),
)
"""Units that take an emulated machine's time and do nothing for a test."""

GUEST_UNIT = f"""\
[Unit]
Description=What this machine was started for
After=multi-user.target
RequiresMountsFor={MOUNT}
FailureAction=poweroff-force

[Service]
Type=exec
EnvironmentFile={MOUNT}/environment
ExecStart=/usr/bin/python3 -m $VM_PROGRAM

[Install]
WantedBy=multi-user.target
"""

FILES = {
    "etc/machine-id": hashlib.md5(b"persistmem", usedforsecurity=False).hexdigest() + "\n",
    "etc/hostname": "vm\n",
    "etc/fstab": f"/dev/vdb {MOUNT} ext4 defaults 0 0\n",
    "etc/systemd/journald.conf.d/vm.conf": "[Journal]\nStorage=persistent\nRateLimitBurst=0\n",
    "etc/systemd/system/vm-guest.service": GUEST_UNIT,
    "usr/lib/python3/dist-packages/persistmem-checkout.pth": f"{MOUNT}\n",
}
ENABLED = ("vm-guest.service",)

_SIZE = 1 << 30
_LEFT_OUT = ("doc", "man", "locale", "info", "lintian", "bug")
_BUILDING = threading.Lock()


def system_image(suite: str) -> Path:
    """An ext4 file system with what is declared above, of that suite; built, which takes half a minute, if need be.

    MissingError if it cannot be.
    """
    declared = (suite, PACKAGES, WHEELS.get(suite), MOUNT, USERS, MASKED, FILES, ENABLED, _SIZE, _LEFT_OUT)
    key = hashlib.sha256(json.dumps(declared).encode()).hexdigest()[:16]
    image = cache("systems") / f"{suite}-{key}"
    with _BUILDING:
        if not image.is_file():
            _build(suite, image)
    return image


def _build(suite: str, image: Path) -> None:
    if os.geteuid() != 0:
        raise MissingError(f"a root file system of Debian {suite} is built by root: run 'make test-vm' once as root")
    mirror = _mirror()
    with tempfile.TemporaryDirectory(prefix="new-", dir=image.parent) as folder:
        root, draft = Path(folder) / "root", Path(folder) / "image"
        command = [
            *["mmdebstrap", "--mode=root", "--format=directory", "--variant=minbase", "--quiet"],
            f"--include={','.join(PACKAGES)}",
            # A mirror that stands still is as good: nothing here meets the network.
            '--aptopt=Acquire::Check-Valid-Until "false"',
            *[f"--dpkgopt=path-exclude=/usr/share/{directory}/*" for directory in _LEFT_OUT],
            *[suite, str(root), mirror],
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("E:")] or [done.stderr.strip()]
            raise MissingError(f"a root file system of Debian {suite}: mmdebstrap: {errors[0]}")
        _set_up(root)
        if suite in WHEELS:
            _install_wheels(root, *WHEELS[suite])
        with draft.open("wb") as file:
            file.truncate(_SIZE)
        subprocess.run(["mkfs.ext4", "-q", "-d", str(root), str(draft)], check=True)
        for older in image.parent.glob(f"{suite}-*"):
            older.unlink()
        draft.rename(image)


def _set_up(root: Path) -> None:
    for uid, name in USERS.items():
        subprocess.run(["chroot", str(root), "useradd", "--uid", str(uid), "--user-group", name], check=True)
    for file, text in FILES.items():
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / MOUNT.lstrip("/")).mkdir(parents=True)
    units = root / "etc/systemd/system"
    for unit in MASKED:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    for unit in ENABLED:
        (units / f"multi-user.target.wants/{unit}").symlink_to(f"../{unit}")
    shutil.rmtree(root / "var/cache/apt")


def _install_wheels(root: Path, python: str, requirement: str) -> None:
    command = [
        *[sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"],
        *[f"--python-version={python}", f"--target={root}/usr/local/lib/python{python}/dist-packages", requirement],
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise MissingError(f"{requirement} for Python {python}: {done.stderr.strip()}")


def _mirror() -> str:
    """Where this machine's own apt gets Debian from."""
    release = platform.freedesktop_os_release()
    if release["ID"] != "debian" or shutil.which("apt-get") is None:
        raise MissingError("a root file system of Debian: is built on Debian, whose apt knows a mirror")
    command = ["apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    for line in said.splitlines():
        suite, _, uri = line.partition(" ")
        if suite in (release.get("VERSION_CODENAME"), "testing", "unstable", "sid"):
            return uri
    raise MissingError("a root file system of Debian: this machine's apt has no source of Debian's own archive")
