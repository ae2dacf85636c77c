"""A service whose manager keeps its arenas: what it has again, what it is told, and what it leaves alone.

The service is a real process, its manager a real socket with a real store; only systemd itself is not there.
"""

import os
import signal
from collections.abc import Iterator

import pytest

from .manager import Manager, end, read_line

COUNT = """
import json, persistmem
arena = persistmem.attach("shop", "1MiB")
count = arena.restore("count", default=0)
arena.snapshot("count", count + 1)
print(json.dumps([arena.origin.kind, count]))
"""
ATTACH = "import persistmem; persistmem.attach({!r}, '1MiB')"
LIST = "import json, persistmem.attachment as a; print(json.dumps([r.name for r in a.list_arenas()]))"
LAST = """
import os, select, signal, sys, threading, time, persistmem
state = dict(step=1)
arena = persistmem.attach("shop", "1MiB", on_stop=lambda arena: arena.snapshot("state", state))
state["step"] = 2
print("up", flush=True)
"""
FOR_EVER = "while True: time.sleep(0.1)"
"""A signal that comes just before a call that waits is seen after it, in any Python program: so none waits long."""
STATE = "import json, persistmem; print(json.dumps(persistmem.attach('shop').restore('state', default=None)))"


@pytest.fixture
def manager() -> Iterator[Manager]:
    with Manager() as one:
        yield one


def test_a_restarted_service_has_its_arena_again(manager: Manager) -> None:
    assert [manager.run(COUNT) for _ in range(3)] == [["created", 0], ["reattached", 1], ["reattached", 2]]
    assert manager.names() == ["pm.shop"]
    assert manager.said[:3] == ["FDSTORE=1", "FDNAME=pm.shop", "FDPOLL=0"]


def test_a_killed_service_has_its_arena_again(manager: Manager) -> None:
    process = manager.start(COUNT + "import sys; sys.stdout.flush(); sys.stdin.read()")
    read_line(process)
    end(process)
    assert manager.run(COUNT) == ["reattached", 1]


@pytest.mark.parametrize("name", ["with a space", "名前", "a:b", "\\", "a=b", "x" * 200])
def test_an_arena_may_have_any_name(manager: Manager, name: str) -> None:
    for _ in range(2):
        manager.run(ATTACH.format(name))
    assert manager.run(LIST) == [name]
    assert len(manager.names()) == 1


def test_arenas_of_one_service_are_listed_and_dropped_there(manager: Manager) -> None:
    for name in ("b", "a"):
        manager.run(ATTACH.format(name))
    assert manager.run(LIST) == ["a", "b"]
    manager.run("import persistmem.attachment as a; a.drop_arena('a')")
    assert manager.names() == ["pm.b"]
    assert manager.run(LIST) == ["b"]
    assert manager.fail("import persistmem.attachment as a; a.drop_arena('a')").startswith("persistmem.errors.NotFound")


def test_the_command_line_of_a_service_uses_its_store(manager: Manager) -> None:
    command = "from persistmem.cli import app; app({!r})"
    manager.run(ATTACH.format("shop"))
    process = manager.start(command.format(["ls", "--json"]))
    output, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (0, "")
    assert '"shop"' in output
    process = manager.start(command.format(["rm", "shop"]))
    _, error = process.communicate(timeout=30)
    assert process.returncode == 0, error
    assert manager.names() == []


def test_a_dropped_arena_is_stale_where_it_is_attached(manager: Manager) -> None:
    said = manager.fail(
        "import persistmem, persistmem.attachment as a; x = persistmem.attach('x', '1MiB'); a.drop_arena('x');"
        "y = persistmem.attach('x', '1MiB'); y.snapshot('s', 1); x.snapshot('s', 1)"
    )
    assert said == "persistmem.errors.StaleArenaError: arena 'x' was dropped: attach again to make a new one"


def test_another_size_is_refused_and_nothing_is_lost(manager: Manager) -> None:
    manager.run(COUNT)
    assert "it has 1 MiB" in manager.fail("import persistmem; persistmem.attach('shop', '2MiB')")
    assert manager.run(COUNT) == ["reattached", 1]


