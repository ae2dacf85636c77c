"""What goes in comes out: formats, files and pipes, generations, damage."""

import json
import os
import subprocess

import msgpack
import pytest

from .support import COMMAND, PATIENCE, CommandLine

CARTS = {"ada": [1, 2.5, None, True], "bob": {"città": "Zürich", "2": -(2**70)}}


def test_a_json_file_comes_back_as_the_same_value(cli: CommandLine) -> None:
    cli.file("carts.json", json.dumps(CARTS))
    assert cli("snapshot", "shop/carts", "carts.json").status == 0
    assert json.loads(cli("restore", "shop/carts").out) == CARTS
    assert cli("restore", "shop/carts", "again.json").status == 0
    assert json.loads((cli.directory / "again.json").read_text()) == CARTS


def test_bytes_come_back_byte_for_byte_through_pipes(cli: CommandLine) -> None:
    data = os.urandom(3_000_000)
    assert cli("snapshot", "model", stdin=data).status == 0
    assert cli("restore", "model").out == data
    assert cli("restore", "model", "-").out == data


def test_a_file_without_a_telling_suffix_is_kept_as_it_is(cli: CommandLine) -> None:
    cli.file("notes.txt", '{"looks": "like JSON"}\n')
    cli("snapshot", "notes", "notes.txt")
    assert cli("restore", "notes").out == b'{"looks": "like JSON"}\n'


def test_standard_input_is_never_guessed_at(cli: CommandLine) -> None:
    cli("snapshot", "shop", stdin=b'{ "a" : 1 }')
    assert cli("restore", "shop").out == b'{ "a" : 1 }'
    cli("snapshot", "shop", "--format", "json", stdin=b'{ "a" : 1 }')
    assert cli("restore", "shop").out == b'{"a": 1}\n'


def test_an_empty_file_can_be_kept(cli: CommandLine) -> None:
    cli.file("empty", b"")
    assert cli("snapshot", "nothing", "empty").status == 0
    answer = cli("restore", "nothing")
    assert (answer.status, answer.out) == (0, b"")


def test_msgpack_of_others_is_understood(cli: CommandLine) -> None:
    cli.file("carts.msgpack", msgpack.packb({"ada": [1, b"x"], 7: "seven"}))
    assert cli("snapshot", "shop", "carts.msgpack").status == 0
    assert msgpack.unpackb(cli("restore", "shop", "-f", "msgpack").out, strict_map_key=False) == {
        "ada": [1, b"x"],
        7: "seven",
    }


def test_msgpack_takes_everything_that_a_snapshot_holds_out_and_in_again(cli: CommandLine) -> None:
    document = """{
        "tuple": (1, (2, frozenset({3}))), "when": dt.datetime(2026, 7, 1, 12, tzinfo=dt.UTC), "large": 2**90,
        "nested": ({"bytes": b"x" * 10_000},), "exact": Decimal("1.10"), "matrix": np.arange(6000.0).reshape(3, 2000),
        "small": np.eye(2, order="F"), "scalar": np.float32(1.5),
    }"""
    prelude = f"import datetime as dt; from decimal import Decimal; import numpy as np; document = {document}\n"
    cli.python(f"{prelude}attach('shop', '1MiB').snapshot('default', document)")
    assert cli("restore", "shop", "all.msgpack").status == 0
    assert cli("snapshot", "copy", "all.msgpack").status == 0
    cli.python(
        f"{prelude}copy = attach('copy').restore('default')\n"
        "for name in ('matrix', 'small'):\n"
        "    left, right = document.pop(name), copy.pop(name)\n"
        "    assert np.array_equal(left, right) and left.flags.f_contiguous == right.flags.f_contiguous\n"
        "assert copy == document and str(copy['exact']) == '1.10' and type(copy['scalar']) is np.float32\n"
    )


def test_what_json_cannot_say_is_refused_with_its_place_and_a_format_that_can(cli: CommandLine) -> None:
    cli.python("import datetime as dt; attach('shop', '1MiB').snapshot('carts', [{'at': dt.date(2026, 7, 1)}])")
    answer = cli("restore", "shop/carts")
    assert (answer.status, answer.out) == (1, b"")
    assert "document[0]['at']: JSON has no date; use --format msgpack" in answer.err
    assert cli("restore", "shop/carts", "--format", "msgpack").status == 0


def test_tuples_and_keys_that_are_numbers_come_out_as_python_writes_them_in_json(cli: CommandLine) -> None:
    cli.python("attach('shop', '1MiB').snapshot('default', {7: (1, 2)})")
    assert cli("restore", "shop").out == b'{"7": [1, 2]}\n'


