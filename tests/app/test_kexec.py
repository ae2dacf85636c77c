"""A kernel upgrade takes the newest state along, whatever the program does meanwhile; and nothing waits for ever."""

import subprocess
import sys
from dataclasses import field
from typing import Any

import pytest

import persistmem
from persistmem.agent.command import environment
from persistmem.agent.paths import RuntimeDirectory
from persistmem.attachment import drop_arena, simulate_reboot
from persistmem.errors import RefusedError

from ..agent.conftest import runtime as runtime  # noqa: PLC0414 - a fixture
from ..agent.support import kill_agent
from .support import Script, StartScript, generations, parse_log, saved, wait_until

PROGRAM = """
import dataclasses, logging, os, sys, threading
import persistmem

logging.basicConfig(format='%(message)s', level=logging.INFO)
app = persistmem.App('counters', '1MiB', interval=INTERVAL, others='OTHERS')

@app.state(version=1)
class State:
    a: int = 0
    b: int = 0
    log: list[int] = dataclasses.field(default_factory=list)

def say(*words):
    print(*words, flush=True)

def change():
    with app.lock:
        app.state.a += 1
        app.state.log.append(app.state.a)
        app.state.b += 1

HOOK

with app:
    for line in sys.stdin:
        try:
            say(eval(line))
        except persistmem.Error as error:
            say(type(error).__name__, error)
"""


def start(script: StartScript, hook: str = "", *, interval: str = "0", others: str = "refuse") -> Script:
    return script(PROGRAM.replace("HOOK", hook).replace("INTERVAL", interval).replace("OTHERS", others))


def ask(running: Script, expression: str) -> str:
    running.say(expression)
    return running.line()


def whole(state: dict[str, Any]) -> int:
    """Raise if the state is not one of the program's; return which."""
    assert state["a"] == state["b"]
    assert state["log"] == list(range(1, state["a"] + 1))
    found: int = state["a"]
    return found


def other_instance() -> persistmem.App:
    app = persistmem.App("counters", "1MiB", interval=0, timeout=0)

    @app.state(version=1)
    class State:
        a: int = 0
        b: int = 0
        log: list[int] = field(default_factory=list)

    return app


def test_upgrade_ordered_by_another_process_takes_the_newest_along(
    script: StartScript, runtime: RuntimeDirectory
) -> None:
    running = start(script)
    for number in (1, 2, 3):
        ask(running, "app.save()")  # the agent of the last kernel is gone; it has found the next one's now
        ask(running, "change()")
        command = [sys.executable, "-m", "persistmem", "reboot", "--simulate", "--release", f"7.3.{number}"]
        subprocess.run(command, env=environment(), check=True, capture_output=True, timeout=60)
        assert whole(saved("counters")) == number
    running.kill()
    running.end()
    with other_instance() as app:
        assert (app.found.origin.kernel_to, app.found.saved_by, app.state.a) == ("7.3.3", "7.3.2", 3)


def test_program_that_lives_on_saves_into_the_next_kernels_arena(
    script: StartScript, runtime: RuntimeDirectory
) -> None:
    running = start(script)
    for number in (1, 2, 3):
        ask(running, "change()")
        assert ask(running, "app.save().number") == str(2 * number - 1)
        simulate_reboot()
        ask(running, "change()")
        assert ask(running, "app.save().number") == str(2 * number)
        assert whole(saved("counters")) == 2 * number
    with pytest.raises(persistmem.BusyError):
        other_instance().start()
    ask(running, "change()")
    assert running.end() == 0, running.errors
    assert whole(saved("counters")) == 7


def test_program_that_lives_on_leaves_what_another_one_has_written_alone(
    script: StartScript, runtime: RuntimeDirectory
) -> None:
    running = start(script)
    ask(running, "change()")
    simulate_reboot()
    with other_instance() as app:
        assert app.state.a == 1
        app.state.a = app.state.b = 100
        refused = ask(running, "app.save()")
        assert refused.startswith("RefusedError app counters: this process only reads the state, for it was overtaken")
    assert saved("counters")["a"] == 100
    assert ask(running, "change()").startswith("RefusedError")
    assert ask(running, "app.save()").startswith("RefusedError")
    assert ask(running, "app.is_writer") == "False"
    assert running.end() == 0
    assert saved("counters")["a"] == 100


@pytest.mark.parametrize("number", ["another number", "the same number"])
def test_program_that_finds_out_at_its_end_says_so(script: StartScript, runtime: RuntimeDirectory, number: str) -> None:
    running = start(script)
    ask(running, "change()")
    simulate_reboot()
    with other_instance() as app:
        app.state.a = app.state.b = 100
        if number == "the same number":
            with persistmem.attach("counters") as arena:
                arena.remove("state")
    assert generations("counters") == ([1] if number == "the same number" else [2, 1])
    assert running.end() == 1
    assert "RefusedError: app counters: this process only reads the state, for it was overtaken" in running.errors
    assert saved("counters")["a"] == 100


