"""Watched containers do what plain ones do, and no change of a state is ever missed, however it came about."""

import copy
import json
import pickle
import pprint
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import persistmem
from persistmem.app.watched import CONTAINERS_MAX, Changes, is_watched, watch
from persistmem.arena.documents import DocumentEncoder
from persistmem.arena.types import registry
from persistmem.errors import RefusedError
from persistmem.testing import new_arena

from .support import running_on, saved

# What is done to the state is drawn as numbers: which container, what is done to it, and with what. It is done to a
# plain twin as well.

Pair = tuple[Any, Any]
"""Something in the state, and the same in its twin."""

VALUES: list[Callable[[], object]] = [
    *(lambda: 0, lambda: 1, lambda: "x", lambda: "", lambda: None, lambda: 2.5, lambda: b"bytes", lambda: 2**70),
    *(lambda: (1, "two"), lambda: frozenset({1, 2}), lambda: (), lambda: True),
    *(list, dict, set, lambda: [3, [4, {5}]], lambda: {"k": {"deep": [1]}}, lambda: {1, "a"}, lambda: [[], {}]),
    *(lambda: ([1], {"t": 2}), lambda: {"in a tuple": ([{1}],)}, lambda: [2, 1, 3], lambda: [None, "mixed", 1]),
]
KEYS: list[Any] = ["a", "b", "c", "k", "x", 0, 1, 2, None, (1, 2), b"bytes", frozenset({1})]
NOT_HASHABLE: list[Any] = [[], {}]


@dataclass
class State:
    things: dict[Any, Any] = field(default_factory=lambda: {"a": [1, [2]], "k": {1, 2}, "x": {"in": ({},)}})
    rows: list[Any] = field(default_factory=lambda: [3, 1, 2, [{"a": 1}], ([5],)])
    tags: set[Any] = field(default_factory=lambda: {1, "a", (2, 3)})
    anything: Any = None


def containers_in(*pairs: Pair) -> Iterator[Pair]:
    """Every dict, list and set in them, however deep; those in two places once."""
    seen: set[int] = set()
    left = list(pairs)
    while left:
        mine, twin = left.pop()
        if isinstance(mine, dict | list | set):
            if id(mine) in seen:
                continue
            seen.add(id(mine))
            yield mine, twin
        if isinstance(mine, dict):
            left += [(item, twin[key]) for key, item in mine.items()]
        elif isinstance(mine, list | tuple):
            left += zip(mine, twin, strict=True)


class Drawn:
    """What the numbers stand for."""

    def __init__(self, numbers: list[int], pairs: list[Pair], target: Pair) -> None:
        self._numbers = iter(numbers)
        self._pairs = pairs
        self._target = target

    def number(self, below: int) -> int:
        return next(self._numbers) % below

    def index(self) -> Pair:
        index = self.number(9) - 4
        return index, index

    def slice(self) -> Pair:
        start, stop, step = ((None, -2, -1, 0, 1, 2, 3)[self.number(7)] for _ in range(3))
        part = slice(start, stop, step or None)
        return part, part

    def key(self) -> Pair:
        key = (KEYS * 3 + NOT_HASHABLE)[self.number(3 * len(KEYS) + len(NOT_HASHABLE))]
        return key, key

    def value(self) -> Pair:
        """Something new, or something that is in the state already, as long as it does not hold the target."""
        number = self.number(2 * len(VALUES))
        if number >= len(VALUES):
            pair = self._pairs[number % len(self._pairs)]
            if not any(mine is self._target[0] for mine, _ in containers_in(pair)):
                return pair
        return VALUES[number % len(VALUES)](), VALUES[number % len(VALUES)]()

    def values(self) -> Pair:
        pairs = [self.value() for _ in range(self.number(4))]
        return [mine for mine, _ in pairs], [twin for _, twin in pairs]

    def items(self) -> Pair:
        keys = [KEYS[self.number(len(KEYS))] for _ in range(self.number(4))]
        pairs = {key: self.value() for key in keys}
        return {key: mine for key, (mine, _) in pairs.items()}, {key: twin for key, (_, twin) in pairs.items()}

    def keywords(self) -> Pair:
        mine, twin = self.value()
        return {"word": mine, "k": 1}, {"word": twin, "k": 1}

    def keys(self) -> Pair:
        keys = {KEYS[self.number(len(KEYS))] for _ in range(self.number(4))}
        return keys, keys


