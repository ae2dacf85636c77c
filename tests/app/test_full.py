"""A full arena: the program goes on, the old state stays, the log says so once; and when there is room, all is well."""

import logging
import random
from typing import Any

import pytest

import persistmem
from persistmem.errors import ArenaFullError

from .support import generations, parse_log, saved


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def new_app(name: str, **options: Any) -> persistmem.App:
    app = persistmem.App(name, "128KiB", **{"interval": 0, **options})
    app.state(version=1)(dict)
    return app


def told(caplog: pytest.LogCaptureFixture) -> list[dict[str, str]]:
    return [parse_log(record.message) for record in caplog.records]


@pytest.mark.parametrize("packing", ["here", "child"])
def test_it_is_told_once_until_there_is_room_again(name: str, caplog: pytest.LogCaptureFixture, packing: str) -> None:
    caplog.set_level(logging.INFO, "persistmem.app")

    def tick() -> None:
        rest = app._tick()
        if rest is not None:
            rest()

    with new_app(name, packing=packing) as app:
        for rounds in (1, 2):
            caplog.clear()
            app.state["blob"] = b"small" + bytes([rounds])
            tick()
            kept = saved(name)
            app.state["blob"] = noise(rounds, 200_000)
            for count in range(4):
                app.state["count"] = count
                tick()
            assert saved(name) == kept
            (full,) = told(caplog)
            assert (full["app"], full["save"]) == (name, "failed")
            assert "the arena is full: 195.3 KiB needed in one piece" in full["message"]
            assert caplog.records[0].levelno == logging.WARNING
            app.state["blob"] = noise(rounds, 20_000)
            tick()
            assert saved(name) == dict(app.state)
            tick()
            app.state["count"] = -1
            tick()
            assert told(caplog)[1:] == [{"app": name, "save": "works again"}]


def test_explicit_save_and_the_end_raise_it_and_the_old_state_stays(name: str) -> None:
    app = new_app(name)
    app.start()
    app.state["blob"] = b"small"
    app.save()
    app.state["blob"] = noise(1, 200_000)
    with pytest.raises(ArenaFullError):
        app.save()
    app.state["count"] = 1
    with pytest.raises(ArenaFullError, match="the arena is full"):
        app.stop()
    assert not app.is_started
    assert saved(name) == {"blob": b"small"}
    with new_app(name, timeout=0) as other:
        assert other.state == {"blob": b"small"}


def test_error_of_the_program_is_not_hidden_by_that_of_the_end(name: str) -> None:
    app = new_app(name)

    def fail() -> None:
        with app:
            app.state["blob"] = noise(1, 200_000)
            raise LookupError("deliberate")

    with pytest.raises(ArenaFullError) as caught:
        fail()
    assert isinstance(caught.value.__context__, LookupError)


def test_state_that_fits_but_once_is_saved_again_and_again(name: str) -> None:
    """The generation before is given up for it, where two have no room."""
    with new_app(name, keep=1) as app:
        for count in range(5):
            app.state["blob"] = noise(count, 40_000)
            app._tick()
            assert saved(name)["blob"] == noise(count, 40_000)
    assert generations(name) == [5]


def test_interval_after_a_failure_tries_again_even_if_nothing_changed_since(name: str) -> None:
    with new_app(name) as app:
        app.save()
        with persistmem.attach(name) as arena:
            arena.snapshot("other", noise(1, 100_000))
            app.state["blob"] = noise(2, 60_000)
            app._tick()
            assert saved(name) == {}
            arena.remove("other")
        app._tick()
        app._tick()
        assert saved(name) == {"blob": noise(2, 60_000)}
