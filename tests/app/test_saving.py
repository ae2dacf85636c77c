"""The state is saved when the program ends, however it does, and at intervals; and never twice if nobody changed it."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import date
from types import FrameType
from typing import Any

import numpy as np
import pytest

import persistmem
from persistmem.errors import ArgumentError, ClosedError, UnsupportedTypeError

from .support import StartScript, generations, memory_of, saved, wait_until

PROGRAM = """
import dataclasses, os, sys
import persistmem

app = persistmem.App(sys.argv[1], '1MiB', interval=0)

@app.state(version=1)
class State:
    a: int = 0
    words: dict[str, int] = dataclasses.field(default_factory=dict)
"""

ENDS = {
    "the with ends": ("pass", 0),
    "sys.exit": ("sys.exit(5)", 5),
    "an exception": ("raise LookupError('deliberate')", 1),
    "ctrl-c": ("raise KeyboardInterrupt", -2),
    "stop, and then nothing more": ("app.stop(); os._exit(7)", 7),
}


@pytest.mark.parametrize("end", ENDS)
def test_state_is_there_again_however_the_program_ended(script: StartScript, name: str, end: str) -> None:
    code, status = ENDS[end]
    for times in (1, 2):
        body = f"""
with app:
    app.state.a += 1
    app.state.words[str(app.state.a)] = app.state.a
    {code}
"""
        assert script(PROGRAM + body, name).end() == status
        assert saved(name) == {"a": times, "words": {str(n): n for n in range(1, times + 1)}}


def test_state_is_there_again_in_the_next_process(script: StartScript, name: str) -> None:
    for times in (1, 2, 3):
        running = script(PROGRAM + "with app:\n app.state.a += 1\n print(app.state.a, flush=True)", name)
        assert running.line() == str(times)
        assert running.end() == 0, running.errors


def counting(name: str, **options: Any) -> persistmem.App:
    app = persistmem.App(name, "1MiB", **{"interval": 0, **options})

    @app.state(version=1)
    class State:
        a: int = 0
        words: dict[str, Any] = field(default_factory=dict)

    return app


def test_unchanged_state_is_not_saved_again(name: str) -> None:
    app = counting(name)
    with app:
        app.state.words["a"] = [1]
        first = app.save()
        assert app.save() == first
        app.state.words["a"] = [1]
        assert app.save() == first
        app.state.words["a"].append(2)
        assert app.save().number == first.number + 1
    for _ in range(3):
        with app:
            assert app.state.words == {"a": [1, 2]}
    assert generations(name) == [2, 1]


class Ticks:
    """Counts, without getting in the way, what the thread of an application calls."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}
        self.came = threading.Event()

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_globals["__name__"].startswith("persistmem."):
            self.calls[frame.f_code.co_name] = self.calls.get(frame.f_code.co_name, 0) + 1
            if self.calls.get("save_if_changed", 0) > 20:
                self.came.set()


def test_interval_in_which_nothing_changed_neither_packs_nor_writes_whatever_the_size(name: str) -> None:
    app = persistmem.App(name, "256MiB", interval="1ms")
    app.state(version=1)(lambda: {"blobs": [bytes([n]) * (5 << 20) for n in range(20)], "rows": list(range(100_000))})
    with app:
        app.save()
    ticks = Ticks()
    threading.setprofile(ticks)
    try:
        with app:
            threading.setprofile(None)
            before = memory_of(name)
            assert ticks.came.wait(30)
            assert memory_of(name) == before
            assert not ticks.calls.keys() & {"snapshot", "encode", "put", "dump", "save", "is_watched"}, ticks.calls
    finally:
        threading.setprofile(None)
    assert generations(name) == [1]


def test_large_buffers_that_did_not_change_are_not_written_again(name: str) -> None:
    app = persistmem.App(name, "64MiB", interval=0)
    app.state(version=1)(dict)
    with app:
        app.state["blob"] = os.urandom(20 << 20)
        for number in range(1, 20):
            app.state["number"] = number
            assert app.save().number == number


def test_state_is_saved_at_intervals(name: str) -> None:
    app = counting(name, interval="1ms")
    with app:
        wait_until(lambda: generations(name))
        for number in (1, 2, 3):
            app.state.words["a"] = [number]
            wait_until(lambda: saved(name)["words"] == {"a": app.state.words["a"]})
            assert generations(name)[0] == number + 1


def test_no_interval_means_none(name: str) -> None:
    app = counting(name, interval=0)
    with app:
        app.state.a = 1
        assert not [thread for thread in threading.enumerate() if thread.name == "persistmem-app"]
        assert generations(name) == []


