"""Clients that mean no good, or do not know what they do: the server stays up, small, and there for others."""

import random
import socket
import struct
from contextlib import suppress

import pytest

from .support import House, Server, Wire

MIB = 1 << 20


def hears(server: Server) -> bool:
    with server.wire() as wire:
        return wire.ask(b"set ok 0 0 2\r\nok\r\nget ok\r\n") == b"STORED\r\nVALUE ok 0 2\r\nok\r\nEND\r\n"


def hang_up(wire: Wire) -> None:
    """End the connection with a reset, as a machine that has gone."""
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.close()


@pytest.mark.parametrize(
    "half", [b"", b"get", b"get a\r", b"set k 0 0 5\r\n", b"set k 0 0 5\r\nval", b"ms k 5\r\nvalue\r"]
)
def test_what_is_only_half_said_is_not_done(server: Server, half: bytes) -> None:
    for leave in (Wire.close, hang_up):
        wire = server.wire()
        wire.send(b"set k 0 0 3\r\nold\r\n")
        assert wire.until(b"\r\n") == b"STORED\r\n"
        wire.send(half)
        leave(wire)
        with server.wire() as after:
            assert after.ask(b"get k\r\n") == b"VALUE k 0 3\r\nold\r\nEND\r\n"


@pytest.mark.parametrize("seed", range(5))
def test_garbage_is_answered_with_mistakes_or_the_end_of_the_connection(server: Server, seed: int) -> None:
    noise = random.Random(seed)
    words = [b"get", b"set", b"ms", b"mg", b"k", b"0", b"-1", b"99999999999999999999", b" ", b"\r\n", b"\n", b"\0"]
    for _ in range(20):
        with server.wire() as wire:
            wire.send(b"".join(noise.choice([*words, noise.randbytes(20)]) for _ in range(noise.randrange(500))))
            wire.socket.shutdown(socket.SHUT_WR)
            wire.rest()
    assert hears(server)


@pytest.mark.parametrize("line", [b"x" * 2049, b"set k" + b" " * 2044, b"get " + b"k" * 65_533, b"\x80\0" + bytes(22)])
def test_a_line_without_end_ends_the_connection(server: Server, line: bytes) -> None:
    with server.wire() as wire:
        wire.send(line)
        assert wire.rest().startswith(b"CLIENT_ERROR ")
    with server.wire() as wire, suppress(ConnectionError):
        for _ in range(64 * MIB // (len(line) * 100)):
            wire.send(line * 100)
        pytest.fail("the server listens to all of it")
    assert hears(server)


@pytest.mark.parametrize("length", [b"-1", b"2147483648", b"9" * 20, b"1e3", b"0x10", b"1_0", "٣".encode()])
def test_a_length_that_is_none_is_refused_at_once(wire: Wire, length: bytes) -> None:
    for line in (b"set k 0 0 %b\r\n", b"ms k %b\r\n"):
        assert wire.ask(line % length) == b"CLIENT_ERROR bad command line format\r\n"


def test_a_promise_of_gigabytes_takes_no_memory(server: Server) -> None:
    before = server.memory()
    with server.wires(20) as wires:
        for wire in wires:
            wire.send(b"set k 0 0 2147483645\r\n" + bytes(MIB))
            assert wire.until(b"\r\n") == b"SERVER_ERROR object too large for cache\r\n"
        assert server.memory() - before < 20 * MIB


def test_a_client_that_never_reads_costs_little_and_holds_up_nobody(server: Server) -> None:
    size, keys, asked, clients = 100_000, 50, 40, 10  # 2 GB in all
    with server.wire() as wire:
        for number in range(keys):
            assert wire.ask(b"set k%d 0 0 %d\r\n%b\r\n" % (number, size, bytes(size))) == b"STORED\r\n"
    before = server.memory()
    line = b"get " + b" ".join(b"k%d" % number for number in range(keys)) + b"\r\n"
    reply = sum(len(b"VALUE k%d 0 %d\r\n\r\n" % (number, size)) + size for number in range(keys)) + len(b"END\r\n")
    with server.wires(clients) as wires:
        for wire in wires:
            wire.send(line * asked + b"version\r\n")
        for _ in range(10):
            assert hears(server)
        assert server.memory() - before < clients * 3 * MIB
        # Who reads after all gets everything.
        length, last = 0, b""
        while not last.endswith(b"persistmem\r\n"):
            piece = wires[0].socket.recv(MIB)
            length, last = length + len(piece), (last + piece)[-100:]
        assert length == asked * reply + len(b"VERSION 1.6.45-persistmem\r\n")
    assert hears(server)


def test_more_clients_than_there_may_be_are_told_so(house: House) -> None:
    server = house.serve("small", "--size", "1MiB", "--connections", "3")
    full = b"ERROR Too many open connections\r\n"
    with server.wires(2):
        with server.wire() as last, server.wire() as refused:
            assert refused.rest() == full
            assert last.ask(b"get a\r\n") == b"END\r\n"

        def first_line() -> bytes:
            with server.wire() as wire:
                wire.send(b"get a\r\n")
                return wire.until(b"\r\n")

        while (line := first_line()) != b"END\r\n":
            assert line == full
    assert int(server.stats()["rejected_connections"]) >= 1
