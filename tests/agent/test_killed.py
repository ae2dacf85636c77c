"""kill -9 of the agent: nothing that a live client holds is lost."""

import os
import signal

from persistmem.agent.paths import RuntimeDirectory
from persistmem.attachment import attach, drop_arena, list_arenas, list_handovers, simulate_reboot

from .support import StartProgram, kill_agent, running_agent, wait_for_exit


def test_what_an_idle_client_holds_is_handed_back_without_its_doing(
    runtime: RuntimeDirectory, program: StartProgram
) -> None:
    holder = program()
    holder.run("arena = attach('carts', size='1MiB')")
    holder.run("arena.snapshot('open', [1, 2, 3]).number")
    killed = kill_agent()
    # The holder is not asked to do anything: another process finds the arena, whole.
    with attach("carts") as arena:
        assert arena.origin.kind == "reattached"
        assert arena.restore("open") == [1, 2, 3]
    assert running_agent().pid != killed


def test_who_asks_at_once_for_the_same_arena_waits_for_it_instead_of_making_another(
    runtime: RuntimeDirectory, program: StartProgram
) -> None:
    holder, other = program(), program()
    holder.run("arena = attach('carts', size='1MiB')")
    other.run("0")
    kill_agent()
    assert other.run("str(attach('carts', size='1MiB').uuid)") == holder.run("str(arena.uuid)")


def test_a_client_that_is_writing_all_the_time_loses_no_snapshot(
    runtime: RuntimeDirectory, program: StartProgram
) -> None:
    writer = program()
    writer.run("arena = attach('log', size='1MiB')")
    for round_ in range(3):
        writer.begin(f"[arena.snapshot('n', {round_} * 1000 + i).number for i in range(300)][-1]")
        kill_agent()
        assert writer.answer() == (round_ + 1) * 300
    with attach("log") as arena:
        assert arena.restore("n") == 2299


def test_everything_is_kept_again_with_its_history(runtime: RuntimeDirectory, program: StartProgram) -> None:
    holder = program()
    holder.run("arenas = [attach(f'a{i}', size='64KiB') for i in range(20)]")
    handover = simulate_reboot()
    holder.run("arenas = [attach(f'a{i}') for i in range(20)]")
    before = list_arenas()
    kill_agent()
    assert list_arenas() == before  # kernel, times, owner and all
    assert list_handovers() == [handover]


def test_an_arena_that_was_dropped_does_not_come_back(runtime: RuntimeDirectory, program: StartProgram) -> None:
    holder = program()
    holder.run("arena, other = attach('carts', size='1MiB'), attach('other', size='1MiB')")
    drop_arena("carts")
    kill_agent()
    assert [record.name for record in list_arenas()] == ["other"]
    assert "dropped" in holder.run("arena.snapshots()")


def test_a_client_that_slept_through_it_hands_back_when_it_wakes(
    runtime: RuntimeDirectory, program: StartProgram
) -> None:
    sleeper, awake = program(), program()
    sleeper.run("arena = attach('mine', size='1MiB')")
    awake.run("arena = attach('other', size='1MiB')")
    os.kill(sleeper.process.pid, signal.SIGSTOP)
    try:
        kill_agent()
        assert awake.run("arena.snapshots()") == []
    finally:
        os.kill(sleeper.process.pid, signal.SIGCONT)
    assert sleeper.run("arena.snapshot('x', 1).number") == 1
    with attach("mine") as arena:
        assert arena.restore("x") == 1


def test_a_forked_child_keeps_what_its_parent_had(runtime: RuntimeDirectory, program: StartProgram) -> None:
    parent = program()
    parent.run("arena = attach('carts', size='1MiB')")
    parent.run("arena.snapshot('x', 1).number")
    # The child uses the arena once, and is the only one left that has it when the agent is killed.
    child = parent.run(
        "import signal\n"
        "reading, writing = os.pipe()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    arena.snapshot('x', 2)\n"
        "    os.write(writing, b'.')\n"
        "    signal.pause()\n"
        "os.read(reading, 1)\n"
    )
    child = parent.run("child")
    try:
        parent.end()
        kill_agent()
        with attach("carts") as arena:
            assert arena.restore("x") == 2
    finally:
        os.kill(child, signal.SIGKILL)
    wait_for_exit(child)


def test_what_nobody_held_is_lost_and_its_name_is_free_again(runtime: RuntimeDirectory) -> None:
    attach("carts", size="1MiB").close()
    kill_agent()
    with attach("carts", size="64KiB") as arena:
        assert arena.origin.kind == "created"
