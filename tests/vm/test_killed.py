"""The agent is killed at the worst moments, on the real kernel."""

import pytest

from .halfway_guest import NAMES, SESSIONS
from .machine import Job, Run

pytestmark = pytest.mark.vm

killed = pytest.mark.parametrize(
    "run", [Job("tests.vm.killed_guest", ("7.3.4", "7.3.4", "7.3.4"))], indirect=True, ids=["7.3.4"]
)
halfway = pytest.mark.parametrize(
    "run", [Job("tests.vm.halfway_guest", ("7.3.4", "7.3.4"))], indirect=True, ids=["7.3.4"]
)


@killed
def test_killed_before_the_kexec_nothing_is_carried_and_the_next_boot_says_so(run: Run) -> None:
    assert run.said(1, "arenas") == []
    (told,) = run.said(1, "history")
    assert (told["arenas"], told["lost_count"]) == (0, 1)
    assert told["lost"] == [
        {
            "arena": "shop",
            "uid": 1001,
            "why": "it was not handed over",
        }
    ]


@killed
def test_started_again_before_the_kexec_it_carries_what_applications_hand_back(run: Run) -> None:
    status = run.said(1, "status after the kill")
    assert (status["arenas"], status["missing"], status["phase"]) == (1, 0, "serving")
    assert run.said(2, "document") == [1, 2, 3]
    told = run.said(2, "history")[-1]
    assert (told["arenas"], told["lost_count"]) == (1, 0)


@halfway
def test_killed_between_retrieving_and_finishing_what_the_kernel_still_has_is_taken_over(run: Run) -> None:
    assert run.said(1, "killed by") == 9
    arrived = run.said(1, "arenas")
    assert len(arrived) == len(NAMES) - (SESSIONS - 1)
    assert run.said(1, "contents") == arrived


@halfway
def test_what_died_with_it_is_named(run: Run) -> None:
    (told,) = run.said(1, "history")
    assert told["left"] is not None
    assert sorted(loss["arena"] for loss in told["lost"]) == sorted(set(NAMES) - set(run.said(1, "arenas")))
    assert {loss["why"] for loss in told["lost"]} == {"it was not handed over"}
