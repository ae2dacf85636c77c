"""What was stored is there again, whatever ended the server, and whichever kernel runs."""

import os
import re
import signal
import stat
from pathlib import Path

import pytest

from tests.agent.support import wait_for_exit

from .support import SERVE, House, Server, Wire

ITEMS = {
    b"plain": (b"value", 0, 0),
    b"empty": (b"", 1, 0),
    b"lines": (b"\r\nEND\r\n\0\xff", 2**32 - 1, 0),
    b"timed": (b"for a while", 7, 1000),
    b"large": (bytes(range(256)) * 2000, 5, 0),
}


def fill(wire: Wire) -> dict[bytes, bytes]:
    """Store the items, and one that is soon gone; return what ``gets`` says of them."""
    for key, (data, flags, exptime) in ITEMS.items():
        assert wire.ask(b"set %b %d %d %d\r\n%b\r\n" % (key, flags, exptime, len(data), data)) == b"STORED\r\n"
    assert wire.ask(b"set gone 0 1 1\r\nx\r\nms bin 2 b F3\r\nhi\r\nmd plain I\r\nset number 0 0 2\r\n41\r\n")
    return seen(wire)


def seen(wire: Wire) -> dict[bytes, bytes]:
    return {key: wire.ask(b"gets %b\r\n" % key) for key in [*ITEMS, b"number"]} | {
        b"bin": wire.ask(b"mg bin b k f c v\r\n")
    }


def end(house: House, server: Server, how: str) -> None:
    if how.startswith("SIG"):
        assert server.stop(signal.Signals[how]) == (-9 if how == "SIGKILL" else 0)
    elif how == "upgrade after SIGKILL":
        server.stop(signal.SIGKILL)
        house.persistmem("reboot", "--simulate")
    elif how == "upgrade, then SIGKILL":
        house.persistmem("reboot", "--simulate")
        server.stop(signal.SIGKILL)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "SIGKILL", "upgrade after SIGKILL", "upgrade, then SIGKILL"])
def test_items_outlive(house: House, how: str) -> None:
    server = house.serve("shop", "--size", "8MiB")
    with server.wire() as wire:
        before = fill(wire)
        assert before[b"timed"].startswith(b"VALUE timed 7 11 ")
    end(house, server, how)

    with house.serve("shop").wire() as wire:
        assert seen(wire) == before
        left = re.fullmatch(rb"HD t(\d+)\r\n", wire.ask(b"mg timed t\r\n"))
        assert left
        assert 900 < int(left[1]) <= 1000
        while wire.ask(b"get gone\r\n") != b"END\r\n":  # its time goes on
            pass
        assert b" X W\r\n" in wire.ask(b"mg plain\r\n")
        assert wire.ask(b"incr number 1\r\n") == b"42\r\n"
        cas = before[b"empty"].split()[4]
        assert wire.ask(b"cas empty 0 0 3 %b\r\nnew\r\n" % cas) == b"STORED\r\n"
        assert wire.ask(b"cas empty 0 0 3 %b\r\nold\r\n" % cas) == b"EXISTS\r\n"


def test_a_kernel_upgrade_is_nothing_that_a_connected_client_notices(house: House) -> None:
    server = house.serve("shop", "--size", "8MiB")
    with server.wire() as wire, server.wire() as other:
        before = fill(wire)
        house.persistmem("reboot", "--simulate")
        assert wire.ask(b"set after 0 0 3\r\nnew\r\nincr number 1\r\n") == b"STORED\r\n42\r\n"
        assert {**seen(other), b"number": b""} == {**before, b"number": b""}
        assert other.ask(b"get after nobody number\r\n").count(b"VALUE") == 2
        house.persistmem("reboot", "--simulate")
        keys = b" ".join(ITEMS)
        assert other.ask(b"gat 0 nobody %b\r\n" % keys).count(b"VALUE") == len(ITEMS)
    server.stop(signal.SIGKILL)
    with house.serve("shop").wire() as wire:
        assert wire.ask(b"get after number\r\n") == b"VALUE after 0 3\r\nnew\r\nVALUE number 0 2\r\n42\r\nEND\r\n"


def test_items_outlive_the_agent_while_a_server_holds_them(house: House) -> None:
    server = house.serve("shop", "--size", "8MiB")
    with server.wire() as wire:
        before = fill(wire)
        agent = house.agent_pid()
        os.kill(agent, signal.SIGKILL)
        wait_for_exit(agent)  # so that the next command finds it gone, and the server hands back what it holds
        assert seen(wire) == before
        assert wire.ask(b"incr number 1\r\n") == b"42\r\n"
    server.stop(signal.SIGKILL)
    with house.serve("shop").wire() as wire:
        assert wire.ask(b"get number\r\n") == b"VALUE number 0 2\r\n42\r\nEND\r\n"


def test_a_second_server_of_the_same_cache_is_refused_and_the_first_goes_on(house: House) -> None:
    first = house.serve("shop", "--size", "8MiB")
    with first.wire() as wire:
        fill(wire)
        refused = house.run(*SERVE, "--name", "shop", "--listen", "127.0.0.1:0")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith("memcached: error: cache 'shop': another server has it; stop that one, or ")
        assert wire.ask(b"incr number 1\r\n") == b"42\r\n"
        first.stop(signal.SIGKILL)
    with house.serve("shop").wire() as wire:
        assert wire.ask(b"get number\r\n") == b"VALUE number 0 2\r\n42\r\nEND\r\n"


def test_one_server_listens_at_as_many_places_as_it_is_told(house: House) -> None:
    paths = [house.directory / "a", house.directory / "b"]
    options = ["--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--unix", str(paths[0]), "--unix", str(paths[1])]
    server = house.serve("shop", *options)
    ports = [int(where.rpartition(":")[2]) for where in server.where if ":" in where]
    assert [Path(where) for where in server.where if ":" not in where] == paths
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in paths)
    places: list[int | Path] = [*ports, *paths]
    for number, where in enumerate(places):
        with Wire(where) as wire:
            assert wire.ask(b"get k\r\n") == (b"END\r\n" if not number else b"VALUE k 0 1\r\nx\r\nEND\r\n")
            assert wire.ask(b"set k 0 0 1\r\nx\r\n") == b"STORED\r\n"
    server.stop()
    assert not any(path.exists() for path in paths)


def test_the_socket_of_a_server_that_was_killed_makes_way_and_that_of_one_that_lives_does_not(house: House) -> None:
    path = house.directory / "socket"
    house.serve("shop", "--unix", str(path)).stop(signal.SIGKILL)
    assert path.is_socket()
    house.serve("shop", "--unix", str(path))
    refused = house.run(*SERVE, "--name", "other", "--unix", str(path))
    assert refused.returncode == 1
    assert f"cannot listen at {path}: Address already in use" in refused.stderr
    with Wire(path) as wire:
        assert wire.ask(b"get k\r\n") == b"END\r\n"
