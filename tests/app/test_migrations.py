"""A newer program finds an older state and makes it its own; an older program leaves a newer state alone."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

import persistmem
from persistmem.errors import ArgumentError, MigrationError, NewerStateError

from .support import generations, memory_of, saved


def version_1(name: str) -> persistmem.App:
    app = persistmem.App(name, "1MiB", interval=0)

    @app.state(version=1)
    class State:
        points: list[tuple[str, int]] = field(default_factory=list)

    return app


@dataclass
class Newest:
    """Version 4."""

    scores: dict[str, int] = field(default_factory=dict)
    best: str | None = None
    tags: set[str] = field(default_factory=set)


MIGRATIONS: dict[int, Callable[[Any], Any]] = {
    1: lambda old: {"scores": dict(old["points"])},
    2: lambda old: {**old, "best": max(old["scores"], key=old["scores"].get, default=None)},
    3: lambda old: {**old, "tags": {"migrated"}},
}


def version_4(name: str, **other: Callable[[Any], Any] | None) -> persistmem.App:
    """The newest, with other migrations, or none, from some versions: ``from_2=None``."""
    app = persistmem.App(name, "1MiB", interval=0)
    app.state(version=4)(type("State", (Newest,), {}))
    for version, usual in MIGRATIONS.items():
        if (migration := other.get(f"from_{version}", usual)) is not None:
            assert app.migrate(version)(migration) is migration
    return app


@pytest.fixture
def old(name: str) -> str:
    """An application whose state is of version 1, in two generations."""
    with version_1(name) as app:
        app.state.points.append(("ada", 3))
        app.save()
        app.state.points.append(("grace", 5))
    return name


def test_chain_of_migrations_makes_it_the_newest(old: str) -> None:
    with version_4(old) as app:
        assert (app.found.state, app.found.migrated_from, app.found.version) == ("migrated", 1, 4)
        assert (app.found.generation, app.found.damage) == (2, ())
        assert app.state == type(app.state)({"ada": 3, "grace": 5}, "grace", {"migrated"})
        app.state.scores["alan"] = 7
    assert saved(old)["scores"] == {"ada": 3, "grace": 5, "alan": 7}


def test_migrated_state_is_saved_once_and_the_old_one_is_kept(old: str) -> None:
    before = saved(old)
    with version_4(old) as app:
        app._tick()
        assert generations(old) == [3, 2]
        app._tick()
    assert generations(old) == [3, 2]
    assert saved(old, 2) == before
    assert saved(old, 3) == {"scores": {"ada": 3, "grace": 5}, "best": "grace", "tags": {"migrated"}}
    with version_4(old) as app:
        assert (app.found.state, app.found.migrated_from) == ("restored", None)
    assert generations(old) == [3, 2]


def test_state_in_the_middle_of_the_chain_goes_the_rest_of_the_way(name: str) -> None:
    app = persistmem.App(name, "1MiB", interval=0)
    app.state(version=3)(lambda: {"scores": {"ada": 1}, "best": "ada"})
    with app:
        pass

    def never(old: object) -> object:
        raise AssertionError

    with version_4(name, from_1=never, from_2=never) as newest:
        assert newest.found.migrated_from == 3
        assert newest.state == type(newest.state)({"ada": 1}, "ada", {"migrated"})


def test_migration_gets_plain_containers_and_may_change_them(old: str) -> None:
    def change(old: dict[str, Any]) -> dict[str, Any]:
        assert type(old) is dict
        assert type(old["points"]) is list
        old["scores"] = dict(old.pop("points"))
        old["scores"]["alan"] = 7
        return old

    with version_4(old, from_1=change) as app:
        assert app.state.scores == {"ada": 3, "grace": 5, "alan": 7}


def test_migration_can_be_declared_at_the_class(old: str) -> None:
    app = persistmem.App(old, "1MiB", interval=0)

    @app.state(version=2)
    @dataclass
    class Board:
        count: int = 0

    @Board.migrate(1)  # type: ignore[attr-defined, untyped-decorator]
    def count(old: dict[str, Any]) -> dict[str, Any]:
        return {"count": len(old["points"])}

    with app:
        assert app.state == Board(2)
    with pytest.raises(ArgumentError, match=r"migrate\(1\): there is a migration from this version already"):
        app.migrate(1)(lambda old: old)
    with pytest.raises(ArgumentError, match=r"migrate\(2\): expected a version before 2"):
        app.migrate(2)


def test_fields_that_are_new_get_their_defaults(old: str) -> None:
    app = persistmem.App(old, "1MiB", interval=0)

    @app.state(version=1)
    class State:
        points: list[tuple[str, int]] = field(default_factory=list)
        more: dict[str, int] = field(default_factory=lambda: {"default": 1})

    with app:
        assert (app.found.state, app.state.more, len(app.state.points)) == ("restored", {"default": 1}, 2)
        app.state.more["x"] = 2
        app._tick()
        assert saved(old)["more"] == {"default": 1, "x": 2}


def fail(old: object) -> object:
    raise LookupError("deliberate")


def needing(name: str) -> persistmem.App:
    app = persistmem.App(name, "1MiB", interval=0)

    @app.state(version=1)
    class State:
        needed: int
        points: list[tuple[str, int]] = field(default_factory=list)

    return app


REFUSED: dict[str, tuple[Callable[[str], persistmem.App], type[Exception], str]] = {
    "a missing link": (
        lambda name: version_4(name, from_2=None),
        MigrationError,
        r"found version 1, .* knows 4, but no migration from 2 to 3; nothing was changed: declare .* migrate\(2\)",
    ),
    "a migration that raises": (
        lambda name: version_4(name, from_3=fail),
        MigrationError,
        "the migration from version 3 to 4 failed, nothing was changed: LookupError: deliberate",
    ),
    "fields that do not fit": (
        lambda name: version_4(name, from_3=lambda old: {**old, "colour": 1, "size": 2}),
        MigrationError,
        "State has no field colour, size; if that is meant, give it a new version and a migration from 4",
    ),
    "a migration without a result": (
        lambda name: version_4(name, from_3=lambda old: None),
        MigrationError,
        "expected a dict of State's fields, found NoneType",
    ),
    "a field without a default is missing": (
        needing,
        MigrationError,
        r"makes no .*State: .*missing 1 required positional argument: 'needed'; if its fields have changed",
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_migrated_is_refused_and_not_touched(old: str, why: str) -> None:
    make, kind, message = REFUSED[why]
    before = memory_of(old)
    with pytest.raises(kind, match=message) as caught:
        make(old).start()
    if why == "a migration that raises":
        assert isinstance(caught.value.__cause__, LookupError)
    assert memory_of(old) == before
    with version_1(old) as app:
        assert app.state.points == [("ada", 3), ("grace", 5)]


def test_newer_state_is_refused_and_not_touched(old: str) -> None:
    with version_4(old):
        pass
    before = memory_of(old)
    for others in ("refuse", "read"):
        app = persistmem.App(old, "1MiB", interval=0, others=others)
        app.state(version=3)(dict)
        with pytest.raises(NewerStateError, match=r"expected version 3 or older, found version 4.*it was not touched"):
            app.start()
        assert not app.is_started
    assert memory_of(old) == before
    with version_4(old) as newest:
        assert newest.found.state == "restored"


def test_snapshot_of_somebody_else_under_this_name_is_not_touched(name: str) -> None:
    for document in ({"version": 1}, [1], {"version": True, "state": 1}, {"version": 0, "state": 1}):
        with persistmem.attach(name, "1MiB") as arena:
            arena.snapshot("state", document)
        before = memory_of(name)
        app = persistmem.App(name, interval=0)
        app.state(version=1)(dict)
        with pytest.raises(persistmem.CorruptError, match="state: expected a version"):
            app.start()
        assert memory_of(name) == before
