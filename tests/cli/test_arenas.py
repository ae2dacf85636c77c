"""Looking at arenas, removing them, and taking them to the next simulated kernel."""

import json
import os
import re
import subprocess
from pwd import getpwuid

import pytest

from persistmem.agent.paths import RuntimeDirectory
from tests.agent.test_attacks import Agent, attached

from .support import COMMAND, PATIENCE, CommandLine


@pytest.mark.parametrize(
    "command",
    [
        ["restore", "shop"], ["history", "shop"], ["ls", "shop"], ["show", "shop"], ["verify", "shop"], ["rm", "shop"],
    ],
)  # fmt: skip
def test_looking_for_what_is_not_there_fails_in_one_line_and_starts_nothing(
    cli: CommandLine, command: list[str]
) -> None:
    answer = cli(*command)
    assert (answer.status, answer.out) == (1, b"")
    assert re.fullmatch(r"persistmem: error: .*'shop'.*\n", answer.err)
    assert cli("status", "--json").json == {
        "chosen": "user",
        "why": "$PERSISTMEM_RUNTIME_DIR says where",
        "running": False,
        "runtime_dir": str(cli.runtime),
    }


def test_a_snapshot_that_is_not_there_is_named_with_those_that_are(cli: CommandLine) -> None:
    cli("snapshot", "shop/carts", stdin=b"x")
    answer = cli("restore", "shop")
    assert answer.status == 1
    assert "'default'" in answer.err
    assert "carts" in answer.err


def test_nothing_kept_is_no_error(cli: CommandLine) -> None:
    assert cli("ls", "--json").json == []
    assert cli("ls").status == 0


def test_ls_lists_arenas_and_what_is_in_one(cli: CommandLine) -> None:
    cli("snapshot", "shop/carts", stdin=b"x" * 5000)
    cli("snapshot", "shop/prices", stdin=b"y")
    cli("snapshot", "blog", stdin=b"z")
    cli.python("attach('shop').region('hits', 4096)")
    assert [(row["arena"], row["carried_from"]) for row in cli("ls", "--json").json] == [("blog", None), ("shop", None)]
    assert re.match(r"blog +1 MiB ", cli("ls").text.split("\n")[1])
    inside = cli("ls", "shop", "--json").json
    assert [(row["name"], row["kind"]) for row in inside] == [
        ("carts", "snapshot"), ("prices", "snapshot"), ("hits", "region"),
    ]  # fmt: skip
    assert inside[2]["size"] == 4096


def test_history_is_newest_first(cli: CommandLine) -> None:
    cli("snapshot", "shop", stdin=b"one")
    cli("snapshot", "shop", stdin=b"three")
    rows = cli("history", "shop", "--json").json
    assert [row["generation"] for row in rows] == [2, 1]
    assert rows[0]["created"] >= rows[1]["created"]


def test_what_is_sound_is_said_to_be_sound(cli: CommandLine) -> None:
    cli("snapshot", "shop/carts", stdin=bytes(2_500_000))
    cli("snapshot", "shop/prices", stdin=b"y")
    everything, one = cli("verify", "shop", "--json"), cli("verify", "shop/carts", "--json")
    assert (everything.status, everything.json["ok"], everything.json["damaged"]) == (0, True, [])
    assert everything.json["bytes_checked"] > one.json["bytes_checked"] >= 2_500_000


def test_rm_removes_a_snapshot_or_a_whole_arena(cli: CommandLine) -> None:
    cli("snapshot", "shop/carts", stdin=b"x")
    cli("snapshot", "shop/prices", stdin=b"y")
    assert cli("rm", "shop/carts").status == 0
    assert [row["name"] for row in cli("ls", "shop", "--json").json] == ["prices"]
    assert cli("rm", "shop").status == 0
    assert cli("ls", "--json").json == []


