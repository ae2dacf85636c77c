"""One process saves the state, whoever else is there: others, forked children, and what a killed one leaves behind."""

import os
import signal
from dataclasses import field

import pytest

import persistmem
from persistmem.errors import RefusedError

from ..agent.support import Program, StartProgram
from .support import generations, saved

DECLARE = """
import dataclasses, os, signal, threading
app = persistmem.App({name!r}, "1MiB", interval=0, others={others!r}, timeout={timeout})
@app.state(version=1)
class State:
    count: int = 0
    words: dict[str, list[int]] = dataclasses.field(default_factory=dict)
def child(work):
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.write(writer, str(work()).encode())
        except BaseException as error:
            os.write(writer, f"{{type(error).__name__}}: {{error}}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader) as said:
        return said.read()
"""


def declare(program: Program, name: str, *, others: str = "refuse", timeout: float = 0.0) -> Program:
    program.run(DECLARE.format(name=name, others=others, timeout=timeout))
    return program


def new_app(name: str, **options: object) -> persistmem.App:
    app = persistmem.App(name, "1MiB", **{"interval": 0, "timeout": 0, **options})  # type: ignore[arg-type]

    @app.state(version=1)
    class State:
        count: int = 0
        words: dict[str, list[int]] = field(default_factory=dict)

    return app


def test_of_several_that_start_at_once_one_wins_and_the_others_are_told_what_to_do(
    program: StartProgram, name: str
) -> None:
    programs = [declare(program(), name) for _ in range(5)]
    for each in programs:
        each.begin("str(app.start())")
    answers = [each.answer() for each in programs]
    winners = [each for each, answer in zip(programs, answers, strict=True) if not answer.startswith("BusyError")]
    assert len(winners) == 1
    (answer,) = {answer for answer in answers if answer.startswith("BusyError")}
    assert "found another that did not end within 0 s; end it, or start this one with others='read'" in answer
    winners[0].run("app.state.count = 5")
    winners[0].run("app.stop()")
    for each in programs:
        assert "role=writer" in each.run("str(app.start())")
        assert each.run("app.state.count") == 5
        each.run("app.stop()")


def test_start_waits_for_the_one_before_to_end(program: StartProgram, name: str) -> None:
    first = declare(program(), name)
    second = declare(program(), name, timeout=60)
    first.run("app.start()")
    second.begin("str(app.start())")
    first.run("app.state.count = 7")
    first.run("app.stop()")
    assert "state=restored" in second.answer()
    assert second.run("app.state.count") == 7


def test_reader_has_what_was_saved_and_changes_nothing(program: StartProgram, name: str) -> None:
    writer = declare(program(), name)
    writer.run("app.start()")
    assert not writer.run("app.refresh()")
    app = new_app(name, others="read")
    with app:
        assert (app.is_writer, app.found.role, app.found.state) == (False, "reader", "fresh")
        writer.run("app.state.words['a'] = [1]")
        assert app.refresh() is False
        writer.run("app.save()")
        assert app.refresh() is True
        assert app.state.words == {"a": [1]}
        assert (app.found.state, app.found.generation) == ("restored", 1)
        assert app.refresh() is False
        old = app.state
        writer.run("app.state.words['a'].append(2)")
        writer.run("app.save()")
        assert app.state.words == {"a": [1]}
        assert app.refresh() is True
        assert app.state.words == {"a": [1, 2]}
        for change in (
            lambda: app.state.words["a"].append(3),
            lambda: setattr(app.state, "count", 1),
            lambda: old.words["a"].append(3),
            app.save,
        ):
            with pytest.raises(RefusedError, match=r"only reads the state.*would be lost"):
                change()
    assert generations(name) == [2, 1]
    assert saved(name) == {"count": 0, "words": {"a": [1, 2]}}


def test_reader_starts_as_the_writer_if_there_is_none(name: str) -> None:
    with new_app(name, others="read") as app:
        assert app.is_writer
        app.state.count = 1
    assert saved(name)["count"] == 1


def test_reader_takes_the_place_of_a_writer_that_was_killed(program: StartProgram, name: str) -> None:
    writer = declare(program(), name)
    writer.run("app.start()")
    writer.run("app.state.count = 1")
    writer.run("app.save()")
    app = new_app(name, others="read")
    with app:
        writer.run("app.state.count = 2")
        writer.run("app.save()")
        old = app.state
        writer.process.kill()
        writer.process.wait()
        assert app.refresh()
        assert (app.is_writer, app.found.role, app.state.count) == (True, "writer", 2)
        with pytest.raises(RefusedError):
            old.words["a"] = [1]
        app.state.count = 3
    assert saved(name)["count"] == 3