def raising_key(item: object) -> int:
    if isinstance(item, str):
        raise LookupError
    return len(repr(item))


Operation = Callable[..., object]
IN_PLACE: dict[type, list[tuple[str, Operation]]] = {
    dict: [
        ("key value", lambda it, key, value: it.__setitem__(key, value)),
        ("key value", lambda it, key, value: it.setdefault(key, value)),
        ("key", lambda it, key: it.setdefault(key)),
        ("key", lambda it, key: it.__delitem__(key)),
        ("key", lambda it, key: it.pop(key)),
        ("key value", lambda it, key, value: it.pop(key, value)),
        ("", lambda it: it.popitem()),
        ("", lambda it: it.clear()),
        ("items", lambda it, items: it.update(items)),
        ("items", lambda it, items: it.update(iter(items.items()))),
        ("items keywords", lambda it, items, keywords: it.update(items, **keywords)),
        ("keywords", lambda it, keywords: it.update(**keywords)),
        ("value", lambda it, value: it.update([("a", value), ("half",)])),
        ("items", lambda it, items: it.__ior__(items)),
        ("items", lambda it, items: it.__ior__(list(items.items()))),
    ],
    list: [
        ("value", lambda it, value: it.append(value)),
        ("index value", lambda it, index, value: it.insert(index, value)),
        ("values", lambda it, values: it.extend(values)),
        ("values", lambda it, values: it.extend(iter(values))),
        ("value", lambda it, value: it.extend(1 if i == 2 else (value if i < 2 else 1 // 0) for i in range(4))),
        ("index value", lambda it, index, value: it.__setitem__(index, value)),
        ("slice values", lambda it, part, values: it.__setitem__(part, values)),
        ("index", lambda it, index: it.__delitem__(index)),
        ("slice", lambda it, part: it.__delitem__(part)),
        ("", lambda it: it.pop()),
        ("index", lambda it, index: it.pop(index)),
        ("value", lambda it, value: it.remove(value)),
        ("", lambda it: it.clear()),
        ("", lambda it: it.reverse()),
        ("", lambda it: it.sort()),
        ("", lambda it: it.sort(key=lambda item: len(repr(item)), reverse=True)),
        ("", lambda it: it.sort(key=raising_key)),
        ("values", lambda it, values: it.__iadd__(values)),
        ("index", lambda it, index: it.__imul__(index % 3)),
    ],
    set: [
        ("key", lambda it, key: it.add(key)),
        ("key", lambda it, key: it.discard(key)),
        ("key", lambda it, key: it.remove(key)),
        ("", lambda it: it.clear()),
        ("keys keys", lambda it, keys, more: it.update(keys, iter(more))),
        ("keys keys", lambda it, keys, more: it.intersection_update(keys, more)),
        ("keys keys", lambda it, keys, more: it.difference_update(keys, more)),
        ("keys", lambda it, keys: it.symmetric_difference_update(keys)),
        ("keys", lambda it, keys: it.__ior__(keys)),
        ("keys", lambda it, keys: it.__iand__(keys)),
        ("keys", lambda it, keys: it.__isub__(keys)),
        ("keys", lambda it, keys: it.__ixor__(keys)),
    ],
}
"""Everything that changes one, and what it takes."""

COPYING: dict[type, list[tuple[str, Operation]]] = {
    dict: [
        ("", lambda it: it.copy()),
        ("items", lambda it, items: it | items),
        ("items", lambda it, items: items | it),
        ("keys", lambda it, keys: it.fromkeys(keys)),
        ("", lambda it: {**it}),
    ],
    list: [
        ("", lambda it: it.copy()),
        ("slice", lambda it, part: it[part]),
        ("values", lambda it, values: it + values),
        ("values", lambda it, values: values + it),
        ("", lambda it: 2 * it),
        ("", lambda it: [*it]),
    ],
    set: [
        ("", lambda it: it.copy()),
        ("keys", lambda it, keys: it | keys),
        ("keys", lambda it, keys: it & keys),
        ("keys", lambda it, keys: it - keys),
        ("keys", lambda it, keys: it ^ keys),
        ("keys", lambda it, keys: keys - it),
        ("keys keys", lambda it, keys, more: it.union(keys, more)),
        ("keys", lambda it, keys: it.intersection(keys)),
        ("keys", lambda it, keys: it.difference(keys)),
        ("keys", lambda it, keys: it.symmetric_difference(keys)),
    ],
}
"""What gives the caller one of his own."""

for each in COPYING.values():
    each += [("", copy.copy), ("", copy.deepcopy), ("", lambda it: pickle.loads(pickle.dumps(it)))]


def kind_of(container: object) -> type:
    return next(kind for kind in IN_PLACE if isinstance(container, kind))


def outcome_of(operation: Operation, it: object, arguments: list[object]) -> tuple[str, object]:
    try:
        return "returned", operation(it, *arguments)
    except Exception as error:  # noqa: BLE001 - it is compared with the twin's
        return "raised", type(error)


def is_plain(value: object) -> bool:
    return type(value) in (dict, list, set)


def do_one(numbers: list[int], roots: list[Pair]) -> None:
    """Do what the numbers say, to something in the state and to its twin."""
    pairs = list(containers_in(*roots))
    mine, twin = target = pairs[numbers[0] % len(pairs)]
    drawn = Drawn(numbers[2:], pairs, target)
    kind = kind_of(mine)
    if kind is set and numbers[1] == 0:
        popped = outcome_of(lambda it: it.pop(), mine, [])
        assert popped == (("returned", popped[1]) if twin else ("raised", KeyError))
        twin.discard(popped[1])
        return
    operations = IN_PLACE[kind] + COPYING[kind]
    takes, operation = operations[numbers[1] % len(operations)]
    arguments = [getattr(drawn, what)() for what in takes.split()]
    before = list(twin)
    outcome = outcome_of(operation, mine, [argument[0] for argument in arguments])
    assert outcome == outcome_of(operation, twin, [argument[1] for argument in arguments])
    if outcome[0] == "raised" and kind is list and operation.__code__.co_names[0] == "sort":
        twin[:] = before  # a plain one may be left half sorted
    if (takes, operation) in COPYING[kind]:
        assert is_plain(outcome[1])


def packed(document: object) -> bytes:
    return DocumentEncoder(registry, inline=True).pack(document)[0]


EACH = [(kind, number) for kind, operations in IN_PLACE.items() for number in range(len(operations))]


@pytest.mark.parametrize(("kind", "number"), EACH, ids=[f"{kind.__name__} {number}" for kind, number in EACH])
def test_every_method_that_changes_something_is_noticed_alone(kind: type, number: int) -> None:
    rng = random.Random(number)
    changed = 0
    takes, operation = IN_PLACE[kind][number]
    for _ in range(40):
        twin: Any = {"dict": State().things, "list": [1, 31, 2], "set": State().tags}[kind.__name__]
        changes = Changes()
        mine = watch(copy.deepcopy(twin), changes)
        before = packed(mine)
        drawn = Drawn([rng.randrange(256) for _ in range(16)], [([], [])], (None, None))
        arguments = [getattr(drawn, what)()[0] for what in takes.split()]
        outcome_of(operation, mine, arguments)
        if packed(mine) != before:
            changed += 1
            assert changes.possible
            assert changes.unwatched or is_watched(mine, changes)
    assert changed


def fields_of(state: object) -> dict[str, Any]:
    return {name: getattr(state, name) for name in State.__dataclass_fields__}


@pytest.fixture(scope="module")
def arena() -> persistmem.Arena:
    return new_arena("1MiB")


NUMBERS = st.lists(st.integers(0, 255), min_size=16, max_size=16)


@settings(max_examples=250)
@given(st.lists(NUMBERS, min_size=1, max_size=25))
def test_any_change_by_any_method_is_noticed_and_saved_and_does_what_it_does_to_plain_ones(
    steps: list[list[int]],
) -> None:
    arena = new_arena("64KiB")
    # Its own close is none of this test's business: it looks into the arena until the end.
    running = running_on(arena, lambda: fields_of(State()), keep=1)
    state, twin = running.state, fields_of(State())
    running.save()
    last = packed(state)
    for step in steps:
        do_one(step, [(state, twin)])
        assert state == twin
        assert running.changes.possible or packed(state) == last
        if step[-1] % 3 == 0:
            before = arena.history("state")[0]
            running.save_if_changed()
            assert arena.restore("state")["state"] == twin
            assert arena.history("state")[0] == before or packed(state) != last
            last = packed(state)
            if not any(is_plain(mine) for mine, _ in containers_in((state, twin))):
                assert not running.changes.possible
    running.save_if_changed()
    assert arena.restore("state")["state"] == twin
    running.stop(save=False)


def test_any_change_of_a_dataclass_is_noticed_and_saved(name: str) -> None:
    app = persistmem.App(name, "256KiB", interval=0)
    app.state(version=1)(State)

    @settings(max_examples=60)
    @given(st.lists(NUMBERS, min_size=1, max_size=20))
    def change(steps: list[list[int]]) -> None:
        app.start()
        app.state = State()
        app.stop()
        with app:
            twin = State()
            last = packed(fields_of(app.state))
            for step in steps:
                roots = [(getattr(app.state, name), getattr(twin, name)) for name in fields_of(twin)]
                if step[0] % 4 == 0:
                    drawn = Drawn(step[1:], list(containers_in(*roots)), (None, None))
                    field_name = ("things", "rows", "tags", "anything")[drawn.number(4)]
                    mine, theirs = drawn.value()
                    setattr(twin, field_name, theirs)
                    if step[-2] % 4 == 0:
                        app.state = replace(app.state, **{field_name: mine})
                    else:
                        setattr(app.state, field_name, mine)
                else:
                    do_one(step[1:], [*roots, ([], [])])
                assert app.state == twin
                assert app._running is not None
                assert app._running.changes.possible or packed(fields_of(app.state)) == last
                if step[-1] % 3 == 0:
                    app._tick()
                    assert saved(name) == fields_of(twin)
                    last = packed(fields_of(app.state))
        assert saved(name) == fields_of(twin)

    change()


def test_watched_containers_are_dicts_lists_and_sets_to_everybody_who_asks() -> None:
    plain = {"d": {"x": 1, "y": [1, 2, {"z": None}]}, "l": [3, 1, 2], "s": {1}}
    state: Any = watch(plain, Changes())
    assert isinstance(state, dict)
    assert isinstance(state["l"], list)
    assert isinstance(state["s"], set)
    assert state == plain
    assert plain == state
    assert state["l"] == [3, 1, 2] != [3, 1]
    assert state["s"] == {1} == frozenset(state["s"])
    assert json.loads(json.dumps(state["d"], indent=1)) == plain["d"]
    assert repr(state) == repr(plain) == str(state)
    assert f"{state['s']}" == "{1}"
    assert pprint.pformat(state) == pprint.pformat(plain)
    assert list(reversed(state["l"])) == [2, 1, 3]
    assert sorted(state["l"]) == [1, 2, 3]
    match state:
        case {"l": [first, *_], "d": {"x": x}}:
            assert (first, x) == (3, 1)
        case _:
            raise AssertionError
    assert dict(state["d"], w=1) == {**plain["d"], "w": 1}  # type: ignore[dict-item]


@dataclass(eq=False)
class Person:
    """A registered type that can be a key, or in a set, and still change."""

    name: str


@pytest.fixture(scope="module")
def person_type() -> type[Person]:
    persistmem.register_type(Person, "tests.app.Person", lambda person: person.name, lambda name: Person(str(name)))
    return Person


@pytest.mark.parametrize(
    "place", ["value", "key", "member", "in a frozenset", "in a tuple of a list", "setdefault key"]
)
def test_change_of_the_users_own_object_is_noticed_wherever_it_is(person_type: type[Person], place: str) -> None:
    arena = new_arena("64KiB")
    running = running_on(arena, lambda: {"d": {}, "l": [], "s": set()})
    running.save()
    person = person_type("ada")
    state = running.state
    put: dict[str, Callable[[], object]] = {
        "value": lambda: state["d"].update(a=person),
        "key": lambda: state["d"].__setitem__(person, 1),
        "setdefault key": lambda: state["d"].setdefault(person),
        "member": lambda: state["s"].add(person),
        "in a frozenset": lambda: state["l"].append(frozenset({person})),
        "in a tuple of a list": lambda: state["l"].append(((person,),)),
    }
    put[place]()
    running.save_if_changed()
    person.name = "grace"
    running.save_if_changed()
    assert "Person(name='grace')" in repr(arena.restore("state"))
    running.stop(save=False)


def test_plain_containers_that_the_program_put_in_are_its_own_and_their_changes_are_saved() -> None:
    arena = new_arena("64KiB")
    running = running_on(arena, lambda: {"log": []})
    mine: list[Any] = [{"n": 1}]
    running.state["log"].append(mine)
    running.save_if_changed()
    for change in (lambda: mine.append(2), lambda: mine[0].update(n=2), lambda: mine[0].setdefault("deep", ([],))):
        change()
        running.save_if_changed()
        assert arena.restore("state")["state"] == {"log": [mine]}
    mine[0]["deep"][0].append("deepest")
    running.save_if_changed()
    assert arena.restore("state")["state"]["log"][0][0]["deep"] == (["deepest"],)
    assert running.state["log"][0] is mine
    running.stop(save=False)


def test_plain_container_that_an_attribute_was_set_to_is_the_programs_own_and_its_changes_are_saved(name: str) -> None:
    app = persistmem.App(name, "256KiB", interval=0)
    app.state(version=1)(type("State", (State,), {}))
    with app:
        pass
    with app:
        mine = [1]
        app.state.anything = mine
        app._tick()
        mine.append(2)
        app._tick()
        assert saved(name)["anything"] == [1, 2]
        assert app.state.anything is mine


def test_container_of_another_applications_state_is_looked_at_as_well() -> None:
    arena = new_arena("64KiB")
    other = running_on(new_arena("64KiB"), lambda: {"shared": [1]})
    running = running_on(arena, dict)
    running.state["theirs"] = other.state["shared"]
    running.save_if_changed()
    other.state["shared"].append(2)
    running.save_if_changed()
    assert arena.restore("state")["state"] == {"theirs": [1, 2]}
    running.stop(save=False)
    other.stop(save=False)


def test_list_is_whole_to_whoever_saves_it_while_it_is_sorted() -> None:
    arena = new_arena("64KiB")
    running = running_on(arena, lambda: [3, 1, 2])
    found = []

    def key(item: int) -> int:
        running.save()
        found.append(arena.restore("state")["state"])
        return item

    running.state.sort(key=key)
    assert found == 3 * [[3, 1, 2]]
    assert running.state == [1, 2, 3]
    running.stop(save=False)


def test_more_containers_than_are_watched_are_looked_at() -> None:
    arena = new_arena("8MiB")
    many = CONTAINERS_MAX + 10
    running = running_on(arena, lambda: [[] for _ in range(many)])
    running.save()
    assert is_plain(running.state[-1])
    assert not is_plain(running.state[0])
    for index in (0, many - 1):
        running.state[index].append(index)
        running.save_if_changed()
        assert arena.restore("state")["state"][index] == [index]
    newest = arena.history("state")[0]
    running.save_if_changed()
    assert arena.history("state")[0] == newest
    running.stop(save=False)


def test_deep_states_are_loaded_and_looked_at() -> None:
    arena = new_arena("64KiB")
    deepest: list[Any] = []
    deep = deepest
    for _ in range(400):
        deep = [deep]
    running = running_on(arena, lambda: {"deep": deep})
    running.save()
    at: Any = running.state["deep"]
    while at:
        at = at[0]
    at.append("changed")
    running.save_if_changed()
    assert "changed" in repr(arena.restore("state"))
    running.stop(save=False)


REFUSED: list[Operation] = [
    lambda state: state.things.__setitem__("x", 1),
    lambda state: state.things["a"][1].append(3),
    lambda state: state.rows.sort(),
    lambda state: state.rows[4][0].clear(),
    lambda state: state.tags.add(5),
    lambda state: setattr(state, "anything", 5),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_state_that_is_only_read_cannot_be_changed(name: str, number: int) -> None:
    writer, reader = (persistmem.App(name, "256KiB", interval=0, others="read") for _ in range(2))
    kinds = [type("State", (State,), {}), type("State", (State,), {})]
    for app, kind in zip((writer, reader), kinds, strict=True):
        app.state(version=1)(kind)
    with writer:
        writer.save()
        with reader:
            before = copy.deepcopy(reader.state)
            with pytest.raises(RefusedError, match="this process only reads the state"):
                REFUSED[number](reader.state)
            with pytest.raises(RefusedError, match="only reads"):
                reader.state = kinds[1]()
            assert reader.state == before


def test_what_is_changed_after_the_end_is_refused_because_nobody_saves_it(name: str) -> None:
    app = persistmem.App(name, "256KiB", interval=0)
    app.state(version=1)(dict)
    with app:
        app.state["words"] = 1
    with app:
        state = app.state
    with pytest.raises(RefusedError, match="it was stopped; what is changed now is not saved"):
        state["words"] = 2
    assert saved(name) == {"words": 1}