def test_first_start_that_changes_nothing_saves_the_fresh_state(name: str) -> None:
    app = counting(name)
    for found in ("fresh", "restored"):
        with app:
            assert app.found.state == found
    assert saved(name) == {"a": 0, "words": {}}


# What can be a state

DECLARED: dict[str, tuple[Callable[[], object], Callable[[persistmem.App], object], object]] = {
    "a dict": (dict, lambda app: app.state.update(x={1, 2}), {"x": {1, 2}}),
    "a list": (list, lambda app: app.state.append((1, None)), [(1, None)]),
    "a set": (set, lambda app: app.state.add("x"), {"x"}),
    "an int": (int, lambda app: setattr(app, "state", app.state + 5), 5),
    "nothing": (lambda: None, lambda app: setattr(app, "state", date(2026, 7, 4)), date(2026, 7, 4)),
    "a string": (str, lambda app: setattr(app, "state", app.state + "x"), "x"),
    "a tuple": (lambda: ([],), lambda app: app.state[0].append(1), ([1],)),
}


@pytest.mark.parametrize("what", DECLARED)
def test_anything_a_snapshot_takes_can_be_the_state(name: str, what: str) -> None:
    make, change, expected = DECLARED[what]
    app = persistmem.App(name, "1MiB", interval=0)
    assert app.state(version=1)(make) is make
    with app:
        assert app.state == make()
        assert type(app.found) is persistmem.Found
        change(app)
        assert app.state == expected
        app._tick()
        assert saved(name) == expected
    with app:
        assert app.state == expected


def test_array_changed_in_place_is_saved(name: str) -> None:
    app = persistmem.App(name, "1MiB", interval=0)
    app.state(version=1)(lambda: np.zeros(5000))
    with app:
        for number in range(3):
            app.state[number] = 1
            app._tick()
            assert saved(name).sum() == number + 1
            app._tick()
            assert generations(name)[0] == number + 1
    with app:
        assert app.state.sum() == 3
        app.state[7] = 1
    assert saved(name).sum() == 4


@dataclass(frozen=True)
class Point:
    x: int
    y: int


def unpack_point(content: object) -> Point:
    assert isinstance(content, list)
    return Point(*content)


def test_users_own_types_come_back(name: str) -> None:
    persistmem.register_type(Point, "tests.app.Point", lambda point: [point.x, point.y], unpack_point)
    app = counting(name)
    with app:
        app.state.words["p"] = [Point(1, 2)]
    with app:
        assert app.state.words == {"p": [Point(1, 2)]}


def test_frozen_dataclass_is_replaced_as_a_whole(name: str) -> None:
    app = persistmem.App(name, "1MiB", interval=0)

    @app.state(version=1)
    @dataclass(frozen=True, slots=True)
    class State:
        a: int = 0
        words: list[str] = field(default_factory=list)

    with app:
        with pytest.raises(AttributeError):
            app.state.a = 1
        app.state = replace(app.state, a=1)
        app._tick()
        assert saved(name) == {"a": 1, "words": []}
        app.state.words.append("x")
        app._tick()
        assert saved(name) == {"a": 1, "words": ["x"]}
    with app:
        assert app.state == State(1, ["x"])


def test_fields_that_are_not_given_to_init_are_the_programs_own(name: str) -> None:
    app = persistmem.App(name, "1MiB", interval=0)

    @app.state(version=1)
    @dataclass
    class State:
        people: list[dict[str, Any]] = field(default_factory=lambda: [{"id": 3, "name": "ada"}])
        by_id: dict[int, dict[str, Any]] = field(init=False)

        def __post_init__(self) -> None:
            self.by_id = {person["id"]: person for person in self.people}

    with app:
        app.state.by_id[3]["name"] = "grace"
        app._tick()
        assert saved(name) == {"people": [{"id": 3, "name": "grace"}]}
    with app:
        assert app.state.by_id[3]["name"] == "grace"
        app.state.by_id[3]["name"] = "alan"
        app._tick()
        assert saved(name) == {"people": [{"id": 3, "name": "alan"}]}


def test_class_that_could_not_be_loaded_again_is_found_out_at_the_first_start(name: str) -> None:
    app = persistmem.App(name, "1MiB", interval=0)

    @app.state(version=1)
    @dataclass(init=False)
    class State:
        a: int

        def __init__(self) -> None:
            self.a = 1

    with pytest.raises(ArgumentError, match=r"expected a dataclass that can be made from its fields, found .*State"):
        app.start()
    assert generations(name) == []