def test_after_a_writer_was_killed_the_next_start_is_the_writer_at_once(program: StartProgram, name: str) -> None:
    for count in range(3):
        writer = declare(program(), name)
        writer.run("app.start()")
        assert writer.run("app.state.count") == count
        writer.run("app.state.count += 1")
        writer.run("app.save()")
        writer.process.kill()
        writer.process.wait()
    with new_app(name) as app:
        assert (app.is_writer, app.state.count) == (True, 3)


@pytest.mark.parametrize("kind", ["os.fork()", "a subprocess", "a process of multiprocessing"])
def test_living_child_of_a_killed_writer_is_in_nobodys_way(program: StartProgram, name: str, kind: str) -> None:
    writer = declare(program(), name)
    writer.run("app.start()")
    writer.run("app.state.count = 1")
    writer.run("app.save()")
    writer.run("import subprocess, multiprocessing, sys")
    pid = writer.run(
        {
            "os.fork()": "(pid := os.fork()) or signal.pause()",
            "a subprocess": "(p := subprocess.Popen(['sleep', '600'], close_fds=False)).pid",
            "a process of multiprocessing": "(lambda p: (p.start(), p.pid)[1])("
            "multiprocessing.get_context('fork').Process(target=signal.pause, daemon=True))",
        }[kind]
    )
    writer.process.kill()
    writer.process.wait()
    try:
        with new_app(name, timeout=30) as app:
            os.kill(pid, 0)
            assert (app.is_writer, app.state.count) == (True, 1)
    finally:
        os.kill(pid, signal.SIGKILL)


def test_forked_child_only_reads_and_the_parent_goes_on(program: StartProgram, name: str) -> None:
    parent = declare(program(), name)
    with new_app(name) as app:
        app.state.words["a"] = [1]
    parent.run("app.start()")
    assert parent.run("child(lambda: (app.is_writer, dict(app.state.words)))") == "(False, {'a': [1]})"
    for change in ("app.state.words['a'].append(2)", "setattr(app.state, 'count', 1)", "app.save()"):
        assert parent.run(f"child(lambda: {change})").startswith(f"RefusedError: app {name}: this process only reads")
    assert parent.run("child(lambda: app.stop())") == "None"
    assert parent.run("child(lambda: (app.stop(), app.start()))").startswith("BusyError")
    assert generations(name) == [1]
    assert parent.run("child(lambda: app.refresh())") == "False"
    parent.run("app.state.words['a'].append(3)")
    parent.run("app.save()")
    assert parent.run("child(lambda: (app.refresh(), app.state.words))") == "(False, {'a': [1, 3]})"
    assert generations(name) == [2, 1]
    parent.run("app.stop()")
    assert saved(name) == {"count": 0, "words": {"a": [1, 3]}}


def test_child_that_was_forked_long_ago_sees_what_was_saved_since(program: StartProgram, name: str) -> None:
    parent = declare(program(), name)
    parent.run("app.start()")
    parent.run(
        """
order, ready = os.pipe(), os.pipe()
if (pid := os.fork()) == 0:
    os.read(order[0], 1)
    os.write(ready[1], repr((app.refresh(), app.state.count, app.refresh(), app.is_writer)).encode())
    os._exit(0)
"""
    )
    parent.run("app.state.count = 5")
    parent.run("app.save()")
    parent.run("os.write(order[1], b'!')")
    assert parent.run("os.read(ready[0], 100).decode()") == "(True, 5, False, False)"


def test_child_that_is_forked_while_another_thread_has_the_lock_is_not_stuck(program: StartProgram, name: str) -> None:
    parent = declare(program(), name)
    parent.run("app.start()")
    parent.run(
        """
taken, done = threading.Event(), threading.Event()
def hold():
    with app.lock:
        taken.set()
        done.wait()
threading.Thread(target=hold).start()
taken.wait()
"""
    )
    assert parent.run("child(lambda: (app.refresh(), app.stop(), app.is_started))") == "(False, None, False)"
    parent.run("done.set()")


def test_child_forked_amid_the_fork_of_one_that_packs_is_no_writer_and_holds_nobody_up(
    program: StartProgram, name: str
) -> None:
    parent = declare(program(), name)
    parent.run("app = persistmem.App(app._settings.name + '-child', '1MiB', interval=0, packing='child')")
    parent.run("app.state(version=1)(dict)")
    parent.run("app.start()")
    parent.run(
        """
said, children = os.pipe(), []

def fork():
    if (pid := os.fork()) == 0:
        os.write(said[1], str(app.is_writer).encode())
        signal.pause()
    children.append(pid)

def amid():
    if not children:
        children.append(0)
        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()

os.register_at_fork(before=amid)
app.state['a'] = 1
app._tick()()
"""
    )
    assert parent.run("os.read(said[0], 100).decode()") == "False"
    assert saved(f"{name}-child") == {"a": 1}
    parent.run("os.kill(children[1], signal.SIGKILL)")
