"""Memory made by an enemy: decoding it gives a value or an error of ours, runs no code, and takes bounded memory."""

import fcntl
import os
import struct
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial

import msgpack
import numpy as np
import pytest
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st

from persistmem.arena.catalogue import CHECKSUM_SIZE, decode_catalogue, encode_catalogue
from persistmem.arena.documents import DocumentDecoder, DocumentEncoder
from persistmem.arena.layout import HEADER_SIZE, SLOT_SIZE, decode_header, decode_slot
from persistmem.arena.locks import conflict
from persistmem.arena.types import Code, TypeRegistry
from persistmem.errors import ArenaFullError, CorruptError, NewerFormatError, UnsupportedTypeError

from .support import arena_of

ARENA_SIZE = 1 << 20
BUFFERS = [memoryview(bytes(8192)), memoryview(b"x" * 4096)]
OUR_ERRORS = (CorruptError, UnsupportedTypeError)
BYTES_EACH = 400
"""Bytes of memory that one byte of a document may cost; the dearest, an empty set, costs 216 for its 4."""


def decode(packed: bytes, *, copy: bool = True) -> object:
    return DocumentDecoder(TypeRegistry(), BUFFERS, copy=copy).decode(memoryview(packed))


def decode_or_refuse(packed: bytes, *, copy: bool = True) -> object:
    """The value, or None where there is an error of ours."""
    try:
        return decode(packed, copy=copy)
    except OUR_ERRORS:
        return None


def ext(code: int, payload: bytes) -> bytes:
    packed: bytes = msgpack.packb(msgpack.ExtType(code, payload))
    return packed


def packed(value: object) -> bytes:
    data: bytes = msgpack.packb(value)
    return data


def array_headers(length: int, levels: int) -> bytes:
    """Arrays in arrays, each of which promises as many items as there are bytes, and has none."""
    return ((b"\xdd" + struct.pack(">I", length)) * levels).ljust(length, b"\xc0")


