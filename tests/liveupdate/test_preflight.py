"""What becomes of a machine's state is told before it kexecs: never that it is safe when it is not, and why."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from persistmem.errors import KernelImageError
from persistmem.liveupdate.kernel_image import Abi, KernelImage
from persistmem.liveupdate.preflight import RunningKernel, Verdict, judge, read_following, reuse, without_handover

from .images import ABI, CONFIG, NEXT_ABI, RELEASE, ikconfig, packed_bzimage, vmlinux

ON = "root=/dev/vda kho=on liveupdate=on"
V5 = Abi(*ABI)
V6 = Abi(*NEXT_ABI)
OPTIONS = {"KEXEC_HANDOVER": "y", "LIVEUPDATE": "y"}
ON_BY_DEFAULT = {**OPTIONS, "KEXEC_HANDOVER_ENABLE_DEFAULT": "y"}
NOBODY = 65534
PLACES = [
    "boot/vmlinuz-" + RELEASE,
    f"lib/modules/{RELEASE}/vmlinuz",
    "boot/vmlinux-" + RELEASE,
    "usr/lib/debug/boot/vmlinux-" + RELEASE,
]


@pytest.fixture
def machine() -> Iterator[Path]:
    """The root of a machine that has live update switched on, and no image; everybody can see it."""
    root = Path(tempfile.mkdtemp(prefix="persistmem-test-"))
    root.chmod(0o755)
    for folder in ("proc/sys/kernel", "dev", "boot", f"lib/modules/{RELEASE}", "usr/lib/debug/boot"):
        (root / folder).mkdir(parents=True)
    (root / "proc/sys/kernel/osrelease").write_text(f"{RELEASE}\n")
    (root / "dev/liveupdate").touch()
    yield root
    shutil.rmtree(root)


@contextmanager
def without_root() -> Iterator[None]:
    """As a user who is not root, if this one is."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    yield
    os.seteuid(before)


def running(abi: Abi | None = V5) -> RunningKernel:
    return RunningKernel("7.2.13", True, abi)


def following(abi: Abi = V5, options: dict[str, str] | None = None) -> KernelImage:
    return KernelImage("7.3.4", abi, options, "zstd")


def test_state_survives_between_kernels_that_speak_the_same_abi() -> None:
    found = judge(running(), following(), ON)
    assert found.verdict is Verdict.SURVIVES
    assert "7.3.4 reads what 7.2.13 hands over: kho-v4, luo-v5, memfd-v2" in found.why
    assert found.advice == ""
    assert judge(running(), following(options=ON_BY_DEFAULT), "liveupdate=on").verdict is Verdict.SURVIVES


@pytest.mark.parametrize("command_line", [ON, "kho=on", "kho=on liveupdate=off", f"kho=off {ON}", ""])
def test_a_kernel_with_another_luo_version_panics_whatever_was_preserved(command_line: str) -> None:
    # Nothing is said of what was preserved, for it does not matter; nor does liveupdate=.
    for options in (None, ON_BY_DEFAULT):
        found = judge(running(), following(V6, options), command_line)
        assert found.verdict is Verdict.PANIC
        assert "it reads luo-v6, and is handed luo-v5, whether anything was preserved or not: it panics" in found.why
        assert "put kho=off on its command line" in found.advice
    older = judge(running(V6), following(V5), ON)
    assert older.verdict is Verdict.PANIC
    assert "it reads luo-v5, and is handed luo-v6" in older.why


@pytest.mark.parametrize(
    ("options", "command_line"),
    [(None, "kho=off"), (None, f"{ON} kho=off"), (ON_BY_DEFAULT, "kho=0"), (OPTIONS, "liveupdate=on")],
)
def test_a_kernel_with_handover_off_boots_without_the_state(options: dict[str, str] | None, command_line: str) -> None:
    for abi in (V5, V6):
        found = judge(running(), following(abi, options), command_line)
        assert found.verdict is Verdict.LOST
        assert "kexec handover is off there" in found.why
        assert "kho=on and liveupdate=on" in found.advice


