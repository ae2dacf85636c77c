"""How the command line behaves as one: help, completion, wrong usage, terminals, signals."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
from typer.testing import CliRunner

from persistmem.cli.app import app

from .support import COMMAND, PATIENCE, CommandLine

COMMANDS = ["snapshot", "restore", "history", "ls", "show", "verify", "rm", "status", "reboot", "doctor"]
AGENT_COMMANDS = ["start", "stop", "run", "install", "uninstall"]


@pytest.mark.parametrize("command", [*([name] for name in COMMANDS), *(["agent", name] for name in AGENT_COMMANDS)])
def test_the_help_of_every_command_has_an_example(command: list[str]) -> None:
    answer = CliRunner().invoke(app, [*command, "--help"])
    assert answer.exit_code == 0
    assert f"Example: persistmem {' '.join(command)}" in answer.output


def test_help_lists_every_command(cli: CommandLine) -> None:
    listed = cli("--help").text
    assert all(re.search(rf"^│ {name} ", listed, re.MULTILINE) for name in [*COMMANDS, "agent"])


def test_help_imports_nothing_heavy(cli: CommandLine) -> None:
    code = (
        "import sys; from persistmem.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n    print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"], capture_output=True, text=True, env=cli.environment(), check=True
    )
    loaded = set(done.stdout.rstrip().rpartition("\n")[2].split())
    assert "typer" in loaded
    assert loaded.isdisjoint({"msgpack", "xxhash", "numpy", "json", "pydantic"})


@pytest.mark.parametrize("command", ["ls", "history", "show", "verify", "status", "doctor"])
def test_the_keys_of_the_json_output_are_in_the_help(cli: CommandLine, command: str) -> None:
    cli("snapshot", "shop", stdin=b"x")
    arguments = [] if command in ("ls", "status", "doctor") else ["shop"]
    found = cli(command, *arguments, "--json").json
    documented = cli(command, "--help", environment={"COLUMNS": "200"}).text
    for record in found if isinstance(found, list) else [found, *found.get("pieces", []), *found.get("checks", [])]:
        missing = [key for key in record if not re.search(rf"\b{key}\b", documented)]
        assert missing == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["snapshot"], ["snapshot", "shop/"], ["snapshot", "shop", "--size", "4x"], ["snapshot", "shop", "--keep", "0"],
        ["restore", "shop", "--format", "xml"], ["show", "shop/carts"], ["rm", "a\nb"], ["nonsense"],
        ["ls", "--nonsense"],
    ],
)  # fmt: skip
def test_wrong_usage_is_told_from_failure_by_the_exit_status(cli: CommandLine, arguments: list[str]) -> None:
    answer = cli(*arguments)
    assert (answer.status, answer.out) == (2, b"")
    assert "Error" in answer.err


@pytest.mark.parametrize(
    "arguments",
    [["snapshot", "shop", "missing.json"], ["snapshot", "shop", "."], ["restore", "shop", "missing/out.json"]],
)
def test_a_file_that_cannot_be_used_is_named_without_a_traceback(cli: CommandLine, arguments: list[str]) -> None:
    cli("snapshot", "shop", "--format", "json", stdin=b"1")
    answer = cli(*arguments)
    assert (answer.status, answer.out) == (1, b"")
    assert re.fullmatch(r"persistmem: error: .+\n", answer.err)
    assert Path(arguments[-1]).parts[0] in answer.err if arguments[-1] != "." else "directory" in answer.err


def complete(cli: CommandLine, *words: str) -> list[str]:
    environment = {
        "_PERSISTMEM_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["persistmem", *words]),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(
        COMMAND, capture_output=True, text=True, env=cli.environment(**environment), check=False, timeout=PATIENCE
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_the_shell_completes_arenas_and_then_their_snapshots(cli: CommandLine) -> None:
    for name in ("shop/carts", "shop/prices", "blog"):
        cli("snapshot", name, stdin=b"x")
    assert complete(cli, "restore", "s") == ["shop"]
    assert complete(cli, "restore", "shop/c") == ["shop/carts"]
    assert complete(cli, "show", "b") == ["blog"]
    assert complete(cli, "show", "nothing/") == []


def test_completion_starts_no_agent_and_never_complains(cli: CommandLine) -> None:
    assert complete(cli, "restore", "s") == []
    assert cli("status", "--json").json["running"] is False
    cli.runtime.chmod(0o755)
    assert complete(cli, "restore", "s") == []
    cli.runtime.chmod(0o700)


def test_completion_can_be_installed(cli: CommandLine) -> None:
    shown = cli("--show-completion", "bash", environment={"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"})
    assert "_PERSISTMEM_COMPLETE=complete_bash" in shown.text


def spawn(cli: CommandLine, *arguments: str) -> pexpect.spawn:
    return pexpect.spawn(
        COMMAND[0],
        [*COMMAND[1:], *arguments],
        cwd=str(cli.directory),
        env=cli.environment(TERM="xterm"),
        timeout=PATIENCE,
        dimensions=(24, 100),
        encoding="utf-8",
    )


def test_work_that_takes_long_shows_a_progress_bar_on_a_terminal(cli: CommandLine) -> None:
    os.mkfifo(cli.directory / "slow")
    terminal = spawn(cli, "snapshot", "shop", "slow")
    with (cli.directory / "slow").open("wb") as slow:
        terminal.expect("reading slow.*━")
        slow.write(b"late")
    terminal.expect("shop/default: generation 1")
    terminal.expect(pexpect.EOF)
    terminal.wait()
    assert terminal.exitstatus == 0
    assert cli("restore", "shop").out == b"late"


def test_an_interrupt_ends_a_command_without_a_traceback(cli: CommandLine) -> None:
    os.mkfifo(cli.directory / "slow")
    terminal = spawn(cli, "snapshot", "shop", "slow")
    with (cli.directory / "slow").open("wb"):
        terminal.expect("reading slow")
        terminal.sendintr()
        terminal.expect(pexpect.EOF)
    terminal.wait()
    assert terminal.exitstatus == 130
    assert "Traceback" not in (terminal.before or "")


def test_a_runtime_directory_that_others_can_enter_is_refused_with_what_to_do(cli: CommandLine) -> None:
    cli.runtime.chmod(0o755)
    answer = cli("snapshot", "shop", stdin=b"x")
    sick = cli("doctor", "--json")
    cli.runtime.chmod(0o700)
    assert answer.status == 1
    assert "chmod 0700" in answer.err
    assert (sick.status, sick.json["ok"]) == (1, False)
