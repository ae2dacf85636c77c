"""SIGTERM ends a program by its ``with``: what it had is saved, whatever it was doing, and never by halves."""

import random
import signal

import pytest

from .support import SLOW, StartScript, generations, saved

PROGRAM = """
import dataclasses, os, signal, sys, threading
import persistmem

def say(*words):
    print(*words, flush=True)

def sigterm():
    os.kill(os.getpid(), signal.SIGTERM)

SLOW
app = persistmem.App(sys.argv[1], '1MiB', interval=0)

@app.state(version=1)
class State:
    a: int = 0
    b: int = 0
    slow: object = None
""".replace("SLOW", SLOW)


def test_state_is_saved_and_the_status_is_143(script: StartScript, name: str) -> None:
    running = script(PROGRAM + "with app:\n app.state.a = 5\n say('ready')\n sys.stdin.readline()", name)
    assert running.line() == "ready"
    running.kill(signal.SIGTERM)
    assert running.end() == 143
    assert running.errors == ""
    assert saved(name)["a"] == 5


def test_explicit_save_is_finished_first(script: StartScript, name: str) -> None:
    code = """
with app:
    app.state.a, app.state.slow = 1, Slow()
    app.save()
    say('not reached')
    app.state.a = 2
"""
    running = script(PROGRAM + code, name)
    assert running.line() == "packing"
    running.kill(signal.SIGTERM)
    running.kill(signal.SIGTERM)
    running.say()
    assert running.end() == 143
    assert (saved(name)["a"], saved(name)["slow"], generations(name)) == (1, "slow", [1])


def test_last_save_is_finished_however_often_it_comes(script: StartScript, name: str) -> None:
    running = script(PROGRAM + "with app:\n app.state.a, app.state.slow = 1, Slow()", name)
    assert running.line() == "packing"
    for _ in range(3):
        running.kill(signal.SIGTERM)
    running.say()
    assert running.end() == 143
    assert (saved(name)["a"], saved(name)["slow"], generations(name)) == (1, "slow", [1])


def test_save_at_an_interval_is_finished_and_what_came_after_it_is_saved_as_well(
    script: StartScript, name: str
) -> None:
    code = """
done = threading.Event()
Slow.wait = done.wait
app.interval = 0.001
with app:
    app.state.a, app.state.slow = 1, Slow()
    try:
        sys.stdin.readline()
    finally:
        app.state.b = 7
        done.set()
"""
    running = script(PROGRAM + code, name)
    assert running.line() == "packing"
    running.kill(signal.SIGTERM)
    assert running.end() == 143
    assert running.errors == ""
    assert (saved(name)["a"], saved(name)["b"], saved(name)["slow"]) == (1, 7, "slow")


def test_handler_of_the_programs_own_is_left_alone(script: StartScript, name: str) -> None:
    code = """
def mine(number, frame):
    say('mine')

signal.signal(signal.SIGTERM, mine)
with app:
    app.state.a = 5
    say('ready')
    sys.stdin.readline()
    app.state.b = 6
assert signal.getsignal(signal.SIGTERM) is mine
"""
    running = script(PROGRAM + code, name)
    assert running.line() == "ready"
    running.kill(signal.SIGTERM)
    assert running.line() == "mine"
    running.say()
    assert running.end() == 0
    assert (saved(name)["a"], saved(name)["b"]) == (5, 6)


def test_handler_that_the_program_installs_later_stays(script: StartScript, name: str) -> None:
    code = """
with app:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sigterm()
    app.state.a = 5
assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
"""
    running = script(PROGRAM + code, name)
    assert running.end() == 0
    assert saved(name)["a"] == 5


def test_afterwards_sigterm_is_the_kernels_again(script: StartScript, name: str) -> None:
    running = script(PROGRAM + "with app: app.state.a = 5\nsigterm()\nsys.stdin.readline()", name)
    assert running.end() == -signal.SIGTERM
    assert saved(name)["a"] == 5


def test_started_in_another_thread_it_leaves_sigterm_alone(script: StartScript, name: str) -> None:
    code = """
def work():
    with app:
        app.state.a = 5
        app.save()
        say('ready')
        threading.Event().wait()

threading.Thread(target=work, daemon=True).start()
sys.stdin.readline()
"""
    running = script(PROGRAM + code, name)
    assert running.line() == "ready"
    running.kill(signal.SIGTERM)
    assert running.end() == -signal.SIGTERM


def test_changes_that_belong_together_are_not_halved(script: StartScript, name: str) -> None:
    code = """
with app:
    with app.lock:
        app.state.a += 1
        with app.lock:
            sigterm()
        app.state.b += 1
    say('not reached')
"""
    running = script(PROGRAM + code, name)
    assert running.end() == 143
    assert (saved(name)["a"], saved(name)["b"]) == (1, 1)