@pytest.mark.parametrize(
    ("abi", "command_line", "why", "advice"),
    [
        (Abi(None, None, None), ON, "it has no kexec handover", "build it with live update"),
        (Abi("kho-v3", "luo-v6", "memfd-v2"), ON, "it reads kho-v3, and is handed kho-v4", "go by the disk"),
        (Abi("kho-v4", None, None), ON, "it has no live update", "go by the disk"),
        (V5, "kho=on", "liveupdate=on is not on its command line", "put liveupdate=on"),
        (V5, "kho=on liveupdate=on liveupdate=off", "liveupdate=on is not on its command line", "put liveupdate=on"),
        (Abi("kho-v4", "luo-v5", None), ON, "it reads no memfds, and is handed memfd-v2", "go by the disk"),
        (Abi("kho-v4", "luo-v5", "memfd-v3"), ON, "it reads memfd-v3, and is handed memfd-v2", "go by the disk"),
    ],
)
def test_state_that_a_kernel_does_not_take_up_is_lost(abi: Abi, command_line: str, why: str, advice: str) -> None:
    found = judge(running(), following(abi), command_line)
    assert found.verdict is Verdict.LOST
    assert why in found.why
    assert advice in found.advice


def test_a_running_kernel_without_live_update_hands_nothing_over() -> None:
    here = RunningKernel("7.2.13", False, V5)
    for abi, command_line in ((V5, ON), (V6, ON), (V6, ""), (Abi(None, None, None), ON)):
        found = judge(here, following(abi), command_line)
        assert found.verdict is Verdict.LOST
        assert "live update is not switched on here" in found.why


@pytest.mark.parametrize(
    ("ours", "theirs", "options", "command_line", "why"),
    [
        (None, V5, None, ON, "the live-update ABI of the running kernel cannot be found out: no image of it"),
        (Abi(None, None, None), V5, None, ON, "cannot be found out: no image of it"),
        (Abi("kho-v4", None, None), V5, None, ON, "cannot be found out: no image of it"),
        (Abi("kho-v4", "luo-v5", None), V5, None, ON, "how the running kernel hands over memfds cannot be found out"),
        (V5, V5, None, "liveupdate=on", "whether kexec handover is on there by default is not known"),
        (V5, Abi(None, None, None), OPTIONS, ON, "has live update (CONFIG_LIVEUPDATE), but the ABI"),
        (V5, Abi("kho-v4", None, None), OPTIONS, ON, "has live update (CONFIG_LIVEUPDATE), but the ABI"),
    ],
)
def test_what_is_not_known_is_said_to_be_unknown(
    ours: Abi | None, theirs: Abi, options: dict[str, str] | None, command_line: str, why: str
) -> None:
    here = replace(running(ours), why_unknown="no image of it")
    found = judge(here, following(theirs, options), command_line)
    assert found.verdict is Verdict.UNKNOWN
    assert why in found.why
    assert "with kho=off on its command line it is sure to boot" in found.advice


def test_a_running_kernel_whose_image_names_no_abi_is_unknown_for_a_reason() -> None:
    found = judge(running(Abi(None, None, None)), following(), ON)
    assert found.verdict is Verdict.UNKNOWN
    assert found.why.endswith("cannot be found out: it does not stand in its image")


@pytest.mark.parametrize(
    "on", ["on", "ON", "1", "y", "Yes", "true", "enable", "only", '"on"', "on kho", "on kho=maybe"]
)
def test_handover_is_on_however_the_kernel_lets_it_be_written(on: str) -> None:
    assert judge(running(), following(V6), f"kho=off kho={on}").verdict is Verdict.PANIC
    assert judge(running(), following(), f"kho=off kho={on} liveupdate={on}").verdict is Verdict.SURVIVES


