"""The same conversation with memcached and with this server: the same replies, byte for byte.

Where this server answers otherwise on purpose, the conversation steers around it, and ``test_otherwise`` says what it
answers. Numbers that no two servers can share, cas uniques and what is left of a time, are blotted out.
"""

import random
import re
from collections.abc import Callable, Iterator

import pytest

from .support import Memcached, Server, Wire, needs_memcached

pytestmark = needs_memcached

CONVERSATION = rb"""
get a
set a 5 0 3|abc
get a
get a b a
get   a   b
get
gets
gat x a
gat 10 a b
gats -1 b
gat -1 a
get a
set a 5 0 3|abc
touch a 100
mg a t
touch a x
touch a
touch a noreply
touch a 0
touch a 0 noreply
touch nobody 0
touch a -1
get a
add a 0 0 1|x
add a 0 0 1|y
replace nobody 0 0 1|x
replace a 7 0 2|yy
append a 9 9 2|zz
prepend a 9 -9 2|qq
get a
append nobody 9 9 2|qq
prepend nobody 9 9 2|qq
set a 0 0 0|
get a
append a 0 0 1|x
get a
set a 0 0 3|abcd
set a 0 0 3 noreply|abcd
set a 0 0 -1
set a 0 0 x
set a 0 0
set a 0 0 1 2 3
set
set a 0 0 1 noreply|x
get a
set a 4294967295 0 1|x
get a
set a 0 -1 1|x
get a
set a 0 2592001 1|x
get a
set a 0 2592000 1|x
get a
set a 0 0 1|x
cas a 1 0 2 $a$|hi
gets a
cas a 0 0 2 1|ho
cas a 0 0 2 0|ho
cas nobody 0 0 2 1|hi
cas a 0 0 2 1 noreply|hi
cas a 0 0 2 $a$ noreply|hu
get a
cas a 0 0 2
set n 0 0 2|10
incr n 1
incr n 89
incr n 18446744073709551615
incr n 18446744073709551616
incr n -1
incr n x
incr n
incr n 1 2 3
incr n 1 noreply
incr n x noreply
incr n noreply
incr nobody 1
decr nobody 1
get n
decr n 1000
set n 0 0 20|18446744073709551615
incr n 1
set n 0 0 20|18446744073709551616
incr n 1
set n 0 0 2|-1
incr n 1
set n 0 0 0|
incr n 1
set n 0 0 3| 12
incr n 1
set n 0 0 3|12x
incr n 1
incr a 1
delete a
delete a
delete a 0
delete a 0 noreply
delete a 1
delete a noreply
delete noreply
delete a b c d e
delete
verbosity
verbosity 1
verbosity x
verbosity noreply
verbosity 1 noreply
verbosity 1 2 3
nonsense
GET a
x

gets nobody
stats nonsense
mn
mn really
mg
mg nobody
mg nobody v
mg nobody v q k Oz
mg nobody v k Oz
mg nobody s t f c
set k 3 100 2|hi
mg k
mg k v
mg k s t f v k O123 q
mg k t T200
mg k t
mg k T-1
mg k
set k 3 0 2|hi
mg k t
mg k k k
mg k !
mg k Nx
mg k Tx
mg k Oaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
mg k Oaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
mg k Lpath/ Ppath v
mg k a b c d e f g h i j k l m n o p q r s t
ms
ms k
ms k x
ms k S2
ms k -2 k
ms k 2|hi
ms k 2 T0 F9 k Ox c|hi
mg k f v
ms k 2 MX|hi
ms k 2 MXX|hi
ms k 2 M|hi
ms k 2 ME|hi
ms fresh 2 ME k|hi
ms k 2 MA|hi
ms k 2 MP|ho
mg k v f
ms k 2 MR F4|ho
mg k v f
ms k 2 MS|ho
ms nobody 2 MR|ho
ms nobody 2 MA k Ox|ho
ms k 2 C1 c k|hi
ms nobody 2 C1|hi
ms k 2 C$k$ c|hi
ms k 2 C$k$ MA|hi
ms k 2 C1 MA|hi
mg k v
ms k 2 C1 I|st
mg k v
mg k v
ms k 2 C$k$|fr
mg k v
ms k 2 q|hi
ms k 2 q|hix
ms k 2 q ME|hi
ms k 2 !|hi
ms k 2 k k|hi
ms k 2 Fx|hi
ms k 2 F4294967295|hi
mg k f
ms k 2 Cx|hi
ms k 2 T-1|hi
mg k v
ms k 2 Oaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa|hi
ms k 2|hi
md nobody
md nobody q k
md k C1 k Oq
md k I T30 k Ox
mg k t v
mg k v
mg k v N10 R50
ms k 2|hi
mg k v
md k I q
md k C$k$ q
mg k v
md k !
md k Tx
mg vivid N30 v t k s f
mg vivid N30 v t
mg vivid R40
md vivid
mg vivid N0 v t
ms vivid 2 T30|hi
mg vivid R20 v
mg vivid R40 v
mg vivid R40 v
mg aGVsbG8= b v k
ms aGVsbG8= 2 b k|hi
mg aGVsbG8= b v k
mg hello v k
md aGVsbG8= b k Ox
mg !!! b v k
mg aGVsbG8 b
ma count
ma count v
ma count N0 J13 v t
ma count v
ma count v D10 T50 t
ma count MI v
ma count M+ v
ma count Mx
ma count MI q
ma count C1 k Oz
ma count C$count$ D5 v
ma count Dx
ma count Jx
ma count D18446744073709551615 v
ma nobody k Oz q
ma vivid
ma vivid q
me nobody
me
flush_all x
flush_all 1 2 3
flush_all 0 noreply
flush_all x noreply
get k
set k 0 0 1|x
flush_all -1
get k
set k 0 0 1|x
flush_all noreply
get k
set k 0 0 1|x
flush_all 0
get k
set k 0 0 1|x
flush_all
mg k v
""".strip(b"\n").split(b"\n")

