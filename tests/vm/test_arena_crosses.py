"""An arena goes from kernel to kernel with the luo carrier, whole, with all that was written in each of them."""

import pytest

from .machine import Job, Run

pytestmark = pytest.mark.vm

THERE_AND_BACK_AND_FORTH = Job("tests.vm.arena_guest", ("7.2.13", "7.3.4", "7.2.13", "7.3.4"))


@pytest.mark.parametrize("run", [THERE_AND_BACK_AND_FORTH], indirect=True, ids=["7.2.13-to-7.3.4-and-back-and-forth"])
def test_every_generation_of_every_kernel_is_there_after_three_handovers_in_a_row(run: Run) -> None:
    releases = [f"{version}-luo" for version in THERE_AND_BACK_AND_FORTH.kernels]
    assert [report[1] for report in run.reports] == releases
    assert len({report[2] for report in run.reports}) == 1, "another arena came back"
    for stage, _, _, sound, history, equal in run.reports:
        assert isinstance(stage, int)
        assert sound is True
        assert history == [[number + 1, release] for number, release in enumerate(releases[:stage])]
        assert equal == [True] * stage
