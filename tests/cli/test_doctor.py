"""What the doctor finds on machines of every kind, and on this one."""

import gzip
from pathlib import Path

import pytest

from persistmem.agent.paths import RuntimeDirectory
from persistmem.cli.doctor import Machine, examine, survives_kexec, works

from .support import CommandLine

CONFIG = "CONFIG_KEXEC_HANDOVER=y\nCONFIG_LIVEUPDATE=y\nCONFIG_LIVEUPDATE_MEMFD=y\n"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """One that has all that is needed to survive a kexec, without systemd."""
    for folder in ("proc/sys/kernel", "dev", "boot", "run/persistmem"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "run/persistmem").chmod(0o700)
    (tmp_path / "proc/sys/kernel/osrelease").write_text("7.3.4-generic\n")
    (tmp_path / "proc/cmdline").write_text("root=/dev/vda kho=on liveupdate=on quiet\n")
    (tmp_path / "dev/liveupdate").write_text("")
    with gzip.open(tmp_path / "proc/config.gz", "wt") as config:
        config.write(CONFIG)
    return Machine(tmp_path, RuntimeDirectory(tmp_path / "run/persistmem"))


def lacking(machine: Machine) -> list[str]:
    return [check.name for check, finding in examine(machine) if not finding.ok]


def test_a_machine_that_has_everything_survives_a_kexec(machine: Machine) -> None:
    assert lacking(machine) == ["systemd"]
    assert survives_kexec(examine(machine))


@pytest.mark.parametrize(
    ("file", "content", "name", "said"),
    [
        ("proc/sys/kernel/osrelease", "6.18.44\n", "kernel", "6.18.44"),
        ("proc/sys/kernel/osrelease", "", "kernel", "unknown"),
        ("proc/cmdline", "kho=on quiet\n", "boot parameters", "liveupdate=on"),
        ("proc/cmdline", "kho=on liveupdate=off\n", "boot parameters", "liveupdate=on"),
    ],
)
def test_what_is_missing_is_named(machine: Machine, file: str, content: str, name: str, said: str) -> None:
    (machine.root / file).write_text(content)
    found = {check.name: finding for check, finding in examine(machine)}[name]
    assert not found.ok
    assert said in found.found
    assert works(examine(machine))
    assert not survives_kexec(examine(machine))


def test_the_kernel_options_are_found_where_distributions_put_them(machine: Machine) -> None:
    (machine.root / "proc/config.gz").unlink()
    assert "kernel options" in lacking(machine)
    (machine.root / "boot/config-7.3.4-generic").write_text(CONFIG)
    assert "kernel options" not in lacking(machine)
    (machine.root / "boot/config-7.3.4-generic").write_text(CONFIG.replace("LIVEUPDATE_MEMFD=y", "LIVEUPDATE_MEMFD=m"))
    assert "kernel options" in lacking(machine)


def test_a_kernel_configuration_that_cannot_be_read_is_no_crash(machine: Machine) -> None:
    (machine.root / "proc/config.gz").write_bytes(b"\x1f\x8b\x08garbage")
    assert "kernel options" in lacking(machine)


def test_a_kernel_without_the_device_does_not_survive(machine: Machine) -> None:
    (machine.root / "dev/liveupdate").unlink()
    assert lacking(machine) == ["device", "systemd"]


def test_a_machine_without_live_update_is_told_that_the_simulator_is_used(cli: CommandLine) -> None:
    answer = cli("doctor")
    told = cli("doctor", "--json").json
    assert answer.status == 0
    assert told["ok"] is True
    assert all(check["mend"] for check in told["checks"] if not check["ok"])
    if not told["survives_kexec"]:
        assert "simulated kernel" in answer.text