Ask = Callable[[bytes], bytes]


def blotted(reply: bytes) -> bytes:
    """A reply without what may differ: cas uniques, times, and the spaces that memcached leaves after what shrank."""
    reply = re.sub(rb"^(VALUE \S+ \d+ \d+) \d+\r$", rb"\1 CAS\r", reply, flags=re.MULTILINE)
    reply = re.sub(rb"^(VALUE [mn] \d+) \d+( CAS)?\r\n(\d+) *\r$", rb"\1 SIZE\2\r\n\3\r", reply, flags=re.MULTILINE)
    lines = []
    for line in reply.split(b"\r\n"):
        if re.match(rb"(HD|VA \d+|EX|NF|NS)( |$)", line):
            line = re.sub(rb" c[1-9]\d*(?= |$)", b" cCAS", line)  # noqa: PLW2901 - it is the line, blotted
            line = re.sub(rb" t\d+(?= |$)", b" tTIME", line)  # noqa: PLW2901
        lines.append(line)
    return b"\r\n".join(lines)


def bytes_of(step: bytes, ask: Ask) -> bytes:
    """A step's bytes: ``|`` stands before its data, ``$key$`` for the cas unique that the key has now."""
    line, bar, data = step.partition(b"|")

    def cas_of(match: re.Match[bytes]) -> bytes:
        found = re.fullmatch(rb"HD c(\d+)\r\n", ask(b"mg %b c\r\n" % match[1]))
        return found[1] if found else b"1"

    line = re.sub(rb"\$(\w+)\$", cas_of, line)
    return line + b"\r\n" + (data + b"\r\n" if bar else b"")


@pytest.fixture
def theirs(memcached: Memcached) -> Iterator[Wire]:
    with memcached.wire() as wire:
        yield wire


