"""A forked child packs while the program goes on: nothing is lost, whoever of the two is killed, or changes what."""

import errno
import os
import signal
from pathlib import Path

import pytest

import persistmem
from persistmem.agent.paths import RuntimeDirectory
from persistmem.attachment import simulate_reboot
from persistmem.errors import BusyError
from tests.waiting import readable

from ..agent.conftest import runtime as runtime  # noqa: PLC0414 - a fixture
from .support import PATIENCE, SLOW, Script, StartScript, generations, parse_log, saved, wait_until

PROGRAM = f"""
import dataclasses, logging, os, sys, threading
import persistmem
{SLOW}
logging.basicConfig(format='%(message)s', level=logging.INFO)

def say(*words):
    print(*words, flush=True)

def wait_for_fifo():
    say(os.getpid())
    with open(sys.argv[2]) as fifo:
        fifo.read()

Slow.wait = wait_for_fifo
app = persistmem.App(sys.argv[1], '1MiB', interval='1ms', packing='child')

@app.state(version=1)
class State:
    a: int = 0
    b: int = 0
    slow: object = None
    nested: dict[str, object] = dataclasses.field(default_factory=lambda: {{'s': {{1}}, 'd': {{'l': [({{2}},)]}}}})

@app.on_restore
def begin(_):
    # Before the first interval: nothing else is saved before it.
    app.state.a, app.state.b, app.state.slow = 1, 1, Slow()

@app.on_prepare
def prepare():
    say('preparing', os.getpid())

commands = {{}}
def command(function):
    commands[function.__name__] = function

@command
def save():
    say(app.save().number)

@command
def change():
    with app.lock:
        app.state.a += 1
        app.state.nested['d']['l'].append(app.state.a)
        app.state.b += 1
    say(app.state.a)

@command
def relax():
    Slow.waiting = 0
    say('relaxed')

def obey():
    for line in sys.stdin:
        commands[line.strip()]()
"""


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """What a child that packs waits for: somebody who opens it to write."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def let_go(fifo: Path) -> None:
    """Let the child that waits, or is about to, go on."""

    def open_it() -> bool:
        try:
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return False
        return True

    wait_until(open_it)


def met_halfway(script: StartScript, name: str, fifo: Path) -> tuple[Script, int]:
    """A program whose child is packing a=1, b=1, and the child."""
    running = script(PROGRAM + "with app:\n obey()", name, str(fifo))
    assert running.line() == "packing"
    child = int(running.line())
    running.say("relax")
    assert running.line() == "relaxed"
    return running, child


def ab(name: str, generation: int | None = None) -> tuple[int, int]:
    state = saved(name, generation)
    return state["a"], state["b"]


def test_it_is_another_process_that_packs_and_what_it_packed_is_saved(
    script: StartScript, name: str, fifo: Path
) -> None:
    running, child = met_halfway(script, name, fifo)
    assert child != running.pid
    assert generations(name) == []
    let_go(fifo)
    wait_until(lambda: generations(name))
    assert saved(name)["nested"] == {"s": {1}, "d": {"l": [({2},)]}}
    assert ab(name) == (1, 1)
    running.say("save")
    assert running.line() == "1"
    assert running.end() == 0


def test_what_changes_meanwhile_is_not_lost_and_not_mixed_in(script: StartScript, name: str, fifo: Path) -> None:
    running, _ = met_halfway(script, name, fifo)
    for number in (2, 3):
        running.say("change")
        assert running.line() == str(number)
    let_go(fifo)
    wait_until(lambda: len(generations(name)) >= 2)
    assert ab(name, 1) == (1, 1)
    assert ab(name, 2) == (3, 3)
    assert running.end() == 0
    assert ab(name) == (3, 3)


def test_explicit_save_waits_for_the_child_and_saves_what_is_newer(script: StartScript, name: str, fifo: Path) -> None:
    running, _ = met_halfway(script, name, fifo)
    running.say("change")
    assert running.line() == "2"
    running.say("save")
    let_go(fifo)
    assert running.line() == "2"
    assert (ab(name, 1), ab(name, 2)) == ((1, 1), (2, 2))
    assert running.end() == 0


@pytest.mark.parametrize("number", [None, signal.SIGTERM])
def test_last_save_waits_for_the_child(script: StartScript, name: str, fifo: Path, number: int | None) -> None:
    running, _ = met_halfway(script, name, fifo)
    running.say("change")
    assert running.line() == "2"
    if number is None:
        assert running.process.stdin is not None
        running.process.stdin.close()
    else:
        running.kill(number)
    let_go(fifo)
    assert running.process.wait(30) == (0 if number is None else 143)
    assert (ab(name, 1), ab(name, 2)) == ((1, 1), (2, 2))


def test_signals_to_the_whole_group_end_the_program_not_the_child(script: StartScript, name: str, fifo: Path) -> None:
    running, child = met_halfway(script, name, fifo)
    os.kill(child, signal.SIGTERM)
    os.kill(child, signal.SIGINT)
    running.kill(signal.SIGTERM)
    let_go(fifo)
    assert running.process.wait(30) == 143
    assert ab(name, 1) == (1, 1)
    assert running.errors.count("\n") == 1, running.errors


def test_child_that_is_killed_is_told_once_and_the_state_is_saved_the_next_time(
    script: StartScript, name: str, fifo: Path
) -> None:
    # Nothing in the state but what notices its changes: it is saved again because that is known to have failed.
    meet = """
