"""What goes into a snapshot comes out of it: every type, at every depth; and what cannot go in says where it is."""

import datetime as dt
import math
import os
import random
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from enum import IntEnum
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persistmem.arena import Arena
from persistmem.arena.types import TypeRegistry
from persistmem.errors import BusyError, ExistsError, UnsupportedTypeError

from .support import KERNEL, arena_of, bytes_of, new_memfd

ROOM = 4 << 20
BERLIN = ZoneInfo("Europe/Berlin")


def there_and_back(document: object, *, copy: bool = True) -> object:
    with arena_of(ROOM) as (_, arena):
        arena.snapshot("it", document)
        return arena.restore("it", copy=copy)


def assert_same(found: object, expected: object) -> None:
    """Equal, and of the same type, all the way down."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert isinstance(found, dict)
        assert len(found) == len(expected)
        for (key, value), (expected_key, expected_value) in zip(found.items(), expected.items(), strict=True):
            assert_same(key, expected_key)
            assert_same(value, expected_value)
    elif isinstance(expected, list | tuple):
        assert isinstance(found, list | tuple)
        assert len(found) == len(expected)
        for item, expected_item in zip(found, expected, strict=True):
            assert_same(item, expected_item)
    elif isinstance(expected, dt.datetime | dt.time):
        assert isinstance(found, dt.datetime | dt.time)
        assert repr(found) == repr(expected)
    elif isinstance(expected, float | complex | Decimal):
        assert repr(found) == repr(expected)
    else:
        assert found == expected
        if isinstance(expected, set | frozenset):
            assert isinstance(found, set | frozenset)
            assert sorted(map(_kind_and_value, found)) == sorted(map(_kind_and_value, expected))


def _kind_and_value(member: object) -> str:
    if isinstance(member, frozenset):
        return f"frozenset {sorted(map(_kind_and_value, member))}"
    if isinstance(member, tuple):
        return f"tuple {[_kind_and_value(item) for item in member]}"
    return f"{type(member).__name__} {member!r}"


VALUES: list[object] = [
    None, True, False, 0, -1, 127, 128, 2**63 - 1, -(2**63), 2**64 - 1,
    2**64, -(2**63) - 1, 2**64 + 1, 10**400, -(10**400), 1 << 4096,
    0.0, -0.0, 1.5, 5e-324, math.inf, -math.inf, math.nan,
    "", "text", "zwölf 🏙", "\0", "x" * 70_000,
    b"", b"bytes", bytes(range(256)) * 15,
    [], [1, [2, [3]]], (), (1,), (1, (2, [3, (4,)])), {}, {"a": {"b": {}}},
    {1: 2, 1.5: 3, None: 4, False: 5, (1, 2): 6, b"key": 7, frozenset({1}): 8, UUID(int=1): 9, dt.date(2026, 1, 1): 10},
    set(), {1, 2}, {(1, 2), "x", None}, frozenset(), frozenset({1, frozenset({2})}),
    dt.datetime(2026, 7, 4, 12, 30, 15, 123456), dt.datetime.min, dt.datetime.max,
    dt.datetime(2026, 7, 4, tzinfo=dt.UTC), dt.datetime(2026, 7, 4, tzinfo=BERLIN),
    dt.datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN), dt.datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1),
    dt.datetime(2026, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=-3, minutes=-30, seconds=-7, microseconds=-9))),
    dt.datetime(2026, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=5), "five")),
    dt.date.min, dt.date.max, dt.time(0), dt.time(23, 59, 59, 999999), dt.time(1, 2, tzinfo=dt.UTC), dt.time(2, fold=1),
    dt.time(1, tzinfo=BERLIN), dt.timedelta(0), dt.timedelta.min, dt.timedelta.max, dt.timedelta(-1, 5, 7),
    Decimal(0), Decimal("-0.00"), Decimal("1E+1000000"), Decimal("NaN"), Decimal("sNaN12"), Decimal("-Infinity"),
    Decimal("3." + "1" * 200), UUID(int=0), UUID("a1b2c3d4-e5f6-4711-8899-aabbccddeeff"),
    1j, complex(-0.0, math.inf), complex(math.nan, 1), msgpack.Timestamp(5, 7),
]  # fmt: skip


@pytest.mark.parametrize(
    "value", VALUES, ids=[f"{number} {type(value).__name__}" for number, value in enumerate(VALUES)]
)
def test_value_comes_back_equal_and_of_its_type(value: object) -> None:
    for document in (value, [value], (value,), {"key": value}, [{"deep": ([value],)}]):
        assert_same(there_and_back(document), document)


_plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=40),
    st.datetimes(timezones=st.none() | st.just(dt.UTC) | st.just(BERLIN)),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.decimals(),
    st.uuids(),
    st.complex_numbers(),
)
_keys = st.one_of(st.text(max_size=8), st.integers(), st.binary(max_size=8), st.uuids(), st.dates())
_members = _keys | st.tuples(_keys, _keys) | st.frozensets(_keys, max_size=3)
documents = st.recursive(
    _plain | st.sets(_members, max_size=4) | st.frozensets(_members, max_size=4),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(_members, inner, max_size=4),
    ),
    max_leaves=25,
)


@settings(max_examples=250)
@given(documents)
def test_any_nested_document_comes_back_equal_and_of_its_types(document: object) -> None:
    assert_same(there_and_back(document), document)


def test_nested_bytearray_and_memoryview_come_back_as_bytes() -> None:
    document = [bytearray(b"abc"), memoryview(b"abc"), memoryview(bytearray(8)).cast("Q")]
    assert there_and_back(document) == [b"abc", b"abc", bytes(8)]


ARRAYS = {
    "C order": np.arange(6000, dtype="f8").reshape(60, 100),
    "F order": np.asfortranarray(np.arange(6000, dtype="i4").reshape(60, 100)),
    "three axes in F order": np.asfortranarray(np.arange(3000).reshape(10, 20, 15)),
    "transposed axes": np.arange(6000).reshape(10, 20, 30).transpose(1, 0, 2),
    "every second element": np.arange(10_000)[::2],
    "backwards": np.arange(5000, dtype="u1")[::-1],
    "small": np.arange(5, dtype="i2"),
    "small, not contiguous": np.arange(20).reshape(4, 5)[:, ::2],
    "no axes": np.array(5.5),
    "no elements": np.zeros((3, 0, 2), dtype="f4"),
    "bool": np.arange(9000) % 3 == 0,
    "complex": np.arange(1000) * 1j,
    "half": np.arange(3000, dtype="f2"),
    "long double": np.arange(1000, dtype=np.longdouble),
    "big-endian": np.arange(2000, dtype=">i4"),
    "big-endian, small": np.arange(3, dtype=">f8"),
    "datetime64": np.arange("2026-01-01", "2050-01-01", dtype="datetime64[D]"),
    "datetime64 of 25 s": np.array([0, 1, 2], dtype="datetime64[25s]"),
    "timedelta64": np.arange(1000, dtype="timedelta64[ns]"),
    "fixed bytes": np.array([b"ab", b"cde", b""], dtype="S3"),
    "fixed text": np.array(["ab", "zwölf", ""] * 400),
    "raw": np.frombuffer(bytes(range(240)), dtype="V12"),
    "structured": np.zeros(500, dtype=[("id", "<u4"), ("at", "<M8[us]"), ("where", "<f4", (2,)), ("tag", "S5")]),
    "structured in structured": np.ones(3, dtype=[("a", [("b", ">i2"), ("c", "f8")]), ("d", "?")]),
    "structured, padded": np.ones(300, dtype=np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "subarray of subarray": np.ones(4, dtype=np.dtype([("a", "i4", (2, 3))])),
}


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("name", ARRAYS)
def test_numpy_array_comes_back_equal_with_its_type_shape_and_order(name: str, copy: bool) -> None:
    array = ARRAYS[name]
    found = there_and_back({"deep": [array]}, copy=copy)
    assert isinstance(found, dict)
    (back,) = found["deep"]
    assert type(back) is np.ndarray
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert np.array_equal(back, array)
    assert back.flags.writeable is copy
    if array.flags.f_contiguous:
        assert back.flags.f_contiguous


@pytest.mark.parametrize(
    "scalar",
    [np.float32(1.5), np.int64(-5), np.bool_(True), np.complex64(1j), np.datetime64("2026-01-01T00:00", "m"),
     np.timedelta64(3, "D"), np.str_("zwölf"), np.str_(""), np.bytes_(b""), np.bytes_(b"ab"),
     np.longdouble(1) / 3, np.float64("nan"), np.array((1, 2.5), dtype=[("a", "i4"), ("b", "f8")])[()]],
    ids=lambda scalar: type(scalar).__name__,
)  # fmt: skip
def test_numpy_scalar_comes_back_as_it_was(scalar: np.generic) -> None:
    back = there_and_back([scalar])
    assert isinstance(back, list)
    assert type(back[0]) is type(scalar)
    assert back[0].dtype == scalar.dtype
    # A longdouble has six bytes of padding, which may be anything.
    assert back[0] == scalar if scalar.dtype.char == "g" else back[0].tobytes() == scalar.tobytes()


class Colour(IntEnum):
    RED = 1


Point = namedtuple("Point", "x y")


class Text(str):
    __slots__ = ()


@dataclass
class Plain:
    name: str


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (Plain("x"), r"^document: a value of type .*Plain; .* call persistmem.register_type"),
        ({"users": [1, {"ada": Plain("x")}]}, r"^document\['users'\]\[1\]\['ada'\]: a value of type"),
        ((1, [2, object()]), r"^document\[1\]\[1\]: a value of type builtins.object"),
        ({"a": {1, Point(1, 2)}}, r"^document\['a'\] member Point\(x=1, y=2\): "),
        ({Colour.RED: 1}, r"^document key <Colour.RED: 1>: "),
        ([Text("x")], r"^document\[0\]: a value of type .*Text"),
        ([OrderedDict()], r"^document\[0\]: a value of type collections.OrderedDict"),
        ([lambda: 0], r"^document\[0\]: a value of type builtins.function"),
        (["ok", "\ud800"], r"^document\[1\]: .*surrogates"),
        ([dt.datetime(2026, 1, 1, tzinfo=type("Z", (dt.tzinfo,), {})())], r"^document\[0\]: a time zone of type"),
        ([np.array([object()])], r"^document\[0\]: numpy data of type object"),
        ([np.zeros(3, dtype="V0")], r"^document\[0\]: numpy data of type"),
        ([1, np.ma.MaskedArray([1])], r"^document\[1\]: a value of type numpy.ma"),
        ([np.zeros(2, dtype=[("a", "O")])], r"^document\[0\]: numpy data of type"),
        ([memoryview(bytes(20_000))[::2]], r"^document\[0\]: "),
        ([memoryview(bytes(20))[::2]], r"^document\[0\]: "),
        ({"a": [b"x" * 5000, Plain("x")]}, r"^document\['a'\]\[1\]: "),
    ],
)
def test_unsupported_value_is_named_with_its_place_and_nothing_is_written(document: object, message: str) -> None:
    with arena_of(ROOM) as (fd, arena):
        arena.snapshot("it", "before")
        before = bytes_of(fd)
        with pytest.raises(UnsupportedTypeError, match=message):
            arena.snapshot("it", document)
        assert bytes_of(fd) == before
        assert arena.snapshot("it", "after").number == 2


def test_document_that_contains_itself_or_is_too_deep_is_an_error_and_nothing_is_written() -> None:
    itself: list[object] = [1]
    itself.append({"again": itself})
    deep_lists: list[object] = []
    deep_tuples: tuple[object, ...] = ()
    for _ in range(5000):
        deep_lists = [deep_lists]
        deep_tuples = (deep_tuples,)
    with arena_of() as (fd, arena):
        before = bytes_of(fd)
        for document in (itself, deep_lists, deep_tuples):
            with pytest.raises(UnsupportedTypeError, match=r"document: .*(nested|recursion)"):
                arena.snapshot("it", document)
        assert bytes_of(fd) == before
        assert arena.snapshot("it", 1).number == 1


@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: {"a": inner}, lambda inner: (inner,)])
def test_document_as_deep_as_is_allowed_comes_back(wrap: Callable[[object], object]) -> None:
    document: object = "core"
    for _ in range(95):
        document = wrap(document)
    assert there_and_back(document) == document


@pytest.mark.parametrize(
    ("length", "outside"), [(0, 0), (255, 0), (256, 0), (257, 0), (4095, 0), (4096, 1), (4097, 1), (70_000, 1)]
)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, np.frombuffer])
def test_buffers_of_4_kib_and_more_stand_outside(kind: Callable[[bytes], object], length: int, outside: int) -> None:
    if kind is np.frombuffer and not length:
        return
    data = random.Random(length).randbytes(length)
    value = np.frombuffer(data, "u1") if kind is np.frombuffer else kind(data)
    with arena_of(ROOM) as (_, arena):
        for document in (value, [value], {"k": value}, (1, (value,)), {"a": [{"b": (value, [0])}]}):
            assert arena.snapshot("it", document).buffers == outside
            assert isinstance(document, bytes | bytearray | memoryview | np.ndarray | list | dict | tuple)
        back = arena.restore("it")["a"][0]["b"][0]
        assert (back.tobytes() if isinstance(back, np.ndarray) else back) == data


@pytest.mark.parametrize("place", ["list", "dict", "tuple"])
def test_large_buffer_buried_in_a_large_document_stands_outside(place: str) -> None:
    large = random.Random(1).randbytes(4096)
    rows: list[object] = [{"id": index, "name": f"row {index}", "score": index / 7} for index in range(50_000)]
    rows[33_333] = {"list": [1, large], "dict": {"x": large}, "tuple": (1, (large,))}[place]
    with arena_of(16 << 20) as (_, arena):
        assert arena.snapshot("it", rows).buffers == 1
        assert arena.restore("it") == rows


def test_documents_full_of_small_binaries_and_of_bytes_that_look_like_headers_have_no_buffers() -> None:
    looks = [b"\xc5\x10\x00" * 80, b"\xc6\xff\xff\xff\xff", "Å" * 3000, 0xC6C5C6C5C6C5C6C5, b"\xc5" * 4095]
    document = [looks] * 300
    with arena_of(64 << 20) as (_, arena):
        assert arena.snapshot("it", document).buffers == 0
        assert arena.restore("it") == document


def test_large_bytes_as_keys_and_members_come_back() -> None:
    key = random.Random(2).randbytes(5000)
    document = {key: 1, (key, 2): 3}
    for copy in (True, False):
        found = there_and_back([document, {key}, frozenset({key})], copy=copy)
        assert found == [document, {key}, frozenset({key})]


@pytest.fixture
def registry() -> TypeRegistry:
    types = TypeRegistry()
    types.register(Plain, "plain", lambda plain: {"name": plain.name}, lambda found: Plain(found["name"]))  # type: ignore[index]
    types.register(Point, "point", list, lambda found: Point(*found))  # type: ignore[misc]
    return types


def with_types(registry: TypeRegistry) -> Arena:
    return Arena(new_memfd(ROOM), kernel=KERNEL, types=registry)


def test_registered_types_come_back_nested_in_anything(registry: TypeRegistry) -> None:
    with with_types(registry) as arena:
        document = {"a": [Plain("x"), {Point(1, 2): (Plain("y"),)}], "b": Point(Plain("z"), {1})}
        arena.snapshot("it", document)
        assert_same_repr(arena.restore("it"), document)


def assert_same_repr(found: object, expected: object) -> None:
    assert found == expected
    assert repr(found) == repr(expected)


def test_large_buffers_of_a_registered_type_stand_outside(registry: TypeRegistry) -> None:
    with with_types(registry) as arena:
        document = [Point(random.Random(1).randbytes(9000), [random.Random(2).randbytes(9000)]), 1]
        assert arena.snapshot("it", document).buffers == 2
        assert arena.restore("it") == document


def test_type_that_is_not_registered_where_it_is_restored_is_named(registry: TypeRegistry) -> None:
    fd = new_memfd(ROOM)
    with Arena(fd, kernel=KERNEL, types=registry) as arena:
        arena.snapshot("it", [Plain("x")])
    with (
        Arena(fd, kernel=KERNEL, types=TypeRegistry()) as arena,
        pytest.raises(UnsupportedTypeError, match=r"'plain'; call persistmem.register_type for it, then restore"),
    ):
        arena.restore("it")


def test_types_and_tags_are_registered_once(registry: TypeRegistry) -> None:
    for cls, tag in ((Plain, "other"), (Colour, "plain"), (tuple, "tuple"), (Decimal, "decimal")):
        with pytest.raises(ExistsError):
            registry.register(cls, tag, lambda value: 0, lambda found: found)


def test_failure_inside_a_registered_type_is_named_with_its_place() -> None:
    types = TypeRegistry()
    types.register(Plain, "plain", lambda plain: [object()], lambda found: Plain(""))
    with (
        with_types(types) as arena,
        pytest.raises(UnsupportedTypeError, match=r"document\['a'\]\[0\]: .*builtins.object"),
    ):
        arena.snapshot("it", {"a": [Plain("x")]})


class Meddler:
    """Changes the document while it is packed, as another thread may."""

    def __init__(self, meddle: Callable[[], object]) -> None:
        self.meddle = meddle


@dataclass
class Holder:
    content: object


def meddled(kind: str, size: int) -> tuple[object, TypeRegistry]:
    types = TypeRegistry()
    times = [1]

    def pack(meddler: Meddler) -> None:
        if times:
            times.pop()
            meddler.meddle()

    types.register(Meddler, "meddler", pack, lambda _: Meddler(lambda: None))
    rows: list[object] = ["x" * size]
    numbers: dict[object, object] = {"x": "x" * size}
    meddler = Meddler({"list": lambda: rows.append(5), "dict": lambda: numbers.update(y=5)}[kind])
    rows.append(meddler)
    numbers["m"] = meddler
    return {"list": rows, "dict": numbers}[kind], types


@pytest.mark.parametrize("kind", ["list", "dict"])
@pytest.mark.parametrize("size", [1, 5000])
@pytest.mark.parametrize("place", ["alone", "in a list", "in a tuple", "in a user's type"])
def test_document_that_changes_while_it_is_packed_is_stored_well_formed_or_not_at_all(
    kind: str, size: int, place: str
) -> None:
    document, types = meddled(kind, size)
    types.register(Holder, "holder", lambda holder: holder.content, Holder)
    document_in = {
        "alone": document,
        "in a list": [[document]],
        "in a tuple": ((document,),),
        "in a user's type": Holder(document),
    }[place]
    fd = new_memfd()
    with Arena(fd, kernel=KERNEL, types=types) as arena:
        if kind == "dict":
            with pytest.raises(BusyError, match="another thread changed it while it was packed"):
                arena.snapshot("it", document_in)
            assert arena.snapshots() == []
        arena.snapshot("it", document_in)
        arena.restore("it")
    os.close(fd)
