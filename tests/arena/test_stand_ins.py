"""Containers that stand for plain ones are stored as those, wherever they are, and come back as those."""

import copy
from typing import Any

import pytest

from persistmem.app.watched import Changes, watch
from persistmem.arena.documents import DocumentEncoder
from persistmem.arena.types import registry
from persistmem.errors import UnsupportedTypeError

from .support import arena_of
from .test_documents import assert_same

LARGE = bytes(range(256)) * 16
DOCUMENTS: dict[str, Any] = {
    "a dict": {"a": 1, 2: [3]},
    "a list": [1, [2, {}]],
    "a set": {1, (2, 3)},
    "empty ones": [{}, [], set(), ()],
    "in tuples": ({"a": ([1], {2})}, [({},)]),
    "a large buffer": {"blob": LARGE},
    "large buffers": [{"a": {"b": [LARGE, bytearray(LARGE * 2), {"c": (LARGE[::-1],)}]}}],
    "a large buffer where no glance falls": {"rows": [[n, {"x": [n]}] for n in range(3000)] + [[LARGE, {LARGE}]]},
    "a large document": {str(n): [n, {n: {n}}] for n in range(5000)},
    "as many levels as msgpack allows": None,
}
deep: list[Any] = []
for _ in range(400):
    deep = [deep]
DOCUMENTS["as many levels as msgpack allows"] = deep


def watched(document: object) -> object:
    made = watch(document, Changes())
    assert type(made) is not type(document) or isinstance(document, tuple)
    return made


@pytest.mark.parametrize("name", DOCUMENTS)
def test_they_are_stored_as_what_they_stand_for(name: str) -> None:
    plain = DOCUMENTS[name]
    with arena_of(4 << 20) as (_, arena):
        stored = arena.snapshot("watched", watched(plain))
        assert stored.buffers == arena.snapshot("plain", plain).buffers
        found = arena.restore("watched")
        if name == "as many levels as msgpack allows":
            assert found == plain
        else:
            assert_same(found, arena.restore("plain"))
        assert arena.usage().live < 2 * stored.size + 10_000


@pytest.mark.parametrize("name", DOCUMENTS)
def test_packed_they_are_the_same_bytes(name: str) -> None:
    plain = DOCUMENTS[name]
    encoder = DocumentEncoder(registry, inline=True)
    assert encoder.pack(watched(copy.deepcopy(plain))) == encoder.pack(plain)


def test_watched_and_plain_may_be_mixed() -> None:
    state: Any = watched({"d": {}, "l": [], "s": set()})
    state["d"]["plain"] = {"watched": state["l"], "blob": LARGE}
    state["l"].append(({"more": state["s"]},))
    with arena_of() as (_, arena):
        arena.snapshot("state", state)
        assert_same(
            arena.restore("state"),
            {"d": {"plain": {"watched": [({"more": set()},)], "blob": LARGE}}, "l": [({"more": set()},)], "s": set()},
        )


@pytest.mark.parametrize("blob", [b"", LARGE])
def test_what_cannot_be_stored_is_named_with_the_path_to_it(blob: bytes) -> None:
    with arena_of() as (_, arena):
        for document, path in (
            ({"a": [0, {"b": object()}]}, "document['a'][1]['b']: a value of type builtins.object"),
            ([{"k": ({1: [object()]},)}], "document[0]['k'][0][1][0]: a value of type builtins.object"),
            ([[{object()}]], "document[0][0] member <object object at"),
        ):
            state: Any = watched({"blob": blob, "document": document})
            with pytest.raises(UnsupportedTypeError) as caught:
                arena.snapshot("state", state["document"] if not blob else [state["document"], blob])
            expected = path if not blob else path.replace("document", "document[0]", 1)
            assert str(caught.value).startswith(expected)
        assert arena.snapshots() == []


def test_one_that_contains_itself_is_refused() -> None:
    state: Any = watched({"a": []})
    state["a"].append(state)
    with arena_of() as (_, arena), pytest.raises(UnsupportedTypeError, match="contains itself, or is nested too deep"):
        arena.snapshot("state", state)


def test_other_subclasses_are_still_refused() -> None:
    class Mine(dict[str, int]):
        pass

    with arena_of() as (_, arena), pytest.raises(UnsupportedTypeError, match="Mine"):
        arena.snapshot("state", watched({"a": [Mine()]}))