def test_every_command_is_answered_as_memcached_answers_it(wire: Wire, theirs: Wire) -> None:
    assert {line.split(b" ")[0] for line in CONVERSATION} >= {
        *(b"get", b"gets", b"gat", b"gats", b"set", b"add", b"replace", b"append", b"prepend", b"cas", b"delete"),
        *(b"incr", b"decr", b"touch", b"flush_all", b"verbosity", b"mg", b"ms", b"md", b"ma", b"mn", b"me"),
    }
    for step in CONVERSATION:
        expected = blotted(theirs.ask(bytes_of(step, theirs.ask)))
        assert (step, blotted(wire.ask(bytes_of(step, wire.ask)))) == (step, expected)


def test_the_same_lines_may_end_in_a_line_feed_alone(wire: Wire, theirs: Wire) -> None:
    for step in (b"set a 1 0 3\nabc\r\n", b"get a\n", b"mg a v\n", b"\n", b"delete a\n"):
        assert (step, wire.ask(step)) == (step, theirs.ask(step))


@pytest.mark.parametrize("size", [0, 1, 1000, 70_000, 1_000_000, (1 << 20) + 1, 3 << 20])
def test_data_of_every_size_are_taken_or_refused_alike(wire: Wire, theirs: Wire, size: int) -> None:
    data = random.Random(size).randbytes(size)
    for verb in (b"set", b"replace", b"append", b"prepend", b"add"):
        step = b"set k 0 0 3\r\nold\r\n" + b"%b k 0 0 %d\r\n%b\r\n" % (verb, size, data) + b"get k\r\n"
        assert wire.ask(step) == theirs.ask(step)
    for flags in (b"", b" q", b" MA"):
        step = b"set k 0 0 3\r\nold\r\n" + b"ms k %d%b\r\n%b\r\n" % (size, flags, data) + b"get k\r\n"
        assert wire.ask(step) == theirs.ask(step)


@pytest.mark.parametrize("length", [250, 251, 2000])
def test_keys_of_every_length_are_taken_or_refused_alike(wire: Wire, theirs: Wire, length: int) -> None:
    key = b"k" * length
    lines = [
        b"get %b",
        b"gets a %b",
        b"touch %b 0",
        b"delete %b",
        b"incr %b 1",
        b"mg %b v",
        b"md %b",
        b"ma %b",
        b"me %b",
    ]
    for line in lines:
        assert (line, wire.ask(line % key + b"\r\n")) == (line, theirs.ask(line % key + b"\r\n"))
    if length == 250:
        step = b"set %b 0 0 2\r\nhi\r\nget %b\r\n" % (key, key)
        assert wire.ask(step) == theirs.ask(step)


@pytest.mark.parametrize("keys", [100, 3000])
def test_one_line_may_ask_for_thousands_of_keys(wire: Wire, theirs: Wire, keys: int) -> None:
    names = [b"page:%d" % number for number in range(keys)]
    step = b"".join(b"set %b 0 0 %d noreply\r\n%b\r\n" % (name, len(name), name) for name in names[::2])
    step += b"get %b\r\ngets nobody\r\n" % b" ".join(names)
    assert wire.ask(step) == theirs.ask(step)


def test_items_expire_in_the_same_second_or_the_next(wire: Wire, theirs: Wire) -> None:
    for each in (wire, theirs):
        assert each.ask(b"set soon 0 2 1\r\nx\r\nset later 0 100 1\r\nx\r\n") == b"STORED\r\n" * 2
    for each in (wire, theirs):
        while each.ask(b"get soon\r\n") != b"END\r\n":
            pass
        assert each.ask(b"get later\r\n") == b"VALUE later 0 1\r\nx\r\nEND\r\n"


