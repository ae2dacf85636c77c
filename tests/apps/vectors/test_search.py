"""A search finds the nearest texts, whatever others change meanwhile; what is damaged is named, and never given."""

import numpy as np
import pytest

from apps.vectors.layout import EMPTY, RECORD_SIZE, WORD
from apps.vectors.ngrams import Ngrams
from apps.vectors.search import Answer, find_best
from apps.vectors.table import Damage, Directory, Table, Vector

from .support import TEXTS, new_table, put, rows_of, table_in


def embed(text: str) -> Vector:
    vector: Vector = Ngrams().embed([text])[0]
    return vector


def names(answer: Answer) -> list[str]:
    return [hit.name for hit in answer.hits]


def test_nearest_texts_are_found_best_first_with_their_cosines() -> None:
    table, _ = new_table(500, 16)
    random = np.random.default_rng(1)
    vectors = random.standard_normal((400, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    table.put([(f"name {number}", "text", vector) for number, vector in enumerate(vectors)], 1)
    queries = random.standard_normal((20, 16)).astype(np.float32)
    for query in queries / np.linalg.norm(queries, axis=1, keepdims=True):
        cosines = {f"name {number}": float(vector.astype(float) @ query) for number, vector in enumerate(vectors)}
        expected = sorted(cosines, key=lambda name: -cosines[name])[:10]
        answer = find_best(table, query, 10)
        assert names(answer) == expected
        assert [hit.score for hit in answer.hits] == pytest.approx([cosines[name] for name in expected], abs=1e-5)


def test_more_than_there_are_gives_all_there_are() -> None:
    table, _ = new_table()
    assert names(find_best(table, embed("a boat"), 100)) == []
    put(table, TEXTS)
    assert sorted(names(find_best(table, embed("a boat"), 100))) == sorted(TEXTS)


def test_replaced_text_is_found_by_what_it_says_now() -> None:
    table, _ = new_table()
    put(table, TEXTS)
    put(table, {"zebra": "a crossing for people on foot, with white stripes"})
    assert names(find_best(table, embed("white stripes for people on foot"), 1)) == ["zebra"]
    assert find_best(table, embed(TEXTS["zebra"]), 1).hits[0].score < 0.6
    assert len(table) == len(TEXTS)


def test_removed_text_is_found_no_more_and_its_place_is_used_again() -> None:
    table, _ = new_table(len(TEXTS))
    put(table, TEXTS)
    assert table.remove("zebra")
    assert not table.remove("zebra")
    assert "zebra" not in names(find_best(table, embed(TEXTS["zebra"]), 100))
    put(table, {"tiger": TEXTS["zebra"]})
    assert names(find_best(table, embed(TEXTS["zebra"]), 1)) == ["tiger"]


class Overtaken(Table):
    """A table in which somebody replaces texts just when the matrix has been read."""

    changes = 0

    def scores(self, directory: Directory, query: Vector) -> Vector:
        scores = super().scores(directory, query)
        if self.changes:
            self.changes -= 1
            put(self, {"zebra": f"a boat that carries people, number {self.changes}"})
        return scores


@pytest.mark.parametrize("changes", [1, 3, 100])
def test_text_that_is_replaced_during_a_search_is_found_as_it_is_now(changes: int) -> None:
    table, memory = new_table()
    put(table, TEXTS)
    overtaken = Overtaken(table.geometry, memory, 0, memoryview(memory).cast("Q"))
    overtaken.changes = changes
    [hit] = find_best(overtaken, embed("a boat that carries people, number"), 1).hits
    assert hit.name == "zebra"
    assert hit.text == rows_of(table)["zebra"].record.text
    assert hit.score == pytest.approx(float(embed(hit.text) @ embed("a boat that carries people, number")), abs=1e-5)


def damage_vector(table: Table, memory: memoryview, name: str, value: float) -> None:
    """Overwrite one float of a text's vector, where it lies."""
    slot = int(table.directory()[rows_of(table)[name].record.entry]) & 0xFFFFFFFF
    at = table.geometry.matrix_at + slot * table.geometry.row_size
    memory[at : at + 4] = np.float32(value).tobytes()


@pytest.mark.parametrize("value", [0.25, float("nan"), float("inf"), 3e38, -0.0, 1e-40])
def test_text_with_a_damaged_vector_is_named_and_not_given(value: float) -> None:
    table, memory = new_table()
    put(table, TEXTS)
    damage_vector(table, memoryview(memory), "ferry", value)
    answer = find_best(table, embed(TEXTS["ferry"]), 2)
    assert len(answer.hits) == 2
    assert "ferry" not in names(answer)
    [damage] = answer.damaged
    assert "'ferry'" in str(damage)
    assert damage.record is not None
    assert damage.record.text == TEXTS["ferry"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_vector_that_no_text_can_have_is_noticed_by_any_search(value: float) -> None:
    table, memory = new_table()
    put(table, TEXTS)
    damage_vector(table, memoryview(memory), "zebra", value)
    query = embed("a longing")
    query[0] = query[0] or 0.01
    answer = find_best(table, query, 1)
    assert len(answer.hits) == 1
    assert ["'zebra'" in str(damage) for damage in answer.damaged] == [True]


def test_no_flipped_bit_goes_unnoticed_or_gives_another_text() -> None:
    table, memory = new_table(len(TEXTS) + 1, 8)
    vectors = np.eye(len(TEXTS), 8, dtype=np.float32)
    table.put([(name, text, vector) for (name, text), vector in zip(TEXTS.items(), vectors, strict=True)], 1)
    sound = {name: (row.record.text, row.vector.tobytes()) for name, row in rows_of(table).items()}
    geometry = table.geometry
    used = [
        *range(geometry.directory_at, geometry.directory_at + geometry.entries * WORD),
        *range(geometry.matrix_at, geometry.matrix_at + len(TEXTS) * geometry.row_size),
    ]
    for slot, (name, text) in enumerate(TEXTS.items()):
        at = geometry.records_at + slot * RECORD_SIZE
        used.extend(range(at, at + 40 + len(name) + len(text)))
    for number, at in enumerate(used):
        memory[at] ^= 1 << number % 8
        found = list(table.entries())
        assert [row for row in found if isinstance(row, Damage)], f"byte {at}"
        for row in found:
            if not isinstance(row, Damage):
                assert sound[row.record.name] == (row.record.text, row.vector.tobytes())
        memory[at] ^= 1 << number % 8
    assert len(rows_of(table)) == len(TEXTS)


@pytest.mark.parametrize("wiped", [b"\0", b"\xff"])
def test_directory_that_was_wiped_is_damaged_and_not_empty(wiped: bytes) -> None:
    table, memory = new_table(len(TEXTS))
    put(table, TEXTS)
    at = table.geometry.directory_at
    memory[at : at + 2 * WORD] = wiped * (2 * WORD)
    answer = find_best(table_in(memory, table.geometry), embed("a boat"), 100)
    assert len(answer.hits) == len(TEXTS) - 2
    assert [damage.entry for damage in answer.damaged] == [0, 1]
    assert all("its text is lost" in str(damage) for damage in answer.damaged)


@pytest.mark.parametrize(("damaged", "other"), [(0, 1), (1, 0)])
def test_entry_that_was_damaged_to_name_anothers_slot_leaves_the_other_alone(damaged: int, other: int) -> None:
    table, memory = new_table()
    put(table, TEXTS)
    words = memoryview(memory).cast("Q")
    first = table.geometry.directory_at // WORD
    words[first + damaged] = words[first + other]
    name = list(TEXTS)[other]
    put(table, {name: "a small boat"})
    found = {row.record.name: row.record.text for row in table.entries() if not isinstance(row, Damage)}
    assert found == {each: text for each, text in TEXTS.items() if each != list(TEXTS)[damaged]} | {
        name: "a small boat"
    }
    assert table.remove(name)
    assert words[first + other] == EMPTY