def test_lock_that_could_not_be_taken_does_not_hold_sigterm_up(script: StartScript, name: str) -> None:
    code = """
taken, done = threading.Event(), threading.Event()

def hold():
    with app.lock:
        taken.set()
        done.wait()

with app:
    threading.Thread(target=hold).start()
    taken.wait()
    assert not app.lock.acquire(blocking=False)
    assert not app.lock.acquire(timeout=0.01)
    try:
        sigterm()
        say('not reached')
    finally:
        done.set()
"""
    running = script(PROGRAM + code, name)
    assert running.end() == 143


def test_two_applications_in_one_process_are_both_saved(script: StartScript, name: str) -> None:
    code = """
other = persistmem.App(sys.argv[1] + '-other', '1MiB', interval=0)

@other.state(version=1)
class Other:
    a: int = 0
    slow: object = None

with app, other:
    app.state.a, other.state.a, other.state.slow = 5, 6, Slow()
"""
    running = script(PROGRAM + code, name)
    assert running.line() == "packing"
    running.kill(signal.SIGTERM)
    running.say()
    assert running.end() == 143
    assert (saved(name)["a"], saved(f"{name}-other")) == (5, {"a": 6, "slow": "slow"})


def test_the_first_of_two_that_is_stopped_leaves_sigterm_to_the_other(script: StartScript, name: str) -> None:
    code = """
other = persistmem.App(sys.argv[1] + '-other', '1MiB', interval=0)
other.state(version=1)(dict)
app.start()
other.start()
app.stop()
other.state['a'] = 5
try:
    sigterm()
finally:
    other.stop()
"""
    running = script(PROGRAM + code, name)
    assert running.end() == 143
    assert saved(f"{name}-other") == {"a": 5}


def test_forked_children_do_not_inherit_it(script: StartScript, name: str) -> None:
    code = """
def child():
    sigterm()
    os._exit(0)

with app:
    app.state.a = 5
    with app.lock:
        if (pid := os.fork()) == 0:
            child()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM

    def fork():
        if (pid := os.fork()) == 0:
            child()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
        say('it ended')

    with app.lock:
        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()
"""
    running = script(PROGRAM + code, name)
    assert running.line() == "it ended"
    assert running.end() == 0, running.errors
    assert saved(name)["a"] == 5


def test_forked_child_can_have_an_application_of_its_own(script: StartScript, name: str) -> None:
    code = """
def child():
    other = persistmem.App(sys.argv[1] + '-other', '1MiB', interval=0)
    other.state(version=1)(dict)
    with other:
        other.state['a'] = 5
        sigterm()

def fork():
    if (pid := os.fork()) == 0:
        try:
            child()
        except SystemExit as end:
            os._exit(end.code)
    say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

with app, app.lock:
    fork()
    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
"""
    running = script(PROGRAM + code, name)
    assert (running.line(), running.line()) == ("143", "143")
    assert running.end() == 0, running.errors
    assert saved(f"{name}-other") == {"a": 5}


def test_signal_that_came_before_the_fork_is_not_the_childs(script: StartScript, name: str) -> None:
    code = """
with app:
    try:
        with app.lock:
            sigterm()
            pid = os.fork()
        assert pid == 0
        os._exit(7)
    except SystemExit:
        if pid == 0:
            os._exit(8)
        say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        raise
"""
    running = script(PROGRAM + code, name)
    assert running.line() == "7"
    assert running.end() == 143


def test_signal_between_any_two_lines_of_the_stop_loses_nothing(script: StartScript, name: str) -> None:
    code = """
def trace_from(at):
    left = at
    def trace(frame, event, _):
        nonlocal left
        if frame.f_code.co_name == '__exit__' and frame.f_globals['__name__'] == 'persistmem.app.app':
            return None  # what is below of it counts
        if not frame.f_globals['__name__'].startswith('persistmem.app'):
            return None
        if event == 'line':
            left -= 1
            if left == 0:
                sigterm()
        return trace
    return trace

for at in range(1, 1000):
    if (pid := os.fork()) == 0:
        with app:
            app.state.a = at
            sys.settrace(trace_from(at))
        sys.settrace(None)
        sys.exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 143, -signal.SIGTERM), (at, status)
    with persistmem.attach(sys.argv[1]) as arena:
        assert arena.restore('state')['state']['a'] == at, at
    say(at)
    if status == 0:
        break
say('ended')
"""
    running = script(PROGRAM + code, name)
    steps = 0
    while (line := running.line()) != "ended":
        steps = int(line)
    assert 50 < steps < 999
    assert running.end() == 0, running.errors


@pytest.mark.parametrize("seed", range(3))
def test_at_any_moment_it_finds_a_whole_state_that_is_no_older_than_what_was_acknowledged(
    script: StartScript, name: str, seed: int
) -> None:
    code = """
with app:
    while True:
        with app.lock:
            app.state.a += 1
            app.state.b += 1
        if app.state.a % 3 == 0:
            app.save()
        say(app.state.a)
"""
    rng = random.Random(seed)
    last = 0
    for _ in range(4):
        running = script(PROGRAM + code, name)
        for _ in range(rng.randrange(1, 60)):
            last = int(running.line())
        running.kill(signal.SIGTERM)
        assert running.end() == 143, running.errors
        state = saved(name)
        assert state["a"] == state["b"] >= last
        last = state["a"]