def test_program_that_saves_and_changes_without_pause_goes_through_upgrades(
    script: StartScript, runtime: RuntimeDirectory
) -> None:
    work = """
def work():
    while not stopped.is_set():
        change()
        stopped.wait(0.0005)
stopped = threading.Event()
thread = threading.Thread(target=work, daemon=True)
"""
    running = start(script, work, interval="0.001")
    ask(running, "thread.start()")
    reached = int(ask(running, "app.state.a"))
    for _ in range(4):
        simulate_reboot()
        found = whole(saved("counters"))
        assert found >= reached
        reached = int(ask(running, "(app.state.a, app.save())[0]"))
    ask(running, "(stopped.set(), thread.join())")
    end = int(ask(running, "app.state.a"))
    assert ask(running, "app.is_writer") == "True"
    assert running.end() == 0, running.errors
    assert whole(saved("counters")) == end >= reached
    assert "failed" not in running.errors


def test_arena_that_was_lost_on_the_way_or_removed_is_made_anew(script: StartScript, runtime: RuntimeDirectory) -> None:
    running = start(script)
    ask(running, "change()")
    ask(running, "app.save()")
    assert simulate_reboot(compatible=False).lost
    ask(running, "change()")
    assert ask(running, "app.save().number") == "1"
    assert whole(saved("counters")) == 2
    drop_arena("counters")
    ask(running, "change()")
    assert running.end() == 0, running.errors
    assert whole(saved("counters")) == 3


def test_agent_that_is_killed_is_nothing_to_the_program(script: StartScript, runtime: RuntimeDirectory) -> None:
    running = start(script)
    ask(running, "change()")
    kill_agent()
    assert ask(running, "app.save().number") == "1"
    ask(running, "change()")
    kill_agent()
    assert running.end() == 0, running.errors
    assert whole(saved("counters")) == 2


def test_reader_finds_its_way_to_the_next_kernel(script: StartScript, runtime: RuntimeDirectory) -> None:
    running = start(script)
    ask(running, "change()")
    ask(running, "app.save()")
    app = other_instance()
    app._settings = persistmem.App("counters", "1MiB", interval=0, others="read")._settings
    with app:
        assert (app.is_writer, app.state.a) == (False, 1)
        ask(running, "change()")
        simulate_reboot()
        assert app.refresh()
        assert (app.is_writer, app.state.a) == (False, 2)
        assert not app.refresh()
        ask(running, "change()")
        ask(running, "app.save()")
        assert app.refresh()
        assert app.state.a == 3


def test_reader_that_took_a_killed_writers_place_is_told_of_upgrades(
    script: StartScript, runtime: RuntimeDirectory
) -> None:
    writer = start(script)
    ask(writer, "change()")
    ask(writer, "app.save()")
    reader = start(script, PREPARES, others="read")
    assert ask(reader, "(app.is_writer, app.state.a)") == "(False, 1)"
    writer.kill()
    writer.end()
    assert ask(reader, "(app.refresh(), app.is_writer)") == "(True, True)"
    simulate_reboot()
    assert reader.line() == f"preparing {reader.pid}"
    assert whole(saved("counters")) == 2


def test_upgrade_amid_a_save_does_not_make_that_fail(simulated_kernel: None) -> None:
    app = persistmem.App("counters", "1MiB", interval=0)
    upgrades: list[str] = []

    @app.state(version=1)
    class State:
        a: int = 0

        def __getattribute__(self, name: str) -> object:
            if name == "a" and upgrades:
                simulate_reboot(upgrades.pop())
            return object.__getattribute__(self, name)

    with app:
        app.state.a = 1
        upgrades.append("7.3.4")
        assert (app.save().kernel, upgrades) == ("7.3.4", [])
        app.state.a = 2
        upgrades.append("7.3.5")
    assert saved("counters") == {"a": 2}


# The deadline

BLOCKED = """
told, begun = threading.Event(), threading.Event()

@app.on_prepare
def prepare():
    begun.set()
    told.wait()
"""


def test_upgrade_does_not_wait_for_a_hook_longer_than_its_deadline(
    script: StartScript, runtime: RuntimeDirectory
) -> None:
    running = start(script, BLOCKED)
    ask(running, "change()")
    ask(running, "app.save()")
    ask(running, "change()")
    handover = simulate_reboot(deadline=0.2)
    assert handover.arenas == 1
    assert ask(running, "begun.wait(30)") == "True"
    assert whole(saved("counters")) == 1
    ask(running, "told.set()")
    assert running.end() == 0, running.errors
    assert whole(saved("counters")) == 2


