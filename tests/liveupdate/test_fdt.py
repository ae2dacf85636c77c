"""Device trees are those of the specification, and hostile ones are refused."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persistmem.errors import CorruptError
from persistmem.liveupdate.fdt import DEPTH_MAX, SIZE_MAX, Node, decode, encode

BOUNDED = settings(derandomize=True, max_examples=100, database=None, deadline=None)

# A root with a property "a" of three bytes and an empty subnode "n", written out by hand from the specification.
HEADER = bytes.fromhex("d00dfeed 00000066 00000038 00000064 00000028 00000011 00000010 00000000 00000002 0000002c")
RESERVATIONS = bytes(16)
STRUCTURE = bytes.fromhex(
    "00000001 00000000  00000003 00000003 00000000 78797a00  00000001 6e000000 00000002  00000002 00000009"
)
STRINGS = b"a\0"
GOLDEN = HEADER + RESERVATIONS + STRUCTURE + STRINGS
TREE = Node({"a": b"xyz"}, {"n": Node()})

NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)
PROPERTIES = st.dictionaries(NAMES.map("p-".__add__), st.binary(max_size=20), max_size=4)
NODES = st.recursive(
    st.builds(Node, PROPERTIES, st.just({})),
    lambda nodes: st.builds(Node, PROPERTIES, st.dictionaries(NAMES.map("n-".__add__), nodes, max_size=3)),
    max_leaves=8,
)


def test_a_tree_is_that_of_the_specification() -> None:
    assert encode(TREE) == GOLDEN
    assert decode(GOLDEN) == TREE


def test_bytes_after_a_tree_do_not_matter() -> None:
    assert decode(GOLDEN + b"\xff" * 100) == TREE


def test_no_operation_tokens_are_skipped() -> None:
    longer = STRUCTURE[:8] + bytes.fromhex("00000004") + STRUCTURE[8:]
    header = bytearray(HEADER)
    header[7], header[15], header[39] = 0x6A, 0x68, 0x30
    assert decode(bytes(header) + RESERVATIONS + longer + STRINGS) == TREE


@BOUNDED
@given(NODES)
def test_any_tree_comes_back(root: Node) -> None:
    assert decode(encode(root)) == root


@pytest.mark.parametrize(
    ("at", "data"),
    [
        (0, b"\0"),
        (4, b"\0\0\0\x67"),
        (4, b"\0\0\0\x10"),
        (4, (SIZE_MAX + 1).to_bytes(4, "big")),
        (8, b"\xff\xff\xff\xfc"),
        (8, b"\0\0\0\x39"),
        (12, b"\xff\xff\xff\xff"),
        (20, b"\0\0\0\x10"),
        (24, b"\0\0\0\x12"),
        (32, b"\0\0\0\1"),
        (36, b"\xff\xff\xff\xff"),
        (56, b"\0\0\0\2"),
        (60, b"r"),
        (64, b"\0\0\0\7"),
        (68, b"\xff\xff\xff\xff"),
        (72, b"\0\0\0\2"),
        (84, b"\xff"),
        (96, b"\0\0\0\2"),
    ],
)
def test_a_tree_that_contradicts_itself_is_corrupt(at: int, data: bytes) -> None:
    with pytest.raises(CorruptError):
        decode(GOLDEN[:at] + data + GOLDEN[at + len(data) :])


@pytest.mark.parametrize("length", range(len(GOLDEN)))
def test_a_tree_cut_short_is_corrupt(length: int) -> None:
    with pytest.raises(CorruptError):
        decode(GOLDEN[:length])


def test_nesting_is_bounded() -> None:
    root = Node()
    for _ in range(DEPTH_MAX):
        root = Node(subnodes={"deeper": root})
    with pytest.raises(CorruptError, match="deep"):
        decode(encode(root))


def test_a_name_that_is_there_twice_is_corrupt() -> None:
    blob = bytearray(encode(Node({"a": b"", "b": b""})))
    blob[-2:] = b"a\0"
    with pytest.raises(CorruptError, match="twice"):
        decode(bytes(blob))


def test_random_damage_is_refused_or_harmless() -> None:
    chance = random.Random(2)
    for _ in range(5000):
        blob = bytearray(GOLDEN)
        for _ in range(chance.randint(1, 4)):
            blob[chance.randrange(len(blob))] = chance.choice((0, 1, 2, 3, 4, 9, 0x7F, 0xFF, chance.randrange(256)))
        try:
            tree = decode(bytes(blob))
        except CorruptError:
            continue
        assert len(encode(tree)) <= 2 * len(GOLDEN)
