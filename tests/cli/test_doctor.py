"""What the doctor finds on machines of every kind, and on this one."""

import gzip
import os
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from persistmem.agent.paths import RuntimeDirectory
from persistmem.agent.protocol import Phase, Status
from persistmem.cli.doctor import examine, survives_kexec, works
from persistmem.cli.doctor.machine import Finding, Machine

from .support import CommandLine

AGENT = Status(7, UUID(int=1), "7.3.4", "luo", Phase.SERVING.value, "/var/lib/saved", 2, 1 << 30, 0, 1, 0, 0)
NO_SYSTEMD = ("systemd", "units")
SYSTEM_UNITS = "etc/systemd/system"
CONFIG = "CONFIG_KEXEC_FILE=y\nCONFIG_KEXEC_HANDOVER=y\nCONFIG_LIVEUPDATE=y\nCONFIG_LIVEUPDATE_MEMFD=y\n"


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
    for file, content in {
        "proc/meminfo": "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\nShmem: 0 kB\n",
        "proc/sys/kernel/kexec_load_disabled": "0\n",
        "proc/sys/vm/memfd_noexec": "0\n",
        "sys/kernel/mm/transparent_hugepage/shmem_enabled": "always within_size [advise] never deny force\n",
        "sys/kernel/security/lockdown": "[none] integrity confidentiality\n",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(content)
    return Machine(tmp_path, RuntimeDirectory(tmp_path / "run/persistmem"), AGENT, has_compiled_cache=True)


def lacking(machine: Machine) -> list[str]:
    """What is missing, of what a machine without systemd can have."""
    return [check.name for check, finding in examine(machine) if not finding.ok and check.name not in NO_SYSTEMD]


def under_systemd(machine: Machine, version: int) -> Machine:
    """The same machine, run by a systemd of that version."""
    (machine.root / "run/systemd/system").mkdir(parents=True)
    program = machine.root / "usr/bin/systemctl"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho 'systemd {version} ({version}.1-2)'\necho '+PAM -XKBCOMMON'\n")
    program.chmod(0o755)
    return replace(machine)


def finding(machine: Machine, name: str) -> Finding:
    return {check.name: finding for check, finding in examine(machine)}[name]


def test_a_machine_that_has_everything_survives_a_kexec(machine: Machine) -> None:
    assert lacking(machine) == []
    assert not any(finding(machine, name).ok for name in NO_SYSTEMD)
    assert survives_kexec(examine(machine))


@pytest.mark.parametrize(
    ("file", "content", "name", "said"),
    [
        ("proc/sys/kernel/osrelease", "6.18.44\n", "kernel", "6.18.44"),
        ("proc/sys/kernel/osrelease", "", "kernel", "unknown"),
        ("proc/cmdline", "kho=on quiet\n", "boot parameters", "liveupdate=on"),
        ("proc/cmdline", "kho=on liveupdate=off\n", "boot parameters", "liveupdate=on"),
        ("proc/cmdline", "kho=on liveupdate=on kho=off\n", "boot parameters", "kho=on"),
        ("proc/cmdline", "kho=on liveupdate=on kho_scratch=64M,32M,32M\n", "scratch", "128 MiB"),
        ("proc/cmdline", "kho=on liveupdate=on kho_scratch=lots\n", "scratch", "does not understand"),
        ("proc/sys/kernel/kexec_load_disabled", "1\n", "kexec", "kexec_load_disabled"),
        ("sys/kernel/security/lockdown", "none [integrity] confidentiality\n", "kexec", "lockdown is integrity"),
        ("proc/sys/vm/memfd_noexec", "2\n", "memfd mode", "vm.memfd_noexec is 2"),
        ("proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 524288 kB\nShmem: 1024 kB\n", "memory", "513 MiB"),
        ("proc/meminfo", "MemTotal: lots\n", "memory", "does not say"),
    ],
)
def test_what_is_missing_is_named(machine: Machine, file: str, content: str, name: str, said: str) -> None:
    (machine.root / file).write_text(content)
    found = finding(machine, name)
    assert not found.ok
    assert said in found.found
    assert works(examine(machine))
    assert not survives_kexec(examine(machine))


def test_the_kernel_options_are_found_where_distributions_put_them(machine: Machine) -> None:
    (machine.root / "proc/config.gz").unlink()
    assert "kernel options" in lacking(machine)
    (machine.root / "boot/config-7.3.4-generic").write_text(CONFIG)
    assert "kernel options" not in lacking(replace(machine))
    (machine.root / "boot/config-7.3.4-generic").write_text(CONFIG.replace("LIVEUPDATE_MEMFD=y", "LIVEUPDATE_MEMFD=m"))
    assert "kernel options" in lacking(replace(machine))


def test_a_kernel_configuration_that_cannot_be_read_is_no_crash(machine: Machine) -> None:
    (machine.root / "proc/config.gz").write_bytes(b"\x1f\x8b\x08garbage")
    assert "kernel options" in lacking(machine)


def test_a_kernel_without_the_device_does_not_survive(machine: Machine) -> None:
    (machine.root / "dev/liveupdate").unlink()
    assert lacking(machine) == ["device"]


def test_a_kernel_that_takes_only_signed_kernels_is_no_way_to_others(machine: Machine) -> None:
    with gzip.open(machine.root / "proc/config.gz", "wt") as config:
        config.write(CONFIG + "CONFIG_KEXEC_SIG_FORCE=y\n")
    assert lacking(machine) == ["kexec"]


def test_handover_may_be_on_by_default(machine: Machine) -> None:
    (machine.root / "proc/cmdline").write_text("liveupdate=on\n")
    assert lacking(machine) == ["boot parameters"]
    with gzip.open(machine.root / "proc/config.gz", "wt") as config:
        config.write(CONFIG + "CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT=y\n")
    assert lacking(replace(machine)) == []


def test_arenas_that_no_system_agent_keeps_do_not_survive(machine: Machine) -> None:
    assert lacking(replace(machine, agent=None)) == ["agent"]
    assert lacking(replace(machine, agent=AGENT._replace(carrier="luo (simulated)"))) == ["agent"]


def test_a_device_that_somebody_else_holds_names_the_holder(machine: Machine) -> None:
    with (machine.root / "dev/liveupdate").open():
        found = finding(replace(machine, agent=None), "device")
    assert not found.ok
    assert f"held by process {os.getpid()}" in found.found


@pytest.mark.parametrize(
    ("version", "ok", "said"),
    [(252, False, "none that is stopped"), (257, False, "a soft reboot, but no kexec"), (262, True, "crosses a kexec")],
)
def test_what_the_service_manager_carries_depends_on_its_version(
    machine: Machine, version: int, ok: bool, said: str
) -> None:
    found = finding(under_systemd(machine, version), "systemd")
    assert (found.ok, found.found.startswith(f"{version}: "), said in found.found) == (ok, True, True)


def test_a_service_manager_that_crosses_a_kexec_needs_no_agent(machine: Machine) -> None:
    alone = under_systemd(replace(machine, agent=None), 261)
    assert survives_kexec(examine(alone))
    (machine.root / "dev/liveupdate").unlink()
    assert not survives_kexec(examine(replace(alone)))


def test_one_that_does_not_needs_an_agent_that_holds_the_device(machine: Machine) -> None:
    older = under_systemd(machine, 260)
    assert survives_kexec(examine(older))
    assert not survives_kexec(examine(replace(older, agent=None)))
    assert not survives_kexec(examine(replace(older, agent=AGENT._replace(carrier="systemd (no kexec)"))))


def test_an_agent_in_a_store_that_crosses_is_as_good_as_one_with_the_device(machine: Machine) -> None:
    kept = replace(under_systemd(machine, 262), agent=AGENT._replace(carrier="systemd"))
    assert finding(kept, "agent").ok
    assert finding(kept, "device").found == "free"
    with (machine.root / "dev/liveupdate").open():
        assert not finding(kept, "device").ok


def test_a_service_manager_that_does_not_answer_is_none(machine: Machine) -> None:
    broken = under_systemd(machine, 262)
    for script in ("exit 1", "echo systemd", "echo 'systemd LATEST'"):
        (machine.root / "usr/bin/systemctl").write_text(f"#!/bin/sh\n{script}\n")
        assert finding(replace(broken), "systemd").found == "not the init system"


def test_a_service_manager_that_is_only_installed_is_none(machine: Machine) -> None:
    idle = under_systemd(machine, 262)
    (machine.root / "run/systemd/system").rmdir()
    assert finding(replace(idle), "systemd").found == "not the init system"
    assert not finding(replace(idle), "units").ok


SOCKETS = """\
Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 15021 /run/systemd/notify
0000000000000000: 00000003 00000000 {flags} 0005 01 15022 {path}
0000000000000000: 00000003 00000000 00000000 0001 03 15023
"""


@pytest.mark.parametrize(
    ("flags", "path", "ok"),
    [
        ("00010000", "/run/persistmem/agent.socket", True),
        ("00000000", "/run/persistmem/agent.socket", False),
        ("00010000", "/run/persistmem/agent.socket.old", False),
    ],
)
def test_units_are_of_use_only_if_their_socket_listens(machine: Machine, flags: str, path: str, ok: bool) -> None:
    machine = under_systemd(machine, 262)
    assert finding(machine, "units").found == "not installed"
    assert "persistmem agent install" in finding(machine, "units").mend
    directory = machine.root / SYSTEM_UNITS
    directory.mkdir(parents=True)
    for name in ("persistmem.socket", "persistmem.service"):
        assert finding(machine, "units").found == "not installed"
        (directory / name).write_text("")
    (machine.root / "proc/net").mkdir()
    (machine.root / "proc/net/unix").write_text(SOCKETS.format(flags=flags, path=path))
    found = finding(machine, "units")
    assert found.ok is ok
    assert found.found.startswith(f"in /{SYSTEM_UNITS}; /run/persistmem/agent.socket ")
    assert ok or "systemctl start persistmem.socket" in found.mend


def test_a_users_own_units_are_found_where_users_have_them(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    machine = replace(under_systemd(machine, 262), runtime=RuntimeDirectory(Path("/run/user/7/persistmem")))
    directory = machine.root / "home/ada/.config/systemd/user"
    directory.mkdir(parents=True)
    for name in ("persistmem.socket", "persistmem.service"):
        (directory / name).write_text("")
    (machine.root / "proc/net").mkdir()
    (machine.root / "proc/net/unix").write_text(
        SOCKETS.format(flags="00010000", path="/run/user/7/persistmem/agent.socket")
    )
    assert finding(machine, "units").ok


def test_small_folios_are_slow_and_no_lack(machine: Machine) -> None:
    (machine.root / "sys/kernel/mm/transparent_hugepage/shmem_enabled").write_text("always advise [never]\n")
    assert "huge folios" in lacking(machine)
    assert survives_kexec(examine(machine))


def test_a_cache_all_in_python_is_slow_and_no_lack(machine: Machine) -> None:
    slow = replace(machine, has_compiled_cache=False)
    assert lacking(slow) == ["compiled cache"]
    assert "python3-dev" in finding(slow, "compiled cache").mend
    assert survives_kexec(examine(slow))


def test_a_machine_without_live_update_is_told_that_the_simulator_is_used(cli: CommandLine) -> None:
    answer = cli("doctor")
    told = cli("doctor", "--json").json
    assert answer.status == 0
    assert told["ok"] is True
    assert all(check["mend"] for check in told["checks"] if not check["ok"])
    if not told["survives_kexec"]:
        assert "simulated kernel" in answer.text