def peak_of(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


BOMBS = {
    "array32 of 2**32 - 1": b"\xdd\xff\xff\xff\xff",
    "nested array32 of 2**32 - 1": b"\xdd\xff\xff\xff\xff" * 500,
    "map32 of 2**32 - 1": b"\xdf\xff\xff\xff\xff" * 500,
    "nested array32 of their own length": array_headers(100_000, 500),
    "bin32 of 2**32 - 1": b"\xc6\xff\xff\xff\xff",
    "str32 of 2**32 - 1": b"\xdb\xff\xff\xff\xff",
    "ext32 of 2**32 - 1": b"\xc9\xff\xff\xff\xff\x01",
}


@pytest.mark.parametrize("name", BOMBS)
def test_promise_of_many_items_takes_no_memory(name: str) -> None:
    bomb = BOMBS[name]
    wrapped = [ext(code, bomb) for code in Code]
    pair = [ext(code, packed(["f8"]) + bomb) for code in (Code.ARRAY, Code.SCALAR, Code.USER)]
    for document in (bomb, *wrapped, *pair, b"\x92\x01" + bomb):
        peak = peak_of(partial(decode_or_refuse, document))
        assert peak < BYTES_EACH * len(document) + 200_000


def test_promise_of_many_items_in_a_catalogue_takes_no_memory() -> None:
    def refuse(bomb: bytes) -> None:
        with pytest.raises(CorruptError):
            decode_catalogue(bomb, ARENA_SIZE)

    for bomb in BOMBS.values():
        peak = peak_of(partial(refuse, bomb))
        assert peak < BYTES_EACH * len(bomb) + 200_000


def test_well_formed_document_takes_memory_in_proportion() -> None:
    for item in (b"\x80", b"\x90", ext(Code.SET, b"\x90"), ext(Code.TUPLE, b"\x90"), b"\xc0"):
        document = b"\xdd" + struct.pack(">I", 10_000) + item * 10_000
        assert peak_of(partial(decode, document)) < BYTES_EACH * len(document) + 200_000


def test_extensions_nested_without_end_are_refused_in_bounded_time() -> None:
    document = b"\xc0"
    for _ in range(3000):
        document = ext(Code.TUPLE, b"\x91" + document)
    with pytest.raises(CorruptError, match="nested too deep"):
        decode(document)
    with pytest.raises(CorruptError):
        decode(b"\x91" * 5000 + b"\xc0")


HOSTILE_DTYPES: list[object] = [
    "O", "object", "|O", "<O8", "i4,O", "V4,O", "i4,f8", "(2,)i4", "(1000000000,)f8", "T", "U99999999999", "V-1", "V",
    "S", "U", "V0", "float", "int", "c", "a5", "b1\0", "<M8[__import__]", "M8[0s]", "<f8 ", "__import__('os')", "", "é",
    [["a", "O"]], [["a", "<i4"], ["a", "<i4"]], [["a", [["b", "O"]]]], [["a"]], [[]], [], [["a", "<i4", "x"]],
    [["a", "<i4", [-1]]], [["a", "<i4", [2**40]]], [[1, "<i4"]], [["a", "<i4", [2], 3]], {"names": ["a"]}, {}, None, 5,
    [["a", "V0"]], b"f8", ["<f8", "O"], 2**70, True, 1.5,
]  # fmt: skip


@pytest.mark.parametrize("descr", HOSTILE_DTYPES, ids=lambda descr: repr(descr)[:30])
def test_hostile_data_types_make_no_objects_and_no_warnings(descr: object) -> None:
    for shape in ([1], [], [0], [2**62], [2**62, 4], [2**62, 0]):
        for data in (b"", bytes(4), bytes(8), bytes(64)):
            for content in ([[descr, shape, "C"], data], [descr, data], [[descr, shape, "F"], 0]):
                for code in (Code.ARRAY, Code.SCALAR, Code.BUFFER_ARRAY):
                    try:
                        found = decode(ext(code, packed(content) if _packs(content) else b""))
                    except OUR_ERRORS:
                        continue
                    assert isinstance(found, np.ndarray | np.generic)
                    assert not found.dtype.hasobject
                    assert found.nbytes <= 8192


def _packs(content: object) -> bool:
    try:
        msgpack.packb(content)
    except (OverflowError, TypeError):
        return False
    return True


def as_tuple(*items: object) -> msgpack.ExtType:
    return msgpack.ExtType(Code.TUPLE, packed(list(items)))


@pytest.mark.parametrize(
    "descr",
    [
        as_tuple(), as_tuple("O"), as_tuple("<i4"), as_tuple("O", 2), as_tuple("<i8", "O"), as_tuple("<i4", [2, 2]),
        as_tuple("<i4", 2**40), as_tuple("<i4", -1), as_tuple("<i4", {"names": ["a"]}), as_tuple("<i4", [["a", "O"]]),
        [as_tuple("a", "O")], [as_tuple("a")], [as_tuple("a", "<i4", as_tuple(1, "x"))], [as_tuple(as_tuple(), "<i4")],
        [as_tuple(as_tuple("t", "n"), "<i4")], [as_tuple("a", as_tuple("O", as_tuple(2)))],
    ],
    ids=repr,
)  # fmt: skip
def test_hostile_tuples_in_data_types_are_refused_or_plain(descr: object) -> None:
    for shape in ([1], [], [0]):
        for size in (0, 4, 8, 16):
            try:
                found = decode(ext(Code.ARRAY, packed([[descr, shape, "C"], bytes(size)])))
            except OUR_ERRORS:
                continue
            assert isinstance(found, np.ndarray)
            assert not found.dtype.hasobject


@pytest.mark.parametrize(
    "zone",
    ["../../../../etc/passwd", "/etc/passwd", "/etc/localtime", "..", ".", "", "Europe", "Europe/", "\0", "a\0b",
     "x" * 5000, "__init__.py", "zones", "Europe/../Europe/Berlin", "\ud800", "tzdata", "Europe/__init__.py"],
)  # fmt: skip
def test_time_zone_leads_to_no_file_outside_the_zone_database(zone: str) -> None:
    text = zone.encode("utf-8", "surrogatepass")
    name = b"\xda" + struct.pack(">H", len(text)) + text
    for code, moment in ((Code.DATETIME, "2026-01-01T00:00:00"), (Code.TIME, "00:00:00")):
        with pytest.raises(CorruptError):
            decode(ext(code, b"\x93" + packed(moment) + b"\x00" + name))


@pytest.mark.parametrize(
    ("code", "payload"),
    [
        (Code.TUPLE, packed({})), (Code.SET, packed([[]])), (Code.SET, packed([{}])), (Code.FROZENSET, packed(1)),
        (Code.DATETIME, packed(["2026-13-01", 0, None])), (Code.DATETIME, packed(["2026-01-01", 2, None])),
        (Code.DATETIME, packed(["2026-01-01T00:00+01:00", 0])), (Code.DATETIME, packed([1, 0, None])),
        (Code.DATETIME, packed(["2026-01-01", 0, [10**18, None]])), (Code.DATETIME, packed(["2026-01-01", 0, [0]])),
        (Code.DATETIME, packed(["2026-01-01", 0, [0, 5]])), (Code.DATETIME, packed(["2026-01-01", 0, {}])),
        (Code.DATE, b"2026-02-30"), (Code.DATE, b"\xff"), (Code.TIME, packed(["25:00", 0, None])),
        (Code.TIMEDELTA, b"\xff" * 11), (Code.TIMEDELTA, b"\xff\xff\xff\x7f" * 3), (Code.DECIMAL, b"1.2.3"),
        (Code.DECIMAL, b"\xff"), (Code.UUID, bytes(15)), (Code.COMPLEX, bytes(15)), (Code.BUFFER, packed(2)),
        (Code.BUFFER, packed(-1)), (Code.BUFFER, packed(True)), (Code.BUFFER, packed("0")),
        (Code.BUFFER, packed(2**63)),
        (Code.BUFFER_ARRAY, packed([["<f8", [1], "C"], 0])), (Code.BUFFER_ARRAY, packed([["<f8", [1024], "C"], 9])),
        (Code.ARRAY, packed([["<f8", [1], "X"], bytes(8)])), (Code.ARRAY, packed([["<f8", [-1], "C"], bytes(8)])),
        (Code.ARRAY, packed([["<f8", [True], "C"], bytes(8)])), (Code.ARRAY, packed([["<f8", [1.0], "C"], bytes(8)])),
        (Code.ARRAY, packed([["<f8", [1] * 64, "C"], bytes(8)])), (Code.ARRAY, packed([["<f8", [1], "C"], "12345678"])),
        (Code.USER, packed(["no such", 1])), (Code.USER, packed([[], 1])), (Code.USER, packed([])), (0, b""), (99, b""),
        (127, b""), (31, b"x"), (Code.TUPLE, packed([1]) + b"\xc0"), (Code.TUPLE, b""), (Code.TUPLE, b"\xc1"),
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_impossible_extension_is_an_error_of_ours(code: int, payload: bytes) -> None:
    with pytest.raises(OUR_ERRORS):
        decode(ext(code, payload))


_payloads = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=8),
        st.binary(max_size=16),
        st.sampled_from(["<f8", "O", "<i4", "C", "F", "2026-01-01", "Europe/Berlin", "<M8[s]", "|V4"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=3),
        st.builds(lambda code, value: msgpack.ExtType(code, msgpack.packb(value)), st.sampled_from(Code), inner),
        st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=24)),
    ),
    max_leaves=12,
)  # fmt: skip


