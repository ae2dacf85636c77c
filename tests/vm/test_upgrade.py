"""A real upgrade, from Linux 7.2 to 7.3, back and forth again: two users keep data, and only they have it again."""

from itertools import pairwise

import pytest

from .machine import Job, Run
from .upgrade_guest import ARRAY_MIB

pytestmark = pytest.mark.vm

UPGRADES = Job("tests.vm.upgrade_guest", ("7.2.13", "7.3.4", "7.2.13", "7.3.4"))
RELEASES = [f"{version}-luo" for version in UPGRADES.kernels]
AFTER = range(1, len(UPGRADES.kernels))
upgrades = pytest.mark.parametrize("run", [UPGRADES], indirect=True, ids=["7.2.13-to-7.3.4-and-back-and-forth"])


@upgrades
def test_it_goes_through_the_kernels_that_it_claims(run: Run) -> None:
    assert [run.said(stage, "kernel") for stage in range(len(RELEASES))] == RELEASES


@upgrades
@pytest.mark.parametrize("stage", AFTER)
def test_a_user_has_all_cities_of_the_world_again(run: Run, stage: int) -> None:
    assert run.said(stage, "digest") == run.said(0, "digest")


@upgrades
@pytest.mark.parametrize("stage", AFTER)
def test_another_user_has_an_array_again_and_knows_the_way_it_came(run: Run, stage: int) -> None:
    assert run.said(stage, "array") == [
        f"7 ({ARRAY_MIB << 17},) True",
        f"carried over from kernel {RELEASES[stage - 1]} to {RELEASES[stage]}",
    ]
    assert run.said(stage, "verified") == 0


@upgrades
@pytest.mark.parametrize("stage", range(len(RELEASES)))
def test_what_is_one_users_is_not_there_for_the_other(run: Run, stage: int) -> None:
    status, output, error = run.said(stage, "refused")
    assert (status, output) == (1, "")
    assert "there is no arena 'cities'" in error
    assert run.said(stage, "listed") == ["simulation"]


@upgrades
@pytest.mark.parametrize("stage", AFTER)
def test_the_story_of_each_handover_is_told(run: Run, stage: int) -> None:
    handovers = run.said(stage, "history")
    assert [(told["kernel_from"], told["kernel_to"]) for told in handovers] == [*pairwise(RELEASES)][:stage]
    for told in handovers:
        assert (told["arenas"], told["saved"], told["lost"], told["lost_count"]) == (2, 0, [], 0)
        assert told["size"] > ARRAY_MIB << 20
        assert 0 < told["preserve"] < 60
        assert 0 < told["retrieve"] < told["boot"] <= told["dark"] < 120  # the clock may have lost a second
    as_told = run.said(stage, "history as told")
    assert f"kernel     {RELEASES[stage - 1]} -> {RELEASES[stage]}, handover {stage}" in as_told
    assert "lost       nothing" in as_told


@upgrades
@pytest.mark.parametrize("stage", range(len(RELEASES)))
def test_the_agent_alone_holds_the_device_and_serves_everybody(run: Run, stage: int) -> None:
    status = run.said(stage, "status")
    assert (status["carrier"], status["phase"], status["runtime_dir"]) == ("luo", "serving", "/run/persistmem")
    assert (status["arenas"], status["handovers"]) == (2, stage)
    assert run.said(stage, "device") == [True]
