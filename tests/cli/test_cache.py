"""Caches from the command line: what they have counted, emptying them, watching them."""

import json
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager

import pexpect
import pytest
import xxhash
from typer.testing import CliRunner

import persistmem
from persistmem.arena.locks import try_lock
from persistmem.cache.layout import writer_lock_at
from persistmem.cli.app import app

from .support import COMMAND, PATIENCE, CommandLine
from .test_usage import complete, spawn

FIVE_READS = """
import persistmem
cache = persistmem.Cache("shop", "1MiB")
for number in range(4):
    cache[f"key {number}"] = number
del cache["key 3"]
for number in range(5):
    cache.get(f"key {number}")
"""


@contextmanager
def busy(cli: CommandLine, statements: str = "") -> Iterator[None]:
    """A process that reads what is there, and misses once in four times, until the block ends."""
    code = (
        "import persistmem, time\n"
        "cache = persistmem.Cache('shop', '1MiB')\n"
        "for key in 'abc': cache[key] = key\n"
        "print('ready', flush=True)\n"
        f"while True:\n    [cache.get(key) for key in 'abcd']; {statements or 'pass'}; time.sleep(0.001)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=cli.directory, env=cli.environment()
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield
        finally:
            process.kill()


# stats and clear


def test_the_counts_of_processes_that_are_gone_are_there(cli: CommandLine) -> None:
    cli.python(FIVE_READS)
    found = cli("cache", "stats", "shop", "--json").json
    assert {key: found[key] for key in ("cache", "hits", "misses", "sets", "deletes", "items", "processes")} == {
        "cache": "shop/cache",
        "hits": 3,
        "misses": 2,
        "sets": 4,
        "deletes": 1,
        "items": 3,
        "processes": 0,
    }
    assert found["hit_ratio"] == 0.6


def test_people_read_the_same(cli: CommandLine) -> None:
    cli.python(FIVE_READS)
    said = cli("cache", "stats", "shop").text
    assert re.search(r"^cache +shop/cache, open in no process$", said, re.MULTILINE)
    assert re.search(r"^reads +5: 60\.0 % hits, 2 misses$", said, re.MULTILINE)
    with busy(cli):
        assert "open in 1 process\n" in cli("cache", "stats", "shop").text


def test_a_cache_that_nobody_read_has_no_hit_ratio(cli: CommandLine) -> None:
    cli.python("import persistmem; persistmem.Cache('shop', '1MiB')")
    assert cli("cache", "stats", "shop", "--json").json["hit_ratio"] is None
    assert "% hits" not in cli("cache", "stats", "shop").text


def test_a_cache_among_others_is_named_with_its_namespace(cli: CommandLine) -> None:
    cli.python(
        "import persistmem; arena = attach('shop', '4MiB')\n"
        "for name in ('prices', 'carts'): persistmem.Cache(arena, '1MiB', namespace=name)[name] = 1"
    )
    assert cli("cache", "stats", "shop/carts", "--json").json["items"] == 1
    missing = cli("cache", "stats", "shop")
    assert (missing.status, missing.out) == (1, b"")
    assert "there is no cache shop/cache" in missing.err
    assert "shop/carts, shop/prices" in missing.err


@pytest.mark.parametrize("command", ["stats", "clear"])
def test_what_is_no_cache_is_refused_and_not_made_one(cli: CommandLine, command: str) -> None:
    cli.python(
        "arena = attach('shop', '1MiB'); arena.region('empty', 1 << 16)\n"
        "arena.region('tiny', 8); arena.region('other', 1 << 16).view()[:4] = b'else'"
    )
    before = region_digests("shop", "empty", "tiny", "other")
    for name in ("shop/empty", "shop/tiny", "shop/other"):
        answer = cli("cache", command, name)
        assert (answer.status, answer.out) == (1, b"")
        assert re.fullmatch(rf"persistmem: error: {name}: .+\n", answer.err)
    assert region_digests("shop", "empty", "tiny", "other") == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["cache"],
        ["cache", "stats"],
        ["cache", "stats", "shop/"],
        ["cache", "clear", "a\nb"],
        ["top", "--interval", "0"],
    ],
)
def test_wrong_usage_has_a_status_of_its_own(cli: CommandLine, arguments: list[str]) -> None:
    assert cli(*arguments).status == 2