class Babbler:
    """Says what comes to its mind, and steers around what is answered otherwise on purpose."""

    WORDS = (b"a", b"b", b"c", b"dd", b"k" * 250)
    NUMBERS = (b"n", b"m")
    TIMES = (b"0", b"0", b"0", b"100", b"-1", b"2592001")
    NONSENSE = (
        *(b"", b" ", b"get", b"gett a", b"set a", b"set a 0 0", b"incr", b"incr a", b"incr n x", b"touch a", b"mg"),
        *(b"mg a k k", b"mg a !", b"md a Cx", b"ma n Mx", b"ms", b"ms a", b"delete", b"delete a 7", b"flush_all x"),
        *(b"cas a 0 0 1", b"verbosity", b"stats what", b"\x01\x02\xff", b"set a 0 0 -5", b"ms a b", b"SET a 0 0 1"),
    )

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def batch(self) -> list[bytes]:
        return [self._step() for _ in range(self._random.choice((1, 1, 2, 5, 20)))]

    def split(self, data: bytes) -> list[bytes]:
        cuts = sorted(self._random.randrange(len(data)) for _ in range(self._random.randrange(4)))
        return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    def _step(self) -> bytes:
        choose, key = self._random.choice, self._random.choice(self.WORDS)
        data, quiet, time = self._data(), choose((b"", b"", b" noreply")), choose(self.TIMES)
        number, cas = choose(self.NUMBERS), choose((b"$%b$" % key, b"1"))
        digits, delta = (b"%d" % self._random.getrandbits(choose((3, 20, 64))) for _ in range(2))
        condition = choose((b"ME", b"MA", b"MP", b"MR", b"MS", b"C" + cas, b"I C" + cas))
        steps = (
            b"%b %b" % (choose((b"get", b"gets")), b" ".join(self._keys())),
            b"%b %b %b" % (choose((b"gat", b"gats")), time, b" ".join(self._keys()[:5])),
            b"set %b %d %b %d%b|%b" % (key, self._flags(), time, len(data), quiet, data),
            b"%b %b %d %b %d%b|%b"
            % (choose((b"add", b"replace", b"append", b"prepend")), key, self._flags(), time, len(data), quiet, data),
            b"cas %b %d %b %d %b%b|%b" % (key, self._flags(), time, len(data), cas, quiet, data),
            b"set %b 0 0 %d|%b" % (number, len(digits), digits),
            b"incr %b %b%b" % (number, delta, quiet),
            b"delete %b%b" % (choose((key, number)), quiet),
            b"touch %b %b%b" % (key, time, quiet),
            b"mg %b%b" % (key, self._meta(b"v", b"k", b"f", b"s", b"t", b"q", b"Oz", b"T100", b"N100", b"R50")),
            b"ms %b %d%b|%b"
            % (key, len(data), self._meta(b"k", b"q", b"Oy", b"T100", b"F7", condition), data),
            b"md %b%b" % (key, self._meta(b"k", b"q", b"Ox", choose((b"I", b"I T100", b"C" + cas)))),
            b"ma %b%b" % (number, self._meta(b"k", b"v", b"t", b"D" + delta, b"N0", b"J7")),
            choose(self.NONSENSE),
        )  # fmt: skip
        return choose(steps)

    def _keys(self) -> list[bytes]:
        return [self._random.choice(self.WORDS + self.NUMBERS) for _ in range(self._random.choice((1, 2, 30)))]

    def _flags(self) -> int:
        return self._random.choice((0, 1, 65535, 4294967295))

    def _data(self) -> bytes:
        size = self._random.choice((0, 1, 2, 10, 300, 5000))
        return self._random.choice((bytes, self._random.randbytes))(size).replace(b"|", b"!").replace(b"$", b"!")

    def _meta(self, *flags: bytes) -> bytes:
        chosen = self._random.sample(flags, self._random.randrange(len(flags) + 1))
        return b"".join(b" " + flag for flag in chosen)


@pytest.mark.parametrize("seed", range(8))
def test_random_conversations_are_answered_as_memcached_answers_them(wire: Wire, theirs: Wire, seed: int) -> None:
    babbler = Babbler(seed)
    for _ in range(60):
        steps = babbler.batch()
        heard = []
        for each in (theirs, wire):
            data = b"".join(bytes_of(step, each.ask) for step in steps)
            for piece in babbler.split(data):
                each.send(piece)
            heard.append(blotted(each.ask(b"")))
        assert heard[1] == heard[0], (steps, heard)