def test_what_cannot_be_saved_is_named_and_what_was_saved_stays(name: str) -> None:
    app = counting(name)
    with app:
        app.state.words["a"] = [1]
        app.save()
        app.state.words["b"] = [object()]
        with pytest.raises(UnsupportedTypeError, match=r"document\['state'\]\['words'\]\['b'\]\[0\].*builtins.object"):
            app.save()
        assert saved(name)["words"] == {"a": [1]}
        del app.state.words["b"]
        app.state.a = 2
    assert saved(name) == {"a": 2, "words": {"a": [1]}}


# Misuse


def test_before_the_start_and_after_the_end_it_says_what_to_do(name: str) -> None:
    app = counting(name)
    other = persistmem.App(name)
    with pytest.raises(ArgumentError, match=r"declare its state first, with @app.state\(version=1\)"):
        other.start()
    with pytest.raises(ArgumentError, match="declare its state first"):
        other.migrate(1)
    uses: list[Callable[[], object]] = [
        lambda: app.state.words,
        lambda: setattr(app.state, "a", 5),
        lambda: app.state["a"],
        lambda: app.state.__setitem__("a", 1),
        lambda: "a" in app.state,
        lambda: list(app.state),
        lambda: len(app.state),
        lambda: app.found,
        lambda: app.is_writer,
        app.save,
        app.refresh,
        app.stop,
        app.simulate_kexec,
        lambda: setattr(app, "state", 5),
    ]
    for use in uses:
        with pytest.raises(ClosedError, match=f"app {name} is not started; do this inside of `with app:`"):
            use()
    with app:
        pass
    for use in uses:
        with pytest.raises(ClosedError, match="is not started; do this inside of `with app:`"):
            use()


def test_started_twice_or_stopped_twice_it_says_so_and_goes_on(name: str) -> None:
    app = counting(name)
    found = app.start()
    with pytest.raises(ArgumentError, match="is started already; stop it first"):
        app.start()
    assert app.found is found
    app.state.a = 1
    app.stop()
    with pytest.raises(ClosedError):
        app.stop()
    assert saved(name)["a"] == 1


def test_declarations_that_make_no_sense_are_refused(name: str) -> None:
    app = counting(name, interval="5s")
    assert app.interval == 5
    with pytest.raises(ArgumentError, match="its state is declared already"):
        app.state(version=1)(dict)
    for version in (0, -1):
        with pytest.raises(ArgumentError, match=f"expected 1 or more, found {version}"):
            persistmem.App("fresh").state(version=version)(dict)
    for version in (0, 1, 2):
        with pytest.raises(ArgumentError, match=rf"migrate\({version}\): expected a version before 1"):
            app.migrate(version)
    with pytest.raises(persistmem.InvalidNameError):
        persistmem.App("a/b")
    with pytest.raises(ArgumentError):
        persistmem.App("a", interval=-1)


def test_another_class_cannot_be_put_in_the_states_place(name: str) -> None:
    app = counting(name)
    with app:
        with pytest.raises(ArgumentError, match=r"app.state: expected a .*State, found a dict"):
            app.state = {"a": 1}
        app.state.a = 1
    assert saved(name)["a"] == 1


def test_arena_that_is_not_there_takes_a_size(name: str) -> None:
    app = persistmem.App(name)
    app.state(version=1)(dict)
    with pytest.raises(persistmem.NotFoundError, match="size"):
        app.start()
    with counting(name):
        pass
    with app:
        assert app.state == {"a": 0, "words": {}}


# Hooks


def test_hooks_come_in_order_with_what_was_found(simulated_kernel: None) -> None:
    app = counting("hooks")
    seen: list[tuple[str, object]] = []

    @app.on_restore
    def restored(found: persistmem.Found) -> None:
        seen.append(("restore", (found.state, app.state.a)))
        app.state.a += 10

    @app.on_prepare
    def prepare() -> None:
        seen.append(("prepare", app.state.a))
        app.state.a += 1

    with app:
        assert seen == [("restore", ("fresh", 0))]
        app.simulate_kexec()
        assert seen[1:] == [("prepare", 10), ("restore", ("restored", 11))]
        assert app.state.a == 21
    assert saved("hooks")["a"] == 21
    assert restored.__name__ == "restored"


def test_hook_that_raises_at_the_start_ends_it_and_changes_nothing(name: str) -> None:
    app = counting(name)
    with app:
        app.state.a = 1

    @app.on_restore
    def restored(found: persistmem.Found) -> None:
        app.state.a = 2
        raise LookupError("deliberate")

    with pytest.raises(LookupError):
        app.start()
    assert not app.is_started
    assert saved(name)["a"] == 1
    with counting(name, timeout=0) as other:
        assert other.state.a == 1