def test_clearing_removes_everything_and_processes_go_on(cli: CommandLine) -> None:
    cache = persistmem.Cache("shop", "1MiB")
    cache.set_many({"ada": 1, "bob": 2})
    answer = cli("cache", "clear", "shop")
    assert (answer.status, answer.out) == (0, b"")
    assert "shop/cache: removed 2 items" in answer.err
    assert cache.get("ada") is None
    cache["ada"] = 3
    assert cli("cache", "stats", "shop", "--json").json["items"] == 1
    assert cli("cache", "stats", "shop", "--json").json["cleared"] == 1
    cache.close()


def region_digests(arena_name: str, *regions: str) -> list[str]:
    with persistmem.attach(arena_name) as arena:
        digests = []
        for name in regions:
            with arena.region(name) as region:
                digests.append(xxhash.xxh3_128_hexdigest(bytes(region.view())))
        return digests


def test_looking_changes_no_byte_and_waits_for_no_writer(cli: CommandLine) -> None:
    cli.python(FIVE_READS)
    before = region_digests("shop", "cache")
    with persistmem.attach("shop") as arena, arena.region("cache") as region:
        fd = arena.descriptor()
        assert try_lock(fd, writer_lock_at(region.record.offset), 1, exclusive=True)
        assert cli("cache", "stats", "shop").status == 0
        assert cli("top", "--once", "--interval", "0.1").status == 0
    assert region_digests("shop", "cache") == before


@pytest.mark.parametrize("command", [["cache", "stats"], ["cache", "clear"], ["top"]])
def test_help_has_an_example(command: list[str]) -> None:
    answer = CliRunner().invoke(app, [*command, "--help"])
    assert f"Example: persistmem {' '.join(command)}" in answer.output


@pytest.mark.parametrize("command", [["cache", "stats", "shop"], ["top", "--once"]])
def test_the_keys_of_the_json_output_are_in_the_help(cli: CommandLine, command: list[str]) -> None:
    cli.python(FIVE_READS)
    found = cli(*command, "--json").json
    documented = cli(*command, "--help", environment={"COLUMNS": "200"}).text
    for record in found if isinstance(found, list) else [found]:
        assert [key for key in record if not re.search(rf"\b{key}\b", documented)] == []


def test_the_shell_completes_caches(cli: CommandLine) -> None:
    cli.python("import persistmem; persistmem.Cache(attach('shop', '2MiB'), '1MiB', namespace='carts')")
    assert complete(cli, "cache", "stats", "s") == ["shop"]
    assert complete(cli, "top", "shop/") == ["shop/carts"]
    assert complete(cli, "cache", "clear", "nothing/") == []


# top


def test_top_finds_all_caches_and_nothing_else(cli: CommandLine) -> None:
    cli("snapshot", "blog", stdin=b"x")
    cli.python(
        "import persistmem; persistmem.Cache('shop', '1MiB'); arena = attach('mixed', '4MiB')\n"
        "arena.region('raw', 1 << 16); arena.snapshot('notes', 'x'); persistmem.Cache(arena, '1MiB', namespace='a/b')"
    )
    lines = cli("top", "--once", "--interval", "0.1", "--json").json
    assert [line["cache"] for line in lines] == ["mixed/a/b", "shop/cache"]
    only = cli("top", "mixed", "--once", "--interval", "0.1", "--json").json
    assert [line["cache"] for line in only] == ["mixed/a/b"]
    assert cli("top", "shop", "nothing", "--once").status == 1
    assert cli("top", "shop/carts", "--once").status == 1


def test_rates_and_ratios_are_those_of_the_interval(cli: CommandLine) -> None:
    with busy(cli):
        (line,) = cli("top", "--once", "--interval", "0.5", "--json").json
    assert line["hit_ratio"] == pytest.approx(0.75, abs=0.01)
    assert line["reads"] > 40
    assert (line["writes"], line["evicted"]) == (0, 0)
    assert line["new_turnover_estimate"] is line["kept_turnover_estimate"] is None
    (idle,) = cli("top", "--once", "--interval", "0.1", "--json").json
    assert (idle["reads"], idle["hit_ratio"]) == (0, None)
    assert idle["hit_ratio_overall"] == pytest.approx(0.75, abs=0.01)