def _broken(data: bytes, at: int, value: int) -> bytes:
    at %= len(data)
    return data[:at] + bytes([value]) + data[at + 1 :]


hostile_documents = st.one_of(
    st.binary(max_size=60),
    _payloads.map(packed),
    st.builds(_broken, _payloads.map(packed), st.integers(0, 10**6), st.integers(0, 255)),
    st.builds(lambda data, cut: data[: cut % len(data)], _payloads.map(packed), st.integers(0, 10**6)),
)


@settings(max_examples=1500)
@given(hostile_documents, st.booleans())
@example(b"", True)
def test_any_bytes_as_a_document_give_a_value_or_an_error_of_ours(document: bytes, copy: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode_or_refuse(document, copy=copy)


def sound_document() -> bytes:
    value = [
        1, 2**80, (1, "a"), {1}, frozenset({2}), datetime(2026, 1, 1, tzinfo=UTC), Decimal("1.5"), 1j, b"x" * 300,
        np.arange(4, dtype="<f4"), np.float64(2), {"k": b"y" * 4096}, np.zeros(1024), np.zeros(2, dtype=[("a", "i4")]),
    ]  # fmt: skip
    with DocumentEncoder(TypeRegistry()).encode(value) as encoded:
        return bytes(encoded.packed)


def test_every_change_of_one_byte_of_a_document_gives_a_value_or_an_error_of_ours() -> None:
    document = sound_document()
    assert len(document) < 1500
    for at in range(len(document)):
        for value in (0, 1, 0x7F, 0x90, 0xC1, 0xC6, 0xC9, 0xDD, 0xFF, document[at] ^ 1, document[at] ^ 0x80):
            decode_or_refuse(_broken(document, at, value))


def test_no_module_is_imported_by_decoding() -> None:
    before = set(sys.modules)
    for name in ("antigravity", "this", "xml.dom", "persistmem.cli"):
        for code in Code:
            for payload in (packed(name), packed([name, 1]), packed([[name, [1], "C"], b""]), packed(["x", 0, name])):
                decode_or_refuse(ext(code, payload))
    assert set(sys.modules) - before == set()


_extents = st.tuples(
    st.integers(0, 40).map(lambda n: 4096 + 64 * n) | st.integers(-1, 2**64 - 1),
    st.integers(0, 3 << 20) | st.integers(0, 2**64 - 1),
    st.binary(max_size=3 * CHECKSUM_SIZE) | st.just(bytes(CHECKSUM_SIZE)),
).map(list)
_generations = st.tuples(
    st.integers(0, 5) | st.integers(0, 2**64 - 1), st.integers(0, 9), st.text(max_size=3), _extents,
    st.lists(_extents, max_size=2),
).map(list)  # fmt: skip
_anything = st.recursive(
    st.none() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5) | st.binary(max_size=9) | st.floats(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3) | st.integers(0, 3), inner),
    max_leaves=10,
)
_catalogues = st.tuples(
    st.dictionaries(st.text(max_size=4), st.lists(_generations, max_size=3) | _anything, max_size=3) | _anything,
    st.dictionaries(st.text(max_size=4), _extents.map(lambda e: [*e[:2], 1, "k"]) | _anything, max_size=3),
).map(list)
hostile_catalogues = st.one_of(
    st.binary(max_size=60),
    _anything.map(packed),
    _catalogues.map(packed),
    st.builds(_broken, _catalogues.map(packed), st.integers(0, 10**6), st.integers(0, 255)),
    st.builds(lambda data, cut: data[: cut % len(data)], _catalogues.map(packed), st.integers(0, 10**6)),
)