@pytest.mark.parametrize("off", ["off", "Off", "0", "n", "no", "false", "disable", '"off"', "off kho=", "off kho=ok"])
def test_handover_is_off_however_the_kernel_lets_it_be_written(off: str) -> None:
    assert judge(running(), following(V6), f"kho=on kho={off}").verdict is Verdict.LOST
    assert judge(running(), following(V6), f'kho=on "kho={off}').verdict is Verdict.LOST


@pytest.mark.parametrize(
    "command_line",
    ["kho=on -- kho=off", 'kho=on dyndbg="file a.c +p; kho=off "', "kho=on khox=off xkho=off", "kho=on KHO=off"],
)
def test_words_that_are_not_for_the_kernel_do_not_switch_handover_off(command_line: str) -> None:
    assert judge(running(), following(V6), command_line).verdict is Verdict.PANIC


@pytest.mark.parametrize(
    ("command_line", "without"),
    [
        ("", "kho=on kho=off"),
        (ON, f"{ON} kho=on kho=off"),
        ("kho=on", "kho=on kho=on kho=off"),
        ("kho=on -- single kho=on", "kho=on kho=on kho=off -- single kho=on"),
        ('kho=on dyndbg="file a.c  +p"', 'kho=on dyndbg="file a.c  +p" kho=on kho=off'),
        ('kho=on dyndbg="file a.c  -- "', 'kho=on dyndbg="file a.c  -- " kho=on kho=off'),
    ],
)
def test_no_kernel_panics_that_is_started_without_handover_and_the_one_after_it_has_it_back(
    command_line: str, without: str
) -> None:
    assert without_handover(command_line) == without
    assert judge(running(), following(V6), without).verdict is Verdict.LOST
    assert reuse(f"BOOT_IMAGE=/boot/vmlinuz-7.2.13 {without}") == command_line


def test_a_command_line_is_reused_as_it_is() -> None:
    for command_line in ("", "root=/dev/vda kho=off", "kho=on kho=off quiet", "quiet -- kho=on kho=off"):
        assert reuse(command_line) == command_line


@pytest.mark.parametrize("place", PLACES)
def test_the_running_kernel_is_found_where_distributions_put_it(machine: Path, place: str) -> None:
    (machine / place).write_bytes(vmlinux() if "vmlinux" in place else packed_bzimage("zstd", vmlinux()))
    assert RunningKernel.read(machine) == RunningKernel(RELEASE, True, V5)


def test_a_machine_without_the_device_has_live_update_off(machine: Path) -> None:
    (machine / "dev/liveupdate").unlink()
    assert RunningKernel.read(machine).live is False


def test_an_image_of_another_kernel_is_not_the_running_one(machine: Path) -> None:
    (machine / PLACES[0]).write_bytes(vmlinux("7.3.5-generic", NEXT_ABI))
    found = RunningKernel.read(machine)
    assert found.abi is None
    assert f"{machine / PLACES[0]} is another kernel, 7.3.5-generic" in found.why_unknown
    (machine / PLACES[1]).write_bytes(vmlinux())
    assert RunningKernel.read(machine).abi == V5


def test_an_image_that_cannot_be_used_is_named_and_the_next_one_is_used(machine: Path) -> None:
    (machine / PLACES[0]).write_bytes(b"no kernel")
    (machine / PLACES[1]).mkdir()
    found = RunningKernel.read(machine)
    assert found.abi is None
    assert f"kernel image {machine / PLACES[0]}: expected a Linux kernel" in found.why_unknown
    assert f"kernel image {machine / PLACES[1]}: Is a directory" in found.why_unknown
    assert found.why_unknown.endswith("; name its image with --running")
    (machine / PLACES[2]).write_bytes(vmlinux())
    assert RunningKernel.read(machine).abi == V5


def test_a_machine_without_an_image_says_where_it_was_looked_for(machine: Path) -> None:
    found = RunningKernel.read(machine)
    assert found == RunningKernel(RELEASE, True, None, found.why_unknown)
    assert found.why_unknown == f"there is no image of it in /boot/vmlinuz-{RELEASE}; name its image with --running"


