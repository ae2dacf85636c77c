"""``persistmem agent``: what it is asked for wrongly, or on a machine where it cannot be."""

import os
from pathlib import Path

import pytest

from .support import CommandLine


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--quota", "1GiB"], "--quota is for --carrier luo and systemd"),
        (["run", "--preserve", "eager"], "--preserve is for --carrier luo"),
        (["run", "--carrier", "systemd", "--preserve", "eager"], "--preserve is for --carrier luo"),
        (["install", "--user", "--carrier", "luo"], "the live-update device is root's"),
        (["install", "--carrier", "simulated"], "Invalid value"),
    ],
)
def test_options_that_contradict_each_other_are_wrong_usage(cli: CommandLine, arguments: list[str], said: str) -> None:
    answer = cli("agent", *arguments, environment={"COLUMNS": "200"})
    assert answer.status == 2
    assert said in answer.err


@pytest.mark.skipif(Path("/run/systemd/system").exists(), reason="systemd runs this machine: it would be changed")
@pytest.mark.parametrize("command", ["install", "uninstall"])
def test_where_nothing_can_be_installed_one_line_says_why(cli: CommandLine, command: str) -> None:
    root = os.geteuid() == 0
    answer = cli("agent", command)
    assert (answer.status, answer.out) == (1, b"")
    assert ("systemd does not run this machine" if root else "only root") in answer.err
    answer = cli("agent", command, "--user")
    assert (answer.status, answer.out) == (1, b"")
    assert ("leave out --user" if root else "systemd does not run this machine") in answer.err
