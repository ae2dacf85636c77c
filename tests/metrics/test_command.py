"""``persistmem metrics``: what it prints, from what, and what it leaves alone."""

import os
import re
import struct
import subprocess

import pytest
from typer.testing import CliRunner

import persistmem
from persistmem.arena.layout import FORMAT_VERSION, HEADER_OFFSET, HEADER_SIZE, MAGIC, SLOT_OFFSETS, checksum
from persistmem.arena.locks import conflict, try_lock
from persistmem.arena.transaction import WRITER_LOCK
from persistmem.attachment import agent_status, attach, simulate_reboot
from persistmem.cache.layout import writer_lock_at
from persistmem.cli.app import app
from tests.agent.support import kill_agent
from tests.cli.support import PATIENCE, CommandLine

from .support import Metrics, damage, flip, make_shop, metrics, needs


def test_it_prints_what_the_library_says(cli: CommandLine) -> None:
    make_shop()
    handover = simulate_reboot()
    with attach("carts") as carts, attach("shop") as shop, persistmem.Cache(shop) as cache:
        usage, stats, (newest,) = carts.usage(), cache.stats(), carts.history("closed")
    found = metrics(cli)

    status = agent_status()
    assert status is not None
    assert found["persistmem_agent_up"] == 1
    assert found.labels("persistmem_agent_info") == [{"carrier": status.carrier, "kernel": status.kernel}]
    assert (found["persistmem_arenas"], found["persistmem_missing_arenas"]) == (2, 0)

    assert 300_000 < usage.live < usage.size
    for name, expected in {
        "size_bytes": 1 << 20,
        "used_bytes": usage.live,
        "reusable_bytes": usage.reusable,
        "region_bytes": 0,
        "snapshots": 2,
        "generations": 3,
        "damaged": 0,
        "last_snapshot_timestamp_seconds": pytest.approx(newest.created.timestamp(), abs=1e-5),
        "created_timestamp_seconds": pytest.approx(carts.created.timestamp(), abs=1e-5),
    }.items():
        assert found.value(f"persistmem_arena_{name}", arena="carts") == expected, name
    assert {
        "arena": "carts",
        "uuid": str(carts.uuid),
        "origin": "carried over",
        "kernel_from": handover.kernel_from,
    } in found.labels("persistmem_arena_info")
    region_size = found.value("persistmem_arena_region_bytes", arena="shop")
    assert region_size is not None
    assert stats.size < region_size < 1 << 20
    assert found.value("persistmem_arena_last_snapshot_timestamp_seconds", arena="shop") is None

    for name, expected in {
        "hits_total": 3,
        "misses_total": 2,
        "sets_total": 4,
        "deletes_total": 1,
        "evictions_total": 0,
        "expirations_total": 0,
        "damaged_records_total": 0,
        "clears_total": 0,
        "items": 3,
        "slots": stats.slots,
        "used_bytes": stats.used,
        "size_bytes": stats.size,
        "processes": 0,
    }.items():
        assert found.value(f"persistmem_cache_{name}", arena="shop", cache="cache") == expected, name

    assert found["persistmem_handovers_total"] == 1
    assert found.labels("persistmem_last_handover_info") == [
        {"kernel_from": handover.kernel_from, "kernel_to": handover.kernel_to}
    ]
    assert handover.left is not None
    assert found["persistmem_last_handover_timestamp_seconds"] == pytest.approx(handover.left.timestamp(), abs=1e-5)
    parts = {
        part: found.value("persistmem_last_handover_duration_seconds", part=part)
        for part in ("preserve", "kexec", "boot", "retrieve")
    }
    assert (parts["preserve"], parts["boot"], parts["retrieve"]) == (handover.preserve, 0, handover.retrieve)
    assert sum(part or 0 for part in parts.values()) == pytest.approx(handover.preserve + handover.dark)
    for outcome, count in {"memory": 2, "disk": 0, "lost": 0}.items():
        assert found.value("persistmem_last_handover_arenas", outcome=outcome) == count
    assert found["persistmem_last_handover_size_bytes"] == 2 << 20
    assert found["persistmem_scrape_errors"] == 0
    assert 0 < found["persistmem_scrape_duration_seconds"] < PATIENCE


