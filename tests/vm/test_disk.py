"""Where memory cannot go the disk can: to a kernel with another ABI, or with none, and back; or if memory is short."""

import re

import pytest

from . import debian
from .machine import Job, Run

pytestmark = pytest.mark.vm

RAW = Job("tests.vm.raw_guest", ("7.3.4", "7.3.4-next"))
INCOMPATIBLE = Job("tests.vm.disk_guest", ("7.3.4", "7.3.4-next", "7.3.4"))
WITHOUT = Job("tests.vm.disk_guest", ("7.3.4", debian.NAME, "7.3.4"))
FULL = Job("tests.vm.full_guest", ("7.3.4", "7.3.4"))
RELEASES = {"7.3.4": r"7\.3\.4-luo", "7.3.4-next": r"7\.3\.4-luo-next", debian.NAME: r"\d.*-cloud-amd64"}
"""Each kernel's own word for itself."""

Kernels = tuple[str, ...]

incompatible = pytest.mark.parametrize("run", [INCOMPATIBLE], indirect=True, ids=["another-abi"])
without = pytest.mark.parametrize("run", [WITHOUT], indirect=True, ids=["no-handover"])
full = pytest.mark.parametrize("run", [FULL], indirect=True, ids=["memory-too-full"])
there_and_back = pytest.mark.parametrize(
    ("run", "kernels"),
    [(INCOMPATIBLE, INCOMPATIBLE.kernels), (WITHOUT, WITHOUT.kernels)],
    indirect=["run"],
    ids=["another-abi", "no-handover"],
)


@pytest.mark.parametrize("run", [RAW], indirect=True, ids=["7.3.4-to-next"])
def test_a_kexec_into_a_kernel_with_another_abi_panics_even_if_nothing_was_preserved(run: Run) -> None:
    assert [report[:2] for report in run.reports] == [[0, "kernel"]]
    assert "LUO state is incompatible with 'luo-v6'" in run.console
    assert "Kernel panic - not syncing: The incoming tree failed to initialize properly" in run.console


@incompatible
def test_preflight_says_that_it_will_panic_to_anybody(run: Run) -> None:
    status, output, _ = run.said(0, "preflight")
    assert status == 4
    assert output.startswith("THE MACHINE WILL PANIC.\n")
    assert "it reads luo-v6, and is handed luo-v5" in output


@without
def test_preflight_says_of_a_kernel_without_handover_that_state_is_lost(run: Run) -> None:
    status, output, _ = run.said(0, "preflight")
    assert status == 3
    assert output.startswith("State is lost; the machine comes up.\n")
    assert "it has no kexec handover (CONFIG_KEXEC_HANDOVER)" in output


@there_and_back
def test_preflight_says_that_a_kernel_without_live_update_hands_nothing_over(run: Run, kernels: Kernels) -> None:
    status, output, _ = run.said(1, "preflight")
    assert status == 3
    assert output.startswith("State is lost; the machine comes up.\n")


@there_and_back
@pytest.mark.parametrize("stage", [0, 1])
def test_memory_only_refuses_and_changes_nothing(run: Run, kernels: Kernels, stage: int) -> None:
    status, output, error = run.said(stage, "refused")
    assert (status, output) == (1, "")
    assert "without --memory-only arenas go by the disk" in error
    assert run.said(stage, "status after the refusal")["phase"] == "serving"


@there_and_back
@pytest.mark.parametrize("stage", [1, 2])
def test_the_machine_comes_up_and_everything_is_back_from_the_disk(run: Run, kernels: Kernels, stage: int) -> None:
    assert re.fullmatch(RELEASES[kernels[stage]], run.said(stage, "kernel"))
    assert run.said(stage, "equal") is True
    assert run.said(stage, "verify")[0] == 0


@there_and_back
@pytest.mark.parametrize("stage", [1, 2])
def test_history_says_that_it_came_by_the_disk(run: Run, kernels: Kernels, stage: int) -> None:
    told = run.said(stage, "history")[-1]
    assert re.fullmatch(RELEASES[kernels[stage - 1]], told["kernel_from"])
    assert re.fullmatch(RELEASES[kernels[stage]], told["kernel_to"])
    assert (told["arenas"], told["saved"], told["lost_count"]) == (1, 1, 0)


@incompatible
def test_handover_is_off_in_the_kernel_that_would_panic_and_on_again_in_the_next(run: Run) -> None:
    first, second, third = [run.said(stage, "command line") for stage in range(3)]
    assert second == first.rstrip("\n") + " kho=on kho=off\n"
    assert third == first


@there_and_back
def test_the_agent_serves_on_every_kernel_and_says_where_it_has_no_device(run: Run, kernels: Kernels) -> None:
    assert [run.said(stage, "status")["carrier"] for stage in range(3)] == ["luo", "luo (no device)", "luo"]


@there_and_back
@pytest.mark.parametrize("stage", [1, 2])
def test_what_was_taken_in_is_not_there_to_be_taken_in_again(run: Run, kernels: Kernels, stage: int) -> None:
    assert run.said(stage, "saved") == [".arena", ".taken"]


@full
def test_more_holes_than_memory_are_no_reason_to_leave_if_only_memory_will_do(run: Run) -> None:
    status, _, error = run.said(0, "memory only")
    assert status == 1
    assert "filling the holes of all arenas needs 4 GiB" in error


@full
def test_more_holes_than_memory_go_by_the_disk_as_holes(run: Run) -> None:
    assert run.said(1, "document") == ["apples", "pears"]
    assert run.said(1, "arenas") == ["huge", "shop"]
    (told,) = run.said(1, "history")
    assert (told["arenas"], told["saved"], told["lost_count"]) == (2, 2, 0)
