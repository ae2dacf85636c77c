"""SIGKILL at any moment: what is found is whole, and no older than the last save that was acknowledged."""

import random

import pytest

from .support import StartScript, saved

PROGRAM = """
import dataclasses, sys, threading
import persistmem

app = persistmem.App(sys.argv[1], '4MiB', interval='1ms', packing=sys.argv[2])

@app.state(version=1)
class State:
    a: int = 0
    b: int = 0
    log: list[tuple[int, bytes]] = dataclasses.field(default_factory=list)
    marks: dict[str, object] = dataclasses.field(default_factory=dict)

def change():
    with app.lock:
        state = app.state
        state.a += 1
        state.log.append((state.a, bytes([state.a % 256]) * (5000 if state.a % 7 == 0 else 50)))
        if len(state.log) > 40:
            del state.log[:20]
        state.marks[str(state.a % 11)] = {'at': state.a, 'seen': {state.a, -state.a}}
        state.b += 1

with app:
    if sys.argv[3] == 'threads':
        def work():
            while True:
                change()
        for _ in range(2):
            threading.Thread(target=work, daemon=True).start()
    while True:
        change()
        if app.state.a % 5 == 0:
            saved = app.state.a
            app.save()
            print(saved, flush=True)
"""


def check(state: dict[str, object]) -> int:
    """Raise if it is not a state that the program once had; return which."""
    a, log, marks = state["a"], state["log"], state["marks"]
    assert isinstance(a, int)
    assert isinstance(log, list)
    assert isinstance(marks, dict)
    assert state["b"] == a
    assert [number for number, _ in log] == list(range(a - len(log) + 1, a + 1))
    assert all(set(data) == {number % 256} for number, data in log)
    assert marks == {str(n % 11): {"at": n, "seen": {n, -n}} for n in range(max(1, a - 10), a + 1)}
    return a


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_moment(script: StartScript, name: str, seed: int) -> None:
    rng = random.Random(seed)
    last = 0
    for _ in range(4):
        running = script(PROGRAM, name, ("here", "child")[seed % 2], ("alone", "threads")[seed // 2])
        for _ in range(rng.randrange(1, 40)):
            last = int(running.line())
        running.kill()
        running.end()
        found = check(saved(name))
        assert found >= last
        last = found
