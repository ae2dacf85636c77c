"""``python -m apps.vectors`` as its users have it: every command is a process, the index outlives them all."""

import re

import pytest

from apps.vectors.index import Index
from apps.vectors.layout import RECORD_SIZE
from persistmem import attach

from .support import TEXTS, App, flip_bit, many_texts


def test_index_is_built_once_and_searched_by_every_process_after(app: App) -> None:
    assert "6 texts embedded with ngrams" in app.build(TEXTS).err
    assert app.found("boats across a river", 1) == ["ferry"]
    [line] = app("search", TEXTS["zebra"], "-k", "1").text.splitlines()
    assert line == "1.000  zebra: a striped animal of the African plains"
    again = app.build(TEXTS | {"zebra": "a crossing with white stripes", "tiger": "a striped animal"})
    assert "2 texts embedded" in again.err
    assert "the index has 7" in again.err
    assert app.found("striped animals", 1) == ["tiger"]
    assert "arena reattached" in app("search", "boat").err


def test_running_process_finds_what_another_adds_replaces_and_removes(app: App) -> None:
    app.build(TEXTS)
    query = "a photograph of oneself"
    with Index.attach() as index:
        assert "added selfie" in app("add", "selfie", "a photograph that one takes of oneself").err
        assert index.search(query, 1).hits[0].name == "selfie"
        assert "replaced selfie" in app("add", "selfie", "a portrait").err
        assert index.search("a portrait", 1).hits[0].text == "a portrait"
        assert app("remove", "selfie").status == 0
        assert "selfie" not in [hit.name for hit in index.search(query, 100).hits]
        assert len(index) == len(TEXTS)
    gone = app("remove", "selfie")
    assert gone.status == 1
    assert gone.err == "vectors: error: there is no text 'selfie'\n"


def test_index_crosses_a_kernel_upgrade(app: App) -> None:
    app.build(TEXTS)
    before = app("search", "instruments", "-k", "6").text
    assert len(before.splitlines()) == len(TEXTS)
    assert app.cli("reboot", "--simulate").status == 0
    after = app("search", "instruments", "-k", "6")
    assert after.text == before
    assert "arena carried over" in after.err
    assert app("verify").status == 0
    assert app("add", "compass", "an instrument that shows the way").status == 0


def place(name: str) -> tuple[int, int]:
    """Where in the arena a text's record and its vector lie."""
    with Index.attach() as index:
        geometry = index.geometry
        [entry] = [row.record.entry for row in index.table.entries() if row.record and row.record.name == name]
        slot = int(index.table.directory()[entry]) & 0xFFFFFFFF
    with attach("vectors") as arena, arena.region("table") as region:
        start = region.record.offset
    return start + geometry.records_at + slot * RECORD_SIZE, start + geometry.matrix_at + slot * geometry.row_size


def test_damaged_vector_is_named_kept_back_and_computed_again_from_its_text(app: App) -> None:
    app.build(TEXTS)
    flip_bit(place("ferry")[1] + 100)
    search = app("search", TEXTS["ferry"], "-k", "6")
    assert "ferry:" not in search.text
    assert len(search.text.splitlines()) == 5
    assert "not given, because it is damaged: 'ferry' (entry" in search.err
    assert "verify --repair" in search.err

    verify = app("verify")
    assert verify.status == 1
    assert "6 texts checked" in verify.err
    assert "1 damaged" in verify.err
    assert re.fullmatch(r"'ferry' \(entry \d+\): its vector does not match .*\n", verify.text)

    repair = app("verify", "--repair")
    assert repair.status == 0, repair.err
    assert repair.text.endswith("computed again\n")
    assert app.found(TEXTS["ferry"], 1) == ["ferry"]
    assert app("verify").text == ""


def test_text_that_is_lost_is_dropped_when_asked_for_and_comes_back_from_its_source(app: App) -> None:
    app.build(TEXTS)
    flip_bit(place("ferry")[0] + 60)
    verify = app("verify")
    assert verify.status == 1
    assert re.fullmatch(r"entry \d+: its record does not match its checksum; its text is lost\n", verify.text)
    assert "dropped" in app("verify", "--repair").text
    assert "1 texts embedded" in app.build(TEXTS).err
    assert app.found(TEXTS["ferry"], 1) == ["ferry"]


def test_damaged_header_is_named_and_the_index_is_not_used(app: App) -> None:
    app.build(TEXTS)
    with attach("vectors") as arena, arena.region("table") as region:
        start = region.record.offset
    flip_bit(start + 16)
    for command in (("search", "boat"), ("build", app.file(TEXTS))):
        answer = app(*command)
        assert answer.status == 1
        assert "expected a table's header" in answer.err
        assert "Traceback" not in answer.err
    assert app.cli("rm", "vectors").status == 0
    app.build(TEXTS)
    assert app.found("boats across a river", 1) == ["ferry"]


def test_without_an_index_the_message_says_how_to_make_one(app: App) -> None:
    answer = app("search", "boat")
    assert answer.status == 1
    assert answer.err == "vectors: error: there is no index yet: python -m apps.vectors build\n"


def test_index_whose_making_was_broken_off_is_made_anew(app: App) -> None:
    with attach("vectors", "2MiB") as arena:
        arena.region("table", 4096).close()
    assert "broken off: python -m apps.vectors build" in app("search", "boat").err
    app.build(TEXTS, "--capacity", "100")
    assert app.found("boats across a river", 1) == ["ferry"]


def test_index_of_another_model_is_not_mixed(app: App) -> None:
    app.build(TEXTS)
    answer = app("build", app.file(TEXTS), "--model", "minilm")
    assert answer.status == 1
    assert "made with the model ngrams, not minilm" in answer.err


def test_full_index_says_so_and_stays_as_it_was(app: App) -> None:
    app.build(TEXTS, "--capacity", "6")
    answer = app("add", "tiger", "a striped animal")
    assert answer.status == 1
    assert "room for 0 more texts" in answer.err
    assert app("add", "zebra", "a striped animal").status == 0
    assert len(app("search", "animal", "-k", "100").text.splitlines()) == 6


@pytest.mark.parametrize(
    ("content", "complaint"), [("no tab\n", "line 1: expected a name, a tab and a text"), ("a\tb\x1b[2J\n", "control")]
)
def test_file_that_holds_no_texts_is_refused_by_line(app: App, content: str, complaint: str) -> None:
    answer = app("build", app.cli.file("bad.tsv", content))
    assert answer.status == 1
    assert complaint in answer.err
    assert "\x1b" not in answer.err


@pytest.mark.parametrize("arguments", [("build", "missing.tsv"), ("build", "--model", "bert")])
def test_wrong_usage_is_exit_status_2(app: App, arguments: tuple[str, ...]) -> None:
    answer = app(*arguments)
    assert answer.status == 2
    assert "Usage: python -m apps.vectors" in answer.err


def test_long_texts_are_cut_at_a_word(app: App) -> None:
    app.build({"long": "word " * 100} | many_texts(3))
    [line] = app("search", "word word word", "-k", "1").text.splitlines()
    assert line.endswith("word word …")
    assert len(line) < 300