@pytest.mark.parametrize(
    ("said", "answered"),
    [
        # What shrinks leaves no spaces behind.
        (b"set n 0 0 2\r\n10\r\ndecr n 1\r\nget n\r\n", b"STORED\r\n9\r\nVALUE n 0 1\r\n9\r\nEND\r\n"),
        # Data are no commands, even if their line is wrong: memcached 1.6.18 takes them for some, later ones do not.
        (b"set a x 0 9\r\nflush_all\r\n", b"CLIENT_ERROR bad command line format\r\n"),
        (b"set %b 0 0 9\r\nflush_all\r\n" % (b"k" * 251), b"CLIENT_ERROR bad command line format\r\n"),
        (b"ms %b 9\r\nflush_all\r\n" % (b"k" * 251), b"CLIENT_ERROR bad command line format\r\n"),
        # Keys hold no control characters, and flags have 32 bits.
        (b"set a\tb 0 0 1\r\nx\r\n", b"CLIENT_ERROR bad command line format\r\n"),
        (b"set a\x7f 0 0 1\r\nx\r\n", b"CLIENT_ERROR bad command line format\r\n"),
        (b"set a 4294967296 0 1\r\nx\r\n", b"CLIENT_ERROR bad command line format\r\n"),
        # Times beyond 2038 are times.
        (b"set a 0 4000000000 1\r\nx\r\nget a\r\n", b"STORED\r\nVALUE a 0 1\r\nx\r\nEND\r\n"),
        # When an item was read last, nobody knows.
        (b"set a 0 0 1\r\nx\r\nmg a h\r\nmg a l\r\n", b"STORED\r\n" + b"CLIENT_ERROR invalid flag\r\n" * 2),
        # Flags that came after memcached 1.6.18.
        (b"ms a 1 E42 c\r\nx\r\nmg a c v C42\r\nmg a v C41\r\n", b"HD c42\r\nHD c42\r\nVA 1\r\nx\r\n"),
        (b"ms a 2 MA N30 s\r\nhi\r\nms a 2 MA N30 s\r\nho\r\nmg a v\r\n", b"HD s2\r\nHD s4\r\nVA 4\r\nhiho\r\n"),
        (b"set a 5 0 2\r\nhi\r\nmd a x\r\nmg a v f\r\n", b"STORED\r\nHD\r\nVA 0 f0\r\n\r\n"),
        (b"mg a N30 E7 c\r\nma b N0 E8 c\r\n", b"HD c7 W\r\nHD c8\r\n"),
    ],
)  # fmt: skip
def test_otherwise(wire: Wire, said: bytes, answered: bytes) -> None:
    assert wire.ask(said) == answered


def test_a_key_in_base64_is_given_back_in_base64_by_whichever_command_made_its_item(wire: Wire) -> None:
    assert wire.ask(b"mg AAEC b N30 k\r\nma AAED b N30 k v\r\n") == b"HD kAAEC b W\r\nVA 1 kAAED b\r\n0\r\n"
    assert wire.ask(b"mg AAEC b k\r\n") == b"HD kAAEC b Z\r\n"
    assert re.fullmatch(rb"ME AAED exp=\d+ cas=\d+ cls=1 size=\d+\r\n", wire.ask(b"me AAED b\r\n"))


def test_the_connection_ends_where_memcached_ends_it(server: Server, memcached: Memcached) -> None:
    for each in (memcached, server):
        with each.wire() as wire:
            wire.send(b"version\r\nquit\r\nversion\r\n")
            assert re.fullmatch(rb"VERSION 1\.6\.\S+\r\n", wire.rest())
        with each.wire() as wire:
            wire.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nset a 0 0 1\r\nx\r\n")
            assert wire.rest() == b""
        with each.wire() as wire:
            assert wire.ask(b"get a\r\n") == b"END\r\n"
