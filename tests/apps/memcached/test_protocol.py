"""Bytes in, commands out: however the bytes come, and whatever they are."""

import random
import tracemalloc
from collections.abc import Iterable

import pytest

from apps.memcached.commands import Command, Count, Delete, Get, Meta, Mode, Say, Store, TooLarge, Touch
from apps.memcached.protocol import Parser

ITEM_SIZE_MAX = 1000


def parsed(pieces: Iterable[bytes]) -> list[Command]:
    parser = Parser(ITEM_SIZE_MAX)
    commands: list[Command] = []
    for piece in pieces:
        parser.feed(piece)
        while (command := parser.next_command()) is not None:
            commands.append(command)
    return commands


STREAM: list[tuple[bytes, list[Command]]] = [
    (b"get a\r\n", [Get([b"a"])]),
    (b" gets  a b \r\n", [Get([b"a", b"b"], with_cas=True)]),
    (b"gat -1 a\n", [Get([b"a"], exptime=-1)]),
    (b"set k 7 60 10\r\nget a\r\n\r\n!\r\n", [Store(Mode.SET, b"k", 7, 60, 10, 0, b"get a\r\n\r\n!")]),
    (b"cas k 0 0 0 42 noreply\r\n\r\n", [Store(Mode.CAS, b"k", 0, 0, 0, 42, noreply=True)]),
    (b"set k 0 0 1000\r\n%b\r\n" % (b"x" * 1000), [Store(Mode.SET, b"k", 0, 0, 1000, 0, b"x" * 1000)]),
    (b"set k 0 0 1001\r\n%b\r\n" % (b"x" * 1001), [TooLarge(b"k", drops=True)]),
    (b"add k 0 0 3000 noreply\r\n%b\r\n" % (b"\r\n\0" * 1000), [TooLarge(b"k", drops=False, noreply=True)]),
    (b"ms k 2 I O1\r\nhi\r\n", [Meta(b"ms", b"k", {"I": b"", "O": b"1"}, {}, 2, b"hi")]),
    (b"ms k 2 Tx\r\nhi\r\n", [Say(b"CLIENT_ERROR bad token in command line format\r\n", skips=4)]),
    (b"set k 0 0 2\r\nhi!get a\r\n", [Say(b"CLIENT_ERROR bad data chunk\r\n"), Say(b"ERROR\r\n")]),
    (b"mg AAE= b t T9\r\n", [Meta(b"mg", b"\0\1", {"b": b"", "t": b"", "T": b"9"}, {"T": 9})]),
    (b"incr n 18446744073709551615\r\n", [Count(b"n", 2**64 - 1, down=False)]),
    (b"delete noreply\r\n", [Delete(b"noreply")]),
    (b"delete k noreply\r\n", [Delete(b"k", noreply=True)]),
    (b"touch k 5\r\n", [Touch(b"k", 5)]),
    (b"\r\n\r\n", [Say(b"ERROR\r\n"), Say(b"ERROR\r\n")]),
    (b"get %b\r\n" % b" ".join([b"k" * 250] * 250), [Get([b"k" * 250] * 250)]),
]  # fmt: skip


def test_the_commands_are_the_same_however_the_bytes_come() -> None:
    stream = b"".join(said for said, _ in STREAM)
    meant = [command for _, commands in STREAM for command in commands]
    assert parsed([stream]) == meant
    assert parsed(stream[at : at + 1] for at in range(len(stream))) == meant
    for seed in range(100):
        cuts = sorted(random.Random(seed).randrange(len(stream)) for _ in range(seed))
        pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
        assert (seed, parsed(pieces)) == (seed, meant)


def test_what_was_not_asked_for_yet_waits_while_more_comes() -> None:
    parser = Parser(ITEM_SIZE_MAX)
    for said, _ in STREAM:
        parser.feed(said)
    commands = []
    while (command := parser.next_command()) is not None:
        commands.append(command)
    assert commands == [command for _, meant in STREAM for command in meant]


@pytest.mark.parametrize("piece", [1, 100, 1 << 20])
@pytest.mark.parametrize(
    ("line", "most"), [(b"set ", 2048), (b"x", 2048), (b"mg ", 2048), (b"get k ", 65536), (b"gats 0 k ", 65536)]
)
def test_a_line_that_is_too_long_is_the_last(line: bytes, most: int, piece: int) -> None:
    fitting = (line + b"k " * most)[: most - 1] + b"\r\n"
    too_long = (line + b"k " * most)[: most + 3]
    said = too_long + b"\r\nget a\r\n"
    assert Say(b"CLIENT_ERROR line too long\r\n", closes=True) not in parsed([fitting])
    assert parsed(said[at : at + piece] for at in range(0, len(said), piece)) == [
        Say(b"CLIENT_ERROR line too long\r\n", closes=True)
    ]
    assert parsed([too_long]) == [Say(b"CLIENT_ERROR line too long\r\n", closes=True)]


@pytest.mark.parametrize("request_", [b"\x80\x0a" + bytes(22), b"\x80\0\0\1" + bytes(20) + b"k", b"\x80\n\r\n"])
def test_who_speaks_the_binary_protocol_is_told(request_: bytes) -> None:
    (command,) = parsed([request_, b"get a\r\n"])
    assert isinstance(command, Say)
    assert command.closes
    assert b"binary protocol" in command.reply


def test_data_that_nobody_wants_are_not_kept() -> None:
    parser = Parser(ITEM_SIZE_MAX)
    piece = bytes(1 << 16)
    tracemalloc.start()
    parser.feed(b"set k 0 0 2147483645\r\n")
    assert parser.next_command() == TooLarge(b"k", drops=True)
    for _ in range(1000):
        parser.feed(piece)
        assert parser.next_command() is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_no_bytes_are_taken_for_anything_but_commands_and_mistakes() -> None:
    for seed in range(200):
        noise = random.Random(seed)
        words = [
            b"get",
            b"set",
            b"k",
            b"0",
            b"1",
            b" ",
            b"\r\n",
            b"\n",
            b"ms",
            b"-1",
            b"\0",
            b"\xff",
            noise.randbytes(9),
        ]
        parsed(b"".join(noise.choices(words, k=noise.randrange(30))) for _ in range(20))