def test_what_is_not_there_and_has_no_size_is_not_made(manager: Manager) -> None:
    assert "there is no arena 'shop' in this service's store" in manager.fail(STATE)
    assert manager.names() == []


def test_a_full_store_says_which_line_to_change_and_keeps_what_it_has() -> None:
    with Manager(most=1) as manager:
        manager.run(COUNT)
        assert "is full (1 of 1): raise FileDescriptorStoreMax=" in manager.fail(ATTACH.format("other"))
        assert manager.run(COUNT) == ["reattached", 1]


def test_a_store_that_others_filled_is_noticed() -> None:
    push = """
import os, persistmem
from persistmem.carriers.notify import Manager
Manager.of(os.environ).tell("FDSTORE=1", "FDNAME=mine", fds=[0])
"""
    with Manager(most=1) as manager:
        said = manager.fail(push + "persistmem.attach('shop', '1MiB')")
        assert "the service manager does not keep what process" in said
        assert manager.names() == ["mine"]


def test_a_service_without_a_store_says_which_lines_to_add() -> None:
    with Manager(most=None) as manager:
        said = manager.fail("import persistmem; persistmem.attach('shop', '1MiB', carrier='systemd')")
        assert "FileDescriptorStoreMax=16 and FileDescriptorStorePreserve=yes" in said


def test_a_process_that_the_manager_does_not_listen_to_is_told_so(manager: Manager) -> None:
    manager.listens_to = 1
    assert "does not keep what process" in manager.fail(ATTACH.format("shop"))


def test_without_a_manager_there_is_no_store() -> None:
    with Manager() as manager:
        said = manager.fail("import persistmem; persistmem.attach('shop', '1MiB', carrier='systemd')", NOTIFY_SOCKET="")
        assert "$NOTIFY_SOCKET is not set" in said


def test_a_process_that_is_not_the_services_main_one_is_told_who_is(manager: Manager) -> None:
    manager.run(COUNT)
    child = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', sys.argv[1]]).returncode)"
    program = f"import sys; sys.argv[1:] = [{COUNT!r}]\n{child}"
    assert "is not the main one of its service, which is" in manager.fail(program)


def test_a_forked_worker_shares_what_the_main_process_attached_before(manager: Manager) -> None:
    program = """
import os, persistmem
arena = persistmem.attach("shop", "1MiB")
if os.fork() == 0:
    persistmem.attach("shop").snapshot("state", "the worker's")
    os._exit(0)
os.wait()
"""
    manager.run(program)
    assert manager.run(STATE) == "the worker's"


def test_what_others_stored_is_left_alone_and_still_inherited(manager: Manager) -> None:
    reading, writing = os.pipe()
    os.close(writing)
    manager.store.append(("theirs", reading))
    program = """
import json, os, persistmem
persistmem.attach("shop", "1MiB")
print(json.dumps([os.get_inheritable(3 + n) for n in range(int(os.environ["LISTEN_FDS"]))]))
"""
    assert manager.run(program) == [True]
    assert manager.run(program) == [False, True]
    assert manager.names() == ["pm.shop", "theirs"]


@pytest.mark.parametrize("how", ["pipe", "unsealed", "truncated", "garbage"])
def test_what_is_no_arena_under_an_arenas_name_is_an_error_and_stays(manager: Manager, how: str) -> None:
    manager.run(COUNT)
    if how == "garbage":
        os.pwrite(manager.store[0][1], b"\xff" * 64, 0)
    else:
        os.close(manager.store.pop()[1])
        if how == "pipe":
            fd, writing = os.pipe()
            os.close(writing)
        else:
            fd = os.memfd_create("x", os.MFD_ALLOW_SEALING if how == "unsealed" else 0)
            os.ftruncate(fd, 1 << 20 if how == "unsealed" else 10)
        manager.store.append(("pm.shop", fd))
    assert manager.fail(COUNT).startswith("persistmem.errors.CorruptError")
    assert manager.names() == ["pm.shop"]


def test_two_of_one_name_are_an_error_until_they_are_dropped(manager: Manager) -> None:
    manager.run(COUNT)
    manager.store.append(("pm.shop", os.dup(manager.store[0][1])))
    assert "the store has 'shop' twice" in manager.fail(COUNT)
    manager.run("import persistmem.attachment as a; a.drop_arena('shop')")
    assert manager.run(COUNT) == ["created", 0]


