"""The command line: what it says of itself, of its mistakes, and what it does with its options."""

import json
import socket
from pathlib import Path

import pytest

from .support import SERVE, House


def test_help_says_what_it_takes(house: House) -> None:
    done = house.run(*SERVE, "--help", COLUMNS="100")
    assert (done.returncode, done.stderr) == (0, "")
    for option in ("--name", "--size", "--listen", "--unix", "--connections", "--item-size-max"):
        assert option in done.stdout
    assert "Example: python -m apps.memcached --name shop" in done.stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "required: --name"),
        (["--name", "shop", "--listen", "11211"], "expected HOST:PORT, as in 127.0.0.1:11211"),
        (["--name", "shop", "--listen", "localhost:65536"], "expected HOST:PORT"),
        (["--name", "shop", "--listen", "::1:11211"], "[::1]:11211"),
        (["--name", "shop", "--size", "much"], "much"),
        (["--name", "shop", "--item-size-max", "2GiB"], "up to 1GiB"),
        (["--name", "shop", "--connections", "0"], "--connections"),
        (["--name", "shop", "--connections", "many"], "from 1 to 1048576"),
        (["--name", "shop", "surplus"], "surplus"),
    ],
)
def test_wrong_usage_is_told_with_status_2(house: House, options: list[str], says: str) -> None:
    done = house.run(*SERVE, *options, COLUMNS="200")
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_what_cannot_be_had_is_told_in_one_line_with_status_1(house: House) -> None:
    house.serve("shop", "--size", "2MiB").stop()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for options, says in (
            (["--name", "shop", "--size", "4MiB"], "2 MiB"),
            (["--name", "a/b"], "slash"),
            (["--name", "shop", "--listen", f"127.0.0.1:{port}"], f"cannot listen at 127.0.0.1:{port}: "),
            (["--name", "shop", "--unix", str(house.directory / "no" / "socket")], "no/socket: No such file"),
            (["--name", "shop", "--unix", f"/tmp/{'x' * 200}"], "AF_UNIX path too long"),
            (["--name", "tiny", "--size", "1KiB"], "64 KiB"),
        ):
            done = house.run(*SERVE, *options)
            assert (options, done.returncode, done.stdout) == (options, 1, "")
            (line,) = done.stderr.splitlines()
            assert line.startswith("memcached: error: ")
            assert says in line


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_it_serves_with_uvloop_and_without(house: House, loop: str) -> None:
    pytest.importorskip(loop, reason=f"{loop} is missing: pip install {loop}")
    (house.directory / "sitecustomize.py").write_text(
        f"import sys\nif {loop == 'asyncio'}:\n    sys.modules['uvloop'] = None\n"
    )
    environment = house.environment()
    path = f"{house.directory}:{environment['PYTHONPATH']}"
    server = house.serve("shop", "--size", "1MiB", environment={"PYTHONPATH": path})
    with server.wire() as wire:
        large = b"set k 0 0 700000\r\n%b\r\n" % bytes(700_000)
        assert wire.ask(large) == b"SERVER_ERROR object too large for cache\r\n"
        assert wire.ask(b"set k 0 0 2\r\nhi\r\n" * 2000 + b"get k k\r\n").endswith(b"VALUE k 0 2\r\nhi\r\nEND\r\n")
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert ("uvloop" in maps) is (loop == "uvloop")
    assert server.stop() == 0


def test_items_are_as_large_as_the_command_line_says(house: House) -> None:
    server = house.serve("shop", "--size", "8MiB", "--item-size-max", "1000")
    with server.wire() as wire:
        assert wire.ask(b"set k 0 0 1000\r\n%b\r\n" % bytes(1000)) == b"STORED\r\n"
        assert wire.ask(b"append k 0 0 1\r\nx\r\n") == b"NOT_STORED\r\n"
        assert wire.ask(b"set k 0 0 1001\r\n%b\r\nget k\r\n" % bytes(1001)) == (
            b"SERVER_ERROR object too large for cache\r\nEND\r\n"
        )
    assert server.stats()["store_too_large"] == "1"


def test_persistmem_sees_the_cache_as_any_other(house: House) -> None:
    server = house.serve("shop", "--size", "8MiB")
    with server.wire() as wire:
        wire.ask(b"set k 0 0 2\r\nhi\r\n")
    stats = json.loads(house.persistmem("cache", "stats", "shop", "--json"))
    assert stats["items"] == 1
    assert "shop" in house.persistmem("ls")
    house.persistmem("verify", "shop")
    house.persistmem("cache", "clear", "shop")
    with server.wire() as wire:
        assert wire.ask(b"get k\r\n") == b"END\r\n"