def meet():
    if Slow.waiting:
        say(os.getpid())
        signal.pause()

import signal
os.register_at_fork(after_in_child=meet)

@app.on_restore
def begin(_):
    app.state.a = 1

with app:
    obey()
"""
    running = script(PROGRAM + meet, name, str(fifo))
    for _ in range(3):
        os.kill(int(running.line()), signal.SIGKILL)
    child = int(running.line())
    running.say("relax")
    assert running.line() == "relaxed"
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: "works again" in running.errors)
    assert saved(name)["a"] == 1
    assert running.end() == 0
    found, failed, again = running.errors.splitlines()
    assert parse_log(found)["state"] == "fresh"
    assert parse_log(failed)["save"] == "failed"
    assert "the child that packed the state was killed; what was saved before is as it was" in failed
    assert parse_log(again) == {"app": name, "save": "works again"}


def test_successor_of_a_killed_program_waits_for_its_child_and_has_what_that_saved(
    script: StartScript, name: str, fifo: Path
) -> None:
    running, child = met_halfway(script, name, fifo)
    ended = os.pidfd_open(child)
    running.kill()
    running.end()
    app = persistmem.App(name, interval=0, timeout=0)
    app.state(version=1)(dict)
    with pytest.raises(BusyError):
        app.start()
    assert generations(name) == []
    let_go(fifo)
    patient = persistmem.App(name, interval=0, timeout=30)
    patient.state(version=1)(dict)
    with patient:
        assert (patient.state["a"], patient.found.generation) == (1, 1)
        assert readable(ended, seconds=PATIENCE)
        patient.state["a"] = 5
    assert saved(name)["a"] == 5
    os.close(ended)


def test_child_killed_with_its_program_leaves_what_was_saved_before(script: StartScript, name: str, fifo: Path) -> None:
    running, child = met_halfway(script, name, fifo)
    running.kill()
    os.kill(child, signal.SIGKILL)
    running.end()
    app = persistmem.App(name, interval=0, timeout=30)
    app.state(version=1)(dict)
    with app:
        assert app.found.state == "fresh"


def test_loop_goes_on_while_a_child_packs(script: StartScript, name: str, fifo: Path) -> None:
    body = """
import asyncio

async def main():
    async with app:
        while line := await asyncio.to_thread(sys.stdin.readline):
            commands[line.strip()]()

asyncio.run(main())
"""
    running = script(PROGRAM + body, name, str(fifo))
    assert running.line() == "packing"
    child = int(running.line())
    assert child != running.pid
    os.kill(child, signal.SIGTERM)  # as a service manager that ends the whole group
    for command, answer in (("relax", "relaxed"), ("change", "2"), ("change", "3")):
        running.say(command)
        assert running.line() == answer
    assert generations(name) == []
    let_go(fifo)
    wait_until(lambda: len(generations(name)) >= 2)
    assert (ab(name, 1), ab(name, 2)) == ((1, 1), (3, 3))
    assert running.end() == 0, running.errors


def test_upgrade_is_the_programs_business_not_the_childs(
    script: StartScript, runtime: RuntimeDirectory, fifo: Path
) -> None:
    running, _ = met_halfway(script, "counters", fifo)
    running.say("change")
    assert running.line() == "2"
    simulate_reboot(deadline=0.5)
    assert running.line() == f"preparing {running.pid}"
    assert generations("counters") == []
    let_go(fifo)
    running.say("save")
    assert int(running.line())
    assert running.end() == 0, running.errors
    assert ab("counters") == (2, 2)
