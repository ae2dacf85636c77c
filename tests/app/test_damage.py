"""What fails its check is never given out: the generation before it is, and everybody is told; or there is no start."""

import logging
from typing import Any

import pytest

import persistmem
from persistmem.app import StateDamage
from persistmem.arena.layout import SLOT_OFFSETS
from persistmem.errors import CorruptError

from .support import damage, flip, generations, memory_of, parse_log, saved


def new_app(name: str, **options: Any) -> persistmem.App:
    app = persistmem.App(name, "1MiB", **{"interval": 0, "keep": 3, **options})
    app.state(version=1)(lambda: {"number": 0, "blob": b""})
    return app


@pytest.fixture
def three(name: str) -> str:
    """An application with three generations of its state, numbered as what they hold."""
    with new_app(name) as app:
        for number in (1, 2, 3):
            app.state.update(number=number, blob=bytes([number]) * 10_000)
            app.save()
    return name


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> list[StateDamage]:
    caplog.set_level(logging.INFO, "persistmem.app")
    return []


def starts(app: persistmem.App, told: list[StateDamage]) -> persistmem.App:
    app.on_corrupt(told.append)
    return app


@pytest.mark.parametrize("damaged", [[3], [3, 2]])
@pytest.mark.filterwarnings("error::persistmem.DamageWarning")
def test_newest_sound_generation_is_given_and_everybody_is_told(
    three: str, damaged: list[int], told: list[StateDamage], caplog: pytest.LogCaptureFixture
) -> None:
    for generation in damaged:
        damage(three, generation)
    given = 3 - len(damaged)
    with starts(new_app(three), told) as app:
        assert app.state["number"] == given
        assert set(app.state["blob"]) == {given}
        assert (app.found.state, app.found.generation) == ("fell back", given)
        assert told == [StateDamage(app.found.damage, given)]
        for number, problem in zip(damaged, app.found.damage, strict=True):
            assert f"generation {number}: checksum mismatch at byte" in problem
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        fields = parse_log(record.message)
        assert (fields["state"], fields["generation"], fields["role"]) == ("fell back", str(given), "writer")
        assert fields["damage"] == "; ".join(app.found.damage)
    # It was saved anew, so that the next start need not fall back.
    assert generations(three)[0] == 4
    with starts(new_app(three), told) as app:
        assert (app.found.state, app.state["number"], len(told)) == ("restored", given, 1)


def test_interval_that_follows_writes_over_the_damage(three: str) -> None:
    damage(three, 3)
    app = new_app(three)
    with app:
        app._tick()
        assert (generations(three)[0], saved(three)["number"]) == (4, 2)


def test_damaged_buffer_is_as_bad_as_a_damaged_document(three: str) -> None:
    with persistmem.attach(three) as arena:
        (piece,) = [p for p in arena.pieces() if p.kind == "buffer" and p.generations == (3,)]
    flip(three, piece.offset + 5000)
    with new_app(three) as app:
        assert (app.found.state, app.state["number"]) == ("fell back", 2)


def test_without_a_sound_generation_and_a_hook_there_is_no_start_and_nothing_changes(three: str) -> None:
    for generation in (1, 2, 3):
        damage(three, generation)
    before = memory_of(three)
    for others in ("refuse", "read"):
        with pytest.raises(CorruptError, match=r"no sound generation is left.*nothing was changed.*on_corrupt"):
            new_app(three, others=others).start()
    assert memory_of(three) == before
    for generation in (1, 2, 3):
        damage(three, generation)  # and back
    with new_app(three) as app:
        assert (app.found.state, app.state["number"]) == ("restored", 3)


def test_without_a_sound_generation_a_hook_lets_it_start_afresh(
    three: str, told: list[StateDamage], caplog: pytest.LogCaptureFixture
) -> None:
    for generation in (1, 2, 3):
        damage(three, generation)
    with starts(new_app(three), told) as app:
        assert app.state == {"number": 0, "blob": b""}
        assert (app.found.state, app.found.generation, len(app.found.damage)) == ("fresh", None, 3)
        assert told == [StateDamage(app.found.damage, None)]
        assert parse_log(caplog.records[0].message)["damage"] == "; ".join(app.found.damage)
    assert saved(three)["number"] == 0
    with starts(new_app(three), told) as app:
        assert (app.found.state, len(told)) == ("restored", 1)


def test_hook_that_raises_keeps_it_from_starting(three: str) -> None:
    damage(three, 3)
    before = memory_of(three)
    app = new_app(three)

    @app.on_corrupt
    def refuse(damage: StateDamage) -> None:
        raise LookupError(damage.generation)

    with pytest.raises(LookupError, match="2"):
        app.start()
    assert memory_of(three) == before
    with new_app(three, timeout=0) as other:
        assert other.state["number"] == 2


@pytest.mark.parametrize("slot", [0, 1])
@pytest.mark.filterwarnings("ignore::persistmem.DamageWarning")
def test_damaged_commit_is_told_and_written_over(three: str, slot: int, told: list[StateDamage]) -> None:
    flip(three, SLOT_OFFSETS[slot] + 9)
    number = generations(three)[0]
    with starts(new_app(three), told) as app:
        assert app.state["number"] == number
        assert (app.found.state, app.found.generation) == ("fell back", number)
        assert told == [StateDamage(app.found.damage, number)]
        assert f"commit slot {slot}: its checksum does not match" in app.found.damage[0]
        assert app.save().number == number + 1
        assert app.save().number == number + 1
    with starts(new_app(three), told) as app:
        assert (app.found.state, app.state["number"], len(told)) == ("restored", number, 1)


def test_both_commits_damaged_is_an_error_that_names_both(three: str, told: list[StateDamage]) -> None:
    for offset in SLOT_OFFSETS:
        flip(three, offset + 9)
    with pytest.raises(CorruptError, match=r"no sound commit.*slot 0.*slot 1"):
        starts(new_app(three), told).start()
