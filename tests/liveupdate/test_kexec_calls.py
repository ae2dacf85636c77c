"""A kernel that cannot be loaded is refused with the reason, before anything changes. Loads none, and jumps nowhere."""

import errno
import os
import platform
import re
from pathlib import Path

import pytest

from persistmem.errors import KexecError
from persistmem.liveupdate import kexec
from tests.descriptors import open_descriptors

NOBODY = 65534


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """A file that is no kernel."""
    path = tmp_path / "kernel"
    path.write_bytes(b"no kernel")
    return path


def test_a_kernel_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    with pytest.raises(KexecError, match=re.escape(f"load kernel {missing}: {missing}: No such file")) as refusal:
        kexec.load(missing, None, "")
    assert refusal.value.errno == errno.ENOENT


def test_an_initrd_that_is_not_there_is_named_and_leaves_nothing_open(kernel: Path, tmp_path: Path) -> None:
    missing, before = tmp_path / "none", open_descriptors()
    for _ in range(3):
        with pytest.raises(KexecError, match=re.escape(f"load kernel {kernel}: {missing}: No such file")) as refusal:
            kexec.load(kernel, missing, "")
        assert refusal.value.errno == errno.ENOENT
    assert open_descriptors() == before


def test_a_machine_of_another_kind_is_told_which_are_supported(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    before = open_descriptors()
    with pytest.raises(KexecError, match="expected x86-64 or arm64, found riscv64") as refusal:
        kexec.load(kernel, kernel, "quiet")
    assert refusal.value.errno == errno.ENOSYS
    assert open_descriptors() == before


def test_who_is_not_root_is_told_what_it_takes(kernel: Path) -> None:
    # Whoever may do this to the machine that runs the tests gives that up first.
    before = os.geteuid()
    kernel_for_all = Path("/dev/null")
    if before == 0:
        os.seteuid(NOBODY)
    try:
        with pytest.raises(KexecError, match=r"^load kernel /dev/null: .+ \(E\w+\): ") as refusal:
            kexec.load(kernel_for_all, None, "\udcff")
    finally:
        os.seteuid(before)
    assert refusal.value.errno in (errno.EPERM, errno.ENOSYS)
    assert re.search("only root may, and only while kexec is allowed|CONFIG_KEXEC_FILE", str(refusal.value))