@settings(max_examples=500)
@given(hostile_catalogues)
def test_any_bytes_as_a_catalogue_give_a_sound_one_or_an_error_of_ours(data: bytes) -> None:
    try:
        catalogue = decode_catalogue(data, ARENA_SIZE)
    except CorruptError:
        return
    end = 4096
    for start, stop in sorted(set(catalogue.spans())):
        assert end <= start < stop <= ARENA_SIZE
        assert start % 64 == 0
        end = stop
    for kept in catalogue.snapshots.values():
        assert [r.number for r in kept] == sorted({r.number for r in kept}, reverse=True)
    assert decode_catalogue(encode_catalogue(catalogue), ARENA_SIZE) == catalogue


def sound_catalogue() -> list[object]:
    one = [4096, 100, bytes(8)]
    return [{"s": [[2, 1, "k", one, [[8192, 4096, bytes(8)]]], [1, 1, "k", one, []]]}, {"r": [16384, 64, 1, "k"]}]


@pytest.mark.parametrize(
    "catalogue",
    [
        [], [{}], [{}, {}, {}], [[], []], {}, [{"s": []}, {}], [{"s": [[0, 1, "k", [4096, 1, bytes(8)], []]]}, {}],
        [{1: []}, {}], [{"-s": [[1, 1, "k", [4096, 1, bytes(8)], []]]}, {}],
        [{"s": [[1, 1, "k", [4096, 1, bytes(8)], []], [1, 1, "k", [4160, 1, bytes(8)], []]]}, {}],
        [{"s": [[1, 1, "k", [4096, 1, bytes(8)], []], [2, 1, "k", [4160, 1, bytes(8)], []]]}, {}],
        [{"s": [[1, 1, "k", [4096, 0, b""], []]]}, {}], [{"s": [[1, 1, "k", [4096, 1, b""], []]]}, {}],
        [{"s": [[1, 1, "k", [4096, 1, bytes(16)], []]]}, {}], [{"s": [[1, 1, "k", [4095, 1, bytes(8)], []]]}, {}],
        [{"s": [[1, 1, "k", [4032, 1, bytes(8)], []]]}, {}], [{"s": [[1, 1, "k", [0, 64, bytes(8)], []]]}, {}],
        [{"s": [[1, 1, "k", [ARENA_SIZE - 64, 65, bytes(8)], []]]}, {}],
        [{"s": [[1, 1, "k", [2**64 - 64, 65, bytes(8)], []]]}, {}],
        [{"s": [[1, 1, "k", [4096, 100, bytes(8)], [[4160, 64, bytes(8)]]]]}, {}],
        [{"s": [[1, 1, "k", [4096, 100, bytes(8)], []]]}, {"r": [4096, 100, 1, "k"]}],
        [{"s": [[1, 1, "k" * 65, [4096, 1, bytes(8)], []]]}, {}], [{"s": [[1, -1, "k", [4096, 1, bytes(8)], []]]}, {}],
        [{"s": [[True, 1, "k", [4096, 1, bytes(8)], []]]}, {}], [{}, {"r": [4096, 0, 1, "k"]}],
    ],
    ids=lambda value: repr(value)[:50],
)  # fmt: skip
def test_impossible_catalogue_is_an_error_of_ours(catalogue: object) -> None:
    assert decode_catalogue(packed(sound_catalogue()), ARENA_SIZE)
    with pytest.raises(CorruptError):
        decode_catalogue(packed(catalogue), ARENA_SIZE)