@pytest.mark.parametrize(
    "waiting", ["time.sleep(0.1)", "threading.Event().wait(0.1)", "select.select([], [], [], 0.1)"]
)
def test_the_last_snapshot_is_taken_at_sigterm(manager: Manager, waiting: str) -> None:
    process = manager.start(f"{LAST}while True: {waiting}")
    read_line(process)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (0, "")
    assert manager.run(STATE) == {"step": 2}


def test_the_last_snapshot_is_taken_though_a_thread_does_not_end(manager: Manager) -> None:
    process = manager.start(LAST + "threading.Thread(target=sys.stdin.read).start()\n" + FOR_EVER)
    read_line(process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert manager.run(STATE) == {"step": 2}


@pytest.mark.parametrize(
    "ending",
    ["", "sys.exit(0)", "arena.close()", "with arena: 1", "signal.signal(15, exit); signal.raise_signal(15)"],
)
def test_the_last_snapshot_is_taken_however_the_program_ends(manager: Manager, ending: str) -> None:
    process = manager.start(LAST + ending)
    process.communicate(timeout=30)
    assert manager.run(STATE) == {"step": 2}


def test_the_last_snapshot_waits_for_the_one_that_is_being_taken(manager: Manager) -> None:
    program = LAST + "while True: arena.snapshot('big', bytes(300_000)); state['step'] = 3"
    process = manager.start(program)
    read_line(process)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (0, "")
    assert manager.run(STATE)["step"] in (2, 3)


def test_sigterm_ends_what_is_no_service_with_the_status_that_shells_know(manager: Manager) -> None:
    process = manager.start("import os; del os.environ['SYSTEMD_EXEC_PID']" + LAST + FOR_EVER)
    read_line(process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert manager.run(STATE) == {"step": 2}


def test_a_last_call_that_fails_is_told_and_does_not_keep_the_service_from_ending(manager: Manager) -> None:
    program = LAST.replace('arena.snapshot("state", state)', "1 / 0") + FOR_EVER
    process = manager.start(program)
    read_line(process)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "ZeroDivisionError" in error


def test_before_kexec_is_called_at_sigterm(manager: Manager) -> None:
    program = """
import time, persistmem
arena = persistmem.attach("shop", "1MiB")
persistmem.before_kexec(lambda: arena.snapshot("state", "told"))
print("up", flush=True)
while True: time.sleep(0.1)
"""
    process = manager.start(program)
    read_line(process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert manager.run(STATE) == "told"


def test_an_app_is_saved_in_the_store_at_sigterm(manager: Manager) -> None:
    program = """
import json, time
from dataclasses import field
from persistmem import App
app = App("shop", size="1MiB")
@app.state(version=1)
class State:
    count: int = 0
with app:
    app.state.count += 1
    print(json.dumps(app.state.count), flush=True)
    %s
"""
    process = manager.start(program % FOR_EVER)
    assert read_line(process) == "1"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert manager.run(program % "pass") == 2


@pytest.mark.parametrize(
    ("variables", "used"),
    [
        ({"PERSISTMEM_CARRIER": "systemd"}, True),
        ({}, True),
        ({"PERSISTMEM_CARRIER": "user"}, False),
        ({"PERSISTMEM_RUNTIME_DIR": "{}"}, False),
    ],
)
def test_the_carrier_can_be_forced(manager: Manager, tmp_path: object, variables: dict[str, str], used: bool) -> None:
    own = {name: value.format(tmp_path) for name, value in variables.items()}
    program = ATTACH.format("shop") + "; import persistmem.attachment as a; a.stop_agent(discard=True)"
    manager.run(program, **own, XDG_RUNTIME_DIR=str(tmp_path))
    assert manager.names() == (["pm.shop"] if used else [])


def test_a_carrier_that_is_none_is_an_error(manager: Manager) -> None:
    said = manager.fail(ATTACH.format("shop"), PERSISTMEM_CARRIER="disk")
    assert (
        said
        == "persistmem.errors.ArgumentError: $PERSISTMEM_CARRIER: expected one of systemd, system, user, found 'disk'"
    )