def test_evictions_and_turnover_are_seen_where_a_cache_overflows(cli: CommandLine) -> None:
    number = "number = globals().get('number', 0) + 100"
    with busy(cli, f"{number}; cache.set_many({{k: bytes(1000) for k in range(number, number + 100)}})"):
        for _ in range(20):
            (line,) = cli("top", "--once", "--interval", "0.5", "--json").json
            if line["evicted"]:
                break
    assert line["evicted"] > 100
    assert 0 < line["new_turnover_estimate"] < 60
    assert line["fill"] > 0.8


def test_one_table_goes_where_no_terminal_is(cli: CommandLine) -> None:
    cli.python(FIVE_READS)
    heading, line = cli("top", "--once", "--interval", "0.1").text.splitlines()
    assert heading.startswith("CACHE       HITS")
    assert line.startswith("shop/cache  -     60.0 %")


def test_no_caches_are_no_failure(cli: CommandLine) -> None:
    answer = cli("top", "--once")
    assert (answer.status, answer.out) == (0, b"")
    assert "no caches" in answer.err
    assert cli("top", "--once", "--json", "--interval", "0.1").json == []
    assert cli("status", "--json").json["running"] is False


def test_top_sees_caches_come_and_go_and_cross_kernels_until_it_is_interrupted(cli: CommandLine) -> None:
    with subprocess.Popen(
        [*COMMAND, "top", "--json", "--interval", "0.1"], stdout=subprocess.PIPE, env=cli.environment()
    ) as process:
        assert process.stdout is not None

        def wait_for(*caches: str) -> None:
            assert process.stdout is not None
            for _ in range(300):
                if [line["cache"] for line in json.loads(process.stdout.readline())] == list(caches):
                    return
            raise AssertionError(f"never saw {caches}")

        wait_for()
        cli.python(FIVE_READS)
        wait_for("shop/cache")
        cli.python("import persistmem; persistmem.Cache('blog', '1MiB')")
        wait_for("blog/cache", "shop/cache")
        assert cli("reboot", "--simulate").status == 0
        cli("rm", "blog")
        wait_for("shop/cache")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize(("leave", "status"), [("q", 0), ("\x03", 0), ("terminate", 143)])
def test_the_live_view_ends_when_told_and_leaves_the_terminal_as_it_was(
    cli: CommandLine, leave: str, status: int
) -> None:
    cli.python(FIVE_READS)
    terminal = spawn(cli, "top", "--interval", "0.2")
    before = termios.tcgetattr(terminal.child_fd)
    terminal.expect_exact("\x1b[?1049h")
    terminal.expect("shop/cache.*60.0 %")
    with busy(cli):
        terminal.expect(r"shop/cache +7[456]\.\d %")
    assert termios.tcgetattr(terminal.child_fd) != before
    if leave == "terminate":
        terminal.kill(signal.SIGTERM)
    else:
        terminal.send(leave)
    terminal.expect_exact("\x1b[?1049l")
    terminal.expect(pexpect.EOF)
    assert termios.tcgetattr(terminal.child_fd) == before
    terminal.wait()
    assert (terminal.exitstatus, "Traceback" in (terminal.before or "")) == (status, False)


def test_a_narrow_terminal_shows_what_matters_most(cli: CommandLine) -> None:
    cli.python(FIVE_READS)
    terminal = spawn(cli, "top", "--interval", "0.2")
    terminal.setwinsize(24, 40)
    terminal.expect("CACHE[^A-Z]+HITS[^A-Z]+READS/S[^A-Z]+EVICTED/S[^A-Z]+\n")
    terminal.expect("shop/cache")
    terminal.send("q")
    terminal.expect(pexpect.EOF)


def test_top_starts_no_agent(cli: CommandLine) -> None:
    terminal = spawn(cli, "top")
    terminal.expect("No caches")
    terminal.send("q")
    terminal.expect(pexpect.EOF)
    assert cli("status", "--json").json["running"] is False