@settings(max_examples=500)
@given(st.binary(min_size=HEADER_SIZE, max_size=HEADER_SIZE), st.booleans())
def test_any_bytes_as_a_header_give_an_error_of_ours(data: bytes, magic: bool) -> None:
    with pytest.raises((CorruptError, NewerFormatError)):
        decode_header(b"PERSISTM" + data[8:] if magic else data, ARENA_SIZE)


@settings(max_examples=500)
@given(st.binary(min_size=SLOT_SIZE, max_size=SLOT_SIZE), st.integers(0, 1))
def test_any_bytes_as_a_slot_give_an_error_of_ours(data: bytes, index: int) -> None:
    if data.endswith(bytes(8)):
        assert decode_slot(data, index, ARENA_SIZE) is None
    else:
        with pytest.raises(CorruptError):
            decode_slot(data, index, ARENA_SIZE)


def test_verification_reports_an_extent_that_is_listed_with_two_checksums() -> None:
    with arena_of() as (fd, arena):
        document, wrong = b"\x01", bytes(8)
        right = struct.pack("<Q", xxhash.xxh3_64_intdigest(document))
        kept = [[2, 1, "k", [8192, 1, right], []], [1, 1, "k", [8192, 1, wrong], []]]
        catalogue = packed([{"s": kept}, {}])
        os.pwrite(fd, document, 8192)
        os.pwrite(fd, catalogue, 4096)
        fields = struct.pack("<QQQQ", 1, 4096, len(catalogue), xxhash.xxh3_64_intdigest(catalogue)) + bytes(24)
        os.pwrite(fd, fields + struct.pack("<Q", xxhash.xxh3_64_intdigest(fields)), 320)
        assert [d.generation for d in arena.verify().damaged] == [1]


def test_lock_to_the_end_of_the_memory_stops_no_writer_for_ever() -> None:
    """A lock of length 0 reaches to the end, however far that is."""
    with arena_of() as (fd, arena):
        other = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        fcntl.fcntl(other, fcntl.F_OFD_SETLK, struct.pack("@hhqqi4x", fcntl.F_RDLCK, 0, 4096, 0, 0))
        assert conflict(fd, 8192, 64) == (4096, 2**63 - 1)
        with pytest.raises(ArenaFullError):
            arena.snapshot("s", 1)
        os.close(other)
        assert arena.snapshot("s", 1).number == 1
