"""``persistmem preflight`` tells people in words and scripts by its exit status, and needs no root and no agent."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from persistmem.cli.app import app
from persistmem.liveupdate.preflight import RunningKernel

from ..liveupdate.images import ABI, NEXT_ABI, RELEASE, packed_bzimage, vmlinux
from .support import Answer, CommandLine

ON = "kho=on liveupdate=on"
NOBODY = 65534
STATUS = {"survives": 0, "lost": 3, "panic": 4, "unknown": 5}
KINDS = {
    "survives": (ABI, ON, "State survives."),
    "lost": (ABI, "kho=off", "State is lost; the machine comes up."),
    "panic": (NEXT_ABI, ON, "THE MACHINE WILL PANIC."),
    "unknown": (ABI, "liveupdate=on", "Unknown: it may survive, or be lost, or the machine may panic."),
}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The root of a machine that has live update switched on, which the command takes for this one's."""
    root = Path(tempfile.mkdtemp(prefix="persistmem-test-"))
    root.chmod(0o755)
    for folder in ("proc/sys/kernel", "dev", "boot"):
        (root / folder).mkdir(parents=True)
    (root / "proc/sys/kernel/osrelease").write_text("7.2.13\n")
    (root / "dev/liveupdate").touch()
    (root / "boot/vmlinuz-7.2.13").write_bytes(packed_bzimage("zstd", vmlinux("7.2.13")))
    read = RunningKernel.read
    monkeypatch.setattr(RunningKernel, "read", lambda _, image=None: read(root, image))
    yield root
    shutil.rmtree(root)


def preflight(*arguments: str | Path) -> Answer:
    done = CliRunner().invoke(app, ["preflight", *map(str, arguments)])
    return Answer(done.exit_code, done.stdout.encode(), done.stderr)


def next_kernel(machine: Path, abi: tuple[str, ...]) -> Path:
    image = machine / "boot/vmlinuz-next"
    image.write_bytes(packed_bzimage("gzip", vmlinux(abi=abi)))
    return image


@pytest.mark.parametrize("verdict", KINDS)
def test_the_exit_status_is_the_verdict_and_the_words_say_it_too(machine: Path, verdict: str) -> None:
    abi, command_line, said = KINDS[verdict]
    answer = preflight(next_kernel(machine, abi), "--command-line", command_line)
    assert answer.status == STATUS[verdict]
    lines = answer.text.splitlines()
    assert lines[:3] == [
        said,
        "from       7.2.13, kho-v4, luo-v5, memfd-v2",
        f"to         {RELEASE}, {', '.join(abi)}",
    ]
    assert lines[3].startswith("because    ")
    assert [line.startswith("what to do ") for line in lines[4:]] == ([] if verdict == "survives" else [True])
    assert answer.err == ""


@pytest.mark.parametrize("verdict", KINDS)
def test_scripts_get_the_same_as_json(machine: Path, verdict: str) -> None:
    abi, command_line, _ = KINDS[verdict]
    answer = preflight(next_kernel(machine, abi), "--command-line", command_line, "--json")
    found = answer.json
    assert answer.status == STATUS[verdict]
    assert found.pop("why")
    assert bool(found.pop("advice")) == (verdict != "survives")
    assert found == {
        "verdict": verdict,
        "kernel_from": "7.2.13",
        "kernel_to": RELEASE,
        "abi_from": {"kho": "kho-v4", "luo": "luo-v5", "memfd": "memfd-v2"},
        "abi_to": dict(zip(("kho", "luo", "memfd"), abi, strict=True)),
    }


def test_what_is_not_known_of_a_kernel_is_said_and_is_null_for_scripts(machine: Path) -> None:
    image = next_kernel(machine, ())
    (machine / "boot/vmlinuz-7.2.13").unlink()
    (machine / "dev/liveupdate").unlink()
    lines = preflight(image).text.splitlines()
    assert lines[1:3] == ["from       7.2.13, ABI not known, live update off", f"to         {RELEASE}, no live update"]
    found = preflight(image, "--json").json
    assert found["abi_from"] is None
    assert found["abi_to"] == {"kho": None, "luo": None, "memfd": None}


def test_the_running_kernel_is_looked_for_where_one_says(machine: Path) -> None:
    image = next_kernel(machine, ABI)
    elsewhere = (machine / "boot/vmlinuz-7.2.13").rename(machine / "kernel")
    assert preflight(image, "--command-line", ON).status == STATUS["unknown"]
    assert preflight(image, "--command-line", ON, "--running", elsewhere).status == STATUS["survives"]


def test_a_command_line_that_is_not_given_is_this_kernels(machine: Path) -> None:
    image = next_kernel(machine, ABI)
    ours = Path("/proc/cmdline").read_text("ascii", "replace")
    assert preflight(image, "--json") == preflight(image, "--json", "--command-line", ours)


def test_it_takes_no_root(machine: Path) -> None:
    image = next_kernel(machine, NEXT_ABI)
    before = os.geteuid()
    assert preflight(image, "--command-line", ON).status == STATUS["panic"]
    if before == 0:
        os.seteuid(NOBODY)
    answer = preflight(image, "--command-line", ON)
    os.seteuid(before)
    assert answer.status == STATUS["panic"]


def test_help_says_what_every_exit_status_means(cli: CommandLine) -> None:
    said = " ".join(cli("preflight", "--help", environment={"COLUMNS": "200"}).text.replace("│", " ").split())
    for meaning in (
        "0 if state survives",
        "3 if it is lost and the machine comes up",
        "4 if the machine will panic",
        "5 if that is not known",
        "1 if KERNEL_IMAGE is none",
    ):
        assert meaning in said
    for key in ("verdict", "why", "advice", "kernel_from", "kernel_to", "abi_from", "abi_to"):
        assert re.search(rf"\b{key}\b", said)


def test_it_needs_no_agent_and_starts_none(cli: CommandLine) -> None:
    image = cli.file("vmlinuz", packed_bzimage("zstd", vmlinux(abi=NEXT_ABI)))
    # Lost on any machine: either nothing is handed over, or the next kernel does not look.
    answer = cli("preflight", image, "--command-line", "kho=off", environment={"PATH": ""})
    assert (answer.status, answer.err) == (STATUS["lost"], "")
    assert answer.text.startswith("State is lost; the machine comes up.\n")
    assert list(cli.runtime.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "No such file or directory"), (b"no kernel", "expected a Linux kernel, found none")],
)
def test_what_is_no_kernel_is_a_failure_in_one_line(cli: CommandLine, content: bytes | None, said: str) -> None:
    if content is not None:
        cli.file("vmlinuz", content)
    answer = cli("preflight", "vmlinuz")
    assert (answer.status, answer.out) == (1, b"")
    assert re.fullmatch(rf"persistmem: error: kernel image vmlinuz: {said}.*\n", answer.err)


def test_a_running_kernel_that_is_another_is_a_failure(cli: CommandLine) -> None:
    image = cli.file("vmlinuz", vmlinux("7.2.13-not-here"))
    answer = cli("preflight", image, "--running", image)
    assert (answer.status, answer.out) == (1, b"")
    assert "found 7.2.13-not-here\n" in answer.err


def test_wrong_usage_is_told_from_every_verdict(cli: CommandLine) -> None:
    for arguments in ([], ["one", "two"], ["vmlinuz", "--nonsense"]):
        answer = cli("preflight", *arguments)
        assert (answer.status, answer.out) == (2, b"")