def test_program_that_was_too_late_does_not_overtake_its_successor(
    script: StartScript, runtime: RuntimeDirectory
) -> None:
    running = start(script, BLOCKED)
    ask(running, "change()")
    ask(running, "app.save()")
    ask(running, "change()")
    simulate_reboot(deadline=0.2)
    with other_instance() as app:
        assert app.state.a == 1
        app.state.a = app.state.b = 100
    assert ask(running, "told.set()") == "None"
    wait_until(lambda: "RefusedError" in running.errors)
    assert ask(running, "change()").startswith("RefusedError")
    assert running.end() == 0
    assert saved("counters")["a"] == 100


def test_program_that_is_blocked_can_still_be_killed_and_the_old_state_is_found(
    script: StartScript, runtime: RuntimeDirectory
) -> None:
    running = start(script, BLOCKED)
    ask(running, "change()")
    ask(running, "app.save()")
    ask(running, "change()")
    simulate_reboot(deadline=0.2)
    running.kill()
    running.end()
    with other_instance() as app:
        assert (app.found.state, app.state.a) == ("restored", 1)


def test_state_that_is_locked_is_not_waited_for_either(script: StartScript, runtime: RuntimeDirectory) -> None:
    running = start(script)
    ask(running, "change()")
    ask(running, "app.save()")
    ask(running, "change()")
    ask(running, "app.lock.acquire()")
    simulate_reboot(deadline=0.2)
    assert whole(saved("counters")) == 1
    ask(running, "app.lock.release()")
    assert running.end() == 0, running.errors
    assert whole(saved("counters")) == 2


# Hooks

PREPARES = """
@app.on_prepare
def prepare():
    change()
    say('preparing', os.getpid())
    if 'raise' in flags:
        raise LookupError('deliberate')
flags = set()
"""


def test_what_the_hook_changes_is_saved_even_if_it_fails(script: StartScript, runtime: RuntimeDirectory) -> None:
    running = start(script, PREPARES)
    for number, flag in ((1, "fine"), (2, "raise")):
        ask(running, f"flags.add({flag!r})")
        ask(running, "app.save()")  # the agent of the last kernel is gone; it has found the next one's now
        simulate_reboot()
        assert running.line() == f"preparing {running.pid}"
        assert whole(saved("counters")) == number
    assert "LookupError: deliberate" in running.errors
    assert running.end() == 0


def test_forked_children_are_not_told_and_nor_is_a_program_that_was_stopped(
    script: StartScript, runtime: RuntimeDirectory
) -> None:
    forks = """
def fork():
    orders, answers = os.pipe(), os.pipe()
    if (pid := os.fork()) == 0:
        app.refresh()
        os.write(answers[1], b'ready')
        os.read(orders[0], 1)
        os._exit(0)
    os.read(answers[0], 5)
    return orders[1]
"""
    running = start(script, PREPARES + forks)
    ask(running, "app.save()")
    order = ask(running, "fork()")
    simulate_reboot()
    assert running.line() == f"preparing {running.pid}"
    assert ask(running, f"os.write({order}, b'!')") == "1"
    ask(running, "app.save()")
    ask(running, "app.stop()")
    simulate_reboot()
    assert ask(running, "'nothing came before'") == "nothing came before"


def test_kernel_is_replaced_by_the_test_itself(simulated_kernel: None) -> None:
    app = other_instance()
    with app:
        app.state.a = app.state.b = 1
        app.state.log.append(1)
        handover = app.simulate_kexec("7.3.4")
        assert (handover.kernel_to, handover.arenas, handover.lost) == ("7.3.4", 1, ())
        assert (app.found.state, app.found.origin.kind) == ("restored", "carried over")
        assert whole({"a": app.state.a, "b": app.state.b, "log": app.state.log}) == 1
        app.state.a = 5
        app.simulate_kexec()
        assert app.state.a == 5
    assert saved("counters")["a"] == 5


def test_log_tells_from_which_kernel_it_was_carried_over(script: StartScript, runtime: RuntimeDirectory) -> None:
    running = start(script)
    ask(running, "change()")
    assert running.end() == 0
    simulate_reboot("7.3.4")
    running = start(script)
    assert ask(running, "app.state.a") == "1"
    fields = parse_log(running.errors.strip())
    assert (fields["arena"], fields["kernel"], fields["role"]) == ("carried over", "7.3.4", "writer")
    assert fields["kernel_from"] == fields["saved_by"] != "7.3.4"
    with pytest.raises(RefusedError):
        persistmem.attachment.stop_agent()
