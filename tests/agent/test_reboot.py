"""The simulated kernel upgrade: what crosses it, what those who live through it are told, and what is written down."""

import os
from datetime import UTC, datetime

import pytest

from persistmem import errors
from persistmem.agent.paths import RuntimeDirectory
from persistmem.attachment import agent_status, attach, list_arenas, list_handovers, simulate_reboot, stop_agent

from .support import StartProgram, kill_agent, running_agent


def test_arenas_are_back_in_the_next_kernel_with_their_contents(runtime: RuntimeDirectory) -> None:
    contents = {f"arena {number}": os.urandom(100_000) for number in range(5)}
    for name, content in contents.items():
        with attach(name, size="1MiB") as arena:
            arena.snapshot("content", content)
    before = running_agent()
    simulate_reboot()
    after = running_agent()
    assert after.kernel != before.kernel
    assert after.boot != before.boot
    for name, content in contents.items():
        with attach(name) as arena:
            assert arena.restore("content") == content
            assert (arena.origin.kind, arena.origin.kernel_from, arena.origin.kernel_to) == (
                "carried over",
                before.kernel,
                after.kernel,
            )


def test_generations_remember_the_kernels_they_were_made_under(runtime: RuntimeDirectory) -> None:
    with attach("carts", size="1MiB") as arena:
        arena.snapshot("x", 1)
    simulate_reboot("7.2.13")
    with attach("carts") as arena:
        arena.snapshot("x", 2)
        assert arena.history("x")[0].kernel == "7.2.13"
        assert arena.history("x")[1].kernel.startswith(os.uname().release)


def test_a_process_that_lived_through_it_is_told_to_attach_again(
    runtime: RuntimeDirectory, program: StartProgram
) -> None:
    survivor = program()
    survivor.run("arena = attach('carts', size='1MiB')")
    simulate_reboot("7.3.4")
    told = survivor.run("arena.snapshot('x', 1)")
    assert told.startswith("StaleArenaError")
    assert "kernel that is gone" in told
    assert "7.3.4" in told
    assert "attach again" in told
    assert survivor.run("attach('carts').snapshots()") == []


def test_nothing_of_the_old_kernel_is_handed_to_the_new_one(runtime: RuntimeDirectory, program: StartProgram) -> None:
    survivor = program()
    survivor.run("arena = attach('carts', size='1MiB')")
    simulate_reboot(compatible=False)
    survivor.run("arena.snapshots()")
    assert list_arenas() == []
    # Nor when the new kernel's agent is killed, and asks around.
    kill_agent()
    assert "StaleArenaError" in survivor.run("arena.snapshots()")
    assert list_arenas() == []


def test_the_handover_is_written_down(runtime: RuntimeDirectory) -> None:
    for name in ("a", "b"):
        attach(name, size="1MiB").close()
    began = datetime.now(UTC)
    handover = simulate_reboot("7.3.4")
    assert (handover.number, handover.arenas, handover.size) == (1, 2, 2 << 20)
    assert (handover.kernel_from, handover.kernel_to) == (f"{os.uname().release}+sim1", "7.3.4")
    assert handover.left is not None
    assert began <= handover.left <= datetime.now(UTC)
    assert 0 < handover.preserve < 10
    assert 0 < handover.retrieve < handover.dark < 10
    assert handover.lost == ()
    assert list_handovers() == [handover]


def test_an_incompatible_kernel_boots_empty_and_says_what_was_lost_and_why(runtime: RuntimeDirectory) -> None:
    attach("carts", size="1MiB").close()
    handover = simulate_reboot(compatible=False)
    assert handover.arenas == 0
    assert [(loss.name, loss.uid) for loss in handover.lost] == [("carts", os.geteuid())]
    assert "luo-v6" in handover.lost[0].why
    with pytest.raises(errors.NotFoundError):
        attach("carts")


def test_three_upgrades_in_a_row_are_remembered_and_carry_on(runtime: RuntimeDirectory) -> None:
    with attach("carts", size="1MiB") as arena:
        arena.snapshot("x", "still here")
    releases = ["7.2.13", "7.3.4", "7.2.13"]
    for release in releases:
        simulate_reboot(release)
    assert [handover.kernel_to for handover in list_handovers()] == releases
    assert [handover.number for handover in list_handovers()] == [1, 2, 3]
    with attach("carts") as arena:
        assert arena.restore("x") == "still here"
        assert arena.origin.kernel_from == "7.3.4"


def test_a_refused_upgrade_leaves_everything_as_it_was(runtime: RuntimeDirectory, program: StartProgram) -> None:
    survivor = program()
    survivor.run("arena = attach('carts', size='1MiB')")
    # Preserving fills holes, and no machine here has this much memory.
    attach("vast", size="1TiB").close()
    before = running_agent()
    with pytest.raises(errors.RefusedError, match="nothing has changed"):
        simulate_reboot()
    after = running_agent()
    assert (after.pid, after.boot, after.arenas) == (before.pid, before.boot, 2)
    assert list_handovers() == []
    assert survivor.run("arena.snapshot('x', 1).number") == 1


@pytest.mark.parametrize("release", ["", "a b", "x" * 66, "7.3\n"])
def test_a_release_that_no_kernel_has_is_refused(runtime: RuntimeDirectory, release: str) -> None:
    with pytest.raises(errors.RefusedError, match="expected"):
        simulate_reboot(release)


def test_an_agent_that_is_killed_after_an_upgrade_comes_back_in_the_new_kernel(
    runtime: RuntimeDirectory, program: StartProgram
) -> None:
    holder = program()
    attach("carts", size="1MiB").close()
    simulate_reboot("7.3.4")
    holder.run("arena = attach('carts')")
    boot = running_agent().boot
    kill_agent()
    assert holder.run("arena.snapshots()") == []
    assert (running_agent().boot, running_agent().kernel) == (boot, "7.3.4")


def test_the_agent_can_be_stopped_after_an_upgrade(runtime: RuntimeDirectory) -> None:
    attach("carts", size="1MiB").close()
    simulate_reboot()
    assert stop_agent(discard=True)
    assert agent_status() is None


def test_who_looks_while_the_kernel_is_replaced_is_answered_before_it_or_after(
    runtime: RuntimeDirectory, program: StartProgram
) -> None:
    attach("carts", size="1MiB").close()
    lookers = [program() for _ in range(2)]
    for looker in lookers:
        assert looker.run("len(list_arenas())") == 1
        looker.begin("seen = set()\nwhile len(list_handovers()) < 3: seen.add(len(list_arenas())), agent_status()")
    for _ in range(3):
        simulate_reboot()
    for looker in lookers:
        assert looker.answer() is None
        assert looker.run("seen <= {0, 1}")