@pytest.mark.parametrize("closed", ["boot", PLACES[0]])
def test_an_image_that_only_root_may_read_leaves_the_others(machine: Path, closed: str) -> None:
    (machine / PLACES[0]).write_bytes(vmlinux())
    (machine / closed).chmod(0)
    with without_root():
        found = RunningKernel.read(machine)
    assert found.abi is None
    assert f"kernel image {machine / PLACES[0]}: Permission denied" in found.why_unknown
    (machine / PLACES[1]).write_bytes(vmlinux())
    with without_root():
        assert RunningKernel.read(machine).abi == V5
    (machine / closed).chmod(0o755)


def test_an_image_that_is_named_has_to_be_of_the_running_kernel(machine: Path) -> None:
    image = machine / "kernel"
    image.write_bytes(packed_bzimage("xz", vmlinux()))
    assert RunningKernel.read(machine, image).abi == V5
    image.write_bytes(vmlinux("7.3.5-generic"))
    with pytest.raises(KernelImageError, match=r"expected the running 7\.3\.4-generic, found 7\.3\.5-generic"):
        RunningKernel.read(machine, image)
    with pytest.raises(KernelImageError, match="No such file or directory"):
        RunningKernel.read(machine, machine / "none")


def test_root_can_do_without_an_image_where_debugfs_shows_what_is_handed_over(machine: Path) -> None:
    handed_over = machine / "sys/kernel/debug/kho/out"
    (handed_over / "sub_fdts").mkdir(parents=True)
    (handed_over / "fdt").write_bytes(b"\xd0\x0d\xfe\xed" + bytes(60) + b"compatible\0\0\0kho-v4\0\0LUO\0")
    (handed_over / "sub_fdts/LUO").write_bytes(b"luo-v5\0\0" + bytes(24))
    found = RunningKernel.read(machine)
    assert found == RunningKernel(RELEASE, True, Abi("kho-v4", "luo-v5", None))
    assert judge(found, following(V6), ON).verdict is Verdict.PANIC
    assert judge(found, following(V5), ON).verdict is Verdict.UNKNOWN


def test_the_configuration_beside_an_image_counts_if_there_is_none_in_it(tmp_path: Path) -> None:
    image = tmp_path / f"vmlinuz-{RELEASE}"
    image.write_bytes(vmlinux())
    assert read_following(image).options is None
    (tmp_path / f"config-{RELEASE}").write_text("CONFIG_KEXEC_HANDOVER=y\n# CONFIG_LIVEUPDATE is not set\n")
    assert read_following(image).options == {"KEXEC_HANDOVER": "y"}
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels/vmlinuz").symlink_to(image)
    assert read_following(tmp_path / "kernels/vmlinuz").options == {"KEXEC_HANDOVER": "y"}
    image.write_bytes(vmlinux(config=ikconfig(CONFIG)))
    assert read_following(image).options == {"LOCALVERSION": '"-generic"', **OPTIONS}


def test_a_configuration_that_cannot_be_read_is_none(machine: Path) -> None:
    image, config = machine / "boot/vmlinuz", machine / f"boot/config-{RELEASE}"
    image.write_bytes(vmlinux())
    config.write_text("CONFIG_KEXEC_HANDOVER=y\n")
    config.chmod(0)
    with without_root():
        assert read_following(image).options is None


def test_a_release_with_a_slash_names_no_file_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "boot/config-7").mkdir(parents=True)
    (tmp_path / "config").write_text("CONFIG_KEXEC_HANDOVER=y\n")
    (tmp_path / "boot/vmlinuz").write_bytes(vmlinux("7/../../config"))
    assert (tmp_path / "boot/config-7/../../config").is_file()
    assert read_following(tmp_path / "boot/vmlinuz").options is None
