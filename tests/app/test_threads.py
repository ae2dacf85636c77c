"""Threads that change the state while it is saved all the time: no errors, and nothing is lost or torn."""

import sys
import threading
import time
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

import persistmem

from .support import PATIENCE, generations, saved, wait_until

THREADS = 4
SAVES = 12


@pytest.fixture(autouse=True)
def restless() -> Iterator[None]:
    """Threads take turns a thousand times as often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(work: Any) -> None:
    """Call ``work`` with a number in each of some threads, and wait for them."""
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def until_saved(name: str) -> Iterator[int]:
    """Numbers, until the state has been saved a dozen times."""
    ends = time.monotonic() + PATIENCE
    for number in count():
        if number % 20 == 0 and generations(name)[:1] > [SAVES]:
            return
        assert time.monotonic() < ends, "it is not saved"
        yield number


def watched_app(name: str, **options: Any) -> persistmem.App:
    app = persistmem.App(name, "64MiB", **{"interval": "1ms", **options})
    app.state(version=1)(lambda: {"counts": {}, "log": [], "seen": set(), "pair": [0, 0]})
    return app


@pytest.mark.parametrize("packing", ["here", "child"])
def test_changes_without_a_lock_are_all_there_in_the_end(
    name: str, caplog: pytest.LogCaptureFixture, packing: str
) -> None:
    turns: dict[int, int] = {}

    def work(number: int) -> None:
        for turn in until_saved(name):
            turns[number] = turn
            state = app.state
            state["counts"][number, turn % 7] = turn
            state["log"].append((number, turn))
            state["seen"].add((number, turn))
            if turn % 5 == 0:
                state["seen"].discard((number, turn - 1))
                state["counts"].pop((number, turn % 3), None)

    with watched_app(name, packing=packing) as app:
        in_threads(work)
        end = {key: type(value)(value) for key, value in app.state.items()}
    assert saved(name) == end
    assert sorted(end["log"]) == [(number, turn) for number in range(THREADS) for turn in range(turns[number] + 1)]
    assert caplog.records == []


def test_changes_made_together_under_the_lock_are_never_seen_apart(name: str) -> None:
    ended = threading.Event()
    seen: list[list[int]] = []

    def look() -> None:
        while not ended.is_set():
            seen.append(saved(name)["pair"])

    turns = []

    def work(_: int) -> None:
        for turn in until_saved(name):
            turns.append(turn)
            with app.lock:
                app.state["pair"][0] += 1
                sum(range(100))
                app.state["pair"][1] += 1

    with watched_app(name) as app:
        app.save()
        looking = threading.Thread(target=look)
        looking.start()
        in_threads(work)
        ended.set()
        looking.join()
    assert all(a == b for a, b in seen)
    assert seen == sorted(seen)
    assert len({a for a, _ in seen}) > 2
    assert saved(name)["pair"] == 2 * [len(turns)]


def test_explicit_saves_and_refreshes_of_many_threads_do_not_get_in_each_others_way(name: str) -> None:
    def work(number: int) -> None:
        for turn in range(20):
            app.state["counts"][number] = turn
            generation = app.save()
            assert not app.refresh()
            assert generation.number > 0

    with watched_app(name) as app:
        in_threads(work)
        assert app.is_writer
    assert saved(name)["counts"] == dict.fromkeys(range(THREADS), 19)


def test_interval_that_waited_for_the_stop_to_be_over_says_nothing(name: str, caplog: pytest.LogCaptureFixture) -> None:
    def is_waiting() -> bool:
        frame = sys._current_frames().get(saver.ident or 0)
        return frame is not None and frame.f_code.co_name == "acquire"

    with watched_app(name) as app:
        (saver,) = [thread for thread in threading.enumerate() if thread.name == "persistmem-app"]
        with app.lock:
            app.state["pair"][0] = 1
            wait_until(is_waiting)
            app.stop()
        saver.join()
        app.start()
    assert saved(name)["pair"] == [1, 0]
    assert caplog.records == []


def test_stop_amid_intervals_and_changes_saves_the_last_of_them_and_says_nothing(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = watched_app(name, packing="here", interval="1ms")
    for turn in range(30):
        with app:
            for number in range(20):
                app.state["counts"][number] = turn
        assert set(saved(name)["counts"].values()) == {turn}
    assert caplog.records == []