def test_a_handover_that_lost_everything_says_so(cli: CommandLine) -> None:
    make_shop()
    simulate_reboot(compatible=False)
    found = metrics(cli)
    assert found.value("persistmem_last_handover_arenas", outcome="lost") == 2
    assert found.value("persistmem_last_handover_arenas", outcome="memory") == 0
    assert found["persistmem_arenas"] == 0


def test_prometheus_own_linter_has_nothing_to_say(cli: CommandLine) -> None:
    make_shop()
    simulate_reboot()
    done = subprocess.run(
        [needs("promtool"), "check", "metrics"],
        input=cli("metrics").out,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


NAMES = ['a "quoted" one', "back\\slash\\n", "日本語 ☂ ü", '{curly="1"} 2', "a,b=c#d", "'"]


def test_names_of_any_kind_arrive_as_they_are(cli: CommandLine) -> None:
    for name in NAMES:
        with attach(name, "1MiB") as arena:
            arena.snapshot("x", 1)
            persistmem.Cache(arena, "512KiB", namespace=name).close()
    found = metrics(cli)
    for name in NAMES:
        assert found.value("persistmem_arena_snapshots", arena=name) == 1
        assert found.value("persistmem_cache_items", arena=name, cache=name) == 0


# What it leaves alone


def no_agent_runs(cli: CommandLine) -> bool:
    """Whether nobody holds the lock of the one agent. (Most commands would start one where one was killed.)"""
    lock = os.open(cli.runtime / "agent.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        return conflict(lock, 0, 1) is None
    finally:
        os.close(lock)


def test_where_no_agent_runs_it_says_so_and_starts_none(cli: CommandLine) -> None:
    found = metrics(cli)
    assert found.names() == {"persistmem_agent_up", "persistmem_scrape_duration_seconds", "persistmem_scrape_errors"}
    assert (found["persistmem_agent_up"], found["persistmem_scrape_errors"]) == (0, 0)
    assert no_agent_runs(cli)


def test_an_agent_that_was_killed_is_down_and_stays_so(cli: CommandLine) -> None:
    make_shop()
    kill_agent()
    assert metrics(cli)["persistmem_agent_up"] == 0
    assert no_agent_runs(cli)


def test_it_waits_for_no_writer_and_changes_no_byte(cli: CommandLine) -> None:
    make_shop()
    with attach("shop") as arena, arena.region("cache") as region:
        fd = arena.descriptor()
        before = os.pread(fd, arena.size, 0)
        assert try_lock(fd, WRITER_LOCK, 1, exclusive=True)
        assert try_lock(fd, writer_lock_at(region.record.offset), 1, exclusive=True)
        assert metrics(cli).value("persistmem_cache_hits_total", arena="shop", cache="cache") == 3
        assert os.pread(fd, arena.size, 0) == before
        os.close(fd)


def test_it_is_not_counted_among_the_processes_of_a_cache(cli: CommandLine) -> None:
    with persistmem.Cache("shop", "1MiB"):
        assert metrics(cli).value("persistmem_cache_processes", arena="shop", cache="cache") == 1


# What is damaged


@pytest.mark.parametrize("offset", [HEADER_OFFSET + 40, *(slot + 8 for slot in SLOT_OFFSETS)])
def test_a_damaged_arena_is_counted_and_named_and_the_others_are_reported(cli: CommandLine, offset: int) -> None:
    make_shop()
    damage("carts", offset)
    answer = cli("metrics")
    found = Metrics.of(answer.out)
    assert answer.status == 0
    assert re.fullmatch(r"persistmem: arena carts: .+\n", answer.err)
    assert found["persistmem_scrape_errors"] == 1
    assert found.value("persistmem_arena_damaged", arena="carts") == 1
    assert found.value("persistmem_arena_damaged", arena="shop") == 0
    assert found.value("persistmem_arena_size_bytes", arena="carts") == 1 << 20
    is_readable = offset != HEADER_OFFSET + 40
    assert (found.value("persistmem_arena_snapshots", arena="carts") is not None) == is_readable
    assert found.value("persistmem_cache_hits_total", arena="shop", cache="cache") == 3


def test_an_arena_without_any_sound_commit_is_told_with_what_the_agent_knows(cli: CommandLine) -> None:
    make_shop()
    with attach("carts") as arena:
        fd = arena.descriptor()
    for slot in SLOT_OFFSETS:
        flip(fd, slot + 8)
    os.close(fd)
    found = Metrics.of(cli("metrics").out)
    assert found.value("persistmem_arena_damaged", arena="carts") == 1
    assert found.value("persistmem_arena_snapshots", arena="carts") is None
    assert "carts" in [labels["arena"] for labels in found.labels("persistmem_arena_info")]


def test_an_arena_of_a_newer_format_is_not_called_damaged(cli: CommandLine) -> None:
    make_shop()
    with attach("carts") as arena:
        fd = arena.descriptor()
    header = bytearray(os.pread(fd, HEADER_SIZE, HEADER_OFFSET))
    header[len(MAGIC)] = FORMAT_VERSION + 1
    header[-8:] = struct.pack("<Q", checksum(header[:-8]))
    os.pwrite(fd, header, HEADER_OFFSET)
    os.close(fd)
    answer = cli("metrics")
    found = Metrics.of(answer.out)
    assert "arena carts: the arena has format version 2" in answer.err
    assert found.value("persistmem_arena_damaged", arena="carts") is None
    assert found.value("persistmem_arena_size_bytes", arena="carts") == 1 << 20
    assert found["persistmem_scrape_errors"] == 1


def test_a_region_that_is_no_cache_is_no_problem(cli: CommandLine) -> None:
    with attach("mixed", "1MiB") as arena:
        for name, size in {"empty": 1 << 16, "tiny": 8, "other": 1 << 16}.items():
            with arena.region(name, size) as region, region.view() as view:
                view[:4] = b"else" if name == "other" else bytes(4)
    found = metrics(cli)
    assert found.labels("persistmem_cache_items") == []
    assert found.value("persistmem_arena_region_bytes", arena="mixed") == 2 * (1 << 16) + 8


# How it is used


def test_without_the_library_it_says_which_extra_to_install(cli: CommandLine) -> None:
    (cli.directory / "prometheus_client.py").write_text("raise ModuleNotFoundError(__name__)\n")
    path = os.pathsep.join([str(cli.directory), cli.environment()["PYTHONPATH"]])
    answer = cli("metrics", environment={"PYTHONPATH": path})
    assert (answer.status, answer.out) == (1, b"")
    assert re.fullmatch(r"persistmem: error: .*persistmem\[metrics\]\n", answer.err)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--listen", "here"], ["--listen", "127.0.0.1:65536"], ["--listen", "127.0.0.1:-1"], ["--listen", ":"],
        ["--every", "15s"], ["--listen", "0", "--every", "15s"], ["--textfile", "metrics.txt"],
        ["--textfile", "a.prom", "--listen", "0"], ["--textfile", "a.prom", "--every", "0s"],
        ["--textfile", "a.prom", "--every", "soon"],
    ],
)  # fmt: skip
def test_wrong_usage_has_a_status_of_its_own(arguments: list[str]) -> None:
    answer = CliRunner().invoke(app, ["metrics", *arguments])
    assert (answer.exit_code, answer.stdout) == (2, "")


def test_a_runtime_directory_that_others_can_enter_is_not_trusted(cli: CommandLine) -> None:
    make_shop()
    cli.runtime.chmod(0o755)
    answer = cli("metrics")
    cli.runtime.chmod(0o700)
    assert Metrics.of(answer.out)["persistmem_agent_up"] == 0
    assert "chmod 0700" in answer.err
    assert agent_status() is not None
