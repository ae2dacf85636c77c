"""What files may hold, and what is refused: nothing is bent, and nothing takes more memory than it should."""

import datetime as dt
import json
import math

import hypothesis
import hypothesis.strategies as st
import pytest

from persistmem.cli.formats import Format, parse, write
from persistmem.errors import ArgumentError, UnsupportedTypeError

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


@hypothesis.given(PLAIN)
def test_what_json_can_say_is_written_as_python_reads_it(document: object) -> None:
    assert json.loads(bytes(write(document, Format.JSON))) == document
    assert parse(memoryview(write(document, Format.JSON)), Format.JSON) == document


@hypothesis.given(st.recursive(PLAIN | st.binary() | st.dates() | st.complex_numbers(allow_nan=False), st.tuples))
def test_msgpack_brings_back_every_value_and_its_type(document: object) -> None:
    again = parse(memoryview(write(document, Format.MSGPACK)), Format.MSGPACK)
    assert again == document
    assert type(again) is type(document)


@pytest.mark.parametrize(
    ("document", "said", "better"),
    [
        ({"carts": [{"at": dt.date(2026, 7, 1)}]}, "document['carts'][0]['at']: JSON has no date", "msgpack"),
        ([1.0, math.nan], "document[1]: JSON has no number nan", "msgpack"),
        ({(1, 2): "corner"}, "document[(1, 2)]: JSON has no key of type tuple", "msgpack"),
        ({1: "one", "1": "uno"}, "a number and the same number as text", "msgpack"),
        ({True: 1}, "JSON has no key of type bool", "msgpack"),
        (b"raw", "JSON has no bytes", "raw"),
        (memoryview(b"raw"), "JSON has no bytes", "raw"),
        ([memoryview(b"raw")], "document[0]: JSON has no bytes", "msgpack"),
    ],
)
def test_what_json_cannot_say_is_refused_with_its_place_and_a_format_that_can(
    document: object, said: str, better: str
) -> None:
    with pytest.raises(UnsupportedTypeError) as refused:
        write(document, Format.JSON)
    assert said in str(refused.value)
    assert str(refused.value).endswith(f"--format {better}")
    assert write(document, Format(better))


@pytest.mark.parametrize(
    ("form", "data"),
    [
        (Format.JSON, b'{"a": '),
        (Format.JSON, b"[NaN]"),
        (Format.JSON, b"-Infinity"),
        (Format.JSON, b""),
        (Format.JSON, b"\xff\xff\xff"),
        (Format.JSON, b"[" * 100_000),
        (Format.JSON, b"9" * 10_000),
        (Format.MSGPACK, b""),
        (Format.MSGPACK, b"\xc1"),
        (Format.MSGPACK, b"\x01\x02"),
        (Format.MSGPACK, b"\xdd\xff\xff\xff\xff"),
        (Format.MSGPACK, b"\xd4\x63\x00"),
        (Format.MSGPACK, b"\xd4\x0e\x00"),
    ],
)
def test_data_that_is_not_of_its_format_is_refused(form: Format, data: bytes) -> None:
    with pytest.raises(ArgumentError, match="expected"):
        parse(memoryview(data), form)
