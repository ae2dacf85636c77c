"""What an application is promised when it attaches, with real processes and a real agent."""

import os
import time
from pathlib import Path

import pytest

from persistmem import errors
from persistmem.agent.paths import RuntimeDirectory
from persistmem.attachment import agent_status, attach, drop_arena, list_arenas, stop_agent
from tests.descriptors import open_descriptors

from .support import StartProgram, running_agent, wait_for_exit


def test_the_first_attach_makes_an_arena_and_starts_an_agent(runtime: RuntimeDirectory) -> None:
    assert agent_status() is None
    with attach("carts", size="1MiB") as arena:
        assert arena.size == 1 << 20
        assert arena.origin.kind == "created"
        assert arena.origin.kernel_to.startswith(os.uname().release)
    status = running_agent()
    assert (status.arenas, status.size) == (1, 1 << 20)


def test_an_arena_outlives_the_process_that_made_it(runtime: RuntimeDirectory, program: StartProgram) -> None:
    maker = program()
    maker.run("arena = attach('carts', size='1MiB')")
    maker.run("arena.snapshot('open', {'ada': [1, 2]}).number")
    maker.end()
    with attach("carts") as arena:
        assert arena.origin.kind == "reattached"
        assert arena.restore("open") == {"ada": [1, 2]}


def test_without_a_size_an_arena_that_is_not_there_is_not_made(runtime: RuntimeDirectory) -> None:
    with pytest.raises(errors.NotFoundError, match="give a size"):
        attach("carts")
    assert list_arenas() == []


def test_another_size_than_the_arena_has_is_an_error_that_names_both(runtime: RuntimeDirectory) -> None:
    with attach("carts", size="1MiB"), pytest.raises(errors.SizeError, match=r"1 MiB.*2 MiB"):
        attach("carts", size="2MiB")


def test_the_same_size_again_gives_the_same_arena(runtime: RuntimeDirectory) -> None:
    with attach("carts", size="1MiB") as first, attach("carts", size=1 << 20) as second:
        assert first.uuid == second.uuid
        first.snapshot("open", 1)
        assert second.restore("open") == 1


@pytest.mark.parametrize("size", ["1KiB", 65535, "0"])
def test_a_size_that_no_arena_can_have_is_refused(runtime: RuntimeDirectory, size: int | str) -> None:
    with pytest.raises(errors.SizeError):
        attach("carts", size=size)


@pytest.mark.parametrize("name", ["", "a/b", "-x", "a\0b", "x" * 201])
def test_a_name_that_no_arena_can_have_is_refused_before_any_agent_is_started(
    runtime: RuntimeDirectory, name: str
) -> None:
    with pytest.raises(errors.InvalidNameError):
        attach(name, size="1MiB")
    assert agent_status() is None


def test_ten_processes_that_attach_at_once_get_one_agent_and_one_arena(
    runtime: RuntimeDirectory, program: StartProgram
) -> None:
    programs = [program() for _ in range(10)]
    for each in programs:
        each.run("0")  # ready to go
    for each in programs:
        each.begin("(arena := attach('shared', size='1MiB')) and (agent_status().pid, str(arena.uuid)) and None")
    for each in programs:
        each.answer()
    assert len({each.run("agent_status().pid") for each in programs}) == 1
    assert len({each.run("str(arena.uuid)") for each in programs}) == 1
    assert [each.run("arena.origin.kind") for each in programs].count("created") == 1


def test_list_names_every_arena_however_many(runtime: RuntimeDirectory) -> None:
    names = [f"arena {number:03}" for number in range(150)]
    for name in names:
        attach(name, size="64KiB").close()
    assert [record.name for record in list_arenas()] == names


def test_a_dropped_arena_is_gone_and_who_has_it_attached_is_told(
    runtime: RuntimeDirectory, program: StartProgram
) -> None:
    holder = program()
    holder.run("arena = attach('carts', size='1MiB')")
    drop_arena("carts")
    assert "StaleArenaError" in holder.run("arena.snapshots()")
    assert "dropped" in holder.run("arena.snapshots()")
    assert list_arenas() == []
    with pytest.raises(errors.NotFoundError):
        drop_arena("carts")


def test_a_dropped_name_can_be_used_again(runtime: RuntimeDirectory) -> None:
    with attach("carts", size="1MiB") as old:
        uuid = old.uuid
    drop_arena("carts")
    with attach("carts", size="2MiB") as new:
        assert new.uuid != uuid
        assert new.snapshots() == []


def test_attaching_and_closing_leaks_no_descriptor_here_and_none_in_the_agent(runtime: RuntimeDirectory) -> None:
    def descriptors_of_agent() -> int:
        return len(list(Path(f"/proc/{agent}/fd").iterdir()))

    attach("carts", size="1MiB").close()
    agent = running_agent().pid
    before = open_descriptors(), descriptors_of_agent()
    for _ in range(20):
        attach("carts").close()
        with pytest.raises(errors.SizeError):
            attach("carts", size="2MiB")
    assert (open_descriptors(), descriptors_of_agent()) == before


def test_attaching_costs_the_same_for_any_size(runtime: RuntimeDirectory) -> None:
    times: dict[str, list[float]] = {"64MiB": [], "16GiB": []}
    for size in times:
        attach(size, size=size).close()
    # In turns, so that whatever else this machine does is as bad for both.
    for _ in range(50):
        for size, taken in times.items():
            began = time.perf_counter()
            arena = attach(size)
            taken.append(time.perf_counter() - began)
            arena.close()
    small, large = (min(taken) for taken in times.values())
    assert max(small, large) < 0.025
    assert large < 3 * small


def test_a_forked_child_uses_the_arena_beside_its_parent(runtime: RuntimeDirectory) -> None:
    with attach("carts", size="1MiB") as arena:
        arena.snapshot("from", "parent")
        child = os.fork()
        if child == 0:
            arena.snapshot("from", arena.restore("from") + " and child")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert arena.restore("from") == "parent and child"


def test_a_new_agent_is_started_after_the_last_was_stopped(runtime: RuntimeDirectory) -> None:
    attach("carts", size="1MiB").close()
    pid = running_agent().pid
    assert stop_agent(discard=True)
    with attach("carts", size="1MiB") as arena:
        assert arena.origin.kind == "created"
        assert running_agent().pid != pid
    wait_for_exit(pid)