def test_who_administers_an_agent_of_their_own_sees_and_removes_all_that_it_keeps(cli: CommandLine) -> None:
    cli.python("attach('shop', '64KiB'); attach('blog', '64KiB')")
    rows = cli("ls", "--all-users", "--json").json
    assert [(row["uid"], row["arena"]) for row in rows] == [(os.getuid(), "blog"), (os.getuid(), "shop")]
    assert cli("rm", "shop", "--of", getpwuid(os.getuid()).pw_name).status == 0
    assert [row["arena"] for row in cli("ls", "--json").json] == ["blog"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_root_sees_and_removes_the_arenas_of_all(cli: CommandLine) -> None:
    agent = Agent(RuntimeDirectory(cli.runtime, shared=True))
    cli.runtime.chmod(0o755)
    for uid, name in ((0, "shop"), (54_321, "loot")):
        with agent.client(uid) as client:
            os.close(attached(client, name, 1 << 16)[1])
    cli.runtime.chmod(0o700)  # root's own, as the command line takes it for
    assert re.search(r"^root +shop +64 KiB .*\n54321 +loot +64 KiB ", cli("ls", "--all-users").text, re.MULTILINE)
    refused = cli("rm", "shop", "--of", "54321")
    assert (refused.status, refused.err) == (
        1,
        "persistmem: error: uid 54321 has no arena 'shop'; persistmem ls --all-users lists those that there are\n",
    )
    removed = cli("rm", "loot", "--of", "54321")
    assert (removed.status, removed.err) == (0, "persistmem: removed arena loot of uid 54321 and everything in it\n")
    assert [row["arena"] for row in cli("ls", "--all-users", "--json").json] == ["shop"]
    agent.end()
    agent.runtime.socket.unlink()


@pytest.mark.parametrize(
    "command", [["ls", "shop", "--all-users"], ["rm", "shop/carts", "--of", "0"], ["rm", "shop", "--of", "4294967295"]]
)
def test_what_of_another_user_is_no_whole_arena_is_wrong_usage(cli: CommandLine, command: list[str]) -> None:
    assert cli(*command).status == 2


def test_show_draws_every_snapshot_and_fits_the_terminal(cli: CommandLine) -> None:
    cli("snapshot", "shop/carts", "--size", "1MiB", stdin=b"x" * 300_000)
    cli("snapshot", "shop/prices", stdin=b"y" * 10)
    for width in (60, 100):
        lines = cli("show", "shop", environment={"COLUMNS": str(width)}).text.split("\n")
        rows = [line for line in lines if re.fullmatch(r" +[\d.]+ (B|KiB|MiB) \S+", line)]
        assert len(rows) == 8
        assert {len(row) for row in rows} == {width}
        drawn = "".join(row.split()[2] for row in rows)
        assert drawn.count("a") / len(drawn) == pytest.approx(300_000 / (1 << 20), abs=0.02)
        assert any(line.startswith("a  carts") and "generation 1" in line for line in lines)
        assert any(line.startswith("b  prices") for line in lines)


def test_show_says_what_readers_hold(cli: CommandLine) -> None:
    cli("snapshot", "shop", stdin=b"x" * 300_000)
    assert not any(piece["held"] for piece in cli("show", "shop", "--json").json["pieces"])
    look = [*["-m", "persistmem"], "show", "shop"]
    drawn = cli.python(
        "import subprocess, sys; view = attach('shop').restore('default', copy=False)\n"
        f"print(subprocess.run([sys.executable, *{look}], capture_output=True, text=True, check=True).stdout)"
    )
    assert "AAAA" in drawn
    assert "293 KiB held by readers" in drawn


def test_pipes_get_no_colours(cli: CommandLine) -> None:
    cli("snapshot", "shop", stdin=b"x")
    for command in (["show", "shop"], ["ls"], ["restore", "nothing"], ["--help"]):
        answer = cli(*command)
        assert "\x1b" not in answer.text + answer.err


def test_a_simulated_kernel_upgrade_carries_everything_and_says_how_long_it_took(cli: CommandLine) -> None:
    cli("snapshot", "shop", "--format", "json", stdin=b'{"a": 1}')
    before = cli("status", "--json").json
    told = cli("reboot", "--simulate", "--release", "9.9.9-next")
    assert told.status == 0
    assert re.search(rf"{re.escape(before['kernel'])} -> 9\.9\.9-next", told.text)
    assert "1 arena, 1 MiB" in told.text
    assert re.search(r"dark +[\d.]+ m?s", told.text)
    after = cli("status", "--json").json
    assert (after["kernel"], after["handovers"], after["arenas"]) == ("9.9.9-next", 1, 1)
    assert after["boot"] != before["boot"]
    assert cli("restore", "shop").out == b'{"a": 1}\n'
    assert cli("ls", "--json").json[0]["carried_from"] == before["kernel"]
    assert cli("show", "shop", "--json").json["origin"] == {
        "kind": "carried over", "kernel_from": before["kernel"], "kernel_to": "9.9.9-next",
    }  # fmt: skip


def test_a_kernel_that_cannot_read_the_state_loses_it_and_the_exit_status_says_so(cli: CommandLine) -> None:
    cli("snapshot", "shop", stdin=b"x")
    told = cli("reboot", "--simulate", "--incompatible")
    assert told.status == 1
    assert re.search(r"lost +1", told.text)
    assert "lost: arena shop: " in told.err
    assert cli("ls", "--json").json == []


def test_the_machine_itself_is_not_rebooted_from_here(cli: CommandLine) -> None:
    answer = cli("reboot")
    assert answer.status == 2
    assert "--simulate" in answer.err


def test_the_agent_is_one_and_is_stopped_only_when_it_may(cli: CommandLine) -> None:
    assert cli("agent", "start").status == 0
    pid = cli.agent_pid()
    assert cli("agent", "start").status == 0
    assert cli.agent_pid() == pid
    cli("snapshot", "shop", stdin=b"x")
    refused = cli("agent", "stop")
    assert refused.status == 1
    assert "--discard" in refused.err
    assert cli("restore", "shop").out == b"x"
    assert cli("agent", "stop", "--discard").status == 0
    assert cli.agent_pid() is None
    assert cli("agent", "stop").status == 0


def test_an_agent_in_the_foreground_serves_until_it_is_told_to_end(cli: CommandLine) -> None:
    with subprocess.Popen(
        [*COMMAND, "agent", "run"], stderr=subprocess.PIPE, env=cli.environment(), text=True
    ) as process:
        assert process.stderr
        assert any("serves 0 arenas" in line for line in process.stderr)
        assert cli.agent_pid() == process.pid
        cli("snapshot", "shop", stdin=b"x")
        assert cli("reboot", "--simulate").status == 0
        assert cli.agent_pid() == process.pid
        assert cli("restore", "shop").out == b"x"
        assert cli("rm", "shop").status == 0
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_names_from_an_arena_cannot_command_the_terminal(cli: CommandLine) -> None:
    code = "arena = attach('shop', '1MiB'); arena.snapshot('default', {'\\x1b[2J': object})"
    printed = cli.python(
        f"import persistmem\ntry:\n    {code}\nexcept persistmem.Error as error:\n    print('refused')"
    )
    assert printed == "refused\n"
    cli.python("attach('shop').snapshot('default', {'\\x1b[2J': float('nan')})")
    assert "\x1b" not in cli("restore", "shop", "--format", "json").err
    cli.python("attach('shop').snapshot('default', {'\\x1b[2J': 1})")
    assert json.loads(cli("restore", "shop").out) == {"\x1b[2J": 1}