def test_a_document_is_not_bytes(cli: CommandLine) -> None:
    cli("snapshot", "shop", "--format", "json", stdin=b"[1]")
    answer = cli("restore", "shop", "--format", "raw")
    assert (answer.status, answer.out) == (1, b"")
    assert "--format json" in answer.err


@pytest.mark.parametrize("form", ["json", "msgpack"])
def test_a_file_that_is_not_what_it_says_is_refused_before_anything_is_made(cli: CommandLine, form: str) -> None:
    answer = cli("snapshot", "shop", "--format", form, stdin=b"\xc1 neither")
    assert answer.status == 1
    assert answer.err.count("\n") == 1
    assert "standard input" in answer.err
    assert cli("status", "--json").json["running"] is False


def test_a_failed_restore_leaves_the_file_as_it_was(cli: CommandLine) -> None:
    cli("snapshot", "shop", stdin=b"raw")
    file = cli.file("precious.json", "old")
    assert cli("restore", "shop", "precious.json").status == 1
    assert cli("restore", "shop/other", "precious.json").status == 1
    assert file.read_text() == "old"
    assert list(cli.directory.iterdir()) == [file]


def test_a_file_is_replaced_where_a_link_points_and_keeps_its_permissions(cli: CommandLine) -> None:
    cli("snapshot", "shop", stdin=b"new")
    file = cli.file("secret", "old")
    file.chmod(0o600)
    (cli.directory / "link").symlink_to("secret")
    assert cli("restore", "shop", "link").status == 0
    assert (cli.directory / "link").is_symlink()
    assert file.read_bytes() == b"new"
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_device_is_written_to_and_not_replaced(cli: CommandLine) -> None:
    cli("snapshot", "shop", stdin=b"data")
    answer = cli("restore", "shop", "/dev/stdout")
    assert (answer.status, answer.out) == (0, b"data")


@pytest.mark.parametrize("buffering", [{}, {"PYTHONUNBUFFERED": "1"}])
def test_a_reader_that_leaves_early_is_no_reason_to_complain(cli: CommandLine, buffering: dict[str, str]) -> None:
    cli("snapshot", "shop", stdin=bytes(5_000_000))
    readable, writable = os.pipe()
    with subprocess.Popen(
        [*COMMAND, "restore", "shop"], stdout=writable, stderr=subprocess.PIPE, env=cli.environment(**buffering)
    ) as process:
        os.close(writable)
        os.read(readable, 1)
        os.close(readable)
        _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (1, b"")


def test_older_generations_can_be_had_as_long_as_they_are_kept(cli: CommandLine) -> None:
    for text in (b"one", b"two", b"three"):
        cli("snapshot", "shop", "--keep", "2", stdin=text)
    assert cli("restore", "shop").out == b"three"
    assert cli("restore", "shop", "--generation", "2").out == b"two"
    gone = cli("restore", "shop", "--generation", "1")
    assert gone.status == 1
    assert "keeps 3, 2" in gone.err


def test_a_new_arena_has_room_for_several_generations_of_its_first_document(cli: CommandLine) -> None:
    for number in range(1, 5):
        answer = cli("snapshot", "model", "--keep", "3", stdin=os.urandom(3 << 20))
        assert answer.status == 0, answer.err
        assert f"generation {number}" in answer.err
    assert len(cli("history", "model", "--json").json) == 3


def test_a_new_arena_is_as_large_as_told(cli: CommandLine) -> None:
    cli("snapshot", "shop", "--size", "128KiB", stdin=b"x")
    assert cli("ls", "--json").json[0]["size"] == 128 << 10
    full = cli("snapshot", "shop", stdin=os.urandom(200_000))
    assert full.status == 1
    assert cli("restore", "shop").out == b"x"
    other = cli("snapshot", "shop", "--size", "1MiB", stdin=b"y")
    assert other.status == 1
    assert "128 KiB" in other.err


def test_a_damaged_generation_is_never_given_out_and_the_one_before_is_not_given_silently(cli: CommandLine) -> None:
    cli("snapshot", "shop", stdin=b"a" * 5000)
    cli("snapshot", "shop", stdin=b"b" * 5000)
    pieces = cli("show", "shop", "--json").json["pieces"]
    newest = next(piece for piece in pieces if piece["kind"] == "buffer" and piece["generations"] == [2])
    cli.damage("shop", newest["offset"] + 100)

    answer = cli("restore", "shop")
    assert (answer.status, answer.out) == (1, b"a" * 5000)
    assert "generation 1" in answer.err
    assert answer.err.count("\n") == 1

    report = cli("verify", "shop", "--json")
    assert (report.status, report.json["ok"]) == (1, False)
    assert [(found["snapshot"], found["generation"]) for found in report.json["damaged"]] == [("default", 2)]
    assert cli("restore", "shop", "--generation", "2").out == b""
